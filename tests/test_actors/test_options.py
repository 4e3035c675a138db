"""Which option stands for a view, and in what orders it may be bought."""

from datetime import date
from decimal import Decimal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages import OptionContract, OptionKind
from actors.options import (
    KIND_OF_VIEW,
    NoContract,
    OrderRefused,
    Strategy,
    View,
    check_limit_price,
    choose_option,
    split_quantity,
)

TODAY = date(2026, 11, 25)
NEXT = date(2026, 12, 1)
VIEW_OF: dict[OptionKind, View] = {kind: view for view, kind in KIND_OF_VIEW.items()}


def an_option(strike: int, kind: OptionKind = "CE", expiry: date = NEXT) -> OptionContract:
    return OptionContract(
        symbol=f"NSE:X{expiry:%d%m}{strike}{kind}",
        kind=kind,
        strike=Decimal(strike),
        expiry=expiry,
        lot_size=65,
        freeze_quantity=1800,
        tick_size=Decimal("0.05"),
        lower_price=Decimal("0.05"),
        upper_price=Decimal("900.00"),
        updated=TODAY,
    )


def a_chain(*strikes: int, expiry: date = NEXT) -> list[OptionContract]:
    return [an_option(strike, kind, expiry) for strike in strikes for kind in KIND_OF_VIEW.values()]


def chosen(
    options: list[OptionContract],
    view: View = "long",
    spot: str = "45250",
    strategy: Strategy = "ITM",
    *,
    on_expiry_day: bool = True,
) -> OptionContract:
    return choose_option(
        options,
        view=view,
        spot=Decimal(spot),
        today=TODAY,
        valid_from=TODAY,
        strategy=strategy,
        on_expiry_day=on_expiry_day,
    )


WIDE = (45000, 45100, 45200, 45300, 45400)


@pytest.mark.parametrize(
    ("spot", "strikes", "kind", "strike"),
    [
        # The worked examples of the existing system.
        (45250, WIDE, "CE", 45200),
        (45250, WIDE, "PE", 45300),
        (45200, WIDE, "CE", 45200),
        (45200, WIDE, "PE", 45200),
        (44900, (45000, 45100), "CE", None),
        (44900, (45000, 45100), "PE", 45000),
        (45500, (45000, 45100), "CE", 45100),
        (45500, (45000, 45100), "PE", None),
    ],
)
def test_in_the_money_means_the_nearest_strike_at_or_behind_the_spot(
    spot: int, strikes: tuple[int, ...], kind: OptionKind, strike: int | None
) -> None:
    chain = a_chain(*strikes)

    if strike is None:
        with pytest.raises(NoContract, match=f"no ITM {kind} at a spot of {spot}"):
            chosen(chain, VIEW_OF[kind], str(spot))
    else:
        found = chosen(chain, VIEW_OF[kind], str(spot))
        assert found.kind == kind
        assert found.strike == strike


@pytest.mark.parametrize(
    ("view", "spot", "strategy", "strike"),
    [
        ("long", "45260", "ATM", 45300),
        ("long", "45240", "ATM", 45200),
        ("long", "45250", "ATM", 45200),  # of two, the one in the money
        ("short", "45250", "ATM", 45300),
        ("long", "45250", "OTM", 45300),
        ("short", "45250", "OTM", 45200),
        ("long", "45200", "OTM", 45300),  # at the spot is not out of the money
    ],
)
def test_other_strategies_choose_other_strikes(
    view: View, spot: str, strategy: Strategy, strike: int
) -> None:
    assert chosen(a_chain(*WIDE), view, spot, strategy).strike == strike


def test_the_nearest_expiry_is_found_by_date_whatever_the_order_of_the_rows() -> None:
    passed, near, far = date(2026, 11, 23), date(2026, 11, 30), date(2026, 12, 8)
    chain = [option for day in (far, passed, near) for option in a_chain(*WIDE, expiry=day)]

    assert chosen(chain).expiry == near


def test_a_contract_that_expires_today_counts_unless_told_otherwise() -> None:
    chain = a_chain(*WIDE, expiry=TODAY) + a_chain(*WIDE, expiry=NEXT)

    assert chosen(chain).expiry == TODAY
    assert chosen(chain, on_expiry_day=False).expiry == NEXT
    with pytest.raises(NoContract, match="no CE expires after 2026-11-25: the last one expires on"):
        chosen(a_chain(*WIDE, expiry=TODAY), on_expiry_day=False)


def test_without_options_nothing_is_chosen() -> None:
    with pytest.raises(NoContract, match="no CE expires on or after 2026-11-25: none is listed"):
        chosen([])


