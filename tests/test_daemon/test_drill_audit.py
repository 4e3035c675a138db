"""The audit of a drill: it finds what is lost, doubled, made up or different, and an idle drill."""

import dataclasses
from typing import Any

import msgspec
import pytest
from builders import a_fill, an_order
from fyers_account import an_exchange

from daemon.brokers.fyers_simulator.faults import Faults
from daemon.brokers.fyers_simulator.matching import Exchange
from daemon.clock import NS_PER_SECOND
from daemon.drill_audit import Sides, Witness, compare
from daemon.outbox import OutboxOrder

SBIN = "NSE:SBIN-EQ"


@pytest.fixture
def exchange() -> Exchange:
    return an_exchange()


def a_body(tag: str) -> dict[str, object]:
    return {
        "symbol": SBIN, "qty": 10, "type": 2, "side": 1, "productType": "INTRADAY",
        "limitPrice": 0, "stopPrice": 0, "validity": "DAY", "orderTag": tag,
    }  # fmt: skip


def agreeing(exchange: Exchange) -> Sides:
    """Return the sides of a drill in which one order was placed, filled and written down."""
    witness = Witness(exchange)
    exchange.place(a_body("a1"))
    order = an_order(10, client_order_id="a1")
    reports = [
        msgspec.structs.replace(a_fill(order), execution_id=f"trade:{id_}") for id_ in witness.fills
    ]
    return Sides(
        witness=witness,
        orders=[OutboxOrder(order, "1-0", "answered", is_final=True)],
        reports=reports,
        positions={"SBIN": {"broker": 10, "log": 10, "actors": 10}},
        faults_fired={"server_error": 1},
        agreed=True,
        settled=True,
    )


def changed(sides: Sides, **fields: Any) -> Sides:
    return dataclasses.replace(sides, **fields)


def test_what_agrees_passes(exchange: Exchange) -> None:
    found = compare(agreeing(exchange))

    assert (found["passed"], found["problems"]) == (True, [])
    assert (found["lost"], found["duplicate_orders"], found["phantom_positions"]) == (0, 0, 0)
    assert found["fills_at_broker"] >= 1 == found["orders_at_broker"]


def test_a_fill_that_the_log_lacks_is_lost(exchange: Exchange) -> None:
    found = compare(changed(agreeing(exchange), reports=[]))

    assert found["lost"] == found["fills_at_broker"] > 0
    assert not found["passed"]


def test_a_fill_that_was_never_made_is_a_phantom(exchange: Exchange) -> None:
    sides = agreeing(exchange)
    made_up = msgspec.structs.replace(sides.reports[0], execution_id="trade:of nobody")

    found = compare(changed(sides, reports=[*sides.reports, made_up]))

    assert (found["phantom_positions"], found["passed"]) == (1, False)


def test_a_second_order_under_one_tag_is_found(exchange: Exchange) -> None:
    sides = agreeing(exchange)
    exchange.place(a_body("a1"))

    found = compare(sides)

    assert (found["duplicate_orders"], found["passed"]) == (1, False)


@pytest.mark.parametrize("side", ["broker", "log", "actors"])
def test_a_position_that_one_side_sees_otherwise_is_found(exchange: Exchange, side: str) -> None:
    units = {"broker": 10, "log": 10, "actors": 10} | {side: 0}

    found = compare(changed(agreeing(exchange), positions={"SBIN": units}))

    assert not found["positions_equal"]
    assert found["problems"] == ["positions differ"]


def test_an_order_without_an_end_is_found(exchange: Exchange) -> None:
    sides = agreeing(exchange)
    (row,) = sides.orders

    found = compare(changed(sides, orders=[row._replace(is_final=False)]))

    assert (found["unfinished"], found["passed"]) == (["a1"], False)


def test_a_drill_that_tried_nothing_does_not_pass(exchange: Exchange) -> None:
    idle = changed(
        agreeing(exchange), witness=Witness(exchange), reports=[], orders=[], faults_fired={}
    )

    found = compare(idle)

    assert not found["passed"]
    assert len(found["problems"]) == 2
    assert all("nothing was tried" in text for text in found["problems"])


def test_what_does_not_agree_or_come_to_rest_does_not_pass(exchange: Exchange) -> None:
    found = compare(changed(agreeing(exchange), agreed=False, settled=False))

    assert found["problems"] == [
        "log and broker do not agree",
        "the session has not come to rest",
    ]


def test_the_witness_notes_sides_by_sign(exchange: Exchange) -> None:
    witness = Witness(exchange)
    exchange.place(a_body("a1") | {"side": -1})

    fills = witness.fills.values()
    assert {(fill.tag, fill.symbol) for fill in fills} == {("a1", SBIN)}
    assert sum(fill.signed for fill in fills) == -10


def test_stopped_faults_end_what_lasts_and_what_is_to_come() -> None:
    faults = Faults()
    ended: list[str] = []
    faults.step(0)
    faults.inject("data_mute", seconds=60)
    faults.inject("server_error")
    faults.later(60, lambda: ended.append("half-open"))
    faults.follow(1, ("server_error",), mean_gap_s=1.0)

    faults.stop()
    faults.step(3600 * NS_PER_SECOND)

    assert ended == ["half-open"]
    assert not faults.lasts("data_mute")
    assert faults.armed == []
