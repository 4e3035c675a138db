"""The native engine: the answers of the model, the same bits in any batch and on any processor."""

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_builders import a_batch, a_config, a_model
from native_builders import a_kernel

from hrm.config import HRMConfig
from hrm.eager_engine import EagerEngine
from hrm.engine import Floats
from hrm.integrity import load_release
from hrm.model import HierarchicalReasoningModel
from hrm.native_engine import NativeBits, NativeEngine
from hrm.native_library import LEVELS, Block, Core, Level, Matrix, Module, Reading, Step
from hrm.native_packing import (
    LARGEST_CODE,
    PANEL,
    Format,
    coarsened,
    largest_peak,
    packed,
    packed_gate_up,
)
from hrm.parity import NumpyReference, largest_difference, residual, rows_stand_alone
from hrm.weights import Arrays

RELEASED = Path(__file__).parents[2] / "models"
BITS: tuple[NativeBits, ...] = (8, 16, 32)
CYCLES = 4


def arrays_of(model: HierarchicalReasoningModel) -> Arrays:
    return {name: value.numpy() for name, value in model.state_dict().items()}


@cache
def a_named_model(name: str) -> HierarchicalReasoningModel:
    if name == "released":
        return load_release(RELEASED).model
    configs = {
        "production": HRMConfig(),
        "tiny": a_config(),
        "registers": a_config(architecture={"tokens_in_loop": 3}),
    }
    return a_model(configs[name])


@cache
def an_engine(name: str, bits: NativeBits = 32, level: Level | None = None) -> NativeEngine:
    model = a_named_model(name)
    return NativeEngine(arrays_of(model), model.config, a_kernel(level), bits=bits)


def some_encoded(config: HRMConfig, rows: int) -> Floats:
    shape = (rows, config.architecture.tokens_in_loop, config.architecture.h_module.hidden_size)
    return np.random.default_rng(3).normal(size=shape).astype(np.float32)


def thought(engine: NativeEngine, encoded: Floats) -> tuple[Floats, Floats]:
    state = engine.start(encoded)
    for _ in range(CYCLES):
        state = engine.cycle(state, encoded)
    return state


