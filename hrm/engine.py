"""Engines: how the model is run where milliseconds count. Training does not go through here.

An engine is four steps of one decision and keeps nothing between them, so that the caller may stop
after any cycle and still hold a state to read. Nothing here imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hrm.config import ACCOUNT_WIDTH, HRMConfig

Encoded = TypeVar("Encoded")
Thinking = TypeVar("Thinking")
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Batch:
    """Hold observations as arrays: names, shapes and types as in hrm.model.ModelInputs."""

    bars: Floats
    bars_mask: NDArray[np.bool_]
    instrument: NDArray[np.int64]
    timeframe: NDArray[np.int64]
    account: Floats
    context: Floats

    def __len__(self) -> int:
        """Count the observations."""
        return len(self.bars)

    def part(self, which: slice) -> "Batch":
        """Return some of the observations, as views."""
        return Batch(**{name: value[which] for name, value in vars(self).items()})

    def check(self, config: HRMConfig) -> None:
        """Raise ValueError naming an array of the wrong form, or a number that cannot be read."""
        rows, sizes = len(self), config.inputs
        window = (rows, sizes.window_bars)
        forms: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "bars": ((*window, sizes.n_features), np.float32),
            "bars_mask": (window, np.bool_),
            "instrument": ((rows,), np.int64),
            "timeframe": ((rows,), np.int64),
            "account": ((rows, ACCOUNT_WIDTH), np.float32),
            "context": ((rows, sizes.n_context), np.float32),
        }
        for name, (shape, dtype) in forms.items():
            value: NDArray[Any] = getattr(self, name)
            if value.shape != shape or value.dtype != dtype:
                raise ValueError(
                    f"{name} must be {np.dtype(dtype)} of shape {list(shape)}, was {value.dtype} "
                    f"of shape {list(value.shape)}"
                )
            if not np.isfinite(value).all():
                place = tuple(int(axis) for axis in np.argwhere(~np.isfinite(value))[0])
                raise ValueError(
                    f"{name}{list(place)} is {value[place]}: every input must be finite, absent "
                    "bars are zeros with bars_mask False"
                )
        for name, size in (("instrument", sizes.instruments), ("timeframe", sizes.timeframes)):
            outside = [row for row in getattr(self, name).tolist() if not 0 <= row < size]
            if outside:
                raise ValueError(
                    f"{name} {outside[0]} is outside the vocabulary 0..{size - 1}: use 0 for an "
                    "unknown one, or train with it"
                )


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

    def encode(self, batch: Batch) -> Encoded:
        """Read a batch once; raise ValueError naming an input that is wrong."""
        ...

    def start(self, encoded: Encoded) -> Thinking:
        """Return the fixed state that thinking starts from."""
        ...

    def cycle(self, state: Thinking, encoded: Encoded) -> Thinking:
        """Return the state one cycle later; the one given stays readable."""
        ...

    def residual(self, before: Thinking, after: Thinking) -> tuple[Floats, Floats]:
        """Return the relative residuals of H and of L, row by row: [B] each."""
        ...

    def rows(
        self, state: Thinking, encoded: Encoded, keep: Sequence[int]
    ) -> tuple[Thinking, Encoded]:
        """Return what belongs to some rows of a batch, in the order of `keep`."""
        ...

    def read(self, state: Thinking) -> Reading:
        """Read the heads; valid after every cycle."""
        ...


@runtime_checkable
class TimesLayers(Protocol):
    """An engine that can say how long each layer took; one whose graph is one whole cannot."""

    def time_layers(self) -> None:
        """Note from now on how long each layer takes."""
        ...

    def layer_times(self) -> dict[str, int]:
        """Return nanoseconds by layer since this was asked last, such as h_module.0.attention."""
        ...
