"""The order socket: pushes order, trade and position events of the whole account as JSON text.

It replays nothing. The token is checked at the upgrade.
"""

import asyncio
import json
from typing import Any, Final

from aiohttp import WSMsgType, web

from daemon.brokers.fyers_simulator.connection import Connection
from daemon.brokers.fyers_simulator.faults import Faults, FaultyStream
from daemon.brokers.fyers_simulator.login import LoginDesk
from daemon.brokers.fyers_simulator.matching import EventKind
from daemon.brokers.fyers_simulator.orders import Refusal

KINDS: Final = ("orders", "trades", "positions", "edis", "pricealerts", "login")


class OrderSocket:
    """Serve the events of one exchange."""

    def __init__(self, desk: LoginDesk, faults: Faults) -> None:
        self._desk = desk
        self._faults = faults
        self._open: list[_Client] = []
        self._lost_events = 0

    @property
    def connections(self) -> int:
        return len(self._open)

    @property
    def sent(self) -> int:
        """Frames sent on the connections that are open."""
        return sum(client.connection.sent for client in self._open)

    @property
    def subscriptions(self) -> int:
        """Connections that have asked for events."""
        return sum(client.is_subscribed for client in self._open)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one connection until it ends."""
        if (slow := self._faults.take("order_slow_handshake")) is not None:
            await asyncio.sleep(slow.seconds)
        if self._faults.take("order_refused") is not None:
            return web.Response(status=403)
        try:
            self._desk.check_header(request.headers.get("Authorization", ""))
        except Refusal as refusal:
            return web.Response(status=403, text=refusal.text)
        connection = await Connection.accept(request, self._faults, "order")
        client = _Client(connection, self._faults)
        self._open.append(client)
        try:
            await client.serve()
        finally:
            self._open.remove(client)
            await connection.finish()
        return connection.socket

    def listen(self, kind: EventKind, event: dict[str, Any]) -> None:
        """Send an event of the exchange to all who asked for its kind."""
        if self._is_lost(kind) or self._faults.lasts("order_mute"):
            return
        for client in list(self._open):
            client.push(kind, event)

    def drop_all(self) -> None:
        """Close all connections, as at a token change."""
        for client in list(self._open):
            client.connection.close()

    def abort_all(self) -> None:
        """Cut all connections, half-open ones too."""
        for client in self._open:
            client.connection.abort()

    def _is_lost(self, kind: EventKind) -> bool:
        """Tell whether an event belongs to a fill that nobody is told of."""
        if kind == "trades" and self._faults.take("order_missing_fill") is not None:
            self._lost_events = 2  # the order and the position that follow
            return True
        if kind != "trades" and self._lost_events:
            self._lost_events -= 1
            return True
        return False


class _Client:
    """One connection and what it wants to hear of."""

    def __init__(self, connection: Connection, faults: Faults) -> None:
        self.connection = connection
        self._faults = faults
        self._stream: FaultyStream[str] = FaultyStream(faults, "order")
        self._wanted: set[str] = set()

    @property
    def is_subscribed(self) -> bool:
        return bool(self._wanted)

    async def serve(self) -> None:
        async for message in self.connection.messages():
            if message.type is WSMsgType.TEXT:
                self._act(message.data)

    def push(self, kind: EventKind, event: dict[str, Any]) -> None:
        if kind not in self._wanted:
            return
        for text in self._stream.through(json.dumps({"s": "ok", kind: event})):
            if self._faults.take("order_abort") is not None:
                self.connection.abort_within(text)
                return
            self.connection.send(text)

    def _act(self, text: str) -> None:
        if text == "ping":
            self.connection.send("pong")
            return
        try:
            asked = json.loads(text)
        except json.JSONDecodeError:
            asked = None
        if not isinstance(asked, dict) or asked.get("T") != "SUB_ORD":
            self._answer(-50, "Please provide a valid request", "error")
            return
        names = _flat(asked.get("SLIST"))
        if asked.get("SUB_T") == -1:
            self._wanted.difference_update(names)
            self._answer(1605, "Successfully unsubscribed", "ok")
            return
        self._wanted.update(name for name in names if name in KINDS)
        self._answer(1605, "Successfully subscribed", "ok")

    def _answer(self, code: int, text: str, status: str) -> None:
        self.connection.send(json.dumps({"code": code, "message": text, "s": status}))


def _flat(names: Any) -> list[str]:
    """Return the names of a list; the SDK nests it when it unsubscribes."""
    if isinstance(names, str):
        return [names]
    if not isinstance(names, list):
        return []
    return [name for entry in names for name in _flat(entry)]
