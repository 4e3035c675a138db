"""Reasoning: from the market around a closed bar to what the policy wants to do.

The one module that sees both messages and arrays. How to think is hrm's, whether a decision becomes
an order is risk's.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from actors.base import Actor
from actors.instruments import InstrumentCatalogue
from actors.messages import (
    ACTIONS,
    Action,
    Bar,
    Decision,
    MarketContext,
    Policy,
    PolicySwitch,
    Position,
)
from actors.policies import ReasoningSettings
from actors.session import timeframe_minutes
from hrm.config import HRMConfig
from hrm.features import (
    WARMUP_BARS,
    WINDOW_BARS,
    FeatureWindow,
    account_features,
    context_features,
    valid_actions,
)
from hrm.thought import DeadlineBudget, Observation, RecordedBudget, Thought

Input = MarketContext | Position | PolicySwitch

THINKING_SHARE = 0.9
"""Share of the deadline given to the thinker, so that its last step may take a little longer than
expected without making the answer late."""

_NS_PER_MINUTE = 60_000_000_000
_ENTRIES = ("BUY_LONG", "SELL_SHORT")
_SUM_TOLERANCE = 1e-6


class Thinker(Protocol):
    """What turns an observation into a thought: hrm.agent.HRMAgent, or a process that runs one."""

    @property
    def config(self) -> HRMConfig:
        """Settings of the model."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of the model's weights."""
        ...

    def reason(self, observation: Observation, budget: DeadlineBudget | RecordedBudget) -> Thought:
        """Think within the budget; raise ValueError or ThinkingFailed if there is no answer."""
        ...


class ThinkingFailed(Exception):
    """The thinker gave no answer, for the reason in the text: it died, or did not come back."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a clock or a failure decided when a decision was recorded, for replay to repeat.

    cycles: H-cycles run; 0: none. failure: reason of a decision that got no answer.
    """

    cycles: int
    late: bool = False
    stop_reason: str = ""
    failure: str | None = None

    @classmethod
    def of(cls, decision: Decision) -> "Recorded":
        """Take what replay needs from a recorded decision."""
        failure = decision.reason if decision.failed else None
        return cls(decision.cycles, decision.late, decision.stop_reason, failure)


