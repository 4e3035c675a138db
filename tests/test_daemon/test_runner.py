"""The runner: recovery, commit, failure and signs of life of one actor."""

# ruff: noqa: ASYNC110 - what is waited for is a state of the bus, which has no event

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any, Literal

import pytest
from builders import SECOND_NS, a_bar, a_kill_switch, a_policy_switch, a_tick
from hypothesis import given, settings
from hypothesis import strategies as st
from unreliable_bus import UnreliableBus

from actors.base import Actor, Arrival
from actors.messages import Alert, AnyMessage, Bar, Heartbeat, KillSwitch, Tick
from daemon.memory_bus import MemoryBus
from daemon.runner import DEAD_LETTER_RUNBOOK, Runner

POISON = Decimal(666)
WAIT_S = 20.0


class CountingActor(Actor[Tick, Bar]):
    """Yield for each tick a bar that says how many ticks came so far; fail on poison."""

    name = "counting"

    def __init__(self) -> None:
        self.seen = 0
        self.remembered = 0

    def handle(self, message: Tick) -> Iterator[Bar]:
        self.seen += 1
        if message.last_price == POISON:
            raise ValueError("cannot digest this price")
        yield a_bar(message.last_price, ticks=self.seen)

    def remember(self, message: Tick) -> None:
        self.remembered += 1
        super().remember(message)


class ForgetfulActor(CountingActor):
    """Remember only the last second of market time."""

    name = "forgetful"
    memory_ns = SECOND_NS


class HeavyActor(CountingActor):
    """Take as long as the test says; note the threads, and how many entries are handled at once."""

    name = "heavy"
    heavy = True

    def __init__(self, permits: int = 0) -> None:
        super().__init__()
        self.permits = threading.Semaphore(permits)
        self.threads: set[int] = set()
        self.at_once = 0
        self.most_at_once = 0

    def handle(self, message: Tick) -> Iterator[Bar]:
        self.threads.add(threading.get_ident())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.permits.acquire(timeout=WAIT_S)
        self.at_once -= 1
        return super().handle(message)


class TogetherActor(CountingActor):
    """Take up to three at a time; note when each began."""

    name = "together"
    heavy = True
    together = 3

    def __init__(self) -> None:
        super().__init__()
        self.since_ns: list[int | None] = []

    def handle_many(self, arrivals: Sequence[Arrival[Tick]]) -> Iterator[Sequence[Bar]]:
        self.since_ns += [arrival.since_ns for arrival in arrivals]
        return super().handle_many(arrivals)


class SwitchActor(Actor[KillSwitch, Alert]):
    """Take one of the two types of the control stream."""

    name = "switch"

    def handle(self, message: KillSwitch) -> Iterator[Alert]:
        yield Alert(severity="info", text=message.reason, runbook="none", at_ns=message.at_ns)


@pytest.fixture
def bus() -> UnreliableBus:
    return UnreliableBus()


def a_runner(
    bus: MemoryBus,
    build: Callable[[], Actor[Any, Any]] = CountingActor,
    **fields: Any,
) -> Runner:
    given: dict[str, Any] = {
        "clock_ns": time.time_ns,
        "monotonic_ns": time.monotonic_ns,
        "batch_entries": 16,
        "block_ms": 10,
        "heartbeat_s": 0.01,
    }
    return Runner(build, bus, **(given | fields))


@asynccontextmanager
async def running(runner: Runner) -> AsyncIterator[None]:
    task = asyncio.create_task(runner.run())
    try:
        yield
    finally:
        runner.stop()
        await asyncio.wait_for(task, WAIT_S)


async def publish(bus: MemoryBus, *prices: int | Decimal) -> None:
    publisher = await bus.publisher("edge", [Tick.stream])
    for number, price in enumerate(prices):
        await publisher.publish(a_tick(str(price), at_ns=number * SECOND_NS))


