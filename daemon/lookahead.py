"""Look-ahead check: no feature knows a later bar, and none depends on where a history begins.

Everything a model is trained on is computed three ways and must be the same number:

- from the whole history;
- from a history that ends earlier: whatever changes had known the future. A label must be unknown
  as long as its horizon is not over, and the same number after that;
- from a history that begins later: beyond the bars that a column says it needs, whatever changes
  depends on when somebody began to record.

Equal means equal to the last bit. The exception is named in the answer: exponential averages of the
contract's frame reach back for ever, so where the history begins may show in the ninth digit; they
are compared from `SETTLED_BARS` on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from daemon.candle_files import utc_text
from daemon.errors import DataError
from daemon.feature_frame import FRAME_COLUMNS, WARMUP_ROWS, exact_frame
from daemon.history import CandleTable
from hrm.features import (
    ATR_BARS,
    CONTEXT_BARS,
    CONTEXT_NAMES,
    FEATURE_NAMES,
    WARMUP_BARS,
    feature_rows,
    warm_rows,
)
from hrm.training.candles import Candles
from hrm.training.market_table import LabelSettings, MarketTable, Vocabulary, market_table

SETTLED_BARS: Final = 3000  # an average of 200 bars has forgotten all but 1e-13 of what was before
SETTLED_TOLERANCE: Final = 1e-9
CUTS: Final = 7
STARTS: Final = (1, 7, 75, 211)
LEAST_BARS: Final = 400
_RECURSIVE: Final = frozenset(
    name
    for name in FRAME_COLUMNS
    if name.startswith(("ema", "macd", "rsi", "adx", "di_", "trix", "atr", "price_vs_ema"))
)


@dataclass(frozen=True)
class Checked:
    """One column of what is computed from N bars, [N].

    is_warm: rows that do not depend on where the history begins. horizon: bars after its own that a
    label may look at; 0 for what must know none. tolerance: of rows compared between two
    beginnings, relative to the larger of 1 and the value.
    """

    values: NDArray[Any]
    is_warm: NDArray[np.bool_]
    horizon: int = 0
    tolerance: float = 0.0


Compute = Callable[[Candles], Mapping[str, Checked]]


@dataclass(frozen=True)
class Violation:
    """The first row of a column that is not the same. `bars`: how many were cut off."""

    column: str
    kind: str  # "later bars" or "warm-up"
    bars: int
    open: str  # of the row's bar, UTC
    whole: float
    cut: float


@dataclass(frozen=True)
class LookaheadReport:
    """What was compared, and where it differed."""

    bars: int
    columns: int
    comparisons: int
    lookahead_violations: int  # columns times cuts
    warmup_violations: int  # columns times beginnings
    settled_columns: tuple[str, ...]  # compared from SETTLED_BARS on, or not at all if shorter
    first: Violation | None


def check_lookahead(candles: Candles, compute: Compute | None = None) -> LookaheadReport:
    """Compare every column of whole, shortened and later-begun histories.

    compute: what to check; by default every feature, context number and label.
    """
    compute = every_column if compute is None else compute
    count = len(candles)
    if count < LEAST_BARS:
        raise DataError(
            f"{candles.source}: {count} bars are too few for the look-ahead check, at least"
            f" {LEAST_BARS} are needed; give a longer history"
        )
    whole = compute(candles)
    later = [
        violation
        for end in _cuts(count)
        for violation in _after_cut(candles, whole, compute(_part(candles, 0, end)), end)
    ]
    begun = [
        violation
        for start in STARTS
        for violation in _after_start(candles, whole, compute(_part(candles, start)), start)
    ]
    return LookaheadReport(
        bars=count,
        columns=len(whole),
        comparisons=len(whole) * (CUTS + len(STARTS)),
        lookahead_violations=len(later),
        warmup_violations=len(begun),
        settled_columns=tuple(name for name, column in whole.items() if column.tolerance),
        first=next(iter((*later, *begun)), None),
    )


def training_candles(table: CandleTable) -> Candles:
    """Return checked candles as training takes them."""
    return Candles(
        instrument=table.symbol,
        timeframe=str(table.timeframe_minutes),
        bar_ns=table.bar_ns,
        open=table.open,
        high=table.high,
        low=table.low,
        close=table.close,
        volume=table.volume.astype(np.float64),
        close_ns=table.close_ns,
        source=table.symbol,
        sha256=table.sha256,
    )


def every_column(candles: Candles) -> dict[str, Checked]:
    """Compute all that a model is trained on, and the contract's frame, each by its name."""
    return _model_input(candles) | _frame(candles) | _training_columns(candles)


