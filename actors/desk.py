"""The desk: who has a session, and of which instruments the automated trading is paused.

Bookkeeping of requests for risk.py, which alone makes an intent of one.
"""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Final

from actors.messages import (
    Decision,
    ManualTrade,
    Position,
    RequestAnswer,
    StartSession,
    StopSession,
    TradingMode,
    TradingSession,
)
from actors.options import STRATEGIES, Strategy

ALREADY_ACTIVE: Final = "already_active"
NO_SESSION: Final = "no_session"
OTHER_MODE: Final = "other_mode"
CAPITAL: Final = "capital"
POSITION_OPEN: Final = "position_open"
REFUSED: Final = "refused"

_MANUAL_PREFIX: Final = "manual-"


def manual_decision_id(request_id: str) -> str:
    """Return the decision id that verdict, intent and position of a manual trade carry."""
    return f"{_MANUAL_PREFIX}{request_id}"


def is_manual(decision_id: str) -> bool:
    """Tell whether a position, verdict or intent goes back to a manual trade."""
    return decision_id.startswith(_MANUAL_PREFIX)


class TradingDesk:
    """Keep one session per user, and answer what needs no look at risk.

    `markets` are the instruments traded here with their timeframes; without any, every start fails.
    An instrument is paused from the stop of its last session until somebody starts one again. What
    nobody ever started is traded by the daemon's own settings.
    """

    def __init__(self, mode: TradingMode, markets: Mapping[str, str]) -> None:
        self.mode: TradingMode = mode
        self._markets = dict(markets)
        self._sessions: dict[str, TradingSession] = {}
        self._paused: dict[str, str] = {}

    def paused_because(self, instrument: str) -> str | None:
        """Return why no automated entry of an instrument is allowed, or None."""
        return self._paused.get(instrument)

    def option_strategy(self, instrument: str) -> Strategy | None:
        """Return the strike that the last session started on an instrument asks for, if any."""
        wanted = [
            session.option_strategy
            for session in self._sessions.values()
            if session.instrument == instrument and session.status == "running"
        ]
        return next((one for one in STRATEGIES if wanted and one == wanted[-1]), None)

    def start(
        self, request: StartSession, held: Position | None, now_ns: int
    ) -> Iterator[RequestAnswer | TradingSession]:
        """Register a session; one that cannot run is registered as failed until it is stopped."""
        if request.user_id in self._sessions:
            reason = "Live trading session already active"
            yield answer(request, now_ns, reason, ALREADY_ACTIVE)
            return
        if request.trading_mode != self.mode:
            yield answer(request, now_ns, self._mode_problem(request.trading_mode), OTHER_MODE)
            return
        problem = self._start_problem(request)
        session = TradingSession(
            user_id=request.user_id,
            status="failed" if problem else "running",
            instrument=request.instrument,
            timeframe=request.timeframe,
            option_strategy=request.option_strategy,
            trading_mode=request.trading_mode,
            changed_ns=now_ns,
            reason=problem,
            realised_before=held.realised_pnl if held else Decimal(0),
            round_trips_before=held.round_trips if held else 0,
            wins_before=held.winning_round_trips if held else 0,
        )
        self._sessions[request.user_id] = session
        if not problem:
            self._paused.pop(request.instrument, None)
        yield session
        yield answer(request, now_ns, problem or "started")

    def stop(self, request: StopSession, now_ns: int) -> Iterator[RequestAnswer | TradingSession]:
        """End the user's session; the last one of an instrument pauses its automated entries."""
        session = self._sessions.pop(request.user_id, None)
        if session is None:
            yield answer(request, now_ns, "No active live trading session", NO_SESSION)
            return
        if session.status == "running" and not self._is_in_session(session.instrument):
            self._paused[session.instrument] = f"stopped by {request.user_id}"
        yield TradingSession(
            user_id=session.user_id,
            status="stopped",
            instrument=session.instrument,
            timeframe=session.timeframe,
            option_strategy=session.option_strategy,
            trading_mode=session.trading_mode,
            changed_ns=now_ns,
            reason="stopped by the user",
            realised_before=session.realised_before,
            round_trips_before=session.round_trips_before,
            wins_before=session.wins_before,
        )
        yield answer(request, now_ns, "stopped")

    def refusal(self, trade: ManualTrade, now_ns: int) -> RequestAnswer | None:
        """Return the answer to a manual trade that no session covers, or None."""
        session = self._sessions.get(trade.user_id)
        if session is None or session.status != "running":
            return answer(trade, now_ns, "Live trading session not active", NO_SESSION)
        if trade.trading_mode != self.mode:
            return answer(trade, now_ns, self._mode_problem(trade.trading_mode), OTHER_MODE)
        if trade.instrument not in self._markets:
            traded = ", ".join(self._markets)
            reason = f"{trade.instrument} is not traded here, only {traded}"
            return answer(trade, now_ns, reason, REFUSED)
        if trade.lots < 1:
            return answer(trade, now_ns, f"quantity must be at least 1, was {trade.lots}", REFUSED)
        return None

    def _is_in_session(self, instrument: str) -> bool:
        return any(
            session.instrument == instrument and session.status == "running"
            for session in self._sessions.values()
        )

    def _mode_problem(self, wanted: TradingMode) -> str:
        return (
            f"this daemon trades {self.mode.lower()}, the request asks for {wanted.lower()}: "
            "nothing was done"
        )

    def _start_problem(self, request: StartSession) -> str:
        timeframe = self._markets.get(request.instrument)
        if timeframe is None:
            traded = ", ".join(self._markets) or "nothing"
            return f"{request.instrument} is not traded by the daemon: it trades {traded}"
        if request.timeframe != timeframe:
            return (
                f"{request.instrument} is traded by the daemon on bars of {timeframe!r}, "
                f"not {request.timeframe!r}"
            )
        return ""


def answer(
    request: StartSession | StopSession | ManualTrade,
    now_ns: int,
    reason: str,
    problem: str = "",
) -> RequestAnswer:
    """Return the answer to a request; without a problem it is accepted."""
    return RequestAnswer(
        request_id=request.id,
        user_id=request.user_id,
        accepted=not problem,
        reason=reason,
        answered_ns=now_ns,
        problem=problem,
    )


def as_decision(trade: ManualTrade, atr: Decimal | None, now_ns: int) -> Decision:
    """Return a manual trade as the decision that risk judges; it is not published."""
    return Decision(
        id=manual_decision_id(trade.id),
        instrument=trade.instrument,
        timeframe="",
        action="BUY_LONG" if trade.side == "buy" else "SELL_SHORT",
        size_fraction=1.0,
        confidence=1.0,
        policy="hold",  # no model had a part in it
        reference_price=trade.reference_price,
        atr=atr,
        bar_close_ns=now_ns,
        reason=f"manual trade of {trade.user_id}",
    )
