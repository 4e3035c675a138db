"""`hrm-trader run --broker ...`: at a simulated broker in another process, and what is refused."""

import asyncio
import json
import signal

import pytest
from command_line import PREFIX, Outcome, Sandbox, wait_until

from actors.messages import Tick
from daemon.errors import BusError
from daemon.redis_bus import RedisBus

pytestmark = pytest.mark.integration

HISTORY_BARS = 2 * 2000  # feed.warm_up_bars of two instruments


async def ticks_of(sandbox: Sandbox) -> int:
    """Return how many ticks the session has had; bars of the past travel in their stream too."""
    bus = RedisBus(f"unix://{sandbox.state}/redis/r.sock", PREFIX)
    try:
        entries = await bus.entries(Tick.stream)
    except BusError:
        return 0
    finally:
        await bus.close()
    return sum(isinstance(entry.envelope.message, Tick) for entry in entries)


def stopped_after(sandbox: Sandbox, arguments: list[str], ticks: int) -> Outcome:
    """Run until the session has all bars of history and so many ticks, and stop."""
    running = sandbox.start(*arguments)
    sandbox.wait_for("bar", HISTORY_BARS, running)
    wait_until(
        lambda: asyncio.run(ticks_of(sandbox)) >= ticks,
        f"{ticks} ticks",
        lambda: running.process.poll() is None,
    )
    running.signal(signal.SIGTERM)
    return running.wait()


def test_a_session_at_a_simulated_broker_goes_on_after_a_restart(sandbox: Sandbox) -> None:
    broker = sandbox.start("simulate-broker", "--json")
    wait_until(lambda: "serving" in broker.stderr, "a broker")
    address = json.loads(broker.stdout)["api"].removesuffix("/api/v3")
    for name, value in {
        "FYERS_APP_ID": "SIMULATED1-100",
        "FYERS_SECRET_KEY": "simulated-secret",
        "FYERS_REDIRECT_URI": "http://127.0.0.1/callback",
        "FYERS_FY_ID": "XS00001",
        "FYERS_PIN": "1234",
        "FYERS_TOTP_SECRET": "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP",
    }.items():
        sandbox.environment[name] = value
    login = sandbox.run("login", "--simulator", address, "--json")
    sandbox.set("feed.instruments", '["Reliance", "TCS"]')
    sandbox.set("feed.timeframe", "1")
    sandbox.be_patient()
    sandbox.set("feed.stale_after_seconds", 3600)  # between two sessions there are no ticks
    run = ["run", "--broker", "fyers-sim", "--simulator", address, "--json"]

    first = stopped_after(sandbox, run, 2)
    second = stopped_after(sandbox, run, first.answer["ticks"] + 2)

    broker.signal(signal.SIGTERM)
    broker.wait()
    assert (login.code, first.code, second.code) == (0, 0, 0), first.stderr
    assert (first.answer["broker"], first.answer["mode"]) == ("fyers-sim", "paper")
    assert (first.answer["resumed"], second.answer["resumed"]) == (False, True)
    assert first.answer["session"] == second.answer["session"]
    for outcome in (first, second):
        assert outcome.answer["ticks"] >= 2
        assert (outcome.answer["lost"], outcome.answer["drained"]) == (0, True)
        outcome.assert_no_traceback()
    assert "crashed" not in first.stderr + second.stderr
    assert second.answer["alerts"] == 0
    assert first.answer["bars"] >= HISTORY_BARS
    assert second.answer["bars"] < 10
    assert first.answer["decisions"] < 10  # none of them on what is past
    replay = sandbox.run("replay", "--json")
    assert (replay.code, replay.answer["identical"]) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "reason", "code"),
    [
        (["--broker", "fyers"], "broker.allow_real_orders is off", 2),
        (["--broker", "fyers-sim"], "needs --simulator", 2),
        (["--broker", "fyers", "--speed", "60"], "leave out --data", 2),
    ],
)
def test_what_cannot_be_run_is_refused_with_a_remedy(
    sandbox: Sandbox, arguments: list[str], reason: str, code: int
) -> None:
    outcome = sandbox.run("run", *arguments, "--json")

    assert outcome.code == code
    assert reason in outcome.answer["text"]
    outcome.assert_no_traceback()


def test_allowed_but_not_logged_in_the_real_broker_is_refused(sandbox: Sandbox) -> None:
    sandbox.set("broker.allow_real_orders", "true")
    sandbox.set("execution.order_type", "limit")
    sandbox.set("session.start_halted", "false")
    sandbox.set("feed.instruments", '["Reliance"]')

    outcome = sandbox.run("run", "--broker", "fyers", "--json")

    assert (outcome.code, outcome.answer["error"]) == (1, "LoginNeeded")
    assert "run hrm-trader login" in outcome.answer["text"]
    assert sandbox.processes() == {}
    # With real orders a person releases it, whatever the settings say.
    assert sandbox.run("status", "--json").answer["kill_switch"]["engaged"]
