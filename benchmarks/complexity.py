"""How often does the forecast of the next window's complexity class come true?

    python -m benchmarks.complexity --json --data nifty_5m.parquet

Runs actors/complexity.py over a file of candles, with the coefficients of config/complexity.yaml,
and checks every forecast once its window has closed. Days that the coefficients were fitted on do
not count, nor does the day after them; the bars before only warm the actor up. Beside `accuracy`
stand what costs nothing: the class of the window before (`baseline_same_as_last`), the larger class
(`largest_class_share`), and the design's fixed formula above its own median (`formula`).

    python -m benchmarks.complexity --fit --until 2024-09-30 --data A --data B   prints coefficients

fits them (scikit-learn, hmmlearn) on the bars up to a day, as YAML for config/complexity.yaml.
"""

import argparse
import json
import sys
import time
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import yaml
from numpy.typing import NDArray

from actors.complexity import MarketComplexityActor
from actors.forecast import EXCESS, FEATURES, Forecaster, ForecastScore, window_bars
from actors.messages import Bar, MarketContext
from actors.policies import ComplexitySettings, ForecastCoefficients
from actors.regimes import STRAIGHT_BARS, straightness
from benchmarks.machine import machine_facts, percentile
from daemon.errors import DataError
from daemon.history import CandleTable, load_candles
from daemon.settings import load_settings

REQUIRED: Final = 0.80
_NS_PER_SECOND: Final = 1_000_000_000
_MEDIAN_BARS: Final = 1500  # the formula is judged against its own median over so many bars
_SEED: Final = 1


def measure(path: Path, settings: ComplexitySettings) -> dict[str, Any]:
    """Return how good the forecasts on a file were, over the days no fit has seen."""
    table = load_candles(path)
    coefficients = settings.coefficients.forecasts.get(table.timeframe)
    if coefficients is None:
        known = ", ".join(sorted(settings.coefficients.forecasts)) or "none"
        raise DataError(
            f"{path}: complexity.yaml has no forecasts for bars of {table.timeframe} minutes, only "
            f"for {known}: fit them with --fit, or give another file"
        )
    score, formula = ForecastScore(len(table)), _Formula(window_bars(table.timeframe_minutes))
    actor = MarketComplexityActor(settings)
    micros: list[float] = []
    demands: list[bool] = []
    for bar in bars_of(table):
        began_ns = time.perf_counter_ns()
        (context,) = actor.handle(bar)
        micros.append((time.perf_counter_ns() - began_ns) / 1000)
        unseen = is_unseen(bar, coefficients)
        formula.add(context, counts=unseen)
        if context.checked is not None and unseen:
            score.add(context.checked)
            demands.append(context.checked.is_demanding)
    if not score.count:
        raise DataError(
            f"{path}: no forecast could be checked outside {coefficients.fitted_from} to "
            f"{coefficients.fitted_until}, which the coefficients were fitted on: give later bars"
        )
    result = score.summary()
    return {
        "file": path.name,
        "sha256": table.sha256,
        "timeframe": table.timeframe,
        "window_bars": window_bars(table.timeframe_minutes),
        "bars": len(table),
        "fitted_on": [coefficients.fitted_from, coefficients.fitted_until],
        "accuracy": result.pop("accuracy"),
        "required": REQUIRED,
        **result,
        "independent_windows": score.count // window_bars(table.timeframe_minutes),
        "formula": formula.summary(),
        "p50_us": round(percentile(micros, 0.50), 1),
        "p99_us": round(percentile(micros, 0.99), 1),
        "machine": machine_facts(),
    }


