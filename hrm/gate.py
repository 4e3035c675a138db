"""The gate: whether an engine with coarser weights decides as the fine one does, on real inputs.

Both think to full depth, and each row is read where it halts by itself. Nothing here imports torch.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.config import HRMConfig
from hrm.engine import Batch, Engine
from hrm.features import CONTEXT_NAMES
from hrm.halting import min_segments

COMPLEXITY = CONTEXT_NAMES.index("complexity")
# Shares of decisions, and a difference of probabilities.
MIN_ACTION_AGREEMENT, MAX_SHIFT, MIN_DEPTH_AGREEMENT = 0.99, 0.02, 0.97
ROWS_AT_ONCE = 32  # bounds the memory of a long comparison; a row has the same bits in any batch


@dataclass(frozen=True)
class Course:
    """Hold what B rows say after every segment: chances [M, B, 5], q logits [M, B, 2]."""

    chances: NDArray[np.float64]
    q: NDArray[np.float32]

    def depths(self, floors: list[int]) -> NDArray[np.int64]:
        """Return the segment, from 1, after which each row halts."""
        number = np.arange(1, len(self.q) + 1)[:, None]
        halts = (self.q[..., 0] > self.q[..., 1]) & (number >= np.array(floors))
        halts[-1] = True
        return np.asarray(halts.argmax(0) + 1, np.int64)


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


def course_of(engine: Engine[Any, Any], batch: Batch, config: HRMConfig) -> Course:
    """Let every row think to full depth."""
    parts = [
        _course_of_some(engine, batch.part(slice(start, start + ROWS_AT_ONCE)), config)
        for start in range(0, len(batch), ROWS_AT_ONCE)
    ]
    return Course(
        np.concatenate([part.chances for part in parts], 1),
        np.concatenate([part.q for part in parts], 1),
    )


def compared(fine: Course, coarse: Course, batch: Batch) -> GateFigures:
    """Compare what two engines say of the same batch."""
    rows = np.arange(len(batch))
    complexities: list[float] = batch.context[:, COMPLEXITY].tolist()
    floors = [min_segments(value, len(fine.chances)) for value in complexities]
    depth, coarse_depth = fine.depths(floors), coarse.depths(floors)
    one, other = fine.chances[depth - 1, rows], coarse.chances[coarse_depth - 1, rows]
    return GateFigures(
        decisions=len(batch),
        action_agreement=float((one.argmax(-1) == other.argmax(-1)).mean()),
        max_probability_shift=float(np.abs(one - other).max()),
        halting_depth_agreement=float((depth == coarse_depth).mean()),
    )


def _course_of_some(engine: Engine[Any, Any], batch: Batch, config: HRMConfig) -> Course:
    encoded = engine.encode(batch)
    state = engine.start(encoded)
    chances, q = [], []
    for _ in range(config.adaptive_computation.m_max):
        for _ in range(config.convergence.n_cycles):
            state = engine.cycle(state, encoded)
        reading = engine.read(state)
        logits = reading.action_logits.astype(np.float64)
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        chances.append(shares / shares.sum(-1, keepdims=True))
        q.append(reading.q)
    return Course(np.stack(chances), np.stack(q))
