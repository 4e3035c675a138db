"""HRMAgent: observations in, thoughts out, before a deadline. Numpy in, plain Python out.

What to do with a thought, and with one that came late, is for the caller to say.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, Self

import numpy as np

from hrm.config import ACCOUNT_WIDTH, HRMConfig
from hrm.costs import CostTable
from hrm.engine import Engine, Reading
from hrm.engine_choice import EngineChoice, choose_engine
from hrm.features import FEATURE_SCHEMA_SHA256
from hrm.halting import min_segments
from hrm.manifest import IntegrityError, Manifest
from hrm.observations import as_row, stacked
from hrm.parity import rows_stand_alone
from hrm.profiling import Profile, ProfiledEngine
from hrm.residuals import HierarchicalConvergence
from hrm.rows import NS_PER_MS, NS_PER_US, Row, check_budget
from hrm.thought import (
    Answer,
    Budget,
    NoThought,
    Observation,
    Question,
    RecordedBudget,
    StopReason,
    Thought,
)
from hrm.weights import load_weights

WARM_UP_DECISIONS, WARM_UP_CYCLES = 3, 16


class HRMAgent:
    """Think with a verified model, about one observation or several at a time.

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
        *,
        batches: bool = False,
        profile: Profile | None = None,
    ) -> None:
        """batches: the engine says the same of a row alone and among others, to the bit.

        Without it several observations are thought about one after the other. profile: gets the
        times of the steps; None times nothing.
        """
        entry = manifest.models[manifest.released]
        self.manifest = manifest
        self.config = _limited(entry.config, limits or entry.config)
        self.digest = entry.sha256
        self.choice = choice  # None where the caller brought an engine
        self.batches = batches
        self.profile = profile
        self._engine: Engine[Any, Any] = engine
        if profile is not None:
            self._engine = ProfiledEngine(engine, profile, clock_ns)
        self._vocabularies = entry.vocabularies
        self._clock_ns = clock_ns
        self._m_max = self.config.adaptive_computation.m_max
        self._encode_cost = CostTable()
        self._cycle_cost = CostTable()
        self._read_cost = CostTable()
        self._finish_cost = CostTable()

    @classmethod
    def load(
        cls,
        models_dir: Path,
        clock_ns: Callable[[], int],
        limits: HRMConfig | None = None,
        state_dir: Path | None = None,
    ) -> Self:
        """Load the released model; raise IntegrityError if any of it is not what it should be.

        state_dir: where what was measured of the engines is kept, None to measure each time.
        """
        weights = load_weights(models_dir)
        trained_on = weights.entry.features.schema_sha256
        if trained_on != FEATURE_SCHEMA_SHA256:
            raise IntegrityError(
                f"{models_dir / weights.name} was trained on features {trained_on}, this version "
                f"makes {FEATURE_SCHEMA_SHA256}: install the version it belongs to, or train again"
            )
        performance = (limits or weights.entry.config).performance
        engine, choice = choose_engine(
            models_dir,
            weights,
            performance.engine,
            deadline_ms=performance.max_inference_time_ms,
            state_dir=state_dir,
        )
        batches = rows_stand_alone(engine, weights.entry.config)
        profile = Profile() if performance.enable_profiling else None
        return cls(
            engine, weights.manifest, clock_ns, limits, choice, batches=batches, profile=profile
        )

    def warm_up(self, together: int = 1, decisions: int = WARM_UP_DECISIONS) -> None:
        """Think some times about nothing, so that first costs are paid and later ones known.

        together: the most observations that will be thought about at a time.
        """
        question = self._nothing(min(WARM_UP_CYCLES, self._max_cycles))
        for _ in range(decisions):
            self.reason_many([question])
        rows, limit_ns = 1, self.config.performance.max_inference_time_ms * NS_PER_MS
        while self.batches and rows < together and self._least_ns(2 * rows) < limit_ns:
            rows = min(2 * rows, together)
            for _ in range(decisions):
                self.reason_many([question] * rows)

    def _nothing(self, cycles: int) -> Question:
        """Return a question about a market without prices, to be thought about so deep."""
        inputs = self.config.inputs
        observation = Observation(
            bars=np.zeros((inputs.window_bars, inputs.n_features), dtype=np.float32),
            mask=np.ones(inputs.window_bars, dtype=np.bool_),
            instrument="",
            timeframe="",
            account=np.zeros(ACCOUNT_WIDTH, dtype=np.float32),
            context=np.zeros(inputs.n_context, dtype=np.float32),
            complexity=0.0,
            allowed_actions=(True, True, True, True, True),
        )
        return observation, RecordedBudget(cycles)

    def reason(self, observation: Observation, budget: Budget) -> Thought:
        """Think until halted, converged, at full depth or out of budget.

        Raise ValueError for input that is wrong or a model that answers with numbers that are not
        finite. One cycle always runs, also when it ends late: compare elapsed_us with the deadline.
        """
        [answer] = self.reason_many([(observation, budget)])
        if isinstance(answer, Thought):
            return answer
        raise ValueError(answer.reason)

    def reason_many(self, questions: Sequence[Question]) -> list[Answer]:
        """Think about several observations under the earliest of their deadlines.

        Answers come in the order of the questions, and each is what `reason` alone says at that
        depth. A row that is done leaves the batch. One whose deadline has passed, or for which
        there is no time among so many, gets no thought; so does one that is wrong, whatever the
        others are, and so do all where the engine fails.
        """
        started_ns = self._clock_ns()
        answers: dict[int, Answer] = {}
        rows: list[Row] = []
        for place, (observation, budget) in enumerate(questions):
            try:
                rows.append(self._row(place, observation, budget, started_ns))
            except ValueError as error:
                answers[place] = NoThought(str(error))
        rows, late = self._admitted(rows, started_ns)
        if self.profile is not None:
            self.profile.add("check", self._clock_ns() - started_ns)
        for row in late:
            waited_us = row.waited_ns // NS_PER_US
            answers[row.place] = NoThought("there was no time left to think", True, waited_us)
        try:
            if rows and (self.batches or len(rows) == 1):
                self._think(rows)
            else:
                self._think_in_turn(rows)
        except Exception as error:  # noqa: BLE001 - whatever a runtime raises, it is no answer
            for row in rows:
                row.problem = f"the engine failed: {type(error).__name__}: {error}"
        answers |= self._answers(rows, started_ns)
        return [answers[place] for place in range(len(questions))]

    @property
    def _max_cycles(self) -> int:
        return self.config.convergence.n_cycles * self._m_max

    def _row(self, place: int, observation: Observation, budget: Budget, started_ns: int) -> Row:
        """Check a question; raise ValueError for one that cannot be thought about."""
        check_budget(budget, self._max_cycles)
        row = Row(
            place,
            observation.allowed_actions,
            as_row(observation, self.config.inputs, self._vocabularies),
            budget,
            min_segments(observation.complexity, self._m_max),
            HierarchicalConvergence(self.config.convergence.convergence_thresh),
        )
        row.count_time(started_ns)
        return row

    def _admitted(self, rows: list[Row], started_ns: int) -> tuple[list[Row], list[Row]]:
        """Return the rows there is time for, and the others, which would make all of them late.

        The more think together, the longer the shortest thought takes: those with the least time
        left are given up first. One that has time left is always tried.
        """
        patient = sorted(rows, key=lambda row: -row.deadline_ns)
        count = sum(row.deadline_ns > started_ns for row in patient)
        while count > 1 and started_ns + self._least_ns(count) > patient[count - 1].deadline_ns:
            count -= 1
        return sorted(patient[:count], key=lambda row: row.place), patient[count:]

    def _least_ns(self, rows: int) -> float:
        """Return what the shortest thought about so many rows likely takes."""
        times, size = (1, rows) if self.batches else (rows, 1)
        return self._finish_cost.likely_ns(rows) + times * (
            self._encode_cost.likely_ns(size)
            + self._cycle_cost.likely_ns(size)
            + self._read_cost.likely_ns(size)
        )

    def _think_in_turn(self, rows: list[Row]) -> None:
        """Think about one row after the other, each with its share of the time that is left."""
        until_ns = min((row.until_ns for row in rows), default=inf)
        for number, row in enumerate(rows):
            now_ns = self._clock_ns()
            row.until_ns = min(row.until_ns, now_ns + (until_ns - now_ns) / (len(rows) - number))
            self._think([row])

    def _think(self, rows: list[Row]) -> None:
        """Run cycles over a batch until every row is done; those that are leave it."""
        until_ns = min(row.until_ns for row in rows)
        before_ns = self._clock_ns()
        encoded = self._engine.encode(stacked([row.inputs for row in rows]))
        state = self._engine.start(encoded)
        self._encode_cost.observe(len(rows), self._clock_ns() - before_ns)
        for row in rows:
            row.batch_size = len(rows)
        while rows:
            state = self._cycle(state, encoded, rows)
            ends_segment = rows[0].cycles % self.config.convergence.n_cycles == 0
            # A recorded depth asks nobody whether to halt.
            was_read = ends_segment and self._clock_ns() <= until_ns < inf
            if was_read:
                self._read(state, rows)
            left_ns = until_ns - self._clock_ns()
            next_ns = self._next_ns(len(rows))
            for row in rows:
                row.stop_reason = self._stop(row, was_read, left_ns, next_ns)
            going = [number for number, row in enumerate(rows) if not row.is_done]
            if len(going) < len(rows):
                if not was_read:
                    self._read(state, rows)
                rows = [rows[number] for number in going]
                if rows:
                    state, encoded = self._engine.rows(state, encoded, going)

    def _cycle(self, state: Any, encoded: Any, rows: list[Row]) -> Any:
        before_ns = self._clock_ns()
        after = self._engine.cycle(state, encoded)
        h, low = self._engine.residual(state, after)
        for row, h_residual, l_residual in zip(rows, h.tolist(), low.tolist(), strict=True):
            row.moved(h_residual, l_residual)
        self._cycle_cost.observe(len(rows), self._clock_ns() - before_ns)
        return after

    def _read(self, state: Any, rows: list[Row]) -> None:
        before_ns = self._clock_ns()
        reading: Reading = self._engine.read(state)
        is_sound = all(np.isfinite(numbers).all() for numbers in vars(reading).values())
        for number, row in enumerate(rows):
            row.look(reading, number)
            if not is_sound:
                row.check()
        self._read_cost.observe(len(rows), self._clock_ns() - before_ns)

    def _next_ns(self, rows: int) -> float:
        """Return what one more cycle and an answer after it likely take."""
        return (
            self._cycle_cost.likely_ns(rows)
            + self._read_cost.likely_ns(rows)
            + self._finish_cost.likely_ns(rows)
        )

    def _stop(self, row: Row, was_read: bool, left_ns: float, next_ns: float) -> StopReason | None:
        """Say why a row is to stop after this cycle, or None to go on."""
        if isinstance(row.budget, RecordedBudget):
            return "recorded" if row.cycles == row.budget.cycles else None
        if left_ns < 0:
            return "deadline"
        if row.cycles == self._max_cycles:
            return "max_segments"
        segments = row.cycles // self.config.convergence.n_cycles
        if was_read and row.wants_to_halt(segments, self._m_max):
            return "halted"
        if row.convergence.is_converged():
            return "converged"
        # The floor of a complex market yields here: the deadline is asked whatever the depth.
        return "deadline" if next_ns > left_ns else None

    def _answers(self, rows: list[Row], started_ns: int) -> dict[int, Answer]:
        """Return the answers by place; all are ready at the same time."""
        before_ns = self._clock_ns()
        found = {row.place: row.answer(self.config.convergence.n_cycles) for row in rows}
        finished_ns = self._clock_ns()
        if rows:
            self._finish_cost.observe(len(rows), finished_ns - before_ns)
        if self.profile is not None:
            self.profile.add("answer", finished_ns - before_ns)
            self.profile.add("thought", finished_ns - started_ns)
            if isinstance(self._engine, ProfiledEngine):
                self._engine.note_layers()
            for row in rows:
                self.profile.add("transport", row.waited_ns)
        elapsed_us = (finished_ns - started_ns) // NS_PER_US
        return {
            place: replace(answer, elapsed_us=elapsed_us) if isinstance(answer, Thought) else answer
            for place, answer in found.items()
        }


def _limited(config: HRMConfig, limits: HRMConfig) -> HRMConfig:
    depth = min(config.adaptive_computation.m_max, limits.adaptive_computation.m_max)
    return config.changed(
        adaptive_computation={"m_max": depth},
        convergence={"convergence_thresh": limits.convergence.convergence_thresh},
    )
