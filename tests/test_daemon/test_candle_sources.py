"""Candles from the broker's history and from our own recordings: one table, one set of checks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded_session import BARS, RecordedSession, write_candles

from daemon.candle_sources import candles_of_history, candles_of_recording, load_any
from daemon.errors import DataError
from daemon.history import load_candles

FIRST_S = 1_710_733_500


def history_rows(count: int = 5) -> list[list[float]]:
    return [[FIRST_S + 300 * k, 100.05, 101.5, 99.95, 100.1, 10 + k] for k in range(count)]


def test_the_brokers_rows_become_a_table_with_their_volume() -> None:
    table = candles_of_history(history_rows(), "Nifty")

    assert (table.symbol, table.timeframe, len(table)) == ("Nifty", "5", 5)
    assert table.volume.tolist() == [10, 11, 12, 13, 14]
    assert table.open_ns[0] == FIRST_S * 10**9
    assert str(table.candle(0).high) == "101.50"


def test_open_interest_behind_the_volume_is_let_through() -> None:
    table = candles_of_history([[*row, 500] for row in history_rows()], "Nifty")

    assert len(table) == 5


def test_repairs_of_history_are_counted_as_those_of_a_file() -> None:
    rows = history_rows(8)
    rows[2], rows[3] = rows[3], rows[2]

    table = candles_of_history([*rows, rows[0]], "Nifty")

    assert table.quality.count("out of order") == 2
    assert table.quality.count("duplicate") == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[FIRST_S, 1.0, 2.0]], "row 1 must be \\[epoch, open, high, low, close, volume\\]"),
        ([], "no usable row of 0"),
        ([["soon", 1, 2, 1, 1, 0]] * 3, "no time 3"),
        ([[FIRST_S + k * 300, 5, 2, 1, 1, 0] for k in range(4)], "high not highest 4"),
    ],
)
def test_rows_that_are_no_candles_are_refused(rows: list[list[object]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        candles_of_history(rows, "Nifty")


@given(
    rows=st.lists(
        st.lists(
            st.none() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=4),
            min_size=5,
            max_size=7,
        ),
        max_size=6,
    )
)
def test_whatever_the_broker_sends_gives_a_table_or_a_reason(rows: list[list[object]]) -> None:
    try:
        table = candles_of_history(rows, "Nifty")
    except DataError:
        return
    assert len(table) >= 2


def test_a_stored_answer_of_the_broker_is_read_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "Bank_Nifty_5.json"
    path.write_text(json.dumps({"s": "ok", "candles": history_rows()}))

    table = load_any(path)

    assert (table.symbol, len(table)) == ("Bank_Nifty", 5)


@pytest.mark.parametrize("content", ["", "{", '{"s": "error"}', "[]", '"text"'])
def test_an_answer_without_candles_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "Nifty_5.json"
    path.write_text(content)

    with pytest.raises(DataError, match=r"Nifty_5\.json"):
        load_any(path)


def test_a_recording_holds_the_candles_it_was_played_from(
    recorded: RecordedSession, tmp_path: Path
) -> None:
    played = load_candles(write_candles(tmp_path))

    table = load_any(recorded.folder)

    assert (table.symbol, table.timeframe, len(table)) == ("Nifty", "5", BARS)
    for name in ("open_ns", "open", "high", "low", "close"):
        np.testing.assert_array_equal(getattr(table, name), getattr(played, name))
    assert table.quality.is_clean


def test_a_recording_that_is_not_sealed_or_was_changed_is_refused(
    recorded: RecordedSession, tmp_path: Path
) -> None:
    unsealed, changed = tmp_path / "unsealed", tmp_path / "changed"
    for copy in (unsealed, changed):
        shutil.copytree(recorded.folder, copy)
    (unsealed / "seal.json").unlink()
    records = bytearray((changed / "records").read_bytes())
    records[len(records) // 2] ^= 1
    (changed / "records").write_bytes(records)

    with pytest.raises(DataError, match="no sealed recording"):
        candles_of_recording(unsealed)
    with pytest.raises(DataError):
        candles_of_recording(changed)


def test_an_instrument_that_was_not_recorded_is_refused(recorded: RecordedSession) -> None:
    with pytest.raises(DataError, match="has no bars of Sensex, only of Nifty"):
        candles_of_recording(recorded.folder, "Sensex")
