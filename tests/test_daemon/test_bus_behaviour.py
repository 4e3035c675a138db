"""What every bus promises: one suite, run over MemoryBus and over RedisBus on a real server."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence

import pytest
from builders import MINUTE_NS, OPEN_NS, a_bar, a_decision, a_heartbeat, a_tick, a_time

from actors.messages import Alert, AnyMessage, Bar, Decision, Heartbeat, Tick, TimeEvent
from daemon.bus import CHILDREN_PER_ENTRY, Consumer, DeadLetter, Entry, Output, id_key
from daemon.delivery import DeadEntry
from daemon.errors import BusError
from daemon.memory_bus import MemoryBus
from daemon.redis_bus import RedisBus
from daemon.redis_link import RedisLink

AnyBus = MemoryBus | RedisBus
START_NS = 1_800_000_000_000 * 1_000_000
START_MS = START_NS // 1_000_000


class Clock:
    """The real clock of these tests: it stands still until told to go on."""

    def __init__(self) -> None:
        self.now_ns = START_NS

    def __call__(self) -> int:
        return self.now_ns

    def advance_ms(self, milliseconds: int) -> None:
        self.now_ns += milliseconds * 1_000_000


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.integration)])
def server_url(request: pytest.FixtureRequest) -> str | None:
    """Return where RedisBus finds its server; None for MemoryBus."""
    if request.param == "memory":
        return None
    url: str = request.getfixturevalue("message_server")
    return url


@pytest.fixture
async def bus(server_url: str | None, clock: Clock) -> AsyncIterator[AnyBus]:
    made: AnyBus = MemoryBus(clock_ns=clock)
    if server_url is not None:
        made = RedisBus(server_url, f"test:{uuid.uuid4().hex}", clock_ns=clock)
    yield made
    await made.close()


async def publish(bus: AnyBus, *messages: AnyMessage, source: str = "edge") -> list[str]:
    publisher = await bus.publisher(source, list(dict.fromkeys(m.stream for m in messages)))
    try:
        return await publisher.publish(*messages)
    finally:
        await publisher.close()


async def read_all(consumer: Consumer, limit: int = 64) -> list[Entry]:
    entries: list[Entry] = []
    while batch := await consumer.read(limit, 0):
        entries.extend(batch)
    return entries


async def handle_all(consumer: Consumer, limit: int = 64) -> list[Entry]:
    """Read and acknowledge everything, batch by batch, without outputs."""
    entries: list[Entry] = []
    while batch := await consumer.read(limit, 0):
        await consumer.commit(batch, [])
        entries.extend(batch)
    return entries


async def history(consumer: Consumer, memory_ns: int | None = None) -> list[Entry]:
    return [entry async for entry in consumer.history(memory_ns)]


def messages(entries: Sequence[Entry]) -> list[AnyMessage]:
    return [entry.envelope.message for entry in entries]


async def lose(bus: AnyBus, stream: str, entry_id: str) -> None:
    """Take an entry away behind the bus's back, as a damaged server would."""
    if isinstance(bus, MemoryBus):
        kept = bus.stream(stream)
        index = kept.keys.index(id_key(entry_id))
        del kept.keys[index], kept.entries[index]
    else:
        link = await RedisLink.open(bus._url)
        await link.call("XDEL", bus._keys.stream(stream), entry_id)
        await link.close()


async def test_messages_are_read_in_the_order_they_were_published(bus: AnyBus) -> None:
    sent = [a_tick(at_ns=OPEN_NS + number) for number in range(10)]
    await publish(bus, *sent)
    consumer = await bus.consumer("feed", ["tick"])

    received = await read_all(consumer, limit=3)

    assert messages(received) == sent
    await consumer.close()


async def test_ids_of_an_edge_begin_with_the_clock_and_rise_over_all_its_streams(
    bus: AnyBus, clock: Clock
) -> None:
    publisher = await bus.publisher("edge", ["tick", "time"])

    together = await publisher.publish(a_tick(), a_time(), a_tick())
    clock.advance_ms(5)
    later = await publisher.publish(a_time())

    assert together == [f"{START_MS}-0", f"{START_MS}-1", f"{START_MS}-2"]
    assert later == [f"{START_MS + 5}-0"]
    await publisher.close()


