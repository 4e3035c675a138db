"""The whole way of an order in one process: execution, gateway, outbox, and the simulated exchange.

Nothing here runs by itself: each call does one thing and lets what follows from it come to rest.
"""

import asyncio
import io
from collections.abc import Callable, Coroutine
from decimal import Decimal
from typing import Any

from actors.execution import ExecutionActor
from actors.instruments import Instrument, InstrumentCatalogue
from actors.messages import (
    Alert,
    CancelOrder,
    ExecutionReport,
    KillSwitch,
    Message,
    ModifyOrder,
    OrderIntent,
    PlaceOrder,
    Position,
    Tick,
    TimeEvent,
)
from actors.policies import ExecutionSettings
from daemon.brokers.fyers_simulator.direct import DirectBroker, Line
from daemon.brokers.fyers_simulator.hours import TradingHours
from daemon.brokers.fyers_simulator.instruments import NS_PER_SECOND, Master
from daemon.brokers.fyers_simulator.listing import build_master
from daemon.brokers.fyers_simulator.market import Market
from daemon.brokers.fyers_simulator.matching import Exchange
from daemon.brokers.fyers_simulator.orders import Refusal
from daemon.brokers.fyers_simulator.portfolio import Portfolio
from daemon.brokers.fyers_simulator.server import DEFAULT_START
from daemon.bus import Entry
from daemon.delivery import NO_ENTRY, Mark
from daemon.kill_switch import Latch
from daemon.logs import configure_logs
from daemon.memory_bus import MemoryBus
from daemon.order_gateway import OrderGateway
from daemon.outbox import Outbox, Result
from daemon.reconciler import Reconciler
from daemon.settings import load_sessions

SYMBOL = "NSE:SBIN-EQ"
NAME = "SBIN"
SESSIONS = load_sessions()
START_NS = round(DEFAULT_START.timestamp()) * NS_PER_SECOND
SHARE = build_master(DEFAULT_START.date(), SESSIONS)[SYMBOL]
CATALOGUE = InstrumentCatalogue(
    [
        Instrument(
            symbol=NAME,
            name="State Bank of India",
            exchange_symbol=SYMBOL,
            kind="stock",
            lot_size=1,
            tick_size=Decimal("0.05"),
            freeze_quantity=601,  # an entry of 2,000 is four orders
        )
    ]
)


class OpenLatch:
    """A kill switch that can be set by hand."""

    def __init__(self) -> None:
        self.word = Latch(engaged=False, reason="", operator="test", at=1)

    async def read(self) -> Latch:
        return self.word


class InlineOutbox(Outbox):
    """An outbox in memory without its thread, which takes most of the time of a short life."""

    async def _run(self, work: Callable[[], Result]) -> Result:
        await asyncio.sleep(0)  # others get their turn here, as with the thread
        return work()


def cut(bus: MemoryBus, name: str, kept: int) -> None:
    """Let a stream end after its first `kept` entries, also for those who had read on."""
    stream = bus.stream(name)
    del stream.keys[kept:], stream.entries[kept:]
    stream.last = stream.keys[-1] if stream.keys else NO_ENTRY
    sequence = stream.entries[-1].envelope.sequence if stream.entries else 0
    for reading in stream.readings.values():
        reading.delivered = min(reading.delivered, stream.last)
        for given in reading.pending.values():
            for key in [key for key in given if key > stream.last]:
                del given[key]
    for group in bus._groups.values():
        mark = group.marks.get(name)
        if mark is not None and mark.key > stream.last:
            group.marks[name] = Mark(stream.last, sequence)


