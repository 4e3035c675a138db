"""Does the HRM reason? It against a one-shot transformer, on puzzles with one right answer.

Equal parameters, equal tokens, equal optimiser, equal processor time. `--report --json` prints the
stored result, `--run` makes it anew (and goes on where it was stopped), `--run --quick` is a smoke
test of about a minute, which stores nothing. What was tried and did not work is in
docs/experiments.md.
"""

import argparse
import copy
import hashlib
import itertools
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.machine import machine_facts
from benchmarks.reasoning_models import (
    HRMSize,
    OneShotTransformer,
    TokenHRM,
    one_shot_of_equal_size,
    parameter_count,
)
from benchmarks.reasoning_tasks import (
    Puzzles,
    SudokuShape,
    Task,
    chain_task,
    draw,
    flood_fill_task,
    sudoku_task,
)
from benchmarks.reasoning_training import (
    Examination,
    HRMTrainer,
    OneShotTrainer,
    Trainer,
    TrainingSettings,
    brier_skill,
    examine,
    examine_one_shot,
    expected_calibration_error,
    rank_correlation,
    train,
    training_flops,
)
from daemon.clock import NS_PER_SECOND, SystemClock

RESULT = Path(__file__).parent / "results" / "reasoning.json"
WORK = Path("runs") / "reasoning"  # checkpoints, so that a stopped run goes on

CONTROL_SHARE = 0.25  # of the full budget, for training on shuffled answers
LOOK_PUZZLES = 300  # examined along the way, for the learning curve
NOISE = 0.01  # a fall of accuracy from one segment to the next that is still called level
CLEAR_RISE = 0.05
CLEAR_CORRELATION = 0.3


@dataclass(frozen=True)
class Comparison:
    """Say how the two rivals meet on one task; depths are those tried for the transformer."""

    task: Task
    size: HRMSize
    settings: TrainingSettings
    train_puzzles: int
    test_puzzles: int
    depths: tuple[int, ...] = (2, 4, 8)

    def total_seconds(self, seeds: int) -> float:
        """Return the processor time of all trainings."""
        return self.settings.seconds * (2 * seeds + len(self.depths) - 1 + CONTROL_SHARE)


SMALL = HRMSize(layers=1, low_layers=1)
FAST = TrainingSettings(seconds=180.0, learning_rate=2e-3)

COMPARISONS: dict[str, Callable[[], Comparison]] = {
    "permutation_chain": lambda: Comparison(chain_task(32), SMALL, FAST, 100_000, 2_000),
    "sudoku6": lambda: Comparison(
        sudoku_task(SudokuShape(2, 3), 8, 50), SMALL, FAST, 100_000, 2_000
    ),
    "flood_fill": lambda: Comparison(flood_fill_task(8, 20), SMALL, FAST, 60_000, 2_000),
}
QUICK = {
    "permutation_chain": lambda: Comparison(
        chain_task(8, shortest=2),
        HRMSize(width=32, low_width=32, layers=1, low_layers=1, feed_forward=64,
                low_feed_forward=64, heads=2),
        replace(FAST, seconds=18.0, m_max=4),
        20_000,
        500,
        depths=(2, 4),
    )
}  # fmt: skip
# The sizes and settings of arXiv 2506.21734 for 9x9 Sudoku: 27 M parameters, ten hours of GPU.
FULL = {
    "sudoku9": lambda: Comparison(
        sudoku_task(SudokuShape(3, 3), 22, 1000),
        HRMSize(width=512, layers=4, feed_forward=1536, heads=8, low_width=512, low_layers=4,
                low_feed_forward=1536, registers=8),
        TrainingSettings(seconds=36_000.0, batch=768, learning_rate=1e-4, weight_decay=1.0,
                         ema_decay=0.999, m_max=16, device="cuda"),
        1_000_000,
        10_000,
        depths=(8, 16),
    )
}  # fmt: skip

Say = Callable[[str], None]


