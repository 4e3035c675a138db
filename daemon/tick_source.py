"""The edge where market data comes in: ticks and time from a source onto the bus, each once.

Where they come from (candles played as ticks, a broker's socket) is the source's business.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

from actors.messages import Depth, MarketEvent, OptionChain, Tick, TimeEvent
from daemon.bus import Bus, Publisher
from daemon.errors import BusError
from daemon.handover import Handover
from daemon.logs import get_logger

__all__ = ["STREAMS", "MarketEvent", "TickSource", "until_quiet"]

_RETRY_S = 0.2
_POLL_S = 0.0005
_REMEMBERED: Final = 10_000  # more than come in the two seconds that a server may owe the disk
_MOST_AT_ONCE: Final = 64  # more together cost no less each, and the first would wait for the last

STREAMS: Final = (Tick.stream, TimeEvent.stream, OptionChain.stream, Depth.stream)


class TickSource:
    """Publish market events in order; after an outage or a restart go on where the bus stands.

    `events` yields the same events from the first one on, each time a session is begun or resumed:
    as many as the session already holds are passed over. A feed that cannot be repeated goes on
    with what comes next (`is_repeatable` False). `events` is read once, ahead of the bus by one
    batch at most, and what is waiting is published together; `run` after a crash goes on with what
    is in hand. `on_tick` sees every tick once, before it is published, also those passed over.
    With `wait_until_quiet` events are read and go out one by one, and the next one waits until
    everything has followed from the one before (lock step).
    """

    name = "tick_source"

    def __init__(
        self,
        events: AsyncIterable[MarketEvent],
        bus: Bus,
        *,
        on_tick: Callable[[Tick], None] = lambda _: None,
        is_repeatable: bool = True,
    ) -> None:
        self._is_repeatable = is_repeatable
        self._events = events
        self._bus = bus
        self._on_tick = on_tick
        self.wait_until_quiet: Callable[[], Awaitable[None]] | None = None
        self._log = get_logger(part=self.name)
        self._stopping = asyncio.Event()
        self._handover: Handover[MarketEvent] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._in_hand: Sequence[MarketEvent] = ()
        self._is_done = asyncio.Event()  # nothing is in hand: in lock step the next may be read
        self._seen = 0  # of those in hand, how many `on_tick` has had
        self._taken = 0  # events taken from the source, those in hand included
        self.finished = asyncio.Event()  # the source has no more events
        self.published = 0
        self._newest: deque[MarketEvent] = deque(maxlen=_REMEMBERED)  # on the bus, as it said
        self._confirmed = 0  # how many the bus has said to have
        self.now_ns = 0  # market time of the last event published

    def stop(self) -> None:
        """Ask `run` to return soon."""
        self._stopping.set()
        self._stop_reading()

    async def run(self) -> None:
        """Publish until the source ends or `stop`; then wait for `stop`."""
        feeding = asyncio.create_task(self._feed())
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({feeding, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # The source may be asleep until its next event: stopping does not wait for that. After
            # a crash it is read on, for the next run: a source that was cancelled has ended.
            if self._reading is not None and not feeding.done():
                self._stop_reading()
                await asyncio.wait({self._reading})
            feeding.cancel()
            stopped.cancel()
            with suppress(asyncio.CancelledError):
                await feeding

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()

    async def _feed(self) -> None:
        while not self._stopping.is_set():
            try:
                await self._serve()
            except BusError as error:
                self._log.warning("bus lost", reason=str(error), event_number=self._taken)
                await asyncio.sleep(_RETRY_S)

    async def _serve(self) -> None:
        """Publish each event exactly once, until the source ends or the bus is lost."""
        publisher = await self._bus.publisher(self.name, STREAMS)
        lost = self._confirmed - publisher.sequence
        self.published = publisher.sequence  # also what had arrived when only the answer was lost
        if not (self._is_repeatable or self._taken):
            self._taken = self.published
        try:
            if lost > 0:
                await self._publish_again(publisher, lost)
            while await self._take():
                fresh = self._in_hand[max(len(self._in_hand) - self._taken + self.published, 0) :]
                if fresh:
                    await publisher.publish(*fresh)
                    self.published = self._taken
                    self.now_ns = fresh[-1].time_ns
                    if self.wait_until_quiet:
                        await self.wait_until_quiet()
                self._newest.extend(self._in_hand)
                self._confirmed = self._taken
                self._in_hand = ()
                self._is_done.set()
            self.finished.set()
            await self._stopping.wait()
        finally:
            await publisher.close()

    async def _publish_again(self, publisher: Publisher, lost: int) -> None:
        """Repeat the last events, which a server that died had confirmed and not yet written.

        Those that are not remembered any more are gone, and do not count from now on.
        """
        again = list(self._newest)[-lost:]
        gone = lost - len(again)
        self._taken -= gone
        self._confirmed -= gone
        self._log.warning("the bus has lost its end", events=lost, gone=gone)
        for first in range(0, len(again), _MOST_AT_ONCE):
            part = again[first : first + _MOST_AT_ONCE]
            await publisher.publish(*part)
            self.published += len(part)

    async def _take(self) -> bool:
        """Have events in hand that were seen, those of before or else the next; False behind the
        last."""
        if self._handover is None:  # not before: the source may ask how many are to be passed over
            in_step = self.wait_until_quiet is not None
            self._handover = Handover(1 if in_step else _MOST_AT_ONCE)
            events = self._in_step() if in_step else self._events
            self._reading = asyncio.create_task(self._handover.read(events))
        if not self._in_hand:
            self._in_hand = await self._handover.take(_MOST_AT_ONCE)
            self._taken += len(self._in_hand)
            self._seen = 0
        for event in self._in_hand[self._seen :]:
            if isinstance(event, Tick):
                self._on_tick(event)
            self._seen += 1
        return bool(self._in_hand)

    async def _in_step(self) -> AsyncIterator[MarketEvent]:
        """Yield events; a source that moves a market must not do so before it is its turn."""
        async for event in self._events:
            self._is_done.clear()
            yield event
            await self._is_done.wait()


async def until_quiet(bus: Bus, *edges: Callable[[], bool]) -> None:
    """Return when every group has handled everything and every edge says it is idle."""
    while True:
        try:
            if all(is_idle() for is_idle in edges) and await bus.is_quiet():
                return
        except BusError:
            await asyncio.sleep(_RETRY_S)
        await asyncio.sleep(_POLL_S)
