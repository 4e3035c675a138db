"""Worlds: synthetic markets whose best policy is known, as candles, with the truth kept apart.

A model that learns here has learned what there was to learn, and one that finds something in W0 or
W5 has found a fault in the learning path. What the best policy earns is for `world_oracles`, how a
policy is judged for `world_scores`. Numpy only, everything drawn from a seed.

r[t] is the log return of bar t, from its open, which is the close before it, to its close; e[t] is
standard normal noise and s the volatility of a bar.

- W0 `Null`: r[t] = s[t] e[t], s[t]^2 = w + arch r[t-1]^2 + garch s[t-1]^2 (GARCH(1,1), Bollerslev
  1986). The log price is a martingale: nothing can be earned, costs can be saved.
- W1 `HiddenAlpha`: r[t] = a[t] + s e[t]; a is a stationary AR(1), the Ornstein-Uhlenbeck process
  seen at whole bars, as in Garleanu and Pedersen (2013), but hidden.
- W2 `DriftRegimes`: r[t] = z[t] drift + s e[t]; z = +1 or -1 is a hidden Markov chain (Hamilton
  1989).
- W3 `FlippingSignal`: r[t] = z[t] persistence r[t-1] + s e[t]: the last return is a fast signal
  that everybody sees, and a slow hidden regime decides whether it means on or back (Hamilton's
  Markov-switching autoregression).
- W4 `SequentialRule`: r[t] = d[t-1] drift + s e[t]. A bar with one long shadow resets the direction
  d to the shadow's side, a bar with two long shadows (a flag) turns it round. After every reset
  come `flags` flags, then the next reset: after k flags, d takes k inferences to know.
- W5 `Shuffled`: the bars of W1, W2 or W3 in random order, each mirrored or not by a coin. Every
  bar keeps its shape, every tie between bars is cut. Whole single bars are shuffled, because longer
  blocks would keep what is inside them.

In all but W4, high and low are those of a Brownian bridge between open and close (Karatzas and
Shreve 1991), drawn independently of each other: given open and close they say nothing about the
hidden state, so that closes are all the oracle needs. Volume is noise everywhere.
"""

import csv
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

WorldName = Literal["W0", "W1", "W2", "W3", "W4", "W5"]
WORLD_NAMES: Final[tuple[WorldName, ...]] = get_args(WorldName)

BAR_MINUTES: Final = 5
BAR_NS: Final = BAR_MINUTES * 60 * 1_000_000_000
START_NS: Final = 1_514_764_800 * 1_000_000_000  # Monday 2018-01-01 00:00 UTC
BARS_PER_WEEK: Final = 5 * 24 * 60 // BAR_MINUTES  # Monday to Friday, around the clock
WEEK_NS: Final = 7 * 86_400 * 1_000_000_000
START_PRICE: Final = 20_000.0
DECIMALS: Final = 2  # at the start price a tick is 0.005 bps: far below every signal
LOWEST_PRICE, HIGHEST_PRICE = 100.0, 1e8
MEAN_VOLUME: Final = 10_000.0
LONG_SHADOW: Final = 1.0  # in volatilities: what is above is a long one, drawn clear of the line
NONE, FLAG, RESET_UP, RESET_DOWN = range(4)  # events of W4


@dataclass(frozen=True, slots=True)
class WorldCandles:
    """Hold closed bars, oldest first, [N] each: all that a policy may see.

    Five minutes each, without a break from Monday to Friday, UTC; no gap in price.
    """

    open: FloatArray
    high: FloatArray
    low: FloatArray
    close: FloatArray
    volume: IntArray
    open_ns: IntArray

    def __len__(self) -> int:
        return len(self.close)

    @property
    def returns(self) -> FloatArray:
        """Log returns of the bars from open to close, [N]."""
        result: FloatArray = np.log(self.close / self.open)
        return result

    def first(self, bars: int) -> "WorldCandles":
        """Return the oldest bars: what was to be seen then."""
        return WorldCandles(**{f.name: getattr(self, f.name)[:bars] for f in fields(self)})


@dataclass(frozen=True, slots=True)
class Draw:
    """Hold one drawn history, [N] each: log returns, shadows beyond open and close, the truth."""

    returns: FloatArray
    upper: FloatArray
    lower: FloatArray
    hidden: dict[str, FloatArray]


