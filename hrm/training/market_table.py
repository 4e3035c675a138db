"""The market as a table: features, context and labels of every series, split by date.

What is drawn from its rows to learn from is for `samples`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from hrm.features import (
    REGIMES,
    WARMUP_BARS,
    account_features,
    average_true_range,
    bar_features,
    complexity_history,
    complexity_score,
    context_features,
    return_volatility,
)
from hrm.training.candles import Candles, DataQualityError, FloatArray, IntArray
from hrm.training.prior import Prior

STOP_ATR = 1.5  # the trading rules' first stop, in average true ranges from the entry


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Number instruments and timeframes for the embeddings; 0 is the unknown one."""

    instruments: Mapping[str, int]
    timeframes: Mapping[str, int]

    @classmethod
    def of(cls, candles: Sequence[Candles]) -> "Vocabulary":
        """Number the names in alphabetical order, from 1."""
        instruments = sorted({c.instrument for c in candles})
        timeframes = sorted({c.timeframe for c in candles}, key=int)
        return cls(
            {name: i for i, name in enumerate(instruments, 1)},
            {name: i for i, name in enumerate(timeframes, 1)},
        )


@dataclass(frozen=True, slots=True)
class LabelSettings:
    """Set what a sample's reward is made of, and which samples there are.

    cost_bps: paid per side, in 1/100 of a percent of the traded value (brokerage, taxes, half the
    spread and slippage together). commit_bars: how long an action's position is held before the
    value function takes over. barrier: of the triple-barrier label, in volatilities of its horizon.
    mirror: train on every series quoted the other way round, too. prior: see that module.
    """

    cost_bps: float = 2.0
    commit_bars: int = 8
    barrier_bars: int = 16
    barrier: float = 0.7
    mirror: bool = True
    prior: Prior = "trend"

    @property
    def horizon(self) -> int:
        """Count the bars after t that a sample of bar t looks at."""
        return max(self.commit_bars, self.barrier_bars) + 1


@dataclass(frozen=True, slots=True)
class Split:
    """Hold the rows of the joined table that training, validation and the final test may use."""

    train: IntArray
    validation: IntArray
    test: IntArray
    boundaries_ns: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Observation:
    """Hold what the model reads, as arrays: bars [B, T, F], mask [B, T], the rest [B] or [B, n]."""

    bars: NDArray[np.float32]
    bars_mask: NDArray[np.bool_]
    instrument: IntArray
    timeframe: IntArray
    account: NDArray[np.float32]
    context: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Account:
    """Hold one trader's position: sign -1, 0, 1, size as a share, entry row and price, capital.

    trailing_stop is None when flat. capital is in units of the initial capital.
    """

    sign: int = 0
    size: float = 0.0
    entry_row: int = -1
    entry_price: float = 0.0
    trailing_stop: float | None = None
    capital: float = 1.0


