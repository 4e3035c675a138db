"""Look-ahead check: real features pass on real bars, and every kind of cheating is found."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import CONFIG
from feature_builders import BAR_NS, sessions
from training_builders import some_candles
from typer.testing import CliRunner

from daemon.cli import app
from daemon.demo_data import demo_candles
from daemon.errors import DataError
from daemon.history import load_candles
from daemon.lookahead import Checked, Compute, check_lookahead, every_column, training_candles
from daemon.settings import load_settings
from hrm.features import FEATURE_NAMES
from hrm.training.candles import Candles

SHARED = os.environ.get("HRM_TRADER_SHARED_DATA")


@pytest.fixture
def compute() -> Compute:
    return every_column(load_settings(CONFIG, demo=True).complexity)


def index_candles(days: int) -> Candles:
    """Make sessions of five-minute bars, for which there are forecasts and regimes."""
    columns: dict[str, Any] = sessions(days)
    return replace(some_candles(400), instrument="Nifty", timeframe="5", bar_ns=BAR_NS, **columns)


def test_nothing_that_is_learned_from_knows_the_future_on_real_bars(compute: Compute) -> None:
    table = load_candles(demo_candles().path)

    report = check_lookahead(training_candles(table.between(0, int(table.open_ns[4000]))), compute)

    assert report.first is None
    assert (report.lookahead_violations, report.warmup_violations) == (0, 0)
    assert report.columns == len(FEATURE_NAMES) + 53 + 8 + 2 + 2 + 8


def test_nor_what_is_forecast_of_an_index(compute: Compute) -> None:
    candles = index_candles(54)

    report = check_lookahead(candles, compute)

    assert (len(candles), report.first) == (54 * 75, None)


def test_every_column_knows_something_where_it_is_compared(compute: Compute) -> None:
    columns = compute(index_candles(54))

    silent = {
        name
        for name, column in columns.items()
        if len(set(column.values[column.is_warm].tolist())) < 2
    }
    always_known = {"feature volume_known", "feature x12_known", "feature day_known"}
    never_trained_on = {"context news", "context correlation", "context sources_known"}
    only_with_shortened_histories = {"forecast checked usually_demanding"}
    assert silent == always_known | never_trained_on | only_with_shortened_histories


def test_a_forecast_that_knows_the_next_bar_is_found(compute: Compute) -> None:
    def shifted(candles: Candles) -> dict[str, Checked]:
        column = compute(candles)["forecast demand"]
        ahead = np.append(column.values[1:], column.values[-1])
        return {"forecast demand": replace(column, values=ahead)}

    report = check_lookahead(index_candles(11), shifted)

    assert report.first is not None
    assert (report.first.column, report.first.kind) == ("forecast demand", "later bars")


@pytest.mark.skipif(SHARED is None, reason="HRM_TRADER_SHARED_DATA names no folder")
@pytest.mark.parametrize("name", ["nifty_5m.parquet", "bank_nifty_2m.parquet"])
def test_nor_on_real_index_bars(name: str, compute: Compute) -> None:
    table = load_candles(Path(str(SHARED)) / name)

    report = check_lookahead(training_candles(table.between(0, int(table.open_ns[4000]))), compute)

    assert report.first is None


def everywhere(candles: Candles) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.ones(len(candles), dtype=np.bool_)


def next_close(candles: Candles) -> Checked:
    return Checked(np.append(candles.close[1:], candles.close[-1]), everywhere(candles))


def scaled_by_the_whole_history(candles: Candles) -> Checked:
    return Checked(candles.close / candles.close.mean(), everywhere(candles))


def bars_since_the_start(candles: Candles) -> Checked:
    return Checked(np.arange(len(candles), dtype=np.float64), everywhere(candles))


def label_that_does_not_wait(candles: Candles) -> Checked:
    moves = np.append(np.diff(candles.close), 0.0)  # says 0 where it should say: unknown
    return Checked(moves, everywhere(candles), horizon=1)


@pytest.mark.parametrize(
    ("cheat", "kind"),
    [
        (next_close, "later bars"),
        (scaled_by_the_whole_history, "later bars"),
        (label_that_does_not_wait, "later bars"),
        (bars_since_the_start, "warm-up"),
    ],
)
def test_what_cheats_is_found_and_named(cheat: Callable[[Candles], Checked], kind: str) -> None:
    report = check_lookahead(some_candles(500), lambda candles: {"cheat": cheat(candles)})

    assert report.first is not None
    assert (report.first.column, report.first.kind) == ("cheat", kind)
    assert report.first.whole != report.first.cut


def test_a_label_that_waits_for_its_horizon_passes() -> None:
    def honest(candles: Candles) -> dict[str, Checked]:
        moves = np.append(np.diff(candles.close), np.nan)
        return {"honest": Checked(moves, everywhere(candles), horizon=1)}

    report = check_lookahead(some_candles(500), honest)

    assert report.first is None
    assert report.comparisons == 11


def test_too_short_a_history_is_refused() -> None:
    with pytest.raises(DataError, match="399 bars are too few"):
        check_lookahead(some_candles(399), lambda _: {})


def test_the_command_answers_with_one_object() -> None:
    result = CliRunner().invoke(app, ["data", "lookahead", "--bars", "600", "--json"])

    answer = json.loads(result.stdout)
    assert result.exit_code == 0
    assert (answer["violations"], answer["bars"], answer["first"]) == (0, 600, None)
