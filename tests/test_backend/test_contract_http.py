"""Every route and every status of the contract, with its shape, against a real daemon."""

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from backend_server import (
    CREDENTIALS,
    OTHER,
    USER,
    Site,
    a_daemon,
    a_site,
    check_schema,
    facts,
    start_session,
)
from command_line import CONFIG, a_sandbox, wait_until
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance
from starlette.responses import Response

from actors.messages import RequestAnswer, TradingMode
from backend.files import metrics_path
from backend.routes.trading_routes import refusal_text

pytestmark = pytest.mark.integration

FACTS = facts()
HISTORY = {"instrument": "Reliance", "timeframe": "5"}
BACKTEST = {"instrument": "Nifty", "timeframe": "1", "duration": 1}
Answer = httpx.Response
Scenario = Callable[[Site, pytest.MonkeyPatch], Answer]


def route(path: str) -> str:
    """Return the route that another one is an alias of, or itself."""
    alias: str = next(iter(FACTS["paths"][path].values())).get("x-alias-of", path)
    return alias


def ask(site: Site, method: str, path: str, user: Any = ..., **arguments: Any) -> Answer:
    with site.client() if user is ... else site.client(user) as client:
        return client.request(method, path, **arguments)


BODIES: dict[str, dict[str, Any]] = {
    "/api/login": CREDENTIALS,
    "/api/backtest": BACKTEST,
    "/api/live/start": {"instrument": "Nifty", "timeframe": "1", "trading_mode": "paper"},
    "/api/manual-trade": {"instrument": "Nifty", "direction": "buy", "quantity": 1},
    "/api/trading/execute": {"instrument": "Nifty"},
}


def plain(site: Site, method: str, path: str, **more: Any) -> Answer:
    """Ask as the frontend would, all being well."""
    body = BODIES.get(route(path))
    params = HISTORY if path == "/api/historical-data" else None
    return ask(site, method, path, **({"json": body, "params": params} | more))


def well(method: str, path: str) -> Scenario:
    def scenario(site: Site, _patch: pytest.MonkeyPatch) -> Answer:
        if route(path) == "/api/live/stop":
            assert start_session(site).status_code == 200
            wait_until(lambda: has_session(site), "a session")
        return plain(site, method, path)

    return scenario


def has_price(site: Site) -> bool:
    view = site.backend.reader.view
    return view is not None and "Nifty" in view.ticks


def levels(site: Site) -> dict[str, float]:
    """Return stop and target around the price, so that no average range is needed."""
    view = site.backend.reader.view
    assert view is not None
    price = float(view.ticks["Nifty"].last_price)
    return {"stopLoss": round(price - 500), "target": round(price + 500)}


def without_cookie(method: str, path: str) -> Scenario:
    if route(path) == "/api/login":
        wrong = CREDENTIALS | {"pin": "0000", "fy_id": "XS09999"}
        return lambda site, _patch: ask(site, method, path, json=wrong)
    return lambda site, _patch: plain(site, method, path, user=None)


def failing(method: str, path: str) -> Scenario:
    """Return how each route comes to its 500."""

    def scenario(site: Site, patch: pytest.MonkeyPatch) -> Answer:
        match route(path):
            case "/api/config":
                patch.setattr(site.backend, "config_dir", Path("/nonexistent"))
            case "/api/metrics":
                metrics_file(site).write_text("{")
            case "/api/logout":
                patch.setattr(Response, "delete_cookie", _no_space)
            case "/api/live/start":
                assert start_session(site).status_code == 200
            case "/api/historical-data":
                return plain(site, method, path, params=HISTORY | {"instrument": "Unknown"})
            case "/api/trading/execute":
                return plain(site, method, path, json={"trading_mode": "real"})
            case "/api/backtest":
                patch.setattr(site.backend.jobs, "_most", 0)
            case _:
                site.accounts.is_down = True
                site.backend._profiles.clear()
        answer = plain(site, method, path)
        write_metrics(site)
        return answer

    return scenario


