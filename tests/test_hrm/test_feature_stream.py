"""Feature stream: the rows of a batch, one at a time, whatever came before, whenever it stopped."""

import json
import math
import re

import numpy as np
import pytest
from feature_builders import (
    BAR_NS,
    SESSION_BARS,
    Columns,
    column,
    part,
    sessions,
    stream_rows,
    walk,
    window_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hrm.features import (
    FEATURE_NAMES,
    LONG_WARMUP_BARS,
    WARMUP_BARS,
    FeatureStream,
    FeatureWindow,
    average_true_range,
    feature_rows,
    warm_rows,
)

TOLERANCE = 1e-9


def batch(columns: Columns, **optional: NDArray[np.float64]) -> NDArray[np.float64]:
    return feature_rows(bar_ns=BAR_NS, **columns, **optional)


@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 1000), days=st.integers(1, 5), scale=st.floats(0.01, 1e5))
def test_row_by_row_and_all_at_once_agree(seed: int, days: int, scale: float) -> None:
    columns = sessions(days, seed)
    for name in ("open", "high", "low", "close"):
        columns[name] = columns[name] * scale

    np.testing.assert_allclose(stream_rows(columns), batch(columns), rtol=0, atol=TOLERANCE)


@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 1000), share=st.floats(0.0, 1.0))
def test_they_agree_on_bars_that_hardly_move_and_on_leaps(seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    moves = np.where(generator.random(200) < share, 0.0, generator.standard_cauchy(200) * 1e-4)
    close = np.round(22_000 * np.exp(np.clip(moves, -0.2, 0.2).cumsum()), 2)
    open_ = np.concatenate([[22_000.0], close[:-1]])
    columns = walk(200) | {
        "open": open_,
        "high": np.maximum(open_, close),
        "low": np.minimum(open_, close),
        "close": close,
        "volume": np.zeros(200),
    }

    np.testing.assert_allclose(stream_rows(columns), batch(columns), rtol=0, atol=TOLERANCE)


def test_they_agree_on_what_is_known_of_depth_and_expiry() -> None:
    columns = sessions(2)
    count = len(columns["close"])
    known = {
        "days_to_expiry": np.full(count, 3.0),
        "spread": np.full(count, 0.05),
        "depth_imbalance": np.full(count, -0.5),
    }

    rows = stream_rows(columns, days_to_expiry=3.0, spread=0.05, depth_imbalance=-0.5)

    np.testing.assert_allclose(rows, batch(columns, **known), rtol=0, atol=TOLERANCE)
    assert column(rows, "expiry_nearness")[-1] == 0.25
    assert column(rows, "depth_known")[-1] == 1.0
    assert column(batch(columns), "expiry_nearness")[-1] == 0.0


@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 100), cut=st.integers(0, 4 * SESSION_BARS - 1))
def test_a_restored_stream_goes_on_to_the_last_bit(seed: int, cut: int) -> None:
    columns = sessions(4, seed)
    whole = stream_rows(columns)
    first = FeatureStream(BAR_NS)
    stream_rows(part(columns, 0, cut), first)

    stored = json.dumps(first.snapshot())
    second = FeatureStream.restored(json.loads(stored))

    np.testing.assert_array_equal(stream_rows(part(columns, cut), second), whole[cut:])
    assert len(second) == len(columns["close"])


@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 100), start=st.integers(1, 200))
def test_warm_rows_do_not_depend_on_where_the_history_begins(seed: int, start: int) -> None:
    columns = sessions(6, seed)
    later = part(columns, start)
    warm = warm_rows(later["close_ns"], BAR_NS)

    np.testing.assert_array_equal(stream_rows(later)[warm], stream_rows(columns)[start:][warm])
    np.testing.assert_array_equal(batch(later)[warm], batch(columns)[start:][warm])
    assert warm.any()


