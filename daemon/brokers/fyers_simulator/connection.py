"""One WebSocket connection of the simulator, and the ways in which it can go bad.

Half-open means what it says: bytes are neither read nor written, pings are not answered, and the
connection still counts as open here until the fault is over.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final, Literal

from aiohttp import WSMessage, WSMsgType, web

from daemon.brokers.fyers_simulator.faults import Fault, FaultKind, Faults

_LARGEST_REQUEST: Final = 1 << 20
_POLL_S: Final = 0.01


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
        self._half_open_left: Fault | None = None

    @classmethod
    async def accept(
        cls, request: web.Request, faults: Faults, name: Literal["data", "order"]
    ) -> "Connection":
        """Answer the upgrade."""
        socket = web.WebSocketResponse(max_msg_size=_LARGEST_REQUEST, timeout=1.0)
        await socket.prepare(request)
        return cls(request, socket, faults, name)

    @property
    def is_half_open(self) -> bool:
        return self._half_open_left is not None

    async def messages(self) -> AsyncIterator[WSMessage]:
        """Yield what the client sends until the connection ends."""
        async for message in self.socket:
            if message.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                yield message

    async def send(self, frame: bytes | str) -> None:
        """Send a frame; a connection that is gone or half-open swallows it."""
        self._check_half_open()
        if self.is_half_open or self.socket.closed:
            return
        try:
            if isinstance(frame, str):
                await self.socket.send_str(frame)
            else:
                await self.socket.send_bytes(frame)
        except ConnectionError:
            return

    def abort_within(self, frame: bytes | str) -> None:
        """Write half of a frame, then reset the TCP connection."""
        transport = self._request.transport
        if transport is None:
            return
        payload = frame.encode() if isinstance(frame, str) else frame
        opcode = 0x81 if isinstance(frame, str) else 0x82
        head = bytes([opcode, 126]) + len(payload).to_bytes(2)
        if isinstance(transport, asyncio.Transport):
            transport.write(head + payload[: len(payload) // 2])
            transport.abort()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close in order, without waiting long for the other side."""
        await self.socket.close(code=code, message=reason.encode())

    def _check_half_open(self) -> None:
        if self.is_half_open:
            return
        fault = self._faults.take(self._half_open)
        if fault is None:
            return
        self._half_open_left = fault
        transport = self._request.transport
        if isinstance(transport, asyncio.Transport):
            transport.pause_reading()
        self._faults.later(fault.seconds, self.abort)  # then the server notices that it is dead

    def abort(self) -> None:
        """Cut the TCP connection."""
        if self._request.transport is not None:
            self._request.transport.abort()
