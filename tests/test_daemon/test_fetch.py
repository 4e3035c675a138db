"""Downloads of candles against the simulated broker: complete, each once, and gone on with."""

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import pytest

from daemon.brokers.fyers.history_files import HEADER, Wanted, download, open_stored
from daemon.brokers.fyers.ledger import CallBudget, RateLedger
from daemon.brokers.fyers.login import LoginFields
from daemon.brokers.fyers.rest import CallTimes, FyersRest, simulated
from daemon.brokers.fyers_simulator import FyersSimulator, SimulatorSettings
from daemon.brokers.fyers_simulator.instruments import IST
from daemon.clock import NS_PER_SECOND, SystemClock
from daemon.errors import BrokerUnavailable, ConfigError, DataError, LoginNeeded
from daemon.fetch_command import fetch_all, wanted_files
from daemon.history import load_candles
from daemon.login_command import log_in_and_save
from daemon.settings import load_instruments

SBIN = "NSE:SBIN-EQ"
FIRST = datetime(2026, 7, 1, tzinfo=IST)
LAST = datetime(2026, 11, 24, tzinfo=IST)  # the day before the simulation begins
QUICK = CallTimes(answer_s=30.0, tries=2, first_delay_s=0.01)


class Downloads:
    """A simulated broker, our client of it, and a folder."""

    def __init__(self, simulator: FyersSimulator, rest: FyersRest, folder: Path) -> None:
        self.simulator = simulator
        self.rest = rest
        self.folder = folder

    def now_s(self) -> int:
        return self.simulator.now_ns // NS_PER_SECOND

    async def download(self, wanted: Wanted, folder: Path | None = None) -> bytes:
        stored = await download(self.rest, wanted, folder or self.folder, self.now_s)
        return stored.path.read_bytes() if stored.path.exists() else b""


@pytest.fixture
async def downloads(tmp_path: Path) -> AsyncIterator[Downloads]:
    settings = SimulatorSettings(seed=3, limits=None)
    ledger = RateLedger(tmp_path / "calls", SystemClock(), CallBudget(per_second=500))
    async with FyersSimulator(settings) as simulator, aiohttp.ClientSession() as http:
        with ledger:
            rest = FyersRest(
                http,
                simulated(simulator.urls.base),
                app_id=simulator.account.app_id,
                token=simulator.token,
                ledger=ledger,
                clock=SystemClock(),
                random=Random(1),
                times=QUICK,
            )
            yield Downloads(simulator, rest, tmp_path / "raw")


def candles(
    first: datetime = FIRST, last: datetime = LAST, *, minutes: int = 60, **changes: Any
) -> Wanted:
    fields: dict[str, Any] = {
        "name": "SBIN",
        "symbol": SBIN,
        "minutes": minutes,
        "first_s": round(first.timestamp()),
        "end_s": round((last + timedelta(days=1)).timestamp()),
    }
    return Wanted(**(fields | changes))


async def test_a_file_holds_what_the_broker_has_in_the_contracts_form(
    downloads: Downloads,
) -> None:
    week = candles(LAST - timedelta(days=6), minutes=5)

    content = await downloads.download(week)

    head, *lines = content.decode().splitlines()
    assert head == HEADER
    rows = [line.split(",") for line in lines]
    assert [row[0] for row in rows] == [str(number) for number in range(len(rows))]
    answered = await downloads.rest.history(SBIN, "5", week.first_s, week.end_s - 1)
    assert [[Decimal(cell) for cell in row[1:]] for row in rows] == answered
    table = load_candles(downloads.folder / "SBIN_5.csv")
    assert (table.symbol, table.timeframe_minutes, len(table)) == ("SBIN", 5, len(rows))


async def test_a_long_span_is_fetched_in_parts_without_a_seam(downloads: Downloads) -> None:
    whole = candles()

    content = await downloads.download(whole)

    middle = whole.first_s + 60 * 86_400
    halves = [
        await downloads.rest.history(SBIN, "60", whole.first_s, middle - 1),
        await downloads.rest.history(SBIN, "60", middle, whole.end_s - 1),
    ]
    seconds = [int(line.split(",")[1]) for line in content.decode().splitlines()[1:]]
    assert seconds == [row[0] for half in halves for row in half]
    assert downloads.simulator.limiter.requests == 4


async def test_a_second_download_adds_only_what_is_new(downloads: Downloads) -> None:
    at_once = await downloads.download(candles(), downloads.folder / "other")
    await downloads.download(candles(last=LAST - timedelta(days=30)))

    grown = await downloads.download(candles())
    stored = await download(downloads.rest, candles(), downloads.folder, downloads.now_s)

    assert grown == at_once
    assert stored.added == 0


async def test_earlier_candles_go_before_those_that_are_there(downloads: Downloads) -> None:
    at_once = await downloads.download(candles(), downloads.folder / "other")
    await downloads.download(candles(LAST - timedelta(days=20), LAST - timedelta(days=10)))

    earlier = candles(last=FIRST + timedelta(days=9))  # ends long before the file begins
    grown = await downloads.download(earlier)
    whole = await downloads.download(candles())

    seconds = [int(line.split(",")[1]) for line in grown.decode().splitlines()[1:]]
    assert seconds[0] < earlier.end_s < seconds[-1]
    assert at_once.startswith(grown)  # without a hole, and numbered from the start
    assert whole == at_once


