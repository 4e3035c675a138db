"""Prior: a plain trend rule among the valid actions, or no opinion at all."""

import numpy as np
import pytest
from numpy.typing import NDArray

from hrm.config import Action
from hrm.features import FEATURE_NAMES, valid_actions
from hrm.training.prior import SHARE, prior_policy


def a_row(trend: float) -> NDArray[np.float32]:
    row = np.zeros(len(FEATURE_NAMES), dtype=np.float32)
    row[[FEATURE_NAMES.index("trend_16"), FEATURE_NAMES.index("efficiency_16")]] = trend
    return row


@pytest.mark.parametrize(
    ("trend", "sign", "action"),
    [
        (0.7, 0, Action.BUY_LONG),
        (-0.7, 0, Action.SELL_SHORT),
        (0.4, 0, Action.HOLD),
        (0.4, 1, Action.HOLD),
        (0.1, 1, Action.CLOSE_LONG),
        (-0.4, -1, Action.HOLD),
        (-0.1, -1, Action.CLOSE_SHORT),
    ],
)
def test_the_trend_rule_opens_with_a_trend_and_gives_up_without_one(
    trend: float, sign: int, action: Action
) -> None:
    policy = prior_policy("trend", a_row(trend), sign)

    assert policy.argmax() == action
    assert policy[action] == pytest.approx(SHARE)


@pytest.mark.parametrize("sign", [-1, 0, 1])
@pytest.mark.parametrize("prior", ["trend", "none"])
def test_a_prior_is_a_distribution_over_the_valid_actions(prior: str, sign: int) -> None:
    policy = prior_policy(prior, a_row(0.3), sign)  # type: ignore[arg-type]  # by name

    assert policy.sum() == pytest.approx(1.0)
    np.testing.assert_array_equal(policy > 0, valid_actions(sign))


def test_no_prior_treats_valid_actions_alike() -> None:
    policy = prior_policy("none", a_row(0.9), 0)

    assert np.unique(policy[policy > 0]).size == 1
