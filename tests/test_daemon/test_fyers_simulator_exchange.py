"""The simulated exchange without HTTP: fills, rejects, margin, square-off, days."""

from datetime import date, datetime, time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.brokers.fyers_simulator import FyersSimulator, SimulatorSettings
from daemon.brokers.fyers_simulator.instruments import IST, instant_ns
from daemon.brokers.fyers_simulator.matching import Exchange
from daemon.brokers.fyers_simulator.orders import Order, Refusal, Status
from daemon.brokers.fyers_simulator.rules import protection_price
from daemon.settings import load_sessions

SBIN, NIFTY, CALL, FUTURE = (
    "NSE:SBIN-EQ",
    "NSE:NIFTY50-INDEX",
    "NSE:NIFTY26D0125000CE",
    "NSE:NIFTY26DECFUT",
)
CALENDAR = load_sessions()


def a_simulator(**changes: Any) -> FyersSimulator:
    return FyersSimulator(SimulatorSettings(calendar=CALENDAR, **changes))


def an_order(**changes: Any) -> dict[str, Any]:
    order = {
        "symbol": SBIN, "qty": 10, "type": 2, "side": 1, "productType": "INTRADAY",
        "limitPrice": 0, "stopPrice": 0, "validity": "DAY", "disclosedQty": 0,
        "offlineOrder": False,
    }  # fmt: skip
    return order | changes


def at(simulator: FyersSimulator, moment: time, day: date = date(2026, 11, 25)) -> None:
    """Let market time jump, without sockets."""
    simulator.market.advance_to(instant_ns(day, moment))
    simulator.exchange.step()


def price_at(simulator: FyersSimulator, symbol: str, rupees: float) -> None:
    simulator.market.set_price(symbol, round(rupees * 100))
    simulator.exchange.step()


@pytest.fixture
def simulator() -> FyersSimulator:
    return a_simulator(seed=2)


@pytest.fixture
def exchange(simulator: FyersSimulator) -> Exchange:
    return simulator.exchange


def test_a_market_order_pays_the_asks_from_the_best_on(simulator: FyersSimulator) -> None:
    quote = simulator.market.quote(SBIN)
    levels = quote.levels(buying=True)
    wanted = levels[0][1] + 1

    order = simulator.exchange.place(an_order(qty=wanted))

    prices = [(trade.quantity, trade.price) for trade in simulator.exchange.trades]
    assert prices == [(levels[0][1], levels[0][0]), (1, levels[1][0])]
    assert (order.status, order.filled) == (Status.TRADED, wanted)


def test_what_the_book_cannot_fill_rests_and_fills_later(simulator: FyersSimulator) -> None:
    quote = simulator.market.quote(SBIN)
    there = sum(size for _, size in quote.levels(buying=True))

    order = simulator.exchange.place(an_order(qty=there + 5, type=1, limitPrice=820.0))

    assert (order.status, order.filled) == (Status.PENDING, there)
    price_at(simulator, SBIN, 815.0)
    assert order.status is Status.TRADED


def test_a_limit_order_waits_for_its_price(simulator: FyersSimulator) -> None:
    order = simulator.exchange.place(an_order(type=1, limitPrice=810.0))
    assert order.filled == 0

    price_at(simulator, SBIN, 809.0)

    assert order.status is Status.TRADED
    assert all(trade.price <= 810_00 for trade in simulator.exchange.trades)


def test_a_stop_waits_for_its_trigger_and_then_fills_at_the_market(
    simulator: FyersSimulator,
) -> None:
    order = simulator.exchange.place(an_order(type=3, side=-1, stopPrice=810.0))
    price_at(simulator, SBIN, 812.0)
    assert order.filled == 0

    price_at(simulator, SBIN, 809.5)

    assert (order.status, order.is_triggered) == (Status.TRADED, True)


def test_a_market_order_does_not_fill_beyond_its_protection(simulator: FyersSimulator) -> None:
    quote = simulator.market.quote(SBIN)
    order = simulator.exchange.place(an_order(qty=sum(quote.ask_sizes) + 1))
    assert order.remaining == 1

    price_at(simulator, SBIN, 840.0)  # more than one percent above

    assert order.status is Status.PENDING


@pytest.mark.parametrize(("rupees", "worst"), [(8.0, 9.5), (15.0, 17.25), (100.0, 110.0)])
def test_the_protection_of_options_follows_the_bands(rupees: float, worst: float) -> None:
    contract = a_simulator().market.master[CALL]

    assert protection_price(contract, 1, round(rupees * 100)) == round(worst * 100)


