"""Socket feed: a broker's data socket as a source of market events, in the order they come."""

from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Final

from actors.messages import Alert, Tick, TimeEvent
from daemon.clock import NS_PER_SECOND, Clock, time_events
from daemon.conflation import Conflation
from daemon.tick_source import MarketEvent

_AT_ONCE: Final = 64


class SocketFeed:
    """Hold what a socket has brought until it is published, as far as `waiting` allows.

    A new connection begins with the last prices once more: what is known already is left out.
    `read` and `tell_time` are for parts of their own; both never return.
    """

    def __init__(
        self,
        ticks: Callable[[], AsyncIterable[Tick]],
        clock: Clock,
        on_alert: Callable[[Alert], None],
    ) -> None:
        """`on_alert` hears when the bus does not keep up."""
        self._ticks = ticks
        self._last: dict[str, Tick] = {}
        self.waiting = Conflation(clock, on_alert=on_alert)

    async def read(self) -> None:
        """Take ticks as they come."""
        async for tick in self._ticks():
            if self._last.get(tick.instrument) != tick:
                self._last[tick.instrument] = tick
                await self.waiting.put(tick)

    async def put(self, event: MarketEvent) -> None:
        """Put something else among the ticks."""
        await self.waiting.put(event)

    async def tell_time(self, clock: Clock) -> None:
        """Put a TimeEvent among the ticks now, and at each whole second."""
        wall_ns = clock.now_ns()
        # Before the first tick: after a restart the actors still have the time of before.
        whole_ns = wall_ns // NS_PER_SECOND * NS_PER_SECOND
        await self.waiting.put(TimeEvent(now_ns=whole_ns, wall_ns=wall_ns))
        async for event in time_events(clock):
            await self.waiting.put(event)

    async def events(self) -> AsyncIterator[MarketEvent]:
        """Yield ticks and time, for ever."""
        while events := await self.waiting.take(_AT_ONCE):
            for event in events:
                yield event

    def arrived(self) -> list[MarketEvent]:
        """Return what has come and was not taken yet."""
        return self.waiting.drain(len(self.waiting))
