"""hrm-trader login: once a day, before trading; the token is kept in the state folder."""

import asyncio
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import aiohttp
import typer

from daemon.brokers.fyers.login import LoginFields, Token, TokenStore, fields_from, log_in
from daemon.brokers.fyers.rest import Endpoints, simulated
from daemon.clock import SystemClock
from daemon.settings import load_settings


def login(
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
    """Log in to Fyers with TOTP and PIN from the environment, and keep the token encrypted."""
    who = fields_from(os.environ)
    endpoints = Endpoints() if simulator is None else simulated(simulator)
    folder = (state or load_settings(config).session.state_dir) / "fyers"
    token = asyncio.run(log_in_and_save(who, endpoints, folder))
    until = datetime.fromtimestamp(token.expires_s, UTC).isoformat()
    answer = {"app_id": token.app_id, "fy_id": who.fy_id, "good_until": until}
    lines = (f"{key}: {value}" for key, value in answer.items())
    print(json.dumps(answer) if as_json else "\n".join(lines))


async def log_in_and_save(who: LoginFields, endpoints: Endpoints, folder: Path) -> Token:
    """Log in and keep the token in `folder`; what the web backend calls with its six fields."""
    async with aiohttp.ClientSession() as http:
        token = await log_in(who, http, endpoints, SystemClock())
    TokenStore(folder).save(token)
    return token
