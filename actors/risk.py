"""Risk: the only actor that may turn a decision into an order intent.

What is open, on its way and lost is counted in exposure.py. How an intent becomes orders, and when
a stop is hit, is for execution.py.
"""

from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from typing import Literal

import msgspec

from actors.base import Actor
from actors.desk import (
    CAPITAL,
    POSITION_OPEN,
    REFUSED,
    TradingDesk,
    answer,
    as_decision,
    is_manual,
)
from actors.entry_rules import EntryRules, Plan
from actors.exposure import Exposure, Reservation
from actors.instruments import Instrument, InstrumentCatalogue
from actors.levels import BY_RANGE, GivenLevels, is_price, levels_of
from actors.messages import (
    Decision,
    KillSwitch,
    ManualTrade,
    OptionChain,
    OrderIntent,
    Position,
    RequestAnswer,
    RiskVerdict,
    RuleResult,
    StartSession,
    StopSession,
    TimeEvent,
    TradingSession,
)
from actors.policies import ExecutionSettings, RiskLimits
from actors.session import SessionCalendar
from actors.vehicles import Vehicle, Vehicles

Input = (
    Decision
    | Position
    | OptionChain
    | KillSwitch
    | TimeEvent
    | StartSession
    | StopSession
    | ManualTrade
)
Output = RiskVerdict | OrderIntent | RequestAnswer | TradingSession
Kind = Literal["hold", "entry", "exit"]

_REMEMBERED_DECISIONS = 4096  # older ones are refused for their age


