"""A training run: its folder, its checkpoints, its metrics, and the release of what it made.

A run lives in a folder named after everything that decides its outcome (settings, seed, data).
Given again, it goes on where it stopped, bit by bit. How a step learns is in `deep_supervision`,
how a model is judged in `evaluation`; the command line is in `train`.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from hrm.config import HRMConfig
from hrm.features import FEATURE_NAMES, FEATURE_SCHEMA_SHA256
from hrm.integrity import load_release, save_release
from hrm.manifest import DataRecord, FeatureRecord, ModelCard, Vocabularies
from hrm.memory import HRMMemoryOptimizer
from hrm.model import HierarchicalReasoningModel
from hrm.training.candles import Candles, check_quality
from hrm.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from hrm.training.deep_supervision import DeepSupervision, SupervisionSettings
from hrm.training.evaluation import direction_auc, scores
from hrm.training.market_table import (
    LabelSettings,
    MarketTable,
    Split,
    Vocabulary,
    market_table,
    split_by_date,
)
from hrm.training.memory import REMEDY, peak_resident_bytes
from hrm.training.precision import Precision
from hrm.training.processes import Processes
from hrm.training.samples import draw_samples

METRICS_NAME = "metrics.jsonl"
PACKAGES = ("hrm-trading-daemon", "torch", "numpy", "safetensors")
VALIDATION_ROWS = 512  # of the validation part, looked at while training


@dataclass(frozen=True, slots=True)
class Run:
    """Hold everything that decides the outcome of a training run; processes: how many share it."""

    config: HRMConfig
    labels: LabelSettings
    supervision: SupervisionSettings
    seed: int
    candles: tuple[Candles, ...]
    precision: Precision = "float32"
    processes: int = 1

    def __post_init__(self) -> None:
        if self.config.inputs.depth:
            raise ValueError(
                "inputs.depth is true but candles carry no order books to learn from: set it to "
                "false"
            )

    def fingerprint(self) -> str:
        """Return a digest of it all: runs with the same one give the same weights."""
        what = {
            "config": self.config.model_dump(mode="json"),
            "labels": asdict(self.labels),
            "supervision": asdict(self.supervision),
            "seed": self.seed,
            "data": [[c.instrument, c.timeframe, c.sha256] for c in self.candles],
            "features": FEATURE_SCHEMA_SHA256,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "precision": self.precision,
            "processes": self.processes,
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


class Trainer:
    """Run one training to its end, checkpoint by checkpoint, in its folder.

    recompute: keep fewer activations, to the same result, so it may change from start to start.
    processes: this one's place among those that train together; the first alone writes files.
    """

    def __init__(
        self,
        run: Run,
        folder: Path,
        console: Console,
        *,
        recompute: bool = False,
        processes: Processes | None = None,
    ) -> None:
        self.run = run
        self.folder = folder
        self.processes = processes or Processes()
        self._console = console
        self._memory = HRMMemoryOptimizer(run.config.performance.memory_limit_gb, REMEDY)
        self.table, self.split = _prepared(run)
        self._generator = np.random.default_rng(run.seed)
        torch.manual_seed(run.seed)
        model = HierarchicalReasoningModel(run.config)
        if self.processes.count > 1:  # the same weights, but samples and noise of its own
            self._generator = np.random.default_rng([run.seed, self.processes.rank])
            torch.manual_seed(int(self._generator.integers(2**62)))
        self.supervision = DeepSupervision(
            model,
            run.supervision,
            lambda count, generator: draw_samples(self.table, self.split.train, count, generator),
            self._generator,
            precision=run.precision,
            recompute=recompute,
            processes=self.processes,
        )
        self.seconds = 0.0
        self._memory.check()
        self.resumed_at = self._resume()

    def train(self, *, checkpoint_every: int, validate_every: int) -> None:
        """Take the remaining steps, saving every so many; metrics go to the run's JSON lines."""
        steps = self.run.supervision.steps
        started = time.monotonic() - self.seconds
        is_first = self.processes.is_first
        metrics_path = self.folder / METRICS_NAME if is_first else Path(os.devnull)
        with (
            _progress(self._console, steps, self.supervision.steps_done) as advance,
            metrics_path.open("a", encoding="utf-8") as metrics,
        ):
            while self.supervision.steps_done < steps:
                report = self.supervision.step()
                line: dict[str, Any] = report.as_dict()
                done = self.supervision.steps_done
                resident = self._memory.check()
                if is_first and (done % validate_every == 0 or done == steps):
                    line |= self._validation()
                    line["resident_bytes"] = resident
                self.seconds = time.monotonic() - started
                line["seconds"] = round(self.seconds, 3)
                metrics.write(json.dumps(line) + "\n")
                if done % checkpoint_every == 0 or done == steps:
                    metrics.flush()  # never behind the checkpoint
                    self.save()
                advance(report.loss, report.mean_segment)

    def _validation(self) -> dict[str, float]:
        rows = self.split.validation
        chosen = rows[:: max(1, len(rows) // VALIDATION_ROWS)]
        auc, _ = direction_auc(self.supervision.serving, self.table, chosen)
        return {"validation_direction_auc": round(auc, 5)}

    def save(self) -> None:
        """Write a checkpoint of the present step; all processes must call this."""
        self.processes.check_agreement(self.supervision.model.state_dict())
        progress = {"fingerprint": self.run.fingerprint(), "seconds": self.seconds}
        tensors = self.supervision.state_tensors()
        save_checkpoint(self.folder, tensors, self._generator, progress, self.processes)

    def _resume(self) -> int:
        """Take over the checkpoint, if there is one, and drop metrics of steps after it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        loaded = load_checkpoint(self.folder, self._generator, self.processes)
        metrics = self.folder / METRICS_NAME
        if loaded is None:
            if self.processes.is_first:
                metrics.write_text("", encoding="utf-8")
            return 0
        tensors, progress = loaded
        if progress["fingerprint"] != self.run.fingerprint():
            raise CheckpointError(
                f"{self.folder} holds a run with other settings or data: choose another --run "
                "folder, or give --fresh to start over"
            )
        self.supervision.load_state_tensors(tensors)
        self.seconds = float(progress["seconds"])
        done = self.supervision.steps_done
        if not self.processes.is_first:
            return done
        lines = metrics.read_text(encoding="utf-8").splitlines()[:done] if metrics.exists() else []
        metrics.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return done


def release(trainer: Trainer, models: Path, score_cost_bps: float) -> dict[str, Any]:
    """Score the averaged weights on the test part, release them, and return the summary."""
    run, serving = trainer.run, trainer.supervision.serving
    test = scores(serving, trainer.table, trainer.split.test, score_cost_bps)
    start = trainer.split.train[: len(trainer.split.test)]
    seen = scores(serving, trainer.table, start, score_cost_bps)
    held_out: dict[str, Any] = {
        "test": test,
        "start_of_training_part": seen,
        "note": (
            "An interval that includes 0 is no edge. The training part was learned from: its "
            "figures show only that the model trades there, not that it is any good."
        ),
    }
    # The host's own date, written down for people; nothing is decided by it.
    created = datetime.now(UTC).isoformat(timespec="seconds")  # noqa: TID251 - no daemon, no clock
    card = ModelCard(
        config=run.config,
        features=FeatureRecord(names=FEATURE_NAMES, schema_sha256=FEATURE_SCHEMA_SHA256),
        vocabularies=Vocabularies(
            instruments=dict(trainer.table.vocabulary.instruments),
            timeframes=dict(trainer.table.vocabulary.timeframes),
        ),
        data=tuple(_data_record(candles) for candles in run.candles),
        training={
            "seed": run.seed,
            "labels": asdict(run.labels),
            "supervision": asdict(run.supervision),
            "split": {
                "train_bars": len(trainer.split.train),
                "validation_bars": len(trainer.split.validation),
                "test_bars": len(trainer.split.test),
                "validation_from": _date(trainer.split.boundaries_ns[0]),
                "test_from": _date(trainer.split.boundaries_ns[1]),
            },
            "seconds": round(trainer.seconds, 1),
            "fingerprint": run.fingerprint(),
            "precision": run.precision,
            "processes": run.processes,
        },
        scores=held_out,
        versions={name: version(name) for name in PACKAGES if _is_installed(name)}
        | {"python": platform.python_version()},
        created=created,
    )
    entry = save_release(models, serving, card)
    name = load_release(models).name
    return {
        "released": str(models / name),
        "weights_sha256": entry.sha256,
        "parameters": serving.parameter_counts()["total"],
        "steps": trainer.supervision.steps_done,
        "resumed_at": trainer.resumed_at,
        "seconds": round(trainer.seconds, 1),
        "peak_resident_bytes": peak_resident_bytes(),
        "run": str(trainer.folder),
        "scores": held_out,
    }


def _prepared(run: Run) -> tuple[MarketTable, Split]:
    """Pass the quality gate and lay out the table; nothing is trained before that."""
    for candles in run.candles:
        check_quality(candles)
    table = market_table(
        run.candles,
        window=run.config.inputs.window_bars,
        labels=run.labels,
        vocabulary=Vocabulary.of(run.candles),
    )
    return table, split_by_date(table)


def _data_record(candles: Candles) -> DataRecord:
    return DataRecord(
        name=candles.source,
        sha256=candles.sha256,
        rows=len(candles),
        first=_date(int(candles.close_ns[0])),
        last=_date(int(candles.close_ns[-1])),
    )


def _date(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat()


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except ModuleNotFoundError:
        return False
    return True


@contextmanager
def _progress(console: Console, steps: int, done: int) -> Iterator[Any]:
    """Show a bar on stderr where that is a terminal."""
    bar = Progress(
        TextColumn("hrm-train"),
        BarColumn(),
        TextColumn(
            "{task.completed}/{task.total} loss {task.fields[loss]:.3f} "
            "segments {task.fields[depth]:.1f}"
        ),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("train", total=steps, completed=done, loss=0.0, depth=0.0)

        def advance(loss: float, depth: float) -> None:
            bar.update(task, advance=1, loss=loss, depth=depth)

        yield advance
