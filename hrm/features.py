"""Features: closed bars, account and market context as the numbers the model reads.

Numpy only, no clock, no state. The same functions run live, once per closed bar, and in training,
over whole histories, so that both see the same numbers to the last bit. What the numbers mean to
the model is not for this file; how the complexity of a market is weighed (`complexity_score`) is,
because training needs it too.

The whole interface, in the order a caller uses it:

- `bar_features(open, high, low, close, volume, close_ns, bar_ns) -> float32 [N, 32]`: one row per
  closed bar, columns `FEATURE_NAMES`. The first `WARMUP_BARS` rows have too little behind them and
  are zero.
- `window_features(..., window=64) -> (float32 [window, 32], bool [window])`: the newest `window`
  rows, newest last, and which of them are real. Hand over the newest `window + WARMUP_BARS` bars
  (or fewer at the start of a day one): the rows equal those of the whole history exactly. Fewer
  than `WARMUP_BARS + 1` bars give an all-false mask.
- `average_true_range(high, low, close) -> float64 [N]`: mean of 14 true ranges; NaN in the first 14
  rows.
- `complexity_components(high, low, close) -> ComplexityComponents`: volatility rank, regime, regime
  stability of the newest bar from the newest `CONTEXT_BARS` bars. `complexity_history` gives the
  same for each bar of a history.
- `complexity_score(volatility, regime_stability, news_impact, correlation_stress) -> float in [0,
  1]`.
- `account_features(...) -> float32 [6]`, columns `ACCOUNT_NAMES`; `context_features(...) -> float32
  [8]`, columns `CONTEXT_NAMES`.
- `valid_actions(position_sign) -> bool [5]`: the actions that mean something with this position.
  Decisions are the best of these; the model is trained with the others masked out.
- `FEATURE_SCHEMA_SHA256`: names, order and constants of all the above; stored with the weights,
  which are worthless under another schema.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from hrm.config import Action

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
_T = TypeVar("_T", bound=np.generic)

Regime = Literal["trending", "ranging", "volatile"]
REGIMES: Final[tuple[Regime, ...]] = ("trending", "ranging", "volatile")

WARMUP_BARS: Final = 32  # bars before a row that the row may depend on
WINDOW_BARS: Final = 64  # rows the model reads unless its settings say otherwise
ATR_BARS: Final = 14
VOLATILITY_BARS: Final = 20
RANK_BARS: Final = 240
STABILITY_BARS: Final = 20
CONTEXT_BARS: Final = VOLATILITY_BARS + RANK_BARS + STABILITY_BARS - 1
VOLATILE_RANK: Final = 0.8  # at or above: volatile
TRENDING_EFFICIENCY: Final = 0.35  # a driftless walk of 20 steps has 0.22 on average
CLIP: Final = 6.0  # in units of volatility or average true range
VOLATILITY_FLOOR: Final = 1e-6  # per bar, in log price: a dead market divides by this, not by zero

ACTION_NAMES: Final = tuple(action.name for action in Action)
_VALID: Final = {
    0: (Action.BUY_LONG, Action.SELL_SHORT, Action.HOLD),
    1: (Action.CLOSE_LONG, Action.HOLD),
    -1: (Action.CLOSE_SHORT, Action.HOLD),
}

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
    "distance_mean_4",
    "distance_mean_8",
    "distance_mean_16",
    "distance_mean_32",
    "distance_high_16",
    "distance_low_16",
    "place_in_range_32",
    "volatility_ratio_4_16",
    "volatility_ratio_8_32",
    "trend_16",
    "trend_32",
    "efficiency_16",
    "autocorrelation_16",
    "up_share_16",
    "volume_ratio_16",
    "time_of_day_sin",
    "time_of_day_cos",
    "day_of_week_sin",
    "day_of_week_cos",
    "missing_bars",
)
ACCOUNT_NAMES: Final = (
    "capital_change",
    "position",
    "entry_distance",
    "unrealised_result",
    "is_open",
    "trailing_stop_distance",
)
CONTEXT_NAMES: Final = (
    "complexity",
    "volatility",
    "is_trending",
    "is_ranging",
    "is_volatile",
    "correlation",
    "news",
    "sources_known",
)

FEATURE_SCHEMA_SHA256: Final = hashlib.sha256(
    json.dumps(
        {
            "revision": 1,  # raise when a formula changes under an unchanged name
            "features": FEATURE_NAMES,
            "account": ACCOUNT_NAMES,
            "context": CONTEXT_NAMES,
            "actions": ACTION_NAMES,
            "constants": [
                WARMUP_BARS,
                ATR_BARS,
                VOLATILITY_BARS,
                RANK_BARS,
                STABILITY_BARS,
                VOLATILE_RANK,
                TRENDING_EFFICIENCY,
                CLIP,
                VOLATILITY_FLOOR,
            ],
        },
        sort_keys=True,
    ).encode()
).hexdigest()

_DAY_NS: Final = 86_400_000_000_000
_WEEK_NS: Final = 7 * _DAY_NS
_MONDAY_NS: Final = 4 * _DAY_NS  # the epoch began on a Thursday


@dataclass(frozen=True, slots=True)
class ComplexityComponents:
    """Hold what price alone says about how hard the market is to read.

    volatility: percentile rank in [0, 1] of the newest volatility among the trailing ones.
    regime_stability: share in [0, 1] of the last 20 bars that were in the present regime.
    """

    volatility: float
    regime: Regime
    regime_stability: float


@dataclass(frozen=True, slots=True)
class ComplexityHistory:
    """Hold the complexity components of every bar of a history, [N] each.

    regime: index into REGIMES. is_known: false where fewer than 21 bars lie behind; such rows read
    as a calm ranging market (0.5, ranging, 1.0).
    """

    volatility: FloatArray
    regime: IntArray
    regime_stability: FloatArray
    is_known: NDArray[np.bool_]


def bar_features(
    open: ArrayLike,  # noqa: A002 - the field's own word, as in every candle
    high: ArrayLike,
    low: ArrayLike,
    close: ArrayLike,
    volume: ArrayLike,
    close_ns: ArrayLike,
    bar_ns: int,
) -> NDArray[np.float32]:
    """Turn N closed bars, oldest first, into features [N, F].

    Row i depends on bars i - WARMUP_BARS to i and on nothing else; the first WARMUP_BARS rows are
    zero. `bar_ns` is the length of a bar, `close_ns` when it closed (UTC). A volume of 0 means
    unknown. Refuses bars that cannot be true with a ValueError that names row and value.
    """
    o, h, l, c, v, t = checked_bars(open, high, low, close, volume, close_ns)  # noqa: E741
    if bar_ns <= 0:
        raise ValueError(f"bar_ns must be positive, was {bar_ns}")
    count = len(c)
    features = np.zeros((count, len(FEATURE_NAMES)), dtype=np.float32)
    rows = count - WARMUP_BARS
    if rows <= 0:
        return features

    columns = _Columns(rows)
    log_close = np.log(c)
    returns = np.diff(log_close)  # returns[i] leads to bar i + 1
    true_range = _true_range(h, l, c)  # true_range[i] belongs to bar i + 1
    atr = _newest(_rolling_mean(true_range, ATR_BARS), rows)
    # A bar that never moved has no range; one part in a million of the price keeps the division
    # finite.
    atr = np.maximum(atr, c[-rows:] * VOLATILITY_FLOOR)
    root_mean_square = {
        n: np.maximum(np.sqrt(_newest(_rolling_mean(returns**2, n), rows)), VOLATILITY_FLOOR)
        for n in (4, 8, 16, 32)
    }
    volatility = root_mean_square[32]

    for lag in (1, 2, 4, 8, 16, 32):
        change = _newest(log_close[lag:] - log_close[:-lag], rows)
        columns.add(f"return_{lag}", _clip(change / (volatility * np.sqrt(lag))))
    columns.add("opening_gap", _clip(_newest(np.log(o[1:] / c[:-1]), rows) / volatility))

    span = h - l
    mean_span = np.maximum(_newest(_rolling_mean(span, 16), rows), c[-rows:] * VOLATILITY_FLOOR)
    columns.add("range_ratio", _clip(_newest(span, rows) / mean_span - 1.0))
    columns.add("body", _clip(_newest(c - o, rows) / atr))
    columns.add("upper_shadow", _clip(_newest(h - np.maximum(o, c), rows) / atr))
    columns.add("lower_shadow", _clip(_newest(np.minimum(o, c) - l, rows) / atr))
    columns.add("close_location", _place(_newest(c, rows), _newest(l, rows), _newest(h, rows)))

    newest_close = _newest(c, rows)
    for n in (4, 8, 16, 32):
        mean = _newest(_rolling_mean(c, n), rows)
        columns.add(f"distance_mean_{n}", _clip((newest_close - mean) / atr))
    high_16, low_16 = _newest(_rolling_max(h, 16), rows), _newest(-_rolling_max(-l, 16), rows)
    high_32, low_32 = _newest(_rolling_max(h, 32), rows), _newest(-_rolling_max(-l, 32), rows)
    columns.add("distance_high_16", _clip((newest_close - high_16) / atr))
    columns.add("distance_low_16", _clip((newest_close - low_16) / atr))
    columns.add("place_in_range_32", _place(newest_close, low_32, high_32))

    columns.add("volatility_ratio_4_16", _log_ratio(root_mean_square[4], root_mean_square[16]))
    columns.add("volatility_ratio_8_32", _log_ratio(root_mean_square[8], root_mean_square[32]))
    columns.add("trend_16", _newest(_trend(log_close, 16), rows))
    columns.add("trend_32", _newest(_trend(log_close, 32), rows))
    columns.add("efficiency_16", _newest(_efficiency(returns, 16), rows))
    columns.add("autocorrelation_16", _newest(_autocorrelation(returns, 16), rows))
    columns.add("up_share_16", _newest(_rolling_mean(np.sign(returns), 16), rows))

    mean_volume = _newest(_rolling_mean(v, 16), rows)
    newest_volume = _newest(v, rows)
    is_traded = (newest_volume > 0) & (mean_volume > 0)
    ratio = np.where(is_traded, newest_volume, 1.0) / np.where(is_traded, mean_volume, 1.0)
    columns.add("volume_ratio_16", np.clip(np.log(ratio), -3.0, 3.0))

    of_day = 2.0 * np.pi * (_newest(t, rows) % _DAY_NS) / _DAY_NS
    of_week = 2.0 * np.pi * ((_newest(t, rows) - _MONDAY_NS) % _WEEK_NS) / _WEEK_NS
    columns.add("time_of_day_sin", np.sin(of_day))
    columns.add("time_of_day_cos", np.cos(of_day))
    columns.add("day_of_week_sin", np.sin(of_week))
    columns.add("day_of_week_cos", np.cos(of_week))
    missing = np.maximum(_newest(np.diff(t), rows) / bar_ns - 1.0, 0.0)
    columns.add("missing_bars", np.minimum(np.log1p(missing), CLIP))

    features[WARMUP_BARS:] = columns.stacked()
    return features


def window_features(
    open: ArrayLike,  # noqa: A002 - the field's own word, as in every candle
    high: ArrayLike,
    low: ArrayLike,
    close: ArrayLike,
    volume: ArrayLike,
    close_ns: ArrayLike,
    bar_ns: int,
    window: int = WINDOW_BARS,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Give the newest rows [window, F], newest last, and which of them are real [window].

    Only the newest `window + WARMUP_BARS` bars are looked at. Rows without enough bars behind them
    are zero and masked; they come first.
    """
    if window <= 0:
        raise ValueError(f"window must be positive, was {window}")
    needed = window + WARMUP_BARS
    newest = [np.asarray(column)[-needed:] for column in (open, high, low, close, volume, close_ns)]
    o, h, l, c, v, t = newest  # noqa: E741
    rows = bar_features(o, h, l, c, v, t, bar_ns)
    real = min(max(len(rows) - WARMUP_BARS, 0), window)
    features = np.zeros((window, len(FEATURE_NAMES)), dtype=np.float32)
    mask = np.zeros(window, dtype=np.bool_)
    if real:
        features[-real:] = rows[-real:]
        mask[-real:] = True
    return features, mask


