"""Residuals and their trends."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_builders import a_model, some_inputs
from torch import Tensor
from torch.autograd.functional import jacobian

from hrm.config import HRMConfig, PresetName
from hrm.convergence import follow_perturbation, perturbation_growth, relative_residual
from hrm.model import HierarchicalReasoningModel
from hrm.residuals import HierarchicalConvergence


def following(factor: float, cycles: int = 8, threshold: float = 1e-6) -> HierarchicalConvergence:
    convergence = HierarchicalConvergence(threshold)
    for cycle in range(cycles):
        convergence.observe(0.5 * factor**cycle, 0.5)
    return convergence


def test_the_residual_is_the_change_relative_to_the_size_of_each_row() -> None:
    before = torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]]])
    after = torch.tensor([[[3.0, 0.0]], [[1.0, 0.0]]])

    assert relative_residual(before, after).tolist() == pytest.approx([4.0 / 3.0, 0.0])


@given(factor=st.floats(0.1, 1.9), cycles=st.integers(2, 20))
def test_the_rate_is_the_factor_of_a_geometric_residual(factor: float, cycles: int) -> None:
    # The smallest residual of this range, 0.5 * 0.1 ** 19, lies under the floor of the logarithm.
    convergence = following(max(factor, 0.3), cycles)

    assert convergence.rate("h") == pytest.approx(max(factor, 0.3), rel=1e-6)


@pytest.mark.parametrize(
    ("factor", "trend"),
    [
        (0.5, "converging"),
        (0.97, "converging"),
        (0.99, "stalled"),
        (1.01, "stalled"),
        (1.1, "diverging"),
    ],
)
def test_the_trend_says_where_the_residual_goes(factor: float, trend: str) -> None:
    assert following(factor).trend("h") == trend
    assert following(factor).trend("l") == "stalled"


def test_a_module_that_has_arrived_counts_as_converging() -> None:
    convergence = HierarchicalConvergence(1e-6)
    for _ in range(4):
        convergence.observe(1e-7, 0.0)

    assert convergence.trend("h") == "converging"
    assert convergence.trend("l") == "converging"


def test_both_modules_must_be_still_for_convergence() -> None:
    convergence = HierarchicalConvergence(1e-3)

    assert not convergence.is_converged()
    convergence.observe(1e-4, 0.1)
    assert not convergence.is_converged()
    convergence.observe(1e-4, 1e-3)
    assert convergence.is_converged()
    assert not convergence.is_converged(1e-5)


def test_before_the_second_cycle_nothing_is_known() -> None:
    convergence = HierarchicalConvergence(1e-6)

    assert convergence.residual("h") == math.inf
    assert convergence.trend("h") == "stalled"


def test_only_the_last_eight_cycles_count() -> None:
    convergence = following(1.5, cycles=20)
    for cycle in range(8):
        convergence.observe(0.5**cycle, 0.5)

    assert convergence.rate("h") == pytest.approx(0.5)


@pytest.mark.parametrize("residual", [float("nan"), -0.1])
def test_a_residual_that_is_no_size_is_refused(residual: float) -> None:
    with pytest.raises(ValueError, match="the l residual must be a number from 0 up, was"):
        HierarchicalConvergence(1e-6).observe(0.1, residual)


def test_a_contracting_core_forgets_a_perturbation_and_a_wild_one_does_not() -> None:
    encoded = a_model().encode(some_inputs(batch=8)).detach()
    calm, wild = a_model(seed=3).core, a_model(seed=3).core
    with torch.no_grad():
        for parameter in calm.parameters():
            parameter.mul_(0.5)
        for stack in (wild.h_module.stack, wild.l_module.stack):
            for parameter in stack.parameters():
                parameter.mul_(3.0)  # the states alone: a stronger input would only steady them

    shrinking = perturbation_growth(calm, encoded, segments=3, seed=1)
    growing = perturbation_growth(wild, encoded, segments=3, seed=1)

    assert shrinking < 1.0 < growing


@pytest.mark.parametrize("preset", ["production", "medium", "small"])
def test_every_preset_contracts_before_it_has_learned_but_does_not_forget_at_once(
    preset: PresetName,
) -> None:
    torch.manual_seed(1)
    model = HierarchicalReasoningModel(HRMConfig.preset(preset))
    width = model.config.architecture.h_module.hidden_size
    encoded = torch.randn(4, 1, width, generator=torch.Generator().manual_seed(2))

    assert 0.3 < perturbation_growth(model.core, encoded, segments=2, seed=1) < 1.0


def test_measuring_growth_leaves_training_on_and_draws_the_same_each_time() -> None:
    model = a_model().train()
    encoded = model.encode(some_inputs()).detach()

    growth = [perturbation_growth(model.core, encoded, segments=2, seed=5) for _ in range(2)]

    assert growth[0] == growth[1]
    assert model.core.training


def test_growth_is_the_same_for_small_and_for_smaller_changes_however_deep() -> None:
    model = a_model()
    encoded = model.encode(some_inputs(batch=8)).detach()

    growth = [
        perturbation_growth(model.core, encoded, segments=12, seed=1, scale=scale)
        for scale in (1e-2, 1e-3)
    ]

    assert growth[0] == pytest.approx(growth[1], rel=0.05)


def test_at_a_fixed_point_growth_is_the_spectral_radius_of_the_map() -> None:
    core = a_model(seed=3).core.double()
    encoded = torch.randn(1, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    state = core.initial_state(1)
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.mul_(0.5)  # a small enough map contracts
        for _ in range(2000):
            state = core.cycle(state, encoded)

    def one_cycle(flat: Tensor) -> Tensor:
        z_h, z_l = core.cycle((flat[:16].view(1, 1, 16), flat[16:].view(1, 1, 8)), encoded)
        return torch.cat((z_h.flatten(), z_l.flatten()))

    flat = torch.cat((state[0].flatten(), state[1].flatten()))
    around: Tensor = jacobian(one_cycle, flat)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    radius = float(torch.linalg.eigvals(around).abs().max())

    with torch.no_grad():
        _, growth = follow_perturbation(
            core,
            state,
            encoded,
            cycles=400,
            scale=1e-6,
            generator=torch.Generator().manual_seed(1),
        )

    assert math.exp(float(growth[0]) / 400) == pytest.approx(radius, rel=0.02)


def test_a_perturbation_is_followed_on_a_graph_of_one_cycle() -> None:
    core = a_model().train().core
    encoded = a_model().encode(some_inputs()).detach()

    _, growth = follow_perturbation(core, core.initial_state(len(encoded)), encoded, cycles=5)
    growth.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    slopes = [p.grad for p in core.parameters()]
    assert all(slope is not None and bool(torch.isfinite(slope).all()) for slope in slopes)


def test_a_change_that_is_forgotten_altogether_has_a_finite_slope() -> None:
    core = a_model().core
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.zero_()  # every update is a norm of what came in, which undoes the change
    encoded = torch.zeros(2, 1, 16)
    state = (torch.zeros(2, 1, 16), torch.zeros(2, 1, 8))

    _, growth = follow_perturbation(core, state, encoded, cycles=2, scale=0.0)
    growth.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    assert bool(torch.isfinite(growth).all())
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in core.parameters())


def test_a_perturbation_followed_nowhere_is_refused() -> None:
    core = a_model().core

    with pytest.raises(ValueError, match="at least one cycle, was 0"):
        follow_perturbation(core, core.initial_state(1), torch.zeros(1, 1, 16), cycles=0)
