"""`hrm-trader data`: is a file of candles fit, and does anything computed from it know the future?

What is looked at is for `data_check` and `lookahead` to say; both load pandas, so late.
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from actors.instruments import Instrument, InstrumentCatalogue, UnknownInstrument
from daemon.continuity import auction_bars, without
from daemon.demo_data import demo_candles
from daemon.errors import ConfigError, DataError
from daemon.history import load_candles
from daemon.settings import load_instruments, load_sessions, load_settings

data = typer.Typer(name="data", help="Check candles, and what is computed from them.")

File = Annotated[
    Path, typer.Argument(help="Candles: CSV, Parquet, broker history as JSON, or a session.")
]
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
    from daemon.candle_sources import load_any  # noqa: PLC0415 - with the next
    from daemon.data_check import as_answer, check_table  # noqa: PLC0415 - pandas loads slowly

    calendar = load_sessions(config)
    if market is not None and market not in calendar.markets:
        raise ConfigError(
            f"no market {market!r} in sessions.yaml: use one of {', '.join(calendar.markets)}"
        )
    catalogue = load_instruments(config, demo=True).catalogue
    try:
        table = load_any(file)
        instrument = instrument_of(table.symbol, catalogue)
        where = market or (instrument.session if instrument is not None else None)
        answer = as_answer(check_table(table, str(file), calendar, where, instrument))
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
        every_column,
        training_candles,
    )

    path = file or demo_candles().path
    table = load_candles(path)
    instrument = instrument_of(table.symbol, load_instruments(None, demo=True).catalogue)
    auction = auction_bars(table, load_sessions(None), instrument)
    table = without(table, auction)
    first_ns = int(table.open_ns[max(0, len(table) - bars)])
    newest = table.between(first_ns, int(table.open_ns[-1]) + 1)
    compute = every_column(load_settings(demo=True).complexity)
    report = check_lookahead(training_candles(newest), compute)
    violations = report.lookahead_violations + report.warmup_violations
    left_out = {"auction_bars_left_out": int(auction.sum())}
    answer = {"file": str(path), "violations": violations} | left_out
    _print(answer | msgspec.to_builtins(report), as_json)
    if violations:
        raise typer.Exit(1)


@data.command()
def features(
    file: File,
    out: Annotated[Path, typer.Option("--out", help="Folder to write into.")],
    as_json: Json = False,
) -> None:
    """Write the contract's features of a file of candles, named after symbol and minutes."""
    from daemon.candle_sources import load_any  # noqa: PLC0415 - with the next
    from daemon.feature_files import write_features  # noqa: PLC0415 - pandas loads slowly

    table = load_any(file)
    path = write_features(table, out)
    _print({"file": str(path), "bars": len(table), "sha256_of_candles": table.sha256}, as_json)


def instrument_of(symbol: str, catalogue: InstrumentCatalogue) -> Instrument | None:
    """Return the instrument of a symbol; None if there is no such."""
    try:
        return catalogue[symbol]
    except UnknownInstrument:
        return None


def _print(answer: dict[str, Any], as_json: bool) -> None:
    typer.echo(json.dumps(answer) if as_json else json.dumps(answer, indent=2))
