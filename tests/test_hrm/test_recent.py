"""Recent: the newest numbers, whatever came before."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hrm.recent import Recent


@given(numbers=st.lists(st.integers(0, 10**15), max_size=60), length=st.integers(1, 9))
def test_the_newest_numbers_are_kept_oldest_first(numbers: list[int], length: int) -> None:
    recent = Recent(length, np.int64)

    for count, number in enumerate(numbers, start=1):
        recent.append(number)
        assert recent.values.tolist() == numbers[max(count - length, 0) : count]


def test_rows_are_kept_and_a_copy_goes_on_by_itself() -> None:
    recent = Recent(2, np.float32, 3)
    recent.append([1, 2, 3])
    copied = recent.copy()

    for row in ([4, 5, 6], [7, 8, 9], [10, 11, 12], [13, 14, 15]):
        recent.append(row)

    assert recent.values.tolist() == [[10, 11, 12], [13, 14, 15]]
    assert copied.values.tolist() == [[1, 2, 3]]


def test_a_series_of_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match="length must be positive, was 0"):
        Recent(0, np.float64)
