"""Convergence: whether the loop contracts, by what it makes of its own steps and of small changes.

Serving follows one decision with hrm.residuals instead, without tensors.
"""

import torch
from torch import Tensor

from hrm.model import ReasoningCore, State
from hrm.residuals import SMALLEST


def relative_residual(before: Tensor, after: Tensor) -> Tensor:
    """Return |after - before| / |after| per row: [B, S, D] twice -> [B]."""
    size: Tensor = torch.linalg.vector_norm(after, dim=(1, 2))
    change: Tensor = torch.linalg.vector_norm(after - before, dim=(1, 2))
    return change / size.clamp_min(SMALLEST)


def perturbation_growth(
    core: ReasoningCore, encoded: Tensor, *, segments: int, seed: int, scale: float = 1e-3
) -> float:
    """Return the mean factor per segment by which a small change of the start grows.

    encoded: [B, S, Dh]. Below 1 the recursion forgets rounding errors, so that low-precision
    weights keep their decisions over many segments. scale: size of the change relative to the
    state, kept by scaling it back after every cycle: large enough to stay clear of float32
    rounding, small enough never to be as large as the states themselves.
    """
    generator = torch.Generator().manual_seed(seed)
    was_training = core.training
    core.eval()
    try:
        with torch.no_grad():
            state = core.initial_state(encoded.shape[0], encoded.device)
            _, growth = follow_perturbation(
                core,
                state,
                encoded,
                cycles=core.n_cycles * segments,
                scale=scale,
                generator=generator,
            )
    finally:
        core.train(was_training)
    return float(torch.exp(growth.mean() / segments))


def follow_perturbation(
    core: ReasoningCore,
    state: State,
    encoded: Tensor,
    *,
    cycles: int,
    scale: float = 1e-3,
    generator: torch.Generator | None = None,
) -> tuple[State, Tensor]:
    """Return the state after the cycles, and the logarithm [B] of how much a small change grew.

    A random change of relative size `scale` is followed beside the state and scaled back after
    every cycle, so that it turns to where it grows most. Of both results only the last cycle is on
    a graph, so memory does not grow with the cycles. Without dropout, whatever mode core is in.
    """
    if cycles < 1:
        raise ValueError(f"a perturbation is followed for at least one cycle, was {cycles}")
    rows = len(encoded)
    both = torch.cat((encoded, encoded))  # the state and the changed state, side by side
    with torch.no_grad():
        moved = [
            z + scale * torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z.device)
            for z in state
        ]
        size = _distance(state, (moved[0], moved[1]))  # [B], held constant
        grown = torch.zeros_like(size)
        pair: State = (torch.cat((state[0], moved[0])), torch.cat((state[1], moved[1])))
        for _ in range(cycles - 1):
            pair = core.cycle(pair, both)
            one, other = _halves(pair, rows)
            distance = _distance(one, other)
            grown = grown + torch.log(distance / size)
            ratio = (size / distance)[:, None, None]
            back = [a + ratio * (b - a) for a, b in zip(one, other, strict=True)]
            pair = (torch.cat((one[0], back[0])), torch.cat((one[1], back[1])))
    pair = core.cycle(pair, both)
    one, other = _halves(pair, rows)
    return one, grown + torch.log(_distance(one, other) / size)


def _halves(pair: State, rows: int) -> tuple[State, State]:
    return (pair[0][:rows], pair[1][:rows]), (pair[0][rows:], pair[1][rows:])


def _distance(one: State, other: State) -> Tensor:
    squares = sum(((a - b) ** 2).flatten(1).sum(dim=1) for a, b in zip(one, other, strict=True))
    # Floored before the root, whose slope at nothing is infinite.
    return torch.sqrt(torch.as_tensor(squares).clamp_min(SMALLEST**2))
