"""The model reads the same bytes from ticks over the bus, from their replay and from a backtest."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

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

from actors.messages import Decision, Depth
from daemon.backtest import BacktestService, prepare
from daemon.history import load_candles
from daemon.replay import replay_session
from hrm.features import FEATURE_NAMES, FeatureWindow, bar_features

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


def test_ticks_batches_replay_and_backtest_show_the_model_the_same_bytes_over_a_full_day(
    reading: Noting, tmp_path: Path
) -> None:
    with reading() as live:
        session = asyncio.run(record_session(tmp_path))
    with reading() as batched:  # published as many events at a time as wait
        asyncio.run(record_session(made(tmp_path / "batches"), in_lock_step=False))
    with reading() as replayed:
        assert replay_session(session.folder).identical
    other = made(tmp_path / "backtest")
    release_tiny_model(other / "models")
    loaded = prepare([write_candles(other)], [], config=CONFIG_DIR)
    with reading() as tested:
        BacktestService(replace(loaded, settings=session_settings(other))).run_alone()

    assert len(live) == BARS - WARM_UP + 1 > BARS_PER_DAY
    assert [w.tobytes() for w in live] == [w.tobytes() for w in batched]
    assert [w.tobytes() for w in live] == [w.tobytes() for w in replayed]
    assert [w.tobytes() for w in live] == [w.tobytes() for w in tested]
    table = load_candles(write_candles(other))
    trained = bar_features(
        table.open, table.high, table.low, table.close, table.volume, table.close_ns, table.bar_ns
    )
    np.testing.assert_allclose(live[-1], trained[-len(live[-1]) :], rtol=0, atol=1e-6)


def test_decisions_within_bars_are_the_same_in_replay_and_backtest_and_only_lead_out(
    reading: Noting, tmp_path: Path
) -> None:
    epochs: dict[str, Any] = {"feed.epochs_per_bar": 3, "feed.epoch_move_atr": 0.2}
    with reading() as live:
        session = asyncio.run(record_session(tmp_path, **epochs))
    with reading() as replayed:
        assert replay_session(session.folder).identical
    other = made(tmp_path / "backtest")
    release_tiny_model(other / "models")
    loaded = prepare([write_candles(other)], [], config=CONFIG_DIR)
    with reading() as tested:
        backtest = BacktestService(replace(loaded, settings=session_settings(other, **epochs)))
        result = backtest.run_alone()

    assert [w.tobytes() for w in live] == [w.tobytes() for w in replayed]
    assert [w.tobytes() for w in live] == [w.tobytes() for w in tested]
    entries = asyncio.run(session.bus.entries(Decision.stream))
    messages = [entry.envelope.message for entry in entries]
    decisions = [message for message in messages if isinstance(message, Decision)]
    assert len({decision.id for decision in decisions}) == len(decisions) == result.decisions
    within = Counter(decision.action for decision in decisions if decision.within_bar)
    assert set(within) <= {"HOLD", "CLOSE_LONG", "CLOSE_SHORT"}
    assert len(within) > 1, "some of them must lead out"
    assert sum(not decision.within_bar for decision in decisions) == BARS


def test_books_are_shown_alike_to_a_model_that_knows_them_and_to_no_other(
    reading: Noting, tmp_path: Path
) -> None:
    with reading() as live:
        session = asyncio.run(record_session(tmp_path, has_depth=True, reads_depth=True))
    with reading() as replayed:
        assert replay_session(session.folder).identical
    with reading() as blind:
        asyncio.run(record_session(made(tmp_path / "blind"), has_depth=True))
    other = made(tmp_path / "backtest")
    release_tiny_model(other / "models")
    loaded = prepare([write_candles(other)], [], config=CONFIG_DIR)
    with reading() as without:
        BacktestService(replace(loaded, settings=session_settings(other))).run_alone()

    assert [w.tobytes() for w in live] == [w.tobytes() for w in replayed]
    assert [w.tobytes() for w in blind] == [w.tobytes() for w in without]
    assert live[-1][:, FEATURE_NAMES.index("depth_known")].tolist() == [0.5] * len(live[-1])
    imbalances = live[-1][:, FEATURE_NAMES.index("depth_imbalance")]
    assert len(set(imbalances.tolist())) == len(imbalances)
    assert len(asyncio.run(session.bus.entries(Depth.stream))) == 4 * BARS


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder
