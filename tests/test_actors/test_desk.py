"""Sessions of users and manual trades: what risk accepts, what it answers, what it pauses."""

from decimal import Decimal
from typing import Any

import pytest
from builders import (
    MINUTE_NS,
    OPEN_NS,
    a_calendar,
    a_catalogue,
    a_decision,
    a_kill_switch,
    a_position,
    a_time,
    outputs_of,
)
from hypothesis import given
from hypothesis import strategies as st

from actors.desk import TradingDesk, manual_decision_id
from actors.messages import (
    ManualTrade,
    Message,
    OrderIntent,
    RequestAnswer,
    RiskVerdict,
    StartSession,
    StopSession,
    TradingSession,
)
from actors.policies import ExecutionSettings, RiskLimits
from actors.risk import RiskActor


def a_start(user: str = "FA1", **fields: Any) -> StartSession:
    given_fields: dict[str, Any] = {
        "id": f"start-{user}",
        "user_id": user,
        "instrument": "Nifty",
        "timeframe": "5",
        "trading_mode": "PAPER",
        "at_ns": OPEN_NS,
    }
    return StartSession(**(given_fields | fields))


def a_stop(user: str = "FA1") -> StopSession:
    return StopSession(id=f"stop-{user}", user_id=user, at_ns=OPEN_NS)


def a_manual_trade(side: str = "buy", **fields: Any) -> ManualTrade:
    given_fields: dict[str, Any] = {
        "id": "m1",
        "user_id": "FA1",
        "instrument": "Nifty",
        "side": side,
        "lots": 1,
        "reference_price": Decimal(22000),
        "trading_mode": "PAPER",
        "at_ns": OPEN_NS,
    }
    return ManualTrade(**(given_fields | fields))


def a_risk(mode: Any = "PAPER", **limits: Any) -> RiskActor:
    """Return risk with a desk for Nifty on 5-minute bars, released, with a range of 20 known."""
    risk = RiskActor(
        RiskLimits(**limits),
        ExecutionSettings(),
        a_catalogue(),
        a_calendar(),
        TradingDesk(mode, {"Nifty": "5"}),
    )
    outputs_of(risk, a_kill_switch(engaged=False), a_time(), a_decision("HOLD", id="known range"))
    return risk


def the_answer(outputs: list[Message]) -> RequestAnswer:
    (found,) = [output for output in outputs if isinstance(output, RequestAnswer)]
    return found


def the_session(outputs: list[Message]) -> TradingSession:
    (found,) = [output for output in outputs if isinstance(output, TradingSession)]
    return found


def intents_of(outputs: list[Message]) -> list[OrderIntent]:
    return [output for output in outputs if isinstance(output, OrderIntent)]


# --- sessions -------------------------------------------------------------------------------------


def test_a_started_session_runs_and_counts_from_what_was_there_before() -> None:
    risk = a_risk()
    before = a_position(net_quantity=0, realised_pnl=Decimal(-40), round_trips=2)

    outputs = outputs_of(risk, before, a_start(option_strategy="ITM"))

    assert the_answer(outputs).accepted
    session = the_session(outputs)
    assert (session.status, session.option_strategy) == ("running", "ITM")
    assert (session.realised_before, session.round_trips_before) == (Decimal(-40), 2)


def test_a_second_start_of_the_same_user_is_refused_and_of_another_is_not() -> None:
    risk = a_risk()
    outputs_of(risk, a_start("FA1"))

    second = the_answer(outputs_of(risk, a_start("FA1")))
    other = the_answer(outputs_of(risk, a_start("FA2")))

    assert (second.accepted, second.problem) == (False, "already_active")
    assert other.accepted


@pytest.mark.parametrize(
    ("daemon", "wanted"), [("PAPER", "REAL"), ("REAL", "PAPER")], ids=["real", "paper"]
)
def test_a_session_of_the_other_mode_is_refused_and_never_simulated(
    daemon: str, wanted: str
) -> None:
    risk = a_risk(mode=daemon)

    outputs = outputs_of(risk, a_start(trading_mode=wanted))

    assert the_answer(outputs).problem == "other_mode"
    assert len(outputs) == 1


