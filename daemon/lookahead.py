"""Look-ahead check: no feature knows a later bar, and none depends on where a history begins.

Everything a model is trained on is computed three ways and must be the same number:

- from the whole history;
- from a history that ends earlier: whatever changes had known the future. A label must be unknown
  as long as its horizon is not over, and the same number after that;
- from a history that begins later: beyond the bars that a column says it needs, whatever changes
  depends on when somebody began to record.

Equal means equal to the last bit. The exceptions are named in the answer, and only concern where a
history begins. Exponential averages of the contract's frame reach back for ever, so that it may
show in the ninth digit: they are compared from `SETTLED_BARS` on. What is demanding, and so regimes
and checks, follows from the last 28 days: they are compared a week after these. Forecasts also
read what is usual at an hour, of which half is forgotten in 20 sessions: their probabilities are
then compared to within `FORECAST_TOLERANCE`, the usual class at an hour not at all.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from actors.complexity import MarketComplexityActor
from actors.day_profile import DAY_NS
from actors.forecast import REFERENCE_NS
from actors.messages import Bar, MarketContext
from actors.policies import ComplexitySettings
from daemon.candle_files import utc_text
from daemon.errors import DataError
from daemon.feature_frame import FRAME_COLUMNS, WARMUP_ROWS, exact_frame
from daemon.history import CandleTable
from hrm.features import (
    ATR_BARS,
    CONTEXT_BARS,
    CONTEXT_NAMES,
    FEATURE_NAMES,
    REGIMES,
    WARMUP_BARS,
    feature_rows,
    warm_rows,
)
from hrm.training.candles import Candles
from hrm.training.market_table import LabelSettings, MarketTable, Vocabulary, market_table

SETTLED_BARS: Final = 3000  # an average of 200 bars has forgotten all but 1e-13 of what was before
SETTLED_TOLERANCE: Final = 1e-9
FORECAST_SETTLED_NS: Final = REFERENCE_NS + 7 * DAY_NS  # a week in which regimes forget the rest
FORECAST_TOLERANCE: Final = 0.2  # of a probability; what is usual at an hour is learned for months
CUTS: Final = 7
STARTS: Final = (1, 7, 75, 211)
LEAST_BARS: Final = 400
_NS_PER_SECOND: Final = 1_000_000_000
_SECONDS_PER_DAY: Final = 86_400
_USUALLY: Final = "checked usually_demanding"
_FORECAST_COLUMNS: Final = {
    "demand": FORECAST_TOLERANCE,
    "checked probability": FORECAST_TOLERANCE,
    "checked was_demanding": 0.0,
    "checked is_demanding": 0.0,
    _USUALLY: 0.0,
    **{f"regime {name}": SETTLED_TOLERANCE for name in REGIMES},
}  # with the tolerance between two beginnings
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
    settled_columns: tuple[str, ...]  # of which less is required, or nothing; only of beginnings
    first: Violation | None


def check_lookahead(candles: Candles, compute: Compute) -> LookaheadReport:
    """Compare every column of whole, shortened and later-begun histories.

    compute: what to check; `every_column` of some settings, or a part of it.
    """
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
        settled_columns=tuple(
            name for name, column in whole.items() if column.tolerance or not column.is_warm.any()
        ),
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


def every_column(complexity: ComplexitySettings) -> Compute:
    """Return what computes all that a model is trained on or is decided by, and the frame, by name.

    complexity: with the coefficients of the forecast; where they lack the timeframe there is none.
    """
    return lambda candles: (
        _model_input(candles)
        | _frame(candles)
        | _training_columns(candles)
        | _forecasts(candles, complexity)
    )


def _model_input(candles: Candles) -> dict[str, Checked]:
    """Compute the model's features, as if expiry, spread and order book were known of two bars of
    three: candles of a file have none, and a column of nothing would pass any check.
    """
    seconds = candles.close_ns // _NS_PER_SECOND
    is_known = seconds // (candles.bar_ns // _NS_PER_SECOND) % 3 > 0
    rows = feature_rows(
        candles.open,
        candles.high,
        candles.low,
        candles.close,
        candles.volume,
        candles.close_ns,
        candles.bar_ns,
        days_to_expiry=np.where(is_known, seconds // _SECONDS_PER_DAY % 7, np.nan),
        spread=np.where(is_known, candles.close * (1e-5 * (seconds % 7919)), np.nan),
        depth_imbalance=np.where(is_known, np.sin(seconds % 7919), np.nan),
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


def _forecasts(candles: Candles, complexity: ComplexitySettings) -> dict[str, Checked]:
    """Take what the live actor says beside the training columns: forecast, its check, regimes."""
    actor = MarketComplexityActor(complexity)
    rows: list[list[float]] = [
        _forecast_row(context) for bar in _bars(candles) for context in actor.handle(bar)
    ]
    values = np.array(rows, dtype=np.float64)
    settled = candles.close_ns - candles.close_ns[0] >= FORECAST_SETTLED_NS
    never = np.zeros_like(settled)
    return {
        f"forecast {name}": Checked(
            values[:, i], never if name == _USUALLY else settled, tolerance=tolerance
        )
        for i, (name, tolerance) in enumerate(_FORECAST_COLUMNS.items())
    }


def _forecast_row(context: MarketContext) -> list[float]:
    check = context.checked
    known = () if check is None else (check.probability, check.was_demanding, check.is_demanding)
    usually = None if check is None else check.usually_demanding
    return [
        _number(context.demand),
        *(known or (math.nan,) * 3),
        _number(usually),
        *(context.regime_probabilities or (math.nan,) * len(REGIMES)),
    ]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _bars(candles: Candles) -> Iterator[Bar]:
    """Yield the candles as closed bars."""
    names = ("open", "high", "low", "close")
    prices = zip(
        *(map(Decimal, map(repr, getattr(candles, n).tolist())) for n in names), strict=True
    )
    for close_ns, (open_, high, low, close) in zip(candles.close_ns.tolist(), prices, strict=True):
        yield Bar(
            instrument=candles.instrument,
            timeframe=candles.timeframe,
            open=open_,
            high=high,
            low=low,
            close=close,
            volume=0,
            open_ns=close_ns - candles.bar_ns,
            close_ns=close_ns,
            ticks=4,
        )


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
