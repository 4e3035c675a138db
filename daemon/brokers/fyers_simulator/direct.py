"""The simulated exchange as a broker without HTTP: what is between them is lost, late and repeated.

For tests and drills of order handling: the same matching engine, risk desk and books as behind the
REST calls and the order socket, with a line in between whose faults are drawn by seed. Everything
waits for `on_tick` or for a call, so that a run is repeatable.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from random import Random
from typing import Any, Final, Literal, get_args

from actors.messages import ExecutionReport, PlaceOrder
from daemon.brokers.fyers_books import (
    FyersBooks,
    OrderRow,
    TradeRow,
    fill_report,
    outside_report,
    state_report,
)
from daemon.brokers.fyers_simulator import rows
from daemon.brokers.fyers_simulator.matching import EventKind, Exchange
from daemon.brokers.fyers_simulator.orders import BUY, LIMIT, MARKET, SELL, Order, Refusal, Trade
from daemon.errors import BrokerRejected, BrokerUnavailable
from daemon.reject_circuit import reject_kind

LineFault = Literal[
    "request_lost",  # never arrives, never answered
    "answer_lost",  # arrives, never answered
    "request_late",  # not answered; arrives before the next question is
    "refused",  # refused in the reply: no order comes of it
    "cancel_lost",
    "cancel_unanswered",
    "modify_lost",
    "modify_unanswered",
    "question_lost",  # the order book cannot be asked
    "event_lost",  # an event of the socket is dropped
    "event_late",  # held back behind the one that follows
    "event_repeated",
]
LINE_FAULTS: Final[tuple[LineFault, ...]] = get_args(LineFault)


@dataclass
class Line:
    """What goes wrong between us and the broker, each with the same probability."""

    seed: int = 1
    probability: float = 0.0
    kinds: tuple[LineFault, ...] = LINE_FAULTS

    def __post_init__(self) -> None:
        if not 0.0 <= self.probability < 1.0:
            raise ValueError(f"probability must lie in [0, 1), was {self.probability}")
        self._draw = Random(self.seed)
        self.armed: list[LineFault] = []
        self.fired: Counter[str] = Counter()

    def breaks(self, kind: LineFault) -> bool:
        """Tell whether this fault happens now; one that was armed does so first."""
        if kind in self.armed:
            self.armed.remove(kind)
        elif kind not in self.kinds or self._draw.random() >= self.probability:
            return False
        self.fired[kind] += 1
        return True


class DirectBroker:
    """Place and ask at an exchange in this process, over a line that may break.

    `symbols` maps instruments to the broker's symbols. Events that the line drops are not told
    until somebody asks: `find` reads the books, as GET /orders and GET /tradebook do.
    """

    is_remote = False

    def __init__(
        self,
        exchange: Exchange,
        symbols: Mapping[str, str],
        line: Line | None = None,
        *,
        product: str = "INTRADAY",
        on_problem: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._exchange = exchange
        self._symbols = dict(symbols)
        self._names = {symbol: name for name, symbol in symbols.items()}
        self.line = line or Line()
        self._product = product
        self._placed: dict[str, PlaceOrder] = {}
        self.books = FyersBooks(self._placed.get, self._symbols, on_problem)
        self._late: list[PlaceOrder] = []
        self._held: list[ExecutionReport] = []
        self._queue: asyncio.Queue[ExecutionReport] = asyncio.Queue()
        exchange.listeners.append(self._listen)

    @property
    def pending_reports(self) -> int:
        return self._queue.qsize()

    async def place(self, order: PlaceOrder) -> None:
        self._placed[order.client_order_id] = order
        if self.line.breaks("request_lost"):
            raise BrokerUnavailable("connection reset before the request was taken")
        if self.line.breaks("request_late"):
            self._late.append(order)
            raise BrokerUnavailable("no answer: the request is on its way")
        if self.line.breaks("refused"):
            raise BrokerRejected("RMS: refused on command")
        try:
            self._send(order)
        except Refusal as refusal:
            if self.line.breaks("answer_lost"):
                raise BrokerUnavailable("connection reset after the request was taken") from None
            kind = reject_kind(refusal.code, refusal.text)
            raise BrokerRejected(refusal.text, kind) from refusal
        if self.line.breaks("answer_lost"):
            raise BrokerUnavailable("connection reset after the request was taken")

    async def cancel(self, client_order_id: str) -> None:
        if self.line.breaks("cancel_lost"):
            raise BrokerUnavailable("connection reset before the cancel was taken")
        self.deliver_late()
        found = self._orders_of(client_order_id)
        if not found:
            raise BrokerRejected(f"no order with the tag {client_order_id}")
        try:
            self._exchange.cancel({"id": found[0].id})
        except Refusal as refusal:
            raise BrokerRejected(refusal.text) from refusal
        if self.line.breaks("cancel_unanswered"):
            raise BrokerUnavailable("connection reset after the cancel was taken")

    async def modify(self, client_order_id: str, limit_price: Decimal) -> None:
        if self.line.breaks("modify_lost"):
            raise BrokerUnavailable("connection reset before the change was taken")
        self.deliver_late()
        found = self._orders_of(client_order_id)
        if not found:
            raise BrokerRejected(f"no order with the tag {client_order_id}")
        try:
            self._exchange.modify(
                {"id": found[0].id, "type": LIMIT, "limitPrice": float(limit_price)}
            )
        except Refusal as refusal:
            raise BrokerRejected(refusal.text) from refusal
        if self.line.breaks("modify_unanswered"):
            raise BrokerUnavailable("connection reset after the change was taken")

    async def find(self, client_order_id: str) -> list[ExecutionReport] | None:
        if self.line.breaks("question_lost"):
            raise BrokerUnavailable("the order book cannot be asked")
        self.deliver_late()
        order = self._placed.get(client_order_id)
        found = self._orders_of(client_order_id)
        if order is None or not found:
            return None
        told: list[ExecutionReport] = []
        for one in found:
            told += [
                fill_report(self._trade_row(trade), order)
                for trade in self._exchange.trades
                if trade.order is one
            ]
            told.append(state_report(self._order_row(one), order))
        return told

    async def reports(self) -> AsyncIterator[ExecutionReport]:
        while True:
            yield await self._queue.get()

    async def refresh(self) -> None:
        if self.line.breaks("question_lost"):
            raise BrokerUnavailable("the books cannot be asked")
        self.deliver_late()
        # By id: an event may have been heard by `books` and lost on the line after.
        for order in self._exchange.orders.values():
            placed = self._placed.get(order.tag)
            row = self._order_row(order)
            reports = self.books.take_order(row) if placed is None else [state_report(row, placed)]
            for report in reports:
                self._queue.put_nowait(report)
        for trade in self._exchange.trades:
            trade_row = self._trade_row(trade)
            placed = self._placed.get(trade.order.tag)
            if placed is not None:
                self._queue.put_nowait(fill_report(trade_row, placed))
            elif (name := self._names.get(trade_row.symbol)) is not None:
                self._queue.put_nowait(outside_report(trade_row, name))

    async def positions(
        self,
        *,
        reduces_risk: bool = False,  # noqa: ARG002  no call is counted here
    ) -> dict[str, int]:
        if self.line.breaks("question_lost"):
            raise BrokerUnavailable("the positions cannot be asked for")
        self.deliver_late()
        return self.true_positions()

    async def open_orders(self) -> list[PlaceOrder]:
        if self.line.breaks("question_lost"):
            raise BrokerUnavailable("the order book cannot be asked")
        self.deliver_late()
        return [self._as_placed(order) for order in self._exchange.pending]

    async def cancel_all(self) -> list[str]:
        self.deliver_late()
        ended = []
        for order in self._exchange.pending:
            try:
                self._exchange.cancel({"id": order.id})
            except Refusal:  # it has not reached the exchange yet: the answer says so
                continue
            ended.append(order.tag or order.id)
        return ended

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    # The simulation's side.

    def true_positions(self) -> dict[str, int]:
        """Return what the exchange has booked, instruments that are not ours by their symbol."""
        net: dict[str, int] = {}
        for position in self._exchange.portfolio.positions.values():
            symbol = position.contract.symbol
            name = self._names.get(symbol, symbol)
            net[name] = net.get(name, 0) + position.net
        return {name: units for name, units in net.items() if units}

    def duplicates(self) -> list[str]:
        """Return the tags that stand on more than one order of the exchange."""
        counts = Counter(order.tag for order in self._exchange.orders.values() if order.tag)
        return sorted(tag for tag, count in counts.items() if count > 1)

    def deliver_late(self) -> None:
        """Let requests that are on their way arrive."""
        late, self._late = self._late, []
        for order in late:
            try:
                self._send(order)
            except Refusal:
                continue  # nobody waits for the answer; the order book has it, or there is none

    def _send(self, order: PlaceOrder) -> None:
        symbol = self._symbols.get(order.instrument)
        if symbol is None:
            raise Refusal(-300, f"Invalid symbol provided: {order.instrument!r}")
        self._exchange.place(
            {
                "symbol": symbol,
                "qty": order.quantity,
                "type": MARKET if order.limit_price is None else LIMIT,
                "side": BUY if order.side == "buy" else SELL,
                "productType": self._product,
                "limitPrice": float(order.limit_price or 0),
                "stopPrice": 0,
                "validity": "DAY",
                "disclosedQty": 0,
                "offlineOrder": False,
                "orderTag": order.client_order_id,
            }
        )

    def _listen(self, kind: EventKind, event: dict[str, Any]) -> None:
        if kind == "trades":
            trade = self._exchange.trades[-1]
            self._tell(self.books.take_trade(self._trade_row(trade)))
        elif kind == "orders":
            self._tell(self.books.take_order(self._order_row(self._exchange.orders[event["id"]])))

    def _tell(self, reports: list[ExecutionReport]) -> None:
        for report in reports:
            if self.line.breaks("event_lost"):
                continue
            if self.line.breaks("event_late"):
                self._held.append(report)
                continue
            copies = 2 if self.line.breaks("event_repeated") else 1
            held, self._held = self._held, []
            for told in ([report] * copies) + held:
                self._queue.put_nowait(told)

    def _orders_of(self, tag: str) -> list[Order]:
        return [order for order in self._exchange.orders.values() if order.tag == tag]

    def _order_row(self, order: Order) -> OrderRow:
        quote = self._exchange.market.quote(order.contract.symbol)
        return OrderRow.read(rows.order_row(order, self._exchange.client_id, quote))

    def _trade_row(self, trade: Trade) -> TradeRow:
        return TradeRow.read(rows.trade_row(trade, self._exchange.client_id, 0))

    def _as_placed(self, order: Order) -> PlaceOrder:
        known = self._placed.get(order.tag)
        if known is not None:
            return known
        return PlaceOrder(
            client_order_id=order.tag or order.id,
            decision_id="",
            instrument=self._names.get(order.contract.symbol, order.contract.symbol),
            side="buy" if order.side == BUY else "sell",
            quantity=order.quantity,
            order_type="limit" if order.limit else "market",
            purpose="entry",
            reason="not placed by this program",
            placed_ns=order.placed_ns,
        )
