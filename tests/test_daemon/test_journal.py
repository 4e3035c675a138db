"""The recording: complete, without repeats over a crash, and no byte of it can be changed."""

# ruff: noqa: ASYNC110 - what is waited for is a state, which has no event

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
from builders import a_bar, a_heartbeat, a_tick, a_time
from hypothesis import given, settings
from hypothesis import strategies as st
from unreliable_bus import UnreliableBus

from actors.messages import AnyMessage, Bar, Heartbeat, Tick, TimeEvent
from daemon import journal as journal_module
from daemon.bus import Entry, Envelope, Output
from daemon.errors import ReplayError
from daemon.journal import (
    FORMAT,
    Journal,
    Record,
    RecordedEntry,
    RecordedHandling,
    SessionWriter,
    read_records,
    read_seal,
)

WAIT_S = 20.0


def an_entry(number: int, message: AnyMessage | None = None) -> RecordedEntry:
    message = message or a_tick(str(22000 + number))
    envelope = Envelope(
        source="tick_source",
        sequence=number,
        cause="",
        published_ns=number,
        cause_published_ns=0,
        origin_published_ns=number,
        message=message,
    )
    return RecordedEntry(message.stream, f"{number}-0", envelope)


def a_handling(number: int, *places: tuple[str, str], group: str = "risk") -> RecordedHandling:
    return RecordedHandling(group=group, id=f"{number}-0", entries=places)


SOME_RECORDS: tuple[Record, ...] = (
    an_entry(1),
    an_entry(2),
    an_entry(2, a_time()),
    a_handling(1, ("tick", "1-0"), ("tick", "2-0")),
    an_entry(3),
)


def write_session(folder: Path, *, seal: bool) -> None:
    folder.mkdir(exist_ok=True)
    writer = SessionWriter(folder)
    for record in SOME_RECORDS:
        assert writer.append(record)
    if seal:
        writer.seal()
    else:
        writer.close()


# --- the file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seal", [True, False])
def test_what_was_written_is_read_back_in_order(tmp_path: Path, seal: bool) -> None:
    write_session(tmp_path, seal=seal)

    assert list(read_records(tmp_path)) == list(SOME_RECORDS)


def test_a_record_that_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    writer = SessionWriter(tmp_path)

    written = [writer.append(record) for record in (*SOME_RECORDS, *SOME_RECORDS)]
    writer.close()

    assert written == [True] * 5 + [False] * 5
    assert list(read_records(tmp_path)) == list(SOME_RECORDS)


def test_an_open_session_is_gone_on_with(tmp_path: Path) -> None:
    write_session(tmp_path, seal=False)
    writer = SessionWriter(tmp_path)

    repeated = writer.append(SOME_RECORDS[0])
    new = writer.append(an_entry(4))
    writer.seal()

    assert (repeated, new) == (False, True)
    assert list(read_records(tmp_path)) == [*SOME_RECORDS, an_entry(4)]
    assert writer.entries == {"tick": 4, "time": 1}
    assert writer.handled == {("risk", "tick"): 2}


def test_the_seal_says_what_the_recording_holds(tmp_path: Path) -> None:
    write_session(tmp_path, seal=True)

    seal = read_seal(tmp_path)

    assert seal is not None
    assert (seal.format, seal.records, seal.entries) == (FORMAT, 5, {"tick": 3, "time": 1})
    assert bytes.fromhex(seal.head) == (tmp_path / "records").read_bytes()[-16:]


def test_a_sealed_session_takes_no_more_records(tmp_path: Path) -> None:
    write_session(tmp_path, seal=True)

    with pytest.raises(ReplayError, match="is sealed: a closed session takes no more records"):
        SessionWriter(tmp_path)


def test_a_folder_without_records_is_no_session(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="has no file 'records'"):
        list(read_records(tmp_path))


def test_every_torn_end_is_cut_off_and_recording_goes_on(tmp_path: Path) -> None:
    write_session(tmp_path, seal=False)
    whole = (tmp_path / "records").read_bytes()
    last_frame = len(whole) - len(msgspec.msgpack.encode(SOME_RECORDS[-1])) - 8 - 16

    for end in range(last_frame, len(whole)):
        (tmp_path / "records").write_bytes(whole[:end])
        assert list(read_records(tmp_path)) == list(SOME_RECORDS[:-1])

        writer = SessionWriter(tmp_path)
        written = [writer.append(record) for record in SOME_RECORDS]
        writer.close()

        assert written == [False] * 4 + [True]
        assert (tmp_path / "records").read_bytes() == whole


