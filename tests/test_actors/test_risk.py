from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from builders import (
    MINUTE_NS,
    OPEN_NS,
    SECOND_NS,
    a_calendar,
    a_catalogue,
    a_decision,
    a_kill_switch,
    a_position,
    a_time,
    outputs_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.instruments import Instrument
from actors.messages import Message, OrderIntent, RiskVerdict, RuleResult
from actors.policies import ExecutionSettings, RiskLimits
from actors.risk import RiskActor

DAY_NS = 24 * 60 * MINUTE_NS
CATALOGUE = a_catalogue().extended(
    [
        Instrument(
            symbol="Reliance",
            name="Reliance",
            exchange_symbol="NSE:RELIANCE-EQ",
            kind="stock",
            lot_size=1,
            tick_size=Decimal("0.05"),
            session="NSE",
        ),
        Instrument(
            symbol="Nifty_Mar",
            name="Nifty future",
            exchange_symbol="NSE:NIFTY24MARFUT",
            kind="stock",
            lot_size=1,
            tick_size=Decimal("0.05"),
            expiry=date(2024, 3, 20),
        ),
        Instrument(
            symbol="Nifty_Apr",
            name="Nifty future without a date",
            exchange_symbol="NSE:NIFTY24APRFUT",
            kind="stock",
            lot_size=1,
            tick_size=Decimal("0.05"),
        ),
    ]
)


def a_risk(**limits: Any) -> RiskActor:
    """Return risk with these limits and everything else at its default, still halted."""
    return RiskActor(RiskLimits(**limits), ExecutionSettings(), CATALOGUE, a_calendar())


def a_released_risk(now_ns: int = OPEN_NS, **limits: Any) -> RiskActor:
    risk = a_risk(**limits)
    outputs_of(risk, a_kill_switch(engaged=False), a_time(now_ns))
    return risk


def the_verdict(outputs: list[Message]) -> RiskVerdict:
    (verdict,) = [output for output in outputs if isinstance(output, RiskVerdict)]
    return verdict


def intents_of(outputs: list[Message]) -> list[OrderIntent]:
    return [output for output in outputs if isinstance(output, OrderIntent)]


def the_rule(verdict: RiskVerdict, name: str) -> RuleResult:
    (rule,) = [rule for rule in verdict.rules if rule.rule == name]
    return rule


def test_risk_is_halted_until_a_kill_switch_state_has_come() -> None:
    risk = a_risk()

    verdict = the_verdict(outputs_of(risk, a_time(), a_decision()))

    assert not verdict.approved
    assert verdict.reason == "kill switch: no kill switch state received yet"


@pytest.mark.parametrize("action", ["BUY_LONG", "SELL_SHORT", "CLOSE_LONG", "HOLD"])
def test_an_engaged_kill_switch_refuses_every_decision(action: str) -> None:
    risk = a_released_risk()
    outputs_of(risk, a_position(75), a_kill_switch(engaged=True, reason="operator"))

    outputs = outputs_of(risk, a_decision(action))

    assert the_verdict(outputs).reason == "kill switch: operator"
    assert intents_of(outputs) == []


def test_a_long_entry_carries_lots_stop_target_and_capital() -> None:
    risk = a_released_risk()

    outputs = outputs_of(risk, a_decision("BUY_LONG", size_fraction=1.0))

    # One lot of Nifty at 22000: 22000 * 3.75 % * 75 = 61,875; 100,000 pay for one.
    assert the_verdict(outputs).reason == "within limits"
    assert intents_of(outputs) == [
        OrderIntent(
            decision_id=a_decision().id,
            instrument="Nifty",
            quantity=75,
            purpose="entry",
            reference_price=Decimal(22000),
            decided_ns=OPEN_NS,
            stop_price=Decimal(21970),
            target_price=Decimal(22060),
            capital_used=Decimal(61875),
        )
    ]


def test_a_short_entry_sells_with_stop_above_and_target_below() -> None:
    risk = a_released_risk()

    (intent,) = intents_of(outputs_of(risk, a_decision("SELL_SHORT", atr=Decimal("20.01"))))

    assert intent.quantity == -75
    assert intent.stop_price == Decimal("22030.00")  # 22030.015, on the tick grid of 0.05
    assert intent.target_price == Decimal("21939.95")  # 21939.97


@pytest.mark.parametrize(("fraction", "lots"), [(0.0, 1), (0.5, 2), (0.8, 3), (1.0, 4)])
def test_the_size_is_the_fraction_of_what_the_capital_pays_for(fraction: float, lots: int) -> None:
    risk = a_released_risk(initial_capital=Decimal(250_000))

    (intent,) = intents_of(outputs_of(risk, a_decision(size_fraction=fraction)))

    assert intent.quantity == 75 * lots


def test_the_size_never_exceeds_the_most_lots_of_a_position() -> None:
    risk = a_released_risk(initial_capital=Decimal(1_000_000), max_position_lots=2)

    (intent,) = intents_of(outputs_of(risk, a_decision(size_fraction=1.0)))

    assert intent.quantity == 150


def test_capital_that_pays_for_no_lot_refuses_the_entry() -> None:
    risk = a_released_risk(initial_capital=Decimal("61899.99"))  # one lot and 24.99

    verdict = the_verdict(outputs_of(risk, a_decision()))

    assert not verdict.approved
    assert the_rule(verdict, "capital") == RuleResult(
        "capital", False, "61899.99 INR pay for 0 lots", "at least 1 lot"
    )


def test_realised_profit_adds_to_the_capital() -> None:
    risk = a_released_risk(initial_capital=Decimal("61899.99"))
    outputs_of(risk, a_position(0, realised_pnl=Decimal("0.01")))

    (intent,) = intents_of(outputs_of(risk, a_decision()))

    assert intent.quantity == 75


def test_hold_is_approved_without_an_intent() -> None:
    risk = a_released_risk()

    outputs = outputs_of(risk, a_decision("HOLD"))

    assert the_verdict(outputs).approved
    assert the_verdict(outputs).reason == "hold"
    assert len(outputs) == 1


@pytest.mark.parametrize(
    ("action", "net"), [("CLOSE_LONG", 0), ("CLOSE_LONG", -75), ("CLOSE_SHORT", 75)]
)
def test_a_close_without_a_fitting_position_is_a_hold(action: str, net: int) -> None:
    risk = a_released_risk()
    outputs_of(risk, a_position(net))

    outputs = outputs_of(risk, a_decision(action))

    assert the_verdict(outputs).approved
    assert the_verdict(outputs).reason == "hold"
    assert len(outputs) == 1


@pytest.mark.parametrize(("action", "net"), [("CLOSE_LONG", 150), ("CLOSE_SHORT", -75)])
def test_a_close_takes_the_whole_position_back(action: str, net: int) -> None:
    risk = a_released_risk()
    outputs_of(risk, a_position(net))

    (intent,) = intents_of(outputs_of(risk, a_decision(action)))

    assert intent.quantity == -net
    assert intent.purpose == "exit"
    assert intent.capital_used == 0


@pytest.mark.parametrize("action", ["BUY_LONG", "SELL_SHORT"])
def test_an_entry_into_an_open_position_is_refused(action: str) -> None:
    risk = a_released_risk(initial_capital=Decimal(1_000_000), max_open_positions=5)
    outputs_of(risk, a_position(75))

    verdict = the_verdict(outputs_of(risk, a_decision(action)))

    assert not verdict.approved
    assert verdict.reason == "open position: 75 units open, allowed: none"


def test_a_second_entry_is_refused_while_the_first_is_on_its_way() -> None:
    risk = a_released_risk(initial_capital=Decimal(1_000_000), max_open_positions=5)
    outputs_of(risk, a_decision(id="d1"))

    verdict = the_verdict(outputs_of(risk, a_decision(id="d2")))

    assert verdict.reason == "open position: an entry is on its way, allowed: none"


def test_an_entry_on_its_way_counts_as_an_open_position_elsewhere() -> None:
    risk = a_released_risk(initial_capital=Decimal(1_000_000), max_open_positions=1)
    outputs_of(risk, a_decision())

    verdict = the_verdict(outputs_of(risk, a_decision(instrument="Reliance")))

    assert verdict.reason == "max open positions: 1 others, allowed: below 1"


def test_an_entry_on_its_way_holds_its_capital() -> None:
    risk = a_released_risk(initial_capital=Decimal(70_000), max_open_positions=5)
    outputs_of(risk, a_decision())

    verdict = the_verdict(outputs_of(risk, a_decision(instrument="Bank_Nifty")))

    assert the_rule(verdict, "capital").value == "8125.00 INR pay for 0 lots"


def test_an_entry_that_failed_frees_its_place() -> None:
    risk = a_released_risk()
    outputs_of(risk, a_decision(id="d1"), a_position(0))

    outputs = outputs_of(risk, a_decision(id="d2"))

    assert the_verdict(outputs).approved


def test_a_position_from_before_the_decision_does_not_free_its_place() -> None:
    risk = a_released_risk()
    outputs_of(risk, a_decision(id="d1"), a_position(0, updated_ns=OPEN_NS - 1))

    verdict = the_verdict(outputs_of(risk, a_decision(id="d2")))

    assert not verdict.approved


def test_a_partly_filled_entry_keeps_the_capital_of_the_whole() -> None:
    risk = a_released_risk(initial_capital=Decimal(250_000))
    outputs_of(risk, a_decision(size_fraction=1.0))  # 4 lots, 247,500
    outputs_of(risk, a_position(75, capital_used=Decimal(61875)))

    assert risk._exposure.capital_available == Decimal(2_500)


def test_a_filled_entry_holds_what_its_position_says() -> None:
    risk = a_released_risk(initial_capital=Decimal(250_000))
    outputs_of(risk, a_decision(size_fraction=0.5))
    outputs_of(risk, a_position(150, capital_used=Decimal(123_750)))

    assert risk._exposure.capital_available == Decimal(126_250)


def test_an_entry_without_an_answer_is_dropped_with_the_session_day() -> None:
    risk = a_released_risk()
    outputs_of(risk, a_decision(id="d1"), a_time(OPEN_NS + DAY_NS))

    outputs = outputs_of(risk, a_decision(id="d2", at_ns=OPEN_NS + DAY_NS))

    assert the_verdict(outputs).approved


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"confidence": 0.34}, "confidence"),
        ({"confidence": float("nan")}, "confidence"),
        ({"size_fraction": 1.01}, "size fraction"),
        ({"size_fraction": float("nan")}, "size fraction"),
        ({"reference_price": Decimal(0)}, "reference price"),
        ({"reference_price": Decimal("NaN")}, "reference price"),
        ({"atr": None}, "atr known"),
        ({"atr": Decimal(0)}, "atr known"),
        ({"atr": Decimal("0.01")}, "atr known"),  # a stop within a tick
        ({"atr": Decimal(20_000)}, "atr known"),  # a stop below zero
        ({"atr": Decimal("14666.66")}, "atr known"),  # a stop of 0.01, which is 0.00 on the grid
        ({"instrument": "Atlantis"}, "instrument"),
    ],
)
def test_an_entry_that_breaks_a_rule_is_refused_by_its_name(
    fields: dict[str, Any], rule: str
) -> None:
    risk = a_released_risk()

    outputs = outputs_of(risk, a_decision(**fields))

    assert not the_verdict(outputs).approved
    assert the_verdict(outputs).reason.startswith(f"{rule}: ")
    assert intents_of(outputs) == []


