"""Monitoring: is the machine well? Judges heartbeats, decisions and reports, and calls a person.

Money and positions are judged by risk, not here. What each alert asks a person to do is written
under the runbook heading that it names.
"""

import statistics
from collections import Counter, deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from actors.base import Actor
from actors.forecast_score import ForecastScore
from actors.histogram import Histogram
from actors.messages import (
    ACTIONS,
    Alert,
    Decision,
    ExecutionReport,
    Heartbeat,
    KillSwitch,
    MarketContext,
    Policy,
    PolicySwitch,
    RiskVerdict,
    Severity,
    TimeEvent,
)
from actors.policies import MonitoringSettings

Input = (
    TimeEvent
    | Heartbeat
    | MarketContext
    | Decision
    | RiskVerdict
    | ExecutionReport
    | KillSwitch
    | PolicySwitch
)
Output = Alert | PolicySwitch

RECENT_INFERENCES = 100
"""Inferences that the dashboard's figures and the error rate look back on."""

_RECENT_HEARTBEATS = 60  # per actor: a minute at one a second
_LONGEST_APART_S = 60
_LEAST_HANDLED = 100  # a share of fewer messages would call one failure an outage
_CALM_SHARE = 0.9  # a value is calm below this share of its warning level
_CALM_IN_A_ROW = 10  # and its alert is over after so many calm values in a row
_GROWING_HEARTBEATS = 5  # lag that grew so many times in a row is not a burst
_NOTABLE_LAG = 50  # entries; fewer are handled in one read
_SMALL_LAG = 10
_IDENTICAL_REJECTIONS = 3
_REMEMBERED_REPORTS = 256
_LEAST_FORECASTS = 200  # a share of fewer says little
_FORECAST_MARGIN = 0.02  # above the limit, before all is well again
_MOST_NAMES = 32  # distinct keys in one counter; further ones count as "other"
_NS_PER_SECOND = 1_000_000_000
_MB_PER_MIB = 1.048576
_PERMILLE = 1000


