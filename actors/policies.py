"""Settings of the actors: one frozen model per actor, with units, ranges and safe defaults.

Only what an actor reads belongs here. Where the values are written down (which section of
settings.yaml, which environment variable) is for daemon/settings.py to know. A value that two
actors need, such as the brokerage, is written once in the file and handed to both.
"""

import math
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from actors.charges import ChargeTable

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveFraction = Annotated[float, Field(gt=0.0, le=1.0)]
Rupees = Annotated[Decimal, Field(ge=0)]

_WEIGHT_SUM_TOLERANCE = 1e-9


class Checked(BaseModel):
    """Refuse unknown keys, later changes, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ActorSettings(Checked):
    """Hold settings of an actor; every one has a safe default."""


class FeedSettings(ActorSettings):
    """Say which ticks make which bars, and when a tick or a silence is not to be believed."""

    instruments: tuple[str, ...] = Field(default=("Nifty",), min_length=1)
    """Symbols of instruments.yaml, in any spelling the catalogue knows; each once."""
    timeframe: str = "5"
    """Bar length in minutes as a decimal string, or "D"; one of the timeframes listed there."""
    stale_after_seconds: float = Field(default=10.0, gt=0.0, le=3600.0)
    """Market time without a tick, while the exchange is open, after which an alert goes out."""
    warm_up_bars: int = Field(default=2000, ge=0, le=2000)
    """Bars of the broker's history before the first live one; read where a feed is live."""
    future_tolerance_ms: int = Field(default=2000, ge=0, le=60_000)
    """How far ahead of the market clock a tick may be dated before it is refused."""
    depth: bool = False
    """Subscribe to the order books of what is traded, where the broker has them."""
    epochs_per_bar: int = Field(default=0, ge=0, le=20)
    """Most decisions within a bar, beside the one at its close; they only lead out of positions."""
    epoch_move_atr: Decimal = Field(default=Decimal("1.0"), gt=0, le=20)
    """Move since the last decision that calls for one, in average true ranges."""
    epoch_spacing_seconds: float = Field(default=10.0, ge=1.0, le=3600.0)
    """Least market time between two decisions on one instrument."""
    speed: Annotated[float, Field(gt=0.0)] | Literal["max"] = 60.0
    """Market seconds per real second when candles are played as ticks; "max" never waits.

    Read by the tick source only: live ticks come as they come.
    """

    @model_validator(mode="after")
    def _instruments_are_named_once(self) -> Self:
        repeated = sorted({name for name in self.instruments if self.instruments.count(name) > 1})
        if repeated:
            raise ValueError(
                f"instruments names {', '.join(repeated)} more than once: keep one of each"
            )
        return self


class ComplexityWeights(ActorSettings):
    """Weigh the four components of market complexity; together they must make 1."""

    volatility: Fraction = 0.3
    regime: Fraction = 0.3
    news: Fraction = 0.2
    correlation: Fraction = 0.2

    @model_validator(mode="after")
    def _weights_make_one(self) -> Self:
        total = self.volatility + self.regime + self.news + self.correlation
        if abs(total - 1.0) > _WEIGHT_SUM_TOLERANCE:
            raise ValueError(f"the weights must sum to 1, they sum to {total:g}: scale them")
        return self


class ForecastCoefficients(Checked):
    """Weigh what is known at a bar's close into the probability of a demanding window.

    A logistic regression, fitted offline by `python -m benchmarks.complexity_fit`.
    """

    intercept: float
    weights: tuple[float, ...]
    """One for each of actors.forecast.FEATURES, in that order."""
    fitted_from: str
    """First day, ISO, of the bars it was fitted on; what lies between the two days is no test."""
    fitted_until: str
    """Last day of the same."""

    def probability(self, features: Sequence[float]) -> float:
        """Return the probability in (0, 1)."""
        total = self.intercept + math.fsum(
            weight * value for weight, value in zip(self.weights, features, strict=True)
        )
        return 1.0 / (1.0 + math.exp(-min(max(total, -40.0), 40.0)))


class RegimeModel(Checked):
    """Describe three regimes as a hidden Markov chain; fitted offline with hmmlearn.

    In the order trending, ranging, volatile. Each emits (how far the last window moved more than
    the usual one, logarithmic; how straight it went, in [0, 1]) with a normal distribution and no
    correlation between the two.
    """

    start: tuple[float, float, float]
    transitions: tuple[tuple[float, float, float], ...]
    """Rows: from; they sum to 1."""
    means: tuple[tuple[float, float], ...]
    variances: tuple[tuple[float, float], ...]


class ScheduledEvent(Checked):
    """One dated fact that moves markets, with where it was read."""

    at: AwareDatetime
    """When it becomes known, with its offset from UTC."""
    kind: Literal["policy", "budget", "expiry", "results", "election", "holiday", "other"]
    name: str = Field(min_length=1)
    source: str = Field(min_length=1)
    """Where the date was read: a publisher and a day, or an address."""
    weight: Fraction = 1.0
    """Impact at its time."""
    instruments: tuple[str, ...] = ()
    """Symbols that it concerns; without any, all."""

    @property
    def at_ns(self) -> int:
        """The same instant in nanoseconds UTC."""
        return int(self.at.timestamp()) * 1_000_000_000


