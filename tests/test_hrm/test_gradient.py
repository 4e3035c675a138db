"""What the cheap gradients are, and that their memory does not grow with depth."""

import pytest
import torch
from model_builders import a_config, a_model, some_inputs
from torch import Tensor
from torch.autograd.functional import jacobian

from hrm.model import Gradient, HierarchicalReasoningModel, ReasoningCore, State


def bytes_saved_for_backward(
    model: HierarchicalReasoningModel, cycles: int, gradient: Gradient
) -> int:
    """Count bytes of distinct storages kept for backward, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(some_inputs(batch=4), cycles=cycles, gradient=gradient)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("gradient", ["one_step", "last_cycle"])
def test_memory_for_backward_is_the_same_at_32_cycles_as_at_1(gradient: Gradient) -> None:
    model = a_model(a_config(architecture={"tokens_in_loop": 3})).train()

    assert bytes_saved_for_backward(model, 32, gradient) == bytes_saved_for_backward(
        model, 1, gradient
    )


def test_memory_of_full_backpropagation_grows_with_every_cycle() -> None:
    model = a_model(a_config(architecture={"tokens_in_loop": 3})).train()
    one, two, three, many = (
        bytes_saved_for_backward(model, cycles, "bptt") for cycles in (1, 2, 3, 32)
    )

    assert three - two == two - one > 0
    assert many > 10 * bytes_saved_for_backward(model, 32, "one_step")


@pytest.mark.parametrize("gradient", ["one_step", "last_cycle"])
@pytest.mark.parametrize("cycles", [1, 3])
def test_memory_does_not_grow_with_segments(gradient: Gradient, cycles: int) -> None:
    model = a_model().train()
    inputs = some_inputs()
    state, first = model(inputs, cycles=cycles, gradient=gradient)
    _, second = model(inputs, state, cycles=cycles, gradient=gradient)

    torch.autograd.backward(first.value.sum())
    # The first graph is gone now: this fails if the second still hangs on it.
    torch.autograd.backward(second.value.sum())

    assert state[0].requires_grad  # there was a graph to hang on


def test_all_gradients_agree_on_what_the_answer_is() -> None:
    model = a_model()
    inputs = some_inputs()
    modes: tuple[Gradient, ...] = ("one_step", "last_cycle", "bptt")

    states = [model(inputs, cycles=3, gradient=mode)[0] for mode in modes]

    assert all(
        torch.equal(states[0][0], z_h) and torch.equal(states[0][1], z_l) for z_h, z_l in states
    )


def a_fixed_point() -> tuple[ReasoningCore, Tensor, State]:
    """Find, in double precision, a state that another cycle does not change."""
    core = a_model(seed=3).core.double()
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.mul_(0.5)  # a small enough map contracts
        encoded = torch.randn(
            1, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(4)
        )
        state = core.initial_state(1)
        for _ in range(2000):
            state = core.cycle(state, encoded)
        after = core.cycle(state, encoded)
    assert all(torch.allclose(a, b, atol=1e-12, rtol=0) for a, b in zip(state, after, strict=True))
    return core, encoded, state


def one_update(core: ReasoningCore, encoded: Tensor, flat: Tensor) -> Tensor:
    """Apply one L and one H update to [z_h, z_l] laid out flat: [24] -> [24]."""
    z_h, z_l = flat[:16].view(1, 1, 16), flat[16:].view(1, 1, 8)
    z_l = core.l_module(z_l, core.l_module.injection(z_h, encoded))
    return torch.cat((core.h_module(z_h, z_l).flatten(), z_l.flatten()))


def gradients(core: ReasoningCore, loss: Tensor) -> Tensor:
    grads = torch.autograd.grad(loss, list(core.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


def test_the_one_step_gradient_is_the_first_term_of_the_implicit_gradient() -> None:
    core, encoded, state = a_fixed_point()
    weights = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    outward = torch.cat((weights, torch.zeros(8, dtype=torch.float64)))  # the loss reads z_h alone
    flat = torch.cat((state[0].flatten(), state[1].flatten()))
    at_fixed_point: Tensor = jacobian(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        lambda z: one_update(core, encoded, z), flat
    )
    assert float(torch.linalg.eigvals(at_fixed_point).abs().max()) < 1.0

    one_step = gradients(
        core, core.segment(state, encoded, cycles=1, gradient="one_step")[0].flatten() @ weights
    )
    first_term = gradients(core, one_update(core, encoded, flat) @ outward)
    identity = torch.eye(24, dtype=torch.float64)
    adjoint = torch.linalg.solve((identity - at_fixed_point).T, outward)
    implicit = gradients(core, one_update(core, encoded, flat) @ adjoint)
    through_time = gradients(
        core, core.segment(state, encoded, cycles=200, gradient="bptt")[0].flatten() @ weights
    )

    assert torch.allclose(one_step, first_term, rtol=1e-12, atol=1e-14)
    assert torch.allclose(through_time, implicit, rtol=1e-6, atol=1e-9)  # the formula is the limit
    assert not torch.allclose(one_step, implicit, rtol=1e-2)
    assert float(torch.cosine_similarity(one_step, implicit, dim=0)) > 0.0


def test_the_last_cycle_follows_the_implicit_gradient_more_closely_than_one_step() -> None:
    core, encoded, state = a_fixed_point()
    weights = torch.randn(16, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    modes: tuple[Gradient, ...] = ("one_step", "last_cycle", "bptt")

    one_step, last_cycle, implicit = (
        gradients(
            core,
            core.segment(state, encoded, cycles=200, gradient=mode)[0].flatten() @ weights,
        )
        for mode in modes
    )

    assert torch.cosine_similarity(last_cycle, implicit, dim=0) > torch.cosine_similarity(
        one_step, implicit, dim=0
    )


def test_mixed_precision_keeps_the_gradient_of_every_looped_weight() -> None:
    model = a_model()
    inputs = some_inputs(batch=16)

    _, exact = model(inputs, gradient="one_step")
    wanted = gradients(model.core, exact.value.sum())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, rough = model(inputs, gradient="one_step")
    found = gradients(model.core, rough.value.float().sum())

    assert float(torch.cosine_similarity(wanted, found, dim=0)) > 0.9
