"""Feature stream: the rows of `bar_columns`, one at a time, as bars close.

A bar costs the same whether it is the hundredth or the millionth: windows are at most 96 bars, and
what reaches further back (the day so far) is carried. Sums over a window are taken anew and exactly
rounded (`math.fsum`), never carried: a running sum keeps the rounding errors, and the outliers, of
all that ever went through it. So a row depends on the bars in its windows alone, a restored stream
goes on to the last bit as if it had never stopped, and both agree with `bar_columns` to 1e-9.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from itertools import pairwise
from operator import itemgetter, mul
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from hrm.bar_columns import (
    ATR_BARS,
    BLOCKS,
    CLIP,
    DAY_NS,
    FEATURE_NAMES,
    GAP_BARS,
    LEVEL_CLIP,
    LONG_BLOCK,
    LONG_WARMUP_BARS,
    MONDAY_NS,
    PLACE_CLIP,
    SHORT_BLOCK,
    USUAL_VOLATILITY,
    VOLATILITY_FLOOR,
    WARMUP_BARS,
    WEEK_NS,
)
from hrm.recent import Recent
from hrm.rolling import FLAT_SPREAD, LOG_RATIO_LIMIT

_BLOCK_NAMES: Final = {"x3": SHORT_BLOCK, "x12": LONG_BLOCK}
_SERIES_BARS: Final = {  # how far back each series is read
    "close": LONG_WARMUP_BARS + 1,
    "high": WARMUP_BARS,
    "low": WARMUP_BARS,
    "volume": 16,
    "change": WARMUP_BARS,  # log return
    "change_square": WARMUP_BARS,
    "true_range": ATR_BARS,
    "block_span_x3": SHORT_BLOCK * (BLOCKS - 1) + 1,
    "block_true_x3": SHORT_BLOCK * (BLOCKS - 1) + 1,
    "block_span_x12": LONG_BLOCK * (BLOCKS - 1) + 1,
    "block_true_x12": LONG_BLOCK * (BLOCKS - 1) + 1,
}
_LONG_NAMES: Final = tuple(name for name in FEATURE_NAMES if name.endswith("_x12"))
_in_order: Final = itemgetter(*FEATURE_NAMES)


@dataclass(slots=True)
class _Day:
    """Carry the day so far and the one before. number: days counted, the first one from 0."""

    day: int
    number: int
    bars: int
    open: float
    high: float
    low: float
    close_before: float = 0.0
    high_before: float = 0.0
    low_before: float = 0.0


class FeatureStream:
    """Turn closed bars of one instrument and timeframe into feature rows, one by one."""

    def __init__(self, bar_ns: int) -> None:
        """bar_ns: the length of a bar."""
        if bar_ns <= 0:
            raise ValueError(f"bar_ns must be positive, was {bar_ns}")
        self._bar_ns = bar_ns
        self._count = 0
        self._close_ns = 0
        self._series: dict[str, list[float]] = {name: [] for name in _SERIES_BARS}
        self._day: _Day | None = None

    def __len__(self) -> int:
        """Count the bars taken in."""
        return self._count

    @property
    def average_true_range(self) -> float:
        """Mean of the last 14 true ranges, in price units; NaN before the fifteenth bar."""
        ranges = self._series["true_range"]
        return _mean(ranges[-ATR_BARS:]) if len(ranges) >= ATR_BARS else math.nan

    def add(
        self,
        open: float,  # noqa: A002 - the field's own word, as in every candle
        high: float,
        low: float,
        close: float,
        volume: float,
        close_ns: int,
        *,
        days_to_expiry: float | None = None,
        spread: float | None = None,
        depth_imbalance: float | None = None,
    ) -> NDArray[np.float64] | None:
        """Take in the next bar and return its row [F]; None during the first WARMUP_BARS.

        Inputs as in `bar_columns.feature_rows`, None where nobody knows. Refuses a bar that cannot
        be true, or is not later than the one before, with a ValueError, and is as it was.
        """
        _refuse_impossible_bar(open, high, low, close, volume)
        _refuse_outside("days_to_expiry", days_to_expiry, 0.0, math.inf)
        _refuse_outside("spread", spread, 0.0, math.inf)
        _refuse_outside("depth_imbalance", depth_imbalance, -1.0, 1.0)
        if self._count and close_ns <= self._close_ns:
            raise ValueError(
                f"close_ns must be later than that of the bar before ({self._close_ns}), was "
                f"{close_ns}"
            )
        missing = (close_ns - self._close_ns) / self._bar_ns - 1.0
        before = self._series["close"][-1] if self._count else close
        self._append(high, low, close, volume)
        self._turn_day(open, high, low, before, (close_ns - self._bar_ns) // DAY_NS)
        self._close_ns = close_ns
        self._count += 1
        if self._count <= WARMUP_BARS:
            return None
        atr = max(self.average_true_range, close * VOLATILITY_FLOOR)
        volatility = {n: self._volatility(n) for n in (4, 8, 16, 32)}
        row = self._moves(open, before, volatility[32])
        row |= self._shape(open, high, low, close, atr)
        row |= self._statistics(volatility)
        row |= self._volume()
        row |= self._blocks(volatility[32])
        row |= self._day_so_far(volatility[32])
        row |= _time(close_ns)
        row["missing_bars"] = min(math.log1p(max(missing, 0.0)), CLIP)
        row["expiry_nearness"] = 0.0 if days_to_expiry is None else 1.0 / (1.0 + days_to_expiry)
        row["spread"] = 0.0 if spread is None else _clip(spread / atr)
        row["depth_imbalance"] = depth_imbalance or 0.0
        row["depth_known"] = 0.5 * (spread is not None) + 0.5 * (depth_imbalance is not None)
        return np.array(_in_order(row))

    def snapshot(self) -> dict[str, Any]:
        """Return the whole state as plain data, fit for JSON; see `restored`."""
        return {
            "bar_ns": self._bar_ns,
            "count": self._count,
            "close_ns": self._close_ns,
            "series": {n: values[-_SERIES_BARS[n] :] for n, values in self._series.items()},
            "day": None if self._day is None else asdict(self._day),
        }

    @classmethod
    def restored(cls, snapshot: dict[str, Any]) -> Self:
        """Build a stream that goes on where `snapshot` was taken; ValueError if it is none."""
        try:
            stream = cls(int(snapshot["bar_ns"]))
            stream._count = int(snapshot["count"])
            stream._close_ns = int(snapshot["close_ns"])
            stream._series = {n: [float(x) for x in snapshot["series"][n]] for n in _SERIES_BARS}
            day = snapshot["day"]
            if day is not None:
                stream._day = _Day(**{f.name: day[f.name] for f in fields(_Day)})
        except (KeyError, TypeError) as error:
            raise ValueError(f"no snapshot of a feature stream: {error!r} is missing") from error
        return stream

    def _append(self, high: float, low: float, close: float, volume: float) -> None:
        """Add the bar to every series; each keeps at most twice what is read."""
        series = self._series
        closes = series["close"]
        if closes:
            before = closes[-1]
            change = math.log(close / before)
            series["change"].append(change)
            series["change_square"].append(change * change)
            series["true_range"].append(max(high, before) - min(low, before))
        closes.append(close)
        for name, value in (("high", high), ("low", low), ("volume", volume)):
            series[name].append(value)
        for name, k in _BLOCK_NAMES.items():
            if len(series["high"]) >= k:
                top, bottom = max(series["high"][-k:]), min(series["low"][-k:])
                series[f"block_span_{name}"].append(top - bottom)
                if len(closes) > k:
                    before = closes[-k - 1]
                    series[f"block_true_{name}"].append(max(top, before) - min(bottom, before))
        for name, values in series.items():
            kept = _SERIES_BARS[name]
            if len(values) > 2 * kept:
                del values[:-kept]

    def _turn_day(self, open_: float, high: float, low: float, before: float, day: int) -> None:
        now = self._day
        if now is None:
            self._day = _Day(day, 0, 1, open_, high, low)
        elif now.day != day:
            self._day = _Day(day, now.number + 1, 1, open_, high, low, before, now.high, now.low)
        else:
            now.bars += 1
            now.high, now.low = max(now.high, high), min(now.low, low)

    def _moves(self, open_: float, before: float, volatility: float) -> dict[str, float]:
        closes = self._series["close"]
        row = {
            f"return_{lag}": _clip(
                math.log(closes[-1] / closes[-1 - lag]) / (volatility * math.sqrt(lag))
            )
            for lag in (1, 2, 4, 8, 16, 32)
        }
        row["opening_gap"] = _clip(math.log(open_ / before) / volatility)
        level = math.log(volatility / USUAL_VOLATILITY)
        row["volatility_level"] = min(max(level, -LEVEL_CLIP), LEVEL_CLIP)
        return row

    def _shape(
        self, open_: float, high: float, low: float, close: float, atr: float
    ) -> dict[str, float]:
        highs, lows, closes = (self._series[name] for name in ("high", "low", "close"))
        spans = [top - end for top, end in zip(highs[-16:], lows[-16:], strict=True)]
        mean_span = max(_mean(spans), close * VOLATILITY_FLOOR)
        return {
            "range_ratio": _clip(spans[-1] / mean_span - 1.0),
            "body": _clip((close - open_) / atr),
            "upper_shadow": _clip((high - max(open_, close)) / atr),
            "lower_shadow": _clip((min(open_, close) - low) / atr),
            "close_location": _place(close, low, high),
            "distance_mean_8": _clip((close - _mean(closes[-8:])) / atr),
            "distance_mean_32": _clip((close - _mean(closes[-32:])) / atr),
            "distance_high_16": _clip((close - max(highs[-16:])) / atr),
            "distance_low_16": _clip((close - min(lows[-16:])) / atr),
            "place_in_range_32": _place(close, min(lows[-32:]), max(highs[-32:])),
        }

    def _statistics(self, volatility: dict[int, float]) -> dict[str, float]:
        closes, changes = self._series["close"], self._series["change"][-16:]
        walked = math.fsum(map(abs, changes))
        squares = math.fsum(self._series["change_square"][-16:])
        products = math.fsum(map(mul, changes, changes[1:]))
        ups = sum((x > 0) - (x < 0) for x in changes)
        return {
            "volatility_ratio_4_16": _log_ratio(volatility[4], volatility[16]),
            "volatility_ratio_8_32": _log_ratio(volatility[8], volatility[32]),
            "trend_16": _trend(closes[-16:]),
            "trend_32": _trend(closes[-32:]),
            "efficiency_16": math.fsum(changes) / walked if walked > 0 else 0.0,
            "autocorrelation_16": min(max(products / squares, -1.0), 1.0) if squares > 0 else 0.0,
            "up_share_16": ups / 16,
        }

    def _volume(self) -> dict[str, float]:
        now, mean = self._series["volume"][-1], _mean(self._series["volume"][-16:])
        known = now > 0 and mean > 0
        return {
            "volume_ratio_16": _log_ratio(now, mean) if known else 0.0,
            "volume_known": float(known),
        }

    def _blocks(self, volatility: float) -> dict[str, float]:
        short = self._block_volatility(SHORT_BLOCK)
        row = self._block_columns("x3", SHORT_BLOCK, short)
        known = self._count > LONG_WARMUP_BARS
        if known:
            long = self._block_volatility(LONG_BLOCK)
            row |= self._block_columns("x12", LONG_BLOCK, long)
            row["volatility_ratio_x12"] = _log_ratio(long, volatility * math.sqrt(LONG_BLOCK))
        else:
            row |= dict.fromkeys(_LONG_NAMES, 0.0)
        return row | {"x12_known": float(known)}

    def _block_columns(self, name: str, k: int, volatility: float) -> dict[str, float]:
        """Compute the columns of bars of k times the length, the newest ending now."""
        series = self._series
        closes = series["close"][-1 : -k * BLOCKS : -k]  # newest first
        close, floor = closes[0], closes[0] * VOLATILITY_FLOOR
        spans = series[f"block_span_{name}"][-1 : -k * BLOCKS : -k]
        mean_span = max(_mean(spans), floor)
        atr = max(_mean(series[f"block_true_{name}"][-1 : -k * BLOCKS : -k]), floor)
        move = math.log(close / series["close"][-1 - k])
        top, bottom = max(series["high"][-k:]), min(series["low"][-k:])
        return {
            f"return_1_{name}": _clip(move / volatility),
            f"range_ratio_{name}": _clip(spans[0] / mean_span - 1.0),
            f"close_location_{name}": _place(close, bottom, top),
            f"distance_mean_8_{name}": _clip((close - _mean(closes)) / atr),
            f"trend_8_{name}": _trend(closes[::-1]),
        }

    def _block_volatility(self, k: int) -> float:
        closes = self._series["close"][-1 : -k * BLOCKS - 2 : -k]  # BLOCKS + 1, newest first
        moves = [math.log(later / before) for later, before in pairwise(closes)]
        return _root_mean(list(map(mul, moves, moves)))

    def _volatility(self, n: int) -> float:
        return _root_mean(self._series["change_square"][-n:])

    def _day_so_far(self, volatility: float) -> dict[str, float]:
        day = self._day
        names = ("day_return", "day_range", "place_in_day", "day_gap", "place_in_previous_day")
        if day is None or day.number < 1:
            return dict.fromkeys((*names, "day_known"), 0.0)
        close = self._series["close"][-1]
        walked = math.sqrt(day.bars) * volatility
        gap = math.log(day.open / day.close_before) / (volatility * math.sqrt(GAP_BARS))
        yesterday = day.number >= 2
        placed = _place(close, day.low_before, day.high_before) if yesterday else 0.0
        return {
            "day_return": _clip(math.log(close / day.open) / walked),
            "day_range": _clip(math.log(day.high / day.low) / walked),
            "place_in_day": _place(close, day.low, day.high),
            "day_gap": _clip(gap),
            "place_in_previous_day": min(max(placed, -PLACE_CLIP), PLACE_CLIP),
            "day_known": 1.0 if yesterday else 0.5,
        }


class FeatureWindow:
    """Keep the newest rows of a stream as the model reads them."""

    def __init__(self, bar_ns: int, window: int) -> None:
        """window: rows kept."""
        if window <= 0:
            raise ValueError(f"window must be positive, was {window}")
        self._bar_ns = bar_ns
        self.stream = FeatureStream(bar_ns)
        self._window = window
        self._rows = Recent(window, np.float32, len(FEATURE_NAMES))

    def add(
        self,
        open: float,  # noqa: A002 - the field's own word, as in every candle
        high: float,
        low: float,
        close: float,
        volume: float,
        close_ns: int,
        *,
        days_to_expiry: float | None = None,
        spread: float | None = None,
        depth_imbalance: float | None = None,
    ) -> None:
        """Take in the next bar, as `FeatureStream.add` does."""
        row = self.stream.add(
            open,
            high,
            low,
            close,
            volume,
            close_ns,
            days_to_expiry=days_to_expiry,
            spread=spread,
            depth_imbalance=depth_imbalance,
        )
        if row is not None:
            self._rows.append(row)

    def copy(self) -> "FeatureWindow":
        """Return a window that goes on from here by itself: for a bar that may still change."""
        copied = FeatureWindow(self._bar_ns, self._window)
        copied.stream = FeatureStream.restored(self.stream.snapshot())
        copied._rows = self._rows.copy()
        return copied

    def read(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the rows [window, F], newest last, and which of them are real [window].

        Rows that are not there yet are zero and masked; they come first.
        """
        rows = self._rows.values
        missing = self._window - len(rows)
        features = np.zeros((self._window, len(FEATURE_NAMES)), dtype=np.float32)
        features[missing:] = rows
        mask = np.ones(self._window, dtype=np.bool_)
        mask[:missing] = False
        return features, mask


