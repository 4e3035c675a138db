"""What every benchmark says about the machine it ran on, and how it sums up its samples."""

import math
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def machine_facts() -> dict[str, Any]:
    """Return processor, cores, interpreter, commit and how busy the machine was."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "commit": _commit(),
        "load_1_min": round(os.getloadavg()[0], 2),
    }


def percentile(samples: Sequence[float], fraction: float) -> float:
    """Return the smallest sample that at least `fraction` of all do not exceed."""
    if not samples:
        raise ValueError("a percentile needs at least one sample")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be in [0, 1], was {fraction}")
    ordered = sorted(samples)
    return ordered[max(math.ceil(fraction * len(ordered)) - 1, 0)]


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Return p50, p99 and max, in the unit of the samples, to a tenth."""
    return {
        "p50": round(percentile(samples, 0.50), 1),
        "p99": round(percentile(samples, 0.99), 1),
        "max": round(max(samples), 1),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _commit() -> str:
    shown = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
    )
    return shown.stdout.strip() or "unknown"
