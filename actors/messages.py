"""Every message that travels between actors, in flow order, with its units.

Prices and money are Decimal rupees (or the quote currency of the instrument), quantities are
signed or unsigned int units, times are int nanoseconds since 1970 UTC ending in `_ns`, ratios are
floats in [0, 1]. A new field with a default is free; renaming, removing or changing a meaning opens
`v2` of that one stream. `tests/fixtures/messages/v1/` holds a sample of every message, and they
decode for ever. The envelope (source, sequence, cause) belongs to the bus, not here.
"""

from datetime import date
from decimal import Decimal
from typing import ClassVar, Literal

import msgspec

Action = Literal["BUY_LONG", "SELL_SHORT", "CLOSE_LONG", "CLOSE_SHORT", "HOLD"]
ACTIONS: tuple[Action, ...] = ("BUY_LONG", "SELL_SHORT", "CLOSE_LONG", "CLOSE_SHORT", "HOLD")
"""Action codes of the contract: the index is the code."""

Regime = Literal["trending", "ranging", "volatile"]
Side = Literal["buy", "sell"]
Policy = Literal["hrm", "hold"]
Purpose = Literal["entry", "exit"]
Severity = Literal["info", "warning", "critical"]
TradingMode = Literal["PAPER", "REAL"]
SessionStatus = Literal["running", "failed", "stopped"]
OptionKind = Literal["CE", "PE"]
OrderStatus = Literal[
    "accepted", "partially_filled", "filled", "cancelled", "rejected", "expired", "unknown"
]
RejectKind = Literal["permanent", "retryable", "auth", "rate"]
FINAL_STATUSES: frozenset[OrderStatus] = frozenset({"filled", "cancelled", "rejected", "expired"})


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=True):
    """Base of all messages: where they travel, and what the latest one is kept per."""

    stream: ClassVar[str]
    latest_by: ClassVar[str | None] = None  # field whose value keys the `{stream}:latest` hash
    shared: ClassVar[bool] = False  # several writers: entry ids come from the server

    @property
    def time_ns(self) -> int:
        """Market time this message speaks of, in nanoseconds UTC."""
        raise NotImplementedError  # pragma: no cover - every message defines it


class Tick(Message, frozen=True, kw_only=True):
    """A traded or indicative price of one instrument at one instant."""

    stream: ClassVar[str] = "tick"

    instrument: str
    last_price: Decimal
    event_ns: int
    bid: Decimal | None = None
    ask: Decimal | None = None
    volume_today: int = 0  # units traded since the session opened; 0 for an index
    origin: Literal["live", "candle_path"] = "live"  # candle_path: drawn from a candle, not traded
    conflated: int = 0  # older quotes of the same price, volume and instant that it stands for

    @property
    def time_ns(self) -> int:
        return self.event_ns


class DepthLevel(msgspec.Struct, frozen=True, array_like=True):
    """One step of one side of the order book."""

    price: Decimal
    quantity: int  # units, as the feed counts them
    orders: int


class Depth(Message, frozen=True, kw_only=True):
    """The five best levels of each side of an order book at one instant, the best first.

    An empty level is left out; a side without any is ().
    """

    stream: ClassVar[str] = "depth"

    instrument: str
    bids: tuple[DepthLevel, ...]
    asks: tuple[DepthLevel, ...]
    received_ns: int  # market clock: the feed gives a book no time of its own
    conflated: int = 0  # older books of the same second that it stands for

    @property
    def time_ns(self) -> int:
        return self.received_ns


class OptionContract(msgspec.Struct, frozen=True, array_like=True):
    """One option as the broker's symbol master lists it; money in rupees."""

    symbol: str  # the broker's
    kind: OptionKind
    strike: Decimal
    expiry: date
    lot_size: int  # units
    freeze_quantity: int  # units; an order of more is rejected
    tick_size: Decimal
    lower_price: Decimal  # band of the day
    upper_price: Decimal
    updated: date  # day that the entry was made for


class OptionQuote(msgspec.Struct, frozen=True, array_like=True):
    """What one option costs; without a side of the book that side is None."""

    contract: OptionContract
    last_price: Decimal
    bid: Decimal | None = None
    ask: Decimal | None = None


class OptionChain(Message, frozen=True, kw_only=True):
    """The options of the next expiries around the price of an underlying, as they are quoted."""

    stream: ClassVar[str] = "chain"
    latest_by: ClassVar[str | None] = "underlying"

    underlying: str
    quotes: tuple[OptionQuote, ...]
    read_ns: int  # market time

    @property
    def time_ns(self) -> int:
        return self.read_ns


