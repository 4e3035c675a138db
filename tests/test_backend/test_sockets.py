"""The live sockets: what comes first, what a session brings, who may listen, who is dropped."""

import json
import time
from contextlib import ExitStack
from typing import Any

import pytest
from backend_server import (
    OTHER,
    PATIENCE_S,
    USER,
    Site,
    check_frame,
    check_schema,
    socket_facts,
    start_session,
)
from command_line import wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from backend.reader import BusReader
from daemon.bus import Entry

LIVE = f"/ws/live/{USER.user_id}"
CHANNEL = "/ws/live/{user_id}"


def next_frame(socket: ClientConnection) -> dict[str, Any]:
    frame: dict[str, Any] = json.loads(socket.recv(timeout=PATIENCE_S))
    check_frame(CHANNEL, frame)
    return frame


def frames_until(socket: ClientConnection, kind: str) -> list[dict[str, Any]]:
    """Return the frames up to the first of a kind, each of them checked."""
    deadline_s = time.monotonic() + PATIENCE_S
    found = []
    while time.monotonic() < deadline_s:
        found.append(next_frame(socket))
        if found[-1]["type"] == kind:
            return found
    raise AssertionError(f"no {kind} within {PATIENCE_S:g} s: {[f['type'] for f in found]}")


pytestmark = pytest.mark.integration


def test_connected_and_status_come_first(site: Site) -> None:
    with site.socket(LIVE) as socket:
        first, second = next_frame(socket), next_frame(socket)

    assert first == {
        "type": "connected",
        "message": "WebSocket connected successfully",
        "user_id": USER.user_id,
    }
    assert second["data"] == {"is_active": False, "message": "No active live trading session"}


def test_a_socket_that_was_there_before_hears_start_ticks_and_stop(site: Site) -> None:
    with site.socket(LIVE) as socket, site.client() as client:
        next_frame(socket), next_frame(socket)
        start_session(site, option_strategy="unheard of")
        started = next_frame(socket)
        ticks = frames_until(socket, "tick")
        stats = frames_until(socket, "stats_update")[-1]
        client.post("/api/live/stop")
        stopped = frames_until(socket, "stopped")[-1]

    assert (started["type"], started["option_strategy"]) == ("started", "ITM")
    assert ticks[-1]["data"]["timestamp"].isdigit()
    assert ticks[-1]["data"]["low"] <= ticks[-1]["data"]["price"] <= ticks[-1]["data"]["high"]
    assert {"reasoning_depth", "market_complexity", "h_module_confidence"} <= stats.keys()
    assert stopped["message"] == "Paper trading stopped"


def test_a_later_socket_gets_the_full_status_and_then_started(site: Site) -> None:
    start_session(site)
    wait_until(lambda: has_session(site), "a session")
    with site.socket(LIVE) as socket:
        frames = [next_frame(socket) for _ in range(3)]

    assert [frame["type"] for frame in frames] == ["connected", "status", "started"]
    assert frames[1]["data"]["is_running"] is True
    assert frames[1]["data"]["fetchIntervalSeconds"] == 60


def has_session(site: Site) -> bool:
    view = site.backend.reader.view
    return view is not None and view.session_of(USER.user_id) is not None


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"instrument": "Sensex"}, "Sensex is not traded"),
        ({"timeframe": "nonsense"}, "Nifty is traded by the daemon on bars of '1', not 'nonsense'"),
    ],
)
def test_a_session_that_cannot_run_is_told_as_an_error_and_stays_failed(
    site: Site, fields: dict[str, Any], text: str
) -> None:
    with site.socket(LIVE) as socket:
        next_frame(socket), next_frame(socket)
        answer = start_session(site, **fields)
        error = frames_until(socket, "error")[-1]

    assert answer.status_code == 200
    assert error["message"].startswith(f"Failed to start live trading: {text}")
    with site.socket(LIVE) as socket:
        next_frame(socket)
        assert next_frame(socket)["data"]["status"] == "failed"


