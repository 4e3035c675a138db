from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from builders import (
    MINUTE_NS,
    OPEN_NS,
    SECOND_NS,
    a_calendar,
    a_catalogue,
    a_fill,
    a_kill_switch,
    a_tick,
    a_time,
    an_intent,
    outputs_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.charges import ChargeTable
from actors.execution import ExecutionActor
from actors.instruments import Instrument, InstrumentCatalogue
from actors.messages import (
    FINAL_STATUSES,
    Alert,
    CancelOrder,
    ExecutionReport,
    Message,
    OrderIntent,
    OrderStatus,
    PlaceOrder,
    Position,
    RejectKind,
)
from actors.orders import STALE, TRANSITIONS, client_order_id
from actors.policies import ExecutionSettings
from actors.session import SessionCalendar, SessionTable

DAY_NS = 24 * 60 * MINUTE_NS
SQUARE_OFF_NS = OPEN_NS + 365 * MINUTE_NS  # 15:20
CLOSE_NS = OPEN_NS + 375 * MINUTE_NS  # 15:30


def an_execution(**fields: Any) -> ExecutionActor:
    """Return execution with these settings, and without slippage to reckon with."""
    return ExecutionActor(ExecutionSettings(**fields), a_catalogue(), a_calendar())


def an_entry(quantity: int = 75, **fields: Any) -> OrderIntent:
    """Return an entry at 22000 with a stop 30 away and a target 60 away."""
    sign = 1 if quantity > 0 else -1
    given: dict[str, Any] = {
        "stop_price": Decimal(22000 - 30 * sign),
        "target_price": Decimal(22000 + 60 * sign),
        "capital_used": Decimal(825) * abs(quantity),
    }
    return an_intent(quantity, **(given | fields))


def the_order(outputs: list[Message]) -> PlaceOrder:
    (order,) = orders_of(outputs)
    return order


def orders_of(outputs: list[Message]) -> list[PlaceOrder]:
    return [output for output in outputs if isinstance(output, PlaceOrder)]


def cancels_of(outputs: list[Message]) -> list[CancelOrder]:
    return [output for output in outputs if isinstance(output, CancelOrder)]


def alerts_of(outputs: list[Message]) -> list[Alert]:
    return [output for output in outputs if isinstance(output, Alert)]


def positions_of(outputs: list[Message]) -> list[Position]:
    return [output for output in outputs if isinstance(output, Position)]


def a_report(order: PlaceOrder, status: OrderStatus, **fields: Any) -> ExecutionReport:
    """Return a report without a fill, unless one is given."""
    given: dict[str, Any] = {
        "status": status,
        "execution_id": f"{order.client_order_id}-{status}",
        "last_quantity": 0,
        "last_price": Decimal(0),
        "cumulative_quantity": 0,
    }
    return a_fill(order, **(given | fields))


def entered(execution: ExecutionActor, quantity: int = 75, price: str = "22000") -> PlaceOrder:
    """Enter and fill at the price; return the entry order."""
    outputs_of(execution, a_time(), a_tick())
    order = the_order(outputs_of(execution, an_entry(quantity)))
    outputs_of(execution, a_fill(order, price))
    return order


# Entries


def test_an_intent_becomes_a_market_order_with_an_id_from_its_decision() -> None:
    execution = an_execution()

    outputs = outputs_of(execution, a_time(OPEN_NS + 5), an_entry(-75))

    assert outputs == [
        PlaceOrder(
            client_order_id=client_order_id(f"Nifty@{OPEN_NS}", "entry"),
            decision_id=f"Nifty@{OPEN_NS}",
            instrument="Nifty",
            side="sell",
            quantity=75,
            order_type="market",
            purpose="entry",
            reason="DECISION",
            placed_ns=OPEN_NS + 5,
        )
    ]


def test_an_intent_with_a_limit_becomes_a_limit_order() -> None:
    execution = an_execution()

    order = the_order(outputs_of(execution, an_entry(limit_price=Decimal("21999.95"))))

    assert (order.order_type, order.limit_price) == ("limit", Decimal("21999.95"))


@given(st.text(), st.sampled_from(["entry", "exit"]), st.integers(0, 10**9))
def test_a_client_order_id_is_short_and_alphanumeric(
    decision_id: str, purpose: Any, attempt: int
) -> None:
    tag = client_order_id(decision_id, purpose, attempt)

    assert tag.isascii()
    assert tag.isalnum()
    assert 1 <= len(tag) <= 30


def test_entry_and_exits_of_one_decision_have_different_ids() -> None:
    tags = {client_order_id("d", "entry"), *(client_order_id("d", "exit", n) for n in range(99))}

    assert len(tags) == 100


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"instrument": "Atlantis"}, "unknown instrument Atlantis"),
        ({"quantity": 0}, "quantity must not be 0"),
        ({"purpose": "exit", "quantity": -75}, "-75 units do not close a position of 0"),
    ],
)
def test_an_impossible_intent_is_refused_with_an_alert(fields: dict[str, Any], why: str) -> None:
    execution = an_execution()

    outputs = outputs_of(execution, an_intent(**fields))

    (alert,) = alerts_of(outputs)
    assert alert.text.endswith(f"refused: {why}")
    assert orders_of(outputs) == []


def test_an_intent_is_refused_while_an_order_of_the_instrument_is_pending() -> None:
    execution = an_execution()
    first = the_order(outputs_of(execution, an_entry(decision_id="d1")))

    outputs = outputs_of(execution, an_entry(decision_id="d2"))

    assert first.client_order_id in alerts_of(outputs)[0].text
    assert orders_of(outputs) == []
    assert positions_of(outputs) == []  # the first entry is still on its way


def test_a_refused_entry_tells_that_nothing_is_open() -> None:
    execution = an_execution()
    outputs_of(execution, a_kill_switch())

    outputs = outputs_of(execution, an_entry())

    assert positions_of(outputs)[0].net_quantity == 0
    assert alerts_of(outputs)[0].text.endswith("kill switch: operator")


