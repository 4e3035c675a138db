"""Execution: intents become orders, the broker's reports become positions, and positions are left.

Whether to trade is for risk; what the broker said is a fact here, whatever was expected. Positions
come from fills alone, each execution id counted once.
"""

from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from hashlib import sha256
from typing import Final

from actors.base import Actor
from actors.charges import NoChargeRates, taxed_side, turnover_of
from actors.holding import OUTSIDE, Exit, Holding, Order
from actors.instruments import Instrument, InstrumentCatalogue
from actors.messages import (
    Alert,
    CancelOrder,
    ExecutionReport,
    KillSwitch,
    OrderIntent,
    PlaceOrder,
    Position,
    Purpose,
    Severity,
    Tick,
    TimeEvent,
)
from actors.policies import ExecutionSettings
from actors.session import SessionCalendar

Input = OrderIntent | ExecutionReport | Tick | TimeEvent | KillSwitch
Output = PlaceOrder | CancelOrder | Position | Alert

SQUARE_OFF: Final = "SQUARE_OFF"
KILLED: Final = "KILL_SWITCH"
DECIDED: Final = "DECISION"
OVERSHOT: Final = "EXIT_OVERFILLED"
CLOSED_OUTSIDE: Final = "OUTSIDE_CLOSE"

NOT_CLOSED_RUNBOOK = "Position not closed"
NO_ANSWER_RUNBOOK = "Order without answer"
UNEXPECTED_RUNBOOK = "Unexpected report"
REFUSED_RUNBOOK = "Intent refused"

_SECOND_NS = 1_000_000_000
_REMEMBERED_ORDERS = 4096


