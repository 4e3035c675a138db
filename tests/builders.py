"""Messages for tests: name only the fields that matter; the rest is a plain Nifty bar."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from actors.base import Actor
from actors.instruments import Instrument, InstrumentCatalogue
from actors.messages import (
    Bar,
    Decision,
    Depth,
    DepthLevel,
    ExecutionReport,
    Heartbeat,
    KillSwitch,
    MarketContext,
    Message,
    OrderIntent,
    PlaceOrder,
    PolicySwitch,
    Position,
    RiskVerdict,
    Tick,
    TimeEvent,
    TradingSession,
)
from actors.session import SessionCalendar, SessionTable

SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS
OPEN_NS = 1_710_733_500 * SECOND_NS
"""Monday 2024-03-18 09:15 IST: an ordinary session opens."""
INSTRUMENT = "Nifty"


def a_tick(price: str | Decimal = "22000", at_ns: int = OPEN_NS, **fields: Any) -> Tick:
    given: dict[str, Any] = {
        "instrument": INSTRUMENT,
        "last_price": Decimal(price),
        "event_ns": at_ns,
    }
    return Tick(**(given | fields))


def a_depth(
    bids: Mapping[str, int], asks: Mapping[str, int], at_ns: int = OPEN_NS, **fields: Any
) -> Depth:
    """Return a book; bids, asks: price -> units, the best first."""
    given: dict[str, Any] = {
        "instrument": INSTRUMENT,
        "bids": tuple(DepthLevel(Decimal(price), units, 1) for price, units in bids.items()),
        "asks": tuple(DepthLevel(Decimal(price), units, 1) for price, units in asks.items()),
        "received_ns": at_ns,
    }
    return Depth(**(given | fields))


def a_time(now_ns: int = OPEN_NS, wall_ns: int | None = None) -> TimeEvent:
    return TimeEvent(now_ns=now_ns, wall_ns=now_ns if wall_ns is None else wall_ns)


def a_bar(close: str | Decimal = "22000", number: int = 0, **fields: Any) -> Bar:
    """Return the five-minute bar `number` of the session, flat at `close` unless told otherwise."""
    open_ns = OPEN_NS + number * 5 * MINUTE_NS
    price = Decimal(close)
    given: dict[str, Any] = {
        "instrument": INSTRUMENT,
        "timeframe": "5",
        "open": price,
        "high": price,
        "low": price,
        "close": price,
        "volume": 0,
        "open_ns": open_ns,
        "close_ns": open_ns + 5 * MINUTE_NS,
        "ticks": 4,
    }
    return Bar(**(given | fields))


def a_context(bar: Bar | None = None, **fields: Any) -> MarketContext:
    bar = bar or a_bar()
    given: dict[str, Any] = {
        "instrument": bar.instrument,
        "timeframe": bar.timeframe,
        "bar": bar,
        "volatility": 0.5,
        "regime": "ranging",
        "regime_stability": 0.5,
        "correlation_score": 0.0,
        "news_impact": 0.0,
        "complexity": 0.4,
        "atr": Decimal(20),
    }
    return MarketContext(**(given | fields))


def a_decision(action: str = "BUY_LONG", at_ns: int = OPEN_NS, **fields: Any) -> Decision:
    instrument = fields.get("instrument", INSTRUMENT)
    given: dict[str, Any] = {
        "id": f"{instrument}@{at_ns}",
        "instrument": instrument,
        "timeframe": "5",
        "action": action,
        "size_fraction": 1.0,
        "confidence": 0.9,
        "policy": "hrm",
        "reference_price": Decimal(22000),
        "atr": Decimal(20),
        "bar_close_ns": at_ns,
        "reason": "test",
    }
    return Decision(**(given | fields))


def a_verdict(approved: bool = True, **fields: Any) -> RiskVerdict:
    given: dict[str, Any] = {
        "decision_id": "d1",
        "instrument": INSTRUMENT,
        "approved": approved,
        "reason": "within limits",
        "decided_ns": OPEN_NS,
    }
    return RiskVerdict(**(given | fields))


def an_intent(quantity: int = 75, **fields: Any) -> OrderIntent:
    given: dict[str, Any] = {
        "decision_id": f"{INSTRUMENT}@{OPEN_NS}",
        "instrument": INSTRUMENT,
        "quantity": quantity,
        "purpose": "entry",
        "reference_price": Decimal(22000),
        "decided_ns": OPEN_NS,
    }
    return OrderIntent(**(given | fields))


def an_order(quantity: int = 75, **fields: Any) -> PlaceOrder:
    given: dict[str, Any] = {
        "client_order_id": "order1",
        "decision_id": f"{INSTRUMENT}@{OPEN_NS}",
        "instrument": INSTRUMENT,
        "side": "buy",
        "quantity": quantity,
        "order_type": "market",
        "purpose": "entry",
        "reason": "test",
        "placed_ns": OPEN_NS,
    }
    return PlaceOrder(**(given | fields))


def a_fill(order: PlaceOrder, price: str | Decimal = "22000", **fields: Any) -> ExecutionReport:
    """Return the report that fills the whole order."""
    given: dict[str, Any] = {
        "execution_id": f"{order.client_order_id}-1",
        "client_order_id": order.client_order_id,
        "instrument": order.instrument,
        "side": order.side,
        "status": "filled",
        "event_ns": order.placed_ns,
        "last_quantity": order.quantity,
        "last_price": Decimal(price),
        "cumulative_quantity": order.quantity,
    }
    return ExecutionReport(**(given | fields))


def a_position(net_quantity: int = 0, **fields: Any) -> Position:
    given: dict[str, Any] = {
        "instrument": INSTRUMENT,
        "net_quantity": net_quantity,
        "average_price": Decimal(22000) if net_quantity else Decimal(0),
        "realised_pnl": Decimal(0),
        "charges": Decimal(0),
        "capital_used": Decimal(0),
        "updated_ns": OPEN_NS,
    }
    return Position(**(given | fields))


def a_heartbeat(actor: str = "risk", at_ns: int = OPEN_NS, **fields: Any) -> Heartbeat:
    given: dict[str, Any] = {
        "actor": actor,
        "at_ns": at_ns,
        "handled": 1,
        "failed": 0,
        "lost": 0,
        "lag": 0,
        "p50_us": 10,
        "p99_us": 20,
    }
    return Heartbeat(**(given | fields))


def a_kill_switch(engaged: bool = True, **fields: Any) -> KillSwitch:
    given: dict[str, Any] = {
        "engaged": engaged,
        "reason": "operator",
        "operator": "operator",
        "at_ns": OPEN_NS,
    }
    return KillSwitch(**(given | fields))


def a_policy_switch(policy: str = "hold", **fields: Any) -> PolicySwitch:
    given: dict[str, Any] = {"policy": policy, "reason": "test", "at_ns": OPEN_NS}
    return PolicySwitch(**(given | fields))


def a_session(**fields: Any) -> TradingSession:
    given: dict[str, Any] = {
        "user_id": "FA1",
        "status": "running",
        "instrument": "Nifty",
        "timeframe": "5",
        "trading_mode": "PAPER",
        "changed_ns": OPEN_NS,
    }
    return TradingSession(**(given | fields))


def a_calendar() -> SessionCalendar:
    """Return NSE, Monday to Friday 09:15-15:30 IST in 2024, and on Saturday 18 May its drill."""
    closing = {"entries_until": "15:15", "square_off": "15:20", "close": "15:30"}
    drill = [
        {"open": a, "entries_until": b, "square_off": b, "close": b}
        for a, b in (("09:15", "10:00"), ("11:30", "12:30"))
    ]
    days = {
        "covered_from": "2024-01-01",
        "covered_until": "2024-12-31",
        "holidays": {"2024-03-25": "Holi"},
        "special_sessions": {"2024-05-18": {"name": "drill", "sessions": drill}},
    }
    market = {
        "timezone": "Asia/Kolkata",
        "calendar": "india",
        "hours": [{"effective_from": "2024-01-01", "open": "09:15", **closing}],
    }
    table = {"calendars": {"india": days}, "markets": {"NSE": market}}
    return SessionCalendar(SessionTable.model_validate(table))


def a_catalogue() -> InstrumentCatalogue:
    """Return Nifty (lots of 75) and Bank_Nifty (lots of 35)."""
    return InstrumentCatalogue(
        Instrument(
            symbol=symbol,
            name=name,
            exchange_symbol=exchange_symbol,
            kind="index",
            lot_size=lot_size,
            tick_size=Decimal("0.05"),
        )
        for symbol, name, exchange_symbol, lot_size in (
            ("Nifty", "Nifty 50", "NSE:NIFTY50-INDEX", 75),
            ("Bank_Nifty", "Bank Nifty", "NSE:NIFTYBANK-INDEX", 35),
        )
    )


def outputs_of(actor: Actor[Any, Any], *messages: Message) -> list[Message]:
    """Fold the messages in order and return everything the actor yielded."""
    return [output for message in messages for output in actor.handle(message)]
