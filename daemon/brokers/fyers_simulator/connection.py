"""One WebSocket connection of the simulator, and the ways in which it can go bad.

Frames wait in a queue for the connection's own writer, so that a client that does not read holds
up nobody else; one that lets too many pile up is cut off. Half-open means what it says: bytes are
neither read nor written, pings are not answered, and the connection still counts as open here
until the fault is over.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final, Literal, NamedTuple, Self

from aiohttp import WSMessage, WSMsgType, web

from daemon.brokers.fyers_simulator.faults import FaultKind, Faults

_LARGEST_REQUEST: Final = 1 << 20
_MOST_WAITING: Final = 50_000  # frames
_LAST_FRAMES_S: Final = 1.0  # for what waits when the connection is to end


class _Close(NamedTuple):
    code: int
    reason: str


class Connection:
    """A socket that sends unless it has been made half-open."""

    def __init__(
        self,
        request: web.Request,
        socket: web.WebSocketResponse,
        faults: Faults,
        name: Literal["data", "order"],
    ) -> None:
        self.socket = socket
        self._request = request
        self._faults = faults
        self._half_open: FaultKind = "data_half_open" if name == "data" else "order_half_open"
        self._is_half_open = False
        self.sent = 0  # frames handed to the writer
        self._waiting: asyncio.Queue[bytes | str | _Close] = asyncio.Queue(_MOST_WAITING)
        self._writer = asyncio.create_task(self._write(), name=f"simulated {name} socket")

    @classmethod
    async def accept(
        cls, request: web.Request, faults: Faults, name: Literal["data", "order"]
    ) -> Self:
        """Answer the upgrade."""
        socket = web.WebSocketResponse(max_msg_size=_LARGEST_REQUEST, timeout=_LAST_FRAMES_S)
        await socket.prepare(request)
        return cls(request, socket, faults, name)

    async def messages(self) -> AsyncIterator[WSMessage]:
        """Yield what the client sends until the connection ends."""
        async for message in self.socket:
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                yield message

    def send(self, frame: bytes | str) -> None:
        """Send a frame; a connection that is gone or half-open swallows it."""
        self._check_half_open()
        if self._is_half_open or self._writer.done():
            return
        try:
            self._waiting.put_nowait(frame)
            self.sent += 1
        except asyncio.QueueFull:
            self.abort()

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close in order once what waits has been sent."""
        if not self._writer.done():
            with contextlib.suppress(asyncio.QueueFull):
                self._waiting.put_nowait(_Close(code, reason))

    async def finish(self) -> None:
        """Let the writer end: after a close that was asked for, or at once."""
        if not self._waiting.empty() and not self.socket.closed:
            await asyncio.wait([self._writer], timeout=_LAST_FRAMES_S)
        self._writer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._writer

    def abort_within(self, frame: bytes | str) -> None:
        """Write half of a frame, then reset the TCP connection."""
        transport = self._request.transport
        if not isinstance(transport, asyncio.Transport):
            return
        payload = frame.encode() if isinstance(frame, str) else frame
        opcode = 0x81 if isinstance(frame, str) else 0x82
        head = bytes([opcode, 126]) + len(payload).to_bytes(2)
        transport.write(head + payload[: len(payload) // 2])
        transport.abort()

    def abort(self) -> None:
        """Cut the TCP connection."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def _write(self) -> None:
        while True:
            frame = await self._waiting.get()
            try:
                if isinstance(frame, _Close):
                    await self.socket.close(code=frame.code, message=frame.reason.encode())
                    return
                if isinstance(frame, str):
                    await self.socket.send_str(frame)
                else:
                    await self.socket.send_bytes(frame)
            except ConnectionError:
                return  # the client is gone: whoever reads notices

    def _check_half_open(self) -> None:
        if self._is_half_open:
            return
        fault = self._faults.take(self._half_open)
        if fault is None:
            return
        self._is_half_open = True
        transport = self._request.transport
        if isinstance(transport, asyncio.Transport):
            transport.pause_reading()
        self._faults.later(fault.seconds, self.abort)  # then the server notices that it is dead
