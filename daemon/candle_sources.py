"""Candles that do not come from tables: the broker's history, and our own recordings.

Both become rows of text and instants, as a file's do, and go through the checks of `history`.
"""

import hashlib
import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from actors.messages import Bar
from daemon.candle_files import END_SECOND, FIRST_SECOND, NS_PER_SECOND, PRICES, RawCandles
from daemon.errors import DataError, ReplayError
from daemon.history import CandleTable, checked_candles, load_candles, name_and_minutes
from daemon.journal import RecordedEntry, read_records, read_seal

_COLUMNS: Final = (*PRICES, "volume")
_RECORDS: Final = "records"


def load_any(path: Path, instrument: str | None = None) -> CandleTable:
    """Load a CSV or Parquet file, a JSON answer of the broker's history, or a session's folder.

    instrument: of a recording that holds several. Raises DataError with a remedy.
    """
    if path.is_dir():
        return candles_of_recording(path, instrument)
    if path.suffix.lower() == ".json":
        symbol, _ = name_and_minutes(path)
        return candles_of_history(_history_rows(path), instrument or symbol, str(path))
    return load_candles(path)


def candles_of_history(
    rows: Sequence[Sequence[object]], symbol: str, source: str = "broker history"
) -> CandleTable:
    """Check the broker's rows [epoch, open, high, low, close, volume(, open interest)].

    Epochs are the opens of bars in UTC seconds; volume is kept. Raises DataError for rows that are
    none, or too many that cannot be candles.
    """
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, list | tuple) or len(row) < 1 + len(_COLUMNS):
            raise DataError(
                f"{source}: row {number} must be [epoch, open, high, low, close, volume], was"
                f" {row!r}; ask the broker again"
            )
    instants = tuple(_instant(row[0]) for row in rows)
    texts = {
        name: tuple(_text(row[place]) for row in rows)
        for place, name in enumerate(_COLUMNS, start=1)
    }
    return checked_candles(_raw(source, instants, texts), symbol)


def candles_of_recording(folder: Path, instrument: str | None = None) -> CandleTable:
    """Check the bars that a sealed session recorded, of one instrument.

    A recording that is open, torn or changed is refused: its bars could not be told from others.
    """
    try:
        if read_seal(folder) is None:
            raise DataError(
                f"{folder}: is no sealed recording; close the session in order, or name a file"
            )
        bars = [
            record.envelope.message
            for record in read_records(folder)
            if isinstance(record, RecordedEntry) and isinstance(record.envelope.message, Bar)
        ]
    except (ReplayError, OSError) as error:
        raise DataError(f"{folder}: {error}") from error
    names = sorted({bar.instrument for bar in bars})
    if instrument is None and len(names) > 1:
        raise DataError(f"{folder}: holds {', '.join(names)}; say which one")
    wanted = instrument if instrument is not None else next(iter(names), "")
    chosen = [bar for bar in bars if bar.instrument == wanted]
    if not chosen:
        held = ", ".join(names) or "none"
        raise DataError(f"{folder}: has no bars of {wanted or 'any instrument'}, only of {held}")
    texts = {name: tuple(str(getattr(bar, name)) for bar in chosen) for name in _COLUMNS}
    digest = hashlib.sha256((folder / _RECORDS).read_bytes()).hexdigest()
    instants = tuple(bar.open_ns for bar in chosen)
    return checked_candles(_raw(str(folder), instants, texts, digest), wanted)


def _history_rows(path: Path) -> list[Any]:
    """Return the rows of a stored answer: the whole object, or its list of candles."""
    try:
        answer = json.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: is no JSON that can be read ({error})") from error
    rows = answer.get("candles") if isinstance(answer, dict) else answer
    if not isinstance(rows, list) or not rows:
        raise DataError(
            f"{path}: has no candles; store the whole answer of the broker's history call"
        )
    return rows


def _raw(
    source: str,
    instants: tuple[int | None, ...],
    texts: dict[str, tuple[str, ...]],
    digest: str | None = None,
) -> RawCandles:
    if digest is None:
        digest = hashlib.sha256(json.dumps([instants, texts], sort_keys=True).encode()).hexdigest()
    return RawCandles(
        file=source,
        sha256=digest,
        row_word="row",
        row_numbers=tuple(range(1, len(instants) + 1)),
        open_ns=instants,
        time_texts=tuple("" if instant is None else str(instant) for instant in instants),
        values=texts,
    )


def _instant(epoch: object) -> int | None:
    """Read whole UTC seconds since 1990; None for others: such a row counts as one without time."""
    if isinstance(epoch, bool) or not isinstance(epoch, int | float | Decimal | str):
        return None
    try:
        seconds = Decimal(str(epoch))
    except ArithmeticError:
        return None
    if not seconds.is_finite() or not FIRST_SECOND <= seconds < END_SECOND:
        return None
    return int(seconds) * NS_PER_SECOND if seconds == int(seconds) else None


def _text(value: object) -> str:
    return "" if value is None else str(value)