class MonitoringActor(Actor[Input, Output]):
    """Turn signs of trouble into alerts, and take the model out when it fails again and again.

    This is the *HRMPerformanceMonitor* of the design document. Alerts are raised once when a limit
    is crossed and once, as info, when it is over: after ten calm values in a row. All state is of
    fixed size: histograms, counters with a bounded number of keys, windows of fixed length.

    The fallback policy is `hold`: after late or failed inferences at `failures_before_fallback` bar
    closes in a row one PolicySwitch goes out, and the next only after somebody has switched back to
    the model.
    """

    name = "monitoring"

    def __init__(self, settings: MonitoringSettings, expected_actors: Collection[str] = ()) -> None:
        """`expected_actors` are missed from the first TimeEvent on, others once they were heard."""
        self._settings = settings
        self._now_ns = 0  # market time
        self._silent_after_ns = int(settings.silent_after_seconds * _NS_PER_SECOND)
        self._sign_ns: int | None = None  # real clock, of the last sign of life of anybody
        self._watching_since_ns = 0  # real clock
        self._watches = {actor: _Watch(settings) for actor in sorted(expected_actors)}
        self._policy: Policy = "hrm"
        self._failures_in_a_row = 0
        self._failed_close_ns = 0  # bar close of the last of them
        self._has_found_backlog = False  # since the last heartbeat of reasoning
        self._is_stopped = False
        self._latency = _Gauge(settings.latency_warning_ms, settings.latency_critical_ms)
        self._decision_errors = _Gauge(settings.error_rate_warning, settings.error_rate_critical)
        self._recent: deque[_Inference] = deque(maxlen=RECENT_INFERENCES)
        self._rejections: dict[str, _Rejection] = {}  # by instrument: the last one, and its repeats
        self._seen_reports: deque[str] = deque(maxlen=_REMEMBERED_REPORTS)
        self.forecasts: dict[str, ForecastScore] = {}  # by instrument and timeframe
        self._poor_forecasts: set[str] = set()
        self.inference_us = Histogram()
        self.depth = Histogram()
        self.cycles = Histogram()
        self.complexity_permille = Histogram()
        self.actions: Counter[str] = Counter(dict.fromkeys(ACTIONS, 0))
        self.stops: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.reports: Counter[str] = Counter()

    def handle(self, message: Input) -> Iterator[Output]:
        match message:
            case TimeEvent():
                yield from self._time_passed(message)
            case Heartbeat():
                yield from self._heard(message)
            case MarketContext():
                yield from self._judge_forecast(message)
            case Decision():
                yield from self._decided(message)
            case RiskVerdict():
                if not message.approved:
                    _count(self.refusals, _refused_by(message))
            case ExecutionReport():
                yield from self._reported(message)
            case KillSwitch():
                yield from self._kill_switched(message)
            case PolicySwitch():
                yield from self._policy_switched(message)

    def dashboard(self) -> dict[str, float | None]:
        """Return the figures of the design's dashboard; None where nothing is known yet.

        They look back on the last 100 inferences and the last heartbeat of each process:

        - avg_inference_time: mean time of one inference, milliseconds.
        - memory_efficiency: share of the critical memory level that the largest process leaves
          free, in [0, 1].
        - convergence_health: share of the inferences that came to an end by themselves, neither cut
          off by the deadline nor late nor failed, in [0, 1].
        - act_effectiveness: correlation of market complexity with the cycles spent on it, in
          [0, 1]; 0 when depth does not follow complexity (or shrinks with it), None while one of
          them never changed.
        - overall_performance: mean of the known ones among the three before and the share of
          inferences within the warning latency, in [0, 1].
        """
        recent = self._recent
        memory = self._memory_efficiency()
        convergence = _share(sum(one.is_complete for one in recent), len(recent))
        effectiveness = self._act_effectiveness()
        swift = sum(one.elapsed_ms <= self._settings.latency_warning_ms for one in recent)
        known = [
            value
            for value in (memory, convergence, effectiveness, _share(swift, len(recent)))
            if value is not None
        ]
        return {
            "avg_inference_time": statistics.fmean(one.elapsed_ms for one in recent)
            if recent
            else None,
            "memory_efficiency": memory,
            "convergence_health": convergence,
            "act_effectiveness": effectiveness,
            "overall_performance": statistics.fmean(known) if known else None,
        }

    # Time and heartbeats

    def _time_passed(self, time: TimeEvent) -> Iterator[Output]:
        self._signs_of_life_at(time.wall_ns)
        self._now_ns = time.now_ns
        limit_ns = self._silent_after_ns
        for actor, watch in sorted(self._watches.items()):
            silence_ns = time.wall_ns - max(watch.heard_ns, self._watching_since_ns)
            if silence_ns > limit_ns and not watch.is_silent:
                watch.is_silent = True
                seconds = silence_ns / _NS_PER_SECOND
                text = f"{actor} has given no sign of life for {seconds:.0f} s"
                yield self._alert("critical", text, "Silent actor")

    def _signs_of_life_at(self, wall_ns: int) -> None:
        """Note that something was heard, and from when on silence may be held against an actor.

        After a time without a sign from anybody (start, restart, sleep of the machine) nobody can
        be blamed for that time. The clock alone does not tell: candles played as ticks bring a
        TimeEvent only every few minutes of market time.
        """
        if self._sign_ns is None or wall_ns - self._sign_ns > self._silent_after_ns:
            self._watching_since_ns = wall_ns
        self._sign_ns = max(self._sign_ns or 0, wall_ns)

    def _heard(self, beat: Heartbeat) -> Iterator[Output]:
        self._signs_of_life_at(beat.at_ns)
        if beat.actor == "reasoning":
            self._has_found_backlog = False
        watch = self._watches.setdefault(beat.actor, _Watch(self._settings))
        watch.heard_ns = max(watch.heard_ns, beat.at_ns)
        if watch.is_silent:
            watch.is_silent = False
            yield self._alert("info", f"{beat.actor} gives signs of life again", "Silent actor")
        yield from self._judge_memory(beat, watch)
        yield from self._judge_failures(beat, watch)
        yield from self._judge_losses(beat, watch)
        yield from self._judge_lag(beat, watch)
        yield from self._judge_agreement(beat, watch)
        watch.last = beat

    def _judge_memory(self, beat: Heartbeat, watch: "_Watch") -> Iterator[Output]:
        memory_gb = beat.rss_mib * _MB_PER_MIB / 1000
        if severity := watch.memory.update(memory_gb):
            text = f"the process of {beat.actor} uses {memory_gb:.2f} GB{watch.memory.limits}"
            yield self._alert(severity, text, "High memory")

    def _judge_failures(self, beat: Heartbeat, watch: "_Watch") -> Iterator[Output]:
        before = watch.last
        has_restarted = before is None or beat.handled < before.handled
        handled = beat.handled - (0 if has_restarted or before is None else before.handled)
        failed = beat.failed - (0 if has_restarted or before is None else before.failed)
        watch.handled.append((handled, max(failed, 0)))
        failed_sum = sum(failed for _, failed in watch.handled)
        rate = failed_sum / max(sum(handled for handled, _ in watch.handled), _LEAST_HANDLED)
        if severity := watch.failures.update(rate):
            text = f"{beat.actor} failed on {rate:.1%} of its last messages{watch.failures.limits}"
            yield self._alert(severity, text, "Failing messages")

    def _judge_losses(self, beat: Heartbeat, watch: "_Watch") -> Iterator[Output]:
        if beat.lost < watch.reported_lost:  # a new consumer counts from nothing
            watch.reported_lost = 0
        # Again only when it has doubled: a steady leak must not bury the other alerts.
        if beat.lost > 0 and beat.lost >= 2 * watch.reported_lost:
            watch.reported_lost = beat.lost
            text = f"{beat.actor} misses messages: {beat.lost} gaps in the numbers of its inputs"
            yield self._alert("critical", text, "Lost messages")

    def _judge_agreement(self, beat: Heartbeat, watch: "_Watch") -> Iterator[Output]:
        age_s = beat.agreement_age_s
        if age_s is None or (age_s > _LONGEST_APART_S) is watch.is_apart:
            return
        watch.is_apart = not watch.is_apart
        if watch.is_apart:
            text = (
                f"log and broker have not agreed for {age_s:.0f} s, allowed: {_LONGEST_APART_S} s"
            )
            yield self._alert("critical", text, "Log and broker differ")
        else:
            yield self._alert("info", "log and broker agree again", "Log and broker differ")

    def _judge_lag(self, beat: Heartbeat, watch: "_Watch") -> Iterator[Output]:
        before = watch.last
        is_growing = before is not None and beat.lag > before.lag
        watch.growing = watch.growing + 1 if is_growing else 0
        if watch.is_lagging and beat.lag < _SMALL_LAG:
            watch.is_lagging = False
            yield self._alert("info", f"{beat.actor} has caught up", "Growing lag")
        elif (
            not watch.is_lagging
            and watch.growing >= _GROWING_HEARTBEATS
            and beat.lag >= _NOTABLE_LAG
        ):
            watch.is_lagging = True
            text = f"{beat.actor} falls behind: {beat.lag} entries wait, more at every heartbeat"
            yield self._alert("warning", text, "Growing lag")

    # Forecasts of complexity

    def _judge_forecast(self, context: MarketContext) -> Iterator[Output]:
        """Count a checked forecast; judge all that were counted where the bar is one of now.

        Bars out of history are what a session begins with: a day alone has too few to judge by.
        """
        if context.checked is None:
            return
        name = f"{context.instrument} {context.timeframe}"
        score = self.forecasts.setdefault(name, ForecastScore())
        score.add(context.checked)
        if context.bar.origin == "backfilled":
            return
        accuracy = score.accuracy
        if accuracy is None or score.count < _LEAST_FORECASTS:
            return
        limit = self._settings.min_forecast_accuracy
        if accuracy < limit and name not in self._poor_forecasts:
            self._poor_forecasts.add(name)
            text = (
                f"complexity of {name} needs a manual review: {accuracy:.1%} of the last "
                f"{score.count} forecasts came true, at least {limit:.0%} should"
            )
            yield self._alert("warning", text, "Poor forecasts", context.instrument)
        elif accuracy >= limit + _FORECAST_MARGIN and name in self._poor_forecasts:
            self._poor_forecasts.remove(name)
            text = f"forecasts of {name} are right again: {accuracy:.1%} of the last {score.count}"
            yield self._alert("info", text, "Poor forecasts", context.instrument)

    # Decisions

    def _decided(self, decision: Decision) -> Iterator[Output]:
        self.actions[decision.action] += 1
        self.complexity_permille.record(decision.market_complexity * _PERMILLE)
        if not (decision.cycles or decision.late or decision.failed):
            return  # a hold without thinking: warming up, hold policy, no model
        inference = _Inference(
            elapsed_ms=decision.elapsed_us / 1000,
            cycles=decision.cycles,
            complexity=decision.market_complexity,
            is_bad=decision.late or decision.failed,
            is_complete=not (decision.late or decision.failed)
            and decision.stop_reason != "deadline",
        )
        self._recent.append(inference)
        self.inference_us.record(decision.elapsed_us)
        self.depth.record(decision.reasoning_depth)
        self.cycles.record(decision.cycles)
        if decision.stop_reason:
            _count(self.stops, decision.stop_reason)
        yield from self._judge_latency(decision, inference)
        yield from self._judge_errors()
        yield from self._judge_model(decision, inference)

    def _judge_latency(self, decision: Decision, inference: "_Inference") -> Iterator[Output]:
        taken_ms = inference.elapsed_ms + decision.waited_us / 1000
        if severity := self._latency.update(taken_ms):
            text = f"decision {decision.id} took {taken_ms:.1f} ms{self._latency.limits}"
            yield self._alert(severity, text, "Slow inference", decision.instrument)

    def _judge_errors(self) -> Iterator[Output]:
        bad = sum(one.is_bad for one in self._recent)
        rate = bad / RECENT_INFERENCES
        if severity := self._decision_errors.update(rate):
            text = (
                f"{bad} of the last {len(self._recent)} inferences were late or failed"
                f"{self._decision_errors.limits}"
            )
            yield self._alert(severity, text, "Failing decisions")

    def _judge_model(self, decision: Decision, inference: "_Inference") -> Iterator[Output]:
        last_close_ns = self._failed_close_ns
        if not inference.is_bad:
            self._failures_in_a_row = 0
        elif self._is_another_failure(decision):
            self._failures_in_a_row += 1
            if self._failures_in_a_row == 1 and decision.bar_close_ns != last_close_ns:
                text = f"decision {decision.id} is HOLD: {decision.reason}"
                yield self._alert("warning", text, "Failing decisions", decision.instrument)
        limit = self._settings.failures_before_fallback
        if self._failures_in_a_row < limit or self._policy == "hold":
            return
        self._policy = "hold"
        reason = f"{self._failures_in_a_row} inferences in a row were late or failed"
        yield PolicySwitch(policy="hold", reason=reason, at_ns=self._time_ns(decision.time_ns))
        text = f"the model is taken out, every decision is HOLD: {reason}; last: {decision.reason}"
        yield self._alert("critical", text, "Fallback to hold", decision.instrument)

    def _is_another_failure(self, decision: Decision) -> bool:
        """Tell a stall from the one before: those of one bar close are one.

        So are those that a process finds unanswered when it begins, until its next heartbeat.
        """
        is_first = self._failures_in_a_row == 0
        is_new_close = decision.bar_close_ns != self._failed_close_ns
        self._failed_close_ns = decision.bar_close_ns
        if decision.late and not decision.cycles:
            is_new_close, self._has_found_backlog = not self._has_found_backlog, True
        return is_first or is_new_close

    # Orders and switches

    def _reported(self, report: ExecutionReport) -> Iterator[Output]:
        if report.execution_id in self._seen_reports:
            return  # the same fact again
        self._seen_reports.append(report.execution_id)
        self.reports[report.status] += 1
        if report.status != "rejected":
            if report.status in ("accepted", "partially_filled", "filled"):
                self._rejections.pop(report.instrument, None)
            return
        before = self._rejections.get(report.instrument)
        is_same = before is not None and (before.side, before.reason) == (
            report.side,
            report.reason,
        )
        times = before.times + 1 if before is not None and is_same else 1
        self._rejections[report.instrument] = _Rejection(report.side, report.reason, times)
        said = f"{report.side} order {report.client_order_id}: {report.reason or 'no reason given'}"
        if times == 1:
            text = f"the broker rejected {said}"
            yield self._alert("warning", text, "Rejected orders", report.instrument)
        elif times == _IDENTICAL_REJECTIONS:
            text = f"the broker rejected {times} orders in a row for the same reason, last {said}"
            yield self._alert("critical", text, "Rejected orders", report.instrument)

    def _kill_switched(self, switch: KillSwitch) -> Iterator[Output]:
        if switch.engaged == self._is_stopped:
            return
        self._is_stopped = switch.engaged
        if switch.engaged:
            text = f"trading is stopped by {switch.operator}: {switch.reason}"
            yield self._alert("critical", text, "Kill switch")
        else:
            text = f"trading is allowed again by {switch.operator}: {switch.reason}"
            yield self._alert("info", text, "Kill switch")

    def _policy_switched(self, switch: PolicySwitch) -> Iterator[Output]:
        has_changed = switch.policy != self._policy
        self._policy = switch.policy
        if switch.policy == "hrm":
            self._failures_in_a_row = 0
        if has_changed:
            decider = "the model decides again" if switch.policy == "hrm" else "every decision HOLD"
            yield self._alert("info", f"{decider}: {switch.reason}", "Fallback to hold")

    # Figures

    def _memory_efficiency(self) -> float | None:
        sizes = [watch.last.rss_mib for watch in self._watches.values() if watch.last is not None]
        if not any(sizes):
            return None
        largest_gb = max(sizes) * _MB_PER_MIB / 1000
        return max(1.0 - largest_gb / self._settings.memory_critical_gb, 0.0)

    def _act_effectiveness(self) -> float | None:
        thought = [one for one in self._recent if one.cycles]
        if len(thought) < 2:
            return None
        try:
            follows = statistics.correlation(
                [one.complexity for one in thought], [float(one.cycles) for one in thought]
            )
        except statistics.StatisticsError:  # one of them never changed
            return None
        return min(max(follows, 0.0), 1.0)

    def _time_ns(self, message_ns: int) -> int:
        return self._now_ns or message_ns

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


