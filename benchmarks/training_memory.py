"""How much memory does training take, and does it grow with the depth of thought?

Every figure comes from a process of its own, since the peak of a process never falls. Bytes kept
for backward are those of distinct storages, parameters left out: they are the same on every run;
resident sizes vary by some MB.
"""

import argparse
import json
import os
import subprocess
import sys
from typing import Any, get_args

import torch

from benchmarks.machine import ROOT, machine_facts
from benchmarks.training_data import a_training
from hrm.config import HRMConfig, PresetName
from hrm.memory import BYTES_PER_GIB, resident_bytes
from hrm.model import Gradient, HierarchicalReasoningModel
from hrm.training.memory import (
    peak_resident_bytes,
    saved_tensor_bytes,
)
from hrm.training.precision import drawn_inputs

GRADIENTS: tuple[Gradient, ...] = get_args(Gradient)
CYCLES = (1, 2, 4, 8, 16, 32)
MB = 1_000_000
LIMIT_SECONDS = 280


def measure_segment(
    preset: PresetName, batch: int, gradient: Gradient, cycles: int
) -> dict[str, int]:
    """Return bytes kept and resident bytes of one forward and backward pass, in this process.

    loop_saved_bytes: kept by the loop alone; saved_bytes: by encoder, loop and heads together.
    """
    torch.manual_seed(1)
    model = HierarchicalReasoningModel(HRMConfig.preset(preset)).train()
    inputs = drawn_inputs(model.config, batch)
    encoded = model.encode(inputs).detach()
    state = model.initial_state(batch)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)  # theirs is no memory of the pass
    before = resident_bytes()
    torch.manual_seed(2)
    _, heads = model(inputs, cycles=cycles, gradient=gradient)
    total = heads.action_logits.square().sum() + heads.value.sum() + heads.q.sum()
    torch.autograd.backward(total)
    peak = peak_resident_bytes()
    return {
        "loop_saved_bytes": saved_tensor_bytes(
            lambda: model.segment(state, encoded, cycles=cycles, gradient=gradient), parameters
        ),
        "saved_bytes": saved_tensor_bytes(
            lambda: model(inputs, cycles=cycles, gradient=gradient), parameters
        ),
        "peak_rss_bytes": peak,
        "rss_before_bytes": before,
    }


def measure_default_training(recompute: bool) -> dict[str, float]:
    """Take two whole training steps of the production size at its batch: the second has moments."""
    training = a_training(HRMConfig.preset("production"), recompute=recompute, cut_share=0.25)
    reports = [training.step() for _ in range(2)]
    return {
        "peak_gib": round(peak_resident_bytes() / BYTES_PER_GIB, 3),
        "batch": training.model.config.training.segment_batch_size,
        "steps": reports[-1].step,
    }


def in_fresh_process(*arguments: str) -> dict[str, Any]:
    """Run one measurement of this module in a process of its own, on one thread."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training_memory", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"measuring {' '.join(arguments)} failed: {done.stderr[-2000:]}")
    measured: dict[str, Any] = json.loads(done.stdout)
    return measured


def run(cycles: list[int], preset: PresetName, batch: int) -> dict[str, Any]:
    """Measure everything and return the report; growth is from the fewest to the most cycles."""
    few, many = str(min(cycles)), str(max(cycles))
    machine = machine_facts()
    passes: dict[str, dict[str, dict[str, float]]] = {}
    for gradient in GRADIENTS:
        for count in cycles:
            found = in_fresh_process("--pass", preset, str(batch), gradient, str(count))
            row = {
                "loop_saved_bytes": found["loop_saved_bytes"],
                "saved_bytes": found["saved_bytes"],
                "peak_rss_mb": round(found["peak_rss_bytes"] / MB, 1),
                "pass_rss_mb": round((found["peak_rss_bytes"] - found["rss_before_bytes"]) / MB, 1),
            }
            passes.setdefault(gradient, {})[str(count)] = row

    def growth(gradient: Gradient, figure: str) -> float:
        rows = passes[gradient]
        return round(rows[many][figure] / rows[few][figure], 4)

    default = in_fresh_process("--default-training", "plain")
    recomputed = in_fresh_process("--default-training", "recompute")
    return {
        "machine": machine,
        "settings": {
            "preset": preset,
            "batch": batch,
            "cycles": cycles,
            "threads": 1,
            "note": (
                "growth counts what the loop keeps; the encoder runs once a bar, outside the loop, "
                "and keeps the same at every depth: whole_pass_growth counts it too"
            ),
        },
        "onestep_growth": growth("one_step", "loop_saved_bytes"),
        "last_cycle_growth": growth("last_cycle", "loop_saved_bytes"),
        "bptt_growth": growth("bptt", "loop_saved_bytes"),
        "whole_pass_growth": {name: growth(name, "saved_bytes") for name in GRADIENTS},
        "bptt_over_onestep": round(
            passes["bptt"][many]["loop_saved_bytes"] / passes["one_step"][many]["loop_saved_bytes"],
            1,
        ),
        "default_training_peak_gib": default["peak_gib"],
        "default_training": default,
        "default_training_recomputing_activations": recomputed,
        "passes": passes,
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_memory", description=__doc__
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.add_argument(
        "--cycles", default=",".join(map(str, CYCLES)), help="numbers of cycles, by commas"
    )
    parser.add_argument("--preset", choices=get_args(PresetName), default="production")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pass", nargs=4, dest="one_pass", help=argparse.SUPPRESS)
    parser.add_argument(
        "--default-training", choices=("plain", "recompute"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one_pass:
        preset, batch, gradient, count = options.one_pass
        print(json.dumps(measure_segment(preset, int(batch), gradient, int(count))))
        return
    if options.default_training:
        print(json.dumps(measure_default_training(options.default_training == "recompute")))
        return
    cycles = [int(part) for part in options.cycles.split(",")]
    if min(cycles) < 1:
        parser.error(f"--cycles counts from 1, was {options.cycles}")
    report = run(cycles, options.preset, options.batch)
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:26}{json.dumps(value)}")


if __name__ == "__main__":
    main()
