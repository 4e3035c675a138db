"""Which engine serves a model: the fast one where it agrees with the reference, else the eager one.

The reference is written in numpy, so that the check needs no torch; the eager engine is imported
only where it is chosen.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hrm.config import EngineName
from hrm.engine import Engine
from hrm.manifest import IntegrityError
from hrm.onnx_engine import OnnxEngine
from hrm.parity import TOLERANCE, largest_difference
from hrm.weights import Weights


@dataclass(frozen=True)
class EngineChoice:
    """Hold the engine that serves, the largest difference found, and why it is not the fast one.

    difference: of any output from the reference, None where it was not measured; reason: "" for
    the engine that was asked for.
    """

    name: Literal["eager", "onnx"]
    difference: float | None
    reason: str


def choose_engine(
    models_dir: Path, weights: Weights, wanted: EngineName
) -> tuple[Engine[Any, Any], EngineChoice]:
    """Make the engine of a verified model; raise IntegrityError if the one demanded disagrees."""
    if wanted == "eager":
        return _eager(models_dir, weights.name), EngineChoice("eager", None, "")
    engine = OnnxEngine(weights.arrays, weights.entry.config)
    difference = largest_difference(engine, weights.arrays, weights.entry.config)
    if difference <= TOLERANCE:  # false also for a difference that is no number
        return engine, EngineChoice("onnx", difference, "")
    reason = (
        f"ONNX Runtime differs from the reference by {difference:.3g} on this processor, "
        f"{TOLERANCE:g} is allowed"
    )
    if wanted == "onnx":
        raise IntegrityError(
            f"{models_dir / weights.name}: {reason}; set "
            "hierarchical_reasoning_model.performance.engine to auto or eager"
        )
    return _eager(models_dir, weights.name), EngineChoice("eager", difference, reason)


def _eager(models_dir: Path, name: str) -> Engine[Any, Any]:
    from hrm.eager_engine import EagerEngine  # noqa: PLC0415 - loads torch, which serving avoids
    from hrm.integrity import load_release  # noqa: PLC0415 - loads torch, which serving avoids

    return EagerEngine(load_release(models_dir, name).model)
