"""Paper venue: candles played as the market, and an account in memory that fills from them."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import islice
from typing import Literal

from daemon.brokers.simulated import SimulatedBroker, SimulationSettings
from daemon.candle_path import paced
from daemon.clock import Clock
from daemon.outbox import Outbox
from daemon.plan import SessionPlan
from daemon.tick_source import MarketEvent
from daemon.venue import Announce, OpenVenue, Venue
from daemon.wiring import Workshop

_EVENTS_AT_ONCE = 256


def paper_venue(plan: SessionPlan, events: AsyncIterable[MarketEvent]) -> OpenVenue:
    """Return what opens an account that fills from these events."""
    workshop = Workshop.of(plan)
    execution = workshop.settings.execution

    @asynccontextmanager
    async def opened(outbox: Outbox, _announce: Announce) -> AsyncIterator[Venue]:
        broker = SimulatedBroker(
            workshop.catalogue,
            SimulationSettings(
                slippage_ticks=execution.slippage_ticks, slippage_bps=execution.slippage_bps
            ),
            workshop.calendar,
            # It lives in memory: after a restart it begins with what was filled before.
            (await outbox.ledger()).positions,
        )
        yield Venue(broker=broker, events=events, is_repeatable=True, on_tick=broker.on_tick)

    return opened


async def replayed(
    events: Iterable[MarketEvent],
    speed: float | Literal["max"],
    published: Callable[[], int],
    clock: Clock,
    *,
    bar_ns: int,
) -> AsyncIterator[MarketEvent]:
    """Yield events at a pace; what the session already holds at once."""
    events = iter(events)
    # Asked when the first event is wanted: by then the tick source knows where the bus stands.
    for number, event in enumerate(islice(events, published())):
        yield event
        if number % _EVENTS_AT_ONCE == 0:
            await asyncio.sleep(0)
    async for event in paced(events, speed, clock.sleep, clock.monotonic_ns, bar_ns=bar_ns):
        yield event
        await asyncio.sleep(0)
