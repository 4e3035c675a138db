"""`hrm-trader demo` and the operator's commands, as a person at a terminal runs them."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from command_line import (
    INSTRUMENT,
    Outcome,
    Sandbox,
    a_sandbox,
    decision_ids,
    wait_until,
    write_candles,
)

from actors.messages import Bar, Depth, PlaceOrder
from daemon.replay import Recording
from daemon.wiring import NAMES

pytestmark = pytest.mark.integration

SECONDS = 3
BARS = 60
RELEASED_MODELS = Path(__file__).parents[2] / "models"


@dataclass(frozen=True)
class Demo:
    """A demo that has ended, and where it ran."""

    sandbox: Sandbox
    outcome: Outcome

    @property
    def recording(self) -> Path:
        return Path(self.outcome.answer["recording"])


@pytest.fixture(scope="module")
def embedded() -> Iterator[Demo]:
    """Return a demo of the embedded candles and the released model."""
    with a_sandbox() as sandbox:
        sandbox.be_patient()
        sandbox.set("session.model_dir", RELEASED_MODELS)
        sandbox.set("feed.depth", "true")
        yield Demo(sandbox, sandbox.run("demo", "--duration", SECONDS, "--json"))


@pytest.fixture(scope="module")
def trading(tiny_models: Path) -> Iterator[Demo]:
    """Return a demo that has traded a file of candles to its end."""
    with a_sandbox() as sandbox:
        yield demo_of_candles(sandbox, tiny_models)


def demo_of_candles(sandbox: Sandbox, models: Path) -> Demo:
    sandbox.trade_with(models)
    candles = write_candles(sandbox.folder / f"{INSTRUMENT}_1.csv", BARS)
    outcome = sandbox.run("demo", "--data", candles, "--json")
    assert outcome.code == 0, outcome.stderr
    return Demo(sandbox, outcome)


def test_the_demo_trades_the_embedded_candles_with_the_released_model(embedded: Demo) -> None:
    answer = embedded.outcome.answer

    assert (embedded.outcome.code, embedded.outcome.stderr) == (0, "")
    assert answer["no_model_reason"] == ""
    assert answer["data"][0]["instrument"] == "EURUSD"
    assert answer["ticks"] > 0 < answer["bars"]
    assert answer["decisions"] == answer["contexts"] == answer["verdicts"] > 0
    assert (answer["lost"], answer["drained"], answer["stopped_by"]) == (0, True, "duration")
    assert answer["failed_decisions"] == 0
    for hop in ("bar_to_context", "context_to_decision", "decision_to_verdict"):
        assert 0 < answer["hops_us"][hop]["p50"] <= answer["hops_us"][hop]["p99"]
    assert 0 < answer["tick_to_decision_us"]["p50"] <= answer["tick_to_decision_us"]["p99"]


def test_order_books_are_in_its_recording_and_their_imbalance_on_the_bars(embedded: Demo) -> None:
    entries = Recording(embedded.recording).entries.values()
    messages = [envelope.message for envelope in entries]

    books = [message for message in messages if isinstance(message, Depth)]
    bars = [message for message in messages if isinstance(message, Bar)]
    assert {book.instrument for book in books} == {"EURUSD"}
    # A level that an own order has emptied is left out until the market moves on.
    levels = Counter((len(book.bids), len(book.asks)) for book in books)
    assert levels.most_common(1)[0][0] == (5, 5)
    assert all(1 <= count <= 5 for counts in levels for count in counts)
    assert bars
    assert all(bar.depth_imbalance is not None for bar in bars)


def test_its_logs_are_in_a_file_and_its_processes_gone(embedded: Demo) -> None:
    state = Path(embedded.outcome.answer["state_dir"])

    lines = [json.loads(line) for line in (state / "log.jsonl").read_text().splitlines()]

    assert {"recovered", "handled"} <= {line["event"] for line in lines}
    assert not (state / "redis").exists()
    assert embedded.sandbox.processes() == {}


def test_it_touches_no_file_outside_the_state_folder(embedded: Demo) -> None:
    sandbox = embedded.sandbox

    assert [path for place in sandbox.places for path in place.rglob("*")] == []
    assert {path.name for path in sandbox.folder.iterdir() if path.is_dir()} == {
        "state",
        *(place.name for place in sandbox.places),
    }


def test_a_replay_of_it_is_identical(embedded: Demo) -> None:
    replay = embedded.sandbox.run("replay", "--json")

    assert replay.code == 0, replay.stdout
    assert (replay.answer["identical"], replay.answer["sealed"]) == (True, True)
    assert replay.answer["session"] == embedded.outcome.answer["session"]
    assert replay.answer["decisions"] == embedded.outcome.answer["decisions"]
    assert replay.answer["first_difference"] is None


def test_a_replay_of_trades_is_identical(trading: Demo) -> None:
    replay = trading.sandbox.run("replay", trading.recording, "--json")

    assert trading.outcome.answer["orders"] >= 5 <= trading.outcome.answer["fills"]
    assert replay.code == 0, replay.stdout
    assert (replay.answer["identical"], replay.answer["decisions"]) == (True, BARS)


def test_at_full_speed_every_run_decides_the_same(
    sandbox: Sandbox, trading: Demo, tiny_models: Path
) -> None:
    again = demo_of_candles(sandbox, tiny_models)

    first, second = (Recording(demo.recording).decisions() for demo in (trading, again))
    assert list(first) == list(second) == decision_ids(BARS)
    assert [(d.action, d.reason, d.confidence) for d in first.values()] == [
        (d.action, d.reason, d.confidence) for d in second.values()
    ]


def test_a_changed_recording_is_found_out(trading: Demo, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trading.recording, copy)
    content = bytearray((copy / "records").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "records").write_bytes(content)

    replay = trading.sandbox.run("replay", copy, "--json")

    assert replay.code == 1
    assert replay.answer["error"] == "ReplayError"
    replay.assert_no_traceback()


def test_trace_walks_an_order_back_to_its_tick_and_on_to_its_fill(trading: Demo) -> None:
    order = next(
        envelope.message.client_order_id
        for envelope in Recording(trading.recording).entries.values()
        if isinstance(envelope.message, PlaceOrder) and envelope.message.purpose == "entry"
    )

    trace = trading.sandbox.run("trace", order, "--json")

    assert trace.code == 0, trace.stderr
    chain: list[dict[str, Any]] = trace.answer["chain"]
    steps = [link["step"] for link in chain]
    for step in ("tick", "bar", "context", "decision", "verdict", "intent", "order", "fill"):
        assert step in steps
    assert steps.index("tick") < steps.index("bar") < steps.index("decision") < steps.index("fill")
    by_step = {link["step"]: link for link in chain}
    assert by_step["order"]["cause"] == by_step["intent"]["entry"]
    assert by_step["fill"]["message"]["client_order_id"] == order
    assert by_step["decision"]["message"]["id"] == by_step["order"]["message"]["decision_id"]


def test_trace_of_an_unknown_order_names_known_ones(trading: Demo) -> None:
    trace = trading.sandbox.run("trace", "nosuchorder", "--json")

    assert trace.code == 1
    assert "no order 'nosuchorder'" in trace.answer["text"]
    trace.assert_no_traceback()


def test_a_speed_paces_the_candles(sandbox: Sandbox) -> None:
    outcome = sandbox.run("demo", "--speed", 3600, "--duration", 4, "--json")

    assert outcome.code == 0
    assert outcome.answer["speed"] == 3600.0
    # One candle is an hour: one a second, four ticks to each.
    assert 1 <= outcome.answer["ticks"] <= 17  # fewer where the start took its time
    assert outcome.answer["decisions"] <= 4
    assert (outcome.answer["lost"], outcome.answer["drained"]) == (0, True)


@pytest.mark.parametrize("more", [[], ["--processes"]])
def test_ctrl_c_stops_in_order(sandbox: Sandbox, more: list[str]) -> None:
    demo = sandbox.start("demo", "--json", *more)
    wait_until(
        lambda: any(path.stat().st_size > 50_000 for path in sandbox.state.rglob("records")),
        "a recording that grows",
        lambda: demo.process.poll() is None,
    )

    demo.press_ctrl_c()
    outcome = demo.wait()

    assert (outcome.code, outcome.stderr) == (0, "")
    assert (outcome.answer["stopped_by"], outcome.answer["lost"]) == ("operator", 0)
    assert outcome.answer["drained"]
    assert Path(outcome.answer["recording"], "seal.json").is_file()
    log = Path(outcome.answer["state_dir"], "log.jsonl").read_text()
    assert "part crashed" not in log
    assert "Traceback" not in log
    assert sandbox.processes() == {}


def test_two_demos_at_once_do_not_disturb_each_other(sandbox: Sandbox) -> None:
    sandbox.be_patient()
    demos = [sandbox.start("demo", "--duration", SECONDS, "--json") for _ in range(2)]

    outcomes = [demo.wait() for demo in demos]

    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    answers = [outcome.answer for outcome in outcomes]
    assert answers[0]["session"] != answers[1]["session"]
    for answer in answers:
        assert answer["decisions"] > 0
        assert (answer["lost"], answer["drained"]) == (0, True)
        assert answer["alerts"] == 0


def test_a_demo_on_a_configured_server_leaves_the_rest_of_it_alone(
    sandbox: Sandbox, message_server: str
) -> None:
    sandbox.set("bus.url", message_server)
    with redis.from_url(message_server) as server:
        server.xadd("paper:v1:tick", {"d": "of a daemon"})
        before = server.keys()

        outcome = sandbox.run("demo", "--duration", SECONDS, "--json")

        after = server.keys()
        server.delete("paper:v1:tick")
    assert outcome.code == 0, outcome.stderr
    assert outcome.answer["decisions"] > 0
    assert sorted(before) == sorted(after)


def test_status_tells_what_is_known_before_the_first_session(sandbox: Sandbox) -> None:
    outcome = sandbox.run("status", "--json")

    assert outcome.code == 0, outcome.stderr
    assert (outcome.answer["running"], outcome.answer["session"]) == (False, None)
    assert outcome.answer["kill_switch"]["engaged"] is True
    assert outcome.answer["server"]["running"] is False
    assert sandbox.processes() == {}


def test_kill_and_resume_work_with_the_daemon_down(sandbox: Sandbox) -> None:
    resumed = sandbox.run("resume", "--reason", "a test", "--json")
    killed = sandbox.run("kill", "--reason", "another", "--json")

    assert (resumed.code, resumed.answer["engaged"], resumed.answer["done"]) == (0, False, True)
    assert (killed.code, killed.answer["engaged"], killed.answer["done"]) == (0, True, True)
    assert [(step["step"], step["ok"]) for step in killed.answer["steps"]] == [
        ("stop file", True),
        ("latch key", False),
        ("message", False),
    ]
    latch = json.loads((sandbox.state / "kill_switch.json").read_text())
    assert (latch["engaged"], latch["reason"]) == (True, "another")


def test_resume_without_a_reason_is_refused(sandbox: Sandbox) -> None:
    outcome = sandbox.run("resume", "--reason", " ", "--json")

    assert outcome.code == 2
    assert "a release needs a reason" in outcome.answer["text"]
    assert not (sandbox.state / "kill_switch.json").exists()


def test_status_of_a_running_daemon_shows_its_actors(sandbox: Sandbox) -> None:
    candles = write_candles(sandbox.folder / f"{INSTRUMENT}_1.csv", BARS)
    daemon = sandbox.start("run", "--data", candles, "--speed", 120, "--json")
    sandbox.wait_for("decision", 1, daemon)

    status = sandbox.run("status", "--json")
    daemon.press_ctrl_c()
    outcome = daemon.wait()

    assert (status.code, outcome.code) == (0, 0), outcome.stderr
    assert status.answer["running"]
    assert status.answer["session"] == outcome.answer["session"]
    assert set(status.answer["actors"]) == {*NAMES, "order_gateway"}
    assert all(actor["alive"] for actor in status.answer["actors"].values())
    assert status.answer["server"]["running"]
    assert status.answer["decision"][INSTRUMENT]["action"] == "HOLD"


def test_check_shows_the_effective_settings_with_secrets_masked(sandbox: Sandbox) -> None:
    sandbox.environment["JWT_SECRET"] = "do-not-show-me"
    sandbox.set("session.model_dir", RELEASED_MODELS)

    outcome = sandbox.run("check", "--json")

    assert outcome.code == 0, outcome.stderr
    assert outcome.answer["valid"] is True
    assert outcome.answer["model"]["valid"] is True
    without = ["1", "3", "30", "120", "240", "D"]
    assert outcome.answer["timeframes_without_forecast"] == without
    assert outcome.answer["settings"]["session"]["state_dir"] == str(sandbox.state)
    assert "do-not-show-me" not in outcome.stdout


def test_wiring_names_every_actor_with_its_inputs_and_outputs(sandbox: Sandbox) -> None:
    outcome = sandbox.run("wiring", "--json")

    parts = {part["actor"]: part for part in outcome.answer["wiring"] if "actor" in part}
    assert len(parts) == 6
    assert parts["reasoning"]["outputs"] == ["Decision"]
    assert "Decision" in parts["risk"]["inputs"]
