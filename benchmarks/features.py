"""Are the features right, fast and blind to the future?

Every bar of a file goes through the live path (`FeatureStream` for the model, `FrameStream` for the
contract's frame) and is compared with the batch that training uses; the frame also with TA-Lib, and
everything with histories that end earlier or begin later.

    python -m benchmarks.features --json --data FILE
    python -m benchmarks.features --json --data FOLDER --out RESULT.json
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import talib
import typer
from numpy.typing import NDArray

from benchmarks.candles import candle_files, continuous_candles
from benchmarks.machine import ROOT, machine_facts, summary
from daemon.demo_data import demo_candles
from daemon.errors import DataError
from daemon.feature_frame import FRAME_COLUMNS, PERIOD, WARMUP_ROWS, exact_frame
from daemon.frame_stream import FrameStream
from daemon.history import CandleTable
from daemon.lookahead import check_lookahead, every_column, training_candles
from daemon.settings import load_settings
from hrm.features import FEATURE_NAMES, WARMUP_BARS, FeatureStream, feature_rows

MAX_DIFFERENCE = 1e-9
MAX_P99_US = 1000.0
LIBRARY_TOLERANCE = 1e-7  # relative: MACD begins its averages elsewhere, and forgets it slowly
_SMOOTHED_ROWS = 5  # the slower stochastic: an average of three averages of three
RESULTS = ROOT / "benchmarks" / "results" / "features.json"

FloatArray = NDArray[np.float64]


def measure(table: CandleTable, lookahead_bars: int) -> dict[str, Any]:
    """Run every bar through both streams and compare; times in microseconds per bar."""
    stream, frame_stream = FeatureStream(table.bar_ns), FrameStream()
    rows, row_us = _timed_model_rows(stream, table)
    batch = feature_rows(
        table.open, table.high, table.low, table.close, table.volume, table.close_ns, table.bar_ns
    )
    frame_rows, frame_us = _timed_frame_rows(frame_stream, table)
    frame = exact_frame(table)
    first = max(0, len(table) - lookahead_bars)
    newest = table.between(int(table.open_ns[first]), int(table.close_ns[-1]) + 1)
    lookahead = check_lookahead(
        training_candles(newest), every_column(load_settings(demo=True).complexity)
    )
    difference = _largest(rows[WARMUP_BARS:], batch[WARMUP_BARS:])
    frame_difference = _largest(frame_rows, frame.to_numpy())
    library, worst = _library_difference(table, frame)
    together_us = [a + b for a, b in zip(row_us, frame_us, strict=True)]
    violations = lookahead.lookahead_violations + lookahead.warmup_violations
    result = {
        "instrument": table.symbol,
        "timeframe": table.timeframe,
        "bars": len(table),
        "columns": {"model": len(FEATURE_NAMES), "frame": len(FRAME_COLUMNS)},
        "max_abs_diff": max(difference, frame_difference),
        "model_max_abs_diff": difference,
        "frame_max_abs_diff": frame_difference,
        "p99_us": summary(together_us)["p99"],
        "model_us": summary(row_us),
        "frame_us": summary(frame_us),
        "lookahead_violations": violations,
        "lookahead": {
            "bars": lookahead.bars,
            "columns": lookahead.columns,
            "comparisons": lookahead.comparisons,
            "later_bars": lookahead.lookahead_violations,
            "warm_up": lookahead.warmup_violations,
        },
        "library": {
            "name": f"TA-Lib {talib.__version__}",
            "columns": len(_library(table)),
            "max_relative_diff": library,
            "worst": worst,
            "tolerance": LIBRARY_TOLERANCE,
        },
        "snapshot_bytes": {
            "model": len(json.dumps(stream.snapshot())),
            "frame": len(json.dumps(frame_stream.snapshot())),
        },
    }
    return result | {"passed": _passed(result)}


def _passed(result: dict[str, Any]) -> bool:
    return bool(
        result["max_abs_diff"] <= MAX_DIFFERENCE
        and result["p99_us"] <= MAX_P99_US
        and result["lookahead_violations"] == 0
        and result["library"]["max_relative_diff"] <= LIBRARY_TOLERANCE
    )


def _timed_model_rows(stream: FeatureStream, table: CandleTable) -> tuple[FloatArray, list[float]]:
    columns = (table.open, table.high, table.low, table.close, table.volume, table.close_ns)
    nothing = np.zeros(len(FEATURE_NAMES))

    def add(bar: tuple[float, float, float, float, float, int]) -> FloatArray:
        row = stream.add(*bar)
        return nothing if row is None else row

    return _timed(add, list(zip(*(column.tolist() for column in columns), strict=True)))


def _timed_frame_rows(stream: FrameStream, table: CandleTable) -> tuple[FloatArray, list[float]]:
    columns = (table.open_ns, table.open, table.high, table.low, table.close)

    def add(bar: tuple[int, float, float, float, float]) -> list[float]:
        return list(stream.add(*bar).values())

    return _timed(add, list(zip(*(column.tolist() for column in columns), strict=True)))


def _timed(add: Callable[[Any], Any], bars: list[Any]) -> tuple[FloatArray, list[float]]:
    rows, microseconds = [], []
    for bar in bars:
        began = time.perf_counter_ns()
        row = add(bar)
        microseconds.append((time.perf_counter_ns() - began) / 1000)
        rows.append(row)
    return np.array(rows, dtype=np.float64), microseconds


def _largest(ours: FloatArray, theirs: FloatArray) -> float:
    """Return the largest difference; infinite where one knows a number and the other does not."""
    unknown = np.isnan(ours)
    if not np.array_equal(unknown, np.isnan(theirs)):
        return math.inf
    return float(np.abs(ours - theirs)[~unknown].max(initial=0.0))


def _library_difference(table: CandleTable, frame: pd.DataFrame) -> tuple[float, str]:
    """Compare with the library from the frame's first row on; where the price stood still the frame
    may say that it does not know, while the library says 0."""
    largest, worst = 0.0, ""
    stood_still = _stood_still(table)[WARMUP_ROWS:]
    for name, theirs in _library(table).items():
        ours, known = frame[name].to_numpy()[WARMUP_ROWS:], theirs[WARMUP_ROWS:]
        compared = ~(np.isnan(ours) & stood_still)
        scale = np.maximum(np.abs(known), 1.0)
        found = _largest((ours / scale)[compared], (known / scale)[compared])
        if found > largest:
            largest, worst = found, name
    return largest, worst


def _stood_still(table: CandleTable) -> NDArray[np.bool_]:
    """Tell at which bars an oscillator may lack a value: its 14 bars were all at one price, or were
    within the averages it is smoothed by, or the close has not changed since the first."""
    typical = pd.Series((table.high + table.low + table.close) / 3.0)
    still = typical.rolling(PERIOD).max() == typical.rolling(PERIOD).min()
    recently = still.rolling(_SMOOTHED_ROWS, min_periods=1).max().to_numpy() > 0
    return np.asarray(recently | (np.cumsum(table.close != table.close[0]) == 0))


def _library(table: CandleTable) -> dict[str, FloatArray]:
    h, l, c = table.high.copy(), table.low.copy(), table.close.copy()  # noqa: E741
    macd, signal, histogram = talib.MACD(c, 12, 26, 9)
    stoch_k, stoch_d = talib.STOCH(h, l, c, fastk_period=14, slowk_period=3, slowd_period=3)
    upper, middle, lower = talib.BBANDS(c, 20, 2, 2)
    return {
        "macd": macd,
        "macd_signal": signal,
        "macd_histogram": histogram,
        "rsi_14": talib.RSI(c, 14),
        "rsi_21": talib.RSI(c, 21),
        "stoch_k": stoch_k,
        "stoch_d": stoch_d,
        "williams_r": talib.WILLR(h, l, c, 14),
        "cci": talib.CCI(h, l, c, 14),
        "adx": talib.ADX(h, l, c, 14),
        "di_plus": talib.PLUS_DI(h, l, c, 14),
        "di_minus": talib.MINUS_DI(h, l, c, 14),
        "momentum_10": talib.MOM(c, 10),
        "roc_10": talib.ROC(c, 10),
        "trix": talib.TRIX(c, 30),
        "atr": talib.ATR(h, l, c, 14),
        "bb_upper": upper,
        "bb_middle": middle,
        "bb_lower": lower,
        "trend_slope": talib.LINEARREG_SLOPE(c, 20),
        **{f"sma_{n}": talib.SMA(c, n) for n in (5, 10, 20, 50, 100, 200)},
        **{f"ema_{n}": talib.EMA(c, n) for n in (5, 10, 20, 50, 100, 200)},
    }


def measure_all(paths: Sequence[Path], lookahead_bars: int) -> dict[str, Any]:
    """Measure each file; the result of one alone, or of all with the worst of each figure."""
    results: list[dict[str, Any]] = []
    for path in paths:
        table, left_out = continuous_candles(path)
        read = {"file": path.name, "auction_bars_left_out": left_out}
        results.append(read | measure(table, lookahead_bars))
    facts = {"machine": machine_facts()}
    if len(results) == 1:
        return facts | results[0]
    return facts | {
        "max_abs_diff": max(one["max_abs_diff"] for one in results),
        "p99_us": max(one["p99_us"] for one in results),
        "lookahead_violations": sum(one["lookahead_violations"] for one in results),
        "passed": all(one["passed"] for one in results),
        "files": results,
    }


def main(
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="Files or folders; default EUR/USD.")
    ] = None,
    lookahead_bars: Annotated[
        int, typer.Option("--lookahead-bars", min=400, help="Newest bars of the look-ahead check.")
    ] = 6000,
    out: Annotated[Path, typer.Option("--out", help="Where the result is kept.")] = RESULTS,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the features on files of candles."""
    try:
        result = measure_all(candle_files(data or [demo_candles().path]), lookahead_bars)
    except DataError as error:
        typer.echo(f"benchmarks.features: {error}", err=True)
        raise typer.Exit(1) from error
    if not data or out != RESULTS:  # what a file of one's own gave is not the project's result
        out.write_text(json.dumps(result) + "\n", encoding="utf-8")
    typer.echo(json.dumps(result) if as_json else json.dumps(result, indent=1))
    if not result["passed"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
