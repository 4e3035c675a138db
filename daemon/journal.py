"""The recording of a session: every entry, and the order in which each actor handled them.

A session is a folder: `session.json` (the plan: settings, instruments, model), `records` (frames)
and, once closed in order, `seal.json`. A frame is a 4-byte length with its CRC-32, a msgpack
payload and a 16-byte link of the hash chain: the first 16 bytes of SHA-256 over the previous link
and the payload, so a changed, missing or added frame breaks every link behind it. A torn last
frame, as a crash leaves it, is cut off; the CRC tells it from one whose length was changed.
"""

import asyncio
import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from actors.messages import STREAMS
from daemon.bus import Bus, Entry, Envelope, Handled, id_key
from daemon.errors import BusError, ReplayError
from daemon.logs import get_logger

FORMAT = 1
_LINK_BYTES = 16
_LENGTH_BYTES = 4
_HEAD_BYTES = 8
_FIRST_LINK = hashlib.sha256(b"hrm-trading-daemon session 1").digest()[:_LINK_BYTES]
_POLL_S = 0.5
_HANDLED_AT_ONCE = 64  # what the loop is busy with before others have their turn
_CATCH_UP_S = 15.0


class RecordedEntry(msgspec.Struct, frozen=True, array_like=True, tag="entry"):
    """One entry as it lay in its stream."""

    stream: str
    id: str
    envelope: Envelope


class RecordedHandling(msgspec.Struct, frozen=True, array_like=True, tag="handled"):
    """One commit of one actor: what it had handled, in this order."""

    group: str
    id: str
    entries: tuple[tuple[str, str], ...]


Record = RecordedEntry | RecordedHandling

_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


class Seal(msgspec.Struct, frozen=True):
    """What a recording held when it was closed in order."""

    format: int
    records: int
    head: str  # last link of the chain, hexadecimal
    entries: dict[str, int]  # per stream


def read_records(folder: Path) -> Iterator[Record]:
    """Yield the records of a session, checking the chain.

    A torn last frame is left out unless the session is sealed. Raises ReplayError for anything else
    that does not fit: a broken link, a foreign file, a seal that disagrees.
    """
    path = folder / "records"
    if not path.is_file():
        raise ReplayError(f"{folder} is no recorded session: it has no file 'records'")
    seal = read_seal(folder)
    link, count = _FIRST_LINK, 0
    entries: Counter[str] = Counter()
    with path.open("rb") as file:
        for payload, link in _frames(file, path, sealed=seal is not None):  # noqa: B007 - used below
            count += 1
            try:
                record = _decoder.decode(payload)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise ReplayError(f"{path}: record {count} cannot be read: {error}") from error
            if isinstance(record, RecordedEntry):
                entries[record.stream] += 1
            yield record
    found = Seal(format=FORMAT, records=count, head=link.hex(), entries=dict(entries))
    if seal and seal != found:
        raise ReplayError(
            f"{path} does not agree with its seal, {seal}: it holds {found}; one of them was "
            "changed after the session"
        )


def _frames(file: BinaryIO, path: Path, *, sealed: bool) -> Iterator[tuple[bytes, bytes]]:
    """Yield (payload, link) of each whole frame."""
    link = _FIRST_LINK
    position = 0
    while head := file.read(_HEAD_BYTES):
        length = int.from_bytes(head[:_LENGTH_BYTES], "big")
        is_whole = len(head) == _HEAD_BYTES
        if is_whole and head != _head(length):
            raise ReplayError(f"{path}: damaged at byte {position}")
        payload = file.read(length) if is_whole else b""
        stored = file.read(_LINK_BYTES)
        if not is_whole or len(payload) < length or len(stored) < _LINK_BYTES:
            if sealed:
                raise ReplayError(f"{path}: torn at byte {position}, though it was closed in order")
            return
        link = _next_link(link, payload)
        if link != stored:
            raise ReplayError(f"{path}: the hash chain breaks at byte {position}")
        position = file.tell()
        yield payload, link


def _head(length: int) -> bytes:
    length_bytes = length.to_bytes(_LENGTH_BYTES, "big")
    return length_bytes + zlib.crc32(length_bytes).to_bytes(_HEAD_BYTES - _LENGTH_BYTES, "big")


def _next_link(link: bytes, payload: bytes) -> bytes:
    return hashlib.sha256(link + payload).digest()[:_LINK_BYTES]


def read_seal(folder: Path) -> Seal | None:
    """Return the seal of a session, None when it was not closed in order."""
    try:
        return msgspec.json.decode((folder / "seal.json").read_bytes(), type=Seal)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ReplayError(f"{folder / 'seal.json'} cannot be read: {error}") from error


