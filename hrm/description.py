"""What a model is made of, for people and for checks: sizes per part, and as a file.

The released one is verified first, so what is said of it is said of the weights that would serve.
"""

import tempfile
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hrm.config import HRMConfig, PerformanceConfig
from hrm.engine_choice import choose_engine
from hrm.features import FEATURE_NAMES, FEATURE_SCHEMA_SHA256
from hrm.integrity import load_release, save_release
from hrm.manifest import FeatureRecord, IntegrityError, ModelCard
from hrm.model import HierarchicalReasoningModel
from hrm.weights import load_weights

BYTES_PER_MB = 1_000_000


def describe_release(directory: Path) -> dict[str, Any]:
    """Verify and load the released model, and say what it is; raise IntegrityError if it is not."""
    release = load_release(directory)
    entry = release.entry
    if entry.features.schema_sha256 != FEATURE_SCHEMA_SHA256:
        raise IntegrityError(
            f"{directory / release.name} was trained on other features than this version makes: "
            "train again with hrm-train"
        )
    parts = release.model.parameter_counts()
    return {
        "name": release.name,
        "digest": entry.sha256,
        "parameters": parts.pop("total"),
        "file_mb": _megabytes((directory / release.name).stat().st_size),
        "parts": parts,
        **_depth(entry.config),
        "scores": entry.scores,
        "created": entry.created,
    }


def describe_engine(
    directory: Path, performance: PerformanceConfig, state_dir: Path | None
) -> dict[str, Any]:
    """Say what serves the released model here, why, and what was found out about the others."""
    choice = choose_engine(
        directory,
        load_weights(directory),
        performance.engine,
        deadline_ms=performance.max_inference_time_ms,
        state_dir=state_dir,
    )[1]
    return asdict(choice)


@cache
def describe_production() -> dict[str, Any]:
    """Say what the production size is; its file is written once, to be measured, and removed."""
    config = HRMConfig.preset("production")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # drawn weights: what is measured does not depend on them
        model = HierarchicalReasoningModel(config)
    features = FeatureRecord(names=FEATURE_NAMES, schema_sha256=FEATURE_SCHEMA_SHA256)
    card = ModelCard(config=config, features=features, created="never: drawn to be measured")
    with tempfile.TemporaryDirectory(prefix="hrm-production-") as folder:
        save_release(Path(folder), model, card, name="production.safetensors")
        stored = (Path(folder) / "production.safetensors").stat().st_size
    parts = model.parameter_counts()
    return {
        "parameters": parts.pop("total"),
        "file_mb": _megabytes(stored),
        "parts": parts,
        **_depth(config),
    }


def _depth(config: HRMConfig) -> dict[str, int]:
    return {
        "segments": config.adaptive_computation.m_max,
        "cycles": config.convergence.n_cycles,
        "timesteps": config.convergence.t_timesteps,
    }


def _megabytes(count: int) -> float:
    return round(count / BYTES_PER_MB, 3)
