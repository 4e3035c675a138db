"""Back-tests: start one, cancel it, and the socket that shows it."""

import asyncio
from typing import Annotated, Any, Final

from fastapi import APIRouter, HTTPException, Request, WebSocket
from pydantic import BaseModel, Field

from backend.backtest_jobs import Job, JobRequest, TooManyJobs
from backend.context import Backend, backend_of
from backend.hub import as_text
from backend.responses import timeframe_of
from backend.routes.auth_routes import User
from backend.websocket import POLICY, is_disconnect, socket_identity

_LINGER_S: Final = 10.0

router = APIRouter()


class BacktestRequest(BaseModel):
    """What is to be tested; `duration` in days."""

    instrument: str
    timeframe: str
    duration: int
    initial_capital: Annotated[float, Field(allow_inf_nan=False)] = 100_000.0


def job_request(
    backend: Backend, user_id: str, instrument: str, timeframe: str, days: int, capital: float
) -> JobRequest:
    """Return what a job needs to know; what cannot be found is left out, and fails the job."""
    place = backend.reader.place
    found = backend.shelf.instrument(instrument, place)
    timeframe = timeframe_of(timeframe)
    return JobRequest(
        user_id=user_id,
        instrument=instrument,
        symbol=found.symbol if found else None,
        timeframe=timeframe,
        days=days,
        capital=capital,
        path=backend.shelf.path(found.symbol, timeframe, place) if found else None,
    )


@router.post("/api/backtest/run")
@router.post("/api/backtest/start")
@router.post("/api/backtest")
async def start(body: BacktestRequest, user: User, request: Request) -> dict[str, str]:
    """Start a back-test in a process of its own; how it goes is told on its socket."""
    backend = backend_of(request)
    try:
        job = backend.jobs.start(
            job_request(
                backend,
                user.user_id,
                body.instrument,
                body.timeframe,
                body.duration,
                body.initial_capital,
            )
        )
    except TooManyJobs as error:
        raise HTTPException(500, f"Failed to start backtest: {error}") from error
    return {
        "backtest_id": job.id,
        "status": "started",
        "message": "Backtest initiated successfully",
    }


@router.post("/api/backtest/{backtest_id}/cancel")
async def cancel(backtest_id: str, user: User, request: Request) -> dict[str, str]:
    """End the caller's own back-test."""
    jobs = backend_of(request).jobs
    job = jobs.find(backtest_id, user.user_id)
    if job is None:
        raise HTTPException(404, "Backtest not found")
    await jobs.cancel(job)
    return {"status": "cancelled", "backtest_id": job.id}


@router.websocket("/ws/backtest/{backtest_id}")
async def show(websocket: WebSocket, backtest_id: str) -> None:
    """Show a user his back-test from its first frame on, whenever he comes."""
    identity = socket_identity(websocket)
    if identity is None:
        await websocket.close(POLICY)
        return
    await websocket.accept()
    backend = backend_of(websocket)
    job = backend.jobs.find(backtest_id, identity.user_id)
    if job is None:
        await websocket.send_text(as_text({"type": "error", "message": "Backtest not found"}))
        await websocket.close()
        return
    connected = {
        "type": "connected",
        "message": "WebSocket connected successfully",
        "backtest_id": job.id,
    }
    await websocket.send_text(as_text(connected))
    tasks = [
        asyncio.create_task(_feed(websocket, job, backend.settings.stuck_seconds)),
        asyncio.create_task(_listen(websocket)),
    ]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        outcomes: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception) and not is_disconnect(outcome):
            raise outcome


async def _feed(websocket: WebSocket, job: Job, stuck_s: float) -> None:
    """Send frames as they come; a client that does not take one in time is left."""
    sent = 0
    while True:
        await job.more_than(sent)
        for text in job.frames[sent:]:
            async with asyncio.timeout(stuck_s):
                await websocket.send_text(text)
            sent += 1
        if job.is_over and sent == len(job.frames):
            await asyncio.sleep(_LINGER_S)  # the client closes; a ping is still answered
            return


async def _listen(websocket: WebSocket) -> None:
    while True:
        message = await websocket.receive()
        if message["type"] == "websocket.disconnect":
            return
        if message.get("text") == "ping":
            await websocket.send_text("pong")
