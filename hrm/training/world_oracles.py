"""Oracles: the best policy of each world for one who sees closed bars only, and what it earns.

The worlds' prices do not depend on our position, so the best policy follows from two exact parts:

1. A filter turns the bars so far into the little that matters for the future: the Kalman filter's
   mean (W1; Kalman 1960), the chance of a regime by the forward algorithm of a hidden Markov model
   (W2, W3; Rabiner 1989, Hamilton 1989), the direction and the flags since the last reset (W4).
2. A dynamic programme over (that state, position held) finds the highest mean net log return per
   bar: the average-reward optimality equation by relative value iteration (Puterman 1994, 8.5).
   Expectations are sums over an even grid, values between its points linear: good to about 0.2 %.
   The tests hold the value against what the policy earns in fresh draws.

A position is decided at a bar's close, filled there (the next open is the same price), held for
the next bar, and may change as the five actions allow: from flat to long or short, back to flat,
never from one side to the other at once. Where nothing can be known (W0, W5) the best is to stay
flat, which earns 0.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hrm.training.worlds import (
    LONG_SHADOW,
    DriftRegimes,
    FlippingSignal,
    HiddenAlpha,
    SequentialRule,
    World,
    WorldCandles,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

POSITIONS: Final = (-1, 0, 1)
REACHABLE: Final = {-1: (-1, 0), 0: (0, -1, 1), 1: (1, 0)}  # first: stay, which wins ties
TOLERANCE: Final = 1e-4  # of the value, in units of the largest expected move
MOST_ITERATIONS: Final = 20_000


class Oracle(ABC):
    """Decide as well as can be done without knowing the future. value: log return per bar, net."""

    value: float

    @abstractmethod
    def positions(self, candles: WorldCandles) -> IntArray:
        """Return the position (-1, 0, 1) decided at each bar's close, [N]."""


class FlatOracle(Oracle):
    """Stay out of a market in which nothing can be known."""

    value = 0.0

    def positions(self, candles: WorldCandles) -> IntArray:
        """Hold nothing at any bar."""
        return np.zeros(len(candles), dtype=np.int64)


class PlannedOracle(Oracle):
    """Filter the bars, then follow a plan: what holding each position is worth, on a grid."""

    def __init__(self, world: World) -> None:
        self._cost = world.cost

    @abstractmethod
    def filtered(self, candles: WorldCandles) -> FloatArray:
        """Return the state known at each bar's close, [N, D]."""

    @abstractmethod
    def worth(self, states: FloatArray) -> FloatArray:
        """Value holding short, nothing, long for the next bar and going on best: [N, 3].

        Without the cost of getting there; up to a constant.
        """

    def positions(self, candles: WorldCandles) -> IntArray:
        """Take at each close the reachable position that is worth most after its cost."""
        return best_path(self.worth(self.filtered(candles)), self._cost)