class ExecutionActor(Actor[Input, Output]):
    """Place orders, book their fills, watch stop, target and trailing stop, and leave in time.

    One entry order and one exit order per instrument at most. A kill switch without flatten holds
    back exits as well: from then on a person acts, and two hands closing one position would open
    another. With flatten everything is closed.
    """

    name = "execution"

    def __init__(
        self,
        settings: ExecutionSettings,
        catalogue: InstrumentCatalogue,
        calendar: SessionCalendar,
    ) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._calendar = calendar
        self._timeout_ns = int(settings.order_timeout_seconds * _SECOND_NS)
        self._retry_ns = int(settings.exit_retry_seconds * _SECOND_NS)
        self._now_ns = 0
        self._kill_switch: KillSwitch | None = None  # while it is engaged
        self._holdings: dict[str, Holding] = {}
        self._orders: dict[str, Order] = {}
        self._session_days: dict[str, date] = {}  # by market

    def handle(self, message: Input) -> Iterator[Output]:
        match message:
            case Tick():
                yield from self._take_tick(message)
            case TimeEvent(now_ns=now_ns):
                self._now_ns = max(self._now_ns, now_ns)
                yield from self._take_time()
            case ExecutionReport():
                yield from self._take_report(message)
            case OrderIntent():
                self._now_ns = max(self._now_ns, message.decided_ns)
                yield from self._take_intent(message)
            case KillSwitch():
                yield from self._take_kill_switch(message)

    # Intents

    def _take_intent(self, intent: OrderIntent) -> Iterator[Output]:
        refusal = self._refusal(intent)
        if refusal is not None:
            yield self._alert(
                "warning",
                f"intent {intent.decision_id} refused: {refusal}",
                REFUSED_RUNBOOK,
                intent.instrument,
            )
            if intent.purpose == "entry" and intent.instrument in self._catalogue:
                holding = self._holding(intent.instrument)
                if holding.entry_order is None:
                    # Risk counts the entry as on its way until a position says otherwise.
                    yield holding.position(self._now_ns)
            return
        holding = self._holding(intent.instrument)
        if intent.purpose == "exit":
            yield from self._begin_exit(holding, DECIDED, intent.decision_id, again=True)
            return
        yield self._place(holding, "entry", intent.quantity, DECIDED, intent.decision_id, intent)

    def _refusal(self, intent: OrderIntent) -> str | None:
        if intent.instrument not in self._catalogue:
            return f"unknown instrument {intent.instrument}"
        if self._kill_switch is not None:
            return f"kill switch: {self._kill_switch.reason}"
        holding = self._holding(intent.instrument)
        for order in (holding.entry_order, holding.exit_order):
            if order is not None:
                return f"order {order.placed.client_order_id} is pending, state {order.state}"
        net = holding.net
        if intent.purpose == "exit":
            fits = net * intent.quantity < 0
            return None if fits else f"{intent.quantity} units do not close a position of {net}"
        if net:
            return f"a position of {net} units is open"
        if intent.quantity == 0:
            return "quantity must not be 0"
        if client_order_id(intent.decision_id, "entry") in self._orders:
            return "it has become an order before"
        return self._unknown_costs(holding.instrument)

    def _unknown_costs(self, instrument: Instrument) -> str | None:
        """Return why an entry could not be charged for; rates once known stay so for its exit."""
        if self._settings.charges == "flat":
            return None
        try:
            self._settings.charge_table.of_instrument(instrument, self._day_of(instrument))
        except NoChargeRates as error:
            return str(error)
        return None

    # Reports

    def _take_report(self, report: ExecutionReport) -> Iterator[Output]:
        if report.client_order_id.startswith(OUTSIDE):
            order = self._orders.get(report.execution_id) or self._adopted(report)
        else:
            order = self._orders.get(report.client_order_id)
        problem = _problem_of(report, order)
        if problem is not None or order is None:
            yield self._alert(
                "critical" if report.last_quantity else "warning",
                f"report {report.execution_id} of order {report.client_order_id}, status "
                f"{report.status}, is left out: {problem}",
                UNEXPECTED_RUNBOOK,
                report.instrument,
            )
            return
        if report.execution_id in order.executions:
            return
        order.executions.add(report.execution_id)
        holding = self._holding(report.instrument)
        if report.last_quantity:
            yield from self._take_fill(holding, order, report)
        if not order.move(report, self._now_ns):
            yield self._alert(
                "warning",
                f"order {report.client_order_id} cannot go from {order.state} to {report.status}: "
                f"it stays {order.state}",
                UNEXPECTED_RUNBOOK,
                report.instrument,
            )
        yield from self._settle(holding, order)

    def _adopted(self, report: ExecutionReport) -> Order | None:
        """Return an order that stands for a stranger's fill, if that closes what is held here."""
        holding = self._holdings.get(report.instrument)
        signed = report.last_quantity if report.side == "buy" else -report.last_quantity
        if holding is None or holding.net * signed >= 0 or abs(signed) > abs(holding.net):
            return None
        placed = PlaceOrder(
            client_order_id=report.client_order_id,
            decision_id=holding.decision_id,
            instrument=holding.name,
            side=report.side,
            quantity=report.last_quantity,
            order_type="market",
            purpose="exit",
            reason=CLOSED_OUTSIDE,
            placed_ns=report.event_ns,
        )
        order = Order(placed, None, state_ns=self._now_ns)
        self._orders[report.execution_id] = order
        return order

    def _take_fill(
        self, holding: Holding, order: Order, report: ExecutionReport
    ) -> Iterator[Output]:
        was_done = order.is_done
        holding.book(order, report, self._costs(holding, order, report), self._now_ns)
        yield holding.position(self._now_ns)
        placed = order.placed
        overshoot = holding.net if placed.side == "buy" else -holding.net
        if placed.purpose == "exit" and overshoot > 0:
            yield from self._begin_exit(holding, OVERSHOT, placed.decision_id)
        if order.booked > placed.quantity:
            surprise = f"of {placed.quantity} now has fills of {order.booked} units"
        elif was_done:
            surprise = f"was {order.state} and filled {report.last_quantity} units all the same"
        else:
            return
        yield self._alert(
            "critical",
            f"order {placed.client_order_id} {surprise}: they count, check with the broker",
            UNEXPECTED_RUNBOOK,
            holding.name,
        )

    def _costs(self, holding: Holding, order: Order, report: ExecutionReport) -> Decimal:
        """Return what a fill adds to the costs of its order, in rupees."""
        settings = self._settings
        placed = order.placed
        if settings.charges == "flat":
            if order.booked:
                return Decimal(0)
            is_entry = placed.purpose == "entry"
            return settings.brokerage_entry if is_entry else settings.brokerage_exit
        instrument = holding.instrument
        order.turnover += turnover_of(instrument, report.last_price, report.last_quantity)
        rates = settings.charge_table.of_instrument(instrument, self._day_of(instrument))
        side = taxed_side(instrument, report.side, placed.purpose)
        total = rates.charges(side, order.turnover).total
        added = total - order.charged
        order.charged = total
        return added

    def _day_of(self, instrument: Instrument) -> date:
        return self._calendar.session_key(instrument.session, self._now_ns)

    def _settle(self, holding: Holding, order: Order) -> Iterator[Output]:
        """Draw the consequences of an order that is done."""
        if not order.is_done:
            return
        if holding.entry_order is order:
            holding.entry_order = None
            if not order.booked:
                yield holding.position(self._now_ns)
        if holding.exit_order is order:
            holding.exit_order = None
            if holding.exit is not None:
                holding.exit.next_ns = self._now_ns + self._retry_ns
        yield from self._pursue_exit(holding)

    # Ticks and time

    def _take_tick(self, tick: Tick) -> Iterator[Output]:
        self._now_ns = max(self._now_ns, tick.event_ns)
        holding = self._holdings.get(tick.instrument)
        if holding is None:
            return
        for order in (holding.entry_order, holding.exit_order):
            if order and order.traded_ns is None and tick.event_ns > order.placed.placed_ns:
                order.traded_ns = tick.event_ns
        # A tick from before the entry says nothing about the position.
        if holding.entry_ns is not None and tick.event_ns >= holding.entry_ns:
            yield from self._watch_levels(holding, tick.last_price)
        yield from self._pursue_exit(holding)
        yield from self._chase(holding)

    def _watch_levels(self, holding: Holding, price: Decimal) -> Iterator[Output]:
        if holding.follow(price):
            yield holding.position(self._now_ns)
        if holding.exit is not None or self._is_held_back:
            return
        reason = holding.level_hit(price)
        if reason is not None:
            yield from self._begin_exit(holding, reason, holding.decision_id)

    def _take_time(self) -> Iterator[Output]:
        self._begin_day()
        for holding in self._holdings.values():
            if holding.net or holding.entry_order:
                phase = self._calendar.phase(holding.instrument.session, self._now_ns)
                if phase in ("square_off", "closed"):
                    yield from self._square_off(holding)
                yield from self._tell_if_late(holding)
            yield from self._pursue_exit(holding)
            yield from self._chase(holding)

    def _begin_day(self) -> None:
        """Let exits that failed on a day be tried again on the next."""
        for holding in self._holdings.values():
            market = holding.instrument.session
            day = self._calendar.session_key(market, self._now_ns)
            if self._session_days.get(market, day) < day:
                holding.is_held_back = holding.is_told_late = False
                if holding.exit is not None and holding.exit.has_failed:
                    holding.exit = None
        for market in {holding.instrument.session for holding in self._holdings.values()}:
            self._session_days[market] = self._calendar.session_key(market, self._now_ns)

    def _square_off(self, holding: Holding) -> Iterator[Output]:
        yield from self._cancel(holding.entry_order, SQUARE_OFF)
        if not holding.net:
            return
        if not self._is_held_back:
            yield from self._begin_exit(holding, SQUARE_OFF, holding.decision_id)
        elif not holding.is_held_back:
            holding.is_held_back = True
            yield self._alert(
                "critical",
                f"{holding.net} units of {holding.name} are open at square-off and the kill switch "
                "holds exits back. Close them by hand, or kill with --flatten.",
                NOT_CLOSED_RUNBOOK,
                holding.name,
            )

    def _tell_if_late(self, holding: Holding) -> Iterator[Output]:
        """Call a person, once, for a position that is open when it should be closed (`flat_by`)."""
        if not holding.net or holding.is_told_late:
            return
        interval = self._calendar.interval(holding.instrument.session, self._now_ns)
        if interval is None or self._now_ns < interval.flat_by_ns:
            return
        holding.is_told_late = True
        left_s = (interval.close_ns - self._now_ns) // _SECOND_NS
        yield self._alert(
            "critical",
            f"{holding.net} units of {holding.name} should be closed by now and trading ends in "
            f"{left_s} s. Close them by hand if the exit does not fill.",
            NOT_CLOSED_RUNBOOK,
            holding.name,
        )

    def _chase(self, holding: Holding) -> Iterator[Output]:
        """Ask once for an order that has no final answer in time; then call a person."""
        for order in (holding.entry_order, holding.exit_order):
            if order is None:
                continue
            asked_ns = order.cancel_asked_ns
            if asked_ns is None:
                since_ns = order.waits_since_ns
                if since_ns is not None and self._now_ns - since_ns >= self._timeout_ns:
                    yield from self._cancel(order, "no final answer in time")
            elif self._now_ns - asked_ns >= self._timeout_ns and not order.is_reported_late:
                order.is_reported_late = True
                yield self._alert(
                    "critical",
                    f"order {order.placed.client_order_id} for {order.placed.quantity} "
                    f"{holding.name} has no final answer, state {order.state}: nothing new is "
                    "opened there until it has",
                    NO_ANSWER_RUNBOOK,
                    holding.name,
                )

    # Kill switch

    @property
    def _is_held_back(self) -> bool:
        return self._kill_switch is not None and not self._kill_switch.flatten

    def _take_kill_switch(self, message: KillSwitch) -> Iterator[Output]:
        self._kill_switch = message if message.engaged else None
        if not message.engaged:
            return
        for holding in self._holdings.values():
            yield from self._cancel(holding.entry_order, f"kill switch: {message.reason}")
            if not holding.net:
                continue
            if message.flatten:
                yield from self._begin_exit(holding, KILLED, holding.decision_id, again=True)
            else:
                yield self._alert(
                    "warning",
                    f"kill switch without flatten: {holding.net} units of {holding.name} stay "
                    "open, and their stops are not acted on",
                    NOT_CLOSED_RUNBOOK,
                    holding.name,
                )

    # Leaving

    def _begin_exit(
        self, holding: Holding, reason: str, decision_id: str, *, again: bool = False
    ) -> Iterator[Output]:
        """Start to leave; `again` also after an endeavour that failed."""
        if holding.exit is None or (again and holding.exit.has_failed):
            holding.exit = Exit(reason, decision_id)
        yield from self._cancel(holding.entry_order, reason)
        yield from self._pursue_exit(holding)

    def _pursue_exit(self, holding: Holding) -> Iterator[Output]:
        leaving = holding.exit
        if leaving is None or holding.exit_order is not None:
            return
        if holding.net == 0:
            holding.exit = None
            return
        if leaving.has_failed or self._is_held_back:
            return
        if leaving.attempts >= self._settings.exit_attempts:
            leaving.has_failed = True
            yield self._alert(
                "critical",
                f"Failed to close position for {holding.name}. Please check manually.",
                NOT_CLOSED_RUNBOOK,
                holding.name,
            )
        elif self._now_ns >= leaving.next_ns:
            leaving.attempts += 1
            yield self._place(holding, "exit", -holding.net, leaving.reason, leaving.decision_id)

    # What goes out

    def _place(
        self,
        holding: Holding,
        purpose: Purpose,
        quantity: int,
        reason: str,
        decision_id: str,
        intent: OrderIntent | None = None,
    ) -> PlaceOrder:
        if purpose == "exit":
            holding.exits_sent += 1
        limit_price = intent.limit_price if intent else None
        placed = PlaceOrder(
            client_order_id=client_order_id(
                decision_id, purpose, holding.exits_sent if purpose == "exit" else 0
            ),
            decision_id=decision_id,
            instrument=holding.name,
            side="buy" if quantity > 0 else "sell",
            quantity=abs(quantity),
            order_type="market" if limit_price is None else "limit",
            purpose=purpose,
            reason=reason,
            placed_ns=self._now_ns,
            limit_price=limit_price,
        )
        order = Order(placed, intent, state_ns=self._now_ns)
        self._remember(order)
        if purpose == "entry":
            holding.entry_order = order
        else:
            holding.exit_order = order
        return placed

    def _remember(self, order: Order) -> None:
        self._orders[order.placed.client_order_id] = order
        if len(self._orders) > _REMEMBERED_ORDERS:
            oldest = next(iter(self._orders))
            if self._orders[oldest].is_done:
                del self._orders[oldest]

    def _cancel(self, order: Order | None, reason: str) -> Iterator[Output]:
        if order is None or order.cancel_asked_ns is not None:
            return
        order.cancel_asked_ns = self._now_ns
        yield CancelOrder(
            client_order_id=order.placed.client_order_id,
            instrument=order.placed.instrument,
            reason=reason,
            placed_ns=self._now_ns,
        )

    def _alert(
        self, severity: Severity, text: str, runbook: str, instrument: str | None = None
    ) -> Alert:
        return Alert(
            severity=severity,
            text=text,
            runbook=runbook,
            at_ns=self._now_ns,
            source=self.name,
            instrument=instrument,
        )

    def _holding(self, name: str) -> Holding:
        if name not in self._holdings:
            self._holdings[name] = Holding(
                self._catalogue[name], name, trails=self._settings.trailing_stop
            )
        return self._holdings[name]


def client_order_id(decision_id: str, purpose: Purpose, attempt: int = 0) -> str:
    """Return the id that an order of this decision has, now and after any restart.

    23 letters and digits, since brokers allow 1 to 30 alphanumerics in an order tag.
    """
    return "hrm" + sha256(f"{purpose}|{attempt}|{decision_id}".encode()).hexdigest()[:20]


def _problem_of(report: ExecutionReport, order: Order | None) -> str | None:
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