@pytest.mark.parametrize(
    "fields", [{"instrument": "Bank_Nifty"}, {"timeframe": "15"}], ids=["instrument", "timeframe"]
)
def test_what_the_daemon_does_not_trade_makes_a_failed_session_until_it_is_stopped(
    fields: dict[str, str],
) -> None:
    risk = a_risk()

    outputs = outputs_of(risk, a_start(**fields))

    assert the_answer(outputs).accepted
    assert the_session(outputs).status == "failed"
    assert "Nifty" in the_session(outputs).reason
    assert the_answer(outputs_of(risk, a_start())).problem == "already_active"
    assert the_session(outputs_of(risk, a_stop())).status == "stopped"
    assert the_session(outputs_of(risk, a_start())).status == "running"


def test_a_stop_without_a_session_is_refused() -> None:
    outputs = outputs_of(a_risk(), a_stop())

    assert [type(output) for output in outputs] == [RequestAnswer]
    assert the_answer(outputs).problem == "no_session"


def test_the_last_stop_of_an_instrument_pauses_its_entries_until_somebody_starts_again() -> None:
    risk = a_risk()
    outputs_of(risk, a_start("FA1"), a_start("FA2"), a_stop("FA1"))
    with_one_left = outputs_of(risk, a_decision("BUY_LONG", id="d1"))
    outputs_of(risk, a_position(net_quantity=0), a_stop("FA2"))
    paused = outputs_of(risk, a_decision("BUY_LONG", id="d2"))
    outputs_of(risk, a_start("FA2"))
    again = outputs_of(risk, a_decision("BUY_LONG", id="d3"))

    assert len(intents_of(with_one_left)) == 1
    assert not intents_of(paused)
    (verdict,) = [output for output in paused if isinstance(output, RiskVerdict)]
    assert verdict.reason == "automated trading: stopped by FA2, allowed: on"
    assert len(intents_of(again)) == 1


def test_a_stopped_session_still_leaves_its_positions() -> None:
    risk = a_risk()
    outputs_of(risk, a_start(), a_position(net_quantity=75), a_stop())

    outputs = outputs_of(risk, a_decision("CLOSE_LONG", id="d1"))

    assert [intent.purpose for intent in intents_of(outputs)] == ["exit"]


# --- manual trades --------------------------------------------------------------------------------


def test_a_manual_trade_becomes_an_intent_with_levels_by_range() -> None:
    risk = a_risk()
    outputs_of(risk, a_start())

    outputs = outputs_of(risk, a_manual_trade("buy", lots=1))

    (intent,) = intents_of(outputs)
    assert the_answer(outputs).accepted
    assert intent.decision_id == manual_decision_id("m1")
    assert intent.quantity == 75
    assert (intent.stop_price, intent.target_price) == (Decimal(21970), Decimal(22060))


def test_given_levels_replace_the_computed_ones() -> None:
    risk = a_risk()
    outputs_of(risk, a_start())
    trade = a_manual_trade("sell", stop_price=Decimal(22100), target_price=Decimal(21900))

    (intent,) = intents_of(outputs_of(risk, trade))

    assert intent.quantity == -75
    assert (intent.stop_price, intent.target_price) == (Decimal(22100), Decimal(21900))


@pytest.mark.parametrize(
    ("side", "fields"),
    [
        ("buy", {"stop_price": Decimal(22001)}),
        ("buy", {"target_price": Decimal(21999)}),
        ("sell", {"stop_price": Decimal(21999)}),
        ("sell", {"target_price": Decimal("NaN")}),
        ("buy", {"stop_price": Decimal(0)}),
        ("buy", {"stop_price": Decimal("21999.99")}),  # 22000.00 on the tick grid
        ("buy", {"target_price": Decimal("22000.01")}),
        ("sell", {"stop_price": Decimal("22000.01")}),
        ("buy", {"stop_price": Decimal("0.01")}),  # 0.00, which would mean no stop
    ],
)
def test_a_level_on_the_wrong_side_is_refused(side: str, fields: dict[str, Decimal]) -> None:
    risk = a_risk()
    outputs_of(risk, a_start())

    outputs = outputs_of(risk, a_manual_trade(side, **fields))

    assert the_answer(outputs).problem == "refused"
    assert not intents_of(outputs)


