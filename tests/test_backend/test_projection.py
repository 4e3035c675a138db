"""Every frame that follows from a recorded session has the contract's shape, and adds up."""

import asyncio
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from backend_server import added_messages, check_frame, check_schema, socket_facts
from builders import (
    OPEN_NS,
    SECOND_NS,
    a_decision,
    a_fill,
    a_heartbeat,
    a_position,
    a_session,
    a_tick,
    an_intent,
    an_order,
)
from option_builders import a_chain, a_contract
from recorded_session import RecordedSession, record_session

from actors.messages import STREAMS, Decision, TradingSession
from actors.policies import MonitoringSettings
from backend.files import ResultFiles, metrics_on, results_folder
from backend.hrm_metrics import WINDOW, hrm_metrics
from backend.place import Place
from backend.projection import Frame, Projection, without_replaced
from backend.responses import INACTIVE, iso_local
from daemon.bus import Entry, id_key
from daemon.thinking_metrics import Thoughts

CHANNEL = "/ws/live/{user_id}"


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RecordedSession:
    """Return two days of trading by the real chain over a MemoryBus."""
    state_dir: Path = tmp_path_factory.mktemp("state")
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(record_session(state_dir))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


async def entries_of(recorded: RecordedSession) -> list[Entry]:
    found: list[Entry] = []
    for stream in STREAMS:
        found += await recorded.bus.entries(stream)
    return sorted(found, key=lambda entry: id_key(entry.id))


def a_projection(recorded: RecordedSession) -> Projection:
    place = Place(recorded.folder.parents[1], recorded.folder, recorded.plan, "redis://nowhere")
    return Projection(place)


async def folded(recorded: RecordedSession) -> tuple[Projection, list[Frame]]:
    projection = a_projection(recorded)
    session = TradingSession(
        user_id="FA1",
        status="running",
        instrument="Nifty",
        timeframe="5",
        trading_mode="PAPER",
        changed_ns=0,
        option_strategy="ITM",
    )
    frames = list(projection.fold(session))
    for entry in await entries_of(recorded):
        frames += projection.fold(entry.envelope.message)
    return projection, frames


def of_kind(frames: list[Frame], kind: str) -> list[dict[str, Any]]:
    return [frame.body for frame in frames if frame.body["type"] == kind]


async def test_every_frame_of_a_session_has_the_shape_of_the_contract(
    recorded: RecordedSession,
) -> None:
    _, frames = await folded(recorded)

    kinds = {frame.body["type"] for frame in frames}
    for kind in kinds:
        for body in of_kind(frames, kind)[:200]:
            check_frame(CHANNEL, body)
    expected = {"started", "tick", "position_update", "trade_executed", "stats_update"}
    assert expected | {"hrm_metrics"} <= kinds


async def test_markers_use_the_five_words_and_opens_and_closes_alternate(
    recorded: RecordedSession,
) -> None:
    _, frames = await folded(recorded)

    words = [body["action"] for body in of_kind(frames, "trade_executed")]

    assert {"BUY", "SELL"} >= set(words[::2])
    assert {"CLOSE_LONG", "CLOSE_SHORT"} >= set(words[1::2])


async def test_closed_trades_add_up_to_the_realised_result(recorded: RecordedSession) -> None:
    projection, frames = await folded(recorded)

    position = projection.positions["Nifty"]
    closed = [body["data"] for body in of_kind(frames, "position_update")]
    closed = [data for data in closed if not data["isOpen"]]

    assert len(closed) == len(projection.trades) == position.round_trips > 0
    if not position.net_quantity:
        total = sum(trade.pnl for trade in projection.trades)
        assert total == pytest.approx(float(position.realised_pnl), abs=0.01 * len(closed))
    for trade in projection.trades:
        sign = 1 if trade.direction == "Long" else -1
        gross = sign * (trade.exit_price - trade.entry_price) * trade.quantity * 75
        assert trade.pnl == pytest.approx(gross - 60, abs=0.5)  # 25 at entry, 35 at exit


async def test_ticks_carry_the_bar_they_belong_to_and_never_run_backwards(
    recorded: RecordedSession,
) -> None:
    _, frames = await folded(recorded)
    times = [int(body["data"]["timestamp"]) for body in of_kind(frames, "tick")]

    assert times == sorted(times)
    assert len(set(times)) == 150  # two days of 75 bars


async def test_a_status_has_the_contracts_shape_in_every_state(recorded: RecordedSession) -> None:
    projection, _ = await folded(recorded)

    document = socket_facts()
    active = projection.status("FA1")
    check_schema(document["$defs"]["status_active"], active, document)
    assert active["closed_positions"] == len(projection.trades)
    assert projection.status("somebody else") == INACTIVE
    assert projection.open_positions("somebody else") == []


