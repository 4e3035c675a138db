"""Which coefficients of complexity, and which choices behind them, do the first days speak for?

    python -m benchmarks.complexity_fit --until 2024-09-30 --data A --data B > coefficients.yaml
    python -m benchmarks.complexity_fit --walk-forward --json --until 2024-09-30 --data A --data B

Nothing after `--until` is read. The first form fits forecast and regimes (scikit-learn, hmmlearn)
of each timeframe among the files and prints them for config/complexity.yaml; `--merge-to 15` merges
finer candles to bars of so many minutes, so that four indices teach where one file of such bars
exists. The second judges choices before any fit is looked at on later days: the second half of the
days is cut into four blocks, and each is forecast by a fit on all windows that ended before it.
"""

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import yaml
from numpy.typing import NDArray

from actors.forecast import FEATURES, WINDOW_MINUTES, Forecaster
from actors.forecast_score import ForecastScore
from actors.messages import Bar, ForecastCheck
from actors.policies import ForecastCoefficients
from actors.regimes import STRAIGHT_BARS, straightness
from benchmarks.candles import candle_files, continuous_candles
from benchmarks.complexity import bars_of, utc_day
from benchmarks.machine import machine_facts
from daemon.errors import DataError

_SEEDS: Final = (1, 2, 3, 4, 5)  # starts of the regimes' fit, which can end in a poor corner
_BLOCKS: Final = 4
_NS_PER_MINUTE: Final = 60_000_000_000
_WINDOWS: Final = (15, 30, 60, 120)
_KEPT: Final = (
    "n",
    "accuracy",
    "balanced_accuracy",
    "baseline_same_as_last",
    "baseline_time_of_day",
    "largest_class_share",
    "brier",
    "ece",
)
_GROUPS: Final = {
    "no_profile": ("usual_next", "usual_last"),
    "no_night": ("tomorrow", "last_tomorrow"),
    "no_recent": tuple(name for name in FEATURES if name.startswith("recent_")),
    "no_today": ("today",),
}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """The bars of one instrument in one timeframe, ascending, up to the last day to fit on."""

    name: str
    minutes: int
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Samples:
    """Forecasts that could be checked, one row each, and what regimes are fitted on."""

    features: Floats  # [N, len(FEATURES)]
    checks: tuple[ForecastCheck, ...]  # N
    made_ns: NDArray[np.int64]  # [N] close of the bar that each was made at
    closed_ns: NDArray[np.int64]  # [N] close of its window
    seen: Floats  # [M, 2] excess and straightness

    @property
    def classes(self) -> NDArray[np.bool_]:
        return np.array([check.is_demanding for check in self.checks])


def read_series(paths: Sequence[Path], until: date, merge_to: Sequence[int]) -> list[Series]:
    """Read files up to a day, and merge to each coarser timeframe asked for, once by instrument."""
    tables = []
    for path in paths:
        table, left_out = continuous_candles(path)
        if left_out:
            print(f"{path.name}: {left_out} bars of auctions are left out", file=sys.stderr)
        tables.append(table)
    series = [
        Series(
            table.symbol,
            table.timeframe_minutes,
            tuple(bar for bar in bars_of(table) if utc_day(bar) <= until),
        )
        for table in tables
    ]
    known = {(one.name, one.minutes) for one in series}
    for one in tuple(series):
        for minutes in merge_to:
            if minutes % one.minutes == 0 and (one.name, minutes) not in known:
                known.add((one.name, minutes))
                series.append(Series(one.name, minutes, tuple(merged(one.bars, minutes))))
    return series


