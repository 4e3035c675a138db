"""Messages: samples written once decode for ever, and nothing is lost on the wire."""

import types
import typing
from datetime import date
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.messages import (
    ACTIONS,
    FINAL_STATUSES,
    MESSAGE_TYPES,
    STREAMS,
    AnyMessage,
    Decision,
    Message,
    OrderStatus,
)
from daemon.bus import Envelope

SAMPLES = Path(__file__).parents[1] / "fixtures" / "messages" / "v1"
_JSON = msgspec.json.Decoder[Any](AnyMessage)
_ENVELOPE = msgspec.msgpack.Decoder(Envelope)

EVENT_TIMES = {
    "Tick": "event_ns",
    "Depth": "received_ns",
    "FeedGap": "told_ns",
    "PastBar": "told_ns",
    "RefusedTick": "refused_ns",
    "Bar": "close_ns",
    "PartialBar": "as_of_ns",
    "NewsUpdate": "read_ns",
    "Decision": "bar_close_ns",
    "StartSession": "at_ns",
    "StopSession": "at_ns",
    "ManualTrade": "at_ns",
    "RiskVerdict": "decided_ns",
    "RequestAnswer": "answered_ns",
    "TradingSession": "changed_ns",
    "OrderIntent": "decided_ns",
    "PlaceOrder": "placed_ns",
    "CancelOrder": "placed_ns",
    "OptionChain": "read_ns",
    "ModifyOrder": "placed_ns",
    "ExecutionReport": "event_ns",
    "Position": "updated_ns",
    "TimeEvent": "now_ns",
    "Heartbeat": "at_ns",
    "Alert": "at_ns",
    "KillSwitch": "at_ns",
    "PolicySwitch": "at_ns",
}
"""Field that each message's market time is read from; MarketContext has that of its bar."""

by_name = pytest.mark.parametrize("kind", MESSAGE_TYPES, ids=lambda kind: kind.__name__)


def sample(kind: type[Message]) -> tuple[bytes, Message]:
    content = (SAMPLES / f"{kind.__name__}.json").read_bytes()
    message: Message = _JSON.decode(content)
    return content, message


# --- samples --------------------------------------------------------------------------------------


def test_there_is_a_sample_of_every_message_and_of_nothing_else() -> None:
    files = {path.stem for path in SAMPLES.iterdir()}

    assert files == {kind.__name__ for kind in MESSAGE_TYPES}


@by_name
def test_a_sample_decodes_to_its_type_and_back_to_the_same_text(kind: type[Message]) -> None:
    content, message = sample(kind)

    assert type(message) is kind
    assert msgspec.json.format(msgspec.json.encode(message), indent=2) + b"\n" == content


@by_name
def test_a_sample_says_something_in_every_field(kind: type[Message]) -> None:
    content, message = sample(kind)

    assert set(msgspec.json.decode(content)) == {"type", *kind.__struct_fields__}
    unsaid = [
        field.name
        for field in msgspec.structs.fields(kind)
        if getattr(message, field.name) == field.default
        and field.name not in ("kind", "news_impact", "late", "failed")
    ]
    assert unsaid == []


@by_name
def test_fields_with_defaults_may_be_absent(kind: type[Message]) -> None:
    content, message = sample(kind)
    required = {"type"} | {field.name for field in msgspec.structs.fields(kind) if field.required}
    shortened = {k: v for k, v in msgspec.json.decode(content).items() if k in required}

    decoded = _JSON.decode(msgspec.json.encode(shortened))

    assert type(decoded) is kind
    assert all(getattr(decoded, n) == getattr(message, n) for n in required - {"type"})


@by_name
def test_fields_of_a_later_version_are_passed_over(kind: type[Message]) -> None:
    content, message = sample(kind)
    longer = msgspec.json.decode(content) | {"a_field_of_tomorrow": 1}

    assert _JSON.decode(msgspec.json.encode(longer)) == message


