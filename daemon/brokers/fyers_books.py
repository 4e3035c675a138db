"""What the broker's books say of our orders, as execution reports.

A row of the order book, of the trade book or of the order socket comes in, in any order and any
number of times; each fact comes out once, under an id that is the same from every source and after
every restart. No connection here, and nothing decided: how to ask is for the broker's client.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from typing import Any, Final, NamedTuple

from actors.messages import ExecutionReport, OrderStatus, PlaceOrder
from actors.options import is_option_symbol
from actors.orders import OUTSIDE
from daemon.reject_circuit import reject_kind


class FyersStatus(IntEnum):
    """The broker's order states; 3 is reserved and treated like one on its way."""

    CANCELLED = 1
    TRADED = 2
    RESERVED = 3
    TRANSIT = 4
    REJECTED = 5
    PENDING = 6
    EXPIRED = 7


_ENDS: Final = frozenset(
    {FyersStatus.CANCELLED, FyersStatus.TRADED, FyersStatus.REJECTED, FyersStatus.EXPIRED}
)
_BEGINS: Final = frozenset({FyersStatus.RESERVED, FyersStatus.TRANSIT})
_RESTS: Final = frozenset({FyersStatus.PENDING})

MOVES: Final[Mapping[FyersStatus, frozenset[FyersStatus]]] = {
    FyersStatus.RESERVED: frozenset({FyersStatus.TRANSIT}) | _RESTS | _ENDS,
    FyersStatus.TRANSIT: frozenset({FyersStatus.RESERVED}) | _RESTS | _ENDS,
    FyersStatus.PENDING: _ENDS,
    FyersStatus.CANCELLED: frozenset(),
    FyersStatus.TRADED: frozenset(),
    FyersStatus.REJECTED: frozenset(),
    FyersStatus.EXPIRED: frozenset(),
}
"""States that an order may go on to. A cancel and a fill may race: whichever is told first ends it,
and the other is refused here and put before a person."""

LATE: Final[Mapping[FyersStatus, frozenset[FyersStatus]]] = {
    FyersStatus.RESERVED: frozenset(),
    FyersStatus.TRANSIT: frozenset(),
    FyersStatus.PENDING: _BEGINS,
    **dict.fromkeys(_ENDS, _BEGINS | _RESTS),
}
"""States that a row may still show because it comes late: no news, and no problem."""

_REPORTED: Final[Mapping[FyersStatus, OrderStatus]] = {
    FyersStatus.CANCELLED: "cancelled",
    FyersStatus.TRADED: "filled",
    FyersStatus.RESERVED: "accepted",
    FyersStatus.TRANSIT: "accepted",
    FyersStatus.REJECTED: "rejected",
    FyersStatus.PENDING: "accepted",
    FyersStatus.EXPIRED: "expired",
}

