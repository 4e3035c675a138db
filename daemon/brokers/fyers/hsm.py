"""Fyers' binary market data (HSM v1.5), the client's half: requests written, frames decoded.

Pure: bytes in, values out. A `Decoder` belongs to one connection, since topic ids do; a new
connection takes a new one. Frame lengths in the head are written rightly and never believed.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, NamedTuple

ABSENT: Final = -(2**31)
"""A value on the wire: not present, keep what you have. Stays so until a first real value."""
PING: Final = b"\x00\x01\x0b"
MOST_TOPICS_PER_FRAME: Final = 1500

AUTHENTICATE, ACKNOWLEDGE, SUBSCRIBE, UNSUBSCRIBE, DATA = 1, 3, 4, 5, 6
PAUSE, RESUME, MODE, CUSTOM = 7, 8, 12, 51

LAST_PRICE, VOLUME, LAST_TRADE_S, FEED_S, BID_SIZE, ASK_SIZE, BID, ASK = range(8)
"""Positions in a scrip record (`sf`), the first eight of 21."""
OPEN_INTEREST, LOWER_CIRCUIT, UPPER_CIRCUIT, DAY_OPEN, PREVIOUS_CLOSE = 12, 17, 18, 19, 20
INDEX_VALUE, INDEX_PREVIOUS_CLOSE, INDEX_FEED_S = range(3)
"""Positions in an index record (`if`), the first three of 6."""
DEPTH_LEVELS: Final = 5
_WIDTHS: Final = {"sf": 21, "if": 6, "dp": 30}

_HEAD: Final = struct.Struct("!HB")
_DATA_HEAD: Final = struct.Struct("!IH")
_UPDATE_HEAD: Final = struct.Struct("!HB")
_LITE: Final = struct.Struct("!Hi")
_SCALE: Final = struct.Struct("!HB")
_VALUES: Final = tuple(struct.Struct(f"!{count}i") for count in range(256))
_SNAPSHOT, _UPDATE, _LITE_KIND = b"SUL"


class Malformed(ValueError):
    """Bytes that are no frame of this protocol; the text says where they stop making sense."""


class Level(NamedTuple):
    """One step of the order book."""

    price: Decimal  # rupees
    quantity: int  # units
    orders: int


class Topic:
    """What one topic id stands for on this connection, and its latest values."""

    __slots__ = ("_divisor", "kind", "name", "symbol", "values")

    def __init__(
        self, name: str, values: tuple[int, ...], symbol: str, multiplier: int, precision: int
    ) -> None:
        self.name = name  # as it was subscribed: kind|segment|token
        self.kind = name.partition("|")[0]
        self.symbol = symbol  # the exchange's own
        self.values = values
        # Currency contracts come with multiplier 0, which stands for none.
        self._divisor = Decimal((multiplier or 1) * 10**precision)

    def price(self, raw: int) -> Decimal | None:
        """Return rupees; None for a value that has not come yet."""
        return None if raw == ABSENT else Decimal(raw) / self._divisor

    def levels(self, values: Sequence[int], *, bids: bool) -> tuple[Level, ...]:
        """Return one side of a depth record (`dp`), best first; empty steps are left out."""
        first = 0 if bids else DEPTH_LEVELS
        found = []
        for step in range(first, first + DEPTH_LEVELS):
            price = self.price(values[step])
            quantity = count_of(values[10 + step])
            if price and quantity:
                found.append(Level(price, quantity, count_of(values[20 + step]) or 0))
        return tuple(found)


class Record(NamedTuple):
    """All values of a topic after one record, raw and by position."""

    topic: Topic
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The server's answer to a request."""

    type: int
    is_accepted: bool
    ack_every: int = 0  # of an authentication: data frames per acknowledgement; 0: none


@dataclass(frozen=True, slots=True)
class Notice:
    """A message outside the usual answers; 51001: more symbols than the plan allows."""

    code: int
    text: str
    about: int  # type of the request it refers to; 0: none


