"""The comparison of shapes: each is read at the depth it can afford, and results are kept."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import shapes
from hrm.config import HRMConfig


def test_the_lean_shape_is_that_of_the_production_size() -> None:
    for module in (HRMConfig().architecture.h_module, HRMConfig().architecture.l_module):
        assert module.feed_forward == shapes.LEAN.feed_forward * module.hidden_size


def test_a_shape_is_scored_after_the_segments_that_it_can_afford(tmp_path: Path) -> None:
    lean = replace(shapes.LEAN, segments=2)

    found, wider = (
        shapes.on_chains(shape, 0.05, tmp_path, seeds=(0, 1), puzzles=200)
        for shape in (lean, replace(lean, feed_forward=1.0))
    )

    assert [len(line) for line in found["accuracies_by_segments"]] == [4, 4]
    assert found["accuracies"] == [line[1] for line in found["accuracies_by_segments"]]
    assert found["accuracy"] == sum(found["accuracies"]) / 2
    assert wider["looped_parameters"] > found["looped_parameters"]


def test_a_contest_that_is_not_run_again_keeps_its_result(tmp_path: Path) -> None:
    path = tmp_path / "shapes.json"
    shapes.store({"chain": {"seeds": 1}}, path)

    assert shapes.store({"world": {"seeds": 1}}, path) == {
        "chain": {"seeds": 1},
        "world": {"seeds": 1},
    }


def test_without_a_stored_result_the_remedy_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shapes.main(["--report", "--result", str(tmp_path / "none.json")]) == 1
    assert "make it with --run" in capsys.readouterr().err
