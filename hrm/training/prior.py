"""What the policy falls back on where the market teaches nothing: an old, plain rule, or nothing.

Training begins by imitating this prior and goes on being pulled towards it, by its temperature.
Where the utilities of actions differ by less than the pull, the rule decides; where they differ by
more, what was learned does. A rule is no edge: the scores in the manifest say what it earned.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hrm.config import Action
from hrm.features import FEATURE_NAMES, valid_actions

Prior = Literal["trend", "none"]

TREND_OPENS = 0.5  # mean of trend_16 and efficiency_16, both in [-1, 1]
TREND_ENDS = 0.2  # an open position is given up when the trend falls below this
SHARE = 0.9  # of the prior's probability on the rule's action; the rest is shared out

_TREND = FEATURE_NAMES.index("trend_16")
_EFFICIENCY = FEATURE_NAMES.index("efficiency_16")


def prior_policy(prior: Prior, newest: NDArray[np.float32], sign: int) -> NDArray[np.float32]:
    """Give the prior's probabilities [5] from the newest feature row [F] and the position held.

    `none` treats all valid actions alike, `trend` follows the trend of the last 16 bars.
    """
    valid = valid_actions(sign)
    if prior == "none":
        return np.where(valid, 1.0 / valid.sum(), 0.0).astype(np.float32)
    trend = 0.5 * float(newest[_TREND] + newest[_EFFICIENCY])
    others = valid.sum() - 1
    policy = np.where(valid, (1.0 - SHARE) / others, 0.0).astype(np.float32)
    policy[_trend_action(trend, sign)] = SHARE
    return policy


def _trend_action(trend: float, sign: int) -> Action:
    if sign > 0:
        return Action.CLOSE_LONG if trend < TREND_ENDS else Action.HOLD
    if sign < 0:
        return Action.CLOSE_SHORT if trend > -TREND_ENDS else Action.HOLD
    if abs(trend) < TREND_OPENS:
        return Action.HOLD
    return Action.BUY_LONG if trend > 0 else Action.SELL_SHORT
