"""Several processes that train one model: each thinks about its share of the batch.

Gradients are averaged, so all take the same step from the same weights. Started by torchrun, over
gloo, on processors; alone, everything here does nothing.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

TIMEOUT = timedelta(minutes=10)  # a process that waits longer has lost the others


class ProcessesDisagreeError(RuntimeError):
    """The processes of one training no longer hold the same weights."""


@dataclass(frozen=True, slots=True)
class Processes:
    """Say which of how many processes this is; the first, rank 0, writes files."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Tell whether this process writes what all of them have made."""
        return self.rank == 0

    def share(self, batch: int) -> int:
        """Return how many of the batch's slots are this process's own."""
        if batch % self.count:
            raise ValueError(
                f"a batch of {batch} does not split evenly among {self.count} processes: make "
                "training.segment_batch_size (--batch) a multiple"
            )
        return batch // self.count

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace every gradient by its mean over the processes.

        A gradient that no process has stays absent, one that some lack counts as zero there:
        what an optimiser does with an absent gradient differs from what it does with zeros.
        """
        if self.count == 1:
            return
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        present = torch.tensor([float(p.grad is not None) for p in parameters])
        joined = torch.cat([*(part.flatten() for part in parts), present])
        distributed.all_reduce(joined)
        present = joined[-len(parameters) :]
        lengths = [p.numel() for p in parameters]
        values = torch.split_with_sizes(joined[: -len(parameters)] / self.count, lengths)
        for parameter, value, holders in zip(parameters, values, present, strict=True):
            parameter.grad = value.view_as(parameter).clone() if holders else None

    def average(self, figures: dict[str, float]) -> dict[str, float]:
        """Return the mean of each figure over the processes."""
        if self.count == 1:
            return figures
        values = torch.tensor(list(figures.values()), dtype=torch.float64)
        distributed.all_reduce(values)
        return dict(zip(figures, (values / self.count).tolist(), strict=True))

    def gather(self, value: Any) -> list[Any]:
        """Return what every process gave, in rank order; all of them must call this."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def check_agreement(self, tensors: dict[str, Tensor]) -> None:
        """Raise ProcessesDisagreeError unless all processes hold the same tensors, to the bit."""
        digest = hashlib.sha256()
        for name in sorted(tensors):
            digest.update(tensors[name].detach().contiguous().numpy().tobytes())
        digests = self.gather(digest.hexdigest())
        if len(set(digests)) > 1:
            shown = ", ".join(text[:12] for text in digests)
            raise ProcessesDisagreeError(
                f"the weights differ between the processes ({shown}): run them on machines of one "
                "kind with one version of torch, and start again from the last checkpoint"
            )

    def wait(self) -> None:
        """Return when every process has got here."""
        if self.count > 1:
            distributed.barrier()


@contextmanager
def joined_processes() -> Iterator[Processes]:
    """Join the processes that torchrun has started; without torchrun there is only this one."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    distributed.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield Processes(distributed.get_rank(), count)
    finally:
        distributed.destroy_process_group()
