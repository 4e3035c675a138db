"""Which files of candles a benchmark is to run over, and which of their bars."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from daemon.continuity import auction_bars, without
from daemon.data_command import instrument_of
from daemon.errors import DataError
from daemon.history import CandleTable, load_candles
from daemon.settings import load_instruments, load_sessions

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


def continuous_candles(path: Path) -> tuple[CandleTable, int]:
    """Load a file less the bars of auctions, which no model reads, and say how many those were."""
    table = load_candles(path)
    instrument = instrument_of(table.symbol, load_instruments(None, demo=True).catalogue)
    auction = auction_bars(table, load_sessions(None), instrument)
    return without(table, auction), int(auction.sum())
