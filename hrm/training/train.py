"""`hrm-train`: candles in, released model out. Reads settings, trains, scores, releases.

What a run is and how it goes on after it was killed is in `trainer`. Under torchrun several
processes train one model together: `torchrun --nproc-per-node 2 -m hrm.training.train ...`.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.markup import escape

from hrm.config import HRMConfig, PresetName
from hrm.manifest import IntegrityError
from hrm.memory import MemoryLimitExceededError
from hrm.training.candles import DataQualityError, embedded_candles_path, read_candles
from hrm.training.checkpoint import FILE_NAME, CheckpointError
from hrm.training.deep_supervision import (
    DEFAULT_CONTRACTION_TARGET,
    DEFAULT_CONTRACTION_WEIGHT,
    DEFAULT_TEMPERATURE,
    SupervisionSettings,
    TrainingDivergedError,
)
from hrm.training.market_table import LabelSettings
from hrm.training.precision import Precision, faster_precision, seconds_per_step
from hrm.training.prior import Prior
from hrm.training.processes import Processes, ProcessesDisagreeError, joined_processes
from hrm.training.trainer import METRICS_NAME, Run, Trainer, release


def train_command(
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            help="Candles: CSV or Parquet. Repeat for several instruments. "
            "Default: the hourly EUR/USD candles that gym-anytrading ships.",
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help="small, medium or production.")] = "small",
    seed: Annotated[
        int, typer.Option(help="Same seed, same data, same machine: same weights.")
    ] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps, one segment each.")] = 6_000,
    out: Annotated[Path, typer.Option(help="Folder to release to.")] = Path("models"),
    runs: Annotated[Path, typer.Option(help="Folder of run folders.")] = Path("runs"),
    cost_bps: Annotated[
        float, typer.Option(min=0.0, help="Cost per side that training counts, in 1/100 %.")
    ] = 2.0,
    score_cost_bps: Annotated[
        float, typer.Option(min=0.0, help="Cost per side that scores count, in 1/100 %.")
    ] = 2.0,
    learning_rate: Annotated[
        float | None, typer.Option(help="Default: that of the preset's settings.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="Pull of the prior, in volatilities.")
    ] = DEFAULT_TEMPERATURE,
    prior: Annotated[
        str, typer.Option(help="What to do where nothing is learned: trend (follow it) or none.")
    ] = "trend",
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps.")] = 500,
    validate_every: Annotated[int, typer.Option(min=1, help="Steps.")] = 500,
    threads: Annotated[int, typer.Option(min=1, help="Part of what decides the weights.")] = 1,
    memory_gib: Annotated[float | None, typer.Option(help="Cap; default from settings.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Slots that think at once.")] = None,
    precision: Annotated[
        str, typer.Option(help="float32, bfloat16, or fastest: time both here and take the faster.")
    ] = "float32",
    checkpoint_activations: Annotated[
        bool, typer.Option(help="Compute blocks twice to hold less memory; same weights.")
    ] = False,
    contraction_weight: Annotated[
        float, typer.Option(min=0.0, help="Of the penalty on growing perturbations; 0 = none.")
    ] = DEFAULT_CONTRACTION_WEIGHT,
    contraction_target: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Growth per segment that costs nothing.")
    ] = DEFAULT_CONTRACTION_TARGET,
    fresh: Annotated[bool, typer.Option(help="Start over instead of going on.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Train a model on candles and release it, with honest scores, to the models folder."""
    console = Console(stderr=True)
    torch.set_num_threads(threads)
    try:
        with joined_processes() as processes:
            config = _config(preset, learning_rate, memory_gib, batch)
            processes.share(config.training.segment_batch_size)
            labels = LabelSettings(cost_bps=cost_bps, prior=_prior(prior))
            run = Run(
                config=config,
                labels=labels,
                supervision=SupervisionSettings(
                    steps=steps,
                    learning_rate=config.training.learning_rate,
                    temperature=temperature,
                    commit_bars=labels.commit_bars,
                    contraction_weight=contraction_weight,
                    contraction_target=contraction_target,
                ),
                seed=seed,
                candles=tuple(read_candles(path) for path in data or [embedded_candles_path()]),
                processes=processes.count,
            )
            run, folder = _placed(run, runs, preset, precision, processes, console)
            if fresh and processes.is_first:
                for name in (FILE_NAME, METRICS_NAME):
                    (folder / name).unlink(missing_ok=True)
            processes.wait()
            trainer = Trainer(
                run,
                folder,
                Console(stderr=True, quiet=not processes.is_first),
                recompute=checkpoint_activations,
                processes=processes,
            )
            if trainer.resumed_at and processes.is_first:
                console.print(f"going on from step {trainer.resumed_at} in {folder}")
            trainer.train(checkpoint_every=checkpoint_every, validate_every=validate_every)
            if not processes.is_first:
                return
            summary = release(trainer, out, score_cost_bps)
    except (
        FileNotFoundError,
        DataQualityError,
        CheckpointError,
        TrainingDivergedError,
        MemoryLimitExceededError,
        ProcessesDisagreeError,
        IntegrityError,
        ValueError,
    ) as error:
        console.print(
            f"[red]hrm-train:[/red] {escape(str(error))}", highlight=False, soft_wrap=True
        )
        raise typer.Exit(code=1) from error
    if as_json:
        sys.stdout.write(json.dumps(summary) + "\n")
    else:
        console.print_json(json.dumps(summary))


def main() -> None:
    """Run `hrm-train`."""
    typer.run(train_command)


def _config(
    preset: str, learning_rate: float | None, memory_gib: float | None, batch: int | None
) -> HRMConfig:
    chosen: PresetName
    match preset:
        case "small" | "medium" | "production":
            chosen = preset
        case _:
            raise ValueError(f"no preset {preset!r}: choose small, medium or production")
    blocks: dict[str, dict[str, Any]] = {"training": {}, "performance": {}}
    if learning_rate is not None:
        blocks["training"]["learning_rate"] = learning_rate
    if batch is not None:
        blocks["training"]["segment_batch_size"] = batch
    if memory_gib is not None:
        blocks["performance"]["memory_limit_gb"] = memory_gib
    return HRMConfig.preset(chosen).changed(**blocks)


def _placed(
    run: Run, runs: Path, preset: str, wanted: str, processes: Processes, console: Console
) -> tuple[Run, Path]:
    """Settle the precision and name the run's folder; all processes settle on the same.

    A run that was begun goes on in the precision it began with, whatever the clock says today.
    """

    def placed(precision: Precision) -> tuple[Run, Path]:
        chosen = replace(run, precision=precision)
        return chosen, runs / f"{preset}-{chosen.fingerprint()[:12]}"

    match wanted:
        case "float32" | "bfloat16":
            return placed(wanted)
        case "fastest":
            pass
        case _:
            raise ValueError(f"no precision {wanted!r}: choose float32, bfloat16 or fastest")
    begun: tuple[Precision, ...] = ("float32", "bfloat16")
    for precision in begun:
        if (placed(precision)[1] / FILE_NAME).is_file():
            return placed(precision)
    seconds = [seconds_per_step(run.config, precision) for precision in begun]
    first: list[float] = processes.gather(seconds)[0]
    fastest = faster_precision(*first)
    if processes.is_first:
        times = f"float32 {first[0]:.3f} s, bfloat16 {first[1]:.3f} s per segment"
        console.print(f"training in {fastest}: {times}")
    return placed(fastest)


def _prior(name: str) -> Prior:
    match name:
        case "trend" | "none":
            return name
        case _:
            raise ValueError(f"no prior {name!r}: choose trend or none")


if __name__ == "__main__":
    main()
