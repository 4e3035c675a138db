"""The service classes of the existing backend, under their old names, over the daemon.

For code that keeps its own FastAPI routes and only changes an import. Nothing trades in here: each
call becomes a request to the daemon, or an answer out of what the daemon published. The two ways to
move over are in docs/onboarding/integration-patterns.md.
"""

import asyncio
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any, Final, Protocol, get_args

from fastapi import HTTPException, WebSocketDisconnect
from pydantic import ValidationError

from actors.messages import RequestAnswer, TradingMode
from backend.accounts import PastCandle
from backend.auth import Identity
from backend.backtest_jobs import Job, TooManyJobs
from backend.build import Options, build_backend
from backend.call_pace import CallPace
from backend.candles import candle_of
from backend.context import Backend
from backend.daemon_link import NoAnswer
from backend.fyers_accounts import FyersAccounts
from backend.hub import SocketClient, as_text, ready
from backend.lines import SendingLine
from backend.projection import started
from backend.responses import INACTIVE, fetch_seconds, next_fetch, timeframe_of
from backend.routes.backtest_routes import job_request
from backend.routes.trading_routes import (
    ManualTradeRequest,
    strategy_of,
    trade_manually,
)
from daemon.brokers.fyers.login import LoginFields
from daemon.brokers.fyers.rest import Endpoints
from daemon.errors import TraderError
from daemon.logs import get_logger
from daemon.settings import load_settings

_DAEMON_WAIT_S: Final = 10.0
_FAREWELL_S: Final = 1.0
_GOING: Final = 1001
_NO_LIFE: Final = "the daemon gives no sign of life: start it, or look at its log"
_MODES: Final[dict[str, TradingMode]] = {mode.casefold(): mode for mode in get_args(TradingMode)}


class ServiceFailed(TraderError):
    """A service could not do what it was asked; the text is the existing backend's."""


class Socket(Protocol):
    """What a service needs of a client's socket: Starlette's WebSocket has it."""

    async def send_text(self, data: str) -> None: ...

    async def close(self, code: int = 1000) -> None: ...


@cache
def shared_backend() -> Backend:
    """Return this process's parts, built from settings and environment when first asked for.

    The one shared object: the old constructors take none.
    """
    environment: Mapping[str, str] = os.environ
    settings = load_settings(None, environment)
    return build_backend(
        settings,
        Options(),
        environment,
        FyersAccounts(Endpoints(), shared_pace()),
        lambda: secrets.token_hex(32),
    )


@cache
def shared_pace() -> CallPace:
    """Return this process's pace of calls: every client of it asks one broker."""
    return CallPace(time.monotonic)