def average_true_range(high: ArrayLike, low: ArrayLike, close: ArrayLike) -> FloatArray:
    """Average the last 14 true ranges, in price units, [N]; NaN in the first 14 rows."""
    h, l, c = (np.asarray(x, dtype=np.float64) for x in (high, low, close))  # noqa: E741
    result = np.full(len(c), np.nan)
    if len(c) > ATR_BARS:
        result[ATR_BARS:] = _rolling_mean(_true_range(h, l, c), ATR_BARS)
    return result


def return_volatility(close: ArrayLike) -> FloatArray:
    """Measure the root mean square of the last 32 log returns, [N]; NaN in the first 32 rows."""
    c = np.asarray(close, dtype=np.float64)
    result = np.full(len(c), np.nan)
    if len(c) > WARMUP_BARS:
        squares = np.diff(np.log(c)) ** 2
        rms = np.sqrt(_rolling_mean(squares, WARMUP_BARS))
        result[WARMUP_BARS:] = np.maximum(rms, VOLATILITY_FLOOR)
    return result


def complexity_history(high: ArrayLike, low: ArrayLike, close: ArrayLike) -> ComplexityHistory:
    """Give volatility rank, regime and regime stability of every bar, from that bar and those
    before it.

    A bar reads at most CONTEXT_BARS bars, itself included. Volatile: the root mean square of 20
    returns ranks at 0.8 or more among the last 240 of its kind. Else trending: the net move of 20
    bars is at least 0.35 of the way walked. Else ranging. At the start of a history ranks are taken
    among what there is.
    """
    c = np.asarray(close, dtype=np.float64)
    if not len(c) == len(np.asarray(high)) == len(np.asarray(low)):
        raise ValueError(
            f"high, low and close must be equally long, were {len(np.asarray(high))}, "
            f"{len(np.asarray(low))}, {len(c)}"
        )
    count = len(c)
    rank = np.full(count, 0.5)
    regime = np.full(count, REGIMES.index("ranging"), dtype=np.int64)
    stability = np.ones(count)
    is_known = np.zeros(count, dtype=np.bool_)
    known = count - VOLATILITY_BARS
    if known <= 0:
        return ComplexityHistory(rank, regime, stability, is_known)

    returns = np.diff(np.log(c))
    volatility = np.sqrt(_rolling_mean(returns**2, VOLATILITY_BARS))  # [known]
    padded = np.concatenate([np.full(RANK_BARS - 1, np.nan), volatility])
    trailing = sliding_window_view(padded, RANK_BARS)  # [known, RANK_BARS]; NaN compares false
    below = np.sum(trailing < volatility[:, None], axis=1)
    equal = np.sum(trailing == volatility[:, None], axis=1)  # itself included
    available = np.minimum(np.arange(1, known + 1), RANK_BARS)
    rank[-known:] = (below + 0.5 * equal) / available

    efficiency = np.abs(_efficiency(returns, VOLATILITY_BARS))
    is_volatile = rank[-known:] >= VOLATILE_RANK
    is_trending = ~is_volatile & (efficiency >= TRENDING_EFFICIENCY)
    regime[-known:][is_volatile] = REGIMES.index("volatile")
    regime[-known:][is_trending] = REGIMES.index("trending")

    labels = regime[-known:].astype(np.float64)
    padded = np.concatenate([np.full(STABILITY_BARS - 1, np.nan), labels])
    same = sliding_window_view(padded, STABILITY_BARS) == labels[:, None]
    stability[-known:] = same.sum(axis=1) / np.minimum(np.arange(1, known + 1), STABILITY_BARS)
    is_known[-known:] = True
    return ComplexityHistory(rank, regime, stability, is_known)