async def until(is_done: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_done():
            await asyncio.sleep(0.002)


async def quiet(bus: MemoryBus) -> None:
    """Wait until all has been handled; before anyone reads, the bus would call itself quiet."""
    await until(lambda: bool(bus._groups))
    async with asyncio.timeout(WAIT_S):
        while not await bus.is_quiet():
            await asyncio.sleep(0.002)


def bars(bus: MemoryBus) -> list[tuple[int, int]]:
    """Return price and count of every bar that was published."""
    found = [entry.envelope.message for entry in bus.stream(Bar.stream).entries]
    return [(int(bar.close), bar.ticks) for bar in found if isinstance(bar, Bar)]


def messages(bus: MemoryBus, stream: str) -> list[AnyMessage]:
    return [entry.envelope.message for entry in bus.stream(stream).entries]


def last_heartbeat(bus: MemoryBus, actor: str = "counting") -> Heartbeat:
    beat = bus.stream(Heartbeat.stream).latest[actor].message
    assert isinstance(beat, Heartbeat)
    return beat


async def until_beat(
    bus: MemoryBus, says: Callable[[Heartbeat], bool], actor: str = "counting"
) -> Heartbeat:
    """Wait for a heartbeat that says so, and return it."""
    await until(
        lambda: actor in bus.stream(Heartbeat.stream).latest and says(last_heartbeat(bus, actor))
    )
    return last_heartbeat(bus, actor)


async def test_every_input_is_handled_once_and_its_outputs_name_their_cause(
    bus: UnreliableBus,
) -> None:
    async with running(a_runner(bus)):
        await publish(bus, 1, 2, 3)
        await quiet(bus)

    assert bars(bus) == [(1, 1), (2, 2), (3, 3)]
    ticks = bus.stream(Tick.stream).entries
    causes = [entry.envelope.cause for entry in bus.stream(Bar.stream).entries]
    assert causes == [f"tick/{tick.id}" for tick in ticks]


async def test_a_restart_folds_back_what_was_handled_and_publishes_none_of_it_again(
    bus: UnreliableBus,
) -> None:
    built: list[CountingActor] = []

    def build() -> CountingActor:
        built.append(CountingActor())
        return built[-1]

    async with running(a_runner(bus)):
        await publish(bus, 1, 2, 3)
        await quiet(bus)
    second = a_runner(bus, build)

    async with running(second):
        await asyncio.wait_for(second.ready.wait(), WAIT_S)
        bars_after_recovery = bars(bus)
        remembered = built[-1].remembered
        await publish(bus, 4)
        await quiet(bus)

    assert remembered == 3
    assert bars_after_recovery == [(1, 1), (2, 2), (3, 3)]
    assert bars(bus) == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert built[-1].remembered == 3


async def test_recovery_reaches_back_as_far_as_the_actor_remembers(bus: UnreliableBus) -> None:
    built: list[ForgetfulActor] = []

    def build() -> ForgetfulActor:
        built.append(ForgetfulActor())
        return built[-1]

    async with running(a_runner(bus, ForgetfulActor, batch_entries=1)):
        await publish(bus, 1, 2, 3, 4, 5)
        await quiet(bus)
    second = a_runner(bus, build)

    async with running(second):
        await asyncio.wait_for(second.ready.wait(), WAIT_S)

    assert built[-1].remembered == 2  # seconds 3 and 4


async def test_messages_of_other_types_in_a_stream_are_passed_over(bus: UnreliableBus) -> None:
    async with running(a_runner(bus, SwitchActor)):
        publisher = await bus.publisher("operator", [KillSwitch.stream])
        await publisher.publish(a_policy_switch(), a_kill_switch(reason="stop"))
        await quiet(bus)

    texts = [alert.text for alert in messages(bus, "alert") if isinstance(alert, Alert)]
    assert texts == ["stop"]
    assert await bus.is_quiet()


async def test_a_message_that_fails_goes_to_the_dead_letters_with_an_alert(
    bus: UnreliableBus,
) -> None:
    async with running(a_runner(bus)):
        await publish(bus, 1, POISON, 3)
        await quiet(bus)

    [letter] = await bus.dead_letters()
    poisoned = bus.stream(Tick.stream).entries[1]
    assert (letter.group, letter.stream, letter.id) == ("counting", "tick", poisoned.id)
    assert letter.error == "ValueError: cannot digest this price"
    [alert] = bus.stream("alert").entries
    assert isinstance(alert.envelope.message, Alert)
    assert alert.envelope.message.severity == "critical"
    assert alert.envelope.message.runbook == DEAD_LETTER_RUNBOOK
    assert "cannot digest this price" in alert.envelope.message.text
    assert alert.envelope.cause == f"tick/{poisoned.id}"


async def test_after_a_failure_the_actor_is_rebuilt_and_entries_behind_it_are_handled(
    bus: UnreliableBus,
) -> None:
    built: list[CountingActor] = []

    def build() -> CountingActor:
        built.append(CountingActor())
        return built[-1]

    await publish(bus, 1, POISON, 3, 4)

    async with running(a_runner(bus, build)):
        await quiet(bus)
        await until_beat(bus, lambda beat: beat.restarts == 1)

    # The rebuilt actor counts the failed tick as the failed one did: it failed again in recovery.
    assert bars(bus) == [(1, 1), (3, 3), (4, 4)]
    assert built[-1] is not built[-2]
    assert built[-1].remembered == 2


async def test_a_failure_is_told_with_the_name_and_the_error(bus: UnreliableBus) -> None:
    reasons: list[str] = []

    async def note(reason: str) -> None:
        reasons.append(reason)
        assert len(await bus.dead_letters()) == 1  # it was set aside before anyone was told

    async with running(a_runner(bus, on_failure=note)):
        await publish(bus, POISON)
        await quiet(bus)
        await until(lambda: bool(reasons))

    assert reasons == ["counting failed: ValueError: cannot digest this price"]


async def test_a_failure_that_cannot_be_committed_is_counted_once(bus: UnreliableBus) -> None:
    bus.commit_faults.extend(["refused", "refused"])

    async with running(a_runner(bus)):
        await publish(bus, POISON)
        await quiet(bus)
        await until_beat(bus, lambda beat: beat.failed == 1)

    assert last_heartbeat(bus).failed == 1
    assert len(await bus.dead_letters()) == 1


@pytest.mark.parametrize("fault", ["refused", "unanswered"])
async def test_a_commit_that_fails_loses_and_doubles_nothing(
    bus: UnreliableBus, fault: Literal["refused", "unanswered"]
) -> None:
    built: list[CountingActor] = []

    def build() -> CountingActor:
        built.append(CountingActor())
        return built[-1]

    bus.commit_faults.append(fault)

    async with running(a_runner(bus, build)):
        await publish(bus, 1, 2, 3)
        await quiet(bus)
        await until(lambda: len(bars(bus)) == 3)

    assert bars(bus) == [(1, 1), (2, 2), (3, 3)]
    assert len(built) >= 3  # one for the wiring, one that lost the bus, one that recovered


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.sampled_from(["fine", "poison"]), min_size=1, max_size=8),
    st.lists(st.sampled_from(["refused", "unanswered"]), max_size=3),
    st.integers(1, 5),
    st.sampled_from([CountingActor, TogetherActor]),
)
def test_whatever_fails_each_entry_is_handled_once_in_order(
    kinds: list[str],
    faults: list[Literal["refused", "unanswered"]],
    batch_entries: int,
    build: type[CountingActor],
) -> None:
    async def scenario() -> UnreliableBus:
        bus = UnreliableBus()
        bus.commit_faults.extend(faults)
        await publish(bus, *(POISON if kind == "poison" else n for n, kind in enumerate(kinds, 1)))
        async with running(a_runner(bus, build, batch_entries=batch_entries)):
            await quiet(bus)
        return bus

    bus = asyncio.run(scenario())

    good = [number for number, kind in enumerate(kinds, 1) if kind == "fine"]
    assert bars(bus) == [(number, number) for number in good]
    handled = [place for commit in bus._groups[build.name].commits for place in commit[1].inputs]
    assert handled == [("tick", entry.id) for entry in bus.stream(Tick.stream).entries]
    assert len(bus._dead) == len(kinds) - len(good)
    assert len(bus.stream("alert").entries) == len(kinds) - len(good)


