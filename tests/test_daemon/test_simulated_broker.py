import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
from builders import (
    MINUTE_NS,
    OPEN_NS,
    SECOND_NS,
    a_calendar,
    a_catalogue,
    a_tick,
    an_order,
)

from actors.instruments import InstrumentCatalogue
from actors.messages import ExecutionReport, PlaceOrder
from daemon.brokers.base import Broker
from daemon.brokers.simulated import SimulatedBroker, SimulationSettings
from daemon.errors import BrokerRejected


def a_broker(**fields: Any) -> SimulatedBroker:
    """Return a broker that has seen one tick of Nifty at 22000, one tick of slippage."""
    settings = SimulationSettings(**({"slippage_bps": Decimal(0)} | fields))
    broker = SimulatedBroker(a_catalogue(), settings, a_calendar())
    broker.on_tick(a_tick("22000", OPEN_NS))
    return broker


async def reports_of(broker: SimulatedBroker) -> list[ExecutionReport]:
    """Take all reports that are waiting."""
    stream = broker.reports()
    return [await anext(stream) for _ in range(broker.pending_reports)]


async def test_it_is_a_broker_and_not_live() -> None:
    broker: Broker = a_broker()

    assert not broker.is_remote
    await broker.close()


async def test_a_market_order_rests_until_the_next_tick_and_fills_there() -> None:
    broker = a_broker()

    await broker.place(an_order())
    before = await reports_of(broker)
    broker.on_tick(a_tick("22010", OPEN_NS + 1))
    after = await reports_of(broker)

    assert [report.status for report in before] == ["accepted"]
    assert after == [
        ExecutionReport(
            execution_id="order1-2",
            client_order_id="order1",
            instrument="Nifty",
            side="buy",
            status="filled",
            event_ns=OPEN_NS + 1,
            last_quantity=75,
            last_price=Decimal("22010.05"),
            cumulative_quantity=75,
        )
    ]


async def test_a_tick_as_old_as_the_order_does_not_fill_it() -> None:
    broker = a_broker()
    await broker.place(an_order(placed_ns=OPEN_NS + 5))

    broker.on_tick(a_tick("22010", OPEN_NS + 5))

    assert [report.status for report in await reports_of(broker)] == ["accepted"]


async def test_a_modified_limit_is_what_the_order_fills_at() -> None:
    broker = a_broker(slippage_ticks=0)
    await broker.place(an_order(order_type="limit", limit_price=Decimal(21900)))
    broker.on_tick(a_tick("21950", OPEN_NS + 1))

    await broker.modify("order1", Decimal(21950))
    broker.on_tick(a_tick("21950", OPEN_NS + 2))

    reports = await reports_of(broker)
    assert [report.status for report in reports] == ["accepted", "filled"]
    assert reports[-1].last_price == Decimal(21950)
    with pytest.raises(BrokerRejected, match="it is filled"):
        await broker.modify("order1", Decimal(21960))


@pytest.mark.parametrize("limit", ["0", "21900.01", "NaN"])
async def test_a_limit_that_no_order_could_have_is_not_taken(limit: str) -> None:
    broker = a_broker()
    await broker.place(an_order(order_type="limit", limit_price=Decimal(21900)))

    with pytest.raises(BrokerRejected, match="limit"):
        await broker.modify("order1", Decimal(limit))


async def test_a_market_order_and_an_unknown_one_have_no_limit_to_modify() -> None:
    broker = a_broker()
    await broker.place(an_order())

    for tag in ("order1", "stranger"):
        with pytest.raises(BrokerRejected, match="no resting limit"):
            await broker.modify(tag, Decimal(21900))


async def test_an_order_of_the_freeze_quantity_is_rejected() -> None:
    nifty = replace(a_catalogue()["Nifty"], freeze_quantity=150)
    broker = SimulatedBroker(InstrumentCatalogue([nifty]), SimulationSettings())
    broker.on_tick(a_tick())

    await broker.place(an_order(75))

    with pytest.raises(BrokerRejected, match="below the freeze quantity 150, was 150"):
        await broker.place(an_order(150, client_order_id="order2"))


