"""A daemon that may trade real money gets real requests, and no paper ones; the reverse is refused.

The daemon's plan says `live`, as one begun with `run --broker fyers` does; its orders go to the
simulated broker, so that no money can move in a test.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from backend_server import PATIENCE_S, USER, Site, a_site, check_frame, start_session
from command_line import HEADER, Sandbox, a_sandbox, candle_rows, wait_until
from websockets.sync.client import ClientConnection

from backend.place import find_place
from daemon.settings import load_settings

pytestmark = pytest.mark.integration

CHANNEL = "/ws/live/{user_id}"


@contextmanager
def a_real_daemon(sandbox: Sandbox, models: Path) -> Iterator[Path]:
    """Begin a session, mark its plan as live, and go on with it."""
    sandbox.trade_with(models)
    sandbox.set("session.start_halted", "false")
    candles = sandbox.folder / "Nifty_1.csv"
    candles.write_text("\n".join([HEADER, *candle_rows(360)]) + "\n")
    run = ["run", "--data", candles, "--speed", "60", "--json"]
    assert sandbox.run(*run, "--duration", 1).code == 0
    place = find_place(load_settings(None, sandbox.environment), demo=False)
    assert place is not None
    path = place.folder / "session.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mode": "live"}))
    daemon = sandbox.start(*run)
    yield sandbox.state
    daemon.process.terminate()
    assert daemon.wait().answer["mode"] == "live"


def frames_until(socket: ClientConnection, kind: str) -> dict[str, Any]:
    while True:
        frame: dict[str, Any] = json.loads(socket.recv(timeout=PATIENCE_S))
        check_frame(CHANNEL, frame)
        if frame["type"] == kind:
            return frame


def trade(site: Site, **fields: Any) -> Any:
    view = site.backend.reader.view
    assert view is not None
    price = float(view.ticks["Nifty"].last_price)
    body = {"instrument": "Nifty", "direction": "buy", "quantity": 1}
    levels = {"stopLoss": round(price - 500), "target": round(price + 500)}
    with site.client() as client:
        return client.post("/api/manual-trade", json=body | levels | fields)


def test_a_real_daemon_takes_real_requests_and_refuses_those_on_paper(tiny_models: Path) -> None:
    with (
        a_sandbox() as sandbox,
        a_real_daemon(sandbox, tiny_models) as state,
        a_site(state, environment={"HRM_TRADER__BACKEND__USERS": f"[{USER.user_id}]"}) as site,
        site.socket(f"/ws/live/{USER.user_id}") as socket,
    ):
        on_paper = start_session(site, trading_mode="paper")
        for_real = start_session(site, trading_mode="real")
        started = frames_until(socket, "started")
        frames_until(socket, "tick")
        paper_trade = trade(site, trading_mode="paper")
        wait_until(lambda: trade(site).status_code == 200, "a trade that risk lets through")
        position = frames_until(socket, "position_update")
        with site.client() as client:
            executed = client.post("/api/trading/execute", json={"trading_mode": "paper"})
            client.post("/api/live/stop")
        stopped = frames_until(socket, "stopped")

    assert on_paper.status_code == 500
    assert "this daemon trades real, the request asks for paper" in on_paper.json()["detail"]
    assert for_real.json() == {
        "status": "started",
        "message": "Real trading started successfully",
        "trading_mode": "REAL",
    }
    assert (started["message"], started["trading_mode"]) == ("Real trading started", "REAL")
    assert paper_trade.status_code == 500
    assert "nothing was done" in paper_trade.json()["detail"]
    assert position["data"]["tradingMode"] == "REAL"
    assert executed.status_code == 500
    assert stopped["message"] == "Real trading stopped"