async def test_ids_of_an_edge_rise_even_when_the_clock_steps_back(
    bus: AnyBus, clock: Clock
) -> None:
    publisher = await bus.publisher("edge", ["tick"])
    (first,) = await publisher.publish(a_tick())
    clock.advance_ms(-1000)

    (second,) = await publisher.publish(a_tick())

    assert id_key(second) > id_key(first)
    await publisher.close()


async def test_a_group_begins_at_the_first_retained_entry(bus: AnyBus) -> None:
    sent = [a_tick(at_ns=OPEN_NS + number) for number in range(3)]
    await publish(bus, *sent)

    consumer = await bus.consumer("late", ["tick"])

    assert messages(await read_all(consumer)) == sent
    await consumer.close()


async def test_each_group_gets_every_message(bus: AnyBus) -> None:
    first = await bus.consumer("first", ["tick"])
    second = await bus.consumer("second", ["tick"])
    await publish(bus, a_tick())

    received = [await read_all(first), await read_all(second)]

    assert [messages(entries) for entries in received] == [[a_tick()], [a_tick()]]
    await first.close()
    await second.close()


async def test_what_was_read_and_not_committed_comes_again_before_new_entries(bus: AnyBus) -> None:
    old = [a_tick(at_ns=OPEN_NS + number) for number in range(5)]
    await publish(bus, *old)
    consumer = await bus.consumer("feed", ["tick"])
    await consumer.read(3, 0)
    await consumer.close()
    await publish(bus, a_tick(at_ns=OPEN_NS + 5))

    reopened = await bus.consumer("feed", ["tick"])
    first = await reopened.read(64, 0)
    rest = await read_all(reopened)

    assert messages(first) == old[:3]
    assert messages(rest) == [*old[3:], a_tick(at_ns=OPEN_NS + 5)]
    await reopened.close()


async def test_pending_entries_of_several_streams_come_again_in_id_order(bus: AnyBus) -> None:
    sent = [a_tick(at_ns=OPEN_NS + n) if n % 3 else a_time(OPEN_NS + n) for n in range(20)]
    await publish(bus, *sent)
    consumer = await bus.consumer("feed", ["tick", "time"])
    await read_all(consumer)
    await consumer.close()

    reopened = await bus.consumer("feed", ["tick", "time"])

    assert messages(await read_all(reopened, limit=3)) == sent
    await reopened.close()


async def test_what_was_committed_does_not_come_again(bus: AnyBus) -> None:
    await publish(bus, a_tick(at_ns=OPEN_NS), a_tick(at_ns=OPEN_NS + 1))
    consumer = await bus.consumer("feed", ["tick"])
    batch = await consumer.read(64, 0)
    await consumer.commit(batch[:1], [])
    await consumer.close()

    reopened = await bus.consumer("feed", ["tick"])

    assert await read_all(reopened) == batch[1:]
    await reopened.close()


async def test_a_commit_publishes_its_outputs_with_ids_that_follow_from_the_inputs(
    bus: AnyBus,
) -> None:
    await publish(bus, a_tick(), a_tick())
    consumer = await bus.consumer("feed", ["tick"], ["bar", "time"])
    batch = await consumer.read(64, 0)
    outputs = [Output(1, a_bar(number=1)), Output(1, a_time()), Output(1, a_bar(number=2))]

    ids = await consumer.commit(batch, outputs)

    assert ids == [f"{START_MS}-64", f"{START_MS}-64", f"{START_MS}-65"]
    bars = await bus.entries("bar")
    assert [entry.id for entry in bars] == [ids[0], ids[2]]
    assert messages(bars) == [a_bar(number=1), a_bar(number=2)]
    await consumer.close()


async def test_an_output_id_is_moved_behind_the_last_one_when_its_input_is_older(
    bus: AnyBus, clock: Clock
) -> None:
    await publish(bus, a_time(), source="clock")
    clock.advance_ms(10)
    await publish(bus, a_tick(), source="feed")
    consumer = await bus.consumer("both", ["tick", "time"], ["bar"])
    older, newer = await consumer.read(64, 0)

    ids = await consumer.commit([newer, older], [Output(0, a_bar()), Output(1, a_bar())])

    assert ids == [f"{START_MS + 10}-0", f"{START_MS + 10}-1"]
    await consumer.close()


