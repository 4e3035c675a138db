"""Features benchmark: what it reports, on a few bars; its speed is not judged here."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import features
from benchmarks.features import LIBRARY_TOLERANCE, MAX_DIFFERENCE, measure, measure_all
from daemon.demo_data import demo_candles
from daemon.feature_frame import exact_frame
from daemon.history import load_candles


@pytest.fixture(scope="module")
def result() -> dict[str, object]:
    table = load_candles(demo_candles().path)
    return measure(table.between(0, int(table.open_ns[700])), lookahead_bars=500)


def test_both_ways_agree_and_nothing_looks_ahead(result: dict[str, object]) -> None:
    assert float(str(result["max_abs_diff"])) <= MAX_DIFFERENCE
    assert result["lookahead_violations"] == 0
    assert result["bars"] == 700


def test_the_library_agrees(result: dict[str, object]) -> None:
    library = result["library"]
    assert isinstance(library, dict)
    assert library["columns"] == 32
    assert library["max_relative_diff"] <= LIBRARY_TOLERANCE


def test_a_state_fits_a_few_kilobytes(result: dict[str, object]) -> None:
    sizes = result["snapshot_bytes"]
    assert isinstance(sizes, dict)
    assert max(sizes.values()) < 20_000


@pytest.mark.filterwarnings("error")
def test_a_price_that_never_moved_is_measured_like_any_other() -> None:
    table = load_candles(demo_candles().path)
    flat = np.full(500, 100.0)
    still = replace(
        table.between(0, int(table.open_ns[500])), open=flat, high=flat, low=flat, close=flat
    )

    result = measure(still, lookahead_bars=400)

    assert result["max_abs_diff"] <= MAX_DIFFERENCE
    assert result["lookahead_violations"] == 0
    assert result["library"]["max_relative_diff"] <= LIBRARY_TOLERANCE


def test_a_number_where_the_other_way_knows_none_is_no_agreement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = load_candles(demo_candles().path)
    table = table.between(0, int(table.open_ns[600]))
    frame = exact_frame(table)
    frame["rsi_14"] = np.where(np.arange(len(frame)) == 450, math.nan, frame["rsi_14"])
    monkeypatch.setattr(features, "exact_frame", lambda _: frame)

    result = measure(table, lookahead_bars=400)

    assert result["frame_max_abs_diff"] == math.inf
    assert result["library"]["max_relative_diff"] == math.inf
    assert not result["passed"]


def test_several_files_are_summed_up_by_the_worst_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: dict[str, object]
) -> None:
    worse = result | {"max_abs_diff": 0.5, "lookahead_violations": 2, "passed": False}
    found = iter([result, worse])
    monkeypatch.setattr(features, "continuous_candles", lambda path: (path, 3))
    monkeypatch.setattr(features, "measure", lambda table, bars: next(found))

    both = measure_all([tmp_path / "a_5.csv", tmp_path / "b_5.csv"], 500)

    assert (both["max_abs_diff"], both["lookahead_violations"], both["passed"]) == (0.5, 2, False)
    assert [one["file"] for one in both["files"]] == ["a_5.csv", "b_5.csv"]
    assert [one["auction_bars_left_out"] for one in both["files"]] == [3, 3]