class LiveTradingService:
    """A user's live session. Run it in a task; it returns when the session has ended.

    A start that fails is told to the user's sockets too, and its status is `failed` until `stop`.
    """

    def __init__(
        self,
        user_id: str,
        access_token: str = "",  # noqa: ARG002  the daemon trades with its own
        app_id: str = "",  # noqa: ARG002
        instrument: str = "Nifty",
        timeframe: str = "5",
        option_strategy: str | None = "ITM",
        trading_mode: str = "paper",
        *,
        backend: Backend | None = None,
    ) -> None:
        """The token is not used here: orders are the daemon's, with its own."""
        self._backend = backend or shared_backend()
        self.user_id = user_id
        self.instrument = instrument
        self.timeframe = timeframe
        self.option_strategy = option_strategy
        self.trading_mode = trading_mode
        self._sockets: dict[Socket, tuple[SocketClient, asyncio.Task[None]]] = {}
        self._ended = asyncio.Event()
        self._has_failed = False
        self._closing: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Start the session and stay until it is stopped; raises ServiceFailed if refused."""
        backend = self._backend
        async with backend.following():
            try:
                await self._started("Failed to start live trading")
            except ServiceFailed as error:
                self._has_failed = True
                backend.hub.send(self.user_id, ready({"type": "error", "message": str(error)}))
                raise
            while not self._ended.is_set():
                view = backend.reader.view
                if view is not None and view.session_of(self.user_id) is None:
                    return
                try:
                    async with asyncio.timeout(0.5):
                        await self._ended.wait()
                except TimeoutError:
                    continue

    async def _started(self, problem: str) -> None:
        backend = self._backend
        mode = _mode(self.trading_mode, problem)
        self._check_user(problem)
        await self._until(lambda: backend.reader.view is not None, problem)
        view = backend.reader.view
        if view is None:
            raise ServiceFailed(f"{problem}: {_NO_LIFE}")
        self._check_user(problem)  # again: only now is it known whether money is real
        instrument = backend.shelf.instrument(self.instrument, view.place)
        answer = await _answer(
            backend.link.start(
                view.place,
                self.user_id,
                instrument.symbol if instrument else self.instrument,
                timeframe_of(self.timeframe),
                mode,
                strategy_of(self.option_strategy),
            ),
            problem,
        )
        if not answer.accepted:
            raise ServiceFailed(f"{problem}: {answer.reason}")
        await self._until(self._is_registered, problem)

    async def _until(self, is_so: Callable[[], bool], problem: str) -> None:
        """Wait for what another process does."""
        try:
            async with asyncio.timeout(_DAEMON_WAIT_S):
                while not is_so():  # noqa: ASYNC110  another process
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            raise ServiceFailed(f"{problem}: {_NO_LIFE}") from error

    def _check_user(self, problem: str) -> None:
        if excluded := self._backend.exclusion(self.user_id):
            raise ServiceFailed(f"{problem}: {excluded}")

    def _is_registered(self) -> bool:
        view = self._backend.reader.view
        return view is not None and view.session_of(self.user_id) is not None

    async def stop(self) -> None:
        """End the session; open positions keep their stops. Raises ServiceFailed if refused."""
        problem = "Failed to stop live trading"
        if self._has_failed and not self._is_registered():
            self._has_failed = False
            return
        view = self._backend.reader.view
        if view is None:
            raise ServiceFailed(f"{problem}: {_NO_LIFE}")
        answer = await _answer(self._backend.link.stop(view.place, self.user_id), problem)
        self._ended.set()
        self._has_failed = False
        if not answer.accepted:
            raise ServiceFailed(f"{problem}: {answer.reason}")

    def get_status(self) -> dict[str, Any]:
        """Return the status as the live socket's second frame carries it."""
        view = self._backend.reader.view
        if self._has_failed and not self._is_registered():
            return self._failed_status()
        return view.status(self.user_id) if view else dict(INACTIVE)

    def _failed_status(self) -> dict[str, Any]:
        """Return the status of a session that the daemon never had."""
        timeframe = timeframe_of(self.timeframe)
        seconds = fetch_seconds(timeframe)
        return {
            "status": "failed",
            "is_running": False,
            "current_price": 0.0,
            "instrument": self.instrument,
            "timeframe": timeframe,
            "option_strategy": strategy_of(self.option_strategy),
            "trading_mode": _MODES.get(self.trading_mode.casefold(), "PAPER"),
            "fetchIntervalSeconds": seconds,
            "nextFetchTimestamp": next_fetch(self._backend.wall_ns(), seconds),
            "current_pnl": 0.0,
            "today_trades": 0,
            "win_rate": 0.0,
            "position": 0.0,
            "available_capital": 0.0,
            "open_positions": 0,
            "closed_positions": 0,
        }

    async def initiate_manual_trade(
        self,
        instrument: str,
        direction: str,
        quantity: int,
        stop_loss: float | None = None,
        target: float | None = None,
        trading_mode: str | None = None,
    ) -> dict[str, Any]:
        """Place a manual trade in the session; raises ServiceFailed with the contract's text."""
        problem = "Failed to initiate manual trade"
        self._check_user(problem)
        fields = {
            "instrument": instrument,
            "direction": direction,
            "quantity": quantity,
            "stopLoss": stop_loss,
            "target": target,
            "trading_mode": None if trading_mode is None else _mode(trading_mode, problem).lower(),
        }
        try:
            body = ManualTradeRequest.model_validate(fields)
        except ValidationError as error:
            wrong = "; ".join(f"{detail['loc'][0]}: {detail['msg']}" for detail in error.errors())
            raise ServiceFailed(f"{problem}: {wrong}") from error
        try:
            mode = await trade_manually(self._backend, self.user_id, body, problem)
        except HTTPException as error:
            raise ServiceFailed(str(error.detail)) from error
        return {"status": "success", "trading_mode": mode}

    def add_websocket_client(self, websocket: Socket) -> None:
        """Send an accepted socket what happens in the session; a fourth ends the oldest.

        One that does not take its frames is closed.
        """
        line = SendingLine(websocket.send_text)
        sending = asyncio.create_task(line.run())
        client = self._backend.client(self.user_id, line, lambda: self._end(websocket))
        sending.add_done_callback(partial(_end_where_broken, client))
        self._sockets[websocket] = (client, sending)
        view = self._backend.reader.view
        session = view.session_of(self.user_id) if view else None
        if session is not None and session.status == "running":
            client.offer(ready(started(session)))
        self._backend.hub.attach(client)

    def remove_websocket_client(self, websocket: Socket) -> None:
        """Send a socket nothing more; harmless when it was not added."""
        found = self._sockets.pop(websocket, None)
        if found is not None:
            client, sending = found
            self._backend.hub.detach(client)
            sending.cancel()

    def _end(self, websocket: Socket) -> None:
        self.remove_websocket_client(websocket)
        closing = asyncio.create_task(_close(websocket))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


