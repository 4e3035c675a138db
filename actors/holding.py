"""Holding: the orders and fills of one instrument, and what they add up to.

Bookkeeping only: average price, result, levels. When to place, cancel or leave is for execution.py
to say.
"""

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from actors.instruments import Instrument
from actors.messages import ExecutionReport, OrderIntent, Position, RejectKind
from actors.orders import Order

STOP_LOSS: Final = "STOP_LOSS_HIT"
TARGET: Final = "TARGET_PROFIT_HIT"
TRAILING_STOP: Final = "TRAILING_STOP_HIT"
CLOSED: Final = "CLOSED"

_PAISA = Decimal("0.01")


@dataclass(slots=True)
class Entry:
    """One entry on its way; above the freeze quantity it takes several orders."""

    intent: OrderIntent
    reason: str
    left: int  # unsigned units that no order was placed for yet
    sent: int = 0  # orders placed
    filled: int = 0  # units of those of them that are done
    next_ns: int = 0  # market time from which more may be placed
    orders: list[Order] = field(default_factory=list)  # without an end yet


@dataclass(slots=True)
class Exit:
    """One endeavour to leave a position, in attempts; each covers all that is held.

    Above the freeze quantity an attempt takes several orders.
    """

    reason: str
    decision_id: str
    attempts: int = 0  # without those that were put off
    left: int = 0  # unsigned units of this attempt that no order was placed for yet
    next_ns: int = 0  # market time from which more may be placed
    passing: RejectKind | None = None  # of a reject in this attempt that mends itself
    is_spent: bool = False  # an order of this attempt ended unfilled for another reason
    times_put_off: int = 0  # attempts in a row that failed by such rejects alone, and do not count
    is_told_put_off: bool = False  # a person was told of them
    has_failed: bool = False  # a person was called; it is tried on, slowly
    slow_attempts: int = 0  # since then
    orders: list[Order] = field(default_factory=list)  # without an end yet