async def test_an_outage_is_outlived(bus: UnreliableBus) -> None:
    runner = a_runner(bus)

    async with running(runner):
        await publish(bus, 1)
        await quiet(bus)
        bus.is_lost = True
        await until(lambda: not runner.ready.is_set())
        bus.is_lost = False
        await publish(bus, 2)
        await quiet(bus)

    assert bars(bus) == [(1, 1), (2, 2)]


async def test_an_outage_at_the_start_is_waited_for(bus: UnreliableBus) -> None:
    bus.is_lost = True
    runner = a_runner(bus)

    async with running(runner):
        await until(lambda: bus.refusals >= 1)
        bus.is_lost = False
        await publish(bus, 1)
        await asyncio.wait_for(runner.ready.wait(), WAIT_S)
        await quiet(bus)

    assert bars(bus) == [(1, 1)]


async def test_a_heartbeat_that_cannot_be_sent_does_not_disturb_the_actor(
    bus: UnreliableBus,
) -> None:
    runner = a_runner(bus)

    async with running(runner):
        await until(lambda: "counting" in bus.stream(Heartbeat.stream).latest)
        opened = bus.consumers_opened
        publishers = bus.publishers_opened
        bus.publish_faults.append("refused")
        await until(lambda: bus.publishers_opened > publishers)
        beats = len(bus.stream(Heartbeat.stream).entries)
        await until(lambda: len(bus.stream(Heartbeat.stream).entries) > beats)

    assert bus.consumers_opened == opened


