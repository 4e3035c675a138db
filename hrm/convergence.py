"""Convergence: how much each cycle still moves the states, and whether that is shrinking.

A small residual says that more thinking changes nothing. It never says that the answer is right.
"""

import math
from collections import deque
from typing import Literal

import torch
from torch import Tensor

from hrm.model import ReasoningCore, State

Module = Literal["h", "l"]
Trend = Literal["converging", "stalled", "diverging"]

WINDOW_CYCLES = 8
STALL_BAND = (
    0.02  # a residual that changes by less than 2 % a cycle is neither shrinking nor growing
)
SMALLEST = 1e-12  # keeps the logarithm of an exact fixed point finite


def relative_residual(before: Tensor, after: Tensor) -> Tensor:
    """Return |after - before| / |after| per row: [B, S, D] twice -> [B]."""
    size: Tensor = torch.linalg.vector_norm(after, dim=(1, 2))
    change: Tensor = torch.linalg.vector_norm(after - before, dim=(1, 2))
    return change / size.clamp_min(SMALLEST)


class HierarchicalConvergence:
    """Follow the relative residuals of H and L, cycle by cycle, within one decision."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._recent: dict[Module, deque[float]] = {
            "h": deque(maxlen=WINDOW_CYCLES),
            "l": deque(maxlen=WINDOW_CYCLES),
        }

    def observe(self, h_residual: float, l_residual: float) -> None:
        """Take note of one more cycle."""
        for module, residual in (("h", h_residual), ("l", l_residual)):
            if not residual >= 0.0:
                raise ValueError(
                    f"the {module} residual must be a number from 0 up, was {residual}"
                )
        self._recent["h"].append(h_residual)
        self._recent["l"].append(l_residual)

    def residual(self, module: Module) -> float:
        """Return the newest residual; infinity before the first cycle."""
        return self._recent[module][-1] if self._recent[module] else math.inf

    def rate(self, module: Module) -> float:
        """Return the factor by which the residual changes per cycle, fitted over the last eight.

        1.0 while there are fewer than two to compare.
        """
        logs = [math.log(max(residual, SMALLEST)) for residual in self._recent[module]]
        if len(logs) < 2:
            return 1.0
        middle, mean = (len(logs) - 1) / 2, sum(logs) / len(logs)
        covariance = sum((i - middle) * (log - mean) for i, log in enumerate(logs))
        variance = sum((i - middle) ** 2 for i in range(len(logs)))
        return math.exp(covariance / variance)

    def trend(self, module: Module) -> Trend:
        """Name where the module is going: converging also where it has arrived."""
        rate = self.rate(module)
        if rate < 1.0 - STALL_BAND or self.residual(module) <= self._threshold:
            return "converging"
        return "diverging" if rate > 1.0 + STALL_BAND else "stalled"

    def is_converged(self, threshold: float | None = None) -> bool:
        """Tell whether the newest residuals of both modules are at or below the threshold."""
        limit = self._threshold if threshold is None else threshold
        return self.residual("h") <= limit and self.residual("l") <= limit


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