def _refuse_impossible_bar(
    open_: float, high: float, low: float, close: float, volume: float
) -> None:
    prices = {"open": open_, "high": high, "low": low, "close": close}
    for name, value in (*prices.items(), ("volume", volume)):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, was {value}")
    for name, value in prices.items():
        if value <= 0:
            raise ValueError(f"{name} must be positive, was {value}")
    if volume < 0:
        raise ValueError(f"volume must not be negative, was {volume}")
    if high < low:
        raise ValueError(f"high must not be below low, was {high}")
    if high < max(open_, close):
        raise ValueError(f"high must be the highest price of its bar, was {high}")
    if low > min(open_, close):
        raise ValueError(f"low must be the lowest price of its bar, was {low}")


def _refuse_outside(name: str, value: float | None, least: float, most: float) -> None:
    if value is not None and not (math.isfinite(value) and least <= value <= most):
        raise ValueError(f"{name} must be finite and in [{least:g}, {most:g}], was {value}")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _root_mean(squares: Sequence[float]) -> float:
    return max(math.sqrt(_mean(squares)), VOLATILITY_FLOOR)


def _clip(value: float) -> float:
    return min(max(value, -CLIP), CLIP)


def _log_ratio(numerator: float, denominator: float) -> float:
    return min(max(math.log(numerator / denominator), -LOG_RATIO_LIMIT), LOG_RATIO_LIMIT)