class FeedGap(Message, frozen=True, kw_only=True):
    """The feed of one instrument is cut: ticks from `since_ns` to the next may be missing."""

    stream: ClassVar[str] = "tick"

    instrument: str
    since_ns: int  # of the last tick that came; 0: none has come yet
    told_ns: int  # market time

    @property
    def time_ns(self) -> int:
        return self.told_ns


class PastBar(Message, frozen=True, kw_only=True):
    """A closed candle out of the broker's history, of a time without ticks."""

    stream: ClassVar[str] = "tick"

    instrument: str
    timeframe: str
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: int
    open_ns: int
    told_ns: int  # market time

    @property
    def time_ns(self) -> int:
        return self.told_ns


class RefusedTick(Message, frozen=True, kw_only=True):
    """A tick that made no bar, set aside with the reason; nothing is decided on it."""

    stream: ClassVar[str] = "quarantine"

    tick: Tick
    reason: str  # one of a few fixed words: late, duplicate, out of order, from the future, ...
    detail: str
    count: int  # of its instrument and reason since the start, this one included
    refused_ns: int  # market time

    @property
    def time_ns(self) -> int:
        return self.refused_ns


class Bar(Message, frozen=True, kw_only=True):
    """A closed candle; never one that may still change."""

    stream: ClassVar[str] = "bar"

    instrument: str
    timeframe: str  # minutes as a decimal string, "D" is one day
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: int
    open_ns: int
    close_ns: int  # exclusive end of the bar
    ticks: int  # how many ticks made it; 0 only for one out of history, a gap makes no bar
    is_continuous: bool = True  # false: part of it fell into an auction, or past the last price
    spread: Decimal | None = None  # best ask less best bid at the last tick; None: no quotes
    days_to_expiry: int | None = None  # of what the instrument's options expire by; None: unknown
    origin: Literal["live", "backfilled"] = "live"  # backfilled: out of the broker's history, late
    is_complete: bool = True  # false: the feed was interrupted while it was made
    depth_imbalance: float | None = None  # bid less ask quantity over both, (-1, 1); None: no book

    @property
    def time_ns(self) -> int:
        return self.close_ns


class PartialBar(Message, frozen=True, kw_only=True):
    """A bar that is still open, at a tick far from the price of the last decision.

    Nobody takes it for a bar: it may only lead out of a position.
    """

    stream: ClassVar[str] = "partial_bar"

    instrument: str
    timeframe: str
    open: Decimal
    high: Decimal
    low: Decimal
    last_price: Decimal
    volume: int
    open_ns: int
    as_of_ns: int  # of the tick; before the end of the bar
    ticks: int
    reference_price: Decimal  # of the last decision: the close before, or an earlier such tick
    spread: Decimal | None = None
    days_to_expiry: int | None = None

    @property
    def time_ns(self) -> int:
        return self.as_of_ns


class NewsItem(msgspec.Struct, frozen=True, array_like=True):
    """One piece of unscheduled news and how much it weighs when it is fresh."""

    id: str  # the same each time the same piece is read
    impact: float  # in [0, 1]
    published_ns: int  # real clock; never later than it was read
    instruments: tuple[str, ...] = ()  # whom it concerns; (): the whole market
    title: str = ""


class NewsUpdate(Message, frozen=True, kw_only=True):
    """The news feed was read; with what was new in it, often nothing. Silence means: not read."""

    stream: ClassVar[str] = "news"

    read_ns: int  # real clock
    items: tuple[NewsItem, ...] = ()
    refused: int = 0  # entries of this reading that could not be understood

    @property
    def time_ns(self) -> int:
        return self.read_ns


class ForecastCheck(msgspec.Struct, frozen=True, array_like=True):
    """What was forecast for a window, and what the window then was."""

    probability: float  # of a demanding window, as forecast when it began
    was_demanding: bool  # the window before it: the forecast of whoever expects no change
    is_demanding: bool
    usually_demanding: bool | None = None  # what is usual at its time of day; None: not told


