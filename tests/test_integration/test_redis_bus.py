"""What RedisBus promises when servers, connections and neighbours misbehave."""

import asyncio
import contextlib
import os
import random
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from builders import OPEN_NS, a_bar, a_tick, a_time

from actors.messages import StopSession
from daemon.bus import Entry, Output
from daemon.embedded_redis import EmbeddedRedis
from daemon.errors import BusError, ConfigError
from daemon.redis_bus import RedisBus
from daemon.redis_consumer import RedisConsumer
from daemon.redis_link import RedisLink, public_url, version_of
from daemon.redis_writer import RedisPublisher

pytestmark = pytest.mark.integration


@pytest.fixture
async def bus(message_server: str) -> AsyncIterator[RedisBus]:
    bus = RedisBus(message_server, f"test:{uuid.uuid4().hex}")
    yield bus
    await bus.close()


@pytest.fixture
async def link(message_server: str) -> AsyncIterator[RedisLink]:
    """Return a connection for what no part of the daemon would do."""
    link = await RedisLink.open(message_server)
    yield link
    await link.close()


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[EmbeddedRedis]:
    """Return a running server that this test alone may break."""
    server = EmbeddedRedis(tmp_path / "server", max_memory_mib=64)
    await server.start()
    yield server
    await server.stop()


async def until_open(
    open_one: Callable[[], Awaitable[RedisConsumer | RedisPublisher]],
) -> RedisConsumer | RedisPublisher:
    while True:
        try:
            return await open_one()
        except BusError:
            await asyncio.sleep(0.02)


async def produce(bus: RedisBus, count: int) -> None:
    """Publish ticks 0 to count - 1; after an outage go on where the stream says we are."""
    while True:
        publisher = await until_open(lambda: bus.publisher("edge", ["tick"]))
        assert isinstance(publisher, RedisPublisher)
        try:
            while publisher.sequence < count:
                first = publisher.sequence
                size = min(3, count - first)
                await publisher.publish(
                    *[a_tick(at_ns=OPEN_NS + first + number) for number in range(size)]
                )
                await asyncio.sleep(0)
        except BusError:
            continue
        else:
            return
        finally:
            await publisher.close()


async def relay(bus: RedisBus, group: str, stream: str, output: str, count: int) -> list[Entry]:
    """Turn each input into one bar or tick until `count` are acknowledged; returns the history."""
    while True:
        consumer = await until_open(lambda: bus.consumer(group, [stream], [output]))
        assert isinstance(consumer, RedisConsumer)
        try:
            done = [entry async for entry in consumer.history(None)]
            while len(done) < count:
                batch = await consumer.read(64, 100)
                outputs = [
                    Output(n, a_bar(number=0) if output == "bar" else a_time())
                    for n in range(len(batch))
                ]
                await consumer.commit(batch, outputs)
                done.extend(batch)
        except BusError:
            continue
        else:
            assert consumer.lost == 0
            return done
        finally:
            await consumer.close()


async def test_a_server_killed_under_load_loses_repeats_and_reorders_nothing(
    own_server: EmbeddedRedis,
) -> None:
    count = 6000
    bus = RedisBus(own_server.url, "test")
    work = asyncio.gather(
        produce(bus, count),
        relay(bus, "feed", "tick", "bar", count),
        relay(bus, "model", "bar", "time", count),
    )
    kills = 0
    while not work.done() and kills < 4:
        await asyncio.sleep(0.1)
        os.kill((await own_server.state()).pid, signal.SIGKILL)
        kills += 1
        await asyncio.sleep(0.02)
        await own_server.start()

    _, ticks, bars = await work

    assert kills >= 2
    assert [entry.envelope.message.time_ns - OPEN_NS for entry in ticks] == list(range(count))
    assert [entry.envelope.cause for entry in bars] == [f"tick/{entry.id}" for entry in ticks]
    out = await bus.entries("time")
    assert [entry.envelope.cause for entry in out] == [f"bar/{entry.id}" for entry in bars]
    assert [entry.envelope.sequence for entry in out] == list(range(1, count + 1))
    assert await bus.is_quiet()
    await bus.close()


