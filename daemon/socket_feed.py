"""Socket feed: a broker's data socket as a source of market events, in the order they come."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable

from actors.messages import Tick
from daemon.clock import Clock, time_events
from daemon.tick_source import MarketEvent


class SocketFeed:
    """Hold what a socket has brought until it is published.

    A new connection begins with the last prices once more: what is known already is left out.
    `read` and `tell_time` are for parts of their own; both never return.
    """

    def __init__(self, ticks: Callable[[], AsyncIterable[Tick]]) -> None:
        self._ticks = ticks
        self._last: dict[str, Tick] = {}
        self._waiting: asyncio.Queue[MarketEvent] = asyncio.Queue()

    async def read(self) -> None:
        """Take ticks as they come."""
        async for tick in self._ticks():
            if self._last.get(tick.instrument) != tick:
                self._last[tick.instrument] = tick
                self._waiting.put_nowait(tick)

    async def tell_time(self, clock: Clock) -> None:
        """Put a TimeEvent among the ticks at each whole second."""
        async for event in time_events(clock):
            self._waiting.put_nowait(event)

    async def events(self) -> AsyncIterator[MarketEvent]:
        """Yield ticks and time, for ever."""
        while True:
            yield await self._waiting.get()

    def arrived(self) -> list[MarketEvent]:
        """Return what has come and was not taken yet."""
        return [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]