def _place(value: float, low: float, high: float) -> float:
    span = high - low
    return 2.0 * (value - low) / span - 1.0 if span > 0 else 0.0


def _trend(prices: Sequence[float]) -> float:
    """Correlate log prices, oldest first, with time: -1 to 1, 0 where nothing moved."""
    n, first, log = len(prices), prices[0], math.log
    differences = [log(price / first) for price in prices]
    with_time = math.fsum(map(mul, _steps(n), differences))
    total = math.fsum(differences)
    spread = max(math.fsum(map(mul, differences, differences)) - total * total / n, 0.0)
    scale = math.sqrt(spread * n * (n * n - 1) / 12.0)
    return 0.0 if scale < FLAT_SPREAD else min(max(with_time / scale, -1.0), 1.0)


@cache
def _steps(n: int) -> tuple[float, ...]:
    """Return n points in time, one apart, around 0."""
    return tuple(k - (n - 1) / 2.0 for k in range(n))


def _time(close_ns: int) -> dict[str, float]:
    of_day = 2.0 * math.pi * (close_ns % DAY_NS) / DAY_NS
    of_week = 2.0 * math.pi * ((close_ns - MONDAY_NS) % WEEK_NS) / WEEK_NS
    return {
        "time_of_day_sin": math.sin(of_day),
        "time_of_day_cos": math.cos(of_day),
        "day_of_week_sin": math.sin(of_week),
        "day_of_week_cos": math.cos(of_week),
    }
