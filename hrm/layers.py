"""The parts that every module is made of: norm, rotary positions, attention, SwiGLU, block.

Post-norm blocks without learned scales and without biases, after arXiv 2506.21734. Everything is
initialised by the one function at the end.
"""

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor, nn

from hrm.rotary import RMS_EPSILON, ROTARY_BASE

# A unit normal cut at two standard deviations has this standard deviation; dividing by it makes the
# cut distribution keep the one asked for.
TRUNCATED_STD = 0.87962566103423978
DEEP_START = -5.0  # both Q logits of an untrained model: it thinks to the maximum


def rms_norm(x: Tensor) -> Tensor:
    """Scale the last axis to unit root mean square; no learned scale."""
    return F.rms_norm(x, (x.shape[-1],), eps=RMS_EPSILON)


class RotaryPositions(nn.Module):
    """Hold the cosines and sines that turn queries and keys by their position."""

    cos: Tensor
    sin: Tensor

    def __init__(self, length: int, head_width: int) -> None:
        super().__init__()
        frequency = ROTARY_BASE ** (
            -torch.arange(0, head_width, 2, dtype=torch.float64) / head_width
        )
        angle = torch.outer(torch.arange(length, dtype=torch.float64), frequency)
        angle = torch.cat((angle, angle), dim=-1).float()  # [S, head width]
        # Not persistent: they follow from the configuration and would bloat every checkpoint.
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Turn x: [..., S, head width]."""
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        return x * self.cos.to(x.dtype) + turned * self.sin.to(x.dtype)


class Attention(nn.Module):
    """Mix tokens: every token reads every present token, in no causal order."""

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.rotary = RotaryPositions(length, width // heads)

    def forward(self, x: Tensor, present: Tensor | None = None) -> Tensor:
        """Attend over x: [B, S, D]; present: [B, S] bool, False where a token may not be read."""
        batch, tokens, width = x.shape
        joined = self.query_key_value(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = joined.permute(2, 0, 3, 1, 4)  # each [B, heads, S, head width]
        mask = None if present is None else present[:, None, None, :]  # [B, 1, 1, S]
        mixed = F.scaled_dot_product_attention(
            self.rotary(query), self.rotary(key), value, attn_mask=mask
        )
        mixed = mixed.transpose(1, 2).reshape(batch, tokens, width)
        return cast("Tensor", self.out(mixed))


class SwiGLU(nn.Module):
    """Transform each token by itself through a gated layer of the given inner width."""

    def __init__(self, width: int, feed_forward: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * feed_forward, bias=False)
        self.down = nn.Linear(feed_forward, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return cast("Tensor", self.down(F.silu(gate) * up))


class Block(nn.Module):
    """Add what attention and SwiGLU say to each token, normalising after each.

    A sequence of one token gets no attention: over one token it is only a linear map.
    """

    def __init__(self, width: int, feed_forward: int, heads: int, length: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads, length) if length > 1 else None
        self.feed_forward = SwiGLU(width, feed_forward)

    def forward(
        self, x: Tensor, drop: Tensor | None = None, present: Tensor | None = None
    ) -> Tensor:
        """Transform x: [B, S, D]; drop: [B, 1, D] multiplies what the branches add."""
        if self.attention is not None:
            x = rms_norm(x + _dropped(self.attention(x, present), drop))
        return rms_norm(x + _dropped(self.feed_forward(x), drop))


class Stack(nn.Module):
    """Apply several blocks, one after another."""

    def __init__(
        self, width: int, layers: int, feed_forward: int, heads: int, length: int, dropout: float
    ) -> None:
        super().__init__()
        self.width = width
        self.dropout = dropout
        self.blocks = nn.ModuleList(
            Block(width, feed_forward, heads, length) for _ in range(layers)
        )

    def forward(
        self, x: Tensor, drops: Tensor | None = None, present: Tensor | None = None
    ) -> Tensor:
        """Transform x: [B, S, D] with drops from `draw_drops`, or without dropout."""
        for index, block in enumerate(self.blocks):
            x = block(x, None if drops is None else drops[index], present)
        return x

    def branches(self) -> Iterator[Tensor]:
        """Yield the last matrix of everything that the blocks add to their input."""
        for module in self.modules():
            if isinstance(module, Attention):
                yield module.out.weight
            elif isinstance(module, SwiGLU):
                yield module.down.weight

    def draw_drops(self, like: Tensor) -> Tensor | None:
        """Draw the dropout masks of one pass or one segment: [layers, B, 1, D], or None.

        None outside training. The caller reuses one draw for every update of a segment: fresh noise
        at each update would move the fixed point that the recursion looks for.
        """
        if not self.training or self.dropout == 0.0:
            return None
        shape = (len(self.blocks), like.shape[0], 1, self.width)
        keep = 1.0 - self.dropout
        return torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(keep).div_(keep)


class QHead(nn.Linear):
    """Read the two Q logits, halt and continue; the only layer with a bias."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 2)


def _dropped(x: Tensor, drop: Tensor | None) -> Tensor:
    return x if drop is None else x * drop


def truncated_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill with a normal cut at two standard deviations, whose own deviation is std."""
    with torch.no_grad():
        scale = std / TRUNCATED_STD
        return nn.init.trunc_normal_(tensor, std=scale, a=-2.0 * scale, b=2.0 * scale)


def initialise(root: nn.Module) -> None:
    """Initialise every parameter below root.

    Matrices: LeCun, 1 / sqrt(inputs). Embedding rows and learned tokens: unit deviation, so that
    the projections behind them give unit variance. Q head: silent, and biased against halting.
    """
    for module in root.modules():
        if isinstance(module, QHead):
            nn.init.zeros_(module.weight)
            nn.init.constant_(module.bias, DEEP_START)
        elif isinstance(module, nn.Linear):
            truncated_normal_(module.weight, module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            truncated_normal_(module.weight, 1.0)