def merged(bars: Iterable[Bar], minutes: int) -> Iterator[Bar]:
    """Merge bars into longer ones, counted from the first bar of each day."""
    for _, day in groupby(bars, key=utc_day):
        of_day = list(day)
        opened_ns = of_day[0].open_ns
        step_ns = minutes * _NS_PER_MINUTE
        for place, part in groupby(of_day, key=lambda b: (b.open_ns - opened_ns) // step_ns):
            inside = list(part)
            begin_ns = opened_ns + place * step_ns
            yield Bar(
                instrument=inside[0].instrument,
                timeframe=str(minutes),
                open=inside[0].open,
                high=max(bar.high for bar in inside),
                low=min(bar.low for bar in inside),
                close=inside[-1].close,
                volume=sum(bar.volume for bar in inside),
                open_ns=begin_ns,
                close_ns=begin_ns + step_ns,
                ticks=4 * len(inside),
            )


def samples_of(series: Series, window_minutes: int = WINDOW_MINUTES) -> Samples:
    """Return what could be forecast of a series, and what then was; DataError for too little."""
    window = max(window_minutes // series.minutes, 1)
    # Any weights will do: what is wanted is which class each window had.
    neutral = ForecastCoefficients(
        intercept=0.0, weights=(0.0,) * len(FEATURES), fitted_from="", fitted_until=""
    )
    forecaster = Forecaster(window, neutral)
    closes: deque[float] = deque(maxlen=STRAIGHT_BARS + 1)
    waiting: deque[tuple[int, tuple[float, ...]]] = deque()
    rows: list[tuple[float, ...]] = []
    checks: list[ForecastCheck] = []
    times: list[tuple[int, int]] = []
    seen: list[tuple[float, float]] = []
    for bar in series.bars:
        closes.append(float(bar.close))
        outlook = forecaster.add(bar)
        if outlook.check is not None:
            made_ns, features = waiting.popleft()
            rows.append(features)
            checks.append(outlook.check)
            times.append((made_ns, bar.close_ns))
        if outlook.features is not None and outlook.excess is not None:
            waiting.append((bar.close_ns, outlook.features))
            seen.append((outlook.excess, straightness(closes)))
    if not rows:
        raise DataError(f"{series.name}: too few bars of {series.minutes} minutes to fit on")
    made, closed = np.array(times, dtype=np.int64).T
    return Samples(np.array(rows), tuple(checks), made, closed, np.array(seen))


def fit(series: Sequence[Series], until: date) -> dict[str, Any]:
    """Fit forecast and regimes of each timeframe, as config/complexity.yaml spells them."""
    forecasts: dict[str, Any] = {}
    regimes: dict[str, Any] = {}
    for minutes, group in _by_timeframe(series):
        samples = [samples_of(one) for one in group]
        intercept, weights = _logistic(
            np.concatenate([one.features for one in samples]),
            np.concatenate([one.classes for one in samples]),
        )
        forecasts[str(minutes)] = {
            "intercept": round(intercept, 6),
            "weights": _plain(weights),
            "fitted_from": str(min(utc_day(one.bars[0]) for one in group)),
            "fitted_until": str(until),
        }
        regimes[str(minutes)] = _fit_regimes([one.seen for one in samples])
    return {"forecasts": forecasts, "regimes": regimes}


def walk_forward(series: Sequence[Series]) -> dict[str, Any]:
    """Score lengths of the window, and the features by leaving groups of them out.

    Of each timeframe: by choice, what forecasts of blocks that came after their fit were worth.
    """
    found: dict[str, Any] = {}
    for minutes, group in _by_timeframe(series):
        scores: dict[str, Any] = {}
        for length in _WINDOWS:
            if length >= minutes:
                samples = [samples_of(one, length) for one in group]
                scores[f"window_{length}"] = _blocks_ahead(samples, FEATURES)
        samples = [samples_of(one) for one in group]
        for name, left_out in _GROUPS.items():
            kept = tuple(feature for feature in FEATURES if feature not in left_out)
            scores[name] = _blocks_ahead(samples, kept)
        found[str(minutes)] = {"series": sorted({one.name for one in group}), "choices": scores}
    return found


def measured_alike(coarse: Series, fine: Series) -> float:
    """Return the share of windows whose class is the same by coarse and by fine bars.

    What a bar's four prices say of the movement inside it is itself an estimate: no forecast of the
    class by coarse bars can be right more often than that class itself is, but by chance.
    """
    by_fine = {closed: check.is_demanding for check, closed in _checked(samples_of(fine))}
    pairs = [
        (check.is_demanding, by_fine[closed])
        for check, closed in _checked(samples_of(coarse))
        if closed in by_fine
    ]
    return sum(one == other for one, other in pairs) / len(pairs)


def _checked(samples: Samples) -> Iterator[tuple[ForecastCheck, int]]:
    return zip(samples.checks, samples.closed_ns.tolist(), strict=True)


def _by_timeframe(series: Sequence[Series]) -> Iterator[tuple[int, list[Series]]]:
    for minutes in sorted({one.minutes for one in series}):
        yield minutes, [one for one in series if one.minutes == minutes]


def _blocks_ahead(samples: Sequence[Samples], names: Sequence[str]) -> dict[str, Any]:
    """Forecast each block from the windows that ended before it, with these features alone."""
    columns = [FEATURES.index(name) for name in names]
    begin_ns = min(int(one.made_ns[0]) for one in samples)
    end_ns = max(int(one.closed_ns[-1]) for one in samples) + 1
    edges = [
        end_ns - (end_ns - begin_ns) * left // (2 * _BLOCKS) for left in range(_BLOCKS, -1, -1)
    ]
    score = ForecastScore(sum(len(one.checks) for one in samples))
    for low_ns, high_ns in pairwise(edges):
        earlier = [one.closed_ns < low_ns for one in samples]
        intercept, weights = _logistic(
            np.concatenate(
                [one.features[rows][:, columns] for one, rows in zip(samples, earlier, strict=True)]
            ),
            np.concatenate([one.classes[rows] for one, rows in zip(samples, earlier, strict=True)]),
        )
        for one in samples:
            inside = np.flatnonzero((one.made_ns >= low_ns) & (one.closed_ns < high_ns))
            totals = one.features[inside][:, columns] @ weights + intercept
            chances = 1.0 / (1.0 + np.exp(-np.clip(totals, -40.0, 40.0)))
            for place, chance in zip(inside, chances, strict=True):
                score.add(msgspec.structs.replace(one.checks[place], probability=float(chance)))
    summary = score.summary()
    return {name: summary[name] for name in _KEPT}


def _logistic(rows: Floats, classes: NDArray[np.bool_]) -> tuple[float, Floats]:
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - only fitting needs it

    model = LogisticRegression(C=1.0, max_iter=5000).fit(rows, classes)
    return float(model.intercept_[0]), model.coef_[0]


def _fit_regimes(seen: Sequence[Floats]) -> dict[str, Any]:
    from hmmlearn.hmm import GaussianHMM  # noqa: PLC0415 - only fitting needs it

    rows, lengths = np.concatenate(seen), [len(one) for one in seen]
    chains = [
        GaussianHMM(3, covariance_type="diag", n_iter=200, random_state=seed).fit(rows, lengths)
        for seed in _SEEDS
    ]
    chain = max(chains, key=lambda one: one.score(rows, lengths))
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


def _plain(numbers: Floats) -> list[float]:
    return [round(float(number), 6) for number in numbers]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m benchmarks.complexity_fit`."""
    parser = argparse.ArgumentParser(prog="benchmarks.complexity_fit", description=__doc__)
    parser.add_argument("--data", type=Path, action="append", required=True, metavar="PATH")
    parser.add_argument("--until", type=date.fromisoformat, required=True, help="last day to read")
    parser.add_argument("--merge-to", type=int, action="append", default=[], metavar="MINUTES")
    parser.add_argument("--walk-forward", action="store_true", help="judge choices, fit nothing")
    parser.add_argument("--json", action="store_true", help="on one line; YAML without it")
    parser.add_argument("--out", type=Path, help="keep what --walk-forward found there as well")
    given = parser.parse_args(arguments)
    try:
        series = read_series(candle_files(given.data), given.until, given.merge_to)
        found = _choices(series, given.until) if given.walk_forward else fit(series, given.until)
    except DataError as error:
        print(f"benchmarks.complexity_fit: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found) if given.json else yaml.safe_dump(found, sort_keys=False).rstrip())
    if given.out is not None:
        given.out.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return 0


def _choices(series: Sequence[Series], until: date) -> dict[str, Any]:
    alike = {
        f"{coarse.name} {coarse.minutes}": round(measured_alike(coarse, fine), 4)
        for fine in series
        for coarse in series
        if coarse.name == fine.name and fine.minutes == 5 < coarse.minutes
    }
    return {
        "machine": machine_facts(),
        "until": str(until),
        "timeframes": walk_forward(series),
        "measured_alike": alike,
    }


if __name__ == "__main__":
    sys.exit(main())
