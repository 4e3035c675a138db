"""Views of an index through bought options: risk chooses and sizes, execution holds and leaves."""

from datetime import date
from decimal import Decimal
from typing import Any, TypeVar

import msgspec
import pytest
from builders import (
    MINUTE_NS,
    OPEN_NS,
    SECOND_NS,
    a_calendar,
    a_catalogue,
    a_decision,
    a_fill,
    a_kill_switch,
    a_tick,
    a_time,
    outputs_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from option_builders import EXPIRY, LOT, a_chain, a_contract, a_quote

from actors.base import Actor
from actors.charges import ChargeTable
from actors.desk import TradingDesk
from actors.execution import ExecutionActor
from actors.messages import (
    Alert,
    CancelOrder,
    ManualTrade,
    Message,
    ModifyOrder,
    OptionChain,
    OrderIntent,
    PlaceOrder,
    Position,
    RequestAnswer,
    RiskVerdict,
    RuleResult,
    StartSession,
)
from actors.policies import ExecutionSettings, RiskLimits
from actors.positions import summed
from actors.risk import RiskActor

Kind = TypeVar("Kind")
DAY_NS = 24 * 60 * MINUTE_NS


def a_risk(chain: OptionChain | None = None, now_ns: int = OPEN_NS, **limits: Any) -> RiskActor:
    """Return risk that trades Nifty through options and has read this chain."""
    risk = RiskActor(
        RiskLimits(**limits),
        ExecutionSettings(trade_index_through="options"),
        a_catalogue(),
        a_calendar(),
        TradingDesk("PAPER", {"Nifty": "5"}),
    )
    outputs_of(risk, a_kill_switch(engaged=False), a_time(now_ns))
    outputs_of(risk, *([chain] if chain else []))
    return risk


def an_execution(**fields: Any) -> ExecutionActor:
    given: dict[str, Any] = {"trade_index_through": "options"}
    return ExecutionActor(ExecutionSettings(**(given | fields)), a_catalogue(), a_calendar())


def the(kind: type[Kind], outputs: list[Message]) -> Kind:
    (found,) = [output for output in outputs if isinstance(output, kind)]
    return found


def held(risk: RiskActor, execution: ExecutionActor, action: str, price: str = "100") -> str:
    """Enter through an option, filled at its price; return its symbol."""
    intent = the(OrderIntent, outputs_of(risk, a_decision(action)))
    order = the(PlaceOrder, outputs_of(execution, a_time(), intent))
    outputs_of(risk, *outputs_of(execution, a_fill(order, price)))
    return intent.instrument


# The choice


@pytest.mark.parametrize(
    ("action", "symbol"),
    [("BUY_LONG", "NSE:NIFTY2432122000CE"), ("SELL_SHORT", "NSE:NIFTY2432122000PE")],
)
def test_a_view_buys_the_option_in_the_money_by_its_premium(action: str, symbol: str) -> None:
    risk = a_risk(a_chain())

    outputs = outputs_of(risk, a_decision(action))

    sign = 1 if action == "BUY_LONG" else -1
    contract = a_contract(22000, "CE" if sign > 0 else "PE")
    assert the(RiskVerdict, outputs).reason == "within limits"
    # 100,000 less 25 pay for 19 lots of 50 at 100.10.
    assert the(OrderIntent, outputs) == OrderIntent(
        decision_id=a_decision().id,
        instrument=symbol,
        quantity=19 * LOT,
        purpose="entry",
        reference_price=Decimal("100.10"),
        decided_ns=OPEN_NS,
        stop_price=Decimal(22000 - 30 * sign),
        target_price=Decimal(22000 + 60 * sign),
        capital_used=Decimal("95095.00"),
        contract=contract,
        underlying="Nifty",
        underlying_price=Decimal(22000),
    )


def test_what_is_no_index_and_what_is_set_so_is_traded_itself() -> None:
    risk = RiskActor(RiskLimits(), ExecutionSettings(), a_catalogue(), a_calendar())
    outputs_of(risk, a_kill_switch(engaged=False), a_time(), a_chain())

    outputs = outputs_of(risk, a_decision())

    assert the(OrderIntent, outputs).instrument == "Nifty"
    assert "option contract" not in [rule.rule for rule in the(RiskVerdict, outputs).rules]


def edited(**fields: Any) -> OptionChain:
    """Return the chain with these facts in every contract."""
    chain = a_chain()
    quotes = [
        msgspec.structs.replace(q, contract=msgspec.structs.replace(q.contract, **fields))
        for q in chain.quotes
    ]
    return msgspec.structs.replace(chain, quotes=tuple(quotes))


@pytest.mark.parametrize(
    ("chain", "why"),
    [
        (None, "no option chain of Nifty has been read yet"),
        (a_chain(OPEN_NS - 31 * SECOND_NS), "the option chain is 31.0 s old, allowed: 30 s"),
        (a_chain(call="1000"), "at 1000.10 is outside its band of the day, 0.05 to 1000"),
        (edited(updated=date(2024, 3, 15)), "the symbol master is of 2024-03-15, older than"),
        (edited(expiry=date(2024, 3, 14)), "no CE expires on or after 2024-03-18"),
        (edited(freeze_quantity=LOT), "cannot be ordered: the freeze quantity 50 lets no lot"),
        (edited(strike=Decimal(22100)), "no ITM CE at a spot of 22000"),
        (OptionChain(underlying="Nifty", quotes=(), read_ns=OPEN_NS), "none is listed"),
    ],
)
def test_without_an_option_that_can_be_bought_nothing_is(
    chain: OptionChain | None, why: str
) -> None:
    risk = a_risk(chain)

    outputs = outputs_of(risk, a_decision())

    verdict = the(RiskVerdict, outputs)
    assert verdict.reason.startswith("option contract: ")
    assert why in verdict.reason
    assert [output for output in outputs if isinstance(output, OrderIntent)] == []


def test_a_side_of_the_book_that_is_empty_leaves_the_last_price() -> None:
    chain = a_chain()
    quotes = [msgspec.structs.replace(quote, ask=None) for quote in chain.quotes]
    risk = a_risk(msgspec.structs.replace(chain, quotes=tuple(quotes)))

    assert the(OrderIntent, outputs_of(risk, a_decision())).reference_price == 100


def test_capital_that_pays_for_no_lot_of_the_option_is_refused() -> None:
    risk = a_risk(a_chain(), initial_capital=Decimal(5000))

    verdict = the(RiskVerdict, outputs_of(risk, a_decision()))

    assert verdict.reason.startswith("capital: 5000.00 INR pay for 0 lots")


@pytest.mark.parametrize(
    ("least", "reason"),
    [(3, "within limits"), (4, "days to expiry: 3, allowed: at least 4 days")],
)
def test_an_expiry_that_is_too_near_is_refused(least: int, reason: str) -> None:
    risk = a_risk(a_chain(), min_days_to_expiry=least)

    assert the(RiskVerdict, outputs_of(risk, a_decision())).reason == reason


def test_on_its_last_day_an_option_gives_way_to_the_next_expiry_if_days_must_be_left() -> None:
    now_ns = OPEN_NS + 3 * DAY_NS
    today = [a_quote(22000, "CE", "40", updated=date(2024, 3, 21))]
    later = [a_quote(22000, "CE", "90", expiry=date(2024, 3, 28), updated=date(2024, 3, 21))]
    chain = OptionChain(underlying="Nifty", quotes=(*today, *later), read_ns=now_ns)

    chosen = [
        the(
            OrderIntent,
            outputs_of(a_risk(chain, now_ns, min_days_to_expiry=least), a_decision(at_ns=now_ns)),
        ).contract
        for least in (0, 1)
    ]

    assert [one.expiry for one in chosen if one] == [EXPIRY, date(2024, 3, 28)]


def test_a_users_session_says_which_strike() -> None:
    risk = a_risk(a_chain())
    start = StartSession(
        id="r1", user_id="anna", instrument="Nifty", timeframe="5", trading_mode="PAPER",
        at_ns=OPEN_NS, option_strategy="OTM",
    )  # fmt: skip
    outputs_of(risk, start)

    intent = the(OrderIntent, outputs_of(risk, a_decision()))

    assert intent.instrument == "NSE:NIFTY2432122050CE"


@pytest.mark.parametrize(("lots", "accepted"), [(2, True), (20, False)])
def test_a_manual_trade_buys_an_option_or_says_what_its_premium_would_need(
    lots: int, accepted: bool
) -> None:
    risk = a_risk(a_chain())
    start = StartSession(
        id="r1", user_id="anna", instrument="Nifty", timeframe="5", trading_mode="PAPER",
        at_ns=OPEN_NS, option_strategy="ITM",
    )  # fmt: skip
    trade = ManualTrade(
        id="r2", user_id="anna", instrument="Nifty", side="sell", lots=lots,
        reference_price=Decimal(22000), trading_mode="PAPER", at_ns=OPEN_NS,
        stop_price=Decimal(22040), target_price=Decimal(21900),
    )  # fmt: skip
    outputs_of(risk, start)

    outputs = outputs_of(risk, trade)

    answer = the(RequestAnswer, outputs)
    assert answer.accepted is accepted
    if accepted:
        intent = the(OrderIntent, outputs)
        assert (intent.instrument, intent.quantity) == ("NSE:NIFTY2432122000PE", 100)
        assert (intent.stop_price, intent.target_price) == (Decimal(22040), Decimal(21900))
    else:
        assert (answer.required, answer.most_lots) == (Decimal("100125.00"), 19)


# What is held


def test_a_filled_option_is_a_view_of_its_underlying() -> None:
    execution, risk = an_execution(), a_risk(a_chain())
    intent = the(OrderIntent, outputs_of(risk, a_decision("SELL_SHORT")))
    order = the(PlaceOrder, outputs_of(execution, a_time(), intent))

    position = the(Position, outputs_of(execution, a_fill(order, "100")))

    assert (order.side, order.quantity, order.subject) == ("buy", 950, "Nifty")
    assert (position.net_quantity, position.view, position.subject) == (950, -950, "Nifty")
    assert (position.underlying_entry, position.lot_size) == (Decimal(22000), LOT)
    assert position.trailing_stop_price == Decimal(22030)
    assert position.capital_used == Decimal("95095.00")


@pytest.mark.parametrize(
    ("action", "price", "reason"),
    [
        ("BUY_LONG", "21970", "STOP_LOSS_HIT"),
        ("BUY_LONG", "22060", "TARGET_PROFIT_HIT"),
        ("SELL_SHORT", "22030", "STOP_LOSS_HIT"),
        ("SELL_SHORT", "21940", "TARGET_PROFIT_HIT"),
    ],
)
def test_stop_and_target_are_prices_of_the_underlying_and_sell_the_option(
    action: str, price: str, reason: str
) -> None:
    execution, risk = an_execution(), a_risk(a_chain())
    symbol = held(risk, execution, action)

    quiet = outputs_of(execution, a_tick("22000", OPEN_NS + 1))
    hit = outputs_of(execution, a_tick(price, OPEN_NS + 2))

    assert quiet == []
    order = the(PlaceOrder, hit)
    assert (order.instrument, order.side, order.quantity) == (symbol, "sell", 950)
    assert order.reason == reason


def test_the_trailing_stop_of_a_put_follows_the_underlying_down() -> None:
    execution, risk = an_execution(), a_risk(a_chain())
    held(risk, execution, "SELL_SHORT")

    moved = the(Position, outputs_of(execution, a_tick("21960", OPEN_NS + 1)))
    order = the(PlaceOrder, outputs_of(execution, a_tick("21991", OPEN_NS + 2)))

    assert moved.trailing_stop_price == Decimal(21990)
    assert order.reason == "TRAILING_STOP_HIT"


def test_a_premium_hits_no_level() -> None:
    execution, risk = an_execution(), a_risk(a_chain())
    held(risk, execution, "BUY_LONG")

    assert outputs_of(execution, a_chain(OPEN_NS + 1, call="1")) == []


def test_a_quote_of_the_chain_tells_since_when_a_market_order_could_have_filled() -> None:
    execution, risk = an_execution(), a_risk(a_chain())
    intent = the(OrderIntent, outputs_of(risk, a_decision()))
    order = the(PlaceOrder, outputs_of(execution, a_time(), intent))
    accepted = a_fill(
        order, status="accepted", last_quantity=0, last_price=Decimal(0), cumulative_quantity=0
    )

    waiting = outputs_of(execution, accepted, a_time(OPEN_NS + MINUTE_NS))
    asked = outputs_of(
        execution,
        a_chain(OPEN_NS + MINUTE_NS),
        a_time(OPEN_NS + MINUTE_NS + 10 * SECOND_NS),
    )

    assert waiting == []
    assert len(asked) == 1  # the cancel


LIMITS: dict[str, Any] = {"order_type": "limit", "limit_band": 0.01}


@pytest.mark.parametrize(
    ("action", "moved", "limit"),
    [
        ("BUY_LONG", "21970", "69.20"),  # (99.90 - 30) less 1 %
        ("SELL_SHORT", "22030", "69.20"),
        ("BUY_LONG", "22060", "98.90"),  # a move in favour: the last bid holds
        ("BUY_LONG", "21800", "0.05"),  # more than the whole premium
    ],
)
def test_the_limit_of_a_sold_option_reckons_with_its_underlying_since_the_quote(
    action: str, moved: str, limit: str
) -> None:
    execution, risk = an_execution(**LIMITS), a_risk(a_chain())
    held(risk, execution, action)
    outputs_of(execution, a_tick("22000", OPEN_NS), a_chain(OPEN_NS))

    order = the(PlaceOrder, outputs_of(execution, a_tick(moved, OPEN_NS + MINUTE_NS)))

    assert (order.order_type, order.limit_price) == ("limit", Decimal(limit))


def test_an_option_that_was_never_quoted_is_sold_by_what_was_paid() -> None:
    execution, risk = an_execution(**LIMITS), a_risk(a_chain())
    held(risk, execution, "BUY_LONG", price="100")

    order = the(PlaceOrder, outputs_of(execution, a_tick("21970", OPEN_NS + 1)))

    assert (order.order_type, order.limit_price) == ("limit", Decimal("69.30"))


def test_the_exit_of_an_option_without_quotes_follows_its_underlying_and_is_then_given_up() -> None:
    execution, risk = an_execution(**LIMITS), a_risk(a_chain())
    held(risk, execution, "BUY_LONG", price="100")
    order = the(PlaceOrder, outputs_of(execution, a_tick("21970", OPEN_NS + 1)))
    accepted = a_fill(
        order, status="accepted", last_quantity=0, last_price=Decimal(0), cumulative_quantity=0
    )

    outputs_of(execution, accepted, a_tick("21970", OPEN_NS + SECOND_NS))
    followed = outputs_of(execution, a_tick("21960", OPEN_NS + 4 * SECOND_NS))
    given_up = outputs_of(execution, a_tick("21960", OPEN_NS + 11 * SECOND_NS))

    assert the(ModifyOrder, followed).limit_price == Decimal("59.40")
    assert the(CancelOrder, given_up).client_order_id == order.client_order_id


@pytest.mark.parametrize(
    ("opened", "closed", "ignored"),
    [("BUY_LONG", "CLOSE_LONG", "CLOSE_SHORT"), ("SELL_SHORT", "CLOSE_SHORT", "CLOSE_LONG")],
)
def test_closing_the_view_sells_the_option(opened: str, closed: str, ignored: str) -> None:
    execution, risk = an_execution(), a_risk(a_chain())
    symbol = held(risk, execution, opened)
    next_ns = OPEN_NS + 5 * MINUTE_NS
    outputs_of(risk, a_time(next_ns), a_chain(next_ns, call="120", put="120"))

    hold = outputs_of(risk, a_decision(ignored, next_ns))
    intent = the(
        OrderIntent, outputs_of(risk, a_decision(closed, next_ns, id=f"Nifty@{next_ns}#2"))
    )
    order = the(PlaceOrder, outputs_of(execution, a_time(next_ns), intent))

    assert the(RiskVerdict, hold).reason == "hold"
    assert (intent.instrument, intent.quantity, intent.reference_price) == (
        symbol, -950, Decimal("119.90"),
    )  # fmt: skip
    assert (order.side, order.quantity, order.purpose) == ("sell", 950, "exit")


def test_while_an_option_is_held_or_on_its_way_no_other_is_bought_on_its_underlying() -> None:
    execution, risk = an_execution(), a_risk(a_chain(), max_open_positions=5)
    intent = the(OrderIntent, outputs_of(risk, a_decision()))
    on_its_way = the(RiskVerdict, outputs_of(risk, a_decision("SELL_SHORT", id="d2")))
    order = the(PlaceOrder, outputs_of(execution, a_time(), intent))
    outputs_of(risk, *outputs_of(execution, a_fill(order, "100")))
    open_now = the(RiskVerdict, outputs_of(risk, a_decision("SELL_SHORT", id="d3")))

    assert on_its_way.reason.startswith("open position: an entry is on its way")
    assert open_now.reason.startswith("open position: 950 units open")


def the_rule(verdict: RiskVerdict, name: str) -> RuleResult:
    (rule,) = [rule for rule in verdict.rules if rule.rule == name]
    return rule


def test_an_option_is_valued_by_what_it_could_be_sold_for() -> None:
    execution, risk = an_execution(), a_risk(a_chain())
    held(risk, execution, "BUY_LONG")

    outputs_of(risk, a_chain(OPEN_NS + 1, call="96"))
    verdict = the(RiskVerdict, outputs_of(risk, a_decision("SELL_SHORT", id="d2")))

    # 950 units bought at 100 are worth 95.90 now, and the entry cost 25.
    assert the_rule(verdict, "daily loss").value == "3920.00 INR, locked for the day"


def test_statutory_charges_are_those_of_the_premium() -> None:
    rates = {
        "effective_from": "2024-01-01", "source": "made up", "brokerage": 20,
        "stt_sell_percent": 2, "transaction_per_crore": 0, "investor_fund_per_crore": 0,
        "sebi_per_crore": 0, "stamp_buy_percent": 1, "gst_percent": 0,
    }  # fmt: skip
    table = ChargeTable.model_validate({"rates": {"NSE": {"options": [rates]}}})
    execution = an_execution(charges="statutory", charge_table=table)
    risk = a_risk(a_chain())
    intent = the(OrderIntent, outputs_of(risk, a_decision("SELL_SHORT")))
    order = the(PlaceOrder, outputs_of(execution, a_time(), intent))
    (opened,) = [p for p in outputs_of(execution, a_fill(order, "100")) if isinstance(p, Position)]
    leaving = the(PlaceOrder, outputs_of(execution, a_kill_switch(flatten=True)))
    closed = the(Position, outputs_of(execution, a_fill(leaving, "110")))

    assert opened.charges == 20 + 950 * 100 * Decimal("0.01")
    assert closed.charges == opened.charges + 20 + 950 * 110 * Decimal("0.02")
    assert closed.realised_pnl == 950 * 10 - closed.charges


def test_an_option_is_squared_off_with_its_market() -> None:
    execution, risk = an_execution(), a_risk(a_chain())
    held(risk, execution, "BUY_LONG")

    order = the(PlaceOrder, outputs_of(execution, a_time(OPEN_NS + 365 * MINUTE_NS)))

    assert (order.reason, order.side) == ("SQUARE_OFF", "sell")


def test_an_intent_refused_for_an_option_tells_risk_that_nothing_is_open() -> None:
    execution, risk = an_execution(), a_risk(a_chain())
    intent = the(OrderIntent, outputs_of(risk, a_decision()))

    outputs = outputs_of(execution, a_kill_switch(), intent)
    outputs_of(risk, the(Position, outputs), a_time(OPEN_NS + SECOND_NS))

    assert the(Alert, outputs).runbook == "Intent refused"
    assert risk._exposure.exposed == frozenset()


def test_positions_on_one_subject_are_one_with_the_results_of_all() -> None:
    def position(symbol: str, net: int, realised: int, at_ns: int) -> Position:
        return Position(
            instrument=symbol, net_quantity=net, average_price=Decimal(100),
            realised_pnl=Decimal(realised), charges=Decimal(60), capital_used=Decimal(net * 100),
            updated_ns=at_ns, round_trips=1, winning_round_trips=int(realised > 0),
            underlying="Nifty", option_kind="CE",
        )  # fmt: skip

    total = summed(
        [position("A", 0, 500, 9), position("B", 50, -200, 5), position("C", 0, 70, 1)], "Nifty"
    )

    assert total is not None
    assert (total.instrument, total.net_quantity, total.realised_pnl) == (
        "B", 50, Decimal(370),
    )  # fmt: skip
    assert (total.round_trips, total.winning_round_trips, total.charges) == (
        3, 2, Decimal(180),
    )  # fmt: skip
    assert summed([position("A", 0, 1, 1)], "Bank_Nifty") is None


# Promise


@settings(max_examples=60, deadline=None)
@given(
    moves=st.lists(
        st.tuples(
            st.sampled_from(
                ["BUY_LONG", "SELL_SHORT", "CLOSE_LONG", "CLOSE_SHORT", "tick", "chain", "fill"]
            ),
            st.integers(0, 100),
        ),
        max_size=50,
    )
)
def test_options_are_only_ever_bought_first_and_one_at_a_time(
    moves: list[tuple[str, int]],
) -> None:
    execution, risk = an_execution(), a_risk(a_chain(), max_orders_per_minute=400)
    out: dict[str, PlaceOrder] = {}
    net: dict[str, int] = {}
    for number, (move, draw) in enumerate(moves):
        now_ns = OPEN_NS + number * SECOND_NS
        inputs: list[Message] = [a_time(now_ns)]
        match move:
            case "tick":
                inputs.append(a_tick(str(21_950 + draw), now_ns))
            case "chain":
                inputs.append(a_chain(now_ns, call=str(50 + draw), put=str(150 - draw)))
            case "fill" if out:
                order = out.pop(next(iter(out)))
                signed = order.quantity if order.side == "buy" else -order.quantity
                net[order.instrument] = net.get(order.instrument, 0) + signed
                inputs.append(a_fill(order, "100"))
            case "fill":
                continue
            case _:
                price = Decimal(21_950 + draw)
                inputs.append(a_decision(move, now_ns, reference_price=price, atr=Decimal(20)))
        waiting = list(inputs)
        while waiting:
            message = waiting.pop(0)
            actors: tuple[Actor[Any, Any], ...] = (risk, execution)
            for actor in actors:
                if type(message) in actor.inputs():
                    produced = list(actor.handle(message))
                    waiting += produced
                    out |= {o.client_order_id: o for o in produced if isinstance(o, PlaceOrder)}
        assert all(units >= 0 for units in net.values())  # never written, always bought
        assert sum(units > 0 for units in net.values()) <= 1
