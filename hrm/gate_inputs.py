"""Real inputs for the gate, stored beside this file: stretches of market, read as decisions.

`python -m benchmarks.gate_inputs` makes them from the candles of the demo, whenever the features
change. They belong to a version of the features, not to a model.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from hrm.engine import Batch
from hrm.features import FEATURE_SCHEMA_SHA256
from hrm.manifest import ModelCard

PATH = Path(__file__).with_name("gate_inputs.safetensors")
STRETCHES, DECISIONS, STRIDE, WINDOW = 16, 8, 8, 64  # decisions of one stretch, every STRIDE bars
BARS = WINDOW + (DECISIONS - 1) * STRIDE  # of one stretch


class NoGateInputs(Exception):
    """The stored inputs are of other features than the model reads; the text says which."""


def gate_batch(card: ModelCard, path: Path = PATH) -> Batch:
    """Return the 128 stored decisions as this model reads them; raise NoGateInputs.

    Stored as bars [S, BARS, F] float16, account [S * DECISIONS, 6] and context [S * DECISIONS, 8]
    float32. Instruments and timeframes go round those that the model knows, the unknown ones
    included; a window that is longer than WINDOW begins with absent bars.
    """
    if card.features.schema_sha256 != FEATURE_SCHEMA_SHA256:
        raise NoGateInputs(f"the model reads features {card.features.schema_sha256}")
    stored: dict[str, NDArray[Any]] = load_file(path)
    sizes, bars = card.config.inputs, stored["bars"]
    wanted = (sizes.n_features, sizes.n_context)
    found = (bars.shape[2], stored["context"].shape[1])
    if found != wanted:
        raise NoGateInputs(f"the model reads {wanted} features and context, {found} are stored")
    rows, shown = len(bars) * DECISIONS, min(sizes.window_bars, WINDOW)
    ends = WINDOW + STRIDE * np.arange(DECISIONS)
    windows = np.stack([bars[:, end - shown : end] for end in ends], 1)  # [S, D, shown, F]
    batch = Batch(
        bars=np.zeros((rows, sizes.window_bars, sizes.n_features), np.float32),
        bars_mask=np.zeros((rows, sizes.window_bars), np.bool_),
        instrument=np.arange(rows) % (len(card.vocabularies.instruments) + 1),
        timeframe=np.arange(rows) % (len(card.vocabularies.timeframes) + 1),
        account=stored["account"],
        context=stored["context"],
    )
    batch.bars[:, -shown:] = windows.reshape(rows, shown, -1)
    batch.bars_mask[:, -shown:] = True
    return batch
