"""`hrm-trader demo --broker fyers-sim`: drills that pass, and what they are refused for."""

import pytest
from command_line import Sandbox

pytestmark = pytest.mark.integration

SECONDS = 4


@pytest.mark.parametrize(("seed", "transport"), [(3, "own"), (4, "own"), (5, "sdk")])
def test_a_drill_with_all_faults_loses_and_doubles_nothing(
    sandbox: Sandbox, seed: int, transport: str
) -> None:
    sandbox.set("broker.transport", transport)
    drill = sandbox.run(
        "demo", "--broker", "fyers-sim", "--faults", "all", "--seed", seed,
        "--duration", SECONDS, "--json",
    )  # fmt: skip

    assert drill.code == 0, drill.stdout
    audit = drill.answer["audit"]
    assert (audit["lost"], audit["duplicate_orders"], audit["phantom_positions"]) == (0, 0, 0)
    assert audit["positions_equal"]
    named = ("lost", "duplicate_orders", "phantom_positions", "positions_equal")
    assert [drill.answer[name] for name in named] == [0, 0, 0, True]
    assert audit["passed"]
    assert sum(audit["faults_fired"].values()) > 5
    assert audit["orders"] > 0
    assert (drill.answer["trader"], drill.answer["broker"]) == ("drill", "fyers-sim")


def test_a_drill_in_which_nothing_goes_wrong_does_not_pass(sandbox: Sandbox) -> None:
    drill = sandbox.run(
        "demo", "--broker", "fyers-sim", "--faults", "data_large_frame", "--duration", 1, "--json"
    )

    assert drill.code == 1
    assert "no fault has happened: nothing was tried" in drill.answer["audit"]["problems"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--faults", "all"], "--broker fyers-sim"),
        (["--broker", "fyers-sim", "--faults", "session_changed"], "ends the trading day"),
    ],
)
def test_faults_that_cannot_be_are_refused(
    sandbox: Sandbox, arguments: list[str], reason: str
) -> None:
    drill = sandbox.run("demo", *arguments, "--json")

    assert drill.code == 2
    assert reason in drill.answer["text"]
