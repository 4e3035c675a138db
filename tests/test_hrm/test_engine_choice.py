"""The choice of an engine: the finest that is deep enough, none that decides otherwise."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_builders import a_card, a_model
from native_builders import a_kernel

from benchmarks.gate_inputs import gate_inputs
from hrm import engine_candidates, gate
from hrm.config import ServingEngine
from hrm.eager_engine import EagerEngine
from hrm.engine_candidates import measured_milliseconds
from hrm.engine_choice import EngineChoice, choose_engine
from hrm.engine_facts import EngineFacts, facts_path, read_facts, write_facts
from hrm.gate import GateFigures
from hrm.gate_inputs import PATH, NoGateInputs, gate_batch
from hrm.integrity import save_release
from hrm.manifest import EngineRefused
from hrm.native_engine import NativeEngine
from hrm.native_library import NativeUnavailable
from hrm.onnx_engine import OnnxEngine
from hrm.parity import TOLERANCE
from hrm.weights import Weights, load_weights

RELEASED = Path(__file__).parents[2] / "models"
HURRIED_MS = 0.01  # a deadline that no float32 engine reaches full depth in
SPEEDS = {"native": 200.0, "onnx": 400.0, "native16": 100.0, "native8": 50.0, "onnx8": 60.0}
AGREED = GateFigures(128, 1.0, 0.001, 1.0)


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    library = a_kernel()
    monkeypatch.setattr(engine_candidates, "native_library", lambda: library)


@pytest.fixture
def known_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(engines: dict[ServingEngine, Any], *_: Any) -> tuple[dict[ServingEngine, float], ...]:
        return dict.fromkeys(engines, 1.0), {name: SPEEDS[name] for name in engines}

    monkeypatch.setattr(engine_candidates, "measured_milliseconds", told)


def chosen(deadline_ms: float, state_dir: Path | None = None) -> EngineChoice:
    return choose_engine(
        RELEASED, load_weights(RELEASED), "auto", deadline_ms=deadline_ms, state_dir=state_dir
    )[1]


@pytest.mark.usefixtures("known_speeds")
@pytest.mark.parametrize(
    ("deadline_ms", "name", "reason"),
    [
        # 16 segments of 200, 100 and 50 ms, in a fifth of the deadline, after 1 ms of reading
        (22000.0, "native", "the finest whose 16 segments fit 20% of 22000 ms: float32"),
        (12000.0, "native16", "the finest whose 16 segments fit 20% of 12000 ms: 16-bit weights"),
        (6000.0, "native8", "the finest whose 16 segments fit 20% of 6000 ms: 8-bit weights"),
        (500.0, "native8", "the fastest that is admitted: 16 segments take"),
    ],
)
def test_the_finest_that_is_deep_enough_serves(deadline_ms: float, name: str, reason: str) -> None:
    choice = chosen(deadline_ms)

    assert choice.name == name
    assert choice.reason.startswith(reason)
    assert (choice.simd, choice.refused) == (a_kernel().level, {})
    assert ("native8" in choice.segment_ms) == (name != "native")  # measured only where needed


@pytest.mark.usefixtures("known_speeds")
def test_an_engine_that_decides_otherwise_is_refused_and_the_next_serves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate, "MAX_SHIFT", 1e-9)

    choice = chosen(6000.0)

    assert choice.name == "native"
    assert choice.refused.keys() == {"native8", "native16", "onnx8"}
    assert "a probability moves by" in choice.refused["native8"]
    assert choice.gates["native8"]["admitted"] is False
    with pytest.raises(EngineRefused, match="native8 is refused: the gate: a probability moves"):
        choose_engine(RELEASED, load_weights(RELEASED), "native8")


@pytest.mark.parametrize("found", [0.5, float("nan")])
def test_engines_that_differ_from_the_reference_leave_it_to_the_eager_one(
    monkeypatch: pytest.MonkeyPatch, found: float
) -> None:
    monkeypatch.setattr(engine_candidates, "largest_difference", lambda *_: found)

    engine, choice = choose_engine(RELEASED, load_weights(RELEASED), "auto")

    assert isinstance(engine, EagerEngine)
    assert choice.name == "eager"
    assert choice.refused.keys() == {"native", "onnx"}
    assert f"differs from the reference by {found:.3g}" in choice.refused["onnx"]
    with pytest.raises(EngineRefused, match=r"performance\.engine to auto or eager"):
        choose_engine(RELEASED, load_weights(RELEASED), "onnx")


def test_without_a_kernel_the_library_serves_and_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent() -> None:
        raise NativeUnavailable("no kernel is built")

    monkeypatch.setattr(engine_candidates, "native_library", absent)

    choice = chosen(50.0)

    assert choice.name == "onnx"
    assert choice.refused == {"native": "no kernel is built"}
    with pytest.raises(EngineRefused, match="no kernel is built"):
        choose_engine(RELEASED, load_weights(RELEASED), "native")


@pytest.mark.parametrize(("wanted", "kind"), [("native", NativeEngine), ("onnx", OnnxEngine)])
def test_the_engine_demanded_serves_and_says_how_closely(wanted: Any, kind: type) -> None:
    engine, choice = choose_engine(RELEASED, load_weights(RELEASED), wanted)

    assert isinstance(engine, kind)
    assert (choice.name, choice.reason) == (wanted, "demanded")
    assert choice.difference is not None
    assert 0.0 < choice.difference < TOLERANCE


def test_eight_bits_pass_the_gate_on_the_released_model() -> None:
    _, choice = choose_engine(RELEASED, load_weights(RELEASED), "native8")

    found = choice.gates["native8"]
    assert found["admitted"] is True
    assert (found["decisions"], found["action_agreement"]) == (128, 1.0)
    assert 0.0 < found["max_probability_shift"] <= 0.02


def test_sixteen_bits_need_no_gate_where_they_lose_nothing() -> None:
    weights = load_weights(RELEASED)
    halves = {n: v.astype(np.float16).astype(np.float32) for n, v in weights.arrays.items()}

    engine, choice = choose_engine(RELEASED, replace(weights, arrays=halves), "native16")

    assert isinstance(engine, NativeEngine)
    assert choice.gates == {}
    assert choice.difference is not None
    assert choice.difference < TOLERANCE


def test_what_was_measured_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = chosen(HURRIED_MS, tmp_path)
    monkeypatch.setattr(engine_candidates, "measured_milliseconds", pytest.fail)
    monkeypatch.setattr(engine_candidates, "compared", pytest.fail)

    again = chosen(HURRIED_MS, tmp_path)

    assert again == first
    assert again.name in ("native8", "native16", "native")


class Hindered:
    """An engine whose every second step is held up by something else; time is what it says."""

    def __init__(self, encode_s: float, cycle_s: float) -> None:
        self.now_s, self._steps = 0.0, {"encode": encode_s, "cycle": cycle_s}
        self._turn = 0

    def _take(self, step: str) -> None:
        self._turn += 1
        self.now_s += self._steps[step] + self._turn % 2

    def encode(self, _: object) -> str:
        self._take("encode")
        return "encoded"

    def start(self, _: object) -> str:
        return "state"

    def cycle(self, state: str, _: object) -> str:
        self._take("cycle")
        return state


def test_the_least_of_an_engines_times_counts() -> None:
    engine = Hindered(encode_s=0.003, cycle_s=0.0005)
    config = load_weights(RELEASED).entry.config.changed(convergence={"n_cycles": 1})

    encode_ms, segment_ms = measured_milliseconds(
        {"native": engine},  # type: ignore[dict-item]  # only what is measured
        config,
        lambda: engine.now_s,
    )

    assert encode_ms == {"native": pytest.approx(3.0)}
    assert segment_ms == {"native": pytest.approx(0.5)}


def a_released(folder: Path, seed: int) -> Weights:
    folder.mkdir()
    save_release(folder, a_model(seed=seed), a_card())
    return load_weights(folder)


def test_another_model_is_measured_for_itself(tmp_path: Path) -> None:
    one, other = a_released(tmp_path / "one", 1), a_released(tmp_path / "two", 2)

    for weights, folder in ((one, "one"), (other, "two")):
        choose_engine(tmp_path / folder, weights, "auto", state_dir=tmp_path)

    assert len(list((tmp_path / "engines").iterdir())) == 2


def test_a_coarse_engine_is_held_to_what_it_was_admitted_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = load_weights(RELEASED)
    choose_engine(RELEASED, weights, "native8", state_dir=tmp_path)
    path = facts_path(tmp_path, weights.entry.sha256)
    facts = read_facts(path)
    write_facts(path, replace(facts, differences={"native8": facts.differences["native8"] / 2}))

    with pytest.raises(EngineRefused, match="when the gate admitted it"):
        choose_engine(RELEASED, weights, "native8", state_dir=tmp_path)


def test_other_features_than_the_stored_ones_keep_coarse_engines_out(tmp_path: Path) -> None:
    weights = a_released(tmp_path / "models", 3)

    with pytest.raises(EngineRefused, match=r"no inputs: the model reads \(3, 8\) features"):
        choose_engine(tmp_path / "models", weights, "native8")


@pytest.mark.parametrize("content", ["", "[]", '{"encode_ms": 1}', '{"encode_ms": "soon"}'])
def test_facts_that_make_no_sense_are_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "facts.json"
    path.write_text(content)

    assert read_facts(path) == EngineFacts()


def test_facts_that_cannot_be_kept_cost_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    write_facts(tmp_path / "file" / "facts.json", EngineFacts({"onnx": 1.0}))

    assert chosen(50.0, tmp_path / "absent").name in ("native", "onnx")
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"action_agreement": 0.98}, "98.00% of the actions agree, 99% must"),
        ({"max_probability_shift": 0.021}, "a probability moves by 0.0210, 0.02 is allowed"),
        ({"max_probability_shift": float("nan")}, "moves by nan"),
        ({"halting_depth_agreement": 0.96}, "96.00% halt at the same depth, 97% must"),
    ],
)
def test_the_gate_says_what_was_missed(change: dict[str, float], text: str) -> None:
    assert AGREED.refusal == ""
    assert text in replace(AGREED, **change).refusal  # type: ignore[arg-type]  # floats only


def test_the_stored_inputs_are_those_of_the_demo_candles() -> None:
    from safetensors.numpy import load_file

    stored, made = load_file(PATH), gate_inputs()

    assert stored.keys() == made.keys()
    for name, value in made.items():
        assert np.allclose(stored[name], value, rtol=1e-3, atol=1e-5), name


def test_a_window_of_any_length_ends_at_the_decision() -> None:
    card = load_weights(RELEASED).entry
    batch = gate_batch(card)
    for bars in (32, 96):
        inputs = card.config.changed(inputs={"window_bars": bars})
        other = gate_batch(card.model_copy(update={"config": inputs}))

        other.check(inputs)
        shown = min(bars, 64)
        assert np.array_equal(other.bars[:, -shown:], batch.bars[:, -shown:])
        assert other.bars_mask.sum(1).tolist() == [shown] * 128
    batch.check(card.config)
    assert set(batch.instrument.tolist()) == {0, 1}


def test_inputs_of_another_version_of_the_features_are_refused() -> None:
    card = load_weights(RELEASED).entry
    features = card.features.model_copy(update={"schema_sha256": "0" * 64})

    with pytest.raises(NoGateInputs, match="the model reads features 0000"):
        gate_batch(card.model_copy(update={"features": features}))
