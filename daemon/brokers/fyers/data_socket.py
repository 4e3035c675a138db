"""Fyers' data socket: connected for as long as somebody reads, whatever happens to it.

Every connection asks for the session key anew, resolves and subscribes all symbols, and must
deliver data: a server that stays connected but falls silent while the market is open is left. What
a frame says is for hsm.py to know.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from decimal import Decimal
from random import Random
from typing import Final

import aiohttp

from actors.messages import Alert, Depth, DepthLevel, Tick
from daemon.brokers.fyers import hsm
from daemon.brokers.fyers.reconnecting import ReconnectingSocket, SocketTimes
from daemon.clock import Clock
from daemon.errors import (
    BrokerRejected,
    BrokerUnavailable,
    ConfigError,
    LoginNeeded,
    TooManyCalls,
)

SOURCE: Final = "hrm-trader"
CHANNEL: Final = 11
_NS_PER_SECOND: Final = 1_000_000_000
_RECORDS_PER_TURN: Final = 256  # buffered frames are read without a wait: let others run


async def nobody_hears() -> None:
    """Do nothing about a lost connection."""


class DataSocket(ReconnectingSocket):
    """Yield ticks of symbols, for ever, through any number of connections.

    `session_key` returns a key that is good now; it is asked before every connection, since keys
    die daily. `resolve` returns the symbol of each topic to subscribe. `is_open` says whether the
    market trades at an instant: a closed market may be silent. `on_alert` hears once per outage
    what only a person can mend, `on_lost` of each connection that has ended. With `on_depth` the
    order books are subscribed too, but for an index, and it is awaited with each, in their order
    with the ticks; prices do not depend on them: they come without, where books are refused. Event
    times of ticks are the exchange's, in whole seconds. Use from one event loop, with one reader.
    """

    def __init__(
        self,
        url: str,
        http: aiohttp.ClientSession,
        *,
        session_key: Callable[[], Awaitable[str]],
        resolve: Callable[[], Awaitable[Mapping[str, str]]],
        is_open: Callable[[int], bool],
        clock: Clock,
        random: Random,
        times: SocketTimes | None = None,
        on_alert: Callable[[Alert], None] = lambda _: None,
        on_lost: Callable[[], Awaitable[None]] = nobody_hears,
        on_depth: Callable[[Depth], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(
            "data_socket",
            "no market data",
            clock=clock,
            random=random,
            times=times or SocketTimes(),
            on_alert=on_alert,
        )
        self._url = url
        self._http = http
        self._session_key = session_key
        self._resolve = resolve
        self._is_open = is_open
        self._on_lost = on_lost
        self._on_depth = on_depth
        self._symbols: Mapping[str, str] = {}  # topic of prices -> symbol
        self._books: dict[str, str] = {}  # topic of depth -> symbol
        self._unread_books: set[str] = set()  # topics of which nothing has come on this connection
        self._price_answers = 0  # still to come, to subscriptions of prices
        self._seen_ns: dict[str, int] = {}  # symbol -> monotonic time of its last record
        self._connected_ns = 0  # monotonic
        self._has_flowed = False  # whether data has ever come

    @property
    def topics(self) -> int:
        """How many topics this connection asked for, books included."""
        return len(self._symbols) + len(self._books)

    def silent(self, silence_s: float) -> list[str]:
        """Return the subscribed symbols without a record for so long; none in a closed market."""
        now_ns = self._clock.now_ns()
        if self.state != "live" or not self._is_open(now_ns):
            return []
        oldest_ns = self._clock.monotonic_ns() - round(silence_s * _NS_PER_SECOND)
        return sorted(
            symbol
            for symbol in set(self._symbols.values())
            if max(self._seen_ns.get(symbol, 0), self._connected_ns) < oldest_ns
        )

    async def ticks(self) -> AsyncGenerator[Tick, None]:
        """Yield ticks as they come; connect again, later each time, until data flows.

        What passes is tried again, also a missing login, since the next key may be a good one. A
        refused symbol and a setting that cannot be used pass by no waiting: before any data has
        come they are raised (BrokerRejected, ConfigError); after that a new try costs less than a
        feed that has ended.
        """
        failures = 0
        while True:
            self.state = "connecting"
            try:
                async with aclosing(self._connection()) as stream:
                    async for tick in stream:
                        failures = 0  # not before: a server that accepts, then fails, is failing
                        self._has_flowed, self._is_told = True, False
                        yield tick
            except (aiohttp.ClientError, BrokerUnavailable, TooManyCalls, OSError) as error:
                self._lost(f"{type(error).__name__}: {error}")
            except (BrokerRejected, ConfigError) as error:
                self._refused(error)
                if not (self._has_flowed or isinstance(error, LoginNeeded)):
                    raise
            await self._on_lost()
            await self._pause(failures)
            failures += 1

    async def _connection(self) -> AsyncGenerator[Tick, None]:
        """Yield the ticks of one connection; raises when it ends, which it always does."""
        key = await self._session_key()
        self._symbols = await self._resolve()
        if not self._symbols:
            raise BrokerUnavailable("no symbol could be resolved to a topic")
        async with asyncio.timeout(self._times.connect_s):
            socket = await self._http.ws_connect(
                self._url, heartbeat=self._times.ping_s, max_msg_size=0
            )
        try:
            self._begin()
            decoder = hsm.Decoder()
            async with asyncio.timeout(self._times.connect_s):
                ack_every = await self._log_in(socket, decoder, key)
            await self._subscribe(socket)
            self._connected_ns = self._clock.monotonic_ns()
            self.state = "live"
            async with aclosing(self._stream(socket, decoder, ack_every)) as stream:
                async for tick in stream:
                    yield tick
        finally:
            await socket.close()

    async def _subscribe(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Ask for prices, then for books: a request beyond the plan's limit is refused as one."""
        books = self._symbols.items() if self._on_depth is not None else ()
        self._books = {
            book: symbol for topic, symbol in books if (book := hsm.depth_topic(topic)) is not None
        }
        self._unread_books = set(self._books)
        prices = hsm.subscribe(list(self._symbols), CHANNEL)
        self._price_answers = len(prices)
        for frame in (*prices, *hsm.subscribe(list(self._books), CHANNEL)):
            await socket.send_bytes(frame)

    async def _log_in(
        self, socket: aiohttp.ClientWebSocketResponse, decoder: hsm.Decoder, key: str
    ) -> int:
        await socket.send_bytes(hsm.authenticate(key, SOURCE))
        await socket.send_bytes(hsm.mode([CHANNEL], is_lite=False))
        while True:
            answer = self._decoded(decoder, await self._receive(socket))
            if isinstance(answer, hsm.Answer) and answer.type == hsm.AUTHENTICATE:
                if not answer.is_accepted:
                    raise LoginNeeded("the session key was refused: run hrm-trader login")
                return answer.ack_every

    async def _stream(
        self, socket: aiohttp.ClientWebSocketResponse, decoder: hsm.Decoder, ack_every: int
    ) -> AsyncGenerator[Tick, None]:
        frames = records = 0
        last_data_ns = self._connected_ns
        while True:
            try:
                message = await self._receive(socket, self._times.ping_s)
            except TimeoutError:
                await socket.send_bytes(hsm.PING)
                message = None
            decoded = None if message is None else self._decoded(decoder, message)
            monotonic_ns = self._clock.monotonic_ns()
            if self._brings_prices(decoded) or not self._is_open(self._clock.now_ns()):
                last_data_ns = monotonic_ns
            elif monotonic_ns - last_data_ns > self._times.silence_s * _NS_PER_SECOND:
                raise BrokerUnavailable(
                    f"no data for {self._times.silence_s:g} s in an open market"
                )
            if not isinstance(decoded, hsm.Data):
                self._check_answer(decoded)
                continue
            frames += 1
            if ack_every and frames % ack_every == 0:
                await socket.send_bytes(hsm.acknowledge(decoded.number))
            if decoded.unresolved or decoded.problem:
                self.unreadable += decoded.unresolved + bool(decoded.problem)
                self._log.warning(
                    "frame read in part", unresolved=decoded.unresolved, reason=decoded.problem
                )
                self._check_snapshots(monotonic_ns)
            for record in decoded.records:
                tick = self._tick(record, monotonic_ns)
                if tick is not None:
                    yield tick
                elif record.topic.name in self._books:
                    await self._tell_depth(record)
            records += len(decoded.records)
            if records >= _RECORDS_PER_TURN:
                records = 0
                await asyncio.sleep(0)

    def _decoded(
        self, decoder: hsm.Decoder, message: aiohttp.WSMessage
    ) -> hsm.Data | hsm.Answer | hsm.Notice | None:
        if message.type is aiohttp.WSMsgType.BINARY:
            try:
                return decoder.decode(message.data)
            except hsm.Malformed as error:
                self.unreadable += 1
                self._log.warning("frame passed over", reason=str(error))
                return None
        if message.type is aiohttp.WSMsgType.TEXT:
            return None
        raise BrokerUnavailable(f"the connection ended: {message.type.name} {message.data or ''}")

    def _brings_prices(self, decoded: hsm.Data | hsm.Answer | hsm.Notice | None) -> bool:
        """Tell whether a frame is what the connection is kept for: books alone are no market."""
        if not isinstance(decoded, hsm.Data) or not decoded.records:
            return False
        return not self._books or any(
            record.topic.name in self._symbols for record in decoded.records
        )

    def _check_snapshots(self, monotonic_ns: int) -> None:
        """Leave a connection on which the snapshot of a symbol was lost: nothing after it can be
        read, and it is not sent again."""
        missing = sorted(
            symbol
            for symbol in set(self._symbols.values())
            if self._seen_ns.get(symbol, 0) < self._connected_ns
        )
        missing += sorted(f"the book of {self._books[topic]}" for topic in self._unread_books)
        waited_ns = monotonic_ns - self._connected_ns
        if missing and waited_ns > self._times.silence_s * _NS_PER_SECOND:
            raise BrokerUnavailable(f"no snapshot has come of {', '.join(missing)}")

    def _check_answer(self, decoded: hsm.Answer | hsm.Notice | None) -> None:
        """Say so when the server turns a request down; it does not say which topics it means."""
        if isinstance(decoded, hsm.Notice):
            self._log.error("notice of the data socket", code=decoded.code, reason=decoded.text)
            kind, is_refused = decoded.about, True
        elif isinstance(decoded, hsm.Answer):
            kind, is_refused = decoded.type, not decoded.is_accepted
        else:
            return
        is_about_books = kind == hsm.SUBSCRIBE and self._price_answers <= 0
        if kind == hsm.SUBSCRIBE:
            self._price_answers -= 1
        if is_refused and is_about_books:
            self._log.error("depth was refused: prices come without it")
            self._books.clear()
            self._unread_books.clear()
        elif is_refused and isinstance(decoded, hsm.Answer):
            raise BrokerUnavailable(f"request of type {kind} was refused")

    def _tick(self, record: hsm.Record, monotonic_ns: int) -> Tick | None:
        """Return a record as a tick; None without a price, for depth, and if not subscribed."""
        symbol = self._symbols.get(record.topic.name)
        if symbol is None or record.topic.kind not in ("sf", "if"):
            return None
        self._seen_ns[symbol] = monotonic_ns
        return tick_of(record, symbol, self._clock)

    async def _tell_depth(self, record: hsm.Record) -> None:
        assert self._on_depth is not None
        name = record.topic.name
        self._unread_books.discard(name)
        await self._on_depth(depth_of(record, self._books[name], self._clock))