def test_a_reader_that_breaks_begins_anew_and_the_socket_goes_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks = [RuntimeError("a defect")]
    take = BusReader._take

    def broken_once(reader: BusReader, entries: list[Entry]) -> None:
        if breaks:
            raise breaks.pop()
        take(reader, entries)

    start_session(site)
    with site.socket(LIVE) as socket:
        frames_until(socket, "tick")
        monkeypatch.setattr(BusReader, "_take", broken_once)
        wait_until(lambda: not breaks, "a defect")

        frames_until(socket, "tick")


def test_text_ping_is_answered_and_everything_else_is_swallowed(site: Site) -> None:
    with site.socket(LIVE) as socket:
        next_frame(socket), next_frame(socket)
        for text in ("pong", '{"type":"pong"}', "[1]", "{", '{"a":1}', "ping"):
            socket.send(text)

        assert socket.recv(timeout=PATIENCE_S) == "pong"


def test_a_client_is_pinged_and_let_go_when_it_says_nothing(
    alone: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.websocket.PING_EVERY_S", 0.1)
    monkeypatch.setattr("backend.websocket.SILENT_AFTER_S", 3.0)
    with alone.socket(LIVE) as socket:
        next_frame(socket), next_frame(socket)
        pings = [next_frame(socket) for _ in range(3)]
        socket.send('{"type":"pong"}')  # it counts as a sign of life
        pings += frames_until_closed(socket)

    assert {frame["type"] for frame in pings} == {"ping"}
    assert len(pings) > 4


def test_the_fourth_socket_of_a_user_closes_the_oldest(site: Site) -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(site.socket(LIVE)) for _ in range(4)]
        with pytest.raises(ConnectionClosed):
            drain(sockets[0])

        assert next_frame(sockets[3])["type"] == "connected"


def frames_until_closed(socket: ClientConnection) -> list[dict[str, Any]]:
    found = []
    try:
        while True:
            found.append(next_frame(socket))
    except ConnectionClosed:
        return found


def drain(socket: ClientConnection) -> None:
    while True:
        socket.recv(timeout=PATIENCE_S)


@pytest.mark.parametrize("path", [LIVE, "/ws/live-data/XS00001", "/ws/trading"])
def test_a_socket_without_a_cookie_is_refused_at_the_handshake(alone: Site, path: str) -> None:
    with pytest.raises(InvalidStatus) as refused, alone.socket(path, user=None):
        pass

    assert refused.value.response.status_code == 403


def test_a_swapped_user_id_in_the_path_is_refused(alone: Site) -> None:
    with pytest.raises(InvalidStatus) as refused, alone.socket(LIVE, user=OTHER):
        pass

    assert refused.value.response.status_code == 403


def test_a_page_of_a_foreign_origin_cannot_use_the_cookie(alone: Site) -> None:
    origin = "https://evil.example"
    with pytest.raises(InvalidStatus) as refused, alone.socket(LIVE, Origin=origin):
        pass

    assert refused.value.response.status_code == 403
    with alone.socket(LIVE, Origin="http://localhost:3000") as socket:
        assert next_frame(socket)["type"] == "connected"


def test_the_trading_socket_answers_market_data_with_the_decision(site: Site) -> None:
    wait_until(lambda: has_decision(site), "a decision")
    with site.socket("/ws/trading") as socket:
        next_frame(socket), next_frame(socket)
        socket.send(json.dumps({"symbol": "Nifty", "price": 22000.0}))
        while "reasoning_depth" not in (answer := json.loads(socket.recv(timeout=PATIENCE_S))):
            pass

    document = socket_facts()
    kind = document["channels"]["/ws/trading"]["server_to_client"]["decision"]
    check_schema(kind["schema"], answer, document)
    assert answer["market_complexity"] is not None


def has_decision(site: Site) -> bool:
    view = site.backend.reader.view
    return view is not None and "Nifty" in view.decisions