async def test_the_last_output_id_is_known_again_after_reopening(bus: AnyBus, clock: Clock) -> None:
    late = await bus.publisher("clock", ["time"])
    await late.publish(a_time())
    clock.advance_ms(10)
    await publish(bus, a_tick(), source="feed")
    consumer = await bus.consumer("both", ["tick", "time"], ["bar"])
    _, newer = await consumer.read(64, 0)
    await consumer.commit([newer], [Output(0, a_bar())])
    await consumer.close()

    reopened = await bus.consumer("both", ["tick", "time"], ["bar"])
    ids = await reopened.commit(await reopened.read(64, 0), [Output(0, a_bar())])

    assert ids == [f"{START_MS + 10}-1"]
    assert [entry.envelope.sequence for entry in await bus.entries("bar")] == [1, 2]
    await reopened.close()
    await late.close()


async def test_more_outputs_of_one_input_than_its_ids_have_room_for_are_refused(
    bus: AnyBus,
) -> None:
    await publish(bus, a_tick())
    consumer = await bus.consumer("feed", ["tick"], ["bar"])
    batch = await consumer.read(64, 0)
    outputs = [Output(0, a_bar(number=number)) for number in range(CHILDREN_PER_ENTRY + 1)]

    with pytest.raises(ValueError, match=r"at most 64 outputs .* tick/"):
        await consumer.commit(batch, outputs)

    ids = await consumer.commit(batch, outputs[:-1])
    assert [entry.id for entry in await bus.entries("bar")] == ids
    await consumer.close()


async def test_an_envelope_tells_the_way_back_to_the_edge(bus: AnyBus, clock: Clock) -> None:
    (tick_id,) = await publish(bus, a_tick())
    feed = await bus.consumer("feed", ["tick"], ["bar"])
    clock.advance_ms(2)
    (bar_id,) = await feed.commit(await feed.read(64, 0), [Output(0, a_bar())])
    model = await bus.consumer("model", ["bar"], ["decision"])
    clock.advance_ms(3)
    await model.commit(await model.read(64, 0), [Output(0, a_decision())])

    (tick,) = await bus.entries("tick")
    (decision,) = await bus.entries("decision")

    assert tick.envelope.source == "edge"
    assert (tick.envelope.cause, tick.envelope.cause_published_ns) == ("", 0)
    assert decision.envelope.source == "model"
    assert decision.envelope.sequence == 1
    assert decision.envelope.cause == f"bar/{bar_id}"
    assert decision.envelope.published_ns == START_NS + 5_000_000
    assert decision.envelope.cause_published_ns == START_NS + 2_000_000
    assert decision.envelope.origin_published_ns == START_NS
    assert tick_id == tick.id
    await feed.close()
    await model.close()


async def test_several_sources_write_to_a_shared_stream(bus: AnyBus) -> None:
    first = await bus.publisher("first", ["heartbeat"])
    second = await bus.publisher("second", ["heartbeat"])
    consumer = await bus.consumer("monitoring", ["heartbeat"])

    ids = [
        *await first.publish(a_heartbeat("a")),
        *await second.publish(a_heartbeat("b")),
        *await first.publish(a_heartbeat("c")),
    ]
    received = await read_all(consumer)

    assert [entry.id for entry in received] == ids == sorted(ids, key=id_key)
    assert [entry.envelope.sequence for entry in received] == [0, 0, 0]
    assert [entry.envelope.source for entry in received] == ["first", "second", "first"]
    assert consumer.lost == 0
    await first.close()
    await second.close()
    await consumer.close()


async def test_an_actor_may_commit_to_a_shared_stream(bus: AnyBus) -> None:
    alert = Alert(severity="info", text="x", runbook="y", at_ns=OPEN_NS)
    await publish(bus, a_tick())
    await publish(bus, alert, source="operator")
    consumer = await bus.consumer("feed", ["tick"], ["alert"])

    ids = await consumer.commit(await consumer.read(64, 0), [Output(0, alert)])

    assert [entry.id for entry in await bus.entries("alert")][1:] == ids
    await consumer.close()


