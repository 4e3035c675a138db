"""Which precision trains faster here: timed, because what a processor lists says little.

Processors without units for bfloat16 emulate it and take an order of magnitude longer; others
gain. Weights, states, losses and the optimiser are float32 either way.
"""

import time
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor

from hrm.config import ACCOUNT_WIDTH, HRMConfig
from hrm.model import Heads, HierarchicalReasoningModel, ModelInputs

Precision = Literal["float32", "bfloat16"]

LEAST_GAIN = 1.2  # a smaller gain is not worth the coarser numbers
TIMED_STEPS = 2


def autocast(precision: Precision) -> AbstractContextManager[None]:
    """Return the context in which the model runs: products in the precision, the rest float32."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16")


def as_float32(heads: Heads) -> Heads:
    """Return the same readings in float32, in which losses are computed."""
    return Heads(**{name: value.float() for name, value in vars(heads).items()})


def seconds_per_step(config: HRMConfig, precision: Precision) -> float:
    """Time the forward and backward pass of one segment at the config's batch, best of two."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HierarchicalReasoningModel(config).train()
        inputs = drawn_inputs(config, config.training.segment_batch_size)
        best = float("inf")
        for step in range(1 + TIMED_STEPS):  # the first one warms up
            began_s = time.perf_counter()
            with autocast(precision):
                _, heads = model(inputs)
            heads = as_float32(heads)
            total: Tensor = heads.action_logits.sum() + heads.value.sum()
            total.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            if step:
                best = min(best, time.perf_counter() - began_s)
    return best


def faster_precision(float32_s: float, bfloat16_s: float) -> Precision:
    """Choose bfloat16 only where it clearly gains."""
    return "bfloat16" if float32_s >= LEAST_GAIN * bfloat16_s else "float32"


def drawn_inputs(config: HRMConfig, batch: int) -> ModelInputs:
    """Draw inputs of the right shapes from torch's generator: for timing, not for learning."""
    sizes = config.inputs
    return ModelInputs(
        bars=torch.randn(batch, sizes.window_bars, sizes.n_features),
        bars_mask=torch.ones(batch, sizes.window_bars, dtype=torch.bool),
        instrument=torch.zeros(batch, dtype=torch.int64),
        timeframe=torch.zeros(batch, dtype=torch.int64),
        account=torch.randn(batch, ACCOUNT_WIDTH),
        context=torch.randn(batch, sizes.n_context),
    )
