"""The inference benchmark: its comparisons, on a few bars; no speed is judged here."""

import numpy as np
import pytest

from benchmarks.inference import MODELS, Course, Shape, agreement, cold_start, real_batch
from hrm.integrity import load_release
from hrm.weights import load_weights


@pytest.fixture(scope="module")
def released() -> Shape:
    return Shape.of(load_release(MODELS).model)


def test_a_row_halts_where_it_first_wants_to_at_or_above_its_floor() -> None:
    q = np.zeros((3, 4, 2), np.float32)
    q[0, :2, 0] = 1.0  # the first two rows want to halt at once
    q[1, 2, 0] = 1.0
    q[1, 1, 0] = 1.0
    course = Course(np.zeros((3, 4, 5)), q)

    assert course.depths([1, 2, 1, 1]).tolist() == [1, 2, 2, 3]


def test_the_gate_compares_real_decisions(released: Shape) -> None:
    batch = real_batch(load_weights(MODELS), 12)

    found = agreement(released, batch)

    assert found["gate"]["decisions"] == 12
    assert 0.0 < found["gate"]["max_probability_shift"] < 1.0
    assert found["agreement_with_full_depth"][-1] == 1.0
    assert len(found["agreement_with_full_depth"]) == 16


def test_an_engine_compared_with_itself_is_admitted(released: Shape) -> None:
    fine = released.engines["onnx_fp32"]
    same = Shape(
        released.config, {"onnx_fp32": fine, "onnx_8bit": fine}, released.looped, released.read
    )

    gate = agreement(same, real_batch(load_weights(MODELS), 6))["gate"]

    assert (gate["action_agreement"], gate["max_probability_shift"]) == (1.0, 0.0)
    assert gate["admitted"]


def test_what_a_segment_reads_follows_from_the_shape(released: Shape) -> None:
    model = load_release(MODELS).model
    once = sum(p.numel() for p in model.core.parameters()) + 128 + 64  # with the start states
    low = sum(p.numel() for p in model.core.l_module.stack.parameters())

    assert released.looped == once
    assert released.read == 2 * (once + low)  # two cycles, two updates of L in each


def test_a_cold_start_loads_no_torch() -> None:
    found = cold_start()

    assert found["serving_imports_torch"] is False
    assert found["rss_mib"] > 20
