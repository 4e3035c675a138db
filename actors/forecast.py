"""Forecast: will the next hour be calm or demanding, and was the last such forecast right?

A window is demanding when the price moved more in it than in half of the windows of the last four
weeks. "Moved" is measured inside each bar, from open, high, low and close (Garman and Klass 1980),
so that a night's gap counts for nothing and few bars are enough. What is forecast is the
probability that the window after this bar is demanding. It can be checked: once that window has
closed, it was or it was not. docs/complexity.md has the definitions and what came of them.
"""

import math
from bisect import bisect_right, insort
from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from actors.day_profile import DAY_NS, DayProfile
from actors.messages import Bar, ForecastCheck
from actors.policies import ForecastCoefficients

WINDOW_MINUTES: Final = 60
REFERENCE_NS: Final = 28 * DAY_NS
"""Windows that ended within so much time make the distribution that "demanding" is judged by."""
LEAST_REFERENCE_NS: Final = 7 * DAY_NS
LEAST_WINDOWS: Final = 30
LAGS: Final = (1, 3, 12, 75)
"""Bars that recent movement is averaged over, newest last."""
FEATURES: Final = (
    "usual_next",
    "usual_last",
    "last",
    "today",
    "tomorrow",
    "last_tomorrow",
    *(f"recent_{lag}" for lag in LAGS),
)
"""What a forecast is made of; all but "tomorrow" are logarithms of variances.

usual_next, usual_last: the usual movement, at that time of day, of the window ahead and of the last
one, above the median that "demanding" is judged by; last: the last window above it. today,
recent_N: mean surprise of today's bars and of the last N. tomorrow: the share of the window ahead
that lies behind the night; last_tomorrow: that share times last, since less lasts over a night.
"""

_LEAST_VARIANCE: Final = 1e-10  # of a bar that never moved: a tenth of a basis point, squared
_CLOSE_WEIGHT: Final = 2.0 * math.log(2.0) - 1.0


@dataclass(frozen=True, slots=True)
class Outlook:
    """What one bar says. `probability` is None while too little is known."""

    probability: float | None = None
    features: tuple[float, ...] | None = None  # in the order of FEATURES
    check: ForecastCheck | None = None  # of the forecast whose window ended with this bar
    excess: float | None = None  # log variance of the last window's newer half above the median


@dataclass(slots=True)
class _Pending:
    """A forecast whose window has not closed yet."""

    threshold: float
    probability: float | None
    was_demanding: bool
    usually_demanding: bool


@dataclass(slots=True)
class Forecaster:
    """Follow the bars of one instrument and timeframe. Nothing read here is later than the bar."""

    window: int
    coefficients: ForecastCoefficients | None = None
    _profile: DayProfile = field(default_factory=DayProfile)
    _surprises: deque[float] = field(default_factory=lambda: deque(maxlen=max(LAGS)))
    _today: list[float] = field(default_factory=lambda: [0.0, 0.0])  # surprises: sum, count
    _day: int = -1
    _variances: deque[float] = field(default_factory=deque)
    _ended: deque[tuple[int, float]] = field(default_factory=deque)  # reference, by time
    _ordered: list[float] = field(default_factory=list)  # the same, by size
    _pending: deque[_Pending] = field(default_factory=deque)

    def add(self, bar: Bar) -> Outlook:
        """Take a closed bar; return the outlook on the window after it."""
        variance = bar_variance(bar)
        move = math.log(variance)
        self._add_surprise(bar.open_ns // DAY_NS, self._profile.surprise(bar.open_ns, move))
        self._variances.append(variance)
        if len(self._variances) > self.window:
            self._variances.popleft()
        if len(self._variances) < self.window:
            return Outlook()
        last = math.log(math.fsum(self._variances) / self.window)
        self._profile.learn(bar.open_ns, move, last)
        check = self._check(last)
        outlook = self._look_ahead(bar, last, check)
        self._remember(bar.close_ns, last)
        return outlook

    def _add_surprise(self, day: int, surprise: float) -> None:
        self._surprises.append(surprise)
        if day != self._day:
            self._day, self._today = day, [0.0, 0.0]
        self._today[0] += surprise
        self._today[1] += 1.0

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
            usually_demanding=made.usually_demanding,
        )

    def _look_ahead(self, bar: Bar, last: float, check: ForecastCheck | None) -> Outlook:
        ahead = self._profile.ahead(bar.open_ns, self.window)
        is_known = (
            len(self._ordered) >= LEAST_WINDOWS
            and bar.close_ns - self._ended[0][0] >= LEAST_REFERENCE_NS
            and len(self._surprises) == max(LAGS)
        )
        if not is_known or ahead is None:
            self._pending.clear()
            return Outlook(check=check)
        threshold = self._ordered[len(self._ordered) // 2]
        usual_next, tomorrow = ahead
        features = (
            usual_next - threshold,
            self._profile.usual_window(bar.open_ns) - threshold,
            last - threshold,
            self._today[0] / self._today[1],
            tomorrow,
            (last - threshold) * tomorrow,
            *self._recent(),
        )
        probability = self.coefficients.probability(features) if self.coefficients else None
        self._pending.append(
            _Pending(threshold, probability, last > threshold, usual_next > threshold)
        )
        return Outlook(probability, features, check, self._newer_half() - threshold)

    def _recent(self) -> list[float]:
        surprises = self._surprises
        return [math.fsum(islice(surprises, len(surprises) - lag, None)) / lag for lag in LAGS]

    def _newer_half(self) -> float:
        newer = list(self._variances)[self.window // 2 :]
        return math.log(math.fsum(newer) / len(newer))

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
    """Return how many bars make the window that is forecast: an hour, but at least one."""
    return max(WINDOW_MINUTES // timeframe_minutes, 1)