async def test_sequence_numbers_go_on_after_a_publisher_is_opened_again(bus: AnyBus) -> None:
    await publish(bus, a_tick(), a_tick(), a_tick())
    publisher = await bus.publisher("edge", ["tick"])

    known = publisher.sequence
    await publisher.publish(a_tick())

    assert (known, publisher.sequence) == (3, 4)
    assert [entry.envelope.sequence for entry in await bus.entries("tick")] == [1, 2, 3, 4]
    await publisher.close()


async def test_a_missing_sequence_number_counts_as_lost(bus: AnyBus) -> None:
    ids = await publish(bus, *[a_tick(at_ns=OPEN_NS + number) for number in range(6)])
    consumer = await bus.consumer("feed", ["tick"])
    await consumer.commit(await consumer.read(2, 0), [])
    await lose(bus, "tick", ids[3])
    await lose(bus, "tick", ids[4])

    received = await read_all(consumer)

    assert [entry.id for entry in received] == [ids[2], ids[5]]
    assert consumer.lost == 2
    await consumer.close()


async def test_a_loss_while_the_reader_was_away_is_seen(bus: AnyBus) -> None:
    ids = await publish(bus, *[a_tick(at_ns=OPEN_NS + number) for number in range(4)])
    consumer = await bus.consumer("feed", ["tick"])
    await consumer.commit(await consumer.read(2, 0), [])
    await consumer.close()
    await lose(bus, "tick", ids[2])

    reopened = await bus.consumer("feed", ["tick"])
    await read_all(reopened)

    assert reopened.lost == 1
    await reopened.close()


async def test_latest_holds_the_last_message_per_key(bus: AnyBus) -> None:
    await publish(bus, a_heartbeat("risk", handled=1), a_heartbeat("feed"), source="runner")
    await publish(bus, a_heartbeat("risk", handled=2), source="runner")

    latest = await bus.latest("heartbeat")

    assert {actor: envelope.message for actor, envelope in latest.items()} == {
        "risk": a_heartbeat("risk", handled=2),
        "feed": a_heartbeat("feed"),
    }
    assert await bus.latest("tick") == {}


async def test_a_commit_keeps_the_last_of_several_outputs_as_latest(bus: AnyBus) -> None:
    await publish(bus, a_bar())
    consumer = await bus.consumer("model", ["bar"], ["decision"])
    outputs = [Output(0, a_decision("HOLD")), Output(0, a_decision("SELL_SHORT"))]

    await consumer.commit(await consumer.read(64, 0), outputs)

    latest = await bus.latest("decision")
    assert [envelope.message for envelope in latest.values()] == [a_decision("SELL_SHORT")]
    await consumer.close()


async def test_history_yields_what_was_acknowledged_in_the_order_it_was_handled(
    bus: AnyBus,
) -> None:
    sent = [a_tick(at_ns=OPEN_NS + n) if n % 2 else a_time(OPEN_NS + n) for n in range(200)]
    await publish(bus, *sent)
    consumer = await bus.consumer("feed", ["tick", "time"])
    handled: list[Entry] = []
    for _ in range(50):
        batch = (await consumer.read(3, 0))[::-1]  # handled out of order across streams
        batch.sort(key=lambda entry: (entry.stream, id_key(entry.id)))
        await consumer.commit(batch, [])
        handled.extend(batch)
    await consumer.read(3, 0)  # read, not acknowledged
    await consumer.close()

    reopened = await bus.consumer("feed", ["tick", "time"])

    assert await history(reopened) == handled
    assert reopened.history_missing == 0
    await reopened.close()


async def test_history_reaches_back_as_far_as_the_memory(bus: AnyBus) -> None:
    await publish(bus, *[a_time(OPEN_NS + number * MINUTE_NS) for number in range(30)])
    consumer = await bus.consumer("risk", ["time"])
    await handle_all(consumer, limit=4)
    await consumer.close()

    reopened = await bus.consumer("risk", ["time"])
    recent = await history(reopened, 5 * MINUTE_NS)

    assert [entry.envelope.message.time_ns - OPEN_NS for entry in recent] == [
        number * MINUTE_NS for number in range(24, 30)
    ]
    assert await history(reopened, 0) == recent[-1:]
    assert len(await history(reopened, 500 * MINUTE_NS)) == 30
    await reopened.close()


