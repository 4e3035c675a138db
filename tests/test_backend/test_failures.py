"""A full disk, a route that breaks: what was done is told as done, and a failure can be read."""

import pytest
from backend_server import CREDENTIALS, Site

from backend.context import Backend
from backend.routes import trading_routes

ORIGIN = "http://localhost:3000"
TRADE = {"instrument": "Nifty", "direction": "buy", "quantity": 1}


async def placed(*_: object) -> str:
    return "PAPER"


def broken(_: object) -> Backend:
    raise RuntimeError("a secret detail")


def test_what_was_done_is_told_as_done_where_it_cannot_be_noted(
    alone: Site, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trading_routes, "trade_manually", placed)
    alone.backend.files.folder.mkdir(parents=True)
    (alone.backend.files.folder / "logs").write_text("a file where the folder should be")

    with alone.client() as client:
        traded = client.post("/api/manual-trade", json=TRADE)
        logged_in = client.post("/api/login", json=CREDENTIALS)
        logged_out = client.post("/api/logout")

    assert traded.json()["message"] == "Manual paper trade initiated"
    assert [answer.status_code for answer in (traded, logged_in, logged_out)] == [200, 200, 200]
    assert 'auth_token=""' in logged_out.headers["set-cookie"]
    captured = capfd.readouterr()
    assert (captured.out + captured.err).count("action not written") == 3


@pytest.mark.parametrize(
    ("path", "begins"),
    [
        ("/api/manual-trade", "Failed to initiate manual trade: "),
        ("/api/trading/manual-trade", "Failed to initiate manual trade: "),
        ("/api/kill", "Internal server error: "),
    ],
)
def test_a_route_that_breaks_answers_in_words_that_a_page_can_read(
    alone: Site, monkeypatch: pytest.MonkeyPatch, path: str, begins: str
) -> None:
    monkeypatch.setattr(trading_routes, "backend_of", broken)

    with alone.client() as client:
        answer = client.post(path, json=TRADE, headers={"Origin": ORIGIN})

    assert answer.status_code == 500
    assert answer.json()["detail"].startswith(begins)
    assert "secret" not in answer.text
    assert answer.headers["access-control-allow-origin"] == ORIGIN
