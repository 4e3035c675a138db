"""Regimes: how likely each of three is now, by the exact filter of a hidden Markov chain.

P(regime now | all observations so far), updated by one matrix-vector product a bar. Nothing is
fitted here: the chain comes from settings, and the filter looks only back.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from actors.policies import RegimeModel

STRAIGHT_BARS: Final = 20
_LEAST: Final = 1e-12  # no regime is ever ruled out for good


def straightness(closes: Sequence[float]) -> float:
    """Return the net move of the last 20 steps as a share of the way walked, in [0, 1]."""
    last = list(closes)[-STRAIGHT_BARS - 1 :]
    walked = math.fsum(abs(after - before) for before, after in pairwise(last))
    return abs(last[-1] - last[0]) / walked if walked else 0.0


class RegimeFilter:
    """Follow one instrument and timeframe."""

    def __init__(self, model: RegimeModel) -> None:
        self._model = model
        self._probabilities: tuple[float, ...] | None = None

    def update(self, excess: float, straightness: float) -> tuple[float, ...]:
        """Take one observation; return the probabilities of trending, ranging and volatile.

        excess: log variance of the last window above the usual one. straightness: in [0, 1].
        """
        model = self._model
        if self._probabilities is None:
            prior: list[float] = list(model.start)
        else:
            before = self._probabilities
            prior = [
                math.fsum(
                    was * row[now] for was, row in zip(before, model.transitions, strict=True)
                )
                for now in range(len(before))
            ]
        logs = [
            math.log(max(chance, _LEAST)) + _log_density((excess, straightness), mean, variance)
            for chance, mean, variance in zip(prior, model.means, model.variances, strict=True)
        ]
        highest = max(logs)
        weights = [max(math.exp(value - highest), _LEAST) for value in logs]
        total = math.fsum(weights)
        self._probabilities = tuple(weight / total for weight in weights)
        return self._probabilities


def _log_density(
    seen: tuple[float, float], mean: tuple[float, float], variance: tuple[float, float]
) -> float:
    return -0.5 * math.fsum(
        math.log(2.0 * math.pi * v) + (x - m) ** 2 / v
        for x, m, v in zip(seen, mean, variance, strict=True)
    )
