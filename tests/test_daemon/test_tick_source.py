"""The tick source: each event once and in order, whatever happens to bus and process."""

# ruff: noqa: ASYNC110 - what is waited for is a state, which has no event

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest
from builders import SECOND_NS, a_tick, a_time
from hypothesis import given, settings
from hypothesis import strategies as st
from unreliable_bus import UnreliableBus

from actors.messages import AnyMessage, Tick, TimeEvent
from daemon import tick_source as tick_source_module
from daemon.errors import PartCrashed
from daemon.memory_bus import MemoryPublisher
from daemon.tick_source import MarketEvent, TickSource, until_quiet

WAIT_S = 20.0


@pytest.fixture(autouse=True)
def swift_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tick_source_module, "_RETRY_S", 0.005)


@pytest.fixture
def bus() -> UnreliableBus:
    return UnreliableBus()


def an_event(number: int) -> MarketEvent:
    """Return event `number`: ticks and times in turn."""
    at_ns = number * SECOND_NS
    return a_tick(str(number), at_ns=at_ns) if number % 2 else a_time(at_ns)


async def events(count: int, first: int = 1) -> AsyncIterator[MarketEvent]:
    for number in range(first, first + count):
        yield an_event(number)


@asynccontextmanager
async def running(source: TickSource) -> AsyncIterator[None]:
    task = asyncio.create_task(source.run())
    try:
        yield
    finally:
        source.stop()
        await asyncio.wait_for(task, WAIT_S)


async def to_the_end(source: TickSource) -> None:
    async with running(source):
        await asyncio.wait_for(source.finished.wait(), WAIT_S)