def metrics_file(site: Site) -> Path:
    """Return where the metrics are, once they are written."""
    place = site.backend.reader.place
    assert place is not None
    path = metrics_path(place)
    wait_until(path.exists, "the metrics of the session")
    return path


def write_metrics(site: Site) -> None:
    """Have the metrics written anew, as at each close."""
    place = site.backend.reader.place
    assert place is not None
    site.backend.files.add_trades(place, [])


def _no_space(*_: object, **__: object) -> None:
    raise OSError("no space left")


def invalid(method: str, path: str) -> Scenario:
    if path == "/api/historical-data":
        return lambda site, _patch: ask(site, method, path, params={"instrument": "Nifty"})
    return lambda site, _patch: ask(site, method, path, json={})


def missing(method: str, path: str) -> Scenario:
    def scenario(site: Site, _patch: pytest.MonkeyPatch) -> Answer:
        metrics_file(site).unlink()
        answer = ask(site, method, path)
        write_metrics(site)
        return answer

    return scenario


SCENARIOS = {"200": well, "401": without_cookie, "404": missing, "422": invalid, "500": failing}
OPERATIONS = [
    (method, path, status)
    for path, operations in FACTS["paths"].items()
    for method, operation in operations.items()
    for status in operation["responses"]
]
TRADED = ("post", "/api/manual-trade", "200")  # needs a daemon that has not entered by itself


@pytest.mark.parametrize(
    ("method", "path", "status"), [known for known in OPERATIONS if known != TRADED]
)
def test_every_route_gives_every_status_in_the_shape_of_the_contract(
    site: Site, monkeypatch: pytest.MonkeyPatch, method: str, path: str, status: str
) -> None:
    answer = SCENARIOS[status](method, path)(site, monkeypatch)

    check_shape(answer, method, path, status)


def test_a_manual_trade_while_nothing_is_held_is_answered_in_the_shape_of_the_contract() -> None:
    method, path, status = TRADED
    with (
        a_sandbox() as sandbox,
        a_daemon(sandbox, sandbox.folder / "no-models") as state,  # it holds for ever
        a_site(state) as site,
    ):
        assert start_session(site).status_code == 200
        wait_until(lambda: has_session(site) and has_price(site), "a session and a price")
        answer = plain(site, method, path, json=BODIES[path] | levels(site))

    check_shape(answer, method, path, status)


def has_session(site: Site) -> bool:
    view = site.backend.reader.view
    return view is not None and view.session_of(USER.user_id) is not None


def check_shape(answer: Answer, method: str, path: str, status: str) -> None:
    """Fail unless an answer has a status and the shape that the contract gives it."""
    assert answer.status_code == int(status), answer.text
    operation = FACTS["paths"][path][method]
    schema = operation["responses"][status]["content"]["application/json"]["schema"]
    check_schema(schema, answer.json(), FACTS)


QUIRKS = [
    (path, quirk["situation"], quirk["detail"])
    for path, operations in FACTS["paths"].items()
    for operation in operations.values()
    for quirk in operation.get("x-quirks", [])
]


@pytest.mark.parametrize(
    ("path", "situation", "detail"), [q for q in QUIRKS if "session" in q[1] and "real" not in q[1]]
)
def test_a_quirk_keeps_its_exact_text(site: Site, path: str, situation: str, detail: str) -> None:
    if path == "/api/live/start":
        start_session(site)

    answer = ask(site, "post", path, json=BODIES.get(path))

    assert (answer.status_code, answer.json()) == (500, {"detail": detail})