def test_a_sealed_session_has_no_torn_end(tmp_path: Path) -> None:
    write_session(tmp_path, seal=True)
    path = tmp_path / "records"
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(ReplayError, match=r"torn at byte .* though it was closed in order"):
        list(read_records(tmp_path))


def test_a_sealed_session_that_lacks_its_last_record_does_not_agree_with_its_seal(
    tmp_path: Path,
) -> None:
    write_session(tmp_path, seal=True)
    path = tmp_path / "records"
    frame = len(msgspec.msgpack.encode(SOME_RECORDS[-1])) + 8 + 16
    path.write_bytes(path.read_bytes()[:-frame])

    with pytest.raises(ReplayError, match="does not agree with its seal"):
        list(read_records(tmp_path))


def test_a_session_with_the_seal_of_another_is_refused(tmp_path: Path) -> None:
    write_session(tmp_path / "one", seal=True)
    (tmp_path / "other").mkdir()
    other = SessionWriter(tmp_path / "other")
    other.append(an_entry(1))
    other.seal()

    shutil.copy(tmp_path / "other" / "seal.json", tmp_path / "one" / "seal.json")

    with pytest.raises(ReplayError, match="does not agree with its seal"):
        list(read_records(tmp_path / "one"))


def test_a_seal_that_is_no_seal_is_refused(tmp_path: Path) -> None:
    write_session(tmp_path, seal=True)
    (tmp_path / "seal.json").write_text("{}")

    with pytest.raises(ReplayError, match=r"seal\.json cannot be read"):
        list(read_records(tmp_path))


def test_a_record_of_another_kind_is_refused_with_its_number(tmp_path: Path) -> None:
    payload = msgspec.msgpack.encode(["unheard of", 1])
    link = journal_module._next_link(journal_module._FIRST_LINK, payload)
    (tmp_path / "records").write_bytes(journal_module._head(len(payload)) + payload + link)

    with pytest.raises(ReplayError, match="record 1 cannot be read"):
        list(read_records(tmp_path))


@cache
def session_files(*, seal: bool) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as name:
        write_session(Path(name), seal=seal)
        return {path.name: path.read_bytes() for path in Path(name).iterdir()}


def is_found(files: dict[str, bytes]) -> bool:
    """Tell whether reading a session of these files is refused."""
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        try:
            list(read_records(Path(name)))
        except ReplayError:
            return True
    return False


@settings(max_examples=300, deadline=None)
@given(st.data(), st.booleans())
def test_a_bit_that_is_changed_anywhere_is_found(data: st.DataObject, seal: bool) -> None:
    files = session_files(seal=seal)
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))

    assert is_found(files | {name: bytes(content)})


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_bytes_taken_out_of_a_sealed_session_are_missed(data: st.DataObject) -> None:
    files = session_files(seal=True)
    content = files["records"]
    start = data.draw(st.integers(0, len(content) - 1))
    end = data.draw(st.integers(start + 1, len(content)))

    assert is_found(files | {"records": content[:start] + content[end:]})


@settings(max_examples=100, deadline=None)
@given(st.data(), st.binary(min_size=1, max_size=40))
def test_bytes_put_into_a_sealed_session_are_found(data: st.DataObject, added: bytes) -> None:
    files = session_files(seal=True)
    content = files["records"]
    position = data.draw(st.integers(0, len(content)))
    longer = content[:position] + added + content[position:]

    assert is_found(files | {"records": longer})


def test_a_record_that_could_not_be_written_does_not_break_the_chain(tmp_path: Path) -> None:
    writer = SessionWriter(tmp_path)
    writer.append(an_entry(1))
    file = writer._file

    class FullDisk:
        def write(self, content: bytes) -> int:
            raise OSError(28, "No space left on device")

    vars(writer).update(_file=FullDisk())
    with pytest.raises(OSError, match="No space left"):
        writer.append(an_entry(2))
    vars(writer).update(_file=file)
    written = writer.append(an_entry(2))
    writer.close()

    assert written
    assert list(read_records(tmp_path)) == [an_entry(1), an_entry(2)]


