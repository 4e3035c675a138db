"""Bar columns: closed bars as the rows the model reads, whole histories at once.

Numpy only, no clock, no calendar, no state. `feature_stream` computes the same row by row; the two
are written apart, and the tests hold them together to 1e-9. The interface that callers use, and
what account and context add, is in `features`.

Four kinds of column, by how far back a row looks:

- of the bar and the 32 before it: known from the first row on;
- `_x3`: eight bars of three times the length, the newest of which ends with the row's bar (15
  minutes for bars of five): closed bars only, never one that is still growing, 24 bars back;
- `_x12`: the same with twelve times the length (60 minutes for bars of five), 96 bars back; zero,
  and `x12_known` 0, in the rows before;
- of the day so far, the UTC day in which the bar opens, and the day before: zero, and `day_known`
  0, until a day has been seen from its first bar. No session of the markets we know of crosses
  midnight UTC, but that of currencies, which trades around the clock.

What may be absent has a column that says so: `volume_known`, `x12_known`, `day_known` (1/2: today,
1: yesterday too), `depth_known` (1/2: the spread alone, 1: quantities too); `expiry_nearness` is 0
exactly where no expiry is known.
"""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hrm.rolling import (
    FloatArray,
    autocorrelation,
    efficiency,
    log_ratio,
    newest,
    place,
    rolling_max,
    rolling_mean,
    rolling_min,
    trend,
    true_range,
)

IntArray = NDArray[np.int64]

WARMUP_BARS: Final = 32  # bars before the first row
BLOCKS: Final = 8  # longer bars that the columns _x3 and _x12 look at
SHORT_BLOCK: Final = 3
LONG_BLOCK: Final = 12
LONG_WARMUP_BARS: Final = LONG_BLOCK * BLOCKS  # bars before the first row with the columns _x12
ATR_BARS: Final = 14
CLIP: Final = 6.0  # in units of volatility or average true range
PLACE_CLIP: Final = 3.0  # of a price outside the range it is placed in
VOLATILITY_FLOOR: Final = 1e-6  # per bar, in log price: a dead market divides by this, not by zero
USUAL_VOLATILITY: Final = 1e-3  # per bar, where volatility_level reads 0
LEVEL_CLIP: Final = 4.0
GAP_BARS: Final = 16  # a gap between days counts in volatilities of so many bars

DAY_NS: Final = 86_400_000_000_000
WEEK_NS: Final = 7 * DAY_NS
MONDAY_NS: Final = 4 * DAY_NS  # the epoch began on a Thursday

FEATURE_NAMES: Final = (
    "return_1",
    "return_2",
    "return_4",
    "return_8",
    "return_16",
    "return_32",
    "opening_gap",
    "range_ratio",
    "body",
    "upper_shadow",
    "lower_shadow",
    "close_location",
    "distance_mean_8",
    "distance_mean_32",
    "distance_high_16",
    "distance_low_16",
    "place_in_range_32",
    "volatility_ratio_4_16",
    "volatility_ratio_8_32",
    "volatility_level",
    "trend_16",
    "trend_32",
    "efficiency_16",
    "autocorrelation_16",
    "up_share_16",
    "volume_ratio_16",
    "volume_known",
    "return_1_x3",
    "range_ratio_x3",
    "close_location_x3",
    "distance_mean_8_x3",
    "trend_8_x3",
    "return_1_x12",
    "range_ratio_x12",
    "close_location_x12",
    "distance_mean_8_x12",
    "trend_8_x12",
    "volatility_ratio_x12",
    "x12_known",
    "day_return",
    "day_range",
    "place_in_day",
    "day_gap",
    "place_in_previous_day",
    "day_known",
    "time_of_day_sin",
    "time_of_day_cos",
    "day_of_week_sin",
    "day_of_week_cos",
    "missing_bars",
    "expiry_nearness",
    "spread",
    "depth_imbalance",
    "depth_known",
)


