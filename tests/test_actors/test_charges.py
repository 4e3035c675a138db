"""What an order costs at the rates of its day."""

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.charges import (
    ChargeTable,
    NoChargeRates,
    Product,
    product_of,
    taxed_side,
    turnover_of,
)
from actors.instruments import Instrument
from actors.messages import Side
from daemon.config_files import Problems
from daemon.market_files import read_charges

CONFIG = Path(__file__).parents[2] / "config"
DAY = date(2026, 11, 25)
PAISA = Decimal("0.01")


def shipped() -> ChargeTable:
    problems = Problems()
    table = read_charges(CONFIG, problems)
    problems.raise_if_any()
    return table


TABLE = shipped()


def an_instrument(exchange_symbol: str, kind: str = "stock") -> Instrument:
    return Instrument(
        symbol="It",
        name="It",
        exchange_symbol=exchange_symbol,
        kind="index" if kind == "index" else "stock",
        lot_size=65,
        tick_size=Decimal("0.05"),
        option_premium_range=(Decimal("0.01"), Decimal("0.03")) if kind == "index" else None,
    )


def total(exchange: str, product: Product, side: Side, turnover: str) -> Decimal:
    return TABLE.on(exchange, product, DAY).charges(side, Decimal(turnover)).total


def test_an_option_bought_and_sold_costs_what_was_worked_out_by_hand() -> None:
    rates = TABLE.on("NSE", "options", DAY)

    bought = rates.charges("buy", Decimal(6500))
    sold = rates.charges("sell", Decimal(7150))

    assert bought.transaction_tax == 0
    assert sold.transaction_tax == Decimal("10.725")
    assert bought.exchange + sold.exchange == Decimal("4.84848")
    assert bought.investor_fund + sold.investor_fund == Decimal("0.001365")
    assert bought.regulator + sold.regulator == Decimal("0.01365")
    assert (bought.stamp_duty, sold.stamp_duty) == (Decimal("0.195"), Decimal(0))
    assert bought.clearing + sold.clearing == Decimal("1.2285")
    assert bought.brokerage + sold.brokerage == 40
    assert bought.total + sold.total == Decimal("65.31")


def test_a_future_bought_and_sold_costs_what_was_worked_out_by_hand() -> None:
    value = Decimal(65 * 25_000)
    rates = TABLE.on("NSE", "futures", DAY)

    bought, sold = rates.charges("buy", value), rates.charges("sell", value)

    assert sold.transaction_tax == Decimal("812.5")
    assert bought.stamp_duty == Decimal("32.5")
    # 40 + 59.47175 + 0.00325 + 3.25 + 16.25 are taxed at 18 %
    assert bought.goods_and_services_tax + sold.goods_and_services_tax == Decimal("21.4155")
    # 985.3905 together; each order is rounded by itself
    assert (bought.total, sold.total) == (Decimal("102.70"), Decimal("882.70"))


@pytest.mark.parametrize(
    ("exchange", "product", "side", "turnover", "expected"),
    [
        # 3.00 + 0.30699 + 0.00001 + 0.01; with 18 %: 3.914460; stamp 0.30
        ("NSE", "equity_intraday", "buy", "10000", "4.21"),
        ("NSE", "equity_intraday", "sell", "10000", "6.41"),  # 3.914460, STT 2.50
        # 20 (0.03 % would be 300) + 30.699 + 0.001 + 1, with 18 %: 61.006; STT 250
        ("NSE", "equity_intraday", "sell", "1000000", "311.01"),
        # 20 + 0.375 + 0 + 0.01, with 18 %: 24.0543; STT 10, stamp 1.50
        ("BSE", "equity_delivery", "buy", "10000", "35.55"),
        ("BSE", "options", "sell", "10000", "43.51"),  # 20 + 3.25 + 0.01 + 0.9, 18 %: 28.5088; 15
        ("BSE", "futures", "sell", "1000000", "530.68"),  # 20 + 1 + 5, 18 %: 30.68; 500
    ],
)
def test_orders_cost_what_was_worked_out_by_hand(
    exchange: str, product: Product, side: Side, turnover: str, expected: str
) -> None:
    assert total(exchange, product, side, turnover) == Decimal(expected)


