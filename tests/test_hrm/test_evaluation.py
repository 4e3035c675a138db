"""Evaluation: the model's own best valid action, filled at the next open, stopped by the rules."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from training_builders import a_table, a_trainable_model, some_candles

from hrm.config import Action
from hrm.features import valid_actions
from hrm.model import HierarchicalReasoningModel
from hrm.training.evaluation import (
    area_under_curve,
    bootstrap_interval,
    decide,
    direction_auc,
    scores,
    trade,
)
from hrm.training.market_table import Account, MarketTable, split_by_date
from hrm.training.slots import as_inputs


def a_model_that_prefers(*actions: Action) -> HierarchicalReasoningModel:
    """Build a model whose every state prefers these actions, the first one most."""
    model = a_trainable_model()
    with torch.no_grad():
        model.action_head.weight.zero_()
        # The read-out is on the unit sphere; a head that reads a constant of it needs one to read.
        for module in (model.core.h_module.stack, model.core.l_module.stack):
            for parameter in module.parameters():
                parameter.zero_()
        model.core.h_module.from_low.weight.zero_()
        direction = model.core.z_h_start / model.core.z_h_start.norm()
        for rank, action in enumerate(actions):
            model.action_head.weight[action] = direction * (len(actions) - rank)
    return model


def a_quiet_table(count: int = 600) -> MarketTable:
    """Lay out a market that rises a little each bar and never far enough to touch a stop."""
    close = (100.0 * 1.0001 ** np.arange(count)).astype(np.float64)
    calm = replace(
        some_candles(count),
        open=close,
        close=close * 1.00005,
        high=close * 1.01,
        low=close * 0.99,
    )
    return a_table(calm)


def test_the_best_valid_action_is_taken_and_no_other() -> None:
    model = a_model_that_prefers(Action.CLOSE_SHORT, Action.SELL_SHORT)
    table = a_table()
    rows = split_by_date(table).test[:2]
    inputs = as_inputs(table.observe(rows, [Account(), Account()]))
    valid = torch.from_numpy(np.stack([valid_actions(0), valid_actions(-1)]))

    answer = decide(model, inputs, valid)

    assert answer.action.tolist() == [Action.SELL_SHORT, Action.CLOSE_SHORT]
    assert (answer.segments >= 1).all()


def test_buying_and_holding_earns_the_drift_less_two_sides() -> None:
    model = a_model_that_prefers(Action.BUY_LONG, Action.HOLD)
    table = a_quiet_table()
    rows = split_by_date(table).test[:10]

    trades = trade(model, table, rows, cost_bps=3.0)

    assert trades.entries == 1
    assert trades.gross.sum() == pytest.approx(10 * math.log(1.0001), rel=1e-6)
    assert trades.net.sum() == pytest.approx(10 * math.log(1.0001) - 2 * 3e-4, rel=1e-6)
    assert trades.held.tolist() == [1] * 10


def test_going_short_earns_the_opposite() -> None:
    model = a_model_that_prefers(Action.SELL_SHORT, Action.HOLD)
    table = a_quiet_table()
    rows = split_by_date(table).test[:10]

    trades = trade(model, table, rows, cost_bps=0.0)

    assert trades.net.sum() == pytest.approx(-10 * math.log(1.0001), rel=1e-6)


def test_opening_and_closing_in_turn_pays_every_side() -> None:
    model = a_model_that_prefers(Action.CLOSE_LONG, Action.BUY_LONG)
    table = a_quiet_table()
    rows = split_by_date(table).test[:6]

    trades = trade(model, table, rows, cost_bps=1.0)

    assert trades.action.tolist() == [Action.BUY_LONG, Action.CLOSE_LONG] * 3
    assert (trades.gross - trades.net).sum() == pytest.approx(6e-4)
    assert trades.held.tolist() == [1, 0] * 3


def test_a_stop_closes_at_the_stop_or_at_an_open_beyond_it() -> None:
    model = a_model_that_prefers(Action.BUY_LONG, Action.HOLD)
    table = a_quiet_table()
    row = int(split_by_date(table).test[0])
    table.low[row + 2] = 50.0
    stop = table.aged(table.opened(row, 1, 1.0, 1.0), row + 1).trailing_stop
    assert stop is not None

    within = trade(model, table, np.array([row, row + 1]), cost_bps=0.0)
    table.open[row + 2] = 90.0
    beyond = trade(model, table, np.array([row, row + 1]), cost_bps=0.0)

    assert within.stops == beyond.stops == 1
    entry = table.open[row + 1]
    assert within.net.sum() == pytest.approx(math.log(stop / entry), abs=2e-4)
    assert beyond.net.sum() == pytest.approx(math.log(90.0 / entry), rel=1e-6)


def test_a_target_closes_with_its_gain() -> None:
    model = a_model_that_prefers(Action.BUY_LONG, Action.HOLD)
    table = a_quiet_table()
    row = int(split_by_date(table).test[0])
    table.high[row + 1] = 200.0
    target = table.open[row + 1] + 3.0 * table.atr[row]

    trades = trade(model, table, np.array([row]), cost_bps=0.0)

    assert trades.stops == 1
    assert trades.net.sum() == pytest.approx(math.log(target / table.open[row + 1]))


def test_every_stretch_ends_flat() -> None:
    model = a_model_that_prefers(Action.BUY_LONG, Action.HOLD)
    table = a_quiet_table()
    rows = split_by_date(table).test
    apart = np.concatenate([rows[:5], rows[10:15]])

    trades = trade(model, table, apart, cost_bps=1.0)

    assert trades.entries == 2
    assert (trades.gross - trades.net).sum() == pytest.approx(4e-4)


def test_scores_stand_beside_doing_nothing_and_holding_throughout() -> None:
    table = a_quiet_table()

    result = scores(a_model_that_prefers(Action.HOLD), table, split_by_date(table).test, 2.0)

    assert result["net_bps_per_bar"] == result["flat_bps_per_bar"] == 0.0
    assert result["buy_and_hold_bps_per_bar"] == pytest.approx(1.0, abs=0.01)
    assert result["trades_per_100_bars"] == 0.0
    assert result["shows_an_edge"] is False


def test_a_model_that_always_leans_the_same_way_has_no_skill() -> None:
    table = a_table()

    auc, error = direction_auc(
        a_model_that_prefers(Action.BUY_LONG), table, split_by_date(table).test
    )

    assert auc == pytest.approx(0.5)
    assert error > 0


def test_the_area_under_the_curve_counts_ordered_pairs_and_half_the_ties() -> None:
    score = np.array([0.1, 0.4, 0.4, 0.8])
    truth = np.array([False, True, False, True])

    auc, _ = area_under_curve(score, truth)

    assert auc == pytest.approx((1 + 0.5 + 1 + 1) / 4)


def test_the_area_is_unknown_where_all_outcomes_are_alike() -> None:
    assert area_under_curve(np.array([0.1, 0.2]), np.array([True, True])) == (0.5, 0.5)


def test_overlapping_outcomes_widen_the_error() -> None:
    generator = np.random.default_rng(0)
    score, truth = generator.random(200), generator.random(200) > 0.5

    _, alone = area_under_curve(score, truth)
    _, overlapping = area_under_curve(score, truth, overlap=4)

    assert overlapping == pytest.approx(2 * alone)


def test_the_interval_of_a_mean_holds_it_and_is_always_the_same() -> None:
    values = np.random.default_rng(0).standard_normal(500) + 0.1

    low, high = bootstrap_interval(values)

    assert low < values.mean() < high
    assert (low, high) == bootstrap_interval(values)
