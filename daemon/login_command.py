"""hrm-trader login: once a day, before trading; the token is kept in the state folder."""

import asyncio
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import aiohttp
import typer

from daemon.brokers.fyers.login import LoginFields, Token, TokenStore, fields_from, log_in
from daemon.brokers.fyers.rest import Endpoints
from daemon.clock import SystemClock
from daemon.errors import ConfigError
from daemon.settings import load_settings

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


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


def simulated(base: str) -> Endpoints:
    """Return where everything is at a simulated broker; ConfigError for one not on loopback."""
    parts = urlsplit(base)
    if parts.scheme != "http" or parts.hostname not in _LOOPBACK:
        raise ConfigError(f"--simulator must read http://127.0.0.1:PORT, was {base!r}")
    base = base.rstrip("/")
    socket = base.replace("http", "ws", 1)
    return Endpoints(
        api=f"{base}/api/v3",
        data=f"{base}/data",
        public=f"{base}/sym_details",
        login=f"{base}/vagator/v2",
        data_socket=f"{socket}/hsm/v1-5/prod",
        order_socket=f"{socket}/trade/v3",
    )
