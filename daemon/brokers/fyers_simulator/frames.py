"""The data socket's binary frames, the server's half: requests read, answers and data written.

The layout is Fyers' HSM v1.5. Numbers are big-endian. A request is read by its fields alone: the
SDK sends wrong lengths in the head, so the head's length is written but never believed.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

ABSENT: Final = -(2**31)  # "not present, keep what you have"
LARGEST_LENGTH: Final = 0xFFFF

SCRIP_FIELDS: Final = 21
INDEX_FIELDS: Final = 6
DEPTH_FIELDS: Final = 30


class FrameType(IntEnum):
    """The third byte of a frame."""

    AUTHENTICATE = 1
    THROTTLE = 2
    ACKNOWLEDGE = 3
    SUBSCRIBE = 4
    UNSUBSCRIBE = 5
    DATA = 6
    PAUSE = 7
    RESUME = 8
    PING = 11
    MODE = 12
    CUSTOM = 51


class BadFrame(ValueError):
    """Bytes that are no request of this protocol."""


@dataclass(frozen=True, slots=True)
class Request:
    """A client frame: its type and its fields by number."""

    type: int
    fields: dict[int, bytes]

    @property
    def text(self) -> str:
        """Field 1 as text: the hsm_key of an authentication."""
        return self.fields.get(1, b"").decode("ascii", "replace")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of field 1 as a bitmap."""
        bits = int.from_bytes(self.fields.get(1, b""))
        return tuple(n for n in range(64) if bits >> n & 1)

    @property
    def is_lite(self) -> bool:
        return self.fields.get(2) == b"L"

    @property
    def channel(self) -> int:
        """Channel of a subscription."""
        return int.from_bytes(self.fields.get(2, b"\0"))

    @property
    def message_number(self) -> int:
        return int.from_bytes(self.fields.get(1, b""))

    @property
    def topics(self) -> list[str]:
        """Topics of a subscription."""
        value = self.fields.get(1, b"")
        if len(value) < 2:
            raise BadFrame(f"a list of topics begins with its count, was {value.hex()}")
        count, offset = int.from_bytes(value[:2]), 2
        topics: list[str] = []
        for _ in range(count):
            if offset >= len(value) or offset + 1 + value[offset] > len(value):
                raise BadFrame(f"{count} topics announced, {len(topics)} found")
            size = value[offset]
            topics.append(value[offset + 1 : offset + 1 + size].decode("ascii"))
            offset += 1 + size
        return topics


def read_request(data: bytes) -> Request:
    """Take a client frame apart; BadFrame when its fields run past its end."""
    if len(data) < 3:
        raise BadFrame(f"a frame has at least 3 bytes, was {data.hex()}")
    fields: dict[int, bytes] = {}
    offset = 4
    for _ in range(data[3] if len(data) > 3 else 0):
        if offset + 3 > len(data):
            raise BadFrame(f"frame of type {data[2]} ends within a field")
        size = int.from_bytes(data[offset + 1 : offset + 3])
        value = data[offset + 3 : offset + 3 + size]
        if len(value) != size:
            raise BadFrame(f"field {data[offset]} of type {data[2]} is cut short")
        fields[data[offset]] = value
        offset += 3 + size
    return Request(data[2], fields)


def answer(type_: int, fields: Iterable[tuple[int, bytes]]) -> bytes:
    """Write a frame of numbered fields."""
    body = bytearray()
    count = 0
    for number, value in fields:
        body += struct.pack("!BH", number, len(value)) + value
        count += 1
    return struct.pack("!HBB", 2 + len(body), type_, count) + bytes(body)


def authenticated(ack_every: int, *, is_accepted: bool = True) -> bytes:
    """Answer an authentication; `ack_every` 0 asks for no acknowledgements."""
    status = b"K" if is_accepted else b"N"
    return answer(FrameType.AUTHENTICATE, [(1, status), (2, struct.pack("!I", ack_every))])


def result(type_: int, *, is_accepted: bool = True) -> bytes:
    """Answer a subscription, a pause, a resume or a mode."""
    return answer(type_, [(1, b"K" if is_accepted else b"N")])


def custom(code: int, text: str, about: int) -> bytes:
    """Write a message outside the usual answers, such as the symbol limit of the plan."""
    fields = [(1, struct.pack("!i", code)), (2, text.encode()), (3, bytes([about]))]
    return answer(FrameType.CUSTOM, fields)


def data_frame(message_number: int, records: Sequence[bytes]) -> bytes:
    """Join records to a data frame; beyond 64 KiB its head says 65535, the most it can."""
    body = b"".join(records)
    length = min(7 + len(body), LARGEST_LENGTH)
    return struct.pack("!HBIH", length, FrameType.DATA, message_number, len(records)) + body


def snapshot(
    topic_id: int,
    topic: str,
    values: Sequence[int | None],
    *,
    names: tuple[str, str, str],
    multiplier: int = 1,
    precision: int = 2,
) -> bytes:
    """Write all fields of a topic; `names` are exchange, token and symbol of the exchange."""
    return b"".join(
        (
            struct.pack("!cH", b"S", topic_id),
            _text(topic),
            bytes([len(values)]),
            _values(values),
            struct.pack("!HHB", 0, multiplier, precision),
            *map(_text, names),
        )
    )


def update(topic_id: int, values: Sequence[int | None]) -> bytes:
    """Write changed fields, positional from field 0; None keeps what the client has."""
    return struct.pack("!cHB", b"U", topic_id, len(values)) + _values(values)


def lite(topic_id: int, value: int) -> bytes:
    """Write the last price alone."""
    return struct.pack("!cHi", b"L", topic_id, _wire(value))


def changed(before: Sequence[int | None], after: Sequence[int | None]) -> list[int | None]:
    """Return the fields that differ, None for the others, cut behind the last change."""
    values = [new if new != old else None for old, new in zip(before, after, strict=True)]
    while values and values[-1] is None:
        values.pop()
    return values


def _values(values: Sequence[int | None]) -> bytes:
    return struct.pack(f"!{len(values)}i", *map(_wire, values))


def _wire(value: int | None) -> int:
    """Return a number as int32; a count beyond 2**31 - 1 wraps, as on the wire."""
    if value is None:
        return ABSENT
    return value - 2**32 if value >= 2**31 else value


def _text(text: str) -> bytes:
    encoded = text.encode()
    return bytes([len(encoded)]) + encoded