def test_an_immediate_order_is_cancelled_when_it_cannot_trade(exchange: Exchange) -> None:
    order = exchange.place(an_order(type=1, limitPrice=800.0, validity="IOC"))

    assert (order.status, order.filled) == (Status.CANCELLED, 0)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"symbol": "NSE:NOPE-EQ"}, -300),
        ({"symbol": NIFTY}, -50),
        ({"symbol": CALL, "qty": 66}, -50),
        ({"qty": 0}, -50),
        ({"qty": True}, -50),
        ({"type": 1, "limitPrice": 815.42}, -50),
        ({"type": 2, "limitPrice": 815.4}, -50),
        ({"type": 3, "stopPrice": 0}, -50),
        ({"type": 3, "stopPrice": 810.0}, -50),
        ({"type": 4, "limitPrice": 820.0, "stopPrice": 825.0}, -50),
        ({"side": 0}, -50),
        ({"productType": "MARGIN"}, -50),
        ({"symbol": CALL, "qty": 65, "productType": "CNC"}, -50),
        ({"validity": "GTC"}, -50),
        ({"orderTag": "not-allowed"}, -50),
        ({"orderTag": "x" * 31}, -50),
        ({"orderTag": "Untagged"}, -50),
        ({"disclosedQty": 20}, -50),
        ({"offlineOrder": "no"}, -50),
        ({"limitPrice": float("nan"), "type": 1}, -50),
    ],
)
def test_a_wrong_parameter_makes_no_order(
    exchange: Exchange, changes: dict[str, Any], code: int
) -> None:
    with pytest.raises(Refusal) as refused:
        exchange.place(an_order(**changes))

    assert refused.value.code == code
    assert exchange.orders == {}


def test_more_than_the_freeze_quantity_is_rejected_by_the_exchange(exchange: Exchange) -> None:
    order = exchange.place(an_order(symbol=CALL, qty=28 * 65))

    assert order.status is Status.REJECTED
    assert "freeze" in order.message


def test_a_price_outside_the_band_is_rejected_by_the_exchange(
    simulator: FyersSimulator,
) -> None:
    upper = simulator.market.master[SBIN].upper / 100

    order = simulator.exchange.place(an_order(type=1, limitPrice=upper + 0.05))

    assert order.status is Status.REJECTED


def test_what_the_money_does_not_cover_is_rejected_by_the_risk_desk(exchange: Exchange) -> None:
    with pytest.raises(Refusal, match="Margin Shortfall"):
        exchange.place(an_order(qty=10_000, productType="CNC"))

    rejected = list(exchange.orders.values())
    assert [order.status for order in rejected] == [Status.REJECTED]


def test_closing_a_position_needs_no_margin() -> None:
    simulator = a_simulator(balance=15_000.0)
    bought = simulator.exchange.place(an_order(symbol=CALL, qty=65))

    sold = simulator.exchange.place(an_order(symbol=CALL, qty=65, side=-1))

    assert (bought.status, sold.status) == (Status.TRADED, Status.TRADED)


def test_orders_outside_the_session_are_rejected_unless_offline(
    simulator: FyersSimulator,
) -> None:
    at(simulator, time(16, 0))

    with pytest.raises(Refusal, match="closed"):
        simulator.exchange.place(an_order())
    order = simulator.exchange.place(an_order(offlineOrder=True))
    assert (order.status, order.filled) == (Status.PENDING, 0)

    at(simulator, time(9, 15, 1), date(2026, 11, 26))
    assert order.status is Status.TRADED


def test_a_day_order_expires_at_the_close(simulator: FyersSimulator) -> None:
    order = simulator.exchange.place(an_order(type=1, limitPrice=750.0, productType="CNC"))

    at(simulator, time(15, 40))

    assert order.status is Status.EXPIRED


def test_intraday_positions_are_squared_off_by_the_risk_desk(
    simulator: FyersSimulator,
) -> None:
    exchange = simulator.exchange
    exchange.place(an_order(qty=3))
    exchange.place(an_order(symbol=CALL, qty=65))
    resting = exchange.place(an_order(qty=3, type=1, limitPrice=780.0))
    kept = exchange.place(an_order(qty=3, productType="CNC"))

    at(simulator, time(15, 12))
    at(simulator, time(15, 15))

    assert simulator.portfolio.net(CALL) == 0
    assert simulator.portfolio.net(SBIN) == kept.quantity
    assert resting.status is Status.CANCELLED
    assert [o.source for o in exchange.orders.values() if o.source != "ITS"] == ["A", "A"]


def test_delivered_shares_are_holdings_from_the_next_day_and_can_be_sold(
    simulator: FyersSimulator,
) -> None:
    bought = simulator.exchange.place(an_order(qty=3, productType="CNC"))
    at(simulator, time(9, 30), date(2026, 11, 26))
    held = simulator.portfolio.holdings[SBIN]
    assert (held.quantity, held.average) == (3, bought.average)
    assert simulator.portfolio.positions == {}
    with pytest.raises(Refusal, match="3 held"):
        simulator.exchange.place(an_order(qty=4, side=-1, productType="CNC"))

    sold = simulator.exchange.place(an_order(qty=3, side=-1, productType="CNC"))
    assert simulator.portfolio.net(SBIN) == -3
    at(simulator, time(9, 30), date(2026, 11, 27))

    assert simulator.portfolio.holdings == {}
    earned = 3 * (sold.average - bought.average) / 100
    assert simulator.portfolio.balance == pytest.approx(1_000_000 + earned)


