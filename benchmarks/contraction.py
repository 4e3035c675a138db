"""Does the loop contract: does a small change of its state shrink from segment to segment?

Trains a preset for a few steps with the rate, penalty and warm-up of `hrm-train`, and measures the
growth of a small change per segment before, on the way and after, beside that of the core with its
blocks at full strength. Below 1, 8-bit weights keep their decisions. Far below, the loop forgets
everything at once and depth does nothing, which `moves` shows: how far each further segment still
moves z_h, relative to its length.
"""

import argparse
import copy
import json
import sys
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import machine_facts
from benchmarks.training_data import a_training
from hrm.config import HRMConfig, PresetName
from hrm.convergence import perturbation_growth, relative_residual
from hrm.features import FEATURE_NAMES
from hrm.layers import initialise
from hrm.model import HierarchicalReasoningModel
from hrm.training.slots import as_inputs

ROWS = 4  # of bars that growth is measured on
SEGMENTS = 4


@torch.no_grad()
def moves(model: HierarchicalReasoningModel, encoded: Tensor) -> list[float]:
    """Return how far each of m_max segments moves z_h, relative to its length."""
    state = model.initial_state(len(encoded), encoded.device)
    found = []
    for _ in range(model.config.adaptive_computation.m_max):
        after = model.segment(state, encoded)
        found.append(round(float(relative_residual(state[0], after[0]).mean()), 4))
        state = after
    return found


def measure(preset: PresetName, steps: int, batch: int) -> dict[str, Any]:
    """Train so many steps and follow the growth of the averaged weights, which are released."""
    config = HRMConfig.preset(preset).changed(
        inputs={"n_features": len(FEATURE_NAMES)}, training={"segment_batch_size": batch}
    )
    training = a_training(config, cut_share=0.25)
    serving = training.serving
    drawn = training.source(ROWS, np.random.default_rng(2))
    observed = as_inputs(drawn.observation)

    def growth(model: HierarchicalReasoningModel) -> float:
        with torch.no_grad():
            encoded = model.encode(observed)
        found = perturbation_growth(model.core, encoded, segments=SEGMENTS, seed=1)
        return float(f"{found:.3g}")

    wild = copy.deepcopy(serving)
    initialise(wild.core)
    began_s = time.process_time()
    curve = [{"step": 0, "growth": growth(serving)}]
    for step in range(1, steps + 1):
        training.step()
        if step % max(steps // 8, 1) == 0 or step == steps:
            curve.append({"step": step, "growth": growth(serving)})
            print(json.dumps(curve[-1]), file=sys.stderr, flush=True)
    return {
        "machine": machine_facts(),
        "settings": {"preset": preset, "steps": steps, "batch": batch, "segments": SEGMENTS},
        "full_strength_growth": growth(wild),
        "growth_at_start": curve[0]["growth"],
        "growth": curve[-1]["growth"],
        "contracts": curve[-1]["growth"] < 1.0,
        "curve": curve,
        "moves": moves(serving, serving.encode(observed)),
        "cpu_seconds": round(time.process_time() - began_s, 1),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contraction", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.add_argument("--preset", choices=["production", "medium", "small"], default="production")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=8, help="hrm-train takes 32; 8 is faster")
    options = parser.parse_args()
    torch.set_num_threads(1)
    report = measure(options.preset, options.steps, options.batch)
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:22}{json.dumps(value)}")


if __name__ == "__main__":
    main()
