"""The thinking watch: a reasoning process that owes a decision is ended, a busy machine is not."""

# ruff: noqa: ASYNC110 - what is waited for is a state, which has no event

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from builders import a_bar, a_context, a_decision, a_heartbeat
from unreliable_bus import UnreliableBus

from actors.messages import Alert, AnyMessage, Decision, Heartbeat, MarketContext
from daemon.bus import Entry, Envelope
from daemon.supervisor import ActorProcess, Supervisor
from daemon.thinking_watch import ThinkingWatch

LIMIT_S = 0.01  # it is looked every millisecond whether a time of the test's own is over
WAIT_S = 20.0


class World:
    """A watch on a bus that the test fills, and a clock that the test moves."""

    def __init__(self, *, silent_after_s: float = 600 * LIMIT_S) -> None:
        self.bus = UnreliableBus()
        self.reasons: list[str] = []
        self.now_s = 100.0
        self._looks = 0
        self.watch = ThinkingWatch(
            self.bus,
            limit_s=LIMIT_S,
            silent_after_s=silent_after_s,
            end=self.reasons.append,
            monotonic_s=self._look,
            clock_ns=time.time_ns,
        )

    def _look(self) -> float:
        self._looks += 1
        return self.now_s

    async def pass_time(self, limits: float) -> None:
        """Let so many times the limit pass, a tenth at a time, with a look at each."""
        for _ in range(round(10 * limits)):
            await self.leap(0.1)

    async def leap(self, limits: float) -> None:
        """Let time pass without a look in between."""
        self.now_s += limits * LIMIT_S
        seen = self._looks
        await until(lambda: self._looks >= seen + 2)  # the first of them has come to its end

    def see(self, *messages: AnyMessage, published_ns: int | None = None) -> None:
        """Let messages pass by the watch, by default those of now."""
        at_ns = time.time_ns() if published_ns is None else published_ns
        for message in messages:
            envelope = Envelope(
                source="test", sequence=1, cause="", published_ns=at_ns,
                cause_published_ns=0, origin_published_ns=0, message=message,
            )  # fmt: skip
            self.watch.note(Entry(message.stream, "1-0", envelope))

    async def publish(self, *messages: AnyMessage) -> None:
        """Put messages on the bus without the watch seeing them pass."""
        publisher = await self.bus.publisher("test", [Decision.stream, Heartbeat.stream])
        await publisher.publish(*messages)
        await publisher.close()

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.watch.run())
        try:
            yield
        finally:
            self.watch.stop()
            await task


def beat() -> Heartbeat:
    return a_heartbeat(actor="reasoning")


def context(number: int = 0) -> MarketContext:
    return a_context(a_bar(number=number))


def answer(number: int = 0) -> Decision:
    return a_decision(at_ns=context(number).time_ns)


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_so():
            await asyncio.sleep(0.0005)


async def test_nothing_is_owed_on_bars_out_of_history() -> None:
    world = World()
    world.see(beat())
    past = msgspec.structs.replace(a_bar(number=0), origin="backfilled")

    async with world.watching():
        world.see(a_context(past))
        await world.pass_time(3)
        nothing = list(world.reasons)
        world.see(context(1))
        await world.pass_time(1.3)

    assert nothing == []
    assert [reason.split(" for ")[0] for reason in world.reasons] == [
        f"it gave no answer to Nifty@{context(1).time_ns}"
    ]


async def test_a_context_without_a_decision_ends_the_process_soon_after_its_time() -> None:
    world = World()
    world.see(beat())

    async with world.watching():
        world.see(context())
        await world.pass_time(0.9)
        in_time = list(world.reasons)
        await world.pass_time(0.3)
        soon_after = list(world.reasons)
        await world.pass_time(2)

    assert in_time == []
    [reason] = soon_after
    assert reason.startswith(f"it gave no answer to Nifty@{context().time_ns} for ")
    assert world.reasons == soon_after  # once


async def test_decisions_in_time_and_holds_of_others_keep_the_process() -> None:
    world = World()
    world.see(beat())

    async with world.watching():
        for number in range(12):
            world.see(context(number))
            await world.pass_time(0.3)
            world.see(answer(number))

    assert world.reasons == []


async def test_what_waits_behind_others_counts_from_the_last_answer() -> None:
    world = World()
    world.see(beat(), *(context(number) for number in range(6)))

    async with world.watching():
        for number in range(6):
            await world.pass_time(0.5)
            world.see(answer(number))

    assert world.reasons == []


