"""Checkpoints of a training run: one safetensors file, replaced whole or not at all.

Safetensors and JSON only: a checkpoint cannot carry code. Released weights are not written here
but by `hrm.integrity`.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hrm.training.processes import Processes

FILE_NAME = "checkpoint.safetensors"
FORMAT = 2  # 1: before the contraction penalty and several processes
_TORCH_GENERATOR = "torch_generator"
_OWN = "slots."  # what differs from process to process, beside the random states


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or belongs to another run."""


def save_checkpoint(
    folder: Path,
    tensors: dict[str, Tensor],
    generator: np.random.Generator,
    progress: dict[str, Any],
    processes: Processes | None = None,
) -> None:
    """Write everything that decides how training goes on; a crash leaves the old file whole.

    `progress` must be JSON; torch's own random state is added to the tensors. All processes must
    call this: the first writes one file with the slots and random states of all.
    """
    processes = processes or Processes()
    own = {name: value for name, value in tensors.items() if name.startswith(_OWN)}
    own[_TORCH_GENERATOR] = torch.get_rng_state()
    states = processes.gather((own, generator.bit_generator.state))
    if not processes.is_first:
        return
    stored = {name: value for name, value in tensors.items() if name not in own}
    for rank, (theirs, _) in enumerate(states):
        stored |= {f"{_prefix(rank)}{name}": value for name, value in theirs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / FILE_NAME
    partial = folder / f"{FILE_NAME}.partial"
    state = {"format": FORMAT, "generators": [drawn for _, drawn in states], "progress": progress}
    save_file(stored, partial, metadata={"state": json.dumps(state)})
    with partial.open("rb") as written:
        os.fsync(written.fileno())
    partial.replace(target)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the rename itself must survive a power cut
    finally:
        os.close(descriptor)


def load_checkpoint(
    folder: Path, generator: np.random.Generator, processes: Processes | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors and progress, and set both random states; None where nothing was saved.

    Each process gets its own slots and random states, and what all of them share.
    """
    processes = processes or Processes()
    target = folder / FILE_NAME
    if not target.is_file():
        return None
    mine = _prefix(processes.rank)
    tensors: dict[str, Tensor] = {}
    try:
        with safe_open(target, framework="pt") as opened:
            state = json.loads((opened.metadata() or {})["state"])
            written = state.get("format", 1)
            if written == FORMAT:
                for name in opened.keys():  # noqa: SIM118 - not a dictionary
                    owner, _, rest = name.rpartition("//")
                    if owner in ("", mine.removesuffix("//")):
                        tensors[rest] = opened.get_tensor(name)
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise CheckpointError(
            f"{target} cannot be read ({error}): remove it to start over, or give --fresh"
        ) from error
    if written != FORMAT:
        raise CheckpointError(
            f"{target} is a checkpoint of format {written}, this version goes on from format "
            f"{FORMAT} only: give --fresh to start over, or finish the run with the version that "
            "began it"
        )
    if len(state["generators"]) != processes.count:
        raise CheckpointError(
            f"{target} was written by {len(state['generators'])} processes, this run has "
            f"{processes.count}: start as many as before, or give --fresh"
        )
    torch.set_rng_state(tensors.pop(_TORCH_GENERATOR))
    generator.bit_generator.state = state["generators"][processes.rank]
    return tensors, state["progress"]


def _prefix(rank: int) -> str:
    return f"process{rank}//"  # names of parameters hold single dots and slashes only
