"""The kill switch from the web: with the daemon, with nothing but its state folder, and by whom."""

from pathlib import Path

import pytest
from backend_server import Site, a_daemon, a_site, start_session
from command_line import CONFIG, a_sandbox, wait_until
from recorded_session import session_plan, write_candles

from daemon.kill_switch import FILE_NAME
from daemon.session_files import begin_session, load_markets
from daemon.settings import load_instruments

BODY = {"reason": "odd prices", "flatten": True}


def begin(state: Path) -> None:
    catalogue = load_instruments(CONFIG, {}).catalogue
    plan = session_plan(state, load_markets([write_candles(state)], [], catalogue))
    begin_session(state, plan)


@pytest.mark.integration
def test_a_kill_reaches_the_daemon_which_refuses_every_entry_from_then_on(
    tiny_models: Path,
) -> None:
    with (
        a_sandbox() as sandbox,
        a_daemon(sandbox, tiny_models) as state,
        a_site(state) as site,
        site.client() as client,
    ):
        start_session(site)
        wait_until(lambda: has_price(site), "a price")
        answer = client.post("/api/kill", json=BODY)
        trade = {"instrument": "Nifty", "direction": "buy", "quantity": 1}
        refused = "Failed to place manual order: kill switch: odd prices"
        wait_until(
            lambda: refused in client.post("/api/manual-trade", json=trade).text, "a refusal"
        )
        latch = sandbox.run("status", "--json").answer

    assert answer.status_code == 200
    assert answer.json()["engaged"] is True
    assert [step["ok"] for step in answer.json()["steps"]] == [True, True, True]
    assert "odd prices" in str(latch)


def has_price(site: Site) -> bool:
    view = site.backend.reader.view
    return view is not None and view.price_of("Nifty") is not None


def test_a_kill_with_the_message_server_down_writes_the_stop_file_and_tells_each_step(
    tmp_path: Path,
) -> None:
    begin(tmp_path)
    with a_site(tmp_path) as site, site.client() as client:
        answer = client.post("/api/kill", json=BODY)

    assert answer.status_code == 200
    steps = answer.json()["steps"]
    assert answer.json()["engaged"] is True
    assert [(step["step"], step["ok"]) for step in steps] == [
        ("stop file", True),
        ("latch key", False),
        ("message", False),
    ]
    (stop_file,) = tmp_path.rglob(FILE_NAME)
    assert "odd prices" in stop_file.read_text()


def test_a_kill_without_a_cookie_changes_nothing(tmp_path: Path) -> None:
    begin(tmp_path)
    with a_site(tmp_path) as site, site.client(None) as client:
        answer = client.post("/api/kill", json=BODY)

    assert (answer.status_code, answer.json()) == (401, {"detail": "Authentication required"})
    assert list(tmp_path.rglob(FILE_NAME)) == []


def test_a_kill_before_any_daemon_ran_says_so(alone: Site) -> None:
    with alone.client() as client:
        answer = client.post("/api/kill", json=BODY)

    assert answer.status_code == 500
    assert answer.json()["detail"].endswith("no daemon has run here yet")
