"""The edge where market data comes in: ticks and time from a source onto the bus, each once.

Where they come from (candles played as ticks, a broker's socket) is the source's business.
"""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import suppress

from actors.messages import Tick, TimeEvent
from daemon.bus import Bus
from daemon.errors import BusError, PartCrashed
from daemon.logs import get_logger

_RETRY_S = 0.2
_POLL_S = 0.0005

MarketEvent = Tick | TimeEvent


class TickSource:
    """Publish market events in order; after an outage or a restart go on where the bus stands.

    `events` yields the same events from the first one on, each time a session is begun or resumed:
    as many as the session already holds are passed over. It is read once; `run` after a crash goes
    on with the event in hand. `on_tick` sees every tick before it is published, also those passed
    over. With `wait_until_quiet` the next event waits until everything
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
        self._events = aiter(events)
        self._bus = bus
        self._on_tick = on_tick
        self.wait_until_quiet: Callable[[], Awaitable[None]] | None = None
        self._log = get_logger(part=self.name)
        self._stopping = asyncio.Event()
        self._in_hand: MarketEvent | None = None
        self._taken = 0  # events taken from the source, the one in hand included
        self._has_failed = False
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
        while not self._stopping.is_set():
            try:
                await self._serve()
            except BusError as error:
                self._log.warning("bus lost", reason=str(error), event_number=self._taken)
                await asyncio.sleep(_RETRY_S)

    async def _serve(self) -> None:
        """Publish each event exactly once, until the source ends or the bus is lost."""
        publisher = await self._bus.publisher(self.name, [Tick.stream, TimeEvent.stream])
        self.published = publisher.sequence  # also what had arrived when only the answer was lost
        try:
            while event := await self._next():
                if isinstance(event, Tick):
                    self._on_tick(event)
                if self._taken > self.published:
                    await publisher.publish(event)
                    self.published = self._taken
                    self.now_ns = event.time_ns
                    if self.wait_until_quiet:
                        await self.wait_until_quiet()
                self._in_hand = None
            self.finished.set()
            await self._stopping.wait()
        finally:
            await publisher.close()

    async def _next(self) -> MarketEvent | None:
        """Return the event in hand, or else the next one; None behind the last."""
        if self._in_hand is None:
            if self._has_failed:
                raise PartCrashed("the market source has failed and cannot be read further")
            try:
                self._in_hand = await anext(self._events)
            except StopAsyncIteration:
                return None
            except Exception:
                self._has_failed = True  # asked again it would say that it has ended
                raise
            self._taken += 1
        return self._in_hand


async def until_quiet(bus: Bus, *edges: Callable[[], bool]) -> None:
    """Return when every group has handled everything and every edge says it is idle."""
    while True:
        try:
            if all(is_idle() for is_idle in edges) and await bus.is_quiet():
                return
        except BusError:
            await asyncio.sleep(_RETRY_S)
        await asyncio.sleep(_POLL_S)
