"""HRMAgent: one observation in, one thought out, before a deadline. Numpy in, plain Python out.

What to do with the thought, and with one that came late, is for the caller to say.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hrm.config import ACCOUNT_WIDTH, Action, HRMConfig
from hrm.engine import Batch, Engine, Reading
from hrm.engine_choice import EngineChoice, choose_engine
from hrm.features import FEATURE_SCHEMA_SHA256
from hrm.halting import min_segments, should_halt
from hrm.manifest import IntegrityError, Manifest
from hrm.residuals import HierarchicalConvergence
from hrm.thought import (
    DeadlineBudget,
    Observation,
    RecordedBudget,
    StopReason,
    Thought,
)
from hrm.weights import load_weights

NS_PER_MS, NS_PER_US = 1_000_000, 1_000
WARM_UP_DECISIONS, WARM_UP_CYCLES = 3, 16
SMOOTHING = 0.125  # share of the newest cost in the running mean, as TCP smooths round-trip times
DEVIATIONS = 2.0  # mean + 2 mean absolute deviations is about the 95th percentile of a normal


class CostEstimate:
    """Predict what the next step will take, from what the last ones took, on the safe side."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._deviation = 0.0
        self._is_new = True

    def observe(self, elapsed_ns: int) -> None:
        """Take note of one more step."""
        if self._is_new:
            self._mean, self._deviation, self._is_new = float(elapsed_ns), elapsed_ns / 2.0, False
            return
        error = elapsed_ns - self._mean
        self._mean += SMOOTHING * error
        self._deviation += SMOOTHING * (abs(error) - self._deviation)

    @property
    def likely_ns(self) -> float:
        """Return a cost that about 19 of 20 steps stay under; 0 before the first."""
        return self._mean + DEVIATIONS * self._deviation


