"""Two conditions measured in turns: how many times as large is a percentile in the one?

Samples of one turn resemble each other (the same weather on the machine), so that the confidence
interval is drawn from whole pairs of turns, and within a turn from its samples.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

_REDRAWS: Final = 2000
_SEED: Final = 5

Turns = Sequence[Sequence[float]]


def percentile_ratio(without: Turns, with_: Turns, percent: float) -> float:
    """Return percentile of all `with_` / percentile of all `without`."""
    return round(_ratio(list(map(np.asarray, without)), list(map(np.asarray, with_)), percent), 3)


def ratio_ci95(without: Turns, with_: Turns, percent: float) -> tuple[float, float]:
    """Return the interval that holds 95 % of the ratios of redrawn turns (bootstrap, seeded).

    Turns come in pairs: without[i] beside with_[i].
    """
    draw = np.random.default_rng(_SEED)
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(without, with_, strict=True)]
    ratios = []
    for _ in range(_REDRAWS):
        chosen = [pairs[number] for number in draw.integers(len(pairs), size=len(pairs))]
        before = [draw.choice(a, len(a)) for a, _ in chosen]
        after = [draw.choice(b, len(b)) for _, b in chosen]
        ratios.append(_ratio(before, after, percent))
    low, high = np.percentile(ratios, (2.5, 97.5))
    return round(float(low), 3), round(float(high), 3)


def _ratio(without: list[np.ndarray], with_: list[np.ndarray], percent: float) -> float:
    before = np.percentile(np.concatenate(without), percent)
    return float(np.percentile(np.concatenate(with_), percent) / before)
