"""Statistics: what the commands print is what went over the bus."""

from decimal import Decimal

from builders import (
    OPEN_NS,
    a_bar,
    a_context,
    a_decision,
    a_fill,
    a_position,
    a_tick,
    a_verdict,
    an_intent,
    an_order,
)

from actors.messages import (
    Alert,
    AnyMessage,
    CancelOrder,
    ForecastCheck,
    RefusedTick,
    RuleResult,
)
from daemon.bus import Entry, Envelope
from daemon.statistics import SessionStatistics

US = 1000


def an_entry(
    message: AnyMessage, cause: str = "", *, at_us: int = 0, caused_us: int = 0, origin_us: int = 0
) -> Entry:
    envelope = Envelope(
        source="test",
        sequence=1,
        cause=cause,
        published_ns=at_us * US,
        cause_published_ns=caused_us * US,
        origin_published_ns=origin_us * US,
        message=message,
    )
    return Entry(message.stream, "1-0", envelope)


def after(*messages: AnyMessage) -> SessionStatistics:
    statistics = SessionStatistics()
    for message in messages:
        statistics.add(an_entry(message))
    return statistics


def test_nothing_happened_in_a_session_that_has_just_begun() -> None:
    summary = SessionStatistics().summary()

    assert summary["ticks"] == summary["orders"] == summary["fills"] == 0
    assert summary["realised_pnl"] == 0.0
    assert summary["hops_us"] == summary["open_positions"] == {}
    assert summary["tick_to_decision_us"] == {"n": 0, "p50": 0.0, "p99": 0.0, "max": 0.0}


def test_messages_are_counted_by_stream() -> None:
    order = an_order()
    alert = Alert(severity="info", text="", runbook="", at_ns=0)
    cancel = CancelOrder(client_order_id="order1", instrument="Nifty", reason="", placed_ns=0)

    summary = after(
        a_tick(), a_tick(), a_bar(), a_context(), a_decision(), a_verdict(), an_intent(),
        order, cancel, a_fill(order), alert,
    ).summary()  # fmt: skip

    assert {name: summary[name] for name in (
        "ticks", "bars", "contexts", "decisions", "verdicts", "intents", "reports", "alerts",
    )} == {
        "ticks": 2, "bars": 1, "contexts": 1, "decisions": 1, "verdicts": 1, "intents": 1,
        "reports": 1, "alerts": 1,
    }  # fmt: skip
    assert summary["orders"] == 1  # a cancel is none


def test_ticks_that_were_refused_or_left_out_are_counted() -> None:
    refused = [
        RefusedTick(tick=a_tick(), reason=reason, detail="", count=1, refused_ns=OPEN_NS)
        for reason in ("late", "duplicate", "late")
    ]

    summary = after(a_tick(conflated=3), a_tick(), a_tick(conflated=1), *refused).summary()

    assert (summary["ticks"], summary["conflated_quotes"]) == (3, 4)
    assert summary["refused_ticks_by_reason"] == {"late": 2, "duplicate": 1}


def test_only_reports_with_a_quantity_are_fills() -> None:
    order = an_order()

    summary = after(
        a_fill(order, status="accepted", last_quantity=0),
        a_fill(order, status="partially_filled", last_quantity=25),
        a_fill(order, last_quantity=50),
    ).summary()

    assert summary["fills"] == 2
    assert summary["reports_by_status"] == {"accepted": 1, "partially_filled": 1, "filled": 1}


def test_refusals_are_counted_by_every_rule_that_was_broken() -> None:
    broken = tuple(RuleResult(rule, False, "", "") for rule in ("confidence", "capital"))
    kept = RuleResult("session phase", True, "open", "open")

    summary = after(
        a_verdict(approved=False, rules=(*broken, kept)),
        a_verdict(approved=False, rules=broken[:1]),
        a_verdict(approved=True, rules=(kept,)),
    ).summary()

    assert summary["refusals_by_rule"] == {"confidence": 2, "capital": 1}


def test_decisions_are_counted_by_action_and_by_what_went_wrong() -> None:
    statistics = after(
        a_decision("BUY_LONG"),
        a_decision("HOLD", late=True),
        a_decision("HOLD", failed=True),
    )

    summary = statistics.summary()
    assert summary["decisions_by_action"] == {"BUY_LONG": 1, "HOLD": 2}
    assert (summary["late_decisions"], summary["failed_decisions"]) == (1, 1)
    assert statistics.last_decision == a_decision("HOLD", failed=True)


def test_only_decisions_that_took_thought_count_as_thinking() -> None:
    summary = after(
        a_decision(cycles=0, elapsed_us=0, reasoning_depth=0),
        a_decision(cycles=8, elapsed_us=20_000, reasoning_depth=1),
        a_decision(cycles=24, elapsed_us=40_000, reasoning_depth=3),
    ).summary()

    assert summary["thinking_us"]["n"] == 2
    assert summary["thinking_us"]["max"] == 40_000.0
    assert summary["reasoning_depth"] == {"mean": 2.0, "max": 3}


def test_forecasts_that_could_be_checked_are_scored_by_instrument_and_timeframe() -> None:
    right, wrong = ForecastCheck(0.9, True, True), ForecastCheck(0.9, True, False)
    summary = after(
        a_context(checked=None),
        a_context(checked=right),
        a_context(checked=wrong),
        a_context(a_bar(instrument="Bank_Nifty"), checked=right),
    ).summary()

    scores = summary["complexity_forecast"]
    assert {name: score["n"] for name, score in scores.items()} == {
        "Bank_Nifty 5": 1,
        "Nifty 5": 2,
    }
    assert scores["Nifty 5"]["accuracy"] == 0.5
    assert scores["Nifty 5"]["confusion"]["demanding_calm"] == 1


def test_a_hop_lasts_from_the_publication_of_the_cause_to_that_of_the_effect() -> None:
    statistics = SessionStatistics()

    statistics.add(an_entry(a_bar(), "time/1-0", at_us=1500, caused_us=1000, origin_us=1000))
    statistics.add(an_entry(a_decision(), "context/1-0", at_us=9000, caused_us=2000, origin_us=500))

    hops = statistics.summary()["hops_us"]
    assert hops["time_to_bar"] == {"n": 1, "p50": 500.0, "p99": 500.0, "max": 500.0}
    assert hops["context_to_decision"]["max"] == 7000.0
    assert statistics.summary()["tick_to_decision_us"]["max"] == 8500.0


def test_results_add_up_over_the_last_position_of_each_instrument() -> None:
    first = a_position(75, realised_pnl=Decimal(-25), charges=Decimal(25))
    last = a_position(0, realised_pnl=Decimal("940.5"), charges=Decimal(60), round_trips=1,
                      winning_round_trips=1)  # fmt: skip
    other = a_position(-35, instrument="Bank_Nifty", realised_pnl=Decimal(-100),
                       charges=Decimal(85), round_trips=2)  # fmt: skip

    summary = after(first, last, other).summary()

    assert summary["realised_pnl"] == 840.5
    assert summary["charges"] == 145.0
    assert (summary["round_trips"], summary["winning_round_trips"]) == (3, 1)
    assert summary["open_positions"] == {"Bank_Nifty": -35}


def test_the_market_time_of_a_decision_plays_no_part_in_its_latency() -> None:
    statistics = SessionStatistics()

    statistics.add(an_entry(a_decision(at_ns=OPEN_NS), at_us=10, origin_us=4))

    assert statistics.summary()["tick_to_decision_us"]["max"] == 6.0
