"""HRMState: everything that thinking about a batch of observations carries from segment to segment.

It lives inside one decision or one training slot, never across bars: the same inputs give the same
decision.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor


@dataclass(frozen=True)
class HRMState:
    """Hold the state of B observations; each row may be at another depth.

    h_module_state [B, S, Dh], l_module_state [B, S, Dl] float; cycle_count and segment_count [B]
    int64, done so far; market_complexity [B] float32 in [0, 1]; computation_budget [B] int64,
    segments left.
    """

    h_module_state: Tensor
    l_module_state: Tensor
    cycle_count: Tensor
    segment_count: Tensor
    market_complexity: Tensor
    computation_budget: Tensor

    def __post_init__(self) -> None:
        """Refuse tensors that do not belong together."""
        batch, device = self.h_module_state.shape[0], self.h_module_state.device
        for field in fields(self):
            value: Tensor = getattr(self, field.name)
            axes = 3 if field.name.endswith("_module_state") else 1
            if value.dim() != axes or value.shape[0] != batch:
                raise ValueError(
                    f"{field.name} must have {axes} axes, the first of length {batch} as in "
                    f"h_module_state, was {list(value.shape)}"
                )
            if value.device != device:
                raise ValueError(
                    f"{field.name} is on {value.device} but h_module_state on {device}: move the "
                    "whole state with .to()"
                )

    @classmethod
    def start(cls, states: tuple[Tensor, Tensor], complexity: Tensor, budget: int) -> Self:
        """Begin at the model's initial_state; complexity: [B]; budget: segments for each row."""
        z_h, z_l = states
        zeros = torch.zeros(z_h.shape[0], dtype=torch.int64, device=z_h.device)
        return cls(z_h, z_l, zeros, zeros.clone(), complexity.float(), zeros + budget)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Stack several states, row after row."""
        if not parts:
            raise ValueError("nothing to join: give at least one state")
        return cls(
            *(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls))
        )

    @classmethod
    def from_bytes(cls, data: bytes, device: torch.device | str = "cpu") -> Self:
        """Read what to_bytes wrote; the types of the module states are kept."""
        names = {field.name for field in fields(cls)}
        try:
            tensors = load(data)
        except SafetensorError as error:
            raise ValueError(f"not a stored HRMState, {len(data)} bytes: {error}") from error
        if set(tensors) != names:
            raise ValueError(f"not a stored HRMState: it holds {sorted(tensors)}")
        return cls(**tensors).to(device)

    def to_bytes(self) -> bytes:
        """Write every tensor, with its type, as safetensors."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})

    @property
    def states(self) -> tuple[Tensor, Tensor]:
        """Return what the model works on: z_h [B, S, Dh], z_l [B, S, Dl]."""
        return self.h_module_state, self.l_module_state

    def __len__(self) -> int:
        """Count the rows."""
        return self.h_module_state.shape[0]

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Move everything to device; dtype changes the two module states only."""
        moved = type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))
        return replace(
            moved,
            h_module_state=moved.h_module_state.to(dtype),
            l_module_state=moved.l_module_state.to(dtype),
        )

    def rows(self, index: Tensor) -> Self:
        """Return the rows that index (int64 positions or a bool mask, [B]) picks."""
        return type(self)(*(getattr(self, field.name)[index] for field in fields(self)))

    def after_segment(self, states: tuple[Tensor, Tensor], cycles: int) -> Self:
        """Return the state one segment later, detached; cycles: how many that segment ran."""
        z_h, z_l = states
        return replace(
            self,
            h_module_state=z_h.detach(),
            l_module_state=z_l.detach(),
            cycle_count=self.cycle_count + cycles,
            segment_count=self.segment_count + 1,
            computation_budget=self.computation_budget - 1,
        )
