"""Lots, ticks and names of instruments."""

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.instruments import Instrument, InstrumentCatalogue, Toward, UnknownInstrument

BROKERAGE = Decimal(25)

BANK_NIFTY = Instrument(
    symbol="Bank_Nifty",
    name="Bank Nifty",
    exchange_symbol="NSE:NIFTYBANK-INDEX",
    kind="index",
    lot_size=35,
    tick_size=Decimal("0.05"),
    option_premium_range=(Decimal("0.02"), Decimal("0.03")),
)
NIFTY = Instrument(
    symbol="Nifty",
    name="Nifty 50",
    exchange_symbol="NSE:NIFTY50-INDEX",
    kind="index",
    lot_size=75,
    tick_size=Decimal("0.05"),
    option_premium_range=(Decimal("0.01"), Decimal("0.02")),
)
RELIANCE = Instrument(
    symbol="Reliance",
    name="Reliance Industries",
    exchange_symbol="NSE:RELIANCE-EQ",
    kind="stock",
    lot_size=1,
    tick_size=Decimal("0.05"),
)
EURUSD = Instrument(
    symbol="EURUSD",
    name="Euro / US dollar",
    exchange_symbol="FX:EURUSD",
    kind="stock",
    lot_size=1000,
    tick_size=Decimal("0.00001"),
)
CATALOGUE = InstrumentCatalogue([BANK_NIFTY, NIFTY, RELIANCE, EURUSD])

PRICES = st.decimals(min_value="0.01", max_value=200_000, places=4)
INSTRUMENTS = st.sampled_from([BANK_NIFTY, NIFTY, RELIANCE, EURUSD])
DIRECTIONS: st.SearchStrategy[Toward] = st.sampled_from(["nearest", "up", "down"])


@pytest.mark.parametrize(
    ("instrument", "price", "capital", "cost", "max_lots", "predicted"),
    [
        (
            BANK_NIFTY,
            50_000,
            100_000,
            43_750,
            2,
            {0.2: 1, 1: 1, 2: 2, 5: 2, 49: 2, 50: 2, 1000: 2},
        ),
        (NIFTY, 25_000, 100_000, 28_125, 3, {2.5: 2, 3.5: 3, 3: 3, 60: 3}),
        (RELIANCE, 1400, 1424, 1400, 0, {1: 0}),
        (RELIANCE, 1400, 1425, 1400, 1, {1: 1}),
        (BANK_NIFTY, 50_000, 20_000, 43_750, 0, {1: 0, 50: 0}),
    ],
)
def test_position_sizes_are_those_of_the_existing_system(
    instrument: Instrument,
    price: int,
    capital: int,
    cost: int,
    max_lots: int,
    predicted: dict[float, int],
) -> None:
    assert instrument.cost_per_lot(Decimal(price)) == cost
    assert instrument.max_lots(Decimal(price), Decimal(capital), BROKERAGE) == max_lots
    for quantity, lots in predicted.items():
        assert instrument.adjusted_lots(quantity, max_lots) == lots


def test_a_known_premium_replaces_the_usual_range() -> None:
    assert NIFTY.cost_per_lot(Decimal(25_000), premium=Decimal(150)) == 11_250
    assert NIFTY.max_lots(Decimal(25_000), Decimal(22_525), BROKERAGE, premium=Decimal(150)) == 2


def test_a_premium_means_nothing_for_a_stock() -> None:
    assert RELIANCE.cost_per_lot(Decimal(1400), premium=Decimal(10)) == 1400


def test_an_index_without_a_range_costs_the_usual_one() -> None:
    sensex = replace(NIFTY, option_premium_range=None)

    assert sensex.cost_per_lot(Decimal(1000)) == Decimal("37.5") * 75


def test_capital_for_lots_is_their_cost() -> None:
    assert NIFTY.capital_for(Decimal(25_000), 2) == 56_250
    assert NIFTY.units(2) == 150


