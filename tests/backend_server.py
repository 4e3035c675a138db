"""The backend served for tests, beside a real daemon on made-up candles where one is needed."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from command_line import CONFIG, FIRST_BAR_S, HEADER, Sandbox, candle_rows, wait_until
from jsonschema import Draft202012Validator
from websockets.sync.client import ClientConnection, connect

from backend.accounts import Funds, PastCandle, Profile
from backend.app import create_app
from backend.auth import COOKIE, Identity
from backend.build import Options, build_backend
from backend.context import Backend
from backend.server import server_of
from daemon.brokers.fyers.login import LoginFields
from daemon.errors import BrokerRejected, BrokerUnavailable
from daemon.settings import load_settings

CONTRACT = Path(__file__).parent / "fixtures" / "contract"
SECRET = "a secret of thirty-two bytes, at least"
USER = Identity("XS00001", "planted-access-token", "SIMULATED1-100")
OTHER = Identity("XS00002", "another-access-token", "SIMULATED1-100")
CREDENTIALS = {
    "app_id": USER.app_id,
    "secret_key": "planted-secret-key",
    "redirect_uri": "http://127.0.0.1/callback",
    "fy_id": USER.user_id,
    "pin": "planted-pin",
    "totp_secret": "PLANTEDTOTPSECRET",
}
PATIENCE_S = 60.0


class KnownAccounts:
    """A broker that knows two users and can be made to fail."""

    def __init__(self) -> None:
        self.is_down = False
        self.log_ins = 0

    async def log_in(self, credentials: LoginFields) -> Identity:
        self.log_ins += 1
        self._check()
        if credentials.pin != CREDENTIALS["pin"]:
            raise BrokerRejected("invalid PIN")
        return Identity(credentials.fy_id, USER.access_token, credentials.app_id)

    async def profile(self, identity: Identity) -> Profile:
        self._check()
        return Profile(f"Name of {identity.user_id}", 100_000.0)

    async def funds(self, identity: Identity) -> Funds:
        self._check()
        return Funds(12.5, 100_000.0)

    async def history(
        self, identity: Identity, exchange_symbol: str, timeframe: str, start_s: int, end_s: int
    ) -> list[PastCandle]:
        self._check()
        if exchange_symbol != "NSE:RELIANCE-EQ":
            return []
        times = range(end_s - 300 * 250, end_s, 300)
        return [PastCandle(time_s, 1400.0, 1402.0, 1399.0, 1401.0, 10.0) for time_s in times]

    async def close(self) -> None: ...

    def _check(self) -> None:
        if self.is_down:
            raise BrokerUnavailable("the broker did not answer")


@dataclass
class Site:
    """A backend that is being served."""

    backend: Backend
    accounts: KnownAccounts
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cookie(self, user: Identity = USER) -> str:
        return self.backend.signer.issue(user)

    def client(self, user: Identity | None = USER) -> httpx.Client:
        cookies = {COOKIE: self.cookie(user)} if user else {}
        return httpx.Client(base_url=self.url, cookies=cookies, timeout=PATIENCE_S)

    def socket(self, path: str, user: Identity | None = USER, **headers: str) -> ClientConnection:
        if user:
            headers["Cookie"] = f"{COOKIE}={self.cookie(user)}"
        return connect(f"ws://127.0.0.1:{self.port}{path}", additional_headers=headers)


@contextmanager
def a_site(state: Path, **more: Any) -> Iterator[Site]:
    """Serve a backend on a free port, over the daemon of this state folder."""
    environment = {"JWT_SECRET": SECRET, "HRM_TRADER__SESSION__STATE_DIR": str(state)}
    environment |= more.get("environment", {})
    settings = load_settings(CONFIG, environment)
    accounts = KnownAccounts()
    backend = build_backend(settings, Options(config=CONFIG), environment, accounts, lambda: SECRET)
    listening = socket.create_server(("127.0.0.1", 0))
    server = server_of(create_app(backend), backend.settings)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        wait_until(lambda: server.started, "a backend that serves", thread.is_alive)
        yield Site(backend, accounts, listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        listening.close()


@contextmanager
def a_daemon(sandbox: Sandbox, models: Path, speed: float = 60.0) -> Iterator[Path]:
    """Run the daemon on three hundred one-minute candles of Nifty; yield its state folder."""
    sandbox.trade_with(models)
    sandbox.set("session.start_halted", "false")
    candles = sandbox.folder / "Nifty_1.csv"
    candles.write_text("\n".join([HEADER, *candle_rows(360)]) + "\n")
    daemon = sandbox.start("run", "--data", candles, "--speed", speed, "--json")
    sandbox.wait_for("bar", 1, daemon)
    yield sandbox.state
    daemon.process.terminate()
    daemon.wait()


def stop_session(site: Site, *users: Identity) -> None:
    """End the sessions of users, where they have one."""
    for user in users:
        with site.client(user) as client:
            client.post("/api/live/stop")


def start_session(site: Site, user: Identity = USER, **fields: Any) -> httpx.Response:
    """Start a paper session of what the daemon trades."""
    wait_until(lambda: site.backend.reader.view is not None, "a daemon that lives")
    body = {"instrument": "Nifty", "timeframe": "1", "trading_mode": "paper"} | fields
    with site.client(user) as client:
        return client.post("/api/live/start", json=body)


def facts() -> dict[str, Any]:
    """Return the contract of the HTTP routes."""
    found: dict[str, Any] = json.loads((CONTRACT / "openapi-facts.json").read_text())
    return found


def socket_facts() -> dict[str, Any]:
    """Return the contract of the sockets."""
    found: dict[str, Any] = json.loads((CONTRACT / "ws-messages.json").read_text())
    return found


def added_messages(channel: str) -> dict[str, Any]:
    """Return the messages of a socket that the contract does not have, laid out as its own."""
    document = json.loads((CONTRACT / "ws-additions.json").read_text())
    found: dict[str, Any] = document["channels"].get(channel, {}).get("server_to_client", {})
    return found


def check_schema(schema: dict[str, Any], value: object, document: dict[str, Any]) -> None:
    """Fail unless a value has the shape that the contract gives it."""
    root = {key: document[key] for key in ("$defs", "components") if key in document}
    Draft202012Validator(schema | root).validate(value)


def check_frame(channel: str, frame: dict[str, Any]) -> None:
    """Fail unless a socket frame is one that the contract has, in its shape."""
    document = socket_facts()
    messages = document["channels"][channel]["server_to_client"] | added_messages(channel)
    assert frame["type"] in messages, f"{frame['type']} is not in the contract"
    check_schema(messages[frame["type"]]["schema"], frame, document)


FIRST_CANDLE_S = FIRST_BAR_S
