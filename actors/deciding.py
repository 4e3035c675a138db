"""Deciding: what a thought, or the lack of one, makes of a context. The last step of reasoning."""

from typing import Any

from actors.messages import ACTIONS, Action, Decision, MarketContext, Policy
from hrm.features import complexity_score
from hrm.thought import Observation, Thought

_ENTRIES = ("BUY_LONG", "SELL_SHORT")
_SUM_TOLERANCE = 1e-6
_US_PER_MS = 1000


class ThinkingFailed(Exception):
    """The thinker gave no answer, for the reason in the text: it died, or did not come back."""


def check(thought: Thought, observation: Observation) -> None:
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


def decision(
    context: MarketContext,
    thought: Thought,
    is_late: bool,
    stop_reason: str,
    deadline_ms: float,
    digest: str,
) -> Decision:
    """Say what the model wants; HOLD where the answer came late. deadline_ms: 0 in a replay."""
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
        budget_ms=max(0.0, deadline_ms - thought.waited_us / _US_PER_MS),
        elapsed_us=thought.elapsed_us,
        waited_us=thought.waited_us,
        batch_size=thought.batch_size,
        model_digest=digest,
        late=is_late,
    )


def hold(
    context: MarketContext,
    reason: str,
    *,
    policy: Policy = "hrm",
    failed: bool = False,
    model_digest: str = "",
) -> Decision:
    """Say HOLD, and why nothing was thought."""
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


def too_late(context: MarketContext, waited_us: int, digest: str) -> Decision:
    """Say HOLD, since there was no time left to think."""
    return Decision(
        **_what(context),
        action="HOLD",
        size_fraction=0.0,
        confidence=0.0,
        policy="hrm",
        reason="late: its deadline left no time to think",
        waited_us=waited_us,
        model_digest=digest,
        late=True,
    )


def steering_complexity(context: MarketContext) -> float:
    """Return what sets the least depth of thought, in [0, 1].

    The calibrated probability of a demanding window, where there is one; else the design's formula,
    which is right about the next window less often (docs/complexity.md).
    """
    return context.complexity if context.demand is None else context.demand


def decision_id(context: MarketContext) -> str:
    """Return the natural key of the decision on a context."""
    return f"{context.instrument}@{context.bar.close_ns}"


def _size(action: Action, thought: Thought) -> float:
    """Return the wanted share: the model sizes entries only, an exit leaves the whole position."""
    if action in _ENTRIES:
        return min(thought.size_fraction, 1.0)
    return 0.0 if action == "HOLD" else 1.0


def trained_complexity(context: MarketContext) -> float:
    """Return complexity as models have learned to read it: of price alone.

    No model has been trained with events or several instruments. News that are known to be quiet,
    or instruments that move together, would lower the number against everything it was trained on;
    so would other weights than those of training.
    """
    return complexity_score(context.volatility, context.regime_stability)


def _what(context: MarketContext) -> dict[str, Any]:
    """Return the fields that say what was decided on."""
    return {
        "id": decision_id(context),
        "instrument": context.instrument,
        "timeframe": context.timeframe,
        "reference_price": context.bar.close,
        "atr": context.atr,
        "bar_close_ns": context.bar.close_ns,
        "market_complexity": steering_complexity(context),
    }