async def test_the_result_files_count_each_trade_once(
    recorded: RecordedSession, tmp_path: Path
) -> None:
    projection, _ = await folded(recorded)
    files = ResultFiles(tmp_path, lambda: 0)
    place = projection.place

    for _ in range(2):
        files.add_trades(place, projection.trades)

    log = json.loads((results_folder(place) / "tradelog.json").read_text())
    metrics = metrics_on(place, projection.now_ns)
    assert len(log) == metrics["totalTrades"] == len(projection.trades)
    assert metrics["wins"] == sum(trade.pnl > 0 for trade in projection.trades)


def test_a_backlog_loses_ticks_but_no_bars_last_one_and_nothing_else() -> None:
    names = ["tick:1", "tick:1", "", "tick:1", "position", "tick:1", "tick:2", "tick:2", "position"]
    frames = [Frame({"number": n}, latest_of=name) for n, name in enumerate(names)]

    kept = [frame.body["number"] for frame in without_replaced(frames)]

    assert kept == [1, 2, 5, 7, 8]


def test_an_option_is_shown_as_the_view_of_its_underlying(recorded: RecordedSession) -> None:
    projection = a_projection(recorded)
    put = a_contract(22000, "PE")
    entry = an_intent(
        150, instrument=put.symbol, contract=put, underlying="Nifty", decision_id="d1"
    )
    bought = a_position(
        150, instrument=put.symbol, average_price=Decimal(100), realised_pnl=Decimal(-25),
        capital_used=Decimal(15_000), underlying="Nifty", option_kind="PE", lot_size=50,
        decision_id="d1", stop_price=Decimal(22030), entry_ns=OPEN_NS,
    )  # fmt: skip
    leaving = an_order(
        150, instrument=put.symbol, side="sell", purpose="exit", client_order_id="x1"
    )
    sold = msgspec.structs.replace(
        bought, net_quantity=0, realised_pnl=Decimal(1440), capital_used=Decimal(0),
        round_trips=1, winning_round_trips=1, stop_price=None,
    )  # fmt: skip
    for message in (a_tick("22000"), a_chain(put="104"), entry, bought):
        list(projection.fold(message))
    open_now = projection.stats("Nifty")
    shown = [frame for frame in projection.fold(bought) if frame.instrument == "Nifty"]
    for said in (leaving, a_fill(leaving, "110", execution_id="f1"), sold):
        list(projection.fold(said))

    # 150 bought at 100 could be sold at 103.90.
    assert open_now["current_pnl"] == 560.0
    assert shown[0].body["data"] | {"entryTime": ""} == shown[0].body["data"] | {
        "instrument": "Nifty", "direction": "Short", "entryPrice": 100.0, "quantity": 3,
        "stopLoss": 22030.0, "currentPnl": 585.0, "entryTime": "",
    }  # fmt: skip
    (trade,) = projection.trades
    assert (trade.instrument, trade.direction, trade.quantity) == ("Nifty", "Short", 3)
    assert (trade.entry_price, trade.exit_price, trade.pnl) == (100.0, 110.0, 1440.0)
    assert projection.stats("Nifty")["today_trades"] == 1


def test_two_options_on_one_underlying_add_up(recorded: RecordedSession) -> None:
    projection = a_projection(recorded)

    for symbol, net, realised in (("A", 0, 500), ("B", 50, -25)):
        position = a_position(
            net, instrument=symbol, realised_pnl=Decimal(realised), underlying="Nifty",
            option_kind="CE", lot_size=50, round_trips=1, capital_used=Decimal(net * 100),
        )  # fmt: skip
        list(projection.fold(position))

    assert projection.positions["Nifty"].realised_pnl == 475
    assert projection.stats("Nifty")["today_trades"] == 2
    assert projection.available_capital == 100_000 + 475 - 5_000


def test_the_example_of_an_added_message_has_its_own_shape() -> None:
    for message in added_messages(CHANNEL).values():
        check_frame(CHANNEL, message["example"])


