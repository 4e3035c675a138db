"""`hrm-trader run --processes`: whatever is killed comes back, and nothing is lost or repeated."""

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command_line import (
    INSTRUMENT,
    Running,
    Sandbox,
    a_sandbox,
    decision_ids,
    wait_until,
    write_candles,
)

from actors.messages import (
    Alert,
    Bar,
    Decision,
    MarketContext,
    Message,
    OrderIntent,
    PlaceOrder,
    RiskVerdict,
    Tick,
)
from daemon.replay import Recording, replay_session
from daemon.wiring import NAMES

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SECOND_NS = 1_000_000_000
BARS = 60
LONG = 370  # bars of a whole trading day, for those who stop before its end
SPEED = 600  # a bar in a tenth of a second
KILLED_AT = 35  # decisions: the model thinks, and more than two seconds are left to act in
TICKS = 4 * BARS


@pytest.fixture
def candles(sandbox: Sandbox, tiny_models: Path) -> Path:
    """Return a file of candles for a daemon that trades them from the start."""
    sandbox.trade_with(tiny_models)
    sandbox.set("session.start_halted", "false")
    return write_candles(sandbox.folder / f"{INSTRUMENT}_1.csv", BARS)


@pytest.fixture(scope="module")
def undisturbed(tiny_models: Path) -> Recording:
    """Return the recording of a session on the same candles in which nothing happened."""
    with a_sandbox() as sandbox:
        sandbox.trade_with(tiny_models)
        candles = write_candles(sandbox.folder / f"{INSTRUMENT}_1.csv", BARS)
        outcome = sandbox.run("demo", "--data", candles, "--json")
        assert outcome.code == 0, outcome.stderr
        return Recording(Path(outcome.answer["recording"]))


def resume(sandbox: Sandbox) -> None:
    outcome = sandbox.run("resume", "--reason", "test", "--json")
    assert outcome.answer["engaged"] is False


def start(sandbox: Sandbox, candles: Path) -> Running:
    return sandbox.start("run", "--data", candles, "--speed", SPEED, "--processes", "--json")


def messages(recording: Recording, kind: type[Message]) -> list[Any]:
    return [
        envelope.message
        for envelope in recording.entries.values()
        if isinstance(envelope.message, kind)
    ]


def order_ids(recording: Recording) -> list[str]:
    return [order.client_order_id for order in messages(recording, PlaceOrder)]


def latch_of(sandbox: Sandbox) -> dict[str, Any]:
    latch = json.loads((sandbox.state / "kill_switch.json").read_text())
    assert isinstance(latch, dict)
    return latch


def check_whole(answer: dict[str, Any], undisturbed: Recording) -> Recording:
    """Assert that a finished session lost, repeated and changed nothing."""
    recording = Recording(Path(answer["recording"]))
    replay = replay_session(Path(answer["recording"]))
    assert (answer["stopped_by"], answer["lost"], answer["drained"]) == ("end_of_data", 0, True)
    assert len(messages(recording, Tick)) == TICKS
    assert [decision.id for decision in messages(recording, Decision)] == decision_ids(BARS)
    for kind in (Tick, Bar, MarketContext):
        assert messages(recording, kind) == messages(undisturbed, kind)
    assert max(Counter(order_ids(recording)).values(), default=1) == 1
    assert replay.identical, replay.first_difference
    assert replay.sealed
    return recording


def test_the_undisturbed_session_trades(undisturbed: Recording) -> None:
    orders = order_ids(undisturbed)

    assert len(orders) >= 5
    assert len(set(orders)) == len(orders)
    assert [d.id for d in messages(undisturbed, Decision)] == decision_ids(BARS)


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_actor_comes_back_and_nothing_is_lost_or_repeated(
    sandbox: Sandbox, candles: Path, undisturbed: Recording, name: str
) -> None:
    daemon = start(sandbox, candles)
    sandbox.wait_for("decision", KILLED_AT, daemon)
    killed = sandbox.actor_pid(name)

    os.kill(killed, signal.SIGKILL)
    outcome = daemon.wait()

    assert outcome.code == 0, outcome.stderr[-3000:]
    outcome.assert_no_traceback()
    assert f"process {name} ended with code -9" in outcome.stderr
    recording = check_whole(outcome.answer, undisturbed)
    assert order_ids(recording)
    beats = [beat for beat in messages(recording, Message) if getattr(beat, "actor", "") == name]
    assert [beats[0].restarts, beats[-1].restarts] == [0, 1]
    assert latch_of(sandbox)["engaged"] is False