async def test_a_bug_in_the_outputs_ends_the_loop_and_a_new_run_begins_afresh(
    bus: UnreliableBus,
) -> None:
    class ChattyActor(CountingActor):
        def handle(self, message: Tick) -> Iterator[Bar]:
            yield from super().handle(message)
            if is_chatty:
                yield from [a_bar()] * 64

    is_chatty = True
    runner = a_runner(bus, ChattyActor)
    await publish(bus, 1)

    with pytest.raises(ExceptionGroup) as raised:
        await asyncio.wait_for(runner.run(), WAIT_S)

    assert "at most 64 outputs" in str(raised.value.exceptions[0])
    is_chatty = False
    async with running(runner):
        await quiet(bus)
    assert bars(bus) == [(1, 1)]  # not counted twice


async def test_a_heavy_actor_handles_one_entry_at_a_time_off_the_loop(bus: UnreliableBus) -> None:
    actor = HeavyActor()
    await publish(bus, 1, 2, 3)

    async with running(a_runner(bus, lambda: actor)):
        await until(lambda: actor.at_once == 1)
        await asyncio.sleep(0.01)
        assert actor.at_once == 1  # the loop turned while the actor computes
        assert bars(bus) == []
        actor.permits.release(3)
        await quiet(bus)

    assert actor.most_at_once == 1
    assert threading.get_ident() not in actor.threads
    commits = await bus.handled("heavy")
    assert [len(commit.entries) for commit in commits] == [1, 1, 1]


async def test_a_heavy_actor_is_given_as_many_together_as_it_wants(bus: UnreliableBus) -> None:
    actor = TogetherActor()
    await publish(bus, 1, 2, 3, 4, 5)

    async with running(a_runner(bus, lambda: actor)):
        await quiet(bus)

    assert [len(commit.entries) for commit in await bus.handled("together")] == [3, 2]
    assert bars(bus) == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5)]
    ticks = bus.stream(Tick.stream).entries
    causes = [entry.envelope.cause for entry in bus.stream(Bar.stream).entries]
    assert causes == [f"tick/{tick.id}" for tick in ticks]


async def test_one_that_fails_among_others_is_set_aside_alone(bus: UnreliableBus) -> None:
    built: list[TogetherActor] = []

    def build() -> TogetherActor:
        built.append(TogetherActor())
        return built[-1]

    await publish(bus, 1, POISON, 3, 4)

    async with running(a_runner(bus, build)):
        await quiet(bus)

    [letter] = await bus.dead_letters()
    assert letter.id == bus.stream(Tick.stream).entries[1].id
    assert bars(bus) == [(1, 1), (3, 3), (4, 4)]
    assert built[-1].remembered == 2


async def test_between_two_reads_there_is_time_to_look_after_things(bus: UnreliableBus) -> None:
    rests: list[bool] = []

    async with running(a_runner(bus, rest=rests.append)):
        await until(lambda: True in rests)
        await publish(bus, 1)
        await quiet(bus)
        await until(lambda: False in rests and rests[-1])


async def test_a_heavy_actor_hears_when_what_led_to_a_message_reached_us(
    bus: UnreliableBus,
) -> None:
    actor = TogetherActor()
    await publish(bus, 1)
    published_ns = bus.stream(Tick.stream).entries[0].envelope.published_ns

    fields = {"clock_ns": lambda: published_ns + 7000, "monotonic_ns": lambda: 1_000_000}
    async with running(a_runner(bus, lambda: actor, **fields)):
        await quiet(bus)

    assert actor.since_ns == [1_000_000 - 7000]


