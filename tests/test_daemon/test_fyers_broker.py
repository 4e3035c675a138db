"""The Fyers broker against the simulator over HTTP and socket: nothing twice, nothing lost."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import aiohttp
import pytest
from fyers_account import AMPLE, SBIN, WAIT_S, Account, a_resting_order, an_order
from order_world import OpenLatch

from actors.messages import CancelOrder, ExecutionReport, PlaceOrder
from daemon.brokers.base import Broker
from daemon.brokers.fyers.ledger import RateLedger
from daemon.brokers.fyers.order_socket import DayPosition, Subscribed, event_of
from daemon.brokers.fyers.rest import simulated
from daemon.brokers.fyers.sdk import transport_of
from daemon.brokers.fyers_books import OrderRow, TradeRow
from daemon.brokers.fyers_simulator import FaultKind, FyersSimulator, SimulatorSettings
from daemon.clock import SystemClock
from daemon.errors import BrokerError, BrokerRejected, BrokerUnavailable, LoginNeeded, TooManyCalls
from daemon.memory_bus import MemoryBus
from daemon.order_gateway import OrderGateway
from daemon.outbox import Outbox
from daemon.reconciler import Reconciler

POST, DELETE = "POST /api/v3/orders/sync", "DELETE /api/v3/orders/sync"


@pytest.fixture(params=["own", "sdk"])
async def account(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Account]:
    """An account whose calls go by our client, and one where the SDK makes them."""
    settings = SimulatorSettings(seed=3, limits=None)
    async with FyersSimulator(settings) as simulator, aiohttp.ClientSession() as http:
        endpoints = simulated(simulator.urls.base)
        with (
            RateLedger(tmp_path / "calls", SystemClock(), AMPLE) as ledger,
            transport_of(request.param, http, endpoints, WAIT_S) as transport,
        ):
            account = Account(simulator, http, ledger, transport)
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(account.broker.run())
                collecting = tasks.create_task(account.collect())
                await account.listening()
                yield account
                await account.broker.close()
                await asyncio.wait_for(running, WAIT_S)
                collecting.cancel()


def test_it_is_a_broker(account: Account) -> None:
    broker: Broker = account.broker

    assert not broker.is_remote


async def test_an_order_is_placed_filled_and_told_by_the_socket(account: Account) -> None:
    await account.broker.place(an_order())
    await account.trade()
    await account.until(lambda: account.filled() == 10 and "filled" in account.statuses())

    (order,) = account.simulator.exchange.orders.values()
    assert order.tag == "a1"
    assert await account.broker.positions() == {"SBIN": 10}
    assert {report.client_order_id for report in account.told} == {"a1"}
    assert all(report.last_price for report in account.told if report.last_quantity)
    assert account.problems == []


async def test_a_resting_order_is_seen_and_cancelled(account: Account) -> None:
    order = a_resting_order(account)
    await account.broker.place(order)
    await account.trade()

    assert await account.broker.open_orders() == [order]
    await account.broker.cancel("a1")
    await account.until(lambda: "cancelled" in account.statuses())

    assert await account.broker.open_orders() == []
    with pytest.raises(BrokerRejected):
        await account.broker.cancel("a1")


async def test_a_resting_order_is_modified_and_fills_at_its_new_limit(account: Account) -> None:
    order = a_resting_order(account)
    await account.broker.place(order)
    await account.trade()
    above = Decimal(account.simulator.market.quote(SBIN).ask * 1.01 // 10 * 10) / 100

    await account.broker.modify("a1", above)
    await account.until(lambda: account.filled() == 10)

    assert account.problems == []
    with pytest.raises(BrokerRejected):  # the fill was faster
        await account.broker.modify("a1", above)
    with pytest.raises(BrokerRejected, match="no order with the tag"):
        await account.broker.modify("stranger", above)


@pytest.mark.parametrize("fault", ["unanswered", "no_acknowledgement", "server_error"])
async def test_a_change_without_a_good_answer_leaves_the_order_at_one_of_its_limits(
    account: Account, fault: FaultKind
) -> None:
    order = a_resting_order(account)
    await account.broker.place(order)
    await account.trade()
    path = "modify" if fault == "no_acknowledgement" else "PATCH /api/v3/orders/sync"
    account.simulator.faults.inject(fault, count=3, path=path)
    assert order.limit_price is not None

    with pytest.raises(BrokerUnavailable):
        await account.broker.modify("a1", order.limit_price + Decimal("0.10"))
    account.simulator.faults.clear()

    assert await account.broker.open_orders() == [order]


@pytest.mark.parametrize("fault", ["unanswered", "no_acknowledgement", "server_error"])
async def test_an_order_without_a_good_answer_is_unknown_and_then_found_or_proven_absent(
    account: Account, fault: FaultKind
) -> None:
    path = "place" if fault == "no_acknowledgement" else POST
    account.simulator.faults.inject(fault, count=3, path=path)

    with pytest.raises(BrokerUnavailable):
        await account.broker.place(an_order())
    account.simulator.faults.clear()
    await account.trade()
    found = await account.broker.find("a1")

    orders = account.simulator.exchange.orders
    assert len(orders) == (0 if fault == "server_error" else 1)
    if fault == "server_error":
        assert found is None
    else:
        assert found is not None
        assert sum(report.last_quantity for report in found) == 10


@pytest.mark.parametrize(
    ("fault", "error", "kind"),
    [("rate_limited", TooManyCalls, "rate"), ("unauthorised", LoginNeeded, "auth")],
)
async def test_a_call_that_was_turned_away_is_a_reject_of_its_kind(
    account: Account, fault: FaultKind, error: type[BrokerRejected], kind: str
) -> None:
    account.simulator.faults.inject(fault, path=POST)

    with pytest.raises(error) as refused:
        await account.broker.place(an_order())

    assert refused.value.kind == kind
    assert account.simulator.exchange.orders == {}


async def test_a_fill_that_the_socket_lost_is_found_in_the_books_once(account: Account) -> None:
    account.simulator.faults.inject("order_missing_fill")
    await account.broker.place(an_order())
    await account.trade()
    assert account.simulator.faults.fired["order_missing_fill"] == 1

    await account.broker.refresh()
    await account.broker.refresh()
    await account.until(lambda: account.filled() == 10)

    fills = [report for report in account.told if report.last_quantity]
    assert sum(report.last_quantity for report in fills) == 10


async def test_a_position_without_its_trade_makes_the_books_be_read(account: Account) -> None:
    account.simulator.faults.inject("order_drop", count=2, after=1)
    await account.broker.place(an_order())
    await account.trade()

    await account.until(lambda: account.filled() == 10)


@pytest.mark.parametrize(
    "fault", ["order_abort", "order_half_open", "order_slow_handshake", "order_refused"]
)
async def test_events_lost_with_a_connection_are_found_after_the_next(
    account: Account, fault: FaultKind
) -> None:
    account.simulator.faults.inject(fault, seconds=3.0 if "slow" in fault else 1e6)
    before = account.socket.connections
    if fault in ("order_slow_handshake", "order_refused"):
        account.simulator.order_socket.drop_all()
    await account.broker.place(an_order())
    await account.trade()

    await account.until(lambda: account.filled() == 10 and "filled" in account.statuses())

    assert account.simulator.faults.fired[fault] == 1
    await account.until(lambda: account.socket.connections > before)
    assert len(account.simulator.exchange.orders) == 1


async def test_a_dead_token_refuses_orders_and_is_told_until_there_is_a_new_one(
    account: Account,
) -> None:
    account.simulator.faults.inject("token_expired")
    account.simulator.order_socket.drop_all()

    with pytest.raises(LoginNeeded):
        await account.broker.place(an_order())
    with pytest.raises(BrokerUnavailable, match="cannot be asked"):
        await account.broker.positions()
    await account.until(lambda: account.socket.state == "refused")
    account.token = account.simulator.token()
    await account.listening()
    await account.broker.place(an_order("a2"))
    await account.trade()
    await account.until(lambda: account.filled() == 10)

    assert [(one.source, one.runbook) for one in account.alerts] == [
        ("order_socket", "Feed refused")
    ]


@pytest.mark.parametrize("fault", ["unauthorised", "rate_limited", "server_error"])
async def test_a_question_that_cannot_be_asked_proves_nothing(
    account: Account, fault: FaultKind
) -> None:
    account.simulator.faults.inject(fault, count=99)

    for ask in (
        account.broker.find("a1"),
        account.broker.positions(),
        account.broker.open_orders(),
        account.broker.refresh(),
        account.broker.cancel("a1"),
        account.broker.cancel_all(),
    ):
        with pytest.raises(BrokerUnavailable):
            await ask


async def test_with_the_days_calls_used_up_an_order_can_still_be_found_and_cancelled(
    account: Account,
) -> None:
    await account.broker.place(a_resting_order(account))
    await account.trade()
    for _ in range(2):
        account.ledger.note_refusal()

    with pytest.raises(BrokerUnavailable, match="refused today"):
        await account.broker.refresh()
    found = await account.broker.find("a1")
    cancelled = await account.broker.cancel_all()

    assert found is not None
    assert cancelled == ["a1"]


async def test_with_the_days_calls_used_up_an_exit_is_still_measured_by_the_brokers_net(
    account: Account,
) -> None:
    for _ in range(2):
        account.ledger.note_refusal()
    outbox = Outbox(None)
    reconciler = Reconciler(account.broker, outbox, ["SBIN"], real_ns=lambda: 1)

    problem = await reconciler.exit_problem(an_order(side="sell", quantity=999, purpose="exit"))
    await outbox.close()

    assert problem == "the broker's net position is 0 units: sell 999 would open another"


async def test_a_comparison_makes_four_calls(account: Account) -> None:
    outbox = await Outbox(None).open()
    gateway = OrderGateway(
        MemoryBus(),
        account.broker,
        outbox,
        OpenLatch(),
        clock_ns=lambda: 1,
        max_order_rate_per_second=8,
        block_ms=20,
        reconciler=Reconciler(account.broker, outbox, ["SBIN"], real_ns=lambda: 1),
        reconcile_every_s=3600.0,
    )
    # What the socket's subscription makes the broker read is no part of it.
    await account.until(lambda: account.ledger.calls_today >= 2 and not account.broker.is_behind)
    before = account.ledger.calls_today
    running = asyncio.create_task(gateway.run())
    await gateway.ready.wait()
    gateway.stop()
    await asyncio.wait_for(running, WAIT_S)
    await outbox.close()

    assert gateway.reconciliation is not None
    assert account.ledger.calls_today - before == 4


async def test_a_cancel_that_was_turned_away_is_not_taken_for_nothing_to_cancel(
    account: Account,
) -> None:
    await account.broker.place(a_resting_order(account))
    await account.trade()
    account.simulator.faults.inject("rate_limited", path=DELETE)

    with pytest.raises(BrokerUnavailable):
        await account.broker.cancel("a1")


async def test_after_a_restart_an_order_is_known_by_what_was_written_down(
    account: Account,
) -> None:
    order = a_resting_order(account)
    await account.broker.place(order)
    await account.trade()
    restarted = account.new_broker()

    with pytest.raises(BrokerUnavailable, match="not written down"):
        await restarted.find("a1")
    account.written["a1"] = order
    found = await restarted.find("a1")
    await restarted.cancel("a1")

    assert found is not None
    assert [report.status for report in found] == ["accepted"]
    assert await restarted.open_orders() == []


async def test_a_strangers_order_is_told_as_one_and_cancelled_with_the_rest(
    account: Account,
) -> None:
    body = {"symbol": SBIN, "qty": 5, "type": 2, "side": 1, "productType": "INTRADAY"}
    whole = {"limitPrice": 0, "stopPrice": 0, "validity": "DAY", "disclosedQty": 0}
    account.simulator.exchange.place({**body, **whole, "offlineOrder": False}, source="W")
    await account.trade()
    await account.until(lambda: account.filled() == 5)
    resting = a_resting_order(account, "a2")
    await account.broker.place(resting)
    await account.trade()

    fills = [report for report in account.told if report.last_quantity]
    assert {report.client_order_id[:7] for report in fills} == {"outside"}
    assert await account.broker.cancel_all() == ["a2"]


@pytest.mark.parametrize("order", [an_order(instrument="TCS"), an_order("a-1")])
async def test_an_order_that_cannot_be_sent_is_refused_before_the_call(
    account: Account, order: PlaceOrder
) -> None:
    account.simulator.faults.inject("server_error", path=POST)

    with pytest.raises(BrokerRejected):
        await account.broker.place(order)

    assert account.simulator.faults.fired["server_error"] == 0


def a_gateway(bus: MemoryBus, account: Account, outbox: Outbox) -> OrderGateway:
    return OrderGateway(
        bus,
        account.broker,
        outbox,
        OpenLatch(),
        clock_ns=lambda: 1,
        max_order_rate_per_second=8,
        block_ms=20,
    )


async def test_through_the_gateway_an_unanswered_order_is_one_order_at_the_broker(
    account: Account,
) -> None:
    account.simulator.faults.inject("unanswered", path=POST, count=2)
    bus, outbox = MemoryBus(), await Outbox(None).open()
    gateway = a_gateway(bus, account, outbox)
    running = asyncio.create_task(gateway.run())
    await (await bus.publisher("execution", ["order"])).publish(an_order(), an_order())
    await account.until(lambda: len(account.simulator.exchange.orders) == 1)
    await account.trade()

    async def reported() -> list[str]:
        found = [entry.envelope.message for entry in await bus.entries("report")]
        return [one.status for one in found if isinstance(one, ExecutionReport)]

    async with asyncio.timeout(WAIT_S):
        while "filled" not in await reported():  # noqa: ASYNC110 - as in `until`
            await asyncio.sleep(0.02)
    gateway.stop()
    await asyncio.wait_for(running, WAIT_S)
    ledger = await outbox.ledger()
    await outbox.close()

    assert "unknown" in await reported()
    assert ledger.positions == {"SBIN": 10}
    assert len(account.simulator.exchange.orders) == 1


@pytest.mark.parametrize("fault", ["server_error", "rate_limited", "unauthorised"])
async def test_through_the_gateway_a_cancel_is_repeated_until_the_order_is_taken_back(
    account: Account, fault: FaultKind
) -> None:
    account.simulator.faults.inject(fault, path=DELETE, count=5)
    order = a_resting_order(account)
    cancel = CancelOrder(client_order_id="a1", instrument="SBIN", reason="test", placed_ns=1)
    bus, outbox = MemoryBus(), await Outbox(None).open()
    gateway = a_gateway(bus, account, outbox)
    running = asyncio.create_task(gateway.run())
    await (await bus.publisher("execution", ["order"])).publish(order, cancel)

    async with asyncio.timeout(WAIT_S):
        while not await bus.entries("report") or await outbox.unfinished():
            await account.trade(1)
            await asyncio.sleep(0.02)
    gateway.stop()
    await asyncio.wait_for(running, WAIT_S)
    await outbox.close()

    assert account.simulator.exchange.pending == []
    assert account.simulator.faults.fired[fault] == 5


ORDER = (
    '{"s":"ok","orders":{"id":"26112300000017","symbol":"NSE:SBIN-EQ","tran_side":1,"qty":10,'
    '"qty_filled":4,"org_ord_status":6,"ord_status":90,"ordertag":"1:s07x41",'
    '"time_oms":"23-Nov-2026 10:12:58"}}'
)
TRADE = (
    '{"s":"ok","trades":{"id_fill":"7","id":"26112300000017","symbol":"NSE:SBIN-EQ",'
    '"tran_side":-1,"qty_traded":4,"price_traded":815.4,"fill_time":"23-11-2026 10:12:58"}}'
)
POSITION = '{"positions":{"id":"x-MARGIN","symbol":"x","day_buy_qty":3,"day_sell_qty":1}}'


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ('{"code":1605,"message":"Successfully subscribed","s":"ok"}', Subscribed),
        (POSITION, DayPosition),
        (ORDER, OrderRow),
        (TRADE, TradeRow),
        ('{"s":"ok","edis":{}}', type(None)),
    ],
)
def test_events_are_read_by_the_names_of_the_socket(text: str, kind: type) -> None:
    assert type(event_of(text)) is kind


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "[]",
        '{"orders":[]}',
        '{"orders":{"id":"1"}}',
        '{"trades":{"id_fill":"7","id":"1","fill_time":"yesterday"}}',
        '{"positions":{"id":"1","symbol":"x","day_buy_qty":"3","day_sell_qty":0}}',
    ],
)
def test_an_event_that_cannot_be_read_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        event_of(text)


def test_a_refused_subscription_ends_the_connection() -> None:
    with pytest.raises(BrokerError):
        event_of('{"code":-50,"message":"Please provide a valid request","s":"error"}')
