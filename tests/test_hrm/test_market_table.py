"""The market table: splits that do not leak, labels that say what happened."""

import math
from itertools import pairwise

import numpy as np
import pytest
from training_builders import a_table, some_candles

from hrm.features import WARMUP_BARS
from hrm.training.candles import NS_PER_MINUTE, DataQualityError
from hrm.training.market_table import (
    Account,
    LabelSettings,
    Vocabulary,
    market_table,
    split_by_date,
)

WINDOW = 16  # of the builders' tables


def test_names_are_numbered_from_one() -> None:
    vocabulary = Vocabulary.of([some_candles(name="Nifty"), some_candles(name="Bank_Nifty")])

    assert vocabulary.instruments == {"Bank_Nifty": 1, "Nifty": 2}
    assert vocabulary.timeframes == {"5": 1}


def test_no_training_label_reaches_the_validation_and_no_later_input_reaches_back() -> None:
    table = a_table(some_candles(1000), some_candles(1000, seed=2, name="Bank_Nifty"))

    split = split_by_date(table)

    horizon_ns = table.labels.horizon * 5 * NS_PER_MINUTE
    input_ns = (WINDOW + WARMUP_BARS) * 5 * NS_PER_MINUTE
    for earlier, later, boundary in (
        (split.train, split.validation, split.boundaries_ns[0]),
        (split.validation, split.test, split.boundaries_ns[1]),
    ):
        assert table.close_ns[earlier].max() + horizon_ns <= boundary
        assert table.close_ns[later].min() - input_ns >= boundary


def test_the_mirror_is_for_training_only() -> None:
    table, plain = a_table(), a_table(mirror=False)

    with_mirror, without = split_by_date(table), split_by_date(plain)

    assert len(with_mirror.train) == 2 * len(without.train)
    np.testing.assert_array_equal(with_mirror.test, without.test)


def test_every_row_of_a_split_has_an_input_and_a_known_future() -> None:
    table = a_table()

    split = split_by_date(table)

    rows = np.concatenate([split.train, split.validation, split.test])
    assert table.is_real[rows].all()
    assert np.isfinite(table.forward[rows]).all()
    assert (table.barrier[rows] >= 0).all()


def test_a_history_too_short_to_split_is_refused() -> None:
    with pytest.raises(DataQualityError, match="give a longer history"):
        split_by_date(a_table(some_candles(320)), embargo_bars=200)


def test_shares_that_leave_no_test_are_refused() -> None:
    with pytest.raises(ValueError, match="leave a share for the test"):
        split_by_date(a_table(), train_share=0.9, validation_share=0.1)


def test_a_table_of_nothing_is_refused() -> None:
    with pytest.raises(DataQualityError, match="at least one --data FILE"):
        market_table([], window=8, labels=LabelSettings(), vocabulary=Vocabulary({}, {}))


def test_a_window_never_shows_another_series() -> None:
    first, second = some_candles(), some_candles(seed=2, name="Bank_Nifty")
    together, alone = a_table(first, second, mirror=False), a_table(second, mirror=False)
    bar = WARMUP_BARS + 2

    both, one = (
        table.observe(np.array([table.first_row[-1] + bar]), [Account()])
        for table in (together, alone)
    )

    np.testing.assert_array_equal(both.bars, one.bars)
    assert both.bars_mask.sum() == 3


def test_what_is_hidden_is_masked_and_zero() -> None:
    table = a_table()
    rows = np.array([table.first_row[0] + 100])

    seen = table.observe(rows, [Account()], visible=np.array([5]), is_unknown=np.array([True]))

    assert seen.bars_mask[0].tolist() == [False] * (WINDOW - 5) + [True] * 5
    assert not seen.bars[0, : WINDOW - 5].any()
    assert (seen.instrument[0], seen.timeframe[0]) == (0, 0)


def test_the_forward_return_runs_from_the_next_open_to_the_open_after_the_commitment() -> None:
    candles = some_candles()
    table = a_table(candles, commit_bars=4)

    forward = table.forward[table.first_row[0] + 50]

    assert forward == pytest.approx(math.log(candles.open[55] / candles.open[51]))


def test_the_barrier_label_says_which_side_was_touched_first() -> None:
    candles = some_candles()
    table = a_table(candles, barrier_bars=8, barrier=1.0)
    bar = 100
    row = table.first_row[0] + bar
    width = table.volatility[row] * math.sqrt(8)

    entry = candles.open[bar + 1]
    expected = 0
    for later in range(bar + 1, bar + 9):
        up = candles.high[later] >= entry * math.exp(width)
        down = candles.low[later] <= entry * math.exp(-width)
        if up or down:
            expected = 0 if up and down else 1 if up else 2
            break

    assert table.barrier[row] == expected
    assert set(np.unique(table.barrier[WINDOW + WARMUP_BARS : 500])) <= {0, 1, 2}


def test_a_trailing_stop_follows_the_best_price_and_never_retreats() -> None:
    table = a_table()
    entry = table.first_row[0] + 100
    opened = table.opened(entry, 1, 1.0, 1.0)

    stops = [table.aged(opened, entry + age).trailing_stop for age in range(1, 30)]

    assert all(stop is not None for stop in stops)
    assert all(b >= a for a, b in pairwise(stops) if a and b)
    assert stops[0] is not None
    assert opened.trailing_stop is not None
    assert stops[0] >= opened.trailing_stop
