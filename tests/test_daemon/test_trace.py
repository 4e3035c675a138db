"""Tracing: one order back to its tick, and on to its fills."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from builders import (
    MINUTE_NS,
    OPEN_NS,
    SECOND_NS,
    a_bar,
    a_decision,
    a_fill,
    a_tick,
    a_time,
    a_verdict,
    an_order,
)
from recorded_session import RecordedSession

from actors.messages import AnyMessage, PlaceOrder
from daemon.bus import Envelope
from daemon.errors import ReplayError
from daemon.journal import RecordedEntry, SessionWriter
from daemon.replay import Recording
from daemon.trace import trace


@pytest.fixture(scope="module")
def recording(recorded: RecordedSession) -> Recording:
    return Recording(recorded.folder)


def first_order(recording: Recording, reason: str, purpose: str = "exit") -> str:
    return next(
        order.client_order_id
        for envelope in recording.entries.values()
        if isinstance(order := envelope.message, PlaceOrder)
        and (order.reason, order.purpose) == (reason, purpose)
    )


def a_recording(folder: Path, *entries: tuple[AnyMessage, str]) -> Recording:
    """Return a recording of these messages with their causes; entry ids are 1-0, 2-0, ..."""
    writer = SessionWriter(folder)
    for number, (message, cause) in enumerate(entries, 1):
        envelope = Envelope(
            source="test",
            sequence=number,
            cause=cause,
            published_ns=7,  # the clock tells nothing here
            cause_published_ns=0,
            origin_published_ns=7,
            message=message,
        )
        writer.append(RecordedEntry(message.stream, f"{number}-0", envelope))
    writer.close()
    return Recording(folder)


def steps(chain: list[dict[str, Any]]) -> list[str]:
    return [link["step"] for link in chain]


def test_an_entry_goes_back_to_its_tick_and_on_to_its_position(recording: Recording) -> None:
    order_id = first_order(recording, "DECISION", "entry")

    chain = trace(recording, order_id)

    assert steps(chain) == [
        "tick",
        "time",
        "bar",
        "context",
        "decision",
        "verdict",
        "intent",
        "order",
        "report",
        "fill",
        "position",
    ]
    assert chain[0]["message"]["last_price"] == chain[2]["message"]["close"]
    assert chain[7]["message"]["client_order_id"] == order_id
    assert chain[-1]["message"]["net_quantity"] != 0


def test_every_link_but_the_edges_names_one_before_it(recording: Recording) -> None:
    chain = trace(recording, first_order(recording, "DECISION", "entry"))

    seen = set()
    for link in chain:
        assert link["cause"] in seen or link["step"] in ("tick", "time", "report", "fill")
        seen.add(link["entry"])


def test_a_stop_loss_begins_with_the_tick_that_hit_it(recording: Recording) -> None:
    order_id = first_order(recording, "STOP_LOSS_HIT")

    chain = trace(recording, order_id)

    assert steps(chain) == ["tick", "order", "report", "fill", "position"]
    assert chain[1]["message"]["purpose"] == "exit"
    assert chain[-1]["message"]["net_quantity"] == 0
    assert chain[-1]["message"]["last_exit_reason"] == "STOP_LOSS_HIT"


def test_every_order_can_be_traced(recording: Recording) -> None:
    orders = [
        envelope.message.client_order_id
        for envelope in recording.entries.values()
        if isinstance(envelope.message, PlaceOrder)
    ]

    for order_id in orders:
        chain = trace(recording, order_id)
        assert chain[0]["step"] in ("tick", "time")
        assert steps(chain)[-2:] == ["fill", "position"]


def test_an_unknown_order_is_refused_and_the_known_ones_named(recording: Recording) -> None:
    newest = [
        envelope.message.client_order_id
        for envelope in recording.entries.values()
        if isinstance(envelope.message, PlaceOrder)
    ][-5:]

    with pytest.raises(ReplayError, match="no order 'nonsense'") as raised:
        trace(recording, "nonsense")

    assert ", ".join(newest) in str(raised.value)


def test_a_recording_without_orders_says_so(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="the newest are none"):
        trace(a_recording(tmp_path, (a_tick(), "")), "order1")


def test_a_bar_that_a_tick_closed_begins_with_that_tick(tmp_path: Path) -> None:
    recording = a_recording(
        tmp_path,
        (a_tick(at_ns=OPEN_NS), ""),
        (a_tick(at_ns=OPEN_NS + 5 * MINUTE_NS), ""),
        (a_bar(), "tick/2-0"),
        (an_order(), "bar/3-0"),
    )

    chain = trace(recording, "order1")

    assert [link["entry"] for link in chain] == ["tick/2-0", "bar/3-0", "order/4-0"]


def test_the_tick_is_the_last_one_of_the_instrument_within_the_bar(tmp_path: Path) -> None:
    recording = a_recording(
        tmp_path,
        (a_tick("1", at_ns=OPEN_NS), ""),
        (a_tick("2", at_ns=OPEN_NS + SECOND_NS), ""),
        (a_tick("3", at_ns=OPEN_NS + 2 * SECOND_NS, instrument="Bank_Nifty"), ""),
        (a_tick("4", at_ns=OPEN_NS + 5 * MINUTE_NS), ""),
        (a_time(OPEN_NS + 5 * MINUTE_NS), ""),
        (a_bar("2"), "time/5-0"),
        (an_order(), "bar/6-0"),
    )

    chain = trace(recording, "order1")

    assert chain[0]["entry"] == "tick/2-0"


def test_a_bar_without_a_recorded_tick_is_still_traced(tmp_path: Path) -> None:
    recording = a_recording(tmp_path, (a_bar(), ""), (an_order(), "bar/1-0"))

    assert steps(trace(recording, "order1")) == ["bar", "order"]


def test_the_chain_follows_causes_and_not_clocks(tmp_path: Path) -> None:
    order = an_order()
    recording = a_recording(
        tmp_path,
        (a_fill(order, last_quantity=25, execution_id="a", status="partially_filled"), ""),
        (a_fill(order, last_quantity=50, execution_id="b"), ""),
        (a_verdict(), "decision/4-0"),
        (a_decision(), ""),
        (order, "decision/4-0"),
    )

    chain = trace(recording, "order1")

    assert [link["entry"] for link in chain] == [
        "decision/4-0",
        "verdict/3-0",
        "order/5-0",
        "report/1-0",
        "report/2-0",
    ]
    assert steps(chain)[-2:] == ["fill", "fill"]
    assert chain[2]["message"]["type"] == "PlaceOrder"
    assert Decimal(chain[3]["message"]["last_price"]) == 22000


def test_a_missing_cause_is_refused(tmp_path: Path) -> None:
    recording = a_recording(tmp_path, (an_order(), "intent/9-0"))

    with pytest.raises(ReplayError, match="lacks intent/9-0, the cause of order/1-0"):
        trace(recording, "order1")
