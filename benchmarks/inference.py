"""How deep does the model think in 50 ms, beside what memory allows, and who decides alike?

Three shapes: the released model, the production size, and a core of full width, which holds its
27 M parameters inside the loop. Every engine in turn, beside the time that memory takes to deliver
the weights at the bandwidth measured in the same run. Times of segments are of the engine alone;
what the whole daemon makes of them stands beside, from `benchmarks.decisions`.

    python -m benchmarks.inference --json [--quick] [--production DIR]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks import decisions
from benchmarks.engine_agreement import agreement, frontier, real_batch
from benchmarks.engine_shapes import WIDE, Shape, drawn_release, speed
from benchmarks.machine import ROOT, machine_facts
from hrm.config import HRMConfig

MODELS = ROOT / "models"
COLD_START = (
    "import json, sys, time; from pathlib import Path; from hrm.agent import HRMAgent\n"
    "from daemon.memory_use import resident_mib, return_unused\n"
    "models, state = map(Path, sys.argv[1:])\n"
    "agent = HRMAgent.load(models, time.monotonic_ns, None, state)\n"
    "agent.warm_up()\n"
    "return_unused()\n"
    "print(json.dumps([resident_mib(), 'torch' in sys.modules, agent.choice.name]))"
)


def measure(*, quick: bool, production: Path | None) -> dict[str, Any]:
    """Measure the shapes; return what the command prints. production: a folder, None: drawn."""
    torch.set_num_threads(1)
    machine = machine_facts()  # before we are the load ourselves
    rounds, compared = (20, 64) if quick else (200, 1000)
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        folders = {
            "released": MODELS,
            "production": production or stack.enter_context(drawn_release(HRMConfig())),
            "full_width": stack.enter_context(
                drawn_release(HRMConfig().changed(architecture=WIDE))
            ),
        }
        for name, folder in folders.items():
            shape = Shape.of(folder)
            if name == "full_width":  # its depth is the question, beside that of the narrow core
                found[name] = speed(shape, rounds // 4, batches=(1,))
                continue
            found[name] = speed(shape, rounds)
            batch = real_batch(shape.weights, compared)
            found[name]["gate"] = agreement(shape, batch)
            found[name]["frontier"] = _timed(frontier(shape, batch), found[name])
            found[name] |= cold_start(folder)
        found["production"]["is_trained"] = production is not None
    return {
        "machine": machine,
        "quick": quick,
        **summary(found),
        "shapes": found,
        **decisions.measure(quick=quick, production=production),
    }


def summary(shapes: dict[str, Any]) -> dict[str, Any]:
    """Return the figures that have targets, of the production size with the engine chosen."""
    facts = shapes["production"]
    chosen, library = facts["chosen"], facts["best_library"]
    return {
        "shape": "production",
        "engine": chosen,
        "best_library": library,
        "bound_ms": facts["bound_ms"].get(chosen),
        "segment_ms": {
            role: facts["segment_ms"][name]
            for role, name in (("eager", "eager"), ("best_library", library), ("chosen", chosen))
        },
        "ratio_to_bound": facts["ratio_to_bound"].get(chosen),
        "speedup_over_eager": facts["speedup_over_eager"].get(chosen),
        "engine_segments_in_50ms_p99": facts["engine_segments_in_50ms_p99"][chosen],
        "full_width_engine_segments_in_50ms_p99": shapes["full_width"][
            "engine_segments_in_50ms_p99"
        ][shapes["full_width"]["chosen"]],
        "engine_rss_mib": facts["rss_mib"],
        "first_start_s": facts["first_start_s"],
        "cold_start_s": facts["cold_start_s"],
        "gate": facts["gate"],
        "frontier": facts["frontier"],
    }


def cold_start(folder: Path) -> dict[str, Any]:
    """Start an interpreter that loads a model and thinks, first without and then with what it kept.

    The first start measures the engines and sends them through the gate; later ones do not.
    """
    with tempfile.TemporaryDirectory(prefix="hrm-state-") as state:
        first_s, _ = _started(folder, state)
        later_s, (rss_mib, has_torch, engine) = _started(folder, state)
    return {
        "first_start_s": round(first_s, 2),
        "cold_start_s": round(later_s, 2),
        "rss_mib": round(rss_mib, 1),
        "serving_imports_torch": has_torch,
        "served_by": engine,
    }


def _started(folder: Path, state: str) -> tuple[float, tuple[float, bool, str]]:
    began = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-c", COLD_START, str(folder), state],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ,
    )
    elapsed_s = time.perf_counter() - began
    rss_mib, has_torch, engine = json.loads(ran.stdout)
    return elapsed_s, (rss_mib, has_torch, engine)


def _timed(steps: list[dict[str, float]], facts: dict[str, Any]) -> list[dict[str, float]]:
    """Add to each depth the milliseconds after which the chosen engine has read it."""
    once = facts["encode_ms"][facts["chosen"]]["p50"]
    each = facts["segment_ms"][facts["chosen"]]["p50"]
    return [step | {"ms": round(once + step["segments"] * each, 3)} for step in steps]


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds and decisions.")] = False,
    production: Annotated[
        Path | None,
        typer.Option("--production", help="Folder with a trained model of production size."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the engines."""
    found = measure(quick=quick, production=production)
    typer.echo(json.dumps(found) if as_json else json.dumps(found, indent=1))


if __name__ == "__main__":
    typer.run(main)
