"""`hrm-trader contract`: which option stands for a view of an index, and in what orders.

Reads downloaded files alone; nothing is sent. The choice is made in `actors/options.py`.
"""

import json
from datetime import date, datetime, time
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Annotated, Final
from zoneinfo import ZoneInfo

import typer

from actors.options import (
    NoContract,
    OrderRefused,
    Strategy,
    View,
    check_limit_price,
    choose_option,
    split_quantity,
)
from actors.session import SessionCalendar
from daemon.clock import SystemClock
from daemon.errors import ConfigError
from daemon.settings import load_instruments, load_sessions
from daemon.symbol_master import options_of, read_master

_INDIA: Final = ZoneInfo("Asia/Kolkata")


def contract(
    master: Annotated[
        list[Path], typer.Option("--master", help="Symbol master as JSON; CM and FO, repeated.")
    ],
    spot: Annotated[str, typer.Option("--spot", help="Price of the index, rupees.")],
    view: Annotated[View, typer.Option("--view", help="long buys a call, short a put.")],
    instrument: Annotated[str, typer.Option("--instrument", help="An index.")] = "Nifty",
    strategy: Annotated[Strategy, typer.Option("--strategy", help="Which strike.")] = "ITM",
    lots: Annotated[int, typer.Option("--lots", min=1, help="Of the contract.")] = 1,
    limit: Annotated[
        str | None, typer.Option("--limit", help="Limit price to check, rupees.")
    ] = None,
    day: Annotated[
        str | None, typer.Option("--day", help="Day in India, as 2026-11-25; default: today.")
    ] = None,
    expiry_day: Annotated[
        bool, typer.Option(help="Whether a contract may be bought on the day that it expires.")
    ] = True,
    config: Annotated[Path | None, typer.Option("--config", help="Folder with settings.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Choose the option for a view of an index and split its order; exit 1 if there is none."""
    found = load_instruments(config).catalogue[instrument]
    if found.kind != "index":
        raise ConfigError(f"{found.symbol} is traded directly: --instrument must be an index")
    today = _day(day)
    try:
        chosen = choose_option(
            options_of(read_master(master), found.exchange_symbol),
            view=view,
            spot=_rupees("--spot", spot),
            today=today,
            valid_from=_last_trading_day(load_sessions(config), found.session, today),
            strategy=strategy,
            on_expiry_day=expiry_day,
        )
        if limit is not None:
            check_limit_price(chosen, _rupees("--limit", limit))
        orders = split_quantity(
            lots * chosen.lot_size,
            lot_size=chosen.lot_size,
            freeze_quantity=chosen.freeze_quantity,
        )
    except (NoContract, OrderRefused) as error:
        typer.echo(json.dumps({"refused": str(error)}) if as_json else f"refused: {error}")
        raise typer.Exit(1) from error
    answer = {
        "symbol": chosen.symbol,
        "side": "buy",
        "strike": float(chosen.strike),
        "expiry": str(chosen.expiry),
        "lot_size": chosen.lot_size,
        "freeze_quantity": chosen.freeze_quantity,
        "tick_size": float(chosen.tick_size),
        "band": [float(chosen.lower_price), float(chosen.upper_price)],
        "orders": list(orders),
    }
    typer.echo(json.dumps(answer) if as_json else json.dumps(answer, indent=2))


def _last_trading_day(calendar: SessionCalendar, market: str, today: date) -> date:
    """Return the last day up to today with trading at noon."""
    noon_ns = int(datetime.combine(today, time(12), _INDIA).timestamp()) * 10**9
    try:
        return calendar.last_trading_day(market, noon_ns)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _day(text: str | None) -> date:
    if text is None:
        return datetime.fromtimestamp(SystemClock().now_ns() / 1e9, _INDIA).date()
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"--day must read as 2026-11-25, was {text!r}") from error


def _rupees(option: str, text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise ConfigError(f"{option} must be a price in rupees, was {text!r}") from error
