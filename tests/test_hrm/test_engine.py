"""The eager engine: the model as it is, from any thread, leaving that thread as it was."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from model_builders import a_batch, a_model, some_inputs

from hrm.eager_engine import EagerEngine
from hrm.engine import Reading


def think(engine: EagerEngine, cycles: int = 3) -> Reading:
    encoded = engine.encode(a_batch())
    state = engine.start(encoded)
    for _ in range(cycles):
        state = engine.cycle(state, encoded)
    return engine.read(state)


def test_the_engine_says_what_the_model_says() -> None:
    model = a_model()
    inputs = some_inputs()
    with torch.no_grad():
        encoded = model.encode(inputs)
        state = model.initial_state(3)
        for _ in range(3):
            state = model.cycle(state, encoded)
        expected = model.heads(state)

    reading = think(EagerEngine(model))

    for name, value in vars(expected).items():
        assert np.array_equal(getattr(reading, name), value.numpy())


def test_another_thread_gets_the_same_answer_without_a_graph() -> None:
    engine = EagerEngine(a_model())

    with ThreadPoolExecutor(max_workers=1) as pool:
        elsewhere = pool.submit(think, engine).result()
        encoded = pool.submit(engine.encode, a_batch()).result()

    assert np.array_equal(elsewhere.action_logits, think(engine).action_logits)
    assert encoded.is_inference()
    assert not encoded.requires_grad


def test_one_thread_computes_and_dropout_is_off() -> None:
    torch.set_num_threads(2)
    model = a_model().train()

    engine = EagerEngine(model)

    assert torch.get_num_threads() == 1
    assert not model.training
    assert np.array_equal(think(engine).q, think(engine).q)


def test_denormals_are_zero_inside_a_call_and_not_after_it() -> None:
    smallest_normal = 2.0**-1022
    halves_inside: list[float] = []
    model = a_model()
    model.core.h_module.register_forward_pre_hook(
        lambda *_: halves_inside.append(smallest_normal / 2.0)
    )

    think(EagerEngine(model), cycles=1)

    assert halves_inside == [0.0]
    assert smallest_normal / 2.0 > 0.0


def test_the_switches_are_put_back_after_a_refusal() -> None:
    engine = EagerEngine(a_model())
    batch = a_batch()
    batch.bars[0, 0, 0] = float("nan")

    with pytest.raises(ValueError, match=r"bars.* is nan"):
        engine.encode(batch)

    assert 2.0**-1022 / 2.0 > 0.0
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"account": np.zeros((3, 5), np.float32)}, r"account must be float32 of shape \[3, 6\]"),
        ({"context": np.zeros((3, 8))}, r"context must be float32 .* was float64"),
        ({"instrument": np.array([0, 4, 1])}, r"instrument 4 is outside the vocabulary 0\.\.3"),
        ({"timeframe": np.array([0, -1, 1])}, r"timeframe -1 is outside the vocabulary"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_by_name(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        EagerEngine(a_model()).encode(replace(a_batch(), **change))


def test_the_residual_shrinks_to_nothing_between_equal_states() -> None:
    engine = EagerEngine(a_model())
    encoded = engine.encode(a_batch())
    start = engine.start(encoded)
    after = engine.cycle(start, encoded)

    h, low = engine.residual(start, after)

    assert h.shape == low.shape == (3,)
    assert (h > 0.01).all()
    assert (low > 0.01).all()
    assert not np.any(engine.residual(after, after))


def test_rows_that_are_picked_think_on_without_the_others() -> None:
    engine = EagerEngine(a_model())
    encoded = engine.encode(a_batch())
    state = engine.cycle(engine.start(encoded), encoded)
    all_rows = engine.read(engine.cycle(state, encoded))

    some_state, some_encoded = engine.rows(state, encoded, [2, 0])
    some_rows = engine.read(engine.cycle(some_state, some_encoded))

    assert np.allclose(some_rows.action_logits, all_rows.action_logits[[2, 0]], atol=1e-6)
