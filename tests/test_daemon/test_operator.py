"""The operator's hand: it works with the daemon or its message server down."""

import time
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest
from builders import a_context, a_decision, a_heartbeat, a_kill_switch, a_policy_switch, a_position
from recorded_session import RecordedSession, session_settings

from actors.messages import Alert, KillSwitch, PolicySwitch
from daemon.announcer import Announcer
from daemon.brokers.fyers.ledger import RateLedger
from daemon.clock import SystemClock
from daemon.errors import BusError
from daemon.kill_switch import KillSwitchLatch, RedisLatchStore
from daemon.operator import Operator, stop_without_settings
from daemon.redis_bus import RedisBus
from daemon.session_files import begin_session

NO_SERVER = "unix:///nowhere/r.sock"


@pytest.fixture
def prefix() -> str:
    return f"test:{uuid.uuid4().hex}"


def an_operator(state_dir: Path, url: str = NO_SERVER) -> Operator:
    return Operator(session_settings(state_dir, **{"bus.url": url}), SystemClock())


def begun(recorded: RecordedSession, state_dir: Path, prefix: str) -> Path:
    return begin_session(state_dir, msgspec.structs.replace(recorded.plan, prefix=prefix))


def ok_by_step(answer: dict[str, Any]) -> dict[str, bool]:
    return {step["step"]: step["ok"] for step in answer["steps"]}


async def test_trading_is_stopped_with_everything_else_down(tmp_path: Path) -> None:
    answer = await an_operator(tmp_path).kill("too many losses", "anna", flatten=True)

    assert (answer["engaged"], answer["done"], answer["flatten"]) == (True, True, True)
    assert ok_by_step(answer) == {"stop file": True, "latch key": False, "message": False}
    state = KillSwitchLatch(tmp_path, "paper:v1", time.time_ns).state()
    assert (state.reason, state.operator, state.flatten) == ("too many losses", "anna", True)


async def test_trading_is_allowed_again_with_everything_else_down(tmp_path: Path) -> None:
    operator = an_operator(tmp_path)
    await operator.kill("too many losses", "anna", flatten=False)

    answer = await operator.resume("found the reason", "anna")

    assert (answer["engaged"], answer["done"]) == (False, True)
    assert ok_by_step(answer)["stop file"]


async def test_a_stop_file_that_cannot_be_changed_is_told(tmp_path: Path) -> None:
    operator = an_operator(tmp_path)
    (tmp_path / "kill_switch.json").mkdir()

    answer = await operator.resume("found the reason", "anna")

    assert (answer["engaged"], answer["done"]) == (True, False)
    assert ok_by_step(answer) == {"stop file": False}


async def test_the_state_is_told_with_everything_down(tmp_path: Path) -> None:
    answer = await an_operator(tmp_path).status()

    assert (answer["session"], answer["recording"], answer["running"]) == (None, None, False)
    assert answer["kill_switch"]["engaged"]
    assert not answer["server"]["running"]
    assert answer["problem"]
    assert answer["actors"] == {}
    assert answer["broker_calls"] is None


async def test_a_damaged_plan_keeps_nobody_from_stopping(
    recorded: RecordedSession, tmp_path: Path, prefix: str
) -> None:
    (begun(recorded, tmp_path, prefix) / "session.json").write_text("{")
    operator = an_operator(tmp_path)
    await operator.resume("a test", "anna")

    answer = await operator.kill("something is wrong", "anna", flatten=False)

    assert answer["done"]
    assert (await operator.status())["session"] is None


async def test_trading_is_stopped_without_settings(tmp_path: Path) -> None:
    await an_operator(tmp_path).resume("a test", "anna")

    steps = await stop_without_settings(tmp_path, "no settings", "anna", SystemClock())

    assert all(step.ok for step in steps)
    assert KillSwitchLatch(tmp_path, "paper:v1", time.time_ns).state().reason == "no settings"


async def test_switching_the_policy_needs_a_server(tmp_path: Path) -> None:
    with pytest.raises(BusError):
        await an_operator(tmp_path).switch_policy("hold", "a drill", "anna")


@pytest.mark.integration
async def test_a_switch_of_policy_reaches_the_actors(
    recorded: RecordedSession, tmp_path: Path, message_server: str, prefix: str
) -> None:
    begun(recorded, tmp_path, prefix)

    answer = await an_operator(tmp_path, message_server).switch_policy("hold", "a drill", "anna")

    bus = RedisBus(message_server, prefix)
    [entry] = await bus.entries(PolicySwitch.stream)
    await bus.close()
    message = entry.envelope.message
    assert isinstance(message, PolicySwitch)
    assert (message.policy, message.reason) == ("hold", "anna: a drill")
    assert answer["entry"] == f"control/{entry.id}"