class HRMAgent:
    """Think about one observation at a time with a verified model.

    Not for use from several threads at once. clock_ns: a monotonic clock. limits: what the operator
    set; of it count convergence_thresh, and m_max where it is below the model's own. What the
    weights were made for (sizes, cycles, steps) is the model's alone.
    """

    def __init__(
        self,
        engine: Engine[Any, Any],
        manifest: Manifest,
        clock_ns: Callable[[], int],
        limits: HRMConfig | None = None,
        choice: EngineChoice | None = None,
    ) -> None:
        entry = manifest.models[manifest.released]
        self.manifest = manifest
        self.config = _limited(entry.config, limits or entry.config)
        self.digest = entry.sha256
        self.choice = choice  # None where the caller brought an engine
        self._engine = engine
        self._vocabularies = entry.vocabularies
        self._clock_ns = clock_ns
        self._m_max = self.config.adaptive_computation.m_max
        self._cycle_cost = CostEstimate()
        self._finish_cost = CostEstimate()

    @classmethod
    def load(
        cls, models_dir: Path, clock_ns: Callable[[], int], limits: HRMConfig | None = None
    ) -> Self:
        """Load the released model; raise IntegrityError if any of it is not what it should be."""
        weights = load_weights(models_dir)
        trained_on = weights.entry.features.schema_sha256
        if trained_on != FEATURE_SCHEMA_SHA256:
            raise IntegrityError(
                f"{models_dir / weights.name} was trained on features {trained_on}, this version "
                f"makes {FEATURE_SCHEMA_SHA256}: install the version it belongs to, or train again"
            )
        wanted = (limits or weights.entry.config).performance.engine
        engine, choice = choose_engine(models_dir, weights, wanted)
        return cls(engine, weights.manifest, clock_ns, limits, choice)

    def warm_up(self) -> None:
        """Think a few times about nothing, so that first costs are paid and later ones known."""
        inputs = self.config.inputs
        nothing = Observation(
            bars=np.zeros((inputs.window_bars, inputs.n_features), dtype=np.float32),
            mask=np.ones(inputs.window_bars, dtype=np.bool_),
            instrument="",
            timeframe="",
            account=np.zeros(ACCOUNT_WIDTH, dtype=np.float32),
            context=np.zeros(inputs.n_context, dtype=np.float32),
            complexity=0.0,
            allowed_actions=(True, True, True, True, True),
        )
        for _ in range(WARM_UP_DECISIONS):
            self.reason(nothing, RecordedBudget(min(WARM_UP_CYCLES, self._max_cycles)))

    def reason(self, observation: Observation, budget: DeadlineBudget | RecordedBudget) -> Thought:
        """Think until halted, converged, at full depth or out of budget.

        Raise ValueError for input that is wrong or a model that answers with numbers that are not
        finite. One cycle always runs, also when it ends late: compare elapsed_us with the deadline.
        """
        started_ns = self._clock_ns()
        self._check_budget(budget)
        inputs = self._inputs(observation)
        floor = min_segments(observation.complexity, self._m_max)
        convergence = HierarchicalConvergence(self.config.convergence.convergence_thresh)
        encoded = self._engine.encode(inputs)
        state = self._engine.start(encoded)
        cycles = 0
        stop_reason: StopReason | None = None
        while stop_reason is None:
            state = self._cycle(state, encoded, convergence)
            cycles += 1
            if isinstance(budget, RecordedBudget):
                stop_reason = "recorded" if cycles == budget.cycles else None
            else:
                deadline_ns = started_ns + budget.milliseconds * NS_PER_MS
                stop_reason = self._stop(state, cycles, floor, convergence, deadline_ns)
        stopped_ns = self._clock_ns()
        reading = self._read(state)
        masked, h_alone, l_alone = (
            _softmax(reading.action_logits[0], observation.allowed_actions),
            _softmax(reading.action_logits[0]),
            _softmax(reading.l_logits[0]),
        )
        # Of equally likely actions the last one: hold before close before open.
        action = max(range(len(masked)), key=lambda index: (masked[index], index))
        finished_ns = self._clock_ns()
        self._finish_cost.observe(finished_ns - stopped_ns)
        return Thought(
            action=action,
            size_fraction=float(reading.size[0]),
            confidence=masked[action],
            h_confidence=h_alone[action],
            l_confidence=l_alone[action],
            value=float(reading.value[0]),
            probabilities=masked,
            segments=cycles // self.config.convergence.n_cycles,
            cycles=cycles,
            stop_reason=stop_reason,
            residual=convergence.residual("h"),
            q_halt=_sigmoid(reading.q[0, 0]),
            q_continue=_sigmoid(reading.q[0, 1]),
            elapsed_us=(finished_ns - started_ns) // NS_PER_US,
        )

    @property
    def _max_cycles(self) -> int:
        return self.config.convergence.n_cycles * self._m_max

    def _cycle(self, state: Any, encoded: Any, convergence: HierarchicalConvergence) -> Any:
        before_ns = self._clock_ns()
        after = self._engine.cycle(state, encoded)
        (h,), (low,) = self._engine.residual(state, after)
        convergence.observe(float(h), float(low))
        self._cycle_cost.observe(self._clock_ns() - before_ns)
        return after

    def _stop(
        self,
        state: Any,
        cycles: int,
        floor: int,
        convergence: HierarchicalConvergence,
        deadline_ns: float,
    ) -> StopReason | None:
        """Say why to stop after this cycle, or None to go on."""
        if self._clock_ns() > deadline_ns:
            return "deadline"
        segments, into_the_next = divmod(cycles, self.config.convergence.n_cycles)
        if into_the_next == 0:
            if segments >= self._m_max:
                return "max_segments"
            q_halt, q_continue = self._read(state).q[0].tolist()
            if should_halt(q_halt, q_continue, segments, floor, self._m_max):
                return "halted"
        if convergence.is_converged():
            return "converged"
        # The floor of a complex market yields here: the deadline is asked whatever the depth.
        needed_ns = self._cycle_cost.likely_ns + self._finish_cost.likely_ns
        return "deadline" if self._clock_ns() + needed_ns > deadline_ns else None

    def _read(self, state: Any) -> Reading:
        reading = self._engine.read(state)
        for name, numbers in vars(reading).items():
            if not np.isfinite(numbers).all():
                raise ValueError(
                    f"the model's {name} is {numbers.tolist()}: it must be finite, hold this bar "
                    "and check the released weights"
                )
        return reading

    def _check_budget(self, budget: DeadlineBudget | RecordedBudget) -> None:
        match budget:
            case DeadlineBudget(milliseconds=milliseconds):
                if not 0.0 < milliseconds < math.inf:
                    raise ValueError(
                        f"a deadline must be a positive number of milliseconds, was {milliseconds}"
                    )
            case RecordedBudget(cycles=cycles):
                if not 1 <= cycles <= self._max_cycles:
                    raise ValueError(
                        f"recorded cycles must be in 1..{self._max_cycles} for this model, was "
                        f"{cycles}: replay with the model that made the recording"
                    )

    def _inputs(self, observation: Observation) -> Batch:
        """Turn an observation into a batch of one."""
        sizes = self.config.inputs
        shapes = {
            "bars": (sizes.window_bars, sizes.n_features),
            "mask": (sizes.window_bars,),
            "account": (ACCOUNT_WIDTH,),
            "context": (sizes.n_context,),
        }
        for name, shape in shapes.items():
            value: NDArray[Any] = getattr(observation, name)
            if value.shape != shape:
                raise ValueError(f"{name} must have the shape {shape}, was {value.shape}")
            if not np.isfinite(value).all():
                place = tuple(int(axis) for axis in np.argwhere(~np.isfinite(value))[0])
                raise ValueError(f"{name}{list(place)} is {value[place]}: inputs must be finite")
        if not observation.mask.any():
            raise ValueError("mask marks no bar as present: hold until there is something to read")
        if len(observation.allowed_actions) != len(Action) or not any(observation.allowed_actions):
            raise ValueError(
                f"allowed_actions must allow at least one of {len(Action)} actions, was "
                f"{observation.allowed_actions}: HOLD is always possible"
            )
        instrument = self._vocabularies.instrument_row(observation.instrument)
        timeframe = self._vocabularies.timeframe_row(observation.timeframe)
        return Batch(
            bars=np.asarray(observation.bars[None], np.float32),
            bars_mask=np.asarray(observation.mask[None], np.bool_),
            instrument=np.array([instrument], np.int64),
            timeframe=np.array([timeframe], np.int64),
            account=np.asarray(observation.account[None], np.float32),
            context=np.asarray(observation.context[None], np.float32),
        )


def _limited(config: HRMConfig, limits: HRMConfig) -> HRMConfig:
    depth = min(config.adaptive_computation.m_max, limits.adaptive_computation.m_max)
    return config.changed(
        adaptive_computation={"m_max": depth},
        convergence={"convergence_thresh": limits.convergence.convergence_thresh},
    )


def _softmax(
    logits: NDArray[np.float32], allowed: tuple[bool, ...] | None = None
) -> tuple[float, ...]:
    """Return probabilities in double precision, 0 where an action is not allowed."""
    mask = np.ones(len(logits), dtype=np.bool_) if allowed is None else np.array(allowed)
    doubles = logits.astype(np.float64)
    weights = np.exp(np.where(mask, doubles - doubles[mask].max(), -np.inf))
    return tuple((weights / weights.sum()).tolist())


def _sigmoid(logit: np.float32) -> float:
    # tanh saturates where exp would overflow.
    return 0.5 + 0.5 * math.tanh(0.5 * float(logit))