def test_the_rates_are_those_of_the_day() -> None:
    def tax(product: Product, day: date) -> Decimal:
        return TABLE.on("NSE", product, day).charges("sell", Decimal(10_000)).transaction_tax

    before, since = date(2026, 3, 31), date(2026, 4, 1)
    assert [tax("options", day) for day in (before, since)] == [10, 15]
    assert [tax("futures", day) for day in (before, since)] == [2, 5]


def test_a_day_before_the_first_row_is_refused_by_name() -> None:
    with pytest.raises(NoChargeRates, match=r"known from 2026-03-01, not on 2026-02-28: add a row"):
        TABLE.on("NSE", "options", date(2026, 2, 28))


def test_an_exchange_without_rates_is_refused_by_name() -> None:
    with pytest.raises(NoChargeRates, match="no charges are known for equity_intraday on FX"):
        TABLE.of_instrument(an_instrument("FX:EURUSD"), DAY)


def test_rows_that_do_not_ascend_are_refused() -> None:
    rows = TABLE.model_dump()
    rows["rates"]["NSE"]["options"] = rows["rates"]["NSE"]["options"][::-1]

    with pytest.raises(ValueError, match="NSE options needs at least one row, oldest first"):
        ChargeTable.model_validate(rows)


@pytest.mark.parametrize(
    ("symbol", "kind", "product"),
    [
        ("NSE:NIFTY50-INDEX", "index", "options"),
        ("NSE:NIFTY26D0125000CE", "stock", "options"),
        ("NSE:NIFTY26NOVFUT", "stock", "futures"),
        ("NSE:RELIANCE-EQ", "stock", "equity_intraday"),
    ],
)
def test_the_product_follows_from_the_symbol(symbol: str, kind: str, product: Product) -> None:
    assert product_of(an_instrument(symbol, kind)) == product


def test_bankex_is_charged_as_an_index_of_bse_though_its_symbol_says_nse() -> None:
    rates = TABLE.of_instrument(an_instrument("NSE:BANKEX-INDEX", "index"), DAY)

    assert rates.transaction_per_crore == 3250


def test_an_index_is_charged_on_the_estimated_premium_as_a_purchase_first() -> None:
    index = an_instrument("NSE:NIFTY50-INDEX", "index")
    share = an_instrument("NSE:RELIANCE-EQ")

    assert turnover_of(index, Decimal(25_000), 130) == 500 * 130
    assert turnover_of(share, Decimal(1400), 10) == 14_000
    assert taxed_side(index, "sell", "entry") == "buy"  # a put
    assert taxed_side(index, "buy", "exit") == "sell"
    assert taxed_side(share, "sell", "entry") == "sell"


def test_a_turnover_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="turnover must be above 0 rupees, was 0"):
        TABLE.on("NSE", "options", DAY).charges("buy", Decimal(0))


@given(
    turnover=st.decimals(1000, 10**9, places=2),
    more=st.decimals(1, 10**9, places=2),
    side=st.sampled_from(["buy", "sell"]),
    product=st.sampled_from(["equity_intraday", "equity_delivery", "futures", "options"]),
    exchange=st.sampled_from(["NSE", "BSE"]),
)
def test_more_turnover_never_costs_less_and_totals_are_whole_paise(
    turnover: Decimal, more: Decimal, side: Side, product: Product, exchange: str
) -> None:
    rates = TABLE.on(exchange, product, DAY)

    one, both = rates.charges(side, turnover).total, rates.charges(side, turnover + more).total

    assert 0 < one <= both
    assert one % PAISA == 0
