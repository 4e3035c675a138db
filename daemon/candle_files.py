"""Candle files as they stand: CSV or Parquet into one text per value and one instant per row.

Knows the layouts, the names of the columns and the ways a bar's time is written, and refuses what
cannot be read as such. Whether the candles make sense is for `history.py` to judge.

Three layouts, told apart by their time column; names are case-insensitive, other columns ignored:

- `datetime` or `epoch`: whole seconds since 1970 UTC, the open of the bar. A column `time` beside
  it must denote the same instants, in whatever zone.
- `time`: timestamps with a zone, or `dd.mm.yyyy HH:MM:SS.fff`, which is UTC by definition.
- `date`: days, `yyyy-mm-dd`, midnight UTC by definition.
"""

import csv
import hashlib
import io
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from daemon.errors import DataError

PRICES: Final = ("open", "high", "low", "close")
EPOCHS: Final = ("epoch", "datetime")
MISSING_WORDS: Final = frozenset({"", "nan", "none", "null", "na", "n/a", "nat", "<na>"})
NS_PER_SECOND: Final = 1_000_000_000

_START: Final = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_SECOND: Final = int(datetime(1990, 1, 1, tzinfo=UTC).timestamp())
END_SECOND: Final = int(datetime(2100, 1, 1, tzinfo=UTC).timestamp())
_PARQUET_MAGIC: Final = b"PAR1"
_PACKED: Final = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_WHOLE_NUMBER: Final = re.compile(r"[+-]?\d{1,40}(\.0*)?")  # int() refuses thousands of digits
_DAY_FIRST: Final = re.compile(r"(\d\d)\.(\d\d)\.(\d{4}) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?")
_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d")
_ISO: Final = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d.*")
_NS_PER_UNIT: Final = {"s": NS_PER_SECOND, "ms": 1_000_000, "us": 1_000, "ns": 1}
_KNOWN: Final = (*EPOCHS, "time", "date", *PRICES, "volume")
_TIME_REMEDY: Final = "give `datetime` or `epoch` in whole UTC seconds, or `time` with its zone"


@dataclass(frozen=True)
class RawCandles:
    """The rows of one file, in file order, nothing judged but their times."""

    file: str
    sha256: str
    row_word: str  # "line" of a CSV, its header being line 1; "row" of a Parquet file, from 1
    row_numbers: tuple[int, ...]
    open_ns: tuple[int | None, ...]  # None: missing or unreadable
    time_texts: tuple[str, ...]  # what stood in the time column
    values: dict[str, tuple[str, ...]]  # open, high, low, close and, if there is one, volume

    def where(self, position: int) -> str:
        """Name the row at `position` the way a person finds it in the file."""
        return f"{self.row_word} {self.row_numbers[position]}"


@dataclass(frozen=True)
class _Column:
    texts: tuple[str, ...]
    instants_ns: tuple[int | None, ...] | None = None  # of a timestamp column; naive ones as UTC
    has_zone: bool = False


@dataclass(frozen=True)
class _Grid:
    file: str
    row_word: str
    row_numbers: tuple[int, ...]
    labels: tuple[str, ...]  # of all columns, as in the file
    columns: dict[str, _Column]  # the known ones by their lower-case name

    def where(self, position: int) -> str:
        return f"{self.row_word} {self.row_numbers[position]}"


def read_candle_file(path: Path, *, timezone: str) -> RawCandles:
    """Read a CSV or Parquet file of candles; its content, not its name, says which it is.

    `timezone` is what a `time` column without a zone is read in where `epoch` stands beside it.
    """
    zone = _zone(timezone)
    content = _content(path)
    grid = (
        _parquet_grid(path, content) if content[:4] == _PARQUET_MAGIC else _csv_grid(path, content)
    )
    epoch = next((name for name in EPOCHS if _holds_text(grid, name)), None)
    moment = next((name for name in ("time", *EPOCHS, "date") if name in grid.columns), None)
    _refuse_missing_columns(grid, has_time=moment is not None)
    if not grid.row_numbers:
        raise DataError(f"{path}: is empty: a header and no rows; fetch the candles again")
    if epoch is not None:
        open_ns = _epochs(grid, epoch)
        _refuse_other_instants(grid, epoch, open_ns, zone)
    else:
        open_ns = _moments(grid, str(moment))
    return RawCandles(
        file=str(path),
        sha256=hashlib.sha256(content).hexdigest(),
        row_word=grid.row_word,
        row_numbers=grid.row_numbers,
        open_ns=open_ns,
        time_texts=grid.columns[epoch or str(moment)].texts,
        values={
            name: grid.columns[name].texts for name in (*PRICES, "volume") if name in grid.columns
        },
    )


