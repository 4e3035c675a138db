"""How the bus lies on a message server: names of keys, form of entries and replies."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from daemon.bus import Entry, Envelope, id_key
from daemon.delivery import Fold, Mark, id_text
from daemon.errors import BusError

FIELD = "d"
"""The one field of an entry: flat fields would halve the throughput."""

encode = msgspec.msgpack.Encoder().encode
decode_envelope = msgspec.msgpack.Decoder(Envelope).decode
_decode_fold = msgspec.msgpack.Decoder(Fold).decode


class Keys(NamedTuple):
    """Names of everything kept under one prefix."""

    prefix: str

    def stream(self, stream: str) -> str:
        return f"{self.prefix}:{stream}"

    def latest(self, stream: str) -> str:
        return f"{self.prefix}:{stream}:latest"

    def fold(self, group: str) -> str:
        return f"{self.prefix}:fold:{group}"

    def mark(self, group: str) -> str:
        return f"{self.prefix}:mark:{group}"

    def fence(self, owner: str) -> str:
        return f"{self.prefix}:fence:{owner}"

    @property
    def dead(self) -> str:
        return f"{self.prefix}:dead"


class Group(NamedTuple):
    """Where a group stands in one stream."""

    name: str
    pending: int
    last_id: str
    lag: int | None  # None: the server has lost count


class Undecodable(NamedTuple):
    """An entry that holds no message of ours; `blob` is None where it was trimmed away."""

    stream: str
    id: str
    error: str
    blob: bytes | None


def pairs(flat: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Return a flat reply (key, value, key, value) as pairs."""
    return zip(flat[::2], flat[1::2], strict=True)


def blob_of(fields: list[bytes]) -> bytes:
    """Return the message of an entry; empty, which decodes to nothing, where it has none."""
    if len(fields) == 2:  # our own entries: skip the search
        return fields[1]
    return next((value for name, value in pairs(fields) if name == FIELD.encode()), b"")


def fold_of(fields: list[bytes]) -> Fold:
    """Return the record of a commit."""
    try:
        return _decode_fold(blob_of(fields))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BusError(
            f"a fold log holds what is no record of a commit ({error}): begin a new session"
        ) from error


def entries_of(stream: str, raw: Sequence[Any]) -> Iterator[Entry | Undecodable]:
    """Decode the entries of a reply, in order."""
    for raw_id, fields in raw:
        entry_id = raw_id.decode()
        if fields is None:
            yield Undecodable(stream, entry_id, "trimmed before it was handled", None)
            continue
        blob = blob_of(fields)
        try:
            yield Entry(stream, entry_id, decode_envelope(blob))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            yield Undecodable(stream, entry_id, f"no message: {error}", blob)


def groups_of(reply: Sequence[Sequence[Any]]) -> list[Group]:
    """Return the groups of an XINFO GROUPS reply."""
    groups = []
    for flat in reply:
        facts = dict(pairs(flat))
        groups.append(
            Group(
                facts[b"name"].decode(),
                facts[b"pending"],
                facts[b"last-delivered-id"].decode(),
                facts.get(b"lag"),
            )
        )
    return groups


def mark_of(value: bytes) -> Mark:
    entry_id, _, sequence = value.decode().partition(":")
    return Mark(id_key(entry_id), int(sequence))


def mark_text(mark: Mark) -> str:
    return f"{id_text(mark.key)}:{mark.sequence}"
