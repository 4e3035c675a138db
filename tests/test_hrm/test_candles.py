"""Candles: files read or refused by name, a gate that lists what is wrong."""

import csv
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from training_builders import START_S, some_candles

from hrm.training.candles import (
    Candles,
    DataQualityError,
    check_quality,
    embedded_candles_path,
    read_candles,
)

Row = list[object]


def raw_rows(count: int = 20) -> list[Row]:
    """Make rows of the existing system's CSV, its nameless index column first."""
    return [
        [i, START_S + 300 * i, 100.0 + i, 102.0 + i, 99.0 + i, 101.0 + i, 0] for i in range(count)
    ]


def write_raw(path: Path, rows: list[Row], header: tuple[str, ...] | None = None) -> Path:
    names = header or ("", "datetime", "open", "high", "low", "close", "volume")
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows])
    return path


def test_the_raw_csv_is_read_with_its_name_and_bar_length(tmp_path: Path) -> None:
    candles = read_candles(write_raw(tmp_path / "Bank_Nifty_5.csv", raw_rows()))

    assert (candles.instrument, candles.timeframe, len(candles)) == ("Bank_Nifty", "5", 20)
    assert candles.close_ns[0] == (START_S + 300) * 1_000_000_000
    assert candles.high[3] == 105.0
    assert len(candles.sha256) == 64


def test_unsorted_rows_are_sorted_and_exact_repetitions_dropped(tmp_path: Path) -> None:
    rows = raw_rows()
    shuffled = [*rows[10:], *rows[:10], rows[4]]

    candles = read_candles(write_raw(tmp_path / "Nifty_5.csv", shuffled))

    np.testing.assert_array_equal(candles.open, 100.0 + np.arange(20))


def test_parquet_with_epoch_is_read(tmp_path: Path) -> None:
    rows = np.array(raw_rows(), dtype=np.float64)
    names = ("epoch", "open", "high", "low", "close", "volume")
    columns = {name: rows[:, i] for i, name in enumerate(names, 1)}
    columns["epoch"] = columns["epoch"].astype(np.int64)
    parquet.write_table(pa.table(columns), tmp_path / "nifty_5m.parquet")

    candles = read_candles(tmp_path / "nifty_5m.parquet", instrument="Nifty")

    assert (candles.instrument, candles.timeframe, len(candles)) == ("Nifty", "5", 20)
    assert candles.close_ns[0] == (START_S + 300) * 1_000_000_000


def test_parquet_without_volume_counts_it_as_unknown(tmp_path: Path) -> None:
    rows = np.array(raw_rows(), dtype=np.float64)
    names = ("epoch", "open", "high", "low", "close")
    columns = {name: rows[:, i] for i, name in enumerate(names, 1)}
    columns["epoch"] = columns["epoch"].astype(np.int64)
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet")

    candles = read_candles(tmp_path / "x.parquet")

    assert candles.instrument == "x"
    assert not candles.volume.any()


def test_parquet_without_epoch_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"close": [1.0]}), tmp_path / "x.parquet")

    with pytest.raises(DataQualityError, match="no column epoch"):
        read_candles(tmp_path / "x.parquet")


def test_the_embedded_candles_are_hourly_euros_for_a_year() -> None:
    candles = read_candles(embedded_candles_path())

    check_quality(candles)
    assert (candles.instrument, candles.timeframe, len(candles)) == ("EURUSD", "60", 6225)


