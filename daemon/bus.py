"""The bus: what carries messages between actors, and the envelope they travel in.

Two implementations behave alike and share one test suite: RedisBus (redis_bus.py) between
processes, MemoryBus (memory_bus.py) inside one. Delivery is at least once; a commit publishes a
batch's outputs and acknowledges its inputs together, and output ids follow from input ids, so that
a repeated commit is refused by the store itself: the effect is exactly once.
"""

from collections.abc import AsyncIterator, Collection, Sequence
from typing import NamedTuple, Protocol

import msgspec

from actors.messages import AnyMessage

CHILDREN_PER_ENTRY = 64
"""Most outputs one input may have in one stream: child ids are `<ms>-<sequence * 64 + k>`."""


class Envelope(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A message with where it came from. All times are the real clock, nanoseconds UTC."""

    source: str  # actor or edge that published it
    sequence: int  # 1, 2, 3, ... per source and stream; a gap is a loss; 0 in shared streams
    cause: str  # "stream/entry id" of the input that led here; "" at the edge
    published_ns: int
    cause_published_ns: int  # when the cause was published; 0 at the edge
    origin_published_ns: int  # when the edge message that began the chain was published
    message: AnyMessage


class Entry(NamedTuple):
    """One message as it lies in a stream."""

    stream: str
    id: str  # "<ms>-<sequence>"
    envelope: Envelope


class Output(NamedTuple):
    """A message to publish because of the input at `cause` (index into the committed inputs)."""

    cause: int
    message: AnyMessage


class DeadLetter(NamedTuple):
    """An input that its actor could not handle."""

    position: int  # index into the committed inputs
    error: str


class Handled(NamedTuple):
    """One commit of a group: which entries it had handled, in this order."""

    id: str  # "<commit number>-0"
    entries: tuple[tuple[str, str], ...]  # (stream, entry id)


def id_key(entry_id: str) -> tuple[int, int]:
    """Return an entry id as a pair that sorts as the server sorts it."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence)


class Consumer(Protocol):
    """One reader of some streams under a group name, and the only writer of what it commits.

    Use from one task. After any BusError: close it, open a new one, rebuild the reader's state from
    `history`, go on with `read`. `read` hands out this group's unacknowledged entries first.
    """

    def history(self, memory_ns: int | None) -> AsyncIterator[Entry]:
        """Yield acknowledged entries in the order they were handled, back to `memory_ns` of market
        time before the last one; None: all that is retained."""
        ...

    async def read(self, limit: int, block_ms: int) -> list[Entry]:
        """Return up to `limit` entries in id order across the streams, or [] after `block_ms`.

        An entry of one stream is held back while another stream may still hold an older one.
        """
        ...

    async def commit(
        self, inputs: Sequence[Entry], outputs: Sequence[Output], dead: Sequence[DeadLetter] = ()
    ) -> list[str]:
        """Publish the outputs, note the order of the inputs, acknowledge them: all or nothing.

        Returns the ids of the outputs. Raises BusError when the outcome is unknown.
        """
        ...

    async def lag(self) -> int:
        """Return how many entries wait in the streams, delivered or not."""
        ...

    @property
    def lost(self) -> int:
        """Gaps seen in the sequence numbers of the inputs since this consumer opened."""
        ...

    async def close(self) -> None: ...


class Publisher(Protocol):
    """An edge that puts messages on the bus without reading any. Use from one task."""

    @property
    def sequence(self) -> int:
        """How many messages this source has published to its streams since the session began."""
        ...

    async def publish(self, *messages: AnyMessage) -> list[str]:
        """Publish in order, together; returns their ids."""
        ...

    async def close(self) -> None: ...


class Bus(Protocol):
    """A place where messages travel, of one mode (live, paper) and one session."""

    async def consumer(
        self, group: str, streams: Sequence[str], outputs: Sequence[str] = (), name: str = "0"
    ) -> Consumer:
        """Open a reader. `outputs` names the streams it may commit to; it is their only writer,
        except in shared streams. A group begins at the first retained entry."""
        ...

    async def publisher(self, source: str, streams: Sequence[str]) -> Publisher:
        """Open an edge writer; it is the only writer of these streams, except of shared ones."""
        ...

    async def latest(self, stream: str) -> dict[str, Envelope]:
        """Return the last message per instrument, actor or kind of a stream that keeps them."""
        ...

    async def entries(self, stream: str, start: str = "-", limit: int | None = None) -> list[Entry]:
        """Return retained entries of a stream from `start` (inclusive id) on."""
        ...

    async def handled(self, group: str, after: str = "0-0", limit: int = 1000) -> list[Handled]:
        """Return what a group committed after the commit `after`, oldest first."""
        ...

    async def is_quiet(self, streams: Collection[str] | None = None) -> bool:
        """Tell whether every group has handled everything in its streams, or in these of them."""
        ...

    async def trim(self, retain: int) -> int:
        """Drop entries that every group has acknowledged, keeping the last `retain` of each stream.

        Returns how many were dropped. What a group has not acknowledged is never dropped.
        """
        ...

    async def close(self) -> None: ...
