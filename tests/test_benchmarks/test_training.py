"""The training benchmarks: what they claim is what they measured."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import training, training_memory
from benchmarks.machine import ROOT


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("gradient", ["one_step", "last_cycle"])
def test_a_pass_keeps_as_much_for_sixteen_cycles_as_for_one(gradient: str) -> None:
    few, many = (
        training_memory.measure_segment("small", 4, gradient, cycles)  # type: ignore[arg-type]  # by name
        for cycles in (1, 16)
    )

    assert many["loop_saved_bytes"] == few["loop_saved_bytes"] > 0
    assert many["saved_bytes"] == few["saved_bytes"] > many["loop_saved_bytes"]


def test_a_pass_through_time_keeps_more_with_every_cycle() -> None:
    few, many = (training_memory.measure_segment("small", 4, "bptt", cycles) for cycles in (1, 16))

    assert many["loop_saved_bytes"] > 14 * few["loop_saved_bytes"]


def test_a_matrix_product_takes_time() -> None:
    assert training.gemm_gflops(64, 64, 64, 0.02) > 0.01


def test_a_share_of_the_peak_is_what_was_done_over_what_could_be() -> None:
    found = training.measure_training("small", 4, 2, peak=50.0)

    done = found["gflop_per_step"] / (found["step_ms"] / 1000)
    assert found["gflops"] == pytest.approx(done, rel=0.05)
    assert found["fraction_of_gemm_peak"] == pytest.approx(found["gflops"] / 50.0, abs=0.001)
    assert found["samples_per_s_per_segment"] == pytest.approx(
        4 / (found["step_ms"] / 1000), rel=0.05
    )


@pytest.mark.slow
def test_the_memory_report_holds_what_was_promised() -> None:
    arguments = ["--json", "--cycles", "1,4", "--preset", "small", "--batch", "8"]

    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training_memory", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )

    report = json.loads(done.stdout)
    assert report["onestep_growth"] == report["last_cycle_growth"] == 1.0
    assert report["bptt_growth"] > 3.5
    assert 0.5 < report["default_training_peak_gib"] < 4.0
    assert report["machine"]["cores"] >= 1
    assert set(report["passes"]) == {"one_step", "last_cycle", "bptt"}