# --- copying the bus ------------------------------------------------------------------------------


@pytest.fixture
def bus() -> UnreliableBus:
    return UnreliableBus()


def a_journal(bus: UnreliableBus, folder: Path, **fields: Any) -> Journal:
    given: dict[str, Any] = {"batch_entries": 8, "block_ms": 10}
    return Journal(bus, folder, ["feed"], **(given | fields))


@asynccontextmanager
async def recording(journal: Journal) -> AsyncIterator[None]:
    task = asyncio.create_task(journal.run())
    try:
        yield
        await asyncio.wait_for(journal.catch_up(), WAIT_S)
    finally:
        journal.stop()
        await asyncio.wait_for(task, WAIT_S)


async def publish(bus: UnreliableBus, *messages: AnyMessage) -> None:
    streams = list(dict.fromkeys(message.stream for message in messages))
    publisher = await bus.publisher("edge", streams)
    for message in messages:
        await publisher.publish(message)


async def handle(bus: UnreliableBus, entries: int) -> None:
    """Let the group `feed` handle so many ticks, one at a time, each with one bar."""
    consumer = await bus.consumer("feed", [Tick.stream, TimeEvent.stream], [Bar.stream])
    for number in range(entries):
        batch = await consumer.read(1, 0)
        await consumer.commit(batch, [Output(0, a_bar(number=number))])
    await consumer.close()


def recorded_messages(folder: Path, stream: str) -> list[AnyMessage]:
    return [
        record.envelope.message
        for record in read_records(folder)
        if isinstance(record, RecordedEntry) and record.stream == stream
    ]


def recorded_prices(folder: Path) -> list[int]:
    ticks = recorded_messages(folder, Tick.stream)
    return [int(tick.last_price) for tick in ticks if isinstance(tick, Tick)]


async def test_what_comes_while_entries_gather_is_copied_at_once(
    bus: UnreliableBus, tmp_path: Path
) -> None:
    journal = a_journal(bus, tmp_path, gather_s=0.3)
    async with recording(journal):
        await publish(bus, a_tick())
        await until(lambda: journal.entries == {"tick": 1})
        for _ in range(3):
            await publish(bus, a_tick())

    assert journal.entries == {"tick": 4}
    commits = await bus.handled("journal", "0-0", 10)
    assert [len(commit.entries) for commit in commits] == [1, 3]
    journal.close(seal=False)


async def test_every_stream_is_recorded_and_counted(bus: UnreliableBus, tmp_path: Path) -> None:
    seen: list[Entry] = []
    journal = a_journal(bus, tmp_path, on_entry=seen.append)
    ticks = [a_tick("1", at_ns=1), a_tick("2", at_ns=2)]

    async with recording(journal):
        await publish(bus, *ticks, a_time())
        await publish(bus, a_heartbeat())
    records = journal.close(seal=True)

    assert recorded_messages(tmp_path, Tick.stream) == ticks
    assert recorded_messages(tmp_path, Heartbeat.stream) == [a_heartbeat()]
    assert journal.entries == {"tick": 2, "time": 1, "heartbeat": 1}
    assert [entry.envelope.message for entry in seen if entry.stream == "tick"] == ticks
    assert records == 4
    assert journal.lost == 0


async def test_it_is_recorded_which_entries_an_actor_handled_in_which_order(
    bus: UnreliableBus, tmp_path: Path
) -> None:
    journal = a_journal(bus, tmp_path)

    async with recording(journal):
        await publish(bus, a_tick("1"), a_tick("2"), a_time())
        await handle(bus, 2)
    journal.close(seal=True)

    handled = [record for record in read_records(tmp_path) if isinstance(record, RecordedHandling)]
    ticks = [entry.id for entry in await bus.entries(Tick.stream)]
    assert [record.entries for record in handled] == [(("tick", id_),) for id_ in ticks]
    assert {record.group for record in handled} == {"feed"}


async def test_what_was_not_handled_is_counted(bus: UnreliableBus, tmp_path: Path) -> None:
    journal = a_journal(bus, tmp_path)

    async with recording(journal):
        await publish(bus, a_tick("1"), a_tick("2"), a_time())
        await handle(bus, 1)
    journal.close(seal=True)

    assert journal.unhandled({"feed": ("tick", "time")}) == 2
    assert journal.unhandled({"feed": ("tick",), "nobody": ("tick",)}) == 1 + 2