class _Inference(NamedTuple):
    """What is remembered of one inference."""

    elapsed_ms: float
    cycles: int
    complexity: float
    is_bad: bool  # late or failed
    is_complete: bool  # ended by itself


class _Rejection(NamedTuple):
    """The last rejection of an instrument, and how often in a row it came."""

    side: str
    reason: str
    times: int


class _Gauge:
    """Say when a value crosses its warning or critical level, and when that is over."""

    def __init__(self, warning: float, critical: float) -> None:
        self._warning = warning
        self._critical = critical
        self._level: Literal[0, 1, 2] = 0
        self._calm = 0

    @property
    def limits(self) -> str:
        return f" (warning above {self._warning:g}, critical above {self._critical:g})"

    def update(self, value: float) -> Severity | None:
        """Return the severity to report now, "info" when calm has returned, or None."""
        reached: Literal[0, 1, 2] = (
            2 if value > self._critical else 1 if value > self._warning else 0
        )
        if reached > self._level:
            self._level, self._calm = reached, 0
            return "critical" if reached == 2 else "warning"
        self._calm = self._calm + 1 if value < _CALM_SHARE * self._warning else 0
        if self._level and self._calm >= _CALM_IN_A_ROW:
            self._level = 0
            return "info"
        return None


@dataclass
class _Watch:
    """What is known of one actor from its heartbeats."""

    settings: MonitoringSettings
    heard_ns: int = 0  # real clock
    is_silent: bool = False
    is_lagging: bool = False
    growing: int = 0  # heartbeats in a row with a longer queue than the one before
    reported_lost: int = 0
    is_apart: bool = False  # log and broker have not agreed for long
    last: Heartbeat | None = None
    handled: deque[tuple[int, int]] = field(
        default_factory=lambda: deque(maxlen=_RECENT_HEARTBEATS)
    )  # handled and failed between two heartbeats

    def __post_init__(self) -> None:
        limits = self.settings
        self.memory = _Gauge(limits.memory_warning_gb, limits.memory_critical_gb)
        self.failures = _Gauge(limits.error_rate_warning, limits.error_rate_critical)


def _count(counter: Counter[str], name: str) -> None:
    counter[name if name in counter or len(counter) < _MOST_NAMES else "other"] += 1


def _refused_by(verdict: RiskVerdict) -> str:
    """Name the first rule that failed; a reason's text holds numbers and would never repeat."""
    broken = (result.rule for result in verdict.rules if not result.passed)
    return next(broken, verdict.reason.partition(":")[0])


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
