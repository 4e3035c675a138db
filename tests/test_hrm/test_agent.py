"""The agent: a thought before the deadline, the same thought again, and clear refusals."""

import math
import pickle
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_builders import a_card, a_config, a_model, an_observation
from torch import Tensor

from hrm.agent import HRMAgent
from hrm.config import Action, HRMConfig
from hrm.costs import CostEstimate
from hrm.eager_engine import EagerEngine
from hrm.engine import Batch, Reading
from hrm.integrity import save_release
from hrm.manifest import IntegrityError, Manifest, ModelEntry
from hrm.model import HierarchicalReasoningModel, State
from hrm.thought import DeadlineBudget, RecordedBudget, Thought

NS_PER_MS = 1_000_000
AMPLE = DeadlineBudget(milliseconds=1e6)


class Clock:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, milliseconds: float) -> None:
        self.now_ns += round(milliseconds * NS_PER_MS)


class TimedEngine:
    """The eager engine on a machine whose speed the test chooses."""

    def __init__(
        self,
        model: HierarchicalReasoningModel,
        clock: Clock,
        encode_ms: float = 0.0,
        cycle_ms: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._engine = EagerEngine(model)
        self._clock = clock
        self._encode_ms = encode_ms
        self._cycle_ms = cycle_ms
        self.start = self._engine.start
        self.residual = self._engine.residual
        self.rows = self._engine.rows

    def encode(self, batch: Batch) -> Tensor:
        self._clock.advance(self._encode_ms)
        return self._engine.encode(batch)

    def cycle(self, state: State, encoded: Tensor) -> State:
        self._clock.advance(self._cycle_ms())
        return self._engine.cycle(state, encoded)

    def read(self, state: State) -> Reading:
        return self._engine.read(state)


def a_manifest(config: HRMConfig | None = None) -> Manifest:
    entry = ModelEntry(**dict(a_card(config)), sha256="0" * 64)
    return Manifest(released="m.safetensors", models={"m.safetensors": entry})


def an_agent(
    config: HRMConfig | None = None,
    *,
    q_bias: tuple[float, float] = (-5.0, -5.0),
    **timing: Any,
) -> HRMAgent:
    """Build an agent that halts where q_bias says; by default it never wants to."""
    model = a_model(config, seed=8)
    with torch.no_grad():
        model.q_head.bias.copy_(torch.tensor(q_bias))
    clock = Clock()
    agent = HRMAgent(TimedEngine(model, clock, **timing), a_manifest(config), clock)
    agent.warm_up()
    return agent


@cache
def a_steady_agent(cycle_ms: float = 0.0) -> HRMAgent:
    """Build an agent once for many examples of one test."""
    return an_agent(cycle_ms=lambda: cycle_ms)


def content(thought: Thought) -> dict[str, Any]:
    """Return all of a thought but how long it took and why it stopped."""
    return {k: v for k, v in asdict(thought).items() if k not in {"elapsed_us", "stop_reason"}}


def test_without_a_wish_to_halt_it_thinks_to_the_maximum() -> None:
    thought = an_agent().reason(an_observation(), AMPLE)

    assert thought.stop_reason == "max_segments"
    assert (thought.segments, thought.cycles) == (6, 12)
    assert thought.q_halt == pytest.approx(1 / (1 + math.exp(5.0)))


@pytest.mark.parametrize(("complexity", "segments"), [(0.1, 1), (0.6, 2), (0.9, 4)])
def test_it_halts_as_soon_as_it_wants_to_and_complexity_allows(
    complexity: float, segments: int
) -> None:
    agent = an_agent(q_bias=(1.0, -1.0))

    thought = agent.reason(an_observation(complexity=complexity), AMPLE)

    assert thought.stop_reason == "halted"
    assert (thought.segments, thought.cycles) == (segments, 2 * segments)


def test_the_floor_of_a_complex_market_yields_to_the_deadline() -> None:
    agent = an_agent(q_bias=(1.0, -1.0), cycle_ms=lambda: 10.0)

    thought = agent.reason(an_observation(complexity=0.9), DeadlineBudget(35.0))

    assert thought.stop_reason == "deadline"
    assert thought.cycles == 3
    assert thought.segments == 1
    assert thought.elapsed_us == 30_000


def test_states_that_stand_still_end_thinking() -> None:
    agent = an_agent(a_config(convergence={"convergence_thresh": 100.0}))

    thought = agent.reason(an_observation(), AMPLE)

    assert thought.stop_reason == "converged"
    assert thought.cycles == 1


def test_the_first_cycle_runs_even_when_it_ends_late() -> None:
    agent = an_agent(encode_ms=5.0, cycle_ms=lambda: 80.0)

    thought = agent.reason(an_observation(), DeadlineBudget(50.0))

    assert thought.stop_reason == "deadline"
    assert thought.cycles == 1
    assert thought.elapsed_us == 85_000


@settings(max_examples=40)  # each builds and warms an agent
@given(
    encode_ms=st.floats(0.0, 10.0),
    cycle_ms=st.floats(0.1, 20.0),
    budget_ms=st.floats(31.0, 200.0),
)
def test_a_steady_machine_is_never_late_and_uses_the_time_it_has(
    encode_ms: float, cycle_ms: float, budget_ms: float
) -> None:
    agent = an_agent(encode_ms=encode_ms, cycle_ms=lambda: cycle_ms)

    thought = agent.reason(an_observation(), DeadlineBudget(budget_ms))

    assert thought.elapsed_us <= budget_ms * 1000
    left_ms = budget_ms - encode_ms - thought.cycles * cycle_ms
    assert thought.stop_reason == "max_segments" or left_ms < 1.1 * cycle_ms


def test_an_unsteady_machine_is_given_a_margin() -> None:
    draw = np.random.default_rng(1)
    agent = an_agent(cycle_ms=lambda: float(draw.uniform(2.0, 6.0)))

    thoughts = [agent.reason(an_observation(), DeadlineBudget(20.0)) for _ in range(200)]

    late = sum(thought.elapsed_us > 20_000 for thought in thoughts)
    assert late <= 10  # one in twenty
    assert min(thought.cycles for thought in thoughts) >= 2


@given(seed=st.integers(0, 10_000), budget_ms=st.floats(1.0, 40.0), complexity=st.floats(0.0, 1.0))
def test_a_recorded_depth_reproduces_the_thought_to_the_bit(
    seed: int, budget_ms: float, complexity: float
) -> None:
    observation = an_observation(seed, complexity=complexity)
    original = a_steady_agent(3.0).reason(observation, DeadlineBudget(budget_ms))

    replayed = a_steady_agent().reason(observation, RecordedBudget(original.cycles))

    assert replayed.stop_reason == "recorded"
    assert content(replayed) == content(original)


def test_a_recorded_depth_is_run_past_a_wish_to_halt() -> None:
    agent = an_agent(a_config(convergence={"convergence_thresh": 100.0}), q_bias=(1.0, -1.0))

    thought = agent.reason(an_observation(), RecordedBudget(cycles=7))

    assert (thought.cycles, thought.segments) == (7, 3)


@given(allowed=st.tuples(*[st.booleans()] * 5).filter(any), seed=st.integers(0, 1000))
def test_only_allowed_actions_are_chosen(allowed: tuple[bool, ...], seed: int) -> None:
    observation = an_observation(seed, allowed_actions=allowed)

    thought = a_steady_agent().reason(observation, RecordedBudget(2))

    assert allowed[thought.action]
    assert sum(thought.probabilities) == pytest.approx(1.0)
    assert all(
        p > 0.0 if may else p == 0.0 for p, may in zip(thought.probabilities, allowed, strict=True)
    )
    assert thought.confidence == max(thought.probabilities)
    assert thought.confidence >= thought.h_confidence
    assert 0.0 < thought.size_fraction < 1.0


def test_between_equal_actions_it_holds() -> None:
    model = a_model()
    torch.nn.init.zeros_(model.action_head.weight)
    agent = HRMAgent(EagerEngine(model), a_manifest(), Clock())

    thought = agent.reason(an_observation(), RecordedBudget(1))

    assert thought.action == Action.HOLD
    assert thought.confidence == pytest.approx(0.2)


def test_h_and_l_have_confidences_of_their_own() -> None:
    thought = an_agent().reason(an_observation(), RecordedBudget(2))

    assert thought.confidence == thought.h_confidence  # everything was allowed
    assert thought.l_confidence != thought.h_confidence
    assert 0.0 < thought.l_confidence < 1.0


def test_unknown_names_are_read_as_unknown_and_known_ones_are_not() -> None:
    agent = an_agent()

    known, other, strange, stranger = (
        agent.reason(an_observation(instrument=name), RecordedBudget(2))
        for name in ("NIFTY", "SBIN", "NOBODY", "NOTHING")
    )

    assert content(strange) == content(stranger)
    assert content(known) != content(strange)
    assert content(known) != content(other)


def damaged(name: str, place: tuple[int, ...], value: float) -> dict[str, Any]:
    array = getattr(an_observation(), name).copy()
    array[place] = value
    return {name: array}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (damaged("bars", (3, 1), math.nan), r"bars\[3, 1\] is nan"),
        (damaged("account", (5,), math.inf), r"account\[5\] is inf"),
        (damaged("context", (0,), -math.inf), r"context\[0\] is -inf"),
        ({"bars": np.zeros((9, 3), dtype=np.float32)}, r"bars must have the shape \(8, 3\)"),
        ({"mask": np.ones(7, dtype=np.bool_)}, r"mask must have the shape \(8,\)"),
        ({"mask": np.zeros(8, dtype=np.bool_)}, "mask marks no bar as present"),
        ({"complexity": 1.5}, r"complexity must be in \[0, 1\], was 1.5"),
        ({"allowed_actions": (False,) * 5}, "allowed_actions must allow at least one"),
        ({"allowed_actions": (True,) * 4}, "allowed_actions must allow at least one of 5"),
    ],
)
def test_a_wrong_observation_is_refused_by_name(changes: dict[str, Any], text: str) -> None:
    agent = an_agent()

    with pytest.raises(ValueError, match=text):
        agent.reason(an_observation(**changes), AMPLE)