@dataclass(frozen=True)
class World(ABC):
    """Hold a world's parameters, and draw from it.

    cost_bps: per side, of the traded value. volatility_bps: of one bar's noise.
    """

    name: ClassVar[WorldName]

    cost_bps: float = 2.0
    volatility_bps: float = 10.0

    def __post_init__(self) -> None:
        _require(self.cost_bps >= 0.0, "cost_bps", self.cost_bps, "0 or more")
        _require(self.volatility_bps > 0.0, "volatility_bps", self.volatility_bps, "above 0")

    @property
    def cost(self) -> float:
        """Cost of one side as a log return."""
        return self.cost_bps * 1e-4

    @property
    def volatility(self) -> float:
        """Volatility of one bar's noise as a log return."""
        return self.volatility_bps * 1e-4

    @abstractmethod
    def draw(self, bars: int, generator: np.random.Generator) -> Draw:
        """Draw a history of so many bars."""

    def _bridged(
        self, returns: FloatArray, generator: np.random.Generator, **hidden: FloatArray
    ) -> Draw:
        upper, lower = bridge_shadows(returns, self.volatility, generator)
        return Draw(returns, upper, lower, hidden)


@dataclass(frozen=True)
class Null(World):
    """W0: nothing to find. volatility_bps is the long-run one; arch + garch < 1."""

    name = "W0"

    arch: float = 0.08
    garch: float = 0.90

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.arch >= 0.0, "arch", self.arch, "0 or more")
        _require(self.garch >= 0.0, "garch", self.garch, "0 or more")
        total = self.arch + self.garch
        _require(total < 1.0, "arch + garch", total, "below 1, else no long-run volatility exists")

    def draw(self, bars: int, generator: np.random.Generator) -> Draw:
        """Draw returns whose size is predictable and whose sign is not."""
        noise = generator.standard_normal(bars).tolist()
        long_run = self.volatility**2
        base = (1.0 - self.arch - self.garch) * long_run
        variance, returns, volatility = long_run, [], []
        for shock in noise:
            volatility.append(math.sqrt(variance))
            returns.append(volatility[-1] * shock)
            variance = base + self.arch * returns[-1] ** 2 + self.garch * variance
        truth = np.array(volatility)
        moves = np.array(returns)
        upper, lower = bridge_shadows(moves, truth, generator)
        return Draw(moves, upper, lower, {"volatility": truth})


@dataclass(frozen=True)
class HiddenAlpha(World):
    """W1: an expected return of alpha_bps (standard deviation) that fades by its half-life."""

    name = "W1"

    alpha_bps: float = 5.0
    half_life_bars: float = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.alpha_bps > 0.0, "alpha_bps", self.alpha_bps, "above 0")
        _require(self.half_life_bars > 0.0, "half_life_bars", self.half_life_bars, "above 0")

    @property
    def decay(self) -> float:
        """Share of alpha that is left one bar later."""
        return float(0.5 ** (1.0 / self.half_life_bars))

    @property
    def alpha(self) -> float:
        """Stationary standard deviation of alpha as a log return."""
        return self.alpha_bps * 1e-4

    def draw(self, bars: int, generator: np.random.Generator) -> Draw:
        """Draw alpha from its stationary law on, and returns around it."""
        shocks = self.alpha * math.sqrt(1.0 - self.decay**2) * generator.standard_normal(bars)
        alpha = [self.alpha * float(generator.standard_normal())]
        for shock in shocks[1:].tolist():
            alpha.append(self.decay * alpha[-1] + shock)
        truth = np.array(alpha)
        returns = truth + self.volatility * generator.standard_normal(bars)
        return self._bridged(returns, generator, alpha=truth)


@dataclass(frozen=True)
class DriftRegimes(World):
    """W2: a drift up or down that lasts stay_bars on average; which of the two is hidden."""

    name = "W2"

    drift_bps: float = 3.0
    stay_bars: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.drift_bps > 0.0, "drift_bps", self.drift_bps, "above 0")
        _require(self.stay_bars > 2.0, "stay_bars", self.stay_bars, "above 2")

    @property
    def drift(self) -> float:
        """Drift per bar as a log return."""
        return self.drift_bps * 1e-4

    def draw(self, bars: int, generator: np.random.Generator) -> Draw:
        """Draw regimes, and returns around their drift."""
        regime = _regimes(bars, self.stay_bars, generator)
        returns = self.drift * regime + self.volatility * generator.standard_normal(bars)
        return self._bridged(returns, generator, regime=regime)


@dataclass(frozen=True)
class FlippingSignal(World):
    """W3: the last return tells the next one, times persistence; its sign is a hidden regime's."""

    name = "W3"

    persistence: float = 0.5
    stay_bars: float = 200.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0.0 < self.persistence < 1.0, "persistence", self.persistence, "in (0, 1)")
        _require(self.stay_bars > 2.0, "stay_bars", self.stay_bars, "above 2")

    def draw(self, bars: int, generator: np.random.Generator) -> Draw:
        """Draw regimes, and an autoregression that follows them."""
        regime = _regimes(bars, self.stay_bars, generator)
        noise = self.volatility * generator.standard_normal(bars)
        returns, last = [], 0.0
        for sign, shock in zip(regime.tolist(), noise.tolist(), strict=True):
            last = sign * self.persistence * last + shock
            returns.append(last)
        return self._bridged(np.array(returns), generator, regime=regime)