class OrderWorld:
    """One account, one instrument, one gateway that may be restarted."""

    def __init__(self, seed: int = 1, *, with_limits: bool = False, latency_s: int = 0) -> None:
        """With limits, orders go out a tick or so beyond the price, rest, and are modified."""
        hours = TradingHours(SESSIONS)
        self.market = Market(Master(iter([SHARE])), hours, seed=seed, start_ns=START_NS)
        self.portfolio = Portfolio(50_000_000.0, self.market)
        self.exchange = Exchange(
            self.market, self.portfolio, client_id="XX00001", latency_ns=latency_s * NS_PER_SECOND
        )
        self.line = Line(seed)
        self.problems: list[str] = []
        self.broker = DirectBroker(
            self.exchange, {NAME: SYMBOL}, self.line, on_problem=self.problems.append
        )
        settings = ExecutionSettings(
            exit_retry_seconds=1.0,
            order_timeout_seconds=5.0,
            order_type="limit" if with_limits else "market",
            limit_band=0.00001,
            reprice_after_seconds=1.0,
        )
        self._settings = settings
        self.execution = ExecutionActor(settings, CATALOGUE, SESSIONS)
        self.intents: list[OrderIntent] = []
        self._inputs: list[Message] = []  # what execution has handled, as the bus recalls it
        self.latch = OpenLatch()
        self.net = 0
        self.alerts: list[Alert] = []
        self.sent: list[PlaceOrder] = []
        self.modified = 0
        self._decisions = 0
        self._heard = 0
        configure_logs("critical", io.StringIO())
        self._runner = asyncio.Runner()
        self._runner.run(self._start())

    # What a test does.

    def intend(self, units: int, limit_price: Decimal | None = None) -> None:
        """Decide an entry of signed units."""
        self._decisions += 1
        self.intents.append(
            OrderIntent(
                decision_id=f"{NAME}@{self.market.now_ns}#{self._decisions}",
                instrument=NAME,
                quantity=units,
                purpose="entry",
                reference_price=self.price,
                decided_ns=self.market.now_ns,
                limit_price=limit_price,
            )
        )
        self._run(self._take(self.intents[-1]))

    def leave(self) -> None:
        """Decide to close what is open."""
        if self.net == 0:
            return
        self._decisions += 1
        self._run(
            self._take(
                OrderIntent(
                    decision_id=f"{NAME}@{self.market.now_ns}#{self._decisions}",
                    instrument=NAME,
                    quantity=-self.net,
                    purpose="exit",
                    reference_price=self.price,
                    decided_ns=self.market.now_ns,
                )
            )
        )

    def wait(self, seconds: int) -> None:
        """Let market time pass: prices, fills, the exchange's own deeds, ticks to execution."""
        self.market.advance_to(self.market.now_ns + seconds * NS_PER_SECOND)
        self.exchange.step()
        now_ns = self.market.now_ns
        self._run(
            self._take(
                Tick(
                    instrument=NAME,
                    last_price=self.price,
                    event_ns=now_ns,
                    volume_today=0,
                ),
                TimeEvent(now_ns=now_ns, wall_ns=now_ns),
            )
        )

    def stranger(self, units: int) -> None:
        """Trade by hand beside the program, in the same account and instrument."""
        try:
            self.exchange.place(
                {
                    "symbol": SYMBOL, "qty": abs(units), "type": 2, "side": 1 if units > 0 else -1,
                    "productType": "INTRADAY", "validity": "DAY", "offlineOrder": False,
                }
            )  # fmt: skip
        except Refusal:
            return
        self._run(self._settle())

    def close_outside(self) -> None:
        """Let the risk desk close what the account holds."""
        try:
            self.exchange.exit({"exit_all": 1})
        except Refusal:
            return
        self._run(self._settle())

    def kill(self, *, flatten: bool) -> None:
        """Engage the kill switch."""
        self.latch.word = Latch(engaged=True, reason="test", operator="test", at=2, flatten=flatten)
        self._run(self._take(self._kill_switch(engaged=True, flatten=flatten)))

    def resume(self) -> None:
        """Release the kill switch."""
        self.latch.word = Latch(engaged=False, reason="", operator="test", at=3)
        self._run(self._take(self._kill_switch(engaged=False, flatten=False)))

    def restart(self) -> None:
        """End the gateway and begin another on the same log."""
        self._run(self._restart())

    def lose_power(self, forgotten: int) -> None:
        """Cut the power: the bus forgets the last inputs of execution, and all that followed."""
        self._run(self._lose_power(max(0, len(self._inputs) - forgotten)))

    def repeat(self) -> None:
        """Let the last intent come once more, as risk makes it again after a power cut."""
        self._run(self._take(self.intents[-1]))

    def look(self) -> None:
        """Compare log and broker now."""
        self._run(self._look())

    def mend(self) -> None:
        """Let the line work, look twice, and let all questions be answered."""
        self.line.probability = 0.0
        self.line.armed.clear()
        for _ in range(3):
            self._run(self._look())

    def close(self) -> None:
        """Stop the gateway and the loop."""
        try:
            self._run(self._stop())
        finally:
            self._runner.close()

    # What a test looks at.

    @property
    def price(self) -> Decimal:
        quote = self.market.quote(SYMBOL)
        return Decimal(quote.last) / quote.contract.scale

    @property
    def inputs(self) -> int:
        """How many messages execution has handled, as the bus recalls it."""
        return len(self._inputs)

    @property
    def reported(self) -> set[str]:
        """Execution ids of the reports that execution has handled, as the bus recalls it."""
        return {one.execution_id for one in self._inputs if isinstance(one, ExecutionReport)}

    @property
    def reports(self) -> int:
        """How many reports execution has handled, as the bus recalls it."""
        return sum(isinstance(one, ExecutionReport) for one in self._inputs)

    @property
    def true_net(self) -> int:
        return self.broker.true_positions().get(NAME, 0)

    @property
    def logged_net(self) -> int:
        return self._runner.run(self.outbox.ledger()).positions.get(NAME, 0)

    @property
    def quarantined(self) -> int:
        """Signed units of strangers' trades that the log has not adopted."""
        known = self._runner.run(self._known_trades())
        return sum(
            trade.order.side * trade.quantity
            for trade in self.exchange.trades
            if not trade.order.tag and f"trade:{trade.id}" not in known
        )

    @property
    def strangers_resting(self) -> bool:
        return any(not order.tag for order in self.exchange.pending)

    def adds_nothing(self) -> bool:
        """Tell whether an entry that is decided now leaves the account as it is."""
        before = self.true_net
        self.intend(1)
        return self.true_net == before

    def lost(self) -> list[str]:
        """Return trades of our orders that the log does not have."""
        known = self._runner.run(self._known_trades())
        return [
            trade.id
            for trade in self.exchange.trades
            if trade.order.tag and f"trade:{trade.id}" not in known
        ]

    def unaccounted(self) -> list[str]:
        """Return orders that we hold for open and the exchange does not, or the other way."""
        ours = set(self._runner.run(self.outbox.ledger()).unfinished)
        theirs = {order.tag for order in self.exchange.pending if order.tag}
        return sorted(ours ^ theirs)

    # How it runs.

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._runner.run(work)

    async def _start(self) -> None:
        self.bus: MemoryBus = MemoryBus(clock_ns=lambda: self.market.now_ns)
        self._orders = await self.bus.publisher("execution", ["order"])
        self.outbox = await InlineOutbox(None).open()
        await self._begin()

    async def _begin(self) -> None:
        reconciler = Reconciler(
            self.broker,
            self.outbox,
            [NAME],
            real_ns=lambda: self.market.now_ns,
            stale_s=float("inf"),  # its time jumps by hours between two looks
            managed=self._managed,
        )
        self.reconciler = reconciler
        self.gateway = OrderGateway(
            self.bus,
            self.broker,
            self.outbox,
            self.latch,
            clock_ns=lambda: self.market.now_ns,
            max_order_rate_per_second=100,
            block_ms=2,
            retry_first_s=0.0005,
            reconciler=reconciler,
            reconcile_every_s=3600.0,
            announce=self._hear_alert,
        )
        self._serving = asyncio.create_task(self.gateway.run())
        await self.gateway.ready.wait()

    async def _managed(self) -> dict[str, int] | None:
        is_behind = self.gateway.unpublished or self._heard < len(await self.bus.entries("report"))
        return None if is_behind or not self.gateway.ready.is_set() else {NAME: self.net}

    async def _hear_alert(self, alert: Alert) -> None:
        self.alerts.append(alert)

    async def _restart(self) -> None:
        self.gateway.stop()
        await self._serving
        await self._begin()
        await self._settle()

    async def _lose_power(self, kept: int) -> None:
        """Begin anew with what the bus still has: a beginning of the inputs, and their outputs."""
        self.gateway.stop()
        await self._serving
        self._inputs = self._inputs[:kept]
        self.execution = ExecutionActor(self._settings, CATALOGUE, SESSIONS)
        self.net = orders = 0
        for message in self._inputs:
            for output in self.execution.handle(message):  # type: ignore[arg-type]
                orders += isinstance(output, PlaceOrder | CancelOrder | ModifyOrder)
                self.net = output.net_quantity if isinstance(output, Position) else self.net
        self._heard = sum(isinstance(message, ExecutionReport) for message in self._inputs)
        cut(self.bus, "order", orders)
        cut(self.bus, "report", self._heard)
        self._orders = await self.bus.publisher("execution", ["order"])
        await self._begin()
        await self._settle()

    async def _stop(self) -> None:
        self.gateway.stop()
        await self._serving
        await self.outbox.close()

    async def _look(self) -> None:
        await self.gateway.reconcile_now()
        await self._settle()

    async def _take(self, *messages: Message) -> None:
        for message in messages:
            await self._fold(message)
        await self._settle()

    async def _fold(self, message: Message) -> None:
        self._inputs.append(message)
        await self._publish(self.execution.handle(message))  # type: ignore[arg-type]

    async def _publish(self, outputs: Any) -> None:
        for output in outputs:
            match output:
                case PlaceOrder() | CancelOrder() | ModifyOrder():
                    if isinstance(output, PlaceOrder):
                        self.sent.append(output)
                    self.modified += isinstance(output, ModifyOrder)
                    await self._orders.publish(output)
                case Position():
                    self.net = output.net_quantity
                case Alert():
                    self.alerts.append(output)
                case _:
                    raise AssertionError(f"execution does not yield {output}")

    async def _settle(self) -> None:
        """Let everything come to rest: orders handled, questions answered, reports folded."""
        async with asyncio.timeout(20):
            while True:
                entries: list[Entry] = await self.bus.entries("report")
                news, self._heard = entries[self._heard :], len(entries)
                for entry in news:
                    report = entry.envelope.message
                    assert isinstance(report, ExecutionReport)
                    await self._fold(report)
                if not news and self.gateway.is_idle() and await self.bus.is_quiet():
                    return
                await asyncio.sleep(0)

    def _kill_switch(self, *, engaged: bool, flatten: bool) -> KillSwitch:
        return KillSwitch(
            engaged=engaged,
            reason="test",
            operator="test",
            at_ns=self.market.now_ns,
            flatten=flatten,
        )

    async def _known_trades(self) -> set[str]:
        known = set()
        for trade in self.exchange.trades:
            if await self.outbox.has_report(f"trade:{trade.id}"):
                known.add(f"trade:{trade.id}")
        return known