@pytest.mark.parametrize(
    ("budget", "text"),
    [
        (DeadlineBudget(0.0), "positive number of milliseconds, was 0.0"),
        (DeadlineBudget(math.nan), "positive number of milliseconds, was nan"),
        (RecordedBudget(0), r"recorded cycles must be in 1..12 for this model, was 0"),
        (RecordedBudget(13), r"recorded cycles must be in 1..12 for this model, was 13"),
    ],
)
def test_an_impossible_budget_is_refused(
    budget: DeadlineBudget | RecordedBudget, text: str
) -> None:
    agent = an_agent()

    with pytest.raises(ValueError, match=text):
        agent.reason(an_observation(), budget)


@pytest.mark.parametrize("head", ["action", "size", "value", "q"])
def test_a_model_that_answers_nonsense_is_not_believed(head: str) -> None:
    model = a_model()
    torch.nn.init.constant_(getattr(model, f"{head}_head").weight, math.nan)
    agent = HRMAgent(EagerEngine(model), a_manifest(), Clock())

    with pytest.raises(ValueError, match=rf"the model's {head}.*must be finite"):
        agent.reason(an_observation(), RecordedBudget(2))


def test_a_thought_crosses_a_process_boundary_as_plain_python() -> None:
    thought = an_agent().reason(an_observation(), AMPLE)

    assert pickle.loads(pickle.dumps(thought)) == thought
    plain = {type(value) for value in asdict(thought).values()}
    assert plain <= {int, float, str, tuple}
    assert {type(p) for p in thought.probabilities} == {float}


