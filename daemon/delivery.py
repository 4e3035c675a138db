"""The rules of delivery that both buses keep: output ids, sequence numbers, gaps, order.

Nothing here waits or stores: where entries lie is for redis_bus.py and memory_bus.py to say.
"""

from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import msgspec

from actors.messages import MESSAGE_TYPES, AnyMessage
from daemon.bus import CHILDREN_PER_ENTRY, Entry, Envelope, Output, id_key
from daemon.errors import BusError

SHARED_STREAMS = frozenset(kind.stream for kind in MESSAGE_TYPES if kind.shared)
"""Streams with several writers: the store gives the ids, and there are no sequence numbers."""
LARGEST_PART = 2**64 - 1
"""The largest number either half of an entry id can hold."""

IdKey = tuple[int, int]
NO_ENTRY: IdKey = (0, 0)


class DeadEntry(NamedTuple):
    """An input that was set aside, as the dead-letter stream keeps it."""

    group: str
    stream: str
    id: str
    error: str


class Mark(NamedTuple):
    """How far a group has come in one stream."""

    key: IdKey  # the last entry it acknowledged
    sequence: int  # the sequence number that entry carried


class Planned(NamedTuple):
    """An output with the place it will take; `key` is None where the store gives the id."""

    stream: str
    key: IdKey | None
    envelope: Envelope


class Fold(msgspec.Struct, frozen=True, array_like=True):
    """What one commit acknowledged, in the order it was handled."""

    market_ns: int  # market time after this commit
    inputs: tuple[tuple[str, str], ...]  # (stream, entry id)


def id_text(key: IdKey) -> str:
    """Return the entry id that `id_key` reads as this pair."""
    return f"{key[0]}-{key[1]}"


def child_key(cause: IdKey, child: int) -> IdKey:
    """Return the id of output number `child` (from 0) of the input `cause` in one stream."""
    milliseconds, sequence = cause
    sequence = sequence * CHILDREN_PER_ENTRY + child
    if sequence > LARGEST_PART:
        # Ten hops from one edge entry within its millisecond. What follows must still follow from
        # the input alone, so it moves on by a millisecond and begins to count again.
        return milliseconds + 1, child
    return milliseconds, sequence


def key_after(key: IdKey) -> IdKey:
    """Return the smallest id above `key`."""
    return (key[0] + 1, 0) if key[1] >= LARGEST_PART else (key[0], key[1] + 1)


def within_memory(entry: Entry, from_ns: int) -> bool:
    """Tell whether an entry belongs to the market time from `from_ns` on."""
    return entry.stream in SHARED_STREAMS or entry.envelope.message.time_ns >= from_ns


def market_time_ns(inputs: Sequence[Entry], before_ns: int) -> int:
    """Return the market time after `inputs`, `before_ns` being the time before them.

    Shared streams carry the real clock (heartbeats, alerts, the kill switch), which in a replayed
    market is years away from the candles' clock: they count only where there is nothing else.
    """
    for entry in reversed(inputs):
        if entry.stream not in SHARED_STREAMS:
            return entry.envelope.message.time_ns
    if before_ns or not inputs:
        return before_ns
    return inputs[-1].envelope.message.time_ns


