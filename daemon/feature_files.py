"""Feature files: the contract's frames on disk, `features_{Symbol}_{minutes}.csv` and their copies.

The names are the index: a folder's files are its list of tasks. A Parquet copy in the sub-folder
`parquet` is made from the CSV on first use and again whenever the CSV is newer; both read alike.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from daemon.candle_schema import FRAME, validated
from daemon.errors import DataError
from daemon.feature_frame import FRAME_COLUMNS, INDEX_NAME, feature_frame
from daemon.history import CandleTable

PREFIX: Final = "features_"
COPIES: Final = "parquet"
_NAME: Final = re.compile(r"(?:features_)?(?P<symbol>.+)_(?P<minutes>\d+)")
_ENDS_IN_DIGITS: Final = re.compile(r"_\d+$")


@dataclass(frozen=True, order=True)
class FeatureTask:
    """One file of features, as its name tells."""

    symbol: str
    minutes: int
    path: Path


def feature_tasks(folder: Path) -> list[FeatureTask]:
    """List the CSV files of a folder, raw or final, whose names tell symbol and timeframe."""
    return sorted(
        FeatureTask(name["symbol"], int(name["minutes"]), path)
        for path in folder.glob("*.csv")
        if (name := _NAME.fullmatch(path.stem))
    )


def base_symbol(name: str) -> str:
    """Return a symbol without the timeframe that may hang on it: Bank_Nifty_5 is Bank_Nifty."""
    return _ENDS_IN_DIGITS.sub("", name)


def write_features(table: CandleTable, folder: Path) -> Path:
    """Write the frame of a table as the contract names it, and return where."""
    frame = validated(feature_frame(table), FRAME, table.symbol)
    if frame.empty:
        raise DataError(
            f"{table.symbol}: {len(table)} bars are too few for a row of features; at least"
            " 200 are needed"
        )
    path = folder / f"{PREFIX}{base_symbol(table.symbol)}_{table.timeframe_minutes}.csv"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _replace(path, frame.to_csv().encode())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); give a folder that can"
        ) from error
    return path


def load_features(folder: Path, symbol: str, minutes: int | None = None) -> pd.DataFrame:
    """Return the frame of a symbol, with or without `_minutes` at its end; empty if unknown.

    Columns beyond the contract's stay, behind them. Raises DataError for a file that breaks the
    schema.
    """
    wanted = base_symbol(symbol)
    if minutes is None and wanted != symbol:
        minutes = int(symbol.rpartition("_")[2])
    for task in feature_tasks(folder):
        if task.symbol == wanted and minutes in {None, task.minutes}:
            return _frame_of(task.path)
    return pd.DataFrame(columns=list(FRAME_COLUMNS))


def _frame_of(path: Path) -> pd.DataFrame:
    copy = path.parent / COPIES / f"{path.stem}.parquet"
    if copy.is_file() and copy.stat().st_mtime_ns >= path.stat().st_mtime_ns:
        return pd.read_parquet(copy)
    try:
        read = pd.read_csv(path, index_col=0, parse_dates=True)
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: cannot be read as features ({error}); make it again") from error
    read.index.name = INDEX_NAME
    if missing := [name for name in FRAME_COLUMNS if name not in read.columns]:
        raise DataError(f"{path}: lacks the columns {', '.join(missing)}; make it again")
    floats = {name: "float64" for name in FRAME_COLUMNS if name != "datetime_epoch"}
    more = [name for name in read.columns if name not in FRAME_COLUMNS]
    frame = validated(read[[*FRAME_COLUMNS, *more]].astype(floats), FRAME, str(path))
    try:
        copy.parent.mkdir(exist_ok=True)
        _replace(copy, frame.to_parquet())
    except OSError as error:
        raise DataError(f"{copy}: cannot be written ({error.strerror})") from error
    return frame


def _replace(path: Path, content: bytes) -> None:
    """Write beside and rename, so that a reader never sees half a file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(path)
