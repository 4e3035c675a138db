"""DataLoader: candles from wherever they lie, checked, as exact prices; every repair counted.

Sources: CSV and Parquet files (`candle_files`), the broker's history and our own sealed recordings
(`candle_sources`). Whatever the source, the same checks make the same table. Drawing ticks from
candles is `candle_path.py`'s.

What is done to the rows, in this order, and what it is called in the report:

1. rows without a readable time are dropped ("no time");
2. rows are sorted by time ("out of order");
3. of rows with the same time the first in the file stays ("duplicate", or "conflicting duplicate"
   when the candles differ);
4. rows with a missing, unreadable or non-positive price, or whose high is not the highest or low
   not the lowest, are dropped;
5. rows that open before the previous bar ends are dropped ("overlap");
6. a volume that is missing, unreadable or negative becomes 0 ("no volume").

More than 1 % of impossible rows (1, 4, 5 and conflicting duplicates) means that the file is not
what it is taken for: it is refused.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Final

import numpy as np

from daemon.candle_files import PRICES, RawCandles, read_candle_file
from daemon.candle_quality import (
    MINUTES_PER_DAY,
    MOST_DECIMALS,
    NS_PER_MINUTE,
    Findings,
    FloatArray,
    Gap,
    IntArray,
    Numbers,
    QualityReport,
    exact_number,
    possible,
    read_numbers,
    refuse_too_many_impossible,
    sorted_and_unique,
    timeframe_minutes,
    without_overlaps,
)
from daemon.errors import DataError

_TIMEFRAME_IN_NAME: Final = re.compile(r"(\d+)(m|min|h|d)?", re.IGNORECASE)
_LARGEST_VOLUME: Final = 2**62  # units in one bar; beyond, the sum of a day may not fit int64
_MINUTES_PER_LETTER: Final = {"": 1, "m": 1, "min": 1, "h": 60, "d": MINUTES_PER_DAY}


@dataclass(frozen=True)
class Candle:
    """One bar of a file. Times in nanoseconds UTC; `close_ns` is exclusive."""

    open_ns: int
    close_ns: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: int


@dataclass(frozen=True, eq=False)
class CandleTable:
    """Candles in ascending order, without overlap. All arrays are [N] and read-only.

    The float prices are the nearest to the decimal ones, which `candle` gives exactly.
    """

    symbol: str  # guessed from the file's name
    timeframe_minutes: int
    decimals: int  # digits after the point of the most precise price
    sha256: str  # of the file
    quality: QualityReport
    open_ns: IntArray
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    volume: IntArray

    def __post_init__(self) -> None:
        for column in (self.open_ns, self.open, self.high, self.low, self.close, self.volume):
            if column.shape != self.open_ns.shape:
                raise ValueError(f"columns must be {self.open_ns.shape}, one was {column.shape}")
            column.flags.writeable = False

    def __len__(self) -> int:
        return len(self.open_ns)

    @property
    def timeframe(self) -> str:
        """Timeframe as messages name it: minutes, or D for a day."""
        minutes = self.timeframe_minutes
        return "D" if minutes == MINUTES_PER_DAY else str(minutes)

    @property
    def bar_ns(self) -> int:
        """Length of a bar in nanoseconds."""
        return self.timeframe_minutes * NS_PER_MINUTE

    @property
    def close_ns(self) -> IntArray:
        """Exclusive ends of the bars, [N]."""
        return self.open_ns + self.bar_ns

    def candle(self, position: int) -> Candle:
        """Return one bar with its exact prices."""
        open_ns = int(self.open_ns[position])
        return Candle(
            open_ns=open_ns,
            close_ns=open_ns + self.bar_ns,
            open=self._exact(self.open[position]),
            high=self._exact(self.high[position]),
            low=self._exact(self.low[position]),
            close=self._exact(self.close[position]),
            volume=int(self.volume[position]),
        )

    def candles(self) -> Iterator[Candle]:
        """Yield all bars in order, with exact prices."""
        return (self.candle(position) for position in range(len(self)))

    def between(self, start_ns: int, end_ns: int) -> "CandleTable":
        """Return the bars that open in [start_ns, end_ns); digest and quality stay the file's."""
        first, last = np.searchsorted(self.open_ns, [start_ns, end_ns])
        part = slice(int(first), int(last))
        return replace(
            self,
            open_ns=self.open_ns[part],
            open=self.open[part],
            high=self.high[part],
            low=self.low[part],
            close=self.close[part],
            volume=self.volume[part],
        )

    def _exact(self, price: np.float64) -> Decimal:
        # repr is the shortest text that names this float: the decimal it was read from.
        return Decimal(repr(float(price))).quantize(Decimal(1).scaleb(-self.decimals))


