"""Drill venue: a simulated Fyers on which things go wrong, by seed, while a session trades.

The market runs by itself, a second at a time. Faults begin with it and end before it does, so that
what they broke can be mended; then the books of the simulator, the log and the positions are laid
side by side (drill_audit.py).
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from actors.messages import TimeEvent
from daemon.brokers.fyers.account import Times
from daemon.brokers.fyers.reconnecting import SocketTimes
from daemon.brokers.fyers.rest import CallTimes
from daemon.brokers.fyers_simulator import (
    ALL_FAULTS,
    DEFAULT_START,
    FaultKind,
    FyersSimulator,
    SimulatorSettings,
)
from daemon.clock import NS_PER_SECOND, Clock
from daemon.drill_audit import Witness, audit
from daemon.errors import ConfigError
from daemon.fyers_connection import FyersConnection
from daemon.fyers_sim_venue import connected
from daemon.outbox import Outbox
from daemon.plan import SessionPlan
from daemon.session_files import StreamedMarket
from daemon.simulate_command import chosen_faults
from daemon.tick_source import MarketEvent
from daemon.venue import Announce, Books, Listener, OpenVenue, Venue
from daemon.wiring import Workshop

INSTRUMENTS: Final = ("Reliance", "TCS", "HDFC")
TIMEFRAME: Final = "1"
SETTINGS: Final = {
    # It is to trade all the time, and to wait in market seconds what it waits in real ones.
    "risk_limits.max_open_positions": len(INSTRUMENTS),
    "risk_limits.max_orders_per_minute": 480,
    "risk_limits.max_daily_loss": 1.0,
    "risk_limits.max_drawdown": 1.0,
    "risk_limits.max_decision_age_seconds": 300.0,
    "execution.order_timeout_seconds": 120.0,
    "execution.exit_retry_seconds": 30.0,
    "feed.stale_after_seconds": 120.0,
    "feed.future_tolerance_ms": 60_000,
    "bus.block_ms": 20,
}
"""What a drill changes of the settings, all named in its plan."""

LEFT_OUT: Final[tuple[FaultKind, ...]] = ("session_changed",)
"""Ends the session day, and with it the trading that is to be tried."""
KINDS: Final = tuple(kind for kind in ALL_FAULTS if kind not in LEFT_OUT)

NAMED: Final = ("lost", "duplicate_orders", "phantom_positions", "positions_equal")
"""What the summary of a drill says beside its audit; fills are added to what the bus has lost."""

SPEED: Final = 60.0  # market seconds per real second
_FAULTS_S: Final = 20 * 60  # market seconds
_CALM_S: Final = 4 * 60
_MEAN_GAP_S: Final = 12.0
_LONGEST_S: Final = 120.0  # two real seconds: longer than everything here waits
_LATENCY_S: Final = 0.5
_TIMES: Final = Times(
    call=CallTimes(answer_s=0.4, tries=3, first_delay_s=0.05),
    data=SocketTimes(
        connect_s=0.5, ping_s=0.2, silence_s=0.6, first_delay_s=0.02, longest_delay_s=0.2
    ),
    order=SocketTimes(
        connect_s=0.5, ping_s=0.2, silence_s=0.6, first_delay_s=0.02, longest_delay_s=0.2
    ),
)
_REQUEST_TIMEOUT_S: Final = 0.6
_RECONCILE_EVERY_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Drill:
    """Which faults, drawn by which seed."""

    kinds: tuple[FaultKind, ...]
    seed: int


def kinds_of(text: str) -> tuple[FaultKind, ...]:
    """Return the faults that a text names, all that a drill knows for "all"; ConfigError."""
    kinds = chosen_faults(text)
    if kinds is not None and (unfit := [kind for kind in kinds if kind in LEFT_OUT]):
        raise ConfigError(f"{', '.join(unfit)} ends the trading day: a drill goes without")
    return KINDS if kinds is None else kinds


def streamed_markets() -> list[StreamedMarket]:
    """Return what is traded: shares whose prices are drawn by seed."""
    first_open_ns = round(DEFAULT_START.timestamp()) * NS_PER_SECOND
    label = "prices of the simulator, a random walk drawn by seed (no real market data)"
    return [
        StreamedMarket(name, TIMEFRAME, label, first_open_ns=first_open_ns) for name in INSTRUMENTS
    ]


def drill_venue(plan: SessionPlan, drill: Drill, clock: Clock, folder: Path) -> OpenVenue:
    """Return what opens a market for a drill."""
    if not drill.kinds:
        raise ConfigError("a drill needs faults: --faults all, or kinds with commas between")
    settings = SimulatorSettings(
        seed=drill.seed,
        limits=None,  # they count real time
        latency_s=_LATENCY_S,
        with_derivatives=False,
        calendar=Workshop.of(plan).calendar,
    )

    @asynccontextmanager
    async def opened(outbox: Outbox, announce: Announce) -> AsyncIterator[Venue]:
        async with (
            FyersSimulator(settings) as simulator,
            connected(simulator, plan, outbox, announce, clock, folder, _TIMES) as connection,
        ):
            market = DrillMarket(simulator, connection, drill, clock)
            yield Venue(
                broker=connection.account.broker,
                events=market.events(),
                is_repeatable=False,
                parts=connection.parts,
                feeds=(*connection.feeds, Listener("drill_market", market.keep_moving)),
                conclude=market.conclude,
                request_timeout_s=_REQUEST_TIMEOUT_S,
                reconcile_every_s=_RECONCILE_EVERY_S,
            )

    return opened


class DrillMarket:
    """Move a simulator at a pace, let faults happen, and compare all books in the end."""

    def __init__(
        self, simulator: FyersSimulator, connection: FyersConnection, drill: Drill, clock: Clock
    ) -> None:
        self._simulator = simulator
        self._connection = connection
        self._drill = drill
        self._clock = clock
        self._witness = Witness(simulator.exchange)
        self._calm_ns = simulator.now_ns + _FAULTS_S * NS_PER_SECOND
        self._end_ns = self._calm_ns + _CALM_S * NS_PER_SECOND
        simulator.follow_faults(
            drill.kinds, seed=drill.seed, mean_gap_s=_MEAN_GAP_S, longest_s=_LONGEST_S
        )

    async def events(self) -> AsyncIterator[MarketEvent]:
        """Yield time and ticks as they come, up to the end of the drill."""
        async for event in self._connection.feed.events():
            yield event
            if isinstance(event, TimeEvent) and event.now_ns >= self._end_ns:
                return

    async def keep_moving(self) -> None:
        """Let a market second pass again and again."""
        while self._simulator.now_ns < self._end_ns:
            await self._clock.sleep(1 / SPEED)
            await self._simulator.advance(1)
            now_ns = self._simulator.now_ns
            if now_ns >= self._calm_ns:
                self._simulator.faults.stop()
            event = TimeEvent(now_ns=now_ns, wall_ns=self._clock.now_ns())
            await self._connection.feed.waiting.put(event)
        await asyncio.Event().wait()

    async def conclude(self, books: Books) -> dict[str, Any]:
        """Return the summary of the drill."""
        self._simulator.faults.stop()
        found = await audit(books, self._simulator, self._witness, self._connection)
        named = {name: found[name] for name in NAMED}
        return {"audit": found | {"faults": sorted(self._drill.kinds)}, **named}
