"""A lost message server comes back with its sessions; meanwhile there is no session to show."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from backend_server import PATIENCE_S, USER, Site, a_daemon, a_site, start_session
from command_line import a_sandbox, wait_until

pytestmark = pytest.mark.integration


def test_sessions_come_back_after_the_server_and_the_daemon_were_gone(tiny_models: Path) -> None:
    with (
        a_sandbox() as sandbox,
        a_daemon(sandbox, tiny_models) as state,
        a_site(state) as site,
    ):
        assert start_session(site).status_code == 200
        wait_until(lambda: is_in_session(site), "a session")
        with site.socket(f"/ws/live/{USER.user_id}") as socket:
            os.kill(sandbox.server_pid(), signal.SIGKILL)
            wait_until(lambda: site.backend.reader.view is None, "a lost server")
            with site.client() as client:
                began_s = time.monotonic()
                assert client.get("/api/trading/positions").json() == []
                assert client.get("/api/profile").status_code == 200
                assert time.monotonic() - began_s < PATIENCE_S
            wait_until(lambda: is_in_session(site), "the session again")

            while json.loads(socket.recv(timeout=PATIENCE_S))["type"] != "tick":
                pass


def is_in_session(site: Site) -> bool:
    view = site.backend.reader.view
    return view is not None and view.session_of(USER.user_id) is not None
