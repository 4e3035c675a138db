"""Samples: rewards that add up, positions that follow from actions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_builders import a_table

from hrm.config import Action
from hrm.training.market_table import split_by_date
from hrm.training.samples import draw_samples


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_the_rewards_of_all_actions_follow_from_one_move_and_the_cost(seed: int) -> None:
    table = a_table(cost_bps=3.0)
    rows = split_by_date(table).train

    samples = draw_samples(table, rows, 16, np.random.default_rng(seed))

    # Costs in units of volatility, recovered from the table: the samples do not carry their rows.
    costs = np.array([table.side_cost(int(row)) for row in rows])
    for i in range(16):
        valid, reward, move = samples.valid[i], samples.reward[i], samples.move[i]
        sign = int(np.sign(samples.observation.account[i, 1]))
        assert samples.valid[i, samples.label[i]]
        assert reward[Action.HOLD] == pytest.approx(sign * move, abs=1e-5)
        if sign == 0:
            assert set(np.flatnonzero(valid)) == {Action.BUY_LONG, Action.SELL_SHORT, Action.HOLD}
            both = reward[Action.BUY_LONG] + reward[Action.SELL_SHORT]
            assert np.isclose(-both / 2, costs, atol=1e-5).any()
        else:
            close = Action.CLOSE_LONG if sign > 0 else Action.CLOSE_SHORT
            assert set(np.flatnonzero(valid)) == {close, Action.HOLD}
            assert np.isclose(-reward[close], costs, atol=1e-5).any()


def test_the_same_seed_draws_the_same_samples() -> None:
    table = a_table()
    rows = split_by_date(table).train

    one, two = (draw_samples(table, rows, 8, np.random.default_rng(5)) for _ in range(2))

    np.testing.assert_array_equal(one.observation.bars, two.observation.bars)
    np.testing.assert_array_equal(one.reward, two.reward)
    np.testing.assert_array_equal(one.next_observation.account, two.next_observation.account)


def test_the_next_state_of_an_entry_holds_that_position() -> None:
    table = a_table()
    rows = split_by_date(table).train

    samples = draw_samples(table, rows, 32, np.random.default_rng(5))

    account = samples.next_observation.account.reshape(32, 3, -1)[:, :, 1]  # position
    flat = np.flatnonzero(samples.valid[:, Action.BUY_LONG])
    assert len(flat)
    for i in flat:
        bought = samples.next_of_action[i, Action.BUY_LONG]
        sold = samples.next_of_action[i, Action.SELL_SHORT]
        assert account[i, bought] > 0 > account[i, sold]
        assert account[i, samples.next_of_action[i, Action.HOLD]] == 0