async def test_heartbeats_do_not_move_the_market_time_of_history(bus: AnyBus) -> None:
    publisher = await bus.publisher("edge", ["time", "heartbeat"])
    consumer = await bus.consumer("monitoring", ["time", "heartbeat"])
    years_later_ns = OPEN_NS + 10**17
    for number in range(4):
        await publisher.publish(a_time(OPEN_NS + number * MINUTE_NS))
        await handle_all(consumer)
        await publisher.publish(a_heartbeat(at_ns=years_later_ns))
        await handle_all(consumer)

    recent = await history(consumer, MINUTE_NS)

    assert [type(message) for message in messages(recent)] == [
        TimeEvent, Heartbeat, TimeEvent, Heartbeat,
    ]  # fmt: skip
    await publisher.close()
    await consumer.close()


async def test_a_group_without_commits_has_no_history(bus: AnyBus) -> None:
    consumer = await bus.consumer("feed", ["tick"])

    assert await history(consumer) == await history(consumer, 5) == []
    await consumer.close()


async def test_entries_wait_while_another_stream_may_still_hold_older_ones(bus: AnyBus) -> None:
    ticks = [a_tick(at_ns=OPEN_NS + number) for number in range(5)]
    await publish(bus, *ticks, a_time(), *ticks[:1], a_time())
    consumer = await bus.consumer("feed", ["time", "tick"])

    batches = []
    while batch := await consumer.read(2, 0):
        batches.append(messages(batch))

    flat = [message for batch in batches for message in batch]
    assert flat == [*ticks, a_time(), ticks[0], a_time()]
    assert all(len(batch) <= 2 for batch in batches)
    await consumer.close()


async def test_held_back_entries_count_as_waiting(bus: AnyBus) -> None:
    await publish(bus, a_tick(), a_tick(), a_tick(), a_time())
    consumer = await bus.consumer("feed", ["tick", "time"])

    before = await consumer.lag()
    first = await consumer.read(1, 0)
    await consumer.commit(first, [])
    after = await consumer.lag()

    assert (before, after) == (4, 3)
    await consumer.close()


async def test_trimming_never_drops_what_a_group_has_not_acknowledged(bus: AnyBus) -> None:
    await publish(bus, *[a_tick(at_ns=OPEN_NS + number) for number in range(100)])
    fast = await bus.consumer("fast", ["tick"])
    slow = await bus.consumer("slow", ["tick"])
    await handle_all(fast)
    held = await slow.read(20, 0)
    await slow.commit(held[:10], [])

    dropped = await bus.trim(5)

    assert dropped == 10
    assert len(await bus.entries("tick")) == 90
    await slow.close()
    reopened = await bus.consumer("slow", ["tick"])
    rest = await read_all(reopened)
    assert [m.time_ns - OPEN_NS for m in messages(rest)] == list(range(10, 100))
    assert reopened.lost == 0
    await fast.close()
    await reopened.close()


async def test_trimming_never_drops_what_a_group_has_yet_to_read(bus: AnyBus) -> None:
    await publish(bus, *[a_tick(at_ns=OPEN_NS + number) for number in range(30)])
    slow = await bus.consumer("slow", ["tick"])
    await slow.commit(await slow.read(20, 0), [])

    dropped = await bus.trim(1)

    assert dropped == 20
    assert len(await read_all(slow)) == 10
    assert slow.lost == 0
    await slow.close()


async def test_trimming_keeps_the_last_entries_and_what_history_needs(bus: AnyBus) -> None:
    await publish(bus, *[a_tick(at_ns=OPEN_NS + number) for number in range(2500)])
    consumer = await bus.consumer("feed", ["tick"])
    await handle_all(consumer, limit=50)

    dropped = await bus.trim(120)

    assert dropped == 2380
    kept = await bus.entries("tick")
    assert [m.time_ns - OPEN_NS for m in messages(kept)] == list(range(2380, 2500))
    assert await history(consumer) == kept
    assert consumer.history_missing == 30  # the oldest commit kept is half there
    assert len(await bus.handled("feed")) == 3
    await consumer.close()


