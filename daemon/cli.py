"""hrm-trader: the operator's commands. With --json each prints one JSON object on stdout.

Logs and the live view go to stderr. Exit status: 0 done; 1 failed, or a replay that differs;
2 settings or arguments that cannot be used.
"""

import asyncio
import getpass
import json
import sys
import time
from collections.abc import Coroutine
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer
import uvloop

from actors.messages import Policy
from daemon import drill_venue
from daemon.backtest_command import backtest
from daemon.clock import SystemClock
from daemon.contract_command import contract
from daemon.data_command import data as data_commands
from daemon.errors import ConfigError, TraderError
from daemon.fetch_command import fetch
from daemon.login_command import login
from daemon.logs import configure_logs
from daemon.model_command import model
from daemon.operator import Operator, stop_without_settings
from daemon.replay import Recording, replay_session
from daemon.session_files import check_model, find_session, load_markets, within_days
from daemon.session_run import Options, Setting, demo_broker, run_daemon, run_demo
from daemon.settings import (
    SessionSettings,
    Settings,
    load_instruments,
    load_sessions,
    load_settings,
)
from daemon.simulate_command import simulate_broker
from daemon.synth_command import synth
from daemon.trace import trace as trace_order
from daemon.venue import BrokerName
from daemon.wiring import graph
from hrm.manifest import IntegrityError