@pytest.mark.parametrize("rows", [1, 5, 20])
@pytest.mark.parametrize("name", ["released", "production", "tiny", "registers"])
def test_every_reading_is_that_of_pytorch_also_with_bars_absent(name: str, rows: int) -> None:
    model = a_named_model(name)
    eager, fast = EagerEngine(model), an_engine(name)
    batch = a_batch(model.config, rows)
    batch.bars_mask[0, : model.config.inputs.window_bars // 2] = False
    encoded = eager.encode(batch), fast.encode(batch)
    states = eager.start(encoded[0]), fast.start(encoded[1])

    for _ in range(CYCLES):
        after = eager.cycle(states[0], encoded[0]), fast.cycle(states[1], encoded[1])
        residuals = eager.residual(states[0], after[0]), fast.residual(states[1], after[1])
        states = after
        expected, found = eager.read(states[0]), fast.read(states[1])

        for ours, theirs in zip(residuals[1], residuals[0], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)
        for head, value in vars(expected).items():
            assert getattr(found, head).shape == value.shape
            assert np.allclose(getattr(found, head), value, rtol=0, atol=5e-5), head


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bits", BITS)
def test_a_row_has_the_same_bits_alone_and_in_a_batch(bits: NativeBits, level: Level) -> None:
    engine = an_engine("production", bits, level)
    encoded = some_encoded(a_named_model("production").config, 20)
    together = thought(engine, encoded)

    for rows in (slice(7, 8), slice(3, 8)):
        apart = thought(engine, encoded[rows])

        assert all(np.array_equal(a[rows], b) for a, b in zip(together, apart, strict=True))
        of_all, of_some = vars(engine.read(together)), vars(engine.read(apart))
        assert all(np.array_equal(of_all[name][rows], of_some[name]) for name in of_all)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", ["released", "tiny", "registers"])
def test_avx2_and_avx512_give_the_same_bits(name: str, bits: NativeBits) -> None:
    narrow, wide = an_engine(name, bits, "avx2"), an_engine(name, bits, "avx512")
    batch = a_batch(a_named_model(name).config, 6)
    encoded = narrow.encode(batch)

    one, other = thought(narrow, encoded), thought(wide, encoded)

    assert np.array_equal(wide.encode(batch), encoded)
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@st.composite
def odd_configs(draw: st.DrawFn) -> HRMConfig:
    def module(most: int) -> dict[str, int]:
        heads = draw(st.sampled_from([1, 2, 3]))
        return {
            "hidden_size": 2 * heads * draw(st.integers(1, most // heads)),
            "num_layers": draw(st.integers(1, 3)),
            "feed_forward": draw(st.integers(1, most)),
            "num_heads": heads,
        }

    return a_config(
        architecture={
            "h_module": module(70),
            "l_module": module(50),
            "encoder": module(60) | {"patch_bars": draw(st.sampled_from([1, 2, 4]))},
            "tokens_in_loop": draw(st.sampled_from([1, 1, 2, 17])),
        },
        convergence={"n_cycles": 1, "t_timesteps": draw(st.integers(1, 3))},
    )


@settings(max_examples=25, deadline=None)
@given(odd_configs(), st.integers(1, 9), st.sampled_from([None, "avx2"]), st.sampled_from([32, 8]))
def test_any_size_is_the_reference_with_the_weights_as_they_are_stored(
    config: HRMConfig, rows: int, level: Level | None, bits: NativeBits
) -> None:
    arrays = dict(arrays_of(a_model(config)))
    engine = NativeEngine(arrays, config, a_kernel(level), bits=bits)
    if bits == 8:
        for name in [n for n in arrays if ".weight" in n and arrays[n].ndim == 2]:
            if name.startswith("core."):
                coarse = coarsened(arrays[name])
                arrays[name] = coarse.codes * coarse.scales[:, None]
            elif ".stack." in name:
                arrays[name] = arrays[name].astype(np.float16).astype(np.float32)
    reference = NumpyReference(arrays, config)
    encoded = some_encoded(config, rows)

    batch = a_batch(config, rows)
    batch.bars_mask[0, : config.inputs.window_bars // 2] = False

    read, expected_read = engine.encode(batch), reference.encode(batch)
    found = thought(engine, encoded)
    expected = reference.start(encoded)
    for _ in range(CYCLES):
        expected = reference.cycle(expected, encoded)

    # In eight bits the inputs of a product are rounded as well, to 16 bits.
    for ours, theirs in zip((read, *found), (expected_read, *expected), strict=True):
        assert np.abs(ours - theirs).max() < (1e-4 if bits == 32 else 5e-3)


def test_the_residual_is_that_of_the_reference_also_where_it_is_no_number() -> None:
    engine, config = an_engine("tiny"), a_named_model("tiny").config
    encoded = some_encoded(config, 3)
    before = engine.start(encoded)
    after = engine.cycle(before, encoded)

    found = engine.residual(before, after)

    for ours, one, other in zip(found, before, after, strict=True):
        assert ours == pytest.approx(residual(one, other), rel=1e-6)
    again = engine.residual((before[0], before[1]), after)  # another pair: computed anew
    assert all(np.array_equal(a, b) for a, b in zip(again, found, strict=True))
    wrong = after[0].copy()
    wrong[1, 0, 2] = np.nan
    h, _ = engine.residual(before, (wrong, after[1]))
    assert np.isnan(h).tolist() == [False, True, False]


@pytest.mark.parametrize("bits", BITS)
def test_what_is_no_number_stays_seen(bits: NativeBits) -> None:
    engine = an_engine("tiny", bits)
    encoded = some_encoded(a_named_model("tiny").config, 3)
    state = engine.start(encoded)
    state[0][1, 0, 5] = np.nan

    reading = engine.read(engine.cycle(state, encoded))

    assert np.isnan(reading.q[1]).all()
    assert np.isfinite(reading.q[[0, 2]]).all()


def test_a_cycle_leaves_what_it_was_given_as_it_was() -> None:
    engine, config = an_engine("released"), a_named_model("released").config
    encoded = some_encoded(config, 2)
    state = engine.start(encoded)
    before = [part.copy() for part in (*state, encoded)]

    engine.cycle(state, encoded)

    assert all(np.array_equal(a, b) for a, b in zip(before, (*state, encoded), strict=True))


def test_denormals_are_flushed_inside_a_call_only() -> None:
    engine, config = an_engine("tiny"), a_named_model("tiny").config
    encoded = some_encoded(config, 1)

    engine.cycle(engine.start(encoded), encoded)

    assert 2.0**-1022 / 2.0 > 0.0


def test_arrays_of_another_shape_or_type_are_refused_before_the_call() -> None:
    engine, config = an_engine("tiny"), a_named_model("tiny").config
    encoded = some_encoded(config, 2)
    state = engine.start(encoded)

    with pytest.raises(ValueError, match=r"takes float32 of shape \[1, 1, 16\]"):
        engine.cycle(state, encoded[:1])
    with pytest.raises(ValueError, match="was float64"):
        engine.cycle(state, encoded.astype(np.float64))
    with pytest.raises(ValueError, match=r"of shape \[2, 1, 8\]"):
        engine.residual(state, (state[0], state[0]))


def test_a_view_is_read_in_its_own_order() -> None:
    engine, config = an_engine("released"), a_named_model("released").config
    encoded = some_encoded(config, 6)

    found = thought(engine, encoded[::2])

    assert np.array_equal(found[0], thought(engine, encoded[::2].copy())[0])


@pytest.mark.parametrize("bits", BITS)
def test_rows_that_leave_a_batch_leave_the_others_as_they_are(bits: NativeBits) -> None:
    assert rows_stand_alone(an_engine("released", bits), a_named_model("released").config)


def test_one_wrong_weight_is_seen_by_the_check() -> None:
    model = a_named_model("tiny")
    arrays = dict(arrays_of(model))
    name = "core.l_module.stack.blocks.0.feed_forward.down.weight"
    wrong = arrays | {name: arrays[name] * np.float32(1.05)}
    engine = NativeEngine(wrong, model.config, a_kernel())

    assert largest_difference(engine, arrays, model.config) > 1e-4


def test_eight_bits_round_a_weight_by_at_most_half_a_step() -> None:
    matrix = np.random.default_rng(5).normal(size=(6, 96)).astype(np.float32)
    matrix[0] = 0.0

    coarse = coarsened(matrix)

    back = coarse.codes * coarse.scales[:, None]
    assert (np.abs(back - matrix) <= 0.5001 * coarse.scales[:, None]).all()
    assert not back[0].any()


@given(st.integers(1, 4096))
def test_no_sum_of_rounded_products_leaves_32_bits(panels: int) -> None:
    inputs = panels * PANEL

    peak = largest_peak(inputs)

    assert 0 < peak < 2**15
    assert LARGEST_CODE * peak * inputs < 2**31


def test_panels_hold_the_outputs_side_by_side_and_the_halves_apart() -> None:
    matrix = np.arange(6 * 4, dtype=np.float32).reshape(6, 4)

    found = packed_gate_up(matrix, Format.F32)

    assert found.panels.shape == (2, PANEL, PANEL)
    assert np.array_equal(found.panels[0, :4, :3].T, matrix[:3])
    assert np.array_equal(found.panels[1, :4, :3].T, matrix[3:])
    assert np.count_nonzero(found.panels) == np.count_nonzero(matrix)
    assert packed(matrix, Format.I8).panels.ctypes.data % 64 == 0


def test_the_structures_are_as_long_as_those_of_the_kernel() -> None:
    sizes = {Matrix: 40, Block: 160, Module: 96, Core: 200, Step: 64, Reading: 40}

    assert {kind: ctypes.sizeof(kind) for kind in sizes} == sizes
