"""What does the web backend cost, and does the trading path notice it?

    python -m benchmarks.backend --json          about two minutes
    python -m benchmarks.backend --json --quick  about forty seconds, fewer sockets

Runs the daemon (`hrm-trader run`) twice on the same seeded one-minute candles, played fast enough
for several decisions a second: once alone, once with the backend (`python -m backend`) serving 200
live sockets and a stream of GET requests. The backend and the daemon are processes of their own, as
in production; the clients run in this one.

`tick_fan_out_ms` is the time from a tick's publication on the bus to its arrival at a client, over
all sockets. `tick_to_decision_us` is the daemon's own figure of each run; the ratio is with by
without. `memory_per_socket_kib` is the growth of the backend's resident memory by the sockets.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
import numpy as np
import uvloop

from actors.messages import StartSession, Tick
from backend.auth import COOKIE, CookieSigner, Identity
from backend.hub import MOST_SOCKETS
from backend.place import Place, find_place
from backend.responses import iso_local
from benchmarks.machine import ROOT, machine_facts, summary
from daemon.announcer import Announcer
from daemon.errors import BusError
from daemon.redis_bus import RedisBus
from daemon.redis_tail import RedisTail
from daemon.settings import load_settings

SOCKETS: Final = 200
SPEED: Final = 120.0  # market seconds per real second: two bars, eight ticks a second
SECRET: Final = "a secret for measuring only, 32 bytes"
FIRST_BAR_S: Final = 1_772_423_100  # Monday 2026-03-02 09:15 IST
SEED: Final = 7
_START_WAIT_S: Final = 60.0
_WARM_UP_S: Final = 3.0
_CLIENT_NICENESS: Final = 10
_GET_CLIENTS: Final = 4
_PATHS: Final = ("/api/health", "/api/config", "/api/metrics", "/api/trading/positions")


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="20 sockets, 10 seconds a run")
    arguments = parser.parse_args()
    sockets, seconds = (20, 10.0) if arguments.quick else (SOCKETS, 40.0)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answer = runner.run(measure(sockets, seconds))
    print(json.dumps(answer, indent=None if arguments.json else 1))


async def measure(sockets: int, seconds: float) -> dict[str, Any]:
    """Run the daemon alone, then with the backend; return all figures."""
    alone = await one_run(0, seconds)
    loaded = await one_run(sockets, seconds)
    without, with_ = alone["tick_to_decision_us"], loaded["tick_to_decision_us"]
    return {
        "benchmark": "backend",
        "sockets": sockets,
        "seconds": seconds,
        "get_ms": loaded["get_ms"],
        "gets": loaded["gets"],
        "tick_fan_out_ms": loaded["tick_fan_out_ms"],
        "ticks_delivered": loaded["ticks_delivered"],
        "sockets_lost": loaded["sockets_lost"],
        "tick_to_decision_us": {"without": without, "with": with_},
        "tick_to_decision_p99_ratio": round(with_["p99"] / without["p99"], 3),
        "tick_to_decision_p50_ratio": round(with_["p50"] / without["p50"], 3),
        "memory_per_socket_kib": loaded["memory_per_socket_kib"],
        "machine": machine_facts(),
    }


async def one_run(sockets: int, seconds: float) -> dict[str, Any]:
    """Run the daemon for a while, with so many sockets at the backend or without one."""
    with tempfile.TemporaryDirectory(prefix="hrm-") as name:
        folder = Path(name)
        environment = os.environ | {
            "HRM_TRADER__SESSION__STATE_DIR": str(folder / "state"),
            "HRM_TRADER__SESSION__MODEL_DIR": str(ROOT / "models"),
            "HRM_TRADER__SESSION__START_HALTED": "false",
            "HRM_TRADER__FEED__TIMEFRAME": "1",
            "HRM_TRADER__REASONING__WARM_UP_BARS": "1",
            "HRM_TRADER__RISK_LIMITS__MAX_DECISION_AGE_SECONDS": "3600",
            "JWT_SECRET": SECRET,
        }
        candles = write_candles(folder / "Nifty_1.csv")
        daemon = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "daemon.cli", "run", "--data", str(candles), "--speed",
            str(SPEED), "--json", cwd=ROOT, env=environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            place = await running_place(environment)
            load: dict[str, Any] = {}
            if sockets:
                load = await under_load(place, environment, sockets, seconds)
            else:
                await asyncio.sleep(seconds)
        finally:
            daemon.send_signal(signal.SIGTERM)
            out, _ = await daemon.communicate()
        answer = json.loads(out)
        return load | {"tick_to_decision_us": answer["tick_to_decision_us"]}


def write_candles(path: Path) -> Path:
    """Write a session day of one-minute candles, a seeded random walk."""
    draw = np.random.default_rng(SEED)
    price, lines = 22_000.0, ["datetime,open,high,low,close,volume"]
    for number in range(360):
        close = price * float(np.exp(draw.normal(0.0, 0.0008)))
        high, low = max(price, close) * 1.0002, min(price, close) * 0.9998
        prices = ",".join(f"{value:.2f}" for value in (price, high, low, close))
        lines.append(f"{FIRST_BAR_S + 60 * number},{prices},0")
        price = close
    path.write_text("\n".join(lines) + "\n")
    return path


async def running_place(environment: dict[str, str]) -> Place:
    """Return where the daemon's session is, once the market moves."""
    settings = load_settings(ROOT / "config", environment)
    deadline_s = time.monotonic() + _START_WAIT_S
    while time.monotonic() < deadline_s:
        place = find_place(settings, demo=False)
        if place is not None:
            bus = RedisBus(place.url, place.plan.prefix)
            try:
                if await bus.entries(Tick.stream, limit=1):
                    return place
            except BusError:
                pass  # the server is not up yet
            finally:
                await bus.close()
        await asyncio.sleep(0.1)
    raise SystemExit(f"no market within {_START_WAIT_S:g} s")