def test_one_stale_row_of_the_expiry_is_enough_to_refuse() -> None:
    chain = a_chain(*WIDE)
    chain[-2] = msgspec.structs.replace(chain[-2], updated=date(2026, 11, 23))

    with pytest.raises(NoContract, match=r"of 2026-11-23, older than the last trading day 2026"):
        chosen(chain)


@pytest.mark.parametrize("spot", ["0", "-1", "NaN", "Infinity"])
def test_an_impossible_spot_is_refused(spot: str) -> None:
    with pytest.raises(NoContract, match="must be above 0, was"):
        chosen(a_chain(*WIDE), spot=spot)


@given(
    spot=st.decimals(44_000, 47_000, places=2),
    strikes=st.sets(st.integers(440, 470).map(lambda hundreds: hundreds * 100), min_size=1),
    view=st.sampled_from(["long", "short"]),
    strategy=st.sampled_from(["ITM", "OTM"]),
)
def test_no_listed_strike_on_the_same_side_is_nearer_to_the_spot(
    spot: Decimal, strikes: set[int], view: View, strategy: Strategy
) -> None:
    below = (view == "long") == (strategy == "ITM")
    fitting = {
        strike
        for strike in strikes
        if (strike < spot if below else strike > spot) or (strategy == "ITM" and strike == spot)
    }

    if not fitting:
        with pytest.raises(NoContract):
            chosen(a_chain(*strikes), view, str(spot), strategy)
        return
    found = chosen(a_chain(*strikes), view, str(spot), strategy)
    assert found.kind == KIND_OF_VIEW[view]
    assert abs(found.strike - spot) == min(abs(strike - spot) for strike in fitting)


# Orders


@given(
    lots=st.integers(1, 3000),
    lot_size=st.integers(1, 500),
    freeze_lots=st.integers(1, 60),
    odd=st.integers(1, 500),
)
def test_the_pieces_sum_up_to_the_order_in_whole_lots_below_the_freeze_quantity(
    lots: int, lot_size: int, freeze_lots: int, odd: int
) -> None:
    freeze_quantity = freeze_lots * lot_size + min(odd, lot_size)

    pieces = split_quantity(lots * lot_size, lot_size=lot_size, freeze_quantity=freeze_quantity)

    assert sum(pieces) == lots * lot_size
    assert all(0 < piece < freeze_quantity and piece % lot_size == 0 for piece in pieces)
    largest = (freeze_quantity - 1) // lot_size
    assert len(pieces) == -(-lots // largest)  # no more orders than needed: each costs brokerage


@pytest.mark.parametrize(
    ("lots", "lot_size", "freeze_quantity", "pieces"),
    [
        (27, 65, 1800, (1755,)),
        (28, 65, 1800, (1755, 65)),
        (20, 30, 600, (570, 30)),  # exactly the freeze quantity may not pass
        (60, 65, 1800, (1755, 1755, 390)),
    ],
)
def test_orders_of_today_s_lots_are_split_as_worked_out(
    lots: int, lot_size: int, freeze_quantity: int, pieces: tuple[int, ...]
) -> None:
    split = split_quantity(lots * lot_size, lot_size=lot_size, freeze_quantity=freeze_quantity)

    assert split == pieces


@pytest.mark.parametrize("units", [0, -65, 64, 66])
def test_what_is_not_whole_lots_is_refused(units: int) -> None:
    with pytest.raises(OrderRefused, match=f"must be a multiple of the lot 65, was {units}"):
        split_quantity(units, lot_size=65, freeze_quantity=1800)


def test_a_freeze_quantity_below_one_lot_is_refused() -> None:
    with pytest.raises(OrderRefused, match="freeze quantity 65 lets no lot of 65 through"):
        split_quantity(65, lot_size=65, freeze_quantity=65)


@pytest.mark.parametrize("price", ["0.05", "100.15", "900"])
def test_a_price_on_the_grid_and_within_the_band_passes(price: str) -> None:
    check_limit_price(an_option(45000), Decimal(price))


@pytest.mark.parametrize(
    ("price", "reason"),
    [
        ("100.12", "multiple of 0.05, was 100.12"),
        ("900.05", r"band of NSE:X011245000CE, 0.05 to 900.00, was 900.05"),
        ("0", "must be above 0, was 0"),
        ("NaN", "must be above 0, was NaN"),
    ],
)
def test_any_other_price_is_refused(price: str, reason: str) -> None:
    with pytest.raises(OrderRefused, match=reason):
        check_limit_price(an_option(45000), Decimal(price))