@dataclass(frozen=True, slots=True)
class Data:
    """One data frame."""

    number: int  # what an acknowledgement repeats
    records: list[Record]
    unresolved: int  # records of topic ids without a snapshot, passed over
    problem: str | None  # why the rest of the frame could not be read; None: all was read


def count_of(raw: int) -> int | None:
    """Return a count, which the wire wraps beyond 2**31 - 1; None for one not come yet."""
    if raw == ABSENT:
        return None
    return raw + 2**32 if raw < 0 else raw


class Decoder:
    """Decode the frames of one connection."""

    def __init__(self) -> None:
        self._topics: dict[int, Topic] = {}

    def decode(self, frame: bytes) -> Data | Answer | Notice | None:
        """Return what a frame says; None for a type not known here. Malformed if it is cut."""
        if len(frame) < 3:
            raise Malformed(f"a frame has at least 3 bytes, was {frame.hex() or 'empty'}")
        kind = frame[2]
        if kind == DATA:
            return self._data(frame)
        if kind == CUSTOM:
            return _notice(_fields(frame))
        if kind in (AUTHENTICATE, SUBSCRIBE, UNSUBSCRIBE, PAUSE, RESUME, MODE):
            fields = _fields(frame)
            ack_every = int.from_bytes(fields.get(2, b"")) if kind == AUTHENTICATE else 0
            return Answer(kind, fields.get(1) == b"K", ack_every)
        return None

    def _data(self, frame: bytes) -> Data:
        if len(frame) < 9:
            raise Malformed(f"a data frame has at least 9 bytes, was {frame.hex()}")
        number, count = _DATA_HEAD.unpack_from(frame, 3)
        records: list[Record] = []
        unresolved = 0
        offset = 9
        try:
            for _ in range(count):
                kind = frame[offset]
                if kind == _UPDATE:
                    topic_id, width = _UPDATE_HEAD.unpack_from(frame, offset + 1)
                    raw = _VALUES[width].unpack_from(frame, offset + 4)
                    offset += 4 + 4 * width
                elif kind == _LITE_KIND:
                    topic_id, *raw = _LITE.unpack_from(frame, offset + 1)
                    offset += 7
                elif kind == _SNAPSHOT:
                    topic, offset = self._snapshot(frame, offset + 1)
                    records.append(Record(topic, topic.values))
                    continue
                else:
                    problem = f"record kind {kind:#04x} at byte {offset} of {len(frame)}"
                    return Data(number, records, unresolved, problem)
                known = self._topics.get(topic_id)
                if known is None:
                    unresolved += 1
                    continue
                known.values = values = _merged(known.values, raw)
                records.append(Record(known, values))
        except (struct.error, IndexError, Malformed) as error:
            problem = f"cut short in the record at byte {offset} of {len(frame)}: {error}"
            return Data(number, records, unresolved, problem)
        return Data(number, records, unresolved, None)

    def _snapshot(self, frame: bytes, offset: int) -> tuple[Topic, int]:
        """Read a snapshot behind its kind byte; return its topic and where the next record is."""
        topic_id = int.from_bytes(frame[offset : offset + 2])
        name, offset = _text(frame, offset + 2)
        width = frame[offset]
        raw = _VALUES[width].unpack_from(frame, offset + 1)
        offset += 1 + 4 * width + 2  # two bytes are reserved
        multiplier, precision = _SCALE.unpack_from(frame, offset)
        _exchange, offset = _text(frame, offset + _SCALE.size)
        _token, offset = _text(frame, offset)
        symbol, offset = _text(frame, offset)
        full = max(_WIDTHS.get(name.partition("|")[0], 0), width)
        values = raw + (ABSENT,) * (full - width)
        topic = Topic(name, values, symbol, multiplier, precision)
        self._topics[topic_id] = topic
        return topic, offset


def authenticate(hsm_key: str, source: str) -> bytes:
    """Open a session; hsm_key is a claim of the access token, source is free text."""
    fields = [(1, hsm_key.encode("ascii")), (2, b"P"), (3, b"\x01"), (4, source.encode())]
    return _request(AUTHENTICATE, fields)