class Contest:
    """Hold one comparison under one seed: its puzzles, its rivals and where they are kept."""

    def __init__(self, comparison: Comparison, seed: int, work: Path, say: Say) -> None:
        self.comparison = comparison
        self.seed = seed
        self._say = say
        self._task = comparison.task
        self.train_set = draw(self._task, "train", comparison.train_puzzles, seed)
        self.test_set = draw(self._task, "test", comparison.test_puzzles, seed)
        self._few = self.test_set.rows(slice(0, LOOK_PUZZLES))
        self._folder = work / key_of(comparison, seed)

    def overlap(self) -> int:
        """Count test puzzles that are also in the training set."""
        known = {row.tobytes() for row in self.train_set.tokens}
        return sum(row.tobytes() in known for row in self.test_set.tokens)

    def hrm(self) -> TokenHRM:
        """Build the untrained HRM."""
        torch.manual_seed(self.seed)
        return TokenHRM(self._task, self.comparison.size)

    def one_shot(self, layers: int) -> OneShotTransformer:
        """Build the untrained transformer with as many parameters as the HRM."""
        size = self.comparison.size
        wanted = parameter_count(self.hrm())
        torch.manual_seed(self.seed)
        return one_shot_of_equal_size(self._task, wanted, layers, size.heads, size.registers)

    def train_hrm(self, *, share: float = 1.0, shuffled: bool = False) -> dict[str, Any]:
        """Train the HRM for a share of the budget and examine it."""
        settings = self._settings(share)
        puzzles = with_shuffled_answers(self.train_set, self.seed) if shuffled else self.train_set
        trainer = HRMTrainer(self.hrm(), settings, puzzles, self.seed)
        m_max = settings.m_max

        def score(model: nn.Module) -> float:
            seen = examine(cast("TokenHRM", model), self._few, m_max)
            return float(seen.whole[-1].mean())

        name = "hrm-shuffled" if shuffled else "hrm"
        used = self._train(trainer, score, name)
        averaged = cast("TokenHRM", trainer.averaged)
        seen = examine(averaged, self.test_set, 2 * m_max)
        return used | hrm_findings(seen, self.test_set, self._task, m_max)

    def train_one_shot(self, layers: int) -> dict[str, Any]:
        """Train the transformer and examine it."""
        trainer = OneShotTrainer(
            self.one_shot(layers), self._settings(1.0), self.train_set, self.seed
        )

        def score(model: nn.Module) -> float:
            return float(examine_one_shot(cast("OneShotTransformer", model), self._few)[1].mean())

        used = self._train(trainer, score, f"oneshot-{layers}")
        cells, whole = examine_one_shot(cast("OneShotTransformer", trainer.averaged), self.test_set)
        groups = buckets(self.test_set, self._task)
        return used | {
            "accuracy": float(whole.mean()),
            "cell_accuracy": float(cells.mean()),
            "accuracy_by_difficulty": by_bucket(whole, groups),
            "layers": layers,
            "width": cast("OneShotTransformer", trainer.model).stack.width,
        }

    def _settings(self, share: float) -> TrainingSettings:
        settings = self.comparison.settings
        steps = None if settings.steps is None else max(int(settings.steps * share), 1)
        return replace(settings, seconds=settings.seconds * share, steps=steps)

    def _train(
        self, trainer: Trainer, score: Callable[[nn.Module], float], name: str
    ) -> dict[str, Any]:
        self._say(f"{self._task.name}, seed {self.seed}: {name}")
        flops = training_flops(copy.deepcopy(trainer))
        progress = train(
            trainer, score=score, checkpoint=self._folder / f"{name}.pt", say=self._say
        )
        return {
            "parameters": parameter_count(trainer.model),
            "training_seconds": progress.seconds,
            "training_steps": progress.steps,
            "training_gigaflops": flops * progress.steps / 1e9,
            "learning_curve": progress.curve,
        }


def key_of(comparison: Comparison, seed: int) -> str:
    """Name what a training depends on, the same in every process: its checkpoint is found by it."""
    described = asdict(replace(comparison, task=replace(comparison.task, make=_no_puzzles)))
    del described["task"]["make"]  # a function has no lasting description; the task's name has
    del described["depths"]
    text = json.dumps([described, seed], sort_keys=True)
    return f"{comparison.task.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _no_puzzles(_count: int, _generator: np.random.Generator) -> Puzzles:
    raise NotImplementedError("this task only describes itself")


def with_shuffled_answers(puzzles: Puzzles, seed: int) -> Puzzles:
    """Give every puzzle the answers of another one, where both are scored."""
    other = np.random.default_rng(seed).permutation(len(puzzles))
    answers = np.where(
        (puzzles.answers >= 0) & (puzzles.answers[other] >= 0),
        puzzles.answers[other],
        -1,
    )
    return replace(puzzles, answers=answers)


