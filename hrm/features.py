"""Features: closed bars, account and market context as the numbers the model reads.

Numpy only, no clock. What the numbers mean to the model is not for this file; how the complexity of
a market is weighed (`complexity_score`) is, because training needs it too. How the columns of bars
are computed is in `bar_columns` (whole histories) and `feature_stream` (bar by bar); what makes a
market complex, both ways, in `complexity`.

The whole interface, in the order a caller uses it:

- `bar_features(open, high, low, close, volume, close_ns, bar_ns) -> float32 [N, F]`: one row per
  closed bar, columns `FEATURE_NAMES`, for training. The first `WARMUP_BARS` rows have too little
  behind them and are zero.
- `FeatureStream(bar_ns).add(...) -> float64 [F] | None`: the same row for the newest bar, for the
  live path; None during the first `WARMUP_BARS`. It agrees with `bar_features` to 1e-9.
- `FeatureWindow(bar_ns, window).add(...)`, `.read() -> (float32 [window, F], bool [window])`: the
  newest rows of a stream, newest last, and which of them are real.
- `average_true_range(high, low, close) -> float64 [N]`: mean of 14 true ranges; NaN in the first 14
  rows.
- `ComplexityStream().add(close) -> ComplexityComponents`: volatility rank, regime, regime stability
  of the newest bar, which depend on `CONTEXT_BARS` bars; `complexity_history` gives the same for
  each bar of a history.
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
import math
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hrm.bar_columns import (
    ATR_BARS,
    BLOCKS,
    CLIP,
    FEATURE_NAMES,
    GAP_BARS,
    LEVEL_CLIP,
    LONG_BLOCK,
    LONG_WARMUP_BARS,
    PLACE_CLIP,
    SHORT_BLOCK,
    USUAL_VOLATILITY,
    VOLATILITY_FLOOR,
    WARMUP_BARS,
    checked_bars,
    feature_rows,
    warm_rows,
)
from hrm.complexity import (
    CONTEXT_BARS,
    RANK_BARS,
    REGIMES,
    STABILITY_BARS,
    TRENDING_EFFICIENCY,
    VOLATILE_RANK,
    VOLATILITY_BARS,
    ComplexityComponents,
    ComplexityHistory,
    ComplexityStream,
    Regime,
    complexity_history,
)
from hrm.config import Action
from hrm.feature_stream import FeatureStream, FeatureWindow
from hrm.rolling import FloatArray, rolling_mean, true_range

__all__ = [
    "ACCOUNT_NAMES",
    "ACTION_NAMES",
    "ATR_BARS",
    "CONTEXT_BARS",
    "CONTEXT_NAMES",
    "FEATURE_NAMES",
    "FEATURE_SCHEMA_SHA256",
    "LONG_WARMUP_BARS",
    "REGIMES",
    "VOLATILITY_BARS",
    "WARMUP_BARS",
    "WINDOW_BARS",
    "ComplexityComponents",
    "ComplexityHistory",
    "ComplexityStream",
    "FeatureStream",
    "FeatureWindow",
    "Regime",
    "account_features",
    "average_true_range",
    "bar_features",
    "checked_bars",
    "complexity_history",
    "complexity_score",
    "context_features",
    "feature_rows",
    "return_volatility",
    "valid_actions",
    "warm_rows",
]

WINDOW_BARS: Final = 64  # rows the model reads unless its settings say otherwise
ACTION_NAMES: Final = tuple(action.name for action in Action)
_VALID: Final = {
    0: (Action.BUY_LONG, Action.SELL_SHORT, Action.HOLD),
    1: (Action.CLOSE_LONG, Action.HOLD),
    -1: (Action.CLOSE_SHORT, Action.HOLD),
}

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
            "revision": 2,  # raise when a formula changes under an unchanged name
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
                LONG_WARMUP_BARS,
                BLOCKS,
                SHORT_BLOCK,
                LONG_BLOCK,
                PLACE_CLIP,
                LEVEL_CLIP,
                USUAL_VOLATILITY,
                GAP_BARS,
            ],
        },
        sort_keys=True,
    ).encode()
).hexdigest()


def bar_features(
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
) -> NDArray[np.float32]:
    """Turn N closed bars, oldest first, into float32 [N, F]: `feature_rows` in single precision.

    Row i depends on no bar after i. `days_to_expiry`, `spread` and `depth_imbalance` as there.
    """
    rows = feature_rows(
        open,
        high,
        low,
        close,
        volume,
        close_ns,
        bar_ns,
        days_to_expiry=days_to_expiry,
        spread=spread,
        depth_imbalance=depth_imbalance,
    )
    return rows.astype(np.float32)


def average_true_range(high: ArrayLike, low: ArrayLike, close: ArrayLike) -> FloatArray:
    """Average the last 14 true ranges, in price units, [N]; NaN in the first 14 rows."""
    h, l, c = (np.asarray(x, dtype=np.float64) for x in (high, low, close))  # noqa: E741
    result = np.full(len(c), np.nan)
    if len(c) > ATR_BARS:
        result[ATR_BARS:] = rolling_mean(true_range(h, l, c), ATR_BARS)
    return result


def return_volatility(close: ArrayLike) -> FloatArray:
    """Measure the root mean square of the last 32 log returns, [N]; NaN in the first 32 rows."""
    c = np.asarray(close, dtype=np.float64)
    result = np.full(len(c), np.nan)
    if len(c) > WARMUP_BARS:
        squares = np.diff(np.log(c)) ** 2
        rms = np.sqrt(rolling_mean(squares, WARMUP_BARS))
        result[WARMUP_BARS:] = np.maximum(rms, VOLATILITY_FLOOR)
    return result


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
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, was {value}")
    for name in ("initial_capital", "entry_price", "last_price"):
        if numbers[name] <= 0:
            raise ValueError(f"{name} must be positive, was {numbers[name]}")
    if not -1.0 <= position <= 1.0:
        raise ValueError(f"position must be a share of the allowed size in [-1, 1], was {position}")
    if position and entry_price is None:
        raise ValueError(f"an open position ({position}) needs its entry_price, got none")
    scale = max(atr, last_price * VOLATILITY_FLOOR)
    is_open = position != 0
    side = math.copysign(1.0, position)
    entry_distance = side * (last_price - entry_price) / scale if is_open and entry_price else 0.0
    stop_distance = (
        side * (last_price - trailing_stop) / scale if is_open and trailing_stop else 0.0
    )
    return np.array(
        [
            _within(capital / initial_capital - 1.0, 1.0),
            position,
            _within(entry_distance, CLIP),
            _within(100.0 * unrealised_result / initial_capital, CLIP),
            float(is_open),
            _within(stop_distance, CLIP),
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


def _within(value: float, limit: float) -> float:
    return min(max(value, -limit), limit)


def _ratio(name: str, value: float) -> float:
    if not 0.0 <= value <= 1.0:  # false for NaN too
        raise ValueError(f"{name} must be in [0, 1], was {value}")
    return float(value)