app = typer.Typer(
    name="hrm-trader",
    help=__doc__,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Config = Annotated[Path | None, typer.Option("--config", help="Folder with settings.yaml.")]
State = Annotated[Path | None, typer.Option("--state", help="State folder (session.state_dir).")]
Data = Annotated[
    list[Path] | None,
    typer.Option("--data", help="Candles, CSV or Parquet; may be repeated. Default: EUR/USD."),
]
Names = Annotated[
    list[str] | None,
    typer.Option("--instrument", help="Instrument of each file; default: by the file's name."),
]
Speed = Annotated[
    str | None, typer.Option("--speed", help="Market seconds per real second, or max.")
]
Duration = Annotated[
    float | None, typer.Option("--duration", min=0.1, help="Stop after so many seconds.")
]
Processes = Annotated[
    bool, typer.Option("--processes", help="Give every actor a process of its own.")
]
Start = Annotated[
    datetime | None,
    typer.Option("--start", formats=["%Y-%m-%d"], help="First day of the candles to play."),
]
End = Annotated[
    datetime | None, typer.Option("--end", formats=["%Y-%m-%d"], help="Last day, included.")
]
Seed = Annotated[int, typer.Option("--seed", help="Draws the order of ticks within candles.")]
BrokerOf = Annotated[
    BrokerName | None,
    typer.Option("--broker", help="simulated, or fyers-sim: our Fyers client on a simulator."),
]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the latch and the recording.")]


def main() -> None:
    """Entry point: run a command, or say in one sentence why it cannot be done."""
    as_json = "--json" in sys.argv[1:]
    try:
        app()
    except ConfigError as error:
        _fail(error, as_json, 2)
    except (TraderError, IntegrityError) as error:
        _fail(error, as_json, 1)


def _fail(error: Exception, as_json: bool, code: int) -> NoReturn:
    if as_json:
        print(json.dumps({"error": type(error).__name__, "text": str(error)}))
    print(f"hrm-trader: {error}", file=sys.stderr)
    sys.exit(code)


def _run(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


def _print(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer, default=str))
        return
    for line in _lines(answer):
        print(line)


def _lines(value: Any, indent: str = "") -> list[str]:
    lines: list[str] = []
    for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(entry, dict | list) and entry:
            lines += [f"{indent}{key}:", *_lines(entry, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {entry}")
    return lines


def _settings(config: Path | None, state: Path | None, **more: Any) -> Settings:
    overrides = {key.replace("__", "."): value for key, value in more.items() if value is not None}
    if state is not None:
        overrides["session.state_dir"] = str(state)
    return load_settings(config, overrides=overrides, demo=True)


def _setting(
    config: Path | None,
    state: Path | None,
    speed: str | None,
    data: list[Path],
    names: list[str],
    days: tuple[datetime | None, datetime | None],
) -> Setting:
    settings = _settings(config, state, feed__speed=speed)
    catalogue = load_instruments(config, demo=True).catalogue
    calendar = load_sessions(config)
    first, last = (day.date() if day else None for day in days)
    markets = load_markets(data, names, catalogue)
    return Setting(
        settings=settings,
        catalogue=catalogue,
        calendar=calendar,
        markets=within_days(markets, catalogue, calendar, first, last),
        clock=SystemClock(),
    )


@app.command()
def demo(
    data: Data = None,
    instrument: Names = None,
    speed: Speed = "max",
    start: Start = None,
    end: End = None,
    duration: Duration = None,
    processes: Processes = False,
    seed: Seed = 1,
    broker: BrokerOf = None,
    faults: Annotated[
        str, typer.Option("--faults", help="With fyers-sim: all, or kinds with commas between.")
    ] = "",
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Paper-trade real candles in a fresh session with a live view, and report.

    With --faults it is a drill: decisions and prices drawn by seed, things going wrong, and an
    audit of all books at the end; exit status 1 unless they agree.
    """
    if faults:
        _drill(faults, broker, data, seed, duration, config, state, as_json=as_json)
        return
    where = _setting(config, state, speed, data or [], instrument or [], (start, end))
    if broker == "fyers":
        raise ConfigError("a demo places no real orders: --broker simulated or fyers-sim")
    options = Options(duration, processes, seed, broker or demo_broker(where))
    _print(_run(run_demo(where, options)), as_json)


def _streamed(config: Path | None, state: Path | None, **more: Any) -> Setting:
    """Return where a session without candles is run; its markets are still to be named."""
    return Setting(
        settings=_settings(config, state, **more),
        catalogue=load_instruments(config, demo=True).catalogue,
        calendar=load_sessions(config),
        markets=[],
        clock=SystemClock(),
    )


def _drill(
    faults: str,
    broker: BrokerName | None,
    data: list[Path] | None,
    seed: int,
    duration: float | None,
    config: Path | None,
    state: Path | None,
    *,
    as_json: bool,
) -> None:
    if broker != "fyers-sim" or data:
        raise ConfigError(
            "--faults happen at the simulated Fyers and its own prices: give --broker fyers-sim "
            "and no --data"
        )
    where = replace(
        _streamed(config, state, **drill_venue.SETTINGS), streamed=drill_venue.streamed_markets()
    )
    drill = drill_venue.Drill(kinds=drill_venue.kinds_of(faults), seed=seed)
    answer = _run(run_demo(where, Options(duration, False, seed, "fyers-sim", drill=drill)))
    _print(answer, as_json)
    if not answer["audit"]["passed"]:
        raise typer.Exit(1)


@app.command()
def run(
    data: Data = None,
    instrument: Names = None,
    speed: Speed = None,
    start: Start = None,
    end: End = None,
    duration: Duration = None,
    processes: Processes = False,
    seed: Seed = 1,
    broker: Annotated[
        BrokerName,
        typer.Option("--broker", help="fyers: real orders, if the settings allow them."),
    ] = "simulated",
    simulator: Annotated[
        str | None,
        typer.Option("--simulator", help="With fyers-sim: address of simulate-broker."),
    ] = None,
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Run the daemon: halted at first, going on after a restart; paper unless told otherwise."""
    options = Options(duration, processes, seed, broker, simulator)
    if broker == "simulated":
        if not data:
            raise ConfigError(
                "run needs --data FILE, candles to replay as the market, or --broker fyers-sim "
                "or fyers, whose prices come over a socket"
            )
        where = _setting(config, state, speed, data, instrument or [], (start, end))
    else:
        if data or instrument or speed or start or end:
            raise ConfigError(
                f"prices of --broker {broker} come over its socket, of what feed.instruments "
                "names: leave out --data, --instrument, --speed, --start and --end"
            )
        where = _streamed(config, state)
    if (simulator is None) is (broker == "fyers-sim"):
        raise ConfigError(
            "--broker fyers-sim needs --simulator http://127.0.0.1:PORT, of hrm-trader "
            "simulate-broker, and no other broker takes one"
        )
    _print(_run(run_daemon(where, options)), as_json)


@app.command()
def status(config: Config = None, state: State = None, as_json: Json = False) -> None:
    """Show latch, server, actors, positions and last decisions; works with the daemon down."""
    operator = Operator(_settings(config, state), SystemClock())
    _print(_run(operator.status()), as_json)


@app.command()
def reconcile(config: Config = None, state: State = None, as_json: Json = False) -> None:
    """Show how log and broker compared last, every difference; exit 1 unless they agree."""
    answer = Operator(_settings(config, state), SystemClock()).reconcile()
    _print(answer, as_json)
    if not answer["agreed"]:
        raise typer.Exit(1)


@app.command()
def kill(
    reason: Reason = "operator",
    flatten: Annotated[bool, typer.Option(help="Also close every open position.")] = False,
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Stop trading now; works with Redis or the daemon down. Only resume releases it."""
    user, clock = getpass.getuser(), SystemClock()
    try:
        operator = Operator(_settings(config, state), clock)
    except TraderError as error:
        # Stopping must not wait for a settings file to be mended.
        folder = state or SessionSettings().state_dir
        steps = asyncio.run(stop_without_settings(folder, reason, user, clock))
        written = [step._asdict() for step in steps]
        _print({"done": steps[0].ok, "steps": written, "problem": str(error)}, as_json)
        raise typer.Exit(1) from error
    answer = _run(operator.kill(reason, user, flatten=flatten))
    _print(answer, as_json)
    if not answer["done"]:
        raise typer.Exit(1)


@app.command()
def resume(
    reason: Annotated[str, typer.Option("--reason", help="Why trading may go on; kept.")],
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Release the kill switch."""
    if not reason.strip():
        raise ConfigError("a release needs a reason: hrm-trader resume --reason '...'")
    operator = Operator(_settings(config, state), SystemClock())
    answer = _run(operator.resume(reason, getpass.getuser()))
    _print(answer, as_json)
    if not answer["done"]:
        raise typer.Exit(1)


@app.command()
def policy(
    policy: Annotated[Policy, typer.Argument(help="hrm: the model decides; hold: nobody.")],
    reason: Reason = "operator",
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Say which policy decides; the way back after a fallback to hold."""
    operator = Operator(_settings(config, state), SystemClock())
    _print(_run(operator.switch_policy(policy, reason, getpass.getuser())), as_json)


@app.command()
def check(config: Config = None, state: State = None, as_json: Json = False) -> None:
    """Validate all settings and the model; print the effective settings, secrets masked."""
    settings = _settings(config, state)
    calendar = load_sessions(config)
    digest, problem = check_model(settings.session.model_dir)
    instruments = load_instruments(config)
    answer = {
        "valid": True,
        "settings_sha256": settings.settings_sha256,
        "settings": settings.effective(),
        "instruments": list(instruments.catalogue.symbols),
        "timeframes": list(instruments.timeframes),
        "timeframes_without_forecast": [
            one
            for one in instruments.timeframes
            if one not in settings.complexity.coefficients.forecasts
        ],
        "entries_until": {name: str(calendar.entries_until(name)) for name in calendar.markets},
        "model": {"valid": bool(digest), "digest": digest, "problem": problem},
    }
    _print(answer, as_json)


@app.command()
def wiring(as_json: Json = False) -> None:
    """Print who takes what from whom, read off the actors' class lines."""
    _print({"wiring": graph()}, as_json)


@app.command()
def replay(
    session: Annotated[str, typer.Argument(help="Session folder, id, or last.")] = "last",
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Run a recorded session again through the same actors; report the first difference."""
    configure_logs("WARNING")
    settings = _settings(config, state)
    began_s = time.monotonic()
    folder = find_session(session, settings.session.state_dir)
    result = replay_session(folder)
    answer = msgspec.to_builtins(result) | {"seconds": round(time.monotonic() - began_s, 3)}
    _print(answer, as_json)
    if not result.identical:
        raise typer.Exit(1)


@app.command()
def trace(
    order_id: Annotated[str, typer.Argument(help="client_order_id of the order.")],
    session: Annotated[str, typer.Option("--session", help="Folder, id, or last.")] = "last",
    config: Config = None,
    state: State = None,
    as_json: Json = False,
) -> None:
    """Walk one order back to its tick and on to its fills."""
    settings = _settings(config, state)
    folder = find_session(session, settings.session.state_dir)
    chain = trace_order(Recording(folder), order_id)
    _print({"order": order_id, "session": folder.name, "chain": chain}, as_json)


app.command()(backtest)
app.command()(simulate_broker)
app.command()(login)
app.command()(contract)
app.command()(fetch)
app.command()(synth)
app.command()(model)
app.add_typer(data_commands)


if __name__ == "__main__":
    main()
