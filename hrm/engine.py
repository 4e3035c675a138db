"""Engines: how the model is run where milliseconds count. Training does not go through here.

An engine is four steps of one decision and keeps nothing between them, so that the caller may stop
after any cycle and still hold a state to read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrm.convergence import relative_residual
from hrm.model import HierarchicalReasoningModel, ModelInputs, State

Encoded = TypeVar("Encoded")
Thinking = TypeVar("Thinking")
Floats = NDArray[np.float32]

SMALLEST_NORMAL = 2.0**-1022  # half of it is a denormal, which a flushing processor turns into zero


@dataclass(frozen=True)
class Reading:
    """Hold the heads as numpy, float32: shapes and meaning as in hrm.model.Heads."""

    action_logits: Floats
    size: Floats
    value: Floats
    q: Floats
    l_logits: Floats


class Engine(Protocol[Encoded, Thinking]):
    """Run a model step by step; what an encoding and a state are is the engine's own business."""

    def encode(self, inputs: ModelInputs) -> Encoded:
        """Read a batch once; raise ValueError naming an input that is wrong."""
        ...

    def start(self, encoded: Encoded) -> Thinking:
        """Return the fixed state that thinking starts from."""
        ...

    def cycle(self, state: Thinking, encoded: Encoded) -> Thinking:
        """Return the state one cycle later; the one given stays readable."""
        ...

    def residual(self, before: Thinking, after: Thinking) -> tuple[float, float]:
        """Return the relative residuals of H and of L, the largest over the batch."""
        ...

    def read(self, state: Thinking) -> Reading:
        """Read the heads; valid after every cycle."""
        ...


class EagerEngine:
    """Run the model as written, in float32: the reference that any faster engine is held to.

    Sets torch to `threads` compute threads for the whole process (two on two cores lose to one as
    soon as anything else runs), so make it in the process that serves, not in one that trains.
    """

    def __init__(self, model: HierarchicalReasoningModel, *, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self._model = model.eval()

    def encode(self, inputs: ModelInputs) -> Tensor:
        """Read a batch once, into [B, S, Dh]; raise ValueError naming an input that is wrong."""
        with _serving():
            config = self._model.config
            inputs.check_form(config, self._model.core.z_h_start.device)
            inputs.check(config)
            return self._model.encode(inputs)

    def start(self, encoded: Tensor) -> State:
        """Return the fixed state that thinking starts from."""
        with _serving():
            return self._model.initial_state(len(encoded), encoded.device)

    def cycle(self, state: State, encoded: Tensor) -> State:
        """Return the state one cycle later; the one given stays readable."""
        with _serving():
            return self._model.cycle(state, encoded)

    def residual(self, before: State, after: State) -> tuple[float, float]:
        """Return the relative residuals of H and of L, the largest over the batch."""
        with _serving():
            h, low = (relative_residual(b, a).max() for b, a in zip(before, after, strict=True))
            return float(h), float(low)

    def read(self, state: State) -> Reading:
        """Read the heads as numpy."""
        with _serving():
            heads = self._model.heads(state)
            return Reading(**{name: value.cpu().numpy() for name, value in vars(heads).items()})


@contextmanager
def _serving() -> Iterator[None]:
    """Turn gradients off and denormals to zero, and leave the thread as it was.

    Both are switches of the calling thread, so they are set in every call and not once. A state
    that converges makes ever smaller differences, and processors are slow on denormal ones.
    """
    was_flushing = SMALLEST_NORMAL / 2.0 == 0.0
    torch.set_flush_denormal(True)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_flush_denormal(was_flushing)