async def test_actors_crashing_at_any_point_pass_every_message_on_once(bus: RedisBus) -> None:
    seeded = random.Random(7)
    count = 400
    publisher = await bus.publisher("edge", ["tick", "time"])
    for number in range(count):
        await publisher.publish(a_tick(at_ns=OPEN_NS + number) if number % 3 else a_time())
    await publisher.close()

    handled: list[Entry] = []
    while len(handled) < count:
        consumer = await bus.consumer("feed", ["tick", "time"], ["bar"])
        for _ in range(seeded.randint(0, 5)):
            batch = await consumer.read(seeded.randint(1, 9), 0)
            if seeded.random() < 0.3:
                break  # crashed before the commit
            await consumer.commit(batch, [Output(n, a_bar()) for n in range(len(batch))])
            handled.extend(batch)
        await consumer.close()

    sources = sorted(
        await bus.entries("tick") + await bus.entries("time"),
        key=lambda entry: entry.envelope.published_ns,
    )
    bars = await bus.entries("bar")
    assert len(handled) == len(sources) == len(bars) == count
    assert [bar.envelope.cause for bar in bars] == [f"{e.stream}/{e.id}" for e in handled]
    assert [e.id for e in handled] == [e.id for e in sources]


async def test_cancelled_reads_lose_no_entries(bus: RedisBus) -> None:
    seeded = random.Random(3)
    published = cancelled = 0

    async def publish_slowly() -> None:
        nonlocal published
        publisher = await bus.publisher("edge", ["tick"])
        while published < 200 or cancelled <= 10:
            await publisher.publish(a_tick(at_ns=OPEN_NS + published))
            published += 1
            await asyncio.sleep(seeded.random() / 300)
        await publisher.close()

    publishing = asyncio.create_task(publish_slowly())
    received: list[Entry] = []
    while not publishing.done() or len(received) < published:
        consumer = await bus.consumer("feed", ["tick"])
        while True:
            reading = asyncio.create_task(consumer.read(64, 200))
            await asyncio.sleep(seeded.random() / 300 * max(1.0, cancelled / 50))
            reading.cancel()
            (result,) = await asyncio.gather(reading, return_exceptions=True)
            if not isinstance(result, list):
                break
            await consumer.commit(result, [])
            received.extend(result)
        cancelled += 1
        await consumer.close()
    await publishing

    assert cancelled > 10
    assert [e.envelope.message.time_ns - OPEN_NS for e in received] == list(range(published))


async def test_a_consumer_is_of_no_use_after_a_cancelled_read(bus: RedisBus) -> None:
    consumer = await bus.consumer("feed", ["tick"])
    reading = asyncio.create_task(consumer.read(64, 400))
    await asyncio.sleep(0.02)
    reading.cancel()

    with pytest.raises(asyncio.CancelledError):
        await reading

    with pytest.raises(BusError, match="closed"):
        await consumer.read(64, 0)
    await consumer.close()


async def test_an_entry_that_holds_no_message_is_set_aside(bus: RedisBus, link: RedisLink) -> None:
    key = bus._keys.stream("tick")
    publisher = await bus.publisher("edge", ["tick"])
    await publisher.publish(a_tick())
    await link.call("XADD", key, "*", "d", b"\x00 not msgpack of ours")
    await link.call("XADD", key, "*", "price", "22000", "size", "75")
    bad_text = msgspec.msgpack.encode((b"edge", 1, "", 1, 0, 1, {}))
    await link.call(
        "XADD", key, "*", "d", bad_text.replace(b"\xc4\x04edge", b"\xa4\xff\xff\xff\xff")
    )
    consumer = await bus.consumer("feed", ["tick"])

    batch = await consumer.read(64, 0)
    await consumer.commit(batch, [])

    assert [entry.envelope.message for entry in batch] == [a_tick()]
    assert consumer.undecodable == 3
    assert [letter.error.partition(":")[0] for letter in await bus.dead_letters()] == [
        "no message",
        "no message",
        "no message",
    ]
    assert await bus.is_quiet()
    assert len(await bus.entries("tick")) == 1
    assert bus.undecodable == 3
    await publisher.close()
    await consumer.close()


