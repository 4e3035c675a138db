"""Feature frame: the 53 columns that the existing system calls features, from checked candles.

These are the contract's names, definitions, order and rounding. The model does not read them (its
own input is `hrm/features.py`); charts, reports and the existing system's files do. `frame_stream`
computes the same row bar by bar.

Where the contract says no more than a name, the definition is the usual one: moving averages begin
with a simple mean, RSI, ATR and ADX are smoothed as Wilder did, standard deviations are those of
the population in the bands and of a sample in `volatility_n`. Where nothing moved in a window, what
divides by its range is missing, and the row is dropped as all rows with a missing value are.
"""

from typing import Final, Protocol
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from hrm.rolling import FloatArray, newest, rolling_max, rolling_mean, rolling_min

AVERAGES: Final = (5, 10, 20, 50, 100, 200)
PERIOD: Final = 14  # of RSI, stochastic, Williams, CCI, ADX and ATR
SLOW_RSI: Final = 21
MACD_FAST, MACD_SLOW, MACD_SIGNAL = 12, 26, 9
BAND_BARS, BAND_WIDTH = 20, 2.0
TREND_BARS: Final = 20
CHANGE_BARS: Final = 10
TRIX_BARS: Final = 30
CCI_SCALE: Final = 0.015
DECIMALS: Final = 2
WARMUP_ROWS: Final = max(AVERAGES) - 1
INDEX_NAME: Final = "datetime_readable"
ZONE: Final = ZoneInfo("Asia/Kolkata")

FRAME_COLUMNS: Final = (
    "open",
    "high",
    "low",
    "close",
    "datetime_epoch",
    *(f"{kind}_{n}" for n in AVERAGES for kind in ("sma", "ema")),
    "macd",
    "macd_signal",
    "macd_histogram",
    "rsi_14",
    "rsi_21",
    "stoch_k",
    "stoch_d",
    "williams_r",
    "cci",
    "adx",
    "di_plus",
    "di_minus",
    "momentum_10",
    "roc_10",
    "trix",
    "atr",
    "bb_upper",
    "bb_middle",
    "bb_lower",
    "bb_width",
    "bb_position",
    "trend_slope",
    "trend_strength",
    "trend_direction",
    "price_change",
    "price_change_abs",
    "hl_range",
    "body_size",
    "upper_shadow",
    "lower_shadow",
    "sma_5_20_cross",
    "sma_10_50_cross",
    "price_vs_sma_20",
    "price_vs_ema_20",
    "volatility_10",
    "volatility_20",
)


class CandleColumns(Protocol):
    """What a frame is made of: `history.CandleTable`, or anything with these columns, [N] each."""

    @property
    def open_ns(self) -> NDArray[np.int64]: ...
    @property
    def open(self) -> FloatArray: ...
    @property
    def high(self) -> FloatArray: ...
    @property
    def low(self) -> FloatArray: ...
    @property
    def close(self) -> FloatArray: ...


def feature_frame(candles: CandleColumns) -> pd.DataFrame:
    """Return the contract's frame: rounded, without rows that lack a value.

    Index: the bar's open as naive Indian time. An empty frame has the columns all the same.
    """
    exact = exact_frame(candles).dropna()
    rounded = exact.round(DECIMALS)
    rounded["datetime_epoch"] = exact["datetime_epoch"].astype(np.int64)
    return rounded


def exact_frame(candles: CandleColumns) -> pd.DataFrame:
    """Return all rows, not rounded; NaN where too few bars lie behind."""
    o, h, l, c = candles.open, candles.high, candles.low, candles.close  # noqa: E741
    seconds = candles.open_ns // 1_000_000_000
    columns: dict[str, FloatArray] = {"open": o, "high": h, "low": l, "close": c}
    columns["datetime_epoch"] = seconds.astype(np.float64)
    columns |= {f"sma_{n}": _padded(_mean(c, n), len(c)) for n in AVERAGES}
    columns |= {f"ema_{n}": _ema(c, n) for n in AVERAGES}
    columns |= _macd(c) | _oscillators(h, l, c) | _directional(h, l, c) | _bands(c) | _trend(c)
    columns |= _changes(o, h, l, c)
    columns["sma_5_20_cross"] = _cross(columns["sma_5"], columns["sma_20"])
    columns["sma_10_50_cross"] = _cross(columns["sma_10"], columns["sma_50"])
    for kind in ("sma", "ema"):
        average = columns[f"{kind}_20"]
        columns[f"price_vs_{kind}_20"] = 100.0 * (c - average) / average
    instants = pd.to_datetime(candles.open_ns, utc=True).tz_convert(ZONE).tz_localize(None)
    index = pd.DatetimeIndex(instants, name=INDEX_NAME)
    return pd.DataFrame(columns, index=index)[list(FRAME_COLUMNS)]


