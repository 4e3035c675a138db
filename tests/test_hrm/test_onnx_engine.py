"""The fast engine: the answers of PyTorch without PyTorch, or the eager engine and a reason."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_builders import a_batch, a_card, a_config, a_model

from hrm.act import AdaptiveComputationTime
from hrm.config import AdaptiveComputationConfig, HRMConfig, PresetName
from hrm.eager_engine import EagerEngine
from hrm.halting import should_halt
from hrm.integrity import load_release, save_release
from hrm.manifest import IntegrityError
from hrm.model import HierarchicalReasoningModel
from hrm.onnx_engine import OnnxEncoder, OnnxEngine
from hrm.onnx_graphs import BLOCK, Bits, quantised
from hrm.parity import TOLERANCE, NumpyReference, largest_difference
from hrm.weights import Arrays, load_weights, shapes

RELEASED = Path(__file__).parents[2] / "models"
CYCLES = 4
REGISTERS = {"tokens_in_loop": 3}


def arrays_of(model: HierarchicalReasoningModel) -> Arrays:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def an_onnx_engine(arrays: Arrays, config: HRMConfig, bits: Bits = 32) -> OnnxEngine:
    return OnnxEngine(arrays, config, OnnxEncoder(arrays, config), bits=bits)


@cache
def a_fast_engine(name: str) -> tuple[EagerEngine, OnnxEngine, HRMConfig]:
    makers: dict[str, Callable[[], HierarchicalReasoningModel]] = {
        "released": lambda: load_release(RELEASED).model,
        "production": lambda: a_model(HRMConfig()),
        "registers": lambda: a_model(a_config(architecture=REGISTERS)),
    }
    model = makers[name]()
    return EagerEngine(model), an_onnx_engine(arrays_of(model), model.config), model.config


@pytest.mark.parametrize("rows", [1, 5, 20])
@pytest.mark.parametrize("name", ["released", "production", "registers"])
def test_every_reading_is_that_of_pytorch_also_with_bars_absent(name: str, rows: int) -> None:
    eager, fast, config = a_fast_engine(name)
    batch = a_batch(config, rows)
    batch.bars_mask[0, : config.inputs.window_bars // 2] = False
    encoded = eager.encode(batch), fast.encode(batch)
    states = eager.start(encoded[0]), fast.start(encoded[1])

    for _ in range(CYCLES):
        after = eager.cycle(states[0], encoded[0]), fast.cycle(states[1], encoded[1])
        residuals = eager.residual(states[0], after[0]), fast.residual(states[1], after[1])
        states = after
        expected, found = eager.read(states[0]), fast.read(states[1])

        assert np.allclose(residuals[1], residuals[0], rtol=0, atol=1e-5)
        for head, value in vars(expected).items():
            assert getattr(found, head).shape == value.shape
            assert np.allclose(getattr(found, head), value, rtol=0, atol=5e-5), head


@pytest.mark.parametrize("name", ["released", "production"])
def test_a_row_thinks_the_same_alone_and_in_a_batch(name: str) -> None:
    _, fast, config = a_fast_engine(name)
    encoded = fast.encode(a_batch(config, 20))
    together = fast.cycle(fast.start(encoded), encoded)

    alone = fast.cycle(fast.start(encoded[7:8]), encoded[7:8])

    assert all(np.array_equal(a[7:8], b) for a, b in zip(together, alone, strict=True))


def test_a_cycle_leaves_the_state_before_it_readable() -> None:
    _, fast, config = a_fast_engine("registers")
    encoded = fast.encode(a_batch(config))
    state = fast.start(encoded)
    before = fast.read(state)

    fast.cycle(state, encoded)

    assert np.array_equal(fast.read(state).action_logits, before.action_logits)


@pytest.mark.parametrize("tokens", [1, 3])
def test_the_reference_in_numpy_is_the_model(tokens: int) -> None:
    model = a_model(a_config(architecture={"tokens_in_loop": tokens}))

    reference = NumpyReference(arrays_of(model), model.config)

    assert largest_difference(EagerEngine(model), arrays_of(model), model.config) < 1e-5
    assert largest_difference(reference, arrays_of(model), model.config) == 0.0


def test_one_wrong_weight_is_seen_by_the_check() -> None:
    model = a_model()
    arrays = dict(arrays_of(model))
    name = "core.l_module.stack.blocks.0.feed_forward.down.weight"
    engine = an_onnx_engine(arrays | {name: arrays[name] * np.float32(1.05)}, model.config)

    assert largest_difference(engine, arrays, model.config) > TOLERANCE


@pytest.mark.parametrize("preset", ["production", "medium", "small"])
@pytest.mark.parametrize("tokens", [1, 2])
def test_shapes_are_those_of_what_the_model_saves(preset: PresetName, tokens: int) -> None:
    config = HRMConfig.preset(preset).changed(architecture={"tokens_in_loop": tokens})
    with torch.device("meta"):
        state = HierarchicalReasoningModel(config).state_dict()

    assert shapes(config) == {name: tuple(value.shape) for name, value in state.items()}


@given(
    st.floats(width=32, allow_subnormal=False),
    st.floats(width=32, allow_subnormal=False),
    st.integers(1, 6),
    st.integers(1, 6),
)
def test_serving_halts_where_training_does(
    halt: float, onward: float, segments: int, floor: int
) -> None:
    act = AdaptiveComputationTime(AdaptiveComputationConfig(m_max=5))

    in_training = act.should_halt(torch.tensor([[halt, onward]]), segments, floor)

    assert should_halt(halt, onward, segments, floor, 5) == bool(in_training)


def test_weights_are_those_of_the_verified_release(tmp_path: Path) -> None:
    model = a_model()
    save_release(tmp_path, model, a_card())

    weights = load_weights(tmp_path)

    assert weights.arrays.keys() == model.state_dict().keys()
    assert all(np.array_equal(weights.arrays[n], v) for n, v in arrays_of(model).items())
    path = tmp_path / weights.name
    path.write_bytes(path.read_bytes()[:-1] + b"\x00\x01")
    with pytest.raises(IntegrityError, match="has SHA-256"):
        load_weights(tmp_path)


def test_eight_bits_round_a_weight_by_at_most_half_a_step() -> None:
    matrix = np.random.default_rng(5).normal(size=(6, 96)).astype(np.float32)
    matrix[0, :BLOCK] = 0.0

    codes, scales = quantised(matrix)

    back = ((codes.astype(np.float32) - 128.0) * scales[..., None]).reshape(matrix.shape)
    steps = np.repeat(scales, BLOCK, axis=1)
    assert (np.abs(back - matrix) <= 0.5001 * steps).all()
    assert not back[0, :BLOCK].any()


def test_the_loop_in_eight_bits_stays_near_the_fine_one_but_is_another() -> None:
    model = load_release(RELEASED).model

    engine = an_onnx_engine(arrays_of(model), model.config, bits=8)

    difference = largest_difference(engine, arrays_of(model), model.config)
    assert TOLERANCE < difference < 0.3


def test_serving_the_released_model_imports_no_torch() -> None:
    code = (
        "import sys, time; from pathlib import Path; from hrm.agent import HRMAgent\n"
        "agent = HRMAgent.load(Path(sys.argv[1]), time.monotonic_ns); agent.warm_up()\n"
        "print(agent.choice.name, 'torch' in sys.modules)"
    )

    ran = subprocess.run(
        [sys.executable, "-c", code, str(RELEASED)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ,
        cwd=RELEASED.parent,
    )

    name, has_torch = ran.stdout.split()
    assert name in ("native", "onnx")
    assert has_torch == "False"