class EventSettings(ActorSettings):
    """Say which events are known, and for which days and instruments the list is complete."""

    covers_from: date | None = None
    """First day, UTC, that the list is complete for; None: nothing is known of any day."""
    covers_until: date | None = None
    """Last one, included."""
    covers_instruments: tuple[str, ...] = ()
    """Symbols that the list is complete for; without any, all. Of others nothing is known."""
    expiry_weight: Fraction = 0.0
    """Impact of an expiry at the close of its day, by the rules of sessions.yaml; 0: none."""
    holiday_weight: Fraction = 0.0
    """Impact of a holiday of sessions.yaml at the close of the session before it; 0: none."""
    half_life_hours: float = Field(default=2.0, gt=0.0, le=240.0)
    """After an event, in which its impact falls by half."""
    approach_half_life_hours: float = Field(default=6.0, gt=0.0, le=240.0)
    """Before an event, in which its impact doubles."""
    events: tuple[ScheduledEvent, ...] = ()

    @model_validator(mode="after")
    def _days_come_in_order(self) -> Self:
        if (self.covers_from is None) != (self.covers_until is None):
            raise ValueError("covers_from and covers_until belong together: give both or neither")
        if self.covers_from and self.covers_until and self.covers_from > self.covers_until:
            raise ValueError(
                f"covers_from {self.covers_from} must not be after covers_until {self.covers_until}"
            )
        return self


class ComplexityCoefficients(ActorSettings):
    """Hold what was fitted offline, by timeframe."""

    forecasts: dict[str, ForecastCoefficients] = {}
    """Without an entry for its timeframe the next window is not forecast."""
    regimes: dict[str, RegimeModel] = {}
    """Without an entry for its timeframe there are no regime probabilities."""


class ComplexitySettings(ActorSettings):
    """Set the windows, in bars, that market complexity is measured over."""

    weights: ComplexityWeights = ComplexityWeights()
    volatility_window: int = Field(default=20, ge=2, le=1000)
    """Returns in one volatility; also the bars that the regime is read from."""
    correlation_window: int = Field(default=50, ge=10, le=5000)
    """Returns in the usual correlation between instruments."""
    news_half_life_minutes: float = Field(default=60.0, gt=0.0, le=10_080.0)
    """Time after which an item of the news feed weighs half as much."""
    news_stale_after_seconds: float = Field(default=300.0, ge=1.0, le=86_400.0)
    """Longest time between a bar's close and a reading of the news feed that counts for it."""
    atr_period: int = Field(default=14, ge=2, le=200)
    """True ranges in the average true range that stops are set by."""
    coefficients: ComplexityCoefficients = ComplexityCoefficients()
    """What config/complexity.yaml says."""
    events: EventSettings = EventSettings()
    """What config/events.yaml says; without the file nothing is known of news."""


class ReasoningSettings(ActorSettings):
    """Say when reasoning may begin, and how many decisions it takes together.

    How long and how deep it may think is the model's own section, in hrm.config.
    """

    warm_up_bars: int = Field(default=96, ge=1, le=5000)
    """Closed bars seen before the first decision that is not HOLD: the model's window of 64 and
    the 32 bars that its features look back."""
    max_together: int = Field(default=32, ge=1, le=256)
    """Messages handled at a time; the decisions among them are thought about as one batch."""
    stuck_grace_ms: float = Field(default=150.0, ge=10.0, le=60_000.0)
    """After the deadline of a decision, until the process that owes it is ended and begins anew."""


class RiskLimits(ActorSettings):
    """Set what risk refuses. All fractions are of the initial capital unless said otherwise."""

    initial_capital: Decimal = Field(default=Decimal(100_000), gt=0)
    """Rupees at the start of the session."""
    brokerage_entry: Rupees = Decimal(25)
    """Rupees per entry order, taken from the capital before lots are counted."""
    max_position_lots: int = Field(default=100, ge=1, le=100_000)
    """Lots of one instrument, whatever the capital would pay for."""
    max_open_positions: int = Field(default=1, ge=1, le=100)
    """Instruments with an open position at the same time."""
    max_orders_per_minute: int = Field(default=20, ge=1, le=480)
    """Order intents of all instruments in any 60 seconds of market time. Exits count, and are
    never refused for it."""
    max_daily_loss: PositiveFraction = 0.03
    """Loss since the session opened, realised and open, that halts trading for the day."""
    max_drawdown: PositiveFraction = 0.10
    """Fall from the highest capital reached, as a fraction of that, that halts trading."""
    min_confidence: Fraction = 0.35
    """Probability of the action that an entry needs. Three actions are allowed without a position,
    so a third is a blind guess."""
    min_days_to_expiry: int = Field(default=0, ge=0, le=60)
    """Days that a future or an option must still have when it is entered; 0: on its last day too,
    until `last_day` of sessions.yaml. Contracts on shares are delivered: there, 1 or more."""
    max_chain_age_seconds: float = Field(default=30.0, gt=0.0, le=3600.0)
    """Market time since the option chain was read that an option is chosen from."""
    max_decision_age_seconds: float = Field(default=30.0, gt=0.0, le=3600.0)
    """Market time from the close of the bar that was decided on to the check by risk."""


