"""Complexity: how hard the market is to read, as far as price alone says it.

For whole histories, which training reads, and bar by bar, which the live path does: both take the
same sums in the same order, so that they agree to the last bit.
"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from hrm.bar_columns import IntArray
from hrm.recent import Recent
from hrm.rolling import FloatArray, efficiency, rolling_mean

Regime = Literal["trending", "ranging", "volatile"]
REGIMES: Final[tuple[Regime, ...]] = ("trending", "ranging", "volatile")

VOLATILITY_BARS: Final = 20
RANK_BARS: Final = 240
STABILITY_BARS: Final = 20
CONTEXT_BARS: Final = VOLATILITY_BARS + RANK_BARS + STABILITY_BARS - 1
VOLATILE_RANK: Final = 0.8  # at or above: volatile
TRENDING_EFFICIENCY: Final = 0.35  # a driftless walk of 20 steps has 0.22 on average


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


def complexity_history(close: ArrayLike) -> ComplexityHistory:
    """Give volatility rank, regime and regime stability of every bar, from that bar and those
    before it.

    A bar reads at most CONTEXT_BARS bars, itself included. Volatile: the root mean square of 20
    returns ranks at 0.8 or more among the last 240 of its kind. Else trending: the net move of 20
    bars is at least 0.35 of the way walked. Else ranging. At the start of a history ranks are taken
    among what there is.
    """
    c = np.asarray(close, dtype=np.float64)
    count = len(c)
    rank = np.full(count, 0.5)
    regime = np.full(count, REGIMES.index("ranging"), dtype=np.int64)
    stability = np.ones(count)
    is_known = np.zeros(count, dtype=np.bool_)
    known = count - VOLATILITY_BARS
    if known <= 0:
        return ComplexityHistory(rank, regime, stability, is_known)

    rank[-known:], regime[-known:] = _ranks(c)
    labels = regime[-known:].astype(np.float64)
    padded = np.concatenate([np.full(STABILITY_BARS - 1, np.nan), labels])
    same = sliding_window_view(padded, STABILITY_BARS) == labels[:, None]
    stability[-known:] = same.sum(axis=1) / np.minimum(np.arange(1, known + 1), STABILITY_BARS)
    is_known[-known:] = True
    return ComplexityHistory(rank, regime, stability, is_known)


def _ranks(close: FloatArray) -> tuple[FloatArray, IntArray]:
    """Give volatility rank and regime of N prices but the first VOLATILITY_BARS of them."""
    returns = np.diff(np.log(close))
    volatility = np.sqrt(rolling_mean(returns**2, VOLATILITY_BARS))
    padded = np.concatenate([np.full(RANK_BARS - 1, np.nan), volatility])
    trailing = sliding_window_view(padded, RANK_BARS)  # NaN compares false
    own = volatility[:, None]
    below = np.sum(trailing < own, axis=1)
    equal = np.sum(trailing == own, axis=1)  # itself included
    rank = (below + 0.5 * equal) / np.minimum(np.arange(1, len(volatility) + 1), RANK_BARS)

    straightness = np.abs(efficiency(returns, VOLATILITY_BARS))
    is_volatile = rank >= VOLATILE_RANK
    is_trending = ~is_volatile & (straightness >= TRENDING_EFFICIENCY)
    regime = np.full(len(rank), REGIMES.index("ranging"), dtype=np.int64)
    regime[is_volatile] = REGIMES.index("volatile")
    regime[is_trending] = REGIMES.index("trending")
    return rank, regime


class ComplexityStream:
    """Give the rows of `complexity_history` one at a time, as bars close.

    A bar costs the same whether it is the hundredth or the millionth.
    """

    def __init__(self) -> None:
        self._last_log: float | None = None
        self._returns: deque[float] = deque(maxlen=VOLATILITY_BARS)
        self._volatilities = Recent(RANK_BARS, np.float64)
        self._regimes: deque[Regime] = deque(maxlen=STABILITY_BARS)

    def add(self, close: float) -> ComplexityComponents:
        """Take in the close of the next bar, a positive price; return what is so then."""
        log = float(np.log(close))  # math.log rounds otherwise than the histories that were trained
        if self._last_log is not None:
            self._returns.append(log - self._last_log)
        self._last_log = log
        if len(self._returns) < VOLATILITY_BARS:
            return ComplexityComponents(volatility=0.5, regime="ranging", regime_stability=1.0)
        squares = _in_turn([change * change for change in self._returns])
        own = math.sqrt(squares / VOLATILITY_BARS)
        self._volatilities.append(own)
        among = self._volatilities.values
        below, equal = int(np.count_nonzero(among < own)), int(np.count_nonzero(among == own))
        rank = (below + 0.5 * equal) / len(among)
        self._regimes.append(self._regime(rank))
        return ComplexityComponents(
            volatility=rank,
            regime=self._regimes[-1],
            regime_stability=self._regimes.count(self._regimes[-1]) / len(self._regimes),
        )

    def _regime(self, rank: float) -> Regime:
        if rank >= VOLATILE_RANK:
            return "volatile"
        walked = _in_turn([abs(change) for change in self._returns])
        net = abs(_in_turn(self._returns))
        return "trending" if walked > 0 and net / walked >= TRENDING_EFFICIENCY else "ranging"


def _in_turn(values: Iterable[float]) -> float:
    """Add one after the other, as rolling.py does; `sum` is more exact from Python 3.12 on."""
    total = 0.0
    for value in values:
        total += value
    return total
