"""The result files: each trade once, damage set aside, a folder per mode, a result per day."""

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from backend_server import Site
from builders import OPEN_NS
from command_line import CONFIG
from recorded_session import session_plan, write_candles

from backend.build import Options, build_backend
from backend.call_pace import CallPace
from backend.files import ResultFiles, metrics_of, metrics_on, metrics_path, results_folder
from backend.fyers_accounts import FyersAccounts
from backend.place import Place
from backend.projection import Trade
from backend.reader import BusReader
from backend.trade_keeper import TradeKeeper
from daemon.brokers.fyers.rest import Endpoints
from daemon.plan import SessionPlan
from daemon.session_files import begin_session, load_markets
from daemon.settings import load_instruments, load_settings

DAY_NS = 86_400 * 10**9
DAMAGE = [
    "",
    "{",
    "{}",
    "[5]",
    '[{"trade_id": "a"}]',
    '[{"trade_id": 1, "pnl": 1, "exit_time": ""}]',
]


def a_plan(folder: Path, **changes: Any) -> SessionPlan:
    catalogue = load_instruments(CONFIG, {}).catalogue
    plan = session_plan(folder, load_markets([write_candles(folder)], [], catalogue))
    return msgspec.structs.replace(plan, **changes)


def a_place(folder: Path, **changes: Any) -> Place:
    plan = a_plan(folder, **changes)
    return Place(folder, folder / "sessions" / plan.session, plan, "redis://nowhere")


def a_trade(**changes: Any) -> Trade:
    fields: dict[str, Any] = {
        "trade_id": "d1#1",
        "instrument": "Nifty",
        "timeframe": "5",
        "direction": "Long",
        "entry_price": 22_000.0,
        "exit_price": 21_993.0,
        "quantity": 1,
        "pnl": -500.0,
        "entry_ns": OPEN_NS,
        "exit_ns": OPEN_NS + 60 * 10**9,
        "trade_type": "Automated",
        "reason": "SL Hit",
    }
    return Trade(**fields | changes)


def rows_of(place: Place) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((results_folder(place) / "tradelog.json").read_text())
    return found


@pytest.fixture
def files(tmp_path: Path) -> ResultFiles:
    return ResultFiles(tmp_path / "backend", lambda: 0)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_trade_log_is_set_aside_and_begun_anew(
    files: ResultFiles, tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    place = a_place(tmp_path)
    results_folder(place).mkdir(parents=True)
    (results_folder(place) / "tradelog.json").write_text(damage)

    files.add_trades(place, [a_trade()])

    (aside,) = results_folder(place).glob("tradelog.damaged-*.json")
    assert aside.read_text() == damage
    assert [row["pnl"] for row in rows_of(place)] == [-500.0]
    captured = capfd.readouterr()
    assert str(aside) in captured.out + captured.err


def test_paper_and_real_money_have_results_of_their_own(files: ResultFiles, tmp_path: Path) -> None:
    paper, real = a_place(tmp_path), a_place(tmp_path, mode="live")

    files.add_trades(paper, [a_trade(pnl=-1.0)])
    files.add_trades(real, [a_trade(pnl=2.0)])

    assert [row["pnl"] for row in rows_of(paper)] == [-1.0]
    assert [row["pnl"] for row in rows_of(real)] == [2.0]


def test_a_demo_leaves_nothing_in_the_files_of_the_daemon_proper(tmp_path: Path) -> None:
    plan = a_plan(tmp_path)
    begin_session(tmp_path, plan)
    begin_session(tmp_path / "demo" / plan.session, plan)
    settings = load_settings(CONFIG, {"HRM_TRADER__SESSION__STATE_DIR": str(tmp_path)})
    accounts = FyersAccounts(Endpoints(), CallPace(time.monotonic))
    proper, demo = (
        build_backend(settings, Options(config=CONFIG, demo=demo), {}, accounts, lambda: "x" * 32)
        for demo in (False, True)
    )
    proper_place, demo_place = proper.reader.place, demo.reader.place
    assert proper_place is not None
    assert demo_place is not None

    demo.files.add_trades(demo_place, [a_trade()])
    demo.note_action("FA1", "LOGIN", {})

    assert rows_of(demo_place)
    assert not results_folder(proper_place).exists()
    assert not (proper.files.folder / "logs").exists()


def test_todays_result_starts_anew_without_a_close(files: ResultFiles, tmp_path: Path) -> None:
    place = a_place(tmp_path)
    files.add_trades(place, [a_trade()])

    that_day = metrics_on(place, OPEN_NS + 3600 * 10**9)
    next_day = metrics_on(place, OPEN_NS + DAY_NS)

    assert (that_day["todayPnL"], that_day["totalPnl"]) == (-500.0, -500.0)
    assert (next_day["todayPnL"], next_day["totalPnl"]) == (0.0, -500.0)


def test_without_a_trade_there_is_no_result_of_today(files: ResultFiles, tmp_path: Path) -> None:
    place = a_place(tmp_path)
    files.add_trades(place, [])

    metrics = metrics_on(place, OPEN_NS)

    assert metrics == metrics_on(None, OPEN_NS)
    assert (metrics["todayPnL"], metrics["lastTradeTime"]) == (0.0, "No trades yet")


def test_metrics_follow_losses_and_count_the_day_of_the_last_trade() -> None:
    log = [
        {"pnl": 10.0, "exit_time": "2026-03-02T10:00:00.000000"},
        {"pnl": -4.0, "exit_time": "2026-03-03T10:00:00.000000"},
    ]

    metrics = metrics_of(log)

    assert (metrics["winRate"], metrics["todayPnL"], metrics["totalPnl"]) == (50.0, -4.0, 6.0)


def test_the_route_tells_todays_result_by_the_markets_date(
    alone: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir(exist_ok=True)
    place = a_place(tmp_path / "state")
    alone.backend.files.add_trades(place, [a_trade()])
    monkeypatch.setattr(BusReader, "place", place)
    told = []
    for now_ns in (OPEN_NS + DAY_NS, OPEN_NS):
        monkeypatch.setattr(BusReader, "now_ns", now_ns)
        with alone.client() as client:
            told.append(client.get("/api/metrics").json()["todayPnL"])

    assert told == [0.0, -500.0]
    assert json.loads(metrics_path(place).read_text())["todayPnL"] == -500.0


async def test_what_could_not_be_written_is_tried_again_and_off_the_event_loop(
    tmp_path: Path,
) -> None:
    tries: list[tuple[int, threading.Thread]] = []
    written = threading.Event()

    def write(_: Place, trades: tuple[Trade, ...]) -> None:
        tries.append((len(trades), threading.current_thread()))
        if len(tries) < 3:
            raise OSError(28, "No space left on device")
        written.set()

    keeper = TradeKeeper(write, retry_s=0.01)
    running = asyncio.create_task(keeper.run())
    keeper.note(a_place(tmp_path), [a_trade()])
    assert await asyncio.to_thread(written.wait, 60)
    keeper.close()
    await running

    assert [count for count, _ in tries] == [1, 1, 1]
    assert all(thread is not threading.main_thread() for _, thread in tries)


async def test_what_waits_is_written_before_the_end(tmp_path: Path) -> None:
    written: list[str] = []
    keeper = TradeKeeper(lambda place, _: written.append(place.plan.session))
    places = [a_place(tmp_path, session=name) for name in ("s1", "s2")]
    for place in places:
        keeper.note(place, [a_trade()])
    keeper.close()

    await keeper.run()

    assert written == ["s1", "s2"]