def test_an_entry_into_an_open_position_is_refused() -> None:
    execution = an_execution()
    entered(execution)

    outputs = outputs_of(execution, an_entry(decision_id="d2"))

    assert alerts_of(outputs)[0].text.endswith("a position of 75 units is open")
    assert orders_of(outputs) == []


def test_the_same_intent_never_becomes_two_orders() -> None:
    execution = an_execution()
    order = the_order(outputs_of(execution, an_entry()))
    outputs_of(execution, a_report(order, "rejected"))

    outputs = outputs_of(execution, an_entry())

    assert orders_of(outputs) == []
    assert alerts_of(outputs)[0].text.endswith("it has become an order before")


# Fills


def test_a_filled_entry_is_a_position_with_levels_brokerage_and_capital() -> None:
    execution = an_execution()
    order = the_order(outputs_of(execution, a_time(), an_entry()))

    outputs = outputs_of(execution, a_fill(order, "22001", charges=Decimal("1.5")))

    assert outputs == [
        Position(
            instrument="Nifty",
            net_quantity=75,
            average_price=Decimal(22001),
            realised_pnl=Decimal("-26.5"),
            charges=Decimal("26.5"),
            capital_used=Decimal(61875),
            updated_ns=OPEN_NS,
            stop_price=Decimal(21970),
            target_price=Decimal(22060),
            trailing_stop_price=Decimal(21970),
            entry_ns=OPEN_NS,
            decision_id=order.decision_id,
        )
    ]


def test_partial_fills_average_the_price_and_pay_brokerage_once() -> None:
    execution = an_execution()
    order = the_order(outputs_of(execution, a_time(), an_entry(150)))

    outputs = outputs_of(
        execution,
        a_report(order, "accepted"),
        a_report(
            order,
            "partially_filled",
            execution_id="1",
            last_quantity=50,
            last_price=Decimal(22000),
            cumulative_quantity=50,
        ),
        a_fill(order, "22003", execution_id="2", last_quantity=100, cumulative_quantity=150),
    )

    assert [position.net_quantity for position in positions_of(outputs)] == [50, 150]
    assert [position.capital_used for position in positions_of(outputs)] == [41250, 123750]
    assert positions_of(outputs)[1].average_price == Decimal(22002)
    assert positions_of(outputs)[1].charges == 25
    assert alerts_of(outputs) == []


@pytest.mark.parametrize(("quantity", "exit_price"), [(75, "22010"), (-75, "21990")])
def test_a_round_trip_books_its_result_after_brokerage(quantity: int, exit_price: str) -> None:
    execution = an_execution()
    entered(execution, quantity)
    leaving = the_order(
        outputs_of(execution, an_intent(-quantity, purpose="exit", decision_id="d2"))
    )

    (position,) = positions_of(outputs_of(execution, a_fill(leaving, exit_price)))

    assert position.net_quantity == 0
    assert position.realised_pnl == 10 * 75 - 25 - 35
    assert (position.round_trips, position.winning_round_trips) == (1, 1)
    assert position.last_exit_reason == "DECISION"
    assert position.capital_used == 0
    assert position.stop_price is None


def test_a_gain_below_the_brokerage_is_no_winning_trip() -> None:
    execution = an_execution()
    entered(execution)
    leaving = the_order(outputs_of(execution, an_intent(-75, purpose="exit", decision_id="d2")))

    (position,) = positions_of(outputs_of(execution, a_fill(leaving, "22000.5")))

    assert position.realised_pnl == Decimal("-22.5")
    assert (position.round_trips, position.winning_round_trips) == (1, 0)


def test_the_same_execution_id_counts_once() -> None:
    execution = an_execution()
    order = the_order(outputs_of(execution, an_entry()))
    fill = a_fill(order)
    outputs_of(execution, fill)

    outputs = outputs_of(execution, fill, fill)

    assert outputs == []


def test_an_entry_that_ended_without_a_fill_tells_that_nothing_is_open() -> None:
    execution = an_execution()
    order = the_order(outputs_of(execution, an_entry()))

    outputs = outputs_of(execution, a_report(order, "rejected"))

    assert [position.net_quantity for position in positions_of(outputs)] == [0]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"client_order_id": "stranger"}, "no such order was placed here"),
        ({"instrument": "Bank_Nifty"}, "it speaks of buy Bank_Nifty"),
        ({"side": "sell"}, "it speaks of sell Nifty"),
        ({"last_quantity": -75}, "quantity must not be below 0"),
        ({"last_price": Decimal(0)}, "price of a fill must be above 0"),
    ],
)
def test_a_report_that_fits_no_order_is_left_out_with_an_alert(
    fields: dict[str, Any], why: str
) -> None:
    execution = an_execution()
    order = the_order(outputs_of(execution, an_entry()))

    outputs = outputs_of(execution, a_fill(order, **fields))

    (alert,) = alerts_of(outputs)
    assert alert.severity == "critical"
    assert why in alert.text
    assert positions_of(outputs) == []


def test_a_fill_after_the_order_was_cancelled_counts_and_calls_a_person() -> None:
    execution = an_execution()
    order = the_order(outputs_of(execution, an_entry()))
    outputs_of(execution, a_report(order, "cancelled"))

    outputs = outputs_of(execution, a_fill(order))

    assert positions_of(outputs)[0].net_quantity == 75
    assert positions_of(outputs)[0].stop_price == 21970
    assert [alert.severity for alert in alerts_of(outputs)] == ["critical", "warning"]


