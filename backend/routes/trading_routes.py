"""Sessions, manual trades, decisions, positions, candles and the kill switch.

Everything is asked of the daemon; what it refuses is told in the contract's words.
"""

from decimal import Decimal
from typing import Annotated, Any, Literal, NoReturn

from fastapi import APIRouter, HTTPException, Query, Request, Response
from pydantic import BaseModel, Field

from actors.desk import CAPITAL, NO_SESSION, POSITION_OPEN
from actors.messages import RequestAnswer, TradingMode
from backend.context import Backend, backend_of
from backend.daemon_link import NoAnswer
from backend.place import Place
from backend.projection import Projection
from backend.responses import TradingResponse, timeframe_of, trading_response
from backend.routes.auth_routes import User
from daemon.errors import BrokerError, DataError

router = APIRouter(prefix="/api")

Mode = Literal["paper", "real"]
_MODES: dict[Mode, TradingMode] = {"paper": "PAPER", "real": "REAL"}
_MOST_LOTS = 1_000_000  # far beyond any account; what is larger would not fit into a message
_STRATEGIES = {name.casefold(): name for name in ("ITM", "ATM", "OTM", "None")}


class LiveTradingRequest(BaseModel):
    """What a session is to trade."""

    instrument: str
    timeframe: str
    option_strategy: str | None = "ITM"
    trading_mode: Mode = "real"


class ManualTradeRequest(BaseModel):
    """An entry at the market; without a mode it is the session's."""

    instrument: str
    direction: str
    quantity: Annotated[int, Field(ge=-_MOST_LOTS, le=_MOST_LOTS)]
    stop_loss: Annotated[float | None, Field(alias="stopLoss", allow_inf_nan=False)] = None
    target: Annotated[float | None, Field(allow_inf_nan=False)] = None
    trading_mode: Mode | None = None


class ExecuteRequest(BaseModel):
    """Which instrument's decision is asked for; by default that of the caller's session."""

    instrument: str | None = None
    timeframe: str | None = None
    trading_mode: Mode | None = None


class KillRequest(BaseModel):
    """Why trading is stopped, and whether positions are closed as well."""

    reason: Annotated[str, Field(min_length=1, max_length=500)] = "stopped from the web"
    flatten: bool = False


@router.post("/live/start")
async def start(body: LiveTradingRequest, user: User, request: Request) -> dict[str, str]:
    """Start the caller's session; what fails later comes as an error on his sockets."""
    problem = "Failed to start live trading"
    backend = backend_of(request)
    place, view = _daemon(backend, problem)
    if view.session_of(user.user_id) is not None:
        raise HTTPException(500, f"{problem}: 400: Live trading session already active")
    mode = _MODES[body.trading_mode]
    instrument = backend.shelf.instrument(body.instrument, place)
    answer = await _answered(
        backend.link.start(
            place,
            user.user_id,
            instrument.symbol if instrument else body.instrument,
            timeframe_of(body.timeframe),
            mode,
            strategy_of(body.option_strategy),
        ),
        problem,
    )
    if not answer.accepted:
        prefix = "400: " if answer.problem == "already_active" else ""
        raise HTTPException(500, f"{problem}: {prefix}{answer.reason}")
    backend.note_action(user.user_id, "LIVE_TRADING_STARTED", body.model_dump())
    message = f"{body.trading_mode.capitalize()} trading started successfully"
    return {"status": "started", "message": message, "trading_mode": mode}


@router.post("/live/stop")
async def stop(user: User, request: Request) -> dict[str, str]:
    """Stop the caller's session; open positions keep their stops."""
    problem = "Failed to stop live trading"
    backend = backend_of(request)
    place, view = backend.reader.place, backend.reader.view
    if place is None or view is None or view.session_of(user.user_id) is None:
        raise HTTPException(500, f"{problem}: 400: No active live trading session")
    answer = await _answered(backend.link.stop(place, user.user_id), problem)
    if not answer.accepted:
        raise HTTPException(500, f"{problem}: 400: {answer.reason}")
    backend.note_action(user.user_id, "LIVE_TRADING_STOPPED", {})
    return {"status": "stopped", "message": "Live trading stopped successfully"}


@router.post("/trading/manual-trade")
@router.post("/manual-trade")
async def manual_trade(body: ManualTradeRequest, user: User, request: Request) -> dict[str, Any]:
    """Place a manual trade in the caller's session; it passes risk like any decision."""
    problem = "Failed to initiate manual trade"
    backend = backend_of(request)
    mode = await trade_manually(backend, user.user_id, body, problem)
    backend.note_action(user.user_id, "MANUAL_TRADE_INITIATED", body.model_dump())
    word = "paper" if mode == "PAPER" else "real"
    return {
        "status": "success",
        "success": True,
        "message": f"Manual {word} trade initiated",
        "trading_mode": mode,
    }


