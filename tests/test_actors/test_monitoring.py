"""Monitoring: which signs of trouble raise which alert, once, and when the model is taken out."""

from typing import Any

import pytest
from builders import (
    OPEN_NS,
    SECOND_NS,
    a_bar,
    a_context,
    a_decision,
    a_fill,
    a_heartbeat,
    a_kill_switch,
    a_policy_switch,
    a_time,
    a_verdict,
    an_order,
    outputs_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.messages import (
    Alert,
    Decision,
    ExecutionReport,
    ForecastCheck,
    MarketContext,
    Message,
    PolicySwitch,
    RuleResult,
    TimeEvent,
)
from actors.monitoring import MonitoringActor
from actors.policies import MonitoringSettings

GB_IN_MIB = 1000 / 1.048576


def a_monitor(*expected: str, **settings: Any) -> MonitoringActor:
    return MonitoringActor(MonitoringSettings(**settings), expected)


def a_thought(number: int = 0, elapsed_ms: float = 20.0, **fields: Any) -> Decision:
    given = {
        "elapsed_us": round(elapsed_ms * 1000),
        "cycles": 6,
        "reasoning_depth": 3,
        "stop_reason": "halted",
        "market_complexity": 0.4,
    }
    return a_decision("HOLD", OPEN_NS + number * SECOND_NS, **(given | fields))


def said(outputs: list[Message], runbook: str | None = None) -> list[tuple[str, str]]:
    """Return severity and runbook of the alerts, those of one runbook if it is given."""
    return [
        (alert.severity, alert.runbook)
        for alert in outputs
        if isinstance(alert, Alert) and runbook in (None, alert.runbook)
    ]


def switches_of(outputs: list[Message]) -> list[PolicySwitch]:
    return [output for output in outputs if isinstance(output, PolicySwitch)]


# Inference


@pytest.mark.parametrize(
    ("elapsed_ms", "severity"), [(50.1, "warning"), (100.0, "warning"), (100.1, "critical")]
)
def test_a_slow_inference_raises_an_alert(elapsed_ms: float, severity: str) -> None:
    outputs = outputs_of(a_monitor(), a_time(), a_thought(elapsed_ms=elapsed_ms))

    [alert] = outputs
    assert isinstance(alert, Alert)
    assert (alert.severity, alert.runbook, alert.source) == (
        severity,
        "Slow inference",
        "monitoring",
    )
    assert f"{elapsed_ms:.1f} ms" in alert.text
    assert (alert.instrument, alert.at_ns) == ("Nifty", OPEN_NS)


def test_an_inference_at_the_limit_is_quiet() -> None:
    assert outputs_of(a_monitor(), a_thought(elapsed_ms=50.0)) == []


def test_latency_that_swings_around_its_limit_is_reported_once() -> None:
    swinging = [a_thought(number, 60.0 if number % 2 else 20.0) for number in range(40)]

    assert said(outputs_of(a_monitor(), *swinging)) == [("warning", "Slow inference")]


def test_latency_that_gets_worse_is_reported_again() -> None:
    outputs = outputs_of(a_monitor(), a_thought(0, 60), a_thought(1, 120), a_thought(2, 130))

    assert [severity for severity, _ in said(outputs)] == ["warning", "critical"]


def test_the_end_of_slow_inference_is_reported_after_ten_calm_ones() -> None:
    monitor = a_monitor()
    outputs_of(monitor, a_thought(0, 60))

    nine = outputs_of(monitor, *(a_thought(number) for number in range(1, 10)))
    tenth = outputs_of(monitor, a_thought(10))
    again = outputs_of(monitor, a_thought(11, 60))

    assert nine == []
    assert said(tenth) == [("info", "Slow inference")]
    assert said(again) == [("warning", "Slow inference")]


def test_a_hold_without_thinking_is_no_inference() -> None:
    monitor = a_monitor()

    outputs_of(monitor, a_decision("HOLD", reason="warming up: 1 of 96 bars"))

    assert monitor.inference_us.count == 0
    assert monitor.actions["HOLD"] == 1


def test_more_than_one_percent_of_bad_inferences_is_a_warning_and_five_critical() -> None:
    monitor = a_monitor(failures_before_fallback=100)
    messages = [a_thought(n, failed=n in (10, 20)) for n in range(40)]

    warning = outputs_of(monitor, *messages)
    critical = outputs_of(monitor, *(a_thought(40 + n, late=True) for n in range(4)))

    rates = [
        (alert.severity, alert.text.partition(" of ")[0])
        for alert in (*warning, *critical)
        if isinstance(alert, Alert) and "of the last" in alert.text
    ]
    assert rates == [("warning", "2"), ("critical", "6")]


def test_a_bad_inference_is_told_once_for_a_bar_close() -> None:
    monitor = a_monitor()
    messages = [
        a_thought(number, late=number == 5 and name != "B", instrument=name, reason="late: why")
        for number in range(100)
        for name in ("A", "B", "C")
    ]

    outputs = outputs_of(monitor, *messages)

    told = [output for output in outputs if isinstance(output, Alert) and "HOLD" in output.text]
    text = f"decision {messages[15].id} is HOLD: late: why"
    assert [(alert.severity, alert.text) for alert in told] == [("warning", text)]


def test_latency_counts_from_the_market_event() -> None:
    monitor = a_monitor(latency_warning_ms=50.0, latency_critical_ms=100.0)

    outputs = outputs_of(monitor, a_thought(0, 45.0, waited_us=12_000))

    assert said(outputs) == [("warning", "Slow inference")]


# Fallback


def test_three_bad_inferences_in_a_row_take_the_model_out_once() -> None:
    monitor = a_monitor()
    bad = [a_thought(0, late=True), a_thought(1, failed=True, cycles=0), a_thought(2, late=True)]

    first = outputs_of(monitor, *bad[:2])
    third = outputs_of(monitor, bad[2])
    more = outputs_of(monitor, *(a_thought(n, late=True) for n in range(3, 9)))

    assert switches_of(first) == []
    [switch] = switches_of(third)
    assert (switch.policy, switch.at_ns) == ("hold", OPEN_NS + 2 * SECOND_NS)
    assert switch.reason == "3 inferences in a row were late or failed"
    assert ("critical", "Fallback to hold") in said(third)
    assert switches_of(more) == []
    assert said(more, "Fallback to hold") == []


def test_decisions_that_failed_at_the_same_bar_close_are_one_failure() -> None:
    names = [f"share {number}" for number in range(20)]

    def stall(number: int) -> list[Decision]:
        return [a_thought(number, late=True, instrument=name) for name in names]

    monitor = a_monitor()
    two = outputs_of(monitor, *stall(0), *stall(1))
    third = outputs_of(monitor, *stall(2))

    assert switches_of(two) == []
    [switch] = switches_of(third)
    assert switch.reason == "3 inferences in a row were late or failed"


def test_what_a_process_finds_unanswered_is_one_failure_and_the_next_process_another() -> None:
    def outage(first: int, restarts: int) -> list[Message]:
        found = [a_thought(first + n, late=True, cycles=0, elapsed_us=0) for n in range(20)]
        beat = a_heartbeat(actor="reasoning", at_ns=OPEN_NS + first, restarts=restarts)
        return [beat, *found]

    monitor = a_monitor()
    two = outputs_of(monitor, *outage(0, 1), *outage(20, 2))
    third = outputs_of(monitor, *outage(40, 3))

    assert switches_of(two) == []
    assert len(switches_of(third)) == 1


def test_good_inferences_between_bad_ones_keep_the_model() -> None:
    decisions = [a_thought(n, late=n % 3 != 0) for n in range(30)]

    assert switches_of(outputs_of(a_monitor(), *decisions)) == []


def test_holds_without_thinking_do_not_interrupt_a_row_of_failures() -> None:
    messages: list[Message] = []
    for number in range(3):
        messages += [a_thought(number, late=True), a_decision("HOLD", OPEN_NS + 1)]

    assert len(switches_of(outputs_of(a_monitor(), *messages))) == 1


def test_its_own_switch_coming_back_is_no_news() -> None:
    monitor = a_monitor()
    outputs = outputs_of(monitor, *(a_thought(n, late=True) for n in range(3)))

    assert outputs_of(monitor, *switches_of(outputs)) == []


def test_the_model_may_be_taken_out_again_after_somebody_put_it_back() -> None:
    monitor = a_monitor()
    outputs_of(monitor, *(a_thought(n, late=True) for n in range(3)))

    back = outputs_of(monitor, a_policy_switch("hrm", reason="restarted"))
    two = outputs_of(monitor, *(a_thought(n, late=True) for n in range(3, 5)))
    third = outputs_of(monitor, a_thought(5, late=True))

    assert said(back) == [("info", "Fallback to hold")]
    assert switches_of(two) == []
    assert len(switches_of(third)) == 1


def test_a_hold_by_the_operator_is_reported_and_not_repeated_by_monitoring() -> None:
    monitor = a_monitor()

    switched = outputs_of(monitor, a_policy_switch("hold"))
    after = outputs_of(monitor, *(a_thought(n, late=True) for n in range(5)))

    assert said(switched) == [("info", "Fallback to hold")]
    assert switches_of(after) == []


# Heartbeats


@pytest.mark.parametrize(
    ("memory_gb", "severities"), [(2.99, []), (3.01, ["warning"]), (4.01, ["critical"])]
)
def test_memory_above_three_and_four_gb_raises_an_alert(
    memory_gb: float, severities: list[str]
) -> None:
    outputs = outputs_of(a_monitor(), a_heartbeat(rss_mib=memory_gb * GB_IN_MIB))

    assert said(outputs) == [(severity, "High memory") for severity in severities]


def test_memory_is_judged_process_by_process_and_once() -> None:
    beats = [a_heartbeat(actor, rss_mib=3500) for _ in range(5) for actor in ("risk", "execution")]

    assert said(outputs_of(a_monitor(), *beats)) == [("warning", "High memory")] * 2


def test_failed_messages_above_one_percent_raise_an_alert() -> None:
    monitor = a_monitor()
    outputs_of(monitor, a_heartbeat(handled=1000, failed=0))

    one = outputs_of(monitor, a_heartbeat(handled=1100, failed=11))
    six = outputs_of(monitor, a_heartbeat(handled=1200, failed=90))

    assert one == []
    assert said(six) == [("critical", "Failing messages")]


def test_failures_of_long_ago_do_not_count() -> None:
    monitor = a_monitor()
    outputs_of(monitor, a_heartbeat(handled=100, failed=3))
    beats = [a_heartbeat(handled=100 + 10 * n, failed=3) for n in range(1, 80)]

    outputs = outputs_of(monitor, *beats)

    assert said(outputs) == [("info", "Failing messages")]


def test_counters_that_start_anew_after_a_restart_are_not_negative() -> None:
    monitor = a_monitor()
    outputs_of(monitor, a_heartbeat(handled=100_000, failed=0))

    assert outputs_of(monitor, a_heartbeat(handled=20, failed=0, restarts=1)) == []


def test_lost_messages_are_critical_and_reported_again_when_doubled() -> None:
    beats = [a_heartbeat(lost=lost) for lost in (0, 1, 1, 2, 3, 3, 4, 7)]

    assert said(outputs_of(a_monitor(), *beats)) == [("critical", "Lost messages")] * 3


def test_losses_after_a_restart_are_reported_anew() -> None:
    beats = [a_heartbeat(lost=lost) for lost in (5, 0, 1)]

    assert said(outputs_of(a_monitor(), *beats)) == [("critical", "Lost messages")] * 2


def test_lag_that_keeps_growing_is_reported_once_and_when_it_is_gone() -> None:
    monitor = a_monitor()
    lags = [0, 10, 20, 30, 40, 60, 80, 100]

    growing = outputs_of(monitor, *(a_heartbeat(lag=lag) for lag in lags))
    shrinking = outputs_of(monitor, *(a_heartbeat(lag=lag) for lag in (50, 11, 3, 0)))

    assert said(growing) == [("warning", "Growing lag")]
    assert said(shrinking) == [("info", "Growing lag")]


def test_a_burst_that_is_worked_off_is_no_lag() -> None:
    beats = [a_heartbeat(lag=lag) for lag in (0, 500, 300, 350, 200, 400, 0)]

    assert outputs_of(a_monitor(), *beats) == []


# Silence


def seconds(start: int, stop: int) -> list[TimeEvent]:
    return [a_time(OPEN_NS, OPEN_NS + second * SECOND_NS) for second in range(start, stop)]


def test_an_actor_silent_for_ten_seconds_raises_one_critical_alert() -> None:
    monitor = a_monitor()

    early = outputs_of(monitor, *seconds(0, 1), a_heartbeat("risk"), *seconds(1, 11))
    late = outputs_of(monitor, *seconds(11, 60))

    assert early == []
    [alert] = late
    assert isinstance(alert, Alert)
    assert (alert.severity, alert.runbook) == ("critical", "Silent actor")
    assert alert.text == "risk has given no sign of life for 11 s"


def test_an_actor_that_speaks_again_is_reported() -> None:
    monitor = a_monitor()
    outputs_of(monitor, a_heartbeat("risk"), *seconds(0, 20))

    outputs = outputs_of(monitor, a_heartbeat("risk", OPEN_NS + 20 * SECOND_NS), *seconds(20, 25))

    assert said(outputs) == [("info", "Silent actor")]


def test_an_expected_actor_that_never_spoke_is_silent() -> None:
    outputs = outputs_of(a_monitor("risk", "execution"), *seconds(0, 12))

    assert said(outputs) == [("critical", "Silent actor")] * 2


def test_silence_is_measured_on_the_real_clock_not_the_markets() -> None:
    replayed = [a_time(OPEN_NS + 300 * n * SECOND_NS, OPEN_NS + n) for n in range(100)]

    assert outputs_of(a_monitor("risk"), *replayed) == []


def test_a_silent_actor_among_others_is_found_by_a_clock_that_seldom_ticks() -> None:
    monitor = a_monitor()
    beats = [a_heartbeat("execution", OPEN_NS + n * SECOND_NS) for n in range(1, 30)]
    outputs_of(monitor, a_heartbeat("risk"), *beats)

    outputs = outputs_of(monitor, a_time(OPEN_NS, OPEN_NS + 30 * SECOND_NS))

    assert said(outputs) == [("critical", "Silent actor")]


def test_nobody_is_blamed_for_the_time_when_everything_stood_still() -> None:
    monitor = a_monitor()
    outputs_of(monitor, *seconds(0, 1), a_heartbeat("risk"), a_heartbeat("execution"))

    outputs = outputs_of(
        monitor,
        a_heartbeat("execution", OPEN_NS + 3600 * SECOND_NS),
        *seconds(3601, 3605),
        a_heartbeat("risk", OPEN_NS + 3605 * SECOND_NS),
    )

    assert outputs == []


# Orders and switches


def a_rejection(number: int, reason: str = "margin exceeds", **fields: Any) -> ExecutionReport:
    return a_fill(
        an_order(),
        execution_id=f"r{number}",
        status="rejected",
        last_quantity=0,
        reason=reason,
        **fields,
    )


def test_three_identical_rejections_are_critical() -> None:
    outputs = outputs_of(a_monitor(), *(a_rejection(number) for number in range(6)))

    assert said(outputs) == [("warning", "Rejected orders"), ("critical", "Rejected orders")]


def test_rejections_for_other_reasons_are_each_a_warning() -> None:
    outputs = outputs_of(
        a_monitor(), a_rejection(1), a_rejection(2, "freeze quantity"), a_rejection(3)
    )

    assert said(outputs) == [("warning", "Rejected orders")] * 3


def test_an_accepted_order_ends_a_row_of_rejections() -> None:
    outputs = outputs_of(
        a_monitor(), a_rejection(1), a_rejection(2), a_fill(an_order()), a_rejection(3)
    )

    assert said(outputs) == [("warning", "Rejected orders")] * 2


def test_the_same_report_again_is_the_same_fact() -> None:
    monitor = a_monitor()

    outputs = outputs_of(monitor, *[a_rejection(1)] * 5)

    assert said(outputs) == [("warning", "Rejected orders")]
    assert monitor.reports == {"rejected": 1}


def test_an_engaged_kill_switch_is_critical_and_its_release_is_news() -> None:
    outputs = outputs_of(
        a_monitor(),
        a_kill_switch(engaged=False),
        a_kill_switch(engaged=True),
        a_kill_switch(engaged=True),
        a_kill_switch(engaged=False),
    )

    assert said(outputs) == [("critical", "Kill switch"), ("info", "Kill switch")]


# Figures


def test_decisions_refusals_and_stops_are_counted() -> None:
    monitor = a_monitor()
    lots = RuleResult("max_position_lots", False, "101", "100")

    outputs_of(
        monitor,
        a_thought(0, stop_reason="halted"),
        a_thought(1, stop_reason="deadline"),
        a_decision("BUY_LONG"),
        a_verdict(False, reason="101 lots exceed 100", rules=(lots,)),
        a_verdict(False, reason="kill switch: operator"),
        a_verdict(True),
    )

    assert monitor.actions["HOLD"] == 2
    assert monitor.actions["BUY_LONG"] == 1
    assert monitor.stops == {"halted": 1, "deadline": 1}
    assert monitor.refusals == {"max_position_lots": 1, "kill switch": 1}


def test_counters_stay_bounded_whatever_the_names() -> None:
    monitor = a_monitor()

    outputs_of(monitor, *(a_verdict(False, reason=f"reason {n}") for n in range(1000)))

    assert len(monitor.refusals) <= 33
    assert sum(monitor.refusals.values()) == 1000
    assert monitor.refusals["other"] == 968


def test_the_dashboard_knows_nothing_at_first() -> None:
    assert a_monitor().dashboard() == {
        "avg_inference_time": None,
        "memory_efficiency": None,
        "convergence_health": None,
        "act_effectiveness": None,
        "overall_performance": None,
    }


def test_the_dashboard_shows_the_last_hundred_inferences() -> None:
    monitor = a_monitor()
    outputs_of(monitor, *(a_thought(n, 500.0, late=True) for n in range(50)))
    outputs_of(
        monitor,
        a_heartbeat("risk", rss_mib=1 * GB_IN_MIB),
        a_heartbeat("reasoning", rss_mib=2 * GB_IN_MIB),
        *(a_thought(n, 10.0, stop_reason="deadline") for n in range(25)),
        *(
            a_thought(n, 30.0, market_complexity=0.2 + 0.6 * (n % 2), cycles=4 + 12 * (n % 2))
            for n in range(75)
        ),
    )

    dashboard = monitor.dashboard()

    assert dashboard["avg_inference_time"] == pytest.approx(25.0)
    assert dashboard["memory_efficiency"] == pytest.approx(0.5)
    assert dashboard["convergence_health"] == pytest.approx(0.75)
    assert dashboard["act_effectiveness"] is not None
    assert dashboard["act_effectiveness"] > 0.9
    assert dashboard["overall_performance"] == pytest.approx(
        (0.5 + 0.75 + dashboard["act_effectiveness"] + 1.0) / 4
    )


def test_depth_that_shrinks_with_complexity_is_not_effective() -> None:
    monitor = a_monitor()
    outputs_of(monitor, *(a_thought(n, market_complexity=n / 10, cycles=20 - n) for n in range(10)))

    assert monitor.dashboard()["act_effectiveness"] == 0.0


def test_depth_that_never_changes_says_nothing_about_effectiveness() -> None:
    monitor = a_monitor()
    outputs_of(monitor, *(a_thought(n, market_complexity=n / 10) for n in range(10)))

    assert monitor.dashboard()["act_effectiveness"] is None


def test_memory_beyond_the_limit_leaves_no_efficiency() -> None:
    monitor = a_monitor()
    outputs_of(monitor, a_heartbeat(rss_mib=9 * GB_IN_MIB))

    assert monitor.dashboard()["memory_efficiency"] == 0.0


messages = st.one_of(
    st.builds(
        a_thought,
        st.integers(0, 100),
        st.floats(0, 500),
        late=st.booleans(),
        failed=st.booleans(),
        cycles=st.integers(0, 128),
        market_complexity=st.floats(0, 1),
    ),
    st.builds(
        a_heartbeat,
        st.sampled_from(["risk", "execution"]),
        st.integers(OPEN_NS, OPEN_NS + 100 * SECOND_NS),
        handled=st.integers(0, 1000),
        failed=st.integers(0, 100),
        lost=st.integers(0, 10),
        lag=st.integers(0, 1000),
        rss_mib=st.floats(0, 8000),
    ),
    st.builds(a_time, st.just(OPEN_NS), st.integers(OPEN_NS, OPEN_NS + 100 * SECOND_NS)),
    st.builds(a_policy_switch, st.sampled_from(["hrm", "hold"])),
    st.builds(a_kill_switch, st.booleans()),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(messages, max_size=60))
def test_any_signs_leave_figures_within_their_ranges(messages: list[Message]) -> None:
    monitor = a_monitor("risk")

    outputs = outputs_of(monitor, *messages)

    dashboard = monitor.dashboard()
    ratios = [value for name, value in dashboard.items() if name != "avg_inference_time"]
    assert all(value is None or 0.0 <= value <= 1.0 for value in ratios)
    assert monitor.inference_us.count <= len(messages)
    assert all(alert.runbook for alert in outputs if isinstance(alert, Alert))
    switched_back = sum(
        isinstance(message, PolicySwitch) and message.policy == "hrm" for message in messages
    )
    assert len(switches_of(outputs)) <= switched_back + 1


# Forecasts of complexity


def a_check(*, right: bool, number: int = 0) -> MarketContext:
    return a_context(a_bar("1000", number), checked=ForecastCheck(0.9, True, right))


def test_forecasts_that_come_true_too_seldom_ask_for_a_review_once() -> None:
    monitor = a_monitor()
    few = [a_check(right=number % 4 > 0, number=number) for number in range(199)]
    more = [a_check(right=number % 4 > 0, number=number) for number in range(199, 400)]

    assert said(outputs_of(monitor, *few)) == []
    [alert] = [one for one in outputs_of(monitor, *more) if isinstance(one, Alert)]

    assert (alert.severity, alert.runbook) == ("warning", "Poor forecasts")
    assert "Nifty 5 needs a manual review: 75.0% of the last 200 forecasts" in alert.text


def test_forecasts_that_are_right_again_are_reported_above_a_margin() -> None:
    monitor = a_monitor()
    outputs_of(monitor, *(a_check(right=number % 4 > 0, number=number) for number in range(200)))

    outputs = outputs_of(monitor, *(a_check(right=True, number=n) for n in range(200, 400)))

    [alert] = [one for one in outputs if isinstance(one, Alert)]
    assert (alert.severity, alert.runbook) == ("info", "Poor forecasts")
    assert "82.0%" in alert.text


def test_forecasts_that_come_true_often_enough_are_no_news() -> None:
    monitor = a_monitor(min_forecast_accuracy=0.7)

    outputs = outputs_of(
        monitor, *(a_check(right=number % 4 > 0, number=number) for number in range(400))
    )

    assert said(outputs) == []


def test_log_and_broker_that_do_not_agree_for_long_call_a_person_once() -> None:
    ages = (None, 5.0, 60.0, 61.0, 65.0, 2.0, 3.0)
    beats = [a_heartbeat("order_gateway", agreement_age_s=age) for age in ages]

    outputs = outputs_of(a_monitor(), *beats)

    alerts = [(one.severity, one.text) for one in outputs if isinstance(one, Alert)]
    assert alerts == [
        ("critical", "log and broker have not agreed for 61 s, allowed: 60 s"),
        ("info", "log and broker agree again"),
    ]