def complexity_components(
    high: ArrayLike, low: ArrayLike, close: ArrayLike
) -> ComplexityComponents:
    """Give volatility rank, regime and regime stability of the newest bar.

    Only the newest CONTEXT_BARS bars are looked at; keep that many. Fewer than 21 bars read as a
    calm ranging market.
    """
    h, l, c = (np.asarray(x, dtype=np.float64)[-CONTEXT_BARS:] for x in (high, low, close))  # noqa: E741
    if len(c) == 0:
        raise ValueError("complexity needs at least one bar, got none")
    history = complexity_history(h, l, c)
    return ComplexityComponents(
        volatility=float(history.volatility[-1]),
        regime=REGIMES[int(history.regime[-1])],
        regime_stability=float(history.regime_stability[-1]),
    )


def complexity_score(
    volatility: float,
    regime_stability: float,
    news_impact: float | None = None,
    correlation_stress: float | None = None,
) -> float:
    """Weigh the components into one number in [0, 1]: how hard the market is to read.

    Weights: volatility 0.3, instability 0.3, news 0.2, correlation stress 0.2, shared out among the
    known ones: an absent source neither calms nor alarms.
    """
    parts = [(0.3, _ratio("volatility", volatility))]
    parts.append((0.3, 1.0 - _ratio("regime_stability", regime_stability)))
    if news_impact is not None:
        parts.append((0.2, _ratio("news_impact", news_impact)))
    if correlation_stress is not None:
        parts.append((0.2, _ratio("correlation_stress", correlation_stress)))
    return min(sum(w * x for w, x in parts) / sum(w for w, _ in parts), 1.0)


