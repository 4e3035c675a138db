"""What a session did, counted while it is recorded: messages, latencies per hop, trades."""

from collections import Counter
from decimal import Decimal
from typing import Any

from actors.forecast_score import ForecastScore
from actors.histogram import Histogram
from actors.messages import (
    Decision,
    ExecutionReport,
    MarketContext,
    PlaceOrder,
    Position,
    RefusedTick,
    RiskVerdict,
    Tick,
)
from daemon.bus import Entry

_NS_PER_US = 1000


class SessionStatistics:
    """Count every entry of a session once; `summary` is what the commands print.

    A hop is the time from an input's publication to the publication of what followed from it: its
    way through the bus, its wait, and its handling.
    """

    def __init__(self) -> None:
        self.streams: Counter[str] = Counter()
        self.actions: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.refused_ticks: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.positions: dict[str, Position] = {}
        self.last_decision: Decision | None = None
        self._orders_placed = 0
        self._fills = 0
        self._hops_us: dict[str, Histogram] = {}
        self._tick_to_decision_us = Histogram()
        self._thinking_us = Histogram()
        self._depth = Histogram()
        self._forecasts: dict[str, ForecastScore] = {}  # by instrument and timeframe
        self._ticks = 0
        self._conflated = 0
        self.late = 0
        self.failed = 0

    def add(self, entry: Entry) -> None:
        """Count one new entry."""
        envelope = entry.envelope
        self.streams[entry.stream] += 1
        if envelope.cause:
            cause_stream, _, _ = envelope.cause.partition("/")
            hop = self._hops_us.setdefault(f"{cause_stream}_to_{entry.stream}", Histogram())
            hop.record((envelope.published_ns - envelope.cause_published_ns) / _NS_PER_US)
        match envelope.message:
            case Tick(conflated=older):
                self._ticks += 1
                self._conflated += older
            case RefusedTick(reason=reason):
                self.refused_ticks[reason] += 1
            case Decision() as decision:
                self._add_decision(decision)
                elapsed_ns = envelope.published_ns - envelope.origin_published_ns
                self._tick_to_decision_us.record(elapsed_ns / _NS_PER_US)
            case MarketContext(instrument=instrument, timeframe=timeframe, checked=check):
                if check is not None:
                    name = f"{instrument} {timeframe}"
                    self._forecasts.setdefault(name, ForecastScore()).add(check)
            case RiskVerdict(approved=False, rules=rules):
                self.refusals.update(rule.rule for rule in rules if not rule.passed)
            case PlaceOrder():
                self._orders_placed += 1
            case ExecutionReport(status=status, last_quantity=quantity):
                self.statuses[status] += 1
                self._fills += quantity > 0
            case Position() as position:
                self.positions[position.instrument] = position
            case _:
                pass

    def _add_decision(self, decision: Decision) -> None:
        self.actions[decision.action] += 1
        self.late += decision.late
        self.failed += decision.failed
        self.last_decision = decision
        if decision.cycles:
            self._thinking_us.record(decision.elapsed_us)
            self._depth.record(decision.reasoning_depth)

    def summary(self) -> dict[str, Any]:
        """Return the counts as plain values; latencies in microseconds."""
        trips = sum(position.round_trips for position in self.positions.values())
        wins = sum(position.winning_round_trips for position in self.positions.values())
        pnl = sum((p.realised_pnl for p in self.positions.values()), Decimal(0))
        charges = sum((p.charges for p in self.positions.values()), Decimal(0))
        return {
            "ticks": self._ticks,
            "conflated_quotes": self._conflated,
            "refused_ticks_by_reason": dict(self.refused_ticks),
            "bars": self.streams["bar"],
            "contexts": self.streams["context"],
            "decisions": self.streams["decision"],
            "verdicts": self.streams["verdict"],
            "intents": self.streams["intent"],
            "orders": self._orders_placed,
            "reports": self.streams["report"],
            "fills": self._fills,
            "alerts": self.streams["alert"],
            "decisions_by_action": dict(self.actions),
            "late_decisions": self.late,
            "failed_decisions": self.failed,
            "refusals_by_rule": dict(self.refusals),
            "reports_by_status": dict(self.statuses),
            "round_trips": trips,
            "winning_round_trips": wins,
            "realised_pnl": float(pnl),
            "charges": float(charges),
            "open_positions": {
                name: position.net_quantity
                for name, position in self.positions.items()
                if position.net_quantity
            },
            "hops_us": {name: _percentiles(hop) for name, hop in sorted(self._hops_us.items())},
            "tick_to_decision_us": _percentiles(self._tick_to_decision_us),
            "thinking_us": _percentiles(self._thinking_us),
            "complexity_forecast": {
                name: score.summary() for name, score in sorted(self._forecasts.items())
            },
            "reasoning_depth": {"mean": round(self._depth.mean, 2), "max": self._depth.largest},
        }


def _percentiles(histogram: Histogram) -> dict[str, float]:
    return {
        "n": histogram.count,
        "p50": round(histogram.percentile(0.50), 1),
        "p99": round(histogram.percentile(0.99), 1),
        "max": round(histogram.largest, 1),
    }
