"""Rows: one observation each on its way through a batch, from its question to its answer."""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hrm.engine import Batch, Reading
from hrm.halting import should_halt
from hrm.residuals import HierarchicalConvergence
from hrm.thought import (
    Answer,
    Budget,
    DeadlineBudget,
    NoThought,
    RecordedBudget,
    StopReason,
    Thought,
)

NS_PER_MS, NS_PER_US = 1_000_000, 1_000


@dataclass
class Row:
    """Follow one observation. Times are the thinker's clock; `until_ns` is when thinking is to end.

    deadline_ns, until_ns: infinite for a recorded depth; until_ns is earlier than the deadline for
    the sake of others. problem: why there can be no answer. said: this row of the last reading.
    """

    place: int
    allowed: tuple[bool, ...]
    inputs: Batch
    budget: Budget
    floor: int  # segments
    convergence: HierarchicalConvergence
    waited_ns: int = 0
    deadline_ns: float = math.inf
    until_ns: float = math.inf
    batch_size: int = 1
    cycles: int = 0
    stop_reason: StopReason | None = None
    problem: str | None = None
    said: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def count_time(self, started_ns: int) -> None:
        """Work out when a thought that begins now has to end."""
        if isinstance(self.budget, RecordedBudget):
            return
        since_ns = self.budget.since_ns
        since_ns = started_ns if since_ns is None else min(since_ns, started_ns)
        reserve_ns = self.budget.reserve_ms * NS_PER_MS
        self.waited_ns = started_ns - since_ns
        self.deadline_ns = since_ns + self.budget.milliseconds * NS_PER_MS
        self.until_ns = min(
            self.deadline_ns, max(self.deadline_ns - reserve_ns, started_ns + reserve_ns)
        )

    @property
    def is_done(self) -> bool:
        """Tell whether this row leaves the batch."""
        return self.stop_reason is not None or self.problem is not None

    def moved(self, h_residual: float, l_residual: float) -> None:
        """Take note of one more cycle."""
        self.cycles += 1
        try:
            self.convergence.observe(h_residual, l_residual)
        except ValueError as error:
            self.problem = str(error)

    def look(self, reading: Reading, number: int) -> None:
        """Keep row `number` of a reading."""
        self.said = {name: numbers[number] for name, numbers in vars(reading).items()}

    def check(self) -> None:
        """Note why what the model said cannot be believed, if it cannot."""
        for name, numbers in self.said.items():
            if not np.isfinite(numbers).all():
                self.problem = (
                    f"the model's {name} is {numbers.tolist()}: it must be finite, hold this bar "
                    "and check the released weights"
                )

    def wants_to_halt(self, segments: int, m_max: int) -> bool:
        """Tell whether the Q logits of the last look end thinking after so many segments."""
        q_halt, q_continue = self.said["q"].tolist()
        return should_halt(q_halt, q_continue, segments, self.floor, m_max)

    def answer(self, n_cycles: int) -> Answer:
        """Return what this row says in the end; how long it took is for others to fill in."""
        if self.problem is not None or self.stop_reason is None:
            return NoThought(self.problem or "thinking did not end")
        said = self.said
        masked = softmax(said["action_logits"], self.allowed)
        # Of equally likely actions the last one: hold before close before open.
        action = max(range(len(masked)), key=lambda index: (masked[index], index))
        return Thought(
            action=action,
            size_fraction=float(said["size"]),
            confidence=masked[action],
            h_confidence=softmax(said["action_logits"])[action],
            l_confidence=softmax(said["l_logits"])[action],
            value=float(said["value"]),
            probabilities=masked,
            segments=self.cycles // n_cycles,
            cycles=self.cycles,
            stop_reason=self.stop_reason,
            residual=self.convergence.residual("h"),
            q_halt=sigmoid(said["q"][0]),
            q_continue=sigmoid(said["q"][1]),
            elapsed_us=0,
            waited_us=self.waited_ns // NS_PER_US,
            batch_size=self.batch_size,
        )


def check_budget(budget: Budget, max_cycles: int) -> None:
    """Raise ValueError for a budget that no thought can keep."""
    match budget:
        case DeadlineBudget(milliseconds=milliseconds):
            if not 0.0 < milliseconds < math.inf:
                raise ValueError(
                    f"a deadline must be a positive number of milliseconds, was {milliseconds}"
                )
        case RecordedBudget(cycles=cycles):
            if not 1 <= cycles <= max_cycles:
                raise ValueError(
                    f"recorded cycles must be in 1..{max_cycles} for this model, was {cycles}: "
                    "replay with the model that made the recording"
                )


def softmax(
    logits: NDArray[np.float32], allowed: tuple[bool, ...] | None = None
) -> tuple[float, ...]:
    """Return probabilities in double precision, 0 where an action is not allowed."""
    mask = np.ones(len(logits), dtype=np.bool_) if allowed is None else np.array(allowed)
    doubles = logits.astype(np.float64)
    weights = np.exp(np.where(mask, doubles - doubles[mask].max(), -np.inf))
    return tuple((weights / weights.sum()).tolist())


def sigmoid(logit: np.float32) -> float:
    """Return the logistic function of a logit."""
    # tanh saturates where exp would overflow.
    return 0.5 + 0.5 * math.tanh(0.5 * float(logit))