def depth_of(record: hsm.Record, symbol: str, clock: Clock) -> Depth:
    """Return a depth record as a message, of the time of receipt: the wire gives it none."""
    topic, values = record
    bids, asks = (
        tuple(
            DepthLevel(level.price, level.quantity, level.orders)
            for level in topic.levels(values, bids=bids)
        )
        for bids in (True, False)
    )
    return Depth(instrument=symbol, bids=bids, asks=asks, received_ns=clock.now_ns())


def tick_of(record: hsm.Record, symbol: str, clock: Clock) -> Tick | None:
    """Return a scrip or index record as a tick; None while it has no price.

    Its time is the exchange's; that of receipt where the feed does not say.
    """
    topic, values = record
    last_price = topic.price(values[hsm.LAST_PRICE])
    if not last_price:
        return None
    is_index = topic.kind == "if"
    feed_s = values[hsm.INDEX_FEED_S if is_index else hsm.FEED_S]
    event_ns = feed_s * _NS_PER_SECOND if feed_s > 0 else clock.now_ns()
    if is_index:
        return Tick(instrument=symbol, last_price=last_price, event_ns=event_ns)
    return Tick(
        instrument=symbol,
        last_price=last_price,
        event_ns=event_ns,
        bid=_quote(topic.price(values[hsm.BID])),
        ask=_quote(topic.price(values[hsm.ASK])),
        volume_today=hsm.count_of(values[hsm.VOLUME]) or 0,
    )


def _quote(price: Decimal | None) -> Decimal | None:
    """Return a quote; the wire says 0 for an empty side of the book."""
    return price or None
