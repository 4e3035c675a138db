"""How long an event loop does not answer, and how long one with nothing to do does not."""

import asyncio
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import uvloop

from benchmarks.machine import percentile

_PERIOD_NS: Final = 1_000_000
_TFD_TIMER_ABSTIME: Final = 1


class _Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _Itimerspec(ctypes.Structure):
    _fields_ = [("interval", _Timespec), ("value", _Timespec)]


class LoopProbe:
    """Ask an event loop a thousand times a second to answer; keep when, and how long it took.

    The kernel asks (timerfd_create(2)), on time whatever the loop does, so a stall that swallows
    several questions counts for each of them. A thread would have to wait for the interpreter
    itself, and so not see what holds the loop up.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer = -1
        self._due_ns = 0  # monotonic clock
        self._real_ns = time.time_ns() - time.monotonic_ns()  # from that to the real clock
        self.samples: list[tuple[int, int]] = []  # real clock of the question, ns until the answer

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Ask while the context is open."""
        self._due_ns = time.monotonic_ns() + _PERIOD_NS
        self._timer = _timer(self._due_ns)
        self._loop.add_reader(self._timer, self._answer)
        try:
            yield
        finally:
            self._loop.remove_reader(self._timer)
            os.close(self._timer)

    def _answer(self) -> None:
        asked = int.from_bytes(os.read(self._timer, 8), sys.byteorder)
        now_ns = time.monotonic_ns()
        for _ in range(asked):
            self.samples.append((self._due_ns + self._real_ns, now_ns - self._due_ns))
            self._due_ns += _PERIOD_NS


def _timer(first_ns: int) -> int:
    """Return a descriptor that becomes readable each period, from an instant on."""
    libc = ctypes.CDLL(None, use_errno=True)
    timer: int = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    spec = _Itimerspec(_Timespec(0, _PERIOD_NS), _Timespec(*divmod(first_ns, 10**9)))
    if timer < 0 or libc.timerfd_settime(timer, _TFD_TIMER_ABSTIME, ctypes.byref(spec), None):
        raise OSError(ctypes.get_errno(), "no timer for the loop probe")
    return timer


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
