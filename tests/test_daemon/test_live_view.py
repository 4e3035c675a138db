"""The live view: what stands on the screen is what the session did."""

from decimal import Decimal
from io import StringIO

import pytest
from builders import OPEN_NS, a_decision, a_position
from recorded_session import RecordedSession
from rich.console import Console

from daemon.live_view import LiveView
from daemon.statistics import SessionStatistics


def drawn(view: LiveView) -> str:
    console = Console(width=140, file=StringIO(), record=True)
    console.print(view.render())
    return console.export_text()


def test_a_session_that_has_just_begun_is_starting(recorded: RecordedSession) -> None:
    text = drawn(LiveView(recorded.plan, SessionStatistics(), lambda: 0))

    assert recorded.plan.session in text
    assert "starting" in text
    assert "Ctrl-C stops in order" in text


def test_counts_positions_and_the_last_decision_are_shown(recorded: RecordedSession) -> None:
    text = drawn(LiveView(recorded.plan, recorded.statistics, lambda: OPEN_NS))

    summary = recorded.statistics.summary()
    assert "2024-03-18 03:45 UTC market time" in text
    for name in ("ticks", "bars", "decisions", "orders", "fills"):
        assert f" {summary[name]} " in text
    assert "Nifty" in text
    assert "flat" in text
    assert f"{summary['realised_pnl']:+.2f}" in text
    last = recorded.statistics.last_decision
    assert last is not None
    assert f"last decision: Nifty {last.action} ({last.confidence:.2f}), {last.reason}" in text


def test_an_open_position_is_shown_with_the_stop_that_counts(recorded: RecordedSession) -> None:
    statistics = SessionStatistics()
    statistics.positions["Nifty"] = a_position(
        -75,
        average_price=Decimal("22020.1"),
        stop_price=Decimal("22053.3"),
        trailing_stop_price=Decimal("22041.2"),
        target_price=Decimal("21971.15"),
    )
    statistics.last_decision = a_decision("SELL_SHORT", confidence=0.72, reason="halted")

    text = drawn(LiveView(recorded.plan, statistics, lambda: OPEN_NS))

    for shown in ("-75", "22020.1", "22041.2", "21971.15", "SELL_SHORT (0.72), halted"):
        assert shown in text
    assert "22053.3" not in text


def test_nothing_is_drawn_without_a_terminal(
    recorded: RecordedSession, capsys: pytest.CaptureFixture[str]
) -> None:
    with LiveView(recorded.plan, recorded.statistics, lambda: OPEN_NS):
        pass

    assert capsys.readouterr() == ("", "")


def test_a_terminal_is_drawn_on_at_stderr(
    recorded: RecordedSession,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")

    with LiveView(recorded.plan, recorded.statistics, lambda: OPEN_NS):
        pass

    output = capsys.readouterr()
    assert output.out == ""
    assert recorded.plan.session in output.err
