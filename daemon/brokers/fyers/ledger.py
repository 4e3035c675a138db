"""How many calls may go to Fyers, and which: counted per second, minute and day, kept in a file.

The broker blocks a user for the rest of the day who passes the limit of a minute more than three
times. So the budget here lies below its limits, and a share of it is for calls that reduce risk
(cancels, exits) alone. One refusal for too many calls leaves a quarter of the budget for the day;
two leave the reserve. Windows count real time, since that is what the broker counts.
"""

import fcntl
import os
from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final, Self

import msgspec

from daemon.clock import NS_PER_SECOND, Clock
from daemon.errors import ConfigError

_MINUTE_NS: Final = 60 * NS_PER_SECOND
_INDIA: Final = timezone(timedelta(hours=5, minutes=30))


@dataclass(frozen=True, slots=True, kw_only=True)
class CallBudget:
    """Calls allowed in any second, any minute and on a day of India; the reserve is within it."""

    per_second: int = 8  # of the broker's 10
    per_minute: int = 150  # of 200
    per_day: int = 90_000  # of 100 000
    reserve_per_second: int = 3
    reserve_per_minute: int = 50
    reserve_per_day: int = 5_000
    refusals_forgiven: int = 0  # a day, before the budget shrinks; a drill has a day's in seconds


class _Written(msgspec.Struct, kw_only=True):
    """What a restart must not forget."""

    day: str
    calls: int = 0
    refusals: int = 0
    recent_ns: list[int] = []  # of the last minute, oldest first


class LedgerTaken(ConfigError):
    """Another process counts the calls of this account."""


class RateLedger:
    """Grant calls one by one; the file is written before each, and one process owns it.

    Opening it raises LedgerTaken when another process has it, ConfigError when it cannot be read: a
    budget that is not known must not be spent.
    """

    def __init__(self, path: Path, clock: Clock, budget: CallBudget | None = None) -> None:
        self._path = path
        self._clock = clock
        self._budget = budget or CallBudget()
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._file = os.fdopen(descriptor, "r+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise LedgerTaken(
                f"{path} belongs to a running process: the calls of one account are counted in one "
                "place; stop the other process first"
            ) from None
        try:
            self._state = self._read()
        except ConfigError:
            self._file.close()
            raise
        self._recent_ns = deque(self._state.recent_ns)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    @property
    def calls_today(self) -> int:
        """Calls granted on this day of India."""
        self._turn_day()
        return self._state.calls

    @property
    def refusals_today(self) -> int:
        """How often the broker has said on this day that there were too many calls."""
        self._turn_day()
        return self._state.refusals

    def take(self, *, reduces_risk: bool = False) -> float:
        """Grant a call and return 0, or return after how many seconds to ask again.

        Infinite: not today any more. `reduces_risk`: the call cancels an order or closes a
        position, and may use the reserve.
        """
        self._turn_day()
        now_ns = self._clock.now_ns()
        while self._recent_ns and not 0 <= now_ns - self._recent_ns[0] < _MINUTE_NS:
            self._recent_ns.popleft()  # also what lies ahead, after the clock was set back
        per_second, per_minute, per_day = self._limits(reduces_risk=reduces_risk)
        if self._state.calls >= per_day or not per_minute:
            return float("inf")
        wait_ns = max(
            self._wait_ns(now_ns, per_second, NS_PER_SECOND),
            self._wait_ns(now_ns, per_minute, _MINUTE_NS),
        )
        if wait_ns > 0:
            return wait_ns / NS_PER_SECOND
        self._recent_ns.append(now_ns)
        self._state.calls += 1
        self._write()
        return 0.0

    def note_refusal(self) -> None:
        """Remember that the broker has said: too many calls."""
        self._turn_day()
        self._state.refusals += 1
        self._write()

    def _limits(self, *, reduces_risk: bool) -> tuple[int, int, int]:
        budget = self._budget
        refusals = max(0, self._state.refusals - budget.refusals_forgiven)
        if reduces_risk:
            return budget.per_second, budget.per_minute, budget.per_day
        limits = (
            budget.per_second - budget.reserve_per_second,
            budget.per_minute - budget.reserve_per_minute,
            budget.per_day - budget.reserve_per_day,
        )
        if not refusals:
            return limits
        second, minute, day = (max(1, limit // 4) for limit in limits)
        return (second, minute, day) if refusals == 1 else (0, 0, 0)

    def _wait_ns(self, now_ns: int, limit: int, window_ns: int) -> int:
        """Return how long until fewer than `limit` calls lie within the window."""
        if len(self._recent_ns) < limit:
            return 0
        return self._recent_ns[-limit] + window_ns - now_ns

    def _turn_day(self) -> None:
        day = _day_of(self._clock.now_ns())
        if day > self._state.day:  # never back: a clock set back gives no second budget
            self._state = _Written(day=day)
            self._write()

    def _read(self) -> _Written:
        self._file.seek(0)
        content = self._file.read()
        if not content:
            return _Written(day=_day_of(self._clock.now_ns()))
        try:
            return msgspec.json.decode(content, type=_Written)
        except msgspec.MsgspecError as error:
            raise ConfigError(
                f"{self._path}: cannot be read ({error}); if no call was made today, remove it"
            ) from None

    def _write(self) -> None:
        """Write in place, since the lock is on this very file; blanks cover what was longer."""
        self._state.recent_ns = list(self._recent_ns)
        content = msgspec.json.encode(self._state)
        descriptor = self._file.fileno()
        os.pwrite(descriptor, content.ljust(os.fstat(descriptor).st_size), 0)


def read_use(path: Path, now_ns: int) -> dict[str, int] | None:
    """Return today's calls and refusals beside the day's budget, as JSON values, without the lock.

    None where no calls are counted, or while the file is being written.
    """
    try:
        written = msgspec.json.decode(path.read_bytes(), type=_Written)
    except (OSError, msgspec.MsgspecError):
        return None
    is_today = written.day == _day_of(now_ns)
    return {
        "calls_today": written.calls if is_today else 0,
        "refusals_today": written.refusals if is_today else 0,
        "budget_of_the_day": CallBudget().per_day,
    }


def _day_of(now_ns: int) -> str:
    return f"{datetime.fromtimestamp(now_ns / NS_PER_SECOND, _INDIA):%Y-%m-%d}"