def test_fills_in_the_wrong_order_are_no_surprise() -> None:
    execution = an_execution()
    order = the_order(outputs_of(execution, an_entry(150)))
    last = a_fill(order, execution_id="2", last_quantity=75, cumulative_quantity=150)
    first = a_report(
        order,
        "partially_filled",
        execution_id="1",
        last_quantity=75,
        last_price=Decimal(22000),
        cumulative_quantity=75,
    )

    outputs = outputs_of(execution, last, first, a_report(order, "accepted"))

    assert [position.net_quantity for position in positions_of(outputs)] == [75, 150]
    assert alerts_of(outputs) == []


def test_an_order_whose_fills_are_missing_blocks_new_exposure_and_is_asked_for() -> None:
    execution = an_execution()
    order = the_order(outputs_of(execution, a_time(), an_entry()))
    outputs_of(execution, a_report(order, "filled"))

    refused = outputs_of(execution, an_entry(decision_id="d2"))
    asked = outputs_of(execution, a_time(OPEN_NS + 10 * SECOND_NS))

    assert alerts_of(refused)[0].text.endswith("is pending, state filled")
    assert cancels_of(asked)[0].client_order_id == order.client_order_id


def test_more_fills_than_ordered_count_and_call_a_person() -> None:
    execution = an_execution()
    order = entered(execution)

    outputs = outputs_of(execution, a_fill(order, execution_id="more"))

    assert positions_of(outputs)[0].net_quantity == 150
    assert alerts_of(outputs)[0].severity == "critical"
    assert "of 75 now has fills of 150 units" in alerts_of(outputs)[0].text


def test_every_state_knows_every_status() -> None:
    statuses = set(TRANSITIONS["sent"])

    assert set(TRANSITIONS) == set(STALE) == {"sent", *statuses}
    for state, allowed in TRANSITIONS.items():
        assert not allowed & STALE[state]
        assert not (allowed and state in FINAL_STATUSES)


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("filled", "cancelled"),
        ("filled", "rejected"),
        ("cancelled", "rejected"),
        ("rejected", "cancelled"),
        ("expired", "rejected"),
    ],
)
def test_an_impossible_change_of_state_is_refused_with_an_alert(
    first: OrderStatus, then: OrderStatus
) -> None:
    execution = an_execution()
    order = the_order(outputs_of(execution, an_entry()))
    outputs_of(execution, a_report(order, first))

    outputs = outputs_of(execution, a_report(order, then))

    assert f"cannot go from {first} to {then}" in alerts_of(outputs)[0].text


# Stops


@pytest.mark.parametrize(
    ("quantity", "price", "reason"),
    [
        (75, "21970", "STOP_LOSS_HIT"),
        (75, "22060", "TARGET_PROFIT_HIT"),
        (-75, "22030", "STOP_LOSS_HIT"),
        (-75, "21940", "TARGET_PROFIT_HIT"),
    ],
)
def test_a_level_that_is_reached_closes_the_position(
    quantity: int, price: str, reason: str
) -> None:
    execution = an_execution(trailing_stop=False)
    entered(execution, quantity)

    order = the_order(outputs_of(execution, a_tick(price, OPEN_NS + 1)))

    assert order.reason == reason
    assert order.purpose == "exit"
    assert order.quantity == 75
    assert order.side == ("sell" if quantity > 0 else "buy")


@pytest.mark.parametrize("price", ["21970.05", "22059.95"])
def test_a_price_between_the_levels_leaves_the_position(price: str) -> None:
    execution = an_execution(trailing_stop=False)
    entered(execution)

    assert outputs_of(execution, a_tick(price, OPEN_NS + 1)) == []


