"""Demo data: where the real candles lie that a demo runs on when it is given none.

They come with the package gym-anytrading, which is found but never imported: importing it would
load gymnasium and pandas for the sake of one file.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from daemon.errors import DataError

PACKAGE: Final = "gym_anytrading"
REMEDY: Final = "pip install gym-anytrading==2.0.0, or name a file with --data"


@dataclass(frozen=True)
class DemoData:
    """A file of candles with what a reader should know of it."""

    path: Path
    instrument: str
    timeframe: str  # minutes
    label: str
    licence: str


def demo_candles(package: str = PACKAGE) -> DemoData:
    """Find the hourly EUR/USD candles of 2017; DataError names the remedy when they are absent."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"no demo candles: the package {package} is not installed; {REMEDY}")
    folder = Path(spec.submodule_search_locations[0])
    path = folder / "datasets" / "data" / "FOREX_EURUSD_1H_ASK.csv"
    if not path.is_file():
        raise DataError(f"no demo candles: {path} is missing; {REMEDY}")
    return DemoData(
        path=path,
        instrument="EURUSD",
        timeframe="60",
        label="EUR/USD, hourly ask candles of 2017 (real market data)",
        licence="shipped with gym-anytrading under the MIT licence",
    )