class MarketContext(Message, frozen=True, kw_only=True):
    """A closed bar with what the market looks like around it; drives one decision."""

    stream: ClassVar[str] = "context"
    latest_by: ClassVar[str | None] = "instrument"

    instrument: str
    timeframe: str
    bar: Bar
    volatility: float  # percentile rank of recent volatility, in [0, 1]
    regime: Regime
    regime_stability: float  # share of recent bars in the present regime, in [0, 1]
    correlation_score: float  # stress: 1 = the usual correlation has broken down
    news_impact: float
    complexity: float  # weighted sum of the components that are present, in [0, 1]
    atr: Decimal | None  # average true range over 14 bars, in price units; None while warming up
    missing: tuple[str, ...] = ()  # components without a source, left out of the sum
    bars_seen: int = 0
    demand: float | None = None  # calibrated probability that the next window is a demanding one
    checked: ForecastCheck | None = None  # the forecast whose window ended with this bar
    regime_probabilities: tuple[float, ...] = ()  # trending, ranging, volatile; () without a filter

    @property
    def time_ns(self) -> int:
        return self.bar.close_ns


class Decision(Message, frozen=True, kw_only=True):
    """What the policy wants to do at one bar close. `id` is `instrument@close_ns`.

    Within a bar (`within_bar`) the close is that of the bar so far: the instant of its last tick.
    """

    stream: ClassVar[str] = "decision"
    latest_by: ClassVar[str | None] = "instrument"

    id: str
    instrument: str
    timeframe: str
    action: Action
    size_fraction: float  # wanted share of the size that risk allows, in [0, 1]
    confidence: float  # probability of the action among those allowed
    policy: Policy
    reference_price: Decimal  # close of the bar decided on
    atr: Decimal | None
    bar_close_ns: int
    reason: str
    market_complexity: float = 0.0
    reasoning_depth: int = 0  # whole segments run
    cycles: int = 0  # H-cycles run: replay runs exactly as many
    stop_reason: str = ""
    h_confidence: float = 0.0
    l_confidence: float = 0.0
    value: float = 0.0
    probabilities: tuple[float, ...] = ()
    budget_ms: float = 0.0  # left for thinking when it began
    elapsed_us: int = 0
    waited_us: int = 0  # from the market event that led here until thinking began
    batch_size: int = 0  # decisions thought about together
    model_digest: str = ""
    late: bool = False  # the answer came after its deadline: the action is HOLD
    failed: bool = False  # no valid answer: the action is HOLD
    within_bar: bool = False  # decided on a bar that was still open: no entry

    @property
    def time_ns(self) -> int:
        return self.bar_close_ns


class RuleResult(msgspec.Struct, frozen=True, array_like=True):
    """One rule of a verdict: what was measured against what limit."""

    rule: str
    passed: bool
    value: str
    limit: str


class RiskVerdict(Message, frozen=True, kw_only=True):
    """Approval or refusal of one decision, rule by rule."""

    stream: ClassVar[str] = "verdict"

    decision_id: str
    instrument: str
    approved: bool
    reason: str
    decided_ns: int  # market time of the decision
    rules: tuple[RuleResult, ...] = ()

    @property
    def time_ns(self) -> int:
        return self.decided_ns


class StartSession(Message, frozen=True, kw_only=True):
    """A user asks for a trading session of one instrument; `id` is answered by RequestAnswer."""

    stream: ClassVar[str] = "request"
    shared: ClassVar[bool] = True

    id: str
    user_id: str
    instrument: str
    timeframe: str
    trading_mode: TradingMode
    at_ns: int  # real clock
    option_strategy: str | None = None

    @property
    def time_ns(self) -> int:
        return self.at_ns


class StopSession(Message, frozen=True, kw_only=True):
    """A user ends his session: no more automated entries; open positions keep their stops."""

    stream: ClassVar[str] = "request"
    shared: ClassVar[bool] = True

    id: str
    user_id: str
    at_ns: int  # real clock

    @property
    def time_ns(self) -> int:
        return self.at_ns


class ManualTrade(Message, frozen=True, kw_only=True):
    """A user asks for an entry of so many lots at the market, within his session."""

    stream: ClassVar[str] = "request"
    shared: ClassVar[bool] = True

    id: str
    user_id: str
    instrument: str
    side: Side
    lots: int
    reference_price: Decimal  # last price the user could see
    trading_mode: TradingMode
    at_ns: int  # real clock
    stop_price: Decimal | None = None  # None: by average true range, as for any decision
    target_price: Decimal | None = None

    @property
    def time_ns(self) -> int:
        return self.at_ns


class RequestAnswer(Message, frozen=True, kw_only=True):
    """What became of one request. `problem` is "" or one word that a program can act on."""

    stream: ClassVar[str] = "answer"

    request_id: str
    user_id: str
    accepted: bool
    reason: str
    answered_ns: int  # market time
    problem: str = ""
    required: Decimal = Decimal(0)  # rupees, where capital was short
    available: Decimal = Decimal(0)
    most_lots: int = 0

    @property
    def time_ns(self) -> int:
        return self.answered_ns