@pytest.mark.parametrize(
    ("minutes", "phase"),
    [(-1, "closed"), (361, "exits_only"), (366, "square_off"), (376, "closed")],
)
def test_entries_are_refused_outside_the_entry_hours(minutes: int, phase: str) -> None:
    now_ns = OPEN_NS + minutes * MINUTE_NS
    risk = a_released_risk(now_ns)

    verdict = the_verdict(outputs_of(risk, a_decision(at_ns=now_ns)))

    assert verdict.reason == f"session phase: {phase}, allowed: open"


def test_an_entry_on_a_day_without_known_holidays_is_refused() -> None:
    now_ns = OPEN_NS + 294 * DAY_NS  # 6 January 2025, the table ends with 2024
    risk = a_released_risk(now_ns)

    verdict = the_verdict(outputs_of(risk, a_decision(at_ns=now_ns)))

    assert not the_rule(verdict, "calendar horizon").passed
    assert not verdict.approved


def test_a_stale_entry_is_refused() -> None:
    risk = a_released_risk(OPEN_NS + 31 * SECOND_NS)

    verdict = the_verdict(outputs_of(risk, a_decision()))

    assert verdict.reason == "decision age: 31 s, allowed: 30 s"


def test_an_entry_before_the_first_time_event_is_refused() -> None:
    risk = a_risk()
    outputs_of(risk, a_kill_switch(engaged=False))

    verdict = the_verdict(outputs_of(risk, a_decision()))

    assert the_rule(verdict, "decision age").value == "no time received yet"


