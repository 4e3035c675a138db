"""hrm-trader fetch: candles from the broker's history into the data folder, within its limits."""

import asyncio
import json
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from random import Random
from typing import Annotated, Any, Final

import aiohttp
import typer

from actors.instruments import UnknownInstrument
from daemon.brokers.fyers.history_files import MINUTES_PER_DAY, Stored, Wanted, download
from daemon.brokers.fyers.ledger import RateLedger
from daemon.brokers.fyers.login import TokenStore
from daemon.brokers.fyers.rest import Endpoints, FyersRest, Rejected, simulated
from daemon.candle_files import utc_text
from daemon.clock import NS_PER_SECOND, SystemClock
from daemon.errors import ConfigError
from daemon.market_files import InstrumentsFile
from daemon.settings import load_instruments, load_settings

_INDIA: Final = timezone(timedelta(hours=5, minutes=30))
_DAYS_BACK: Final = 365


def fetch(
    names: Annotated[
        list[str] | None,
        typer.Option("--symbol", help="Of instruments.yaml; may be repeated. Default: all."),
    ] = None,
    timeframes: Annotated[
        list[str] | None,
        typer.Option("--timeframe", help="Minutes, or D; may be repeated. Default: 5."),
    ] = None,
    start: Annotated[
        datetime | None,
        typer.Option("--from", formats=["%Y-%m-%d"], help="First day. Default: a year ago."),
    ] = None,
    end: Annotated[
        datetime | None,
        typer.Option("--until", formats=["%Y-%m-%d"], help="Last day, included. Default: today."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write into (paths.raw_data_dir).")
    ] = None,
    simulator: Annotated[
        str | None,
        typer.Option("--simulator", help="Address of hrm-trader simulate-broker, on loopback."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="Folder with settings.yaml.")
    ] = None,
    state: Annotated[
        Path | None, typer.Option("--state", help="State folder (session.state_dir).")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object on stdout.")
    ] = False,
) -> None:
    """Download candles into the data folder; called again, it adds to both ends of its files."""
    settings = load_settings(config)
    now = datetime.fromtimestamp(SystemClock().now_ns() / NS_PER_SECOND, _INDIA)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    wanted = wanted_files(
        load_instruments(config),
        names or [],
        timeframes or ["5"],
        start.replace(tzinfo=_INDIA) if start else today - timedelta(days=_DAYS_BACK),
        end.replace(tzinfo=_INDIA) if end else today,
    )
    endpoints = Endpoints() if simulator is None else simulated(simulator)
    answer = asyncio.run(
        fetch_all(
            wanted,
            out or Path(settings.paths.raw_data_dir),
            (state or settings.session.state_dir) / "fyers",
            endpoints,
        )
    )
    print(json.dumps(answer) if as_json else json.dumps(answer, indent=2))
    if answer["problems"]:
        raise typer.Exit(1)


def wanted_files(
    instruments: InstrumentsFile,
    names: Sequence[str],
    timeframes: Sequence[str],
    first: datetime,
    last: datetime,
) -> list[Wanted]:
    """Return what to download; ConfigError names a symbol, timeframe or day that cannot be."""
    catalogue = instruments.catalogue
    if first > last:
        raise ConfigError(f"--from must not be after --until, was {first:%Y-%m-%d}")
    for timeframe in timeframes:
        if timeframe not in instruments.timeframes:
            known = ", ".join(instruments.timeframes)
            raise ConfigError(f"--timeframe must be one of {known}, was {timeframe!r}")
    found = []
    for name in names or catalogue.symbols:
        try:
            instrument = catalogue[name]
        except UnknownInstrument as error:
            known = ", ".join(catalogue.symbols)
            raise ConfigError(f"--symbol must be one of {known}, was {name!r}") from error
        found += [
            Wanted(
                name=instrument.symbol,
                symbol=instrument.exchange_symbol,
                minutes=MINUTES_PER_DAY if timeframe == "D" else int(timeframe),
                first_s=round(first.timestamp()),
                end_s=round((last + timedelta(days=1)).timestamp()),
            )
            for timeframe in timeframes
        ]
    return found


async def fetch_all(
    wanted: Sequence[Wanted], folder: Path, state: Path, endpoints: Endpoints
) -> dict[str, Any]:
    """Download one file after the other and describe them; progress goes to stderr.

    state: folder with the token and the ledger of calls. What the broker refuses for good is told
    and passed over; LoginNeeded, TooManyCalls, BrokerUnavailable and DataError end the download.
    """
    clock, store = SystemClock(), TokenStore(state)
    files, problems = [], []
    token = store.load(clock.now_ns())
    with RateLedger(state / "calls", clock) as ledger:
        before = ledger.calls_today
        async with aiohttp.ClientSession() as http:
            rest = FyersRest(
                http,
                endpoints,
                app_id=token.app_id,
                token=lambda: store.load(clock.now_ns()).access_token,
                ledger=ledger,
                clock=clock,
                random=Random(),
            )
            for number, one in enumerate(wanted, start=1):
                where = f"{number}/{len(wanted)} {one.file_name}"

                def tell(first_s: int, last_s: int, stored: Stored, where: str = where) -> None:
                    first, last = (utc_text(at_s * NS_PER_SECOND) for at_s in (first_s, last_s))
                    print(f"{where}: {first} to {last}, {stored.rows} rows", file=sys.stderr)

                try:
                    stored = await download(
                        rest, one, folder, lambda: clock.now_ns() // NS_PER_SECOND, tell
                    )
                except Rejected as error:
                    print(f"{where}: {error}", file=sys.stderr)
                    problems.append({"file": one.file_name, "reason": str(error)})
                else:
                    files.append(_described(one, stored))
        calls = ledger.calls_today - before
    return {"files": files, "problems": problems, "calls": calls}


def _described(wanted: Wanted, stored: Stored) -> dict[str, Any]:
    def text(second: int | None) -> str | None:
        return None if second is None else utc_text(second * NS_PER_SECOND)

    return {
        "symbol": wanted.name,
        "minutes": wanted.minutes,
        "file": str(stored.path),
        "rows": stored.rows,
        "added": stored.added,
        "first_open": text(stored.first_s),
        "last_open": text(stored.last_s),
    }