class TradingSession(Message, frozen=True, kw_only=True):
    """The session of one user after its last change; results count from what was there before."""

    stream: ClassVar[str] = "session"
    latest_by: ClassVar[str | None] = "user_id"

    user_id: str
    status: SessionStatus
    instrument: str
    timeframe: str
    trading_mode: TradingMode
    changed_ns: int  # market time
    option_strategy: str | None = None
    reason: str = ""
    realised_before: Decimal = Decimal(0)  # of the instrument, when the session was started
    round_trips_before: int = 0
    wins_before: int = 0

    @property
    def time_ns(self) -> int:
        return self.changed_ns


class OrderIntent(Message, frozen=True, kw_only=True):
    """A decision that may become an order. `quantity` is signed units: positive buys."""

    stream: ClassVar[str] = "intent"

    decision_id: str
    instrument: str
    quantity: int
    purpose: Purpose
    reference_price: Decimal
    decided_ns: int
    limit_price: Decimal | None = None
    stop_price: Decimal | None = None
    target_price: Decimal | None = None
    capital_used: Decimal = Decimal(0)  # rupees set aside for an entry
    contract: OptionContract | None = None  # of an entry into an option
    underlying: str = ""  # what the option stands for a view of; stop and target are its prices
    underlying_price: Decimal | None = None  # when the view was taken

    @property
    def time_ns(self) -> int:
        return self.decided_ns


class PlaceOrder(Message, frozen=True, kw_only=True):
    """An order for the broker.

    `client_order_id` (1-30 alphanumerics) is the only key that comes back.
    """

    stream: ClassVar[str] = "order"

    client_order_id: str
    decision_id: str
    instrument: str
    side: Side
    quantity: int  # unsigned units
    order_type: Literal["market", "limit"]
    purpose: Purpose
    reason: str
    placed_ns: int
    limit_price: Decimal | None = None
    underlying: str = ""  # of an option bought for a view of it

    @property
    def time_ns(self) -> int:
        return self.placed_ns

    @property
    def subject(self) -> str:
        """What the order is a view of: the underlying of an option, else what is ordered."""
        return self.underlying or self.instrument


class CancelOrder(Message, frozen=True, kw_only=True):
    """A request to take one resting order back."""

    stream: ClassVar[str] = "order"

    client_order_id: str
    instrument: str
    reason: str
    placed_ns: int

    @property
    def time_ns(self) -> int:
        return self.placed_ns


class ModifyOrder(Message, frozen=True, kw_only=True):
    """A request to give one resting limit order another limit; its quantity stays."""

    stream: ClassVar[str] = "order"

    client_order_id: str
    instrument: str
    limit_price: Decimal
    reason: str
    placed_ns: int

    @property
    def time_ns(self) -> int:
        return self.placed_ns


class ExecutionReport(Message, frozen=True, kw_only=True):
    """What the broker said of an order.

    `execution_id` is unique: a repeat is the same fact again.
    """

    stream: ClassVar[str] = "report"

    execution_id: str
    client_order_id: str
    instrument: str
    side: Side
    status: OrderStatus
    event_ns: int
    last_quantity: int = 0  # units of this fill, unsigned
    last_price: Decimal = Decimal(0)
    cumulative_quantity: int = 0
    charges: Decimal = Decimal(0)  # rupees for this fill
    reason: str = ""
    reject_kind: RejectKind | None = None  # of a reject; None: not known

    @property
    def time_ns(self) -> int:
        return self.event_ns


class Position(Message, frozen=True, kw_only=True):
    """The position of one instrument after its last change, with the money it made."""

    stream: ClassVar[str] = "position"
    latest_by: ClassVar[str | None] = "instrument"

    instrument: str
    net_quantity: int  # signed units
    average_price: Decimal
    realised_pnl: Decimal  # rupees since the start of the session, net of charges
    charges: Decimal  # rupees since the start of the session
    capital_used: Decimal  # rupees set aside while the position is open
    updated_ns: int
    stop_price: Decimal | None = None
    target_price: Decimal | None = None
    trailing_stop_price: Decimal | None = None
    entry_ns: int | None = None
    round_trips: int = 0
    winning_round_trips: int = 0
    last_exit_reason: str = ""
    decision_id: str = ""  # that the position goes back to
    underlying: str = ""  # of an option bought for a view of it; the levels are its prices
    option_kind: Literal["CE", "PE", ""] = ""
    underlying_entry: Decimal | None = None  # its price when the view was taken
    lot_size: int = 0  # units, of an option

    @property
    def subject(self) -> str:
        """What the position is a view of: the underlying of an option, else what is held."""
        return self.underlying or self.instrument

    @property
    def view(self) -> int:
        """Signed units for a rise of the subject; a bought put counts against it."""
        return -self.net_quantity if self.option_kind == "PE" else self.net_quantity

    @property
    def time_ns(self) -> int:
        return self.updated_ns