def account_features(
    *,
    capital: float,
    initial_capital: float,
    position: float,
    entry_price: float | None,
    last_price: float,
    unrealised_result: float,
    trailing_stop: float | None,
    atr: float,
) -> NDArray[np.float32]:
    """Describe the account in six numbers without units, columns ACCOUNT_NAMES.

    `position` is the signed share of the largest size allowed now: -1 (full short) to 1 (full
    long), 0 is flat. Prices in one unit, `atr` in the same; capital and `unrealised_result` in
    rupees. Distances are counted in average true ranges, positive when the position gains or the
    stop has not been reached.
    """
    numbers = {
        "capital": capital,
        "initial_capital": initial_capital,
        "position": position,
        "entry_price": 1.0 if entry_price is None else entry_price,
        "last_price": last_price,
        "unrealised_result": unrealised_result,
        "trailing_stop": 1.0 if trailing_stop is None else trailing_stop,
        "atr": atr,
    }
    for name, value in numbers.items():
        if not np.isfinite(value):
            raise ValueError(f"{name} must be finite, was {value}")
    for name in ("initial_capital", "entry_price", "last_price"):
        if numbers[name] <= 0:
            raise ValueError(f"{name} must be positive, was {numbers[name]}")
    if not -1.0 <= position <= 1.0:
        raise ValueError(f"position must be a share of the allowed size in [-1, 1], was {position}")
    if position and entry_price is None:
        raise ValueError(f"an open position ({position}) needs its entry_price, got none")
    scale = max(atr, last_price * VOLATILITY_FLOOR)
    side = float(np.sign(position))
    is_open = position != 0
    entry_distance = side * (last_price - entry_price) / scale if is_open and entry_price else 0.0
    stop_distance = (
        side * (last_price - trailing_stop) / scale if is_open and trailing_stop else 0.0
    )
    return np.array(
        [
            np.clip(capital / initial_capital - 1.0, -1.0, 1.0),
            position,
            np.clip(entry_distance, -CLIP, CLIP),
            np.clip(100.0 * unrealised_result / initial_capital, -CLIP, CLIP),
            float(is_open),
            np.clip(stop_distance, -CLIP, CLIP),
        ],
        dtype=np.float32,
    )