@pytest.mark.parametrize(
    ("price", "toward", "expected"),
    [
        ("100.02", "nearest", "100.00"),
        ("100.03", "nearest", "100.05"),
        ("100.025", "nearest", "100.00"),
        ("100.075", "nearest", "100.10"),
        ("100.01", "up", "100.05"),
        ("100.04", "down", "100.00"),
        ("100.05", "up", "100.05"),
        ("0", "down", "0"),
    ],
)
def test_prices_move_onto_the_tick_grid(price: str, toward: Toward, expected: str) -> None:
    assert NIFTY.round_to_tick(Decimal(price), toward) == Decimal(expected)


@given(instrument=INSTRUMENTS, price=PRICES, toward=DIRECTIONS)
def test_rounding_lands_on_the_grid_within_a_tick_on_the_asked_side(
    instrument: Instrument, price: Decimal, toward: Toward
) -> None:
    rounded = instrument.round_to_tick(price, toward)

    assert rounded % instrument.tick_size == 0
    assert instrument.round_to_tick(rounded, toward) == rounded
    distance = rounded - price
    if toward == "up":
        assert 0 <= distance < instrument.tick_size
    elif toward == "down":
        assert 0 <= -distance < instrument.tick_size
    else:
        assert abs(distance) <= instrument.tick_size / 2


@given(
    instrument=INSTRUMENTS,
    price=PRICES,
    capital=st.decimals(min_value=-1_000_000, max_value=100_000_000, places=2),
)
def test_the_most_lots_are_affordable_and_one_more_is_not(
    instrument: Instrument, price: Decimal, capital: Decimal
) -> None:
    lots = instrument.max_lots(price, capital, BROKERAGE)

    assert lots >= 0
    if lots:
        assert instrument.capital_for(price, lots) + BROKERAGE <= capital
    assert instrument.capital_for(price, lots + 1) + BROKERAGE > capital


@given(predicted=st.floats(allow_nan=False), max_lots=st.integers(min_value=0, max_value=100_000))
def test_adjusted_lots_stay_between_one_and_what_is_affordable(
    predicted: float, max_lots: int
) -> None:
    lots = NIFTY.adjusted_lots(predicted, max_lots)

    assert min(1, max_lots) <= lots <= max_lots


@given(
    smaller=st.floats(min_value=0, max_value=1),
    larger=st.floats(min_value=0, max_value=1),
    max_lots=st.integers(min_value=0, max_value=100_000),
)
def test_a_larger_fraction_never_gives_fewer_lots(
    smaller: float, larger: float, max_lots: int
) -> None:
    smaller, larger = sorted((smaller, larger))

    fewer = NIFTY.lots_for_fraction(smaller, max_lots)
    more = NIFTY.lots_for_fraction(larger, max_lots)

    assert min(1, max_lots) <= fewer <= more <= max_lots


def test_fractions_round_halves_to_even() -> None:
    assert NIFTY.lots_for_fraction(0.5, 5) == 2
    assert NIFTY.lots_for_fraction(0.5, 7) == 4
    assert NIFTY.lots_for_fraction(1.0, 7) == 7
    assert NIFTY.lots_for_fraction(0.0, 7) == 1
    assert NIFTY.lots_for_fraction(1.0, 0) == 0


