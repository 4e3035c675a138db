"""The inference benchmark: its comparisons, on a few bars; no speed is judged here."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.engine_agreement import (
    BLOCK,
    agreement,
    frontier,
    real_batch,
    rounded_to_four_bits,
)
from benchmarks.engine_shapes import Shape, bound_ms, depths
from benchmarks.inference import MODELS, cold_start
from hrm.integrity import load_release


@pytest.fixture(scope="module")
def released() -> Shape:
    return Shape.of(MODELS)


def test_coarse_engines_are_compared_on_real_decisions(released: Shape) -> None:
    found = agreement(released, real_batch(released.weights, 12))

    assert found["onnx8"]["decisions"] == 12
    for figures in found.values():
        assert 0.0 < figures["max_probability_shift"] < 1.0
    shift = {name: figures["max_probability_shift"] for name, figures in found.items()}
    assert shift["onnx8"] < shift["h_in_4_bits"]


def test_an_engine_compared_with_itself_is_admitted(released: Shape) -> None:
    same = replace(
        released, engines={"onnx": released.engines["onnx"], "onnx8": released.engines["onnx"]}
    )

    found = agreement(same, real_batch(released.weights, 6))["onnx8"]

    assert (found["action_agreement"], found["max_probability_shift"]) == (1.0, 0.0)
    assert found["admitted"]


def test_the_frontier_ends_where_it_is_compared_with(released: Shape) -> None:
    steps = frontier(released, real_batch(released.weights, 6))

    assert [step["segments"] for step in steps] == list(range(1, 17))
    assert steps[-1]["agreement"] == 1.0


def test_what_a_segment_reads_follows_from_the_shape(
    released: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_release(MODELS).model
    once = sum(p.numel() for p in model.core.parameters()) + 128 + 64  # with the start states
    low = sum(p.numel() for p in model.core.l_module.stack.parameters())
    monkeypatch.setattr("benchmarks.engine_shapes.bandwidth", lambda _: 1e6)

    assert released.looped == (once, low)
    # Two cycles, two updates of L in each; a byte for each weight, a million of them a second.
    assert bound_ms(released, bits=8) == pytest.approx(2 * (once + low) / 1e3)


def test_every_engine_reaches_some_depth(released: Shape) -> None:
    found = depths(released, ["onnx", released.choice.name], rounds=2)

    assert set(found) == {"onnx", released.choice.name}
    assert all(0 <= depth <= 16 for depth in found.values())


def test_four_bits_hold_fifteen_values_of_each_block() -> None:
    matrix = np.random.default_rng(4).normal(size=(3, BLOCK + 9)).astype(np.float32)

    found = rounded_to_four_bits(matrix)

    for part, source in zip(np.split(found, [BLOCK], 1), np.split(matrix, [BLOCK], 1), strict=True):
        step = np.abs(source).max(1, keepdims=True) / 7
        assert np.abs(part - source).max() <= 0.5001 * step.max()
        assert np.abs(part / step - np.rint(part / step)).max() < 1e-4


def test_a_cold_start_loads_no_torch() -> None:
    found = cold_start(MODELS)

    assert found["serving_imports_torch"] is False
    assert found["rss_mib"] > 20
    assert found["served_by"] in ("native", "onnx")
