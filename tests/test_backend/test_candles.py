"""Candles for charts: whose file is read, where, how often, and what is told when it cannot be."""

import json
import os
import threading
from pathlib import Path

import msgspec
import pytest
from backend_server import USER, KnownAccounts
from command_line import CONFIG, FIRST_BAR_S, HEADER, candle_rows
from recorded_session import session_plan, write_candles

from backend import candles
from backend.accounts import PastCandle
from backend.candles import CandleShelf
from backend.place import Place, find_place
from daemon.errors import BrokerUnavailable, DataError
from daemon.history import CandleTable, load_candles
from daemon.session_files import begin_session, load_markets
from daemon.settings import load_instruments, load_settings

NOW_S = 1_772_500_000


def a_shelf(raw_dir: Path, accounts: KnownAccounts | None = None) -> CandleShelf:
    offered = load_instruments(CONFIG, {})
    timeframes = frozenset(offered.timeframes)
    return CandleShelf(raw_dir, offered.catalogue, timeframes, accounts or KnownAccounts())


def write_rows(path: Path, count: int = 250) -> Path:
    path.write_text("\n".join([HEADER, *candle_rows(count)]) + "\n")
    return path


async def recent(
    shelf: CandleShelf, name: str, timeframe: str = "1", place: Place | None = None
) -> list[PastCandle]:
    chart = await shelf.recent(USER, name, timeframe, place, None, NOW_S)
    assert json.loads(chart.as_json()) == [candles.candle_of(candle) for candle in chart.candles]
    return chart.candles


def a_live_place(state: Path, first_open_s: int) -> Place:
    """Return the place of a session whose prices come over a socket since an instant."""
    plan = session_plan(
        state, load_markets([write_candles(state)], [], load_instruments(CONFIG, {}).catalogue)
    )
    markets = [
        msgspec.structs.replace(market, path="", first_open_ns=first_open_s * 1_000_000_000)
        for market in plan.markets
    ]
    begin_session(state, msgspec.structs.replace(plan, markets=markets))
    settings = load_settings(CONFIG, {"HRM_TRADER__SESSION__STATE_DIR": str(state)})
    place = find_place(settings, demo=False)
    assert place is not None
    return place


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


async def test_a_file_that_ends_before_the_live_session_is_left_for_the_broker(
    tmp_path: Path,
) -> None:
    write_rows(tmp_path / "Reliance_1.csv")
    last_s = FIRST_BAR_S + 249 * 60
    after, before = (a_live_place(tmp_path, last_s + late_s) for late_s in (60, 0))
    shelf = a_shelf(tmp_path)

    assert (await recent(shelf, "Reliance", place=after))[-1].open == 1400.0  # the broker's
    assert (await recent(shelf, "Reliance", place=before))[-1].time_s == last_s
    assert (await recent(shelf, "Reliance"))[-1].time_s == last_s


async def test_an_old_file_is_what_is_left_when_the_broker_does_not_answer(tmp_path: Path) -> None:
    write_rows(tmp_path / "Reliance_1.csv")
    last_s = FIRST_BAR_S + 249 * 60
    place = a_live_place(tmp_path, last_s + 60)
    accounts = KnownAccounts()
    accounts.is_down = True
    shelf = a_shelf(tmp_path, accounts)

    assert (await recent(shelf, "Reliance", place=place))[-1].time_s == last_s
    with pytest.raises(BrokerUnavailable):
        await recent(shelf, "Nifty", place=place)
