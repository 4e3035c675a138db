"""python -m benchmarks.socket_clients PORT PATH: many WebSocket clients that cost next to nothing.

Reads one cookie a line from stdin, opens a socket with each, and prints `open`. From then on it
only notes when ticks arrive, by the clock of the machine, right after the read that brought them.
When stdin ends it prints one JSON object: when each tick came (`arrivals`: time_iso -> list of
nanoseconds, one per socket), frames in all, and sockets that the server closed.

One process and one epoll loop over blocking-free sockets, so that what it measures is the server
and the machine, not a client library. It answers pings, as a browser does.
"""

import argparse
import json
import select
import socket
import sys
import time
from array import array
from typing import Final

from backend.priority import give_way

NICENESS: Final = 10  # browsers would be on other machines: the daemon goes first
_READ_BYTES: Final = 1 << 16
_TICK: Final = b'{"type":"tick"'
_TIME: Final = b'"time_iso":"'
_TIME_LENGTH: Final = 26
_TEXT, _CLOSE, _PING = 1, 8, 9
_PONG_HEAD: Final = bytes((0x8A, 0x80))  # final, pong, masked, to be followed by length and key
_HANDSHAKE_S: Final = 20.0


class Clients:
    """All sockets of this process."""

    def __init__(self, port: int, path: str, cookies: list[str]) -> None:
        self._poll = select.epoll()
        self._rest: dict[int, bytes] = {}
        self._sockets: dict[int, socket.socket] = {}
        for cookie in cookies:
            opened, rest = _open(port, path, cookie)
            self._sockets[opened.fileno()] = opened
            self._rest[opened.fileno()] = rest
            self._poll.register(opened, select.EPOLLIN)
        self.arrivals: dict[bytes, array[int]] = {}
        self.frames = 0
        self.lost = 0

    def run(self, until_readable: int) -> None:
        """Take frames until there is something to read, or an end, at another descriptor."""
        self._poll.register(until_readable, select.EPOLLIN | select.EPOLLHUP)
        while True:
            for number, _ in self._poll.poll():
                if number == until_readable:
                    return
                self._take(number)

    def _take(self, number: int) -> None:
        try:
            data = self._sockets[number].recv(_READ_BYTES)
        except ConnectionError:
            data = b""
        now_ns = time.time_ns()
        if not data:
            self._lose(number)
            return
        self._rest[number] = self._frames(number, self._rest[number] + data, now_ns)

    def _frames(self, number: int, data: bytes, now_ns: int) -> bytes:
        """Take the whole frames at the front; return what is left."""
        at = 0
        while len(data) >= at + 4:
            length, begin = data[at + 1], at + 2
            if length == 126:
                length, begin = int.from_bytes(data[at + 2 : at + 4]), at + 4
            elif length == 127:
                length, begin = int.from_bytes(data[at + 2 : at + 10]), at + 10
            if len(data) < begin + length:
                break
            self._frame(number, data[at] & 15, data[begin : begin + length], now_ns)
            at = begin + length
        return data[at:]

    def _frame(self, number: int, kind: int, payload: bytes, now_ns: int) -> None:
        self.frames += 1
        if kind == _TEXT and payload.startswith(_TICK):
            begin = payload.index(_TIME) + len(_TIME)
            key = payload[begin : begin + _TIME_LENGTH]
            self.arrivals.setdefault(key, array("q")).append(now_ns)
        elif kind == _PING:
            head = bytes((_PONG_HEAD[0], _PONG_HEAD[1] | len(payload)))
            self._sockets[number].send(head + bytes(4) + payload)  # a key of zeros changes nothing
        elif kind == _CLOSE:
            self._lose(number)

    def _lose(self, number: int) -> None:
        if number in self._sockets:
            self.lost += 1
            self._poll.unregister(number)
            self._sockets.pop(number).close()


def _open(port: int, path: str, cookie: str) -> tuple[socket.socket, bytes]:
    """Return a socket after its handshake, and what came with the answer."""
    opened = socket.create_connection(("127.0.0.1", port), _HANDSHAKE_S)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    lines = (
        f"GET {path} HTTP/1.1",
        f"Host: localhost:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
        "Sec-WebSocket-Version: 13",
        f"Cookie: {cookie}",
    )
    opened.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = opened.recv(_READ_BYTES)
        if not data:
            raise SystemExit(f"no answer to the handshake: {answer!r}")
        answer += data
    head, _, rest = answer.partition(b"\r\n\r\n")
    if b" 101 " not in head[:16]:
        raise SystemExit(f"the handshake was refused: {head[:200]!r}")
    return opened, rest


def main() -> None:
    """Open the sockets, take frames until stdin ends, tell what came."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    arguments = parser.parse_args()
    give_way(NICENESS)
    cookies = []
    while cookie := sys.stdin.readline().strip():
        cookies.append(cookie)
    clients = Clients(arguments.port, arguments.path, cookies)
    print("open", flush=True)
    clients.run(sys.stdin.fileno())
    answer = {
        "arrivals": {key.decode(): list(times) for key, times in clients.arrivals.items()},
        "frames": clients.frames,
        "lost": clients.lost,
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
