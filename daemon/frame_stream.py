"""Frame stream: the rows of `feature_frame`, one at a time, as bars close.

A bar costs the same however many came before: windows hold at most 200 bars, smoothed averages are
carried. Simple averages are added up in the order of the frame, so that both round the same way
where the third digit is a five.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from daemon.feature_frame import (
    AVERAGES,
    BAND_BARS,
    BAND_WIDTH,
    CCI_SCALE,
    CHANGE_BARS,
    DECIMALS,
    FRAME_COLUMNS,
    MACD_FAST,
    MACD_SIGNAL,
    MACD_SLOW,
    PERIOD,
    SLOW_RSI,
    TREND_BARS,
    TRIX_BARS,
)

_KEPT: Final = {"high": PERIOD, "low": PERIOD, "close": max(AVERAGES), "typical": PERIOD}
_SCALE: Final = 10**DECIMALS
_RSI: Final = (PERIOD, SLOW_RSI)


@dataclass(slots=True)
class _Smooth:
    """An exponential average that begins with the simple one of its first `bars` values."""

    bars: int
    alpha: float
    seen: int = 0
    value: float = 0.0

    def add(self, value: float) -> float:
        """Take in a value, NaN being none; NaN until there are enough."""
        if math.isnan(value):
            return self.value if self.seen >= self.bars else math.nan
        self.seen += 1
        if self.seen <= self.bars:
            self.value += value  # the sum, until it becomes the first mean
            if self.seen < self.bars:
                return math.nan
            self.value /= self.bars
        else:
            self.value = (1.0 - self.alpha) * self.value + self.alpha * value
        return self.value


@dataclass(slots=True)
class _WilderSum:
    """Wilder's running sum: of the first 13 values, then less a fourteenth with every bar."""

    seen: int = 0
    value: float = 0.0

    def add(self, value: float) -> float:
        """Take in a value; NaN until there are enough."""
        self.seen += 1
        if self.seen < PERIOD:
            self.value += value
            return math.nan
        self.value += value - self.value / PERIOD
        return self.value


def _ema(bars: int) -> _Smooth:
    return _Smooth(bars, 2.0 / (bars + 1.0))


def _wilder(bars: int) -> _Smooth:
    return _Smooth(bars, 1.0 / bars)


