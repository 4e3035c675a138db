"""The hand-over between whoever reads a source and whoever publishes: bounded, never blocking.

What may be left out where a source cannot be held up is for conflation.py to say.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterable
from typing import Generic, TypeVar

from daemon.errors import PartCrashed

Event = TypeVar("Event")


class Handover(Generic[Event]):
    """Keep events in order between readers and one taker; a reader waits while it is full.

    `most` is how many may wait. Use from one event loop.
    """

    def __init__(self, most: int) -> None:
        if most < 1:
            raise ValueError(f"most must be at least 1, was {most}")
        self._most = most
        self._waiting: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._is_over = False
        self._failure: Exception | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    async def read(self, events: AsyncIterable[Event]) -> None:
        """Read `events` to their end; what they raise is raised to the taker, behind the others."""
        try:
            async for event in events:
                await self.put(event)
            self._is_over = True
        except Exception as error:  # noqa: BLE001 - the taker raises it
            self._failure = error
        self._arrived.set()

    async def put(self, event: Event) -> None:
        """Add an event; return when there is room for the next one."""
        self._add(event)
        self._arrived.set()
        while len(self._waiting) >= self._most:
            self._hold()
            self._room.clear()
            await self._room.wait()

    async def take(self, most: int) -> list[Event]:
        """Return up to `most` that wait, at least one; [] when there will be no more.

        Raises what the source has raised, and PartCrashed when asked again: a source that failed is
        not one at its end.
        """
        while not self._waiting:
            if self._failure is not None:
                raise self._told()
            if self._is_over:
                return []
            self._arrived.clear()
            await self._arrived.wait()
        return self.drain(most)

    def drain(self, most: int) -> list[Event]:
        """Return up to `most` that wait now, perhaps none."""
        taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        self._room.set()
        return taken

    def _add(self, event: Event) -> None:
        self._waiting.append(event)

    def _hold(self) -> None:
        """Note that the reader has to wait."""

    def _told(self) -> Exception:
        failure = self._failure
        assert failure is not None
        self._failure = PartCrashed("the market source has failed and cannot be read further")
        return failure
