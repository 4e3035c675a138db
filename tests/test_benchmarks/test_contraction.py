"""The contraction benchmark: what it calls contracting does contract."""

import pytest
import torch

from benchmarks import contraction


def test_growth_is_followed_from_the_calm_start_to_the_last_step() -> None:
    torch.set_num_threads(1)

    found = contraction.measure("small", steps=2, batch=2)

    assert found["full_strength_growth"] > 1.0 > found["growth_at_start"]
    assert [look["step"] for look in found["curve"]] == [0, 1, 2]
    assert found["growth"] == found["curve"][-1]["growth"]
    assert found["contracts"]
    assert len(found["moves"]) == 16
    assert found["moves"][0] > found["moves"][-1] == pytest.approx(0.0, abs=0.1)
