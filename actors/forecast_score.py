"""Forecast score: how often forecasts came true, how honest their probabilities were, and beside
what costs nothing. Monitoring, back-tests and the benchmark count with it alike.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from actors.messages import ForecastCheck

_FIFTHS: Final = (0.0, 0.2, 0.4, 0.6, 0.8)


class ForecastScore:
    """Count how good the last forecasts were; a window of fixed size."""

    def __init__(self, most: int = 500) -> None:
        self._checks: deque[ForecastCheck] = deque(maxlen=most)

    def add(self, check: ForecastCheck) -> None:
        """Count one more forecast that could be checked."""
        self._checks.append(check)

    @property
    def count(self) -> int:
        return len(self._checks)

    @property
    def accuracy(self) -> float | None:
        """Return the share of forecasts whose class came true; None before the first."""
        return _share(self._checks, _came_true)

    @property
    def balanced_accuracy(self) -> float | None:
        """Return the mean of that share among calm and among demanding windows."""
        parts = [
            _share([one for one in self._checks if one.is_demanding is demanding], _came_true)
            for demanding in (False, True)
        ]
        known = [part for part in parts if part is not None]
        return sum(known) / len(known) if known else None

    @property
    def baseline(self) -> float | None:
        """Return the share of windows that were of the class of the window before."""
        return _share(self._checks, lambda one: one.was_demanding == one.is_demanding)

    @property
    def usual(self) -> float | None:
        """Return the share of windows that were of the class that is usual at their time of day."""
        known = [one for one in self._checks if one.usually_demanding is not None]
        return _share(known, lambda one: one.usually_demanding == one.is_demanding)

    @property
    def largest_class(self) -> float | None:
        """Return the share of the larger class: what always saying the same would score."""
        demanding = self._demanding
        return None if demanding is None else max(demanding, 1.0 - demanding)

    @property
    def calibration_error(self) -> float | None:
        """Return the mean distance of forecast and realised shares, over five bins (ECE)."""
        if not self._checks:
            return None
        total = sum(abs(forecast - realised) * n for _, n, forecast, realised in self._bins())
        return total / len(self._checks)

    @property
    def brier(self) -> float | None:
        """Return the mean squared error of the probabilities."""
        if not self._checks:
            return None
        errors = ((one.probability - one.is_demanding) ** 2 for one in self._checks)
        return sum(errors) / len(self._checks)

    def summary(self) -> dict[str, object]:
        """Return accuracy, baselines, skill, confusion and calibration as plain values."""
        said = [(one.probability > 0.5, one.is_demanding) for one in self._checks]
        return {
            "n": len(said),
            "accuracy": _rounded(self.accuracy),
            "balanced_accuracy": _rounded(self.balanced_accuracy),
            "demanding_share": _rounded(self._demanding),
            "baseline_same_as_last": _rounded(self.baseline),
            "baseline_time_of_day": _rounded(self.usual),
            "largest_class_share": _rounded(self.largest_class),
            "skill": {
                "same_as_last": self._skill(self.baseline),
                "time_of_day": self._skill(self.usual),
                "largest_class": self._skill(self.largest_class),
            },
            "brier": _rounded(self.brier),
            "ece": _rounded(self.calibration_error),
            "confusion": {
                "calm_calm": said.count((False, False)),
                "calm_demanding": said.count((False, True)),
                "demanding_calm": said.count((True, False)),
                "demanding_demanding": said.count((True, True)),
            },
            "calibration": [
                {"from": low, "n": n, "forecast": _rounded(mean), "realised": _rounded(realised)}
                for low, n, mean, realised in self._bins()
            ],
        }

    @property
    def _demanding(self) -> float | None:
        return _share(self._checks, lambda one: one.is_demanding)

    def _skill(self, baseline: float | None) -> float | None:
        """Return which share of a baseline's errors the forecast avoids; below 0 it makes more."""
        accuracy = self.accuracy
        if accuracy is None or baseline is None or baseline == 1.0:
            return None
        return round((accuracy - baseline) / (1.0 - baseline), 4)

    def _bins(self) -> list[tuple[float, int, float, float]]:
        """Return lower end, count, mean forecast and realised share of each bin with any."""
        bins = []
        for low in _FIFTHS:
            inside = [one for one in self._checks if _fifth(one.probability) == low]
            if inside:
                forecast = sum(one.probability for one in inside) / len(inside)
                realised = sum(one.is_demanding for one in inside) / len(inside)
                bins.append((low, len(inside), forecast, realised))
        return bins


def _came_true(check: ForecastCheck) -> bool:
    return (check.probability > 0.5) == check.is_demanding


def _share(checks: Sequence[ForecastCheck], holds: Callable[[ForecastCheck], bool]) -> float | None:
    return sum(map(holds, checks)) / len(checks) if checks else None


def _fifth(probability: float) -> float:
    return _FIFTHS[min(int(probability * 5), 4)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
