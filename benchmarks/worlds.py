"""Does the learning path find what there is to find, and nothing where there is nothing?

Trains the small preset on candles of synthetic worlds with the product's own trainer, from a CSV
file to averaged weights, and scores its greedy decisions on fresh draws beside the best possible
policy, ridge regression on lagged bars, holding and doing nothing. The marks are those that a full
acceptance would ask for; a mark that is missed is reported as missed.

    python -m benchmarks.worlds            print the stored result of the last full run
    python -m benchmarks.worlds --run      repeat it (ten minutes of one core for each world)
    python -m benchmarks.worlds --quick    a minute, to see that it works; stores nothing
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.machine import ROOT, machine_facts
from hrm.config import Action, HRMConfig
from hrm.features import WARMUP_BARS, valid_actions
from hrm.model import HierarchicalReasoningModel
from hrm.training.candles import Candles, read_candles
from hrm.training.checkpoint import FILE_NAME
from hrm.training.deep_supervision import SupervisionSettings
from hrm.training.evaluation import decide
from hrm.training.market_table import Account, LabelSettings, Vocabulary, market_table
from hrm.training.slots import as_inputs
from hrm.training.trainer import Run, Trainer
from hrm.training.world_scores import (
    FlatPolicy,
    LongPolicy,
    OraclePolicy,
    Policy,
    RidgePolicy,
    Score,
    evaluate,
)
from hrm.training.worlds import (
    BAR_MINUTES,
    BAR_NS,
    WorldCandles,
    generate,
    parameter_values,
    parameters_for,
    write_csv,
)

IntArray = NDArray[np.int64]

RESULT: Final = ROOT / "benchmarks" / "results" / "worlds.json"
RUNS: Final = ROOT / "runs" / "worlds"
TEST_SEEDS: Final = range(1_000, 1_020)
TRACK_BARS: Final = 1_000
RATIO_MARKS: Final = {"W1": 0.85, "W2": 0.75, "W3": 0.70, "W4": 0.80}  # of the lower bound
NULL_LOSS_MARK, NULL_CHANGES_MARK, NULL_EDGES_MARK = 0.05, 0.02, 0.05


@dataclass(frozen=True)
class Plan:
    """Set how one world is learned and examined. All else is the small preset's and trainer's."""

    world: str
    training_bars: int = 100_000
    training_seed: int = 1
    steps: int = 2_500
    learning_rate: float = 1e-3
    m_max: int = 4
    commit_bars: int = 8
    temperature: float = 0.1
    discount: float = 0.98
    prior: str = "none"
    test_bars: int = 10_000  # of each test seed
    test_seeds: int = len(TEST_SEEDS)


# W3's signal lasts one bar, so that there an action must not bind for longer.
PLANS: Final = {
    "W0": Plan("W0"),
    "W2": Plan("W2"),
    "W3": Plan("W3", commit_bars=1, steps=4_000),
    "W5": Plan("W5"),
}


class ModelPolicy:
    """Decide greedily with a model, each bar to its own halt, in the account it has brought about.

    To think in batches, every market is cut into tracks of TRACK_BARS that start flat and are
    closed at their end, which costs the model a little that the other policies keep.
    """

    def __init__(
        self, model: HierarchicalReasoningModel, labels: LabelSettings, vocabulary: Vocabulary
    ) -> None:
        self._model = model.eval()
        self._labels = replace(labels, mirror=False)
        self._vocabulary = vocabulary
        self.segments: list[IntArray] = []

    def positions(self, markets: Sequence[WorldCandles]) -> list[IntArray]:
        """Walk all tracks side by side, bar by bar."""
        instrument = next(iter(self._vocabulary.instruments))
        table = market_table(
            [as_training_candles(candles, instrument) for candles in markets],
            window=self._model.config.inputs.window_bars,
            labels=self._labels,
            vocabulary=self._vocabulary,
        )
        paths = [np.zeros(len(candles), dtype=np.int64) for candles in markets]
        tracks = [
            (market, start, min(start + TRACK_BARS, len(path)))
            for market, path in enumerate(paths)
            for start in range(WARMUP_BARS, len(path), TRACK_BARS)
        ]
        accounts = [Account() for _ in tracks]
        for step in range(TRACK_BARS):
            running = [
                i for i, (_, start, end) in enumerate(tracks) if start + step < end - 1
            ]  # the last bar of a track closes it
            if not running:
                break
            rows = np.array(
                [table.first_row[tracks[i][0]] + tracks[i][1] + step for i in running],
                dtype=np.int64,
            )
            held = [table.aged(accounts[i], int(r)) for i, r in zip(running, rows, strict=True)]
            valid = np.stack([valid_actions(account.sign) for account in held])
            answer = decide(self._model, as_inputs(table.observe(rows, held)), _tensor(valid))
            self.segments.append(answer.segments.numpy())
            for k, i in enumerate(running):
                match Action(int(answer.action[k])):
                    case Action.BUY_LONG:
                        accounts[i] = table.opened(int(rows[k]), 1, 1.0, 1.0)
                    case Action.SELL_SHORT:
                        accounts[i] = table.opened(int(rows[k]), -1, 1.0, 1.0)
                    case Action.CLOSE_LONG | Action.CLOSE_SHORT:
                        accounts[i] = Account()
                    case Action.HOLD:
                        accounts[i] = held[k]
                market, start, _ = tracks[i]
                paths[market][start + step] = accounts[i].sign
        return paths


def as_training_candles(candles: WorldCandles, instrument: str) -> Candles:
    """Hand a world's candles to the table that the model reads from."""
    return Candles(
        instrument=instrument,
        timeframe=str(BAR_MINUTES),
        bar_ns=BAR_NS,
        open=candles.open,
        high=candles.high,
        low=candles.low,
        close=candles.close,
        volume=candles.volume.astype(np.float64),
        close_ns=candles.open_ns + BAR_NS,
    )