def test_the_same_decision_is_not_taken_twice() -> None:
    risk = a_released_risk()
    outputs_of(risk, a_decision(), a_position(0))

    outputs = outputs_of(risk, a_decision())

    assert the_verdict(outputs).reason.startswith("duplicate decision id: ")
    assert intents_of(outputs) == []


def test_too_many_orders_in_a_minute_refuse_entries_until_they_are_old() -> None:
    risk = a_released_risk(max_orders_per_minute=2)
    for number in range(2):
        outputs_of(risk, a_decision(id=f"d{number}"), a_position(0))

    refused = the_verdict(outputs_of(risk, a_decision(id="d3")))
    later_ns = OPEN_NS + MINUTE_NS
    later = the_verdict(outputs_of(risk, a_time(later_ns), a_decision(id="d4", at_ns=later_ns)))

    assert refused.reason == "orders per minute: 2, allowed: below 2"
    assert later.approved


def test_a_daily_loss_locks_entries_for_the_rest_of_the_day() -> None:
    risk = a_released_risk()
    outputs_of(risk, a_position(0, realised_pnl=Decimal(-3000)))
    outputs_of(risk, a_position(0, realised_pnl=Decimal(-1000)))

    verdict = the_verdict(outputs_of(risk, a_decision()))

    assert the_rule(verdict, "daily loss") == RuleResult(
        "daily loss", False, "1000.00 INR, locked for the day", "3000.00 INR"
    )
    assert not verdict.approved


