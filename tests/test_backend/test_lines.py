"""A client over a real connection that takes nothing for a while, or for ever."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn
from backend_server import SECRET, USER, KnownAccounts
from command_line import CONFIG
from websockets.sync.client import ClientConnection, connect

from backend.app import create_app
from backend.auth import COOKIE
from backend.build import Options, build_backend
from backend.context import Backend
from backend.hub import ready
from backend.server import server_of
from daemon.settings import load_settings

pytestmark = pytest.mark.integration

TICKS, TRADE_EVERY = 4000, 400
PADDING = "x" * 900  # a tick of a kilobyte fills buffers sooner


@asynccontextmanager
async def served(
    tmp_path: Path, **settings: str
) -> AsyncIterator[tuple[Backend, uvicorn.Server, int]]:
    """Serve a backend in this loop, so that its hub can be used from here."""
    environment = {"JWT_SECRET": SECRET, "HRM_TRADER__SESSION__STATE_DIR": str(tmp_path)}
    environment |= {f"HRM_TRADER__BACKEND__{name.upper()}": text for name, text in settings.items()}
    loaded = load_settings(CONFIG, environment)
    backend = build_backend(
        loaded, Options(config=CONFIG), environment, KnownAccounts(), lambda: SECRET
    )
    listening = socket.create_server(("127.0.0.1", 0))
    server = server_of(create_app(backend), loaded.backend)
    serving = asyncio.create_task(server.serve([listening]))
    await until(lambda: server.started)
    yield backend, server, listening.getsockname()[1]
    server.should_exit = True
    await serving
    listening.close()


async def until(holds: object) -> None:
    assert callable(holds)
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110  the server's state
            await asyncio.sleep(0.01)


@asynccontextmanager
async def a_slow_client(backend: Backend, port: int) -> AsyncIterator[ClientConnection]:
    """Open a socket that reads one message ahead and has little room in the kernel."""
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    small.connect(("127.0.0.1", port))
    opening = await asyncio.to_thread(
        connect,
        f"ws://127.0.0.1:{port}/ws/trading",
        sock=small,
        additional_headers={"Cookie": f"{COOKIE}={backend.signer.issue(USER)}"},
        max_queue=1,
        compression=None,
        ping_interval=None,
        close_timeout=1,
    )
    with opening as client:
        yield client
        await asyncio.to_thread(client.close)  # it waits for the server, which is in this loop


async def test_a_client_that_pauses_finds_every_trade_and_the_newest_tick(tmp_path: Path) -> None:
    async with (
        served(tmp_path, stuck_seconds="60") as (backend, _, port),
        a_slow_client(backend, port) as client,
    ):
        await until(lambda: len(backend.hub) == 1)
        for number in range(TICKS):
            tick = {"type": "tick", "number": number, "padding": PADDING}
            backend.hub.send(USER.user_id, ready(tick, "tick:Nifty"))
            if number % TRADE_EVERY == 0:
                trade = {"type": "trade_executed", "number": number}
                backend.hub.send(USER.user_id, ready(trade))
            if number % 50 == 0:
                await asyncio.sleep(0)  # the connection gets a turn
        frames = await asyncio.to_thread(frames_until_tick, client, TICKS - 1)

    trades = [frame["number"] for frame in frames if frame["type"] == "trade_executed"]
    ticks = [frame["number"] for frame in frames if frame["type"] == "tick"]
    assert trades == list(range(0, TICKS, TRADE_EVERY))
    assert ticks == sorted(ticks)
    assert len(ticks) < TICKS / 4  # old ones did not pile up in buffers


def frames_until_tick(client: ClientConnection, number: int) -> list[dict[str, int | str]]:
    frames: list[dict[str, int | str]] = []
    while not frames or (frames[-1]["type"], frames[-1].get("number")) != ("tick", number):
        frames.append(json.loads(client.recv(timeout=20)))
    return frames


async def test_a_client_that_takes_nothing_is_cut_off_and_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    async with (
        served(tmp_path, stuck_seconds="0.1") as (backend, server, port),
        a_slow_client(backend, port),
    ):
        await until(lambda: len(backend.hub) == 1)
        for number in range(500):
            tick = {"type": "tick", "number": number, "padding": PADDING}
            backend.hub.send(USER.user_id, ready(tick, "tick:Nifty"))
        await asyncio.sleep(0.2)
        backend.hub.send(USER.user_id, ready({"type": "tick"}, "tick:Nifty"))

        await until(lambda: len(backend.hub) == 0)
        await until(lambda: not server.server_state.connections)