async def test_a_restart_goes_on_where_the_recording_ended(
    bus: UnreliableBus, tmp_path: Path
) -> None:
    first = a_journal(bus, tmp_path)
    async with recording(first):
        await publish(bus, a_tick("1", at_ns=1))
        await handle(bus, 1)
    first.close(seal=False)
    seen: list[Entry] = []
    second = a_journal(bus, tmp_path, on_entry=seen.append)

    async with recording(second):
        await publish(bus, a_tick("2", at_ns=2))
        await handle(bus, 1)
    second.close(seal=True)

    assert recorded_prices(tmp_path) == [1, 2]
    assert second.unhandled({"feed": ("tick",)}) == 0
    assert [entry.stream for entry in seen] == ["tick", "bar"]


@pytest.mark.parametrize("fault", ["refused", "unanswered"])
async def test_what_was_written_but_not_acknowledged_is_recorded_once(
    bus: UnreliableBus, tmp_path: Path, fault: Any
) -> None:
    bus.commit_faults.append(fault)
    seen: list[Entry] = []
    journal = a_journal(bus, tmp_path, on_entry=seen.append)

    async with recording(journal):
        await publish(bus, a_tick("1", at_ns=1), a_tick("2", at_ns=2))
    journal.close(seal=True)

    assert len(recorded_messages(tmp_path, Tick.stream)) == 2
    assert len(seen) == 2


async def test_a_crash_in_the_middle_of_a_record_loses_nothing(
    bus: UnreliableBus, tmp_path: Path
) -> None:
    await publish(bus, a_tick("1", at_ns=1), a_tick("2", at_ns=2), a_tick("3", at_ns=3))
    bus.commit_faults.append("refused")
    first = a_journal(bus, tmp_path)
    task = asyncio.create_task(first.run())
    await until(lambda: not bus.commit_faults)  # written, not acknowledged; and then it died
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert recorded_prices(tmp_path) == [1, 2, 3]  # on the disk before it was acknowledged
    first.close(seal=False)
    path = tmp_path / "records"
    path.write_bytes(path.read_bytes()[:-5])
    second = a_journal(bus, tmp_path)

    async with recording(second):
        pass
    second.close(seal=True)

    assert recorded_prices(tmp_path) == [1, 2, 3]


async def test_an_outage_is_outlived(
    bus: UnreliableBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_POLL_S", 0.01)
    journal = a_journal(bus, tmp_path)

    async with recording(journal):
        await publish(bus, a_tick("1", at_ns=1))
        await journal.catch_up()
        bus.is_lost = True
        await asyncio.sleep(0.03)
        bus.is_lost = False
        await publish(bus, a_tick("2", at_ns=2))
    journal.close(seal=True)

    assert len(recorded_messages(tmp_path, Tick.stream)) == 2


async def test_gaps_in_the_numbers_of_what_is_recorded_are_counted(
    bus: UnreliableBus, tmp_path: Path
) -> None:
    journal = a_journal(bus, tmp_path)

    async with recording(journal):
        await publish(bus, a_tick("1", at_ns=1))
        await journal.catch_up()
        publisher = await bus.publisher("edge", [Tick.stream])
        publisher._ledger._sequences[Tick.stream] = 4  # numbers 2 to 4 never came
        await publisher.publish(a_tick("5", at_ns=5))
    journal.close(seal=True)

    assert journal.lost == 3


async def test_a_recording_that_cannot_catch_up_is_not_waited_for_for_ever(
    bus: UnreliableBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_CATCH_UP_S", 0.02)
    journal = a_journal(bus, tmp_path)  # and nobody runs it

    await asyncio.wait_for(journal.catch_up(), WAIT_S)

    journal.close(seal=False)


def test_a_sealed_session_cannot_be_recorded_into(bus: UnreliableBus, tmp_path: Path) -> None:
    write_session(tmp_path, seal=True)

    with pytest.raises(ReplayError, match="is sealed"):
        a_journal(bus, tmp_path)


async def until(is_done: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_done():
            await asyncio.sleep(0.002)