async def test_an_order_is_not_filled_by_ticks_of_another_instrument() -> None:
    broker = a_broker()
    await broker.place(an_order())

    broker.on_tick(a_tick("48000", OPEN_NS + 1, instrument="Bank_Nifty"))

    assert [report.status for report in await reports_of(broker)] == ["accepted"]


@pytest.mark.parametrize(
    ("side", "fields", "price"),
    [
        ("buy", {}, "22000.05"),
        ("sell", {}, "21999.95"),
        ("buy", {"ask": Decimal("22000.50")}, "22000.55"),
        ("sell", {"bid": Decimal("21999.50")}, "21999.45"),
    ],
)
async def test_slippage_is_always_against_the_order(
    side: str, fields: dict[str, Decimal], price: str
) -> None:
    broker = a_broker()
    await broker.place(an_order(side=side))

    broker.on_tick(a_tick("22000", OPEN_NS + 1, **fields))

    assert (await reports_of(broker))[-1].last_price == Decimal(price)


@pytest.mark.parametrize(("side", "price"), [("buy", "22001.15"), ("sell", "21998.85")])
async def test_slippage_in_basis_points_comes_on_top_and_rounds_against_the_order(
    side: str, price: str
) -> None:
    broker = a_broker(slippage_bps=Decimal("0.5"))
    await broker.place(an_order(side=side))

    broker.on_tick(a_tick("22000", OPEN_NS + 1))  # 0.05 + 22000 * 0.00005 = 1.15

    assert (await reports_of(broker))[-1].last_price == Decimal(price)


async def test_a_limit_order_waits_until_its_price_is_reached_and_fills_no_worse() -> None:
    broker = a_broker()
    await broker.place(an_order(order_type="limit", limit_price=Decimal("21990.00")))

    broker.on_tick(a_tick("21990.05", OPEN_NS + 1))
    waiting = await reports_of(broker)
    broker.on_tick(a_tick("21990.00", OPEN_NS + 2))

    assert [report.status for report in waiting] == ["accepted"]
    assert (await reports_of(broker))[-1].last_price == Decimal("21990.00")


async def test_a_limit_order_to_sell_fills_above_its_price() -> None:
    broker = a_broker()
    await broker.place(an_order(side="sell", order_type="limit", limit_price=Decimal("22010.00")))

    broker.on_tick(a_tick("22020", OPEN_NS + 1))

    assert (await reports_of(broker))[-1].last_price == Decimal("22019.95")


async def test_a_large_order_fills_over_several_ticks() -> None:
    broker = a_broker(max_lots_per_tick=2)
    await broker.place(an_order(375))

    for number in range(1, 4):
        broker.on_tick(a_tick("22000", OPEN_NS + number))

    reports = await reports_of(broker)
    assert [report.status for report in reports] == [
        "accepted",
        "partially_filled",
        "partially_filled",
        "filled",
    ]
    assert [report.last_quantity for report in reports] == [0, 150, 150, 75]
    assert [report.cumulative_quantity for report in reports] == [0, 150, 300, 375]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"instrument": "Atlantis"}, "unknown instrument 'Atlantis'"),
        ({"quantity": 80}, "quantity must be a multiple of the lot 75, was 80"),
        ({"quantity": 0}, "quantity must be a multiple of the lot 75, was 0"),
        ({"instrument": "Bank_Nifty", "quantity": 35}, "no price of Bank_Nifty yet"),
        ({"order_type": "limit"}, "must be above 0, was None"),
        ({"order_type": "limit", "limit_price": Decimal("1.01")}, "must be a multiple of 0.05"),
    ],
)
async def test_an_impossible_order_is_rejected_and_leaves_no_trace(
    fields: dict[str, Any], why: str
) -> None:
    broker = a_broker()

    with pytest.raises(BrokerRejected, match=why):
        await broker.place(an_order(**fields))

    assert broker.pending_reports == 0
    assert await broker.find("order1") is None


async def test_the_same_order_again_is_the_same_order() -> None:
    broker = a_broker()
    await broker.place(an_order())
    await broker.place(an_order())

    broker.on_tick(a_tick("22000", OPEN_NS + 1))

    assert [report.status for report in await reports_of(broker)] == ["accepted", "filled"]
    assert await broker.positions() == {"Nifty": 75}