def utc_text(instant_ns: int) -> str:
    """Write an instant as text in UTC, to the millisecond where it has any."""
    try:
        whole = _START + timedelta(microseconds=instant_ns // 1000)
    except OverflowError:
        return f"{instant_ns} ns"
    return whole.isoformat(sep=" ", timespec="milliseconds" if whole.microsecond else "seconds")


def _zone(timezone: str) -> ZoneInfo:
    try:
        return ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise DataError(
            f"timezone {timezone!r} is not known; use an IANA name such as Asia/Kolkata"
        ) from error


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the path") from error
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give a readable CSV or Parquet file"
        ) from error
    if not content.strip():
        raise DataError(f"{path}: is empty; fetch the candles again")
    return content


def _csv_grid(path: Path, content: bytes) -> _Grid:
    not_a_table = f"{path}: is not a table of candles"
    remedy = "give a CSV file separated by commas, or a Parquet file"
    for magic, kind in _PACKED.items():
        if content.startswith(magic):
            raise DataError(f"{not_a_table}: it is packed with {kind}; unpack it first")
    if path.suffix.lower() in {".parquet", ".pq"}:
        raise DataError(
            f"{not_a_table}: named {path.suffix}, but does not begin with PAR1; {remedy}"
        )
    try:
        text = content.decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [(reader.line_num, fields) for fields in reader if any(map(str.strip, fields))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{not_a_table} ({error}); {remedy}") from error
    if not lines:
        raise DataError(f"{path}: is empty; fetch the candles again")
    (_, header), *rows = lines
    if "\0" in text or len(header) < 2:
        raise DataError(f"{not_a_table}: it begins with {text[:40]!r}; {remedy}")
    for line, fields in rows:
        if len(fields) > len(header):
            raise DataError(
                f"{path}: line {line} has {len(fields)} values under {len(header)} column names;"
                " repair that line"
            )

    positions = _positions(path, tuple(header))
    columns = {
        name: _Column(tuple(fields[at].strip() if at < len(fields) else "" for _, fields in rows))
        for name, at in positions.items()
    }
    return _Grid(str(path), "line", tuple(line for line, _ in rows), tuple(header), columns)


def _parquet_grid(path: Path, content: bytes) -> _Grid:
    try:
        table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
        labels = tuple(table.schema.names)
        positions = _positions(path, labels)
        columns = {name: _arrow_column(table.column(at)) for name, at in positions.items()}
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: damaged text
        raise DataError(
            f"{path}: is not a table of candles: damaged Parquet ({error}); copy the file again"
        ) from error
    return _Grid(str(path), "row", tuple(range(1, table.num_rows + 1)), labels, columns)


def _positions(path: Path, labels: tuple[str, ...]) -> dict[str, int]:
    """Return where the known columns stand; a name that stands twice is refused."""
    names = [label.strip().lower() for label in labels]
    if twice := [name for name in _KNOWN if names.count(name) > 1]:
        raise DataError(f"{path}: column {twice[0]} is there twice; keep one")
    return {name: names.index(name) for name in _KNOWN if name in names}


def _arrow_column(column: Any) -> _Column:
    kind = column.type
    if pa.types.is_timestamp(kind):
        scale = _NS_PER_UNIT[kind.unit]
        numbers = column.cast(pa.int64()).to_pylist()
        instants = tuple(None if number is None else number * scale for number in numbers)
        return _Column(
            texts=tuple("" if instant is None else utc_text(instant) for instant in instants),
            instants_ns=instants,
            has_zone=kind.tz is not None,
        )
    if pa.types.is_float32(kind):  # the shortest text of a single, not of the double it becomes
        return _Column(tuple(str(value) for value in column.to_numpy().astype(np.float32)))
    return _Column(tuple("" if value is None else str(value) for value in column.to_pylist()))


def _holds_text(grid: _Grid, name: str) -> bool:
    return name in grid.columns and grid.columns[name].instants_ns is None


def _refuse_missing_columns(grid: _Grid, *, has_time: bool) -> None:
    missing = [] if has_time else ["datetime (or epoch, time, date)"]
    missing += [name for name in PRICES if name not in grid.columns]
    if missing:
        found = ", ".join(label or "(nameless)" for label in grid.labels)
        raise DataError(
            f"{grid.file}: lacks the column {', '.join(missing)}; found: {found};"
            " name the columns so, separated by commas"
        )


def _epochs(grid: _Grid, name: str) -> tuple[int | None, ...]:
    column = grid.columns[name]
    seconds = tuple(
        int(text.partition(".")[0]) if _WHOLE_NUMBER.fullmatch(text) else None
        for text in column.texts
    )
    if not any(second is not None for second in seconds):
        raise DataError(
            f"{grid.file}: {grid.where(0)}, column {name} must be whole seconds since 1970 UTC,"
            f" was {column.texts[0][:40]!r}; convert it"
        )
    for position, second in enumerate(seconds):
        if second is not None and not FIRST_SECOND <= second < END_SECOND:
            _refuse_instant(grid, name, position, second)
    return tuple(None if second is None else second * NS_PER_SECOND for second in seconds)


def _refuse_instant(grid: _Grid, name: str, position: int, number: int) -> None:
    where = f"{grid.file}: {grid.where(position)}, column {name}: {number}"
    for unit, per_second in (
        ("milliseconds", 10**3),
        ("microseconds", 10**6),
        ("nanoseconds", 10**9),
    ):
        if FIRST_SECOND <= number // per_second < END_SECOND:
            raise DataError(f"{where} looks like {unit}; divide the column by {per_second}")
    raise DataError(f"{where} is not an instant between 1990 and 2100; give whole UTC seconds")


def _refuse_other_instants(
    grid: _Grid, name: str, open_ns: tuple[int | None, ...], zone: ZoneInfo
) -> None:
    """Refuse a `time` column that denotes other instants than the epoch column `name` does."""
    if "time" not in grid.columns:
        return
    column = grid.columns["time"]
    instants, has_zone = _instants(column, zone)
    for position, (ours, theirs) in enumerate(zip(open_ns, instants, strict=True)):
        if ours is None or theirs is None or ours == theirs:
            continue
        hours = (theirs - ours) / (3600 * NS_PER_SECOND)
        reading = "" if has_zone[position] else f" (naive, read as {zone.key})"
        raise DataError(
            f"{grid.file}: {grid.where(position)}, wrong timezone: time {column.texts[position]!r}"
            f"{reading} is {utc_text(theirs)}, {hours:+.2f} h off the {name}"
            f" {ours // NS_PER_SECOND} ({utc_text(ours)}); correct the zone of time, or drop it"
        )


def _moments(grid: _Grid, name: str) -> tuple[int | None, ...]:
    column = grid.columns[name]
    instants, has_zone = _instants(column, None)
    if all(instant is None for instant in instants):
        raise DataError(
            f"{grid.file}: {grid.where(0)}, column {name}: {column.texts[0]!r} is not a time;"
            f" {_TIME_REMEDY}"
        )
    for position, instant in enumerate(instants):
        if instant is None:
            continue
        if not has_zone[position]:
            raise DataError(
                f"{grid.file}: {grid.where(position)}, column {name}:"
                f" {column.texts[position]!r} has no timezone; {_TIME_REMEDY}"
            )
        if not FIRST_SECOND <= instant // NS_PER_SECOND < END_SECOND:
            _refuse_instant(grid, name, position, instant // NS_PER_SECOND)
    return instants


def _instants(
    column: _Column, zone: ZoneInfo | None
) -> tuple[tuple[int | None, ...], tuple[bool, ...]]:
    """Return the instants of a time column and which of them stand with their zone.

    Times without one are read in `zone`, or as UTC when that is None.
    """
    if column.instants_ns is None:
        moments = tuple(_moment(text) for text in column.texts)
        has_zone = tuple(moment is not None and moment.tzinfo is not None for moment in moments)
        return tuple(None if moment is None else _ns(moment, zone) for moment in moments), has_zone
    instants = column.instants_ns
    if zone is not None and not column.has_zone:
        instants = tuple(
            None if instant is None else _moved_from_utc(instant, zone) for instant in instants
        )
    return instants, (column.has_zone,) * len(instants)


def _moved_from_utc(instant_ns: int, zone: ZoneInfo) -> int:
    """Read in `zone` the wall time that `instant_ns` shows in UTC."""
    try:
        moment = _START + timedelta(microseconds=instant_ns // 1000)
        return _ns(moment.replace(tzinfo=None), zone)
    except OverflowError:
        return instant_ns  # thousands of years off: refused as such, whatever the zone


def _moment(text: str) -> datetime | None:
    """Read one written time; day-first times and plain days are UTC. None: not a time."""
    try:
        if parts := _DAY_FIRST.fullmatch(text):
            day, month, year, hour, minute, second = map(int, parts.groups()[:6])
            fraction = int((parts[7] or "").ljust(6, "0"))
            return datetime(year, month, day, hour, minute, second, fraction, tzinfo=UTC)
        if _DAY.fullmatch(text):
            return datetime.fromisoformat(text).replace(tzinfo=UTC)
        return datetime.fromisoformat(text) if _ISO.fullmatch(text) else None
    except ValueError:
        return None


def _ns(moment: datetime, zone: ZoneInfo | None) -> int:
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=zone or UTC)
    return (aware - _START) // timedelta(microseconds=1) * 1000
