"""Slots: what a batch thinks about, as tensors, one row per sample in progress."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from hrm.model import ModelInputs
from hrm.training.market_table import Observation


@dataclass(slots=True)
class Slots:
    """Hold what each of B slots thinks about, as tensors, so that a checkpoint is complete.

    utility: [B, 5] net reward plus discounted value of what follows. floor: [B] segments before
    which a halt is ignored. read: [B, M, Dh] what the heads read after each segment so far, and
    answers: [B, M] the action it stood for.
    """

    bars: Tensor
    bars_mask: Tensor
    instrument: Tensor
    timeframe: Tensor
    account: Tensor
    context: Tensor
    utility: Tensor
    valid: Tensor
    prior: Tensor
    label: Tensor
    move: Tensor
    z_h: Tensor
    z_l: Tensor
    segment: Tensor
    floor: Tensor
    read: Tensor
    answers: Tensor

    def inputs(self) -> ModelInputs:
        """Return what the slots look at."""
        return ModelInputs(
            self.bars,
            self.bars_mask,
            self.instrument,
            self.timeframe,
            self.account,
            self.context,
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return every field by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def as_inputs(observation: Observation) -> ModelInputs:
    """Turn arrays into the model's tensors."""
    return ModelInputs(
        bars=torch.from_numpy(observation.bars),
        bars_mask=torch.from_numpy(observation.bars_mask),
        instrument=torch.from_numpy(observation.instrument),
        timeframe=torch.from_numpy(observation.timeframe),
        account=torch.from_numpy(observation.account),
        context=torch.from_numpy(observation.context),
    )