def buckets(puzzles: Puzzles, task: Task) -> NDArray[np.int64]:
    """Return the lower end of each puzzle's bucket of difficulty: [N]."""
    return np.asarray(puzzles.difficulty // task.bucket * task.bucket, dtype=np.int64)


def by_bucket(values: NDArray[Any], groups: NDArray[np.int64]) -> dict[str, float]:
    """Average values per bucket."""
    return {str(low): float(values[groups == low].mean()) for low in np.unique(groups)}


def hrm_findings(seen: Examination, puzzles: Puzzles, task: Task, m_max: int) -> dict[str, Any]:
    """Say how right an HRM was at every depth, where it halted, and whether it knew."""
    rows = np.arange(len(puzzles))
    groups = buckets(puzzles, task)
    depths = seen.depths(m_max)
    # The same depths dealt to other puzzles: halting is worth something if this does worse.
    dealt = np.random.default_rng(0).permutation(depths)
    halt, right = seen.halt[:m_max].ravel(), seen.whole[:m_max].ravel()
    return {
        "accuracy": float(seen.whole[m_max - 1].mean()),
        "cell_accuracy": float(seen.cells[m_max - 1].mean()),
        "accuracy_by_segments": seen.whole.mean(axis=1).tolist(),
        "cell_accuracy_by_segments": seen.cells.mean(axis=1).tolist(),
        "accuracy_by_difficulty": by_bucket(seen.whole[m_max - 1], groups),
        "halting_depth_by_difficulty": by_bucket(depths, groups),
        "halting_depth_mean": float(depths.mean()),
        "halting_depth_correlation": rank_correlation(depths, puzzles.difficulty),
        "accuracy_at_halt": float(seen.whole[depths - 1, rows].mean()),
        "accuracy_at_dealt_depths": float(seen.whole[dealt - 1, rows].mean()),
        "q_halt_ece": expected_calibration_error(halt, right),
        "q_halt_brier_skill": brier_skill(halt, right),
    }


def mean_of(values: Sequence[Any]) -> Any:
    """Average numbers, and lists and dictionaries of them, place by place; None where one is."""
    first = values[0]
    if isinstance(first, dict):
        keys = [key for key in first if all(key in value for value in values)]
        return {key: mean_of([value[key] for value in values]) for key in keys}
    if isinstance(first, list):
        return [mean_of(list(places)) for places in zip(*values, strict=False)]
    if any(value is None for value in values):
        return None
    if all(value == first for value in values):
        return first
    return sum(values) / len(values)


def rises_with_segments(accuracy_by_segments: Sequence[float], m_max: int) -> bool:
    """Tell whether accuracy clearly grows up to m_max and never falls by more than noise."""
    trained = accuracy_by_segments[:m_max]
    level = all(after >= before - NOISE for before, after in itertools.pairwise(trained))
    return level and trained[-1] - trained[0] >= CLEAR_RISE


def compare(comparison: Comparison, seeds: Sequence[int], work: Path, say: Say) -> dict[str, Any]:
    """Let the rivals meet under every seed.

    Under the first, the transformer has the full budget for each of its depths, and the depth with
    the best result on the test puzzles counts: an advantage that the HRM does not have.
    """
    contests = [Contest(comparison, seed, work, say) for seed in seeds]
    first = contests[0]
    trials = [first.train_one_shot(depth) for depth in comparison.depths]
    best = max(trials, key=lambda trial: (trial["accuracy"], trial["cell_accuracy"]))
    control = first.train_hrm(share=CONTROL_SHARE, shuffled=True)
    hrms = [contest.train_hrm() for contest in contests]
    one_shots = [best, *(contest.train_one_shot(best["layers"]) for contest in contests[1:])]
    hrm, one_shot = mean_of(hrms), mean_of(one_shots)
    m_max = comparison.settings.m_max
    correlation = hrm["halting_depth_correlation"]
    return {
        "hrm_accuracy": hrm["accuracy"],
        "oneshot_accuracy": one_shot["accuracy"],
        "difference": hrm["accuracy"] - one_shot["accuracy"],
        "hrm_cell_accuracy": hrm["cell_accuracy"],
        "oneshot_cell_accuracy": one_shot["cell_accuracy"],
        "accuracy_by_segments": hrm["accuracy_by_segments"],
        "cell_accuracy_by_segments": hrm["cell_accuracy_by_segments"],
        "segments_in_training": m_max,
        "accuracy_rises_with_segments": rises_with_segments(hrm["accuracy_by_segments"], m_max),
        "halting_depth_by_difficulty": hrm["halting_depth_by_difficulty"],
        "halting_depth_correlation": correlation,
        "halting_depth_rises_with_difficulty": correlation is not None
        and correlation >= CLEAR_CORRELATION,
        "halting_depth_mean": hrm["halting_depth_mean"],
        "accuracy_at_halt": hrm["accuracy_at_halt"],
        "accuracy_at_dealt_depths": hrm["accuracy_at_dealt_depths"],
        "q_halt_ece": hrm["q_halt_ece"],
        "q_halt_brier_skill": hrm["q_halt_brier_skill"],
        "hrm_accuracy_by_difficulty": hrm["accuracy_by_difficulty"],
        "oneshot_accuracy_by_difficulty": one_shot["accuracy_by_difficulty"],
        "difficulty": comparison.task.difficulty_meaning,
        "parameters": {"hrm": hrm["parameters"], "oneshot": one_shot["parameters"]},
        "training_seconds": {
            "hrm": hrm["training_seconds"],
            "oneshot": one_shot["training_seconds"],
        },
        "training_steps": {"hrm": hrm["training_steps"], "oneshot": one_shot["training_steps"]},
        "training_gigaflops": {
            "hrm": hrm["training_gigaflops"],
            "oneshot": one_shot["training_gigaflops"],
        },
        "oneshot_depths_tried": {
            str(trial["layers"]): {
                "width": trial["width"],
                "accuracy": trial["accuracy"],
                "cell_accuracy": trial["cell_accuracy"],
                "training_seconds": trial["training_seconds"],
            }
            for trial in trials
        },
        "oneshot_layers": best["layers"],
        "shuffled_answers_control": {
            name: control[name] for name in ("accuracy", "cell_accuracy", "training_seconds")
        },
        "learning_curves": {
            "hrm": [run["learning_curve"] for run in hrms],
            "oneshot": [run["learning_curve"] for run in one_shots],
        },
        "seeds": list(seeds),
        "per_seed": {
            "hrm_accuracy": [run["accuracy"] for run in hrms],
            "oneshot_accuracy": [run["accuracy"] for run in one_shots],
        },
        "train_puzzles": len(first.train_set),
        "test_puzzles": len(first.test_set),
        "test_puzzles_seen_in_training": sum(contest.overlap() for contest in contests),
        "hrm_size": asdict(comparison.size),
        "settings": asdict(comparison.settings),
        "budget": "equal processor time of one training thread; making puzzles and examining are "
        "not counted",
    }


def summary(tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the answer to the question: on which task the HRM is furthest ahead, and how."""
    if not tasks:
        raise ValueError("no task has a result")
    best = max(tasks, key=lambda name: cast("float", tasks[name]["difference"]))
    return {
        "best_task": best,
        "best_difference": tasks[best]["difference"],
        "accuracy_rises_with_segments": tasks[best]["accuracy_rises_with_segments"],
        "halting_depth_rises_with_difficulty": tasks[best]["halting_depth_rises_with_difficulty"],
    }


def merged(stored: dict[str, Any] | None, tasks: dict[str, Any], origin: dict[str, str]) -> Any:
    """Put new task results beside those stored, each with its own date, commit and command."""
    every = dict(stored["tasks"]) if stored else {}
    every |= {name: {**result, **origin} for name, result in tasks.items()}
    return {**origin, "tasks": every, **summary(every)}


def origin_of(arguments: Sequence[str]) -> dict[str, str]:
    """Say when, from which commit, by which command and on which machine."""
    now = datetime.fromtimestamp(SystemClock().now_ns() / NS_PER_SECOND, UTC)
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    facts = machine_facts()
    machine = f"{facts['cpu']}, {facts['cores']} cores, {torch.get_num_threads()} training thread"
    if torch.cuda.is_available():
        machine += f", {torch.cuda.get_device_name()}"
    return {
        "date": now.isoformat(timespec="seconds"),
        "commit": git.stdout.strip() if git.returncode == 0 else "uncommitted",
        "command": " ".join(["python", "-m", "benchmarks.reasoning", *arguments]),
        "machine": f"{machine}, torch {torch.__version__}",
    }


def scaled(comparison: Comparison, factor: float) -> Comparison:
    """Lengthen or shorten every training."""
    seconds = comparison.settings.seconds * factor
    return replace(comparison, settings=replace(comparison.settings, seconds=seconds))


def load_result(path: Path) -> dict[str, Any]:
    """Read the stored result; raise FileNotFoundError with the remedy where there is none."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: make it with --run")
    return cast("dict[str, Any]", json.loads(path.read_text()))


def store(result: Any, path: Path) -> None:
    """Write a result in one go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(rounded(result), indent=1) + "\n")
    partial.replace(path)


def rounded(value: Any) -> Any:
    """Round all numbers to five places; a number that is none is an error, not a result."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a result is {value}: the training has diverged")
        return round(value, 5)
    return value


