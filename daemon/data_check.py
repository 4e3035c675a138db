"""What is to be known of a file of candles before anything is learned from it or traded on it.

Reading and repairing is `history.py`'s, and its counts are passed on. Here the bars that are left
are held against the calendar of their market and against each other. Nothing is changed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from actors.instruments import Instrument
from actors.session import SessionCalendar, SessionDay
from daemon.candle_files import utc_text
from daemon.candle_quality import EXAMPLES_PER_RULE, IMPOSSIBLE, MINUTES_PER_DAY, Finding, IntArray
from daemon.candle_schema import candle_frame
from daemon.continuity import auction_bars
from daemon.history import CandleTable

STALE_BARS: Final = 3  # bars in a row that repeat the one before in all four prices
OUTLIER_DEVIATIONS: Final = 12.0  # robust standard deviations of the moves inside sessions
_MAD_TO_SIGMA: Final = 1.4826  # of a normal distribution


@dataclass(frozen=True)
class MissingBars:
    """A stretch of one session without bars. The end is exclusive; times UTC."""

    start: str
    end: str
    bars: int


@dataclass(frozen=True)
class Gaps:
    """Bars that the calendar has and the file lacks, within the file's first and last bar."""

    missing_bars: int
    stretches: int
    longest_bars: int
    missing_sessions: tuple[str, ...]  # dates without a single bar
    examples: tuple[MissingBars, ...]


@dataclass(frozen=True)
class Special:
    """A session out of the ordinary."""

    date: str
    name: str  # from the calendar, or what is odd about it
    bars: int


@dataclass(frozen=True)
class Runs:
    """Stretches in which the price stood still, each bar equal to the one before."""

    runs: int
    longest_bars: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Outliers:
    """Moves inside sessions that are too large to be taken unread; they stay in."""

    bars: int
    limit_bps: float
    examples: tuple[str, ...]


@dataclass(frozen=True)
class DataReport:
    """All that was found. Counts are of rows or bars."""

    file: str
    sha256: str
    instrument: str
    market: str | None
    timeframe: str
    rows_read: int
    rows_kept: int
    first_open: str
    last_open: str
    sessions: int
    is_clean: bool  # taken as it stood
    duplicates: int
    conflicting_duplicates: int
    unsorted_rows: int
    impossible_candles: int
    repairs: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    gaps: Gaps | None  # None: no market, no calendar
    outside_session: int  # bars where the calendar has none
    off_grid: int  # bars of a session that do not open a whole number of bars after it
    uncovered_bars: int  # on days whose hours nobody knows
    auction_bars: int  # of a session, but not wholly in continuous trading: no model reads them
    zero_volume_bars: int
    has_volume: bool
    stale_runs: Runs
    outliers: Outliers
    special_sessions: tuple[Special, ...]


def check_table(
    table: CandleTable,
    file: str,
    calendar: SessionCalendar,
    market: str | None,
    instrument: Instrument | None = None,
) -> DataReport:
    """Report on candles that are loaded; market None: without a calendar.

    instrument: whose auctions there may be; None: none is known.
    """
    candle_frame(table)
    quality = table.quality
    against = _Calendared(table, calendar, market) if market is not None else None
    return DataReport(
        file=file,
        sha256=table.sha256,
        instrument=table.symbol,
        market=market,
        timeframe=table.timeframe,
        rows_read=quality.rows_read,
        rows_kept=quality.rows_kept,
        first_open=utc_text(int(table.open_ns[0])),
        last_open=utc_text(int(table.open_ns[-1])),
        sessions=len(np.unique(_session_starts(table))),
        is_clean=quality.is_clean,
        duplicates=quality.count("duplicate"),
        conflicting_duplicates=quality.count("conflicting duplicate"),
        unsorted_rows=quality.count("out of order"),
        impossible_candles=sum(f.rows for f in quality.repairs if f.rule in IMPOSSIBLE),
        repairs=quality.repairs,
        notes=quality.notes,
        gaps=None if against is None else against.gaps(),
        outside_session=0 if against is None else against.outside,
        off_grid=0 if against is None else against.off_grid,
        uncovered_bars=0 if against is None else against.uncovered,
        auction_bars=int(auction_bars(table, calendar, instrument).sum()),
        zero_volume_bars=int((table.volume == 0).sum()),
        has_volume=bool((table.volume > 0).any()),
        stale_runs=_stale_runs(table),
        outliers=_outliers(table),
        special_sessions=() if against is None else against.specials(),
    )


def as_answer(report: DataReport) -> dict[str, Any]:
    """Return the report as the command prints it."""
    answer: dict[str, Any] = {"usable": True, "problem": None} | msgspec.to_builtins(report)
    return answer


