"""What MemoryBus promises beyond the suite that both buses share."""

import asyncio
from collections.abc import Sequence

from builders import OPEN_NS, a_bar, a_tick, a_time
from hypothesis import given
from hypothesis import strategies as st

from actors.messages import AnyMessage
from daemon.bus import Entry, Output
from daemon.memory_bus import MemoryBus, MemoryConsumer

Step = tuple[str, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["tick", "time", "read", "commit", "crash", "replace", "trim", "later"]),
        st.integers(1, 5),
    ),
    max_size=60,
)


class Run:
    """One actor that turns each tick into a bar and is crashed at any point."""

    def __init__(self) -> None:
        self._now_ns = OPEN_NS
        self._bus = MemoryBus(clock_ns=lambda: self._now_ns)
        self._consumer: MemoryConsumer
        self._in_hand: list[Entry] = []
        self._published: list[AnyMessage] = []
        self._handled: list[Entry] = []

    async def play(self, steps: Sequence[Step]) -> None:
        publisher = await self._bus.publisher("edge", ["tick", "time"])
        await self._open()
        for step, amount in steps:
            if step in ("tick", "time"):
                batch = [a_tick() if step == "tick" else a_time() for _ in range(amount)]
                self._published.extend(batch)
                await publisher.publish(*batch)
            else:
                await self._do(step, amount)
        await self._open()
        while await self._read(3):
            await self._commit(3)
        await self._check(publisher.sequence)

    async def _do(self, step: str, amount: int) -> None:
        if step == "read":
            await self._read(amount)
        elif step == "commit":
            await self._commit(amount)
        elif step == "crash":
            await self._consumer.close()
            await self._open()
        elif step == "replace":
            await self._open()
        elif step == "trim":
            await self._bus.trim(amount)
        else:
            self._now_ns += amount * 1_000_000

    async def _open(self) -> None:
        self._consumer = await self._bus.consumer("feed", ["tick", "time"], ["bar"])
        self._in_hand = []

    async def _read(self, limit: int) -> bool:
        batch = await self._consumer.read(limit, 0)
        self._in_hand.extend(batch)
        return bool(batch)

    async def _commit(self, amount: int) -> None:
        batch, self._in_hand = self._in_hand[:amount], self._in_hand[amount:]
        outputs = [
            Output(position, a_bar(number=len(self._handled) + position))
            for position, entry in enumerate(batch)
            if entry.stream == "tick"
        ]
        await self._consumer.commit(batch, outputs)
        self._handled.extend(batch)
        if self._in_hand:
            await self._commit(amount)

    async def _check(self, published: int) -> None:
        assert [entry.envelope.message for entry in self._handled] == self._published
        assert published == len(self._published)
        assert self._consumer.lost == 0
        assert await self._bus.is_quiet()
        history = [entry async for entry in self._consumer.history(None)]
        kept = await self._bus.entries("tick") + await self._bus.entries("time")
        assert history == [entry for entry in self._handled if entry in kept]
        causes = [f"tick/{entry.id}" for entry in self._handled if entry.stream == "tick"]
        bars = await self._bus.entries("bar")
        assert [bar.envelope.cause for bar in bars] == causes[len(causes) - len(bars) :]
        numbers = [bar.envelope.sequence for bar in bars]
        assert numbers == list(range(len(causes) - len(bars) + 1, len(causes) + 1))


@given(STEPS)
def test_whatever_crashes_in_between_nothing_is_lost_repeated_or_reordered(
    steps: list[Step],
) -> None:
    asyncio.run(Run().play(steps))


async def test_two_runs_with_the_same_clock_give_the_same_ids() -> None:
    runs = []
    for _ in range(2):
        bus = MemoryBus(clock_ns=lambda: OPEN_NS)
        publisher = await bus.publisher("edge", ["tick", "heartbeat"])
        consumer = await bus.consumer("feed", ["tick"], ["bar"])
        await publisher.publish(a_tick(), a_tick())
        await consumer.commit(await consumer.read(9, 0), [Output(1, a_bar())])
        runs.append(await bus.entries("tick") + await bus.entries("bar"))

    assert runs[0] == runs[1]


async def test_a_loop_that_only_publishes_does_not_starve_a_reader() -> None:
    bus = MemoryBus()
    publisher = await bus.publisher("edge", ["tick"])
    consumer = await bus.consumer("feed", ["tick"])
    reading = asyncio.create_task(consumer.read(1, 1000))

    for _ in range(10):
        await publisher.publish(a_tick())

    assert reading.done()
    assert len(await reading) == 1