async def test_an_interrupted_download_of_earlier_candles_goes_on_too(
    downloads: Downloads,
) -> None:
    at_once = await downloads.download(candles(), downloads.folder / "other")
    await downloads.download(candles(LAST - timedelta(days=5)))
    downloads.simulator.faults.inject("server_error", count=2, after=1, path="/data/history")

    with pytest.raises(BrokerUnavailable):
        await downloads.download(candles())
    before = (downloads.folder / "SBIN_60.csv").read_bytes()
    resumed = await downloads.download(candles())

    assert len(before) < len(at_once)
    assert resumed == at_once


async def test_an_interrupted_download_goes_on_where_it_was(downloads: Downloads) -> None:
    at_once = await downloads.download(candles(), downloads.folder / "other")
    downloads.simulator.faults.inject("server_error", count=2, after=1, path="/data/history")

    with pytest.raises(BrokerUnavailable):
        await downloads.download(candles())
    before = (downloads.folder / "SBIN_60.csv").read_bytes()
    resumed = await downloads.download(candles())

    assert HEADER.encode() in before
    assert len(before) < len(at_once)
    assert resumed == at_once


@pytest.mark.parametrize("cut", [1, 9, 30])
async def test_a_line_that_was_cut_off_is_fetched_again(downloads: Downloads, cut: int) -> None:
    week = candles(LAST - timedelta(days=6))
    whole = await downloads.download(week)
    (downloads.folder / "SBIN_60.csv").write_bytes(whole[:-cut])

    assert await downloads.download(week) == whole


async def test_a_candle_that_still_changes_is_left_out(downloads: Downloads) -> None:
    await downloads.simulator.advance(150)  # 10:02:30, in the candle of 10:00
    today = candles(LAST + timedelta(days=1), LAST + timedelta(days=1), minutes=5)

    content = await downloads.download(today)

    last_s = int(content.decode().splitlines()[-1].split(",")[1])
    assert datetime.fromtimestamp(last_s, IST).strftime("%H:%M") == "09:55"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("datetime,open,high,low,close\n", "begins with"),
        (f"{HEADER}\n0,2026-01-01,1,1,1,1,0\n", "line 2 is no candle"),
        (f"{HEADER}\n0,200,1,1,1,1,0\n1,100,1,1,1,1,0\n", "line 3 is not later"),
    ],
)
def test_a_file_of_another_program_is_refused_and_kept(
    tmp_path: Path, content: str, why: str
) -> None:
    path = tmp_path / "SBIN_5.csv"
    path.write_text(content)

    with pytest.raises(DataError, match=why):
        open_stored(path)

    assert path.read_text() == content


async def test_all_files_are_fetched_and_a_refused_symbol_is_told(
    downloads: Downloads, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    account, endpoints = downloads.simulator.account, simulated(downloads.simulator.urls.base)
    who = LoginFields(
        app_id=account.app_id,
        secret_key=account.secret,
        redirect_uri=account.redirect_uri,
        fy_id=account.client_id,
        pin=account.pin,
        totp_secret=account.totp_secret,
    )
    state = tmp_path / "fyers"
    with pytest.raises(LoginNeeded):
        await fetch_all([candles()], downloads.folder, state, endpoints)
    await log_in_and_save(who, endpoints, state)
    month = LAST - timedelta(days=30)
    wanted = [
        candles(month, name="Nobody", symbol="NSE:NOBODY-EQ"),
        candles(month),
        candles(month, minutes=1440),
    ]

    answer = await fetch_all(wanted, downloads.folder, state, endpoints)

    assert [problem["file"] for problem in answer["problems"]] == ["Nobody_60.csv"]
    assert [(one["minutes"], one["rows"] > 15) for one in answer["files"]] == [
        (60, True),
        (1440, True),
    ]
    assert answer["calls"] == 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "2/3 SBIN_60.csv: 2026-10-24 18:30:00+00:00 to 2026-11-24 18:29:59" in shown.err


def test_what_is_wanted_is_every_symbol_in_every_timeframe() -> None:
    wanted = wanted_files(load_instruments(), [], ["5", "D"], FIRST, LAST)

    assert len(wanted) == 2 * len(load_instruments().catalogue.symbols)
    assert {one.file_name for one in wanted} >= {"Bank_Nifty_5.csv", "Bank_Nifty_1440.csv"}
    assert wanted[0].end_s - round(LAST.timestamp()) == 86_400


@pytest.mark.parametrize(
    ("names", "timeframes", "first", "why"),
    [
        (["Nobody"], ["5"], FIRST, "Bank_Nifty.*was 'Nobody'"),
        ([], ["7"], FIRST, "--timeframe must be one of 1, 3.*was '7'"),
        ([], ["5"], LAST + timedelta(days=1), "--from must not be after --until"),
    ],
)
def test_what_cannot_be_fetched_is_named_with_a_remedy(
    names: list[str], timeframes: list[str], first: datetime, why: str
) -> None:
    with pytest.raises(ConfigError, match=why):
        wanted_files(load_instruments(), names, timeframes, first, LAST)
