"""Orders above the freeze quantity: several slices that are one entry or one exit."""

from decimal import Decimal
from typing import Any

import msgspec
import pytest
from builders import (
    OPEN_NS,
    SECOND_NS,
    a_calendar,
    a_fill,
    a_kill_switch,
    a_tick,
    a_time,
    an_intent,
    outputs_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.execution import ExecutionActor
from actors.instruments import Instrument, InstrumentCatalogue
from actors.messages import (
    FINAL_STATUSES,
    Alert,
    CancelOrder,
    ExecutionReport,
    Message,
    OrderStatus,
    PlaceOrder,
    Position,
    RejectKind,
)
from actors.orders import TRANSITIONS
from actors.policies import ExecutionSettings

LOT, FREEZE = 75, 400
LARGEST = 375  # five lots: below the freeze quantity


def an_execution(**fields: Any) -> ExecutionActor:
    """Return execution of one index whose orders are cut to five lots."""
    nifty = Instrument(
        symbol="Nifty",
        name="Nifty 50",
        exchange_symbol="NSE:NIFTY50-INDEX",
        kind="index",
        lot_size=LOT,
        tick_size=Decimal("0.05"),
        freeze_quantity=FREEZE,
    )
    return ExecutionActor(ExecutionSettings(**fields), InstrumentCatalogue([nifty]), a_calendar())


def orders_of(outputs: list[Message]) -> list[PlaceOrder]:
    return [output for output in outputs if isinstance(output, PlaceOrder)]


def cancels_of(outputs: list[Message]) -> list[str]:
    return [output.client_order_id for output in outputs if isinstance(output, CancelOrder)]


def positions_of(outputs: list[Message]) -> list[Position]:
    return [output for output in outputs if isinstance(output, Position)]


def an_answer(order: PlaceOrder, status: OrderStatus, units: int = 0) -> ExecutionReport:
    return a_fill(
        order,
        status=status,
        execution_id=f"{order.client_order_id}-{status}-{units}",
        last_quantity=units,
        last_price=Decimal(22000) if units else Decimal(0),
        cumulative_quantity=units,
    )


def a_reject(order: PlaceOrder, kind: RejectKind) -> ExecutionReport:
    return msgspec.structs.replace(an_answer(order, "rejected"), reject_kind=kind)


def entered(execution: ExecutionActor, units: int) -> None:
    orders = orders_of(outputs_of(execution, a_time(), an_intent(units)))
    outputs_of(execution, *(a_fill(order) for order in orders))


def test_an_entry_above_the_freeze_quantity_becomes_slices_of_their_own_ids() -> None:
    execution = an_execution()

    orders = orders_of(outputs_of(execution, a_time(), an_intent(900)))

    assert [order.quantity for order in orders] == [LARGEST, LARGEST, 150]
    assert len({order.client_order_id for order in orders}) == 3
    assert {order.decision_id for order in orders} == {f"Nifty@{OPEN_NS}"}


def test_the_fills_of_all_slices_are_one_position_with_one_average() -> None:
    execution = an_execution()
    first, second, third = orders_of(outputs_of(execution, a_time(), an_intent(900)))

    outputs = outputs_of(
        execution, a_fill(second, "22010"), a_fill(first, "22000"), a_fill(third, "22020")
    )

    assert [position.net_quantity for position in positions_of(outputs)] == [375, 750, 900]
    assert positions_of(outputs)[-1].average_price == round(
        Decimal(375 * 22010 + 375 * 22000 + 150 * 22020) / 900, 8
    )
    assert positions_of(outputs)[-1].charges == 3 * 25  # brokerage is per executed order


def test_one_rejected_slice_takes_the_others_back_and_no_other_follows() -> None:
    execution = an_execution(max_order_rate_per_second=3)  # a burst of three
    first, second, third = orders_of(outputs_of(execution, a_time(), an_intent(2250)))

    rejected = outputs_of(execution, an_answer(second, "rejected"))
    later = outputs_of(
        execution,
        a_fill(first),
        an_answer(third, "cancelled"),
        a_time(OPEN_NS + 5 * SECOND_NS),
    )

    assert cancels_of(rejected) == [first.client_order_id, third.client_order_id]
    assert orders_of(later) == []
    assert positions_of(later)[-1].net_quantity == 375
    again = an_intent(75, decision_id="d2")
    assert orders_of(outputs_of(execution, again)) == []  # 375 units are open


def test_an_entry_of_which_nothing_filled_ends_with_an_empty_position_once() -> None:
    execution = an_execution()
    orders = orders_of(outputs_of(execution, a_time(), an_intent(900)))

    told = [positions_of(outputs_of(execution, an_answer(order, "rejected"))) for order in orders]

    assert [len(positions) for positions in told] == [0, 0, 1]
    assert told[-1][0].net_quantity == 0


def test_more_slices_than_a_second_takes_follow_in_the_next() -> None:
    execution = an_execution()
    first = orders_of(outputs_of(execution, a_time(), an_intent(3000)))

    early = orders_of(outputs_of(execution, a_time(OPEN_NS + SECOND_NS - 1)))
    late = orders_of(outputs_of(execution, a_time(OPEN_NS + SECOND_NS)))

    assert [order.quantity for order in first] == [LARGEST] * 6
    assert early == []
    assert [order.quantity for order in late] == [LARGEST, LARGEST]


def test_an_exit_is_sliced_by_what_is_held_in_one_attempt() -> None:
    execution = an_execution(exit_attempts=1)
    entered(execution, 900)

    orders = orders_of(outputs_of(execution, an_intent(-900, purpose="exit", decision_id="d2")))
    outputs = outputs_of(execution, *(a_fill(order, "22010") for order in orders))

    assert [order.quantity for order in orders] == [LARGEST, LARGEST, 150]
    assert positions_of(outputs)[-1].net_quantity == 0
    assert positions_of(outputs)[-1].round_trips == 1
    assert [output for output in outputs if not isinstance(output, Position)] == []


@pytest.mark.parametrize(("kind", "is_told"), [("permanent", True), ("rate", False)])
def test_an_attempt_is_put_off_only_if_no_slice_failed_for_good(
    kind: RejectKind, *, is_told: bool
) -> None:
    execution = an_execution(exit_attempts=1)
    entered(execution, 900)
    first, second, third = orders_of(
        outputs_of(execution, an_intent(-900, purpose="exit", decision_id="d2"))
    )

    outputs = outputs_of(
        execution,
        a_reject(first, kind),
        a_reject(second, "rate"),
        a_fill(third),
        a_time(OPEN_NS + SECOND_NS),
    )

    texts = [output.text for output in outputs if isinstance(output, Alert)]
    assert ("Failed to close position for Nifty. Please check manually." in texts) is is_told
    assert [order.quantity for order in orders_of(outputs)] == ([] if is_told else [375, 375])


def test_what_a_failed_slice_leaves_open_is_closed_by_the_next_attempt() -> None:
    execution = an_execution()
    entered(execution, 900)
    first, second, third = orders_of(
        outputs_of(execution, an_intent(-900, purpose="exit", decision_id="d2"))
    )
    outputs_of(execution, a_fill(first), an_answer(second, "rejected"), a_fill(third))

    orders = orders_of(outputs_of(execution, a_time(OPEN_NS + SECOND_NS)))

    assert [order.quantity for order in orders] == [375]
    assert orders[0].client_order_id not in {
        first.client_order_id, second.client_order_id, third.client_order_id,
    }  # fmt: skip


def test_a_stop_between_two_bursts_ends_the_entry_and_closes_what_has_filled() -> None:
    execution = an_execution(max_order_rate_per_second=1)
    intent = an_intent(900, stop_price=Decimal(21970), target_price=Decimal(22060))
    (first,) = orders_of(outputs_of(execution, a_time(), intent))
    outputs_of(execution, a_fill(first))

    stopped = outputs_of(execution, a_tick("21960", OPEN_NS + 2 * SECOND_NS))
    outputs_of(execution, a_fill(orders_of(stopped)[0], "21960"))
    later = outputs_of(execution, a_time(OPEN_NS + 9 * SECOND_NS))

    assert [(order.side, order.quantity) for order in orders_of(stopped)] == [("sell", 375)]
    assert orders_of(later) == []


def test_a_kill_between_two_bursts_ends_the_entry() -> None:
    execution = an_execution(max_order_rate_per_second=1)
    (first,) = orders_of(outputs_of(execution, a_time(), an_intent(900)))
    outputs_of(execution, a_fill(first))

    outputs_of(execution, a_kill_switch(), a_kill_switch(engaged=False))
    later = outputs_of(execution, a_time(OPEN_NS + 9 * SECOND_NS))

    assert orders_of(later) == []


class Exchange:
    """A true exchange: it fills no order beyond its quantity, in whatever order it answers."""

    def __init__(self) -> None:
        self.orders: dict[str, PlaceOrder] = {}
        self.filled: dict[str, int] = {}
        self.ended: set[str] = set()
        self.intended: dict[str, int] = {}
        self.told: list[ExecutionReport] = []
        self.net = 0

    def message(self, number: int, move: str, status: OrderStatus, draw: int) -> Message | None:
        """Return what reaches execution by one move; None when nothing does."""
        now_ns = OPEN_NS + number * SECOND_NS // 3
        match move:
            case "enter":
                units = LOT * (1 + draw % 40) * (1 if draw % 2 else -1)
                self.intended[f"d{number}"] = abs(units)
                return an_intent(units, decision_id=f"d{number}", decided_ns=now_ns)
            case "exit" if self.net:
                return an_intent(-self.net, purpose="exit", decision_id=f"d{number}")
            case "answer" if live := [tag for tag in self.orders if tag not in self.ended]:
                return self.answer(number, self.orders[live[draw % len(live)]], status, draw)
            case "repeat" if self.told:
                return self.told[draw % len(self.told)]
            case "tick":
                return a_tick(str(21_950 + draw % 100), now_ns)
            case "kill":
                return a_kill_switch(engaged=draw % 2 == 0, flatten=draw % 3 == 0)
            case _:
                return a_time(now_ns)

    def answer(
        self, number: int, order: PlaceOrder, status: OrderStatus, draw: int
    ) -> ExecutionReport | None:
        tag = order.client_order_id
        done = self.filled.get(tag, 0)
        if status == "rejected" and done:
            return None  # no exchange rejects what it has traded
        left = order.quantity - done
        units = {"filled": left, "partially_filled": draw % left}.get(status, 0)
        self.filled[tag] = done + units
        self.net += units if order.side == "buy" else -units
        if status in FINAL_STATUSES:
            self.ended.add(tag)
        report = a_fill(
            order,
            status=status,
            execution_id=f"{tag}-{number}",
            last_quantity=units,
            last_price=Decimal(22000) if units else Decimal(0),
            cumulative_quantity=done + units,
        )
        self.told.append(report)
        return report

    def entered_for(self, decision_id: str) -> int:
        return sum(
            order.quantity
            for order in self.orders.values()
            if order.purpose == "entry" and order.decision_id == decision_id
        )

    @property
    def leaving(self) -> int:
        """Units of all exits that may still fill."""
        return sum(
            order.quantity - self.filled.get(tag, 0)
            for tag, order in self.orders.items()
            if order.purpose == "exit" and tag not in self.ended
        )


MOVES = ("enter", "exit", "answer", "answer", "answer", "repeat", "tick", "time", "kill")


@settings(max_examples=150, deadline=None)
@given(
    moves=st.lists(
        st.tuples(
            st.sampled_from(MOVES),
            st.sampled_from(sorted(TRANSITIONS["sent"] - {"unknown"})),
            st.integers(0, 10**6),
        ),
        max_size=70,
    ),
    rate=st.integers(1, 9),
)
def test_no_slice_is_too_large_no_entry_exceeds_its_intent_and_a_replay_is_identical(
    moves: list[tuple[str, OrderStatus, int]], rate: int
) -> None:
    execution = an_execution(max_order_rate_per_second=rate)
    exchange = Exchange()
    inputs: list[Message] = []
    told: list[Message] = []

    for number, (move, status, draw) in enumerate(moves):
        message = exchange.message(number, move, status, draw)
        if message is None:
            continue
        outputs = outputs_of(execution, message)
        inputs.append(message)
        told += outputs
        placed = {order.client_order_id: order for order in orders_of(outputs)}
        assert not placed.keys() & exchange.orders.keys()
        exchange.orders |= placed

        assert execution._holding("Nifty").net == exchange.net
        assert all(0 < order.quantity <= LARGEST for order in placed.values())
        for decision_id, units in exchange.intended.items():
            assert exchange.entered_for(decision_id) <= units
        if any(order.purpose == "exit" for order in placed.values()):
            assert exchange.leaving <= abs(exchange.net)

    assert outputs_of(an_execution(max_order_rate_per_second=rate), *inputs) == told
