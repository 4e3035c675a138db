"""The sockets: who may open one, what comes first, pings, and the way out.

A socket belongs to the user of its cookie; the id in the path only keeps the old form.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any, Final

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from backend.auth import COOKIE, Identity, NotAuthenticated
from backend.context import Backend, backend_of
from backend.hub import TOO_SLOW, SocketClient, as_text, ready, ready_text
from backend.lines import EXTENSION, LineProtocol
from backend.projection import started
from backend.responses import INACTIVE, insights, iso_utc, trading_response
from backend.routes.trading_routes import traded_symbol

PING_EVERY_S: Final = 30.0
SILENT_AFTER_S: Final = 120.0

POLICY: Final = 1008
_GOING: Final = 1001
_FAREWELL_S: Final = 1.0
_CONTROL_TYPES: Final = ("ping", "pong")

router = APIRouter()
OnObject = Callable[[dict[str, Any]], str | None]


def socket_identity(websocket: WebSocket) -> Identity | None:
    """Return whose cookie this is; None also for a page of a foreign origin."""
    origin = websocket.headers.get("origin")
    backend = backend_of(websocket)
    if origin is not None and origin not in backend.settings.origins:
        return None
    try:
        return backend.admitted(websocket.cookies.get(COOKIE))
    except NotAuthenticated:
        return None


@router.websocket("/ws/live-data/{user_id}")
@router.websocket("/ws/live/{user_id}")
async def live(websocket: WebSocket, user_id: str) -> None:
    """Show a user his session; the path must name the user of the cookie."""
    identity = socket_identity(websocket)
    if identity is None or identity.user_id != user_id:
        await websocket.close(POLICY)  # before accepting: the handshake is answered 403
        return
    await _serve_session(websocket, identity, lambda _: None)


@router.websocket("/ws/trading")
async def trading(websocket: WebSocket) -> None:
    """Show the cookie's user his session, and answer market data with the decision in force."""
    identity = socket_identity(websocket)
    if identity is None:
        await websocket.close(POLICY)
        return
    backend = backend_of(websocket)
    user_id = identity.user_id
    await _serve_session(websocket, identity, lambda body: decision_text(backend, user_id, body))


def decision_text(backend: Backend, user_id: str, body: dict[str, Any]) -> str | None:
    """Return the answer to a market-data object; None for a ping or pong."""
    if body.get("type") in _CONTROL_TYPES:
        return None
    view = backend.reader.view
    decision = None
    lots = 0.0
    if view is not None:
        name = body.get("instrument") or body.get("symbol")
        decision = view.decisions.get(traded_symbol(backend, view, user_id, name))
        lots = view.lots_of(decision)
    answer = trading_response(decision, lots).model_dump()
    return as_text(answer | {k: v for k, v in insights(decision).items() if k != "confidence"})


async def _serve_session(websocket: WebSocket, identity: Identity, on_object: OnObject) -> None:
    """Show a user his session until one of them ends; then close."""
    backend = backend_of(websocket)
    line: LineProtocol = websocket.scope["extensions"][EXTENSION]
    await websocket.accept()
    ended = asyncio.Event()
    client = backend.client(identity.user_id, line, ended.set)
    for body in _greeting(backend, identity.user_id):
        client.offer(ready(body))
    # No await since the status was taken: nothing that happens now is missed or comes too early.
    backend.hub.attach(client)
    listening = asyncio.create_task(_listen(websocket, client, backend, on_object))
    listening.add_done_callback(lambda _: ended.set())
    try:
        await ended.wait()
    finally:
        backend.hub.detach(client)
        listening.cancel()
        (outcome,) = await asyncio.gather(listening, return_exceptions=True)
    if isinstance(outcome, Exception) and not is_disconnect(outcome):
        raise outcome
    if client.end_reason == TOO_SLOW:
        line.abort()  # a farewell would wait for ever behind what is not taken
        return
    try:
        async with asyncio.timeout(_FAREWELL_S):
            await websocket.close(_GOING)
    except TimeoutError:
        line.abort()
    except (RuntimeError, WebSocketDisconnect):
        return  # the client has gone first


def _greeting(backend: Backend, user_id: str) -> Iterator[dict[str, Any]]:
    """Yield what a new socket hears first."""
    yield {
        "type": "connected",
        "message": "WebSocket connected successfully",
        "user_id": user_id,
    }
    view = backend.reader.view
    yield {"type": "status", "data": view.status(user_id) if view else INACTIVE}
    session = view.session_of(user_id) if view else None
    if session is not None and session.status == "running":
        yield started(session)


def is_disconnect(error: Exception) -> bool:
    """Tell whether an error only says that the client has gone."""
    # Starlette raises RuntimeError for a send after the close was seen.
    return isinstance(error, WebSocketDisconnect | RuntimeError | OSError)


async def _listen(
    websocket: WebSocket, client: SocketClient, backend: Backend, on_object: OnObject
) -> None:
    """Hear the client and ping it; return when it leaves or says nothing for two minutes."""
    heard_s = backend.monotonic_s()
    ping_s = heard_s + PING_EVERY_S
    while True:
        now_s = backend.monotonic_s()
        if now_s >= heard_s + SILENT_AFTER_S:
            return
        if now_s >= ping_s:
            client.offer(ready({"type": "ping", "timestamp": iso_utc(backend.wall_ns())}))
            ping_s = now_s + PING_EVERY_S
        try:
            async with asyncio.timeout(min(ping_s, heard_s + SILENT_AFTER_S) - now_s):
                message = await websocket.receive()
        except TimeoutError:
            continue
        if message["type"] == "websocket.disconnect":
            return
        heard_s = backend.monotonic_s()
        answer = _answer(message.get("text") or "", on_object)
        if answer is not None:
            client.offer(ready_text(answer))


def _answer(text: str, on_object: OnObject) -> str | None:
    if text == "ping":
        return "pong"
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return on_object(body) if isinstance(body, dict) else None
