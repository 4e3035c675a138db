"""The eager engine: the model as it is, from any thread, leaving that thread as it was."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from model_builders import a_model, some_inputs

from hrm.engine import EagerEngine, Reading


def think(engine: EagerEngine, cycles: int = 3) -> Reading:
    encoded = engine.encode(some_inputs())
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
        encoded = pool.submit(engine.encode, some_inputs()).result()

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
    inputs = some_inputs()
    inputs.bars[0, 0, 0] = float("nan")

    with pytest.raises(ValueError, match=r"bars.* is nan"):
        engine.encode(inputs)

    assert 2.0**-1022 / 2.0 > 0.0
    assert not torch.is_inference_mode_enabled()


def test_a_wrong_device_is_refused() -> None:
    engine = EagerEngine(a_model())
    inputs = some_inputs()

    with pytest.raises(ValueError, match="account is on meta but the model is on cpu"):
        engine.encode(replace(inputs, account=inputs.account.to("meta")))


def test_the_residual_shrinks_to_nothing_between_equal_states() -> None:
    engine = EagerEngine(a_model())
    encoded = engine.encode(some_inputs())
    start = engine.start(encoded)
    after = engine.cycle(start, encoded)

    h, low = engine.residual(start, after)

    assert h > 0.01
    assert low > 0.01
    assert engine.residual(after, after) == (0.0, 0.0)
