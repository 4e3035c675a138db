"""Fyers' order socket: what happens to the account's orders, for as long as somebody reads.

Every connection asks for the token anew and is left when not even the answer to a ping comes. It
tells changes only and replays nothing: a reader must ask the books after each Subscribed. Whose
orders these are is for the reader to know.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from random import Random
from typing import Any, Final

import aiohttp

from actors.messages import Alert
from daemon.brokers.fyers.reconnecting import ReconnectingSocket, SocketTimes
from daemon.brokers.fyers_books import OrderRow, TradeRow
from daemon.clock import NS_PER_SECOND, Clock
from daemon.errors import BrokerUnavailable, LoginNeeded, TooManyCalls

_SUBSCRIBE: Final = json.dumps(
    {"T": "SUB_ORD", "SLIST": ["orders", "trades", "positions"], "SUB_T": 1}
)
_SUBSCRIBED: Final = 1605
_REFUSED: Final = (401, 403)

# The socket's names for what the books of REST call otherwise.
_ORDER_NAMES: Final[Mapping[str, str]] = {
    "id": "id",
    "symbol": "symbol",
    "side": "tran_side",
    "qty": "qty",
    "filledQty": "qty_filled",
    "status": "org_ord_status",
    "orderTag": "ordertag",
    "source": "ord_source",
    "message": "oms_msg",
    "orderDateTime": "time_oms",
}
_TRADE_NAMES: Final[Mapping[str, str]] = {
    "tradeNumber": "id_fill",
    "orderNumber": "id",
    "symbol": "symbol",
    "side": "tran_side",
    "tradedQty": "qty_traded",
    "tradePrice": "price_traded",
    "orderTag": "ordertag",
}


class Subscribed:
    """A connection listens from now on; what happened before it was not heard."""


@dataclass(frozen=True, slots=True)
class DayPosition:
    """What was bought less what was sold today in one position of the account."""

    id: str
    symbol: str
    net_today: int  # signed units


Event = Subscribed | OrderRow | TradeRow | DayPosition


class OrderSocket(ReconnectingSocket):
    """Yield events of the account, for ever, through any number of connections.

    `header` returns the Authorization header that is good now: `app_id:token`. `on_alert` hears
    once per outage that a login is needed. Use from one event loop, with one reader.
    """

    def __init__(
        self,
        url: str,
        http: aiohttp.ClientSession,
        *,
        header: Callable[[], Awaitable[str]],
        clock: Clock,
        random: Random,
        times: SocketTimes | None = None,
        on_alert: Callable[[Alert], None] = lambda _: None,
    ) -> None:
        """`times.silence_s` is how long a connection may give no sign of life, pongs included."""
        super().__init__(
            "order_socket",
            "no events of orders",
            clock=clock,
            random=random,
            times=times or SocketTimes(silence_s=25.0),
            on_alert=on_alert,
        )
        self._url = url
        self._http = http
        self._header = header

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yield events as they come; connect again, later each time, until one listens."""
        failures = 0
        while True:
            self.state, began_ns = "connecting", self._clock.monotonic_ns()
            try:
                async with aclosing(self._connection()) as stream:
                    async for event in stream:
                        self._is_told = False
                        yield event
            except LoginNeeded as error:
                self._refused(error)
            except (aiohttp.ClientError, BrokerUnavailable, TooManyCalls, OSError) as error:
                # The text of an aiohttp error may hold the header: name its kind alone.
                is_ours = isinstance(error, BrokerUnavailable | TooManyCalls)
                text = f": {error}" if is_ours else ""
                self._lost(f"{type(error).__name__}{text}")
            if self._clock.monotonic_ns() - began_ns > self._times.silence_s * NS_PER_SECOND:
                failures = 0  # not for one that is taken and dropped: that is failing
            await self._pause(failures)
            failures += 1

    async def _connection(self) -> AsyncGenerator[Event, None]:
        """Yield the events of one connection; raises when it ends, which it always does."""
        headers = {"Authorization": await self._header()}
        try:
            async with asyncio.timeout(self._times.connect_s):
                socket = await self._http.ws_connect(
                    self._url, headers=headers, heartbeat=self._times.ping_s
                )
        except aiohttp.WSServerHandshakeError as error:
            if error.status in _REFUSED:
                raise LoginNeeded(
                    f"the order socket refused the token (HTTP {error.status}): "
                    "run hrm-trader login"
                ) from None
            raise
        try:
            self._begin()
            await socket.send_str(_SUBSCRIBE)
            async with aclosing(self._stream(socket)) as stream:
                async for event in stream:
                    yield event
        finally:
            await socket.close()

    async def _stream(self, socket: aiohttp.ClientWebSocketResponse) -> AsyncGenerator[Event, None]:
        began_ns = alive_ns = pinged_ns = self._clock.monotonic_ns()
        while True:
            try:
                message = await self._receive(socket, self._times.ping_s)
            except TimeoutError:
                message = None
            now_ns = self._clock.monotonic_ns()
            if now_ns - pinged_ns >= self._times.ping_s * NS_PER_SECOND:
                await socket.send_str("ping")
                pinged_ns = now_ns
            if self.state != "live" and now_ns - began_ns > self._times.connect_s * NS_PER_SECOND:
                raise BrokerUnavailable(f"not subscribed after {self._times.connect_s:g} s")
            if message is None:
                if now_ns - alive_ns > self._times.silence_s * NS_PER_SECOND:
                    raise BrokerUnavailable(f"no sign of life for {self._times.silence_s:g} s")
                continue
            alive_ns = now_ns
            if message.type is not aiohttp.WSMsgType.TEXT:
                raise BrokerUnavailable(f"the connection ended: {message.type.name}")
            event = self._event(message.data)
            if event is not None:
                yield event

    def _event(self, text: str) -> Event | None:
        if text == "pong":
            return None
        try:
            event = event_of(text)
        except ValueError as error:
            # What cannot be read is found in the books, which are asked every few seconds.
            self.unreadable += 1
            self._log.warning("event passed over", reason=str(error))
            return None
        if isinstance(event, Subscribed):
            self.state = "live"
        return event


