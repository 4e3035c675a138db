"""Small models, inputs and observations for tests; name only what matters to the test."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrm.config import HRMConfig
from hrm.engine import Batch
from hrm.features import FEATURE_SCHEMA_SHA256
from hrm.manifest import FeatureRecord, ModelCard, Vocabularies
from hrm.model import HierarchicalReasoningModel, ModelInputs
from hrm.thought import Observation


def a_config(**blocks: dict[str, Any]) -> HRMConfig:
    """Build a config of about 9,000 parameters that a test runs in milliseconds."""
    tiny = HRMConfig().changed(
        architecture={
            "h_module": {"hidden_size": 16, "num_layers": 2, "feed_forward": 24, "num_heads": 2},
            "l_module": {"hidden_size": 8, "num_layers": 1, "feed_forward": 12, "num_heads": 2},
            "encoder": {
                "hidden_size": 16,
                "num_layers": 1,
                "feed_forward": 24,
                "num_heads": 2,
                "patch_bars": 4,
            },
        },
        convergence={"n_cycles": 2, "t_timesteps": 2},
        adaptive_computation={"m_max": 6},
        inputs={
            "window_bars": 8,
            "n_features": 3,
            "instruments": 4,
            "timeframes": 3,
            "instrument_width": 6,
            "timeframe_width": 2,
        },
    )
    return tiny.changed(**blocks)


def a_model(config: HRMConfig | None = None, seed: int = 0) -> HierarchicalReasoningModel:
    """Build an untrained model, the same for the same seed."""
    torch.manual_seed(seed)
    return HierarchicalReasoningModel(config or a_config()).eval()


def some_inputs(config: HRMConfig | None = None, batch: int = 3, seed: int = 1) -> ModelInputs:
    """Draw a batch of inputs with every bar present."""
    sizes = (config or a_config()).inputs
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return ModelInputs(
        bars=normal(batch, sizes.window_bars, sizes.n_features),
        bars_mask=torch.ones(batch, sizes.window_bars, dtype=torch.bool),
        instrument=torch.randint(0, sizes.instruments, (batch,), generator=generator),
        timeframe=torch.randint(0, sizes.timeframes, (batch,), generator=generator),
        account=normal(batch, 6),
        context=normal(batch, sizes.n_context),
    )


def a_batch(config: HRMConfig | None = None, batch: int = 3, seed: int = 1) -> Batch:
    """Draw the same inputs as arrays, for engines."""
    inputs = some_inputs(config, batch, seed)
    return Batch(**{name: value.numpy() for name, value in vars(inputs).items()})


def an_observation(seed: int = 2, **changes: Any) -> Observation:
    """Draw an observation that fits a_config."""
    sizes = a_config().inputs
    draw = np.random.default_rng(seed)
    values: dict[str, Any] = {
        "bars": draw.normal(size=(sizes.window_bars, sizes.n_features)).astype(np.float32),
        "mask": np.ones(sizes.window_bars, dtype=np.bool_),
        "instrument": "NIFTY",
        "timeframe": "5m",
        "account": draw.normal(size=6).astype(np.float32),
        "context": draw.normal(size=sizes.n_context).astype(np.float32),
        "complexity": 0.3,
        "allowed_actions": (True, True, True, True, True),
    }
    return Observation(**values | changes)


def a_card(config: HRMConfig | None = None, **changes: Any) -> ModelCard:
    """Describe a model of a_config that knows two instruments and one timeframe."""
    config = config or a_config()
    values: dict[str, Any] = {
        "config": config,
        "features": FeatureRecord(
            names=tuple(f"feature_{i}" for i in range(config.inputs.n_features)),
            schema_sha256=FEATURE_SCHEMA_SHA256,
        ),
        "vocabularies": Vocabularies(instruments={"NIFTY": 1, "SBIN": 2}, timeframes={"5m": 1}),
        "created": "2026-01-05T09:15:00Z",
    }
    return ModelCard(**values | changes)
