"""What goes into a decision and what comes out: plain data, without torch."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

StopReason = Literal["halted", "converged", "max_segments", "deadline", "recorded"]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Observation:
    """Hold what one decision is taken on.

    bars [T, F] float32, oldest first, zeros where absent; mask [T] bool, True = present; account
    [6] float32; context [C] float32; complexity in [0, 1]; allowed_actions in the order of
    hrm.config.Action.
    """

    bars: Floats
    mask: NDArray[np.bool_]
    instrument: str
    timeframe: str
    account: Floats
    context: Floats
    complexity: float
    allowed_actions: tuple[bool, bool, bool, bool, bool]


@dataclass(frozen=True)
class DeadlineBudget:
    """Think until done, or until so many milliseconds from the call of `reason` are used."""

    milliseconds: float


@dataclass(frozen=True)
class RecordedBudget:
    """Think for exactly so many cycles, as a recorded thought did."""

    cycles: int


@dataclass(frozen=True)
class Thought:
    """Hold a decision and how it came about.

    size_fraction: of what the risk layer allows, in (0, 1). probabilities: of the five actions, 0
    where disallowed; confidence: that of the chosen one. h_confidence, l_confidence: what each
    module by itself gives the chosen action among all five, disallowed ones included. segments:
    whole ones; cycles: all of them. residual: relative change of H in the last cycle. q_halt,
    q_continue: estimated chances that stopping here, or going on, is right.
    """

    action: int
    size_fraction: float
    confidence: float
    h_confidence: float
    l_confidence: float
    value: float
    probabilities: tuple[float, ...]
    segments: int
    cycles: int
    stop_reason: StopReason
    residual: float
    q_halt: float
    q_continue: float
    elapsed_us: int