class RiskActor(Actor[Input, Output]):
    """Let a decision through as an order intent, or refuse it and say why, rule by rule.

    Halted until a KillSwitch says otherwise. An approved entry counts as open, with its capital,
    until a Position of its instrument shows what became of it (exposure.py). An engaged kill switch
    refuses every decision; nothing else refuses an exit, since leaving a position only lessens the
    risk. A manual trade passes the same rules; while its order is on its way, and after a user's
    stop, automated entries wait (desk.py).
    """

    name = "risk"

    def __init__(
        self,
        limits: RiskLimits,
        stops: ExecutionSettings,
        catalogue: InstrumentCatalogue,
        calendar: SessionCalendar,
        desk: TradingDesk | None = None,
    ) -> None:
        """Without a desk no request of a user is accepted."""
        self._desk = desk or TradingDesk("PAPER", {})
        self._limits = limits
        self._stops = stops
        self._catalogue = catalogue
        self._calendar = calendar
        self._halted_because: str | None = "no kill switch state received yet"
        self._now_ns: int | None = None
        self._exposure = Exposure(limits, catalogue, calendar)
        self._vehicles = Vehicles(stops, limits, calendar)
        self._ranges: dict[str, Decimal | None] = {}  # average true range of the last decision
        self._decisions_seen: dict[str, None] = {}
        self._rules = EntryRules(limits, stops, calendar, self._exposure)

    def handle(self, message: Input) -> Iterator[Output]:
        match message:
            case TimeEvent(now_ns=now_ns):
                self._now_ns = max(now_ns, self._now_ns or 0)
                self._exposure.roll_days(self._now_ns)
            case KillSwitch(engaged=engaged, reason=reason):
                self._halted_because = reason if engaged else None
            case Position():
                self._exposure.take(message, self._now_ns)
            case OptionChain():
                self._take_chain(message)
            case Decision():
                yield from self._judge(message)
            case StartSession(instrument=name):
                yield from self._desk.start(
                    message, self._exposure.history(name), self._now_ns or 0
                )
            case StopSession():
                yield from self._desk.stop(message, self._now_ns or 0)
            case ManualTrade():
                yield from self._trade_manually(message)

    def _take_chain(self, chain: OptionChain) -> None:
        """Choose from it, and value what is held by what it could be sold for."""
        self._vehicles.take(chain)
        for quote in chain.quotes:
            if self._exposure.position(quote.contract.symbol) is not None:
                price = quote.last_price if quote.bid is None else quote.bid
                self._exposure.mark(quote.contract.symbol, price)
        self._exposure.measure_losses()

    def _judge(self, decision: Decision) -> Iterator[Output]:
        halts = (self._kill_switch_rule(), self._duplicate_rule(decision))
        self._remember(decision)
        if decision.instrument not in self._catalogue:
            unknown = RuleResult("instrument", False, decision.instrument, "one of the catalogue")
            yield _verdict(decision, (*halts, unknown))
            return
        instrument = self._catalogue[decision.instrument]
        if is_price(decision.reference_price):
            self._exposure.mark(decision.instrument, decision.reference_price)
        self._ranges[decision.instrument] = decision.atr
        self._exposure.begin_day(instrument, decision.bar_close_ns, self._now_ns)
        self._exposure.measure_losses()
        match self._kind(decision):
            case "hold":
                yield _verdict(decision, halts, within="hold")
            case "exit":
                plan = Plan(Vehicle(instrument, decision.reference_price, 1), 0)
                rules = (*halts, *self._entry_rules(decision, instrument, plan, binding=False))
                verdict = _verdict(decision, rules)
                yield verdict
                if verdict.approved:
                    yield self._exit(decision)
            case "entry":
                plan = self._plan(decision, instrument, partial(self._lots, decision))
                rules = (*halts, self._pause_rule(decision.instrument))
                rules += self._entry_rules(decision, instrument, plan, binding=True)
                verdict = _verdict(decision, rules)
                yield verdict
                if verdict.approved:
                    yield self._entry(decision, instrument, plan)

    def _plan(
        self, decision: Decision, instrument: Instrument, lots_of: Callable[[Vehicle], int]
    ) -> Plan:
        """Return what an entry would order; a plan with a problem orders nothing."""
        now_ns = max(self._now_ns or 0, decision.bar_close_ns)
        strategy = self._desk.option_strategy(instrument.symbol)
        through_options = self._vehicles.are_options(instrument)
        try:
            vehicle = self._vehicles.of(
                instrument, decision.action, decision.reference_price, now_ns, strategy
            )
        except ValueError as error:
            return Plan(Vehicle(instrument, Decimal(0), 1), 0, through_options, str(error))
        return Plan(vehicle, lots_of(vehicle), through_options)

    def _trade_manually(self, trade: ManualTrade) -> Iterator[Output]:
        now_ns = self._now_ns or 0
        refusal = self._desk.refusal(trade, now_ns)
        if refusal is not None:
            yield refusal
            return
        instrument = self._catalogue[trade.instrument]
        decision = as_decision(trade, self._ranges.get(trade.instrument), now_ns)
        halts = (self._kill_switch_rule(), self._duplicate_rule(decision))
        self._remember(decision)
        self._exposure.begin_day(instrument, now_ns, self._now_ns)
        self._exposure.measure_losses()
        plan = self._plan(
            decision,
            instrument,
            lambda vehicle: trade.lots if trade.lots <= self._affordable_lots(vehicle) else 0,
        )
        affordable = self._affordable_lots(plan.vehicle)
        given = GivenLevels(trade.stop_price, trade.target_price)
        rules = (
            *halts,
            *self._entry_rules(decision, instrument, plan, binding=True, given=given),
        )
        verdict = _verdict(decision, rules)
        yield verdict
        yield self._manual_answer(trade, verdict, plan.vehicle, affordable)
        if verdict.approved:
            yield self._entry(decision, instrument, plan, given)

    def _manual_answer(
        self, trade: ManualTrade, verdict: RiskVerdict, vehicle: Vehicle, affordable: int
    ) -> RequestAnswer:
        broken = next((rule.rule for rule in verdict.rules if not rule.passed), None)
        problems = {"open position": POSITION_OPEN, "max open positions": POSITION_OPEN}
        problem = "" if broken is None else problems.get(broken, REFUSED)
        said = answer(trade, verdict.decided_ns, verdict.reason, problem)
        if broken != "capital":
            return said
        needed = vehicle.instrument.capital_for(vehicle.price, trade.lots)
        return msgspec.structs.replace(
            said,
            problem=CAPITAL,
            required=needed + self._limits.brokerage_entry,
            available=self._exposure.capital_available,
            most_lots=affordable,
        )

    def _kind(self, decision: Decision) -> Kind:
        net = self._exposure.view(decision.instrument)
        match decision.action:
            case "BUY_LONG" | "SELL_SHORT":
                return "entry"
            case "CLOSE_LONG":
                return "exit" if net > 0 else "hold"
            case "CLOSE_SHORT":
                return "exit" if net < 0 else "hold"
            case "HOLD":
                return "hold"

    def _exit(self, decision: Decision) -> OrderIntent:
        self._rules.note_intent(self._now_ns or 0)
        held = self._exposure.held(decision.instrument)
        if held is None:
            raise ValueError(f"nothing is held of {decision.instrument}: there is no exit")
        price = self._exposure.value_of(held) if held.underlying else decision.reference_price
        return OrderIntent(
            decision_id=decision.id,
            instrument=held.instrument,
            quantity=-held.net_quantity,
            purpose="exit",
            reference_price=price,
            decided_ns=decision.bar_close_ns,
        )

    def _entry(
        self,
        decision: Decision,
        instrument: Instrument,
        plan: Plan,
        given: GivenLevels = BY_RANGE,
    ) -> OrderIntent:
        self._rules.note_intent(self._now_ns or 0)
        vehicle = plan.vehicle
        traded = vehicle.instrument
        quantity = vehicle.sign * traded.units(plan.lots)
        stop, target = levels_of(decision, instrument, self._stops, given)
        capital = traded.capital_for(vehicle.price, plan.lots)
        reservation = Reservation(
            subject=decision.instrument,
            quantity=quantity,
            capital=capital,
            decided_ns=decision.bar_close_ns,
            session_day=self._exposure.session_day(instrument, decision.bar_close_ns),
            is_manual=is_manual(decision.id),
        )
        name = decision.instrument if vehicle.contract is None else traded.symbol
        self._exposure.reserve(name, reservation)
        return OrderIntent(
            decision_id=decision.id,
            instrument=name,
            quantity=quantity,
            purpose="entry",
            reference_price=vehicle.price,
            decided_ns=decision.bar_close_ns,
            stop_price=stop,
            target_price=target,
            capital_used=capital,
            contract=vehicle.contract,
            underlying="" if vehicle.contract is None else decision.instrument,
            underlying_price=None if vehicle.contract is None else decision.reference_price,
        )

    def _affordable_lots(self, vehicle: Vehicle) -> int:
        if not is_price(vehicle.price):
            return 0
        return vehicle.instrument.max_lots(
            vehicle.price, self._exposure.capital_available, self._limits.brokerage_entry
        )

    def _lots(self, decision: Decision, vehicle: Vehicle) -> int:
        if not 0.0 <= decision.size_fraction <= 1.0:
            return 0
        most = min(self._affordable_lots(vehicle), self._limits.max_position_lots)
        return vehicle.instrument.lots_for_fraction(decision.size_fraction, most)

    def _entry_rules(
        self,
        decision: Decision,
        instrument: Instrument,
        plan: Plan,
        *,
        binding: bool,
        given: GivenLevels = BY_RANGE,
    ) -> tuple[RuleResult, ...]:
        """Return every rule of an entry; for an exit (not binding) they are measured, and pass."""
        rules = tuple(self._rules.of_entry(decision, instrument, plan, self._now_ns, given))
        if binding:
            return rules
        return tuple(
            RuleResult(rule.rule, True, rule.value, f"{rule.limit}, for entries") for rule in rules
        )

    def _kill_switch_rule(self) -> RuleResult:
        halted = self._halted_because
        return RuleResult("kill switch", halted is None, halted or "released", "released")

    def _duplicate_rule(self, decision: Decision) -> RuleResult:
        is_new = decision.id not in self._decisions_seen
        return RuleResult("duplicate decision id", is_new, decision.id, "not seen before")

    def _pause_rule(self, name: str) -> RuleResult:
        reason = self._desk.paused_because(name)
        if reason is None and self._exposure.has_manual_entry():
            reason = "a manual order is on its way"
        return RuleResult("automated trading", reason is None, reason or "on", "on")

    def _remember(self, decision: Decision) -> None:
        self._decisions_seen[decision.id] = None
        if len(self._decisions_seen) > _REMEMBERED_DECISIONS:
            del self._decisions_seen[next(iter(self._decisions_seen))]


def _verdict(
    decision: Decision, rules: tuple[RuleResult, ...], within: str = "within limits"
) -> RiskVerdict:
    """Approve if every rule passed; else give the first that did not as the reason."""
    broken = next((rule for rule in rules if not rule.passed), None)
    if broken is None:
        reason = within
    elif broken.rule == "kill switch":
        reason = f"kill switch: {broken.value}"
    else:
        reason = f"{broken.rule}: {broken.value}, allowed: {broken.limit}"
    return RiskVerdict(
        decision_id=decision.id,
        instrument=decision.instrument,
        approved=broken is None,
        reason=reason,
        decided_ns=decision.bar_close_ns,
        rules=rules,
    )
