"""Execution: intents become orders, the broker's reports become positions, and positions are left.

Whether to trade is for risk; what the broker said is a fact here, whatever was expected. Positions
come from fills alone, each execution id counted once.
"""

from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Final

from actors.base import Actor
from actors.costs import Costs
from actors.entering import Entering
from actors.holding import Holding
from actors.instruments import Instrument, InstrumentCatalogue
from actors.leaving import Leaving
from actors.messages import (
    Alert,
    CancelOrder,
    ExecutionReport,
    KillSwitch,
    ModifyOrder,
    OptionChain,
    OrderIntent,
    PlaceOrder,
    Position,
    Tick,
    TimeEvent,
)
from actors.options import as_instrument
from actors.order_book import SOURCE, OrderBook
from actors.orders import Order, client_order_id, problem_of
from actors.policies import ExecutionSettings
from actors.session import SessionCalendar

Input = OrderIntent | ExecutionReport | Tick | OptionChain | TimeEvent | KillSwitch
Output = PlaceOrder | CancelOrder | ModifyOrder | Position | Alert

KILLED: Final = "KILL_SWITCH"
DECIDED: Final = "DECISION"
OVERSHOT: Final = "EXIT_OVERFILLED"

UNEXPECTED_RUNBOOK = "Unexpected report"
REFUSED_RUNBOOK = "Intent refused"


