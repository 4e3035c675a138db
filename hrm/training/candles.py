"""Candles: files read, and refused when doubtful.

Three file formats are known: the raw CSV of the existing system (`datetime` in epoch seconds), the
Parquet columns `epoch, open, high, low, close, volume`, and the CSV of gym_anytrading
(`Time,Open,High,Low,Close,Volume`, dd.mm.yyyy, UTC). Times in files are those of the bar's open.
What is computed from candles is for `market_table`.
"""

import csv
import hashlib
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hrm.features import checked_bars

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

NS_PER_SECOND = 1_000_000_000
NS_PER_MINUTE = 60 * NS_PER_SECOND
MINIMUM_BARS = 300  # below: too few rows are left after warm-up, purge and embargo

_TIME_COLUMNS = ("epoch", "datetime", "time")
_PRICE_COLUMNS = ("open", "high", "low", "close")


class DataQualityError(ValueError):
    """The candles are not fit to train on; the message lists every reason."""


@dataclass(frozen=True, slots=True)
class Candles:
    """Hold closed bars of one instrument, oldest first, [N] each, with where they came from."""

    instrument: str
    timeframe: str  # minutes, as text: "5", "60"
    bar_ns: int
    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    volume: FloatArray  # 0 = unknown
    close_ns: IntArray
    source: str = "memory"
    sha256: str = ""

    def __len__(self) -> int:
        return len(self.close)

    def mirrored(self) -> "Candles":
        """Return the same market quoted the other way round: every rise a fall of equal size.

        For a currency pair this is the inverse pair. Trained on beside the original, it keeps the
        drift of one history, which is a single observation, from being learned as a rule.
        """
        return replace(
            self,
            open=self._mirror / self.open,
            high=self._mirror / self.low,
            low=self._mirror / self.high,
            close=self._mirror / self.close,
        )

    @property
    def _mirror(self) -> float:
        return float(self.close[0]) ** 2  # so that prices stay in the same range


def embedded_candles_path() -> Path:
    """Find the hourly EUR/USD candles inside gym_anytrading, without importing the package."""
    spec = importlib.util.find_spec("gym_anytrading")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "no training data: give --data FILE, or install the package gym-anytrading, whose "
            "hourly EUR/USD candles are the default"
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    path = folder / "datasets" / "data" / "FOREX_EURUSD_1H_ASK.csv"
    if not path.is_file():
        raise FileNotFoundError(f"the installed gym_anytrading has no candles at {path}")
    return path