def context_features(
    *,
    complexity: float,
    volatility: float,
    regime: Regime,
    correlation: float | None = None,
    news: float | None = None,
) -> NDArray[np.float32]:
    """Describe the market's state in eight numbers in [0, 1], columns CONTEXT_NAMES.

    None means that nobody knows: the value is 0 and `sources_known` tells so (0 neither source, 1/3
    correlation alone, 2/3 news alone, 1 both), which is not the same as a known 0.
    """
    if regime not in REGIMES:
        raise ValueError(f"regime must be one of {', '.join(REGIMES)}, was {regime!r}")
    known = (1.0 if correlation is not None else 0.0) + (2.0 if news is not None else 0.0)
    return np.array(
        [
            _ratio("complexity", complexity),
            _ratio("volatility", volatility),
            *(float(regime == name) for name in REGIMES),
            0.0 if correlation is None else _ratio("correlation", correlation),
            0.0 if news is None else _ratio("news", news),
            known / 3.0,
        ],
        dtype=np.float32,
    )


def valid_actions(position_sign: int) -> NDArray[np.bool_]:
    """Tell which of the five actions mean something when flat (0), long (1) or short (-1)."""
    if position_sign not in _VALID:
        raise ValueError(f"position_sign must be -1, 0 or 1, was {position_sign}")
    valid = np.zeros(len(ACTION_NAMES), dtype=np.bool_)
    valid[list(_VALID[position_sign])] = True
    return valid


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
        _refuse(~np.isfinite(column), column, f"{name} must be a finite number")
    for name in ("open", "high", "low", "close"):
        _refuse(columns[name] <= 0, columns[name], f"{name} must be positive")
    _refuse(columns["volume"] < 0, columns["volume"], "volume must not be negative")
    top = np.maximum(columns["open"], columns["close"])
    bottom = np.minimum(columns["open"], columns["close"])
    _refuse(columns["high"] < columns["low"], columns["high"], "high must not be below low")
    _refuse(columns["high"] < top, columns["high"], "high must be the highest price of its bar")
    _refuse(columns["low"] > bottom, columns["low"], "low must be the lowest price of its bar")
    is_late = np.concatenate([[False], np.diff(times) <= 0]) if times.size else np.zeros(0, bool)
    _refuse(is_late, times, "close_ns must be later than that of the bar before")
    return (*(columns[name] for name in names), times)  # type: ignore[return-value]  # five names


