"""What does the web backend cost, and does the trading path notice it?

    python -m benchmarks.backend --json          about seven minutes
    python -m benchmarks.backend --json --quick  about half a minute, fewer sockets

One daemon (`hrm-trader run`) plays seeded one-minute candles, fast enough for ten decisions and
forty ticks a second. Beside it, in turns: nothing, and the backend (`python -m backend`) with 200
live sockets and a stream of GET requests. Daemon, backend, sockets and who asks are processes of
their own; all but the daemon give way to it as whole sessions, as the units' CPUWeight has it. The
sockets are raw ones (`benchmarks/socket_clients.py`), so that they cost as little as they can.

`tick_fan_out_ms` is the time from a tick's publication on the bus to its arrival at a client, over
all sockets. `floor_fan_out_ms` is the same, in the same run and with the same clients, of a server
that does nothing but take ticks off the bus and write one ready frame to every socket
(`benchmarks/broadcast_floor.py`): what is between the two is the backend's.

`tick_to_decision_us` is the time from the market event that closed a bar to the decision, both as
published on the bus, by turn. The order of the turns is mirrored from pair to pair, so that a drift
of the machine falls on both alike. `tick_to_decision_p99_ratio` is with by without, all turns
pooled; for the confidence interval see `benchmarks/paired.py`.
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
from bisect import bisect_left
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Final

import aiohttp
import numpy as np
import uvloop

from actors.messages import Decision, StartSession, Tick
from backend.auth import COOKIE, CookieSigner, Identity
from backend.place import Place, find_place
from backend.responses import iso_local
from benchmarks.machine import ROOT, machine_facts, summary
from benchmarks.paired import percentile_ratio, ratio_ci95
from daemon.announcer import Announcer
from daemon.errors import BusError
from daemon.redis_bus import RedisBus
from daemon.settings import load_settings

SOCKETS: Final = 200
SOCKETS_PER_USER: Final = 3
PAIRS: Final = 8
TURN_S: Final = 20.0
FLOOR_S: Final = 10.0
SPEED: Final = 600.0  # market seconds per real second: ten bars, forty ticks a second
SECRET: Final = "a secret for measuring only, 32 bytes"
FIRST_DAY_S: Final = 1_772_423_100  # Monday 2026-03-02 09:15 IST
DAYS: Final = (
    0,
    2,
    3,
    4,
    7,
    8,
    9,
    10,
    11,
    14,
    15,
    16,
    17,
    18,
)  # without weekends and the holiday of 3 March
BARS_A_DAY: Final = 375
SEED: Final = 7
_START_WAIT_S: Final = 60.0
_SETTLE_S: Final = 2.0
_LONGEST_LINE: Final = 1 << 28


@dataclass
class Turn:
    """What was seen of a server, or without one, between two instants of the wall clock."""

    begin_ns: int = 0
    end_ns: int = 0
    arrivals: dict[str, list[int]] = field(default_factory=dict)
    lost: int = 0
    gets_ms: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    kib_per_socket: float = 0.0

    def fan_out_ms(self, published: dict[str, int]) -> list[float]:
        """Return how long each tick of the turn took to each socket."""
        return [
            (at_ns - published[key]) / 1e6
            for key, times_ns in self.arrivals.items()
            if self.begin_ns <= published.get(key, 0) < self.end_ns
            for at_ns in times_ns
        ]

    def decisions_us(self, decided: Sequence[tuple[int, float]]) -> list[float]:
        """Return how long the decisions of the turn took."""
        first = bisect_left(decided, (self.begin_ns, 0.0))
        last = bisect_left(decided, (self.end_ns, 0.0))
        return [elapsed_us for _, elapsed_us in decided[first:last]]


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="20 sockets, one pair of short turns")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="pairs of turns")
    parser.add_argument("--turn", type=float, default=TURN_S, help="seconds of one turn")
    arguments = parser.parse_args()
    plan = (SOCKETS, arguments.pairs, arguments.turn, FLOOR_S)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answer = runner.run(measure(*((20, 1, 5.0, 2.0) if arguments.quick else plan)))
    print(json.dumps(answer, indent=None if arguments.json else 1))


async def measure(sockets: int, pairs: int, turn_s: float, floor_s: float) -> dict[str, Any]:
    """Take all turns beside one daemon; return all figures."""
    without: list[Turn] = []
    with_: list[Turn] = []
    with tempfile.TemporaryDirectory(prefix="hrm-") as name:
        environment = environment_of(Path(name))
        candles = write_candles(Path(name) / "Nifty_1.csv")
        write_candles(Path(name) / "Bank_Nifty_1.csv")  # a chart's, of what is not traded
        daemon = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "daemon.cli", "run", "--data", str(candles), "--speed",
            str(SPEED), "--json", cwd=ROOT, env=environment,
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            place = await running_place(environment)
            cookies = await start_sessions(place, sockets)
            for number in range(pairs):
                if number % 2:
                    with_.append(await beside(environment, cookies, turn_s))
                without.append(await alone(turn_s))
                if not number % 2:
                    with_.append(await beside(environment, cookies, turn_s))
            floor = await beside_floor(place, cookies, floor_s)
            published, decided = await read_back(place)
        finally:
            daemon.send_signal(signal.SIGTERM)
            await daemon.wait()
    trading = decision_figures(
        [turn.decisions_us(decided) for turn in without],
        [turn.decisions_us(decided) for turn in with_],
    )
    return {
        "benchmark": "backend",
        "sockets": sockets,
        "turns": pairs,
        "turn_s": turn_s,
        **serving_figures(with_, turn_s, published),
        **floor_figures(floor, published),
        **trading,
        "machine": machine_facts(),
    }


def serving_figures(
    turns: Sequence[Turn], turn_s: float, published: dict[str, int]
) -> dict[str, Any]:
    """Return what the backend's clients saw, and what it cost."""
    late_ms = list(chain.from_iterable(turn.fan_out_ms(published) for turn in turns))
    gets_ms = list(chain.from_iterable(turn.gets_ms for turn in turns))
    cpu_s = sum(turn.cpu_s for turn in turns)
    return {
        "get_ms": summary(gets_ms),
        "gets": len(gets_ms),
        "tick_fan_out_ms": summary(late_ms),
        "ticks_delivered": len(late_ms),
        "sockets_lost": sum(turn.lost for turn in turns),
        "backend_cpu_share": round(cpu_s / (len(turns) * turn_s), 3),  # of one core
        "backend_cpu_us_per_delivered_tick": round(cpu_s / len(late_ms) * 1e6, 1),
        "memory_per_socket_kib": round(turns[0].kib_per_socket, 1),
    }


