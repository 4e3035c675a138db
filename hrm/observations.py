"""Observations: checked one by one, then put together as the rows of a batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.config import ACCOUNT_WIDTH, Action, InputsConfig
from hrm.engine import Batch
from hrm.manifest import Vocabularies
from hrm.thought import Observation


def as_row(observation: Observation, sizes: InputsConfig, known: Vocabularies) -> Batch:
    """Turn an observation into a batch of one; raise ValueError naming what is wrong with it."""
    shapes = {
        "bars": (sizes.window_bars, sizes.n_features),
        "mask": (sizes.window_bars,),
        "account": (ACCOUNT_WIDTH,),
        "context": (sizes.n_context,),
    }
    for name, shape in shapes.items():
        value: NDArray[Any] = getattr(observation, name)
        if value.shape != shape:
            raise ValueError(f"{name} must have the shape {shape}, was {value.shape}")
        if not np.isfinite(value).all():
            place = tuple(int(axis) for axis in np.argwhere(~np.isfinite(value))[0])
            raise ValueError(f"{name}{list(place)} is {value[place]}: inputs must be finite")
    if not observation.mask.any():
        raise ValueError("mask marks no bar as present: hold until there is something to read")
    if len(observation.allowed_actions) != len(Action) or not any(observation.allowed_actions):
        raise ValueError(
            f"allowed_actions must allow at least one of {len(Action)} actions, was "
            f"{observation.allowed_actions}: HOLD is always possible"
        )
    return Batch(
        bars=np.asarray(observation.bars[None], np.float32),
        bars_mask=np.asarray(observation.mask[None], np.bool_),
        instrument=np.array([known.instrument_row(observation.instrument)], np.int64),
        timeframe=np.array([known.timeframe_row(observation.timeframe)], np.int64),
        account=np.asarray(observation.account[None], np.float32),
        context=np.asarray(observation.context[None], np.float32),
    )


def stacked(rows: Sequence[Batch]) -> Batch:
    """Put batches under one another."""
    if len(rows) == 1:
        return rows[0]
    return Batch(
        **{name: np.concatenate([vars(row)[name] for row in rows]) for name in vars(rows[0])}
    )
