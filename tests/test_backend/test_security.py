"""What an attacker tries: forged cookies, foreign pages, guesses, floods; a look for secrets."""

import asyncio
import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import jwt
import msgspec
import pytest
import redis
from backend_server import CREDENTIALS, OTHER, SECRET, USER, Site, a_site, start_session
from command_line import CONFIG, wait_until
from pydantic import SecretStr
from recorded_session import session_plan, write_candles
from websockets.exceptions import InvalidStatus

from backend.auth import COOKIE, CookieSigner, Identity, LoginThrottle
from backend.build import Options, build_backend
from backend.call_pace import CallPace
from backend.context import Backend
from backend.daemon_link import NoAnswer
from backend.fyers_accounts import FyersAccounts
from backend.place import find_place
from daemon.brokers.fyers.login import LoginFields
from daemon.brokers.fyers.rest import Endpoints, simulated
from daemon.brokers.fyers_simulator import FyersSimulator, SimulatorSettings
from daemon.errors import BrokerError, BrokerRejected, ConfigError
from daemon.logs import configure_logs
from daemon.session_files import begin_session, load_markets
from daemon.settings import Settings, load_instruments, load_settings

CLAIMS: dict[str, Any] = {"user_id": "U", "access_token": "T", "app_id": "A"}
PLANTED = [USER.access_token, *(CREDENTIALS[n] for n in ("secret_key", "pin", "totp_secret"))]


def profile_with(site: Site, cookie: str | None, **headers: str) -> httpx.Response:
    cookies = {COOKIE: cookie} if cookie else {}
    with httpx.Client(base_url=site.url, cookies=cookies, headers=headers) as client:
        return client.get("/api/profile")


