"""Profiling: every step of thinking is timed, and every layer; where it is off nothing is."""

import time
from pathlib import Path
from typing import Any

import pytest
from model_builders import a_card, a_config, a_model, an_observation
from native_builders import a_kernel

from hrm.agent import HRMAgent
from hrm.eager_engine import EagerEngine
from hrm.engine import Engine
from hrm.integrity import save_release
from hrm.model import HierarchicalReasoningModel
from hrm.native_engine import NativeEngine
from hrm.profiling import RECENT, Profile, ProfiledEngine
from hrm.thought import DeadlineBudget, RecordedBudget
from hrm.weights import load_weights


class Ticking:
    """A clock that is a microsecond later each time it is asked."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        self.now_ns += 1000
        return self.now_ns


def an_agent(folder: Path, *, is_on: bool) -> HRMAgent:
    save_release(folder, a_model(seed=8), a_card())
    limits = a_config(performance={"enable_profiling": is_on, "engine": "onnx"})
    return HRMAgent.load(folder, Ticking(), limits)


def test_each_step_of_a_thought_is_counted_and_timed(tmp_path: Path) -> None:
    agent = an_agent(tmp_path, is_on=True)

    agent.reason(an_observation(), RecordedBudget(4))
    agent.reason_many(
        [(an_observation(1), RecordedBudget(2)), (an_observation(), RecordedBudget(3))]
    )

    assert agent.profile is not None
    steps = agent.profile.summary()
    counts = {step: taken["count"] for step, taken in steps.items()}
    assert counts == {
        "check": 2, "encode": 2, "cycle": 4 + 3, "residual": 4 + 3, "heads": 1 + 2, "rows": 1,
        "answer": 2, "thought": 2, "transport": 3,
    }  # fmt: skip
    assert steps["cycle"]["p50_us"] == 1.0
    assert steps["thought"]["p99_us"] > steps["encode"]["p99_us"]


def test_what_passed_before_thinking_began_is_transport(tmp_path: Path) -> None:
    agent = an_agent(tmp_path, is_on=True)

    agent.reason_many([(an_observation(), DeadlineBudget(1e6, since_ns=-7_000_000))])

    assert agent.profile is not None
    assert agent.profile.summary()["transport"]["p50_us"] >= 7000


def test_off_the_engine_is_not_wrapped(tmp_path: Path) -> None:
    agent = an_agent(tmp_path, is_on=False)

    assert agent.profile is None
    assert not isinstance(agent._engine, ProfiledEngine)


def test_a_profiled_thought_is_the_same_thought(tmp_path: Path) -> None:
    plain, timed = (an_agent(tmp_path / str(is_on), is_on=is_on) for is_on in (False, True))

    thoughts = [agent.reason(an_observation(), RecordedBudget(5)) for agent in (plain, timed)]

    assert thoughts[0].probabilities == thoughts[1].probabilities


def an_engine(name: str, model: HierarchicalReasoningModel) -> Engine[Any, Any]:
    if name == "eager":
        return EagerEngine(model)
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    return NativeEngine(arrays, model.config, a_kernel())


@pytest.mark.parametrize("name", ["eager", "native"])
def test_each_layer_is_timed_once_in_a_thought(tmp_path: Path, name: str) -> None:
    model = a_model(seed=8)
    save_release(tmp_path, model, a_card())
    manifest, profile = load_weights(tmp_path).manifest, Profile()
    agent = HRMAgent(an_engine(name, model), manifest, time.monotonic_ns, profile=profile)
    plain = HRMAgent(an_engine(name, model), manifest, time.monotonic_ns)

    thoughts = [each.reason(an_observation(), RecordedBudget(3)) for each in (agent, plain)]

    steps = profile.summary()
    sizes = model.config.architecture
    blocks = {"encoder": sizes.encoder, "h_module": sizes.h_module, "l_module": sizes.l_module}
    layers = {
        f"{module}.{number}.{layer}"
        for module, block in blocks.items()
        for number in range(block.num_layers)
        for layer in ("attention", "feed_forward")
        if layer == "feed_forward" or module == "encoder"  # there is one token in the loop
    }
    assert {step for step in steps if "." in step} == layers
    assert {steps[layer]["count"] for layer in layers} == {1}
    assert 0 < sum(steps[layer]["p50_us"] for layer in layers) <= steps["thought"]["p50_us"]
    assert thoughts[0].probabilities == thoughts[1].probabilities


def test_a_profile_keeps_the_last_times_only() -> None:
    profile = Profile()
    for elapsed_us in [*[9000] * RECENT, *range(RECENT)]:
        profile.add("cycle", 1000 * elapsed_us)

    assert profile.summary() == {"cycle": {"count": 2 * RECENT, "p50_us": 511.0, "p99_us": 1012.0}}

    profile.clear()
    assert profile.summary() == {}
