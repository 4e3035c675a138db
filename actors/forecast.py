"""Forecast: will the next window be calm or demanding, and was the last such forecast right?

A window is demanding when the price moved more in it than in half of the windows of the last four
weeks. "Moved" is measured inside each bar, from open, high, low and close (Garman and Klass 1980),
so that a night's gap counts for nothing and few bars are enough. What is forecast is the
probability that the window after this bar is demanding. It can be checked: once that window has
closed, it was or it was not. docs/complexity.md has the definitions and what came of them.
"""

import math
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from actors.messages import Bar, ForecastCheck
from actors.policies import ForecastCoefficients

REFERENCE_NS: Final = 28 * 86_400_000_000_000
"""Windows that ended within so much time make the distribution that "demanding" is judged by."""
LEAST_REFERENCE_NS: Final = 7 * 86_400_000_000_000
LEAST_WINDOWS: Final = 30
LAGS: Final = (1, 3, 6, 12, 24, 75)
"""Bars that recent movement is averaged over, newest last."""
FEATURES: Final = (
    "usual_next",
    "usual_last",
    "last",
    "today",
    *(f"recent_{lag}" for lag in LAGS),
)

EXCESS: Final = FEATURES.index("last")

_SLOT_NS: Final = 86_400_000_000_000  # bars at the same time of the UTC day share a slot
_SLOT_SHARE: Final = 1.0 - 0.5 ** (1 / 20)  # a slot's mean forgets half in 20 sessions
_LEAST_VARIANCE: Final = 1e-10  # of a bar that never moved: a tenth of a basis point, squared
_FIFTHS: Final = (0.0, 0.2, 0.4, 0.6, 0.8)
_CLOSE_WEIGHT: Final = 2.0 * math.log(2.0) - 1.0


@dataclass(frozen=True, slots=True)
class Outlook:
    """What one bar says. `probability` is None while too little is known."""

    probability: float | None = None
    features: tuple[float, ...] | None = None  # in the order of FEATURES
    check: ForecastCheck | None = None  # of the forecast whose window ended with this bar


@dataclass(slots=True)
class _Pending:
    """A forecast whose window has not closed yet."""

    threshold: float
    probability: float | None
    was_demanding: bool