async def test_only_undecodable_entries_do_not_end_a_reader(bus: RedisBus, link: RedisLink) -> None:
    consumer = await bus.consumer("feed", ["tick"])
    await link.call("XADD", bus._keys.stream("tick"), "*", "d", b"x")

    first = await consumer.read(64, 0)
    publisher = await bus.publisher("edge", ["tick"])
    await publisher.publish(a_tick())
    second = await consumer.read(64, 100)

    assert first == []
    assert [entry.envelope.message for entry in second] == [a_tick()]
    await publisher.close()
    await consumer.close()


async def test_a_pending_entry_that_was_trimmed_by_force_counts_as_lost(
    bus: RedisBus, link: RedisLink
) -> None:
    publisher = await bus.publisher("edge", ["tick"])
    ids = await publisher.publish(a_tick(), a_tick(), a_tick())
    consumer = await bus.consumer("feed", ["tick"])
    await consumer.commit(await consumer.read(1, 0), [])
    await consumer.read(1, 0)
    await consumer.close()
    await link.call("XDEL", bus._keys.stream("tick"), ids[1])

    reopened = await bus.consumer("feed", ["tick"])
    batch = await reopened.read(64, 0)
    await reopened.commit(batch, [])

    assert [entry.id for entry in batch] == ids[2:]
    assert reopened.lost == 1
    assert await bus.is_quiet()
    await publisher.close()
    await reopened.close()


async def test_a_group_that_was_removed_is_made_anew_without_repeating(
    bus: RedisBus, link: RedisLink
) -> None:
    publisher = await bus.publisher("edge", ["tick"])
    await publisher.publish(a_tick(at_ns=1), a_tick(at_ns=2))
    consumer = await bus.consumer("feed", ["tick"])
    await consumer.commit(await consumer.read(1, 0), [])
    await link.call("XGROUP", "DESTROY", bus._keys.stream("tick"), "feed")

    with pytest.raises(BusError, match="open it again"):
        await consumer.read(64, 0)
    with pytest.raises(BusError):
        await consumer.lag()
    await consumer.close()
    reopened = await bus.consumer("feed", ["tick"])
    batch = await reopened.read(64, 0)
    await reopened.commit(batch, [])

    assert [entry.envelope.message.time_ns for entry in batch] == [2]
    assert await bus.is_quiet()
    await publisher.close()
    await reopened.close()


async def test_data_lost_under_a_waiting_read_ends_it_and_a_new_one_works(
    own_server: EmbeddedRedis,
) -> None:
    bus = RedisBus(own_server.url, "test", block_ms_cap=20_000)
    link = await RedisLink.open(own_server.url)
    consumer = await bus.consumer("feed", ["tick"])
    reading = asyncio.create_task(consumer.read(64, 20_000))
    await asyncio.sleep(0.05)
    await link.call("FLUSHALL")

    with pytest.raises(BusError, match="open it again"):
        await reading
    await consumer.close()
    publisher = await bus.publisher("edge", ["tick"])
    await publisher.publish(a_tick())
    reopened = await bus.consumer("feed", ["tick"])

    assert len(await reopened.read(64, 0)) == 1
    for part in (publisher, reopened, link, bus):
        await part.close()


async def test_a_full_server_refuses_whole_batches_and_goes_on_once_there_is_room(
    own_server: EmbeddedRedis,
) -> None:
    bus = RedisBus(own_server.url, "test")
    link = await RedisLink.open(own_server.url)
    publisher = await bus.publisher("edge", ["tick", "time"])
    await publisher.publish(a_tick(), a_time())
    consumer = await bus.consumer("feed", ["tick"], ["bar"])
    batch = await consumer.read(64, 0)
    await link.call("CONFIG", "SET", "maxmemory", "1mb")

    with pytest.raises(BusError, match=r"message server is full: .*raise its memory limit"):
        await publisher.publish(a_tick(), a_time())
    with pytest.raises(BusError, match="message server is full"):
        await consumer.commit(batch, [Output(0, a_bar())])

    await publisher.close()
    await consumer.close()
    await link.call("CONFIG", "SET", "maxmemory", "64mb")
    again = await bus.publisher("edge", ["tick", "time"])
    assert again.sequence == 2
    await again.publish(a_tick())
    reopened = await bus.consumer("feed", ["tick"], ["bar"])
    rest = await reopened.read(64, 0)
    assert [entry.id for entry in rest] == [batch[0].id]
    assert await bus.entries("bar") == []
    for part in (again, reopened, link, bus):
        await part.close()