def test_the_daily_loss_lock_ends_with_the_day() -> None:
    risk = a_released_risk()
    outputs_of(risk, a_position(0, realised_pnl=Decimal(-3000)))
    next_day_ns = OPEN_NS + DAY_NS

    verdict = the_verdict(outputs_of(risk, a_time(next_day_ns), a_decision(at_ns=next_day_ns)))

    assert verdict.approved


def test_an_open_loss_counts_for_the_daily_loss() -> None:
    risk = a_released_risk(max_open_positions=5)
    outputs_of(risk, a_position(75))

    outputs_of(risk, a_decision("HOLD", reference_price=Decimal(21960)))  # 75 * -40 = -3,000
    verdict = the_verdict(outputs_of(risk, a_decision(instrument="Reliance")))

    assert not the_rule(verdict, "daily loss").passed


def test_a_drawdown_from_the_highest_capital_halts_entries_for_good() -> None:
    risk = a_released_risk(max_daily_loss=1.0, max_drawdown=0.1)
    outputs_of(risk, a_position(0, realised_pnl=Decimal(100_000)))
    outputs_of(risk, a_position(0, realised_pnl=Decimal(80_000)))
    next_day_ns = OPEN_NS + DAY_NS
    outputs_of(risk, a_position(0, realised_pnl=Decimal(100_000)), a_time(next_day_ns))

    verdict = the_verdict(outputs_of(risk, a_decision(at_ns=next_day_ns)))

    assert verdict.reason == "drawdown: 0.0000, locked, allowed: 0.1"


def test_an_exit_passes_when_every_entry_rule_would_refuse() -> None:
    late_ns = OPEN_NS + 366 * MINUTE_NS
    risk = a_released_risk(late_ns, max_orders_per_minute=1)
    outputs_of(risk, a_position(75, realised_pnl=Decimal(-50_000)))

    outputs = outputs_of(risk, a_decision("CLOSE_LONG", confidence=0.0, atr=None, at_ns=OPEN_NS))

    assert the_verdict(outputs).approved
    assert intents_of(outputs)[0].quantity == -75