class ReasoningActor(Actor[Input, Decision]):
    """Answer each market context with exactly one decision, HOLD wherever there is doubt.

    The decision is HOLD, with the reason, while bars are missing or come from an auction, while the
    hold policy is on, without a valid model, after bad input or a failed inference (`failed`), and
    when the answer came after its deadline (`late`). Nothing is tried twice. Otherwise it is the
    model's best action among those that the position allows.

    The same messages give the same decisions only for the same depth of thought: a replay hands in
    `recorded`, which tells for a decision id what had happened then.

    Its memory is all retained messages: the window of bars reaches over days, and the position may
    be older still.
    """

    name = "reasoning"
    heavy = True

    def __init__(
        self,
        settings: ReasoningSettings,
        thinker: Thinker | None,
        catalogue: InstrumentCatalogue,
        initial_capital: Decimal,
        *,
        no_thinker_because: str = "none is loaded",
        budget_for: Callable[[MarketContext], DeadlineBudget] | None = None,
        recorded: Callable[[str], Recorded | None] | None = None,
    ) -> None:
        """`thinker` None: hold always, and give `no_thinker_because` as the reason.

        budget_for: the deadline of one decision, by default the model's max_inference_time_ms.
        """
        if not initial_capital.is_finite() or initial_capital <= 0:
            raise ValueError(f"initial_capital must be above 0 rupees, was {initial_capital}")
        self._thinker = thinker
        self._no_thinker_because = no_thinker_because
        self._catalogue = catalogue
        self._initial_capital = initial_capital
        self._budget_for = budget_for
        self._recorded = recorded
        # One row of features needs this many bars, whatever the settings say.
        self._needed_bars = max(settings.warm_up_bars, WARMUP_BARS + 1)
        self._window_bars = WINDOW_BARS if thinker is None else thinker.config.inputs.window_bars
        self._windows: dict[tuple[str, str], FeatureWindow] = {}  # by instrument and timeframe
        self._positions: dict[str, Position] = {}
        self._hold_because: str | None = None

    def handle(self, message: Input) -> Iterator[Decision]:
        problem = self.remember(message)
        if isinstance(message, MarketContext):
            yield self._decide(message, problem)

    def remember(self, message: Input) -> str | None:
        """Fold a message without deciding, for a start whose decisions are known already.

        Returns why the bar of a context was refused, or None. `handle` calls this first.
        """
        match message:
            case MarketContext():
                return self._remember_bar(message.bar)
            case Position():
                self._positions[message.instrument] = message
            case PolicySwitch():
                self._hold_because = message.reason if message.policy == "hold" else None
        return None

    def _remember_bar(self, bar: Bar) -> str | None:
        if not bar.is_continuous:
            return None  # such bars were not in what the model was trained on
        try:
            bar_ns = timeframe_minutes(bar.timeframe) * _NS_PER_MINUTE
            key = (bar.instrument, bar.timeframe)
            if key not in self._windows:
                self._windows[key] = FeatureWindow(bar_ns, self._window_bars)
            # It counts as ending a full bar after its open, also where the session cut it short: so
            # it does in the candles that the model was trained on, which carry only that time.
            self._windows[key].add(
                float(bar.open),
                float(bar.high),
                float(bar.low),
                float(bar.close),
                float(bar.volume),
                bar.open_ns + bar_ns,
                days_to_expiry=bar.days_to_expiry,
                spread=None if bar.spread is None else float(bar.spread),
            )
        except ValueError as error:
            return str(error)
        return None

    def _decide(self, context: MarketContext, problem: str | None) -> Decision:
        if self._hold_because is not None:
            return _hold(context, f"hold policy: {self._hold_because}", policy="hold")
        if self._thinker is None:
            return _hold(context, f"no valid model: {self._no_thinker_because}", policy="hold")
        if problem is not None:
            return _hold(context, f"no valid bar: {problem}", failed=True)
        if not context.bar.is_continuous:
            return _hold(context, "not continuous: the bar's prices come from an auction")
        seen = len(self._windows[context.instrument, context.timeframe].stream)
        if seen < self._needed_bars:
            return _hold(context, f"warming up: {seen} of {self._needed_bars} bars")
        try:
            return self._think(self._thinker, context)
        except (ValueError, ThinkingFailed) as error:
            return _hold(
                context, f"no valid answer: {error}", failed=True, model_digest=self._thinker.digest
            )

    def _think(self, thinker: Thinker, context: MarketContext) -> Decision:
        observation = self._observe(context)
        if self._recorded is None:
            budget = self._deadline(thinker, context)
            thought = thinker.reason(
                observation, DeadlineBudget(THINKING_SHARE * budget.milliseconds)
            )
            is_late = thought.elapsed_us > 1000 * budget.milliseconds
            stop_reason: str = thought.stop_reason
            budget_ms = budget.milliseconds
        else:
            record = self._recorded(_decision_id(context))
            if record is not None and record.failure is not None:
                return _hold(context, record.failure, failed=True, model_digest=thinker.digest)
            if record is None or record.cycles == 0:
                raise ThinkingFailed("the recording holds no thought for this decision")
            thought = thinker.reason(observation, RecordedBudget(record.cycles))
            is_late, stop_reason, budget_ms = record.late, record.stop_reason, 0.0
        _check(thought, observation)
        return _decision(context, thought, is_late, stop_reason, budget_ms, thinker.digest)

    def _deadline(self, thinker: Thinker, context: MarketContext) -> DeadlineBudget:
        if self._budget_for is not None:
            return self._budget_for(context)
        return DeadlineBudget(thinker.config.performance.max_inference_time_ms)

    def _observe(self, context: MarketContext) -> Observation:
        """Turn window, account and context into what the model reads."""
        window = self._windows[context.instrument, context.timeframe]
        bars, mask = window.read()
        # The same mean that the model was trained with; the context's own serves the stops.
        atr = window.stream.average_true_range
        position = self._positions.get(context.instrument)
        allowed = valid_actions(_sign(position))
        missing = context.missing
        return Observation(
            bars=bars,
            mask=mask,
            instrument=context.instrument,
            timeframe=context.timeframe,
            account=self._account(context.bar, position, atr),
            context=context_features(
                complexity=context.complexity,
                volatility=context.volatility,
                regime=context.regime,
                correlation=None if "correlation" in missing else context.correlation_score,
                news=None,  # no model has been trained with events yet
            ),
            complexity=steering_complexity(context),
            allowed_actions=(
                bool(allowed[0]),
                bool(allowed[1]),
                bool(allowed[2]),
                bool(allowed[3]),
                bool(allowed[4]),
            ),
        )

    def _account(self, bar: Bar, position: Position | None, atr: float) -> NDArray[np.float32]:
        realised = sum((held.realised_pnl for held in self._positions.values()), Decimal(0))
        capital = self._initial_capital + realised
        is_open = position is not None and position.net_quantity != 0
        share, entry_price, unrealised, stop = 0.0, None, Decimal(0), None
        if position is not None and is_open:
            share = self._position_share(position, capital)
            entry_price = float(position.average_price)
            unrealised = position.net_quantity * (bar.close - position.average_price)
            stop = position.trailing_stop_price or position.stop_price
        return account_features(
            capital=float(capital),
            initial_capital=float(self._initial_capital),
            position=share,
            entry_price=entry_price,
            last_price=float(bar.close),
            unrealised_result=float(unrealised),
            trailing_stop=None if stop is None else float(stop),
            atr=atr,
        )

    def _position_share(self, position: Position, capital: Decimal) -> float:
        """Return the signed share of the largest size that the capital pays for, in [-1, 1]."""
        instrument = self._catalogue[position.instrument]
        lots = abs(position.net_quantity) / instrument.lot_size
        largest = instrument.max_lots(position.average_price, capital, Decimal(0))
        share = min(lots / largest, 1.0) if largest else 1.0
        return math.copysign(share, position.net_quantity)


