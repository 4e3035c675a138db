"""How long an event loop does not answer, and how long one with nothing to do does not."""

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvloop

from benchmarks.machine import percentile


class LoopProbe:
    """Ask an event loop a thousand times a second to answer; keep when, and how long it took."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self.samples: list[tuple[int, int]] = []  # real clock of the question, ns until the answer

    def _ask(self) -> None:
        while not self._stopping.wait(0.001):
            asked = time.time_ns(), time.perf_counter_ns()
            self._loop.call_soon_threadsafe(self._answer, *asked)

    def _answer(self, at_ns: int, asked_ns: int) -> None:
        self.samples.append((at_ns, time.perf_counter_ns() - asked_ns))

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Ask while the context is open."""
        self._thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            await asyncio.to_thread(self._thread.join)


def idle_loop_p999_ms(busy_processes: int, seconds: float) -> float:
    """Return what a loop with nothing to do takes to answer beside processes that only compute."""

    async def ask() -> list[float]:
        probe = LoopProbe(asyncio.get_running_loop())
        async with probe.asking():
            await asyncio.sleep(seconds)
        return [took_ns / 1e6 for _, took_ns in probe.samples]

    with _computing(busy_processes):
        return round(percentile(uvloop.run(ask()), 0.999), 3)


@contextmanager
def _computing(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
