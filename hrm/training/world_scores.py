"""Scores: what a policy earns in a world, beside the best possible and beside simple policies.

A policy sees closed bars and says, for each close, which position it holds next. Its utility is the
mean net log return per bar: position x return of the next bar, less the cost of every change.
Intervals are bootstrapped by circular blocks (Politis and Romano 1992), longer than any memory of
the worlds.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from statistics import NormalDist
from typing import Final, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from hrm.training.world_oracles import oracle_of
from hrm.training.worlds import World, WorldCandles, generate

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

BLOCK_BARS: Final = 500
RESAMPLES: Final = 1000
LEVEL: Final = 0.95
RIDGE_LAGS: Final = 64  # as many bars as the model's window shows
RIDGE_PENALTY: Final = 1e-3  # of the columns' total variance
RIDGE_HORIZONS: Final = (1, 2, 4, 8, 16, 32)
RIDGE_OPENS: Final = (0.0, 0.5, 1.0, 2.0, 3.0)  # in costs of a round trip
RIDGE_CLOSES: Final = (-0.5, 0.0)
_NORMAL: Final = NormalDist()
_EULER: Final = 0.5772156649015329


class Policy(Protocol):
    """Decide positions from closed bars alone."""

    def positions(self, markets: Sequence[WorldCandles]) -> list[IntArray]:
        """Return, for every market, the position (-1, 0, 1) decided at each bar's close, [N].

        The position at bar t may depend on bars up to t only, and changes by at most 1 from one bar
        to the next, from flat at the start.
        """


@dataclass(frozen=True, slots=True)
class FlatPolicy:
    """Never trade."""

    def positions(self, markets: Sequence[WorldCandles]) -> list[IntArray]:
        """Hold nothing."""
        return [np.zeros(len(candles), dtype=np.int64) for candles in markets]


@dataclass(frozen=True, slots=True)
class LongPolicy:
    """Buy at the first close and hold."""

    def positions(self, markets: Sequence[WorldCandles]) -> list[IntArray]:
        """Hold one unit throughout."""
        return [np.ones(len(candles), dtype=np.int64) for candles in markets]


@dataclass(frozen=True, slots=True)
class OraclePolicy:
    """Follow the best policy of a known world."""

    world: World

    def positions(self, markets: Sequence[WorldCandles]) -> list[IntArray]:
        """Decide as the oracle does."""
        oracle = oracle_of(self.world)
        return [oracle.positions(candles) for candles in markets]


@dataclass(frozen=True, slots=True)
class RidgePolicy:
    """Forecast the next returns linearly in the lagged bars, and trade what exceeds the cost.

    Open where the forecast of the next `horizon` returns is beyond `opens`, close where it is no
    longer on the side of the position by `closes`; both as log returns.
    """

    horizon: int
    opens: float
    closes: float
    is_trading: bool  # false where nothing paid on the bars kept back
    weights: FloatArray  # [3 * RIDGE_LAGS]
    mean: FloatArray
    scale: FloatArray

    @classmethod
    def fit(cls, candles: WorldCandles, cost: float) -> "RidgePolicy":
        """Fit on the first 70 % of the bars; choose horizon and limits by the utility on the rest.

        Where none of them pays there, the policy stays flat.
        """
        columns = _lagged(candles, RIDGE_LAGS)
        cut = int(0.7 * len(candles))
        mean = columns[:cut].mean(axis=0)
        scale = np.maximum(columns[:cut].std(axis=0), 1e-12)
        sums = np.concatenate([[0.0], np.cumsum(candles.returns)])
        best = cls(1, 0.0, 0.0, False, np.zeros(columns.shape[1]), mean, scale)
        most = 0.0
        rows = np.arange(RIDGE_LAGS, cut - max(RIDGE_HORIZONS))
        x = (columns[rows] - mean) / scale
        gram = x.T @ x
        gram[np.diag_indices_from(gram)] += RIDGE_PENALTY * np.trace(gram)
        kept_back = (columns[cut:] - mean) / scale
        for horizon in RIDGE_HORIZONS:
            target = sums[rows + 1 + horizon] - sums[rows + 1]
            # No intercept: a drift of one history is a single observation.
            weights = np.linalg.solve(gram, x.T @ target)
            forecast = kept_back @ weights
            for opens, closes in product(RIDGE_OPENS, RIDGE_CLOSES):
                limits = (2.0 * cost * opens, 2.0 * cost * closes)
                path = _band(forecast, *limits)
                earned = float(net_returns(path, candles.returns[cut:], cost).mean())
                if earned > most:
                    most = earned
                    best = cls(horizon, *limits, True, weights, mean, scale)
        return best

    def positions(self, markets: Sequence[WorldCandles]) -> list[IntArray]:
        """Follow the forecast; flat until all lags are there."""
        if not self.is_trading:
            return FlatPolicy().positions(markets)
        paths = []
        for candles in markets:
            forecast = ((_lagged(candles, RIDGE_LAGS) - self.mean) / self.scale) @ self.weights
            forecast[:RIDGE_LAGS] = 0.0
            path = _band(forecast, self.opens, self.closes)
            path[:RIDGE_LAGS] = 0
            paths.append(path)
        return paths


@dataclass(frozen=True, slots=True)
class Score:
    """Hold what a policy earned in a world, in 1/100 % per bar, net, with 95 % intervals.

    ratio: to the oracle's value, None where that is 0. changes_per_bar: mean absolute change of
    position. edges: in how many seeds the deflated Sharpe ratio claims an edge.
    """

    value_bps: float
    value_bps_ci95: tuple[float, float]
    oracle_bps: float
    ratio: float | None
    ratio_ci95: tuple[float, float] | None
    changes_per_bar: float
    share_in_position: float
    cost_bps: float
    bars: int
    seeds: int
    edges: int

    def as_dict(self) -> dict[str, object]:
        """Return the score ready for JSON."""
        return asdict(self)


def evaluate(
    policy: Policy, world: World, seeds: Sequence[int], bars: int, trials: int = 1
) -> Score:
    """Score a policy on fresh draws of a world, `bars` for each seed.

    trials: how many policies were tried to arrive at this one; it deflates the claims of an edge.
    """
    if not seeds:
        raise ValueError("a score needs at least one seed")
    markets = [generate(world.name, bars, seed, world).candles for seed in seeds]
    paths = policy.positions(markets)
    nets = []
    for candles, path in zip(markets, paths, strict=True):
        check_path(path, len(candles))
        nets.append(net_returns(path, candles.returns, world.cost))
    low, high = bootstrap_interval(nets)
    best = oracle_of(world).value
    value = float(np.mean(np.concatenate(nets)))
    changes = np.concatenate([np.abs(np.diff(path, prepend=0)) for path in paths])
    return Score(
        value_bps=1e4 * value,
        value_bps_ci95=(1e4 * low, 1e4 * high),
        oracle_bps=1e4 * best,
        ratio=value / best if best > 0.0 else None,
        ratio_ci95=(low / best, high / best) if best > 0.0 else None,
        changes_per_bar=float(changes.mean()),
        share_in_position=float(np.mean(np.concatenate(paths) != 0)),
        cost_bps=world.cost_bps,
        bars=len(changes),
        seeds=len(seeds),
        edges=sum(deflated_sharpe_ratio(net, trials) >= LEVEL for net in nets),
    )


def check_path(path: IntArray, bars: int) -> None:
    """Refuse positions that no five actions lead to, naming the bar."""
    if path.shape != (bars,):
        raise ValueError(
            f"a policy must give a position for each of {bars} bars, gave {path.shape}"
        )
    steps = np.abs(np.diff(path, prepend=0))
    wrong = (np.abs(path) > 1) | (steps > 1)
    if wrong.any():
        bar = int(np.argmax(wrong))
        before = int(path[bar - 1]) if bar else 0
        raise ValueError(
            f"position {path[bar]} after {before} at bar {bar}: positions are -1, 0 or 1, and "
            "change sides by way of 0"
        )


def net_returns(path: IntArray, returns: FloatArray, cost: float) -> FloatArray:
    """Give what each decision but the last earned in the bar after it, less its cost, [N - 1]."""
    changes = np.abs(np.diff(path, prepend=0))
    result: FloatArray = path[:-1] * returns[1:] - cost * changes[:-1]
    return result


def bootstrap_interval(parts: Sequence[FloatArray]) -> tuple[float, float]:
    """Give the 95 % interval of the joint mean by circular blocks within each part, seeded."""
    generator = np.random.default_rng(20_190_613)
    total = np.zeros(RESAMPLES)
    drawn = 0
    for part in parts:
        count = len(part)
        block = min(BLOCK_BARS, count)
        pieces = math.ceil(count / block)
        starts = generator.integers(0, count, (RESAMPLES, pieces))
        sums = np.concatenate([[0.0], np.cumsum(np.concatenate([part, part[:block]]))])
        total += (sums[starts + block] - sums[starts]).sum(axis=1)
        drawn += pieces * block
    low, high = np.quantile(total / drawn, [0.5 * (1.0 - LEVEL), 0.5 * (1.0 + LEVEL)])
    return float(low), float(high)


def deflated_sharpe_ratio(net: FloatArray, trials: int = 1) -> float:
    """Give the chance that the true Sharpe ratio beats the best of `trials` worthless ones.

    Bailey and Lopez de Prado (2014); the spread of worthless ratios is that of their estimate,
    1 / sqrt(T - 1). With one trial this is the probabilistic Sharpe ratio against 0. Constant
    returns show nothing: 0.
    """
    if trials < 1:
        raise ValueError(f"trials must be 1 or more, was {trials}")
    count, spread = len(net), float(net.std())
    if spread == 0.0:
        return 0.0
    z = (net - net.mean()) / spread
    sharpe = float(net.mean()) / spread
    skewness, kurtosis = float(np.mean(z**3)), float(np.mean(z**4))
    hurdle = 0.0
    if trials > 1:
        hurdle = (
            (1.0 - _EULER) * _NORMAL.inv_cdf(1.0 - 1.0 / trials)
            + _EULER * _NORMAL.inv_cdf(1.0 - 1.0 / (trials * math.e))
        ) / math.sqrt(count - 1)
    error = math.sqrt(1.0 - skewness * sharpe + 0.25 * (kurtosis - 1.0) * sharpe**2)
    return _NORMAL.cdf((sharpe - hurdle) * math.sqrt(count - 1) / error)


def _lagged(candles: WorldCandles, lags: int) -> FloatArray:
    """Lay side by side the last returns and shadows at each close, [N, 3 * lags]; 0 before the
    first."""
    top = np.maximum(candles.open, candles.close)
    bottom = np.minimum(candles.open, candles.close)
    shadows = (np.log(candles.high / top), np.log(bottom / candles.low))
    parts = []
    for column in (candles.returns, *shadows):
        padded = np.concatenate([np.zeros(lags - 1), column])
        parts.append(sliding_window_view(padded, lags))
    return np.concatenate(parts, axis=1)


def _band(forecast: FloatArray, opens: float, closes: float) -> IntArray:
    """Open beyond `opens`, close when the forecast no longer favours the side by `closes`."""
    path, held = [], 0
    for value in forecast.tolist():
        if held == 0:
            held = 1 if value > opens else -1 if value < -opens else 0
        elif held * value < closes:
            held = 0
        path.append(held)
    return np.array(path, dtype=np.int64)
