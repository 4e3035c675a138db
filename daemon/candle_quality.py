"""Which rows of a candle file can be candles, and the report of what was found and done.

Reading the layout is `candle_files.py`'s; what is refused and what is kept is decided in
`history.py`, which calls these checks in order.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from daemon.candle_files import MISSING_WORDS, PRICES, RawCandles, utc_text
from daemon.errors import DataError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

Rule = Literal[
    "no time",
    "out of order",
    "duplicate",
    "conflicting duplicate",
    "missing price",
    "unreadable price",
    "non-positive price",
    "high not highest",
    "low not lowest",
    "overlap",
    "no volume",
    "rounded price",
    "rounded volume",
    "other timeframe in file name",
]
IMPOSSIBLE: Final[frozenset[Rule]] = frozenset(
    {
        "no time",
        "conflicting duplicate",
        "missing price",
        "unreadable price",
        "non-positive price",
        "high not highest",
        "low not lowest",
        "overlap",
    }
)
"""Rules that no sound row breaks; the rows that break them are dropped."""

NOTES: Final[frozenset[Rule]] = frozenset(
    {"rounded price", "rounded volume", "other timeframe in file name"}
)
"""Rules that say how a sound value was written down, and are no repair."""

MOST_IMPOSSIBLE_ROWS: Final = 0.01  # share of the rows; more than that refuses the file
EXAMPLES_PER_RULE: Final = 5
MOST_DECIMALS: Final = 8  # more digits than that are noise of binary floats, not prices
NS_PER_MINUTE: Final = 60_000_000_000
MINUTES_PER_DAY: Final = 1440

_NUMBER: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
_LARGEST_PRICE: Final = Decimal(10**12)  # a float holds less than 4 digits after the point beyond


@dataclass(frozen=True)
class Finding:
    """One rule that rows of the file broke, with up to five of them in words."""

    rule: Rule
    rows: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Gap:
    """A stretch without bars: a night, a weekend, or missing data. The end is exclusive."""

    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class QualityReport:
    """What was found in a file and what was done about it."""

    rows_read: int
    rows_kept: int
    repairs: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    gaps: tuple[Gap, ...]

    @property
    def is_clean(self) -> bool:
        """Tell whether the file was taken as it stood."""
        return not self.repairs

    def count(self, rule: Rule) -> int:
        """Return how many rows broke a rule."""
        return sum(found.rows for found in (*self.repairs, *self.notes) if found.rule == rule)


class Findings:
    """Collect broken rules in the words of the file."""

    def __init__(self, raw: RawCandles) -> None:
        self.rows_read = len(raw.row_numbers)
        self._raw = raw
        self._rows: dict[Rule, int] = {}
        self._examples: dict[Rule, list[str]] = {}

    def add(self, rule: Rule, positions: Iterable[int], describe: Callable[[int], str]) -> None:
        """Count rows (positions in file order) under a rule."""
        for position in map(int, positions):
            self._rows[rule] = self._rows.get(rule, 0) + 1
            examples = self._examples.setdefault(rule, [])
            if len(examples) < EXAMPLES_PER_RULE:
                examples.append(f"{self._raw.where(position)}: {describe(position)}")

    def note(self, rule: Rule, text: str) -> None:
        """Count something that concerns the file as a whole."""
        self._rows[rule] = 1
        self._examples[rule] = [text]

    def repairs(self) -> tuple[Finding, ...]:
        """Return what changed the rows: sorted, dropped or filled in."""
        return tuple(found for found in self._all() if found.rule not in NOTES)

    def notes(self) -> tuple[Finding, ...]:
        """Return what a reader should know of sound rows."""
        return tuple(found for found in self._all() if found.rule in NOTES)

    def impossible_rows(self) -> int:
        """Return how many rows no sound file would have."""
        return sum(rows for rule, rows in self._rows.items() if rule in IMPOSSIBLE)

    def summary(self) -> str:
        """Return the repairs as the tail of a sentence, each with its first row; may be empty."""
        texts = [f"{found.rule} {found.rows} ({found.examples[0]})" for found in self.repairs()]
        return f": {'; '.join(texts)}" if texts else ""

    def _all(self) -> Iterator[Finding]:
        for rule, rows in self._rows.items():
            yield Finding(rule, rows, tuple(self._examples[rule]))


class Numbers(NamedTuple):
    """One column of prices, [N]."""

    values: FloatArray  # NaN where there is no finite number
    digits: IntArray  # after the point, at most 8
    rounded: BoolArray  # there were more than 8


def read_numbers(texts: tuple[str, ...]) -> Numbers:
    """Read a column of texts as numbers; each float is the nearest to its text."""
    read = [_number(text) for text in texts]
    return Numbers(
        np.array([value for value, _, _ in read], dtype=np.float64),
        np.array([digits for _, digits, _ in read], dtype=np.int64),
        np.array([rounded for _, _, rounded in read], dtype=np.bool_),
    )


def exact_number(text: str) -> Decimal | None:
    """Read a text as a finite number; None when it is not one, grouped digits included."""
    return Decimal(text) if _NUMBER.fullmatch(text) else None


def _number(text: str) -> tuple[float, int, bool]:
    exact = exact_number(text)
    if exact is None or abs(exact) > _LARGEST_PRICE:
        return float("nan"), 0, False
    exponent = exact.as_tuple().exponent
    digits = -exponent if isinstance(exponent, int) else 0
    if digits <= MOST_DECIMALS:
        return float(exact), max(0, digits), False
    price = round(exact, MOST_DECIMALS)
    significant = price.normalize().as_tuple().exponent
    digits = -significant if isinstance(significant, int) else 0
    return float(price), max(0, digits), price != exact


def sorted_and_unique(raw: RawCandles, prices: dict[str, Numbers], findings: Findings) -> IntArray:
    """Return the positions of the rows with a time, ascending, the first of each time."""
    findings.add(
        "no time",
        (position for position, instant in enumerate(raw.open_ns) if instant is None),
        lambda position: f"time is {raw.time_texts[position]!r}",
    )
    timed = np.array(
        [position for position, instant in enumerate(raw.open_ns) if instant is not None],
        dtype=np.int64,
    )
    instants = np.array([raw.open_ns[position] for position in timed], dtype=np.int64)
    latest = np.maximum.accumulate(instants)
    findings.add(
        "out of order",
        timed[instants < latest],
        lambda position: f"{utc_text(raw.open_ns[position] or 0)} comes after a later time",
    )
    order = np.argsort(instants, kind="stable")  # stable: the first of a time stays first
    timed, instants = timed[order], instants[order]
    is_first = np.ones(len(timed), dtype=np.bool_)
    is_first[1:] = instants[1:] != instants[:-1]
    first_of = timed[np.maximum.accumulate(np.where(is_first, np.arange(len(timed)), 0))]
    repeated, originals = timed[~is_first], first_of[~is_first]
    same = np.ones(len(repeated), dtype=np.bool_)
    for column in prices.values():
        ours, theirs = column.values[repeated], column.values[originals]
        same &= (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    original_of = dict(zip(repeated.tolist(), originals.tolist(), strict=True))

    def describe(position: int) -> str:
        instant = utc_text(raw.open_ns[position] or 0)
        return f"{instant} is there already, at {raw.where(original_of[position])}"

    findings.add("duplicate", repeated[same], describe)
    findings.add("conflicting duplicate", repeated[~same], describe)
    return timed[is_first]


def possible(
    raw: RawCandles, prices: dict[str, Numbers], positions: IntArray, findings: Findings
) -> IntArray:
    """Return the positions whose prices can be a candle; each other row counts under one rule."""
    values = np.array([prices[name].values[positions] for name in PRICES])  # [4, N]
    absent = np.array(
        [
            [raw.values[name][position].lower() in MISSING_WORDS for position in positions]
            for name in PRICES
        ],
        dtype=np.bool_,
    ).reshape(values.shape)
    _, high, low, _ = values
    with np.errstate(invalid="ignore"):  # NaN compares false here; it has its own rule
        checks: tuple[tuple[Rule, BoolArray], ...] = (  # each [4, N]: which price breaks it
            ("missing price", absent),
            ("unreadable price", np.isnan(values)),
            ("non-positive price", values <= 0),
            ("high not highest", high < values),
            ("low not lowest", low > values),
        )

    def describe(position: int) -> str:
        texts = (f"{name} {raw.values[name][position] or '(empty)'}" for name in PRICES)
        return ", ".join(texts)

    usable = np.ones(len(positions), dtype=np.bool_)
    for rule, broken_prices in checks:
        broken = broken_prices.any(axis=0)
        findings.add(rule, positions[usable & broken], describe)
        usable &= ~broken
    return positions[usable]


def timeframe_minutes(path: Path, open_ns: IntArray) -> int:
    spacings, counts = np.unique(np.diff(open_ns), return_counts=True)
    most_common, share = int(spacings[counts.argmax()]), float(counts.max() / counts.sum())
    minutes, rest = divmod(most_common, NS_PER_MINUTE)
    if rest or not minutes:
        raise DataError(
            f"{path}: bars open {most_common / 1e9:g} s apart, which is not a whole number of"
            " minutes; give candles of at least one minute"
        )
    if share < 0.5:
        raise DataError(
            f"{path}: no clear length of a bar: the most common spacing, {minutes} minutes, holds"
            f" for {share:.0%} of the rows; give candles of one timeframe"
        )
    return minutes


def without_overlaps(
    raw: RawCandles, open_ns: IntArray, minutes: int, positions: IntArray, findings: Findings
) -> BoolArray:
    """Return which rows do not open before the bar kept last has ended, [N]."""
    kept = np.ones(len(open_ns), dtype=np.bool_)
    bar_ns = minutes * NS_PER_MINUTE
    if (np.diff(open_ns) < bar_ns).any():
        ends_ns = 0
        for index, instant in enumerate(open_ns.tolist()):
            kept[index] = instant >= ends_ns
            ends_ns = instant + bar_ns if kept[index] else ends_ns
    findings.add(
        "overlap",
        positions[~kept],
        lambda position: (
            f"{utc_text(raw.open_ns[position] or 0)} opens before the previous bar of"
            f" {minutes} minutes ends"
        ),
    )
    return kept


def refuse_too_many_impossible(path: Path, findings: Findings) -> None:
    rows, impossible = findings.rows_read, findings.impossible_rows()
    if impossible > MOST_IMPOSSIBLE_ROWS * rows:
        raise DataError(
            f"{path}: {impossible} of {rows} rows are impossible, more than"
            f" {MOST_IMPOSSIBLE_ROWS:.0%}{findings.summary()}; check where the file comes from"
        )