class BacktestService:
    """One back-test of a user. Run it in a task; it returns the results."""

    def __init__(
        self,
        user_id: str,
        instrument: str,
        timeframe: str,
        duration: int,
        initial_capital: float = 100_000.0,
        *,
        backend: Backend | None = None,
    ) -> None:
        self._backend = backend or shared_backend()
        self._request = (user_id, instrument, timeframe, duration, initial_capital)
        self._job: Job | None = None
        self._refusal = ""
        self._pumps: dict[Socket, asyncio.Task[None]] = {}
        self._begun = asyncio.Event()

    async def run(self) -> dict[str, Any]:
        """Run to the end and return `results`; raises ServiceFailed with the reason."""
        try:
            job = self._backend.jobs.start(job_request(self._backend, *self._request))
        except TooManyJobs as error:
            self._refusal = f"Failed to start backtest: {error}"
            raise ServiceFailed(self._refusal) from error
        finally:
            self._begun.set()
        self._job = job
        seen = 0
        while not job.is_over:
            await job.more_than(seen)
            seen = len(job.frames)
        last: dict[str, Any] = _decoded(job.frames[-1])
        if last["type"] != "completed":
            raise ServiceFailed(str(last["message"]))
        results: dict[str, Any] = last["results"]
        return results

    def add_websocket_client(self, websocket: Socket) -> None:
        """Send a socket, accepted already, every frame from the first one on."""
        self._pumps[websocket] = asyncio.create_task(self._feed(websocket))

    def remove_websocket_client(self, websocket: Socket) -> None:
        """Send a socket nothing more; harmless when it was not added."""
        pump = self._pumps.pop(websocket, None)
        if pump is not None:
            pump.cancel()

    async def _feed(self, websocket: Socket) -> None:
        await self._begun.wait()
        job = self._job
        if self._refusal:
            await websocket.send_text(as_text({"type": "error", "message": self._refusal}))
        sent = 0
        while job is not None and not (job.is_over and sent == len(job.frames)):
            await job.more_than(sent)
            for text in job.frames[sent:]:
                await websocket.send_text(text)
                sent += 1


class FyersClient:
    """A user's account at Fyers: log in, profile, funds, history. Orders are the daemon's."""

    def __init__(
        self,
        user_id: str = "",
        access_token: str = "",
        app_id: str = "",
        *,
        urls: Endpoints | None = None,
    ) -> None:
        """Without a token, `login` first. `app_id`: by default that of FYERS_APP_ID."""
        self._accounts = FyersAccounts(urls or Endpoints(), shared_pace())
        app = app_id or os.environ.get("FYERS_APP_ID", "")
        self._identity = Identity(user_id, access_token, app)

    async def login(self, **fields: str) -> bool:
        """Log in with the six fields of the form; raises BrokerError."""
        self._identity = await self._accounts.log_in(LoginFields(**fields))
        return True

    async def get_profile(self) -> dict[str, Any]:
        """Return name and capital."""
        profile = await self._accounts.profile(self._identity)
        return {
            "user_id": self._identity.user_id,
            "name": profile.name,
            "capital": profile.capital,
        }

    async def get_funds(self) -> dict[str, float]:
        """Return today's realised result and the total funds, in rupees."""
        funds = await self._accounts.funds(self._identity)
        return {"todayPnL": funds.today_pnl, "totalFunds": funds.total}

    async def get_historical_data(
        self, symbol: str, timeframe: str, start_s: int, end_s: int
    ) -> list[PastCandle]:
        """Return candles of an exchange symbol that open in [start_s, end_s]."""
        return await self._accounts.history(self._identity, symbol, timeframe, start_s, end_s)

    async def close(self) -> None:
        """Close the connection."""
        await self._accounts.close()


class RealtimeDataLoader:
    """Candles of the past for a chart, as GET /api/historical-data answers them."""

    def __init__(
        self,
        user_id: str = "",
        access_token: str = "",
        app_id: str = "",
        *,
        backend: Backend | None = None,
    ) -> None:
        self._backend = backend or shared_backend()
        self._identity = Identity(user_id, access_token, app_id)

    async def fetch_historical_data(
        self, instrument: str, timeframe: str
    ) -> list[dict[str, int | float]]:
        """Return about 30 days of candles but the first 199; raises DataError and BrokerError."""
        backend = self._backend
        chart = await backend.shelf.recent(
            self._identity,
            instrument,
            timeframe,
            backend.reader.place,
            backend.reader.view,
            backend.wall_ns() // 1_000_000_000,
        )
        return [candle_of(candle) for candle in chart.candles]


def _mode(word: str, problem: str) -> TradingMode:
    """Return the mode of a word in any spelling; what is not known is never taken for paper."""
    mode = _MODES.get(word.casefold())
    if mode is None:
        raise ServiceFailed(f"{problem}: trading_mode must be paper or real, was {word!r}")
    return mode


async def _answer(asking: Any, problem: str) -> RequestAnswer:
    try:
        answer: RequestAnswer = await asking
    except NoAnswer as error:
        raise ServiceFailed(f"{problem}: {error}") from error
    return answer


def _end_where_broken(client: SocketClient, sending: asyncio.Task[None]) -> None:
    if not sending.cancelled() and (error := sending.exception()):
        client.end(f"its socket broke: {type(error).__name__}")


async def _close(websocket: Socket) -> None:
    """Close a socket, but wait for nobody who takes nothing."""
    try:
        async with asyncio.timeout(_FAREWELL_S):
            await websocket.close(_GOING)
    except TimeoutError:
        get_logger(part="services").info("a socket did not take its close in time")
    except (RuntimeError, WebSocketDisconnect, OSError):
        return  # the client has gone first


def _decoded(text: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(text)
    return body
