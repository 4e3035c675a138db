"""hrm-trader simulate-broker: a Fyers that is none, on loopback, for trying things out.

What it simulates is for `daemon/brokers/fyers_simulator` to say.
"""

import asyncio
import json
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from actors.instruments import Instrument
from daemon.brokers.fyers_simulator import (
    ALL_FAULTS,
    FaultKind,
    FyersSimulator,
    RateLimits,
    SimulatorSettings,
)
from daemon.brokers.fyers_simulator.instruments import IST
from daemon.clock import SystemClock
from daemon.errors import ConfigError
from daemon.history import CandleTable
from daemon.session_files import load_markets
from daemon.settings import load_instruments, load_sessions


def simulate_broker(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same prices and faults.")] = 1,
    start: Annotated[
        str | None,
        typer.Option("--start", help="Time in India to begin at, as 2026-11-25T10:00, or now."),
    ] = None,
    speed: Annotated[
        float,
        typer.Option("--speed", min=0.0, help="Market seconds per real one; 0: none pass."),
    ] = 1.0,
    data: Annotated[
        list[Path] | None, typer.Option("--data", help="Candles to play; may be repeated.")
    ] = None,
    instrument: Annotated[
        list[str] | None, typer.Option("--instrument", help="Instrument of each file.")
    ] = None,
    faults: Annotated[
        str, typer.Option("--faults", help="all, or kinds with commas between; empty: none.")
    ] = "",
    fault_gap: Annotated[
        float, typer.Option("--fault-gap", min=0.1, help="Mean market seconds between faults.")
    ] = 20.0,
    limits: Annotated[bool, typer.Option(help="Refuse calls beyond the broker's limits.")] = True,
    duration: Annotated[
        float | None, typer.Option("--duration", min=0.1, help="Stop after so many seconds.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Folder with sessions.yaml.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout.")
    ] = False,
) -> None:
    """Serve a simulated Fyers broker on loopback until interrupted."""
    kinds = chosen_faults(faults)
    settings = SimulatorSettings(
        seed=seed,
        start=None if start is None else market_time(start),
        speed=speed,
        port=port,
        limits=RateLimits() if limits else None,
        played=_played(data or [], instrument or [], config),
        calendar=load_sessions(config),
    )
    asyncio.run(_serve(settings, kinds, fault_gap, duration, as_json=as_json))


def market_time(text: str) -> datetime:
    """Return the instant that a text names; ConfigError for what is neither a time nor "now"."""
    if text == "now":
        return datetime.fromtimestamp(SystemClock().now_ns() / 1e9, IST)
    try:
        named = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f'--start must read "2026-11-25 10:00", or now, was {text!r}') from None
    return named if named.tzinfo is not None else named.replace(tzinfo=IST)


def chosen_faults(text: str) -> tuple[FaultKind, ...] | None:
    """Return the kinds that a text names; None for "all", ConfigError for unknown ones."""
    if text == "all":
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in ALL_FAULTS]
    if unknown:
        raise ConfigError(
            f"no fault {', '.join(unknown)}: --faults takes all, or some of {', '.join(ALL_FAULTS)}"
        )
    return tuple(kind for kind in ALL_FAULTS if kind in names)


def description(simulator: FyersSimulator) -> dict[str, Any]:
    """Return where a simulator is and how to log in to it."""
    urls, account = simulator.urls, simulator.account
    return {
        "api": urls.api,
        "data": urls.data,
        "public": urls.public,
        "login": urls.login,
        "data_socket": urls.data_socket,
        "order_socket": urls.order_socket,
        "control": urls.control,
        "seed": simulator.settings.seed,
        "now": simulator.state()["now"],
        "speed": simulator.settings.speed,
        "client_id": account.client_id,
        "app_id": account.app_id,
        "secret": account.secret,
        "pin": account.pin,
        "totp_secret": account.totp_secret,
        "redirect_uri": account.redirect_uri,
        "access_token": simulator.token(),
    }


def _played(
    files: list[Path], names: list[str], config: Path | None
) -> tuple[tuple[Instrument, CandleTable], ...]:
    if not files:
        return ()
    catalogue = load_instruments(config, demo=True).catalogue
    markets = load_markets(files, names, catalogue)
    return tuple((catalogue[market.instrument], market.table) for market in markets)


async def _serve(
    settings: SimulatorSettings,
    kinds: tuple[FaultKind, ...] | None,
    fault_gap: float,
    duration: float | None,
    *,
    as_json: bool,
) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with FyersSimulator(settings) as simulator:
        if kinds is None or kinds:
            simulator.follow_faults("all" if kinds is None else kinds, mean_gap_s=fault_gap)
        answer = description(simulator)
        lines = (f"{key}: {value}" for key, value in answer.items())
        print(json.dumps(answer) if as_json else "\n".join(lines), flush=True)
        print("serving; stop with Ctrl-C", file=sys.stderr)
        waiting: set[asyncio.Task[Any]] = {asyncio.create_task(stopped.wait())}
        if simulator.driver is not None:
            waiting.add(simulator.driver)
        await asyncio.wait(waiting, timeout=duration, return_when=asyncio.FIRST_COMPLETED)
        print(json.dumps(simulator.state()), file=sys.stderr)
