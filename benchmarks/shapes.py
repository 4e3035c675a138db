"""Which shape of the core decides better within 50 ms: a narrow one thinking on, or a wide one?

Scaled pairs that keep the production size's ratio of feed-forward to width. Each gets only as many
segments as its full-size original finishes in 50 ms on one thread with 8-bit weights: 14 with
feed-forward 256/128, 2 with 2176/1088 (which really does one), 2 with several tokens in the loop.
`--report --json` prints the stored result, `--run` makes it anew and goes on where it was stopped.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console

from benchmarks.machine import ROOT, machine_facts
from benchmarks.reasoning import FAST, SMALL, Comparison, Contest
from benchmarks.reasoning_tasks import chain_task
from benchmarks.worlds import TEST_SEEDS, ModelPolicy, Plan, training_run
from hrm.training.trainer import Trainer
from hrm.training.world_scores import evaluate
from hrm.training.worlds import BAR_MINUTES, generate, parameters_for, write_csv

RESULT: Final = ROOT / "benchmarks" / "results" / "shapes.json"
WORK: Final = ROOT / "runs" / "shapes"
CHAIN_SECONDS: Final = 120.0  # of processor time, for each shape and seed
CHAIN_SEEDS: Final = (0, 1, 2)  # one says little: the same seed twice gave 0.98 and 0.06 at 45 s
WORLD = Plan("W2", training_bars=30_000, steps=400, test_bars=3_000, test_seeds=6)


@dataclass(frozen=True)
class Shape:
    """Size a core by its feed-forward widths as multiples of its widths, and say how deep it gets.

    tokens counts only on worlds, since puzzles need a token a cell.
    """

    feed_forward: float
    segments: int  # that the full-size original finishes in 50 ms
    tokens: int = 1


LEAN: Final = Shape(0.5, 14)
SHAPES: Final[dict[str, dict[str, Shape]]] = {
    "chain": {"lean": LEAN, "wide": Shape(4.25, 2)},
    "world": {"lean": LEAN, "wide": Shape(4.25, 2), "four_tokens": Shape(0.5, 2, tokens=4)},
}


def on_chains(
    shape: Shape, seconds: float, work: Path, *, seeds: Sequence[int] = (0,), puzzles: int = 60_000
) -> dict[str, Any]:
    """Train a core on chains of permutations, and read it after the segments that it can afford.

    Once for every seed; accuracy is the mean of `accuracies`, the whole answers right of each.
    """
    size = replace(
        SMALL,
        feed_forward=round(shape.feed_forward * SMALL.width),
        low_feed_forward=round(shape.feed_forward * SMALL.low_width),
    )
    settings = replace(FAST, seconds=seconds, m_max=min(shape.segments, FAST.m_max))
    comparison = Comparison(chain_task(12), size, settings, puzzles, 1_000)
    contests = [Contest(comparison, seed, work, _say) for seed in seeds]
    found = [contest.train_hrm() for contest in contests]
    by_segments = [one["accuracy_by_segments"] for one in found]
    accuracies = [line[min(shape.segments, len(line)) - 1] for line in by_segments]
    return {
        "segments": shape.segments,
        "accuracy": sum(accuracies) / len(accuracies),
        "accuracies": accuracies,
        "accuracies_by_segments": by_segments,
        "looped_parameters": sum(p.numel() for p in contests[0].hrm().core.parameters()),
        "training_steps": [one["training_steps"] for one in found],
        "training_cpu_seconds": [round(one["training_seconds"], 1) for one in found],
    }


def on_world(shape: Shape, plan: Plan, work: Path) -> dict[str, Any]:
    """Train the small preset with this core on a world, and score it beside the best policy."""
    world = parameters_for(plan.world)
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"{plan.world}_{BAR_MINUTES}.csv"
    write_csv(path, generate(plan.world, plan.training_bars, plan.training_seed).candles)
    run = training_run(replace(plan, m_max=shape.segments), world.cost_bps, path)
    old = run.config.architecture
    wide = {
        name: {"feed_forward": round(shape.feed_forward * module.hidden_size)}
        for name, module in (("h_module", old.h_module), ("l_module", old.l_module))
    }
    run = replace(
        run, config=run.config.changed(architecture={**wide, "tokens_in_loop": shape.tokens})
    )
    trainer = Trainer(run, work / run.fingerprint()[:12], Console(stderr=True))
    began_s = time.process_time()
    trainer.train(checkpoint_every=50, validate_every=plan.steps)
    trained_s = time.process_time() - began_s
    serving = trainer.supervision.serving
    policy = ModelPolicy(serving, run.labels, trainer.table.vocabulary)
    score = evaluate(policy, world, TEST_SEEDS[: plan.test_seeds], plan.test_bars)
    return {
        "segments": shape.segments,
        "tokens_in_loop": shape.tokens,
        "share_of_best": score.ratio,
        "share_of_best_ci95": score.ratio_ci95,
        "mean_segments": float(np.concatenate(policy.segments).mean()),
        "looped_parameters": sum(p.numel() for p in serving.core.parameters()),
        "training_steps": trainer.supervision.steps_done,
        "training_cpu_seconds": round(trained_s, 1),
        "resumed_at": trainer.resumed_at,
    }


def run(contest: str, words: Sequence[str]) -> dict[str, Any]:
    """Try every shape of one contest; return the results with where they came from."""
    torch.set_num_threads(1)
    tries: dict[str, Callable[[Shape], dict[str, Any]]] = {
        "chain": lambda shape: on_chains(shape, CHAIN_SECONDS, WORK, seeds=CHAIN_SEEDS),
        "world": lambda shape: on_world(shape, WORLD, WORK),
    }
    shapes = {}
    for name, shape in SHAPES[contest].items():
        shapes[name] = tries[contest](shape)
        _say(f"{contest}, {name}: {json.dumps(shapes[name])}")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),  # noqa: TID251 - for people
        "command": " ".join(["python", "-m", "benchmarks.shapes", *words]),
        "machine": machine_facts(),
        "seeds": len(CHAIN_SEEDS) if contest == "chain" else 1,
        "shapes": shapes,
    }


def store(found: dict[str, Any], path: Path) -> dict[str, Any]:
    """Write results; contests that are not among them keep their stored ones."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    merged = before | found
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(merged, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return merged


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    words = sys.argv[1:] if words is None else words
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shapes", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--report", action="store_true", help="print the stored result")
    what.add_argument("--run", action="store_true", help="train, examine and store")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--contest", choices=[*SHAPES], help="only this one")
    parser.add_argument("--result", type=Path, default=RESULT, help="file of the result")
    options = parser.parse_args(words)
    if options.run:
        for contest in [options.contest] if options.contest else list(SHAPES):
            report = store({contest: run(contest, words)}, options.result)
    elif options.result.exists():
        report = json.loads(options.result.read_text(encoding="utf-8"))
    else:
        _say(f"benchmarks.shapes: {options.result} does not exist: make it with --run")
        return 1
    print(json.dumps(report) if options.json else json.dumps(report, indent=1))
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