class _Columns:
    """Collect the columns by name, so that their order is FEATURE_NAMES and none is forgotten."""

    def __init__(self, rows: int) -> None:
        self._values = np.zeros((rows, len(FEATURE_NAMES)))
        self._missing = set(FEATURE_NAMES)

    def add(self, name: str, values: FloatArray) -> None:
        self._values[:, FEATURE_NAMES.index(name)] = values
        self._missing.remove(name)

    def stacked(self) -> NDArray[np.float32]:
        if self._missing:
            raise ValueError(f"features not computed: {sorted(self._missing)}")
        return self._values.astype(np.float32)


def _refuse(is_wrong: NDArray[np.bool_], values: NDArray[np.generic], claim: str) -> None:
    if is_wrong.any():
        row = int(np.argmax(is_wrong))
        raise ValueError(f"{claim}, was {values[row]} in row {row}")


def _ratio(name: str, value: float) -> float:
    if not 0.0 <= value <= 1.0:  # false for NaN too
        raise ValueError(f"{name} must be in [0, 1], was {value}")
    return float(value)


def _newest(values: NDArray[_T], rows: int) -> NDArray[_T]:
    return values[len(values) - rows :]


def _clip(values: FloatArray) -> FloatArray:
    return np.clip(values, -CLIP, CLIP)


def _log_ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    return np.clip(np.log(numerator / denominator), -3.0, 3.0)


def _place(value: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """Say where value lies between low (-1) and high (1); 0 where there is no between."""
    span = high - low
    return np.where(span > 0, 2.0 * (value - low) / np.where(span > 0, span, 1.0) - 1.0, 0.0)


def _true_range(high: FloatArray, low: FloatArray, close: FloatArray) -> FloatArray:
    return np.maximum(high[1:], close[:-1]) - np.minimum(low[1:], close[:-1])


def _rolling_sum(values: FloatArray, n: int) -> FloatArray:
    # Term by term, oldest first: the sum of a row is the same to the last bit wherever the row
    # stands, which running sums and numpy's reductions over strided views do not promise. n is at
    # most 32.
    count = len(values) - n + 1
    total = values[:count].copy()
    for k in range(1, n):
        total += values[k : k + count]
    return total


def _rolling_mean(values: FloatArray, n: int) -> FloatArray:
    return _rolling_sum(values, n) / n


def _rolling_max(values: FloatArray, n: int) -> FloatArray:
    count = len(values) - n + 1
    result = values[:count].copy()
    for k in range(1, n):
        np.maximum(result, values[k : k + count], out=result)
    return result


def _efficiency(returns: FloatArray, n: int) -> FloatArray:
    """Divide the net move of n returns by the way walked: -1 to 1, 0 where nothing moved."""
    walked = _rolling_sum(np.abs(returns), n)
    net = _rolling_sum(returns, n)
    return np.where(walked > 0, net / np.where(walked > 0, walked, 1.0), 0.0)


def _trend(log_price: FloatArray, n: int) -> FloatArray:
    """Correlate n prices with time: -1 to 1, 0 where nothing moved."""
    count = len(log_price) - n + 1
    steps = np.arange(n) - (n - 1) / 2.0
    # Differences to the first price of each window: squares of raw log prices would lose the small
    # moves.
    base = log_price[:count]
    with_time, total, squares = np.zeros(count), np.zeros(count), np.zeros(count)
    for k in range(n):
        difference = log_price[k : k + count] - base
        with_time += steps[k] * difference
        total += difference
        squares += difference**2
    spread = np.maximum(squares - total**2 / n, 0.0)
    scale = np.sqrt(spread * float(np.sum(steps**2)))
    flat = scale < 1e-12
    return np.clip(np.where(flat, 0.0, with_time / np.where(flat, 1.0, scale)), -1.0, 1.0)


def _autocorrelation(returns: FloatArray, n: int) -> FloatArray:
    """Correlate n - 1 returns with those before them, around zero: -1 to 1."""
    products = _rolling_sum(returns[1:] * returns[:-1], n - 1)
    squares = _rolling_sum(returns**2, n)[-len(products) :]
    return np.clip(
        np.where(squares > 0, products / np.where(squares > 0, squares, 1.0), 0.0), -1, 1
    )