def _padded(values: FloatArray, count: int) -> FloatArray:
    """Put NaN before values until there are `count`."""
    result = np.full(count, np.nan)
    if len(values):
        result[count - len(values) :] = values
    return result


def _mean(values: FloatArray, n: int) -> FloatArray:
    return rolling_mean(values, n) if len(values) >= n else np.empty(0)


def _smoothed(values: FloatArray, n: int, alpha: float) -> FloatArray:
    """Smooth exponentially from a simple mean of the first n values on; NaN before it."""
    places = np.flatnonzero(~np.isnan(values))
    result = np.full(len(values), np.nan)
    if len(places) < n:
        return result
    known = values[places]
    seeded = np.concatenate([rolling_mean(known[:n], n), known[n:]])
    result[places[n - 1 :]] = pd.Series(seeded).ewm(alpha=alpha, adjust=False).mean()
    return pd.Series(result).ffill().to_numpy()  # a missing value leaves the average as it was


def _ema(values: FloatArray, n: int) -> FloatArray:
    return _smoothed(values, n, 2.0 / (n + 1.0))


def _macd(c: FloatArray) -> dict[str, FloatArray]:
    macd = _ema(c, MACD_FAST) - _ema(c, MACD_SLOW)
    signal = _ema(macd, MACD_SIGNAL)
    triple = _ema(_ema(_ema(c, TRIX_BARS), TRIX_BARS), TRIX_BARS)
    trix = np.full(len(c), np.nan)
    trix[1:] = 100.0 * (triple[1:] - triple[:-1]) / triple[:-1]
    return {"macd": macd, "macd_signal": signal, "macd_histogram": macd - signal, "trix": trix}


def _oscillators(
    h: FloatArray,
    l: FloatArray,  # noqa: E741
    c: FloatArray,
) -> dict[str, FloatArray]:
    count = len(c)
    change = np.diff(c, prepend=np.nan)
    columns = {}
    for n in (PERIOD, SLOW_RSI):
        up = _smoothed(np.maximum(change, 0.0), n, 1.0 / n)
        down = _smoothed(np.maximum(-change, 0.0), n, 1.0 / n)
        columns[f"rsi_{n}"] = _share(100.0 * up, up + down)
    enough = count >= PERIOD
    top = _padded(rolling_max(h, PERIOD) if enough else np.empty(0), count)
    bottom = _padded(rolling_min(l, PERIOD) if enough else np.empty(0), count)
    raw = _share(100.0 * (c - bottom), top - bottom)
    columns["stoch_k"] = _padded_mean(raw, 3)
    columns["stoch_d"] = _padded_mean(columns["stoch_k"], 3)
    columns["williams_r"] = _share(-100.0 * (top - c), top - bottom)
    typical = (h + l + c) / 3.0
    mean = _padded(_mean(typical, PERIOD), count)
    deviation = np.full(count, np.nan)
    if enough:
        windows = sliding_window_view(typical, PERIOD)
        apart = np.abs(windows - newest(mean, len(windows))[:, None]).mean(axis=1)
        deviation[PERIOD - 1 :] = np.where(_is_still(windows), 0.0, apart)
    columns["cci"] = _share(typical - mean, CCI_SCALE * deviation)
    return columns


def _padded_mean(values: FloatArray, n: int) -> FloatArray:
    """Average n neighbours; NaN wherever one of them is."""
    return _padded(_mean(values, n), len(values))


def _directional(
    h: FloatArray,
    l: FloatArray,  # noqa: E741
    c: FloatArray,
) -> dict[str, FloatArray]:
    """Compute ATR, DI and ADX; the sums of DI begin with the first 13 bars, as Wilder's tables."""
    true = np.full(len(c), np.nan)
    true[1:] = np.maximum(h[1:], c[:-1]) - np.minimum(l[1:], c[:-1])
    up, down = np.diff(h, prepend=np.nan), -np.diff(l, prepend=np.nan)
    plus = np.where((up > down) & (up > 0), up, 0.0)
    minus = np.where((down > up) & (down > 0), down, 0.0)
    true_sum, plus_sum, minus_sum = (_wilder_sum(x) for x in (true, plus, minus))
    di_plus, di_minus = (_share(100.0 * part, true_sum) for part in (plus_sum, minus_sum))
    dx = _share(100.0 * np.abs(di_plus - di_minus), di_plus + di_minus)
    return {
        "atr": _smoothed(true, PERIOD, 1.0 / PERIOD),
        "di_plus": di_plus,
        "di_minus": di_minus,
        "adx": _smoothed(dx, PERIOD, 1.0 / PERIOD),
    }


