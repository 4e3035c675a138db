"""Complexity: how hard the market is to read at each bar close.

How price turns into volatility rank and regime is in hrm/features.py, since training computes the
same; what needs several instruments or a running state (correlation, average true range) is here.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from decimal import Decimal

from actors.base import Actor
from actors.correlation import CorrelationStress
from actors.events import EventCalendar
from actors.forecast import Forecaster, Outlook, window_bars
from actors.messages import Bar, MarketContext, NewsUpdate
from actors.news import NewsMemory, together
from actors.policies import ComplexitySettings, ComplexityWeights
from actors.regimes import STRAIGHT_BARS, RegimeFilter, straightness
from actors.session import timeframe_minutes
from hrm.features import VOLATILITY_BARS, ComplexityComponents, ComplexityStream

NEUTRAL_COMPLEXITY = 0.5
"""Complexity while nothing about the market is known: neither calm nor alarming."""

NEUTRAL_PRICE = ComplexityComponents(volatility=0.5, regime="ranging", regime_stability=1.0)
"""What price says before there is any, as in the rows of hrm.features.complexity_history."""

_PRICE_STEP = Decimal("0.00000001")


class MarketComplexityActor(Actor[Bar | NewsUpdate, MarketContext]):
    """Tell, for each closed bar, what the market looks like around it.

    This is the *MarketComplexityDetector* of the design document. State is kept per instrument and
    timeframe, in windows of fixed size. Its memory is all retained bars: ranks and the average true
    range reach back hundreds of bars, over nights and holidays.

    Components, each in [0, 1]: volatility is the percentile rank of the root mean square of 20
    returns among the last 240 of its kind; instability is the share of the last 20 bars that were
    in another regime; correlation stress is 0 while instruments move together as they usually do
    and 1 when that has gone; news is the impact of scheduled events (events.py) and of the news
    feed (news.py). Complexity is the weighted mean of those present.

    Beside it stands what can be checked: the calibrated probability that the next window is a
    demanding one (forecast.py), the outcome of the forecast made one window ago, and how likely
    each regime is (regimes.py); None or empty while unknown.

    A bar that is not continuous or not complete gets a context as well, with what the bars before
    it said, and leaves no trace but its time: models are trained without such bars. The next bar's
    return and true range begin at the last close that counts.
    """

    name = "complexity"

    def __init__(self, settings: ComplexitySettings) -> None:
        if settings.volatility_window != VOLATILITY_BARS:
            raise ValueError(
                f"complexity.volatility_window is {settings.volatility_window} but models are "
                f"trained on {VOLATILITY_BARS}: set it to {VOLATILITY_BARS}"
            )
        self._settings = settings
        self._events = EventCalendar(settings.events)
        self._news = NewsMemory(settings.news_half_life_minutes, settings.news_stale_after_seconds)
        self._series: dict[tuple[str, str], _Series] = {}  # by instrument and timeframe
        self._correlations: dict[str, CorrelationStress] = {}  # by timeframe

    def handle(self, message: Bar | NewsUpdate) -> Iterator[MarketContext]:
        """Yield the context of a bar; remember news. ValueError for what cannot be true."""
        if isinstance(message, NewsUpdate):
            self._news.add(message)
            return
        key = (message.instrument, message.timeframe)
        known = self._series.get(key)
        _check(message, known.last_close_ns if known is not None else None)
        series = known or self._series.setdefault(key, _Series(self._settings, message.timeframe))
        correlations = self._correlations.setdefault(
            message.timeframe, CorrelationStress(self._settings.correlation_window)
        )
        stress = correlations.before(message.instrument, message.close_ns)
        series.last_close_ns = message.close_ns
        outlook = Outlook()
        # Prices of an auction, or of a part of the bar, say nothing about how far prices move.
        if message.is_continuous and message.is_complete:
            if series.last_close is not None:
                change = math.log(message.close / series.last_close)
                correlations.add(message.instrument, message.close_ns, change)
            outlook = series.add(message)
        yield self._context(message, series, outlook, stress)

    def _context(
        self, bar: Bar, series: "_Series", outlook: Outlook, stress: float | None
    ) -> MarketContext:
        price = series.price
        news = together(
            self._events.impact(bar.instrument, bar.close_ns),
            self._news.impact(bar.instrument, bar.close_ns),
        )
        is_warm = series.bars_seen > VOLATILITY_BARS
        components = {
            "volatility": price.volatility if is_warm else None,
            "regime": 1.0 - price.regime_stability if is_warm else None,
            "news": news,
            "correlation": stress,
        }
        return MarketContext(
            instrument=bar.instrument,
            timeframe=bar.timeframe,
            bar=bar,
            volatility=price.volatility,
            regime=price.regime,
            regime_stability=price.regime_stability,
            correlation_score=stress or 0.0,
            news_impact=news or 0.0,
            complexity=weighted_complexity(components, self._settings.weights),
            atr=series.average_true_range(),
            missing=tuple(name for name, value in components.items() if value is None),
            bars_seen=series.bars_seen,
            demand=outlook.probability,
            checked=outlook.check,
            regime_probabilities=series.regime_probabilities(outlook),
        )


def weighted_complexity(
    components: Mapping[str, float | None], weights: ComplexityWeights
) -> float:
    """Average the known components by weight, in [0, 1]; an absent one neither calms nor alarms.

    Keys are the names of the weights. With none known it is NEUTRAL_COMPLEXITY. With the default
    weights it equals hrm.features.complexity_score, which training uses.
    """
    shares: dict[str, float] = weights.model_dump()
    known = [(shares[name], value) for name, value in components.items() if value is not None]
    total = sum(weight for weight, _ in known)
    if not total:
        return NEUTRAL_COMPLEXITY
    mean = sum(weight * value for weight, value in known) / total
    return min(max(mean, 0.0), 1.0)


class _Series:
    """The recent whole bars of one instrument and timeframe, and Wilder's average true range."""

    def __init__(self, settings: ComplexitySettings, timeframe: str) -> None:
        self._forecaster = Forecaster(
            window_bars(timeframe_minutes(timeframe)),
            settings.coefficients.forecasts.get(timeframe),
        )
        regimes = settings.coefficients.regimes.get(timeframe)
        self._regimes = RegimeFilter(regimes) if regimes else None
        self._period = settings.atr_period
        self.last_close: Decimal | None = None
        self._average: Decimal | None = None  # Wilder's, once `period` true ranges are known
        self._true_ranges: deque[Decimal] = deque(maxlen=self._period)
        self._stream = ComplexityStream()
        self.price = NEUTRAL_PRICE  # what price alone says since the last bar
        self._closes: deque[float] = deque(maxlen=STRAIGHT_BARS + 1)
        self.bars_seen = 0
        self.last_close_ns: int | None = None  # of any bar, also of one that was not taken in

    def add(self, bar: Bar) -> Outlook:
        """Take in a bar; return the outlook on the window after it."""
        self._add_true_range(bar)
        self.last_close = bar.close
        self._closes.append(float(bar.close))
        self.bars_seen += 1
        self.price = self._stream.add(float(bar.close))
        return self._forecaster.add(bar)

    def regime_probabilities(self, outlook: Outlook) -> tuple[float, ...]:
        """Return how likely each regime is; () while too little is known to say."""
        if self._regimes is None or outlook.excess is None:
            return ()
        return self._regimes.update(outlook.excess, straightness(self._closes))

    def average_true_range(self) -> Decimal | None:
        """Return Wilder's average of the true ranges, in price units; None before `period` bars.

        It starts as the mean of the first `period` true ranges (the first one is high less low) and
        then moves 1/period of the way to each new one. None as well where the price never moved: a
        distance of 0 is no place for a stop. The trading rules' stand-in, (highest high - lowest
        low) / period, has nothing to add: it is 0 wherever this average is.
        """
        if self._average is None:
            return None
        average = self._average.quantize(_PRICE_STEP)
        return average if average > 0 else None

    def _add_true_range(self, bar: Bar) -> None:
        high, low = bar.high, bar.low
        if self.last_close is not None:
            high, low = max(high, self.last_close), min(low, self.last_close)
        true_range = high - low
        if self._average is not None:
            self._average += (true_range - self._average) / self._period
            return
        self._true_ranges.append(true_range)
        if len(self._true_ranges) == self._period:
            self._average = sum(self._true_ranges, Decimal(0)) / self._period
            self._true_ranges.clear()


def _check(bar: Bar, last_close_ns: int | None) -> None:
    where = f"bar of {bar.instrument} closing at {bar.close_ns}"
    for field in ("open", "high", "low", "close"):
        price: Decimal = getattr(bar, field)
        if not price.is_finite() or price <= 0:
            raise ValueError(f"{where}: {field} must be a positive number, was {price}")
    if not bar.low <= min(bar.open, bar.close) <= max(bar.open, bar.close) <= bar.high:
        raise ValueError(
            f"{where}: prices must lie between low and high, open {bar.open} high {bar.high} "
            f"low {bar.low} close {bar.close}"
        )
    if last_close_ns is not None and bar.close_ns <= last_close_ns:
        raise ValueError(
            f"{where}: must be later than the bar before, which closed {last_close_ns}"
        )