class OutputLedger:
    """Give one writer's messages their ids and sequence numbers.

    Planning changes nothing until `accept`: a plan that was refused leaves no gap behind.
    """

    def __init__(self, source: str, streams: Sequence[str], clock_ns: Callable[[], int]) -> None:
        self._source = source
        self._clock_ns = clock_ns
        self._streams = frozenset(streams)
        self._last: dict[str, IdKey] = {}
        self._sequences: dict[str, int] = dict.fromkeys(streams, 0)
        self._planned_last: dict[str, IdKey] = {}
        self._planned_sequences: dict[str, int] = {}

    @property
    def published(self) -> int:
        """How many messages went to the streams; in shared streams only those of this writer."""
        return sum(self._sequences.values())

    def recover(self, stream: str, last: IdKey, sequence: int) -> None:
        """Go on after the newest entry of a stream that this source alone writes."""
        self._last[stream] = last
        self._sequences[stream] = sequence

    def plan_children(self, inputs: Sequence[Entry], outputs: Sequence[Output]) -> list[Planned]:
        """Place what a batch led to; ids follow from the inputs' ids."""
        self._begin()
        now_ns = self._clock_ns()
        counts: dict[tuple[int, str], int] = {}
        planned = []
        for position, message in outputs:
            if not 0 <= position < len(inputs):
                raise ValueError(
                    f"output cause must be an index into the {len(inputs)} inputs, was {position}"
                )
            cause = inputs[position]
            stream = message.stream
            child = counts.get((position, stream), 0)
            if child >= CHILDREN_PER_ENTRY:
                raise ValueError(
                    f"one input may have at most {CHILDREN_PER_ENTRY} outputs in a stream: "
                    f"{cause.stream}/{cause.id} has more in {stream!r}"
                )
            counts[position, stream] = child + 1
            key = None
            if stream not in SHARED_STREAMS:
                key = child_key(id_key(cause.id), child)
                last = self._planned_last.get(stream, NO_ENTRY)
                if key <= last:
                    # Several input streams feed this actor, and their ids do not rise together.
                    key = key_after(last)
            origin = cause.envelope
            planned.append(
                self._place(
                    message,
                    key,
                    now_ns,
                    f"{cause.stream}/{cause.id}",
                    origin.published_ns,
                    origin.origin_published_ns or origin.published_ns,
                )
            )
        return planned

    def plan_edge(self, messages: Sequence[AnyMessage]) -> list[Planned]:
        """Place messages that begin a chain; ids rise across all streams of this writer."""
        self._begin()
        now_ns = self._clock_ns()
        planned = []
        for message in messages:
            key = None
            if message.stream not in SHARED_STREAMS:
                # 0-0 is no id, so a clock at zero begins at one millisecond.
                key = (max(now_ns // 1_000_000, 1), 0)
                last = max(self._planned_last.values(), default=NO_ENTRY)
                if key <= last:
                    key = key_after(last)
            planned.append(self._place(message, key, now_ns, "", 0, now_ns))
        return planned

    def accept(self) -> None:
        """Take the last plan as published."""
        self._last = self._planned_last
        self._sequences = self._planned_sequences

    def _begin(self) -> None:
        self._planned_last = dict(self._last)
        self._planned_sequences = dict(self._sequences)

    def _place(
        self,
        message: AnyMessage,
        key: IdKey | None,
        now_ns: int,
        cause: str,
        cause_published_ns: int,
        origin_published_ns: int,
    ) -> Planned:
        stream = message.stream
        if stream not in self._streams:
            raise ValueError(
                f"{self._source} may publish to {sorted(self._streams)}, not to {stream!r}: "
                "name the stream when opening"
            )
        sequence = self._planned_sequences[stream] + 1
        self._planned_sequences[stream] = sequence
        if key is None:
            sequence = 0
        else:
            self._planned_last[stream] = key
        envelope = Envelope(
            source=self._source,
            sequence=sequence,
            cause=cause,
            published_ns=now_ns,
            cause_published_ns=cause_published_ns,
            origin_published_ns=origin_published_ns,
            message=message,
        )
        return Planned(stream, key, envelope)


class InputLedger:
    """Know how far a group has come in each of its streams, and what it missed there."""

    def __init__(self, group: str, streams: Sequence[str], marks: dict[str, Mark]) -> None:
        self._group = group
        self._streams = frozenset(streams)
        self._marks = dict(marks)
        # The first entry ever seen of a stream may have any number: older ones were trimmed.
        self._sequences = {stream: mark.sequence for stream, mark in marks.items()}
        self.lost = 0

    def is_repeat(self, stream: str, key: IdKey) -> bool:
        """Tell whether the group has acknowledged this entry before."""
        mark = self._marks.get(stream)
        return mark is not None and key <= mark.key

    def see(self, entry: Entry) -> None:
        """Compare the entry's sequence number with the one before it."""
        sequence = entry.envelope.sequence
        if sequence == 0:
            return
        before = self._sequences.get(entry.stream)
        if before is not None and sequence > before + 1:
            self.lost += sequence - before - 1
        self._sequences[entry.stream] = sequence

    def marks_after(self, inputs: Sequence[Entry]) -> dict[str, Mark]:
        """Return the marks that committing `inputs` moves; raises where it would repeat one."""
        moved: dict[str, Mark] = {}
        for stream, entry_id, envelope in inputs:
            if stream not in self._streams:
                raise ValueError(f"{self._group} does not read {stream!r}: it cannot commit it")
            key = id_key(entry_id)
            mark = moved.get(stream) or self._marks.get(stream)
            if mark is not None and key <= mark.key:
                raise BusError(
                    f"{self._group} has handled {stream}/{entry_id} already: it stands at "
                    f"{id_text(mark.key)}; commit each entry once and in order"
                )
            moved[stream] = Mark(key, envelope.sequence)
        return moved

    def accept(self, moved: dict[str, Mark]) -> None:
        """Take the marks as committed."""
        self._marks.update(moved)


class HoldBack:
    """Bring the entries of several streams into id order.

    While a stream may hold older entries than those at hand, the others wait: one whose last fetch
    came back full and has been handed out, or was made before another stream was fetched from.
    """

    def __init__(self, streams: Sequence[str]) -> None:
        self._waiting: dict[str, deque[tuple[IdKey, Entry]]] = {name: deque() for name in streams}
        self._may_hold_more: set[str] = set()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def hungry(self) -> list[str]:
        """Streams of which nothing is at hand."""
        return [stream for stream, waiting in self._waiting.items() if not waiting]

    def begin_fetch(self) -> list[str]:
        """Return the streams to fetch from now, those of which nothing is at hand.

        Of the others more may have come since their last fetch, older than what is fetched now.
        """
        hungry = self.hungry
        self._may_hold_more.update(self._waiting.keys() - hungry)
        return hungry

    def found_nothing(self, streams: Collection[str]) -> None:
        """Take note that fetches from these returned nothing."""
        self._may_hold_more.difference_update(streams)

    def add(self, stream: str, entries: Sequence[Entry], may_hold_more: bool) -> None:
        """Take what one fetch returned; `may_hold_more` when it was as much as was asked for."""
        self._waiting[stream].extend((id_key(entry.id), entry) for entry in entries)
        if may_hold_more:
            self._may_hold_more.add(stream)
        else:
            self._may_hold_more.discard(stream)

    def take(self, limit: int) -> list[Entry]:
        """Hand out up to `limit` entries in id order; equal ids in the order of the streams."""
        taken: list[Entry] = []
        while len(taken) < limit:
            fullest = [waiting for waiting in self._waiting.values() if waiting]
            if not fullest or any(not self._waiting[name] for name in self._may_hold_more):
                break
            if len(fullest) == 1:  # nothing to compare with
                only = fullest[0]
                taken.extend(only.popleft()[1] for _ in range(min(limit - len(taken), len(only))))
                continue
            taken.append(min(fullest, key=_head_key).popleft()[1])
        return taken


def _head_key(waiting: deque[tuple[IdKey, Entry]]) -> IdKey:
    return waiting[0][0]