PAPER_CAPITAL = (
    "Insufficient paper capital for manual trade. Required: 123775.00, Available: 100000.00"
)
REAL_CAPITAL = "Insufficient capital for the requested quantity. Maximum allowable quantity is 1."
REFUSALS = [
    ("capital", "PAPER", PAPER_CAPITAL),
    ("capital", "REAL", REAL_CAPITAL),
    ("position_open", "REAL", "Cannot initiate manual trade while an automated trade is active."),
    ("position_open", "PAPER", "Failed to place manual order: because"),
    ("refused", "PAPER", "Failed to place manual order: because"),
    ("no_session", "PAPER", "400: because"),
]


@pytest.mark.parametrize(("problem", "mode", "text"), REFUSALS)
def test_a_refused_manual_trade_is_told_in_the_contracts_words(
    problem: str, mode: TradingMode, text: str
) -> None:
    answer = RequestAnswer(
        request_id="r1",
        user_id="FA1",
        accepted=False,
        reason="because",
        answered_ns=0,
        problem=problem,
        required=Decimal(123_775),
        available=Decimal(100_000),
        most_lots=1,
    )

    assert refusal_text(answer, mode) == text


def test_a_real_session_on_a_paper_daemon_is_refused_and_not_simulated(site: Site) -> None:
    answer = start_session(site, trading_mode="real")

    assert answer.status_code == 500
    assert "trades paper" in answer.json()["detail"]
    view = site.backend.reader.view
    assert view is not None
    assert view.session_of("XS00001") is None


def test_a_real_manual_trade_in_a_paper_session_is_refused(site: Site) -> None:
    start_session(site)
    wait_until(lambda: has_price(site), "a price")

    body = BODIES["/api/manual-trade"] | {"trading_mode": "real"}
    answer = ask(site, "post", "/api/manual-trade", json=body)

    assert answer.status_code == 500
    assert "trades paper" in answer.json()["detail"]


def test_sessions_belong_to_their_users(site: Site) -> None:
    start_session(site)

    with site.client(OTHER) as other:
        stopped = other.post("/api/live/stop")

    assert stopped.json()["detail"] == (
        "Failed to stop live trading: 400: No active live trading session"
    )


@pytest.mark.parametrize("name", ["/api/trading/manual-trade", "/api/manual-trade"])
def test_a_manual_trade_without_a_mode_takes_the_sessions(site: Site, name: str) -> None:
    start_session(site)
    wait_until(lambda: has_price(site), "a price")
    body = BODIES["/api/manual-trade"] | levels(site)
    answers: list[str] = []

    def is_settled() -> bool:
        answers.append(str(ask(site, "post", name, json=body).json()))
        return "an entry is on its way" not in answers[-1]

    wait_until(is_settled, "an answer after what was on its way")

    refused = "Failed to initiate manual trade: Failed to place manual order: open position"
    assert "Manual paper trade initiated" in answers[-1] or refused in answers[-1]


def test_the_configuration_is_read_at_each_request(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site.backend, "config_dir", tmp_path)
    file = tmp_path / "instruments.yaml"
    answers = []
    for text in (
        "timeframes: []",
        "instruments: []",
        "a: [",
        "instruments: [1]\ntimeframes: ['1']",
    ):
        file.write_text(text)
        answers.append(ask(site, "get", "/api/config").json())

    missing_key = "Failed to read configuration: 500: Invalid configuration: "
    assert answers[0] == {"detail": f"{missing_key}'instruments' key missing from config file"}
    assert answers[1] == {"detail": f"{missing_key}'timeframes' key missing from config file"}
    assert answers[2]["detail"].startswith("Invalid YAML configuration: ")
    assert answers[3] == {"instruments": [1], "timeframes": ["1"]}


def test_the_configuration_is_that_of_the_existing_system(alone: Site) -> None:
    answer = ask(alone, "get", "/api/config", user=None).json()

    assert [entry["symbol"] for entry in answer["instruments"]][:2] == ["Bank_Nifty", "Nifty"]
    assert answer["timeframes"] == ["1", "3", "5", "15", "30", "60", "120", "240", "D"]
    assert (CONFIG / "instruments.yaml").exists()


