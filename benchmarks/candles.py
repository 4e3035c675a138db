"""Which files of candles a benchmark is to run over."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from daemon.errors import DataError

_SUFFIXES: Final = (".csv", ".parquet")


def candle_files(given: Sequence[Path]) -> list[Path]:
    """Return the files named, and those of the folders named, by name."""
    paths: list[Path] = []
    for path in given:
        if path.is_dir():
            paths.extend(sorted(p for p in path.iterdir() if p.suffix in _SUFFIXES))
        else:
            paths.append(path)
    if not paths:
        raise DataError(f"{', '.join(map(str, given))}: no .csv or .parquet file there")
    return paths