@settings(deadline=None, max_examples=6)
@given(seed=st.integers(0, 100), cut=st.integers(WARMUP_BARS + 1, 299))
def test_no_row_knows_a_later_bar(seed: int, cut: int) -> None:
    history, other = sessions(4, seed), sessions(4, seed + 5000)
    changed = {name: np.concatenate([history[name][:cut], other[name][cut:]]) for name in history}

    np.testing.assert_array_equal(batch(changed)[:cut], batch(history)[:cut])


def test_a_state_does_not_grow() -> None:
    stream = FeatureStream(BAR_NS)
    stream_rows(walk(500), stream)
    size = len(json.dumps(stream.snapshot()))

    stream_rows(part(walk(3000), 500), stream)

    assert len(json.dumps(stream.snapshot())) < 1.05 * size


def test_a_refused_bar_leaves_the_stream_as_it_was() -> None:
    columns = sessions(2)
    stream = FeatureStream(BAR_NS)
    stream_rows(part(columns, 0, 100), stream)
    before = stream.snapshot()

    with pytest.raises(ValueError, match=re.escape("high must not be below low, was 1.0")):
        stream.add(2.0, 1.0, 1.5, 1.8, 0.0, int(columns["close_ns"][100]))

    assert stream.snapshot() == before


@pytest.mark.parametrize(
    ("bar", "claim"),
    [
        ((math.nan, 2.0, 1.0, 1.5, 0.0, 1), "open must be a finite number, was nan"),
        ((1.5, 2.0, 1.0, 1.5, math.inf, 1), "volume must be a finite number, was inf"),
        ((1.5, 2.0, -1.0, 1.5, 0.0, 1), "low must be positive, was -1.0"),
        ((1.5, 2.0, 1.0, 1.5, -3.0, 1), "volume must not be negative, was -3.0"),
        ((2.5, 2.0, 1.0, 1.5, 0.0, 1), "high must be the highest price of its bar, was 2.0"),
        ((1.5, 2.0, 1.0, 0.5, 0.0, 1), "low must be the lowest price of its bar, was 1.0"),
    ],
)
def test_a_bar_that_cannot_be_true_is_refused_by_value(
    bar: tuple[float, float, float, float, float, int], claim: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(claim)):
        FeatureStream(BAR_NS).add(*bar)


def test_a_bar_that_is_not_later_is_refused() -> None:
    stream = FeatureStream(BAR_NS)
    stream.add(1.5, 2.0, 1.0, 1.5, 0.0, 10 * BAR_NS)

    with pytest.raises(ValueError, match="close_ns must be later than that of the bar before"):
        stream.add(1.5, 2.0, 1.0, 1.5, 0.0, 10 * BAR_NS)


@pytest.mark.parametrize(
    ("optional", "claim"),
    [
        ({"days_to_expiry": -1.0}, r"days_to_expiry must be finite and in [0, inf], was -1.0"),
        ({"spread": math.nan}, "spread must be finite"),
        ({"depth_imbalance": 1.5}, r"depth_imbalance must be finite and in [-1, 1], was 1.5"),
    ],
)
def test_depth_and_expiry_that_cannot_be_true_are_refused(
    optional: dict[str, float], claim: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(claim)):
        FeatureStream(BAR_NS).add(1.5, 2.0, 1.0, 1.5, 0.0, 1, **optional)

    [name] = optional
    with pytest.raises(ValueError, match=name):
        batch(walk(50), **{name: np.full(50, -2.0)})


def test_something_else_is_no_snapshot() -> None:
    with pytest.raises(ValueError, match="no snapshot of a feature stream"):
        FeatureStream.restored({"bar_ns": BAR_NS})


def test_a_bar_length_that_is_not_positive_is_refused_by_the_stream() -> None:
    with pytest.raises(ValueError, match="bar_ns must be positive, was 0"):
        FeatureStream(0)