def run_world(plan: Plan, folder: Path, console: Console) -> dict[str, Any]:
    """Draw, write, read, train and examine one world."""
    world = parameters_for(plan.world)
    drawn = generate(plan.world, plan.training_bars, plan.training_seed).candles
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{plan.world}_{BAR_MINUTES}.csv"
    write_csv(path, drawn)
    training = training_run(plan, world.cost_bps, path)
    run_folder = folder / f"{plan.world}-{training.fingerprint()[:12]}"
    trainer = Trainer(training, run_folder, console)
    began_s = time.process_time()
    trainer.train(checkpoint_every=500, validate_every=1_000)
    training_cpu_s = time.process_time() - began_s
    model = ModelPolicy(trainer.supervision.serving, trainer.run.labels, trainer.table.vocabulary)
    policies: dict[str, Policy] = {
        "model": model,
        "ridge": RidgePolicy.fit(drawn, world.cost),
        "long": LongPolicy(),
        "flat": FlatPolicy(),
        "oracle": OraclePolicy(world),
    }
    seeds = TEST_SEEDS[: plan.test_seeds]
    began_s = time.process_time()
    scores = {
        name: evaluate(policy, world, seeds, plan.test_bars) for name, policy in policies.items()
    }
    # A run that was cut short goes on when started again; a finished one starts over.
    (run_folder / FILE_NAME).unlink()
    return {
        "plan": asdict(plan),
        "parameters": parameter_values(world),
        "oracle_value_bps": scores["oracle"].oracle_bps,
        "scores": {name: _rounded(score.as_dict()) for name, score in scores.items()},
        "mean_segments": round(float(np.concatenate(model.segments).mean()), 3),
        "marks": marks(plan.world, scores["model"]),
        "model_parameters": trainer.supervision.serving.parameter_counts()["total"],
        "steps": trainer.supervision.steps_done,
        "resumed_at": trainer.resumed_at,
        "training_seconds": round(trainer.seconds, 1),
        "training_cpu_seconds": round(training_cpu_s, 1),
        "examination_cpu_seconds": round(time.process_time() - began_s, 1),
    }


def training_run(plan: Plan, cost_bps: float, path: Path) -> Run:
    """Say everything that decides the training."""
    labels = LabelSettings(
        cost_bps=cost_bps,
        commit_bars=plan.commit_bars,
        prior="none" if plan.prior == "none" else "trend",
    )
    return Run(
        config=HRMConfig.preset("small").changed(
            training={"learning_rate": plan.learning_rate},
            adaptive_computation={"m_max": plan.m_max},
        ),
        labels=labels,
        supervision=SupervisionSettings(
            steps=plan.steps,
            learning_rate=plan.learning_rate,
            temperature=plan.temperature,
            discount=plan.discount,
            commit_bars=plan.commit_bars,
        ),
        seed=plan.training_seed,
        candles=(read_candles(path),),
    )