def unsigned(claims: dict[str, Any]) -> str:
    parts = [{"alg": "none", "typ": "JWT"}, claims]
    encoded = [base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=") for p in parts]
    return b".".join([*encoded, b""]).decode()


FORGED = [
    (None, "Authentication required"),
    ("", "Authentication required"),
    ("nonsense", "Invalid token"),
    (unsigned(CLAIMS), "Invalid token"),
    (jwt.encode(CLAIMS, "another secret of thirty-two bytes", algorithm="HS256"), "Invalid token"),
    (jwt.encode(CLAIMS, SECRET * 2, algorithm="HS512"), "Invalid token"),
    (jwt.encode(CLAIMS | {"exp": 1}, SECRET, algorithm="HS256"), "Token expired"),
    (jwt.encode(CLAIMS | {"exp": "soon"}, SECRET, algorithm="HS256"), "Invalid token"),
    (jwt.encode({"user_id": "U"}, SECRET, algorithm="HS256"), "Invalid token payload"),
    (jwt.encode(CLAIMS | {"user_id": ""}, SECRET, algorithm="HS256"), "Invalid token payload"),
    (jwt.encode(CLAIMS | {"app_id": 5}, SECRET, algorithm="HS256"), "Invalid token payload"),
]


def test_a_cookie_that_does_not_hold_is_refused_with_the_contracts_text(alone: Site) -> None:
    answers = [profile_with(alone, cookie) for cookie, _ in FORGED]

    assert {answer.status_code for answer in answers} == {401}
    assert [answer.json()["detail"] for answer in answers] == [text for _, text in FORGED]


def test_a_cookie_without_an_end_is_accepted_and_a_header_is_not(alone: Site) -> None:
    endless = jwt.encode(CLAIMS, SECRET, algorithm="HS256")

    assert profile_with(alone, endless).status_code == 200
    assert profile_with(alone, None, Authorization=f"Bearer {endless}").status_code == 401


def test_the_cookie_has_the_contracts_attributes_and_lives_a_day(alone: Site) -> None:
    with alone.client(None) as client:
        login = client.post("/api/login", json=CREDENTIALS)
        logout = client.post("/api/logout")

    name, *attributes = login.headers["set-cookie"].split("; ")
    assert name.startswith("auth_token=")
    assert set(attributes) == {"HttpOnly", "Max-Age=86400", "Path=/", "SameSite=lax"}
    claims = jwt.decode(name.partition("=")[2], SECRET, algorithms=["HS256"])
    assert claims["exp"] == pytest.approx(time.time() + 86_400, abs=60)
    assert 'auth_token=""' in logout.headers["set-cookie"]
    assert "Max-Age=0" in logout.headers["set-cookie"]


@pytest.mark.parametrize("origin", ["http://localhost:3000", "http://localhost:3001"])
def test_the_frontends_origins_may_send_the_cookie(alone: Site, origin: str) -> None:
    with alone.client() as client:
        answer = client.options(
            "/api/profile", headers={"Origin": origin, "Access-Control-Request-Method": "GET"}
        )

    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert answer.headers["access-control-allow-credentials"] == "true"


@pytest.mark.parametrize("origin", ["https://evil.example", "https://x.vercel.app", "null"])
def test_other_origins_get_no_permission(alone: Site, origin: str) -> None:
    with alone.client() as client:
        answer = client.options(
            "/api/profile", headers={"Origin": origin, "Access-Control-Request-Method": "GET"}
        )

    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers


def test_a_body_that_is_too_large_is_refused_announced_or_not(alone: Site) -> None:
    with alone.client() as client:
        announced = client.post("/api/login", content=b"x" * (64 * 1024 + 1))
        streamed = client.post("/api/login", content=iter([b"x" * 1024] * 100))

    assert (announced.status_code, streamed.status_code) == (413, 413)


def test_guessing_log_ins_is_slowed_down_without_asking_the_broker(alone: Site) -> None:
    wrong = CREDENTIALS | {"pin": "0000"}
    with alone.client(None) as client:
        answers = [client.post("/api/login", json=wrong) for _ in range(8)]
        right = client.post("/api/login", json=CREDENTIALS)

    assert {answer.status_code for answer in answers} == {401}
    assert alone.accounts.log_ins == 5
    assert "too many failed attempts" in answers[-1].json()["detail"]
    assert right.status_code == 401


def test_many_guesses_at_once_reach_the_broker_as_often_as_one_after_another(
    alone: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_in = alone.accounts.log_in

    async def slow(credentials: LoginFields) -> Identity:
        await asyncio.sleep(0.3)
        return await log_in(credentials)

    monkeypatch.setattr(alone.accounts, "log_in", slow)
    with alone.client(None) as client, ThreadPoolExecutor(20) as pool:
        bodies = [CREDENTIALS | {"pin": f"{pin:04}"} for pin in range(20)]
        answers = list(pool.map(lambda body: client.post("/api/login", json=body), bodies))

    assert {answer.status_code for answer in answers} == {401}
    assert alone.accounts.log_ins == 5


def test_a_client_cannot_name_the_address_that_its_guesses_count_for(alone: Site) -> None:
    with alone.client(None) as client:
        for number in range(8):
            body = CREDENTIALS | {"pin": "0000", "fy_id": f"XS{number}"}
            client.post("/api/login", json=body, headers={"X-Forwarded-For": f"10.0.0.{number}"})

    assert alone.accounts.log_ins == 5


def test_log_ins_that_succeed_or_find_no_broker_do_not_count(alone: Site) -> None:
    with alone.client(None) as client:
        alone.accounts.is_down = True
        for _ in range(8):
            assert client.post("/api/login", json=CREDENTIALS).status_code == 401
        alone.accounts.is_down = False
        answers = [client.post("/api/login", json=CREDENTIALS) for _ in range(8)]

    assert {answer.status_code for answer in answers} == {200}


def test_the_throttle_forgets_after_five_minutes() -> None:
    now_s = [0.0]
    throttle = LoginThrottle(lambda: now_s[0], 5, 300.0)
    for _ in range(5):
        throttle.count("user a")

    assert throttle.wait_s("user a", "user b") == 300.0
    assert throttle.wait_s("user b") == 0.0
    now_s[0] = 300.0
    assert throttle.wait_s("user a") == 0.0


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ConfigError, match="openssl rand -hex 32"):
        CookieSigner("short", time.time)


def begin_real_session(state: Path) -> None:
    catalogue = load_instruments(CONFIG, {}).catalogue
    plan = session_plan(state, load_markets([write_candles(state)], [], catalogue))
    begin_session(state, msgspec.structs.replace(plan, mode="live"))


def real_backend(settings: Settings) -> Backend:
    given = settings.secrets.model_copy(update={"jwt_secret": SecretStr(SECRET)})
    settings = settings.model_copy(update={"secrets": given})
    return build_backend(
        settings,
        Options(config=CONFIG),
        {},
        FyersAccounts(Endpoints(), CallPace(time.monotonic)),
        str,
    )


def test_real_money_needs_a_secret_from_outside(tmp_path: Path) -> None:
    settings = load_settings(CONFIG, {"HRM_TRADER__SESSION__STATE_DIR": str(tmp_path)})
    begin_real_session(tmp_path)
    named = settings.backend.model_copy(update={"users": (USER.user_id,)})
    settings = settings.model_copy(update={"backend": named})

    with pytest.raises(ConfigError, match="JWT_SECRET is not set"):
        build_backend(
            settings,
            Options(config=CONFIG),
            {},
            FyersAccounts(Endpoints(), CallPace(time.monotonic)),
            str,
        )


async def test_a_daemon_that_turns_to_real_money_is_asked_for_none_without_a_secret(
    tmp_path: Path,
) -> None:
    settings = load_settings(CONFIG, {"HRM_TRADER__SESSION__STATE_DIR": str(tmp_path)})
    accounts = FyersAccounts(Endpoints(), CallPace(time.monotonic))
    drawn = build_backend(settings, Options(config=CONFIG), {}, accounts, lambda: SECRET)
    begin_real_session(tmp_path)
    place = find_place(settings, demo=False)
    assert place is not None
    price = Decimal(22000)

    started = await drawn.link.start(place, USER.user_id, "Nifty", "5", "REAL", None)
    traded = await drawn.link.trade(
        place, USER.user_id, "Nifty", "buy", 1, price, "REAL", None, None
    )

    for answer in (started, traded):
        assert not answer.accepted
        assert "JWT_SECRET is not set" in answer.reason
    with pytest.raises(NoAnswer):  # it was asked for, and no server runs here
        await drawn.link.stop(place, USER.user_id)


def test_real_money_needs_the_names_of_who_may_log_in(tmp_path: Path) -> None:
    settings = load_settings(CONFIG, {"HRM_TRADER__SESSION__STATE_DIR": str(tmp_path)})
    begin_real_session(tmp_path)
    named = settings.backend.model_copy(update={"users": (USER.user_id,)})
    with_users = settings.model_copy(update={"backend": named})

    with pytest.raises(ConfigError, match=r"backend\.users is empty: name there the Fyers ids"):
        real_backend(settings)
    assert real_backend(with_users).exclusion(USER.user_id) is None


def test_a_daemon_that_turns_to_real_money_lets_nobody_in_who_is_not_named(tmp_path: Path) -> None:
    with a_site(tmp_path) as site:
        begin_real_session(tmp_path)
        place = find_place(
            load_settings(CONFIG, {"HRM_TRADER__SESSION__STATE_DIR": str(tmp_path)}), demo=False
        )
        wait_until(lambda: site.backend.reader.place == place, "a session of real money")
        with site.client() as client:
            log_in, kill = client.post("/api/login", json=CREDENTIALS), client.post("/api/kill")

    assert (log_in.status_code, kill.status_code) == (401, 401)
    assert "backend.users is empty" in log_in.json()["detail"]
    assert site.accounts.log_ins == 0


def test_who_is_not_among_the_users_gets_no_cookie_and_his_old_one_is_refused(
    tmp_path: Path,
) -> None:
    environment = {"HRM_TRADER__BACKEND__USERS": f"[{USER.user_id.lower()}]"}
    with a_site(tmp_path, environment=environment) as site:
        with site.client(None) as client:
            named = client.post("/api/login", json=CREDENTIALS)
            foreign = client.post("/api/login", json=CREDENTIALS | {"fy_id": OTHER.user_id})
        with site.client(OTHER) as client:
            kept = [client.post("/api/kill"), client.get("/api/profile")]
        with pytest.raises(InvalidStatus), site.socket(f"/ws/live/{OTHER.user_id}", OTHER):
            pass

    assert named.status_code == 200
    assert foreign.status_code == 401
    assert foreign.json() == {
        "detail": "Authentication failed: XS00002 is not among the setting backend.users"
    }
    assert [answer.status_code for answer in kept] == [401, 401]
    assert site.accounts.log_ins == 1


@pytest.mark.integration
def test_planted_secrets_show_up_in_no_answer_no_log_and_no_stream(
    site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logs("DEBUG")
    with site.client(None) as client:
        texts = [
            client.post("/api/login", json=CREDENTIALS | {"fy_id": "XS7"}).text,
            client.post("/api/login", json=CREDENTIALS | {"fy_id": 5}).text,
            client.post("/api/login", json={"pin": CREDENTIALS["pin"]}).text,
            client.get("/api/profile").text,
            client.get("/api/funds").text,
            client.post("/api/logout").text,
        ]
    start_session(site)
    texts += [path.read_text() for path in site.backend.files.folder.rglob("*") if path.is_file()]
    captured = capfd.readouterr()
    texts += [captured.out, captured.err]
    place = site.backend.reader.place
    assert place is not None
    with redis.Redis(unix_socket_path=str(place.state_dir / "redis" / "r.sock")) as server:
        streams = server.keys("*:v1:*")
        for key in (key for key in streams if server.type(key) == b"stream"):
            texts.append(repr(server.xrange(key)))
        assert any(b":request" in key for key in streams)

    found = [secret for secret in PLANTED for text in texts if secret in text]

    assert found == []
    assert all(secret not in repr(value) for secret in PLANTED for value in (USER, OTHER))


# --- the broker's log-in, against the loopback broker ---------------------------------------------


async def test_a_log_in_walks_through_totp_pin_and_code_to_a_token_that_works() -> None:
    async with FyersSimulator(SimulatorSettings(seed=7, limits=None)) as simulator:
        accounts = FyersAccounts(simulated(simulator.urls.base), CallPace(time.monotonic))
        identity = await accounts.log_in(credentials_of(simulator))
        profile = await accounts.profile(identity)
        funds = await accounts.funds(identity)
        now_s = int(time.time())
        await simulator.advance(1)
        await accounts.close()

    assert identity.user_id == simulator.account.client_id
    assert profile.name == simulator.account.name
    assert funds.total == profile.capital > 0
    assert now_s > 0


@pytest.mark.parametrize("field", ["pin", "secret_key", "fy_id", "totp_secret", "app_id"])
async def test_a_wrong_field_is_refused_without_naming_any_secret(field: str) -> None:
    async with FyersSimulator(SimulatorSettings(seed=7, limits=None)) as simulator:
        right = credentials_of(simulator)
        wrong = LoginFields(
            **({n: getattr(right, n) for n in FIELDS} | {field: "PLANTEDPLANTED22"})
        )
        accounts = FyersAccounts(simulated(simulator.urls.base), CallPace(time.monotonic))
        with pytest.raises(BrokerError) as refused:
            await accounts.log_in(wrong)
        await accounts.close()

    secrets_of = [right.secret_key, right.totp_secret, "PLANTED"]
    shown = str(refused.value)
    assert field == "app_id" or not any(secret in shown for secret in secrets_of)


async def test_empty_credentials_are_refused_in_the_contracts_words() -> None:
    accounts = FyersAccounts(Endpoints(), CallPace(time.monotonic))

    with pytest.raises(BrokerRejected) as refused:
        await accounts.log_in(LoginFields(**dict.fromkeys(FIELDS, "")))

    assert str(refused.value) == (
        "Fyers API credentials (app_id, secret_key, totp_secret) must be provided."
    )


async def test_a_broker_that_is_away_is_told_without_the_token() -> None:
    accounts = FyersAccounts(simulated("http://127.0.0.1:9"), CallPace(time.monotonic))
    identity = Identity("U", "planted-token", "A-100")

    with pytest.raises(BrokerError) as refused:
        await accounts.profile(identity)
    await accounts.close()

    assert "planted" not in str(refused.value)


FIELDS = ("app_id", "secret_key", "redirect_uri", "fy_id", "pin", "totp_secret")


def credentials_of(simulator: FyersSimulator) -> LoginFields:
    account = simulator.account
    return LoginFields(
        app_id=account.app_id,
        secret_key=account.secret,
        redirect_uri=account.redirect_uri,
        fy_id=account.client_id,
        pin=account.pin,
        totp_secret=account.totp_secret,
    )
