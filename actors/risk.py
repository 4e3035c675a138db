"""Risk: the only actor that may turn a decision into an order intent.

What is open, on its way and lost is counted in exposure.py. How an intent becomes orders, and when
a stop is hit, is for execution.py.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
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
from actors.exposure import Exposure, Reservation
from actors.instruments import Instrument, InstrumentCatalogue
from actors.levels import BY_RANGE, GivenLevels, is_price, level_problem, levels_of
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

_SECOND_NS = 1_000_000_000
_MINUTE_NS = 60 * _SECOND_NS
_REMEMBERED_DECISIONS = 4096  # older ones are refused for their age


@dataclass(frozen=True, slots=True)
class _Plan:
    """What an entry would order, and why it cannot if it cannot."""

    vehicle: Vehicle
    lots: int
    problem: str | None = None


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
        self._intent_times_ns: deque[int] = deque()

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
                plan = _Plan(Vehicle(instrument, decision.reference_price, 1), 0)
                rules = (*halts, *self._entry_rules(decision, instrument, plan, binding=False))
                verdict = _verdict(decision, rules)
                yield verdict
                if verdict.approved:
                    yield self._exit(decision)
            case "entry":
                plan = self._plan(decision, instrument)
                plan = replace(plan, lots=self._lots(decision, plan))
                rules = (*halts, self._pause_rule(decision.instrument))
                rules += self._entry_rules(decision, instrument, plan, binding=True)
                verdict = _verdict(decision, rules)
                yield verdict
                if verdict.approved:
                    yield self._entry(decision, instrument, plan)

    def _plan(self, decision: Decision, instrument: Instrument) -> "_Plan":
        """Return what an entry would order, without lots; a plan with a problem orders nothing."""
        now_ns = max(self._now_ns or 0, decision.bar_close_ns)
        strategy = self._desk.option_strategy(instrument.symbol)
        try:
            vehicle = self._vehicles.of(
                instrument, decision.action, decision.reference_price, now_ns, strategy
            )
        except ValueError as error:
            return _Plan(Vehicle(instrument, Decimal(0), 1), 0, str(error))
        return _Plan(vehicle, 0)

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
        plan = self._plan(decision, instrument)
        affordable = self._affordable_lots(plan.vehicle)
        plan = replace(plan, lots=trade.lots if trade.lots <= affordable else 0)
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
        self._note_intent()
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
        plan: "_Plan",
        given: GivenLevels = BY_RANGE,
    ) -> OrderIntent:
        self._note_intent()
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

    def _lots(self, decision: Decision, plan: "_Plan") -> int:
        if not 0.0 <= decision.size_fraction <= 1.0:
            return 0
        most = min(self._affordable_lots(plan.vehicle), self._limits.max_position_lots)
        return plan.vehicle.instrument.lots_for_fraction(decision.size_fraction, most)

    def _entry_rules(
        self,
        decision: Decision,
        instrument: Instrument,
        plan: "_Plan",
        *,
        binding: bool,
        given: GivenLevels = BY_RANGE,
    ) -> tuple[RuleResult, ...]:
        """Return every rule of an entry; for an exit (not binding) they are measured, and pass."""
        rules = (
            *self._time_rules(decision, plan.vehicle.instrument),
            *self._decision_rules(decision, instrument, given),
            *self._contract_rule(plan, instrument, binding=binding),
            *self._exposure_rules(decision, plan.lots),
            *self._loss_rules(instrument),
        )
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

    def _time_rules(self, decision: Decision, instrument: Instrument) -> Iterator[RuleResult]:
        limit_s = self._limits.max_decision_age_seconds
        now_ns = self._now_ns
        if now_ns is None:
            yield RuleResult("decision age", False, "no time received yet", f"{limit_s:g} s")
            now_ns = decision.bar_close_ns
        else:
            # A decision may be ahead of the last TimeEvent, which comes once a second.
            age_s = max(0, now_ns - decision.bar_close_ns) / _SECOND_NS
            yield RuleResult("decision age", age_s <= limit_s, f"{age_s:g} s", f"{limit_s:g} s")
            now_ns = max(now_ns, decision.bar_close_ns)
        is_covered = self._calendar.is_covered(instrument.session, now_ns)
        value = "covered" if is_covered else "holidays of this day are not known"
        yield RuleResult("calendar horizon", is_covered, value, "covered")
        phase = self._calendar.phase(instrument.session, now_ns, instrument.expiry)
        yield RuleResult("session phase", phase == "open", phase, "open")
        if instrument.is_contract:
            yield self._expiry_rule(instrument, now_ns)

    def _expiry_rule(self, instrument: Instrument, now_ns: int) -> RuleResult:
        least = self._limits.min_days_to_expiry
        limit = f"at least {least} days"
        if instrument.expiry is None:
            return RuleResult("days to expiry", False, "not known", limit)
        left = (instrument.expiry - self._exposure.session_day(instrument, now_ns)).days
        return RuleResult("days to expiry", left >= least, str(left), limit)

    def _decision_rules(
        self, decision: Decision, instrument: Instrument, given: GivenLevels
    ) -> Iterator[RuleResult]:
        least = self._limits.min_confidence
        sure = decision.confidence >= least  # False for NaN
        yield RuleResult("confidence", sure, f"{decision.confidence:.4g}", f"at least {least:g}")
        fraction = decision.size_fraction
        fits = 0.0 <= fraction <= 1.0
        yield RuleResult("size fraction", fits, f"{fraction:g}", "0 to 1")
        price = decision.reference_price
        yield RuleResult("reference price", is_price(price), str(price), "above 0")
        problem = level_problem(decision, instrument, self._stops, given)
        yield RuleResult(
            "atr known", problem is None, problem or str(decision.atr), "room for a stop"
        )

    def _contract_rule(
        self, plan: "_Plan", instrument: Instrument, *, binding: bool
    ) -> Iterator[RuleResult]:
        if binding and self._vehicles.are_options(instrument):
            value = plan.problem or plan.vehicle.instrument.symbol
            limit = "one that can be bought"
            yield RuleResult("option contract", plan.problem is None, value, limit)

    def _exposure_rules(self, decision: Decision, lots: int) -> Iterator[RuleResult]:
        limits = self._limits
        name = decision.instrument
        held = self._exposure.held(name)
        net = held.net_quantity if held else 0
        if self._exposure.is_on_its_way(name) and not net:
            value = "an entry is on its way"
        else:
            value = f"{net} units open" if net else "none"
        yield RuleResult("open position", name not in self._exposure.exposed, value, "none")
        others = len(self._exposure.exposed - {name})
        most = limits.max_open_positions
        yield RuleResult("max open positions", others < most, f"{others} others", f"below {most}")
        capital = self._exposure.capital_available
        yield RuleResult(
            "capital", lots >= 1, f"{capital:.2f} INR pay for {lots} lots", "at least 1 lot"
        )
        most_lots = limits.max_position_lots
        yield RuleResult("max position lots", lots <= most_lots, str(lots), str(most_lots))

    def _loss_rules(self, instrument: Instrument) -> Iterator[RuleResult]:
        limits = self._limits
        exposure = self._exposure
        day = exposure.day(instrument)
        loss = max(Decimal(0), day.start_equity - exposure.equity)
        most = exposure.most_daily_loss
        value = f"{loss:.2f} INR" + (", locked for the day" if day.is_locked else "")
        yield RuleResult("daily loss", not day.is_locked, value, f"{most:.2f} INR")
        fall = (exposure.peak_equity - exposure.equity) / exposure.peak_equity
        value = f"{fall:.4f}" + (", locked" if exposure.drawdown_is_locked else "")
        yield RuleResult(
            "drawdown", not exposure.drawdown_is_locked, value, f"{limits.max_drawdown:g}"
        )
        self._forget_old_intents()
        count = len(self._intent_times_ns)
        allowed = limits.max_orders_per_minute
        yield RuleResult("orders per minute", count < allowed, str(count), f"below {allowed}")

    def _remember(self, decision: Decision) -> None:
        self._decisions_seen[decision.id] = None
        if len(self._decisions_seen) > _REMEMBERED_DECISIONS:
            del self._decisions_seen[next(iter(self._decisions_seen))]

    def _note_intent(self) -> None:
        self._intent_times_ns.append(self._now_ns or 0)

    def _forget_old_intents(self) -> None:
        times = self._intent_times_ns
        while times and times[0] <= (self._now_ns or 0) - _MINUTE_NS:
            times.popleft()


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