class SessionWriter:
    """Append records to a session's file; continues one that a crash left open.

    Raises ReplayError when the session is already sealed or its file damaged.
    """

    def __init__(self, folder: Path) -> None:
        if read_seal(folder):
            raise ReplayError(f"{folder} is sealed: a closed session takes no more records")
        self._folder = folder
        self._link = _FIRST_LINK
        self.records = 0
        self.last_ids: dict[str, str] = {}  # per stream, and per "handled:GROUP"
        self.entries: dict[str, int] = {}
        self.handled: dict[tuple[str, str], int] = {}  # per group and stream
        path = folder / "records"
        end = 0
        if path.exists():
            for record in read_records(folder):
                self._note(record)
            end = self._whole_bytes(path)
        self._file = path.open("ab")
        self._file.truncate(end)

    def _whole_bytes(self, path: Path) -> int:
        end = 0
        with path.open("rb") as file:
            for payload, link in _frames(file, path, sealed=False):
                end += _HEAD_BYTES + len(payload) + _LINK_BYTES
                self._link = link
        return end

    def append(self, record: Record) -> bool:
        """Write one record unless it is already there; tells whether it was new."""
        key = _key(record)
        if key in self.last_ids and id_key(record.id) <= id_key(self.last_ids[key]):
            return False
        payload = msgspec.msgpack.encode(record)
        link = _next_link(self._link, payload)
        self._file.write(_head(len(payload)) + payload + link)
        self._link = link  # only now: what could not be written comes again, on the same link
        self._note(record)
        return True

    def _note(self, record: Record) -> None:
        self.records += 1
        self.last_ids[_key(record)] = record.id
        if isinstance(record, RecordedEntry):
            self.entries[record.stream] = self.entries.get(record.stream, 0) + 1
            return
        for stream, _ in record.entries:
            place = (record.group, stream)
            self.handled[place] = self.handled.get(place, 0) + 1

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        self._file.flush()

    def seal(self) -> Seal:
        """Close the session for good: make it durable and write its seal."""
        seal = Seal(
            format=FORMAT, records=self.records, head=self._link.hex(), entries=self.entries
        )
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        temporary = self._folder / "seal.json.new"
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(seal)))
        temporary.replace(self._folder / "seal.json")
        return seal

    def close(self) -> None:
        """Close the file and leave the session open."""
        self._file.close()


def _key(record: Record) -> str:
    return record.stream if isinstance(record, RecordedEntry) else f"handled:{record.group}"


class Journal:
    """Copy the bus into a session's file, as a consumer group of its own.

    Nothing that it has not acknowledged is trimmed, so the recording is complete by construction.
    `on_entry` sees every new entry once. gather_s: how long entries gather before they are copied,
    since nobody waits for it and few fuller reads cost less than many.
    """

    name = "journal"

    def __init__(
        self,
        bus: Bus,
        folder: Path,
        groups: Sequence[str],
        *,
        batch_entries: int,
        block_ms: int,
        gather_s: float = 0.0,
        on_entry: Callable[[Entry], None] = lambda _: None,
    ) -> None:
        self._bus = bus
        self._folder = folder
        self._groups = tuple(groups)
        self._batch_entries = batch_entries
        self._block_ms = block_ms
        self._gather_s = gather_s
        self._on_entry = on_entry
        self._stopping = asyncio.Event()
        self._caught_up = asyncio.Event()
        self._writer = SessionWriter(folder)
        self.lost = 0
        """Gaps in the sequence numbers of what was recorded."""

    @property
    def entries(self) -> dict[str, int]:
        """How many entries each stream has brought so far."""
        return self._writer.entries

    def stop(self) -> None:
        """Ask `run` to return soon."""
        self._stopping.set()

    async def run(self) -> None:
        """Record until `stop`; outlive every outage of the bus."""
        while not self._stopping.is_set():
            try:
                await self._record()
            except BusError as error:
                get_logger(part=self.name).warning("bus lost", reason=str(error))
                await asyncio.sleep(_POLL_S)

    async def _record(self) -> None:
        consumer = await self._bus.consumer(self.name, STREAMS)
        lost_before = self.lost
        loop = asyncio.get_running_loop()
        poll_at = 0.0
        try:
            while not self._stopping.is_set():
                batch = await consumer.read(self._batch_entries, self._block_ms)
                for entry in batch:
                    if self._writer.append(RecordedEntry(*entry)):
                        self._on_entry(entry)
                if batch:
                    self._writer.flush()
                    await consumer.commit(batch, ())
                    self.lost = lost_before + consumer.lost
                else:
                    self._caught_up.set()
                if loop.time() >= poll_at:
                    await self.record_handling()
                    poll_at = loop.time() + _POLL_S
                if len(batch) < self._batch_entries:
                    await asyncio.sleep(self._gather_s)
        finally:
            await consumer.close()

    async def record_handling(self) -> None:
        """Copy what the actors have handled since the last time."""
        for group in self._groups:
            after = self._writer.last_ids.get(f"handled:{group}", "0-0")
            while commits := await self._bus.handled(group, after, _HANDLED_AT_ONCE):
                for commit in commits:
                    self._writer.append(_handling(group, commit))
                after = commits[-1].id
        self._writer.flush()

    async def catch_up(self) -> None:
        """Wait until everything published so far is recorded, while `run` goes on."""
        try:
            async with asyncio.timeout(_CATCH_UP_S):
                for _ in range(2):  # the first read that finds nothing may have begun before
                    self._caught_up.clear()
                    await self._caught_up.wait()
        except TimeoutError:
            get_logger(part=self.name).error("recording is incomplete", waited_s=_CATCH_UP_S)
            return
        await self.record_handling()

    def unhandled(self, inputs: Mapping[str, Sequence[str]]) -> int:
        """Count recorded entries of `inputs` (group -> streams) that their group did not handle."""
        return sum(
            self._writer.entries.get(stream, 0) - self._writer.handled.get((group, stream), 0)
            for group, streams in inputs.items()
            for stream in streams
        )

    def close(self, *, seal: bool) -> int:
        """Close the recording, for good if `seal`; returns its records. `run` must have ended."""
        if seal:
            return self._writer.seal().records
        self._writer.close()
        return self._writer.records


def _handling(group: str, commit: Handled) -> RecordedHandling:
    return RecordedHandling(group=group, id=commit.id, entries=commit.entries)