@dataclass(slots=True)
class Holding:
    """Position, levels and live orders of one instrument."""

    instrument: Instrument
    name: str
    trails: bool = True  # whether a trailing stop follows the price
    net: int = 0  # signed units
    average_price: Decimal = Decimal(0)
    realised: Decimal = Decimal(0)
    charges: Decimal = Decimal(0)
    capital_per_unit: Decimal = Decimal(0)
    stop: Decimal | None = None
    target: Decimal | None = None
    trailing: Decimal | None = None
    trailing_distance: Decimal = Decimal(0)
    underlying_entry: Decimal | None = None  # price of the underlying when the view was taken
    entry_ns: int | None = None
    decision_id: str = ""  # that the position goes back to
    trip_pnl: Decimal = Decimal(0)
    round_trips: int = 0
    winning_round_trips: int = 0
    last_exit_reason: str = ""
    entry: Entry | None = None
    exit: Exit | None = None
    exits_sent: int = 0  # never starts again: client order ids of exits count on
    is_held_back: bool = False  # a person was told that the kill switch keeps it open
    is_told_late: bool = False  # a person was told that it is open when it should be closed

    @property
    def open_orders(self) -> list[Order]:
        """Orders of the entry and of the exit that have no end yet."""
        return (self.entry.orders if self.entry else []) + (self.exit.orders if self.exit else [])

    @property
    def watched(self) -> str:
        """Symbol of the instrument whose price the levels are prices of."""
        return self.instrument.underlying or self.name

    @property
    def view(self) -> int:
        """Signed units for a rise of what is watched."""
        return -self.net if self._is_put else self.net

    @property
    def _is_put(self) -> bool:
        return self.instrument.option_kind == "PE"

    def book(self, order: Order, report: ExecutionReport, costs: Decimal, now_ns: int) -> None:
        """Count one fill: net, average price, result and charges.

        costs: rupees of this fill, on top of what the report brings.
        """
        price = report.last_price
        quantity = report.last_quantity if report.side == "buy" else -report.last_quantity
        net = self.net
        fees = report.charges + costs
        order.booked += report.last_quantity
        if net == 0:
            self._open_trip(order, report, now_ns)
        closed = min(abs(net), abs(quantity)) if net * quantity < 0 else 0
        result = (price - self.average_price) * (closed if net > 0 else -closed) - fees
        self.realised += result
        self.trip_pnl += result
        self.charges += fees
        self.net = net + quantity
        if closed == 0:
            value = self.average_price * abs(net) + price * abs(quantity)
            self.average_price = value / abs(self.net)
        elif closed == abs(net):
            self._close_trip()
            if self.net:
                self._open_trip(order, report, now_ns)
                self.average_price = price

    def _open_trip(self, order: Order, report: ExecutionReport, now_ns: int) -> None:
        # A broker's clock that runs ahead must not blind the position to the ticks until then.
        self.entry_ns = min(report.event_ns, now_ns)
        self.decision_id = order.placed.decision_id
        self.trip_pnl = Decimal(0)
        self.is_held_back = self.is_told_late = False
        intent = order.intent
        if intent is None:
            return  # more was closed than was open: no levels belong to what is left
        self.capital_per_unit = intent.capital_used / abs(intent.quantity)
        self.stop = intent.stop_price
        self.target = intent.target_price
        self.underlying_entry = intent.underlying_price
        if self.trails and intent.stop_price is not None:
            entered_at = report.last_price
            if intent.underlying_price is not None:
                entered_at = intent.underlying_price
            distance = entered_at - intent.stop_price
            is_long = (intent.quantity > 0) is not self._is_put
            self.trailing_distance = distance if is_long else -distance
            self.trailing = intent.stop_price

    def _close_trip(self) -> None:
        self.round_trips += 1
        self.winning_round_trips += self.trip_pnl > 0
        self.last_exit_reason = self.exit.reason if self.exit else CLOSED
        self.average_price = Decimal(0)
        self.capital_per_unit = Decimal(0)
        self.stop = self.target = self.trailing = None
        self.trailing_distance = Decimal(0)
        self.entry_ns = self.underlying_entry = None

    def follow(self, price: Decimal) -> bool:
        """Move the trailing stop in favour of the position; tell whether it moved."""
        trailing = self.trailing
        distance = self.trailing_distance
        if trailing is None or distance <= 0:
            return False
        if self.view > 0:
            level = price - distance
            if level <= trailing:
                return False
            level = self.instrument.round_to_tick(level, "down")
            is_better = level > trailing
        else:
            level = price + distance
            if level >= trailing:
                return False
            level = self.instrument.round_to_tick(level, "up")
            is_better = level < trailing
        if is_better:
            self.trailing = level
        return is_better

    def level_hit(self, price: Decimal) -> str | None:
        """Return which level the price has reached: stop-loss first, then target, then trailing."""
        if self.net == 0:
            return None
        sign = 1 if self.view > 0 else -1
        if self.stop is not None and (price - self.stop) * sign <= 0:
            return STOP_LOSS
        if self.target is not None and (price - self.target) * sign >= 0:
            return TARGET
        if self.trailing is not None and (price - self.trailing) * sign <= 0:
            return TRAILING_STOP
        return None

    def position(self, now_ns: int) -> Position:
        """Return the holding as the message that others read."""
        return Position(
            instrument=self.name,
            net_quantity=self.net,
            average_price=round(self.average_price, 8),
            realised_pnl=round(self.realised, 4),
            charges=self.charges,
            capital_used=(self.capital_per_unit * abs(self.net)).quantize(_PAISA),
            updated_ns=now_ns,
            stop_price=self.stop,
            target_price=self.target,
            trailing_stop_price=self.trailing,
            entry_ns=self.entry_ns,
            round_trips=self.round_trips,
            winning_round_trips=self.winning_round_trips,
            last_exit_reason=self.last_exit_reason,
            decision_id=self.decision_id,
            underlying=self.instrument.underlying,
            option_kind=self.instrument.option_kind,
            underlying_entry=self.underlying_entry,
            lot_size=self.instrument.lot_size if self.instrument.underlying else 0,
        )