class ExecutionSettings(ActorSettings):
    """Set how intents become orders, and how positions are protected and left."""

    risk_multiplier: Decimal = Field(default=Decimal("1.5"), gt=0)
    """Distance from the entry to the stop-loss, in average true ranges."""
    reward_multiplier: Decimal = Field(default=Decimal("3.0"), gt=0)
    """Distance from the entry to the target, in average true ranges."""
    brokerage_entry: Rupees = Decimal(25)
    """Rupees per entry order, taken from the capital."""
    brokerage_exit: Rupees = Decimal(35)
    """Rupees per exit order, taken from the result."""
    charges: Literal["flat", "statutory"] = "flat"
    """What an order costs: the two above, or the rates of its day."""
    charge_table: ChargeTable = ChargeTable()
    """These rates; read with `statutory` alone."""
    trade_index_through: Literal["index", "options"] = "index"
    """A view of an index orders the index itself, which only a simulated account takes, or buys an
    option from the chain that the venue reads: a call for a rise, a put for a fall."""
    option_strategy: Literal["ITM", "ATM", "OTM"] = "ITM"
    """Which strike, where no user's session says another."""
    trailing_stop: bool = True
    """Follow the best price since entry at the distance of the first stop."""
    slippage_ticks: int = Field(default=1, ge=0, le=100)
    """Ticks by which a simulated fill is worse than the price it was triggered by."""
    slippage_bps: Decimal = Field(default=Decimal("0.5"), ge=0, le=100)
    """Basis points (1/10,000) of the price, on top of the ticks, for the same reason."""
    order_type: Literal["market", "limit"] = "market"
    """How entries and exits are placed; `limit` is a market order with a worst price."""
    limit_band: PositiveFraction = 0.005
    """How much worse than the last price such a limit is, as a fraction of the price."""
    reprice_after_seconds: float = Field(default=3.0, gt=0.0, le=600.0)
    """Market time that such an order rests before its limit follows the price."""
    reprice_attempts: int = Field(default=2, ge=0, le=10)
    """Times that it does; then the order waits for its timeout, and is cancelled."""
    order_timeout_seconds: float = Field(default=10.0, gt=0.0, le=600.0)
    """Market time an order may stay without a final answer before it is cancelled or asked for."""
    exit_attempts: int = Field(default=3, ge=1, le=10)
    """Times an exit is sent, each after the one before failed; then a person is called, and it is
    tried on slowly. Rejects that mend themselves (login, rate, retryable) do not count."""
    exit_retry_seconds: float = Field(default=1.0, ge=0.0, le=60.0)
    """Market time between two of these attempts."""
    max_order_rate_per_second: int = Field(default=8, ge=1, le=9)
    """Orders and cancels in any second of real time. From 10 on an algorithm must be registered,
    and the exchange counts arrivals, which may bunch: hence the spare."""


class MonitoringSettings(ActorSettings):
    """Set when monitoring warns, when it calls a person, and when it takes the model out."""

    heartbeat_seconds: float = Field(default=1.0, gt=0.0, le=60.0)
    """Real time between two signs of life of an actor."""
    silent_after_seconds: float = Field(default=10.0, gt=0.0, le=600.0)
    """Real time without one after which the actor counts as dead."""
    latency_warning_ms: float = Field(default=50.0, gt=0.0)
    """Time of one inference above which a warning goes out."""
    latency_critical_ms: float = Field(default=100.0, gt=0.0)
    """Time of one inference above which the alert is critical."""
    memory_warning_gb: float = Field(default=3.0, gt=0.0)
    """Resident memory of one process in GB (1000 MB) above which a warning goes out."""
    memory_critical_gb: float = Field(default=4.0, gt=0.0)
    """Resident memory of one process in GB above which the alert is critical."""
    error_rate_warning: PositiveFraction = 0.01
    """Share of failed among handled messages or decisions above which a warning goes out."""
    error_rate_critical: PositiveFraction = 0.05
    """The same share above which the alert is critical."""
    failures_before_fallback: int = Field(default=3, ge=1, le=100)
    """Late or failed inferences in a row after which monitoring switches to the hold policy."""
    min_forecast_accuracy: Fraction = 0.80
    """Share of right forecasts of the next window's class, of the last 500 that could be checked,
    below which a person is asked to review them."""

    @model_validator(mode="after")
    def _limits_come_in_order(self) -> Self:
        wrong = [
            f"{lower} {getattr(self, lower):g} must be below {upper} {getattr(self, upper):g}"
            for lower, upper in (
                ("heartbeat_seconds", "silent_after_seconds"),
                ("latency_warning_ms", "latency_critical_ms"),
                ("memory_warning_gb", "memory_critical_gb"),
                ("error_rate_warning", "error_rate_critical"),
            )
            if getattr(self, lower) >= getattr(self, upper)
        ]
        if wrong:
            raise ValueError("; ".join(wrong))
        return self