def as_text(result: dict[str, Any]) -> str:
    """Put a result into a few lines for people."""
    lines = [f"{result['date']}  commit {result['commit']}  {result['machine']}"]
    for name, task in result["tasks"].items():
        m_max = task["segments_in_training"]
        steps = " ".join(f"{value:.3f}" for value in task["accuracy_by_segments"][:m_max])
        depth = " ".join(f"{k}:{v:.1f}" for k, v in task["halting_depth_by_difficulty"].items())
        lines += [
            f"{name}: HRM {task['hrm_accuracy']:.3f}, one-shot {task['oneshot_accuracy']:.3f}",
            f"  whole answers right after 1..{m_max} segments: {steps}",
            f"  mean halting depth by {task['difficulty']}: {depth}",
            f"  Q-halt: calibration error {task['q_halt_ece']:.3f}",
        ]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reasoning", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--report", action="store_true", help="print the stored result")
    what.add_argument("--run", action="store_true", help="train, examine and store")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--task", choices=[*COMPARISONS, *FULL], help="only this task")
    parser.add_argument("--preset", choices=["small", "full"], default="small")
    parser.add_argument("--minutes", type=float, help="of training in all, instead of the preset's")
    parser.add_argument("--seeds", default="0", help="comma-separated, each a full contest")
    parser.add_argument("--quick", action="store_true", help="a smoke test that stores nothing")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the checkpoints")
    parser.add_argument("--result", type=Path, default=RESULT, help="file of the result")
    return parser


