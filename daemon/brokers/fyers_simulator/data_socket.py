"""The data socket: who is connected, what each one subscribed to, and the frames that go out.

One connection per user at a time: another one is refused while the first counts as open. A topic's
handle is valid on its connection only. Data frames carry a message number always; acknowledgements
are counted, and nothing follows from a client that stops sending them.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from aiohttp import WSMsgType, web

from daemon.brokers.fyers_simulator import frames
from daemon.brokers.fyers_simulator.connection import Connection
from daemon.brokers.fyers_simulator.faults import Faults, FaultyStream
from daemon.brokers.fyers_simulator.frames import BadFrame, FrameType, Request
from daemon.brokers.fyers_simulator.instruments import CURRENCY, NS_PER_SECOND, Contract
from daemon.brokers.fyers_simulator.login import LoginDesk
from daemon.brokers.fyers_simulator.market import LEVELS, Market, Quote

RECORDS_PER_FRAME: Final = 100
SYMBOL_LIMIT_CODE: Final = 51001

Values = list[int | None]


@dataclass(slots=True)
class _Topic:
    """One subscription of a connection."""

    id: int
    name: str
    contract: Contract
    channel: int
    sent: Values = field(default_factory=list)  # as the client has them; empty: no snapshot yet


class DataSocket:
    """Serve the data feed of one market."""

    def __init__(
        self,
        market: Market,
        desk: LoginDesk,
        faults: Faults,
        *,
        ack_every: int,
        most_topics: int,
    ) -> None:
        self._market = market
        self._desk = desk
        self._faults = faults
        self._ack_every = ack_every
        self._most_topics = most_topics
        self._open: list[_Client] = []
        self.acknowledged = 0  # number of the last data frame that a client acknowledged
        self.refused = 0  # connections turned away because another is open

    @property
    def connections(self) -> int:
        return len(self._open)

    @property
    def sent(self) -> int:
        """Frames sent on the connections that are open."""
        return sum(client.connection.sent for client in self._open)

    @property
    def subscriptions(self) -> int:
        """Topics subscribed on the connections that are open."""
        return sum(client.subscriptions for client in self._open)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one connection until it ends."""
        if (slow := self._faults.take("data_slow_handshake")) is not None:
            await asyncio.sleep(slow.seconds)
        if self._faults.take("data_refused") is not None:
            return web.Response(status=403)
        connection = await Connection.accept(request, self._faults, "data")
        client = _Client(self, connection)
        if self._open:
            self.refused += 1
            client.is_refused = True
        else:
            self._open.append(client)
        try:
            await client.serve()
        finally:
            if client in self._open:
                self._open.remove(client)
            await connection.finish()
        return connection.socket

    def push(self, quotes: Sequence[Quote]) -> None:
        """Send what changed to whoever subscribed to it."""
        moved = {quote.contract.symbol: quote for quote in quotes}
        for client in list(self._open):
            client.push(moved)

    def drop_all(self) -> None:
        """Close all connections, as at a token change."""
        for client in list(self._open):
            client.connection.close()

    def abort_all(self) -> None:
        """Cut all connections, half-open ones too."""
        for client in self._open:
            client.connection.abort()

    # For the clients.

    def admits(self, key: str) -> bool:
        return self._desk.is_hsm_key(key) and self._faults.take("data_auth_refused") is None

    @property
    def ack_every(self) -> int:
        return self._ack_every

    @property
    def most_topics(self) -> int:
        return self._most_topics

    @property
    def market(self) -> Market:
        return self._market

    @property
    def faults(self) -> Faults:
        return self._faults