async def until(is_done: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_done():
            await asyncio.sleep(0.002)


def published(bus: UnreliableBus) -> list[int]:
    """Return the numbers of the events on the bus, in the order they went there."""
    entries = bus.stream(Tick.stream).entries + bus.stream(TimeEvent.stream).entries
    keys = bus.stream(Tick.stream).keys + bus.stream(TimeEvent.stream).keys
    in_order = sorted(zip(keys, entries, strict=True), key=lambda pair: pair[0])
    return [entry.envelope.message.time_ns // SECOND_NS for _, entry in in_order]


async def test_events_go_out_in_order_and_the_market_clock_follows(bus: UnreliableBus) -> None:
    source = TickSource(events(7), bus)

    await to_the_end(source)

    assert published(bus) == [1, 2, 3, 4, 5, 6, 7]
    assert source.published == 7
    assert source.now_ns == 7 * SECOND_NS


async def test_a_source_at_its_end_waits_to_be_stopped(bus: UnreliableBus) -> None:
    source = TickSource(events(1), bus)
    task = asyncio.create_task(source.run())
    await asyncio.wait_for(source.finished.wait(), WAIT_S)
    await asyncio.sleep(0.01)

    assert not task.done()
    source.stop()
    await asyncio.wait_for(task, WAIT_S)


@pytest.mark.parametrize("fault", ["refused", "unanswered"])
async def test_an_event_that_met_an_outage_arrives_once(
    bus: UnreliableBus, fault: Literal["refused", "unanswered"]
) -> None:
    source = TickSource(events(5), bus)
    bus.publish_faults.append(fault)

    await to_the_end(source)

    assert published(bus) == [1, 2, 3, 4, 5]


async def test_an_outage_holds_the_market_up_and_loses_nothing(bus: UnreliableBus) -> None:
    async def slowly() -> AsyncIterator[MarketEvent]:
        async for event in events(20):
            await asyncio.sleep(0.002)
            yield event

    source = TickSource(slowly(), bus)

    async with running(source):
        await until(lambda: source.published >= 3)
        bus.is_lost = True
        await asyncio.sleep(0.05)
        during = published(bus)
        bus.is_lost = False
        await asyncio.wait_for(source.finished.wait(), WAIT_S)

    assert len(during) < 20
    assert published(bus) == list(range(1, 21))


@pytest.mark.parametrize(
    ("forgotten", "remembered", "left"),
    [(2, 9, [1, 2, 3, 4, 5, 6]), (6, 9, [1, 2, 3, 4, 5, 6]), (6, 4, [3, 4, 5, 6])],
)
async def test_what_a_bus_had_confirmed_and_forgot_is_published_again(
    bus: UnreliableBus,
    monkeypatch: pytest.MonkeyPatch,
    forgotten: int,
    remembered: int,
    left: list[int],
) -> None:
    monkeypatch.setattr(tick_source_module, "_REMEMBERED", remembered)
    has_forgotten = asyncio.Event()

    async def halting() -> AsyncIterator[MarketEvent]:
        async for event in events(6):
            yield event
        await has_forgotten.wait()
        async for event in events(3, first=7):
            yield event

    source = TickSource(halting(), bus)

    async with running(source):
        await until(lambda: source.published == 6)
        for stream in (bus.stream(Tick.stream), bus.stream(TimeEvent.stream)):
            kept = len(stream.entries) - forgotten // 2
            del stream.entries[kept:], stream.keys[kept:]
        bus.publish_faults.extend(["refused", "refused", "unanswered"])  # also of repeats
        has_forgotten.set()
        await asyncio.wait_for(source.finished.wait(), WAIT_S)

    assert published(bus) == [*left, 7, 8, 9]
    assert source.published == len(left) + 3


async def test_a_restart_goes_on_behind_what_the_session_holds(bus: UnreliableBus) -> None:
    await to_the_end(TickSource(events(4), bus))
    second = TickSource(events(9), bus)

    await to_the_end(second)

    assert published(bus) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert second.published == 9


async def test_in_lock_step_the_source_is_not_read_ahead(bus: UnreliableBus) -> None:
    moved: list[int] = []
    seen: list[list[int]] = []

    async def market() -> AsyncIterator[MarketEvent]:
        for number in range(1, 4):
            moved.append(number)
            yield an_event(number)

    async def quiet() -> None:
        await asyncio.sleep(0.005)
        seen.append(list(moved))

    source = TickSource(market(), bus)
    source.wait_until_quiet = quiet
    await to_the_end(source)

    assert seen == [[1], [1, 2], [1, 2, 3]]


async def test_a_feed_that_cannot_be_repeated_goes_on_with_what_comes_next(
    bus: UnreliableBus,
) -> None:
    await to_the_end(TickSource(events(4), bus, is_repeatable=False))
    await to_the_end(TickSource(events(3, first=7), bus, is_repeatable=False))

    assert published(bus) == [1, 2, 3, 4, 7, 8, 9]


async def test_ticks_are_seen_before_they_are_published_also_those_passed_over(
    bus: UnreliableBus,
) -> None:
    await to_the_end(TickSource(events(4), bus))
    seen: list[tuple[int, int]] = []

    def on_tick(tick: Tick) -> None:
        seen.append((int(tick.last_price), len(published(bus))))

    await to_the_end(TickSource(events(7), bus, on_tick=on_tick))

    assert seen == [(1, 4), (3, 4), (5, 4), (7, 4)]  # what waits is published together


async def test_what_is_waiting_goes_out_together(bus: UnreliableBus) -> None:
    batches: list[int] = []
    open_publisher = bus.publisher

    async def counting(source: str, streams: Sequence[str]) -> MemoryPublisher:
        publisher = await open_publisher(source, streams)
        publish = publisher.publish

        async def counted(*messages: AnyMessage) -> list[str]:
            batches.append(len(messages))
            return await publish(*messages)

        vars(publisher).update(publish=counted)
        return publisher

    vars(bus).update(publisher=counting)

    await to_the_end(TickSource(events(100), bus))

    assert batches == [64, 36]
    assert published(bus) == list(range(1, 101))


async def test_while_the_bus_is_away_the_source_is_read_one_batch_ahead(
    bus: UnreliableBus,
) -> None:
    read = 0

    async def counted() -> AsyncIterator[MarketEvent]:
        nonlocal read
        async for event in events(500):
            read += 1
            yield event

    source = TickSource(counted(), bus)
    bus.publish_faults.extend(["refused"] * 4)

    async with running(source):
        await until(lambda: not bus.publish_faults)
        during = read
        await asyncio.wait_for(source.finished.wait(), WAIT_S)

    assert during <= 2 * 64  # those in hand, and those that wait behind them
    assert published(bus) == list(range(1, 501))


async def test_a_tick_that_met_an_outage_is_seen_once(bus: UnreliableBus) -> None:
    seen: list[int] = []
    bus.publish_faults.extend(["refused", "unanswered", "refused"])
    source = TickSource(events(9), bus, on_tick=lambda tick: seen.append(int(tick.last_price)))

    await to_the_end(source)

    assert seen == [1, 3, 5, 7, 9]
    assert published(bus) == list(range(1, 10))


async def test_a_crash_of_the_reader_comes_behind_what_it_had_read(bus: UnreliableBus) -> None:
    async def failing() -> AsyncIterator[MarketEvent]:
        async for event in events(3):
            yield event
        raise ValueError("half a file")

    with pytest.raises(ValueError, match="half a file"):
        await asyncio.wait_for(TickSource(failing(), bus).run(), WAIT_S)

    assert published(bus) == [1, 2, 3]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(["refused", "unanswered", "restart"]), max_size=8),
    st.integers(0, 12) | st.integers(60, 140),
)
def test_no_event_is_lost_or_doubled_whatever_fails(
    troubles: list[Literal["refused", "unanswered", "restart"]], count: int
) -> None:
    async def scenario() -> UnreliableBus:
        bus = UnreliableBus()
        for trouble in [*troubles, "restart"]:
            if trouble == "restart":
                source = TickSource(events(count), bus)
                async with running(source):
                    await asyncio.wait_for(source.finished.wait(), WAIT_S)
            elif trouble == "refused":
                bus.publish_faults.append("refused")
            else:
                bus.publish_faults.append("unanswered")
        return bus

    bus = asyncio.run(scenario())

    assert published(bus) == list(range(1, count + 1))