def read_candles(path: Path, instrument: str | None = None) -> Candles:
    """Read one file of candles; the name tells the instrument unless one is given.

    Rows are sorted by time, and exact repetitions dropped, as the existing system does. Anything
    else that is wrong is refused with the row's number (1 = first row of data).
    """
    if not path.is_file():
        raise FileNotFoundError(f"no candle file at {path}")
    columns = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    if not len(columns["open_s"]):
        raise DataQualityError(f"{path.name} holds no candles")
    order = np.argsort(columns["open_s"], kind="stable")
    columns = {name: values[order] for name, values in columns.items()}
    columns = _without_repetitions(path.name, columns)
    bar_s = _bar_seconds(path.name, columns["open_s"])
    close_ns = (columns["open_s"].astype(np.int64) + bar_s) * NS_PER_SECOND
    try:
        o, h, l, c, v, t = checked_bars(  # noqa: E741
            columns["open"],
            columns["high"],
            columns["low"],
            columns["close"],
            columns["volume"],
            close_ns,
        )
    except ValueError as error:
        raise DataQualityError(f"{path.name}: {error} (rows sorted by time, from 0)") from error
    return Candles(
        instrument=instrument or _instrument_name(path),
        timeframe=str(bar_s // 60),
        bar_ns=bar_s * NS_PER_SECOND,
        open=o,
        high=h,
        low=l,
        close=c,
        volume=v,
        close_ns=t,
        source=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def check_quality(candles: Candles) -> None:
    """Refuse candles that would teach nonsense, listing every reason at once."""
    reasons = []
    count = len(candles)
    if count < MINIMUM_BARS:
        reasons.append(f"only {count} bars, at least {MINIMUM_BARS} are needed")
    if count > 1:
        returns = np.diff(np.log(candles.close))
        frozen = float(np.mean(candles.high == candles.low))
        if frozen > 0.2:
            reasons.append(f"{frozen:.0%} of the bars never moved (high equals low), allowed 20%")
        still = float(np.mean(returns == 0))
        if still > 0.5:
            reasons.append(f"{still:.0%} of the closes repeat the one before, allowed 50%")
        widest = int(np.argmax(np.abs(returns)))
        if abs(returns[widest]) > 0.3:
            reasons.append(
                f"the close jumps from {candles.close[widest]} to {candles.close[widest + 1]} in "
                f"row {widest + 1}: more than 30%, which looks like a split or another instrument"
            )
        gaps = np.diff(candles.close_ns) / candles.bar_ns
        longest = int(np.argmax(gaps))
        if gaps[longest] * candles.bar_ns > 31 * 86_400 * NS_PER_SECOND:
            days = gaps[longest] * candles.bar_ns / (86_400 * NS_PER_SECOND)
            reasons.append(f"{days:.0f} days are missing before row {longest + 1}, allowed 31")
        off_grid = np.mean(np.diff(candles.close_ns) % NS_PER_MINUTE != 0)
        if off_grid:
            reasons.append(f"{off_grid:.1%} of the bars do not begin on a whole minute")
    if reasons:
        raise DataQualityError(
            f"{candles.instrument} ({candles.source}) is not fit to train on: " + "; ".join(reasons)
        )


def _read_parquet(path: Path) -> dict[str, NDArray[np.generic]]:
    import pyarrow.parquet as parquet  # noqa: PLC0415 - CSV needs no Arrow; it loads slowly

    table = parquet.read_table(path)
    names = {name.lower(): name for name in table.column_names}
    if "epoch" not in names:
        raise DataQualityError(
            f"{path.name} has no column epoch (bar open, UTC seconds), only "
            f"{', '.join(table.column_names)}"
        )
    _require_prices(path.name, names)
    columns = {
        name: table.column(names[name]).to_numpy().astype(np.float64) for name in _PRICE_COLUMNS
    }
    columns["open_s"] = table.column(names["epoch"]).to_numpy().astype(np.int64)
    volume = names.get("volume")
    columns["volume"] = (
        np.zeros(len(columns["open"]))
        if volume is None
        else table.column(volume).to_numpy().astype(np.float64)
    )
    return columns


def _read_csv(path: Path) -> dict[str, NDArray[np.generic]]:
    with path.open(newline="", encoding="utf-8") as lines:
        reader = csv.reader(lines)
        header = [name.strip().lower() for name in next(reader, [])]
        names = {name: i for i, name in enumerate(header)}
        time_column = next((name for name in _TIME_COLUMNS if name in names), None)
        if time_column is None:
            raise DataQualityError(
                f"{path.name} has no time column ({', '.join(_TIME_COLUMNS)}), only "
                f"{', '.join(header) or 'nothing'}"
            )
        _require_prices(path.name, names)
        times, rows = [], []
        for number, row in enumerate(reader, 1):
            try:
                times.append(_epoch_seconds(row[names[time_column]]))
                prices = [float(row[names[name]]) for name in _PRICE_COLUMNS]
                volume = float(row[names["volume"]]) if "volume" in names else 0.0
            except (ValueError, IndexError) as error:
                raise DataQualityError(f"{path.name}, row {number}: {error}") from error
            rows.append([*prices, volume])
    values = np.array(rows, dtype=np.float64).reshape(len(rows), 5)
    columns: dict[str, NDArray[np.generic]] = {
        name: values[:, i] for i, name in enumerate((*_PRICE_COLUMNS, "volume"))
    }
    columns["open_s"] = np.array(times, dtype=np.int64)
    return columns


def _epoch_seconds(text: str) -> int:
    """Read epoch seconds, or dd.mm.yyyy HH:MM:SS.fff in UTC."""
    if re.fullmatch(r"\d+(\.0*)?", text.strip()):
        return int(float(text))
    try:
        moment = datetime.strptime(text.strip(), "%d.%m.%Y %H:%M:%S.%f").replace(tzinfo=UTC)
    except ValueError as error:
        raise ValueError(
            f"the time must be epoch seconds or dd.mm.yyyy HH:MM:SS.fff in UTC, was {text!r}"
        ) from error
    return int(moment.timestamp())


def _require_prices(source: str, names: Mapping[str, object]) -> None:
    missing = [name for name in _PRICE_COLUMNS if name not in names]
    if missing:
        raise DataQualityError(f"{source} has no column {', '.join(missing)}")


def _without_repetitions(
    source: str, columns: dict[str, NDArray[np.generic]]
) -> dict[str, NDArray[np.generic]]:
    """Drop rows that repeat the one before exactly; refuse two bars that disagree about a time."""
    times = columns["open_s"]
    repeats = np.concatenate([[False], np.diff(times.astype(np.int64)) == 0])
    for name in _PRICE_COLUMNS:
        values = columns[name].astype(np.float64)
        differs = np.concatenate([[False], values[1:] != values[:-1]]) & repeats
        if differs.any():
            row = int(np.argmax(differs))
            raise DataQualityError(
                f"{source} has two bars at epoch {times[row]} that disagree: {name} "
                f"{values[row - 1]} and {values[row]}"
            )
    return {name: values[~repeats] for name, values in columns.items()}


def _bar_seconds(source: str, open_s: NDArray[np.generic]) -> int:
    if len(open_s) < 2:
        raise DataQualityError(f"{source} has {len(open_s)} bar; the bar length needs at least two")
    steps, counts = np.unique(np.diff(open_s.astype(np.int64)), return_counts=True)
    most = int(np.argmax(counts))
    seconds = int(steps[most])
    if counts[most] * 2 < counts.sum() or seconds % 60:
        raise DataQualityError(
            f"{source} has no steady bar length: the most frequent step is {seconds} s, in "
            f"{counts[most]} of {counts.sum()} rows"
        )
    return seconds


def _instrument_name(path: Path) -> str:
    """Take the name from Bank_Nifty_5.csv, nifty_5m.parquet or FOREX_EURUSD_1H_ASK.csv."""
    stem = path.stem
    if match := re.fullmatch(r"FOREX_([A-Z]+)_.*", stem):
        return match[1]
    if match := re.fullmatch(r"(?:features_)?(.+)_\d+[mh]?", stem):
        return match[1]
    return stem
