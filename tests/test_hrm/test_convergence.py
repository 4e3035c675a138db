"""Residuals and their trends."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_builders import a_model, some_inputs

from hrm.convergence import HierarchicalConvergence, perturbation_growth, relative_residual


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


def test_measuring_growth_leaves_training_on_and_draws_the_same_each_time() -> None:
    model = a_model().train()
    encoded = model.encode(some_inputs()).detach()

    growth = [perturbation_growth(model.core, encoded, segments=2, seed=5) for _ in range(2)]

    assert growth[0] == growth[1]
    assert model.core.training