@pytest.mark.parametrize(
    ("change", "claim"),
    [
        (lambda rows: rows[5].__setitem__(5, "nan"), "close must be a finite number"),
        (lambda rows: rows[5].__setitem__(2, -1.0), "open must be positive, was -1.0 in row 5"),
        (lambda rows: rows[5].__setitem__(3, 50.0), "high must not be below low"),
        (lambda rows: rows[5].__setitem__(2, "x"), "row 6: could not convert string to float"),
        (lambda rows: rows[5].__setitem__(1, "May"), "the time must be epoch seconds"),
        (lambda rows: rows[5].__delitem__(slice(4, None)), "row 6: list index out of range"),
        (lambda rows: rows.clear(), "holds no candles"),
        (lambda rows: rows.__delitem__(slice(1, None)), "bar length needs at least two"),
        (
            lambda rows: [row.__setitem__(1, START_S + i**3) for i, row in enumerate(rows)],
            "no steady bar length",
        ),
    ],
)
def test_a_file_that_cannot_be_true_is_refused_with_the_reason(
    tmp_path: Path, change: Callable[[list[Row]], object], claim: str
) -> None:
    rows = raw_rows()
    change(rows)

    with pytest.raises(DataQualityError, match=re.escape(claim)):
        read_candles(write_raw(tmp_path / "Nifty_5.csv", rows))


def test_two_bars_that_disagree_about_one_time_are_refused(tmp_path: Path) -> None:
    rows = raw_rows()
    rows.append([99, *rows[3][1:5], 103.5, 0])

    with pytest.raises(DataQualityError, match=r"disagree: close 104\.0 and 103\.5"):
        read_candles(write_raw(tmp_path / "Nifty_5.csv", rows))


@pytest.mark.parametrize(
    ("header", "claim"),
    [
        (("", "when", "open", "high", "low", "close", "volume"), "no time column"),
        (("", "datetime", "open", "top", "bottom", "close", "volume"), "no column high, low"),
    ],
)
def test_a_file_without_the_columns_is_refused(
    tmp_path: Path, header: tuple[str, ...], claim: str
) -> None:
    with pytest.raises(DataQualityError, match=claim):
        read_candles(write_raw(tmp_path / "x.csv", raw_rows(), header))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no candle file at .*nowhere\.csv"):
        read_candles(tmp_path / "nowhere.csv")


def _frozen(candles: Candles) -> Candles:
    return replace(candles, high=candles.low.copy())


def _repeating(candles: Candles) -> Candles:
    return replace(candles, close=np.repeat(candles.close[::4], 4))


def _split_stock(candles: Candles) -> Candles:
    return replace(candles, close=np.where(np.arange(len(candles)) < 300, 1.0, 0.5))


def _torn(candles: Candles) -> Candles:
    late = candles.close_ns.copy()
    late[300:] += 40 * 86_400 * 1_000_000_000
    return replace(candles, close_ns=late)


def _off_grid(candles: Candles) -> Candles:
    return replace(candles, close_ns=candles.close_ns + np.arange(len(candles)))


@pytest.mark.parametrize(
    ("spoil", "claim"),
    [
        (lambda candles: some_candles(100), "only 100 bars, at least 300 are needed"),
        (_frozen, "100% of the bars never moved"),
        (_repeating, "75% of the closes repeat"),
        (_split_stock, "the close jumps from 1.0 to 0.5 in row 300"),
        (_torn, "40 days are missing before row 300"),
        (_off_grid, "do not begin on a whole minute"),
    ],
)
def test_the_quality_gate_names_what_is_wrong(
    spoil: Callable[[Candles], Candles], claim: str
) -> None:
    with pytest.raises(DataQualityError, match=re.escape(claim)):
        check_quality(spoil(some_candles()))


def test_the_quality_gate_lists_every_reason_at_once() -> None:
    with pytest.raises(DataQualityError, match=r"only 200 bars.*never moved"):
        check_quality(_frozen(some_candles(200)))


def test_a_mirrored_market_moves_the_other_way() -> None:
    candles = some_candles()

    mirror = candles.mirrored()

    np.testing.assert_allclose(np.diff(np.log(mirror.close)), -np.diff(np.log(candles.close)))
    assert np.all(mirror.high >= np.maximum(mirror.open, mirror.close))
    assert np.all(mirror.low <= np.minimum(mirror.open, mirror.close))