async def trade_manually(
    backend: Backend, user_id: str, body: ManualTradeRequest, problem: str
) -> TradingMode:
    """Ask the daemon for a manual trade; HTTPException with the contract's text if refused."""
    place, view = backend.reader.place, backend.reader.view
    session = view.session_of(user_id) if view else None
    if place is None or view is None or session is None or session.status != "running":
        raise HTTPException(500, f"{problem}: 400: Live trading session not active")
    mode = _MODES[body.trading_mode] if body.trading_mode else session.trading_mode
    instrument = backend.shelf.instrument(body.instrument, place)
    symbol = instrument.symbol if instrument else body.instrument
    price = view.price_of(symbol)
    if price is None:
        text = f"Failed to place manual order: no price of {body.instrument} yet"
        raise HTTPException(500, f"{problem}: {text}")
    answer = await _answered(
        backend.link.trade(
            place,
            user_id,
            symbol,
            "buy" if body.direction.casefold() == "buy" else "sell",
            body.quantity,
            price,
            mode,
            _price(body.stop_loss),
            _price(body.target),
        ),
        problem,
    )
    if not answer.accepted:
        raise HTTPException(500, f"{problem}: {refusal_text(answer, mode)}")
    return mode


def refusal_text(answer: RequestAnswer, mode: TradingMode) -> str:
    """Return why a manual trade was refused, in the contract's words."""
    if answer.problem == NO_SESSION:
        return f"400: {answer.reason}"
    if answer.problem == CAPITAL and mode == "PAPER":
        return (
            "Insufficient paper capital for manual trade. "
            f"Required: {answer.required:.2f}, Available: {answer.available:.2f}"
        )
    if answer.problem == CAPITAL:
        return (
            "Insufficient capital for the requested quantity. "
            f"Maximum allowable quantity is {answer.most_lots}."
        )
    if answer.problem == POSITION_OPEN and mode == "REAL":
        return "Cannot initiate manual trade while an automated trade is active."
    return f"Failed to place manual order: {answer.reason}"


@router.post("/trading/execute")
async def execute(
    user: User, request: Request, body: ExecuteRequest | None = None
) -> TradingResponse:
    """Return the decision in force, which the daemon has acted on already; hold without one."""
    body = body or ExecuteRequest()
    backend = backend_of(request)
    place, view = _daemon(backend, "Failed to execute trade")
    if body.trading_mode and _MODES[body.trading_mode] != place.mode:
        raise HTTPException(
            500,
            f"Failed to execute trade: the daemon trades {place.mode.lower()}, "
            f"the request asks for {body.trading_mode}: nothing was done",
        )
    decision = view.decisions.get(traded_symbol(backend, view, user.user_id, body.instrument))
    return trading_response(decision, view.lots_of(decision))


def traded_symbol(backend: Backend, view: Projection, user_id: str, name: object) -> str:
    """Return the symbol meant: the one named, else the session's, else the daemon's first."""
    if isinstance(name, str) and name:
        instrument = backend.shelf.instrument(name, view.place)
        return instrument.symbol if instrument else name
    session = view.session_of(user_id)
    return session.instrument if session else view.place.plan.markets[0].instrument


@router.get("/trading/positions")
async def positions(user: User, request: Request) -> list[dict[str, Any]]:
    """Return the caller's open positions; none without a session."""
    view = backend_of(request).reader.view
    return view.open_positions(user.user_id) if view else []


@router.post("/kill")
async def kill(body: KillRequest, user: User, request: Request) -> dict[str, Any]:
    """Engage the kill switch; only an operator at the machine can release it."""
    backend = backend_of(request)
    place = backend.reader.place
    if place is None:
        raise HTTPException(500, "Failed to stop trading: no daemon has run here yet")
    outcome: dict[str, Any] = await backend.link.kill(
        place, user.user_id, body.reason, flatten=body.flatten
    )
    backend.note_action(user.user_id, "KILL_SWITCH_ENGAGED", body.model_dump())
    return outcome


@router.get("/historical-data", response_model=list[dict[str, int | float]])
async def historical_data(
    user: User,
    request: Request,
    instrument: Annotated[str, Query()],
    timeframe: Annotated[str, Query()],
) -> Response:
    """Return about 30 days of candles, ascending."""
    if not instrument.strip():
        raise HTTPException(422, "Instrument parameter is required")
    if not timeframe.strip():
        raise HTTPException(422, "Timeframe parameter is required")
    backend = backend_of(request)
    reader = backend.reader
    try:
        chart = await backend.shelf.recent(
            user, instrument, timeframe, reader.place, reader.view,
            backend.wall_ns() // 1_000_000_000,
        )  # fmt: skip
    except (BrokerError, DataError, ValueError) as error:
        raise HTTPException(
            500, f"Internal server error while fetching historical data: {error}"
        ) from error
    if not chart.candles:
        raise HTTPException(500, f"Failed to fetch historical data for {instrument}")
    return Response(chart.as_json(), media_type="application/json")


def _daemon(backend: Backend, problem: str) -> tuple[Place, Projection]:
    view = backend.reader.view
    if view is None:
        raise HTTPException(
            500,
            f"{problem}: the trading daemon gives no sign of life: start it, or look at its log",
        )
    return view.place, view


async def _answered(asking: Any, problem: str) -> RequestAnswer:
    try:
        answer: RequestAnswer = await asking
    except NoAnswer as error:
        _fail(problem, error)
    return answer


def _fail(problem: str, error: Exception) -> NoReturn:
    raise HTTPException(500, f"{problem}: {error}") from error


def strategy_of(text: str | None) -> str | None:
    """Return the strategy as it is known; one that is not falls back to ITM."""
    return None if text is None else _STRATEGIES.get(text.casefold(), "ITM")


def _price(value: float | None) -> Decimal | None:
    return None if value is None else Decimal(str(value))