async def test_nothing_is_owed_before_the_first_heartbeat() -> None:
    world = World()

    async with world.watching():
        world.see(context())
        await world.pass_time(2)

    assert world.reasons == []


async def test_after_an_end_nothing_is_held_against_the_successor_before_it_is_ready() -> None:
    world = World()
    world.see(beat())

    async with world.watching():
        world.see(context(0))
        await world.pass_time(2)
        assert len(world.reasons) == 1
        world.see(context(1))
        await world.pass_time(2)
        assert len(world.reasons) == 1
        world.see(beat(), context(2))
        await world.pass_time(2)
        assert len(world.reasons) == 2

    assert str(context(2).time_ns) in world.reasons[1]


async def test_a_process_that_has_ended_by_itself_leaves_no_debt_to_its_successor() -> None:
    world = World()
    world.see(beat(), context(0))

    async with world.watching():
        world.watch.forget()
        world.see(context(1))
        await world.pass_time(20)  # it starts
        assert world.reasons == []
        world.see(beat(), context(2))
        await world.pass_time(2)

    assert len(world.reasons) == 1


async def test_the_last_heartbeat_of_a_process_that_has_ended_is_not_its_successors() -> None:
    world = World()
    world.see(beat())
    last_ns = time.time_ns()

    async with world.watching():
        world.watch.forget()
        world.see(beat(), published_ns=last_ns)
        world.see(context())
        await world.pass_time(20)

    assert world.reasons == []


async def test_a_decision_that_lies_on_the_bus_already_is_an_answer() -> None:
    world = World()
    world.see(beat())
    await world.publish(answer())

    async with world.watching():
        world.see(context())
        await world.pass_time(3)

    assert world.reasons == []


async def test_what_the_watch_itself_slept_through_is_held_against_nobody() -> None:
    world = World()
    world.see(beat())

    async with world.watching():
        world.see(context())
        await world.pass_time(0.2)
        await world.leap(3600)
        await world.pass_time(0.5)

    assert world.reasons == []


async def test_without_the_bus_nobody_can_answer() -> None:
    world = World()
    world.see(beat())
    world.bus.is_lost = True

    async with world.watching():
        world.see(context())
        await world.pass_time(2)
        world.bus.is_lost = False
        await world.pass_time(2)

    assert world.reasons == []


async def test_a_message_that_it_could_not_handle_is_not_owed() -> None:
    world = World()
    failure = Alert(
        severity="critical", text="?", runbook="Dead letter", at_ns=1, source="reasoning"
    )
    world.see(beat(), context(), failure)

    async with world.watching():
        await world.pass_time(2)

    assert world.reasons == []


async def test_silence_ends_a_process_also_when_it_owes_nothing() -> None:
    world = World(silent_after_s=2 * LIMIT_S)
    world.see(beat())

    async with world.watching():
        await world.pass_time(2.5)

    assert world.reasons == ["no sign of life for 0 s"]


async def test_a_heartbeat_that_has_not_passed_by_yet_is_heard_on_the_bus() -> None:
    world = World(silent_after_s=2 * LIMIT_S)
    world.see(beat())

    async with world.watching():
        for _ in range(5):
            await world.pass_time(1)
            await world.publish(beat())

    assert world.reasons == []


# --- with a real process --------------------------------------------------------------------------

STUCK = {
    "asleep": "import time; time.sleep(3600)",
    "in a native loop": "sum(range(10**15))",
    "deaf": "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)",
}


@pytest.mark.integration
@pytest.mark.parametrize("kind", [*STUCK, "stopped"])
async def test_a_process_that_is_stuck_is_killed_and_started_again(
    kind: str, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(STUCK.get(kind, STUCK["asleep"]))
    crashes: list[str] = []

    async def crashed(name: str, reason: str) -> None:
        crashes.append(reason)

    process = ActorProcess("reasoning", [str(program)])
    async with Supervisor([process], crashed, monotonic_s=time.monotonic, stop_wait_s=1.0):
        await until(lambda: process.pid is not None)
        first = process.pid
        assert first is not None
        if kind == "stopped":
            os.kill(first, signal.SIGSTOP)
        process.end("it gave no answer")
        await until(lambda: process.starts == 2 and process.pid is not None)
        assert process.pid != first
        process.end("that is all")  # one that is deaf would not stop by itself

    assert crashes[0] == ("PartCrashed: process reasoning ended with code -9: it gave no answer")
    assert not is_alive(first)