# --- every type -----------------------------------------------------------------------------------


def test_every_subclass_of_message_travels() -> None:
    assert set(Message.__subclasses__()) == set(MESSAGE_TYPES)


@by_name
def test_every_message_has_a_stream_and_a_market_time(kind: type[Message]) -> None:
    _, message = sample(kind)

    assert message.stream in STREAMS
    if kind.__name__ in EVENT_TIMES:
        assert message.time_ns == getattr(message, EVENT_TIMES[kind.__name__])
    else:
        assert message.time_ns == getattr(message, "bar").close_ns  # noqa: B009 - of one type only


@by_name
def test_what_the_latest_is_kept_by_is_a_text_of_the_message(kind: type[Message]) -> None:
    _, message = sample(kind)

    if kind.latest_by is not None:
        assert isinstance(getattr(message, kind.latest_by), str)


@by_name
def test_messages_cannot_be_changed(kind: type[Message]) -> None:
    _, message = sample(kind)

    with pytest.raises(AttributeError):
        setattr(message, kind.__struct_fields__[0], None)


def test_types_of_one_stream_share_its_nature() -> None:
    for stream in STREAMS:
        kinds = [kind for kind in MESSAGE_TYPES if kind.stream == stream]
        assert len({(kind.shared, kind.latest_by) for kind in kinds}) == 1


def test_streams_come_in_flow_order_each_once() -> None:
    assert STREAMS == (
        "tick",
        "depth",
        "chain",
        "quarantine",
        "bar",
        "partial_bar",
        "news",
        "context",
        "decision",
        "request",
        "verdict",
        "answer",
        "session",
        "intent",
        "order",
        "report",
        "position",
        "time",
        "heartbeat",
        "alert",
        "control",
    )


def test_action_codes_are_those_of_the_contract() -> None:
    assert ACTIONS == ("BUY_LONG", "SELL_SHORT", "CLOSE_LONG", "CLOSE_SHORT", "HOLD")
    assert typing.get_args(Decision.__annotations__["action"]) == ACTIONS


def test_final_statuses_are_statuses() -> None:
    assert set(typing.get_args(OrderStatus)) > FINAL_STATUSES


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="Nonsense"):
        _JSON.decode(b'{"type": "Nonsense"}')


# --- the wire -------------------------------------------------------------------------------------

_SIGNED = st.integers(-(2**63), 2**63 - 1)  # msgpack holds 64 bits
_SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    str: st.text(),
    bool: st.booleans(),
    int: _SIGNED,
    float: st.floats(allow_nan=False),
    Decimal: st.decimals(allow_nan=False, allow_infinity=False),
    type(None): st.none(),
    date: st.dates(),
}


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Return what draws values of a field's type."""
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin in (types.UnionType, typing.Union):  # the latter where one side is a Literal
        return st.one_of(*map(values_of, arguments))
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    return structs_of(annotation)


@cache
def structs_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    annotations = typing.get_type_hints(kind)
    fields = {
        name: values_of(annotation)
        for name, annotation in annotations.items()
        if typing.get_origin(annotation) is not ClassVar
    }
    return st.fixed_dictionaries(fields).map(lambda given: kind(**given))


def envelopes(message: Message) -> st.SearchStrategy[Envelope]:
    return st.builds(
        Envelope,
        source=st.text(),
        sequence=_SIGNED,
        cause=st.text(),
        published_ns=_SIGNED,
        cause_published_ns=_SIGNED,
        origin_published_ns=_SIGNED,
        message=st.just(message),
    )


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(MESSAGE_TYPES).flatmap(structs_of).flatmap(envelopes))
def test_an_envelope_comes_back_from_the_wire_as_it_was_sent(envelope: Envelope) -> None:
    back = _ENVELOPE.decode(msgspec.msgpack.encode(envelope))

    assert back == envelope
    assert type(back.message) is type(envelope.message)
