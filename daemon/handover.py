"""The hand-over between whoever reads a source and whoever publishes: bounded, never blocking."""

import asyncio
from collections import deque
from collections.abc import AsyncIterable
from typing import Generic, TypeVar

from daemon.errors import PartCrashed

Event = TypeVar("Event")


class Handover(Generic[Event]):
    """Keep events in order between one reader and one taker; the reader waits while it is full.

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
                self._waiting.append(event)
                self._arrived.set()
                while len(self._waiting) >= self._most:
                    self._room.clear()
                    await self._room.wait()
            self._is_over = True
        except Exception as error:  # noqa: BLE001 - the taker raises it
            self._failure = error
        self._arrived.set()

    async def take(self) -> list[Event]:
        """Return all that waits, at least one event; [] when there will be no more.

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
        taken = list(self._waiting)
        self._waiting.clear()
        self._room.set()
        return taken

    def _told(self) -> Exception:
        failure = self._failure
        assert failure is not None
        self._failure = PartCrashed("the market source has failed and cannot be read further")
        return failure
