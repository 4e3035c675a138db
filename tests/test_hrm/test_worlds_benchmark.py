import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from training_builders import a_trainable_model

from benchmarks.worlds import ModelPolicy, Plan, as_text, marks, report_of, run_world, store
from hrm.training.market_table import LabelSettings, Vocabulary
from hrm.training.world_scores import FlatPolicy, Score, check_path, evaluate
from hrm.training.worlds import generate, parameters_for

BARS = 150


def a_model_policy() -> ModelPolicy:
    labels = LabelSettings(commit_bars=4, barrier_bars=8)
    return ModelPolicy(a_trainable_model(3), labels, Vocabulary({"W2": 1}, {"5": 1}))


def a_score(**changes: object) -> Score:
    flat = evaluate(FlatPolicy(), parameters_for("W0"), [1], 50)
    return replace(flat, **changes)  # type: ignore[arg-type]  # by name


def test_a_models_path_is_one_that_actions_lead_to() -> None:
    markets = [generate("W2", BARS, seed).candles for seed in (1, 2)]

    paths = a_model_policy().positions(markets)

    for path in paths:
        check_path(path, BARS)
        assert path.any()
        assert path[-1] == 0


def test_a_models_path_does_not_depend_on_what_follows() -> None:
    candles, seen = generate("W2", BARS, 1).candles, 90

    (whole,) = a_model_policy().positions([candles])
    (part,) = a_model_policy().positions([candles.first(seen)])

    assert part.any()
    assert whole[: seen - 1].tolist() == part[:-1].tolist()  # the last bar closes


@pytest.mark.parametrize(
    ("changes", "reached"),
    [
        ({}, [True, True, True]),
        ({"value_bps": -0.11}, [False, True, True]),
        ({"changes_per_bar": 0.03}, [True, False, True]),
        ({"edges": 2, "seeds": 20}, [True, True, False]),
    ],
)
def test_the_marks_of_a_world_without_an_edge_are_told_apart(
    changes: dict[str, object], reached: list[bool]
) -> None:
    assert list(marks("W0", a_score(**changes)).values()) == reached


def test_the_mark_of_a_world_with_an_edge_asks_for_the_lower_bound() -> None:
    assert marks("W2", a_score(ratio_ci95=(0.75, 0.9))) == {
        "lower_bound_at_least_0.75_of_oracle": True
    }
    assert not any(marks("W2", a_score(ratio=0.9, ratio_ci95=(0.74, 0.99))).values())
    assert not any(marks("W1", a_score(ratio_ci95=None)).values())


def test_a_whole_round_from_file_to_marks_can_be_stored_and_read(tmp_path: Path) -> None:
    plan = Plan("W2", training_bars=3_000, steps=2, m_max=1, test_bars=200, test_seeds=1)
    stored = tmp_path / "results" / "worlds.json"
    source = {"command": "python -m benchmarks.worlds", "machine": {"commit": "abc", "cpu": "any"}}

    result = run_world(plan, tmp_path, Console(stderr=True, quiet=True))
    store(report_of({"W2": source | {"date": "2026-01-01"} | result}), stored)
    store(report_of({"W1": source | {"date": "2026-01-02"} | result}), stored)

    report = json.loads(stored.read_text())
    assert report["date"] == "2026-01-02"
    assert list(report["worlds"]) == ["W1", "W2"]
    assert report["worlds"]["W2"]["steps"] == 2
    assert set(report["worlds"]["W2"]["scores"]) == {"model", "ridge", "long", "flat", "oracle"}
    assert "lower_bound_at_least_0.75_of_oracle" in as_text(report)
    assert (tmp_path / "W2_5.csv").exists()
