"""A writer of the shared streams (alerts, control) for parts that speak seldom, from any task."""

import asyncio
from collections.abc import Sequence

from actors.messages import AnyMessage
from daemon.bus import Bus, Publisher
from daemon.errors import BusError


class Announcer:
    """Publish to shared streams; connects when something is to be said, and again after errors."""

    def __init__(self, bus: Bus, source: str, streams: Sequence[str]) -> None:
        self._bus = bus
        self._source = source
        self._streams = tuple(streams)
        self._publisher: Publisher | None = None
        self._lock = asyncio.Lock()

    async def publish(self, *messages: AnyMessage) -> list[str]:
        """Publish in order; raises BusError when the server cannot be reached."""
        async with self._lock:
            if self._publisher is None:
                self._publisher = await self._bus.publisher(self._source, self._streams)
            try:
                return await self._publisher.publish(*messages)
            except (BusError, asyncio.CancelledError):
                await self._close()
                raise

    async def close(self) -> None:
        """Close the connection, if there is one."""
        async with self._lock:
            await self._close()

    async def _close(self) -> None:
        if self._publisher is not None:
            await self._publisher.close()
            self._publisher = None
