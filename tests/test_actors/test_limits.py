"""Orders with a worst price: where it lies, and how it follows the market."""

from decimal import Decimal
from typing import Any

import pytest
from builders import (
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
from hypothesis import given
from hypothesis import strategies as st

from actors.execution import ExecutionActor
from actors.instruments import Instrument
from actors.limits import Limits
from actors.messages import (
    CancelOrder,
    ExecutionReport,
    Message,
    ModifyOrder,
    OrderStatus,
    PlaceOrder,
)
from actors.policies import ExecutionSettings


def an_execution(**fields: Any) -> ExecutionActor:
    """Return execution that places limits 0.1 % beyond the price and lets them follow it twice."""
    given: dict[str, Any] = {
        "order_type": "limit",
        "limit_band": 0.001,
        "order_timeout_seconds": 30.0,
    }
    return ExecutionActor(ExecutionSettings(**(given | fields)), a_catalogue(), a_calendar())


def the_order(outputs: list[Message]) -> PlaceOrder:
    (order,) = [output for output in outputs if isinstance(output, PlaceOrder)]
    return order


def limits_of(outputs: list[Message]) -> list[Decimal]:
    return [output.limit_price for output in outputs if isinstance(output, ModifyOrder)]


def accepted(order: PlaceOrder, status: OrderStatus = "accepted") -> ExecutionReport:
    return a_fill(
        order, status=status, execution_id=f"{order.client_order_id}-{status}",
        last_quantity=0, last_price=Decimal(0), cumulative_quantity=0,
    )  # fmt: skip


def resting(execution: ExecutionActor, units: int = 75) -> PlaceOrder:
    """Enter at 22000 and let the order rest."""
    order = the_order(outputs_of(execution, a_time(), a_tick(), an_intent(units)))
    outputs_of(execution, accepted(order))
    return order


def later(seconds: float) -> int:
    return OPEN_NS + round(seconds * SECOND_NS)


@pytest.mark.parametrize(
    ("units", "quotes", "limit"),
    [
        (75, {}, "22022.00"),
        (-75, {}, "21978.00"),
        (75, {"bid": Decimal(21990), "ask": Decimal(22010)}, "22032.05"),  # off the grid: outward
        (-75, {"bid": Decimal(21990), "ask": Decimal(22010)}, "21968.00"),
    ],
)
def test_a_limit_lies_a_band_beyond_the_price_it_would_trade_at(
    units: int, quotes: dict[str, Any], limit: str
) -> None:
    execution = an_execution()

    order = the_order(outputs_of(execution, a_time(), a_tick(**quotes), an_intent(units)))

    assert (order.order_type, order.limit_price) == ("limit", Decimal(limit))


TICKS = (  # of NSE shares since 15 April 2025: up to this price, this tick
    ("250", "0.01"), ("1000", "0.05"), ("5000", "0.10"), ("10000", "0.50"), ("20000", "1.00"),
    ("Infinity", "5.00"),
)  # fmt: skip


@given(
    price=st.decimals("1", "99000", places=2),
    moved=st.decimals("0.9", "1.1", places=3),
    is_buy=st.booleans(),
)
def test_a_limit_of_a_share_is_on_the_exchanges_grid_whatever_the_catalogue_says(
    price: Decimal, moved: Decimal, is_buy: bool
) -> None:
    """moved: how far the price has gone since the exchange set the tick."""
    share = Instrument(
        symbol="Share", name="Share", exchange_symbol="NSE:SHARE-EQ", kind="stock",
        lot_size=1, tick_size=Decimal("0.05"),
    )  # fmt: skip
    limits = Limits(ExecutionSettings(order_type="limit", limit_band=0.005))
    limits.see(a_tick(price, instrument="Share"))

    limit = limits.of(share, 1 if is_buy else -1, None)

    tick = next(Decimal(tick) for up_to, tick in TICKS if price * moved < Decimal(up_to))
    assert limit is not None
    assert limit % tick == limit % Decimal("0.05") == 0
    assert (limit >= price) if is_buy else (0 < limit <= max(price, Decimal("0.05")))
    assert abs(limit - price) <= price * Decimal("0.006") + Decimal("0.05")


def test_without_a_tick_the_price_decided_on_counts() -> None:
    execution = an_execution()

    order = the_order(outputs_of(execution, a_time(), an_intent(75)))

    assert order.limit_price == Decimal(22022)


def test_an_exit_without_any_price_goes_out_at_the_market() -> None:
    execution = an_execution()
    order = the_order(outputs_of(execution, a_time(), an_intent(75)))
    outputs_of(execution, a_fill(order))

    leaving = the_order(outputs_of(execution, a_kill_switch(flatten=True)))

    assert (leaving.order_type, leaving.limit_price) == ("market", None)


def test_a_limit_given_with_the_intent_stays_as_it_is() -> None:
    execution = an_execution()
    intent = an_intent(75, limit_price=Decimal(21900))
    order = the_order(outputs_of(execution, a_time(), a_tick(), intent))
    outputs_of(execution, accepted(order))

    outputs = outputs_of(execution, a_tick("22500", later(4)))

    assert order.limit_price == Decimal(21900)
    assert limits_of(outputs) == []


def test_a_resting_limit_follows_the_price_so_many_times_and_is_then_cancelled() -> None:
    execution = an_execution(order_timeout_seconds=15.0)
    order = resting(execution)

    moved = [
        limits_of(outputs_of(execution, a_tick(price, later(second))))
        for price, second in (
            ("22100", 2.9),
            ("22100", 3),
            ("22200", 5),
            ("22200", 6),
            ("22300", 9),
        )
    ]
    ended = outputs_of(execution, a_time(later(17.9)))

    assert moved == [[], [Decimal("22122.10")], [], [Decimal("22222.20")], []]
    assert [output for output in ended if isinstance(output, CancelOrder)] == [
        CancelOrder(
            client_order_id=order.client_order_id,
            instrument="Nifty",
            reason="no final answer in time",
            placed_ns=later(17.9),
        )
    ]


def test_a_limit_is_given_up_no_sooner_than_it_could_have_filled() -> None:
    execution = an_execution(order_timeout_seconds=5.0)
    resting(execution)

    untraded = outputs_of(execution, a_time(later(60)))
    traded = outputs_of(execution, a_tick("22000", later(60)), a_time(later(64.9)))
    ended = outputs_of(execution, a_time(later(65)))

    assert untraded == traded == []
    assert [type(output) for output in ended] == [CancelOrder]


def test_a_limit_moves_only_nearer_to_a_fill() -> None:
    execution = an_execution()
    resting(execution)

    assert limits_of(outputs_of(execution, a_tick("21900", later(4)))) == []
    assert limits_of(outputs_of(execution, a_tick("22100", later(5)))) == [Decimal("22122.10")]


def test_the_limit_of_an_exit_follows_downwards() -> None:
    execution = an_execution()
    outputs_of(execution, a_fill(resting(execution)))
    leaving = the_order(outputs_of(execution, an_intent(-75, purpose="exit", decision_id="d2")))
    outputs_of(execution, accepted(leaving))

    outputs = outputs_of(execution, a_tick("21900", later(3)))

    assert leaving.limit_price == Decimal("21978.00")
    assert limits_of(outputs) == [Decimal("21878.10")]


@pytest.mark.parametrize("status", ["unknown", "cancelled", "rejected"])
def test_an_order_that_does_not_rest_is_not_modified(status: OrderStatus) -> None:
    execution = an_execution()
    order = the_order(outputs_of(execution, a_time(), a_tick(), an_intent(75)))
    outputs_of(execution, accepted(order, status))

    assert limits_of(outputs_of(execution, a_tick("22100", later(4)))) == []


def test_a_fill_that_was_faster_than_the_change_counts() -> None:
    execution = an_execution()
    order = resting(execution)
    changed = outputs_of(execution, a_tick("22100", later(3)))

    outputs = outputs_of(execution, a_fill(order, "22022"), a_tick("22300", later(9)))

    assert limits_of(changed) == [Decimal("22122.10")]
    assert limits_of(outputs) == []
    assert execution._holding("Nifty").net == 75


def test_while_a_kill_switch_holds_exits_back_no_limit_moves() -> None:
    execution = an_execution()
    outputs_of(execution, a_fill(resting(execution)))
    leaving = the_order(outputs_of(execution, an_intent(-75, purpose="exit", decision_id="d2")))
    outputs_of(execution, accepted(leaving), a_kill_switch())

    assert limits_of(outputs_of(execution, a_tick("21900", later(4)))) == []


def test_without_attempts_a_limit_stays() -> None:
    execution = an_execution(reprice_attempts=0)
    resting(execution)

    assert limits_of(outputs_of(execution, a_tick("22100", later(4)))) == []
