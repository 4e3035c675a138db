"""Which engine serves a model: the finest that reaches full depth with time to spare, or a faster.

Every engine is compared with the reference in numpy before it serves, and one with coarser weights
passes the gate as well. The check needs no torch; the eager engine is imported only where it is
chosen.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hrm.config import EngineName, ServingEngine
from hrm.engine import Engine
from hrm.engine_candidates import COARSE, FINE, NATIVE_BITS, ONNX_BITS, Candidates, Refused
from hrm.manifest import EngineRefused
from hrm.weights import Weights

SHARE = 0.2
"""Share of the deadline in which full depth must fit at its fastest. In the daemon it takes two or
three times as long, and what comes before thinking has its time as well."""


@dataclass(frozen=True)
class EngineChoice:
    """Hold the engine that serves and why, and what was found out about the others.

    difference: of any output from the reference, None where it was not measured. encode_ms,
    segment_ms: the least that parts of a decision took, by engine, where it had to be measured.
    refused: why an engine may not serve. simd: the instruction set of a native one, "" for another.
    """

    name: ServingEngine
    difference: float | None
    reason: str
    simd: str = ""
    encode_ms: dict[str, float] = field(default_factory=dict)
    segment_ms: dict[str, float] = field(default_factory=dict)
    gates: dict[str, dict[str, Any]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)


def choose_engine(
    models_dir: Path,
    weights: Weights,
    wanted: EngineName,
    *,
    deadline_ms: float = 50.0,
    state_dir: Path | None = None,
) -> tuple[Engine[Any, Any], EngineChoice]:
    """Make the engine of a verified model; raise EngineRefused if the one demanded is refused.

    state_dir: where measurements are kept, None to keep none.
    """
    if wanted == "eager":
        return _eager(models_dir, weights.name), EngineChoice("eager", None, "demanded")
    candidates = Candidates(weights, state_dir)
    names = iter((wanted,)) if wanted != "auto" else _ranked(candidates, deadline_ms)
    refused: dict[str, str] = {}
    for name in names:
        try:
            engine, difference = candidates.admitted(name)
        except Refused as error:
            refused[name] = str(error)
            continue
        reason = "demanded" if wanted != "auto" else _why(candidates, name, deadline_ms)
        return engine, _choice(candidates, name, difference, reason, refused)
    if wanted != "auto":
        raise EngineRefused(
            f"{models_dir / weights.name}: the engine {wanted} is refused: {refused[wanted]}; set "
            "hierarchical_reasoning_model.performance.engine to auto or eager"
        )
    reason = "every faster one is refused"
    return _eager(models_dir, weights.name), _choice(candidates, "eager", None, reason, refused)


def _ranked(candidates: Candidates, deadline_ms: float) -> Iterator[ServingEngine]:
    """Yield engines, the best first; a coarser one is looked at only where depth needs it."""
    taken_ms = candidates.measured(FINE)
    fine = sorted(taken_ms, key=taken_ms.__getitem__)
    if fine and _fits(candidates, fine[0], deadline_ms):
        yield from fine
        return
    taken_ms |= candidates.measured(COARSE)
    deep = [name for name in COARSE if name in taken_ms and _fits(candidates, name, deadline_ms)]
    rest = sorted(taken_ms.keys() - deep, key=taken_ms.__getitem__)
    yield from (*deep, *rest)


def _why(candidates: Candidates, name: ServingEngine, deadline_ms: float) -> str:
    """Say what speaks for an engine."""
    depth = candidates.config.adaptive_computation.m_max
    taken_ms = _full_depth_ms(candidates, name)
    if not _fits(candidates, name, deadline_ms):
        return f"the fastest that is admitted: {depth} segments take {taken_ms:.1f} ms"
    kind = "float32" if name in FINE else f"{(NATIVE_BITS | ONNX_BITS)[name]}-bit weights"
    return (
        f"the finest whose {depth} segments fit {SHARE:.0%} of {deadline_ms:g} ms: {kind}, "
        f"{taken_ms:.1f} ms"
    )


def _choice(
    candidates: Candidates,
    name: ServingEngine,
    difference: float | None,
    reason: str,
    refused: dict[str, str],
) -> EngineChoice:
    """Put together what was found out."""
    return EngineChoice(
        name=name,
        difference=difference,
        reason=reason,
        simd=candidates.library.level if name in NATIVE_BITS else "",
        encode_ms=dict(candidates.facts.encode_ms),
        segment_ms=dict(candidates.facts.segment_ms),
        gates={key: figures.as_json() for key, figures in candidates.facts.gates.items()},
        refused={str(key): text for key, text in candidates.unavailable.items()} | refused,
    )


def _full_depth_ms(candidates: Candidates, name: ServingEngine) -> float:
    segments = candidates.config.adaptive_computation.m_max
    return candidates.facts.encode_ms[name] + segments * candidates.facts.segment_ms[name]


def _fits(candidates: Candidates, name: ServingEngine, deadline_ms: float) -> bool:
    return _full_depth_ms(candidates, name) <= SHARE * deadline_ms


def _eager(models_dir: Path, name: str) -> Engine[Any, Any]:
    from hrm.eager_engine import EagerEngine  # noqa: PLC0415 - loads torch, which serving avoids
    from hrm.integrity import load_release  # noqa: PLC0415 - loads torch, which serving avoids

    return EagerEngine(load_release(models_dir, name).model)