def test_numbers_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="was NaN"):
        NIFTY.adjusted_lots(float("nan"), 3)
    with pytest.raises(ValueError, match=r"fraction must lie in \[0, 1\], was 1.5"):
        NIFTY.lots_for_fraction(1.5, 3)
    with pytest.raises(ValueError, match="above 0, was 0"):
        NIFTY.cost_per_lot(Decimal(0))
    with pytest.raises(ValueError, match="premium of Nifty must be above 0, was -1"):
        NIFTY.cost_per_lot(Decimal(1), premium=Decimal(-1))
    with pytest.raises(ValueError, match="0 or more, was NaN"):
        NIFTY.round_to_tick(Decimal("NaN"))
    with pytest.raises(ValueError, match="lots must be 0 or more, was -1"):
        NIFTY.capital_for(Decimal(1), -1)
    with pytest.raises(ValueError, match="capital must be a finite amount"):
        NIFTY.max_lots(Decimal(1), Decimal("Infinity"), BROKERAGE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lot_size": 0}, "lot_size must be at least 1 unit, was 0"),
        ({"tick_size": Decimal(0)}, "tick_size must be above 0, was 0"),
        ({"tick_size": Decimal("NaN")}, "tick_size must be above 0"),
        ({"exchange_symbol": "NIFTY"}, "must read EXCHANGE:SYMBOL, was 'NIFTY'"),
        ({"symbol": " "}, "must not be empty"),
        ({"option_premium_range": (Decimal("0.3"), Decimal("0.2"))}, "0 < low <= high < 1"),
        ({"kind": "stock"}, "belongs to an index"),
    ],
)
def test_impossible_instruments_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(NIFTY, **changes)  # type: ignore[arg-type]  # the wrong values are the point


@pytest.mark.parametrize(
    ("instrument", "session"),
    [(NIFTY, "NSE"), (RELIANCE, "NSE_CASH"), (EURUSD, "FX")],
)
def test_the_market_follows_from_the_broker_symbol(instrument: Instrument, session: str) -> None:
    assert instrument.session == session


@pytest.mark.parametrize(
    ("exchange_symbol", "segment"),
    [
        ("NSE:NIFTY50-INDEX", "index"),
        ("BSE:SENSEX-INDEX", "index"),
        ("NSE:RELIANCE-EQ", "derivative_shares"),
        ("NSE:NIFTY26NOVFUT", "equity_derivatives"),
        ("FX:EURUSD", None),
    ],
)
def test_the_segment_of_prices_follows_from_the_broker_symbol(
    exchange_symbol: str, segment: str | None
) -> None:
    assert replace(NIFTY, exchange_symbol=exchange_symbol).price_segment == segment


def test_a_given_session_wins_over_the_broker_symbol() -> None:
    assert replace(NIFTY, session="BSE").session == "BSE"
    assert replace(NIFTY, session="BSE").exchange == "NSE"


@pytest.mark.parametrize(
    ("name", "symbol"),
    [
        ("Bank_Nifty", "Bank_Nifty"),
        ("bank nifty", "Bank_Nifty"),
        ("BANKNIFTY", "Bank_Nifty"),
        ("Nifty", "Nifty"),
        ("NIFTY50", "Nifty"),
        ("Nifty_50", "Nifty"),
        ("RELIANCE", "Reliance"),
        ("reliance industries", "Reliance"),
        ("NSE:NIFTYBANK-INDEX", "Bank_Nifty"),
    ],
)
def test_instruments_are_found_by_any_known_spelling(name: str, symbol: str) -> None:
    assert CATALOGUE[name].symbol == symbol
    assert name in CATALOGUE


def test_an_unknown_instrument_names_the_nearest() -> None:
    with pytest.raises(UnknownInstrument, match="unknown instrument 'Banknify': did you mean Bank"):
        CATALOGUE["Banknify"]


def test_an_instrument_like_no_other_names_all() -> None:
    with pytest.raises(ValueError, match="known are Bank_Nifty, Nifty, Reliance, EURUSD"):
        CATALOGUE["zzzzzzzzzzzzzzzz"]


def test_the_catalogue_keeps_its_order_and_can_be_extended() -> None:
    small = InstrumentCatalogue([NIFTY])

    larger = small.extended([EURUSD])

    assert larger.symbols == ("Nifty", "EURUSD")
    assert [instrument.symbol for instrument in larger] == ["Nifty", "EURUSD"]
    assert len(small) == 1
    assert "EURUSD" not in small
    assert 5 not in small


def test_names_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ValueError, match="'nifty 50' of Other also names Nifty"):
        InstrumentCatalogue(
            [NIFTY, replace(NIFTY, symbol="Other", name="nifty 50", exchange_symbol="NSE:X")]
        )
