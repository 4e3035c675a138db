"""Rolling windows over whole columns: what features and complexity are computed from.

Every result depends on the values inside its window and on nothing else, to the last bit: sums go
term by term, oldest first, which running sums and numpy's reductions over strided views do not
promise. Windows are short (at most 32), so that costs little.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
_T = TypeVar("_T", bound=np.generic)

FLAT_SPREAD = 1e-12  # in log price: below, a window of prices counts as one that did not move
LOG_RATIO_LIMIT = 3.0


def newest(values: NDArray[_T], rows: int) -> NDArray[_T]:
    """Return the last `rows` values."""
    return values[len(values) - rows :]


def rolling_sum(values: FloatArray, n: int, stride: int = 1) -> FloatArray:
    """Add n values, `stride` apart, that end at each value: [N - (n - 1) * stride]."""
    count = len(values) - (n - 1) * stride
    total = values[:count].copy()
    for k in range(1, n):
        total += values[k * stride : k * stride + count]
    return total


def rolling_mean(values: FloatArray, n: int, stride: int = 1) -> FloatArray:
    """Average as `rolling_sum` adds."""
    return rolling_sum(values, n, stride) / n


def rolling_max(values: FloatArray, n: int) -> FloatArray:
    """Return the highest of each n neighbours, [N - n + 1]."""
    count = len(values) - n + 1
    result = values[:count].copy()
    for k in range(1, n):
        np.maximum(result, values[k : k + count], out=result)
    return result


def rolling_min(values: FloatArray, n: int) -> FloatArray:
    """Return the lowest of each n neighbours, [N - n + 1]."""
    return -rolling_max(-values, n)


def true_range(high: FloatArray, low: FloatArray, close: FloatArray) -> FloatArray:
    """Return the range of every bar but the first, the gap to the close before it included."""
    return np.maximum(high[1:], close[:-1]) - np.minimum(low[1:], close[:-1])


def place(value: FloatArray, low: FloatArray, high: FloatArray) -> FloatArray:
    """Say where value lies between low (-1) and high (1); 0 where there is no between."""
    span = high - low
    return np.where(span > 0, 2.0 * (value - low) / np.where(span > 0, span, 1.0) - 1.0, 0.0)


def log_ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """Return the logarithm of a ratio of positive numbers, limited to [-3, 3]."""
    return np.clip(np.log(numerator / denominator), -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def efficiency(returns: FloatArray, n: int) -> FloatArray:
    """Divide the net move of n returns by the way walked: -1 to 1, 0 where nothing moved."""
    walked = rolling_sum(np.abs(returns), n)
    net = rolling_sum(returns, n)
    return np.where(walked > 0, net / np.where(walked > 0, walked, 1.0), 0.0)


def trend(price: FloatArray, n: int, stride: int = 1) -> FloatArray:
    """Correlate n log prices, `stride` apart, with time: -1 to 1, 0 where nothing moved."""
    count = len(price) - (n - 1) * stride
    steps = np.arange(n) - (n - 1) / 2.0
    # Differences to the first price of each window: squares of raw log prices would lose the small
    # moves.
    base = price[:count]
    with_time, total, squares = np.zeros(count), np.zeros(count), np.zeros(count)
    for k in range(n):
        difference = np.log(price[k * stride : k * stride + count] / base)
        with_time += steps[k] * difference
        total += difference
        squares += difference**2
    spread = np.maximum(squares - total**2 / n, 0.0)
    scale = np.sqrt(spread * float(np.sum(steps**2)))
    flat = scale < FLAT_SPREAD
    return np.clip(np.where(flat, 0.0, with_time / np.where(flat, 1.0, scale)), -1.0, 1.0)


def autocorrelation(returns: FloatArray, n: int) -> FloatArray:
    """Correlate n - 1 returns with those before them, around zero: -1 to 1."""
    products = rolling_sum(returns[1:] * returns[:-1], n - 1)
    squares = rolling_sum(returns**2, n)[-len(products) :]
    return np.clip(
        np.where(squares > 0, products / np.where(squares > 0, squares, 1.0), 0.0), -1, 1
    )
