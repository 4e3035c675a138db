"""Adaptive depth: floors, exploration, halting per row, and what the Q head learns."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_builders import a_config, a_model, some_inputs

from hrm.act import AdaptiveComputationTime
from hrm.config import AdaptiveComputationConfig

ACT = AdaptiveComputationTime(AdaptiveComputationConfig())


@pytest.mark.parametrize(
    ("complexity", "floor"),
    [(0.0, 1), (0.5, 1), (0.51, 2), (0.8, 2), (0.81, 4), (1.0, 4)],
)
def test_complex_markets_get_more_segments(complexity: float, floor: int) -> None:
    assert ACT.min_segments(complexity) == floor


def test_the_floor_never_exceeds_the_maximum() -> None:
    shallow = AdaptiveComputationTime(AdaptiveComputationConfig(m_max=3))

    assert shallow.min_segments(0.9) == 3


@pytest.mark.parametrize("complexity", [-0.01, 1.01, float("nan")])
def test_a_complexity_outside_its_range_is_refused(complexity: float) -> None:
    with pytest.raises(ValueError, match=r"complexity must be in \[0, 1\], was"):
        ACT.min_segments(complexity)


def test_exploration_draws_one_with_its_probability_and_else_all_other_depths() -> None:
    floors = ACT.draw_floors(20_000, torch.Generator().manual_seed(1))

    shares = torch.bincount(floors, minlength=17) / 20_000
    assert float(shares[1]) == pytest.approx(0.8, abs=0.01)
    assert float(shares[0]) == 0.0
    assert torch.allclose(shares[2:], torch.full((15,), 0.2 / 15), atol=0.004)


def test_a_maximum_of_one_leaves_nothing_to_explore() -> None:
    single = AdaptiveComputationTime(AdaptiveComputationConfig(m_max=1, m_min_prob=0.0))

    assert single.draw_floors(4).tolist() == [1, 1, 1, 1]


def test_the_same_seed_explores_the_same_way() -> None:
    draws = [
        (ACT.draw_floors(50, generator), ACT.draw_ignored(50, generator))
        for generator in (torch.Generator().manual_seed(7), torch.Generator().manual_seed(7))
    ]

    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1], draws[1][1])


def test_a_halt_is_ignored_with_probability_epsilon() -> None:
    ignored = ACT.draw_ignored(20_000, torch.Generator().manual_seed(2))

    assert float(ignored.float().mean()) == pytest.approx(0.1, abs=0.01)


@given(
    halt=st.floats(-20, 20, width=32),
    onward=st.floats(-20, 20, width=32),
    segments=st.integers(1, 20),
    floor=st.integers(1, 4),
    ignored=st.booleans(),
)
def test_a_row_halts_at_the_maximum_or_when_it_may_and_wants_to(
    halt: float, onward: float, segments: int, floor: int, ignored: bool
) -> None:
    q = torch.tensor([[halt, onward]])

    stops = ACT.should_halt(q, segments, floor, torch.tensor([ignored]))

    assert stops.tolist() == [
        segments >= 16 or (halt > onward and segments >= floor and not ignored)
    ]


def test_each_row_halts_for_itself() -> None:
    q = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [float("nan"), 0.0]])
    segments = torch.tensor([2, 2, 1, 16, 2])

    assert ACT.should_halt(q, segments, 2).tolist() == [True, False, False, True, False]


def test_going_on_is_worth_the_better_choice_of_the_next_segment_less_its_price() -> None:
    next_q = torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [-9.0, -9.0]], requires_grad=True)
    segments = torch.tensor([5, 15, 16, 5])
    # The third row's next segment is the sixteenth, which can only halt; no chance is below zero.
    worth = (torch.sigmoid(torch.tensor([2.0, 2.0, 1.0, -9.0])) - 0.02).clamp_min(0.0)
    said = torch.logit(worth.clamp_min(1e-6)).requires_grad_()

    loss = ACT.onward_loss(said, next_q, segments, 0.02)
    torch.autograd.backward(loss.sum())

    assert said.grad is not None
    assert torch.allclose(said.grad, torch.zeros(4), atol=1e-5)
    assert bool((ACT.onward_loss(said + 0.5, next_q, segments, 0.02) > loss).all())
    assert next_q.grad is None


@given(chance=st.floats(0.01, 0.99))
def test_the_halt_loss_is_least_where_q_says_how_right_stopping_is(chance: float) -> None:
    right = torch.tensor([chance], dtype=torch.float64)
    q = torch.logit(right).requires_grad_()

    loss = ACT.halt_loss(q, right)
    torch.autograd.backward(loss.sum())

    assert q.grad is not None
    assert torch.allclose(q.grad, torch.zeros(1, dtype=torch.float64), atol=1e-9)
    assert bool((ACT.halt_loss(q + 0.5, right) > loss).all())


def test_a_halt_target_that_is_no_probability_is_refused() -> None:
    with pytest.raises(ValueError, match=r"right must be in \[0, 1\]"):
        ACT.halt_loss(torch.zeros(1), torch.tensor([1.5]))


def test_a_batch_of_mixed_halting_equals_its_rows_alone() -> None:
    model = a_model(seed=3)
    with torch.no_grad():
        model.q_head.bias.zero_()
        model.q_head.weight.normal_(generator=torch.Generator().manual_seed(2))
    act = AdaptiveComputationTime(a_config().adaptive_computation)
    inputs = some_inputs(batch=12)
    complexity = torch.linspace(0.0, 1.0, 12)

    together = act.think(model, inputs, complexity)
    alone = [
        act.think(model, inputs.rows(torch.tensor([row])), complexity[row : row + 1])
        for row in range(12)
    ]

    assert len(set(together.segments.tolist())) >= 3  # or nothing was mixed
    assert together.segments.tolist() == [int(one.segments) for one in alone]
    for name, value in vars(together.heads).items():
        singles = torch.cat([vars(one.heads)[name] for one in alone])
        assert torch.allclose(value, singles, atol=1e-4)
    floors = torch.tensor([act.min_segments(value) for value in complexity.tolist()])
    assert bool((together.segments >= floors).all())