def _wilder_sum(values: FloatArray) -> FloatArray:
    """Sum the 13 values after the first, then lose a fourteenth and gain a value with each bar."""
    if len(values) <= PERIOD:
        return np.full(len(values), np.nan)
    # s' = s - s/n + x is the exponential mean of n x.
    seed = values[1:PERIOD].sum()
    scaled = np.concatenate([[seed], PERIOD * values[PERIOD:]])
    smooth = pd.Series(scaled).ewm(alpha=1.0 / PERIOD, adjust=False).mean().to_numpy()
    return _padded(smooth[1:], len(values))


def _bands(c: FloatArray) -> dict[str, FloatArray]:
    count = len(c)
    middle = _padded(_mean(c, BAND_BARS), count)
    reach = BAND_WIDTH * _padded(_deviation(c, BAND_BARS, 0), count)
    upper, lower = middle + reach, middle - reach
    return {
        "bb_upper": upper,
        "bb_middle": middle,
        "bb_lower": lower,
        "bb_width": 100.0 * (upper - lower) / middle,
        "bb_position": _share(100.0 * (c - lower), upper - lower),
        **{
            f"volatility_{n}": 100.0 * _padded(_deviation(c, n, 1), count) / _padded_mean(c, n)
            for n in (10, 20)
        },
    }


def _deviation(values: FloatArray, n: int, ddof: int) -> FloatArray:
    if len(values) < n:
        return np.empty(0)
    windows = sliding_window_view(values, n)
    return np.where(_is_still(windows), 0.0, windows.std(axis=1, ddof=ddof))


def _is_still(windows: FloatArray) -> NDArray[np.bool_]:
    """Tell which rows are one value: their mean rounds, and the distance from it would not be 0."""
    return np.asarray(windows.min(axis=1) == windows.max(axis=1))


def _trend(c: FloatArray) -> dict[str, FloatArray]:
    """Fit a line to each 20 closes: slope a bar, R squared (0 where nothing moved), sign."""
    slope, strength = np.full(len(c), np.nan), np.full(len(c), np.nan)
    if len(c) >= TREND_BARS:
        steps = np.arange(TREND_BARS) - (TREND_BARS - 1) / 2.0
        windows = sliding_window_view(c, TREND_BARS)
        offsets = windows - windows.mean(axis=1, keepdims=True)
        slopes = offsets @ steps / (steps @ steps)
        spread = (offsets**2).sum(axis=1)
        moved = spread > 0
        explained = slopes**2 * (steps @ steps)
        slope[TREND_BARS - 1 :] = slopes
        strength[TREND_BARS - 1 :] = np.where(moved, explained / np.where(moved, spread, 1.0), 0.0)
    direction = np.where(np.isnan(slope), np.nan, np.where(slope > 0, 1.0, -1.0))
    return {"trend_slope": slope, "trend_strength": strength, "trend_direction": direction}


def _changes(
    o: FloatArray,
    h: FloatArray,
    l: FloatArray,  # noqa: E741
    c: FloatArray,
) -> dict[str, FloatArray]:
    change, momentum, rate = (np.full(len(c), np.nan) for _ in range(3))
    change[1:] = 100.0 * (c[1:] - c[:-1]) / c[:-1]
    if len(c) > CHANGE_BARS:
        before = c[:-CHANGE_BARS]
        momentum[CHANGE_BARS:] = c[CHANGE_BARS:] - before
        rate[CHANGE_BARS:] = 100.0 * (c[CHANGE_BARS:] - before) / before
    return {
        "momentum_10": momentum,
        "roc_10": rate,
        "price_change": change,
        "price_change_abs": np.abs(change),
        "hl_range": 100.0 * (h - l) / c,
        "body_size": 100.0 * np.abs(c - o) / c,
        "upper_shadow": 100.0 * (h - np.maximum(o, c)) / c,
        "lower_shadow": 100.0 * (np.minimum(o, c) - l) / c,
    }


def _cross(fast: FloatArray, slow: FloatArray) -> FloatArray:
    return np.where(np.isnan(slow), np.nan, np.where(fast > slow, 1.0, -1.0))


def _share(part: FloatArray, whole: FloatArray) -> FloatArray:
    """Divide, NaN where there is nothing to divide by."""
    has = whole > 0
    return np.where(has, part / np.where(has, whole, 1.0), np.nan)
