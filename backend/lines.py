"""Ways out to a client: straight into the socket, or through somebody else's `send_text`."""

import asyncio
import socket
from asyncio.transports import BaseTransport
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from backend.hub import Ready

EXTENSION: Final = "hrm.line"
_MOST_UNSENT_BYTES: Final = 16 * 1024
"""Some seconds of ticks. Beyond that a client is slow: what lies in buffers cannot be replaced."""


def _nothing() -> None:
    """Do nothing, until somebody wants to know."""


class LineProtocol(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, which also takes ready frames: it is the Line of its own connection.

    What is written here costs one `write`: no task wakes, nothing is encoded per client (ADR 57).
    The application finds it in its scope, as the extension `hrm.line`.
    """

    on_ready: Callable[[], None] = staticmethod(_nothing)

    def connection_made(self, transport: BaseTransport) -> None:
        """Keep the buffers of the connection short, here and in the kernel."""
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(high=_MOST_UNSENT_BYTES)
        self.transport.get_extra_info("socket").setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MOST_UNSENT_BYTES
        )

    def handle_connect(self, event: Request) -> None:
        """Hand the application its line beside the usual scope."""
        super().handle_connect(event)
        if not self.close_sent:
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[EXTENSION] = self

    @property
    def is_ready(self) -> bool:
        """Whether the connection is open and its buffers have room."""
        is_open = self.handshake_complete and not (self.close_sent or self.disconnected)
        return is_open and self.writable.is_set() and not self.transport.is_closing()

    def write(self, messages: Sequence[Ready]) -> None:
        """Send frames in one piece; it may go between any two that uvicorn sends."""
        self.transport.write(b"".join([message.frame for message in messages]))

    def resume_writing(self) -> None:
        """Let what waited go on."""
        super().resume_writing()
        self.on_ready()

    def abort(self) -> None:
        """Close at once and drop what is buffered: nobody takes it."""
        self.transport.abort()


class SendingLine:
    """A line through a coroutine that sends; `run` it in a task."""

    def __init__(self, send: Callable[[str], Awaitable[None]]) -> None:
        self.on_ready: Callable[[], None] = _nothing
        self._send = send
        self._messages: Sequence[Ready] = ()
        self._wake = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether the messages before have been taken."""
        return not self._messages

    def write(self, messages: Sequence[Ready]) -> None:
        """Have the messages sent, one by one."""
        self._messages = tuple(messages)
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled; raises what sending raises."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._messages:
                for message in self._messages:
                    await self._send(message.text)
                self._messages = ()
                self.on_ready()
