"""Stop and target of an entry: by average true range, or where a user put them.

Whether an entry may be made at all is for risk.py.
"""

from decimal import Decimal
from typing import Final, NamedTuple

from actors.instruments import Instrument
from actors.messages import Action, Decision
from actors.policies import ExecutionSettings


class GivenLevels(NamedTuple):
    """Stop and target that a user gave; None: by average true range."""

    stop: Decimal | None = None
    target: Decimal | None = None

    @property
    def are_complete(self) -> bool:
        """Whether no average true range is needed."""
        return self.stop is not None and self.target is not None

    def problem(self, action: Action, reference: Decimal, instrument: Instrument) -> str | None:
        """Return which level is no price on the tick grid or lies on the wrong side, or None."""
        sign = -1 if action == "SELL_SHORT" else 1
        for name, level, side in (("stop", self.stop, -sign), ("target", self.target, sign)):
            if level is None:
                continue
            if not _is_on_grid(level, instrument):
                return f"{name} {level} is no price"
            placed = instrument.round_to_tick(level)
            if (placed - reference) * side <= 0:
                where = "above" if side > 0 else "below"
                return f"{name} {level}, on a tick {placed}, must lie {where} the price {reference}"
        return None


BY_RANGE: Final = GivenLevels()


def levels_of(
    decision: Decision, instrument: Instrument, stops: ExecutionSettings, given: GivenLevels
) -> tuple[Decimal, Decimal]:
    """Return stop and target of an entry; `level_problem` has been asked before."""
    atr = decision.atr or Decimal(0)
    sign = -1 if decision.action == "SELL_SHORT" else 1
    reference = decision.reference_price
    stop = reference - sign * stops.risk_multiplier * atr
    target = reference + sign * stops.reward_multiplier * atr
    return (
        instrument.round_to_tick(stop if given.stop is None else given.stop),
        instrument.round_to_tick(target if given.target is None else given.target),
    )


def level_problem(
    decision: Decision, instrument: Instrument, stops: ExecutionSettings, given: GivenLevels
) -> str | None:
    """Return why no stop or target can be set, or None."""
    problem = given.problem(decision.action, decision.reference_price, instrument)
    if problem is not None or given.are_complete:
        return problem
    atr = decision.atr
    if atr is None:
        return "unknown"
    if not atr.is_finite() or atr <= 0:
        return f"{atr}"
    if min(stops.risk_multiplier, stops.reward_multiplier) * atr < instrument.tick_size:
        return f"{atr}: stop or target would lie within a tick of the entry"
    is_short = decision.action == "SELL_SHORT"
    below = stops.reward_multiplier if is_short else stops.risk_multiplier
    reference = decision.reference_price
    if is_price(reference) and not _is_on_grid(reference - below * atr, instrument):
        return f"{atr}: stop or target would lie at or below 0"
    return None


def _is_on_grid(level: Decimal, instrument: Instrument) -> bool:
    """Tell whether a level is a price once it is rounded; 0 would be read as no level."""
    return is_price(level) and instrument.round_to_tick(level) > 0


def is_price(price: Decimal) -> bool:
    """Tell whether something can cost this much."""
    return price.is_finite() and price > 0