def test_reasoning_that_hangs_is_replaced_and_says_hold(
    sandbox: Sandbox, candles: Path, undisturbed: Recording
) -> None:
    sandbox.set("hierarchical_reasoning_model.performance.max_inference_time_ms", 1500)
    daemon = start(sandbox, candles)
    sandbox.wait_for("decision", KILLED_AT, daemon)

    os.kill(sandbox.actor_pid("reasoning"), signal.SIGSTOP)
    outcome = daemon.wait()

    assert outcome.code == 0, outcome.stderr[-3000:]
    outcome.assert_no_traceback()
    recording = check_whole(outcome.answer, undisturbed)
    late = [decision for decision in messages(recording, Decision) if decision.late]
    assert late
    assert {decision.action for decision in late} == {"HOLD"}
    texts = [alert.text for alert in messages(recording, Alert) if alert.runbook == "Part crashed"]
    assert len(texts) == 1
    assert "process reasoning ended with code -9: it gave no answer to" in texts[0]


def test_a_killed_message_server_comes_back_and_the_daemon_goes_on(
    sandbox: Sandbox, candles: Path, undisturbed: Recording
) -> None:
    daemon = start(sandbox, candles)
    sandbox.wait_for("decision", KILLED_AT, daemon)
    killed = sandbox.server_pid()

    os.kill(killed, signal.SIGKILL)
    outcome = daemon.wait()

    assert outcome.code == 0, outcome.stderr[-3000:]
    outcome.assert_no_traceback()
    assert "message server gone" in outcome.stderr
    check_whole(outcome.answer, undisturbed)
    assert latch_of(sandbox)["engaged"] is False


def test_a_killed_daemon_goes_on_with_its_session_when_it_is_started_again(
    sandbox: Sandbox, candles: Path, undisturbed: Recording
) -> None:
    first = start(sandbox, candles)
    sandbox.wait_for("decision", KILLED_AT, first)
    server = sandbox.server_pid()

    first.signal(signal.SIGKILL)
    first.wait()
    wait_until(lambda: list(sandbox.processes()) == [server], "only the message server")
    seen = sandbox.stream_length("tick")
    second = start(sandbox, candles)
    outcome = second.wait()

    assert outcome.code == 0, outcome.stderr[-3000:]
    outcome.assert_no_traceback()
    assert outcome.answer["resumed"] is True
    # Only what came after the restart is counted, and nothing came twice.
    assert TICKS // 2 < seen < TICKS
    assert outcome.answer["ticks"] <= TICKS - seen + 4
    recording = check_whole(outcome.answer, undisturbed)
    assert recording.entries
    assert latch_of(sandbox)["engaged"] is False


def stop(daemon: Running) -> Recording:
    """Stop a daemon as systemd does; what it left must replay."""
    daemon.signal(signal.SIGTERM)
    outcome = daemon.wait()
    outcome.assert_no_traceback()
    answer = outcome.answer
    assert (outcome.code, answer["stopped_by"], answer["lost"]) == (0, "operator", 0)
    assert (answer["drained"], replay_session(Path(answer["recording"])).identical) == (True, True)
    return Recording(Path(answer["recording"]))


def test_kill_stops_orders_within_a_second_and_resume_lets_them_go_on(
    sandbox: Sandbox, candles: Path
) -> None:
    write_candles(candles, LONG)
    daemon = start(sandbox, candles)
    sandbox.wait_for("intent", 1, daemon)

    kill = sandbox.run("kill", "--reason", "a test", "--json")
    killed_at_ns = latch_of(sandbox)["at"]
    sandbox.wait_for("decision", sandbox.stream_length("decision") + 4, daemon)
    resume(sandbox)
    resumed_at_ns = latch_of(sandbox)["at"]
    sandbox.wait_for("intent", sandbox.stream_length("intent") + 1, daemon)
    recording = stop(daemon)

    assert kill.answer["done"]
    assert [step["ok"] for step in kill.answer["steps"]] == [True, True, True]
    # When the decision behind each was made: one that lay there already may be answered later.
    decided_ns = [
        envelope.cause_published_ns
        for envelope in recording.entries.values()
        if isinstance(envelope.message, OrderIntent)
    ]
    assert decided_ns[0] < killed_at_ns
    assert not [ns for ns in decided_ns if killed_at_ns + SECOND_NS < ns < resumed_at_ns]
    assert decided_ns[-1] > resumed_at_ns
    verdicts = messages(recording, RiskVerdict)
    assert sum("kill switch: a test" in verdict.reason for verdict in verdicts) >= 3


def test_a_fresh_state_folder_is_halted_until_resume(sandbox: Sandbox, candles: Path) -> None:
    sandbox.set("session.start_halted", "true")
    write_candles(candles, LONG)
    daemon = start(sandbox, candles)
    sandbox.wait_for("decision", KILLED_AT, daemon)

    before = sandbox.stream_length("order")
    resume(sandbox)
    sandbox.wait_for("order", 1, daemon)
    recording = stop(daemon)

    assert before == 0
    assert "first start" in messages(recording, RiskVerdict)[0].reason
    assert order_ids(recording)
