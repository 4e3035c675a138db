"""Ratios of percentiles between two conditions that were measured in turns."""

import numpy as np

from benchmarks.paired import percentile_ratio, ratio_ci95


def turns(scale: float, count: int = 4, size: int = 120, seed: int = 1) -> list[list[float]]:
    draw = np.random.default_rng(seed)
    return [list(scale * draw.lognormal(0.0, 0.3, size)) for _ in range(count)]


def test_the_ratio_is_with_by_without_over_all_turns() -> None:
    assert percentile_ratio([[1.0, 2.0], [3.0]], [[4.0], [2.0, 6.0]], 50) == 2.0


def test_the_interval_holds_the_truth_and_says_how_little_few_samples_know() -> None:
    low, high = ratio_ci95(turns(1.0), turns(1.2, seed=2), 99)
    few_low, few_high = ratio_ci95(turns(1.0, size=20), turns(1.2, size=20, seed=2), 99)

    assert low < 1.2 < high
    assert few_high - few_low > high - low


def test_a_drift_that_both_conditions_share_widens_nothing_but_what_differs_does() -> None:
    base = turns(1.0, size=200)
    drift = [1.0, 2.0, 3.0, 4.0]
    together = [[d * x for x in turn] for d, turn in zip(drift, base, strict=True)]
    against = together[::-1]

    low, high = ratio_ci95(together, together, 50)
    wide_low, wide_high = ratio_ci95(together, against, 50)

    assert 0.9 < low < high < 1.1
    assert wide_high - wide_low > 3 * (high - low)