def floor_figures(turn: Turn, published: dict[str, int]) -> dict[str, Any]:
    """Return what the clients saw of the least of all servers, and what it cost."""
    late_ms = turn.fan_out_ms(published)
    return {
        "floor_fan_out_ms": summary(late_ms),
        "floor_cpu_us_per_delivered_tick": round(turn.cpu_s / len(late_ms) * 1e6, 1),
    }


def decision_figures(without: list[list[float]], with_: list[list[float]]) -> dict[str, Any]:
    """Return how long decisions took, without and with the backend beside."""
    pooled = {"without": list(chain(*without)), "with": list(chain(*with_))}
    return {
        "decisions": {name: len(taken_us) for name, taken_us in pooled.items()},
        "tick_to_decision_us": {name: summary(taken_us) for name, taken_us in pooled.items()},
        "tick_to_decision_p99_ratio": percentile_ratio(without, with_, 99),
        "tick_to_decision_p99_ratio_ci95": ratio_ci95(without, with_, 99),
        "tick_to_decision_p50_ratio": percentile_ratio(without, with_, 50),
        "tick_to_decision_p50_ratio_ci95": ratio_ci95(without, with_, 50),
    }


# --- the daemon -----------------------------------------------------------------------------------


def environment_of(folder: Path) -> dict[str, str]:
    """Return the environment of all processes."""
    return dict(os.environ) | {
        "HRM_TRADER__PATHS__RAW_DATA_DIR": str(folder),
        "HRM_TRADER__SESSION__STATE_DIR": str(folder / "state"),
        "HRM_TRADER__SESSION__MODEL_DIR": str(ROOT / "models"),
        "HRM_TRADER__SESSION__START_HALTED": "false",
        "HRM_TRADER__FEED__TIMEFRAME": "1",
        "HRM_TRADER__REASONING__WARM_UP_BARS": "1",
        "HRM_TRADER__RISK_LIMITS__MAX_DECISION_AGE_SECONDS": "3600",
        "JWT_SECRET": SECRET,
    }


def write_candles(path: Path) -> Path:
    """Write some days of one-minute candles, a seeded random walk."""
    draw = np.random.default_rng(SEED)
    price, lines = 22_000.0, ["datetime,open,high,low,close,volume"]
    for day in DAYS:
        for number in range(BARS_A_DAY):
            close = price * float(np.exp(draw.normal(0.0, 0.0008)))
            high, low = max(price, close) * 1.0002, min(price, close) * 0.9998
            prices = ",".join(f"{value:.2f}" for value in (price, high, low, close))
            lines.append(f"{FIRST_DAY_S + 86_400 * day + 60 * number},{prices},0")
            price = close
    path.write_text("\n".join(lines) + "\n")
    return path


async def running_place(environment: dict[str, str]) -> Place:
    """Return where the daemon's session is, once it decides."""
    settings = load_settings(ROOT / "config", environment)
    deadline_s = time.monotonic() + _START_WAIT_S
    while time.monotonic() < deadline_s:
        place = find_place(settings, demo=False)
        if place is not None:
            bus = RedisBus(place.url, place.plan.prefix)
            try:
                if await bus.entries(Decision.stream, limit=1):
                    return place
            except BusError:
                pass  # the server is not up yet
            finally:
                await bus.close()
        await asyncio.sleep(0.1)
    raise SystemExit(f"no decision within {_START_WAIT_S:g} s")


