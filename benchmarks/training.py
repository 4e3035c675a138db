"""How fast is training, and what share of the machine's arithmetic does it reach?

A step is one segment of thought for every slot of the batch, with drawing samples, loss, backward,
optimiser and averaging. Its share of the peak is its multiplications (counted by torch) against the
fastest matrix product of the same run. Times are processor time of one thread, so that other
programs on the machine cost little; wall time stands beside them.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import machine_facts
from benchmarks.training_data import a_training
from hrm.config import HRMConfig, PresetName
from hrm.training.precision import Precision, faster_precision, seconds_per_step

LARGE = 1024
SPECIAL_ROWS = 4  # tokens that the encoder reads beside the patches: read-out and three more


def gemm_gflops(rows: int, inner: int, columns: int, seconds: float) -> float:
    """Measure float32 products [rows, inner] x [inner, columns] for so long, in GFLOP/s."""
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    torch.mm(left, right)
    count, began_s = 0, time.process_time()
    while (passed_s := time.process_time() - began_s) < seconds:
        torch.mm(left, right)
        count += 1
    return 2.0 * rows * inner * columns * count / passed_s / 1e9


def gemm_peaks(seconds: float) -> dict[str, float]:
    """Measure a large product and those of the production size's shapes."""
    architecture, inputs = HRMConfig().architecture, HRMConfig().inputs
    encoder, h = architecture.encoder, architecture.h_module
    tokens = inputs.window_bars // encoder.patch_bars + SPECIAL_ROWS
    shapes = {"large": (LARGE, LARGE, LARGE)}
    for batch in (32, 128):
        inner = 2 * encoder.feed_forward
        shapes[f"encoder_batch_{batch}"] = (batch * tokens, encoder.hidden_size, inner)
        shapes[f"loop_batch_{batch}"] = (batch, h.hidden_size, 2 * h.feed_forward)
    return {
        f"{name} {rows}x{inner}x{columns}": round(gemm_gflops(rows, inner, columns, seconds), 2)
        for name, (rows, inner, columns) in shapes.items()
    }


def measure_training(preset: PresetName, batch: int, steps: int, peak: float) -> dict[str, float]:
    """Time the steps after the first, and count the multiplications of the very same steps."""
    config = HRMConfig.preset(preset).changed(training={"segment_batch_size": batch})

    def after_warm_up() -> Callable[[], object]:
        training = a_training(config, cut_share=0.0)
        training.step()
        return training.step

    step = after_warm_up()
    began_s, wall_s = time.process_time(), time.perf_counter()
    for _ in range(steps):
        step()
    passed_s, wall_passed_s = time.process_time() - began_s, time.perf_counter() - wall_s
    again = after_warm_up()  # the same steps, since all that is drawn is seeded
    with FlopCounterMode(display=False) as counter:
        for _ in range(steps):
            again()
    gflops = counter.get_total_flops() / passed_s / 1e9
    return {
        "samples_per_s_per_segment": round(batch * steps / passed_s, 1),
        "samples_per_s_per_segment_wall": round(batch * steps / wall_passed_s, 1),
        "step_ms": round(1000 * passed_s / steps, 1),
        "gflop_per_step": round(counter.get_total_flops() / steps / 1e9, 3),
        "gflops": round(gflops, 2),
        "fraction_of_gemm_peak": round(gflops / peak, 3),
        "steps_timed": steps,
    }


def measure_precision(preset: PresetName) -> dict[str, Any]:
    """Time one segment, forward and backward, in both precisions."""
    config = HRMConfig.preset(preset)
    kinds: tuple[Precision, ...] = ("float32", "bfloat16")
    seconds = {kind: seconds_per_step(config, kind) for kind in kinds}
    return {
        **{f"{kind}_ms": round(1000 * value, 1) for kind, value in seconds.items()},
        "fastest": faster_precision(seconds["float32"], seconds["bfloat16"]),
    }


def run(quick: bool) -> dict[str, Any]:
    """Measure everything and return the report."""
    began_s = time.perf_counter()
    machine = machine_facts()
    peaks = gemm_peaks(0.1 if quick else 0.5)
    peak = max(peaks.values())
    plan: list[tuple[PresetName, int, int]] = [("small", 32, 40), ("small", 128, 20)]
    plan += [("production", 32, 4), ("production", 128, 3)]
    if quick:
        plan = [("small", 32, 5), ("small", 128, 3), ("production", 32, 1)]
    presets: dict[str, dict[str, Any]] = {}
    for preset, batch, steps in plan:
        found = measure_training(preset, batch, steps, peak)
        presets.setdefault(preset, {})[f"batch_{batch}"] = found
    timed: tuple[PresetName, ...] = ("small",) if quick else ("small", "production")
    return {
        "machine": machine,
        "settings": {"threads": torch.get_num_threads(), "quick": quick, "precision": "float32"},
        "gemm_peak_gflops": peak,
        "gemm_gflops": peaks,
        "training": presets,
        "precision": {preset: measure_precision(preset) for preset in timed},
        "duration_s": round(time.perf_counter() - began_s, 1),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.add_argument("--quick", action="store_true", help="fewer steps, no production batch 128")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = run(options.quick)
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:26}{json.dumps(value)}")


if __name__ == "__main__":
    main()
