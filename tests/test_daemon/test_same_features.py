"""The model reads the same bytes from ticks over the bus, from their replay and from a backtest."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from recorded_session import (
    BARS,
    BARS_PER_DAY,
    CONFIG_DIR,
    record_session,
    release_tiny_model,
    session_settings,
    write_candles,
)

from daemon.backtest import BacktestService, prepare
from daemon.history import load_candles
from daemon.replay import replay_session
from hrm.features import FeatureWindow, bar_features

Windows = list[NDArray[np.float32]]
Noting = Callable[[], AbstractContextManager[Windows]]
WARM_UP = 40  # of the sessions' settings


@pytest.fixture
def reading(
    monkeypatch: pytest.MonkeyPatch,
) -> Noting:
    """Return what notes, while it is open, every window that reasoning reads."""
    read = FeatureWindow.read

    @contextmanager
    def noting() -> Iterator[Windows]:
        windows: Windows = []

        def noted(self: FeatureWindow) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
            rows, mask = read(self)
            windows.append(rows.copy())
            return rows, mask

        monkeypatch.setattr(FeatureWindow, "read", noted)
        yield windows
        monkeypatch.setattr(FeatureWindow, "read", read)

    return noting


def test_ticks_replay_and_backtest_show_the_model_the_same_bytes_over_a_full_day(
    reading: Noting, tmp_path: Path
) -> None:
    with reading() as live:
        session = asyncio.run(record_session(tmp_path))
    with reading() as replayed:
        assert replay_session(session.folder).identical
    other = tmp_path / "backtest"
    other.mkdir()
    release_tiny_model(other / "models")
    loaded = prepare([write_candles(other)], [], config=CONFIG_DIR)
    with reading() as tested:
        BacktestService(replace(loaded, settings=session_settings(other))).run_alone()

    assert len(live) == BARS - WARM_UP + 1 > BARS_PER_DAY
    assert [w.tobytes() for w in live] == [w.tobytes() for w in replayed]
    assert [w.tobytes() for w in live] == [w.tobytes() for w in tested]
    table = load_candles(write_candles(other))
    trained = bar_features(
        table.open, table.high, table.low, table.close, table.volume, table.close_ns, table.bar_ns
    )
    np.testing.assert_allclose(live[-1], trained[-len(live[-1]) :], rtol=0, atol=1e-6)