class _Formula:
    """Read a class off the design's formula: above its own median it expects a demanding window."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._said: deque[bool | None] = deque(maxlen=window + 1)
        self._ordered: list[float] = []
        self._recent: deque[float] = deque()
        self._right = self._count = 0

    def add(self, context: MarketContext, *, counts: bool) -> None:
        made = self._said[0] if len(self._said) > self._window else None
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
    day = _day(bar)
    first, last = date.fromisoformat(fit.fitted_from), date.fromisoformat(fit.fitted_until)
    return not first <= day <= last + timedelta(days=1)


def _day(bar: Bar) -> date:
    return datetime.fromtimestamp(bar.open_ns / _NS_PER_SECOND, UTC).date()


def fit(paths: Sequence[Path], until: date) -> dict[str, Any]:
    """Fit forecast and regimes of each timeframe among the files, on the bars up to a day."""
    by_timeframe: dict[str, list[CandleTable]] = {}
    for path in paths:
        table = load_candles(path)
        by_timeframe.setdefault(table.timeframe, []).append(table)
    forecasts: dict[str, Any] = {}
    regimes: dict[str, Any] = {}
    for timeframe, tables in sorted(by_timeframe.items()):
        samples = [_samples(table, until) for table in tables]
        forecasts[timeframe] = _fit_forecast(samples) | {
            "fitted_from": str(min(first for *_, first in samples)),
            "fitted_until": str(until),
        }
        regimes[timeframe] = _fit_regimes([seen for _, _, seen, _ in samples])
    return {"forecasts": forecasts, "regimes": regimes}


Samples = tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64], date]


def _samples(table: CandleTable, until: date) -> Samples:
    """Return features, realised classes, regime observations and the first day of a file."""
    window = window_bars(table.timeframe_minutes)
    # Any weights will do: what is wanted is which class each window had.
    neutral = ForecastCoefficients(
        intercept=0.0, weights=(0.0,) * len(FEATURES), fitted_from="", fitted_until=""
    )
    forecaster = Forecaster(window, neutral)
    closes: deque[float] = deque(maxlen=STRAIGHT_BARS + 1)
    waiting: deque[tuple[float, ...]] = deque()
    rows: list[tuple[float, ...]] = []
    classes: list[bool] = []
    seen: list[tuple[float, float]] = []
    first: date | None = None
    for bar in bars_of(table):
        first = first or _day(bar)
        if _day(bar) > until:
            break
        closes.append(float(bar.close))
        outlook = forecaster.add(bar)
        if outlook.check is not None:
            rows.append(waiting.popleft())
            classes.append(outlook.check.is_demanding)
        if outlook.features is not None:
            waiting.append(outlook.features)
            seen.append((outlook.features[EXCESS], straightness(closes)))
    if not rows or first is None:
        raise DataError(f"{table.symbol}: too few bars up to {until} to fit on; give more")
    return np.array(rows), np.array(classes), np.array(seen), first


def _fit_forecast(samples: Sequence[Samples]) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - only fitting needs it

    rows = np.concatenate([features for features, *_ in samples])
    classes = np.concatenate([realised for _, realised, *_ in samples])
    model = LogisticRegression(C=1.0, max_iter=5000).fit(rows, classes)
    return {
        "intercept": round(float(model.intercept_[0]), 6),
        "weights": [round(float(weight), 6) for weight in model.coef_[0]],
    }


def _fit_regimes(seen: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    from hmmlearn.hmm import GaussianHMM  # noqa: PLC0415 - only fitting needs it

    chain = GaussianHMM(3, covariance_type="diag", n_iter=200, random_state=_SEED)
    chain.fit(np.concatenate(seen), [len(one) for one in seen])
    volatile = int(np.argmax(chain.means_[:, 0]))
    rest = sorted({0, 1, 2} - {volatile}, key=lambda state: -chain.means_[state, 1])
    order = [rest[0], rest[1], volatile]  # trending, ranging, volatile
    diagonal = np.array([np.diag(chain.covars_[state]) for state in order])
    return {
        "start": _plain(chain.startprob_[order]),
        "transitions": [_plain(chain.transmat_[state][order]) for state in order],
        "means": [_plain(chain.means_[state]) for state in order],
        "variances": [_plain(row) for row in diagonal],
    }


def _plain(numbers: NDArray[np.float64]) -> list[float]:
    return [round(float(number), 6) for number in numbers]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m benchmarks.complexity`; 1 if the accuracy is below what is required."""
    parser = argparse.ArgumentParser(prog="benchmarks.complexity", description=__doc__)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--until", type=date.fromisoformat, help="last day to fit on")
    given = parser.parse_args(arguments)
    try:
        if given.fit:
            if given.until is None:
                parser.error("--fit needs --until: the last day to fit on")
            print(yaml.safe_dump(fit(given.data, given.until), sort_keys=False), end="")
            return 0
        settings = load_settings(demo=True).complexity
        results = [measure(path, settings) for path in given.data]
    except DataError as error:
        print(f"benchmarks.complexity: {error}", file=sys.stderr)
        return 1
    result = results[0] if len(results) == 1 else {"files": results}
    print(json.dumps(result, indent=None if given.json else 1))
    return 0 if all(one["accuracy"] >= REQUIRED for one in results) else 1


if __name__ == "__main__":
    sys.exit(main())
