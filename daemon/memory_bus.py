"""MemoryBus: the bus inside one process, for backtest, replay and tests.

It keeps the promises of RedisBus (groups, unacknowledged entries, ids, sequence numbers, commit as
one step), so that what works on one works on the other; it keeps nothing on disk. It starts no
tasks and draws no numbers: the same calls in the same order give the same ids.
"""

import asyncio
import contextlib
import time
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Callable, Collection, Sequence

from actors.messages import AnyMessage
from daemon.bus import DeadLetter, Entry, Envelope, Handled, Output, id_key
from daemon.delivery import (
    NO_ENTRY,
    SHARED_STREAMS,
    DeadEntry,
    Fold,
    HoldBack,
    IdKey,
    InputLedger,
    Mark,
    OutputLedger,
    Planned,
    id_text,
    key_after,
    market_time_ns,
    within_memory,
)
from daemon.errors import BusError


class _Reading:
    """Where one group stands in one stream."""

    def __init__(self) -> None:
        self.delivered = NO_ENTRY
        self.pending: dict[str, dict[IdKey, Entry]] = {}  # reader name -> given, not acknowledged

    def first_unread(self, stream: "_Stream") -> int:
        """Return the index of the first entry that this group has not acknowledged."""
        waiting = [key for given in self.pending.values() for key in given]
        if waiting:
            return bisect_left(stream.keys, min(waiting))
        return bisect_right(stream.keys, self.delivered)


class _Stream:
    """Entries in id order, and who reads them."""

    def __init__(self) -> None:
        self.keys: list[IdKey] = []
        self.entries: list[Entry] = []
        self.last = NO_ENTRY
        self.readings: dict[str, _Reading] = {}
        self.latest: dict[str, Envelope] = {}
        self.listeners: set[asyncio.Event] = set()

    def find(self, key: IdKey) -> Entry | None:
        """Return the entry with this id; None when it was trimmed."""
        index = bisect_left(self.keys, key)
        found = index < len(self.keys) and self.keys[index] == key
        return self.entries[index] if found else None


class _Group:
    """What a group has committed, and who may commit for it."""

    def __init__(self) -> None:
        self.owner: MemoryConsumer | None = None
        self.marks: dict[str, Mark] = {}
        self.commits: list[tuple[int, Fold]] = []  # (commit number, record), oldest first
        self.count = 0

    @property
    def market_ns(self) -> int:
        return self.commits[-1][1].market_ns if self.commits else 0


