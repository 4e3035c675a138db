"""python -m benchmarks.get_clients URL SECONDS: clients that ask a backend one thing after another.

Reads a cookie from the first line of stdin, prints `ready`, begins at the next line, and prints one
JSON list: how many milliseconds each answer took. Gives way as the sockets' clients do
(`benchmarks/socket_clients.py`), since browsers would be on other machines.
"""

import argparse
import asyncio
import json
import sys
import time
from typing import Final

import aiohttp
import uvloop

from backend.priority import give_way
from benchmarks.socket_clients import NICENESS

CLIENTS: Final = 4
PAUSE_S: Final = 0.05
PATHS: Final = (
    "/api/health",
    "/api/config",
    "/api/metrics",
    "/api/trading/positions",
    "/api/historical-data?instrument=Bank_Nifty&timeframe=1",
)


async def gets(url: str, cookie: str, seconds: float) -> list[float]:
    """Ask for a while; return the times in milliseconds."""
    end_s = time.monotonic() + seconds
    times: list[float] = []

    async def client(session: aiohttp.ClientSession, number: int) -> None:
        while time.monotonic() < end_s:
            path = PATHS[number % len(PATHS)]
            began_ns = time.perf_counter_ns()
            async with session.get(f"{url}{path}", headers={"Cookie": cookie}) as answer:
                await answer.read()
                if answer.status != 200:
                    raise SystemExit(f"{path} answered {answer.status}")
            times.append((time.perf_counter_ns() - began_ns) / 1e6)
            number += 1
            await asyncio.sleep(PAUSE_S)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session, number) for number in range(CLIENTS)))
    return times


def main() -> None:
    """Ask, and print the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("seconds", type=float)
    arguments = parser.parse_args()
    give_way(NICENESS)
    cookie = sys.stdin.readline().strip()
    print("ready", flush=True)
    sys.stdin.readline()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(gets(arguments.url, cookie, arguments.seconds))))


if __name__ == "__main__":
    main()