def load_candles(
    path: Path, *, timezone: str = "Asia/Kolkata", strict: bool = False
) -> CandleTable:
    """Read the candles of a CSV or Parquet file, or raise DataError with a remedy.

    `timezone` is only asked for a `time` column without a zone beside an epoch column. `strict`
    refuses a file that needs any repair.
    """
    raw = read_candle_file(path, timezone=timezone)
    symbol, named_minutes = name_and_minutes(path)
    return checked_candles(raw, symbol, named_minutes, strict=strict)


def checked_candles(
    raw: RawCandles, symbol: str, named_minutes: int | None = None, *, strict: bool = False
) -> CandleTable:
    """Turn rows into the checked table, or raise DataError with a remedy.

    named_minutes: what the source's name says of its timeframe, which is only compared.
    """
    path = Path(raw.file)
    findings = Findings(raw)
    prices = {name: read_numbers(raw.values[name]) for name in PRICES}
    positions = possible(raw, prices, sorted_and_unique(raw, prices, findings), findings)
    if len(positions) < 2:
        raise DataError(
            f"{path}: {len(positions) or 'no'} usable row of {findings.rows_read}, at least 2 are"
            f" needed to tell the length of a bar{findings.summary()}; fetch the candles again"
        )
    open_ns = np.array([raw.open_ns[position] for position in positions], dtype=np.int64)
    minutes = timeframe_minutes(path, open_ns)
    kept = without_overlaps(raw, open_ns, minutes, positions, findings)
    positions, open_ns = positions[kept], open_ns[kept]
    refuse_too_many_impossible(path, findings)
    volume = _volume(raw, positions, findings)
    _add_notes(path, minutes, named_minutes, prices, positions, findings)
    if strict and findings.repairs():
        raise DataError(
            f"{path}: needs repair, which strict reading refuses{findings.summary()};"
            " clean the file, or read it without strict"
        )
    return CandleTable(
        symbol=symbol,
        timeframe_minutes=minutes,
        decimals=max(int(column.digits[positions].max()) for column in prices.values()),
        sha256=raw.sha256,
        quality=QualityReport(
            rows_read=findings.rows_read,
            rows_kept=len(positions),
            repairs=findings.repairs(),
            notes=findings.notes(),
            gaps=_gaps(open_ns, minutes),
        ),
        open_ns=open_ns,
        open=prices["open"].values[positions],
        high=prices["high"].values[positions],
        low=prices["low"].values[positions],
        close=prices["close"].values[positions],
        volume=volume,
    )


def name_and_minutes(path: Path) -> tuple[str, int | None]:
    """Guess symbol and timeframe from a file's name: `Bank_Nifty_5` is Bank_Nifty, 5 minutes.

    Also reads names such as `nifty_5m`, `FOREX_EURUSD_1H_ASK`, `features_RELIANCE_1`.
    """
    words = path.stem.split("_")
    if len(words) > 1 and words[-1].upper() in {"ASK", "BID", "MID"}:
        words.pop()
    minutes = None
    if len(words) > 1 and (found := _TIMEFRAME_IN_NAME.fullmatch(words[-1])):
        minutes = int(found[1]) * _MINUTES_PER_LETTER[(found[2] or "").lower()]
        words.pop()
    if len(words) > 1 and words[0].upper() in {"FOREX", "STOCKS", "FEATURES"}:
        del words[0]
    return "_".join(words), minutes


def _gaps(open_ns: IntArray, minutes: int) -> tuple[Gap, ...]:
    ends, starts = open_ns[:-1] + minutes * NS_PER_MINUTE, open_ns[1:]
    apart = starts > ends
    return tuple(
        Gap(int(end), int(start)) for end, start in zip(ends[apart], starts[apart], strict=True)
    )


def _add_notes(
    path: Path,
    minutes: int,
    named_minutes: int | None,
    prices: dict[str, Numbers],
    positions: IntArray,
    findings: Findings,
) -> None:
    rounded = np.any([column.rounded[positions] for column in prices.values()], axis=0)
    findings.add(
        "rounded price",
        positions[rounded],
        lambda _: f"more than {MOST_DECIMALS} digits after the point",
    )
    if named_minutes is not None and named_minutes != minutes:
        findings.note(
            "other timeframe in file name",
            f"{path.name} says {named_minutes} minutes, its bars open {minutes} minutes apart",
        )


def _volume(raw: RawCandles, positions: IntArray, findings: Findings) -> IntArray:
    """Return whole units [N], all 0 for a file without the column."""
    volume = np.zeros(len(positions), dtype=np.int64)
    if "volume" not in raw.values:
        return volume
    texts = raw.values["volume"]
    absent: list[int] = []
    rounded: list[int] = []
    for index, position in enumerate(positions.tolist()):
        units = exact_number(texts[position])
        if units is None or not 0 <= units < _LARGEST_VOLUME:
            absent.append(position)
            continue
        volume[index] = round(units)
        if units != int(volume[index]):
            rounded.append(position)
    findings.add("no volume", absent, lambda position: f"volume is {texts[position]!r}")
    findings.add("rounded volume", rounded, lambda position: f"volume is {texts[position]}")
    return volume
