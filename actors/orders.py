"""Order: one order from its placing to the last that was heard of it, and what may follow what.

The states and their transitions are tables; which order to place is for execution.py to say.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from hashlib import sha256
from typing import Final, Literal

from actors.messages import (
    FINAL_STATUSES,
    ExecutionReport,
    OrderIntent,
    OrderStatus,
    PlaceOrder,
    Purpose,
    RejectKind,
)

OrderState = Literal["sent"] | OrderStatus

OUTSIDE: Final = "outside"
"""Begins the client order id of reports on orders that were not placed here."""

_EVERY: Final[frozenset[OrderStatus]] = frozenset(
    {"accepted", "partially_filled", "filled", "cancelled", "rejected", "expired", "unknown"}
)
TRANSITIONS: Final[Mapping[OrderState, frozenset[OrderStatus]]] = {
    "sent": _EVERY,
    "unknown": _EVERY,
    "accepted": _EVERY - {"accepted"},
    "partially_filled": _EVERY - {"accepted", "rejected"},
    "filled": frozenset(),
    "cancelled": frozenset(),
    "rejected": frozenset(),
    "expired": frozenset(),
}
"""States that an order may move to. Everything else changes no state."""
STALE: Final[Mapping[OrderState, frozenset[OrderStatus]]] = {
    "sent": frozenset(),
    "unknown": frozenset(),
    "accepted": frozenset({"accepted"}),
    "partially_filled": frozenset({"accepted"}),
    "filled": frozenset({"accepted", "partially_filled", "filled", "unknown"}),
    "cancelled": frozenset({"accepted", "partially_filled", "cancelled", "unknown"}),
    "rejected": frozenset({"accepted", "rejected", "unknown"}),
    "expired": frozenset({"accepted", "partially_filled", "expired", "unknown"}),
}
"""Reports that merely come late, since sockets do not keep their order: no alert is due."""


@dataclass(slots=True, eq=False)
class Order:
    """One order, from its placing to the last that was heard of it."""

    placed: PlaceOrder
    intent: OrderIntent | None  # of an entry: levels and capital of the position it opens
    state: OrderState = "sent"
    executions: set[str] = field(default_factory=set)
    booked: int = 0  # units of the fills that came
    turnover: Decimal = Decimal(0)  # rupees that statutory charges are a share of
    charged: Decimal = Decimal(0)  # rupees of them that are booked
    claimed: int = 0  # units that the broker said are filled, whether their fills came or not
    reject_kind: RejectKind | None = None  # of a reject; None: not known
    state_ns: int = 0
    traded_ns: int | None = None  # first tick of the instrument since; for exits the underlying's
    cancel_asked_ns: int | None = None
    limit: Decimal | None = None  # worst price as last asked for; it follows the market
    limit_ns: int = 0  # when it was asked for
    repriced: int = 0
    is_reported_late: bool = False

    @property
    def left(self) -> int:
        """Units whose fills have not come."""
        return max(0, self.placed.quantity - self.booked)

    @property
    def is_done(self) -> bool:
        """Tell whether nothing more can come: a final state, and every fill it speaks of."""
        return self.state in FINAL_STATUSES and self.booked >= self.claimed

    @property
    def waits_since_ns(self) -> int | None:
        """Market time from which a final answer is due; None: nothing can be said yet."""
        if self.state in FINAL_STATUSES:
            return self.state_ns  # its fills are missing
        is_taken = self.state in ("accepted", "partially_filled")
        if is_taken and (self.placed.order_type == "market" or self.limit is not None):
            # Without a trade in the instrument there is nothing yet that it could fill at.
            return self.traded_ns
        return self.placed.placed_ns

    def note_trade(self, at_ns: int) -> None:
        """Take note that there was a price since the order was placed; the first one counts."""
        if self.traded_ns is None and at_ns > self.placed.placed_ns:
            self.traded_ns = at_ns

    def move(self, report: ExecutionReport, now_ns: int) -> bool:
        """Take the state a report brings; False if an order in this state cannot go there."""
        self.claimed = max(
            self.claimed,
            report.cumulative_quantity,
            self.placed.quantity if report.status == "filled" else 0,
        )
        if report.status in TRANSITIONS[self.state]:
            self.state = report.status
            self.reject_kind = report.reject_kind
            self.state_ns = now_ns
            return True
        return report.status in STALE[self.state]


def client_order_id(decision_id: str, purpose: Purpose, attempt: int = 0) -> str:
    """Return the id that an order of this decision has, now and after any restart.

    23 letters and digits, since brokers allow 1 to 30 alphanumerics in an order tag.
    """
    return "hrm" + sha256(f"{purpose}|{attempt}|{decision_id}".encode()).hexdigest()[:20]


def problem_of(report: ExecutionReport, order: Order | None) -> str | None:
    """Return why a report cannot be booked, or None."""
    if order is None:
        return "no such order was placed here"
    placed = order.placed
    if (report.instrument, report.side) != (placed.instrument, placed.side):
        return (
            f"it speaks of {report.side} {report.instrument}, the order was to {placed.side} "
            f"{placed.instrument}"
        )
    if report.last_quantity < 0:
        return f"quantity must not be below 0, was {report.last_quantity}"
    if report.last_quantity and not (report.last_price.is_finite() and report.last_price > 0):
        return f"the price of a fill must be above 0, was {report.last_price}"
    return None