def _chosen(arguments: argparse.Namespace) -> dict[str, Comparison]:
    if arguments.quick:
        makers: dict[str, Callable[[], Comparison]] = dict(QUICK)
    else:
        makers = dict(FULL if arguments.preset == "full" else COMPARISONS)
    if arguments.task is not None:
        if arguments.task not in makers:
            raise ValueError(
                f"task {arguments.task} is not in this preset, which has {', '.join(makers)}: "
                "sudoku9 needs --preset full, the others the small one"
            )
        makers = {arguments.task: makers[arguments.task]}
    chosen = {name: make() for name, make in makers.items()}
    for name, comparison in chosen.items():
        if comparison.settings.device == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"task {name} needs a GPU, and torch finds none: run it where one is")
    return chosen


def run(arguments: argparse.Namespace, words: Sequence[str], say: Say) -> dict[str, Any]:
    """Run the chosen comparisons, storing after each, and return all results."""
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    chosen = _chosen(arguments)
    if arguments.minutes is not None:
        total = sum(comparison.total_seconds(len(seeds)) for comparison in chosen.values())
        factor = 60.0 * arguments.minutes / total
        chosen = {name: scaled(comparison, factor) for name, comparison in chosen.items()}
    torch.set_num_threads(1)
    origin = origin_of(words)
    result: dict[str, Any] | None = None
    if arguments.result.exists():
        result = load_result(arguments.result)
    for name, comparison in chosen.items():
        found = compare(comparison, seeds, arguments.work, say)
        result = merged(result, {name: found}, origin)
        store(result, arguments.result)
    # Only what was interrupted goes on; a run that has ended is trained anew by the next one.
    for comparison in chosen.values():
        for seed in seeds:
            shutil.rmtree(arguments.work / key_of(comparison, seed), ignore_errors=True)
    return cast("dict[str, Any]", rounded(result))


def run_quick(arguments: argparse.Namespace, words: Sequence[str], say: Say) -> dict[str, Any]:
    """Run the smoke test in a folder of its own; raise ValueError if nothing was learned."""
    with tempfile.TemporaryDirectory() as folder:
        arguments.work = Path(folder)
        arguments.result = arguments.work / "result.json"
        result = run(arguments, words, say)
    for name, task in result["tasks"].items():
        control = task["shuffled_answers_control"]["accuracy"]
        if task["hrm_accuracy"] <= control:
            raise ValueError(
                f"the HRM got {task['hrm_accuracy']:.3f} of {name} right, no more than one trained "
                f"on shuffled answers ({control:.3f}): it has learned nothing"
            )
    return result


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    words = sys.argv[1:] if words is None else words
    arguments = _parser().parse_args(words)
    try:
        if arguments.report:
            result = load_result(arguments.result)
        else:
            start = run_quick if arguments.quick else run
            result = start(arguments, words, lambda line: print(line, file=sys.stderr, flush=True))
    except (FileNotFoundError, ValueError) as error:
        print(f"benchmarks.reasoning: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result) if arguments.json else as_text(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