async def test_a_server_that_may_evict_messages_is_refused(own_server: EmbeddedRedis) -> None:
    bus = RedisBus(own_server.url, "test")
    link = await RedisLink.open(own_server.url)
    await link.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")

    with pytest.raises(BusError, match="set it to noeviction"):
        await bus.consumer("feed", ["tick"])
    with pytest.raises(BusError, match="allkeys-lru"):
        await bus.publisher("edge", ["tick"])
    with pytest.raises(BusError, match="allkeys-lru"):
        await bus.ping()
    await link.close()
    await bus.close()


@contextlib.asynccontextmanager
async def stand_in(answers: Callable[[bytes], bytes], path: Path) -> AsyncIterator[str]:
    """Serve a foreign server's answers on a socket; yields its url."""
    conversations = set[asyncio.Task[None] | None]()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        conversations.add(asyncio.current_task())
        while question := await reader.read(65536):
            writer.write(answers(question))
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_unix_server(converse, path)
    yield f"unix://{path}"
    server.close()
    await server.wait_closed()
    await asyncio.gather(*filter(None, conversations))


def bulk(text: str) -> bytes:
    return f"${len(text)}\r\n{text}\r\n".encode()


async def test_a_server_older_than_seven_is_refused(tmp_path: Path) -> None:
    def old_server(question: bytes) -> bytes:
        if b"INFO" in question and b"CONFIG" in question:
            return (
                bulk("# Server\r\nredis_version:6.2.14\r\n")
                + b"*2\r\n" + bulk("maxmemory-policy") + bulk("noeviction")
                + bulk("# Memory\r\n")
            )  # fmt: skip
        return b"+OK\r\n" * question.count(b"CLIENT")

    async with stand_in(old_server, tmp_path / "s") as url:
        bus = RedisBus(url, "test")

        with pytest.raises(BusError, match=r"6\.2\.14: use Redis or Valkey 7\.0 or later"):
            await bus.consumer("feed", ["tick"])


async def test_a_silent_server_is_given_up_after_the_deadline(tmp_path: Path) -> None:
    def nearly_silent(question: bytes) -> bytes:
        return b"+OK\r\n" * question.count(b"SETINFO")

    async with stand_in(nearly_silent, tmp_path / "s") as url:
        link = await RedisLink.open(url)

        with pytest.raises(BusError, match=r"did not answer within 0\.05 s"):
            await link.call("PING", timeout_s=0.05)

        assert not link.is_open


async def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    bus = RedisBus(f"unix://{tmp_path}/none.sock", "test")

    with pytest.raises(BusError, match=r"cannot reach the message server at unix://.*none\.sock"):
        await bus.wait_ready(0.05)
    await bus.close()


def test_a_url_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"must be unix:///path or redis://.*was 'http://x'"):
        RedisBus("http://x", "test")


def test_a_password_is_not_shown() -> None:
    assert public_url("redis://me:secret@host:1/0") == "redis://me:***@host:1/0"
    assert version_of("unknown") == (0, 0)


async def test_the_bus_works_over_tcp_with_a_password(own_server: EmbeddedRedis) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    link = await RedisLink.open(own_server.url)
    await link.call("CONFIG", "SET", "port", port)
    await link.call("ACL", "SETUSER", "trader", "on", ">secret", "~*", "&*", "+@all")
    bus = RedisBus(f"redis://trader:secret@127.0.0.1:{port}/0", "test")
    await bus.wait_ready(20)
    publisher = await bus.publisher("edge", ["tick"])
    consumer = await bus.consumer("feed", ["tick"])

    await publisher.publish(a_tick())

    assert [e.envelope.message for e in await consumer.read(64, 0)] == [a_tick()]
    wrong = RedisBus(f"redis://trader:wrong@127.0.0.1:{port}/0", "test")
    with pytest.raises(BusError, match=r"\*\*\*"):
        await wrong.ping()
    for part in (publisher, consumer, link, bus):
        await part.close()


async def test_the_bus_reconnects_its_own_connection_after_an_outage(
    own_server: EmbeddedRedis,
) -> None:
    bus = RedisBus(own_server.url, "test")
    await bus.ping()
    await own_server.stop()

    with pytest.raises(BusError):
        await bus.is_quiet()
    await own_server.start()

    assert await bus.is_quiet()
    await bus.close()