def test_shares_that_are_not_there_cannot_be_delivered(exchange: Exchange) -> None:
    with pytest.raises(Refusal, match="0 held"):
        exchange.place(an_order(side=-1, productType="CNC"))


def test_a_derivative_position_is_carried_as_margin(simulator: FyersSimulator) -> None:
    simulator.exchange.place(an_order(symbol=CALL, qty=65, productType="MARGIN"))

    at(simulator, time(9, 30), date(2026, 11, 26))

    position = simulator.portfolio.positions[CALL, "MARGIN"]
    assert (position.net, position.carried_buy) == (65, 65)
    assert simulator.exchange.orders == {}


def test_an_option_settles_at_its_intrinsic_value() -> None:
    simulator = a_simulator(start=datetime(2026, 12, 1, 10, 0, tzinfo=IST))
    simulator.exchange.place(an_order(symbol=CALL, qty=65, productType="MARGIN"))
    price_at(simulator, NIFTY, 25_100.0)
    at(simulator, time(15, 45), date(2026, 12, 1))

    before = simulator.portfolio.balance
    paid = simulator.portfolio.positions[CALL, "MARGIN"].buy_average / 100
    at(simulator, time(9, 30), date(2026, 12, 2))

    assert simulator.portfolio.net(CALL) == 0
    assert simulator.portfolio.balance - before == pytest.approx(65 * (100.0 - paid), abs=0.01)


def test_with_latency_an_order_is_in_transit_first() -> None:
    simulator = a_simulator(latency_s=2.0)
    order = simulator.exchange.place(an_order())
    assert (order.status, order.filled) == (Status.TRANSIT, 0)
    with pytest.raises(Refusal, match="not reached"):
        simulator.exchange.cancel({"id": order.id})

    at(simulator, time(10, 0, 2))

    assert order.status is Status.TRADED


@pytest.mark.parametrize("act", ["cancel", "modify"])
def test_with_latency_a_fill_may_be_faster_than_a_cancel_or_a_change(act: str) -> None:
    simulator = a_simulator(latency_s=2.0)
    exchange = simulator.exchange
    order = exchange.place(an_order(qty=10, type=1, limitPrice=810.0))
    at(simulator, time(10, 0, 2))
    body = {"id": order.id, "type": 1, "limitPrice": 800.0}
    getattr(exchange, act)(body)
    assert order.status is Status.PENDING

    price_at(simulator, SBIN, 809.0)
    at(simulator, time(10, 0, 4))

    assert (order.status, order.filled, order.limit) == (Status.TRADED, 10, 810_00)


def test_with_latency_a_cancel_takes_effect_later() -> None:
    simulator = a_simulator(latency_s=2.0)
    order = simulator.exchange.place(an_order(type=1, limitPrice=800.0))
    at(simulator, time(10, 0, 2))
    simulator.exchange.cancel({"id": order.id})
    assert order in simulator.exchange.pending

    at(simulator, time(10, 0, 4))

    assert order.status is Status.CANCELLED


def test_a_final_order_can_be_neither_changed_nor_cancelled(exchange: Exchange) -> None:
    order = exchange.place(an_order())

    for act in (exchange.cancel, exchange.modify):
        with pytest.raises(Refusal, match="already traded"):
            act({"id": order.id, "type": 2})
    with pytest.raises(Refusal) as unknown:
        exchange.cancel({"id": "1"})
    assert unknown.value.code == -51


def test_exit_closes_what_is_named_and_nothing_else(simulator: FyersSimulator) -> None:
    exchange = simulator.exchange
    exchange.place(an_order(qty=3))
    exchange.place(an_order(symbol=CALL, qty=65))

    exchange.exit({"id": [f"{CALL}-INTRADAY"]})
    assert (simulator.portfolio.net(CALL), simulator.portfolio.net(SBIN)) == (0, 3)

    exchange.exit({"exit_all": 1})
    assert simulator.portfolio.net(SBIN) == 0
    with pytest.raises(Refusal) as nothing:
        exchange.exit({"exit_all": 1})
    assert nothing.value.code == -53