@pytest.mark.integration
async def test_a_kill_reaches_file_key_and_actors(
    recorded: RecordedSession, tmp_path: Path, message_server: str, prefix: str
) -> None:
    begun(recorded, tmp_path, prefix)

    answer = await an_operator(tmp_path, message_server).kill("a drill", "anna", flatten=False)

    assert ok_by_step(answer) == {"stop file": True, "latch key": True, "message": True}
    bus = RedisBus(message_server, prefix)
    [entry] = await bus.entries(KillSwitch.stream)
    await bus.close()
    message = entry.envelope.message
    assert isinstance(message, KillSwitch)
    assert (message.engaged, message.reason, message.operator) == (True, "a drill", "anna")
    store = RedisLatchStore.connect(message_server)
    key = await store.get(f"{prefix}:kill")
    await store.close()
    assert key is not None
    assert b"a drill" in key


@pytest.mark.integration
@pytest.mark.parametrize("alive", [("execution", "order_gateway"), ("execution",), ()])
async def test_a_kill_leaves_resting_orders_to_a_daemon_with_signs_of_life_alone(
    recorded: RecordedSession,
    tmp_path: Path,
    message_server: str,
    prefix: str,
    alive: tuple[str, ...],
) -> None:
    at_fyers = msgspec.structs.replace(
        recorded.plan, prefix=prefix, broker="fyers-sim", simulator="http://127.0.0.1:9"
    )
    begin_session(tmp_path, at_fyers)
    bus = RedisBus(message_server, prefix)
    announcer = Announcer(bus, "risk", ["heartbeat"])
    await announcer.publish(*map(a_heartbeat, alive))
    await announcer.close()
    await bus.close()

    with RateLedger(tmp_path / "fyers" / "calls", SystemClock()):
        answer = await an_operator(tmp_path, message_server).kill("a drill", "anna", flatten=False)

    step = answer["steps"][-1]
    assert step["step"] == "broker"
    assert (step["detail"] == "left to the daemon, which runs") is (len(alive) == 2)
    assert step["ok"] is (len(alive) == 2)  # nobody has logged in: it cannot be done from here


@pytest.mark.integration
async def test_the_state_of_a_running_session_is_told(
    recorded: RecordedSession, tmp_path: Path, message_server: str, prefix: str
) -> None:
    folder = begun(recorded, tmp_path, prefix)
    bus = RedisBus(message_server, prefix)
    announcer = Announcer(bus, "risk", ["heartbeat", "control", "alert"])
    alert = Alert(severity="warning", text="no ticks", runbook="Silent feed", at_ns=1)
    await announcer.publish(
        a_heartbeat("risk"), a_heartbeat("execution"), a_kill_switch(), a_policy_switch(), alert
    )
    await announcer.close()
    for source, message in (
        ("complexity", a_context(regime_probabilities=(0.2, 0.5, 0.3))),
        ("reasoning", a_decision()),
        ("execution", a_position(75)),
    ):
        publisher = await bus.publisher(source, [message.stream])
        await publisher.publish(message)
        await publisher.close()
    await bus.close()

    answer = await an_operator(tmp_path, message_server).status()

    assert (answer["session"], answer["recording"]) == (recorded.plan.session, str(folder))
    assert answer["running"]
    assert {name: actor["alive"] for name, actor in answer["actors"].items()} == {
        "execution": True,
        "risk": True,
    }
    context = answer["context"]["Nifty"]
    assert (context["regime"], context["regime_probabilities"]) == ("ranging", (0.2, 0.5, 0.3))
    assert answer["decision"]["Nifty"]["action"] == "BUY_LONG"
    assert answer["position"]["Nifty"]["net_quantity"] == 75
    assert list(answer["control"]) == ["policy_switch"]
    assert [alert["text"] for alert in answer["alerts_of_the_last_hour"]] == ["no ticks"]
    assert answer["server"]["running"]
    assert "problem" not in answer


@pytest.mark.integration
async def test_actors_whose_last_sign_of_life_is_old_are_not_running(
    recorded: RecordedSession, tmp_path: Path, message_server: str, prefix: str
) -> None:
    begun(recorded, tmp_path, prefix)
    an_hour_ago_ns = time.time_ns() - 3600 * 10**9
    bus = RedisBus(message_server, prefix, clock_ns=lambda: an_hour_ago_ns)
    announcer = Announcer(bus, "risk", ["heartbeat"])
    await announcer.publish(a_heartbeat("risk"))
    await announcer.close()
    await bus.close()

    answer = await an_operator(tmp_path, message_server).status()

    assert not answer["actors"]["risk"]["alive"]
    assert not answer["running"]
