"""A group's reader over a message server: read in order, commit together, recover.

A consumer holds two connections: one whose reads may block, one that writes. Ids, gaps and order
follow delivery.py; what the bus does besides is in redis_bus.py.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Self

from daemon.bus import DeadLetter, Entry, Output, id_key
from daemon.delivery import (
    SHARED_STREAMS,
    Fold,
    HoldBack,
    InputLedger,
    OutputLedger,
    market_time_ns,
    within_memory,
)
from daemon.errors import BusError
from daemon.redis_link import REPLY_TIMEOUT_S, Command, RedisLink, accepted
from daemon.redis_wire import (
    FIELD,
    Keys,
    Undecodable,
    encode,
    entries_of,
    fold_of,
    groups_of,
    mark_of,
    mark_text,
    pairs,
)
from daemon.redis_writer import FencedWriter

_DEAD_LETTERS_KEPT = "10000"
_FOLD_CHUNK = 32  # commits folded back per round trip: some thousand entries
_HISTORY_TIMEOUT_S = 30.0


class RedisConsumer:
    """A group's reader and committer. Attributes count what went wrong since it opened.

    `history_missing`: acknowledged entries that were trimmed before `history` could yield them.
    `undecodable`: entries set aside because they hold no message of ours.
    """

    def __init__(
        self,
        reader: RedisLink,
        writer: FencedWriter,
        keys: Keys,
        group: str,
        streams: Sequence[str],
        name: str,
        block_ms_cap: int,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._keys = keys
        self._group = group
        self._streams = tuple(streams)
        self._name = name
        self._block_ms_cap = block_ms_cap
        self._key_of = {stream: keys.stream(stream) for stream in streams}
        self._stream_of = {key.encode(): stream for stream, key in self._key_of.items()}
        self._held = HoldBack(streams)
        self._cursors = dict.fromkeys(streams, "0")  # streams whose own pending entries remain
        self._inputs = InputLedger(group, streams, {})
        self._outputs: OutputLedger
        self._commits = 0
        self._market_ns = 0
        self.history_missing = 0
        self.undecodable = 0

    @classmethod
    async def open(
        cls,
        reader: RedisLink,
        writer: FencedWriter,
        keys: Keys,
        group: str,
        streams: Sequence[str],
        outputs: Sequence[str],
        name: str,
        *,
        clock_ns: Callable[[], int],
        block_ms_cap: int,
    ) -> Self:
        """Create the groups where they are missing and take up where the group stands."""
        if not streams:
            raise ValueError(f"consumer {group!r} must read at least one stream")
        consumer = cls(reader, writer, keys, group, streams, name, block_ms_cap)
        await consumer._recover()
        consumer._outputs = OutputLedger(group, outputs, clock_ns)
        await writer.recover(
            consumer._outputs, [stream for stream in outputs if stream not in SHARED_STREAMS]
        )
        return consumer

    async def _recover(self) -> None:
        # At 0, not at $: what was published before the group existed, or while its server had lost
        # it, must be read too; entries acknowledged before are known by their mark.
        creations: list[Command] = [
            ("XGROUP", "CREATE", self._keys.stream(stream), self._group, "0", "MKSTREAM")
            for stream in self._streams
        ]
        replies = await self._reader.exchange(
            [
                *creations,
                ("HGETALL", self._keys.mark(self._group)),
                ("XREVRANGE", self._keys.fold(self._group), "+", "-", "COUNT", 1),
                ("GET", self._writer.fence),
            ]
        )
        for reply in replies[: len(creations)]:
            if not str(reply).startswith("BUSYGROUP"):
                accepted(reply)
        flat_marks, newest, token = map(accepted, replies[len(creations) :])
        # A successor that opened before this connection had its name could not cut it off.
        self._writer.check(token)
        marks = {stream.decode(): mark_of(value) for stream, value in pairs(flat_marks)}
        self._inputs = InputLedger(self._group, self._streams, marks)
        for raw_id, fields in newest:
            self._commits = id_key(raw_id.decode())[0]
            self._market_ns = fold_of(fields).market_ns

    @property
    def lost(self) -> int:
        """Gaps seen in the sequence numbers of the inputs since this consumer opened."""
        return self._inputs.lost

    async def history(self, memory_ns: int | None) -> AsyncIterator[Entry]:
        """Yield acknowledged entries in the order they were handled, dead letters among them.

        Goes back to `memory_ns` of market time before the last one; None: all that is retained.
        """
        from_ns = None if memory_ns is None else self._market_ns - memory_ns
        start = "-" if from_ns is None else await self._fold_start(from_ns)
        skipping = from_ns is not None
        while start:
            commits = await self._reader.call(
                "XRANGE", self._keys.fold(self._group), start, f"{self._commits}-0",
                "COUNT", _FOLD_CHUNK,
            )  # fmt: skip
            inputs = [place for _, fields in commits for place in fold_of(fields).inputs]
            entries = await self._fetch_places(inputs)
            for stream, entry_id in inputs:
                entry = entries.get((stream, entry_id))
                if entry is None:
                    self.history_missing += 1
                    continue
                # The first commit may have begun before the memory does.
                skipping = skipping and not within_memory(entry, from_ns or 0)
                if not skipping:
                    yield entry
            start = f"({commits[-1][0].decode()}" if len(commits) == _FOLD_CHUNK else ""

    async def _fold_start(self, from_ns: int) -> str:
        """Return the id of the first of the last commits that lie wholly within the memory."""
        first, before = "", "+"
        while True:
            commits = await self._reader.call(
                "XREVRANGE", self._keys.fold(self._group), before, "-", "COUNT", 8 * _FOLD_CHUNK
            )
            for raw_id, fields in commits:
                if fold_of(fields).market_ns < from_ns:
                    return first
                first = raw_id.decode()
            if len(commits) < 8 * _FOLD_CHUNK:
                return first
            before = f"({first}"

    async def _fetch_places(
        self, places: Sequence[tuple[str, str]]
    ) -> dict[tuple[str, str], Entry]:
        """Fetch entries by one range per stream: a group handles each stream without gaps."""
        ranges: dict[str, tuple[str, str]] = {}
        for stream, entry_id in places:
            low, high = ranges.get(stream, (entry_id, entry_id))
            ranges[stream] = min(low, entry_id, key=id_key), max(high, entry_id, key=id_key)
        replies = await self._reader.exchange(
            [("XRANGE", self._keys.stream(stream), *ranges[stream]) for stream in ranges],
            _HISTORY_TIMEOUT_S,
        )
        return {
            (stream, entry.id): entry
            for stream, reply in zip(ranges, replies, strict=True)
            for entry in entries_of(stream, accepted(reply))
            if isinstance(entry, Entry)
        }

    async def read(self, limit: int, block_ms: int) -> list[Entry]:
        """Return up to `limit` entries in id order across the streams, or [] after `block_ms`.

        `block_ms` is cut to the bus's cap, so that stopping never waits long. Cancelling a read
        closes the consumer; what it had been given is handed out again after the next opening.
        """
        if limit < 1:
            raise ValueError(f"limit must be at least 1, was {limit}")
        while True:
            all_new = not self._cursors or self._cursors.keys().isdisjoint(self._held.hungry)
            waits = all_new and not self._held
            await self._fetch(limit, min(block_ms, self._block_ms_cap) if waits else 0)
            taken = self._held.take(limit)
            for entry in taken:
                self._inputs.see(entry)
            if taken or (all_new and not self._held):
                return taken

    async def _fetch(self, limit: int, wait_ms: int) -> None:
        """Fetch entries of the streams of which nothing is at hand.

        Of each stream first what this consumer was given before and has not acknowledged, then what
        is new.
        """
        streams = self._held.begin_fetch()
        if not streams:
            return
        cursors = {stream: self._cursors.get(stream, ">") for stream in streams}
        commands = [self._read_command(cursors, limit, wait_ms)]
        if wait_ms > 0 and len(streams) > 1:
            # A read that had to wait returns with the first stream that got something, though the
            # same transaction may have put older entries into another: look at all once more.
            commands.append(self._read_command(cursors, limit, 0))
        pending = [stream for stream, cursor in cursors.items() if cursor != ">"]
        replies = await self._reader.exchange(commands, wait_ms / 1000 + REPLY_TIMEOUT_S)
        for reply in replies:
            found: dict[str, list[Any]] = {stream: [] for stream in pending}
            found |= {self._stream_of[key]: items for key, items in accepted(reply) or []}
            # Most streams are silent most of the time.
            self._held.found_nothing(cursors.keys() - found.keys())
            for stream, items in found.items():
                full = len(items) >= limit
                if cursors[stream] != ">":
                    self._note_pending(stream, items, full)
                    await self._keep(stream, items, True)  # what is new was not looked at yet
                else:
                    await self._keep(stream, await self._without_repeats(stream, items), full)

    def _note_pending(self, stream: str, raw: list[Any], full: bool) -> None:
        if full:
            self._cursors[stream] = raw[-1][0].decode()
        else:
            del self._cursors[stream]

    async def _without_repeats(self, stream: str, raw: list[Any]) -> list[Any]:
        """Acknowledge what a group created anew is given a second time; return the rest."""
        # Ids rise within a stream: where the first is new, all are.
        if not raw or not self._is_repeat(stream, raw[0]):
            return raw
        repeats = [item[0] for item in raw if self._is_repeat(stream, item)]
        await self._writer.transact([("XACK", self._keys.stream(stream), self._group, *repeats)])
        return raw[len(repeats) :]

    def _is_repeat(self, stream: str, item: list[Any]) -> bool:
        return self._inputs.is_repeat(stream, id_key(item[0].decode()))

    def _read_command(self, cursors: Mapping[str, str], limit: int, wait_ms: int) -> Command:
        block: tuple[str | int, ...] = ("BLOCK", wait_ms) if wait_ms > 0 else ()
        keys = [self._key_of[stream] for stream in cursors]
        return (
            "XREADGROUP", "GROUP", self._group, self._name, "COUNT", limit, *block,
            "STREAMS", *keys, *cursors.values(),
        )  # fmt: skip

    async def _keep(self, stream: str, raw: Sequence[Any], full: bool) -> None:
        """Hold the decoded entries; set aside those that hold no message."""
        good: list[Entry] = []
        bad: list[Undecodable] = []
        for item in entries_of(stream, raw):
            if isinstance(item, Entry):
                good.append(item)
            else:
                bad.append(item)
        self._held.add(stream, good, full)
        if bad:
            await self._set_aside(bad)

    async def _set_aside(self, items: Sequence[Undecodable]) -> None:
        commands = [
            self._dead_command(item.stream, item.id, item.error, item.blob)
            for item in items
            if item.blob is not None
        ]
        self.undecodable += len(commands)
        commands.append(
            ("XACK", self._keys.stream(items[0].stream), self._group, *(item.id for item in items))
        )
        await self._writer.transact(commands)

    def _dead_command(self, stream: str, entry_id: str, error: str, blob: bytes) -> Command:
        return (
            "XADD", self._keys.dead, "MAXLEN", "~", _DEAD_LETTERS_KEPT, "*",
            "group", self._group, "stream", stream, "id", entry_id, "error", error, FIELD, blob,
        )  # fmt: skip

    async def commit(
        self, inputs: Sequence[Entry], outputs: Sequence[Output], dead: Sequence[DeadLetter] = ()
    ) -> list[str]:
        """Publish the outputs, note the order of the inputs, acknowledge them: all or nothing.

        Returns the ids of the outputs. Raises BusError when the outcome is unknown, or when the
        group was opened anew since (nothing is done then).
        """
        if not inputs and not outputs:
            return []
        planned = self._outputs.plan_children(inputs, outputs)
        moved = self._inputs.marks_after(inputs)
        market_ns = market_time_ns(inputs, self._market_ns)
        commands = self._writer.publications(planned)
        fold = Fold(market_ns, tuple((entry.stream, entry.id) for entry in inputs))
        commands.append(
            ("XADD", self._keys.fold(self._group), f"{self._commits + 1}-0", FIELD, encode(fold))
        )
        marks = [part for item in moved.items() for part in (item[0], mark_text(item[1]))]
        commands.append(("HSET", self._keys.mark(self._group), *marks))
        for position, error in dead:
            stream, entry_id, envelope = inputs[position]
            commands.append(self._dead_command(stream, entry_id, error, encode(envelope)))
        for stream in moved:
            ids = [entry.id for entry in inputs if entry.stream == stream]
            commands.append(("XACK", self._keys.stream(stream), self._group, *ids))
        results = await self._writer.transact(commands)
        self._outputs.accept()
        self._inputs.accept(moved)
        self._commits += 1
        self._market_ns = market_ns
        return [raw_id.decode() for raw_id in results[: len(planned)]]

    async def lag(self) -> int:
        """Return how many entries wait in the streams, delivered or not."""
        keys = [self._keys.stream(stream) for stream in self._streams]
        replies = await self._reader.exchange([("XINFO", "GROUPS", key) for key in keys])
        waiting = 0
        for key, reply in zip(keys, replies, strict=True):
            ours = [group for group in groups_of(accepted(reply)) if group.name == self._group]
            if not ours:
                raise BusError(f"the message server lost group {self._group!r} of {key}: reopen it")
            waiting += ours[0].pending
            lag = ours[0].lag
            waiting += await self._count_after(key, ours[0].last_id) if lag is None else lag
        return waiting

    async def _count_after(self, key: str, last_id: str) -> int:
        """Count the entries above an id, for a server that has lost count itself."""
        count = 0
        while items := await self._reader.call("XRANGE", key, f"({last_id}", "+", "COUNT", 1000):
            count += len(items)
            last_id = items[-1][0].decode()
        return count

    async def close(self) -> None:
        """Close both connections; what was read and not committed is handed out again."""
        await self._reader.close()
        await self._writer.close()
