"""Sockets and their queues: every frame goes to whom it concerns, and nobody waits for anybody.

A client that does not keep up gets the newest tick instead of every one; trades, positions and
answers are never left out, so one that falls too far behind is dropped.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from daemon.logs import get_logger

MOST_SOCKETS: Final = 3  # of one user
MOST_WAITING: Final = 256  # frames
SEND_LIMIT_S: Final = 10.0

_encode = msgspec.json.Encoder().encode


def as_text(body: object) -> str:
    """Return a frame as the text that goes over the wire."""
    return _encode(body).decode()


class SocketClient:
    """One socket's queue. `send` may take as long as the client takes; offering never does."""

    def __init__(self, user_id: str, send: Callable[[str], Awaitable[None]]) -> None:
        self.user_id = user_id
        self._send = send
        self._waiting: deque[list[str]] = deque()  # each a cell, so that its text can be replaced
        self._cells: dict[str, list[str]] = {}  # frames that a newer one may replace
        self._wake = asyncio.Event()
        self._end_reason = ""
        self.replaced = 0

    @property
    def end_reason(self) -> str:
        """Why the socket has to be closed; "" while it has not."""
        return self._end_reason

    def offer(self, text: str, latest_of: str = "") -> None:
        """Queue a frame; one with a name replaces an older one of that name still waiting."""
        cell = self._cells.get(latest_of) if latest_of else None
        if cell is not None:
            cell[0] = text
            self.replaced += 1
            return
        if len(self._waiting) >= MOST_WAITING:
            self.end("too slow: the frames were not taken")
            return
        cell = [text]
        self._waiting.append(cell)
        if latest_of:
            self._cells[latest_of] = cell
        else:
            # What comes later must not overtake this frame by slipping into an older cell.
            self._cells.clear()
        self._wake.set()

    def end(self, reason: str) -> None:
        """Have the socket closed; what waits is dropped."""
        self._end_reason = self._end_reason or reason
        self._wake.set()

    async def pump(self) -> None:
        """Send what is queued until the end; raises TimeoutError where a client takes nothing."""
        while not self._end_reason:
            while self._waiting and not self._end_reason:
                cell = self._waiting.popleft()
                if self._cells:
                    self._cells = {k: v for k, v in self._cells.items() if v is not cell}
                async with asyncio.timeout(SEND_LIMIT_S):
                    await self._send(cell[0])
            self._wake.clear()
            if not self._waiting and not self._end_reason:
                await self._wake.wait()


class Hub:
    """All sockets, by user. Use from one event loop."""

    def __init__(self) -> None:
        self._clients: dict[str, list[SocketClient]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    @property
    def users(self) -> tuple[str, ...]:
        """Users with a socket."""
        return tuple(self._clients)

    def attach(self, client: SocketClient) -> None:
        """Add a socket; a user's fourth closes his oldest."""
        mine = self._clients.setdefault(client.user_id, [])
        mine.append(client)
        while len(mine) > MOST_SOCKETS:
            mine.pop(0).end("a newer socket took its place")

    def detach(self, client: SocketClient) -> None:
        """Forget a socket; harmless when it is gone."""
        mine = self._clients.get(client.user_id, [])
        if client in mine:
            mine.remove(client)
        if not mine:
            self._clients.pop(client.user_id, None)
        if client.end_reason:
            get_logger(part="hub").info("socket ended", reason=client.end_reason)

    def send(self, user_id: str, text: str, latest_of: str = "") -> None:
        """Offer a frame to every socket of a user."""
        for client in tuple(self._clients.get(user_id, ())):
            client.offer(text, latest_of)

    def end_all(self, reason: str) -> None:
        """Have every socket closed."""
        for clients in tuple(self._clients.values()):
            for client in tuple(clients):
                client.end(reason)
