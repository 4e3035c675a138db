"""`hrm-trader model`: what is released, what the production size is, and whether both can be used.

What is said comes from `hrm.description`, which loads torch and is therefore imported late.
"""

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.errors import ConfigError
from daemon.settings import load_settings
from hrm.config import HRMConfig, PerformanceConfig
from hrm.manifest import IntegrityError
from hrm.profiling import Summary

PROFILED_DECISIONS = 200
ROWS = ("parameters", "file_mb", "segments", "cycles", "timesteps")


def model(
    config: Annotated[
        Path | None, typer.Option("--config", help="Folder with settings.yaml.")
    ] = None,
    models: Annotated[
        Path | None, typer.Option("--models", help="Folder of models (session.model_dir).")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout.")
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Think some times, and print what each step took.")
    ] = False,
) -> None:
    """Verify the released model; print size, scores and engine, and the production size."""
    settings = load_settings(config, overrides={}, demo=True)
    performance = settings.hierarchical_reasoning_model.performance
    state_dir = settings.session.state_dir
    folder = models or settings.session.model_dir
    answer = describe(folder, performance, state_dir)
    if profile:
        answer["profile"] = profile_of(folder, settings.hierarchical_reasoning_model, state_dir)
    print(json.dumps(answer) if as_json else "\n".join(_table(answer)))


def profile_of(folder: Path, limits: HRMConfig, state_dir: Path | None = None) -> Summary:
    """Let the released model think some times; return what the steps took, in microseconds."""
    from hrm.agent import HRMAgent  # noqa: PLC0415 - loads the runtime

    profiled = limits.changed(performance={"enable_profiling": True})
    agent = HRMAgent.load(folder, time.monotonic_ns, profiled, state_dir)
    agent.warm_up()
    if agent.profile is None:
        return {}
    agent.profile.clear()
    agent.warm_up(decisions=PROFILED_DECISIONS)
    return agent.profile.summary()


def describe(
    folder: Path,
    performance: PerformanceConfig | None = None,
    state_dir: Path | None = None,
) -> dict[str, Any]:
    """Return what the command prints; raise ConfigError if the released model cannot be used.

    state_dir: where what was measured of the engines is kept, None to measure again.
    """
    from hrm.description import (  # noqa: PLC0415 - loads torch, which no other command needs
        describe_engine,
        describe_production,
        describe_release,
    )

    try:
        released = describe_release(folder)
        engine = describe_engine(folder, performance or PerformanceConfig(), state_dir)
    except IntegrityError as error:
        raise ConfigError(str(error)) from error
    production = describe_production()
    return {
        "parameters": production["parameters"],
        "file_mb": production["file_mb"],
        "parts": production["parts"],
        "engine": engine["name"],
        "engine_difference": engine["difference"],
        "engine_reason": engine["reason"],
        "engine_simd": engine["simd"],
        "engine_encode_ms": engine["encode_ms"],
        "engine_segment_ms": engine["segment_ms"],
        "engine_gates": engine["gates"],
        "engine_refused": engine["refused"],
        "released": released,
        "production": production,
    }


def _table(answer: dict[str, Any]) -> list[str]:
    released, production = answer["released"], answer["production"]
    rows = {key: (released[key], production[key]) for key in ROWS}
    rows |= {part: (released["parts"][part], count) for part, count in production["parts"].items()}
    refused = [f"{'':12}not {name}: {reason}" for name, reason in answer["engine_refused"].items()]
    steps = [
        f"step {step:12}" + "".join(f"{key} {value:>9,}  " for key, value in taken.items())
        for step, taken in answer.get("profile", {}).items()
    ]
    return [
        f"released    {released['name']}, SHA-256 verified, of {released['created']}",
        f"engine      {answer['engine']}: {answer['engine_reason']}",
        *refused,
        f"{'':12}{'released':>12}{'production':>14}",
        *(f"{name:12}{left:>12,}{right:>14,}" for name, (left, right) in rows.items()),
        *steps,
    ]
