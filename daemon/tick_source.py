"""The edge where market data comes in: ticks and time from a source onto the bus, each once.

Where they come from (candles played as ticks, a broker's socket) is the source's business.
"""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import suppress

from actors.messages import Tick, TimeEvent
from daemon.bus import Bus, Publisher
from daemon.errors import BusError
from daemon.logs import get_logger

_RETRY_S = 0.2
_POLL_S = 0.0005

MarketEvent = Tick | TimeEvent


class TickSource:
    """Publish market events in order; after an outage or a restart go on where the bus stands.

    `events` yields the same events from the first one on, each time a session is begun or resumed:
    as many as the session already holds are passed over. `on_tick` sees every tick before it is
    published, also those passed over. With `wait_until_quiet` the next event waits until everything
    has followed from the one before (lock step).
    """

    name = "tick_source"

    def __init__(
        self,
        events: AsyncIterable[MarketEvent],
        bus: Bus,
        *,
        on_tick: Callable[[Tick], None] = lambda _: None,
    ) -> None:
        self._events = events
        self._bus = bus
        self._on_tick = on_tick
        self.wait_until_quiet: Callable[[], Awaitable[None]] | None = None
        self._stopping = asyncio.Event()
        self.finished = asyncio.Event()  # the source has no more events
        self.published = 0
        self.now_ns = 0  # market time of the last event

    def stop(self) -> None:
        """Ask `run` to return soon."""
        self._stopping.set()

    async def run(self) -> None:
        """Publish until the source ends or `stop`; then wait for `stop`."""
        feeding = asyncio.create_task(self._feed())
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({feeding, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # The source may be asleep until its next event: stopping does not wait for that.
            feeding.cancel()
            stopped.cancel()
            with suppress(asyncio.CancelledError):
                await feeding

    async def _feed(self) -> None:
        publisher = await self._open()
        number = 0
        try:
            async for event in self._events:
                number += 1
                if isinstance(event, Tick):
                    self._on_tick(event)
                if number > self.published:
                    publisher = await self._publish(publisher, event, number)
                    self.now_ns = event.time_ns
                    if self.wait_until_quiet:
                        await self.wait_until_quiet()
            self.finished.set()
            await self._stopping.wait()
        finally:
            await publisher.close()

    async def _publish(self, publisher: Publisher, event: MarketEvent, number: int) -> Publisher:
        """Publish event `number` exactly once, through as many outages as there are."""
        while True:
            try:
                await publisher.publish(event)
            except BusError as error:
                get_logger(part=self.name).warning(
                    "bus lost", reason=str(error), event_number=number
                )
                await publisher.close()
                await asyncio.sleep(_RETRY_S)
                publisher = await self._open()
                if self.published >= number:
                    return publisher  # it had arrived, only the answer was lost
            else:
                self.published = number
                return publisher

    async def _open(self) -> Publisher:
        while True:
            try:
                publisher = await self._bus.publisher(self.name, [Tick.stream, TimeEvent.stream])
            except BusError as error:
                get_logger(part=self.name).warning("bus lost", reason=str(error))
                await asyncio.sleep(_RETRY_S)
            else:
                self.published = publisher.sequence
                return publisher


async def until_quiet(bus: Bus, *edges: Callable[[], bool]) -> None:
    """Return when every group has handled everything and every edge says it is idle."""
    while True:
        try:
            if all(is_idle() for is_idle in edges) and await bus.is_quiet():
                return
        except BusError:
            await asyncio.sleep(_RETRY_S)
        await asyncio.sleep(_POLL_S)
