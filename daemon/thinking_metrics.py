"""How the model thought, over decisions: depth, thrift, convergence. For results and dashboards."""

import statistics
from collections import deque
from pathlib import Path
from typing import Final

import msgspec

from actors.messages import Decision
from daemon.plan import SessionPlan
from daemon.settings import Settings
from hrm.config import HRMConfig
from hrm.manifest import IntegrityError, read_manifest

_OWN_END: Final = ("halted", "converged")


class HRMMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """How the model thought, over the decisions that it did think about; 0 without any."""

    avg_reasoning_depth: float  # whole segments
    computation_efficiency: float  # share of the greatest number of cycles that was not needed
    hierarchical_convergence: float  # share of thoughts that halted or converged by themselves


class Thoughts:
    """Note decisions, and sum up the last of them; `keep` None: all."""

    def __init__(self, most_cycles: int, keep: int | None = None) -> None:
        """`most_cycles`: those of a thought of full depth; above 0 once a thought is noted."""
        self._most_cycles = most_cycles
        self._thoughts: deque[tuple[int, int, bool]] = deque(maxlen=keep)

    def note(self, decision: Decision) -> None:
        """Take a decision; one that no model thought about does not count."""
        if decision.cycles:
            has_ended = decision.stop_reason in _OWN_END
            self._thoughts.append((decision.reasoning_depth, decision.cycles, has_ended))

    def saved(self, decision: Decision) -> float:
        """Return the share of the greatest number of cycles that a thought did not need."""
        return 1.0 - decision.cycles / self._most_cycles

    def metrics(self) -> HRMMetrics:
        """Sum up what is noted."""
        if not self._thoughts:
            return HRMMetrics(
                avg_reasoning_depth=0.0, computation_efficiency=0.0, hierarchical_convergence=0.0
            )
        depths, cycles, ends = zip(*self._thoughts, strict=True)
        return HRMMetrics(
            avg_reasoning_depth=statistics.fmean(depths),
            computation_efficiency=1.0 - statistics.fmean(cycles) / self._most_cycles,
            hierarchical_convergence=sum(ends) / len(ends),
        )


def most_cycles_of(model: HRMConfig) -> int:
    """Return how many cycles a thought of full depth has."""
    return model.convergence.n_cycles * model.adaptive_computation.m_max


def most_cycles_in(plan: SessionPlan) -> int:
    """Return the same for the model of a session; 0 without one, or where it is gone."""
    try:
        models = read_manifest(Path(plan.models_dir)).models.values()
    except IntegrityError:
        return 0
    allowed = Settings.model_validate(plan.settings).hierarchical_reasoning_model
    for entry in models:
        if entry.sha256 == plan.model_digest:
            segments = entry.config.adaptive_computation.m_max
            allowed_segments = allowed.adaptive_computation.m_max
            return entry.config.convergence.n_cycles * min(segments, allowed_segments)
    return 0
