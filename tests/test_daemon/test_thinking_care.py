"""Thinking care: garbage, memory and the profile are looked after between decisions."""

import gc

import pytest
from structlog.testing import capture_logs

from daemon.thinking_care import REMEDY, ThinkingCare
from hrm.memory import HRMMemoryOptimizer, MemoryLimitExceededError
from hrm.profiling import Profile


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def collections(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return an entry for every time that garbage was collected."""
    found: list[float] = []
    monkeypatch.setattr(gc, "collect", lambda: found.append(Clock.now_s))
    return found


def a_care(clock: Clock, limit_gib: float = 1000.0, profile: Profile | None = None) -> ThinkingCare:
    return ThinkingCare(HRMMemoryOptimizer(limit_gib, REMEDY), profile, clock)


def test_garbage_is_collected_once_an_idle_second(clock: Clock, collections: list[float]) -> None:
    care = a_care(clock)

    for _ in range(30):
        clock.now_s += 0.25
        care.rest(is_idle=True)

    assert len(collections) == 6


def test_a_process_that_never_rests_still_collects_once_a_minute(
    clock: Clock, collections: list[float]
) -> None:
    care = a_care(clock)

    for _ in range(130):
        clock.now_s += 1.0
        care.rest(is_idle=False)

    assert len(collections) == 2


def test_a_process_that_holds_too_much_ends_and_says_what_to_do(clock: Clock) -> None:
    care = a_care(clock, limit_gib=1e-6)
    care.rest(is_idle=False)  # not yet due
    clock.now_s += 1.5

    with pytest.raises(MemoryLimitExceededError, match=r"the limit is 1e-06 GiB: it begins anew"):
        care.rest(is_idle=False)


def test_the_profile_goes_to_the_log_once_a_minute(clock: Clock, collections: list[float]) -> None:
    profile = Profile()
    profile.add("cycle", 1500)
    care = a_care(clock, profile=profile)

    with capture_logs() as lines:
        for _ in range(70):
            clock.now_s += 1.0
            care.rest(is_idle=True)

    [line] = [line for line in lines if line["event"] == "thinking took"]
    assert line["steps"] == {"cycle": {"count": 1, "p50_us": 1.5, "p99_us": 1.5}}
