"""The two rivals: a small HRM over tokens, and a one-shot transformer with as many parameters.

Both read the same tokens through the same embedding and answer through the same kind of head. One
thinks in segments with the product's own core; the other passes once through distinct layers.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from benchmarks.reasoning_tasks import Task
from hrm.config import ArchitectureConfig, ConvergenceConfig, HighLevelConfig, LowLevelConfig
from hrm.layers import QHead, Stack, initialise, truncated_normal_
from hrm.model import Gradient, ReasoningCore, State


@dataclass(frozen=True)
class HRMSize:
    """Size the HRM; the same width serves H and L unless low_width says otherwise."""

    width: int = 64
    layers: int = 2
    feed_forward: int = 128
    heads: int = 4
    low_width: int = 64
    low_layers: int = 2
    low_feed_forward: int = 128
    n_cycles: int = 2
    t_timesteps: int = 2
    registers: int = 4
    gradient: Gradient = "last_cycle"


class TokenEmbedding(nn.Module):
    """Embed a puzzle's tokens behind some register tokens, which hold no cell of the puzzle."""

    def __init__(self, task: Task, width: int, registers: int) -> None:
        super().__init__()
        self.registers = nn.Embedding(registers, width)
        self.token = nn.Embedding(task.vocabulary, width)
        self.row: nn.Embedding | None = None
        self.column: nn.Embedding | None = None
        if task.grid is not None:
            self.row = nn.Embedding(task.grid[0], width)
            self.column = nn.Embedding(task.grid[1], width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed [B, S] into [B, registers + S, D], of about unit variance."""
        cells = self.token(tokens)
        if self.row is not None and self.column is not None:
            places = (self.row.weight[:, None] + self.column.weight[None]).flatten(0, 1)
            cells = (cells + places) / math.sqrt(3.0)
        registers = self.registers.weight.expand(len(tokens), -1, -1)
        return torch.cat((registers, cells), dim=1)


class TokenHRM(nn.Module):
    """Loop the product's reasoning core over a puzzle, all cells at once."""

    def __init__(self, task: Task, size: HRMSize) -> None:
        super().__init__()
        self.size = size
        architecture = ArchitectureConfig(
            h_module=HighLevelConfig(
                hidden_size=size.width,
                num_layers=size.layers,
                feed_forward=size.feed_forward,
                num_heads=size.heads,
                dropout=0.0,
            ),
            l_module=LowLevelConfig(
                hidden_size=size.low_width,
                num_layers=size.low_layers,
                feed_forward=size.low_feed_forward,
                num_heads=size.heads,
                dropout=0.0,
            ),
            tokens_in_loop=size.registers + task.length,
        )
        convergence = ConvergenceConfig(n_cycles=size.n_cycles, t_timesteps=size.t_timesteps)
        self.embedding = TokenEmbedding(task, size.width, size.registers)
        self.core = ReasoningCore(architecture, convergence, size.gradient)
        self.answer_head = nn.Linear(size.width, task.classes, bias=False)
        self.q_head = QHead(size.width)
        initialise(self)
        truncated_normal_(self.core.z_h_start, 1.0)
        truncated_normal_(self.core.z_l_start, 1.0)

    def segment(self, state: State, tokens: Tensor) -> State:
        """Think one segment about tokens [B, S]; the given state is detached."""
        return self.core.segment(state, self.embedding(tokens))

    def answers(self, state: State) -> Tensor:
        """Read the logits of every cell: [B, S, classes]."""
        return cast("Tensor", self.answer_head(state[0][:, self.size.registers :]))

    def q(self, state: State) -> Tensor:
        """Read the Q logits (halt, continue) from the first register: [B, 2]."""
        return cast("Tensor", self.q_head(state[0][:, 0]))


class OneShotTransformer(nn.Module):
    """Answer in one pass: the same blocks as the HRM's, each used once."""

    def __init__(
        self, task: Task, width: int, layers: int, feed_forward: int, heads: int, registers: int
    ) -> None:
        super().__init__()
        self.registers = registers
        self.embedding = TokenEmbedding(task, width, registers)
        self.stack = Stack(width, layers, feed_forward, heads, registers + task.length, 0.0)
        self.answer_head = nn.Linear(width, task.classes, bias=False)
        initialise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [B, S] to logits [B, S, classes]."""
        seen = self.stack(self.embedding(tokens))
        return cast("Tensor", self.answer_head(seen[:, self.registers :]))


def parameter_count(model: nn.Module) -> int:
    """Count trained numbers."""
    return sum(parameter.numel() for parameter in model.parameters())


def one_shot_of_equal_size(
    task: Task, parameters: int, layers: int, heads: int, registers: int
) -> OneShotTransformer:
    """Build a transformer of `layers` layers with as many parameters as asked, within 1 %.

    The width is the one at which the feed-forward comes nearest to twice the width; the
    feed-forward then takes up what is left.
    """
    step = 2 * heads
    best: tuple[float, int, int] | None = None
    for width in range(step, 1024, step):
        places = 0 if task.grid is None else sum(task.grid)
        fixed = width * (registers + task.vocabulary + places + task.classes)
        left = parameters - fixed - layers * 4 * width * width
        feed_forward = round(left / (3 * width * layers))
        if feed_forward < width // 2:
            break
        distance = abs(math.log(feed_forward / (2 * width)))
        if best is None or distance < best[0]:
            best = (distance, width, feed_forward)
    if best is None:
        raise ValueError(
            f"no transformer of {layers} layers has {parameters} parameters: use fewer layers"
        )
    _, width, feed_forward = best
    model = OneShotTransformer(task, width, layers, feed_forward, heads, registers)
    error = abs(parameter_count(model) - parameters) / parameters
    if error > 0.01:
        raise ValueError(
            f"{layers} layers of width {width} miss {parameters} parameters by {error:.1%}: use "
            "fewer layers"
        )
    return model
