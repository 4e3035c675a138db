"""Clocks, and the edge that turns them into TimeEvents. Nothing else in the program asks the time.

Actors know time as a message only; the daemon's parts take a Clock, so that a test or a replayed
market can bring its own.
"""

import asyncio
import heapq
import time
from collections.abc import AsyncIterator
from typing import Final, Protocol

from actors.messages import TimeEvent

NS_PER_SECOND: Final = 1_000_000_000


class Clock(Protocol):
    """What time it is, and a way to wait."""

    def now_ns(self) -> int:
        """Return nanoseconds since 1970 UTC; may step when the machine's clock is set."""
        ...

    def monotonic_ns(self) -> int:
        """Return nanoseconds since some fixed instant; never steps, only good for differences."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait; other tasks run meanwhile."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ShiftedClock:
    """Another clock, so many nanoseconds ahead of it: a market at another time of day."""

    def __init__(self, clock: Clock, ahead_ns: int) -> None:
        self._clock = clock
        self._ahead_ns = ahead_ns

    def now_ns(self) -> int:
        return self._clock.now_ns() + self._ahead_ns

    def monotonic_ns(self) -> int:
        return self._clock.monotonic_ns()

    async def sleep(self, seconds: float) -> None:
        await self._clock.sleep(seconds)


class SimulatedClock:
    """A clock that stands still until it is moved, by `advance_to` or by those who sleep on it.

    When several tasks sleep, the clock moves to the earliest of their ends, then to the next, as
    real time would; a task that waits for anything else does not hold it up.
    """

    def __init__(self, start_ns: int) -> None:
        self._start_ns = start_ns
        self._now_ns = start_ns
        self._ends_ns: list[int] = []  # heap: when each sleeper wants to wake

    def now_ns(self) -> int:
        return self._now_ns

    def monotonic_ns(self) -> int:
        return self._now_ns - self._start_ns

    def advance_to(self, now_ns: int) -> None:
        """Move forward to an instant; the same instant again is fine, an earlier one is not."""
        if now_ns < self._now_ns:
            raise ValueError(f"the clock stands at {self._now_ns} ns, cannot go back to {now_ns}")
        self._now_ns = now_ns

    async def sleep(self, seconds: float) -> None:
        end_ns = self._now_ns + max(0, round(seconds * NS_PER_SECOND))
        heapq.heappush(self._ends_ns, end_ns)
        try:
            await asyncio.sleep(0)  # whoever runs at this instant may go to sleep first
            while self._now_ns < end_ns:
                if self._ends_ns[0] == end_ns:
                    self._now_ns = end_ns
                else:
                    await asyncio.sleep(0)
        finally:
            self._ends_ns.remove(end_ns)
            heapq.heapify(self._ends_ns)


async def time_events(clock: Clock, interval_s: float = 1.0) -> AsyncIterator[TimeEvent]:
    """Yield a TimeEvent at each multiple of the interval since 1970, so whole seconds for 1 s.

    `now_ns` is the multiple, `wall_ns` what the clock says when it is yielded. Multiples that pass
    while the consumer is busy are left out. When the clock is set back, the events go back with it.
    """
    interval_ns = round(interval_s * NS_PER_SECOND)
    if interval_ns <= 0:
        raise ValueError(f"interval_s must be positive, was {interval_s}")
    told_ns = clock.now_ns() // interval_ns * interval_ns
    while True:
        await clock.sleep((interval_ns - clock.now_ns() % interval_ns) / NS_PER_SECOND)
        wall_ns = clock.now_ns()
        now_ns = wall_ns // interval_ns * interval_ns
        if now_ns != told_ns:  # a sleep may end a hair early
            told_ns = now_ns
            yield TimeEvent(now_ns=now_ns, wall_ns=wall_ns)
