"""Sockets and their queues: every frame goes to whom it concerns, and nobody waits for anybody.

A frame is made ready once and written to each socket that can take it at once. Only for a client
that does not keep up is anything queued: it gets the newest tick instead of every one; trades,
positions and answers are never left out, so one that falls too far behind is dropped.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec

from daemon.logs import get_logger

TOO_SLOW: Final = "too slow: the frames were not taken"

_encode = msgspec.json.Encoder().encode
_FINAL_TEXT: Final = 0x81
_SHORT_BELOW: Final = 126  # bytes; RFC 6455, 5.2
_LONG_BELOW: Final = 65_536


class Ready(NamedTuple):
    """A message in both forms in which a line may take it."""

    text: str
    frame: bytes  # the same as one unmasked WebSocket frame, the same for every client
    latest_of: str = ""  # a newer message of the same name replaces it while it waits


def as_text(body: object) -> str:
    """Return a message as the text that goes over the wire."""
    return _encode(body).decode()


def ready(body: object, latest_of: str = "") -> Ready:
    """Return a message that is to be sent as a JSON object."""
    payload = _encode(body)
    return Ready(payload.decode(), _frame(payload), latest_of)


def ready_text(text: str) -> Ready:
    """Return a message that is text already."""
    return Ready(text, _frame(text.encode()))


def _frame(payload: bytes) -> bytes:
    length = len(payload)
    if length < _SHORT_BELOW:
        return bytes((_FINAL_TEXT, length)) + payload
    if length < _LONG_BELOW:
        return bytes((_FINAL_TEXT, 126)) + length.to_bytes(2) + payload
    return bytes((_FINAL_TEXT, 127)) + length.to_bytes(8) + payload


class Line(Protocol):
    """The way out to one client; it calls `on_ready` when it can take frames again."""

    on_ready: Callable[[], None]

    @property
    def is_ready(self) -> bool:
        """Whether a frame would go out now, rather than lie in memory."""
        ...

    def write(self, messages: Sequence[Ready]) -> None:
        """Send in this order; never waits."""
        ...


class Patience(NamedTuple):
    """How far behind a client may fall."""

    messages: int  # that wait
    seconds: float  # without taking any of them


class SocketClient:
    """One client and what waits for it. Offering never waits, however long the client takes."""

    def __init__(
        self,
        user_id: str,
        line: Line,
        *,
        patience: Patience,
        monotonic_s: Callable[[], float],
        on_end: Callable[[], object],
    ) -> None:
        """`on_end` is called once, when the socket has to be closed."""
        self.user_id = user_id
        self._line = line
        self._patience = patience
        self._monotonic_s = monotonic_s
        self._on_end = on_end
        self._waiting: deque[list[Ready]] = deque()  # each a cell, so that it can be replaced
        self._cells: dict[str, list[Ready]] = {}  # messages that a newer one may replace
        self._waits_since_s = 0.0  # when a message was last taken while others waited
        self.end_reason = ""  # why the socket has to be closed; "" while it has not
        self.replaced = 0
        line.on_ready = self._flush

    def offer(self, *messages: Ready) -> None:
        """Send all at once, or queue them behind what waits."""
        if self.end_reason:
            return
        if not self._waiting and self._line.is_ready:
            self._line.write(messages)
            return
        for message in messages:
            self._queue(message)

    def _queue(self, message: Ready) -> None:
        now_s = self._monotonic_s()
        if not self._waiting:
            self._waits_since_s = now_s
        if now_s >= self._waits_since_s + self._patience.seconds:
            self.end(TOO_SLOW)
        if self.end_reason:
            return
        name = message.latest_of
        cell = self._cells.get(name) if name else None
        if cell is not None:
            cell[0] = message
            self.replaced += 1
            return
        if len(self._waiting) >= self._patience.messages:
            self.end(TOO_SLOW)
            return
        cell = [message]
        self._waiting.append(cell)
        if name:
            self._cells[name] = cell
        else:
            # What comes later must not overtake this one by slipping into an older cell.
            self._cells.clear()

    def end(self, reason: str) -> None:
        """Have the socket closed; what waits is dropped."""
        if not self.end_reason:
            self.end_reason = reason
            self._waiting.clear()
            self._on_end()

    def _flush(self) -> None:
        while self._waiting and self._line.is_ready:
            cell = self._waiting.popleft()
            if self._cells:
                self._cells = {k: v for k, v in self._cells.items() if v is not cell}
            self._line.write(cell)
            self._waits_since_s = self._monotonic_s()


class Hub:
    """All sockets, by user. Use from one event loop."""

    def __init__(self, most_per_user: int) -> None:
        self._most_per_user = most_per_user
        self._clients: dict[str, list[SocketClient]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._clients.values()))

    @property
    def users(self) -> tuple[str, ...]:
        """Users with a socket."""
        return tuple(self._clients)

    def attach(self, client: SocketClient) -> None:
        """Add a socket; one too many of a user closes his oldest."""
        mine = self._clients.setdefault(client.user_id, [])
        mine.append(client)
        while len(mine) > self._most_per_user:
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

    def send(self, user_id: str, *messages: Ready) -> None:
        """Offer messages to every socket of a user."""
        for client in tuple(self._clients.get(user_id, ())):
            client.offer(*messages)

    def end_all(self, reason: str) -> None:
        """Have every socket closed."""
        for clients in tuple(self._clients.values()):
            for client in tuple(clients):
                client.end(reason)
