"""hrm-trader synth: candles of a synthetic world as a file, and what the best policy earns there.

What the worlds are is for `hrm.training.worlds` to say.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from daemon.candle_files import utc_text
from daemon.errors import ConfigError, DataError
from hrm.training.world_oracles import oracle_of
from hrm.training.worlds import generate, parameter_values, parameters_for, write_csv


def synth(
    world: Annotated[str, typer.Option("--world", help="W0 to W5.")],
    out: Annotated[Path, typer.Option("--out", help="CSV file to write, such as W2_5.csv.")],
    bars: Annotated[int, typer.Option("--bars", min=2, help="Five-minute bars.")] = 60_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Same seed, same candles.")] = 1,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="A parameter of the world, name=value; may be repeated."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout.")
    ] = False,
) -> None:
    """Write candles of a synthetic market whose best policy is known, and what that one earns."""
    answer = synthesise(world, bars, seed, dict(map(_change, changes or [])), out)
    if as_json:
        typer.echo(json.dumps(answer))
        return
    for key, value in answer.items():
        typer.echo(f"{key}: {value}")


def synthesise(
    world: str, bars: int, seed: int, changes: dict[str, str], out: Path
) -> dict[str, Any]:
    """Write the file and describe it; raise ConfigError for a world that cannot be."""
    try:
        parameters = parameters_for(world, **changes)
        best = oracle_of(parameters)
        drawn = generate(world, bars, seed, parameters)
    except ValueError as error:
        raise ConfigError(f"{error}: see hrm-trader synth --help") from error
    try:
        write_csv(out, drawn.candles)
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror}); give --out a folder that exists"
        ) from error
    return {
        "world": drawn.world,
        "bars": bars,
        "seed": seed,
        "parameters": parameter_values(parameters),
        "cost_bps": parameters.cost_bps,
        "oracle_value": round(1e4 * best.value, 5),
        "oracle_value_unit": "bps of log return per bar, net of cost_bps per side",
        "file": str(out),
        "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        "first_open": utc_text(int(drawn.candles.open_ns[0])),
        "last_open": utc_text(int(drawn.candles.open_ns[-1])),
    }


def _change(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ConfigError(f"--set needs name=value, such as drift_bps=4, was {text!r}")
    return name, value
