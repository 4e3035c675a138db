"""Halting: when one decision has thought enough, by its Q logits and the market. Without torch.

AdaptiveComputationTime in hrm.act says the same of batches of tensors, for training.
"""

HIGH_COMPLEXITY, MEDIUM_COMPLEXITY = 0.8, 0.5
HIGH_FLOOR, MEDIUM_FLOOR, LOW_FLOOR = 4, 2, 1  # segments


def min_segments(complexity: float, m_max: int) -> int:
    """Return the least depth for a market complexity in [0, 1], never above m_max.

    A soft floor: it yields to a deadline, and the caller sees to that.
    """
    if not 0.0 <= complexity <= 1.0:
        raise ValueError(f"complexity must be in [0, 1], was {complexity}")
    if complexity > HIGH_COMPLEXITY:
        floor = HIGH_FLOOR
    elif complexity > MEDIUM_COMPLEXITY:
        floor = MEDIUM_FLOOR
    else:
        floor = LOW_FLOOR
    return min(floor, m_max)


def should_halt(q_halt: float, q_continue: float, segments: int, floor: int, m_max: int) -> bool:
    """Say whether to stop after `segments` segments; q_halt, q_continue: logits.

    A halt needs Q_halt above Q_continue: equal, or not a number, means think on.
    """
    return (q_halt > q_continue and segments >= floor) or segments >= m_max
