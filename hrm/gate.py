"""The gate: whether an engine with coarser weights decides as the fine one does, on real inputs.

Each row thinks until it halts by itself and is read there. Nothing here imports torch.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.config import Action, HRMConfig
from hrm.engine import Batch, Engine
from hrm.features import ACCOUNT_NAMES, CONTEXT_NAMES, valid_actions
from hrm.halting import min_segments

COMPLEXITY = CONTEXT_NAMES.index("complexity")
POSITION = ACCOUNT_NAMES.index("position")
# Shares of decisions, and a difference of probabilities.
MIN_ACTION_AGREEMENT, MAX_SHIFT, MIN_DEPTH_AGREEMENT = 0.99, 0.02, 0.97
ROWS_AT_ONCE = 32  # bounds the memory of a long comparison; a row has the same bits in any batch


@dataclass(frozen=True)
class Decided:
    """Hold what B rows say where each halts: depth [B], segments from 1; chances [B, 5].

    An action that means nothing in the position of its row has no chance: it is never taken.
    """

    depth: NDArray[np.int64]
    chances: NDArray[np.float64]


@dataclass(frozen=True)
class GateFigures:
    """Hold how far two engines agree, as shares of the decisions compared."""

    decisions: int
    action_agreement: float
    max_probability_shift: float
    halting_depth_agreement: float

    @property
    def refusal(self) -> str:
        """Say what keeps the coarser engine from serving; "" where it is admitted."""
        missed = []
        if not self.action_agreement >= MIN_ACTION_AGREEMENT:
            missed.append(
                f"{self.action_agreement:.2%} of the actions agree, {MIN_ACTION_AGREEMENT:.0%} must"
            )
        if not self.max_probability_shift <= MAX_SHIFT:
            missed.append(
                f"a probability moves by {self.max_probability_shift:.4f}, {MAX_SHIFT:g} is allowed"
            )
        if not self.halting_depth_agreement >= MIN_DEPTH_AGREEMENT:
            missed.append(
                f"{self.halting_depth_agreement:.2%} halt at the same depth, "
                f"{MIN_DEPTH_AGREEMENT:.0%} must"
            )
        return "; ".join(missed)

    def as_json(self) -> dict[str, Any]:
        """Return the figures and the verdict, as they are printed and cached."""
        return asdict(self) | {"admitted": not self.refusal}


def decided(engine: Engine[Any, Any], batch: Batch, config: HRMConfig) -> Decided:
    """Let every row think until it halts by itself, or to full depth."""
    parts = [
        _some_decided(engine, batch.part(slice(start, start + ROWS_AT_ONCE)), config)
        for start in range(0, len(batch), ROWS_AT_ONCE)
    ]
    return Decided(
        np.concatenate([part.depth for part in parts]),
        np.concatenate([part.chances for part in parts]),
    )


def compared(fine: Decided, coarse: Decided) -> GateFigures:
    """Compare what two engines say of the same batch."""
    one, other = fine.chances, coarse.chances
    return GateFigures(
        decisions=len(one),
        action_agreement=float((one.argmax(-1) == other.argmax(-1)).mean()),
        max_probability_shift=float(np.abs(one - other).max()),
        halting_depth_agreement=float((fine.depth == coarse.depth).mean()),
    )


def allowed_in(batch: Batch) -> NDArray[np.bool_]:
    """Tell which actions mean something in the position that each row reads, [B, 5]."""
    signs = np.sign(batch.account[:, POSITION]).astype(int).tolist()
    return np.stack([valid_actions(sign) for sign in signs])


def chances_of(logits: NDArray[np.float32], allowed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the probabilities of the allowed actions, in double precision, [B, 5] each."""
    doubles = np.where(allowed, logits.astype(np.float64), -np.inf)
    shares = np.exp(doubles - doubles.max(-1, keepdims=True))
    return np.asarray(shares / shares.sum(-1, keepdims=True), np.float64)


def _some_decided(engine: Engine[Any, Any], batch: Batch, config: HRMConfig) -> Decided:
    most = config.adaptive_computation.m_max
    complexities: list[float] = batch.context[:, COMPLEXITY].tolist()
    floors = np.array([min_segments(value, most) for value in complexities])
    depth = np.zeros(len(batch), np.int64)
    chances = np.zeros((len(batch), len(Action)))
    thinking = np.arange(len(batch))
    allowed = allowed_in(batch)
    encoded = engine.encode(batch)
    state = engine.start(encoded)
    for segment in range(1, most + 1):
        for _ in range(config.convergence.n_cycles):
            state = engine.cycle(state, encoded)
        reading = engine.read(state)
        halts = (reading.q[:, 0] > reading.q[:, 1]) & (segment >= floors[thinking])
        halts |= segment == most
        done = thinking[halts]
        depth[done] = segment
        chances[done] = chances_of(reading.action_logits[halts], allowed[done])
        thinking = thinking[~halts]
        if not len(thinking):
            break
        state, encoded = engine.rows(state, encoded, np.flatnonzero(~halts).tolist())
    return Decided(depth, chances)