def test_a_released_model_is_loaded_with_its_digest_and_thinks_as_before(tmp_path: Path) -> None:
    model = a_model(seed=8)
    entry = save_release(tmp_path, model, a_card())
    clock = Clock()

    limits = a_config(performance={"engine": "eager"})
    agent = HRMAgent.load(tmp_path, clock, limits)
    agent.warm_up()

    before = HRMAgent(EagerEngine(model), a_manifest(), clock)
    observation = an_observation()
    assert agent.digest == entry.sha256
    assert agent.config == a_config()
    assert agent.manifest.models[agent.manifest.released] == entry
    assert agent.reason(observation, RecordedBudget(5)) == before.reason(
        observation, RecordedBudget(5)
    )


def test_a_model_of_other_features_is_refused(tmp_path: Path) -> None:
    names = a_card().features.names
    save_release(tmp_path, a_model(), a_card(features={"names": names, "schema_sha256": "1" * 64}))

    with pytest.raises(IntegrityError, match=r"was trained on features 1111.*train again"):
        HRMAgent.load(tmp_path, Clock())


def test_an_estimate_lies_above_nineteen_of_twenty_steady_costs() -> None:
    draw = np.random.default_rng(3)
    estimate = CostEstimate()
    assert estimate.likely_ns == 0.0
    under = 0
    for cost in draw.normal(1000.0, 100.0, size=5000):
        under += estimate.likely_ns >= cost
        estimate.observe(int(cost))

    assert under / 5000 == pytest.approx(0.94, abs=0.03)


def test_the_operator_may_lower_the_depth_but_not_raise_it() -> None:
    model = a_model(a_config(), seed=8)
    own = model.config.adaptive_computation.m_max

    def depth(m_max: int) -> int:
        limits = HRMConfig().changed(
            adaptive_computation={"m_max": m_max}, convergence={"convergence_thresh": 1e-30}
        )
        agent = HRMAgent(EagerEngine(model), a_manifest(), Clock(), limits)
        return agent.reason(an_observation(), AMPLE).segments

    assert depth(2) == 2
    assert depth(own + 5) == own


def test_the_operator_sets_when_thinking_has_converged() -> None:
    limits = HRMConfig().changed(convergence={"convergence_thresh": 100.0})
    agent = HRMAgent(EagerEngine(a_model(a_config(), seed=8)), a_manifest(), Clock(), limits)

    assert agent.reason(an_observation(), AMPLE).stop_reason == "converged"
