"""Residuals: how much each cycle still moves the states, and whether that is shrinking.

A small residual says that more thinking changes nothing. It never says that the answer is right.
Nothing here imports torch: this is what serving follows, cycle by cycle.
"""

import math
from collections import deque
from typing import Literal

Module = Literal["h", "l"]
Trend = Literal["converging", "stalled", "diverging"]

WINDOW_CYCLES = 8
STALL_BAND = (
    0.02  # a residual that changes by less than 2 % a cycle is neither shrinking nor growing
)
SMALLEST = 1e-12  # keeps the logarithm of an exact fixed point finite


class HierarchicalConvergence:
    """Follow the relative residuals of H and L, cycle by cycle, within one decision."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._recent: dict[Module, deque[float]] = {
            "h": deque(maxlen=WINDOW_CYCLES),
            "l": deque(maxlen=WINDOW_CYCLES),
        }

    def observe(self, h_residual: float, l_residual: float) -> None:
        """Take note of one more cycle."""
        for module, residual in (("h", h_residual), ("l", l_residual)):
            if not residual >= 0.0:
                raise ValueError(
                    f"the {module} residual must be a number from 0 up, was {residual}"
                )
        self._recent["h"].append(h_residual)
        self._recent["l"].append(l_residual)

    def residual(self, module: Module) -> float:
        """Return the newest residual; infinity before the first cycle."""
        return self._recent[module][-1] if self._recent[module] else math.inf

    def rate(self, module: Module) -> float:
        """Return the factor by which the residual changes per cycle, fitted over the last eight.

        1.0 while there are fewer than two to compare.
        """
        logs = [math.log(max(residual, SMALLEST)) for residual in self._recent[module]]
        if len(logs) < 2:
            return 1.0
        middle, mean = (len(logs) - 1) / 2, sum(logs) / len(logs)
        covariance = sum((i - middle) * (log - mean) for i, log in enumerate(logs))
        variance = sum((i - middle) ** 2 for i in range(len(logs)))
        return math.exp(covariance / variance)

    def trend(self, module: Module) -> Trend:
        """Name where the module is going: converging also where it has arrived."""
        rate = self.rate(module)
        if rate < 1.0 - STALL_BAND or self.residual(module) <= self._threshold:
            return "converging"
        return "diverging" if rate > 1.0 + STALL_BAND else "stalled"

    def is_converged(self, threshold: float | None = None) -> bool:
        """Tell whether the newest residuals of both modules are at or below the threshold."""
        limit = self._threshold if threshold is None else threshold
        return self.residual("h") <= limit and self.residual("l") <= limit
