"""Memory: what backward keeps does not grow with depth, and the cap on the process is held."""

import pytest
import torch
from model_builders import a_model, some_inputs
from torch import Tensor

from hrm.memory import HRMMemoryOptimizer, MemoryLimitExceededError, resident_bytes
from hrm.training.memory import (
    REMEDY,
    peak_resident_bytes,
    recompute_activations,
    saved_tensor_bytes,
)


def kept_bytes(cycles: int, gradient: str) -> int:
    model = a_model().train()
    inputs = some_inputs()
    encoded = model.encode(inputs).detach()
    state = model.initial_state(len(inputs))

    def forward() -> object:
        return model.segment(state, encoded, cycles=cycles, gradient=gradient)  # type: ignore[arg-type]  # by name

    return saved_tensor_bytes(forward, model.parameters())


@pytest.mark.parametrize("gradient", ["one_step", "last_cycle"])
def test_what_backward_keeps_is_the_same_for_one_cycle_and_for_thirty_two(gradient: str) -> None:
    assert kept_bytes(32, gradient) == kept_bytes(1, gradient) > 0


def test_what_full_backpropagation_keeps_grows_with_every_cycle() -> None:
    assert kept_bytes(8, "bptt") > 6 * kept_bytes(1, "bptt")


def gradients_and_kept_bytes(*, recompute: bool) -> tuple[dict[str, Tensor], int]:
    model = a_model().train()
    if recompute:
        recompute_activations(model)
    inputs = some_inputs(batch=8)
    torch.manual_seed(4)  # the same dropout masks
    kept = saved_tensor_bytes(lambda: model(inputs), model.parameters())
    torch.manual_seed(4)
    _, heads = model(inputs)
    torch.autograd.backward(heads.action_logits.square().sum() + heads.value.sum())
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, kept


def test_activations_computed_again_give_the_same_gradients_from_less_memory() -> None:
    plain, kept = gradients_and_kept_bytes(recompute=False)
    again, kept_again = gradients_and_kept_bytes(recompute=True)

    assert plain.keys() == again.keys()
    assert [name for name in plain if not torch.equal(plain[name], again[name])] == []
    assert kept_again < 0.6 * kept


def test_a_copy_made_before_does_not_compute_twice() -> None:
    model = a_model()
    copy = a_model()

    recompute_activations(model)

    inputs = some_inputs()
    with torch.no_grad():
        assert torch.equal(model(inputs)[1].q, copy(inputs)[1].q)
    assert model.state_dict().keys() == copy.state_dict().keys()


def test_a_kept_tensor_is_counted_once_and_parameters_not_at_all() -> None:
    weight = torch.ones(10, requires_grad=True)
    x = torch.ones(10, requires_grad=True)

    kept = saved_tensor_bytes(lambda: (x * x) * weight, [weight])

    assert kept == 2 * 10 * 4  # x, and x * x for the gradient of weight


def test_a_process_within_its_cap_goes_on() -> None:
    assert HRMMemoryOptimizer(1000.0, REMEDY).check() > 0


def test_a_process_beyond_its_cap_is_told_what_to_change() -> None:
    with pytest.raises(MemoryLimitExceededError, match=r"limit is 1e-06 GiB: lower .*batch_size"):
        HRMMemoryOptimizer(1e-6, REMEDY).check()


def test_a_cap_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="must be positive, was 0"):
        HRMMemoryOptimizer(0, REMEDY)


def test_the_peak_is_at_least_the_present() -> None:
    assert peak_resident_bytes() >= 0.9 * resident_bytes() > 1_000_000
