"""What was measured of the engines here, kept between starts: speed, and how they passed the gate.

A file is for one model, one kernel, one set of versions and one processor; for another of any of
them there is another file. A file that cannot be read or written costs a measurement, nothing else.
"""

import hashlib
import json
import os
import platform
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hrm.gate import GateFigures
from hrm.native_library import SIMD_VARIABLE, sources_digest

FOLDER = "engines"  # below the state folder
FORMAT = 3


@dataclass
class EngineFacts:
    """Hold what was measured, by the engine's name; encode_ms: of reading the market once.

    differences: of any output from the reference; a coarser engine is held to its own at each load.
    """

    encode_ms: dict[str, float] = field(default_factory=dict)
    segment_ms: dict[str, float] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    gates: dict[str, GateFigures] = field(default_factory=dict)


@cache
def processor() -> str:
    """Name this processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    wanted = ("model name", "flags")
    told = {key.strip(): value.strip() for key, _, value in (x.partition(":") for x in lines)}
    flags = hashlib.sha256(told.get("flags", "").encode()).hexdigest()[:8]
    return f"{platform.machine()} {told.get(wanted[0], platform.processor())} {flags}"


def facts_path(state_dir: Path, model_sha256: str) -> Path:
    """Return where the facts of a model lie."""
    parts = (
        str(FORMAT),
        model_sha256,
        sources_digest(),
        processor(),
        os.environ.get(SIMD_VARIABLE, ""),
        *(version(name) for name in ("numpy", "onnxruntime")),
    )
    name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
    return state_dir / FOLDER / f"{name}.json"


def read_facts(path: Path) -> EngineFacts:
    """Read what was measured; nothing where there is no file, or one that makes no sense."""
    try:
        kept: dict[str, Any] = json.loads(path.read_bytes())
        return EngineFacts(
            encode_ms={name: float(value) for name, value in kept["encode_ms"].items()},
            segment_ms={name: float(value) for name, value in kept["segment_ms"].items()},
            differences={name: float(value) for name, value in kept["differences"].items()},
            gates={name: GateFigures(**value) for name, value in kept["gates"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return EngineFacts()


def write_facts(path: Path, facts: EngineFacts) -> None:
    """Keep what was measured, if the state folder is there and can be written."""
    kept = {
        "processor": processor(),
        "encode_ms": facts.encode_ms,
        "segment_ms": facts.segment_ms,
        "differences": facts.differences,
        "gates": {name: vars(figures) for name, figures in facts.gates.items()},
    }
    try:
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
        temporary.write_text(json.dumps(kept, indent=1) + "\n")
        temporary.replace(path)
    except OSError:
        return