class _Calendared:
    """Hold a table's bars against the days of its market."""

    def __init__(self, table: CandleTable, calendar: SessionCalendar, market: str) -> None:
        self._table = table
        first, last = int(table.open_ns[0]), int(table.open_ns[-1])
        self._days = [
            (day, _expected(day, table, first, last)) for day in calendar.days(market, first, last)
        ]
        self.uncovered = sum(self._bars_of(day) for day, _ in self._days if not day.is_covered)
        known = {o for day, expected in self._days if day.is_covered for o in expected}
        odd = [o for o in table.open_ns.tolist() if o not in known]
        within = [
            (i.open_ns, i.close_ns)
            for day, _ in self._days
            if day.is_covered
            for i in day.intervals
        ]
        self.off_grid = sum(
            any(start - table.bar_ns < o < end for start, end in within) for o in odd
        )
        self.outside = len(odd) - self.off_grid - self.uncovered

    def gaps(self) -> Gaps:
        """Find the bars that are missing, stretch by stretch; one that any bar overlaps is not."""
        stretches: list[MissingBars] = []
        absent: list[str] = []
        for day, expected in self._days:
            missing = [o for o in expected if not self._overlaps(o)] if day.is_covered else []
            if missing and len(missing) == len(expected):
                absent.append(day.key.isoformat())
            stretches += _stretches(missing, expected, self._table.bar_ns)
        return Gaps(
            missing_bars=sum(stretch.bars for stretch in stretches),
            stretches=len(stretches),
            longest_bars=max((stretch.bars for stretch in stretches), default=0),
            missing_sessions=tuple(absent),
            examples=tuple(
                sorted(stretches, key=lambda stretch: -stretch.bars)[:EXAMPLES_PER_RULE]
            ),
        )

    def specials(self) -> tuple[Special, ...]:
        """Name sessions with hours of their own, and those that the calendar does not have."""
        found = []
        for day, _ in self._days:
            bars = self._bars_of(day)
            if day.special is not None:
                found.append(Special(day.key.isoformat(), day.special, bars))
            elif bars and day.is_covered and not day.intervals:
                found.append(Special(day.key.isoformat(), "not in the calendar", bars))
        return tuple(found)

    def _overlaps(self, open_ns: int) -> bool:
        opens, bar_ns = self._table.open_ns, self._table.bar_ns
        before = int(np.searchsorted(opens, open_ns + bar_ns)) - 1
        return before >= 0 and int(opens[before]) > open_ns - bar_ns

    def _bars_of(self, day: SessionDay) -> int:
        first, last = np.searchsorted(self._table.open_ns, [day.start_ns, day.end_ns])
        return int(last - first)


def _expected(day: SessionDay, table: CandleTable, first_ns: int, last_ns: int) -> list[int]:
    """Return the opens of the day's bars within the file."""
    if table.timeframe_minutes == MINUTES_PER_DAY:
        opens = [day.start_ns] if day.intervals else []
    else:
        opens = [
            open_ns
            for interval in day.intervals
            for open_ns in range(interval.open_ns, interval.close_ns, table.bar_ns)
        ]
    return [open_ns for open_ns in opens if first_ns <= open_ns <= last_ns]


def _stretches(
    missing: Sequence[int], expected: Sequence[int], bar_ns: int
) -> Iterator[MissingBars]:
    """Join missing bars that follow each other in what was expected."""
    place = {open_ns: k for k, open_ns in enumerate(expected)}
    start = 0
    for k in range(1, len(missing) + 1):
        if k < len(missing) and place[missing[k]] == place[missing[k - 1]] + 1:
            continue
        yield MissingBars(
            start=utc_text(missing[start]),
            end=utc_text(missing[k - 1] + bar_ns),
            bars=k - start,
        )
        start = k


def _session_starts(table: CandleTable) -> IntArray:
    """Number the stretches of bars on one UTC day, [N]."""
    return table.open_ns // (MINUTES_PER_DAY * 60_000_000_000)


def _stale_runs(table: CandleTable) -> Runs:
    prices = np.stack([table.open, table.high, table.low, table.close])
    repeats = (np.diff(prices, axis=1) == 0).all(axis=0)  # [N - 1]: bar i + 1 repeats bar i
    edges = np.flatnonzero(np.diff(np.concatenate([[0], repeats.astype(np.int8), [0]])))
    runs = [
        (int(begin), int(end - begin))
        for begin, end in zip(edges[::2], edges[1::2], strict=True)
        if end - begin >= STALE_BARS
    ]
    longest = sorted(runs, key=lambda run: -run[1])[:EXAMPLES_PER_RULE]
    return Runs(
        runs=len(runs),
        longest_bars=max((length for _, length in runs), default=0),
        examples=tuple(
            f"{length} bars after {utc_text(int(table.open_ns[begin]))} repeat it"
            for begin, length in longest
        ),
    )


def _outliers(table: CandleTable) -> Outliers:
    """Find moves within a day beyond OUTLIER_DEVIATIONS robust deviations of all such moves."""
    moves = np.log(table.close[1:] / table.close[:-1])
    inside = np.diff(_session_starts(table)) == 0
    usual = moves[inside] if inside.any() else moves
    deviation = _MAD_TO_SIGMA * float(np.median(np.abs(usual - np.median(usual))))
    limit = OUTLIER_DEVIATIONS * deviation
    is_beyond = (np.abs(moves) > limit) & (inside | (not inside.any())) & (limit > 0)
    beyond: list[int] = np.flatnonzero(is_beyond).tolist()
    worst = sorted(beyond, key=lambda k: -abs(float(moves[k])))[:EXAMPLES_PER_RULE]
    return Outliers(
        bars=len(beyond),
        limit_bps=round(1e4 * limit, 2),
        examples=tuple(
            f"{utc_text(int(table.open_ns[k + 1]))}: {1e4 * moves[k]:+.1f} bps" for k in worst
        ),
    )
