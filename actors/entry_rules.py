"""Entry rules: what an entry is measured by, rule by rule; risk.py says what follows.

Each yields what was measured against what limit, whether it passed or not.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from actors.exposure import Exposure
from actors.instruments import Instrument
from actors.levels import BY_RANGE, GivenLevels, is_price, level_problem
from actors.messages import Decision, RuleResult
from actors.policies import ExecutionSettings, RiskLimits
from actors.session import SessionCalendar
from actors.vehicles import Vehicle

_SECOND_NS: Final = 1_000_000_000
_MINUTE_NS: Final = 60 * _SECOND_NS


@dataclass(frozen=True, slots=True)
class Plan:
    """What an entry would order, and why it cannot if it cannot."""

    vehicle: Vehicle
    lots: int
    through_options: bool = False
    problem: str | None = None


class EntryRules:
    """Measure an entry by limits, calendar and exposure."""

    def __init__(
        self,
        limits: RiskLimits,
        stops: ExecutionSettings,
        calendar: SessionCalendar,
        exposure: Exposure,
    ) -> None:
        self._limits = limits
        self._stops = stops
        self._calendar = calendar
        self._exposure = exposure
        self._intent_times_ns: deque[int] = deque()

    def note_intent(self, now_ns: int) -> None:
        """Count an intent that goes out now."""
        self._intent_times_ns.append(now_ns)

    def of_entry(
        self,
        decision: Decision,
        instrument: Instrument,
        plan: Plan,
        now_ns: int | None,
        given: GivenLevels = BY_RANGE,
    ) -> Iterator[RuleResult]:
        """Yield every rule; instrument: what the decision is about. None: no time came yet."""
        yield from self._time_rules(decision, plan.vehicle.instrument, now_ns)
        yield from self._decision_rules(decision, instrument, given)
        yield from self._contract_rule(plan)
        yield from self._exposure_rules(decision, plan.lots)
        yield from self._loss_rules(instrument, now_ns or 0)

    def _time_rules(
        self, decision: Decision, instrument: Instrument, now_ns: int | None
    ) -> Iterator[RuleResult]:
        limit_s = self._limits.max_decision_age_seconds
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

    def _contract_rule(self, plan: Plan) -> Iterator[RuleResult]:
        if plan.through_options:
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

    def _loss_rules(self, instrument: Instrument, now_ns: int) -> Iterator[RuleResult]:
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
        while self._intent_times_ns and self._intent_times_ns[0] <= now_ns - _MINUTE_NS:
            self._intent_times_ns.popleft()
        count = len(self._intent_times_ns)
        allowed = limits.max_orders_per_minute
        yield RuleResult("orders per minute", count < allowed, str(count), f"below {allowed}")