def _check(thought: Thought, observation: Observation) -> None:
    """Refuse an answer that cannot be one, wherever the thinker runs."""
    if not 0 <= thought.action < len(ACTIONS) or not observation.allowed_actions[thought.action]:
        raise ThinkingFailed(f"action {thought.action} is not allowed in this position")
    ratios = {
        "size_fraction": thought.size_fraction,
        "confidence": thought.confidence,
        "h_confidence": thought.h_confidence,
        "l_confidence": thought.l_confidence,
    }
    for name, value in ratios.items():
        if not 0.0 <= value <= 1.0 + _SUM_TOLERANCE:  # false for NaN too
            raise ThinkingFailed(f"{name} must be in [0, 1], was {value}")


def _decision(
    context: MarketContext,
    thought: Thought,
    is_late: bool,
    stop_reason: str,
    budget_ms: float,
    digest: str,
) -> Decision:
    action: Action = "HOLD" if is_late else ACTIONS[thought.action]
    if is_late:
        # No figures here: what a clock measured is not the same in a replay.
        reason = "late: the answer came after its deadline"
    else:
        reason = f"{stop_reason} after {thought.cycles} cycles, {thought.confidence:.0%} sure"
    return Decision(
        **_what(context),
        action=action,
        size_fraction=_size(action, thought),
        confidence=0.0 if is_late else min(thought.confidence, 1.0),
        policy="hrm",
        reason=reason,
        reasoning_depth=thought.segments,
        cycles=thought.cycles,
        stop_reason=stop_reason,
        h_confidence=thought.h_confidence,
        l_confidence=thought.l_confidence,
        value=thought.value,
        probabilities=thought.probabilities,
        budget_ms=budget_ms,
        elapsed_us=thought.elapsed_us,
        model_digest=digest,
        late=is_late,
    )


def _size(action: Action, thought: Thought) -> float:
    """Return the wanted share: the model sizes entries only, an exit leaves the whole position."""
    if action in _ENTRIES:
        return min(thought.size_fraction, 1.0)
    return 0.0 if action == "HOLD" else 1.0


def _hold(
    context: MarketContext,
    reason: str,
    *,
    policy: Policy = "hrm",
    failed: bool = False,
    model_digest: str = "",
) -> Decision:
    return Decision(
        **_what(context),
        action="HOLD",
        size_fraction=0.0,
        confidence=0.0,
        policy=policy,
        reason=reason,
        failed=failed,
        model_digest=model_digest,
    )


def steering_complexity(context: MarketContext) -> float:
    """Return what sets the least depth of thought, in [0, 1].

    The calibrated probability of a demanding window, where there is one; else the design's formula,
    which is right about the next window less often (docs/complexity.md).
    """
    return context.complexity if context.demand is None else context.demand


def _what(context: MarketContext) -> dict[str, Any]:
    """Return the fields that say what was decided on."""
    return {
        "id": _decision_id(context),
        "instrument": context.instrument,
        "timeframe": context.timeframe,
        "reference_price": context.bar.close,
        "atr": context.atr,
        "bar_close_ns": context.bar.close_ns,
        "market_complexity": steering_complexity(context),
    }


def _decision_id(context: MarketContext) -> str:
    return f"{context.instrument}@{context.bar.close_ns}"


def _sign(position: Position | None) -> int:
    net = position.net_quantity if position is not None else 0
    return (net > 0) - (net < 0)
