"""How often does the forecast of the next window's complexity class come true?

    python -m benchmarks.complexity --json --data nifty_5m.parquet
    python -m benchmarks.complexity --json --data FOLDER --out benchmarks/results/complexity.json

Runs actors/complexity.py over files of candles, with the coefficients of config/complexity.yaml,
and checks every forecast once its window has closed. Days that the coefficients were fitted on do
not count, nor does the day after them; the bars before only warm the actor up. Beside `accuracy`
stand what costs nothing: the class of the window before (`baseline_same_as_last`), the usual class
at this time of day (`baseline_time_of_day`), the larger class (`largest_class_share`), and the
design's fixed formula above its own median (`formula`). Live, a session begins with no more than a
warm-up out of the broker's history: `accuracy_restarted_daily` is that of a forecaster which begins
anew before each day, with so many bars (`--warm-up-bars`, by default `feed.warm_up_bars`). How the
coefficients are fitted: benchmarks/complexity_fit.py.
"""

import argparse
import json
import sys
import time
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from actors.complexity import MarketComplexityActor
from actors.day_profile import DAY_NS
from actors.forecast import WINDOW_MINUTES, Forecaster, window_bars
from actors.forecast_score import ForecastScore
from actors.messages import Bar, MarketContext
from actors.policies import ComplexitySettings, ForecastCoefficients
from benchmarks.candles import candle_files, continuous_candles
from benchmarks.machine import machine_facts, percentile
from daemon.brokers.fyers.past_candles import MOST_DAYS
from daemon.errors import DataError
from daemon.history import CandleTable
from daemon.settings import load_settings

REQUIRED: Final = 0.80
_NS_PER_SECOND: Final = 1_000_000_000
_MEDIAN_BARS: Final = 1500  # the formula is judged against its own median over so many bars


def measure(path: Path, settings: ComplexitySettings, warm_up_bars: int) -> dict[str, Any]:
    """Return how good the forecasts on a file were, over the days no fit has seen.

    warm_up_bars: what a forecaster that is restarted each day begins with.
    """
    table, left_out = continuous_candles(path)
    coefficients = settings.coefficients.forecasts.get(table.timeframe)
    if coefficients is None:
        known = ", ".join(sorted(settings.coefficients.forecasts)) or "none"
        raise DataError(
            f"{path}: complexity.yaml has no forecasts for bars of {table.timeframe} minutes, only "
            f"for {known}: fit them with benchmarks.complexity_fit, or give another file"
        )
    window = window_bars(table.timeframe_minutes)
    score, formula = ForecastScore(len(table)), _Formula(window)
    actor = MarketComplexityActor(settings)
    micros: list[float] = []
    cpu_micros: list[float] = []
    bars = list(bars_of(table))
    for bar in bars:
        began_ns, began_cpu_ns = time.perf_counter_ns(), time.thread_time_ns()
        (context,) = actor.handle(bar)
        cpu_micros.append((time.thread_time_ns() - began_cpu_ns) / 1000)
        micros.append((time.perf_counter_ns() - began_ns) / 1000)
        unseen = is_unseen(bar, coefficients)
        formula.add(context, counts=unseen)
        if context.checked is not None and unseen:
            score.add(context.checked)
    if not score.count:
        raise DataError(
            f"{path}: no forecast could be checked outside {coefficients.fitted_from} to "
            f"{coefficients.fitted_until}, which the coefficients were fitted on: give later bars"
        )
    restarted = _restarted_daily(bars, coefficients, window, warm_up_bars)
    return {
        "file": path.name,
        "sha256": table.sha256,
        "timeframe": table.timeframe,
        "window_minutes": WINDOW_MINUTES,
        "window_bars": window,
        "bars": len(table),
        "auction_bars_left_out": left_out,
        "fitted_on": [coefficients.fitted_from, coefficients.fitted_until],
        "required": REQUIRED,
        **score.summary(),
        "warm_up_bars": warm_up_bars,
        "n_restarted_daily": restarted.count,
        "accuracy_restarted_daily": _rounded(restarted.accuracy),
        "independent_windows": score.count // window,
        "formula": formula.summary(),
        "p50_us": round(percentile(micros, 0.50), 1),
        "p99_us": round(percentile(micros, 0.99), 1),
        "p99_cpu_us": round(percentile(cpu_micros, 0.99), 1),  # without waiting for a busy core
    }