async def test_another_order_under_a_known_id_is_rejected() -> None:
    broker = a_broker()
    await broker.place(an_order(75))

    with pytest.raises(BrokerRejected, match="belongs to another order: buy 75 Nifty"):
        await broker.place(an_order(150))


async def test_a_cancelled_order_never_fills() -> None:
    broker = a_broker()
    await broker.place(an_order())

    await broker.cancel("order1")
    broker.on_tick(a_tick("22000", OPEN_NS + 1))

    assert [report.status for report in await reports_of(broker)] == ["accepted", "cancelled"]


@pytest.mark.parametrize(("tag", "state"), [("order1", "filled"), ("order9", "unknown here")])
async def test_what_does_not_rest_cannot_be_cancelled(tag: str, state: str) -> None:
    broker = a_broker()
    await broker.place(an_order())
    broker.on_tick(a_tick("22000", OPEN_NS + 1))

    with pytest.raises(BrokerRejected, match=f"does not rest: it is {state}"):
        await broker.cancel(tag)


async def test_find_returns_the_reports_as_they_were_told_or_proves_absence() -> None:
    broker = a_broker()
    await broker.place(an_order())
    broker.on_tick(a_tick("22000", OPEN_NS + 1))

    assert await broker.find("order1") == await reports_of(broker)
    assert await broker.find("order2") is None


async def test_open_orders_are_those_that_may_still_fill() -> None:
    broker = a_broker()
    resting = an_order(client_order_id="b", order_type="limit", limit_price=Decimal(21000))
    await broker.place(an_order(client_order_id="a"))
    await broker.place(resting)

    broker.on_tick(a_tick("22000", OPEN_NS + 1))

    assert await broker.open_orders() == [resting]


async def test_cancel_all_takes_every_resting_order_back() -> None:
    broker = a_broker()
    await broker.place(an_order(client_order_id="a"))
    await broker.place(an_order(client_order_id="b"))

    assert await broker.cancel_all() == ["a", "b"]
    assert await broker.open_orders() == []
    assert await broker.cancel_all() == []


async def test_positions_leave_zeros_out_and_begin_with_what_was_held() -> None:
    broker = SimulatedBroker(
        a_catalogue(), SimulationSettings(), positions={"Nifty": -75, "Bank_Nifty": 35}
    )
    broker.on_tick(a_tick("22000", OPEN_NS))
    await broker.place(an_order())

    broker.on_tick(a_tick("22000", OPEN_NS + 1))

    assert await broker.positions() == {"Bank_Nifty": 35}


async def test_a_resting_order_expires_with_its_session_day() -> None:
    broker = a_broker()
    await broker.place(an_order())

    broker.on_tick(a_tick("22500", OPEN_NS + 24 * 60 * MINUTE_NS))

    assert [report.status for report in await reports_of(broker)] == ["accepted", "expired"]
    assert await broker.positions() == {}


async def test_a_tick_older_than_the_last_changes_nothing() -> None:
    broker = a_broker()
    broker.on_tick(a_tick("22000", OPEN_NS + 10 * SECOND_NS))
    await broker.place(an_order())

    broker.on_tick(a_tick("21000", OPEN_NS + 5 * SECOND_NS))

    assert [report.status for report in await reports_of(broker)] == ["accepted"]


async def test_reports_wait_for_the_next_one() -> None:
    broker = a_broker()
    reader = asyncio.ensure_future(anext(broker.reports()))
    await asyncio.sleep(0)

    await broker.place(an_order())

    assert (await asyncio.wait_for(reader, 20)).status == "accepted"


async def test_the_same_ticks_and_orders_give_the_same_reports() -> None:
    async def play() -> list[ExecutionReport]:
        broker = a_broker(max_lots_per_tick=1)
        order: PlaceOrder = an_order(150)
        await broker.place(order)
        for number in range(1, 5):
            broker.on_tick(a_tick(str(22000 + number), OPEN_NS + number))
        return await reports_of(broker)

    assert await play() == await play()