def test_history_leaves_out_the_bars_without_features(alone: Site) -> None:
    candles = ask(alone, "get", "/api/historical-data", params=HISTORY).json()

    assert len(candles) == 250 - 199
    assert [candle["time"] for candle in candles] == sorted(candle["time"] for candle in candles)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"instrument": "", "timeframe": "5"}, "Instrument parameter is required"),
        ({"instrument": "Nifty", "timeframe": ""}, "Timeframe parameter is required"),
    ],
)
def test_an_empty_query_value_is_told_in_words(
    alone: Site, params: dict[str, str], text: str
) -> None:
    answer = ask(alone, "get", "/api/historical-data", params=params)

    assert (answer.status_code, answer.json()) == (422, {"detail": text})


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
def test_the_interactive_documents_are_there(alone: Site, path: str) -> None:
    assert ask(alone, "get", path, user=None).status_code == 200


def test_title_version_and_generic_errors_are_kept(alone: Site) -> None:
    info = ask(alone, "get", "/openapi.json").json()["info"]

    assert (info["title"], info["version"]) == ("AlgoTrading API", "1.0.0")
    assert ask(alone, "get", "/api/nothing").json() == {"detail": "Not Found"}
    assert ask(alone, "get", "/api/login").json() == {"detail": "Method Not Allowed"}


def test_profile_answers_without_daemon_and_without_asking_the_broker_again(alone: Site) -> None:
    first = ask(alone, "get", "/api/profile")
    alone.accounts.is_down = True

    second = ask(alone, "get", "/api/profile")

    assert first.status_code == second.status_code == 200
    assert second.json()["name"] == "Name of XS00001"


def test_without_a_daemon_there_is_no_session_and_nothing_hangs(alone: Site) -> None:
    start = ask(alone, "post", "/api/live/start", json=BODIES["/api/live/start"])
    positions = ask(alone, "get", "/api/trading/positions")

    assert start.status_code == 500
    assert "no sign of life" in start.json()["detail"]
    assert positions.json() == []


@pytest.mark.parametrize("quantity", [10**30, -(10**30), 1_000_001])
def test_a_quantity_that_no_account_can_hold_is_refused_before_it_is_asked_for(
    site: Site, quantity: int
) -> None:
    start_session(site)
    wait_until(lambda: has_price(site), "a price")

    body = BODIES["/api/manual-trade"] | {"quantity": quantity}
    answer = ask(site, "post", "/api/manual-trade", json=body)

    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "quantity"]


SCHEMA = schemathesis.openapi.from_dict(FACTS)
STATE_FREE = SCHEMA.include(
    path=[
        "/api/config",
        "/api/funds",
        "/api/health",
        "/api/historical-data",
        "/api/profile",
        "/api/trading/execute",
        "/api/trading/positions",
    ]
)
some_examples = settings(
    max_examples=5,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@SCHEMA.parametrize()
@some_examples
def test_whatever_is_sent_the_answer_is_one_of_the_contract(alone: Site, case: Any) -> None:
    check_answer(alone, case)


@STATE_FREE.parametrize()
@some_examples
def test_whatever_is_sent_beside_a_daemon_the_answer_is_one_of_the_contract(
    site: Site, case: Any
) -> None:
    check_answer(site, case)


def check_answer(site: Site, case: Any) -> None:
    """Send a drawn request; fail unless the answer is one that the contract has."""
    answer = case.call(base_url=site.url, cookies={"auth_token": site.cookie()})

    case.validate_response(
        answer,
        checks=[response_schema_conformance],
        excluded_checks=[not_a_server_error],
    )
    operation = FACTS["paths"][case.path].get(case.method.lower(), {"responses": {"405": {}}})
    assert str(answer.status_code) in operation["responses"] or answer.status_code in (400, 422)
    assert "detail" in answer.json() or answer.status_code == 200
    json.dumps(answer.json(), allow_nan=False)