class FrameStream:
    """Turn closed bars of one instrument into rows of the contract's frame, one by one."""

    def __init__(self) -> None:
        self._series: dict[str, list[float]] = {name: [] for name in _KEPT}
        self._stochastic: list[list[float]] = [[], []]  # raw %K, smoothed %K
        self._before: tuple[float, float, float] | None = None  # high, low, close
        self._smooth = {f"ema_{n}": _ema(n) for n in AVERAGES}
        self._smooth |= {"fast": _ema(MACD_FAST), "slow": _ema(MACD_SLOW)}
        self._smooth |= {"signal": _ema(MACD_SIGNAL), "atr": _wilder(PERIOD)}
        self._smooth |= {f"trix_{k}": _ema(TRIX_BARS) for k in range(3)}
        self._smooth |= {f"{side}_{n}": _wilder(n) for n in _RSI for side in ("up", "down")}
        self._smooth["adx"] = _wilder(PERIOD)
        self._sums = {name: _WilderSum() for name in ("true", "plus", "minus")}
        self._triple = math.nan

    def add(
        self,
        open_ns: int,
        open: float,  # noqa: A002 - the field's own word, as in every candle
        high: float,
        low: float,
        close: float,
    ) -> dict[str, float]:
        """Take in the next bar and return its row, columns FRAME_COLUMNS, not rounded.

        NaN where too few bars lie behind, or nothing moved; the frame drops such rows.
        """
        for name, value in (("high", high), ("low", low), ("close", close)):
            self._push(name, value)
        self._push("typical", (high + low + close) / 3.0)
        row = {"open": open, "high": high, "low": low, "close": close}
        row["datetime_epoch"] = float(open_ns // 1_000_000_000)
        row |= self._averages(close) | self._macd(close) | self._oscillators(close)
        row |= self._directional(high, low) | self._bands(close) | self._trend()
        row |= self._changes(open, high, low, close)
        self._before = (high, low, close)
        return {name: row[name] for name in FRAME_COLUMNS}

    def snapshot(self) -> dict[str, Any]:
        """Return the whole state as plain data, fit for JSON (with NaN); see `restored`."""
        return {
            "series": {name: values[-_KEPT[name] :] for name, values in self._series.items()},
            "stochastic": [values[-3:] for values in self._stochastic],
            "before": self._before,
            "smooth": {name: [x.seen, x.value] for name, x in self._smooth.items()},
            "sums": {name: [x.seen, x.value] for name, x in self._sums.items()},
            "triple": self._triple,
        }

    @classmethod
    def restored(cls, snapshot: dict[str, Any]) -> Self:
        """Build a stream that goes on where `snapshot` was taken; ValueError if it is none."""
        stream = cls()
        try:
            stream._series = {name: list(snapshot["series"][name]) for name in _KEPT}
            stream._stochastic = [list(values) for values in snapshot["stochastic"]]
            before = snapshot["before"]
            stream._before = None if before is None else (before[0], before[1], before[2])
            carried = {"smooth": stream._smooth, "sums": stream._sums}
            for group, parts in carried.items():
                for name, part in parts.items():  # type: ignore[attr-defined]  # both are dicts
                    part.seen, part.value = snapshot[group][name]
            stream._triple = snapshot["triple"]
        except (KeyError, TypeError) as error:
            raise ValueError(f"no snapshot of a frame stream: {error!r} is missing") from error
        return stream

    def _push(self, name: str, value: float) -> None:
        values = self._series[name]
        values.append(value)
        if len(values) > 2 * _KEPT[name]:
            del values[: -_KEPT[name]]

    def _averages(self, close: float) -> dict[str, float]:
        closes = self._series["close"]
        row = {f"sma_{n}": _mean(closes, n) for n in AVERAGES}
        row |= {f"ema_{n}": self._smooth[f"ema_{n}"].add(close) for n in AVERAGES}
        row["sma_5_20_cross"] = _cross(row["sma_5"], row["sma_20"])
        row["sma_10_50_cross"] = _cross(row["sma_10"], row["sma_50"])
        for kind in ("sma", "ema"):
            average = row[f"{kind}_20"]
            row[f"price_vs_{kind}_20"] = 100.0 * (close - average) / average
        return row

    def _macd(self, close: float) -> dict[str, float]:
        macd = self._smooth["fast"].add(close) - self._smooth["slow"].add(close)
        signal = self._smooth["signal"].add(macd)
        triple = close
        for k in range(3):
            triple = self._smooth[f"trix_{k}"].add(triple)
        trix = 100.0 * (triple - self._triple) / self._triple
        self._triple = triple
        return {"macd": macd, "macd_signal": signal, "macd_histogram": macd - signal, "trix": trix}

    def _oscillators(self, close: float) -> dict[str, float]:
        change = math.nan if self._before is None else close - self._before[2]
        row = {}
        for n in _RSI:
            up = self._smooth[f"up_{n}"].add(_positive(change))
            down = self._smooth[f"down_{n}"].add(_positive(-change))
            row[f"rsi_{n}"] = _share(100.0 * up, up + down)
        top, bottom = math.nan, math.nan
        if len(self._series["high"]) >= PERIOD:
            top = max(self._series["high"][-PERIOD:])
            bottom = min(self._series["low"][-PERIOD:])
        raw, smooth = self._stochastic
        raw.append(_share(100.0 * (close - bottom), top - bottom))
        smooth.append(_mean(raw, 3))
        row["stoch_k"], row["stoch_d"] = smooth[-1], _mean(smooth, 3)
        del raw[:-3], smooth[:-3]
        row["williams_r"] = _share(-100.0 * (top - close), top - bottom)
        typical = self._series["typical"]
        mean = _mean(typical, PERIOD)
        recent = typical[-PERIOD:]
        deviation = 0.0 if _is_still(recent) else math.fsum(abs(x - mean) for x in recent) / PERIOD
        row["cci"] = _share(typical[-1] - mean, CCI_SCALE * deviation)
        return row

    def _directional(self, high: float, low: float) -> dict[str, float]:
        names = ("atr", "di_plus", "di_minus", "adx")
        if self._before is None:
            return dict.fromkeys(names, math.nan)
        high_before, low_before, close_before = self._before
        true = max(high, close_before) - min(low, close_before)
        up, down = high - high_before, low_before - low
        sums = self._sums
        true_sum = sums["true"].add(true)
        plus = sums["plus"].add(up if up > down and up > 0 else 0.0)
        minus = sums["minus"].add(down if down > up and down > 0 else 0.0)
        di_plus, di_minus = _share(100.0 * plus, true_sum), _share(100.0 * minus, true_sum)
        dx = _share(100.0 * abs(di_plus - di_minus), di_plus + di_minus)
        values = (self._smooth["atr"].add(true), di_plus, di_minus, self._smooth["adx"].add(dx))
        return dict(zip(names, values, strict=True))

    def _bands(self, close: float) -> dict[str, float]:
        closes = self._series["close"]
        middle = _mean(closes, BAND_BARS)
        reach = BAND_WIDTH * _deviation(closes, BAND_BARS, 0)
        upper, lower = middle + reach, middle - reach
        return {
            "bb_upper": upper,
            "bb_middle": middle,
            "bb_lower": lower,
            "bb_width": 100.0 * (upper - lower) / middle,
            "bb_position": _share(100.0 * (close - lower), upper - lower),
            **{
                f"volatility_{n}": 100.0 * _deviation(closes, n, 1) / _mean(closes, n)
                for n in (10, 20)
            },
        }

    def _trend(self) -> dict[str, float]:
        closes = self._series["close"][-TREND_BARS:]
        if len(closes) < TREND_BARS:
            return dict.fromkeys(("trend_slope", "trend_strength", "trend_direction"), math.nan)
        mean, middle = _mean(closes, TREND_BARS), (TREND_BARS - 1) / 2.0
        width = TREND_BARS * (TREND_BARS**2 - 1) / 12.0
        slope = math.fsum((k - middle) * (x - mean) for k, x in enumerate(closes)) / width
        spread = math.fsum((x - mean) ** 2 for x in closes)
        strength = slope * slope * width / spread if spread > 0 else 0.0
        direction = 1.0 if slope > 0 else -1.0
        return {"trend_slope": slope, "trend_strength": strength, "trend_direction": direction}

    def _changes(self, open_: float, high: float, low: float, close: float) -> dict[str, float]:
        closes = self._series["close"]
        before = closes[-2] if len(closes) > 1 else math.nan
        earlier = closes[-1 - CHANGE_BARS] if len(closes) > CHANGE_BARS else math.nan
        change = 100.0 * (close - before) / before
        return {
            "momentum_10": close - earlier,
            "roc_10": 100.0 * (close - earlier) / earlier,
            "price_change": change,
            "price_change_abs": abs(change),
            "hl_range": 100.0 * (high - low) / close,
            "body_size": 100.0 * abs(close - open_) / close,
            "upper_shadow": 100.0 * (high - max(open_, close)) / close,
            "lower_shadow": 100.0 * (min(open_, close) - low) / close,
        }


def rounded_row(row: dict[str, float]) -> dict[str, float]:
    """Round a row as the frame is rounded."""
    return {name: _rounded(value) for name, value in row.items()}


def _rounded(value: float) -> float:
    # As numpy rounds: scaled, to the nearest even, and back.
    return value if math.isnan(value) else round(value * _SCALE) / _SCALE


def _mean(values: Sequence[float], n: int) -> float:
    """Average the last n values, added up oldest first; NaN if there are fewer."""
    if len(values) < n:
        return math.nan
    total = 0.0
    for value in values[-n:]:
        total += value
    return total / n


def _deviation(values: Sequence[float], n: int, ddof: int) -> float:
    if len(values) < n:
        return math.nan
    recent = values[-n:]
    if _is_still(recent):
        return 0.0
    mean = math.fsum(recent) / n
    return math.sqrt(math.fsum((x - mean) ** 2 for x in recent) / (n - ddof))


def _is_still(values: Sequence[float]) -> bool:
    """Tell whether all are the same: their mean rounds, and the distance from it would not be 0."""
    return min(values) == max(values)


def _positive(value: float) -> float:
    return value if math.isnan(value) else max(value, 0.0)


def _cross(fast: float, slow: float) -> float:
    if math.isnan(slow):
        return math.nan
    return 1.0 if fast > slow else -1.0


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan
