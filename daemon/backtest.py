"""*BacktestService*: history through the same actors, gateway and broker, as fast as they go.

Where paper trading has a bus between the actors, here each message is handed to whoever takes it,
in flow order, until nothing follows any more: the lock step of `--speed max` without the waiting.
Only orders travel a bus, since the gateway that carries them is the one of paper trading. No clock
is read: the model thinks to its end, and the same candles give the same result to the last byte.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Final

import uvloop

from actors.base import Actor
from actors.messages import (
    AnyMessage,
    Bar,
    CancelOrder,
    Decision,
    ExecutionReport,
    KillSwitch,
    Message,
    ModifyOrder,
    PlaceOrder,
    Tick,
)
from actors.reasoning import Thinker
from actors.session import timeframe_minutes
from daemon.actor_process import load_thinker
from daemon.backtest_result import BacktestResult, Ledger, StoppedBy, Trade
from daemon.brokers.simulated import SimulatedBroker, SimulationSettings
from daemon.clock import SimulatedClock
from daemon.errors import PartCrashed
from daemon.kill_switch import Latch
from daemon.memory_bus import MemoryBus
from daemon.order_gateway import OrderGateway
from daemon.outbox import Outbox
from daemon.plan import SessionPlan
from daemon.session_files import Market, as_configured, load_markets, make_plan, within_days
from daemon.session_run import Setting, played
from daemon.settings import (
    load_instruments,
    load_sessions,
    load_settings,
    trading_indices_themselves,
)
from daemon.tick_source import MarketEvent
from daemon.wiring import NAMES, Workshop

END_OF_DATA: Final = "end of the data: what is open is closed at the last price"
RELEASED: Final = "simulated money only"
_BLOCK_MS = 20
_SOURCE = "backtest"


@dataclass(frozen=True, slots=True)
class BarProgress:
    """What one closed bar brought. `number` counts bars from 1, `total` is how many there are."""

    number: int
    total: int
    bar: Bar
    decision: Decision | None  # None: its context could not be made
    portfolio_value: float  # currency units, open positions at the last price
    trades: tuple[Trade, ...]  # fills since the bar before


class BacktestService:
    """Run the candles of a setting once, from the first to the last.

    With `cancel`, from a callback or another thread, it ends at the next bar as at the end of the
    data: open positions are closed, and the result says `cancelled`.
    """

    def __init__(self, where: Setting, *, seed: int = 1, thinker: Thinker | None = None) -> None:
        """`thinker`: by default the released model, or HOLD throughout if there is no valid one."""
        began_ns = min(int(market.table.open_ns[0]) for market in where.markets)
        self._clock = SimulatedClock(began_ns)
        self._where = replace(where, clock=self._clock)
        self.plan = make_plan(
            trading_indices_themselves(where.settings),
            where.catalogue,
            where.calendar,
            where.markets,
            mode="backtest",
            now_ns=began_ns,
            seed=seed,
            speed="max",
        )
        self._thinker = thinker
        self._is_cancelled = False

    def cancel(self) -> None:
        """End at the next bar."""
        self._is_cancelled = True

    def run_alone(self, on_bar: Callable[[BarProgress], None] | None = None) -> BacktestResult:
        """Run to the end in a loop of its own: for a script, a command, a worker process."""
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(self.run(on_bar))

    async def run(self, on_bar: Callable[[BarProgress], None] | None = None) -> BacktestResult:
        """Run to the end; `on_bar` is called after everything that followed from a bar's close.

        It computes without a pause: a server runs it in a process of its own. Raises PartCrashed
        when an actor cannot handle a message, where paper trading would stop.
        """
        workshop = Workshop.of(self.plan)
        thinker = self._thinker or load_thinker(self.plan, self._clock.monotonic_ns)
        actors = [workshop.build(name, thinker) for name in NAMES]
        ledger = Ledger(
            float(workshop.settings.risk_limits.initial_capital),
            thinker.config if thinker is not None else None,
        )
        execution = workshop.settings.execution
        broker = SimulatedBroker(
            workshop.catalogue,
            SimulationSettings(
                slippage_ticks=execution.slippage_ticks, slippage_bps=execution.slippage_bps
            ),
            workshop.calendar,
        )
        latch = _OwnLatch()
        bus = MemoryBus(clock_ns=self._clock.now_ns)
        outbox = await Outbox(None).open()
        gateway = OrderGateway(
            bus,
            broker,
            outbox,
            latch,
            clock_ns=self._clock.now_ns,
            max_order_rate_per_second=execution.max_order_rate_per_second,
            block_ms=_BLOCK_MS,
        )
        serving = asyncio.create_task(gateway.run())
        try:
            desk = _OrderDesk(bus, gateway, serving)
            chain = _Chain(actors, desk, broker, ledger)
            await chain.release(self._clock.now_ns())
            stopped_by = await self._play(chain, ledger, workshop, on_bar)
            latch.close_everything()
            await chain.close_positions(self._clock.now_ns())
        finally:
            gateway.stop()
            await asyncio.wait({serving})
            await outbox.close()
        return ledger.result(self.plan, stopped_by)

    async def _play(
        self,
        chain: "_Chain",
        ledger: Ledger,
        workshop: Workshop,
        on_bar: Callable[[BarProgress], None] | None,
    ) -> StoppedBy:
        total = expected_bars(self._where.markets, self.plan, workshop)
        for event in played(self._where, self.plan):
            self._clock.advance_to(event.time_ns)
            await chain.take(event)
            for bar, decision in ledger.take_closed():
                value, trades = ledger.close_bar(bar)
                if on_bar is not None:
                    on_bar(BarProgress(ledger.bars, total, bar, decision, value, trades))
                if self._is_cancelled:
                    return "cancelled"
        return "end_of_data"


def prepare(
    files: list[Path],
    names: list[str],
    *,
    config: Path | None = None,
    timeframe: str | None = None,
    first: date | None = None,
    last: date | None = None,
    capital: float | None = None,
) -> Setting:
    """Load settings and candle files for a backtest; raise ConfigError or DataError.

    names: instrument of each file. timeframe: of the bars to decide on, by default that of the
    candles. first, last: days in the market's zone, both included. capital: instead of
    `environment.initial_capital`.
    """
    overrides: dict[str, Any] = {}
    if capital is not None:
        overrides["environment.initial_capital"] = capital
    catalogue = load_instruments(config, demo=True).catalogue
    calendar = load_sessions(config)
    markets = load_markets(files, names, catalogue)
    if timeframe is not None:
        overrides["feed.instruments"] = [market.instrument for market in markets]
        overrides["feed.timeframe"] = timeframe
    settings = load_settings(config, overrides=overrides, demo=True)
    if timeframe is not None:
        markets = as_configured(markets, settings.feed)
    return Setting(
        settings=settings,
        catalogue=catalogue,
        calendar=calendar,
        markets=within_days(markets, catalogue, calendar, first, last),
        clock=SimulatedClock(0),
    )


def expected_bars(markets: Iterable[Market], plan: SessionPlan, workshop: Workshop) -> int:
    """Count the bars that these candles will close: those of trading hours."""
    count = 0
    for market, planned in zip(markets, plan.markets, strict=True):
        exchange = workshop.catalogue[market.instrument].session
        if timeframe_minutes(planned.timeframe) == market.table.timeframe_minutes:
            bars = (
                workshop.calendar.phase(exchange, open_ns) != "closed"
                for open_ns in market.table.open_ns.tolist()
            )
            count += sum(bars)
            continue
        opens = {
            workshop.calendar.bar_open_ns(exchange, planned.timeframe, open_ns)
            for open_ns in market.table.open_ns.tolist()
            if workshop.calendar.phase(exchange, open_ns) != "closed"
        }
        count += len(opens)
    return count


class _OwnLatch:
    """The kill latch of a backtest: released, until the data ends and everything is closed."""

    def __init__(self) -> None:
        self._word = Latch(engaged=False, reason=RELEASED, operator=_SOURCE, at=1)

    async def read(self) -> Latch:
        return self._word

    def close_everything(self) -> None:
        self._word = Latch(engaged=True, reason=END_OF_DATA, operator=_SOURCE, at=2, flatten=True)


class _OrderDesk:
    """The way to the gateway and back, over a bus."""

    def __init__(self, bus: MemoryBus, gateway: OrderGateway, serving: asyncio.Task[None]) -> None:
        self._bus = bus
        self._gateway = gateway
        self._serving = serving
        self._heard = 0  # reports taken from the bus

    async def send(self, orders: list[AnyMessage]) -> None:
        publisher = await self._bus.publisher(_SOURCE, [PlaceOrder.stream])
        await publisher.publish(*orders)
        await publisher.close()

    async def reports(self) -> list[AnyMessage]:
        """Wait until the gateway is done with everything; return the reports not heard yet."""
        while not (self._gateway.is_idle() and await self._bus.is_quiet()):
            if self._serving.done():
                self._serving.result()  # raises what ended it
                raise PartCrashed("the order gateway ended before the backtest did")
            await asyncio.sleep(0)
        entries = await self._bus.entries(ExecutionReport.stream)
        fresh = entries[self._heard :]
        self._heard = len(entries)
        return [entry.envelope.message for entry in fresh]


class _Chain:
    """Hand each message to the actors that take its type, in flow order, until nothing follows."""

    def __init__(
        self,
        actors: list[Actor[Any, Any]],
        desk: _OrderDesk,
        broker: SimulatedBroker,
        ledger: Ledger,
    ) -> None:
        self._takers: dict[type[Message], list[Actor[Any, Any]]] = {}
        for actor in actors:
            for kind in actor.inputs():
                self._takers.setdefault(kind, []).append(actor)
        self._desk = desk
        self._broker = broker
        self._ledger = ledger
        self._last_ticks: dict[str, Tick] = {}

    async def release(self, now_ns: int) -> None:
        """Say that trading is allowed: risk and execution begin halted."""
        await self._follow(
            KillSwitch(engaged=False, reason=RELEASED, operator=_SOURCE, at_ns=now_ns)
        )

    async def take(self, event: MarketEvent) -> None:
        """Let everything follow from one event; the broker sees a tick first, as in paper."""
        if isinstance(event, Tick):
            self._broker.on_tick(event)
            self._last_ticks[event.instrument] = event
        await self._follow(event)

    async def close_positions(self, now_ns: int) -> None:
        """Leave everything at the last price of each instrument, with the usual slippage.

        The price goes to the broker alone: the actors see no tick that the candles do not hold.
        """
        order = KillSwitch(
            engaged=True, flatten=True, reason=END_OF_DATA, operator=_SOURCE, at_ns=now_ns
        )
        await self._follow(order)
        for tick in self._last_ticks.values():
            self._broker.on_tick(_later(tick, max(now_ns, tick.event_ns) + 1))
        await self._follow()

    async def _follow(self, *first: AnyMessage) -> None:
        waiting: deque[AnyMessage] = deque(first)
        orders: list[AnyMessage] = []
        while waiting or orders or self._broker.pending_reports:
            while waiting:
                message = waiting.popleft()
                self._ledger.note(message)
                if isinstance(message, PlaceOrder | CancelOrder | ModifyOrder):
                    orders.append(message)
                for actor in self._takers.get(type(message), ()):
                    waiting.extend(_handled(actor, message))
            if orders:
                await self._desk.send(orders)
                orders = []
                waiting.extend(await self._desk.reports())
            elif self._broker.pending_reports:
                waiting.extend(await self._desk.reports())


def _later(tick: Tick, event_ns: int) -> Tick:
    """Return the same price at another instant."""
    return Tick(
        instrument=tick.instrument,
        last_price=tick.last_price,
        event_ns=event_ns,
        origin=tick.origin,
    )


def _handled(actor: Actor[Any, Any], message: AnyMessage) -> list[AnyMessage]:
    try:
        return list(actor.handle(message))
    except Exception as error:
        # In paper trading the entry would go to the dead letters: here nothing is to be saved.
        raise PartCrashed(
            f"{actor.name} could not handle the {type(message).__name__} of {message.time_ns} ns: "
            f"{type(error).__name__}: {error}"
        ) from error
