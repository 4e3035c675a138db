"""The histogram's percentiles against the numbers themselves."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.histogram import Histogram


def test_an_empty_histogram_answers_zero() -> None:
    histogram = Histogram()

    assert (histogram.percentile(0.5), histogram.mean, histogram.largest) == (0.0, 0.0, 0.0)


@given(
    st.lists(st.floats(min_value=1.0, max_value=1e9), min_size=1, max_size=300),
    st.floats(min_value=0.01, max_value=1.0),
)
def test_a_percentile_is_at_most_one_bucket_above_the_exact_one(
    values: list[float], share: float
) -> None:
    histogram = Histogram()
    for value in values:
        histogram.record(value)

    exact = sorted(values)[max(1, math.ceil(share * len(values))) - 1]

    assert exact * 0.999 <= histogram.percentile(share) <= exact * 2 ** (1 / 16) * 1.001


def test_numbers_beyond_the_range_stay_in_the_outer_buckets() -> None:
    histogram = Histogram()
    for value in (0.0, -3.0, 2.0**60):
        histogram.record(value)

    assert histogram.count == 3
    assert histogram.largest == 2.0**60
    assert histogram.percentile(0.5) == 2 ** (1 / 16)


def test_the_mean_is_exact() -> None:
    histogram = Histogram()
    for value in (10.0, 20.0, 60.0):
        histogram.record(value)

    assert histogram.mean == pytest.approx(30.0)