def _model_input(candles: Candles) -> dict[str, Checked]:
    rows = feature_rows(
        candles.open,
        candles.high,
        candles.low,
        candles.close,
        candles.volume,
        candles.close_ns,
        candles.bar_ns,
    )
    warm = warm_rows(candles.close_ns, candles.bar_ns)
    return {f"feature {name}": Checked(rows[:, i], warm) for i, name in enumerate(FEATURE_NAMES)}


@dataclass(frozen=True)
class _Prices:
    open_ns: NDArray[np.int64]
    open: NDArray[np.float64]
    high: NDArray[np.float64]
    low: NDArray[np.float64]
    close: NDArray[np.float64]


def _frame(candles: Candles) -> dict[str, Checked]:
    opens = candles.close_ns - candles.bar_ns
    frame = exact_frame(_Prices(opens, candles.open, candles.high, candles.low, candles.close))
    position = np.arange(len(candles))
    columns = {}
    for name in FRAME_COLUMNS:
        settled = name in _RECURSIVE
        warm = position >= (SETTLED_BARS if settled else WARMUP_ROWS)
        columns[f"frame {name}"] = Checked(
            frame[name].to_numpy(), warm, tolerance=SETTLED_TOLERANCE if settled else 0.0
        )
    return columns


def _training_columns(candles: Candles) -> dict[str, Checked]:
    """Take context, scales and labels from the table that training draws its samples from."""
    labels = LabelSettings(mirror=False)
    table = market_table([candles], window=1, labels=labels, vocabulary=Vocabulary.of([candles]))
    own = slice(table.first_row[0], None)
    position = np.arange(len(candles))
    columns = {
        f"context {name}": Checked(table.context[own, i], position >= CONTEXT_BARS)
        for i, name in enumerate(CONTEXT_NAMES)
    }
    columns["scale atr"] = Checked(table.atr[own], position >= ATR_BARS)
    columns["scale volatility"] = Checked(table.volatility[own], position >= WARMUP_BARS)
    return columns | _labels(table, own, position)


def _labels(table: MarketTable, own: slice, position: NDArray[np.int64]) -> dict[str, Checked]:
    unknown = np.where(table.barrier[own] < 0, np.nan, table.barrier[own])
    return {
        "label forward": Checked(
            table.forward[own], position >= 0, horizon=table.labels.commit_bars + 1
        ),
        "label barrier": Checked(
            unknown, position >= WARMUP_BARS, horizon=table.labels.barrier_bars
        ),
    }


def _cuts(count: int) -> Sequence[int]:
    """Choose where histories end: evenly from the first third on, none on a round number."""
    return [count // 3 + (count * 2 // 3) * k // CUTS + k for k in range(CUTS)]


def _part(candles: Candles, start: int, end: int | None = None) -> Candles:
    names = ("open", "high", "low", "close", "volume", "close_ns")
    return replace(candles, **{name: getattr(candles, name)[start:end] for name in names})


def _after_cut(
    candles: Candles, whole: Mapping[str, Checked], cut: Mapping[str, Checked], end: int
) -> list[Violation]:
    violations = []
    for name, column in whole.items():
        values = cut[name].values
        known = end - column.horizon
        expected = column.values[:end].astype(np.float64)
        expected[known:] = np.nan if column.horizon else expected[known:]
        if (row := _first_difference(expected, values, 0.0)) is not None:
            found = (float(expected[row]), float(values[row]))
            violations.append(_violation(candles, name, "later bars", end, row, found))
    return violations


def _after_start(
    candles: Candles, whole: Mapping[str, Checked], begun: Mapping[str, Checked], start: int
) -> list[Violation]:
    violations = []
    for name, column in whole.items():
        later = begun[name]
        expected = column.values[start:][later.is_warm].astype(np.float64)
        values = later.values[later.is_warm]
        if (row := _first_difference(expected, values, column.tolerance)) is not None:
            place = start + int(np.flatnonzero(later.is_warm)[row])
            found = (float(expected[row]), float(values[row]))
            violations.append(_violation(candles, name, "warm-up", start, place, found))
    return violations


def _first_difference(expected: NDArray[Any], values: NDArray[Any], tolerance: float) -> int | None:
    if len(expected) != len(values):
        return 0
    both_missing = np.isnan(expected) & np.isnan(values)
    scale = np.maximum(np.abs(expected), 1.0)
    same = both_missing | (np.abs(expected - values) <= tolerance * scale)  # NaN compares false
    return None if same.all() else int(np.argmin(same))


def _violation(
    candles: Candles, name: str, kind: str, bars: int, row: int, found: tuple[float, float]
) -> Violation:
    opened = int(candles.close_ns[row]) - candles.bar_ns
    return Violation(name, kind, bars, utc_text(opened), *found)