def test_a_verdict_lists_every_rule_with_value_and_limit() -> None:
    risk = a_released_risk()

    verdict = the_verdict(outputs_of(risk, a_decision()))

    assert [rule.rule for rule in verdict.rules] == [
        "kill switch",
        "duplicate decision id",
        "automated trading",
        "decision age",
        "calendar horizon",
        "session phase",
        "confidence",
        "size fraction",
        "reference price",
        "atr known",
        "open position",
        "max open positions",
        "capital",
        "max position lots",
        "daily loss",
        "drawdown",
        "orders per minute",
    ]
    assert all(rule.passed and rule.value and rule.limit for rule in verdict.rules)


def test_what_was_remembered_of_decisions_stays_bounded() -> None:
    risk = a_released_risk()
    outputs_of(risk, *(a_decision("HOLD", id=f"d{number}") for number in range(5000)))

    assert len(risk._decisions_seen) == 4096


NAMES = ("Nifty", "Bank_Nifty", "Reliance")


class Account:
    """What is open and on its way, kept by hand beside risk from its outputs and our fills."""

    def __init__(self, risk: RiskActor, capital: Decimal) -> None:
        self.risk = risk
        self.capital = capital
        self.on_its_way: dict[str, OrderIntent] = {}
        self.open_now: dict[str, tuple[int, Decimal]] = {}  # units, capital in use
        self.realised = dict.fromkeys(NAMES, Decimal(0))
        self.now_ns = OPEN_NS

    def decide(self, name: str, action: str, fraction: float) -> None:
        self.wait(SECOND_NS)
        decision = a_decision(action, at_ns=self.now_ns, instrument=name, size_fraction=fraction)
        outputs = outputs_of(self.risk, decision)
        assert the_verdict(outputs).decision_id == decision.id
        for intent in intents_of(outputs):
            if intent.purpose == "entry":
                assert name not in self.on_its_way
                assert name not in self.open_now
                self.on_its_way[name] = intent
            else:
                assert intent.quantity == -self.open_now[name][0]

    def fill(self, name: str) -> None:
        if name in self.on_its_way:
            intent = self.on_its_way.pop(name)
            self.open_now[name] = (intent.quantity, intent.capital_used)
            self.tell(name)

    def fill_one_lot(self, name: str) -> None:
        intent = self.on_its_way.get(name)
        if intent and name not in self.open_now:
            lot = CATALOGUE[name].lot_size
            units = lot if intent.quantity > 0 else -lot
            self.open_now[name] = (units, intent.capital_used * units / intent.quantity)
            if units == intent.quantity:
                del self.on_its_way[name]
            self.tell(name)

    def fail(self, name: str) -> None:
        if name in self.on_its_way and name not in self.open_now:
            del self.on_its_way[name]
            self.tell(name)

    def close(self, name: str, pnl: int) -> None:
        if name in self.open_now and name not in self.on_its_way:
            del self.open_now[name]
            self.realised[name] += pnl
            self.tell(name)

    def wait(self, nanoseconds: int) -> None:
        self.now_ns += nanoseconds
        outputs_of(self.risk, a_time(self.now_ns))

    def tell(self, name: str) -> None:
        units, in_use = self.open_now.get(name, (0, Decimal(0)))
        position = a_position(
            units,
            instrument=name,
            capital_used=in_use,
            realised_pnl=self.realised[name],
            updated_ns=self.now_ns,
        )
        outputs_of(self.risk, position)

    @property
    def in_use(self) -> Decimal:
        reserved = {name: intent.capital_used for name, intent in self.on_its_way.items()}
        held = {name: in_use for name, (_, in_use) in self.open_now.items()}
        none = Decimal(0)
        names = reserved.keys() | held.keys()
        return sum((max(reserved.get(n, none), held.get(n, none)) for n in names), none)


EVENTS = ("decide", "decide", "decide", "fill", "part", "fail", "close", "wait", "kill", "release")


