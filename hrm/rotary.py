"""Constants of the layers as arrays, for engines without torch; hrm.layers has them as tensors."""

import numpy as np

from hrm.engine import Floats

RMS_EPSILON = 1e-5
ROTARY_BASE = 10_000.0


def rotary_tables(length: int, head_width: int) -> tuple[Floats, Floats]:
    """Return the cosines and sines of every position, each [length, head_width]."""
    frequency = ROTARY_BASE ** (-np.arange(0, head_width, 2, dtype=np.float64) / head_width)
    angle = np.outer(np.arange(length, dtype=np.float64), frequency)
    angle = np.concatenate((angle, angle), -1).astype(np.float32)
    return np.cos(angle), np.sin(angle)