@pytest.mark.parametrize(
    ("quantity", "best", "trailing", "back"),
    [(75, "22050", "22020", "22019.95"), (-75, "21950", "21980", "21980.05")],
)
def test_the_trailing_stop_follows_the_best_price_at_the_first_distance(
    quantity: int, best: str, trailing: str, back: str
) -> None:
    execution = an_execution()
    entered(execution, quantity)

    (moved,) = outputs_of(execution, a_tick(best, OPEN_NS + 1))
    outputs = outputs_of(execution, a_tick(back, OPEN_NS + 2))

    assert isinstance(moved, Position)
    assert moved.trailing_stop_price == Decimal(trailing)
    assert moved.stop_price == Decimal(22000 - 30 * quantity // 75)
    assert the_order(outputs).reason == "TRAILING_STOP_HIT"


def test_the_trailing_stop_never_moves_back() -> None:
    execution = an_execution()
    entered(execution)
    outputs_of(execution, a_tick("22050", OPEN_NS + 1))

    outputs = outputs_of(execution, a_tick("22030", OPEN_NS + 2))

    assert outputs == []


def test_a_move_of_less_than_a_tick_is_not_told() -> None:
    execution = an_execution()
    entered(execution)
    outputs_of(execution, a_tick("22010", OPEN_NS + 1))

    assert outputs_of(execution, a_tick("22010.04", OPEN_NS + 2)) == []
    assert len(outputs_of(execution, a_tick("22010.05", OPEN_NS + 3))) == 1


@given(prices=st.lists(st.integers(21_971, 22_059), max_size=40), is_long=st.booleans())
def test_the_trailing_stop_is_never_looser_than_before(prices: list[int], is_long: bool) -> None:
    execution = an_execution()
    sign = 1 if is_long else -1
    entered(execution, 75 * sign)
    stops = [Decimal(22000 - 30 * sign)]

    for number, price in enumerate(prices):
        drawn = 44_000 - price if not is_long else price
        outputs = outputs_of(execution, a_tick(str(drawn), OPEN_NS + 1 + number))
        stops += [
            position.trailing_stop_price
            for position in positions_of(outputs)
            if position.trailing_stop_price is not None
        ]

    assert stops == sorted(stops, reverse=not is_long)


def test_a_tick_from_before_the_entry_hits_no_level() -> None:
    execution = an_execution()
    outputs_of(execution, a_time(OPEN_NS + 10))
    order = the_order(outputs_of(execution, an_entry()))
    outputs_of(execution, a_fill(order, event_ns=OPEN_NS + 10))

    assert outputs_of(execution, a_tick("21000", OPEN_NS + 9)) == []


def test_a_fill_from_a_clock_that_runs_ahead_does_not_blind_the_stops() -> None:
    execution = an_execution()
    outputs_of(execution, a_time(OPEN_NS))
    order = the_order(outputs_of(execution, an_entry()))
    outputs_of(execution, a_fill(order, event_ns=OPEN_NS + DAY_NS))

    outputs = outputs_of(execution, a_tick("21000", OPEN_NS + 1))

    assert the_order(outputs).reason == "STOP_LOSS_HIT"


def test_a_stop_is_not_sent_twice() -> None:
    execution = an_execution()
    entered(execution)
    outputs_of(execution, a_tick("21900", OPEN_NS + 1))

    outputs = outputs_of(execution, a_tick("21800", OPEN_NS + 2), a_tick("21700", OPEN_NS + 3))

    assert outputs == []


def test_a_stop_while_the_entry_still_works_cancels_it_and_sells_what_is_there() -> None:
    execution = an_execution()
    outputs_of(execution, a_time())
    order = the_order(outputs_of(execution, an_entry(150)))
    outputs_of(
        execution,
        a_report(order, "partially_filled", last_quantity=75, last_price=Decimal(22000)),
    )

    outputs = outputs_of(execution, a_tick("21900", OPEN_NS + 1))

    assert cancels_of(outputs)[0].client_order_id == order.client_order_id
    assert the_order(outputs).quantity == 75


def test_a_late_entry_fill_behind_an_exit_is_sold_as_well() -> None:
    execution = an_execution()
    outputs_of(execution, a_time())
    order = the_order(outputs_of(execution, an_entry(150)))
    outputs_of(
        execution,
        a_report(order, "partially_filled", last_quantity=75, last_price=Decimal(22000)),
    )
    leaving = the_order(outputs_of(execution, a_tick("21900", OPEN_NS + 1)))
    outputs_of(
        execution, a_fill(order, execution_id="late", last_quantity=75, cumulative_quantity=150)
    )

    outputs_of(execution, a_fill(leaving, "21900"))
    outputs = outputs_of(execution, a_time(OPEN_NS + 2 * SECOND_NS))

    assert the_order(outputs).quantity == 75
    assert the_order(outputs).side == "sell"


# Leaving


@pytest.mark.parametrize("at_ns", [SQUARE_OFF_NS, OPEN_NS + 376 * MINUTE_NS])
def test_an_open_position_is_closed_at_square_off_or_when_the_market_has_closed(
    at_ns: int,
) -> None:
    execution = an_execution()
    entered(execution)

    outputs = outputs_of(execution, a_time(at_ns))

    assert the_order(outputs).reason == "SQUARE_OFF"


def test_nothing_is_closed_before_square_off() -> None:
    execution = an_execution()
    entered(execution)

    assert outputs_of(execution, a_time(SQUARE_OFF_NS - SECOND_NS)) == []


def a_calendar_that_closes_positions_early() -> SessionCalendar:
    """Return NSE with square-off at 15:00 and positions closed by 15:08, as for shares."""
    hours = {
        "effective_from": "2024-01-01", "open": "09:15", "entries_until": "14:55",
        "square_off": "15:00", "flat_by": "15:08", "close": "15:15",
    }  # fmt: skip
    days = {"covered_from": "2024-01-01", "covered_until": "2024-12-31"}
    market = {"timezone": "Asia/Kolkata", "calendar": "india", "hours": [hours]}
    table = {"calendars": {"india": days}, "markets": {"NSE": market}}
    return SessionCalendar(SessionTable.model_validate(table))


def test_a_person_is_called_once_for_a_position_that_is_open_when_it_should_be_closed() -> None:
    calendar = a_calendar_that_closes_positions_early()
    execution = ExecutionActor(ExecutionSettings(), a_catalogue(), calendar)
    entered(execution)
    flat_by_ns = OPEN_NS + 353 * MINUTE_NS
    leaving = the_order(outputs_of(execution, a_time(OPEN_NS + 345 * MINUTE_NS)))
    before = outputs_of(execution, a_report(leaving, "accepted"), a_time(flat_by_ns - 1))

    outputs = outputs_of(execution, a_time(flat_by_ns), a_time(flat_by_ns + SECOND_NS))

    assert leaving.reason == "SQUARE_OFF"
    assert alerts_of(before) == []
    (alert,) = alerts_of(outputs)
    assert (alert.severity, alert.runbook) == ("critical", "Position not closed")
    assert alert.text.startswith("75 units of Nifty should be closed by now")
    assert "ends in 420 s" in alert.text


def test_nobody_is_called_for_a_position_that_was_closed_in_time() -> None:
    calendar = a_calendar_that_closes_positions_early()
    execution = ExecutionActor(ExecutionSettings(), a_catalogue(), calendar)
    entered(execution)
    leaving = the_order(outputs_of(execution, a_time(OPEN_NS + 345 * MINUTE_NS)))

    outputs = outputs_of(execution, a_fill(leaving, "22000"), a_time(OPEN_NS + 353 * MINUTE_NS))

    assert alerts_of(outputs) == []


def test_square_off_takes_open_entries_back() -> None:
    execution = an_execution(order_timeout_seconds=600)
    order = the_order(outputs_of(execution, a_time(SQUARE_OFF_NS - 1), an_entry()))

    outputs = outputs_of(execution, a_time(SQUARE_OFF_NS), a_time(SQUARE_OFF_NS + SECOND_NS))

    assert [cancel.client_order_id for cancel in cancels_of(outputs)] == [order.client_order_id]


def test_a_failed_exit_is_tried_three_times_a_second_apart_and_then_a_person_is_called() -> None:
    execution = an_execution()
    entered(execution)
    orders = [the_order(outputs_of(execution, a_tick("21900", OPEN_NS + 1)))]

    for second in range(1, 3):
        outputs_of(execution, a_report(orders[-1], "rejected"))
        early = outputs_of(execution, a_time(OPEN_NS + second * SECOND_NS))
        in_time = outputs_of(execution, a_time(OPEN_NS + second * SECOND_NS + 1))
        assert orders_of(early) == []
        orders.append(the_order(in_time))
    outputs = outputs_of(execution, a_report(orders[-1], "cancelled"))
    told_ns = OPEN_NS + 2 * SECOND_NS + 1
    later = outputs_of(execution, a_time(told_ns + 29 * SECOND_NS), a_tick("21800", told_ns))

    assert len({order.client_order_id for order in orders}) == 3
    assert alerts_of(outputs) == [
        Alert(
            severity="critical",
            text="Failed to close position for Nifty. Please check manually.",
            runbook="Position not closed",
            at_ns=told_ns,
            source="execution",
            instrument="Nifty",
        )
    ]
    assert later == []


def test_a_decision_may_try_again_what_failed_before() -> None:
    execution = an_execution(exit_attempts=1)
    entered(execution)
    failed = the_order(outputs_of(execution, a_tick("21900", OPEN_NS + 1)))
    outputs_of(execution, a_report(failed, "rejected"))

    outputs = outputs_of(execution, an_intent(-75, purpose="exit", decision_id="d2"))

    assert the_order(outputs).reason == "DECISION"


def rejects_of(
    execution: ExecutionActor, order: PlaceOrder, kinds: Sequence[RejectKind | None], until_ns: int
) -> tuple[list[tuple[int, PlaceOrder]], list[Alert]]:
    """Reject an exit and those that follow it, the last kind for ever, a second a step.

    Return the later exits, with the second after the open at which each went out, and the alerts.
    """
    orders: list[tuple[int, PlaceOrder]] = []
    alerts: list[Alert] = []
    for second in range(1, (until_ns - OPEN_NS) // SECOND_NS + 1):
        kind = kinds[min(len(orders), len(kinds) - 1)]
        outputs = outputs_of(execution, a_report(order, "rejected", reject_kind=kind))
        outputs += outputs_of(execution, a_time(OPEN_NS + second * SECOND_NS))
        alerts += alerts_of(outputs)
        for sent in orders_of(outputs):
            order = sent
            orders.append((second, sent))
    return orders, alerts


@pytest.mark.parametrize("kind", ["auth", "rate"])
def test_a_reject_that_mends_itself_counts_as_no_attempt_and_puts_the_exit_off(
    kind: RejectKind,
) -> None:
    execution = an_execution()
    entered(execution)
    first = the_order(outputs_of(execution, a_tick("21900", OPEN_NS)))

    orders, alerts = rejects_of(execution, first, [kind], OPEN_NS + 5 * MINUTE_NS)

    assert [second for second, _ in orders[:6]] == [1, 3, 7, 15, 25, 35]
    assert orders[-1][0] == 295
    assert [alert.severity for alert in alerts] == ["critical"]
    assert alerts[0].text == (
        f"75 units of Nifty are still open: the exit was rejected 3 times in a row ({kind}). It is "
        "tried on until it goes out; close them by hand if that must not wait."
    )


def test_an_exit_that_may_be_tried_later_waits_a_minute_at_most() -> None:
    execution = an_execution()
    entered(execution)
    first = the_order(outputs_of(execution, a_tick("21900", OPEN_NS)))

    orders, _ = rejects_of(execution, first, ["retryable"], OPEN_NS + 5 * MINUTE_NS)

    assert [second for second, _ in orders] == [1, 3, 7, 15, 31, 63, 123, 183, 243]


def test_attempts_count_on_where_a_reject_that_mends_itself_came_between() -> None:
    execution = an_execution()
    entered(execution)
    first = the_order(outputs_of(execution, a_tick("21900", OPEN_NS)))
    kinds: list[RejectKind | None] = ["permanent", "auth", "permanent", None]

    orders, alerts = rejects_of(execution, first, kinds, OPEN_NS + 20 * SECOND_NS)

    assert len(orders) == 3
    assert [alert.text for alert in alerts] == [
        "Failed to close position for Nifty. Please check manually."
    ]


def test_after_the_call_for_a_person_an_exit_is_tried_on_ever_more_slowly() -> None:
    execution = an_execution()
    entered(execution)
    first = the_order(outputs_of(execution, a_tick("21900", OPEN_NS)))

    orders, alerts = rejects_of(execution, first, ["permanent"], OPEN_NS + 30 * MINUTE_NS)

    seconds = [second for second, _ in orders]
    assert seconds[:6] == [1, 2, 32, 92, 212, 452]
    assert {later - sooner for sooner, later in pairwise(seconds[6:])} == {300}
    assert len(alerts) == 1


def test_a_slow_attempt_that_fills_closes_the_position() -> None:
    execution = an_execution(exit_attempts=1)
    entered(execution)
    failed = the_order(outputs_of(execution, a_tick("21900", OPEN_NS)))
    outputs_of(execution, a_report(failed, "rejected"))

    slow = the_order(outputs_of(execution, a_time(OPEN_NS + MINUTE_NS)))
    outputs = outputs_of(execution, a_fill(slow, "21500"), a_time(OPEN_NS + 10 * MINUTE_NS))

    assert positions_of(outputs)[-1].net_quantity == 0
    assert orders_of(outputs) == []


def test_square_off_tries_a_failed_exit_again_at_once_and_at_full_pace() -> None:
    execution = an_execution()
    entered(execution)
    first = the_order(outputs_of(execution, a_tick("21900", OPEN_NS)))

    orders, alerts = rejects_of(execution, first, ["permanent"], SQUARE_OFF_NS + 3 * SECOND_NS)

    square_off = (SQUARE_OFF_NS - OPEN_NS) // SECOND_NS
    last = [(second - square_off, order.reason) for second, order in orders[-3:]]
    assert last == [(0, "SQUARE_OFF"), (1, "SQUARE_OFF"), (2, "SQUARE_OFF")]
    assert len(alerts) == 2


def test_a_closed_market_puts_no_exit_off_for_ever() -> None:
    execution = an_execution()
    entered(execution)
    first = the_order(outputs_of(execution, a_time(CLOSE_NS)))

    for order in (first, *(None,) * 2):
        sent = order or the_order(outputs_of(execution, a_time(execution._book.now_ns + SECOND_NS)))
        outputs = outputs_of(execution, a_report(sent, "rejected", reject_kind="retryable"))

    assert [alert.text for alert in alerts_of(outputs)] == [
        "Failed to close position for Nifty. Please check manually."
    ]
    assert outputs_of(execution, a_time(CLOSE_NS + 60 * MINUTE_NS)) == []


def test_what_failed_is_tried_again_on_the_next_day() -> None:
    execution = an_execution(exit_attempts=1)
    entered(execution)
    failed = the_order(outputs_of(execution, a_time(CLOSE_NS - SECOND_NS)))
    outputs_of(execution, a_report(failed, "rejected"))

    same_day = outputs_of(execution, a_time(CLOSE_NS), a_time(CLOSE_NS + 60 * MINUTE_NS))
    outputs = outputs_of(execution, a_time(OPEN_NS + DAY_NS), a_tick("21900", OPEN_NS + DAY_NS + 1))

    assert orders_of(same_day) == []
    assert the_order(outputs).reason == "STOP_LOSS_HIT"


def test_an_exit_that_filled_in_part_sells_only_the_rest() -> None:
    execution = an_execution()
    entered(execution, 150)
    leaving = the_order(outputs_of(execution, a_tick("21900", OPEN_NS + 1)))
    outputs_of(
        execution,
        a_report(
            leaving,
            "partially_filled",
            last_quantity=100,
            last_price=Decimal(21900),
            cumulative_quantity=100,
        ),
        a_report(leaving, "cancelled", cumulative_quantity=100),
    )

    outputs = outputs_of(execution, a_time(OPEN_NS + 2 * SECOND_NS))

    assert the_order(outputs).quantity == 50


def test_an_exit_that_sold_too_much_is_bought_back() -> None:
    execution = an_execution()
    entered(execution)
    leaving = the_order(outputs_of(execution, a_tick("21900", OPEN_NS + 1)))

    outputs = outputs_of(execution, a_fill(leaving, "21900", last_quantity=150))
    later = outputs_of(execution, a_time(OPEN_NS + 2 * SECOND_NS))

    assert positions_of(outputs)[0].net_quantity == -75
    assert positions_of(outputs)[0].stop_price is None
    assert alerts_of(outputs)[0].severity == "critical"
    assert (the_order(later).side, the_order(later).quantity) == ("buy", 75)


def test_an_exit_fill_that_comes_when_all_is_closed_is_bought_back_at_once() -> None:
    execution = an_execution()
    entered(execution)
    first = the_order(outputs_of(execution, a_tick("21900", OPEN_NS + 1)))
    outputs_of(execution, a_report(first, "rejected"))
    second = the_order(outputs_of(execution, a_time(OPEN_NS + 2 * SECOND_NS)))
    outputs_of(execution, a_fill(second, "21900"))

    outputs = outputs_of(execution, a_fill(first, "21900"))

    assert positions_of(outputs)[0].net_quantity == -75
    assert the_order(outputs).reason == "EXIT_OVERFILLED"
    assert (the_order(outputs).side, the_order(outputs).quantity) == ("buy", 75)


# Orders without an answer


def test_an_order_without_an_answer_is_cancelled_once_and_then_reported() -> None:
    execution = an_execution()
    order = the_order(outputs_of(execution, a_time(), an_entry()))

    early = outputs_of(execution, a_time(OPEN_NS + 9 * SECOND_NS))
    at_timeout = outputs_of(execution, a_time(OPEN_NS + 10 * SECOND_NS))
    later = outputs_of(execution, *(a_time(OPEN_NS + s * SECOND_NS) for s in range(11, 60)))

    assert early == []
    assert [cancel.client_order_id for cancel in cancels_of(at_timeout)] == [order.client_order_id]
    (alert,) = later
    assert isinstance(alert, Alert)
    assert alert.runbook == "Order without answer"


def test_a_market_order_that_was_taken_waits_for_the_next_price() -> None:
    execution = an_execution()
    order = the_order(outputs_of(execution, a_time(), an_entry()))
    outputs_of(execution, a_report(order, "accepted"))

    without_a_price = outputs_of(execution, a_time(OPEN_NS + MINUTE_NS))
    outputs_of(execution, a_tick("22000", OPEN_NS + MINUTE_NS))
    with_a_price = outputs_of(execution, a_time(OPEN_NS + MINUTE_NS + 10 * SECOND_NS))

    assert without_a_price == []
    assert len(cancels_of(with_a_price)) == 1


def test_a_resting_limit_order_is_taken_back_in_time() -> None:
    execution = an_execution()
    order = the_order(outputs_of(execution, a_time(), an_entry(limit_price=Decimal(21000))))
    outputs_of(execution, a_report(order, "accepted"))

    outputs = outputs_of(execution, a_time(OPEN_NS + 10 * SECOND_NS))

    assert len(cancels_of(outputs)) == 1


def test_an_unknown_order_blocks_new_exposure_until_it_is_known() -> None:
    execution = an_execution()
    order = the_order(outputs_of(execution, an_entry(decision_id="d1")))
    outputs_of(execution, a_report(order, "unknown"))

    refused = outputs_of(execution, an_entry(decision_id="d2"))
    outputs_of(execution, a_report(order, "rejected"))
    allowed = outputs_of(execution, an_entry(decision_id="d3"))

    assert orders_of(refused) == []
    assert len(orders_of(allowed)) == 1


# Kill switch


def test_an_engaged_kill_switch_cancels_open_entries() -> None:
    execution = an_execution()
    order = the_order(outputs_of(execution, an_entry()))

    outputs = outputs_of(execution, a_kill_switch(), a_kill_switch())

    assert [cancel.client_order_id for cancel in cancels_of(outputs)] == [order.client_order_id]


def test_a_kill_switch_with_flatten_closes_every_position() -> None:
    execution = an_execution()
    entered(execution)
    other = the_order(
        outputs_of(execution, an_entry(-35, instrument="Bank_Nifty", decision_id="d2"))
    )
    outputs_of(execution, a_fill(other))

    outputs = outputs_of(execution, a_kill_switch(flatten=True))

    assert [(o.instrument, o.side, o.quantity, o.reason) for o in orders_of(outputs)] == [
        ("Nifty", "sell", 75, "KILL_SWITCH"),
        ("Bank_Nifty", "buy", 35, "KILL_SWITCH"),
    ]


def test_a_kill_switch_without_flatten_holds_exits_back_and_says_so() -> None:
    execution = an_execution()
    entered(execution)

    outputs = outputs_of(execution, a_kill_switch(), a_tick("21000", OPEN_NS + 1))

    assert orders_of(outputs) == []
    assert "75 units of Nifty stay open" in alerts_of(outputs)[0].text


def test_a_position_held_back_at_square_off_calls_a_person_once() -> None:
    execution = an_execution()
    entered(execution)
    outputs_of(execution, a_kill_switch())

    outputs = outputs_of(execution, a_time(SQUARE_OFF_NS), a_time(SQUARE_OFF_NS + SECOND_NS))

    (alert,) = outputs
    assert isinstance(alert, Alert)
    assert alert.severity == "critical"


def test_flatten_after_a_failed_exit_tries_again() -> None:
    execution = an_execution(exit_attempts=1)
    entered(execution)
    failed = the_order(outputs_of(execution, a_tick("21900", OPEN_NS + 1)))
    outputs_of(execution, a_report(failed, "rejected"))

    outputs = outputs_of(execution, a_kill_switch(flatten=True))

    assert the_order(outputs).reason == "KILL_SWITCH"


def test_stops_work_again_after_the_release() -> None:
    execution = an_execution()
    entered(execution)
    outputs_of(execution, a_kill_switch(), a_kill_switch(engaged=False))

    outputs = outputs_of(execution, a_tick("21900", OPEN_NS + 1))

    assert the_order(outputs).reason == "STOP_LOSS_HIT"


def test_old_orders_are_forgotten() -> None:
    execution = an_execution()
    for number in range(4200):
        order = the_order(outputs_of(execution, an_entry(decision_id=f"d{number}")))
        outputs_of(execution, a_report(order, "rejected"))

    assert len(execution._book) == 4096


def test_a_contract_is_squared_off_earlier_on_its_last_day() -> None:
    table = a_calendar().table.model_dump(mode="json", exclude_none=True)
    (hours,) = table["markets"]["NSE"]["hours"]
    hours["last_day"] = {"entries_until": "14:00", "square_off": "14:45", "flat_by": "15:00"}
    future = Instrument(
        symbol="Nifty",
        name="Nifty future",
        exchange_symbol="NSE:NIFTY24MARFUT",
        kind="stock",
        lot_size=75,
        tick_size=Decimal("0.05"),
        expiry=date(2024, 3, 18),
    )
    execution = ExecutionActor(
        ExecutionSettings(),
        InstrumentCatalogue([future]),
        SessionCalendar(SessionTable.model_validate(table)),
    )
    entered(execution)

    before = outputs_of(execution, a_time(OPEN_NS + 330 * MINUTE_NS - 1))
    at = outputs_of(execution, a_time(OPEN_NS + 330 * MINUTE_NS))

    assert orders_of(before) == []
    assert the_order(at).reason == "SQUARE_OFF"


# Promises


class Exchange:
    """Answers orders with every right and wrong sequence of reports, and keeps the true book."""

    def __init__(self) -> None:
        self.orders: dict[str, PlaceOrder] = {}
        self.filled: dict[str, int] = {}
        self.told: dict[str, ExecutionReport] = {}  # what reached execution, by execution id
        self.sent: list[ExecutionReport] = []

    def report(self, order: PlaceOrder, status: OrderStatus, quantity: int) -> ExecutionReport:
        tag = order.client_order_id
        quantity = min(quantity, order.quantity - self.filled.get(tag, 0))
        if status not in ("filled", "partially_filled"):
            quantity = 0
        elif status == "filled":
            quantity = order.quantity - self.filled.get(tag, 0)
        self.filled[tag] = self.filled.get(tag, 0) + quantity
        report = a_report(
            order,
            status,
            execution_id=f"{tag}-{len(self.sent)}",
            last_quantity=quantity,
            last_price=Decimal(22000) if quantity else Decimal(0),
            cumulative_quantity=self.filled[tag],
        )
        self.sent.append(report)
        return report

    @property
    def net_told(self) -> int:
        return sum(
            report.last_quantity if report.side == "buy" else -report.last_quantity
            for report in self.told.values()
        )

    def message(self, number: int, move: str, status: OrderStatus, draw: int) -> Message | None:
        """Return what reaches execution by one move; None when nothing does."""
        now_ns = OPEN_NS + number * SECOND_NS // 3
        orders = list(self.orders.values())
        match move:
            case "enter":
                units = 75 * (1 + draw % 3) * (1 if draw % 2 else -1)
                return an_entry(units, decision_id=f"d{number}")
            case "exit" if self.net_told:
                return an_intent(-self.net_told, purpose="exit", decision_id=f"d{number}")
            case "report" if orders:
                return self.report(orders[-1 - draw % min(3, len(orders))], status, draw)
            case "lose" if orders:
                self.report(orders[-1], status, draw)
            case "repeat" if self.sent:
                return self.sent[draw % len(self.sent)]  # late, or a second time
            case "tick":
                return a_tick(str(21_950 + draw % 100), now_ns)
            case "time":
                return a_time(now_ns)
            case "kill":
                return a_kill_switch(engaged=draw % 2 == 0, flatten=draw % 3 == 0)
            case _:
                pass
        return None


MOVES = ("enter", "exit", "report", "report", "report", "lose", "repeat", "tick", "time", "kill")


@settings(max_examples=200, deadline=None)
@given(
    moves=st.lists(
        st.tuples(
            st.sampled_from(MOVES),
            st.sampled_from(sorted(TRANSITIONS["sent"])),
            st.integers(0, 10**6),
        ),
        max_size=60,
    )
)
def test_whatever_the_reports_there_is_no_phantom_position_and_one_exit_at_a_time(
    moves: list[tuple[str, OrderStatus, int]],
) -> None:
    execution = an_execution()
    exchange = Exchange()
    net = 0

    for number, (move, status, draw) in enumerate(moves):
        message = exchange.message(number, move, status, draw)
        if message is None:
            continue
        leaving = execution._holding("Nifty").exit
        live_before = list(leaving.orders) if leaving else []
        outputs = outputs_of(execution, message)

        if isinstance(message, ExecutionReport):
            exchange.told.setdefault(message.execution_id, message)
        net = next((position.net_quantity for position in positions_of(outputs)[::-1]), net)
        assert net == exchange.net_told == execution._holding("Nifty").net
        placed = {order.client_order_id: order for order in orders_of(outputs)}
        assert not placed.keys() & exchange.orders.keys()
        exchange.orders |= placed
        exits = [order for order in placed.values() if order.purpose == "exit"]
        assert len(exits) <= 1
        for order in exits:
            assert all(live.is_done for live in live_before)
            assert order.quantity == abs(net)
            assert (order.side == "sell") == (net > 0)


def test_the_result_is_the_cash_that_came_in_less_charges() -> None:
    execution = an_execution()
    entry = the_order(outputs_of(execution, a_time(), an_entry(225)))
    cash = Decimal(-25 - 35)
    for number, price in enumerate(("22000.05", "22001.10", "21999.95")):
        outputs_of(
            execution,
            a_report(
                entry,
                "filled" if number == 2 else "partially_filled",
                execution_id=f"in{number}",
                last_quantity=75,
                last_price=Decimal(price),
            ),
        )
        cash -= 75 * Decimal(price)
    leaving = the_order(outputs_of(execution, a_tick("22060", OPEN_NS + 1)))
    for number, (quantity, price) in enumerate(((100, "22059.05"), (125, "22058.30"))):
        outputs = outputs_of(
            execution,
            a_report(
                leaving,
                "filled" if number else "partially_filled",
                execution_id=f"out{number}",
                last_quantity=quantity,
                last_price=Decimal(price),
            ),
        )
        cash += quantity * Decimal(price)

    assert positions_of(outputs)[0].realised_pnl == cash
    assert positions_of(outputs)[0].last_exit_reason == "TARGET_PROFIT_HIT"


# Statutory charges


def at_the_rates_of_2024() -> ExecutionActor:
    """Return execution that takes 20 rupees and 1 % of a purchase or 2 % of a sale."""
    rates = {
        "effective_from": "2024-01-01", "source": "made up", "brokerage": 20,
        "stt_sell_percent": 2, "transaction_per_crore": 0, "investor_fund_per_crore": 0,
        "sebi_per_crore": 0, "stamp_buy_percent": 1, "gst_percent": 0,
    }  # fmt: skip
    table = ChargeTable.model_validate({"rates": {"NSE": {"options": [rates]}}})
    return an_execution(charges="statutory", charge_table=table)


@pytest.mark.parametrize("quantity", [75, -75])
def test_statutory_charges_are_those_of_an_option_bought_and_sold_for_either_view(
    quantity: int,
) -> None:
    execution = at_the_rates_of_2024()
    order = the_order(outputs_of(execution, a_time(), an_entry(quantity)))
    (opened,) = positions_of(outputs_of(execution, a_fill(order, "22000")))
    leaving = the_order(
        outputs_of(execution, an_intent(-quantity, purpose="exit", decision_id="d2"))
    )
    (closed,) = positions_of(outputs_of(execution, a_fill(leaving, "22000")))

    premium = 825 * 75  # the middle of the usual range, 3.75 % of the index
    assert opened.charges == 20 + premium * Decimal("0.01")
    assert closed.charges == opened.charges + 20 + premium * Decimal("0.02")
    assert closed.realised_pnl == -closed.charges


def test_an_order_filled_in_pieces_costs_what_it_costs_in_one() -> None:
    whole, pieces = at_the_rates_of_2024(), at_the_rates_of_2024()
    order = the_order(outputs_of(whole, a_time(), an_entry(150)))
    outputs_of(pieces, a_time(), an_entry(150))
    (in_one,) = positions_of(outputs_of(whole, a_fill(order, "22000.35")))
    first = a_report(
        order, "partially_filled", execution_id="1", last_quantity=37,
        last_price=Decimal("22000.35"), cumulative_quantity=37,
    )  # fmt: skip
    second = a_fill(order, "22000.35", execution_id="2", last_quantity=113, cumulative_quantity=150)

    assert positions_of(outputs_of(pieces, first, second))[-1].charges == in_one.charges


def test_an_entry_without_known_charges_is_refused() -> None:
    execution = an_execution(charges="statutory")

    outputs = outputs_of(execution, a_time(), an_entry())

    assert orders_of(outputs) == []
    assert "no charges are known for options on NSE" in alerts_of(outputs)[0].text