class TimeEvent(Message, frozen=True, kw_only=True):
    """The clock, as a message: actors know no other time."""

    stream: ClassVar[str] = "time"

    now_ns: int  # market time: the real clock live, the candles' clock in a replayed market
    wall_ns: int  # the real clock

    @property
    def time_ns(self) -> int:
        return self.now_ns


class OrderCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What the order gateway has counted since it started, and what is open just now."""

    unknown: int  # orders of which nobody knows now whether they arrived
    unknown_s: float  # market time since the oldest of them was placed; 0.0 without one
    rejected_permanent: int  # by the broker, as are the next three
    rejected_retryable: int
    rejected_auth: int
    rejected_rate: int
    circuits_opened: int
    differences: int  # between log and broker, in the last comparison


class Heartbeat(Message, frozen=True, kw_only=True):
    """Sign of life of one actor, with what it did since it started."""

    stream: ClassVar[str] = "heartbeat"
    latest_by: ClassVar[str | None] = "actor"
    shared: ClassVar[bool] = True

    actor: str
    at_ns: int  # real clock
    handled: int
    failed: int  # messages that went to the dead letters
    lost: int  # gaps in the sequence numbers of its inputs
    lag: int  # entries waiting
    p50_us: int  # time to handle one message
    p99_us: int
    restarts: int = 0
    rss_mib: float = 0.0
    agreement_age_s: float | None = None
    """Of the order gateway: since log and broker last agreed, or since its start if never yet."""
    orders: OrderCounts | None = None  # of the order gateway

    @property
    def time_ns(self) -> int:
        return self.at_ns


class Alert(Message, frozen=True, kw_only=True):
    """Something a person should know; `runbook` is a heading under docs/runbooks."""

    stream: ClassVar[str] = "alert"
    shared: ClassVar[bool] = True

    severity: Severity
    text: str
    runbook: str
    at_ns: int
    source: str = ""
    instrument: str | None = None

    @property
    def time_ns(self) -> int:
        return self.at_ns


class KillSwitch(Message, frozen=True, kw_only=True):
    """Trading is stopped (engaged) or allowed again (released)."""

    stream: ClassVar[str] = "control"
    latest_by: ClassVar[str | None] = "kind"
    shared: ClassVar[bool] = True

    engaged: bool
    reason: str
    operator: str
    at_ns: int
    flatten: bool = False
    kind: Literal["kill_switch"] = "kill_switch"

    @property
    def time_ns(self) -> int:
        return self.at_ns


class PolicySwitch(Message, frozen=True, kw_only=True):
    """Which policy decides from now on."""

    stream: ClassVar[str] = "control"
    latest_by: ClassVar[str | None] = "kind"
    shared: ClassVar[bool] = True

    policy: Policy
    reason: str
    at_ns: int
    kind: Literal["policy_switch"] = "policy_switch"

    @property
    def time_ns(self) -> int:
        return self.at_ns


AnyMessage = (
    Tick
    | Depth
    | OptionChain
    | FeedGap
    | PastBar
    | RefusedTick
    | Bar
    | PartialBar
    | NewsUpdate
    | MarketContext
    | Decision
    | StartSession
    | StopSession
    | ManualTrade
    | RiskVerdict
    | RequestAnswer
    | TradingSession
    | OrderIntent
    | PlaceOrder
    | CancelOrder
    | ModifyOrder
    | ExecutionReport
    | Position
    | TimeEvent
    | Heartbeat
    | Alert
    | KillSwitch
    | PolicySwitch
)
"""The union that the wire format decodes to."""

MarketEvent = Tick | Depth | FeedGap | PastBar | TimeEvent | OptionChain
"""What the edge of a market publishes, in one order."""

MESSAGE_TYPES: tuple[type[Message], ...] = AnyMessage.__args__
STREAMS: tuple[str, ...] = tuple(dict.fromkeys(kind.stream for kind in MESSAGE_TYPES))
"""Stream names in flow order, each once."""