def test_the_average_true_range_is_that_of_training() -> None:
    columns = walk(60)
    stream = FeatureStream(BAR_NS)
    stream_rows(part(columns, 0, 14), stream)
    assert math.isnan(stream.average_true_range)

    stream_rows(part(columns, 14), stream)

    trained = average_true_range(columns["high"], columns["low"], columns["close"])[-1]
    assert stream.average_true_range == pytest.approx(trained, rel=1e-12)


# Longer bars and days, by hand


def test_longer_bars_end_with_the_newest_bar_and_are_never_half_done() -> None:
    columns = walk(130)
    row = batch(columns)[-1]
    close, high, low = (columns[name] for name in ("close", "high", "low"))

    blocks = [slice(len(close) - 12 * (k + 1), len(close) - 12 * k) for k in range(8)]
    moves = [math.log(close[b][-1] / close[b.start - 1]) for b in blocks]
    spans = [high[b].max() - low[b].min() for b in blocks]

    volatility = math.sqrt(np.mean(np.square(moves)))
    named = dict(zip(FEATURE_NAMES, row, strict=True))
    assert named["return_1_x12"] == pytest.approx(moves[0] / volatility)
    assert named["range_ratio_x12"] == pytest.approx(spans[0] / np.mean(spans) - 1.0)
    assert named["x12_known"] == 1.0


def test_what_needs_more_bars_than_there_are_is_zero_and_marked() -> None:
    rows = batch(walk(LONG_WARMUP_BARS + 2))

    known = column(rows, "x12_known")[WARMUP_BARS:]
    assert known.tolist() == [0.0] * (LONG_WARMUP_BARS - WARMUP_BARS) + [1.0] * 2
    assert np.all(column(rows, "distance_mean_8_x12")[:LONG_WARMUP_BARS] == 0)
    assert np.all(column(rows, "distance_mean_8_x3")[WARMUP_BARS:] != 0)


def test_the_day_so_far_is_known_once_a_day_was_seen_from_its_start() -> None:
    columns = sessions(3)
    rows = batch(columns)
    second = SESSION_BARS + 9  # the tenth bar of the second day

    known = column(rows, "day_known")
    assert set(known[:SESSION_BARS]) == {0.0}
    assert set(known[SESSION_BARS : 2 * SESSION_BARS]) == {0.5}
    assert set(known[2 * SESSION_BARS :]) == {1.0}
    opened = columns["open"][SESSION_BARS]
    moves = np.diff(np.log(columns["close"]))[second - 32 : second]
    walked = math.sqrt(np.mean(moves**2)) * math.sqrt(10)
    expected = math.log(columns["close"][second] / opened) / walked
    assert column(rows, "day_return")[second] == pytest.approx(expected)


def test_a_price_at_the_top_of_yesterday_reads_one() -> None:
    columns = sessions(3)
    yesterday = slice(SESSION_BARS, 2 * SESSION_BARS)
    top = columns["high"][yesterday].max()
    columns["close"][-1] = top
    columns["high"][-1] = max(columns["high"][-1], top)
    columns["low"][-1] = min(columns["low"][-1], columns["open"][-1], top)

    assert column(batch(columns), "place_in_previous_day")[-1] == pytest.approx(1.0)


# The window


def test_a_window_holds_the_newest_rows() -> None:
    columns = walk(200)

    rows, mask = window_of(columns, 64).read()

    np.testing.assert_allclose(rows, batch(columns)[-64:], atol=1e-6)
    assert mask.all()
    assert rows.dtype == np.float32


def test_a_young_window_is_masked_from_the_front() -> None:
    rows, mask = window_of(walk(WARMUP_BARS + 5), 64).read()

    assert mask.tolist() == [False] * 59 + [True] * 5
    assert np.all(rows[~mask] == 0)


def test_too_few_bars_give_an_empty_window_instead_of_an_error() -> None:
    rows, mask = window_of(walk(WARMUP_BARS), 64).read()

    assert not mask.any()
    assert not rows.any()


def test_a_window_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="window must be positive, was 0"):
        FeatureWindow(BAR_NS, 0)
