"""Candles for charts: whose file is read, where, how often, and what is told when it cannot be."""

import os
import threading
from pathlib import Path

import pytest
from backend_server import USER, KnownAccounts
from command_line import CONFIG, HEADER, candle_rows

from backend import candles
from backend.accounts import PastCandle
from backend.candles import CandleShelf
from daemon.errors import DataError
from daemon.history import CandleTable, load_candles
from daemon.settings import load_instruments

NOW_S = 1_772_500_000


def a_shelf(raw_dir: Path) -> CandleShelf:
    offered = load_instruments(CONFIG, {})
    return CandleShelf(raw_dir, offered.catalogue, frozenset(offered.timeframes), KnownAccounts())


def write_rows(path: Path, count: int = 250) -> Path:
    path.write_text("\n".join([HEADER, *candle_rows(count)]) + "\n")
    return path


async def recent(shelf: CandleShelf, name: str, timeframe: str = "1") -> list[PastCandle]:
    return await shelf.recent(USER, name, timeframe, None, None, NOW_S)


async def test_the_file_of_an_instrument_in_any_spelling_is_found(tmp_path: Path) -> None:
    write_rows(tmp_path / "Bank_Nifty_1.csv")

    assert len(await recent(a_shelf(tmp_path), "bank nifty")) == 51


@pytest.mark.parametrize("name", ["{folder}/other", "../raw/other", "other"])
async def test_a_name_that_no_instrument_has_is_no_file(tmp_path: Path, name: str) -> None:
    raw_dir = tmp_path / "raw"
    raw_dir.mkdir()
    write_rows(raw_dir / "other_1.csv")
    shelf = a_shelf(raw_dir)

    assert await recent(shelf, name.format(folder=raw_dir)) == []
    assert shelf.path(name.format(folder=raw_dir), "1", None) is None


@pytest.mark.parametrize("timeframe", ["7", "../Nifty_1", "1/../1", ""])
async def test_a_timeframe_that_is_not_offered_is_refused_and_no_file(
    tmp_path: Path, timeframe: str
) -> None:
    write_rows(tmp_path / f"Nifty_{timeframe.replace('/', '')}.csv")
    shelf = a_shelf(tmp_path)

    with pytest.raises(DataError, match="timeframe must be one of 1, 3, 5, 15, 30, 60, 120, 240"):
        await recent(shelf, "Nifty", timeframe)
    assert shelf.path("Nifty", timeframe, None) is None


async def test_a_file_that_cannot_be_read_is_named_without_its_folder(tmp_path: Path) -> None:
    (tmp_path / "Nifty_1.csv").write_text("password\nhunter2\n")

    with pytest.raises(DataError) as refused:
        await recent(a_shelf(tmp_path), "Nifty")

    assert "Nifty_1.csv" in str(refused.value)
    assert str(tmp_path) not in str(refused.value)


async def test_a_file_is_read_beside_the_event_loop_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: list[threading.Thread] = []

    def load(path: Path) -> CandleTable:
        readers.append(threading.current_thread())
        return load_candles(path)

    monkeypatch.setattr(candles, "load_candles", load)
    path = write_rows(tmp_path / "Nifty_1.csv")
    shelf = a_shelf(tmp_path)

    first, second = await recent(shelf, "Nifty"), await recent(shelf, "Nifty")
    write_rows(path, 260)
    os.utime(path, (NOW_S, NOW_S))
    third = await recent(shelf, "Nifty")

    assert threading.main_thread() not in readers
    assert len(readers) == 2
    assert (len(first), len(second), len(third)) == (51, 51, 61)
