"""The Fyers account as a broker: REST to place, cancel and ask, the order socket to listen.

An order call is made once. What is not known after it is found by its tag in the books; what the
socket lost is found there as well. What the rows mean is for fyers_books.py to say.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from decimal import Decimal
from typing import Any, Final, Literal

from actors.messages import ExecutionReport, PlaceOrder
from daemon.brokers.fyers.order_socket import DayPosition, Event, OrderSocket, Subscribed
from daemon.brokers.fyers.rest import FyersRest
from daemon.brokers.fyers_books import (
    FyersBooks,
    FyersStatus,
    OrderRow,
    TradeRow,
    fill_report,
    own_tag,
    state_report,
)
from daemon.errors import BrokerError, BrokerRejected, BrokerUnavailable
from daemon.logs import get_logger

Product = Literal["INTRADAY", "MARGIN", "CNC"]

_ORDERS: Final = "/orders/sync"
_TAG: Final = re.compile(r"[A-Za-z0-9]{1,30}")
_LIMIT, _MARKET = 1, 2
_FINAL: Final = frozenset(
    {FyersStatus.CANCELLED, FyersStatus.TRADED, FyersStatus.REJECTED, FyersStatus.EXPIRED}
)


class FyersBroker:
    """Place and ask over REST; `run` listens, and must run for `reports` to be prompt.

    `symbols` maps instruments to the broker's symbols; an option goes by its symbol. `recall` finds
    an order that was placed under a tag before this start, in the outbox. `on_problem` hears each
    contradiction in the books once, as a sentence. `products` says how an instrument is held where
    that is not for the day.
    """

    def __init__(
        self,
        rest: FyersRest,
        socket: OrderSocket,
        symbols: Mapping[str, str],
        *,
        recall: Callable[[str], Awaitable[PlaceOrder | None]],
        products: Mapping[str, Product] | None = None,
        is_remote: bool = True,
        on_problem: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.is_remote = is_remote
        self._rest = rest
        self._socket = socket
        self._recall = recall
        self._products = dict(products or {})
        self._placed: dict[str, PlaceOrder] = {}
        self._ids: dict[str, str] = {}  # tag -> the broker's order id
        self._books = FyersBooks(self._placed.get, symbols, on_problem)
        self._trades: dict[str, TradeRow] = {}  # of the day, those of strangers included
        self._nets: dict[str, DayPosition] = {}  # by position id
        self._queue: asyncio.Queue[ExecutionReport] = asyncio.Queue()
        self._closed = asyncio.Event()
        self._behind = asyncio.Event()  # events were lost: the books know more
        self._refreshing = asyncio.Lock()
        self._log = get_logger(part="fyers_broker")

    # Orders

    async def place(self, order: PlaceOrder) -> None:
        self._books.learn(order)
        tag, symbol = order.client_order_id, self._books.symbol_of(order.instrument)
        if symbol is None:
            raise BrokerRejected(f"{order.instrument} has no symbol at the broker")
        if not _TAG.fullmatch(tag):
            raise BrokerRejected(f"an order tag must be 1 to 30 letters and digits, was {tag!r}")
        self._placed[tag] = order
        body = {
            "symbol": symbol,
            "qty": order.quantity,
            "type": _MARKET if order.limit_price is None else _LIMIT,
            "side": 1 if order.side == "buy" else -1,
            "productType": self._products.get(order.instrument, "INTRADAY"),
            "limitPrice": float(order.limit_price or 0),
            "stopPrice": 0,
            "validity": "DAY",
            "disclosedQty": 0,
            "offlineOrder": False,
            "orderTag": tag,
        }
        is_exit = order.purpose == "exit"
        answer = await self._rest.write("POST", _ORDERS, body, reduces_risk=is_exit)
        if isinstance(id_ := answer.get("id"), str):
            self._ids[tag] = id_

    async def cancel(self, client_order_id: str) -> None:
        await self._cancel(await self._id_of(client_order_id))

    async def modify(self, client_order_id: str, limit_price: Decimal) -> None:
        id_ = await self._id_of(client_order_id)
        body = {"id": id_, "type": _LIMIT, "limitPrice": float(limit_price)}
        order = self._placed.get(client_order_id)
        is_exit = order is not None and order.purpose == "exit"
        with _changing(f"order {id_} was not modified"):
            await self._rest.write("PATCH", _ORDERS, body, reduces_risk=is_exit)

    async def cancel_all(self) -> list[str]:
        ended = []
        for row in await self._open_rows(reduces_risk=True):
            try:
                await self._cancel(row.id)
            except BrokerError as error:  # the others are no less to be taken back
                self._log.error("order not cancelled", order=row.id, reason=str(error))
            else:
                ended.append(row.tag or row.id)
        return ended

    async def _cancel(self, id_: str) -> None:
        """Take one order back; BrokerRejected means only that there is nothing to take back."""
        with _changing(f"order {id_} was not cancelled"):
            await self._rest.write("DELETE", _ORDERS, {"id": id_}, reduces_risk=True)

    async def _id_of(self, tag: str) -> str:
        """Return the broker's id of an order of ours."""
        id_ = self._ids.get(tag)
        if id_ is None:
            rows = await self._rows_of(tag)
            if not rows:
                raise BrokerRejected(f"no order with the tag {tag}")
            id_ = rows[0].id
        return id_

    # Questions

    async def find(self, client_order_id: str) -> list[ExecutionReport] | None:
        rows = await self._rows_of(client_order_id)
        if not rows:
            return None
        order = await self._known(client_order_id)
        if order is None:
            raise BrokerUnavailable(
                f"order {client_order_id} is at the broker, but not written down here"
            )
        # After the orders: what they say is filled is then among the trades.
        trades = await self._read_trades(reduces_risk=True)
        told: list[ExecutionReport] = []
        for row in rows:
            told += [fill_report(one, order) for one in trades if one.order_id == row.id]
            told.append(state_report(row, order))
        return told

    async def refresh(self) -> None:
        async with self._refreshing:
            orders = await self._read_orders()
            trades = await self._read_trades()
            for order in orders:
                await self._take(order)
            self._trades = {trade.id: trade for trade in trades}  # the book is of one day
            for trade in trades:
                await self._take(trade)

    async def positions(self, *, reduces_risk: bool = False) -> dict[str, int]:
        with _asking():
            rows = await self._rest.positions(reduces_risk=reduces_risk)
        net: dict[str, int] = {}
        for row in rows:
            symbol, units = row.get("symbol"), row.get("netQty")
            if not isinstance(symbol, str) or not isinstance(units, int):
                raise BrokerUnavailable(f"a position cannot be read: {symbol!r}, {units!r}")
            name = self._books.name_of(symbol) or symbol
            net[name] = net.get(name, 0) + units
        return {name: units for name, units in net.items() if units}

    async def open_orders(self) -> list[PlaceOrder]:
        rows = await self._open_rows()
        return [await self._as_placed(row) for row in sorted(rows, key=lambda row: row.at_ns)]

    # Events

    @property
    def pending_reports(self) -> int:
        return self._queue.qsize()

    @property
    def is_behind(self) -> bool:
        """Whether the books know more than has been heard, and have not been read yet."""
        return self._behind.is_set() or self._refreshing.locked()

    async def reports(self) -> AsyncIterator[ExecutionReport]:
        while True:
            yield await self._queue.get()

    async def run(self) -> None:
        """Listen to the order socket until `close`."""
        async with asyncio.TaskGroup() as tasks:
            parts = [tasks.create_task(self._listen()), tasks.create_task(self._catch_up())]
            await self._closed.wait()
            for part in parts:
                part.cancel()

    async def close(self) -> None:
        self._closed.set()

    async def _listen(self) -> None:
        async with aclosing(self._socket.events()) as events:
            async for event in events:
                await self._hear(event)

    async def _hear(self, event: Event) -> None:
        match event:
            case Subscribed():
                self._behind.set()
            case OrderRow() | TradeRow():
                await self._take(event)
            case DayPosition():
                self._nets[event.id] = event
                if self._is_unexplained(event.symbol):
                    self._behind.set()

    async def _catch_up(self) -> None:
        """Read the books when events were lost; if that fails, the next reconciliation does it."""
        while True:
            await self._behind.wait()
            self._behind.clear()
            try:
                await self.refresh()
            except BrokerUnavailable as error:
                self._log.warning("books not read", reason=str(error))

    def _is_unexplained(self, symbol: str) -> bool:
        """Tell whether the positions of today are not the sum of the trades heard of."""
        net = sum(one.net_today for one in self._nets.values() if one.symbol == symbol)
        traded = sum(
            one.side * one.quantity for one in self._trades.values() if one.symbol == symbol
        )
        return net != traded

    async def _take(self, row: OrderRow | TradeRow) -> None:
        if row.tag:
            await self._known(row.tag)
        if isinstance(row, TradeRow):
            self._trades[row.id] = row
            reports = self._books.take_trade(row)
        else:
            if row.tag in self._placed:
                self._ids.setdefault(row.tag, row.id)
            reports = self._books.take_order(row)
        for report in reports:
            self._queue.put_nowait(report)

    async def _known(self, tag: str) -> PlaceOrder | None:
        order = self._placed.get(tag)
        if order is None and (order := await self._recall(tag)) is not None:
            self._placed[tag] = order
            self._books.learn(order)
        return order

    # Books

    async def _read_orders(self) -> list[OrderRow]:
        with _asking():
            rows = await self._rest.orders()
        return list(self._readable(rows, OrderRow.read))

    async def _read_trades(self, *, reduces_risk: bool = False) -> list[TradeRow]:
        with _asking():
            rows = await self._rest.trades(reduces_risk=reduces_risk)
        return list(self._readable(rows, TradeRow.read))

    def _readable(
        self, rows: Iterable[Mapping[str, Any]], read: Callable[[Mapping[str, Any]], Any]
    ) -> Iterator[Any]:
        """Yield the rows that can be read; a strange one must not hide the others."""
        for row in rows:
            try:
                yield read(row)
            except ValueError as error:
                self._log.error("row of the books passed over", reason=str(error))

    async def _rows_of(self, tag: str) -> list[OrderRow]:
        """Return the orders under a tag; BrokerUnavailable if one of them cannot be read."""
        with _asking():
            rows = await self._rest.orders(reduces_risk=True)
        return [_readable_order(row) for row in rows if own_tag(row.get("orderTag")) == tag]

    async def _open_rows(self, *, reduces_risk: bool = False) -> list[OrderRow]:
        with _asking():
            rows = await self._rest.orders(reduces_risk=reduces_risk)
        return [row for row in map(_readable_order, rows) if row.status not in _FINAL]

    async def _as_placed(self, row: OrderRow) -> PlaceOrder:
        known = await self._known(row.tag) if row.tag else None
        if known is not None:
            return known
        return PlaceOrder(
            client_order_id=row.tag or row.id,
            decision_id="",
            instrument=self._books.name_of(row.symbol) or row.symbol,
            side="buy" if row.side == 1 else "sell",
            quantity=row.quantity,
            order_type="market",
            purpose="entry",
            reason="not placed by this program",
            placed_ns=row.at_ns,
        )


@contextmanager
def _asking() -> Iterator[None]:
    """Turn a refused question into one without an answer: it proves nothing of any order."""
    try:
        yield
    except BrokerRejected as error:
        raise BrokerUnavailable(f"the broker cannot be asked: {error}") from error


@contextmanager
def _changing(what: str) -> Iterator[None]:
    """Turn a reject that says nothing of the order (login, limits) into one without an answer."""
    try:
        yield
    except BrokerRejected as error:
        if error.kind != "permanent":
            raise BrokerUnavailable(f"{what}: {error}") from error
        raise


def _readable_order(row: Mapping[str, Any]) -> OrderRow:
    try:
        return OrderRow.read(row)
    except ValueError as error:
        raise BrokerUnavailable(f"order {row.get('id')!r} cannot be read: {error}") from error
