"""Clocks: the machine's, the simulated one, and the TimeEvents they make."""

import asyncio
import time

import pytest

from daemon.clock import Clock, SimulatedClock, SystemClock, time_events

SECOND = 1_000_000_000


class SteppingClock(SimulatedClock):
    """A clock that someone sets during a sleep: each sleep ends at the next instant given."""

    def __init__(self, start_ns: int, ends_ns: list[int]) -> None:
        super().__init__(start_ns)
        self._given_ns = ends_ns

    async def sleep(self, seconds: float) -> None:
        self._now_ns = self._given_ns.pop(0)


async def first(clock: Clock, count: int, interval_s: float = 1.0) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    async for event in time_events(clock, interval_s):
        found.append((event.now_ns, event.wall_ns))
        if len(found) == count:
            break
    return found


async def test_the_system_clock_tells_the_machines_time_and_sleeps() -> None:
    clock = SystemClock()
    before = time.time_ns()
    started = clock.monotonic_ns()

    await clock.sleep(0.01)

    assert clock.monotonic_ns() - started >= 9_000_000
    assert before < clock.now_ns() <= time.time_ns()


def test_a_simulated_clock_stands_still_until_it_is_moved() -> None:
    clock = SimulatedClock(100)

    clock.advance_to(250)
    clock.advance_to(250)

    assert (clock.now_ns(), clock.monotonic_ns()) == (250, 150)


def test_a_simulated_clock_does_not_go_back() -> None:
    clock = SimulatedClock(100)

    with pytest.raises(ValueError, match="stands at 100 ns, cannot go back to 99"):
        clock.advance_to(99)


async def test_sleeping_moves_a_simulated_clock() -> None:
    clock = SimulatedClock(0)

    await clock.sleep(1.5)
    await clock.sleep(-1.0)

    assert clock.now_ns() == 1_500_000_000


async def test_sleepers_wake_in_the_order_of_their_ends() -> None:
    clock = SimulatedClock(0)
    woken: list[tuple[float, int]] = []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((seconds, clock.now_ns()))

    await asyncio.gather(sleeper(3), sleeper(1), sleeper(2), sleeper(1))

    assert woken == [(1, SECOND), (1, SECOND), (2, 2 * SECOND), (3, 3 * SECOND)]


async def test_a_cancelled_sleeper_holds_nobody_up() -> None:
    clock = SimulatedClock(0)
    cancelled = asyncio.create_task(clock.sleep(1))
    await asyncio.sleep(0)
    cancelled.cancel()

    async with asyncio.timeout(20):
        await clock.sleep(2)

    assert clock.now_ns() == 2 * SECOND


async def test_time_events_stand_on_whole_seconds() -> None:
    clock = SimulatedClock(10 * SECOND + 300_000_000)

    events = await first(clock, 3)

    assert events == [(second * SECOND, second * SECOND) for second in (11, 12, 13)]


async def test_time_events_follow_the_interval() -> None:
    events = await first(SimulatedClock(1), 2, interval_s=0.25)

    assert [now for now, _ in events] == [250_000_000, 500_000_000]


async def test_seconds_that_pass_while_the_consumer_is_busy_are_left_out() -> None:
    clock = SteppingClock(0, [SECOND, 4 * SECOND + 5, 5 * SECOND])

    events = await first(clock, 3)

    assert events == [(SECOND, SECOND), (4 * SECOND, 4 * SECOND + 5), (5 * SECOND, 5 * SECOND)]


async def test_a_sleep_that_ends_early_makes_no_event() -> None:
    clock = SteppingClock(0, [SECOND - 1, SECOND, 2 * SECOND])

    events = await first(clock, 2)

    assert [now for now, _ in events] == [SECOND, 2 * SECOND]


async def test_events_go_back_with_a_clock_that_is_set_back() -> None:
    clock = SteppingClock(100 * SECOND, [101 * SECOND, 41 * SECOND, 42 * SECOND])

    events = await first(clock, 3)

    assert [now // SECOND for now, _ in events] == [101, 41, 42]


async def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"interval_s must be positive, was 0.0"):
        await first(SimulatedClock(0), 1, interval_s=0.0)