@dataclass(slots=True)
class Forecaster:
    """Follow the bars of one instrument and timeframe. Nothing read here is later than the bar."""

    window: int
    coefficients: ForecastCoefficients | None = None
    _surprises: deque[float] = field(default_factory=lambda: deque(maxlen=max(LAGS)))
    _today: list[float] = field(default_factory=lambda: [0.0, 0.0])  # surprises: sum, count
    _day: int = -1
    _variances: deque[float] = field(default_factory=deque)
    _slots: dict[int, float] = field(default_factory=dict)  # time of day -> usual log variance
    _slot_order: list[int] = field(default_factory=list)
    _ended: deque[tuple[int, float]] = field(default_factory=deque)  # reference, by time
    _ordered: list[float] = field(default_factory=list)  # the same, by size
    _pending: deque[_Pending] = field(default_factory=deque)

    def add(self, bar: Bar) -> Outlook:
        """Take a closed bar; return the outlook on the window after it."""
        variance = bar_variance(bar)
        slot = bar.open_ns % _SLOT_NS
        move = math.log(variance)
        usual = self._slots.get(slot, move)
        self._surprises.append(move - usual)
        if bar.open_ns // _SLOT_NS != self._day:
            self._day, self._today = bar.open_ns // _SLOT_NS, [0.0, 0.0]
        self._today[0] += move - usual
        self._today[1] += 1.0
        self._variances.append(variance)
        if len(self._variances) > self.window:
            self._variances.popleft()
        if slot not in self._slots:
            insort(self._slot_order, slot)
        self._slots[slot] = usual + _SLOT_SHARE * (move - usual)
        if len(self._variances) < self.window:
            return Outlook()
        last = math.log(math.fsum(self._variances) / self.window)
        check = self._check(last)
        outlook = self._look_ahead(bar, slot, last, check)
        self._remember(bar.close_ns, last)
        return outlook

    def _check(self, realised: float) -> ForecastCheck | None:
        """Judge the forecast that was made one window ago, now that its window has closed."""
        if len(self._pending) < self.window:
            return None
        made = self._pending.popleft()
        if made.probability is None:
            return None
        return ForecastCheck(
            probability=made.probability,
            was_demanding=made.was_demanding,
            is_demanding=realised > made.threshold,
        )

    def _look_ahead(self, bar: Bar, slot: int, last: float, check: ForecastCheck | None) -> Outlook:
        is_known = (
            len(self._ordered) >= LEAST_WINDOWS
            and bar.close_ns - self._ended[0][0] >= LEAST_REFERENCE_NS
            and len(self._surprises) == max(LAGS)
        )
        if not is_known:
            self._pending.clear()
            return Outlook(check=check)
        threshold = self._ordered[len(self._ordered) // 2]
        features = self._features(slot, last, threshold)
        probability = self.coefficients.probability(features) if self.coefficients else None
        self._pending.append(_Pending(threshold, probability, last > threshold))
        return Outlook(probability, features, check)

    def _features(self, slot: int, last: float, threshold: float) -> tuple[float, ...]:
        here = bisect_right(self._slot_order, slot)
        count = len(self._slot_order)
        ahead = [self._slot_order[(here + step) % count] for step in range(self.window)]
        behind = [self._slot_order[(here - 1 - step) % count] for step in range(self.window)]
        recent = list(self._surprises)
        return (
            math.fsum(self._slots[one] for one in ahead) / self.window - threshold,
            math.fsum(self._slots[one] for one in behind) / self.window - threshold,
            last - threshold,
            self._today[0] / self._today[1],
            *(math.fsum(islice(recent, len(recent) - lag, None)) / lag for lag in LAGS),
        )

    def _remember(self, close_ns: int, last: float) -> None:
        self._ended.append((close_ns, last))
        insort(self._ordered, last)
        while self._ended[0][0] <= close_ns - REFERENCE_NS:
            _, old = self._ended.popleft()
            del self._ordered[bisect_right(self._ordered, old) - 1]


def bar_variance(bar: Bar) -> float:
    """Estimate the variance of the log price within a bar (Garman and Klass), never 0."""
    reach = math.log(bar.high / bar.low)
    step = math.log(bar.close / bar.open)
    return max(0.5 * reach * reach - _CLOSE_WEIGHT * step * step, _LEAST_VARIANCE)


def window_bars(timeframe_minutes: int) -> int:
    """Return how many bars make the window that is forecast: half an hour, but at least two."""
    return max(30 // timeframe_minutes, 2)


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
        return self._share(lambda one: (one.probability > 0.5) == one.is_demanding)

    @property
    def baseline(self) -> float | None:
        """Return the share of windows that were of the class of the window before."""
        return self._share(lambda one: one.was_demanding == one.is_demanding)

    @property
    def largest_class(self) -> float | None:
        """Return the share of the larger class: what always saying the same would score."""
        demanding = self._share(lambda one: one.is_demanding)
        return None if demanding is None else max(demanding, 1.0 - demanding)

    def summary(self) -> dict[str, object]:
        """Return accuracy, baseline, confusion and calibration as plain values."""
        checks = self._checks
        bins: list[dict[str, object]] = []
        for low in _FIFTHS:
            inside = [one for one in checks if _fifth(one.probability) == low]
            if inside:
                bins.append(
                    {
                        "from": low,
                        "n": len(inside),
                        "forecast": round(sum(o.probability for o in inside) / len(inside), 4),
                        "realised": round(sum(o.is_demanding for o in inside) / len(inside), 4),
                    }
                )
        said = [(one.probability > 0.5, one.is_demanding) for one in checks]
        return {
            "n": len(checks),
            "accuracy": _rounded(self.accuracy),
            "baseline_same_as_last": _rounded(self.baseline),
            "largest_class_share": _rounded(self.largest_class),
            "brier": _rounded(
                sum((one.probability - one.is_demanding) ** 2 for one in checks) / len(checks)
                if checks
                else None
            ),
            "confusion": {
                "calm_calm": said.count((False, False)),
                "calm_demanding": said.count((False, True)),
                "demanding_calm": said.count((True, False)),
                "demanding_demanding": said.count((True, True)),
            },
            "calibration": bins,
        }

    def _share(self, holds: Callable[[ForecastCheck], bool]) -> float | None:
        if not self._checks:
            return None
        return sum(map(holds, self._checks)) / len(self._checks)


def _fifth(probability: float) -> float:
    return _FIFTHS[min(int(probability * 5), 4)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