def feature_rows(
    open: ArrayLike,  # noqa: A002 - the field's own word, as in every candle
    high: ArrayLike,
    low: ArrayLike,
    close: ArrayLike,
    volume: ArrayLike,
    close_ns: ArrayLike,
    bar_ns: int,
    *,
    days_to_expiry: ArrayLike | None = None,
    spread: ArrayLike | None = None,
    depth_imbalance: ArrayLike | None = None,
) -> FloatArray:
    """Turn N closed bars, oldest first, into float64 [N, F]; the first WARMUP_BARS rows are zero.

    `bar_ns` is the length of a bar, `close_ns` when it closed (UTC). A volume of 0 means unknown.
    days_to_expiry: calendar days to the next expiry of what is traded, 0 on the day itself; spread:
    best ask less best bid when the bar closed, in price units; depth_imbalance: bid quantity less
    ask quantity over their sum, in [-1, 1]; [N] each, NaN where nobody knows. Refuses bars that
    cannot be true with a ValueError that names row and value.
    """
    o, h, l, c, v, t = checked_bars(open, high, low, close, volume, close_ns)  # noqa: E741
    if bar_ns <= 0:
        raise ValueError(f"bar_ns must be positive, was {bar_ns}")
    count = len(c)
    expiry = _optional("days_to_expiry", days_to_expiry, count, 0.0, np.inf)
    gap = _optional("spread", spread, count, 0.0, np.inf)
    imbalance = _optional("depth_imbalance", depth_imbalance, count, -1.0, 1.0)
    features = np.zeros((count, len(FEATURE_NAMES)))
    rows = count - WARMUP_BARS
    if rows <= 0:
        return features

    columns = _Columns(rows)
    returns = np.log(c[1:] / c[:-1])  # returns[i] leads to bar i + 1
    # A bar that never moved has no range; one part in a million of the price keeps the division
    # finite.
    floor = newest(c, rows) * VOLATILITY_FLOOR
    atr = np.maximum(newest(rolling_mean(true_range(h, l, c), ATR_BARS), rows), floor)
    volatility = {n: newest(_root_mean_square(returns, n), rows) for n in (4, 8, 16, 32)}
    _add_moves(columns, o, c, volatility[32])
    _add_shape(columns, o, h, l, c, atr)
    _add_statistics(columns, c, returns, volatility)
    _add_volume(columns, v)
    _add_blocks(columns, "x3", SHORT_BLOCK, h, l, c)
    _add_blocks(columns, "x12", LONG_BLOCK, h, l, c)
    _add_long_volatility(columns, c, volatility[32])
    _add_day(columns, o, h, l, c, (t - bar_ns) // DAY_NS, volatility[32])
    _add_time(columns, t, bar_ns)
    known = ~np.isnan(newest(expiry, rows))
    columns.add("expiry_nearness", np.where(known, 1.0 / (1.0 + newest(expiry, rows)), 0.0))
    _add_depth(columns, newest(gap, rows), newest(imbalance, rows), atr)
    features[WARMUP_BARS:] = columns.stacked()
    return features


def warm_rows(close_ns: ArrayLike, bar_ns: int) -> NDArray[np.bool_]:
    """Tell which rows no longer depend on what came before the first bar, in no column, [N]."""
    days = (np.asarray(close_ns, dtype=np.int64) - bar_ns) // DAY_NS
    position = np.arange(len(days))
    return (position >= LONG_WARMUP_BARS) & (_day_numbers(days) >= 2)


def _add_moves(columns: "_Columns", o: FloatArray, c: FloatArray, volatility: FloatArray) -> None:
    rows = columns.rows
    for lag in (1, 2, 4, 8, 16, 32):
        change = newest(np.log(c[lag:] / c[:-lag]), rows)
        columns.add(f"return_{lag}", _clip(change / (volatility * np.sqrt(lag))))
    columns.add("opening_gap", _clip(newest(np.log(o[1:] / c[:-1]), rows) / volatility))
    level = np.log(volatility / USUAL_VOLATILITY)
    columns.add("volatility_level", np.clip(level, -LEVEL_CLIP, LEVEL_CLIP))


def _add_shape(
    columns: "_Columns",
    o: FloatArray,
    h: FloatArray,
    l: FloatArray,  # noqa: E741
    c: FloatArray,
    atr: FloatArray,
) -> None:
    rows = columns.rows
    now, span = newest(c, rows), h - l
    mean_span = np.maximum(newest(rolling_mean(span, 16), rows), now * VOLATILITY_FLOOR)
    columns.add("range_ratio", _clip(newest(span, rows) / mean_span - 1.0))
    columns.add("body", _clip(newest(c - o, rows) / atr))
    columns.add("upper_shadow", _clip(newest(h - np.maximum(o, c), rows) / atr))
    columns.add("lower_shadow", _clip(newest(np.minimum(o, c) - l, rows) / atr))
    columns.add("close_location", place(now, newest(l, rows), newest(h, rows)))
    for n in (8, 32):
        mean = newest(rolling_mean(c, n), rows)
        columns.add(f"distance_mean_{n}", _clip((now - mean) / atr))
    columns.add("distance_high_16", _clip((now - newest(rolling_max(h, 16), rows)) / atr))
    columns.add("distance_low_16", _clip((now - newest(rolling_min(l, 16), rows)) / atr))
    low, high = newest(rolling_min(l, 32), rows), newest(rolling_max(h, 32), rows)
    columns.add("place_in_range_32", place(now, low, high))


def _add_statistics(
    columns: "_Columns", c: FloatArray, returns: FloatArray, volatility: dict[int, FloatArray]
) -> None:
    rows = columns.rows
    columns.add("volatility_ratio_4_16", log_ratio(volatility[4], volatility[16]))
    columns.add("volatility_ratio_8_32", log_ratio(volatility[8], volatility[32]))
    columns.add("trend_16", newest(trend(c, 16), rows))
    columns.add("trend_32", newest(trend(c, 32), rows))
    columns.add("efficiency_16", newest(efficiency(returns, 16), rows))
    columns.add("autocorrelation_16", newest(autocorrelation(returns, 16), rows))
    columns.add("up_share_16", newest(rolling_mean(np.sign(returns), 16), rows))


def _add_volume(columns: "_Columns", v: FloatArray) -> None:
    mean = newest(rolling_mean(v, 16), columns.rows)
    now = newest(v, columns.rows)
    known = (now > 0) & (mean > 0)
    ratio = log_ratio(np.where(known, now, 1.0), np.where(known, mean, 1.0))
    columns.add("volume_ratio_16", ratio)
    columns.add("volume_known", known.astype(np.float64))


def _add_blocks(
    columns: "_Columns",
    name: str,
    k: int,
    h: FloatArray,
    l: FloatArray,  # noqa: E741
    c: FloatArray,
) -> None:
    """Add the columns of bars of k times the length; nothing where too few bars lie behind."""
    rows = min(len(c) - k * BLOCKS, columns.rows)
    if rows <= 0:
        columns.add_zeros(*(n for n in FEATURE_NAMES if n.endswith(f"_{name}")))
        return
    now = newest(c, rows)
    high, low = rolling_max(h, k), rolling_min(l, k)
    moves = np.log(c[k:] / c[:-k])
    spans = high - low
    before = c[: len(high) - 1]  # the close before the block that begins one bar later
    true = np.maximum(high[1:], before) - np.minimum(low[1:], before)
    floor = now * VOLATILITY_FLOOR
    atr = np.maximum(newest(rolling_mean(true, BLOCKS, k), rows), floor)
    mean_span = np.maximum(newest(rolling_mean(spans, BLOCKS, k), rows), floor)
    volatility = newest(_root_mean_square(moves, BLOCKS, k), rows)
    columns.add(f"return_1_{name}", _clip(newest(moves, rows) / volatility))
    columns.add(f"range_ratio_{name}", _clip(newest(spans, rows) / mean_span - 1.0))
    columns.add(f"close_location_{name}", place(now, newest(low, rows), newest(high, rows)))
    mean = newest(rolling_mean(c, BLOCKS, k), rows)
    columns.add(f"distance_mean_8_{name}", _clip((now - mean) / atr))
    columns.add(f"trend_8_{name}", newest(trend(c, BLOCKS, k), rows))


def _add_long_volatility(columns: "_Columns", c: FloatArray, volatility: FloatArray) -> None:
    rows = min(len(c) - LONG_WARMUP_BARS, columns.rows)
    if rows <= 0:
        columns.add_zeros("volatility_ratio_x12", "x12_known")
        return
    moves = np.log(c[LONG_BLOCK:] / c[:-LONG_BLOCK])
    long = newest(_root_mean_square(moves, BLOCKS, LONG_BLOCK), rows)
    walked = newest(volatility, rows) * np.sqrt(LONG_BLOCK)
    columns.add("volatility_ratio_x12", log_ratio(long, walked))
    columns.add("x12_known", np.ones(rows))


def _add_day(
    columns: "_Columns",
    o: FloatArray,
    h: FloatArray,
    l: FloatArray,  # noqa: E741
    c: FloatArray,
    days: IntArray,
    volatility: FloatArray,
) -> None:
    """Add the columns of the day so far; `days`: [N] the day in which each bar opens."""
    numbers = _day_numbers(days)
    first = np.flatnonzero(np.diff(numbers, prepend=-1))  # of each day, its first bar
    high, low = np.empty_like(h), np.empty_like(l)
    for begin, end in zip(first, [*first[1:], len(c)], strict=True):
        high[begin:end] = np.maximum.accumulate(h[begin:end])
        low[begin:end] = np.minimum.accumulate(l[begin:end])
    start = first[numbers]  # [N] the first bar of each bar's day
    before = np.maximum(start - 1, 0)  # the last bar of the day before
    today, yesterday = numbers >= 1, numbers >= 2
    walked = newest(np.sqrt(np.arange(len(c)) - start + 1.0), columns.rows) * volatility

    def add(name: str, values: FloatArray, known: NDArray[np.bool_]) -> None:
        columns.add(name, np.where(newest(known, columns.rows), values, 0.0))

    add("day_return", _clip(newest(np.log(c / o[start]), columns.rows) / walked), today)
    add("day_range", _clip(newest(np.log(high / low), columns.rows) / walked), today)
    add("place_in_day", newest(place(c, low, high), columns.rows), today)
    gap = newest(np.log(o[start] / c[before]), columns.rows) / (volatility * np.sqrt(GAP_BARS))
    add("day_gap", _clip(gap), today)
    placed = np.clip(place(c, low[before], high[before]), -PLACE_CLIP, PLACE_CLIP)
    add("place_in_previous_day", newest(placed, columns.rows), yesterday)
    columns.add("day_known", newest(0.5 * today + 0.5 * yesterday, columns.rows))


def _add_time(columns: "_Columns", t: IntArray, bar_ns: int) -> None:
    now = newest(t, columns.rows)
    of_day = 2.0 * np.pi * (now % DAY_NS) / DAY_NS
    of_week = 2.0 * np.pi * ((now - MONDAY_NS) % WEEK_NS) / WEEK_NS
    columns.add("time_of_day_sin", np.sin(of_day))
    columns.add("time_of_day_cos", np.cos(of_day))
    columns.add("day_of_week_sin", np.sin(of_week))
    columns.add("day_of_week_cos", np.cos(of_week))
    missing = np.maximum(newest(np.diff(t), columns.rows) / bar_ns - 1.0, 0.0)
    columns.add("missing_bars", np.minimum(np.log1p(missing), CLIP))


def _add_depth(
    columns: "_Columns", gap: FloatArray, imbalance: FloatArray, atr: FloatArray
) -> None:
    has_gap, has_imbalance = ~np.isnan(gap), ~np.isnan(imbalance)
    columns.add("spread", _clip(np.where(has_gap, gap, 0.0) / atr))
    columns.add("depth_imbalance", np.where(has_imbalance, imbalance, 0.0))
    columns.add("depth_known", 0.5 * has_gap + 0.5 * has_imbalance)


def checked_bars(
    open: ArrayLike,  # noqa: A002 - the field's own word, as in every candle
    high: ArrayLike,
    low: ArrayLike,
    close: ArrayLike,
    volume: ArrayLike,
    close_ns: ArrayLike,
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray, IntArray]:
    """Return the columns as arrays, or refuse the first bar that cannot be true, by row and
    value."""
    names = ("open", "high", "low", "close", "volume")
    raw = (open, high, low, close, volume)
    columns = dict(zip(names, (np.asarray(x, dtype=np.float64) for x in raw), strict=True))
    times = np.asarray(close_ns)
    if not np.issubdtype(times.dtype, np.integer) and times.size:
        raise ValueError(f"close_ns must be integer nanoseconds, was {times.dtype}")
    times = times.astype(np.int64)
    lengths = {name: x.shape for name, x in columns.items()} | {"close_ns": times.shape}
    if len(set(lengths.values())) != 1 or times.ndim != 1:
        raise ValueError(f"all columns must be one-dimensional and equally long, were {lengths}")
    for name, column in columns.items():
        refuse(~np.isfinite(column), column, f"{name} must be a finite number")
    for name in ("open", "high", "low", "close"):
        refuse(columns[name] <= 0, columns[name], f"{name} must be positive")
    refuse(columns["volume"] < 0, columns["volume"], "volume must not be negative")
    top = np.maximum(columns["open"], columns["close"])
    bottom = np.minimum(columns["open"], columns["close"])
    refuse(columns["high"] < columns["low"], columns["high"], "high must not be below low")
    refuse(columns["high"] < top, columns["high"], "high must be the highest price of its bar")
    refuse(columns["low"] > bottom, columns["low"], "low must be the lowest price of its bar")
    is_late = np.concatenate([[False], np.diff(times) <= 0]) if times.size else np.zeros(0, bool)
    refuse(is_late, times, "close_ns must be later than that of the bar before")
    return (*(columns[name] for name in names), times)  # type: ignore[return-value]  # five names


class _Columns:
    """Collect the columns by name, so that their order is FEATURE_NAMES and none is forgotten."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._values = np.zeros((rows, len(FEATURE_NAMES)))
        self._missing = set(FEATURE_NAMES)

    def add(self, name: str, values: FloatArray) -> None:
        """Set a column's last rows; those before stay zero."""
        self._values[self.rows - len(values) :, FEATURE_NAMES.index(name)] = values
        self._missing.remove(name)

    def add_zeros(self, *names: str) -> None:
        """Leave columns zero that no row knows yet."""
        self._missing -= set(names)

    def stacked(self) -> FloatArray:
        if self._missing:
            raise ValueError(f"features not computed: {sorted(self._missing)}")
        return self._values


def _optional(
    name: str, values: ArrayLike | None, count: int, least: float, most: float
) -> FloatArray:
    """Return a column that may be absent, NaN where it is, or refuse what cannot be true."""
    if values is None:
        return np.full(count, np.nan)
    column = np.asarray(values, dtype=np.float64)
    if column.shape != (count,):
        raise ValueError(f"{name} must have {count} values, one a bar, had shape {column.shape}")
    refuse(np.isinf(column), column, f"{name} must be finite, or NaN where it is not known")
    outside = (column < least) | (column > most)
    refuse(outside, column, f"{name} must be in [{least:g}, {most:g}]")
    return column


def _day_numbers(days: IntArray) -> IntArray:
    """Count days from 0, [N]: the one of the first bar may have begun before it."""
    return np.concatenate([[0], np.cumsum(np.diff(days) != 0)]) if len(days) else days


def _root_mean_square(values: FloatArray, n: int, stride: int = 1) -> FloatArray:
    return np.maximum(np.sqrt(rolling_mean(values**2, n, stride)), VOLATILITY_FLOOR)


def refuse(is_wrong: NDArray[np.bool_], values: NDArray[np.generic], claim: str) -> None:
    """Raise ValueError for the first value that is wrong, with its row."""
    if is_wrong.any():
        row = int(np.argmax(is_wrong))
        raise ValueError(f"{claim}, was {values[row]} in row {row}")


def _clip(values: FloatArray) -> FloatArray:
    return np.clip(values, -CLIP, CLIP)
