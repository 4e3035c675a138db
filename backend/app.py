"""The FastAPI application: routes, cross-origin rules, limits, and what lives as long as it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.context import Backend
from backend.routes import auth_routes, backtest_routes, config_routes, trading_routes
from backend.websocket import router as sockets
from daemon.logs import get_logger

_PROBLEMS: Final = {
    "/logout": "Logout failed",
    "/profile": "Failed to fetch profile",
    "/funds": "Failed to fetch funds",
    "/config": "Failed to read configuration",
    "/metrics": "Failed to read metrics",
    "/historical-data": "Internal server error while fetching historical data",
    "/backtest": "Failed to start backtest",
    "/backtest/run": "Failed to start backtest",
    "/backtest/start": "Failed to start backtest",
    "/live/start": "Failed to start live trading",
    "/live/stop": "Failed to stop live trading",
    "/manual-trade": "Failed to initiate manual trade",
}
"""How the contract begins the text of a failure, by the end of the path."""


def create_app(backend: Backend) -> FastAPI:
    """Return the application around its parts; it follows the daemon while it is served."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with backend.following():
            yield
            backend.hub.end_all("the backend stops")
            await backend.jobs.close()
        await backend.accounts.close()

    app = FastAPI(title="AlgoTrading API", version="1.0.0", lifespan=lifespan)
    app.state.backend = backend
    for routes in (auth_routes, config_routes, trading_routes, backtest_routes):
        app.include_router(routes.router)
    app.include_router(sockets)
    app.add_middleware(BodyLimit, most_bytes=backend.settings.max_body_kib * 1024)
    app.add_middleware(Failures)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=backend.settings.origins,
        allow_credentials=True,
        allow_methods=["*"],
        allow_headers=["*"],
    )
    app.add_exception_handler(RequestValidationError, _invalid)
    return app


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer 422 as ever, but never send a log-in's fields back."""
    assert isinstance(error, RequestValidationError)
    details: list[dict[str, Any]] = [
        {key: value for key, value in detail.items() if key in ("type", "loc", "msg", "input")}
        for detail in error.errors()
    ]
    if request.url.path.endswith("/login"):
        details = [detail | {"input": None} for detail in details]
    return JSONResponse({"detail": jsonable_encoder(_finite(details))}, 422)


def _finite(value: Any) -> Any:
    """Return a value that JSON can carry: the input may hold NaN or infinity."""
    match value:
        case float() if value != value or value in (float("inf"), float("-inf")):
            return str(value)
        case dict():
            return {key: _finite(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_finite(entry) for entry in value]
        case _:
            return value


class Failures:
    """Answer 500 with a `detail` where a route broke: inside CORS, so that a page can read it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def noting(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            if has_begun:
                raise
            path: str = scope["path"]
            get_logger(part="app").exception("route broke", path=path)
            problem = next(
                (text for end, text in _PROBLEMS.items() if path.endswith(end)),
                "Internal server error",
            )
            detail = f"{problem}: the backend broke; look at what was done before you ask again"
            await JSONResponse({"detail": detail}, 500)(scope, receive, send)


class BodyLimit:
    """Answer 413 to a body above a size, announced or not."""

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app = app
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._most_bytes:
            await self._refuse(scope, receive, send)
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has gone
            body += message.get("body", b"")
            if len(body) > self._most_bytes:
                await self._refuse(scope, receive, send)
                return
            if not message.get("more_body"):
                break
        is_given = False

        async def whole() -> Message:
            nonlocal is_given
            if is_given:
                return await receive()
            is_given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, whole, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = JSONResponse({"detail": f"Request body above {self._most_bytes} bytes"}, 413)
        await answer(scope, receive, send)
