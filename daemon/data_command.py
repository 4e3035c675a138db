"""`hrm-trader data`: is a file of candles fit, and does anything computed from it know the future?

What is looked at is for `data_check` and `lookahead` to say; both load pandas, so late.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from actors.instruments import InstrumentCatalogue, UnknownInstrument
from daemon.demo_data import demo_candles
from daemon.errors import ConfigError, DataError
from daemon.history import load_candles, name_and_minutes
from daemon.settings import load_instruments, load_sessions

data = typer.Typer(name="data", help="Check candles, and what is computed from them.")

File = Annotated[Path, typer.Argument(help="Candles, CSV or Parquet.")]
Config = Annotated[Path | None, typer.Option("--config", help="Folder with settings.yaml.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


@data.command()
def check(
    file: File,
    market: Annotated[
        str | None, typer.Option("--market", help="Of sessions.yaml; default: the instrument's.")
    ] = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Report what a file of candles holds, lacks and had repaired; exit 1 if it cannot be used."""
    from daemon.data_check import as_answer, check_file  # noqa: PLC0415 - pandas loads slowly

    calendar = load_sessions(config)
    if market is not None and market not in calendar.markets:
        raise ConfigError(
            f"no market {market!r} in sessions.yaml: use one of {', '.join(calendar.markets)}"
        )
    catalogue = load_instruments(config, demo=True).catalogue
    try:
        chosen = market or market_of(file, catalogue)
        answer = as_answer(check_file(file, calendar, chosen))
    except DataError as error:
        _print({"usable": False, "problem": str(error), "file": str(file)}, as_json)
        raise typer.Exit(1) from error
    _print(answer, as_json)


@data.command()
def lookahead(
    file: Annotated[
        Path | None, typer.Option("--data", help="Candles; default: the EUR/USD of the demo.")
    ] = None,
    bars: Annotated[int, typer.Option("--bars", min=400, help="Newest bars to check.")] = 6000,
    as_json: Json = False,
) -> None:
    """Truncate the future and vary the warm-up of every feature and label; exit 1 on a change."""
    import msgspec  # noqa: PLC0415 - with the two below

    from daemon.lookahead import (  # noqa: PLC0415 - pandas loads slowly
        check_lookahead,
        training_candles,
    )

    path = file or demo_candles().path
    table = load_candles(path)
    first_ns = int(table.open_ns[max(0, len(table) - bars)])
    newest = table.between(first_ns, int(table.open_ns[-1]) + 1)
    report = check_lookahead(training_candles(newest))
    violations = report.lookahead_violations + report.warmup_violations
    _print({"file": str(path), "violations": violations} | msgspec.to_builtins(report), as_json)
    if violations:
        raise typer.Exit(1)


def market_of(file: Path, catalogue: InstrumentCatalogue) -> str | None:
    """Return the market of the instrument that a file's name tells; None if there is no such."""
    try:
        return catalogue[name_and_minutes(file)[0]].session
    except UnknownInstrument:
        return None


def _print(answer: dict[str, Any], as_json: bool) -> None:
    typer.echo(json.dumps(answer) if as_json else json.dumps(answer, indent=2))