_INDIA: Final = timezone(timedelta(hours=5, minutes=30))
_OUR_TAG: Final = re.compile(r"1:([A-Za-z0-9]{1,30})")
_NS_PER_SECOND: Final = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderRow:
    """What is used of one row of the order book, or one event of the order socket."""

    id: str
    symbol: str
    side: int  # 1 buys, -1 sells
    quantity: int
    filled: int
    status: FyersStatus
    tag: str  # as sent; empty: not by this program
    source: str  # A: the broker's risk desk
    message: str
    at_ns: int

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> "OrderRow":
        """Read a row of GET /orders; ValueError names what is missing or wrong."""
        return cls(
            id=_text(row, "id"),
            symbol=_text(row, "symbol"),
            side=_one_of(row, "side", (1, -1)),
            quantity=_whole(row, "qty"),
            filled=_whole(row, "filledQty"),
            status=FyersStatus(_whole(row, "status")),
            tag=own_tag(row.get("orderTag")),
            source=str(row.get("source", "")),
            message=str(row.get("message", "")),
            at_ns=order_time_ns(_text(row, "orderDateTime")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeRow:
    """What is used of one row of the trade book."""

    id: str
    order_id: str
    symbol: str
    side: int
    quantity: int
    price: Decimal
    tag: str
    at_ns: int

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> "TradeRow":
        """Read a row of GET /tradebook; ValueError names what is missing or wrong."""
        return cls(
            id=_text(row, "tradeNumber"),
            order_id=_text(row, "orderNumber"),
            symbol=_text(row, "symbol"),
            side=_one_of(row, "side", (1, -1)),
            quantity=_whole(row, "tradedQty"),
            price=_price(row, "tradePrice"),
            tag=own_tag(row.get("orderTag")),
            at_ns=order_time_ns(_text(row, "orderDateTime")),
        )


class Stranger(NamedTuple):
    """An order that this program did not place."""

    order_id: str
    symbol: str
    source: str


@dataclass(slots=True)
class _Known:
    """The last that was believed of one order of the broker."""

    status: FyersStatus
    filled: int = 0


class FyersBooks:
    """Fold rows into reports of the orders that were placed here.

    `find` gives the order placed under a tag, None for a tag that is not ours. `on_problem` hears
    each contradiction as a sentence, once; the row is then left out.
    """

    def __init__(
        self,
        find: Callable[[str], PlaceOrder | None],
        symbols: Mapping[str, str],
        on_problem: Callable[[str], None],
    ) -> None:
        """`symbols` maps the instruments that are traded here to the broker's symbols."""
        self._find = find
        self._symbols = dict(symbols)
        self._names = {symbol: name for name, symbol in symbols.items()}
        self._on_problem = on_problem
        self._known: dict[str, _Known] = {}  # by the broker's order id
        self._id_of_tag: dict[str, str] = {}
        self._told: set[str] = set()
        self._problems: set[str] = set()
        self.strangers: dict[str, Stranger] = {}

    def symbol_of(self, instrument: str) -> str | None:
        """Return the broker's symbol of what is traded here; None: it has none."""
        return self._symbols.get(instrument)

    def name_of(self, symbol: str) -> str | None:
        """Return what is traded here under a symbol of the broker; None: nothing."""
        return self._names.get(symbol)

    def learn(self, order: PlaceOrder) -> None:
        """Count the option of an order, which goes by the broker's symbol, as traded here."""
        if is_option_symbol(order.instrument):
            self._symbols.setdefault(order.instrument, order.instrument)
            self._names.setdefault(order.instrument, order.instrument)

    def take_order(self, row: OrderRow) -> list[ExecutionReport]:
        """Return what is new in a row of the order book."""
        order = self._ours(row.tag, row.id, row.symbol, row.side, row.source)
        if order is None or not self._fits(row, order):
            return []
        known = self._known.setdefault(row.id, _Known(FyersStatus.TRANSIT))
        if row.status != known.status and row.status not in MOVES[known.status]:
            if row.status not in LATE[known.status]:
                self._problem(
                    f"order {row.id} ({row.tag}) cannot go from {known.status.name} to "
                    f"{row.status.name}: it stays {known.status.name}"
                )
            return []
        known.status, known.filled = row.status, max(known.filled, row.filled)
        return self._new(state_report(row, order))

    def take_trade(self, row: TradeRow) -> list[ExecutionReport]:
        """Return the fill of a row of the trade book, unless it was told before."""
        order = self._ours(row.tag, row.order_id, row.symbol, row.side, "")
        if order is not None:
            return self._new(fill_report(row, order))
        name = self._names.get(row.symbol)
        if name is None or row.order_id not in self.strangers:
            return []
        return self._new(outside_report(row, name))

    def _new(self, report: ExecutionReport) -> list[ExecutionReport]:
        if report.execution_id in self._told:
            return []
        self._told.add(report.execution_id)
        return [report]

    def _ours(
        self, tag: str, order_id: str, symbol: str, side: int, source: str
    ) -> PlaceOrder | None:
        order = self._find(tag) if tag else None
        if order is None:
            self.strangers.setdefault(order_id, Stranger(order_id, symbol, source))
            return None
        first = self._id_of_tag.setdefault(tag, order_id)
        if first != order_id:
            self._problem(f"tag {tag} stands on two orders of the broker: {first} and {order_id}")
        if (self._symbols.get(order.instrument), _side(order)) != (symbol, side):
            self._problem(
                f"order {order_id} ({tag}) is {side:+d} {symbol}, placed was {order.side} "
                f"{order.instrument}"
            )
            return None
        return order

    def _fits(self, row: OrderRow, order: PlaceOrder) -> bool:
        if row.quantity != order.quantity:
            self._problem(
                f"order {row.id} ({row.tag}) is for {row.quantity} units, placed were "
                f"{order.quantity}: somebody else has changed it"
            )
        if row.filled > row.quantity:
            self._problem(
                f"order {row.id} ({row.tag}) has {row.filled} units filled of {row.quantity}"
            )
            return False
        return True

    def _problem(self, text: str) -> None:
        if text not in self._problems:
            self._problems.add(text)
            self._on_problem(text)


def state_report(row: OrderRow, order: PlaceOrder) -> ExecutionReport:
    """Return the report of an order's state; the units in it are claimed, the trades prove them."""
    status = _REPORTED[row.status]
    if status == "accepted" and row.filled:
        status = "partially_filled"
    return ExecutionReport(
        execution_id=f"{row.id}:{status}:{row.filled}",
        client_order_id=order.client_order_id,
        instrument=order.instrument,
        side=order.side,
        status=status,
        event_ns=row.at_ns,
        cumulative_quantity=row.filled,
        reason=row.message,
        reject_kind=reject_kind(0, row.message) if status == "rejected" else None,
    )


def fill_report(row: TradeRow, order: PlaceOrder) -> ExecutionReport:
    """Return the report of one trade; whether it was the last is for the order's own row to say."""
    return ExecutionReport(
        execution_id=f"trade:{row.id}",
        client_order_id=order.client_order_id,
        instrument=order.instrument,
        side=order.side,
        status="partially_filled",
        event_ns=row.at_ns,
        last_quantity=row.quantity,
        last_price=row.price,
    )


def outside_report(row: TradeRow, instrument: str) -> ExecutionReport:
    """Return the report of a trade of somebody else in something that is traded here."""
    return ExecutionReport(
        execution_id=f"trade:{row.id}",
        client_order_id=f"{OUTSIDE}{row.order_id}",
        instrument=instrument,
        side="buy" if row.side == 1 else "sell",
        status="partially_filled",
        event_ns=row.at_ns,
        last_quantity=row.quantity,
        last_price=row.price,
    )


def own_tag(shown: object) -> str:
    """Return the tag that a user gave, of `1:tag`; empty for the broker's own `2:Untagged`."""
    found = _OUR_TAG.fullmatch(shown) if isinstance(shown, str) else None
    return found.group(1) if found else ""


def order_time_ns(text: str) -> int:
    """Return `26-Nov-2026 10:15:00`, India's time, as nanoseconds UTC."""
    local = datetime.strptime(text, "%d-%b-%Y %H:%M:%S").replace(tzinfo=_INDIA)
    return round(local.timestamp()) * _NS_PER_SECOND


def _side(order: PlaceOrder) -> int:
    return 1 if order.side == "buy" else -1


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be a text that is not empty, was {value!r}")
    return value


def _whole(row: Mapping[str, Any], name: str) -> int:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} must be a whole number of 0 or more, was {value!r}")
    return value


def _one_of(row: Mapping[str, Any], name: str, choices: tuple[int, ...]) -> int:
    value = row.get(name)
    if isinstance(value, bool) or value not in choices:
        raise ValueError(f"{name} must be one of {choices}, was {value!r}")
    return int(value)


def _price(row: Mapping[str, Any], name: str) -> Decimal:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal) or not value > 0:
        raise ValueError(f"{name} must be a price above 0, was {value!r}")
    return Decimal(str(value))