def best_path(worth: FloatArray, cost: float) -> IntArray:
    """Walk through [N, 3] worths from flat, each time to the best reachable position."""
    path, held = [], 0
    for row in worth.tolist():
        held = max(REACHABLE[held], key=lambda p: row[p + 1] - cost * abs(p - held))
        path.append(held)
    return np.array(path, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Plan:
    """Hold the solved programme: value per bar, and what going on is worth, [S, 3]."""

    value: float
    onward: FloatArray


def solve(transition: FloatArray, move: FloatArray, cost: float) -> Plan:
    """Solve max mean of (position x move - cost) over a chain that the position does not touch.

    transition: [S, S], rows sum to 1; move: [S] expected return of the next bar. onward[s, p] is
    the expected relative value one bar after holding POSITIONS[p] from state s.
    """
    if not np.allclose(transition.sum(axis=1), 1.0):
        raise ValueError("every row of the transition matrix must sum to 1")
    gain = np.outer(move, POSITIONS)  # [S, 3]
    largest = float(np.abs(move).max())
    relative = np.zeros((len(move), 3))
    for _ in range(MOST_ITERATIONS):
        onward = transition @ relative
        held = gain + onward  # worth of holding p now, whatever it cost to get there
        flat = held[:, 1]
        updated = np.stack(
            [
                np.maximum(held[:, 0], flat - cost),
                np.maximum(flat, np.maximum(held[:, 0], held[:, 2]) - cost),
                np.maximum(held[:, 2], flat - cost),
            ],
            axis=1,
        )
        change = updated - relative
        low, high = float(change.min()), float(change.max())
        relative = updated - updated[0, 1]
        if high - low <= TOLERANCE * largest:
            return Plan(value=0.5 * (low + high), onward=transition @ relative)
    raise ValueError(
        f"no best policy found in {MOST_ITERATIONS} iterations (value between {low:.3g} and "
        f"{high:.3g}): the world's hidden state hardly ever changes, use shorter stays"
    )


class AlphaOracle(PlannedOracle):
    """W1: the Kalman filter's forecast of the next return is all there is to know."""

    GRID: Final = 241
    REACH: Final = 5.0  # standard deviations of the forecast

    def __init__(self, world: HiddenAlpha) -> None:
        super().__init__(world)
        self._decay = world.decay
        self._alpha_variance = world.alpha**2
        self._noise_variance = world.volatility**2
        forecast_variance = self._steady_forecast_variance()
        innovation = forecast_variance + self._noise_variance
        step = self._decay * forecast_variance / math.sqrt(innovation)
        spread = math.sqrt(step**2 / (1.0 - self._decay**2))
        self._grid = np.linspace(-self.REACH * spread, self.REACH * spread, self.GRID)
        transition = _normal_weights(self._decay * self._grid, step, self._grid)
        self._plan = solve(transition, self._grid, self._cost)
        self.value = self._plan.value

    def filtered(self, candles: WorldCandles) -> FloatArray:
        """Forecast the next return at each close: [N, 1]."""
        forecast, variance = 0.0, self._alpha_variance
        known = []
        for observed in candles.returns.tolist():
            gain = variance / (variance + self._noise_variance)
            forecast = self._decay * (forecast + gain * (observed - forecast))
            variance = self._predicted((1.0 - gain) * variance)
            known.append(forecast)
        return np.array(known)[:, None]

    def worth(self, states: FloatArray) -> FloatArray:
        """Read the plan at any forecast."""
        forecast = np.clip(states[:, 0], self._grid[0], self._grid[-1])
        onward = [np.interp(forecast, self._grid, column) for column in self._plan.onward.T]
        worth: FloatArray = np.outer(states[:, 0], POSITIONS) + np.stack(onward, axis=1)
        return worth

    def _predicted(self, variance: float) -> float:
        return self._decay**2 * variance + (1.0 - self._decay**2) * self._alpha_variance

    def _steady_forecast_variance(self) -> float:
        """Iterate the Riccati equation of one dimension to its fixed point."""
        variance, before = self._alpha_variance, math.inf
        while abs(variance - before) > 1e-14 * variance:
            before = variance
            kept = variance * self._noise_variance / (variance + self._noise_variance)
            variance = self._predicted(kept)
        return variance


class RegimeOracle(PlannedOracle):
    """W2 and W3: the log odds of the upper regime in the next bar, and the last return.

    In both, the next return is regime x lean + noise: in W2 the lean is the drift, in W3 it is
    persistence x last return. W2 needs one point of the second axis only.
    """

    def __init__(self, world: DriftRegimes | FlippingSignal) -> None:
        super().__init__(world)
        self._flip = 1.0 / world.stay_bars
        self._noise_variance = world.volatility**2
        self._world = world
        reach = math.log((1.0 - self._flip) / self._flip)
        match world:
            case DriftRegimes():
                self._odds = np.linspace(-reach, reach, 201)
                self._last = np.zeros(1)
                reach = world.drift + 5.0 * world.volatility
                self._observed = np.linspace(-reach, reach, 61)
            case FlippingSignal():
                self._odds = np.linspace(-reach, reach, 41)
                reach = 4.5 * world.volatility / math.sqrt(1.0 - world.persistence**2)
                self._last = self._observed = np.linspace(-reach, reach, 25)
        move = np.outer(_expected_sign(self._odds), self._lean(self._last))  # [odds, last]
        self._plan = solve(self._transition(), move.ravel(), self._cost)
        self.value = self._plan.value

    def filtered(self, candles: WorldCandles) -> FloatArray:
        """Return log odds of the upper regime in the next bar, and the last return: [N, 2]."""
        returns = candles.returns
        leans = self._lean(np.concatenate([[0.0], returns[:-1]]))
        evidence = 2.0 * leans * returns / self._noise_variance
        odds, known = 0.0, []
        for news in evidence.tolist():
            odds = float(self._predicted(np.float64(odds + news)))
            known.append(odds)
        return np.stack([np.array(known), returns], axis=1)

    def chance_up(self, candles: WorldCandles) -> FloatArray:
        """Return the chance that the next bar is in the upper regime, [N]."""
        return _logistic(self.filtered(candles)[:, 0])

    def worth(self, states: FloatArray) -> FloatArray:
        """Read the plan at any odds and last return."""
        move = _expected_sign(states[:, 0]) * self._lean(states[:, 1])
        row, along_odds = _between(self._odds, states[:, 0])
        column, along_last = _between(self._last, states[:, 1])
        table = self._plan.onward.reshape(len(self._odds), len(self._last), 3)
        onward = np.zeros((len(states), 3))
        for up, right in product((0, 1), repeat=2):
            share = (along_odds if up else 1.0 - along_odds) * (
                along_last if right else 1.0 - along_last
            )
            at = np.minimum(column + right, len(self._last) - 1)
            onward += share[:, None] * table[row + up, at]
        return np.outer(move, POSITIONS) + onward

    def _lean(self, last: FloatArray) -> FloatArray:
        match self._world:
            case DriftRegimes():
                return np.full(len(last), self._world.drift)
            case FlippingSignal():
                return self._world.persistence * last

    def _predicted(self, odds: FloatArray | np.float64) -> FloatArray:
        """Let one chance of a flip pass: log odds now to log odds in the next bar."""
        up = _logistic(odds)
        later = up * (1.0 - self._flip) + (1.0 - up) * self._flip
        result: FloatArray = np.log(later / (1.0 - later))
        return result

    def _transition(self) -> FloatArray:
        """Work out where the state goes from each grid point, [S, S]."""
        rows, columns, points = len(self._odds), len(self._last), len(self._observed)
        result = np.zeros((rows, columns, rows, columns))
        up = _logistic(self._odds)[:, None]
        column = np.arange(points) if columns > 1 else np.zeros(points, dtype=np.int64)
        for j, lean in enumerate(self._lean(self._last).tolist()):
            means = np.array([lean, -lean])
            chance = _normal_weights(means, self._world.volatility, self._observed)
            evidence = 2.0 * lean * self._observed / self._noise_variance
            following = self._predicted(self._odds[:, None] + evidence)  # [rows, points]
            index, along = _between(self._odds, following)
            weights = up * chance[0] + (1.0 - up) * chance[1]
            row = np.arange(rows)[:, None]
            np.add.at(result[:, j], (row, index, column), weights * (1.0 - along))
            np.add.at(result[:, j], (row, index + 1, column), weights * along)
        return result.reshape(rows * columns, rows * columns)


class SequenceOracle(PlannedOracle):
    """W4: direction and flags since the reset are read off the shadows, exactly."""

    def __init__(self, world: SequentialRule) -> None:
        super().__init__(world)
        self._flags = world.flags
        self._drift = world.drift
        self._long = LONG_SHADOW * world.volatility
        depths = world.flags + 1
        transition = np.zeros((2 * depths, 2 * depths))
        for side, depth in product((0, 1), range(depths)):
            here = side * depths + depth
            transition[here, here] += 1.0 - world.event_share
            if depth < world.flags:
                transition[here, (1 - side) * depths + depth + 1] += world.event_share
            else:
                transition[here, [0, depths]] += 0.5 * world.event_share
        self._move = np.repeat([-world.drift, world.drift], depths)
        self._plan = solve(transition, self._move, self._cost)
        self.value = self._plan.value

    def filtered(self, candles: WorldCandles) -> FloatArray:
        """Return direction (-1, 1; 0 before the first reset) and flags since the reset: [N, 2]."""
        top = np.maximum(candles.open, candles.close)
        bottom = np.minimum(candles.open, candles.close)
        has_upper = np.log(candles.high / top) > self._long
        has_lower = np.log(bottom / candles.low) > self._long
        direction, depth, known = 0.0, 0.0, []
        for upper, lower in zip(has_upper.tolist(), has_lower.tolist(), strict=True):
            if upper and lower:
                direction, depth = -direction, depth + 1.0
            elif upper or lower:
                direction, depth = (1.0, 0.0) if upper else (-1.0, 0.0)
            known.append((direction, depth))
        return np.array(known)

    def worth(self, states: FloatArray) -> FloatArray:
        """Read the plan; before the first reset nothing is known and nothing is held."""
        index = (states[:, 0] > 0) * (self._flags + 1) + states[:, 1].astype(np.int64)
        known = np.outer(self._move[index], POSITIONS) + self._plan.onward[index]
        flat = np.array([-1.0, 0.0, -1.0])
        return np.where(states[:, :1] == 0.0, flat, known)


@lru_cache(maxsize=32)
def oracle_of(world: World) -> Oracle:
    """Find the best policy of a world; the same object for the same parameters."""
    match world:
        case HiddenAlpha():
            return AlphaOracle(world)
        case DriftRegimes() | FlippingSignal():
            return RegimeOracle(world)
        case SequentialRule():
            return SequenceOracle(world)
        case _:
            return FlatOracle()


def _normal_weights(means: FloatArray, spread: float, points: FloatArray) -> FloatArray:
    """Give the weights of evenly spaced points in the mean over N(mean, spread^2): [M, P].

    The trapezoidal rule, which for a normal density is exact to many digits from half a spread on.
    """
    density = np.exp(-0.5 * np.square((points - means[:, None]) / spread))
    weights: FloatArray = density / density.sum(axis=1, keepdims=True)
    return weights


def _logistic(odds: FloatArray | np.float64) -> FloatArray:
    result: FloatArray = 0.5 + 0.5 * np.tanh(0.5 * odds)  # no overflow, unlike exp
    return result


def _expected_sign(odds: FloatArray) -> FloatArray:
    return 2.0 * _logistic(odds) - 1.0


def _between(grid: FloatArray, points: FloatArray) -> tuple[IntArray, FloatArray]:
    """Say below each point which grid index lies, and how far to the next it is, in [0, 1]."""
    if len(grid) == 1:
        return np.zeros(points.shape, dtype=np.int64), np.zeros(points.shape)
    place = (np.clip(points, grid[0], grid[-1]) - grid[0]) / (grid[1] - grid[0])
    index = np.minimum(place.astype(np.int64), len(grid) - 2)
    return index, place - index