class _Client:
    """One connection: its channels, its topics, its numbers."""

    def __init__(self, server: DataSocket, connection: Connection) -> None:
        self.connection = connection
        self.is_refused = False
        self._server = server
        self._stream: FaultyStream[bytes] = FaultyStream(server.faults, "data")
        self._topics: dict[str, _Topic] = {}
        self._lite: set[int] = set()
        self._paused: set[int] = set()
        self._is_admitted = False
        self._next_id = 101
        self._message_number = 0

    @property
    def subscriptions(self) -> int:
        return len(self._topics)

    async def serve(self) -> None:
        async for message in self.connection.messages():
            if message.type is not WSMsgType.BINARY:
                continue
            try:
                goes_on = self._act(frames.read_request(message.data))
            except BadFrame as problem:
                self.connection.close(1002, str(problem)[:100])
                return
            if not goes_on:
                self.connection.close()
                return

    def _act(self, request: Request) -> bool:
        """Do what a frame asks for; return False to end the connection."""
        if request.type == FrameType.PING:
            return True
        if request.type == FrameType.AUTHENTICATE:
            return self._authenticate(request)
        if request.type == FrameType.ACKNOWLEDGE:
            self._server.acknowledged = request.message_number
        elif request.type == FrameType.MODE:
            if request.is_lite:
                self._lite.update(request.channels)
            else:
                self._lite.difference_update(request.channels)
            self._send(frames.result(FrameType.MODE))
        elif request.type in (FrameType.PAUSE, FrameType.RESUME):
            if request.type == FrameType.PAUSE:
                self._paused.update(request.channels)
            else:
                self._paused.difference_update(request.channels)
            self._send(frames.result(request.type))
        elif request.type == FrameType.SUBSCRIBE:
            self._subscribe(request)
        elif request.type == FrameType.UNSUBSCRIBE:
            for name in request.topics:
                self._topics.pop(name, None)
            self._send(frames.result(FrameType.UNSUBSCRIBE))
        return True

    def _authenticate(self, request: Request) -> bool:
        is_good = not self.is_refused and self._server.admits(request.text)
        self._is_admitted = is_good
        ack_every = self._server.ack_every if is_good else 0
        self._send(frames.authenticated(ack_every, is_accepted=is_good))
        return is_good and self._server.faults.take("data_close_after_auth") is None

    def _subscribe(self, request: Request) -> None:
        faults = self._server.faults
        if not self._is_admitted or faults.take("data_subscribe_refused") is not None:
            self._send(frames.result(FrameType.SUBSCRIBE, is_accepted=False))
            return
        names = request.topics
        too_many = len({*self._topics, *names}) > self._server.most_topics
        if too_many or faults.take("data_symbol_limit") is not None:
            limit = frames.custom(
                SYMBOL_LIMIT_CODE, "Symbol limit exceeded", int(FrameType.SUBSCRIBE)
            )
            self._send(limit)
            return
        self._send(frames.result(FrameType.SUBSCRIBE))
        for name in names:
            contract = self._server.market.master.by_topic.get(name)
            if contract is None:
                continue  # nothing tells the client: it has to notice that no snapshot comes
            known = self._topics.get(name)
            id_ = known.id if known is not None else self._new_id()
            self._topics[name] = _Topic(id_, name, contract, request.channel)
        subscribed = [self._topics[name] for name in names if name in self._topics]
        self._send_records([self._record(topic) for topic in subscribed])

    def push(self, moved: dict[str, Quote]) -> None:
        """Send the changes of this connection's topics."""
        if not self._is_admitted or self._server.faults.lasts("data_mute"):
            return
        records = [
            self._record(topic)
            for topic in self._topics.values()
            if topic.channel not in self._paused and topic.contract.symbol in moved
        ]
        self._send_records(records)

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id - 1

    def _record(self, topic: _Topic) -> bytes:
        """Return snapshot, update or lite record of a topic as it is now; empty: no change."""
        quote = self._server.market.quote(topic.contract.symbol)
        values = topic_values(topic.name, quote)
        before, topic.sent = topic.sent, values
        if not before:
            return self._snapshot(topic, values)
        if topic.channel in self._lite and not topic.name.startswith("dp"):
            last = values[0]
            return b"" if last is None or last == before[0] else frames.lite(topic.id, last)
        changes = frames.changed(before, values)
        return frames.update(topic.id, changes) if changes else b""

    def _snapshot(self, topic: _Topic, values: Values) -> bytes:
        contract = topic.contract
        exchange_symbol = contract.symbol.partition(":")[2]
        token = topic.name.rpartition("|")[2]
        is_zero = self._server.faults.take("data_zero_multiplier") is not None
        return frames.snapshot(
            topic.id,
            topic.name,
            values,
            names=(contract.segment_name, token, token if contract.is_index else exchange_symbol),
            multiplier=0 if is_zero else 1,
            precision=contract.precision,
        )

    def _send_records(self, records: Sequence[bytes]) -> None:
        waiting = [record for record in records if record]
        if waiting:
            waiting = self._with_strange_records(waiting)
        size = RECORDS_PER_FRAME
        if len(waiting) > size and self._server.faults.take("data_large_frame") is not None:
            size = len(waiting)
        for first in range(0, len(waiting), size):
            self._message_number += 1
            part = waiting[first : first + size]
            self._send_data(frames.data_frame(self._message_number, part))

    def _with_strange_records(self, records: list[bytes]) -> list[bytes]:
        faults = self._server.faults
        strange: list[bytes] = []
        if faults.take("data_unknown_topic") is not None:
            strange += [frames.update(60_000, [1, 2]), frames.lite(60_001, 3)]
        if faults.take("data_unmapped_snapshot") is not None:
            names = ("nse_cm", "99999", "NOBODY-EQ")
            values: Values = [0] * frames.SCRIP_FIELDS
            strange.append(frames.snapshot(60_002, "sf|nse_cm|99999", values, names=names))
        tail = [b"?\0\0\0\0"] if faults.take("data_unknown_record") is not None else []
        return strange + records + tail

    def _send_data(self, frame: bytes) -> None:
        for sent in self._stream.through(frame):
            if self._server.faults.take("data_abort") is not None:
                self.connection.abort_within(sent)
                return
            self._send(sent)

    def _send(self, frame: bytes) -> None:
        self.connection.send(frame)


def topic_values(name: str, quote: Quote) -> Values:
    """Return the fields of a topic in the order of the wire."""
    if name.startswith("dp"):
        bids, asks = quote.levels(buying=False), quote.levels(buying=True)
        return [
            *(price for price, _ in bids),
            *(price for price, _ in asks),
            *quote.bid_sizes,
            *quote.ask_sizes,
            *quote.bid_orders[:LEVELS],
            *quote.ask_orders[:LEVELS],
        ]
    feed_s = quote.feed_ns // NS_PER_SECOND
    if name.startswith("if"):
        return [quote.last, quote.previous_close, feed_s, quote.high, quote.low, quote.open]
    contract = quote.contract
    return [
        quote.last,
        _counted(contract, quote.volume),
        quote.last_trade_ns // NS_PER_SECOND,
        feed_s,
        quote.bid_sizes[0],
        quote.ask_sizes[0],
        quote.bid,
        quote.ask,
        _counted(contract, quote.last_quantity),
        quote.total_buy,
        quote.total_sell,
        quote.average,
        quote.open_interest if contract.expiry is not None else None,
        quote.low,
        quote.high,
        None,
        None,
        contract.lower,
        contract.upper,
        quote.open,
        quote.previous_close,
    ]


def _counted(contract: Contract, units: int) -> int:
    """Return a count as the feed has it: lots in the currency segment, where 32 bits hold no units.

    Assumed: no document says it of the socket; the exchanges' own feeds count contracts there.
    """
    return units // contract.lot if contract.segment == CURRENCY else units