class MemoryBus:
    """A bus whose streams are lists; use from one event loop."""

    def __init__(self, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._clock_ns = clock_ns
        self._streams: dict[str, _Stream] = {}
        self._groups: dict[str, _Group] = {}
        self._publishers: dict[str, MemoryPublisher] = {}
        self._dead: list[DeadEntry] = []

    async def consumer(
        self, group: str, streams: Sequence[str], outputs: Sequence[str] = (), name: str = "0"
    ) -> "MemoryConsumer":
        """Open a reader; whoever read for this group before can neither read nor commit any more.

        A group begins at the first retained entry. `name` must stay the same over restarts: what
        was read and not acknowledged is kept under it.
        """
        if not streams:
            raise ValueError(f"consumer {group!r} must read at least one stream")
        state = self._groups.setdefault(group, _Group())
        previous = state.owner
        ledger = self._ledger(group, outputs)
        state.owner = MemoryConsumer(self, state, group, streams, ledger, name)
        if previous is not None:
            previous.wake()
        return state.owner

    async def publisher(self, source: str, streams: Sequence[str]) -> "MemoryPublisher":
        """Open an edge writer; of streams that are not shared it becomes the only one."""
        publisher = MemoryPublisher(self, source, self._ledger(source, streams))
        if not SHARED_STREAMS.issuperset(streams):
            self._publishers[source] = publisher
            publisher.alone = True
        return publisher

    async def latest(self, stream: str) -> dict[str, Envelope]:
        """Return the last message per instrument, actor or kind of a stream that keeps them."""
        return dict(self.stream(stream).latest)

    async def entries(self, stream: str, start: str = "-", limit: int | None = None) -> list[Entry]:
        """Return retained entries of a stream from `start` (inclusive id) on."""
        kept = self.stream(stream)
        first = 0 if start == "-" else bisect_left(kept.keys, id_key(start))
        return kept.entries[first : None if limit is None else first + limit]

    async def handled(self, group: str, after: str = "0-0", limit: int = 1000) -> list[Handled]:
        """Return what a group committed after the commit `after`, oldest first."""
        state = self._groups.get(group)
        commits = state.commits if state else []
        first = bisect_right(commits, id_key(after)[0], key=_number)
        return [
            Handled(f"{number}-0", fold.inputs) for number, fold in commits[first : first + limit]
        ]

    async def dead_letters(self, limit: int = 100) -> list[DeadEntry]:
        """Return the last inputs that were set aside, oldest first."""
        return self._dead[-limit:] if limit else []

    async def is_quiet(self, streams: Collection[str] | None = None) -> bool:
        """Tell whether every group has handled everything in its streams, or in these of them.

        A stream that nobody reads does not count.
        """
        return all(
            reading.delivered >= stream.last and not any(reading.pending.values())
            for name, stream in self._streams.items()
            if streams is None or name in streams
            for reading in stream.readings.values()
        )

    async def trim(self, retain: int) -> int:
        """Drop entries that every group has acknowledged, keeping the last `retain` of each stream.

        Returns how many were dropped. What a group has not acknowledged is never dropped, nor is
        the newest entry of a stream, from which its writer goes on counting.
        """
        if retain < 0:
            raise ValueError(f"retain must not be negative, was {retain}")
        dropped = 0
        for stream in self._streams.values():
            excess = max(len(stream.keys) - max(retain, 1), 0)
            unread = [reading.first_unread(stream) for reading in stream.readings.values()]
            count = min([excess, *unread])
            del stream.keys[:count], stream.entries[:count]
            dropped += count
        if dropped:
            for group in self._groups.values():
                group.commits = [
                    commit
                    for commit in group.commits
                    if commit is group.commits[-1] or self._retains(commit[1])
                ]
        return dropped

    async def close(self) -> None:
        """Do nothing: there is no server to leave."""

    def stream(self, name: str) -> _Stream:
        """Return a stream; an empty one where nothing was published yet."""
        return self._streams.setdefault(name, _Stream())

    def check_owner(self, source: str, publisher: "MemoryPublisher") -> None:
        """Raise BusError unless this publisher is the last to have opened."""
        if publisher.alone and self._publishers.get(source) is not publisher:
            raise BusError(f"another publisher has opened {source!r} since: this one may not write")

    def append(self, planned: Sequence[Planned]) -> list[str]:
        """Add the messages to their streams, all or none, and wake who waits for them."""
        for name, wanted, _ in planned:
            if wanted is not None and wanted <= self.stream(name).last:
                raise BusError(
                    f"the id {id_text(wanted)} is not above the last one of {name!r}: another "
                    "source writes to it"
                )
        ids = []
        for name, wanted, envelope in planned:
            stream = self.stream(name)
            key = wanted or (max(self._clock_ns() // 1_000_000, 1), 0)
            if key <= stream.last:  # a shared stream: its ids rise whatever the clock does
                key = key_after(stream.last)
            stream.last = key
            stream.keys.append(key)
            ids.append(id_text(key))
            stream.entries.append(Entry(name, ids[-1], envelope))
            field = envelope.message.latest_by
            if field is not None:
                stream.latest[getattr(envelope.message, field)] = envelope
            for listener in stream.listeners:
                listener.set()
        return ids

    def set_aside(self, letters: Sequence[DeadEntry]) -> None:
        """Keep dead letters."""
        self._dead.extend(letters)

    def _ledger(self, source: str, streams: Sequence[str]) -> OutputLedger:
        ledger = OutputLedger(source, streams, self._clock_ns)
        for name in streams:
            stream = self.stream(name)
            if name not in SHARED_STREAMS and stream.entries:
                ledger.recover(name, stream.last, stream.entries[-1].envelope.sequence)
        return ledger

    def _retains(self, fold: Fold) -> bool:
        return any(self.stream(name).find(id_key(entry_id)) for name, entry_id in fold.inputs)


class MemoryPublisher:
    """An edge writer."""

    def __init__(self, bus: MemoryBus, source: str, ledger: OutputLedger) -> None:
        self._bus = bus
        self._source = source
        self._ledger = ledger
        self._closed = False
        self.alone = False  # whether a later publisher of the same source shuts this one out

    @property
    def sequence(self) -> int:
        """How many messages this source has published to its streams since the session began.

        Of shared streams it counts only what this publisher wrote.
        """
        return self._ledger.published

    async def publish(self, *messages: AnyMessage) -> list[str]:
        """Publish in order, together; returns their ids."""
        if self._closed:
            raise BusError(f"publisher {self._source!r} is closed: open a new one")
        self._bus.check_owner(self._source, self)
        ids = self._bus.append(self._ledger.plan_edge(messages))
        self._ledger.accept()
        await asyncio.sleep(0)  # let readers run: a loop that only publishes would starve them
        return ids

    async def close(self) -> None:
        """Refuse further messages."""
        self._closed = True


class MemoryConsumer:
    """A group's reader and committer.

    `history_missing` counts acknowledged entries that were trimmed before `history` could yield
    them.
    """

    def __init__(
        self,
        bus: MemoryBus,
        state: _Group,
        group: str,
        streams: Sequence[str],
        outputs: OutputLedger,
        name: str,
    ) -> None:
        self._bus = bus
        self._state = state
        self._group = group
        self._name = name
        self._streams = {stream: bus.stream(stream) for stream in streams}
        self._outputs = outputs
        self._inputs = InputLedger(group, tuple(streams), state.marks)
        self._held = HoldBack(streams)
        self._arrival = asyncio.Event()
        self._closed = False
        self.history_missing = 0
        # What this reader was given before and has not acknowledged comes again, before what is
        # new in that stream; other streams may hold new entries that are older.
        for stream_name, stream in self._streams.items():
            reading = stream.readings.setdefault(group, _Reading())
            given = reading.pending.setdefault(name, {})
            self._held.add(stream_name, [given[key] for key in sorted(given)], True)
            stream.listeners.add(self._arrival)

    @property
    def lost(self) -> int:
        """Gaps seen in the sequence numbers of the inputs since this consumer opened."""
        return self._inputs.lost

    async def history(self, memory_ns: int | None) -> AsyncIterator[Entry]:
        """Yield acknowledged entries in the order they were handled, dead letters among them.

        Goes back to `memory_ns` of market time before the last one; None: all that is retained.
        """
        self._check()
        folds = [fold for _, fold in self._state.commits]
        from_ns = 0
        if memory_ns is not None:
            from_ns = self._state.market_ns - memory_ns
            outside = [index for index, fold in enumerate(folds) if fold.market_ns < from_ns]
            folds = folds[outside[-1] + 1 :] if outside else folds
        skipping = memory_ns is not None
        for stream, entry_id in (place for fold in folds for place in fold.inputs):
            entry = self._bus.stream(stream).find(id_key(entry_id))
            if entry is None:
                self.history_missing += 1
                continue
            # The first commit may have begun before the memory does.
            skipping = skipping and not within_memory(entry, from_ns)
            if not skipping:
                yield entry

    async def read(self, limit: int, block_ms: int) -> list[Entry]:
        """Return up to `limit` entries in id order across the streams, or [] after `block_ms`."""
        if limit < 1:
            raise ValueError(f"limit must be at least 1, was {limit}")
        await asyncio.sleep(0)  # let others run: a reader that never waits would starve them
        taken = self._take(limit)
        if taken or block_ms <= 0:
            return taken
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(block_ms / 1000):
                await self._arrival.wait()
        return self._take(limit)

    def _take(self, limit: int) -> list[Entry]:
        self._check()
        self._arrival.clear()
        taken: list[Entry] = []
        while not taken:
            fetched = sum([self._fetch(stream, limit) for stream in self._held.begin_fetch()])
            taken = self._held.take(limit)
            if not fetched and not self._held:
                break
        for entry in taken:
            self._inputs.see(entry)
        return taken

    def _fetch(self, name: str, limit: int) -> int:
        """Move up to `limit` new entries of a stream into this reader's hands."""
        stream = self._streams[name]
        reading = stream.readings[self._group]
        first = bisect_right(stream.keys, reading.delivered)
        fresh = stream.entries[first : first + limit]
        if fresh:
            keys = stream.keys[first : first + limit]
            reading.pending[self._name].update(zip(keys, fresh, strict=True))
            reading.delivered = keys[-1]
        self._held.add(name, fresh, len(fresh) == limit)
        return len(fresh)

    async def commit(
        self, inputs: Sequence[Entry], outputs: Sequence[Output], dead: Sequence[DeadLetter] = ()
    ) -> list[str]:
        """Publish the outputs, note the order of the inputs, acknowledge them: all or nothing.

        Returns the ids of the outputs. Raises BusError, and does nothing, when the group was
        opened anew since or one of the inputs was committed before.
        """
        self._check()
        if not inputs and not outputs:
            return []
        planned = self._outputs.plan_children(inputs, outputs)
        moved = self._inputs.marks_after(inputs)
        letters = [
            DeadEntry(self._group, inputs[position].stream, inputs[position].id, error)
            for position, error in dead
        ]
        ids = self._bus.append(planned)
        self._outputs.accept()
        self._inputs.accept(moved)
        self._bus.set_aside(letters)
        for stream, entry_id, _ in inputs:
            reading = self._streams[stream].readings[self._group]
            reading.pending[self._name].pop(id_key(entry_id), None)
        state = self._state
        fold = Fold(
            market_time_ns(inputs, state.market_ns),
            tuple((entry.stream, entry.id) for entry in inputs),
        )
        state.marks.update(moved)
        state.count += 1
        state.commits.append((state.count, fold))
        return ids

    async def lag(self) -> int:
        """Return how many entries wait in the streams, delivered or not."""
        self._check()
        waiting = 0
        for stream in self._streams.values():
            reading = stream.readings[self._group]
            waiting += sum(map(len, reading.pending.values()))
            waiting += len(stream.keys) - bisect_right(stream.keys, reading.delivered)
        return waiting

    async def close(self) -> None:
        """Refuse further use; what was read and not committed is handed out again."""
        self._closed = True
        for stream in self._streams.values():
            stream.listeners.discard(self._arrival)

    def wake(self) -> None:
        """End a read that waits, since another consumer has taken over."""
        self._arrival.set()

    def _check(self) -> None:
        if self._closed:
            raise BusError(f"consumer {self._group!r} is closed: open a new one")
        if self._state.owner is not self:
            raise BusError(
                f"another process has opened {self._group!r} since: this one may not go on"
            )


def _number(commit: tuple[int, Fold]) -> int:
    return commit[0]
