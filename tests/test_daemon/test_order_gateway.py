import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import gateway_child
import msgspec
import pytest
from builders import OPEN_NS, SECOND_NS, a_catalogue, a_fill, a_tick, an_order

from actors.messages import (
    AnyMessage,
    CancelOrder,
    ExecutionReport,
    ModifyOrder,
    OrderStatus,
    PlaceOrder,
    RejectKind,
)
from daemon.brokers.simulated import SimulatedBroker, SimulationSettings
from daemon.bus import Consumer, Publisher
from daemon.errors import BrokerRejected, BrokerUnavailable, BusError
from daemon.kill_switch import Latch
from daemon.memory_bus import MemoryBus
from daemon.order_gateway import OrderGateway
from daemon.outbox import Outbox

WAIT_S = 20.0


class SettableLatch:
    """The latch as the gateway reads it."""

    def __init__(self) -> None:
        self.word = Latch(engaged=False, reason="test", operator="test", at=1)

    async def read(self) -> Latch:
        return self.word

    def engage(self, reason: str = "operator", *, flatten: bool = False) -> None:
        self.word = Latch(engaged=True, reason=reason, operator="anna", at=2, flatten=flatten)


class ScriptedBroker:
    """A distant broker: `on_place` says what becomes of the next order, `book` what it has."""

    is_remote = True

    def __init__(self) -> None:
        self.book: dict[str, list[ExecutionReport]] = {}
        self.placed: list[str] = []
        self.cancelled: list[str] = []
        self.modified: list[tuple[str, Decimal]] = []
        self.asked: list[str] = []
        self.on_place: Callable[[PlaceOrder], Any] = self.take
        self.on_cancel: list[Exception] = []
        self.cancel_takes: Callable[[], Awaitable[Any]] = lambda: asyncio.sleep(0)
        self.cancel_ends_orders = True
        self.on_modify: list[Exception] = []
        self.on_find: list[Exception] = []
        self._queue: asyncio.Queue[ExecutionReport] = asyncio.Queue()

    def take(self, order: PlaceOrder) -> None:
        accepted = a_fill(
            order,
            status="accepted",
            execution_id=f"{order.client_order_id}-0",
            last_quantity=0,
            last_price=Decimal(0),
            cumulative_quantity=0,
        )
        self.book[order.client_order_id] = [accepted]

    def tell(self, report: ExecutionReport) -> None:
        self.book.setdefault(report.client_order_id, []).append(report)
        self._queue.put_nowait(report)

    def end(self, tag: str) -> None:
        last = self.book[tag][-1]
        self.tell(msgspec.structs.replace(last, execution_id=f"{tag}-end", status="cancelled"))

    @property
    def pending_reports(self) -> int:
        return self._queue.qsize()

    async def place(self, order: PlaceOrder) -> None:
        self.placed.append(order.client_order_id)
        result = self.on_place(order)
        if result is not None:
            await result

    async def cancel(self, client_order_id: str) -> None:
        self.cancelled.append(client_order_id)
        if self.on_cancel:
            raise self.on_cancel.pop(0)
        await self.cancel_takes()
        if self.cancel_ends_orders:
            self.end(client_order_id)

    async def modify(self, client_order_id: str, limit_price: Decimal) -> None:
        self.modified.append((client_order_id, limit_price))
        if self.on_modify:
            raise self.on_modify.pop(0)

    async def find(self, client_order_id: str) -> list[ExecutionReport] | None:
        self.asked.append(client_order_id)
        if self.on_find:
            raise self.on_find.pop(0)
        return self.book.get(client_order_id)

    async def reports(self) -> AsyncIterator[ExecutionReport]:
        while True:
            yield await self._queue.get()

    async def refresh(self) -> None: ...

    async def positions(self, *, reduces_risk: bool = False) -> dict[str, int]:
        return {}

    async def open_orders(self) -> list[PlaceOrder]:
        return []

    async def cancel_all(self) -> list[str]:
        return []

    async def close(self) -> None: ...


