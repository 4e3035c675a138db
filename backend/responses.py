"""What the existing frontend and clients are told: words, shapes and times of the contract.

Five actions become three for orders and five words for markers; nanoseconds become the server's
ISO times. Nothing is decided here.
"""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel

from actors.messages import Action, Decision
from actors.session import timeframe_minutes

LOCAL: Final = ZoneInfo("Asia/Kolkata")
"""Times without a zone are Indian time, but for the few that the contract has in UTC."""

ORDER_WORDS: Final[dict[Action, Literal["buy", "sell", "hold"]]] = {
    "BUY_LONG": "buy",
    "CLOSE_SHORT": "buy",
    "SELL_SHORT": "sell",
    "CLOSE_LONG": "sell",
    "HOLD": "hold",
}
EXIT_WORDS: Final = {
    "STOP_LOSS_HIT": "SL Hit",
    "TRAILING_STOP_HIT": "SL Hit",
    "TARGET_PROFIT_HIT": "TP Hit",
}
INACTIVE: Final = {"is_active": False, "message": "No active live trading session"}


class TradingResponse(BaseModel):
    """What was decided, and how deep the model thought; the last five may be absent."""

    action: Literal["buy", "sell", "hold"]
    quantity: float  # lots that were ordered
    confidence: float
    reasoning_depth: int | None = None  # segments run
    market_complexity: float | None = None
    h_module_confidence: float | None = None
    l_module_confidence: float | None = None
    adaptive_time_used: int | None = None  # milliseconds of thinking


def insights(decision: Decision | None) -> dict[str, float | int | None]:
    """Return the HRM fields of the last decision; null where no model thought."""
    if decision is None:
        return {
            "reasoning_depth": None,
            "market_complexity": None,
            "h_module_confidence": None,
            "l_module_confidence": None,
            "adaptive_time_used": None,
            "confidence": None,
        }
    has_thought = decision.cycles > 0
    return {
        "reasoning_depth": decision.reasoning_depth,
        "market_complexity": decision.market_complexity,
        "h_module_confidence": decision.h_confidence if has_thought else None,
        "l_module_confidence": decision.l_confidence if has_thought else None,
        "adaptive_time_used": round(decision.elapsed_us / 1000) if has_thought else None,
        "confidence": decision.confidence,
    }


def trading_response(decision: Decision | None, lots: float) -> TradingResponse:
    """Return a decision as the trading routes answer it; HOLD where there is none."""
    if decision is None:
        return TradingResponse(action="hold", quantity=0.0, confidence=0.0)
    fields: dict[str, Any] = insights(decision)
    return TradingResponse(action=ORDER_WORDS[decision.action], quantity=lots, **fields)


def iso_local(instant_ns: int) -> str:
    """Return an instant as Indian time without a zone, with microseconds."""
    return _iso(datetime.fromtimestamp(instant_ns / 1e9, LOCAL))


def iso_utc(instant_ns: int) -> str:
    """Return an instant as UTC without a zone, with microseconds."""
    return _iso(datetime.fromtimestamp(instant_ns / 1e9, UTC))


def _iso(moment: datetime) -> str:
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds")


def number(value: Decimal | float | None) -> float:
    """Return a price or an amount as JSON has it; 0.0 stands for none."""
    return 0.0 if value is None else float(value)


TIMEFRAME_ALIASES: Final = {"1m": "1", "3m": "3", "5m": "5", "15m": "15", "30m": "30", "1h": "60"}


def timeframe_of(text: str) -> str:
    """Return a timeframe in the contract's spelling; the live loop's old ones are aliases."""
    return TIMEFRAME_ALIASES.get(text, text)


def timeframe_seconds(timeframe: str) -> int:
    """Return the length of a bar; a day has 24 hours."""
    return 86_400 if timeframe == "D" else timeframe_minutes(timeframe) * 60


def fetch_seconds(timeframe: str) -> int:
    """Return the length of a bar for a status; a minute where a session failed for naming none."""
    try:
        return timeframe_seconds(timeframe)
    except ValueError:
        return 60


def next_fetch(now_ns: int, seconds: int) -> str:
    """Return when the bar of an instant ends where no calendar is known: counted from 1970."""
    bar_ns = seconds * 1_000_000_000
    return iso_local((now_ns // bar_ns + 1) * bar_ns)