def subscribe(topics: Sequence[str], channel: int) -> list[bytes]:
    """Ask for topics, in as many frames as it takes."""
    return list(_listed(SUBSCRIBE, topics, channel))


def unsubscribe(topics: Sequence[str], channel: int) -> list[bytes]:
    """Give topics back, in as many frames as it takes."""
    return list(_listed(UNSUBSCRIBE, topics, channel))


def depth_topic(topic: str) -> str | None:
    """Return the topic of the order book of what another topic is about; None: an index has none.

    topic: that of its prices.
    """
    kind, _, contract = topic.partition("|")
    return f"dp|{contract}" if kind == "sf" else None


def mode(channels: Iterable[int], *, is_lite: bool) -> bytes:
    """Choose whether channels carry all fields or the last price alone."""
    return _request(MODE, [(1, _bitmap(channels)), (2, b"L" if is_lite else b"F")])


def pause(channels: Iterable[int]) -> bytes:
    """Stop the data of channels until `resume`."""
    return _request(PAUSE, [(1, _bitmap(channels))])


def resume(channels: Iterable[int]) -> bytes:
    """Let paused channels send again."""
    return _request(RESUME, [(1, _bitmap(channels))])


def acknowledge(number: int) -> bytes:
    """Confirm a data frame by its number."""
    return _request(ACKNOWLEDGE, [(1, number.to_bytes(4))])


def _merged(old: tuple[int, ...], new: Sequence[int]) -> tuple[int, ...]:
    """Lay values over what is known, from position 0; more than the topic has are left out."""
    if ABSENT not in new and len(new) <= len(old):
        return (*new, *old[len(new) :])
    merged = list(old)
    for position, value in enumerate(new[: len(old)]):
        if value != ABSENT:
            merged[position] = value
    return tuple(merged)


def _fields(frame: bytes) -> dict[int, bytes]:
    fields: dict[int, bytes] = {}
    offset = 4
    for _ in range(frame[3] if len(frame) > 3 else 0):
        if offset + 3 > len(frame):
            raise Malformed(f"a frame of type {frame[2]} ends within a field: {len(frame)} bytes")
        size = int.from_bytes(frame[offset + 1 : offset + 3])
        value = frame[offset + 3 : offset + 3 + size]
        if len(value) != size:
            raise Malformed(f"field {frame[offset]} of type {frame[2]} lacks bytes of its {size}")
        fields[frame[offset]] = value
        offset += 3 + size
    return fields


def _notice(fields: dict[int, bytes]) -> Notice:
    return Notice(
        code=int.from_bytes(fields.get(1, b""), signed=True),
        text=fields.get(2, b"").decode("utf-8", "replace"),
        about=int.from_bytes(fields.get(3, b"")),
    )


def _text(frame: bytes, offset: int) -> tuple[str, int]:
    end = offset + 1 + frame[offset]
    if end > len(frame):
        raise Malformed(f"a text ends at byte {end}")
    return frame[offset + 1 : end].decode("utf-8", "replace"), end


def _listed(kind: int, topics: Sequence[str], channel: int) -> Iterable[bytes]:
    for first in range(0, len(topics), MOST_TOPICS_PER_FRAME):
        part = [topic.encode("ascii") for topic in topics[first : first + MOST_TOPICS_PER_FRAME]]
        names = b"".join(bytes([len(name)]) + name for name in part)
        yield _request(kind, [(1, len(part).to_bytes(2) + names), (2, bytes([channel]))])


def _bitmap(channels: Iterable[int]) -> bytes:
    return sum(1 << channel for channel in set(channels)).to_bytes(8)


def _request(kind: int, fields: Sequence[tuple[int, bytes]]) -> bytes:
    body = b"".join(struct.pack("!BH", number, len(value)) + value for number, value in fields)
    return _HEAD.pack(2 + len(body), kind) + bytes([len(fields)]) + body
