"""hrm-trader simulate-broker, from outside."""

import json
import signal
import urllib.request

import pytest
from command_line import Sandbox, wait_until

from daemon.brokers.fyers_simulator.server import DEFAULT_START
from daemon.errors import ConfigError
from daemon.simulate_command import market_time

pytestmark = pytest.mark.integration


def test_the_simulated_broker_says_where_it_is_and_serves_until_it_is_stopped(
    sandbox: Sandbox,
) -> None:
    running = sandbox.start("simulate-broker", "--json", "--faults", "data_drop")
    wait_until(lambda: "serving" in running.stderr, "a server")
    said = json.loads(running.stdout)

    where = said["api"].replace("/api/v3", "/sym_details/NSE_CM.csv")
    with urllib.request.urlopen(where, timeout=60) as response:
        assert b"NSE:SBIN-EQ" in response.read()
    running.signal(signal.SIGTERM)
    outcome = running.wait()

    assert outcome.code == 0
    outcome.assert_no_traceback()
    assert outcome.answer == said
    assert said["api"].startswith("http://127.0.0.1:")
    assert outcome.answer["access_token"].count(".") == 2


def test_a_start_that_is_no_time_is_refused_with_a_remedy() -> None:
    with pytest.raises(ConfigError, match="2026-11-25 10:00"):
        market_time("tomorrow")

    assert market_time("2026-11-25 10:00") == DEFAULT_START


def test_an_unknown_fault_is_refused_with_a_remedy(sandbox: Sandbox) -> None:
    outcome = sandbox.run("simulate-broker", "--json", "--faults", "gremlins")

    assert outcome.code == 2
    assert "gremlins" in outcome.answer["text"]
    assert "data_drop" in outcome.answer["text"]
