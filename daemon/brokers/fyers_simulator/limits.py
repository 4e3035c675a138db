"""The broker's request limits: per second, per minute, per day, and the block for the day.

Limits count requests of real time, since that is what a client can keep. Going over the limit of a
minute more than three times on one day blocks the user for the rest of it.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from daemon.brokers.fyers_simulator.instruments import NS_PER_SECOND

_MINUTE_NS: Final = 60 * NS_PER_SECOND
_DAY_NS: Final = 86_400 * NS_PER_SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimits:
    """Requests allowed in any such window, and breaches of the minute allowed a day."""

    per_second: int = 10
    per_minute: int = 200
    per_day: int = 100_000
    minute_breaches: int = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a request is refused, and after how many seconds it may come again."""

    reason: str
    retry_after_s: int


class RateLimiter:
    """Count requests and refuse those over a limit; `limits` None counts only."""

    def __init__(self, limits: RateLimits | None, monotonic_ns: Callable[[], int]) -> None:
        self._limits = limits
        self._monotonic_ns = monotonic_ns
        self._times: deque[int] = deque()  # of the last minute
        self._today = 0
        self._day_began_ns = monotonic_ns()
        self._breached_minutes: set[int] = set()
        self.is_blocked = False
        self.requests = 0

    @property
    def minute_breaches(self) -> int:
        """Minutes of today in which the limit of a minute was passed."""
        return len(self._breached_minutes)

    def new_day(self) -> None:
        """Forget the day's counts and lift the block."""
        self._today = 0
        self._breached_minutes.clear()
        self.is_blocked = False
        self._day_began_ns = self._monotonic_ns()

    def admit(self) -> Verdict | None:
        """Count a request; return why it is refused, None when it is let through."""
        self.requests += 1
        limits, now_ns = self._limits, self._monotonic_ns()
        if limits is None:
            return None
        if now_ns - self._day_began_ns >= _DAY_NS:
            self.new_day()
        if self.is_blocked:
            return Verdict("blocked for the day: the minute limit was passed too often", 3_600)
        while self._times and now_ns - self._times[0] >= _MINUTE_NS:
            self._times.popleft()
        if self._today >= limits.per_day:
            return Verdict("request limit of the day reached", 3_600)
        if len(self._times) >= limits.per_minute:
            return self._breach(now_ns, limits)
        last_second = sum(1 for time_ns in self._times if now_ns - time_ns < NS_PER_SECOND)
        if last_second >= limits.per_second:
            return Verdict("request limit reached", 1)
        self._times.append(now_ns)
        self._today += 1
        return None

    def _breach(self, now_ns: int, limits: RateLimits) -> Verdict:
        self._breached_minutes.add(now_ns // _MINUTE_NS)
        if len(self._breached_minutes) > limits.minute_breaches:
            self.is_blocked = True
        left_ns = _MINUTE_NS - (now_ns - self._times[0])
        return Verdict("request limit of the minute reached", max(1, -(-left_ns // NS_PER_SECOND)))
