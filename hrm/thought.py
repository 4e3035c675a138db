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
    """Think until done, or until so many milliseconds are used.

    They count from `since_ns` on the thinker's clock; where that is None, from the call. A thought
    that begins early leaves the last `reserve_ms` to others yet to come; one that begins late gets
    as many, as far as they are left.
    """

    milliseconds: float
    since_ns: int | None = None
    reserve_ms: float = 0.0


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
    q_continue: estimated chances that stopping here, or going on, is right. elapsed_us: from the
    call until all that were thought about together were answered; waited_us: from the beginning of
    the deadline until the call; batch_size: how many began together.
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
    waited_us: int = 0
    batch_size: int = 1


@dataclass(frozen=True)
class NoThought:
    """Say why an observation has no answer: it is wrong, the model's is, or there was no time."""

    reason: str
    is_late: bool = False
    waited_us: int = 0


Budget = DeadlineBudget | RecordedBudget
Question = tuple[Observation, Budget]
Answer = Thought | NoThought