async def test_a_stream_that_nobody_reads_is_trimmed_too(bus: AnyBus) -> None:
    await publish(bus, *[a_tick() for _ in range(10)])

    dropped = await bus.trim(0)

    assert dropped == 9
    publisher = await bus.publisher("edge", ["tick"])
    assert publisher.sequence == 10
    await publisher.close()


async def test_sequence_and_commit_numbers_survive_trimming(bus: AnyBus) -> None:
    await publish(bus, a_tick(), a_tick())
    consumer = await bus.consumer("feed", ["tick"], ["bar"])
    await consumer.commit(await consumer.read(64, 0), [Output(0, a_bar())])
    await bus.trim(0)
    await consumer.close()
    await publish(bus, a_tick())

    reopened = await bus.consumer("feed", ["tick"], ["bar"])
    await reopened.commit(await reopened.read(64, 0), [Output(0, a_bar())])

    assert [entry.envelope.sequence for entry in await bus.entries("bar")] == [1, 2]
    assert [commit.id for commit in await bus.handled("feed")] == ["1-0", "2-0"]
    assert reopened.lost == 0
    await reopened.close()


async def test_the_bus_is_quiet_once_every_group_has_acknowledged_everything(
    bus: AnyBus,
) -> None:
    at_first = await bus.is_quiet()
    feed = await bus.consumer("feed", ["tick"], ["bar"])
    model = await bus.consumer("model", ["bar"])
    await publish(bus, a_tick())
    unread = await bus.is_quiet()
    batch = await feed.read(64, 0)
    unacknowledged = await bus.is_quiet()
    await feed.commit(batch, [Output(0, a_bar())])
    passed_on = await bus.is_quiet()
    await handle_all(model)
    at_last = await bus.is_quiet()

    assert [at_first, unread, unacknowledged, passed_on, at_last] == [
        True, False, False, False, True,
    ]  # fmt: skip
    await feed.close()
    await model.close()


async def test_a_stream_of_the_bus_is_quiet_whatever_waits_in_others(bus: AnyBus) -> None:
    feed = await bus.consumer("feed", ["tick"], ["bar"])
    model = await bus.consumer("model", ["bar"])
    await publish(bus, a_tick())

    assert await bus.is_quiet(["bar"])
    assert not await bus.is_quiet(["bar", "tick"])
    await feed.close()
    await model.close()


async def test_the_bus_is_quiet_after_everything_was_trimmed(bus: AnyBus) -> None:
    await publish(bus, *[a_tick() for _ in range(10)])
    consumer = await bus.consumer("feed", ["tick"])
    await handle_all(consumer)
    await bus.trim(0)
    late = await bus.consumer("late", ["tick"])

    before = (await bus.is_quiet(), await late.lag())
    await handle_all(late)

    assert before == (False, 1)
    assert await bus.is_quiet()
    await consumer.close()
    await late.close()


async def test_a_message_that_cannot_be_handled_goes_to_the_dead_letters(bus: AnyBus) -> None:
    ids = await publish(bus, a_tick(), a_tick())
    consumer = await bus.consumer("feed", ["tick"])
    batch = await consumer.read(64, 0)

    await consumer.commit(batch, [], [DeadLetter(1, "ValueError: no")])

    assert await bus.dead_letters() == [DeadEntry("feed", "tick", ids[1], "ValueError: no")]
    assert await bus.is_quiet()
    assert await history(consumer) == batch
    await consumer.close()


async def test_a_batch_cannot_be_committed_twice(bus: AnyBus) -> None:
    await publish(bus, a_tick())
    consumer = await bus.consumer("feed", ["tick"], ["bar"])
    batch = await consumer.read(64, 0)
    await consumer.commit(batch, [Output(0, a_bar())])

    with pytest.raises(BusError, match=r"handled tick/.* already"):
        await consumer.commit(batch, [Output(0, a_bar())])

    assert len(await bus.entries("bar")) == 1
    assert len(await bus.handled("feed")) == 1
    await consumer.close()