def _restarted_daily(
    bars: Sequence[Bar], fit: ForecastCoefficients, window: int, warm_up_bars: int
) -> ForecastScore:
    """Score each unseen day with a forecaster that has read nothing but the warm-up before it."""
    score = ForecastScore(len(bars))
    starts = [place for place, bar in enumerate(bars) if not place or not _is_same_day(bars, place)]
    for start, end in pairwise([*starts, len(bars)]):
        if not is_unseen(bars[start], fit):
            continue
        forecaster = Forecaster(window, fit)
        oldest_ns = bars[start].open_ns - MOST_DAYS * DAY_NS
        for place in range(max(start - warm_up_bars, 0), end):
            if bars[place].open_ns < oldest_ns:
                continue  # the broker's history is not asked for more
            check = forecaster.add(bars[place]).check
            if check is not None and place >= start:
                score.add(check)
    return score


def _is_same_day(bars: Sequence[Bar], place: int) -> bool:
    return utc_day(bars[place]) == utc_day(bars[place - 1])


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


class _Formula:
    """Read a class off the design's formula: above its own median it expects a demanding window."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._said: deque[bool | None] = deque(maxlen=window)
        self._ordered: list[float] = []
        self._recent: deque[float] = deque()
        self._right = self._count = 0

    def add(self, context: MarketContext, *, counts: bool) -> None:
        made = self._said[0] if len(self._said) == self._window else None
        if made is not None and context.checked is not None and counts:
            self._count += 1
            self._right += made == context.checked.is_demanding
        is_known = len(self._ordered) >= _MEDIAN_BARS // 5
        median = self._ordered[len(self._ordered) // 2] if is_known else 0.0
        self._said.append(context.complexity > median if is_known else None)
        insort(self._ordered, context.complexity)
        self._recent.append(context.complexity)
        if len(self._recent) > _MEDIAN_BARS:
            old = self._recent.popleft()
            del self._ordered[bisect_right(self._ordered, old) - 1]

    def summary(self) -> dict[str, Any]:
        accuracy = round(self._right / self._count, 4) if self._count else None
        return {"accuracy": accuracy, "n": self._count}


def bars_of(table: CandleTable) -> Iterator[Bar]:
    """Yield the candles of a file as closed bars."""
    for candle in table.candles():
        yield Bar(
            instrument=table.symbol,
            timeframe=table.timeframe,
            open=candle.open,
            high=candle.high,
            low=candle.low,
            close=candle.close,
            volume=candle.volume,
            open_ns=candle.open_ns,
            close_ns=candle.close_ns,
            ticks=4,
        )


def is_unseen(bar: Bar, fit: ForecastCoefficients) -> bool:
    """Tell whether neither the bar nor what its window looks back on was fitted on."""
    first, last = date.fromisoformat(fit.fitted_from), date.fromisoformat(fit.fitted_until)
    return not first <= utc_day(bar) <= last + timedelta(days=1)


def utc_day(bar: Bar) -> date:
    """Return the UTC day that a bar opens in."""
    return datetime.fromtimestamp(bar.open_ns / _NS_PER_SECOND, UTC).date()


def measure_all(
    paths: Sequence[Path], settings: ComplexitySettings, warm_up_bars: int
) -> dict[str, Any]:
    """Measure each file; the result of one alone, or of all under `files`."""
    results = [measure(path, settings, warm_up_bars) for path in paths]
    facts = {"machine": machine_facts()}
    if len(results) == 1:
        return results[0] | facts
    return facts | {
        "required": REQUIRED,
        "accuracy": min(one["accuracy"] for one in results),
        "p99_us": max(one["p99_us"] for one in results),
        "below_required": [r["file"] for r in results if r["accuracy"] < REQUIRED],
        "files": results,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m benchmarks.complexity`; 1 if an accuracy is below what is required."""
    parser = argparse.ArgumentParser(prog="benchmarks.complexity", description=__doc__)
    parser.add_argument("--data", type=Path, action="append", required=True, metavar="PATH")
    parser.add_argument("--json", action="store_true", help="on one line")
    parser.add_argument("--out", type=Path, help="keep the result there as well")
    parser.add_argument(
        "--warm-up-bars", type=int, metavar="N", help="default: feed.warm_up_bars of settings.yaml"
    )
    given = parser.parse_args(arguments)
    try:
        settings = load_settings(demo=True)
        warm_up_bars = (
            settings.feed.warm_up_bars if given.warm_up_bars is None else max(given.warm_up_bars, 0)
        )
        result = measure_all(candle_files(given.data), settings.complexity, warm_up_bars)
    except DataError as error:
        print(f"benchmarks.complexity: {error}", file=sys.stderr)
        return 1
    text = json.dumps(result, indent=None if given.json else 1)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n", encoding="utf-8")
    return 0 if result["accuracy"] >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())