async def under_load(
    place: Place, environment: dict[str, str], sockets: int, seconds: float
) -> dict[str, Any]:
    """Open the sockets, keep asking, and note when ticks were published and when they came."""
    os.nice(_CLIENT_NICENESS)  # the daemon runs already: browsers would be on other machines
    async with a_backend(environment) as (process, port):
        users = [f"FA{number:05}" for number in range(-(-sockets // MOST_SOCKETS))]
        await start_sessions(place, users)
        signer = CookieSigner(SECRET, time.time)
        cookies = [
            f"{COOKIE}={signer.issue(Identity(user, 'token', 'app'))}"
            for user in users
            for _ in range(MOST_SOCKETS)
        ][:sockets]
        before_kib = rss_kib(process.pid)
        arrived: list[tuple[str, int]] = []
        published: dict[str, int] = {}
        lost: list[str] = []
        is_measuring = asyncio.Event()
        connector = aiohttp.TCPConnector(limit=0)  # by default 100: sockets would wait for ever
        async with aiohttp.ClientSession(connector=connector) as session:
            url = f"http://localhost:{port}"
            hearing = [
                asyncio.create_task(hear(session, url, cookie, arrived, lost, is_measuring))
                for cookie in cookies
            ]
            watching = asyncio.create_task(watch(place, published))
            await asyncio.sleep(_WARM_UP_S)
            after_kib = rss_kib(process.pid)
            is_measuring.set()
            times = await gets(session, url, cookies[0], seconds)
            is_measuring.clear()
            for task in (*hearing, watching):
                task.cancel()
            await asyncio.gather(*hearing, watching, return_exceptions=True)
    late = [(at_ns - published[key]) / 1e6 for key, at_ns in arrived if key in published]
    return {
        "get_ms": summary(times),
        "gets": len(times),
        "tick_fan_out_ms": summary(late),
        "ticks_delivered": len(late),
        "sockets_lost": len(lost),
        "memory_per_socket_kib": round((after_kib - before_kib) / sockets, 1),
    }


@asynccontextmanager
async def a_backend(
    environment: dict[str, str],
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """Serve the backend on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "backend", "--port", str(port), "--log-level", "ERROR",
        cwd=ROOT, env=environment,
    )  # fmt: skip
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(_START_WAIT_S):
            while not await answers(session, f"http://localhost:{port}/api/health"):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        await asyncio.sleep(1.0)  # it finds the daemon
        yield process, port
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as answer:
            return answer.status == 200
    except aiohttp.ClientError:
        return False


async def start_sessions(place: Place, users: list[str]) -> None:
    """Ask for a session of every user, as the backend would."""
    bus = RedisBus(place.url, place.plan.prefix)
    announcer = Announcer(bus, "benchmark", [StartSession.stream])
    for user in users:
        await announcer.publish(
            StartSession(
                id=user,
                user_id=user,
                instrument="Nifty",
                timeframe="1",
                trading_mode="PAPER",
                at_ns=time.time_ns(),
            )
        )
    await announcer.close()
    await bus.close()
    await asyncio.sleep(1.0)


async def hear(
    session: aiohttp.ClientSession,
    url: str,
    cookie: str,
    arrived: list[tuple[str, int]],
    lost: list[str],
    is_measuring: asyncio.Event,
) -> None:
    """Take every frame of one socket and note when ticks came."""
    async with session.ws_connect(f"{url}/ws/trading", headers={"Cookie": cookie}) as client:
        async for message in client:
            at_ns = time.time_ns()
            is_tick = message.type == aiohttp.WSMsgType.TEXT and '"tick"' in message.data[:20]
            if is_tick and is_measuring.is_set():
                arrived.append((json.loads(message.data)["data"]["time_iso"], at_ns))
    lost.append(cookie)


async def watch(place: Place, published: dict[str, int]) -> None:
    """Note when each tick was put on the bus; ticks of one instant count from the first."""
    tail = await RedisTail.open(place.url, place.plan.prefix, [Tick.stream])
    try:
        while True:
            for entry in await tail.read(1000, 200):
                tick = entry.envelope.message
                if isinstance(tick, Tick):
                    published.setdefault(iso_local(tick.event_ns), entry.envelope.published_ns)
    finally:
        await tail.close()


async def gets(
    session: aiohttp.ClientSession, url: str, cookie: str, seconds: float
) -> list[float]:
    """Ask one thing after another with a few clients; return the times in milliseconds."""
    end_s = time.monotonic() + seconds
    times: list[float] = []

    async def client(number: int) -> None:
        while time.monotonic() < end_s:
            path = _PATHS[number % len(_PATHS)]
            began_ns = time.perf_counter_ns()
            async with session.get(f"{url}{path}", headers={"Cookie": cookie}) as answer:
                await answer.read()
                if answer.status != 200:
                    raise SystemExit(f"{path} answered {answer.status}")
            times.append((time.perf_counter_ns() - began_ns) / 1e6)
            number += 1
            await asyncio.sleep(0.05)

    await asyncio.gather(*(client(number) for number in range(_GET_CLIENTS)))
    return times


def rss_kib(pid: int) -> int:
    """Return the resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


if __name__ == "__main__":
    main()