async def test_in_lock_step_each_event_waits_until_all_has_followed(bus: UnreliableBus) -> None:
    waited: list[list[int]] = []

    async def quiet() -> None:
        waited.append(published(bus))

    source = TickSource(events(3), bus)
    source.wait_until_quiet = quiet

    await to_the_end(source)

    assert waited == [[1], [1, 2], [1, 2, 3]]


async def test_stopping_does_not_wait_for_the_next_event(bus: UnreliableBus) -> None:
    async def for_ever() -> AsyncIterator[MarketEvent]:
        yield an_event(1)
        await asyncio.sleep(3600)
        yield an_event(2)

    source = TickSource(for_ever(), bus)
    async with running(source):
        await until(lambda: source.published == 1)

    assert not source.finished.is_set()


async def test_stopping_works_while_the_bus_is_away(bus: UnreliableBus) -> None:
    bus.is_lost = True

    async with running(TickSource(events(3), bus)):
        await until(lambda: bus.refusals >= 1)

    assert published(bus) == []


async def test_an_event_that_a_crash_interrupted_is_published_by_the_next_run(
    bus: UnreliableBus,
) -> None:
    troubles = [RuntimeError("a bug in the simulated account")]

    def on_tick(tick: Tick) -> None:
        if tick.last_price == 3 and troubles:
            raise troubles.pop()

    source = TickSource(events(6), bus, on_tick=on_tick)

    with pytest.raises(RuntimeError, match="a bug in the simulated account"):
        await asyncio.wait_for(source.run(), WAIT_S)
    await to_the_end(source)

    assert published(bus) == [1, 2, 3, 4, 5, 6]


async def test_a_source_that_failed_is_not_taken_for_one_at_its_end(bus: UnreliableBus) -> None:
    async def failing() -> AsyncIterator[MarketEvent]:
        yield an_event(1)
        raise ValueError("half a file")

    source = TickSource(failing(), bus)

    with pytest.raises(ValueError, match="half a file"):
        await asyncio.wait_for(source.run(), WAIT_S)
    with pytest.raises(PartCrashed, match="the market source has failed"):
        await asyncio.wait_for(source.run(), WAIT_S)

    assert not source.finished.is_set()


async def test_quiet_means_that_nothing_waits_and_every_edge_is_idle(bus: UnreliableBus) -> None:
    is_idle = False
    publisher = await bus.publisher("edge", [Tick.stream])
    await publisher.publish(a_tick())
    consumer = await bus.consumer("reader", [Tick.stream])
    waiting = asyncio.create_task(until_quiet(bus, lambda: is_idle))

    await asyncio.sleep(0.01)
    assert not waiting.done()
    is_idle = True
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await consumer.commit(await consumer.read(1, 0), [])
    await asyncio.wait_for(waiting, WAIT_S)


async def test_a_lost_bus_is_not_quiet(bus: UnreliableBus) -> None:
    bus.is_lost = True
    waiting = asyncio.create_task(until_quiet(bus))

    await asyncio.sleep(0.02)
    was_done: Any = waiting.done()
    bus.is_lost = False
    await asyncio.wait_for(waiting, WAIT_S)

    assert not was_done