@settings(max_examples=150, deadline=None)
@given(
    events=st.lists(
        st.tuples(
            st.sampled_from(EVENTS),
            st.sampled_from(NAMES),
            st.sampled_from(["BUY_LONG", "SELL_SHORT", "CLOSE_LONG", "CLOSE_SHORT"]),
            st.floats(0, 1),
            st.integers(-4000, 4000),
        ),
        max_size=60,
    ),
    most_open=st.integers(1, 3),
    most_lots=st.integers(1, 4),
)
def test_no_sequence_of_messages_exceeds_the_limits(
    events: list[tuple[str, str, str, float, int]], most_open: int, most_lots: int
) -> None:
    capital = Decimal(300_000)
    risk = a_released_risk(
        initial_capital=capital,
        max_open_positions=most_open,
        max_position_lots=most_lots,
        max_orders_per_minute=480,
        max_daily_loss=1.0,
        max_drawdown=1.0,
    )
    account = Account(risk, capital)
    moves: dict[str, Callable[[str, str, float, int], object]] = {
        "decide": lambda name, action, fraction, _: account.decide(name, action, fraction),
        "fill": lambda name, *_: account.fill(name),
        "part": lambda name, *_: account.fill_one_lot(name),
        "fail": lambda name, *_: account.fail(name),
        "close": lambda name, _, __, pnl: account.close(name, pnl),
        "wait": lambda *_: account.wait(MINUTE_NS // 2),
        "kill": lambda *_: outputs_of(risk, a_kill_switch(engaged=True)),
        "release": lambda *_: outputs_of(risk, a_kill_switch(engaged=False)),
    }

    for event, name, action, fraction, pnl in events:
        before = account.in_use
        moves[event](name, action, fraction, pnl)

        exposed = account.on_its_way.keys() | account.open_now.keys()
        equity = capital + sum(account.realised.values())
        assert len(exposed) <= most_open
        assert risk._exposure.exposed == exposed
        assert abs(risk._exposure.capital_available - (equity - account.in_use)) < Decimal("1e-9")
        assert account.in_use <= equity or account.in_use <= before
        for held, intent in account.on_its_way.items():
            assert 1 <= abs(intent.quantity) // CATALOGUE[held].lot_size <= most_lots


def test_the_same_messages_give_the_same_outputs() -> None:
    messages: list[Message] = [
        a_kill_switch(engaged=False),
        a_time(),
        a_decision(),
        a_position(75),
        a_decision("CLOSE_LONG", id="d2"),
    ]

    assert outputs_of(a_risk(), *messages) == outputs_of(a_risk(), *messages)


# Contracts


@pytest.mark.parametrize(
    ("day", "least", "reason"),
    [
        (0, 0, "within limits"),
        (2, 0, "within limits"),  # its last day
        (1, 2, "days to expiry: 1, allowed: at least 2 days"),
        (2, 1, "days to expiry: 0, allowed: at least 1 days"),
        (3, 0, "session phase: closed, allowed: open"),  # it has expired
    ],
)
def test_a_contract_is_entered_while_it_has_days_left(day: int, least: int, reason: str) -> None:
    now_ns = OPEN_NS + day * DAY_NS
    risk = a_released_risk(now_ns, min_days_to_expiry=least)

    outputs = outputs_of(risk, a_decision(instrument="Nifty_Mar", at_ns=now_ns))

    assert the_verdict(outputs).reason == reason
    assert len(intents_of(outputs)) == (reason == "within limits")


def test_a_contract_without_a_known_expiry_is_not_entered() -> None:
    risk = a_released_risk()

    verdict = the_verdict(outputs_of(risk, a_decision(instrument="Nifty_Apr")))

    assert verdict.reason == "days to expiry: not known, allowed: at least 0 days"


def test_a_contract_is_left_on_its_last_day() -> None:
    now_ns = OPEN_NS + 2 * DAY_NS
    risk = a_released_risk(now_ns, min_days_to_expiry=5)
    outputs_of(risk, a_position(10, instrument="Nifty_Mar", updated_ns=now_ns))

    outputs = outputs_of(risk, a_decision("CLOSE_LONG", instrument="Nifty_Mar", at_ns=now_ns))

    assert intents_of(outputs)[0].quantity == -10