def event_of(text: str) -> Event | None:
    """Read one text frame; None for a kind that is not used.

    Raises ValueError, and BrokerUnavailable when it says that the subscription was refused.
    """
    said = json.loads(text, parse_float=Decimal)
    if not isinstance(said, dict):
        raise ValueError(f"an event must be an object, was {text[:40]!r}")  # noqa: TRY004 - not our type
    for kind, read in _READERS.items():
        if kind in said:
            if not isinstance(said[kind], dict):
                raise ValueError(f"{kind} must hold an object, was {type(said[kind]).__name__}")
            return read(said[kind])
    if said.get("code") == _SUBSCRIBED:
        return Subscribed()
    if said.get("s") == "error":
        raise BrokerUnavailable(f"the subscription was refused (code {said.get('code')})")
    return None


def _order(raw: Mapping[str, Any]) -> OrderRow:
    return OrderRow.read({name: raw[key] for name, key in _ORDER_NAMES.items() if key in raw})


def _trade(raw: Mapping[str, Any]) -> TradeRow:
    row = {name: raw[key] for name, key in _TRADE_NAMES.items() if key in raw}
    at = datetime.strptime(str(raw.get("fill_time")), "%d-%m-%Y %H:%M:%S")  # noqa: DTZ007 - rewritten only
    return TradeRow.read(row | {"orderDateTime": f"{at:%d-%b-%Y %H:%M:%S}"})


def _position(raw: Mapping[str, Any]) -> DayPosition:
    bought, sold = raw.get("day_buy_qty"), raw.get("day_sell_qty")
    if not isinstance(bought, int) or not isinstance(sold, int):
        wrong = f"{bought!r}, {sold!r}"
        raise ValueError(f"day quantities must be whole, were {wrong}")  # noqa: TRY004 - as above
    return DayPosition(str(raw.get("id")), str(raw.get("symbol")), bought - sold)


_READERS: Final[Mapping[str, Callable[[Mapping[str, Any]], Event]]] = {
    "orders": _order,
    "trades": _trade,
    "positions": _position,
}