class House:
    """A gateway with what surrounds it."""

    def __init__(self, tmp_path: Path, broker: Any = None, **fields: Any) -> None:
        self.bus: MemoryBus = MemoryBus()
        self.broker = broker or ScriptedBroker()
        self.outbox = Outbox(tmp_path / "outbox.sqlite")
        self.latch = SettableLatch()
        self.now_ns = OPEN_NS
        self.settings: dict[str, Any] = {
            "max_order_rate_per_second": 8,
            "request_timeout_s": 0.05,
            "block_ms": 20,
        } | fields
        self._orders: Publisher | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[OrderGateway]:
        """Run a gateway on the same bus, broker and outbox; it may be done again."""
        await self.outbox.open()
        gateway = OrderGateway(
            self.bus,
            self.broker,
            self.outbox,
            self.latch,
            clock_ns=lambda: self.now_ns,
            **self.settings,
        )
        task = asyncio.create_task(gateway.run())
        try:
            yield gateway
        finally:
            gateway.stop()
            await asyncio.wait_for(task, WAIT_S)

    async def send(self, *messages: AnyMessage) -> None:
        self._orders = self._orders or await self.bus.publisher("execution", ["order"])
        await self._orders.publish(*messages)

    async def reports(self) -> list[ExecutionReport]:
        found = [entry.envelope.message for entry in await self.bus.entries("report")]
        return [message for message in found if isinstance(message, ExecutionReport)]

    async def statuses(self) -> list[OrderStatus]:
        return [report.status for report in await self.reports()]

    async def settle(self, gateway: OrderGateway) -> None:
        """Wait until every order is handled and every report is published."""

        async def is_settled() -> bool:
            return await self.bus.is_quiet() and gateway.is_idle()

        await until(is_settled)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until the condition holds."""
    async with asyncio.timeout(WAIT_S):
        while not await condition():  # noqa: ASYNC110 - no event tells when several parts are so
            await asyncio.sleep(0.005)


async def until_true(condition: Callable[[], bool]) -> None:
    async def holds() -> bool:
        return condition()

    await until(holds)


def a_cancel(tag: str = "order1") -> CancelOrder:
    return CancelOrder(client_order_id=tag, instrument="Nifty", reason="test", placed_ns=OPEN_NS)


def a_change(tag: str = "order1", placed_ns: int = OPEN_NS) -> ModifyOrder:
    return ModifyOrder(
        client_order_id=tag,
        instrument="Nifty",
        limit_price=Decimal("22110.05"),
        reason="test",
        placed_ns=placed_ns,
    )


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    yield house
    await house.outbox.close()


def arrives_without_an_answer(house: House) -> Callable[[PlaceOrder], None]:
    def place(order: PlaceOrder) -> None:
        house.broker.take(order)
        raise BrokerUnavailable("connection reset")

    return place


def is_lost(_: PlaceOrder) -> None:
    raise BrokerUnavailable("connection refused")


async def test_a_simulated_broker_fills_an_order_from_the_bus(tmp_path: Path) -> None:
    broker = SimulatedBroker(a_catalogue(), SimulationSettings())
    house = House(tmp_path, broker)
    broker.on_tick(a_tick("22000", OPEN_NS))

    async with house.running() as gateway:
        await house.send(an_order())
        await house.settle(gateway)
        broker.on_tick(a_tick("22000", OPEN_NS + 1))
        await house.settle(gateway)

    assert await house.statuses() == ["accepted", "filled"]
    assert await house.outbox.unfinished() == []
    await house.outbox.close()


async def test_an_order_is_acknowledged_once_the_broker_has_answered(house: House) -> None:
    answer = asyncio.Event()
    house.settings["request_timeout_s"] = WAIT_S
    house.broker.on_place = lambda order: answer.wait()

    async with house.running() as gateway:
        await house.send(an_order())
        await until_true(lambda: bool(house.broker.placed))
        during = (await house.bus.is_quiet(), gateway.is_idle())
        row = await house.outbox.find("order1")
        answer.set()
        await house.settle(gateway)

    assert during == (False, False)
    assert row is not None
    assert row.stage == "sent"
    assert (await house.outbox.unfinished())[0].stage == "answered"


@pytest.mark.parametrize("kind", ["permanent", "auth", "rate"])
async def test_what_the_broker_rejects_is_reported_as_rejected_with_its_class(
    house: House, kind: RejectKind
) -> None:
    def reject(_: PlaceOrder) -> None:
        raise BrokerRejected("margin shortfall of 1,200", kind)

    house.broker.on_place = reject

    async with house.running() as gateway:
        await house.send(an_order())
        await house.settle(gateway)

    (report,) = await house.reports()
    assert (report.status, report.reason) == ("rejected", "margin shortfall of 1,200")
    assert report.reject_kind == kind
    assert report.client_order_id == "order1"
    assert await house.outbox.unfinished() == []


@pytest.mark.parametrize("purpose", ["entry", "exit"])
async def test_an_engaged_kill_switch_refuses_orders(house: House, purpose: str) -> None:
    house.latch.engage("operator")

    async with house.running() as gateway:
        await house.send(an_order(purpose=purpose))
        await house.settle(gateway)

    (report,) = await house.reports()
    assert (report.status, report.reason) == ("rejected", "kill switch: operator")
    assert report.reject_kind == "retryable"
    assert house.broker.placed == []


async def test_a_kill_switch_with_flatten_lets_exits_and_cancels_through(house: House) -> None:
    house.settings["request_timeout_s"] = WAIT_S  # the report comes before another cancel is due

    async with house.running() as gateway:
        await house.send(an_order(client_order_id="before"))
        await house.settle(gateway)
        house.latch.engage(flatten=True)
        await house.send(
            an_order(client_order_id="entry"),
            an_order(client_order_id="exit", purpose="exit"),
            a_cancel("before"),
        )
        await house.settle(gateway)

    assert house.broker.placed == ["before", "exit"]
    assert house.broker.cancelled == ["before"]


async def test_a_second_order_under_the_same_id_is_not_sent_and_not_reported(house: House) -> None:
    async with house.running() as gateway:
        await house.send(an_order(75), an_order(150))
        await house.settle(gateway)

    assert house.broker.placed == ["order1"]
    assert await house.reports() == []


async def test_entries_above_the_rate_are_refused_with_some_room_kept_for_exits(
    house: House,
) -> None:
    async with house.running() as gateway:
        await house.send(*(an_order(client_order_id=f"o{number}") for number in range(7)))
        await house.send(
            *(an_order(client_order_id=f"x{number}", purpose="exit") for number in range(3))
        )
        await house.settle(gateway)
        house.now_ns += SECOND_NS
        await house.send(an_order(client_order_id="later"))
        await house.settle(gateway)

    assert house.broker.placed == [*(f"o{number}" for number in range(6)), "x0", "x1", "later"]
    assert [(report.client_order_id, report.reason) for report in await house.reports()] == [
        ("o6", "6 orders in the last second, allowed: 6"),
        ("x2", "8 orders in the last second, allowed: 8"),
    ]


async def test_an_entry_that_lay_too_long_is_refused_but_an_exit_goes_out(house: House) -> None:
    house.now_ns += 31 * SECOND_NS

    async with house.running() as gateway:
        await house.send(an_order(), an_order(client_order_id="exit", purpose="exit"))
        await house.settle(gateway)

    assert house.broker.placed == ["exit"]
    assert (await house.reports())[0].reason == "order is 31.0 s old, allowed: 30 s"


# Unknown outcomes


async def test_an_order_without_an_answer_is_unknown_and_then_found(house: House) -> None:
    house.broker.on_place = arrives_without_an_answer(house)

    async with house.running() as gateway:
        await house.send(an_order())
        await house.settle(gateway)

    assert house.broker.placed == ["order1"]
    assert await house.statuses() == ["unknown", "accepted"]


async def test_an_order_without_an_answer_that_never_arrived_is_rejected(house: House) -> None:
    house.broker.on_place = is_lost

    async with house.running() as gateway:
        await house.send(an_order())
        await house.settle(gateway)

    assert house.broker.placed == ["order1"]
    assert await house.statuses() == ["unknown", "rejected"]
    last = (await house.reports())[1]
    assert (last.reason, last.reject_kind) == ("the broker has no such order", "retryable")


async def test_the_gateway_counts_unknown_orders_with_their_age_and_rejects_by_class(
    house: House,
) -> None:
    def rejects(_order: PlaceOrder) -> None:
        raise BrokerRejected("too many", "rate")

    house.broker.on_place = is_lost
    house.broker.on_find = [BrokerUnavailable("still down")] * 1000

    async with house.running() as gateway:
        await house.send(an_order(placed_ns=OPEN_NS))
        await until_true(lambda: bool(house.broker.asked))
        house.now_ns = OPEN_NS + 7 * SECOND_NS
        meanwhile = gateway.order_counts()
        house.broker.on_place = rejects
        await house.send(
            an_order(client_order_id="order2", instrument="Bank_Nifty", placed_ns=house.now_ns)
        )
        await until_true(lambda: "order2" in house.broker.placed)
        house.broker.on_find = []
        await house.settle(gateway)
        after = gateway.order_counts()

    assert (meanwhile.unknown, meanwhile.unknown_s, meanwhile.rejected_rate) == (1, 7.0, 0)
    assert (after.unknown, after.unknown_s, after.rejected_rate) == (0, 0.0, 1)
    assert (after.rejected_permanent, after.circuits_opened, after.differences) == (0, 0, 0)


# Rejects


def rejects_later(house: House, reason: str = "RMS: Margin Shortfall: required") -> None:
    """Let the broker take every order, and reject it a moment later."""

    def place(order: PlaceOrder) -> None:
        house.broker.take(order)
        number = len(house.broker.placed)
        house.broker.tell(a_reject(order, f"{reason} {number * 100}"))

    house.broker.on_place = place


def a_reject(order: PlaceOrder, reason: str) -> ExecutionReport:
    return a_fill(
        order,
        status="rejected",
        execution_id=f"{order.client_order_id}:rejected:0",
        last_quantity=0,
        last_price=Decimal(0),
        cumulative_quantity=0,
        reason=reason,
    )


async def place_in_turn(house: House, gateway: OrderGateway, *orders: PlaceOrder) -> None:
    for order in orders:
        await house.send(order)
        await house.settle(gateway)


async def test_rejects_that_come_after_the_broker_took_the_orders_open_the_circuit(
    house: House,
) -> None:
    rejects_later(house)

    async with house.running() as gateway:
        await place_in_turn(
            house, gateway, *(an_order(client_order_id=f"o{number}") for number in range(6))
        )
        counts = gateway.order_counts()

    assert house.broker.placed == ["o0", "o1", "o2"]
    assert (counts.rejected_permanent, counts.circuits_opened) == (3, 1)
    assert "circuit open for 900 s" in (await house.reports())[-1].reason


async def test_rejects_of_options_count_for_their_underlying(house: House) -> None:
    rejects_later(house)
    strikes = [
        an_order(
            client_order_id=f"o{strike}",
            instrument=f"NSE:NIFTY24MAR{strike}CE",
            underlying="Nifty",
        )
        for strike in (21900, 22000, 22100, 22200)
    ]

    async with house.running() as gateway:
        await place_in_turn(house, gateway, *strikes)
        other = an_order(client_order_id="other", instrument="Bank_Nifty")
        await place_in_turn(house, gateway, other)

    assert house.broker.placed == ["o21900", "o22000", "o22100", "other"]


async def test_a_reject_counts_once_however_often_it_is_told(house: House) -> None:
    def place(order: PlaceOrder) -> None:
        house.broker.tell(a_reject(order, "no margin"))
        raise BrokerRejected("no margin")

    house.broker.on_place = place

    async with house.running() as gateway:
        await place_in_turn(house, gateway, an_order())
        house.broker.tell(a_reject(an_order(), "no margin"))
        await house.settle(gateway)
        counts = gateway.order_counts()
    async with house.running() as gateway:
        house.broker.tell(a_reject(an_order(), "no margin"))
        await house.settle(gateway)
        after_a_restart = gateway.order_counts()

    assert counts.rejected_permanent == 1
    assert after_a_restart.rejected_permanent == 0


@pytest.mark.parametrize(("is_filled", "openings"), [(False, 1), (True, 0)])
async def test_a_fill_begins_the_count_of_rejects_anew_but_no_mere_acceptance(
    house: House, is_filled: bool, openings: int
) -> None:
    taken = an_order(client_order_id="taken")
    rejects_later(house)

    async with house.running() as gateway:
        await place_in_turn(
            house, gateway, *(an_order(client_order_id=f"o{number}") for number in range(2))
        )
        house.broker.on_place = house.broker.take
        await place_in_turn(house, gateway, taken)
        if is_filled:
            house.broker.tell(a_fill(taken))
            await house.settle(gateway)
        rejects_later(house)
        await place_in_turn(house, gateway, an_order(client_order_id="last"))
        counts = gateway.order_counts()

    assert counts.circuits_opened == openings


async def test_a_broker_that_hangs_is_an_unknown_outcome(house: House) -> None:
    house.broker.on_place = lambda _: asyncio.sleep(60)

    async with house.running() as gateway:
        await house.send(an_order())
        await house.settle(gateway)

    assert (await house.reports())[0].reason == "no answer in 0.05 s"


async def test_a_question_is_asked_until_it_is_answered_and_other_orders_go_on(
    house: House,
) -> None:
    house.broker.on_place = arrives_without_an_answer(house)
    house.broker.on_find = [BrokerUnavailable("still down")] * 1000

    async with house.running() as gateway:
        await house.send(an_order())
        await until_true(lambda: len(house.broker.asked) >= 2)
        house.broker.on_place = house.broker.take
        other = an_order(client_order_id="order2", instrument="Bank_Nifty", quantity=35)
        await house.send(other)
        await until_true(lambda: "order2" in house.broker.placed)
        house.broker.on_find = []
        await house.settle(gateway)

    assert set(house.broker.asked) == {"order1"}
    assert house.broker.placed == ["order1", "order2"]
    assert await house.statuses() == ["unknown", "accepted"]


async def test_a_live_broker_is_not_asked_before_a_late_request_can_have_arrived(
    house: House,
) -> None:
    house.settings["request_timeout_s"] = 0.2
    house.broker.on_place = is_lost
    loop = asyncio.get_running_loop()

    async with house.running() as gateway:
        began_s = loop.time()
        await house.send(an_order())
        await house.settle(gateway)

    assert loop.time() - began_s >= 0.2


async def test_a_cancel_that_finds_nothing_to_cancel_brings_the_missing_fill(
    house: House,
) -> None:
    async with house.running() as gateway:
        await house.send(an_order())
        await house.settle(gateway)
        house.broker.book["order1"].append(a_fill(an_order()))  # its frame never came
        house.broker.on_cancel = [BrokerRejected("already filled")]
        await house.send(a_cancel())
        await house.settle(gateway)

    assert await house.statuses() == ["accepted", "filled"]


async def test_a_cancel_without_an_answer_is_repeated_until_it_has_one(house: House) -> None:
    house.settings["request_timeout_s"] = WAIT_S  # the report comes before another cancel is due
    house.broker.on_cancel = [BrokerUnavailable("HTTP 502")] * 5

    async with house.running() as gateway:
        await house.send(an_order(), a_cancel())
        await house.settle(gateway)

    assert house.broker.cancelled == ["order1"] * 6
    assert await house.statuses() == ["cancelled"]


async def test_a_cancel_that_hangs_is_repeated_and_holds_up_no_other_order(house: House) -> None:
    house.broker.cancel_takes = asyncio.Event().wait

    async with house.running() as gateway:
        await house.send(an_order(), a_cancel(), an_order(client_order_id="order2"))
        await until_true(lambda: len(house.broker.cancelled) >= 2)
        placed_by_then = list(house.broker.placed)
        house.broker.cancel_takes = lambda: asyncio.sleep(0)
        await house.settle(gateway)

    assert placed_by_then == ["order1", "order2"]
    assert await house.statuses() == ["cancelled"]


@pytest.mark.parametrize("refusals", [0, 2])
async def test_a_cancel_that_was_answered_is_repeated_while_the_order_stays_open(
    house: House, refusals: int
) -> None:
    house.broker.cancel_ends_orders = False
    house.broker.on_cancel = [BrokerRejected("not open yet")] * refusals

    async with house.running() as gateway:
        await house.send(an_order(), a_cancel())
        await until_true(lambda: len(house.broker.cancelled) >= 3)
        house.broker.end("order1")
        await house.settle(gateway)
    cancels = len(house.broker.cancelled)
    async with house.running() as gateway:
        await house.settle(gateway)

    assert (await house.statuses())[-1] == "cancelled"
    assert len(house.broker.cancelled) == cancels


async def test_after_a_restart_an_order_that_was_to_be_taken_back_is_cancelled_again(
    house: House,
) -> None:
    house.broker.on_cancel = [BrokerUnavailable("HTTP 502")] * 1000

    async with house.running():
        await house.send(an_order(), a_cancel())
        await until_true(lambda: bool(house.broker.cancelled))
        await until(house.bus.is_quiet)
    house.broker.on_cancel = []
    async with house.running() as gateway:
        await house.settle(gateway)

    assert (await house.statuses())[-1] == "cancelled"
    assert await house.outbox.unfinished() == []


async def test_a_cancel_of_an_order_that_was_never_sent_goes_nowhere(house: House) -> None:
    async with house.running() as gateway:
        await house.send(a_cancel("stranger"))
        await house.settle(gateway)

    assert house.broker.cancelled == []


# Changes


async def test_a_resting_order_gets_another_limit(house: House) -> None:
    async with house.running() as gateway:
        await house.send(an_order(), a_change())
        await house.settle(gateway)

    assert house.broker.modified == [("order1", Decimal("22110.05"))]
    assert house.broker.asked == []


async def test_a_change_that_comes_too_late_brings_the_missing_fill(house: House) -> None:
    async with house.running() as gateway:
        await house.send(an_order())
        await house.settle(gateway)
        house.broker.book["order1"].append(a_fill(an_order()))  # its frame never came
        house.broker.on_modify = [BrokerRejected("already filled")]
        await house.send(a_change())
        await house.settle(gateway)

    assert await house.statuses() == ["accepted", "filled"]


async def test_a_change_without_an_answer_is_not_repeated(house: House) -> None:
    house.broker.on_modify = [BrokerUnavailable("down")]

    async with house.running() as gateway:
        await house.send(an_order(), a_change())
        await house.settle(gateway)

    assert len(house.broker.modified) == 1
    assert house.broker.asked == []  # it rests, at the one limit or at the other


async def test_nothing_is_changed_that_is_unknown_or_over_or_was_never_sent(house: House) -> None:
    house.broker.on_place = arrives_without_an_answer(house)
    house.broker.on_find = [BrokerUnavailable("down")] * 1000

    async with house.running() as gateway:
        await house.send(an_order(), a_change(), a_change("stranger"))
        await until_true(lambda: bool(house.broker.asked))
        await until(house.bus.is_quiet)
        house.broker.on_find = []
        house.broker.book["order1"].append(a_fill(an_order()))
        await house.settle(gateway)
        await house.send(a_change())
        await house.settle(gateway)

    assert house.broker.modified == []


async def test_an_engaged_kill_switch_and_age_forbid_a_change(house: House) -> None:
    async with house.running() as gateway:
        await house.send(an_order(), a_change(placed_ns=OPEN_NS - 31 * SECOND_NS))
        await house.settle(gateway)
        house.latch.engage()
        await house.send(a_change())
        await house.settle(gateway)

    assert house.broker.modified == []


async def test_changes_count_as_orders_of_the_second(house: House) -> None:
    house.settings["max_order_rate_per_second"] = 4

    async with house.running() as gateway:
        await house.send(an_order(), a_change(), a_change(), a_change())
        await house.settle(gateway)

    assert len(house.broker.modified) == 2  # three of four; one is kept for exits


# Reports


async def test_a_report_is_published_once_however_often_it_comes(house: House) -> None:
    async with house.running() as gateway:
        await house.send(an_order())
        await house.settle(gateway)
        for _ in range(3):
            house.broker.tell(a_fill(an_order()))
        await house.settle(gateway)

    assert await house.statuses() == ["filled"]


async def test_unpublished_reports_are_published_by_the_next_run(house: House) -> None:
    await house.outbox.open()
    await house.outbox.add_reports([a_fill(an_order())])

    async with house.running() as gateway:
        assert not gateway.is_idle()
        await house.settle(gateway)

    assert await house.statuses() == ["filled"]
    assert await house.outbox.count_unpublished() == 0


# Starting and stopping


@pytest.mark.parametrize("stage", ["sent", "answered"])
async def test_at_the_start_the_broker_is_asked_for_unfinished_orders(
    house: House, stage: str
) -> None:
    await house.outbox.open()
    await house.outbox.record_intent(an_order(), "1-0")
    await house.outbox.mark_sent("order1")
    if stage == "answered":
        await house.outbox.mark_answered("order1")
    house.broker.book["order1"] = [a_fill(an_order())]

    async with house.running() as gateway:
        await house.settle(gateway)

    assert house.broker.asked == ["order1"]
    assert await house.statuses() == ["filled"]


@pytest.mark.parametrize(("stage", "status"), [("sent", "rejected"), ("answered", "expired")])
async def test_an_unfinished_order_that_the_broker_has_not_ends(
    house: House, stage: str, status: str
) -> None:
    await house.outbox.open()
    await house.outbox.record_intent(an_order(), "1-0")
    await house.outbox.mark_sent("order1")
    if stage == "answered":
        await house.outbox.mark_answered("order1")

    async with house.running() as gateway:
        await house.settle(gateway)

    assert await house.statuses() == [status]
    assert await house.outbox.unfinished() == []


async def test_no_new_order_goes_out_before_the_old_ones_are_known(house: House) -> None:
    await house.outbox.open()
    await house.outbox.record_intent(an_order(), "1-0")
    await house.outbox.mark_sent("order1")
    house.broker.on_find = [BrokerUnavailable("down")] * 2
    await house.send(an_order(client_order_id="new"))

    async with house.running() as gateway:
        await until_true(lambda: len(house.broker.asked) == 2)
        placed_by_then = list(house.broker.placed)
        await house.settle(gateway)

    assert placed_by_then == []
    assert house.broker.placed == ["new"]


async def test_it_can_be_stopped_while_the_broker_is_away(house: House) -> None:
    await house.outbox.open()
    await house.outbox.record_intent(an_order(), "1-0")
    await house.outbox.mark_sent("order1")
    house.broker.on_find = [BrokerUnavailable("down")] * 1000

    async with house.running() as gateway:
        await until_true(lambda: bool(house.broker.asked))

    assert not gateway.ready.is_set()


async def test_a_broker_whose_reports_end_is_a_crash(tmp_path: Path) -> None:
    class Ending(ScriptedBroker):
        async def reports(self) -> AsyncIterator[ExecutionReport]:
            return
            yield  # what makes it a generator

    house = House(tmp_path, Ending())
    await house.outbox.open()
    gateway = OrderGateway(
        house.bus,
        house.broker,
        house.outbox,
        house.latch,
        clock_ns=lambda: OPEN_NS,
        max_order_rate_per_second=8,
        block_ms=20,
    )

    with pytest.raises(ExceptionGroup) as caught:
        await gateway.run()

    assert caught.group_contains(BrokerUnavailable, match="stream of reports has ended")
    await house.outbox.close()


class ShakyBus(MemoryBus):
    """A bus that is away for the next `outages` calls."""

    outages = 0

    async def consumer(self, *arguments: Any, **fields: Any) -> Any:
        self._fail()
        return Shaky(self, await super().consumer(*arguments, **fields))

    async def publisher(self, source: str, *arguments: Any, **fields: Any) -> Any:
        publisher = await super().publisher(source, *arguments, **fields)
        if source != "order_gateway":
            return publisher
        self._fail()
        return Shaky(self, publisher)

    def _fail(self) -> None:
        if self.outages:
            self.outages -= 1
            raise BusError("server gone")


class Shaky:
    """One reader or writer of a bus that may go away."""

    def __init__(self, bus: ShakyBus, inner: Consumer | Publisher) -> None:
        self._bus = bus
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        if name != "close":
            self._bus._fail()
        return getattr(self._inner, name)


async def test_it_outlives_an_outage_of_the_bus(tmp_path: Path) -> None:
    house = House(tmp_path)
    bus = ShakyBus()
    house.bus = bus

    async with house.running() as gateway:
        await house.send(an_order(client_order_id="a"))
        await house.settle(gateway)
        bus.outages = 4
        house.broker.tell(a_fill(an_order(client_order_id="a")))
        await house.send(an_order(client_order_id="b"))
        await house.settle(gateway)

    assert house.broker.placed == ["a", "b"]
    assert await house.statuses() == ["filled"]
    await house.outbox.close()


async def test_an_order_whose_acknowledgement_failed_is_not_sent_again(tmp_path: Path) -> None:
    house = House(tmp_path)
    bus = ShakyBus()
    house.bus = bus

    def place(order: PlaceOrder) -> None:
        house.broker.take(order)
        bus.outages = 1  # the commit that follows fails

    house.broker.on_place = place

    async with house.running() as gateway:
        await house.send(an_order())
        await house.settle(gateway)

    assert house.broker.placed == ["order1"]
    await house.outbox.close()


# What the bus has lost


async def test_an_order_that_was_never_sent_and_that_the_bus_lost_ends(house: House) -> None:
    await house.outbox.open()
    await house.outbox.record_intent(an_order(), "1-0")

    async with house.running() as gateway:
        await house.settle(gateway)

    assert house.broker.placed == []
    assert await house.statuses() == ["rejected"]
    assert await house.outbox.unfinished() == []


async def test_an_order_that_was_never_sent_goes_out_when_the_bus_has_it(house: House) -> None:
    await house.outbox.open()
    await house.send(an_order())
    (entry,) = await house.bus.entries("order")
    await house.outbox.record_intent(an_order(), entry.id)

    async with house.running() as gateway:
        await house.settle(gateway)

    assert house.broker.placed == ["order1"]
    assert await house.reports() == []


async def test_reports_that_the_bus_lost_are_published_again_in_their_order(house: House) -> None:
    fills = [a_fill(an_order(), execution_id=f"e{number}") for number in range(3)]
    await house.outbox.open()
    await house.outbox.add_reports(fills)
    await (await house.bus.publisher("order_gateway", ["report"])).publish(fills[0])
    await house.outbox.mark_published(["e0", "e1", "e2"])

    for _ in range(2):
        async with house.running() as gateway:
            await house.settle(gateway)

    assert [one.execution_id for one in await house.reports()] == ["e0", "e1", "e2"]
    assert await house.outbox.count_unpublished() == 0


async def test_reports_that_were_trimmed_are_not_lost(house: House) -> None:
    fills = [a_fill(an_order(), execution_id=f"e{number}") for number in range(3)]
    await house.outbox.open()
    await house.outbox.add_reports(fills)
    await (await house.bus.publisher("order_gateway", ["report"])).publish(fills[2])
    await house.outbox.mark_published(["e0", "e1", "e2"])

    async with house.running() as gateway:
        await house.settle(gateway)

    assert [one.execution_id for one in await house.reports()] == ["e2"]


# Killed at every point

POINTS = (
    "before_intent",
    "after_intent",
    "after_sent",
    "after_place",
    "after_answered",
    "after_report_stored",
    "after_publish",
)


def exit_code_of(folder: Path, point: str) -> int | None:
    """Run a gateway on one redelivered order until it is done, or until it kills itself."""
    # Forked, since a fresh interpreter would spend a second on imports.
    context = multiprocessing.get_context("fork")
    process = context.Process(target=gateway_child.run, args=(folder, point))
    process.start()
    process.join(60)
    return process.exitcode


@pytest.mark.parametrize("point", POINTS)
def test_an_order_is_sent_exactly_once_whenever_the_gateway_is_killed(
    tmp_path: Path, point: str
) -> None:
    killed = exit_code_of(tmp_path, point)
    done = exit_code_of(tmp_path, "never")

    placed = (tmp_path / "placed").read_text().split() if (tmp_path / "placed").exists() else []
    published = (tmp_path / "published").read_text().split()
    assert (killed, done) == (-9, 0)
    if point == "after_sent":
        # It may have been on its way when the process died: never sent again, and said so.
        assert placed == []
        assert set(published) == {"order1-gateway-rejected"}
    else:
        assert placed == ["order1"]
        assert set(published) == {"order1-1"}
