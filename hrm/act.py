"""Adaptive computation time: how many segments a decision takes, and how that is learned.

Halting is a value question: Q_halt is the chance that stopping now is right, Q_continue that going
on will be. Both are logits here; targets are probabilities.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor

from hrm.config import AdaptiveComputationConfig
from hrm.halting import min_segments
from hrm.model import Heads, HierarchicalReasoningModel, ModelInputs
from hrm.state import HRMState


@dataclass(frozen=True)
class Conclusion:
    """Hold what a batch concluded: each row's heads at its own halt, and its depth [B] int64."""

    heads: Heads
    segments: Tensor


class AdaptiveComputationTime:
    """Decide when to halt, draw exploration for training, and score the Q head."""

    def __init__(self, config: AdaptiveComputationConfig) -> None:
        self.m_max = config.m_max
        self._m_min_prob = config.m_min_prob
        self._epsilon = config.epsilon

    def min_segments(self, complexity: float) -> int:
        """Return the least depth for a market complexity in [0, 1], never above m_max.

        A soft floor: it yields to a deadline, and the caller sees to that.
        """
        return min_segments(complexity, self.m_max)

    def draw_floors(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw the least depth of `count` training episodes: [count] int64, on the CPU.

        Once per episode, not per segment: 1 with m_min_prob, else uniform in 2..m_max.
        """
        if self.m_max == 1:
            return torch.ones(count, dtype=torch.int64)
        deep = torch.rand(count, generator=generator) >= self._m_min_prob
        depths = torch.randint(2, self.m_max + 1, (count,), generator=generator)
        return torch.where(deep, depths, 1)

    def draw_ignored(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw, for one training segment, which rows go on although they would halt: [count] bool.

        m_max still ends them.
        """
        return torch.rand(count, generator=generator) < self._epsilon

    def should_halt(
        self,
        q: Tensor,
        segments: Tensor | int,
        floor: Tensor | int,
        ignored: Tensor | None = None,
    ) -> Tensor:
        """Say which rows stop after `segments` segments: [B] bool.

        q: [B, 2] logits; segments, floor: [B] int64 or one number for all; ignored: `draw_ignored`.
        A halt needs Q_halt above Q_continue: equal, or not a number, means think on.
        """
        depth = torch.as_tensor(segments, device=q.device)
        wants = (q[:, 0] > q[:, 1]) & (depth >= torch.as_tensor(floor, device=q.device))
        if ignored is not None:
            wants = wants & ~ignored.to(q.device)
        return wants | (depth >= self.m_max)

    def halt_loss(self, halt_logits: Tensor, right: Tensor) -> Tensor:
        """Return the cross-entropy of Q_halt against how right stopping is, element by element.

        right: in [0, 1], of the shape of halt_logits.
        """
        if bool(((right < 0.0) | (right > 1.0)).any()):
            raise ValueError("right must be in [0, 1]: it is the chance that halting is right")
        return F.binary_cross_entropy_with_logits(halt_logits, right, reduction="none")

    def onward_loss(
        self, onward_logits: Tensor, next_q: Tensor, next_segments: Tensor | int, price: float
    ) -> Tensor:
        """Return the cross-entropy of Q_continue against what the next segment showed: [B].

        onward_logits: [B], said one segment before; next_q: [B, 2] Q logits of the segment after,
        taken as given; next_segments: its number, from 1; price: what that segment cost, in chances
        of being right. At m_max that segment can only halt, so going on is worth what halting there
        is.
        """
        following = next_q.detach()
        last = torch.as_tensor(next_segments, device=next_q.device) >= self.m_max
        value = torch.where(last, following[:, 0], following.amax(dim=1))
        target = (torch.sigmoid(value) - price).clamp_min(0.0)
        return F.binary_cross_entropy_with_logits(onward_logits, target, reduction="none")

    def think(
        self, model: HierarchicalReasoningModel, inputs: ModelInputs, complexity: Tensor
    ) -> Conclusion:
        """Think about a batch without a deadline, each row to its own halt.

        complexity: [B] in [0, 1]. Rows that halt leave the batch, so the rest costs no more than it
        would alone. Put the model in eval mode first.
        """
        floors = torch.tensor([self.min_segments(value) for value in complexity.tolist()])
        with torch.inference_mode():
            encoded = model.encode(inputs)
            start = model.initial_state(len(inputs), encoded.device)
            state = HRMState.start(start, complexity.to(encoded.device), self.m_max)
            rows = torch.arange(len(inputs), device=encoded.device)
            floors = floors.to(encoded.device)
            halted: list[Heads] = []
            order: list[Tensor] = []
            depths: list[Tensor] = []
            while len(rows):
                states = model.segment(state.states, encoded)
                state = state.after_segment(states, model.config.convergence.n_cycles)
                heads = model.heads(state.states)
                stop = self.should_halt(heads.q, state.segment_count, floors)
                halted.append(_heads_at(heads, stop))
                order.append(rows[stop])
                depths.append(state.segment_count[stop])
                go = ~stop
                state, rows, encoded, floors = state.rows(go), rows[go], encoded[go], floors[go]
            back = torch.argsort(torch.cat(order))
            return Conclusion(_heads_at(_joined(halted), back), torch.cat(depths)[back])


def _heads_at(heads: Heads, index: Tensor) -> Heads:
    return Heads(**{name: value[index] for name, value in vars(heads).items()})


def _joined(parts: list[Heads]) -> Heads:
    return Heads(**{name: torch.cat([vars(p)[name] for p in parts]) for name in vars(parts[0])})
