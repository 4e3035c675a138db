"""HRMState: round trips, rows, and what is refused."""

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hrm.state import HRMState


def a_state(
    rows: int = 3, tokens: int = 2, seed: int = 0, dtype: torch.dtype | None = None
) -> HRMState:
    generator = torch.Generator().manual_seed(seed)
    states = (
        torch.randn(rows, tokens, 6, generator=generator),
        torch.randn(rows, tokens, 4, generator=generator),
    )
    start = HRMState.start(states, torch.rand(rows, generator=generator), budget=16)
    return start.to(dtype=dtype)


def assert_same(one: HRMState, other: HRMState) -> None:
    for field in fields(HRMState):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        assert mine.dtype == theirs.dtype, field.name
        assert torch.equal(mine, theirs), field.name


def test_the_fields_are_those_of_the_design_document() -> None:
    assert [field.name for field in fields(HRMState)] == [
        "h_module_state",
        "l_module_state",
        "cycle_count",
        "segment_count",
        "market_complexity",
        "computation_budget",
    ]


@given(
    rows=st.integers(1, 5),
    tokens=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_a_state_comes_back_from_bytes_exactly(
    rows: int, tokens: int, dtype: torch.dtype, seed: int
) -> None:
    state = a_state(rows, tokens, seed, dtype)

    assert_same(HRMState.from_bytes(state.to_bytes()), state)


def test_half_precision_and_back_loses_less_than_a_thousandth() -> None:
    state = a_state(seed=4)

    back = state.to(dtype=torch.float16).to(dtype=torch.float32)

    assert torch.allclose(back.h_module_state, state.h_module_state, rtol=1e-3, atol=1e-6)
    assert torch.equal(back.market_complexity, state.market_complexity)
    assert back.cycle_count.dtype == torch.int64


@given(rows=st.integers(1, 6))
def test_splitting_into_rows_and_joining_again_changes_nothing(rows: int) -> None:
    state = a_state(rows)

    parts = [state.rows(torch.tensor([row])) for row in range(rows)]

    assert_same(HRMState.join(parts), state)


def test_a_segment_counts_up_and_uses_budget_and_leaves_the_graph() -> None:
    state = a_state(2)
    moved = state.h_module_state.clone().requires_grad_() * 2.0

    after = state.after_segment((moved, state.l_module_state), cycles=5)

    assert after.segment_count.tolist() == [1, 1]
    assert after.cycle_count.tolist() == [5, 5]
    assert after.computation_budget.tolist() == [15, 15]
    assert not after.h_module_state.requires_grad
    assert len(after) == 2


def test_a_state_moves_between_devices_as_one() -> None:
    moved = a_state().to("meta")

    assert {getattr(moved, field.name).device.type for field in fields(HRMState)} == {"meta"}


def test_fields_on_different_devices_are_refused() -> None:
    state = a_state()

    with pytest.raises(ValueError, match="l_module_state is on meta but h_module_state on cpu"):
        replace(state, l_module_state=state.l_module_state.to("meta"))


def test_fields_of_different_batches_are_refused() -> None:
    state = a_state(3)

    with pytest.raises(ValueError, match=r"cycle_count must have 1 axes.*length 3.*was \[2\]"):
        replace(state, cycle_count=torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("damage", [lambda data: data[:-3], lambda _: b"", lambda _: b"\x80\x04."])
def test_damaged_bytes_are_refused(damage: object) -> None:
    assert callable(damage)

    with pytest.raises(ValueError, match="not a stored HRMState"):
        HRMState.from_bytes(damage(a_state().to_bytes()))


def test_bytes_of_something_else_are_refused_with_what_they_hold() -> None:
    from safetensors.torch import save

    with pytest.raises(ValueError, match="it holds \\['weight'\\]"):
        HRMState.from_bytes(save({"weight": torch.zeros(2)}))


def test_nothing_cannot_be_joined() -> None:
    with pytest.raises(ValueError, match="nothing to join"):
        HRMState.join([])
