"""A lost server, a dead daemon: no session to show, no hang, no late deeds; then all comes back."""

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from backend_server import PATIENCE_S, USER, Site, a_daemon, a_site, start_session
from command_line import Sandbox, a_sandbox, wait_until
from websockets.sync.client import ClientConnection

pytestmark = pytest.mark.integration

LIVE = f"/ws/live/{USER.user_id}"
ANSWER_S = 2.0


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """A daemon's place, where a silent daemon is noticed after ten seconds."""
    with a_sandbox() as place:
        place.set("monitoring.heartbeat_seconds", 0.2)
        place.set("monitoring.silent_after_seconds", 10.0)
        yield place


def a_patient_site(state: Path) -> Any:
    settings = {"HRM_TRADER__BACKEND__ANSWER_SECONDS": str(PATIENCE_S)}
    return a_site(state, environment=settings)


def test_sessions_come_back_after_the_server_and_the_daemon_were_gone(
    tiny_models: Path, sandbox: Sandbox
) -> None:
    with a_daemon(sandbox, tiny_models) as state, a_patient_site(state) as site:
        assert start_session(site).status_code == 200
        wait_until(lambda: is_in_session(site), "a session")
        with site.socket(LIVE) as socket:
            os.kill(sandbox.server_pid(), signal.SIGKILL)
            wait_until(lambda: site.backend.reader.view is None, "a lost server")
            with site.client() as client:
                began_s = time.monotonic()
                assert client.get("/api/trading/positions").json() == []
                assert client.get("/api/profile").status_code == 200
                assert time.monotonic() - began_s < PATIENCE_S
            wait_until(lambda: is_in_session(site), "the session again")

            until_tick(socket)


def test_a_daemon_that_dies_and_comes_back_finds_its_users_where_they_were(
    tiny_models: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_daemon(sandbox, tiny_models) as state, a_patient_site(state) as site:
        assert start_session(site).status_code == 200
        wait_until(lambda: is_in_session(site), "a session")
        with site.socket(LIVE) as socket, site.client() as client:
            until_tick(socket)
            os.kill(sandbox.daemon_pid(), signal.SIGKILL)
            with monkeypatch.context() as patch:
                patch.setattr(site.backend.link, "_answer_within_s", ANSWER_S)
                given_up = trade(client, site)
            wait_until(lambda: site.backend.reader.view is None, "a silent daemon")
            answers = {
                path: client.request(method, path, json=body)
                for method, path, body in (
                    ("GET", "/api/trading/positions", None),
                    ("GET", "/api/profile", None),
                    ("POST", "/api/live/start", {"instrument": "Nifty", "timeframe": "1"}),
                    ("POST", "/api/live/stop", None),
                    ("POST", "/api/trading/execute", {}),
                )
            }
            no_session = trade(client, site)
            with site.socket(LIVE) as late:
                greeting = [json.loads(late.recv(timeout=PATIENCE_S)) for _ in range(2)]
            socket.send("ping")
            drain_until(socket, "pong")

            with daemon_again(sandbox):
                wait_until(lambda: is_in_session(site), "the session again")
                until_tick(socket)
                asked = requests_left(state)

    assert given_up.status_code == 500
    assert "no answer within 2 s" in given_up.json()["detail"]
    assert no_session.json()["detail"].endswith("400: Live trading session not active")
    assert answers["/api/trading/positions"].json() == []
    assert answers["/api/profile"].status_code == 200
    assert "no sign of life" in answers["/api/live/start"].json()["detail"]
    assert answers["/api/live/stop"].json()["detail"] == (
        "Failed to stop live trading: 400: No active live trading session"
    )
    assert "no sign of life" in answers["/api/trading/execute"].json()["detail"]
    assert greeting[1]["data"]["is_active"] is False
    assert asked == 1  # the start: what was given up was taken back, and is never traded


def trade(client: Any, site: Site) -> Any:
    body = {"instrument": "Nifty", "direction": "buy", "quantity": 1}
    projection = site.backend.reader._projection
    assert projection is not None
    price = float(projection.ticks["Nifty"].last_price)
    return client.post("/api/manual-trade", json=body | {"stopLoss": price - 500})


@contextmanager
def daemon_again(sandbox: Sandbox) -> Iterator[None]:
    """Run the daemon on the candles of before, as its unit would start it again."""
    candles = sandbox.folder / "Nifty_1.csv"
    daemon = sandbox.start("run", "--data", candles, "--speed", 60.0, "--json")
    yield
    daemon.process.terminate()
    assert daemon.wait().answer["resumed"] is True


def requests_left(state: Path) -> int:
    with redis.Redis(unix_socket_path=str(state / "redis" / "r.sock")) as server:
        (key,) = server.keys("*:request")
        length: int = server.xlen(key)
        return length


def until_tick(socket: ClientConnection) -> None:
    while json.loads(socket.recv(timeout=PATIENCE_S))["type"] != "tick":
        pass


def drain_until(socket: ClientConnection, text: str) -> None:
    while socket.recv(timeout=PATIENCE_S) != text:
        pass


def is_in_session(site: Site) -> bool:
    view = site.backend.reader.view
    return view is not None and view.session_of(USER.user_id) is not None