async def test_a_consumer_that_was_replaced_can_commit_nothing(bus: AnyBus) -> None:
    await publish(bus, a_tick(), a_tick())
    zombie = await bus.consumer("feed", ["tick"], ["bar"])
    batch = await zombie.read(64, 0)
    successor = await bus.consumer("feed", ["tick"], ["bar"])
    taken = await successor.read(64, 0)
    await successor.commit(taken[:1], [Output(0, a_bar())])

    with pytest.raises(BusError):
        await zombie.commit(batch, [Output(0, a_bar()), Output(1, a_bar(number=1))])

    assert taken == batch
    assert messages(await bus.entries("bar")) == [a_bar()]
    await successor.commit(taken[1:], [Output(0, a_bar(number=1))])
    assert messages(await bus.entries("bar")) == [a_bar(), a_bar(number=1)]
    assert await history(successor) == batch
    await zombie.close()
    await successor.close()


async def test_a_consumer_that_was_replaced_reads_nothing_more(bus: AnyBus) -> None:
    zombie = await bus.consumer("feed", ["tick"])
    blocked = asyncio.create_task(zombie.read(64, 400))
    await asyncio.sleep(0.02)
    successor = await bus.consumer("feed", ["tick"])

    await publish(bus, a_tick())

    with pytest.raises(BusError):
        await blocked
    assert messages(await successor.read(64, 0)) == [a_tick()]
    await zombie.close()
    await successor.close()


async def test_a_publisher_that_was_replaced_can_publish_nothing(bus: AnyBus) -> None:
    zombie = await bus.publisher("edge", ["tick"])
    successor = await bus.publisher("edge", ["tick"])
    await successor.publish(a_tick())

    with pytest.raises(BusError):
        await zombie.publish(a_tick())

    assert len(await bus.entries("tick")) == 1
    await zombie.close()
    await successor.close()


async def test_a_second_source_in_a_stream_that_is_not_shared_is_refused(
    bus: AnyBus, clock: Clock
) -> None:
    await publish(bus, a_bar(), source="first")
    await publish(bus, a_tick(), source="edge")
    consumer = await bus.consumer("feed", ["tick"], ["bar"])
    clock.advance_ms(10)
    await publish(bus, a_bar(), source="first")

    with pytest.raises(BusError, match=r"equal or smaller|not above the last"):
        await consumer.commit(await consumer.read(64, 0), [Output(0, a_bar())])

    assert len(await bus.entries("bar")) == 2
    await consumer.close()


async def test_a_read_of_an_empty_bus_returns_nothing_after_its_wait(bus: AnyBus) -> None:
    consumer = await bus.consumer("feed", ["tick", "time"])

    assert await consumer.read(64, 20) == []
    assert await consumer.read(64, 0) == []
    await consumer.close()


async def test_a_waiting_read_returns_as_soon_as_a_message_is_published(bus: AnyBus) -> None:
    consumer = await bus.consumer("feed", ["tick", "time"])
    reading = asyncio.create_task(consumer.read(64, 400))
    await asyncio.sleep(0.02)

    await publish(bus, a_tick(), a_time(), a_tick())

    assert messages(await reading) == [a_tick(), a_time(), a_tick()]
    await consumer.close()


async def test_messages_to_streams_that_were_not_named_are_refused(bus: AnyBus) -> None:
    publisher = await bus.publisher("edge", ["tick"])
    await publisher.publish(a_tick())
    consumer = await bus.consumer("feed", ["tick"], ["bar"])
    batch = await consumer.read(64, 0)

    with pytest.raises(ValueError, match="not to 'time'"):
        await publisher.publish(a_tick(), a_time())
    with pytest.raises(ValueError, match="not to 'decision'"):
        await consumer.commit(batch, [Output(0, a_decision())])

    assert len(await bus.entries("tick")) == 1
    assert await consumer.commit(batch, []) == []
    await publisher.close()
    await consumer.close()


