"""What one of several training processes does in a test; started by test_training_processes."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model_builders import a_model
from rich.console import Console
from torch import Tensor
from training_builders import a_table, a_training_config, some_candles

from hrm.config import HRMConfig
from hrm.training.deep_supervision import DeepSupervision, SupervisionSettings
from hrm.training.market_table import LabelSettings, split_by_date
from hrm.training.processes import Processes, ProcessesDisagreeError, joined_processes
from hrm.training.samples import Samples, draw_samples
from hrm.training.trainer import Run, Trainer

STEPS = 24


def exchange(processes: Processes) -> dict[str, Any]:
    """Average gradients of which one is absent everywhere and one here only, and disagree."""
    mine = float(processes.rank + 1)
    weights = [torch.zeros(2, requires_grad=True), torch.zeros(1), torch.zeros(1)]
    weights[0].grad = torch.tensor([mine, 2 * mine])
    if processes.rank == 1:
        weights[1].grad = torch.tensor([4.0])
    processes.average_gradients(weights)
    try:
        processes.check_agreement({"weight": torch.tensor([mine])})
        disagreement = ""
    except ProcessesDisagreeError as error:
        disagreement = str(error)
    return {
        "gradients": [None if w.grad is None else w.grad.tolist() for w in weights],
        "figures": processes.average({"loss": mine}),
        "gathered": processes.gather(processes.rank),
        "disagreement": disagreement,
    }


def train(processes: Processes) -> dict[str, Any]:
    """Take some steps without noise, each process on its rows of what one would have drawn."""
    plain = {
        "h_module": {"dropout": 0.0},
        "l_module": {"dropout": 0.0},
        "encoder": {"dropout": 0.0},
    }
    config = a_training_config().changed(architecture=plain)
    table = a_table()
    rows = split_by_date(table).train
    batch = config.training.segment_batch_size
    share = processes.share(batch)

    def source(count: int, generator: np.random.Generator) -> Samples:
        assert count == share
        return _rows(draw_samples(table, rows, batch, generator), processes.rank * share, share)

    training = DeepSupervision(
        a_model(config),
        SupervisionSettings(
            steps=STEPS,
            learning_rate=3e-3,
            warmup_steps=1,
            commit_bars=table.labels.commit_bars,
            imitation_share=1.0,
            cut_share=0.0,
            full_depth_share=1.0,
            contraction_weight=0.0,  # draws its perturbations at random
        ),
        source,
        np.random.default_rng(5),
        processes=processes,
    )
    reports = [training.step() for _ in range(STEPS)]
    weights = training.model.state_dict()
    processes.check_agreement(weights)
    return {
        "losses": [report.loss for report in reports],
        "imitated": [report.prior for report in reports],
        "digest": digest(weights),
        "weights": {
            name: weights[name].flatten().tolist()
            for name in ("action_head.weight", "q_head.bias", "core.h_module.from_low.weight")
        },
    }


def _rows(samples: Samples, start: int, count: int) -> Samples:
    def cut(value: Any, each: int = 1) -> Any:
        return value[start * each : (start + count) * each]

    seen, later = samples.observation, samples.next_observation
    return Samples(
        observation=type(seen)(**{n: cut(getattr(seen, n)) for n in seen.__slots__}),
        next_observation=type(later)(**{n: cut(getattr(later, n), 3) for n in later.__slots__}),
        **{
            name: cut(getattr(samples, name))
            for name in samples.__slots__
            if not name.endswith("observation")
        },
    )


def go_on(processes: Processes, folder: Path) -> dict[str, Any]:
    """Train once without a stop and once with one, each from a trainer that knows nothing."""
    supervision = SupervisionSettings(steps=6, learning_rate=1e-3, commit_bars=8)
    config = HRMConfig.preset("small").changed(training={"segment_batch_size": 4})
    run = Run(config, LabelSettings(), supervision, 3, (some_candles(1400),), processes=2)

    def trainer(name: str) -> Trainer:
        return Trainer(run, folder / name, Console(quiet=True), processes=processes)

    whole = trainer("whole")
    whole.train(checkpoint_every=2, validate_every=100)
    halted = trainer("halted")
    for _ in range(2):
        halted.supervision.step()
    halted.save()
    halted.supervision.step()  # lost
    processes.wait()
    again = trainer("halted")
    resumed_at = again.resumed_at
    again.train(checkpoint_every=2, validate_every=100)
    return {
        "resumed_at": resumed_at,
        "whole": digest(whole.supervision.state_tensors()),
        "resumed": digest(again.supervision.state_tensors()),
        "files": sorted(path.name for path in (folder / "whole").iterdir()),
    }


def digest(tensors: dict[str, Tensor]) -> str:
    """Digest tensors by name and content."""
    joined = b"".join(name.encode() + tensors[name].numpy().tobytes() for name in sorted(tensors))
    return hashlib.sha256(joined).hexdigest()


def main() -> None:
    """Do everything with the other process and print one JSON object; the argument is a folder."""
    torch.set_num_threads(1)
    with joined_processes() as processes:
        answer = {
            "exchange": exchange(processes),
            "train": train(processes),
            "go_on": go_on(processes, Path(sys.argv[1])),
        }
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
