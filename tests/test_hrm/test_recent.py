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


def test_a_series_of_no_length_is_refused() -> None:
    with pytest.raises(ValueError, match="length must be positive, was 0"):
        Recent(0, np.float64)
