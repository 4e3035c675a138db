"""python -m benchmarks.broadcast_floor URL PREFIX: the least that any fan-out of ticks costs.

Serves WebSockets on a free port, which it prints. It takes ticks off the bus as the backend does,
and writes one ready frame of a tick's size to every socket: no users, no sessions, no queues, no
other messages. What the backend's sockets need beyond this is the backend's own.
"""

import argparse
import asyncio
import base64
import hashlib
import json
from typing import Final, cast

import uvloop

from actors.messages import Tick
from backend.priority import give_way
from backend.responses import iso_local
from daemon.redis_tail import RedisTail

NICENESS: Final = 10  # that of the backend
_KEY_SUFFIX: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Listener(asyncio.Protocol):
    """A socket that takes its handshake and then only listens."""

    def __init__(self, listeners: set[asyncio.Transport]) -> None:
        self._listeners = listeners
        self._request = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        if self._transport in self._listeners:
            return
        self._request += data
        if b"\r\n\r\n" not in self._request:
            return
        lines = self._request.split(b"\r\n")
        key = next(x.partition(b": ")[2] for x in lines if x.startswith(b"Sec-WebSocket-Key"))
        accepted = base64.b64encode(hashlib.sha1(key + _KEY_SUFFIX).digest())  # RFC 6455
        self._transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accepted + b"\r\n\r\n"
        )
        self._listeners.add(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._listeners.discard(self._transport)


def frame_of(tick: Tick) -> bytes:
    """Return a frame of the size of the backend's ticks."""
    data = {
        "symbol": tick.instrument,
        "price": float(tick.last_price),
        "volume": float(tick.volume_today),
        "timestamp": str(tick.event_ns // 1_000_000_000),
        "time_iso": iso_local(tick.event_ns),
        **{name: float(tick.last_price) for name in ("bid", "ask", "high", "low", "open")},
    }
    body = json.dumps({"type": "tick", "data": data}, separators=(",", ":")).encode()
    return bytes((0x81, 126)) + len(body).to_bytes(2) + body


async def serve(url: str, prefix: str) -> None:
    """Serve until killed."""
    listeners: set[asyncio.Transport] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Listener(listeners), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    tail = await RedisTail.open(url, prefix, [Tick.stream])
    while True:
        for entry in await tail.read(500, 200):
            tick = entry.envelope.message
            if isinstance(tick, Tick):
                frame = frame_of(tick)
                for listener in listeners:
                    listener.write(frame)


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("prefix")
    arguments = parser.parse_args()
    give_way(NICENESS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(arguments.url, arguments.prefix))


if __name__ == "__main__":
    main()
