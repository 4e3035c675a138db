"""Thinking about several observations at once: as each alone, and none late for the others."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_builders import a_card, a_config, a_model, an_observation

from hrm.agent import HRMAgent
from hrm.config import HRMConfig
from hrm.costs import CostTable
from hrm.eager_engine import EagerEngine
from hrm.engine import Batch, Engine, Floats, Reading
from hrm.manifest import Manifest, ModelEntry
from hrm.onnx_engine import OnnxEncoder, OnnxEngine, State
from hrm.parity import rows_stand_alone
from hrm.thought import Answer, DeadlineBudget, NoThought, Question, RecordedBudget, Thought

NS_PER_MS = 1_000_000
AMPLE = DeadlineBudget(milliseconds=1e6)


class Clock:
    """A clock that moves only when told."""

    def __init__(self, now_ns: int = 10**12) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, milliseconds: float) -> None:
        self.now_ns += round(milliseconds * NS_PER_MS)


class WatchedEngine:
    """The fast engine on a machine whose speed the test chooses; keeps how many rows it ran."""

    def __init__(
        self,
        clock: Clock,
        config: HRMConfig | None = None,
        *,
        encode_ms: Callable[[int], float] = lambda rows: 0.0,
        cycle_ms: Callable[[int], float] = lambda rows: 0.0,
        spoil: Callable[[Reading], None] = lambda reading: None,
    ) -> None:
        self._engine = a_fast_engine(config or a_config())
        self._clock = clock
        self._encode_ms = encode_ms
        self._cycle_ms = cycle_ms
        self._spoil = spoil
        self.encoded: list[int] = []
        self.cycled: list[int] = []
        self.start = self._engine.start
        self.residual = self._engine.residual
        self.rows = self._engine.rows

    def encode(self, batch: Batch) -> Floats:
        self.encoded.append(len(batch))
        self._clock.advance(self._encode_ms(len(batch)))
        return self._engine.encode(batch)

    def cycle(self, state: State, encoded: Floats) -> State:
        self.cycled.append(len(encoded))
        self._clock.advance(self._cycle_ms(len(encoded)))
        return self._engine.cycle(state, encoded)

    def read(self, state: State) -> Reading:
        reading = self._engine.read(state)
        self._spoil(reading)
        return reading


@cache
def a_fast_engine(config: HRMConfig) -> OnnxEngine:
    """Build an engine whose model wants to halt early for some observations and late for others."""
    model = a_model(config, seed=8)
    with torch.no_grad():
        model.q_head.weight.normal_(0.0, 1.0, generator=torch.Generator().manual_seed(5))
    arrays = {n: v.numpy() for n, v in model.state_dict().items()}
    return OnnxEngine(arrays, config, OnnxEncoder(arrays, config))


def an_agent(
    engine: Engine[Any, Any],
    clock: Callable[[], int],
    *,
    batches: bool = True,
    config: HRMConfig | None = None,
) -> HRMAgent:
    entry = ModelEntry(**dict(a_card(config)), sha256="0" * 64)
    manifest = Manifest(released="m.safetensors", models={"m.safetensors": entry})
    return HRMAgent(engine, manifest, clock, batches=batches)


def content(answer: Answer) -> dict[str, Any]:
    """Return what an answer says, without how long it took and among how many."""
    left_out = {"elapsed_us", "waited_us", "batch_size", "stop_reason"}
    return {name: value for name, value in asdict(answer).items() if name not in left_out}


def thoughts(answers: Sequence[Answer]) -> list[Thought]:
    found = [answer for answer in answers if isinstance(answer, Thought)]
    assert len(found) == len(answers), answers
    return found


def some_questions(count: int, seed: int = 0, budget: DeadlineBudget = AMPLE) -> list[Question]:
    draw = np.random.default_rng(seed)
    return [
        (
            an_observation(
                seed + number,
                complexity=float(draw.uniform()),
                instrument=str(draw.choice(["NIFTY", "SBIN", "OTHER"])),
                allowed_actions=(True, bool(draw.integers(2)), True, False, True),
            ),
            budget,
        )
        for number in range(count)
    ]


def never_halt(reading: Reading) -> None:
    reading.q[:] = (-5.0, 5.0)


# As alone


@settings(max_examples=30, deadline=None)
@given(count=st.integers(2, 24), seed=st.integers(0, 10_000))
def test_each_thought_is_that_of_thinking_alone_to_the_bit(count: int, seed: int) -> None:
    agent = an_agent(WatchedEngine(Clock()), Clock())
    questions = some_questions(count, seed)

    together = thoughts(agent.reason_many(questions))

    for (observation, budget), thought in zip(questions, together, strict=True):
        alone = agent.reason(observation, budget)
        replayed = agent.reason(observation, RecordedBudget(thought.cycles))
        assert content(thought) == content(alone) == content(replayed)
        assert thought.stop_reason == alone.stop_reason
        assert (thought.batch_size, alone.batch_size) == (count, 1)


def test_rows_that_are_done_leave_the_batch() -> None:
    engine = WatchedEngine(Clock())
    questions = some_questions(12)

    depths = [
        thought.cycles for thought in thoughts(an_agent(engine, Clock()).reason_many(questions))
    ]

    assert len(set(depths)) > 1
    assert engine.encoded == [12]
    assert engine.cycled == [sum(depth > done for depth in depths) for done in range(max(depths))]


def test_rows_converge_one_by_one() -> None:
    config = a_config(convergence={"convergence_thresh": 0.12}, adaptive_computation={"m_max": 20})
    agent = an_agent(WatchedEngine(Clock(), config), Clock(), config=config)
    questions = some_questions(8, seed=3)

    together = thoughts(agent.reason_many(questions))

    assert {"converged"} < {thought.stop_reason for thought in together}
    alone = [agent.reason(*question) for question in questions]
    assert [content(thought) for thought in together] == [content(thought) for thought in alone]


def test_recorded_depths_may_differ_within_a_batch() -> None:
    agent = an_agent(WatchedEngine(Clock()), Clock())
    questions: list[Question] = [
        (an_observation(number), RecordedBudget(cycles)) for number, cycles in enumerate([7, 1, 12])
    ]

    together = thoughts(agent.reason_many(questions))

    assert [thought.cycles for thought in together] == [7, 1, 12]
    assert [content(thought) for thought in together] == [
        content(agent.reason(*question)) for question in questions
    ]


def test_nothing_asked_is_nothing_answered() -> None:
    assert an_agent(WatchedEngine(Clock()), Clock()).reason_many([]) == []


def test_the_released_engine_lets_rows_stand_alone_and_pytorch_does_not() -> None:
    model = a_model()

    assert rows_stand_alone(a_fast_engine(a_config()), a_config())
    assert not rows_stand_alone(EagerEngine(model), model.config)


def test_an_engine_whose_rows_depend_on_one_another_thinks_in_turn() -> None:
    engine = WatchedEngine(Clock())
    agent = an_agent(engine, Clock(), batches=False)

    together = thoughts(agent.reason_many(some_questions(3)))

    assert engine.encoded == [1, 1, 1]
    assert {thought.batch_size for thought in together} == {1}


# One that is wrong


def test_a_wrong_observation_gets_no_thought_and_the_others_theirs() -> None:
    agent = an_agent(WatchedEngine(Clock()), Clock())
    questions = some_questions(3)
    bars = np.full_like(questions[1][0].bars, np.nan)
    questions[1] = (an_observation(bars=bars), AMPLE)

    first, wrong, last = agent.reason_many(questions)

    assert isinstance(wrong, NoThought)
    assert (wrong.is_late, wrong.reason) == (False, "bars[0, 0] is nan: inputs must be finite")
    assert content(first) == content(agent.reason(*questions[0]))
    assert content(last) == content(agent.reason(*questions[2]))


def test_one_row_of_nonsense_is_not_believed_and_does_not_spoil_the_others() -> None:
    def spoil(reading: Reading) -> None:
        if len(reading.value) == 3:
            reading.value[1] = np.nan

    agent = an_agent(WatchedEngine(Clock(), spoil=spoil), Clock())
    questions = some_questions(3)

    first, wrong, last = agent.reason_many(questions)

    assert isinstance(wrong, NoThought)
    assert "the model's value is nan: it must be finite" in wrong.reason
    assert content(first) == content(agent.reason(*questions[0]))
    assert content(last) == content(agent.reason(*questions[2]))


# In time


@settings(max_examples=20, deadline=None)
@given(
    waits_ms=st.lists(st.floats(0.0, 60.0), min_size=1, max_size=20),
    encode_ms=st.floats(0.1, 5.0),
    cycle_ms=st.floats(0.1, 3.0),
)
def test_on_a_steady_machine_no_answer_is_late_and_whoever_fits_is_answered(
    waits_ms: list[float], encode_ms: float, cycle_ms: float
) -> None:
    clock = Clock()
    engine = WatchedEngine(
        clock, encode_ms=lambda rows: encode_ms * rows, cycle_ms=lambda rows: cycle_ms
    )
    agent = an_agent(engine, clock)
    agent.warm_up(20)
    started_ns = clock()
    questions = [
        (an_observation(number), DeadlineBudget(50.0, started_ns - round(wait * NS_PER_MS)))
        for number, wait in enumerate(waits_ms)
    ]

    answers = agent.reason_many(questions)

    left_ms = [50.0 - wait for wait in waits_ms]
    for left, answer in zip(left_ms, answers, strict=True):
        if isinstance(answer, Thought):
            in_time = answer.elapsed_us <= left * 1000
            only_one = sum(isinstance(each, Thought) for each in answers) == 1
            assert in_time or only_one  # the last one is tried even so
        else:
            assert answer.is_late
    # A margin of two: an estimate stands for sizes up to twice as large.
    if min(left_ms) > 2 * (encode_ms * 32 + 2 * cycle_ms):
        assert all(isinstance(answer, Thought) for answer in answers)


def test_the_deadline_counts_from_when_it_is_said_to_have_begun() -> None:
    clock = Clock()
    agent = an_agent(WatchedEngine(clock, cycle_ms=lambda rows: 4.0), clock)
    agent.warm_up()
    since_ns = clock()
    clock.advance(20.0)

    thought = agent.reason(an_observation(), DeadlineBudget(41.0, since_ns))

    assert (thought.cycles, thought.waited_us) == (5, 20_000)


def test_a_deadline_that_has_passed_is_told_without_thinking() -> None:
    clock = Clock()
    engine = WatchedEngine(clock)
    passed = DeadlineBudget(50.0, clock() - 51 * NS_PER_MS)

    [answer] = an_agent(engine, clock).reason_many(some_questions(1, budget=passed))

    assert answer == NoThought("there was no time left to think", True, 51_000)
    assert engine.encoded == []


@pytest.mark.parametrize(
    ("waited_ms", "cycles"),
    [
        (0.0, 30),  # begun early: the last fifteen milliseconds are left to others
        (25.0, 15),  # begun late: fifteen are its own
        (40.0, 5),  # as far as there are so many
    ],
)
def test_a_reserve_is_left_by_those_who_begin_early_and_used_by_those_who_begin_late(
    waited_ms: float, cycles: int
) -> None:
    clock = Clock()
    config = a_config(adaptive_computation={"m_max": 20}, convergence={"convergence_thresh": 1e-30})
    engine = WatchedEngine(clock, config, cycle_ms=lambda rows: 1.0, spoil=never_halt)
    agent = an_agent(engine, clock, config=config)
    agent.warm_up()
    since_ns = clock() - round(waited_ms * NS_PER_MS)

    thought = agent.reason(
        an_observation(4, complexity=0.9), DeadlineBudget(45.6, since_ns, reserve_ms=15.3)
    )

    assert thought.stop_reason == "deadline"
    assert thought.cycles == cycles


def test_those_thought_about_in_turn_share_the_time() -> None:
    clock = Clock()
    config = a_config(adaptive_computation={"m_max": 40}, convergence={"convergence_thresh": 1e-30})
    engine = WatchedEngine(clock, config, cycle_ms=lambda rows: 1.0, spoil=never_halt)
    agent = an_agent(engine, clock, batches=False, config=config)
    agent.warm_up()
    observation = an_observation(4, complexity=0.9)

    answers = thoughts(agent.reason_many([(observation, DeadlineBudget(40.2))] * 4))

    assert [thought.cycles for thought in answers] == [10, 10, 10, 10]
    assert {thought.elapsed_us for thought in answers} == {40_000}


def test_a_machine_that_stalled_once_soon_thinks_about_all_of_them_again() -> None:
    clock = Clock()
    stall_ms = 0.0
    engine = WatchedEngine(clock, encode_ms=lambda rows: rows + stall_ms)
    agent = an_agent(engine, clock)
    agent.warm_up(20)

    def answered() -> int:
        questions = some_questions(20, budget=DeadlineBudget(45.0))
        return sum(isinstance(answer, Thought) for answer in agent.reason_many(questions))

    before = answered()
    stall_ms = 500.0
    for _ in range(3):
        answered()
    stall_ms = 0.0
    after = [answered() for _ in range(40)]

    assert before == 20
    assert after[-1] == 20


def test_a_cost_of_a_size_never_seen_is_taken_from_its_neighbours() -> None:
    costs = CostTable()
    assert costs.likely_ns(5) == 0.0
    for _ in range(200):
        costs.observe(4, 1000)
        costs.observe(32, 3000)

    assert costs.likely_ns(4) == pytest.approx(1000, rel=0.01)
    assert costs.likely_ns(6) == pytest.approx(1500, rel=0.01)  # in proportion to the smaller
    assert costs.likely_ns(16) == pytest.approx(3000, rel=0.01)  # no more than the larger
    assert costs.likely_ns(64) == pytest.approx(6000, rel=0.01)


def test_what_fewer_rows_once_took_denies_nothing_seen_since() -> None:
    costs = CostTable()
    for _ in range(40):
        costs.observe(5, 26)
    for _ in range(200):
        costs.observe(11, 90)

    assert costs.likely_ns(8) == pytest.approx(41.6, rel=0.1)  # in proportion to five
    assert costs.likely_ns(11) == pytest.approx(90, rel=0.01)
    assert costs.likely_ns(16) == pytest.approx(131, rel=0.01)

    costs.observe(5, 26)

    assert costs.likely_ns(11) == pytest.approx(57.2, rel=0.1)  # five are cheap again


def test_after_small_batches_a_large_one_is_not_late_for_ever() -> None:
    clock = Clock()
    engine = WatchedEngine(clock, encode_ms=lambda rows: 5.0 * rows)
    agent = an_agent(engine, clock)
    agent.warm_up(32)
    for _ in range(40):
        agent.reason_many(some_questions(5, budget=DeadlineBudget(45.0)))

    for _ in range(3):
        began_ns = clock()
        answers = agent.reason_many(some_questions(20, budget=DeadlineBudget(45.0)))

    assert clock() - began_ns <= 45.0 * NS_PER_MS
    assert sum(isinstance(answer, Thought) for answer in answers) >= 6


@pytest.mark.parametrize("batches", [True, False])
def test_where_the_engine_fails_nobody_has_a_thought(batches: bool) -> None:
    def fail(reading: Reading) -> None:
        raise MemoryError("no room for the heads")

    clock = Clock()
    agent = an_agent(WatchedEngine(clock, spoil=fail), clock, batches=batches)

    answers = agent.reason_many(some_questions(3))

    reason = "the engine failed: MemoryError: no room for the heads"
    assert answers == [NoThought(reason)] * 3


def test_a_batch_of_the_released_kind_takes_less_than_its_rows_alone() -> None:
    agent = an_agent(a_fast_engine(a_config()), time.perf_counter_ns)
    agent.warm_up(20)
    question = (an_observation(), RecordedBudget(12))

    def least_ns(work: Callable[[], object]) -> int:
        taken = []
        for _ in range(5):
            began_ns = time.process_time_ns()
            work()
            taken.append(time.process_time_ns() - began_ns)
        return min(taken)

    together = least_ns(lambda: agent.reason_many([question] * 20))
    alone = least_ns(lambda: [agent.reason(*question) for _ in range(20)])

    assert together < alone