def test_a_manual_trade_without_a_session_of_its_own_user_is_refused() -> None:
    risk = a_risk()
    outputs_of(risk, a_start("FA2"))

    outputs = outputs_of(risk, a_manual_trade())

    assert the_answer(outputs).problem == "no_session"
    assert len(outputs) == 1


def test_a_manual_trade_of_the_other_mode_never_becomes_an_intent() -> None:
    risk = a_risk()
    outputs_of(risk, a_start())

    outputs = outputs_of(risk, a_manual_trade(trading_mode="REAL"))

    assert the_answer(outputs).problem == "other_mode"
    assert len(outputs) == 1


def test_a_manual_trade_that_costs_too_much_says_what_it_needs() -> None:
    risk = a_risk()
    outputs_of(risk, a_start())

    answer = the_answer(outputs_of(risk, a_manual_trade(lots=2)))

    # One lot of 75 costs 22000 * 3.75 % * 75 = 61875 rupees, and the entry 25 more.
    assert (answer.problem, answer.most_lots) == ("capital", 1)
    assert (answer.required, answer.available) == (Decimal(123_775), Decimal(100_000))


def test_a_manual_trade_with_a_position_open_is_refused() -> None:
    risk = a_risk()
    outputs_of(risk, a_start(), a_position(net_quantity=75))

    outputs = outputs_of(risk, a_manual_trade("sell"))

    assert the_answer(outputs).problem == "position_open"
    assert not intents_of(outputs)


def test_a_halted_daemon_trades_no_manual_order() -> None:
    risk = a_risk()
    outputs_of(risk, a_start(), a_kill_switch(engaged=True, reason="operator"))

    outputs = outputs_of(risk, a_manual_trade())

    assert the_answer(outputs).reason == "kill switch: operator"
    assert not intents_of(outputs)


def test_automated_entries_wait_while_a_manual_order_is_on_its_way() -> None:
    risk = a_risk(max_open_positions=5)
    outputs_of(risk, a_start())
    outputs_of(risk, a_manual_trade())

    waiting = outputs_of(risk, a_decision("BUY_LONG", instrument="Bank_Nifty", id="d1"))
    flat = a_position(net_quantity=0, updated_ns=OPEN_NS + MINUTE_NS)
    afterwards = outputs_of(risk, flat, a_decision("BUY_LONG", instrument="Bank_Nifty", id="d2"))

    assert not intents_of(waiting)
    assert len(intents_of(afterwards)) == 1


@given(
    st.lists(
        st.one_of(
            st.sampled_from(["FA1", "FA2"]).map(a_start),
            st.sampled_from(["FA1", "FA2"]).map(a_stop),
            st.builds(
                a_manual_trade,
                st.sampled_from(["buy", "sell"]),
                user_id=st.sampled_from(["FA1", "FA2"]),
                lots=st.integers(-1, 6),
                trading_mode=st.sampled_from(["PAPER", "REAL"]),
                id=st.uuids().map(str),
            ),
            st.builds(a_kill_switch, engaged=st.booleans()),
        ),
        max_size=20,
    )
)
def test_every_request_has_one_answer_and_only_an_accepted_trade_an_intent(
    messages: list[Message],
) -> None:
    risk = a_risk()
    for message in messages:
        outputs = outputs_of(risk, message)
        if isinstance(message, StartSession | StopSession | ManualTrade):
            answer = the_answer(outputs)
            assert answer.request_id == message.id
            is_trade = isinstance(message, ManualTrade)
            assert bool(intents_of(outputs)) == (is_trade and answer.accepted)
        else:
            assert not outputs