async def test_asking_whether_all_is_quiet_takes_some_milliseconds_at_most(bus: RedisBus) -> None:
    consumer = await bus.consumer("feed", ["tick", "time"])
    loop = asyncio.get_running_loop()
    took_s = []

    for _ in range(50):
        began_s = loop.time()
        assert await bus.is_quiet()
        took_s.append(loop.time() - began_s)

    assert min(took_s) < 0.01  # the quickest of many, on a machine that others use too
    await consumer.close()


async def test_a_damaged_fold_log_is_named(bus: RedisBus, link: RedisLink) -> None:
    await link.call("XADD", bus._keys.fold("feed"), "1-0", "d", b"x")

    with pytest.raises(BusError, match="no record of a commit"):
        await bus.consumer("feed", ["tick"])


async def test_lag_is_exact_where_the_server_has_lost_count(bus: RedisBus, link: RedisLink) -> None:
    publisher = await bus.publisher("edge", ["tick"])
    ids = await publisher.publish(*[a_tick() for _ in range(5)])
    consumer = await bus.consumer("feed", ["tick"])
    await consumer.commit(await consumer.read(1, 0), [])
    await link.call("XDEL", bus._keys.stream("tick"), ids[2])
    (group,) = await link.call("XINFO", "GROUPS", bus._keys.stream("tick"))
    assert group[group.index(b"lag") + 1] is None

    assert await consumer.lag() == 3
    await publisher.close()
    await consumer.close()


async def test_a_latest_value_that_holds_no_message_is_left_out(
    bus: RedisBus, link: RedisLink
) -> None:
    await link.call("HSET", bus._keys.latest("decision"), "Nifty", b"x")

    assert await bus.latest("decision") == {}
    assert bus.undecodable == 1


async def test_a_writer_goes_on_behind_a_newest_entry_that_is_not_its_own(
    bus: RedisBus, link: RedisLink
) -> None:
    await link.call("XADD", bus._keys.stream("tick"), "99999999999999-5", "d", b"x")
    publisher = await bus.publisher("edge", ["tick"])

    ids = await publisher.publish(a_tick())

    assert ids == ["99999999999999-6"]
    assert publisher.sequence == 1
    await publisher.close()


async def test_a_consumer_fenced_right_after_its_commit_does_no_more(
    bus: RedisBus, link: RedisLink
) -> None:
    publisher = await bus.publisher("edge", ["tick"])
    await publisher.publish(a_tick(), a_tick())
    consumer = await bus.consumer("feed", ["tick"], ["bar"])
    batch = await consumer.read(2, 0)
    await consumer.commit(batch[:1], [Output(0, a_bar())])
    # A successor that has announced itself and has not yet cut this connection off.
    await link.call("INCR", bus._keys.fence("feed"))

    with pytest.raises(BusError, match="another process has opened"):
        await consumer.commit(batch[1:], [Output(0, a_bar())])

    assert len(await bus.entries("bar")) == 1
    assert len(await bus.handled("feed")) == 1
    await publisher.close()
    await consumer.close()


async def test_what_is_withdrawn_before_it_is_read_is_never_read(bus: RedisBus) -> None:
    publisher = await bus.publisher("backend", ["request"])
    given_up, wanted = await publisher.publish(a_stop_request("r1"), a_stop_request("r2"))

    await bus.withdraw("request", given_up)

    consumer = await bus.consumer("risk", ["request"])
    batch = await consumer.read(64, 0)
    await consumer.commit(batch, [])
    assert [entry.id for entry in batch] == [wanted]
    assert consumer.lost == 0
    assert await bus.is_quiet()
    await publisher.close()
    await consumer.close()


async def test_nothing_can_be_withdrawn_from_a_stream_that_numbers_its_entries(
    bus: RedisBus,
) -> None:
    publisher = await bus.publisher("edge", ["tick"])
    (entry_id,) = await publisher.publish(a_tick())

    with pytest.raises(BusError, match="numbers its entries"):
        await bus.withdraw("tick", entry_id)

    assert [entry.id for entry in await bus.entries("tick")] == [entry_id]
    await publisher.close()


def a_stop_request(request_id: str) -> StopSession:
    return StopSession(id=request_id, user_id="FA1", at_ns=OPEN_NS)
