"""From one order back to its tick, and on to its fills: who caused what, out of a recording."""

from collections.abc import Callable
from typing import Any

import msgspec

from actors.messages import (
    AnyMessage,
    Bar,
    Decision,
    ExecutionReport,
    Message,
    PlaceOrder,
    Position,
    RiskVerdict,
    Tick,
)
from daemon.bus import Envelope
from daemon.errors import ReplayError
from daemon.replay import Recording

Place = tuple[str, str]


def trace(recording: Recording, order_id: str) -> list[dict[str, Any]]:
    """Return the chain of one order, causes first, from the last tick before it to its fills.

    Each link names its step, its place in the streams, its cause and the message. Raises
    ReplayError when the recording has no such order.
    """
    entries = recording.entries
    order = _place(recording, lambda m: isinstance(m, PlaceOrder) and m.client_order_id == order_id)
    if order is None:
        known = [
            envelope.message.client_order_id
            for envelope in entries.values()
            if isinstance(envelope.message, PlaceOrder)
        ]
        newest = ", ".join(known[-5:]) or "none"
        raise ReplayError(f"no order {order_id!r} in this recording: the newest are {newest}")
    chain = _causes(recording, order)
    bar = next((entries[place].message for place in chain if place[0] == Bar.stream), None)
    if isinstance(bar, Bar) and chain[0][0] != Tick.stream:
        # The clock closed the bar; the tick that made its close is the last one before.
        last = _last_tick(recording, bar)
        chain = [last, *chain] if last else chain
    chain = _with_verdict(recording, chain) + _consequences(recording, order_id)
    return [_link(place, entries[place]) for place in chain]


def _place(recording: Recording, matches: Callable[[AnyMessage], bool]) -> Place | None:
    return next((place for place, e in recording.entries.items() if matches(e.message)), None)


def _causes(recording: Recording, place: Place) -> list[Place]:
    chain = [place]
    while cause := recording.entries[chain[0]].cause:
        stream, _, entry_id = cause.partition("/")
        if (stream, entry_id) not in recording.entries:
            raise ReplayError(f"the recording lacks {cause}, the cause of {'/'.join(chain[0])}")
        chain.insert(0, (stream, entry_id))
    return chain


def _last_tick(recording: Recording, bar: Bar) -> Place | None:
    ticks = [
        place
        for place, envelope in recording.entries.items()
        if isinstance(tick := envelope.message, Tick)
        and tick.instrument == bar.instrument
        and bar.open_ns <= tick.event_ns < bar.close_ns
    ]
    return ticks[-1] if ticks else None


def _with_verdict(recording: Recording, chain: list[Place]) -> list[Place]:
    """Put the verdict, which causes nothing, behind the decision that it judges."""
    judged: list[Place] = []
    for place in chain:
        judged.append(place)
        if isinstance(recording.entries[place].message, Decision):
            judged += _results(recording, place, RiskVerdict)
    return judged


def _consequences(recording: Recording, order_id: str) -> list[Place]:
    """Return the reports of an order, each with the positions it led to."""
    found: list[Place] = []
    for place, envelope in recording.entries.items():
        report = envelope.message
        if isinstance(report, ExecutionReport) and report.client_order_id == order_id:
            found += [place, *_results(recording, place, Position)]
    return found


def _results(recording: Recording, cause: Place, kind: type[Message]) -> list[Place]:
    return [
        place
        for place, envelope in recording.entries.items()
        if isinstance(envelope.message, kind) and envelope.cause == "/".join(cause)
    ]


def _link(place: Place, envelope: Envelope) -> dict[str, Any]:
    message = envelope.message
    step = "fill" if isinstance(message, ExecutionReport) and message.last_quantity else place[0]
    return {
        "step": step,
        "entry": "/".join(place),
        "cause": envelope.cause,
        "source": envelope.source,
        "published_ns": envelope.published_ns,
        "message": msgspec.to_builtins(message, str_keys=True),
    }