@dataclass(slots=True)
class MarketTable:
    """Hold every series joined into one table, row by row, with labels; built by `market_table`.

    Each series is preceded by window rows of nothing, so that a window never reaches into another.
    Labels that would look past the end of a series are NaN (forward) or -1 (barrier).
    """

    window: int
    labels: LabelSettings
    vocabulary: Vocabulary
    candles: list[Candles]
    is_mirror: list[bool]  # of each series
    first_row: list[int]  # of each series' first bar
    features: NDArray[np.float32]  # [G, F]
    is_real: NDArray[np.bool_]  # [G]: the features mean something
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    close_ns: IntArray
    atr: FloatArray
    volatility: FloatArray  # of one bar's log return
    context: NDArray[np.float32]  # [G, 8], correlation and news unknown
    instrument: IntArray
    timeframe: IntArray
    forward: FloatArray  # log return from the next open over commit_bars
    barrier: IntArray  # 1 up, 2 down, 0 neither, -1 unknown
    row_offsets: IntArray = field(init=False)

    def __post_init__(self) -> None:
        self.row_offsets = np.arange(-self.window + 1, 1)

    def side_cost(self, row: int) -> float:
        """Give the cost of one side, in units of the volatility of commit_bars."""
        return self.labels.cost_bps * 1e-4 / self.unit(row)

    def unit(self, row: int) -> float:
        """Give the volatility of commit_bars at this row, as a log return."""
        return float(self.volatility[row]) * math.sqrt(self.labels.commit_bars)

    def account_row(self, row: int, account: Account) -> NDArray[np.float32]:
        """Describe the account as it stands when bar `row` closes."""
        price = float(self.close[row])
        gain = 0.0
        if account.sign:
            gain = account.sign * account.size * (price / account.entry_price - 1.0)
        return account_features(
            capital=account.capital,
            initial_capital=1.0,
            position=account.sign * account.size,
            entry_price=account.entry_price if account.sign else None,
            last_price=price,
            unrealised_result=gain,
            trailing_stop=account.trailing_stop,
            atr=float(self.atr[row]),
        )

    def observe(
        self,
        rows: IntArray,
        accounts: Sequence[Account],
        *,
        visible: IntArray | None = None,
        is_unknown: NDArray[np.bool_] | None = None,
        context: NDArray[np.float32] | None = None,
    ) -> Observation:
        """Gather what the model reads at these rows [B], one account each.

        visible: [B] how many bars of the window are shown (default all); is_unknown: [B] hides
        instrument and timeframe; context: [B, 8] replaces the table's.
        """
        index = rows[:, None] + self.row_offsets[None, :]  # [B, T]
        mask = self.is_real[index]
        if visible is not None:
            mask &= self.row_offsets[None, :] > -visible[:, None]
        bars = self.features[index] * mask[:, :, None]
        known = np.ones(len(rows), dtype=np.int64)
        if is_unknown is not None:
            known = 1 - is_unknown.astype(np.int64)
        account = [self.account_row(int(r), a) for r, a in zip(rows, accounts, strict=True)]
        return Observation(
            bars=bars,
            bars_mask=mask,
            instrument=self.instrument[rows] * known,
            timeframe=self.timeframe[rows] * known,
            account=np.stack(account),
            context=self.context[rows] if context is None else context,
        )

    def opened(self, row: int, sign: int, size: float, capital: float) -> Account:
        """Return the account after an entry decided at bar `row` and filled at the next open."""
        price = float(self.open[row + 1])
        return Account(
            sign=sign,
            size=size,
            entry_row=row,
            entry_price=price,
            trailing_stop=price - sign * STOP_ATR * float(self.atr[row]),
            capital=capital,
        )

    def aged(self, account: Account, row: int) -> Account:
        """Return the account with its trailing stop moved to where it is when bar `row` closes."""
        if not account.sign:
            return account
        since = slice(account.entry_row + 1, row + 1)
        best = self.high[since].max() if account.sign > 0 else self.low[since].min()
        distance = STOP_ATR * float(self.atr[account.entry_row])
        stop = float(best) - account.sign * distance
        return replace(account, trailing_stop=stop)


def market_table(
    candles: Sequence[Candles], *, window: int, labels: LabelSettings, vocabulary: Vocabulary
) -> MarketTable:
    """Compute features, context and labels of every series and join them."""
    if not candles:
        raise DataQualityError("no candles to train on: give at least one --data FILE")
    originals = len(candles)
    candles = [*candles, *(c.mirrored() for c in candles if labels.mirror)]
    parts = [_series_columns(c, window, labels, vocabulary) for c in candles]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    lengths = np.cumsum([0] + [len(c) + window for c in candles])
    return MarketTable(
        window=window,
        labels=labels,
        vocabulary=vocabulary,
        candles=candles,
        is_mirror=[i >= originals for i in range(len(candles))],
        first_row=[int(start) + window for start in lengths[:-1]],
        **joined,
    )


