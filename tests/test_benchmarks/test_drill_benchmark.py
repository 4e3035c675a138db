"""The benchmark of drills: its sums are those of its audits, and one that fails fails it."""

from typing import Any

from benchmarks.drill import report


def an_audit(**fields: Any) -> dict[str, Any]:
    return {
        "passed": True,
        "problems": [],
        "lost": 0,
        "duplicate_orders": 0,
        "phantom_positions": 0,
        "positions_equal": True,
        "orders": 30,
        "orders_at_broker": 20,
        "fills_at_broker": 15,
        "logins": 2,
        "agreed_after_s": 0.5,
        "faults_fired": {"server_error": 3},
    } | fields


def test_audits_that_pass_are_summed_up() -> None:
    found = report({1: an_audit(), 2: an_audit(orders_at_broker=7, agreed_after_s=2.0)})

    assert (found["passed"], found["seeds"], found["failed"]) == (True, 2, {})
    assert (found["lost"], found["duplicate_orders"], found["phantom_positions"]) == (0, 0, 0)
    assert (found["orders_at_broker"], found["fewest_orders_at_broker"]) == (27, 7)
    assert found["longest_agreement_s"] == 2.0
    assert found["faults_fired"] == {"server_error": 6}


def test_one_that_fails_is_named() -> None:
    lossy = an_audit(passed=False, lost=1, problems=["fills are lost"], positions_equal=False)

    found = report({1: an_audit(), 2: lossy})

    assert (found["passed"], found["lost"], found["positions_equal"]) == (False, 1, False)
    assert found["failed"] == {"2": ["fills are lost"]}


def test_one_without_an_audit_fails() -> None:
    found = report({1: {"passed": False, "problems": ["it did not start"]}})

    assert (found["passed"], found["positions_equal"]) == (False, False)