async def test_a_light_actor_handles_a_batch_in_one_commit(bus: UnreliableBus) -> None:
    await publish(bus, 1, 2, 3)

    async with running(a_runner(bus)):
        await quiet(bus)

    assert [len(commit.entries) for commit in await bus.handled("counting")] == [3]


async def test_heartbeats_say_what_was_handled_and_how_long_it_took(bus: UnreliableBus) -> None:
    async with running(a_runner(bus, clock_ns=lambda: 7, rss_mib=lambda: 12.34)):
        await publish(bus, 1, 2, POISON, 4)
        await quiet(bus)
        beat = await until_beat(bus, lambda beat: beat.handled == 3)

    assert (beat.actor, beat.at_ns, beat.handled, beat.failed) == ("counting", 7, 3, 1)
    assert beat.restarts == 1
    assert 0 < beat.p50_us <= beat.p99_us
    assert beat.rss_mib == 12.3


async def test_heartbeats_say_how_much_waits(bus: UnreliableBus) -> None:
    actor = HeavyActor()
    await publish(bus, 1, 2, 3)

    async with running(a_runner(bus, lambda: actor, heartbeat_s=0.005)):
        await until(lambda: actor.at_once == 1)
        actor.permits.release()
        await until_beat(bus, lambda beat: beat.lag == 2, "heavy")
        actor.permits.release(2)
        await until_beat(bus, lambda beat: beat.lag == 0, "heavy")


async def test_heartbeats_say_what_was_lost_also_before_a_restart(bus: UnreliableBus) -> None:
    async with running(a_runner(bus)):
        await publish(bus, 1)
        await quiet(bus)
        bus._streams[Tick.stream].entries.clear()
        bus._streams[Tick.stream].keys.clear()
        publisher = await bus.publisher("edge", [Tick.stream])
        publisher._ledger._sequences[Tick.stream] = 3  # numbers 2 and 3 never came
        await publisher.publish(a_tick("4"))
        await until_beat(bus, lambda beat: beat.lost == 2)
        await publish(bus, POISON)
        await publish(bus, 5)
        beat = await until_beat(bus, lambda beat: beat.handled == 3)
        assert (beat.lost, beat.restarts) == (2, 1)


async def test_heartbeats_carry_the_restarts_of_the_process_before(bus: UnreliableBus) -> None:
    async with running(a_runner(bus, restarts=3)):
        await until(lambda: "counting" in bus.stream(Heartbeat.stream).latest)

    assert last_heartbeat(bus).restarts == 3


async def test_no_heartbeat_goes_out_before_the_actor_has_recovered(bus: UnreliableBus) -> None:
    bus.is_lost = True

    async with running(a_runner(bus)):
        await until(lambda: bus.refusals >= 1)
        bus.is_lost = False

    assert "counting" not in bus.stream(Heartbeat.stream).latest


async def test_stopping_takes_no_longer_than_one_read(bus: UnreliableBus) -> None:
    rests: list[bool] = []
    runner = a_runner(bus, block_ms=100, rest=rests.append)
    task = asyncio.create_task(runner.run())
    await asyncio.wait_for(runner.ready.wait(), WAIT_S)
    reads = len(rests)

    runner.stop()
    await asyncio.wait_for(task, WAIT_S)

    assert len(rests) <= reads + 1  # the one read that was under way
    assert not runner.ready.is_set()


async def test_stopping_works_while_the_bus_is_away(
    bus: UnreliableBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.runner._RETRY_FIRST_S", 3600.0)  # stopping does not wait for that
    bus.is_lost = True
    runner = a_runner(bus)
    task = asyncio.create_task(runner.run())
    await until(lambda: bus.refusals == 1)

    runner.stop()
    await asyncio.wait_for(task, WAIT_S)

    assert bus.refusals == 1


async def test_a_runner_stopped_before_it_ran_returns_at_once(bus: UnreliableBus) -> None:
    runner = a_runner(bus)
    runner.stop()

    await asyncio.wait_for(runner.run(), WAIT_S)

    assert bus.consumers_opened == 0