def split_by_date(
    table: MarketTable,
    *,
    train_share: float = 0.7,
    validation_share: float = 0.1,
    embargo_bars: int | None = None,
) -> Split:
    """Split all series at the same two instants; nothing later than a boundary teaches.

    Purge: rows whose label reaches past a boundary are dropped before it. Embargo: after a
    boundary the first `embargo_bars` rows of a series (default: window + warm-up, so that no
    input of the later part overlaps an input of the earlier one) are dropped too.
    """
    if not 0 < train_share < train_share + validation_share < 1:
        raise ValueError(
            f"train_share {train_share} and validation_share {validation_share} must be positive "
            "and leave a share for the test"
        )
    embargo = table.window + WARMUP_BARS if embargo_bars is None else embargo_bars
    times = np.sort(np.concatenate([c.close_ns for c in table.candles]))
    first = int(times[int(train_share * len(times))])
    second = int(times[int((train_share + validation_share) * len(times))])
    chosen: dict[str, list[IntArray]] = {"train": [], "validation": [], "test": []}
    series = zip(table.first_row, table.candles, table.is_mirror, strict=True)
    for start, candles, is_mirror in series:
        cut_1, cut_2 = np.searchsorted(candles.close_ns, [first, second])
        end = len(candles) - table.labels.horizon
        ranges = {
            "train": (0, cut_1 - table.labels.horizon),
            "validation": (cut_1 + embargo, cut_2 - table.labels.horizon),
            "test": (cut_2 + embargo, end),
        }
        for name, (low, high) in ranges.items():
            if is_mirror and name != "train":
                continue  # judged on the market as it was
            rows = np.arange(start + low, start + max(min(high, end), low), dtype=np.int64)
            chosen[name].append(rows[table.is_real[rows]])
    parts = {name: np.concatenate(rows) for name, rows in chosen.items()}
    for name, rows in parts.items():
        if not len(rows):
            raise DataQualityError(
                f"no bars are left for {name} after purge ({table.labels.horizon}) and embargo "
                f"({embargo}): give a longer history"
            )
    return Split(parts["train"], parts["validation"], parts["test"], (first, second))


def _series_columns(
    candles: Candles, window: int, labels: LabelSettings, vocabulary: Vocabulary
) -> dict[str, NDArray[np.generic]]:
    """Compute one series' columns, each with `window` rows of nothing in front."""
    count = len(candles)
    features = bar_features(
        candles.open,
        candles.high,
        candles.low,
        candles.close,
        candles.volume,
        candles.close_ns,
        candles.bar_ns,
    )
    history = complexity_history(candles.close)
    context = np.stack(
        [
            context_features(
                complexity=complexity_score(
                    float(history.volatility[i]), float(history.regime_stability[i])
                ),
                volatility=float(history.volatility[i]),
                regime=REGIMES[int(history.regime[i])],
            )
            for i in range(count)
        ]
    )
    atr = average_true_range(candles.high, candles.low, candles.close)
    columns: dict[str, tuple[NDArray[np.generic], object]] = {
        "features": (features, 0),
        "is_real": (np.arange(count) >= WARMUP_BARS, False),
        "open": (candles.open, np.nan),
        "high": (candles.high, np.nan),
        "low": (candles.low, np.nan),
        "close": (candles.close, np.nan),
        "close_ns": (candles.close_ns, 0),
        "atr": (atr, np.nan),
        "volatility": (return_volatility(candles.close), np.nan),
        "context": (context, 0),
        "instrument": (np.full(count, vocabulary.instruments.get(candles.instrument, 0)), 0),
        "timeframe": (np.full(count, vocabulary.timeframes.get(candles.timeframe, 0)), 0),
        "forward": (_forward_return(candles.open, labels.commit_bars), np.nan),
        "barrier": (_triple_barrier(candles, labels), -1),
    }
    return {
        name: np.concatenate([np.full((window, *values.shape[1:]), fill, values.dtype), values])
        for name, (values, fill) in columns.items()
    }


def _forward_return(open_: FloatArray, bars: int) -> FloatArray:
    """Give the log return from the open after bar i over `bars` bars; NaN where it is unknown."""
    result = np.full(len(open_), np.nan)
    if len(open_) > bars + 1:
        log_open = np.log(open_)
        result[: -bars - 1] = log_open[bars + 1 :] - log_open[1:-bars]
    return result


def _triple_barrier(candles: Candles, labels: LabelSettings) -> IntArray:
    """Say which barrier is touched first after bar i: 1 up, 2 down, 0 neither, -1 unknown.

    Both within one bar count as neither: the order inside a bar is not known.
    """
    count, horizon = len(candles), labels.barrier_bars
    result = np.full(count, -1, dtype=np.int64)
    volatility = return_volatility(candles.close)
    for i in range(WARMUP_BARS, count - horizon):
        width = labels.barrier * volatility[i] * horizon**0.5
        entry = candles.open[i + 1]
        up = candles.high[i + 1 : i + 1 + horizon] >= entry * np.exp(width)
        down = candles.low[i + 1 : i + 1 + horizon] <= entry * np.exp(-width)
        first_up = int(np.argmax(up)) if up.any() else horizon
        first_down = int(np.argmax(down)) if down.any() else horizon
        result[i] = 1 if first_up < first_down else 2 if first_down < first_up else 0
    return result