def marks(world: str, score: Score) -> dict[str, bool]:
    """Say which marks a score reaches. Where nothing can be earned, little may be lost."""
    if world in RATIO_MARKS:
        low = score.ratio_ci95[0] if score.ratio_ci95 else float("-inf")
        return {f"lower_bound_at_least_{RATIO_MARKS[world]}_of_oracle": low >= RATIO_MARKS[world]}
    return {
        "loses_at_most_5_percent_of_trading_every_bar": (
            score.value_bps >= -NULL_LOSS_MARK * score.cost_bps
        ),
        "changes_position_in_at_most_2_percent_of_bars": score.changes_per_bar <= NULL_CHANGES_MARK,
        "claims_an_edge_in_at_most_5_percent_of_seeds": score.edges
        <= NULL_EDGES_MARK * score.seeds,
    }


def run(worlds: Sequence[str], *, quick: bool) -> dict[str, Any]:
    """Run worlds one after the other; return their results, each with where it came from."""
    console = Console(stderr=True)
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory(prefix="worlds-benchmark-") as scratch:
        for name in worlds:
            plan = PLANS.get(name, Plan(name))
            if quick:
                plan = replace(plan, training_bars=6_000, steps=60, test_bars=1_200, test_seeds=2)
            console.print(f"{name}: {plan.steps} steps")
            source = {
                "date": datetime.now(UTC).isoformat(timespec="seconds"),  # noqa: TID251 - for people
                "command": f"python -m {' '.join(['benchmarks.worlds', *sys.argv[1:]])}",
                "machine": machine_facts(),
            }
            result = run_world(plan, Path(scratch) if quick else RUNS, console)
            results[name] = source | result
            console.print(json.dumps(result["marks"]))
    return report_of(results)


def report_of(worlds: dict[str, Any]) -> dict[str, Any]:
    """Put results under the note that belongs to them, newest source on top."""
    newest = max(worlds.values(), key=lambda result: str(result["date"]))
    return {
        **{key: newest[key] for key in ("date", "command", "machine")},
        "note": (
            "One training seed for each world: a smoke test of the learning path, not an "
            "acceptance, which asks for five. Values are 1/100 % of log return per bar, net."
        ),
        "training_seeds": 1,
        "worlds": dict(sorted(worlds.items())),
    }


def store(report: dict[str, Any], path: Path) -> dict[str, Any]:
    """Write a report; worlds that it does not name keep their stored results."""
    before = json.loads(path.read_text(encoding="utf-8"))["worlds"] if path.exists() else {}
    merged = report_of(before | report["worlds"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(merged, indent=2) + "\n", encoding="utf-8")
    return merged


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worlds", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--report", action="store_true", help="print the stored result (default)")
    parser.add_argument("--run", action="store_true", help="train, examine and store the result")
    parser.add_argument("--quick", action="store_true", help="a minute; stores nothing")
    parser.add_argument("--worlds", default=",".join(PLANS), help="for example W0,W2")
    options = parser.parse_args()
    if options.run or options.quick:
        report = run(options.worlds.split(","), quick=options.quick)
        if not options.quick:
            report = store(report, RESULT)
    elif RESULT.exists():
        report = json.loads(RESULT.read_text(encoding="utf-8"))
    else:
        parser.exit(1, f"no result is stored at {RESULT}: run python -m benchmarks.worlds --run\n")
    if options.json:
        print(json.dumps(report))
        return
    print(as_text(report))


def as_text(report: dict[str, Any]) -> str:
    """Lay the report out for reading."""
    lines = [report["note"]]
    for name, result in report["worlds"].items():
        best, machine = result["oracle_value_bps"], result["machine"]
        lines += [
            f"\n{name}  {json.dumps(result['parameters'])}  best {best:.3f}",
            f"  {result['date']}  commit {machine['commit']}  {machine['cpu']}",
            f"  {result['command']}",
        ]
        for policy, score in result["scores"].items():
            low, high = score["value_bps_ci95"]
            share = "" if score["ratio"] is None else f"  {score['ratio']:6.1%} of the best"
            lines.append(
                f"  {policy:7}{score['value_bps']:8.3f} [{low:7.3f}, {high:7.3f}]{share}"
                f"  changes {score['changes_per_bar']:.3f}  edges {score['edges']}/{score['seeds']}"
            )
        for mark, is_reached in result["marks"].items():
            lines.append(f"  {'reached' if is_reached else 'MISSED '}  {mark}")
        lines.append(
            f"  {result['steps']} steps in {result['training_seconds']:.0f} s, "
            f"{result['mean_segments']:.2f} segments a decision"
        )
    return "\n".join(lines)


def _tensor(array: NDArray[np.bool_]) -> torch.Tensor:
    return torch.from_numpy(array)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    return value


if __name__ == "__main__":
    main()