@dataclass(frozen=True)
class SequentialRule(World):
    """W4: resets and flags among the bars; event_share of bars are one or the other."""

    name = "W4"

    drift_bps: float = 5.0
    flags: int = 4
    event_share: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.drift_bps > 0.0, "drift_bps", self.drift_bps, "above 0")
        _require(self.flags >= 1, "flags", self.flags, "1 or more")
        _require(0.0 < self.event_share <= 1.0, "event_share", self.event_share, "in (0, 1]")

    @property
    def drift(self) -> float:
        """Drift per bar as a log return."""
        return self.drift_bps * 1e-4

    def draw(self, bars: int, generator: np.random.Generator) -> Draw:
        """Draw events, beginning with a reset, and returns around the direction they leave."""
        is_event = generator.random(bars) < self.event_share
        is_event[0] = True
        is_up = generator.random(bars) < 0.5
        events, direction, depth = [], [], []
        sign, flags = 0.0, self.flags
        for happens, up in zip(is_event.tolist(), is_up.tolist(), strict=True):
            event = NONE
            if happens and flags == self.flags:
                event, sign, flags = (RESET_UP, 1.0, 0) if up else (RESET_DOWN, -1.0, 0)
            elif happens:
                event, sign, flags = FLAG, -sign, flags + 1
            events.append(event)
            direction.append(sign)
            depth.append(flags)
        kind = np.array(events)
        truth = np.array(direction)
        before = np.concatenate([[0.0], truth[:-1]])
        returns = self.drift * before + self.volatility * generator.standard_normal(bars)
        short = generator.uniform(0.1, 0.5, (2, bars)) * self.volatility
        long = generator.uniform(1.5, 2.5, (2, bars)) * self.volatility
        upper = np.where((kind == FLAG) | (kind == RESET_UP), long[0], short[0])
        lower = np.where((kind == FLAG) | (kind == RESET_DOWN), long[1], short[1])
        hidden = {"direction": truth, "event": kind.astype(np.float64), "depth": np.array(depth)}
        return Draw(returns, upper, lower, hidden)


@dataclass(frozen=True)
class Shuffled(World):
    """W5: the bars of another world (with its own default parameters), shuffled and mirrored."""

    name = "W5"

    base: str = "W2"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base not in ("W1", "W2", "W3"):
            raise ValueError(f"base must be W1, W2 or W3, was {self.base!r}")

    def draw(self, bars: int, generator: np.random.Generator) -> Draw:
        """Draw from the base world, then cut every tie between its bars."""
        world = parameters_for(self.base, volatility_bps=self.volatility_bps)
        drawn = world.draw(bars, generator)
        order = generator.permutation(bars)
        # Mirrored by a coin: the sum of a finite permutation is fixed, which would leave a trace.
        is_mirrored = generator.random(bars) < 0.5
        returns, upper, lower = drawn.returns[order], drawn.upper[order], drawn.lower[order]
        return Draw(
            returns=np.where(is_mirrored, -returns, returns),
            upper=np.where(is_mirrored, lower, upper),
            lower=np.where(is_mirrored, upper, lower),
            hidden={"order": order.astype(np.float64), "is_mirrored": is_mirrored.astype(float)},
        )


_WORLDS: Final[dict[str, type[World]]] = {
    kind.name: kind
    for kind in (Null, HiddenAlpha, DriftRegimes, FlippingSignal, SequentialRule, Shuffled)
}


@dataclass(frozen=True, slots=True)
class WorldData:
    """Hold candles and, apart from them, what nobody in the market knows ([N] each, by name)."""

    candles: WorldCandles
    seed: int
    parameters: World
    hidden: Mapping[str, FloatArray] = field(repr=False)

    @property
    def world(self) -> WorldName:
        """Name of the world."""
        return self.parameters.name


def generate(
    world: WorldName | str, bars: int, seed: int, parameters: World | None = None
) -> WorldData:
    """Draw so many bars of a world; the same arguments give the same bars.

    parameters: default those of `parameters_for(world)`. Worlds of one seed share no noise.
    """
    if bars < 2:
        raise ValueError(f"bars must be at least 2, was {bars}")
    if seed < 0:
        raise ValueError(f"seed must not be negative, was {seed}")
    chosen = parameters_for(world) if parameters is None else parameters
    if chosen.name != world:
        raise ValueError(f"the parameters given are those of {chosen.name}, not of {world}")
    generator = np.random.default_rng([seed, WORLD_NAMES.index(chosen.name)])
    drawn = chosen.draw(bars, generator)
    candles = _candles(drawn, generator)
    return WorldData(candles=candles, seed=seed, parameters=chosen, hidden=drawn.hidden)


