"""Candles for tests of features: walks, and days with nights between them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.features import FEATURE_NAMES, FeatureStream, FeatureWindow

BAR_NS = 300_000_000_000
DAY_NS = 86_400_000_000_000
SESSION_BARS = 75  # 09:15 to 15:30 IST in bars of five minutes
FIRST_OPEN_NS = 19_800 * DAY_NS + 13_500_000_000_000  # a day's 03:45 UTC
Columns = dict[str, NDArray[Any]]


def walk(count: int, seed: int = 1, scale: float = 100.0) -> Columns:
    """Make candles of a random walk around the clock, with volume."""
    generator = np.random.default_rng(seed)
    close = scale * np.exp(np.cumsum(0.001 * generator.standard_normal(count)))
    open_ = np.concatenate([[scale], close[:-1]]) * np.exp(
        0.0002 * generator.standard_normal(count)
    )
    reach = scale * 0.0005 * generator.random((2, count))
    return {
        "open": open_,
        "high": np.maximum(open_, close) + reach[0],
        "low": np.minimum(open_, close) - reach[1],
        "close": close,
        "volume": generator.integers(1, 1000, count).astype(np.float64),
        "close_ns": 1_700_000_000_000_000_000 + BAR_NS * np.arange(1, count + 1),
    }


def sessions(days: int, seed: int = 1) -> Columns:
    """Make candles of so many sessions of 75 bars, each followed by a night."""
    columns = walk(days * SESSION_BARS, seed)
    day, bar = np.divmod(np.arange(days * SESSION_BARS), SESSION_BARS)
    return columns | {"close_ns": FIRST_OPEN_NS + day * DAY_NS + (bar + 1) * BAR_NS}


def part(columns: Columns, start: int, end: int | None = None) -> Columns:
    """Return the bars [start, end)."""
    return {name: values[start:end] for name, values in columns.items()}


def column(rows: NDArray[Any], name: str) -> NDArray[Any]:
    """Return the column of that name."""
    result: NDArray[Any] = rows[:, FEATURE_NAMES.index(name)]
    return result


def stream_rows(
    columns: Columns,
    stream: FeatureStream | None = None,
    *,
    days_to_expiry: float | None = None,
    spread: float | None = None,
    depth_imbalance: float | None = None,
) -> NDArray[np.float64]:
    """Put bars through a stream one by one; rows of nothing are zero, as in a batch."""
    stream = FeatureStream(BAR_NS) if stream is None else stream
    rows = [
        stream.add(
            *bar, days_to_expiry=days_to_expiry, spread=spread, depth_imbalance=depth_imbalance
        )
        for bar in bars_of(columns)
    ]
    nothing = np.zeros(len(FEATURE_NAMES))
    return np.array([nothing if row is None else row for row in rows])


def window_of(columns: Columns, window: int) -> FeatureWindow:
    """Put bars through a window one by one."""
    kept = FeatureWindow(BAR_NS, window)
    for bar in bars_of(columns):
        kept.add(*bar)
    return kept


def bars_of(columns: Columns) -> list[tuple[float, float, float, float, float, int]]:
    """Return bars as the arguments of `FeatureStream.add`."""
    names = ("open", "high", "low", "close", "volume", "close_ns")
    return list(zip(*(columns[name].tolist() for name in names), strict=True))