async def start_sessions(place: Place, sockets: int) -> list[str]:
    """Ask for a session of every user, as the backend would; return a cookie per socket."""
    users = [f"FA{number:05}" for number in range(-(-sockets // SOCKETS_PER_USER))]
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
    signer = CookieSigner(SECRET, time.time)
    cookies = [f"{COOKIE}={signer.issue(Identity(user, 'token', 'app'))}" for user in users]
    return [cookie for cookie in cookies for _ in range(SOCKETS_PER_USER)][:sockets]


async def read_back(place: Place) -> tuple[dict[str, int], list[tuple[int, float]]]:
    """Return when each tick was published, and when decisions were and how long they took (us)."""
    bus = RedisBus(place.url, place.plan.prefix)
    published = {
        iso_local(entry.envelope.message.time_ns): entry.envelope.published_ns
        for entry in await bus.entries(Tick.stream)
    }
    decided = sorted(
        (made.published_ns, (made.published_ns - made.origin_published_ns) / 1000)
        for made in (entry.envelope for entry in await bus.entries(Decision.stream))
    )
    await bus.close()
    return published, decided


# --- turns ----------------------------------------------------------------------------------------


async def alone(seconds: float) -> Turn:
    """Leave the daemon alone."""
    await asyncio.sleep(_SETTLE_S)
    begin_ns = time.time_ns()
    await asyncio.sleep(seconds)
    return Turn(begin_ns, time.time_ns())


async def beside(environment: dict[str, str], cookies: list[str], seconds: float) -> Turn:
    """Have the backend serve the sockets, and keep asking it."""
    turn = Turn()
    async with a_backend(environment) as (server, port):
        idle_kib = rss_kib(server.pid)
        async with (
            some_sockets(port, "/ws/trading", cookies, turn),
            clients_that_ask(port, cookies[0], seconds) as ask,
        ):
            await asyncio.sleep(_SETTLE_S)
            turn.kib_per_socket = (rss_kib(server.pid) - idle_kib) / len(cookies)
            cpu_s = cpu_seconds(server.pid)
            turn.begin_ns = time.time_ns()
            turn.gets_ms = await ask()
            turn.end_ns = time.time_ns()
            turn.cpu_s = cpu_seconds(server.pid) - cpu_s
    return turn


async def beside_floor(place: Place, cookies: list[str], seconds: float) -> Turn:
    """Have the least of all servers feed the sockets."""
    turn = Turn()
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.broadcast_floor", place.url, place.plan.prefix,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        port = int(await server.stdout.readline())
        async with some_sockets(port, "/", cookies, turn):
            await asyncio.sleep(_SETTLE_S)
            cpu_s = cpu_seconds(server.pid)
            turn.begin_ns = time.time_ns()
            await asyncio.sleep(seconds)
            turn.end_ns = time.time_ns()
            turn.cpu_s = cpu_seconds(server.pid) - cpu_s
    finally:
        server.kill()
        await server.wait()
    return turn


@asynccontextmanager
async def some_sockets(port: int, path: str, cookies: list[str], turn: Turn) -> AsyncIterator[None]:
    """Open the sockets in a process of their own; at the end note what came."""
    clients = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.socket_clients", str(port), path,
        cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        limit=_LONGEST_LINE, start_new_session=True,
    )  # fmt: skip
    assert clients.stdin is not None
    assert clients.stdout is not None
    clients.stdin.write(("\n".join(cookies) + "\n\n").encode())
    if await clients.stdout.readline() != b"open\n":
        raise SystemExit("the sockets could not be opened")
    try:
        yield
    finally:
        clients.stdin.close()
        seen = json.loads(await clients.stdout.read())
        await clients.wait()
        turn.arrivals, turn.lost = seen["arrivals"], seen["lost"]


@asynccontextmanager
async def a_backend(
    environment: dict[str, str],
) -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """Serve the backend on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "backend", "--port", str(port), "--log-level", "ERROR",
        cwd=ROOT, env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(_START_WAIT_S):
            while not await answers(session, f"http://127.0.0.1:{port}/api/health"):  # noqa: ASYNC110
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


@asynccontextmanager
async def clients_that_ask(
    port: int, cookie: str, seconds: float
) -> AsyncIterator[Callable[[], Awaitable[list[float]]]]:
    """Start clients in a process of their own; what is returned has them ask for some seconds."""
    clients = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.get_clients", f"http://127.0.0.1:{port}", str(seconds),
        cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        limit=_LONGEST_LINE, start_new_session=True,
    )  # fmt: skip

    async def ask() -> list[float]:
        """Return how many milliseconds each answer took."""
        times, _ = await clients.communicate(b"\n")
        if clients.returncode:
            raise SystemExit("the clients that ask have failed")
        answered: list[float] = json.loads(times)
        return answered

    try:
        assert clients.stdin is not None
        assert clients.stdout is not None
        clients.stdin.write(f"{cookie}\n".encode())
        if await clients.stdout.readline() != b"ready\n":
            raise SystemExit("the clients that ask did not start")
        yield ask
    finally:
        if clients.returncode is None:
            clients.kill()
            await clients.wait()


def rss_kib(pid: int) -> int:
    """Return the resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, the kernel's part included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