def parameters_for(world: WorldName | str, **changes: object) -> World:
    """Build a world's parameters by name; values may be text, as from a command line."""
    if world not in _WORLDS:
        raise ValueError(f"no world {world!r}: choose one of {', '.join(WORLD_NAMES)}")
    kind = _WORLDS[world]
    types = {f.name: f.type for f in fields(kind)}
    values: dict[str, object] = {}
    for name, value in changes.items():
        if name not in types:
            raise ValueError(f"{world} has no parameter {name!r}: it has {', '.join(types)}")
        expected = types[name]
        try:
            values[name] = expected(value) if isinstance(expected, type) else value
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} of {world} must be a number, was {value!r}") from error
        if isinstance(values[name], float) and not math.isfinite(float(str(values[name]))):
            raise ValueError(f"{name} of {world} must be finite, was {value!r}")
    return kind(**values)  # type: ignore[arg-type]  # by name, checked above


def parameter_values(world: World) -> dict[str, float | int | str]:
    """Return all parameters by name, ready for JSON."""
    return asdict(world)


def write_csv(path: Path, candles: WorldCandles) -> None:
    """Write candles as raw CSV: an index without a name, epoch seconds of the open, prices,
    volume."""
    columns = (candles.open, candles.high, candles.low, candles.close)
    prices = zip(*(column.tolist() for column in columns), strict=True)
    opens_s = (candles.open_ns // 1_000_000_000).tolist()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["", "datetime", "open", "high", "low", "close", "volume"])
        for index, (open_s, row, volume) in enumerate(
            zip(opens_s, prices, candles.volume.tolist(), strict=True)
        ):
            writer.writerow([index, open_s, *(f"{price:.{DECIMALS}f}" for price in row), volume])


def bridge_shadows(
    returns: FloatArray, volatility: FloatArray | float, generator: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Draw how far a Brownian bridge goes above and below open and close, [N] each, log price.

    The highest point of a bridge from 0 to r is (r + sqrt(r^2 - 2 s^2 ln U)) / 2, U uniform; the
    drift of the path it was cut from does not enter.
    """
    exponential = generator.standard_exponential((2, len(returns)))  # -ln U
    reach = np.sqrt(returns**2 + 2.0 * np.square(volatility) * exponential)
    highest = 0.5 * (returns + reach[0])
    lowest = 0.5 * (returns - reach[1])
    upper: FloatArray = highest - np.maximum(returns, 0.0)
    lower: FloatArray = np.minimum(returns, 0.0) - lowest
    return upper, lower


def _regimes(bars: int, stay_bars: float, generator: np.random.Generator) -> FloatArray:
    """Draw a chain of +1 and -1 that flips with chance 1 / stay_bars each bar, [N]."""
    flips = generator.random(bars) < 1.0 / stay_bars
    flips[0] = generator.random() < 0.5
    signs: FloatArray = np.where(np.cumsum(flips) % 2 == 0, 1.0, -1.0)
    return signs


def _candles(drawn: Draw, generator: np.random.Generator) -> WorldCandles:
    """Turn log returns and shadows into prices on the tick grid, and put them on the clock."""
    bars = len(drawn.returns)
    exact = START_PRICE * np.exp(np.cumsum(drawn.returns))
    if exact.min() < LOWEST_PRICE or exact.max() > HIGHEST_PRICE:
        raise ValueError(
            f"the price wandered to {exact.min():.4g}..{exact.max():.4g}, outside "
            f"{LOWEST_PRICE:g}..{HIGHEST_PRICE:g}: draw fewer bars, or several seeds"
        )
    close = np.round(exact, DECIMALS)
    open_ = np.concatenate([[START_PRICE], close[:-1]])
    top, bottom = np.maximum(open_, close), np.minimum(open_, close)
    high = np.maximum(np.round(top * np.exp(drawn.upper), DECIMALS), top)
    low = np.minimum(np.round(bottom * np.exp(-drawn.lower), DECIMALS), bottom)
    volume = np.rint(MEAN_VOLUME * np.exp(0.5 * generator.standard_normal(bars))).astype(np.int64)
    index = np.arange(bars, dtype=np.int64)
    week, bar = np.divmod(index, BARS_PER_WEEK)
    return WorldCandles(
        open=open_,
        high=high,
        low=low,
        close=close,
        volume=np.maximum(volume, 1),
        open_ns=START_NS + week * WEEK_NS + bar * BAR_NS,
    )


def _require(is_true: bool, name: str, value: float, claim: str) -> None:
    if not is_true:
        raise ValueError(f"{name} must be {claim}, was {value}")