async def test_the_dashboard_is_told_how_the_model_thought_and_never_what_it_did_not(
    recorded: RecordedSession,
) -> None:
    projection, frames = await folded(recorded)
    thoughts = [
        entry.envelope.message
        for entry in await recorded.bus.entries(Decision.stream)
        if isinstance(entry.envelope.message, Decision) and entry.envelope.message.cycles
    ]

    told = of_kind(frames, "hrm_metrics")

    assert len(told) == len(thoughts) > 0
    for body, thought in zip(told, thoughts, strict=True):
        assert body["adaptive_reasoning"]["reasoning_depth"] == thought.reasoning_depth
        saved = 1 - thought.cycles / projection.place.most_cycles
        assert body["adaptive_reasoning"]["efficiency_score"] == pytest.approx(saved, abs=1e-4)
    last = thoughts[-WINDOW:]
    depth = sum(thought.reasoning_depth for thought in last) / len(last)
    assert told[-1]["computation_depth"] == pytest.approx(depth, abs=0.01)


@pytest.mark.parametrize(
    ("elapsed_us", "rss_mib", "status"),
    [(50_000, 100.0, "ok"), (50_001, 100.0, "warning"), (9, 3000.0, "warning"),
     (100_001, 100.0, "critical"), (9, 4000.0, "critical")],
)  # fmt: skip
def test_the_status_goes_by_the_limits_of_the_alerts(
    elapsed_us: int, rss_mib: float, status: str
) -> None:
    thoughts = Thoughts(most_cycles=128)
    decision = a_decision(cycles=8, reasoning_depth=1, elapsed_us=elapsed_us)
    thoughts.note(decision)
    beat = a_heartbeat(actor="reasoning", rss_mib=rss_mib)

    body = hrm_metrics(thoughts, decision, beat, MonitoringSettings())

    check_frame(CHANNEL, body)
    assert body["inference_performance"]["status"] == status
    assert body["inference_performance"]["memory_mb"] == pytest.approx(rss_mib * 1.048576, abs=0.1)


def test_an_entry_that_fills_in_parts_is_one_trade_of_all_of_them(
    recorded: RecordedSession,
) -> None:
    projection = a_projection(recorded)
    leaving = an_order(225, side="sell", purpose="exit", client_order_id="x1")

    for message in (
        a_position(75, average_price=Decimal(22000), realised_pnl=Decimal(-25), decision_id="d1"),
        a_position(225, average_price=Decimal(22004), realised_pnl=Decimal(-50), decision_id="d1"),
        leaving,
        a_fill(leaving, "22010", last_quantity=100, status="partially_filled"),
        a_position(125, average_price=Decimal(22004), realised_pnl=Decimal(515), decision_id="d1"),
        a_fill(leaving, "22010", last_quantity=125, execution_id="2"),
        a_position(0, realised_pnl=Decimal(1265), round_trips=1, decision_id="d1"),
    ):
        list(projection.fold(message))

    (trade,) = projection.trades
    assert (trade.quantity, trade.entry_price, trade.exit_price) == (3, 22004.0, 22010.0)
    assert trade.pnl == 1265.0


@pytest.mark.parametrize(
    ("timeframe", "minutes", "closes"),
    [
        ("5", 2, "2024-03-18T09:20"),
        ("30", 5, "2024-03-18T09:45"),
        ("60", 65, "2024-03-18T11:15"),
        ("120", 5, "2024-03-18T11:15"),
        ("240", 285, "2024-03-18T15:30"),  # cut at the close
        ("D", 45, "2024-03-19T00:00"),
        ("30", 405, "2024-03-19T09:45"),  # after the close: of the next day's first bar
    ],
)
def test_the_next_fetch_is_when_the_feed_closes_its_bar(
    recorded: RecordedSession, timeframe: str, minutes: int, closes: str
) -> None:
    projection = a_projection(recorded)

    now_ns = OPEN_NS + minutes * 60 * SECOND_NS
    list(projection.fold(a_session(timeframe=timeframe, changed_ns=now_ns)))

    assert projection.status("FA1")["nextFetchTimestamp"] == f"{closes}:00.000000"


def test_before_any_time_is_known_the_next_fetch_comes_after_the_plan(
    recorded: RecordedSession,
) -> None:
    projection = a_projection(recorded)
    list(projection.fold(a_session(changed_ns=0)))

    told = projection.status("FA1")["nextFetchTimestamp"]

    assert told >= iso_local(projection.place.plan.created_ns)


@pytest.mark.parametrize("wrong", [{"timeframe": "soon"}, {"instrument": "Unknown"}])
def test_a_session_that_failed_for_what_it_asked_has_a_status(
    recorded: RecordedSession, wrong: dict[str, str]
) -> None:
    projection = a_projection(recorded)
    list(projection.fold(a_session(status="failed", **wrong)))

    status = projection.status("FA1")

    document = socket_facts()
    check_schema(document["$defs"]["status_active"], status, document)
    assert status["status"] == "failed"