def test_a_position_beyond_the_freeze_quantity_is_closed_in_slices() -> None:
    simulator = a_simulator(balance=10_000_000.0)
    for _ in range(3):
        simulator.exchange.place(an_order(symbol=CALL, qty=10 * 65))
        at(simulator, time(10, 0, len(simulator.exchange.orders)))
    held = simulator.portfolio.net(CALL)
    assert held > 1_800

    slices = simulator.exchange.exit({"exit_all": 1})

    assert [order.quantity for order in slices] == [27 * 65, held - 27 * 65]
    assert {order.status for order in slices} <= {Status.TRADED, Status.PENDING}
    assert len({order.exchange_id for order in simulator.exchange.orders.values()}) == 5


def test_a_converted_position_keeps_its_units(simulator: FyersSimulator) -> None:
    exchange = simulator.exchange
    exchange.place(an_order(qty=5))

    exchange.convert(
        {
            "symbol": f"{SBIN}-INTRADAY",
            "positionSide": 1,
            "convertQty": 2,
            "convertFrom": "INTRADAY",
            "convertTo": "CNC",
        }
    )

    held = {product: p.net for (_, product), p in simulator.portfolio.positions.items()}
    assert held == {"INTRADAY": 3, "CNC": 2}


ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("place"),
            st.sampled_from([SBIN, CALL, FUTURE]),
            st.sampled_from([1, -1]),
            st.sampled_from([1, 2, 3]),
            st.integers(1, 40),
            st.integers(-40, 40),
        ),
        st.tuples(st.just("modify"), st.integers(0, 9), st.integers(-20, 20), st.integers(1, 40)),
        st.tuples(st.just("cancel"), st.integers(0, 9)),
        st.tuples(st.just("wait"), st.integers(1, 30)),
        st.tuples(st.just("exit")),
    ),
    max_size=25,
)


@settings(max_examples=60)
@given(actions=ACTIONS, seed=st.integers(0, 50), latency=st.sampled_from([0.0, 3.0]))
def test_whatever_is_asked_the_books_agree_with_one_another(
    actions: list[tuple[Any, ...]], seed: int, latency: float
) -> None:
    simulator = a_simulator(seed=seed, latency_s=latency)
    told: dict[str, dict[str, Any]] = {}
    fills: list[tuple[str, int]] = []

    def listen(kind: str, event: dict[str, Any]) -> None:
        if kind == "orders":
            assert told.get(event["id"], {}).get("org_ord_status") not in (1, 2, 5, 7)
            told[event["id"]] = event
        elif kind == "trades":
            fills.append((event["symbol"], event["tran_side"] * event["qty_traded"]))

    simulator.exchange.listeners.append(listen)
    for action in actions:
        try:
            _act(simulator, action)
        except Refusal:
            continue

    for order in simulator.exchange.orders.values():
        _check_order(simulator.exchange, order, told[order.id])
    for symbol in (SBIN, CALL, FUTURE):
        assert simulator.portfolio.net(symbol) == sum(q for name, q in fills if name == symbol)


def _act(simulator: FyersSimulator, action: tuple[Any, ...]) -> None:
    exchange, market = simulator.exchange, simulator.market
    match action:
        case ("place", symbol, side, type_, lots, ticks):
            quote = market.quote(symbol)
            price = max(1, quote.last // quote.contract.tick + ticks) * quote.contract.tick / 100
            exchange.place(
                an_order(
                    symbol=symbol,
                    side=side,
                    type=type_,
                    qty=lots * quote.contract.lot,
                    limitPrice=price if type_ == 1 else 0,
                    stopPrice=price if type_ == 3 else 0,
                )
            )
        case ("modify", number, ticks, lots):
            order = _numbered(exchange, number)
            tick = order.contract.tick
            price = max(1, market.quote(order.contract.symbol).last // tick + ticks) * tick / 100
            quantity = lots * order.contract.lot
            exchange.modify({"id": order.id, "type": 1, "limitPrice": price, "qty": quantity})
        case ("cancel", number):
            exchange.cancel({"id": _numbered(exchange, number).id})
        case ("wait", seconds):
            for _ in range(seconds):
                market.advance_to(market.now_ns + 10**9)
                exchange.step()
        case ("exit",):
            exchange.exit({"exit_all": 1})
        case _:
            raise AssertionError(action)


def _numbered(exchange: Exchange, number: int) -> Order:
    orders = list(exchange.orders.values())
    if number >= len(orders):
        raise Refusal(-51, "no such order")
    return orders[number]


def _check_order(exchange: Exchange, order: Order, event: dict[str, Any]) -> None:
    trades = [trade for trade in exchange.trades if trade.order is order]
    assert sum(trade.quantity for trade in trades) == order.filled <= order.quantity
    assert (order.status is Status.TRADED) == (order.filled == order.quantity)
    assert (event["org_ord_status"], event["qty_filled"]) == (order.status, order.filled)
    assert all(trade.quantity > 0 and trade.price % order.contract.tick == 0 for trade in trades)
    assert (order.id in {pending.id for pending in exchange.pending}) != order.status.is_final
