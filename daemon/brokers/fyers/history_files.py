"""Download candles from Fyers into files of the contract's raw form; go on where they end or begin.

`{Symbol}_{minutes}.csv`: a nameless index, datetime in epoch seconds UTC, open, high, low, close,
volume, as the broker writes them. Only finished candles are kept, each once. Whether they make
sense is for history.py to judge when they are read.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from daemon.brokers.fyers.rest import FyersRest
from daemon.errors import DataError

HEADER: Final = ",datetime,open,high,low,close,volume"
MINUTES_PER_DAY: Final = 1440
_SECONDS_PER_DAY: Final = 86_400
_INTRADAY_DAYS, _DAILY_DAYS = 100, 366  # the most that one call may ask for
_REMEDY: Final = "move the file away, or fetch into another folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Candles of one symbol and length, opening in [first_s, end_s), epoch seconds."""

    name: str  # as in the file's name
    symbol: str  # the broker's
    minutes: int
    first_s: int
    end_s: int

    @property
    def file_name(self) -> str:
        return f"{self.name}_{self.minutes}.csv"


@dataclass(slots=True)
class Stored:
    """What a file holds."""

    path: Path
    rows: int = 0
    first_s: int | None = None
    last_s: int | None = None
    added: int = 0  # rows, by this download


async def download(
    rest: FyersRest,
    wanted: Wanted,
    folder: Path,
    now_s: Callable[[], int],
    on_part: Callable[[int, int, Stored], None] = lambda _first_s, _last_s, _stored: None,
) -> Stored:
    """Add what the file lacks after its end, then before its beginning.

    It goes part by part, each next to what is there and on the disk before the next one: what lies
    between the file and the span wanted is fetched too. What the broker leaves out of an answer is
    not asked for again. `on_part` hears the first and last second of each part. Raises
    DataError for a file that is not of this form or cannot be written, and what FyersRest raises;
    what was written stays and is the start of the next try.
    """
    stored = open_stored(folder / wanted.file_name)
    is_daily = wanted.minutes == MINUTES_PER_DAY
    part_s = (_DAILY_DAYS if is_daily else _INTRADAY_DAYS) * _SECONDS_PER_DAY

    async def part(begin_s: int, last_s: int) -> list[tuple[int, str]]:
        resolution = "D" if is_daily else str(wanted.minutes)
        rows = await rest.history(wanted.symbol, resolution, begin_s, last_s)
        finished_s = now_s() - wanted.minutes * 60  # a candle that opened later still changes
        return _fresh(rows, wanted, begin_s, min(last_s, finished_s))

    had_from_s = stored.first_s
    begin_s = wanted.first_s if stored.last_s is None else stored.last_s + 1
    while begin_s < wanted.end_s:
        last_s = min(begin_s + part_s, wanted.end_s) - 1
        _append(stored, await part(begin_s, last_s))
        on_part(begin_s, last_s, stored)
        begin_s = last_s + 1
    end_s = wanted.first_s if had_from_s is None else had_from_s
    # The first candle of a day opens hours after the day begins: nothing is missing there.
    while end_s - wanted.first_s >= _SECONDS_PER_DAY:
        begin_s = max(end_s - part_s, wanted.first_s)
        _prepend(stored, await part(begin_s, end_s - 1))
        on_part(begin_s, end_s - 1, stored)
        end_s = begin_s
    return stored


def open_stored(path: Path) -> Stored:
    """Read what a file holds, without a last line that was cut off while it was written."""
    stored = Stored(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return stored
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {_REMEDY}") from error
    whole = content[: content.rfind(b"\n") + 1]
    head, *lines = whole.decode(errors="replace").splitlines() or [HEADER]
    if head != HEADER:
        raise DataError(f"{path}: begins with {head[:60]!r}, not with {HEADER!r}; {_REMEDY}")
    for number, line in enumerate(lines, start=2):
        cells = line.split(",")
        if len(cells) != HEADER.count(",") + 1 or not cells[1].isdigit():
            raise DataError(f"{path}: line {number} is no candle, was {line[:60]!r}; {_REMEDY}")
        second = int(cells[1])
        if stored.last_s is not None and second <= stored.last_s:
            raise DataError(f"{path}: line {number} is not later than the one before; {_REMEDY}")
        stored.first_s = second if stored.first_s is None else stored.first_s
        stored.last_s, stored.rows = second, stored.rows + 1
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return stored


def _fresh(rows: Sequence[Any], wanted: Wanted, first_s: int, last_s: int) -> list[tuple[int, str]]:
    """Return the rows that open in [first_s, last_s] by time, each time once."""
    found: dict[int, str] = {}
    for row in rows:
        if not isinstance(row, list | tuple) or len(row) < 6 or not _are_numbers(row[:6]):
            raise DataError(
                f"{wanted.symbol}: the broker's candle must be six numbers, was {row!r}; try again"
            )
        second = int(row[0])
        if first_s <= second <= last_s:
            found.setdefault(second, ",".join(str(value) for value in row[1:6]))
    return sorted(found.items())


def _are_numbers(values: Sequence[object]) -> bool:
    return all(isinstance(value, int | Decimal) and not isinstance(value, bool) for value in values)


def _prepend(stored: Stored, rows: Sequence[tuple[int, str]]) -> None:
    """Write the file anew with rows before those it has; it is the old or the new, never half."""
    if not rows:
        return
    path, partial = stored.path, stored.path.with_suffix(".csv.new")
    try:
        old = [line.split(",", 2)[1:] for line in path.read_text("utf-8").splitlines()[1:]]
        new = [[str(second), rest] for second, rest in rows]
        with partial.open("w", encoding="utf-8", newline="") as file:
            file.write(HEADER + "\n")
            file.writelines(
                f"{number},{second},{rest}\n" for number, (second, rest) in enumerate(new + old)
            )
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); {_REMEDY}") from error
    stored.rows += len(rows)
    stored.added += len(rows)
    stored.first_s = rows[0][0]


def _append(stored: Stored, rows: Sequence[tuple[int, str]]) -> None:
    if not rows:
        return
    path = stored.path
    lines = [f"{stored.rows + place},{second},{rest}" for place, (second, rest) in enumerate(rows)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", newline="") as file:
            if file.tell() == 0:
                lines.insert(0, HEADER)
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); {_REMEDY}") from error
    stored.rows += len(rows)
    stored.added += len(rows)
    stored.first_s = rows[0][0] if stored.first_s is None else stored.first_s
    stored.last_s = rows[-1][0]