async def test_arguments_without_sense_are_refused(bus: AnyBus) -> None:
    await publish(bus, a_tick())
    consumer = await bus.consumer("feed", ["tick"], ["bar"])
    batch = await consumer.read(64, 0)

    with pytest.raises(ValueError, match="at least 1, was 0"):
        await consumer.read(0, 0)
    with pytest.raises(ValueError, match="index into the 1 inputs, was 1"):
        await consumer.commit(batch, [Output(1, a_bar())])
    with pytest.raises(ValueError, match="does not read 'bar'"):
        await consumer.commit([batch[0]._replace(stream="bar")], [])
    with pytest.raises(ValueError, match="must not be negative, was -1"):
        await bus.trim(-1)
    with pytest.raises(ValueError, match="at least one stream"):
        await bus.consumer("none", [])
    await consumer.close()


async def test_nothing_to_commit_and_nothing_to_publish_is_no_commit(bus: AnyBus) -> None:
    consumer = await bus.consumer("feed", ["tick"])
    publisher = await bus.publisher("edge", ["tick"])

    assert await consumer.commit([], []) == []
    assert await publisher.publish() == []

    assert await bus.handled("feed") == []
    await publisher.close()
    await consumer.close()


async def test_entries_are_listed_from_an_id_on(bus: AnyBus) -> None:
    ids = await publish(bus, *[a_tick(at_ns=OPEN_NS + number) for number in range(5)])

    listed = await bus.entries("tick", start=ids[1], limit=2)

    assert [entry.id for entry in listed] == ids[1:3]
    assert [entry.id for entry in await bus.entries("tick", limit=4)] == ids[:4]
    assert await bus.entries("bar") == []


async def test_handled_lists_the_commits_after_one(bus: AnyBus) -> None:
    ids = await publish(bus, *[a_tick(at_ns=OPEN_NS + number) for number in range(4)])
    consumer = await bus.consumer("feed", ["tick"])
    await handle_all(consumer, limit=1)

    after = await bus.handled("feed", after="1-0", limit=2)

    assert [commit.id for commit in after] == ["2-0", "3-0"]
    assert [commit.entries for commit in after] == [(("tick", ids[1]),), (("tick", ids[2]),)]
    assert await bus.handled("nobody") == []
    await consumer.close()


async def test_closed_consumers_and_publishers_refuse_to_go_on(bus: AnyBus) -> None:
    consumer = await bus.consumer("feed", ["tick"])
    publisher = await bus.publisher("edge", ["tick"])
    await consumer.close()
    await publisher.close()

    with pytest.raises(BusError, match="closed"):
        await consumer.read(64, 0)
    with pytest.raises(BusError, match="closed"):
        await publisher.publish(a_tick())


async def test_a_chain_of_actors_passes_every_message_on_once(bus: AnyBus) -> None:
    await publish(bus, *[a_tick(at_ns=OPEN_NS + number) for number in range(100)])
    feed = await bus.consumer("feed", ["tick"], [Bar.stream])
    model = await bus.consumer("model", [Bar.stream], [Decision.stream])
    while batch := await feed.read(7, 0):
        await feed.commit(batch, [Output(n, a_bar(number=n)) for n in range(len(batch))])
    while batch := await model.read(9, 0):
        await model.commit(batch, [Output(n, a_decision()) for n in range(len(batch))])

    decisions = await bus.entries(Decision.stream)

    assert [entry.envelope.sequence for entry in decisions] == list(range(1, 101))
    bars = [entry.id for entry in await bus.entries(Bar.stream)]
    assert [entry.envelope.cause for entry in decisions] == [f"bar/{bar}" for bar in bars]
    ticks = [entry.id for entry in await bus.entries(Tick.stream)]
    assert [id_key(bar)[1] for bar in bars] == [id_key(tick)[1] * 64 for tick in ticks]
    await feed.close()
    await model.close()


async def test_what_was_fetched_ahead_stays_in_order_after_a_crash(bus: AnyBus) -> None:
    sent: list[AnyMessage] = [a_tick(), a_tick(at_ns=OPEN_NS + 1), a_time(), a_tick()]
    await publish(bus, *sent)
    consumer = await bus.consumer("feed", ["tick", "time"])
    await consumer.read(1, 0)  # the time event was fetched beside it and waits for the second tick
    await consumer.close()

    reopened = await bus.consumer("feed", ["tick", "time"])

    assert messages(await read_all(reopened, limit=1)) == sent
    await reopened.close()