class ExecutionActor(Actor[Input, Output]):
    """Place orders, book their fills, watch stop, target and trailing stop, and leave in time.

    One entry and one exit per instrument at most, each of several orders where the exchange takes
    no single one of the size (entering.py, leaving.py). A kill switch without flatten holds
    back exits as well: from then on a person acts, and two hands closing one position would open
    another. With flatten everything is closed.
    """

    name = SOURCE

    def __init__(
        self,
        settings: ExecutionSettings,
        catalogue: InstrumentCatalogue,
        calendar: SessionCalendar,
    ) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._calendar = calendar
        self._costs = Costs(settings)
        self._book = OrderBook(settings)
        self._entering = Entering(self._book)
        self._leaving = Leaving(settings, calendar, self._book, self._entering)
        self._kill_switch: KillSwitch | None = None  # while it is engaged
        self._holdings: dict[str, Holding] = {}
        self._watchers: dict[str, list[Holding]] = {}  # by the instrument whose price they watch
        self._session_days: dict[str, date] = {}  # by market

    def handle(self, message: Input) -> Iterator[Output]:
        match message:
            case Tick():
                yield from self._take_tick(message)
            case OptionChain():
                yield from self._take_chain(message)
            case TimeEvent(now_ns=now_ns):
                self._advance(now_ns)
                yield from self._take_time()
            case ExecutionReport():
                yield from self._take_report(message)
            case OrderIntent():
                self._advance(message.decided_ns)
                yield from self._take_intent(message)
            case KillSwitch():
                yield from self._take_kill_switch(message)

    def _advance(self, now_ns: int) -> None:
        self._book.now_ns = max(self._book.now_ns, now_ns)

    # Intents

    def _take_intent(self, intent: OrderIntent) -> Iterator[Output]:
        self._learn_contract(intent)
        refusal = self._refusal(intent)
        if refusal is not None:
            yield self._book.alert(
                "warning",
                f"intent {intent.decision_id} refused: {refusal}",
                REFUSED_RUNBOOK,
                intent.instrument,
            )
            if intent.purpose == "entry" and self._is_known(intent.instrument):
                holding = self._holding(intent.instrument)
                if holding.entry is None:
                    # Risk counts the entry as on its way until a position says otherwise.
                    yield holding.position(self._book.now_ns)
            return
        holding = self._holding(intent.instrument)
        if intent.purpose == "exit":
            yield from self._leaving.begin(holding, DECIDED, intent.decision_id, again=True)
            return
        yield from self._entering.begin(holding, intent, DECIDED)

    def _refusal(self, intent: OrderIntent) -> str | None:
        if not self._is_known(intent.instrument):
            return f"unknown instrument {intent.instrument}"
        if self._kill_switch is not None:
            return f"kill switch: {self._kill_switch.reason}"
        holding = self._holding(intent.instrument)
        for order in holding.open_orders:
            return f"order {order.placed.client_order_id} is pending, state {order.state}"
        if holding.entry is not None:
            return f"{holding.entry.left} units of an entry are still to be ordered"
        net = holding.net
        if intent.purpose == "exit":
            fits = net * intent.quantity < 0
            return None if fits else f"{intent.quantity} units do not close a position of {net}"
        if net:
            return f"a position of {net} units is open"
        if intent.quantity == 0:
            return "quantity must not be 0"
        if client_order_id(intent.decision_id, "entry") in self._book:
            return "it has become an order before"
        return self._costs.problem(holding.instrument, self._day_of(holding.instrument))

    # Reports

    def _take_report(self, report: ExecutionReport) -> Iterator[Output]:
        order = self._book.find(report, self._holdings.get(report.instrument))
        problem = problem_of(report, order)
        if problem is not None or order is None:
            yield self._book.alert(
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
        if not order.move(report, self._book.now_ns):
            yield self._book.alert(
                "warning",
                f"order {report.client_order_id} cannot go from {order.state} to {report.status}: "
                f"it stays {order.state}",
                UNEXPECTED_RUNBOOK,
                report.instrument,
            )
        yield from self._settle(holding, order)

    def _take_fill(
        self, holding: Holding, order: Order, report: ExecutionReport
    ) -> Iterator[Output]:
        was_done = order.is_done
        costs = self._costs.of_fill(holding, order, report, self._day_of(holding.instrument))
        holding.book(order, report, costs, self._book.now_ns)
        yield holding.position(self._book.now_ns)
        placed = order.placed
        overshoot = holding.net if placed.side == "buy" else -holding.net
        if placed.purpose == "exit" and overshoot > 0:
            yield from self._leaving.begin(holding, OVERSHOT, placed.decision_id)
        if order.booked > placed.quantity:
            surprise = f"of {placed.quantity} now has fills of {order.booked} units"
        elif was_done:
            surprise = f"was {order.state} and filled {report.last_quantity} units all the same"
        else:
            return
        yield self._book.alert(
            "critical",
            f"order {placed.client_order_id} {surprise}: they count, check with the broker",
            UNEXPECTED_RUNBOOK,
            holding.name,
        )

    def _day_of(self, instrument: Instrument) -> date:
        return self._calendar.session_key(instrument.session, self._book.now_ns)

    def _settle(self, holding: Holding, order: Order) -> Iterator[Output]:
        """Draw the consequences of an order that is done."""
        if not order.is_done:
            return
        yield from self._entering.note_end(holding, order)
        yield from self._leaving.note_end(holding, order)
        yield from self._leaving.pursue(holding)

    # Ticks and time

    def _take_tick(self, tick: Tick) -> Iterator[Output]:
        self._advance(tick.event_ns)
        own = self._holdings.get(tick.instrument)
        self._book.see(tick, own.instrument.underlying if own else "")
        if own is not None and (own.entry or own.exit):
            for order in own.open_orders:
                order.note_trade(tick.event_ns)
        for holding in self._watchers.get(tick.instrument, ()):
            # An option whose quotes have ended may be left as long as its underlying trades.
            for order in holding.exit.orders if holding.exit else ():
                order.note_trade(tick.event_ns)
            # A tick from before the entry says nothing about the position.
            if holding.entry_ns is not None and tick.event_ns >= holding.entry_ns:
                yield from self._watch_levels(holding, tick.last_price)
            yield from self._pursue(holding)

    def _take_chain(self, chain: OptionChain) -> Iterator[Output]:
        """Take the quotes of options that are held, or ordered, as their ticks."""
        for quote in chain.quotes:
            holding = self._holdings.get(quote.contract.symbol)
            if holding is not None:
                yield from self._take_tick(
                    Tick(
                        instrument=holding.name,
                        last_price=quote.last_price,
                        bid=quote.bid,
                        ask=quote.ask,
                        event_ns=chain.read_ns,
                    )
                )
                yield from self._pursue(holding)

    def _pursue(self, holding: Holding) -> Iterator[Output]:
        """Do what has become due: further slices and attempts, nearer limits, questions."""
        if holding.entry is None and holding.exit is None:
            return
        yield from self._entering.pursue(holding)
        yield from self._leaving.pursue(holding)
        if not self._leaving.is_held_back:
            yield from self._book.reprice(holding)
        yield from self._book.chase(holding)

    def _watch_levels(self, holding: Holding, price: Decimal) -> Iterator[Output]:
        if holding.follow(price):
            yield holding.position(self._book.now_ns)
        if holding.exit is not None or self._leaving.is_held_back:
            return
        reason = holding.level_hit(price)
        if reason is not None:
            yield from self._leaving.begin(holding, reason, holding.decision_id)

    def _take_time(self) -> Iterator[Output]:
        self._begin_day()
        for holding in self._holdings.values():
            if holding.net or holding.entry:
                instrument = holding.instrument
                phase = self._calendar.phase(
                    instrument.session, self._book.now_ns, instrument.expiry
                )
                if phase in ("square_off", "closed"):
                    yield from self._leaving.square_off(holding)
                yield from self._leaving.tell_if_late(holding)
            yield from self._pursue(holding)

    def _begin_day(self) -> None:
        """Let exits that failed on a day be tried again on the next."""
        now_ns = self._book.now_ns
        for holding in self._holdings.values():
            market = holding.instrument.session
            day = self._calendar.session_key(market, now_ns)
            if self._session_days.get(market, day) < day:
                holding.is_held_back = holding.is_told_late = False
                leaving = holding.exit
                if leaving is not None and leaving.has_failed and not leaving.orders:
                    holding.exit = None
        for market in {holding.instrument.session for holding in self._holdings.values()}:
            self._session_days[market] = self._calendar.session_key(market, now_ns)

    # Kill switch

    def _take_kill_switch(self, message: KillSwitch) -> Iterator[Output]:
        self._kill_switch = message if message.engaged else None
        self._leaving.is_held_back = message.engaged and not message.flatten
        if not message.engaged:
            return
        for holding in self._holdings.values():
            yield from self._entering.stop(holding, f"kill switch: {message.reason}")
            if not holding.net:
                continue
            if message.flatten:
                yield from self._leaving.begin(holding, KILLED, holding.decision_id, again=True)
            else:
                yield self._leaving.stays_open(holding)

    def _is_known(self, name: str) -> bool:
        return name in self._holdings or name in self._catalogue

    def _learn_contract(self, intent: OrderIntent) -> None:
        """Keep an option that is ordered for the first time; risk has chosen it."""
        if intent.contract is not None and intent.instrument not in self._holdings:
            underlying = self._catalogue[intent.underlying]
            self._hold(intent.instrument, as_instrument(intent.contract, underlying))

    def _holding(self, name: str) -> Holding:
        return self._holdings.get(name) or self._hold(name, self._catalogue[name])

    def _hold(self, name: str, instrument: Instrument) -> Holding:
        holding = Holding(instrument, name, trails=self._settings.trailing_stop)
        self._holdings[name] = holding
        self._watchers.setdefault(holding.watched, []).append(holding)
        return holding
