"""The simulated broker over HTTP: login, calls, orders, limits and faults."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pyotp
import pytest

from daemon.brokers.fyers_simulator import (
    FaultKind,
    FyersSimulator,
    RateLimits,
    SimulatorSettings,
)
from daemon.brokers.fyers_simulator.login import claims_of
from daemon.brokers.fyers_simulator.orders import Refusal

SBIN = "NSE:SBIN-EQ"


class Caller:
    """An HTTP client that is logged in."""

    def __init__(self, simulator: FyersSimulator, session: aiohttp.ClientSession) -> None:
        self.simulator = simulator
        self.session = session
        self.token = simulator.token()

    async def call(
        self, method: str, url: str, body: Any = None, **query: str
    ) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"{self.simulator.account.app_id}:{self.token}"}
        async with self.session.request(
            method, url, json=body, params=query, headers=headers, allow_redirects=False
        ) as response:
            return response.status, await response.json()

    async def api(self, method: str, path: str, body: Any = None, **query: str) -> dict[str, Any]:
        return (await self.call(method, self.simulator.urls.api + path, body, **query))[1]

    async def data(self, path: str, **query: str) -> dict[str, Any]:
        return (await self.call("GET", self.simulator.urls.data + path, **query))[1]


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    settings = SimulatorSettings(seed=3, limits=None)
    async with FyersSimulator(settings) as simulator, aiohttp.ClientSession() as session:
        yield Caller(simulator, session)


def an_order(**changes: Any) -> dict[str, Any]:
    order = {
        "symbol": SBIN,
        "qty": 10,
        "type": 2,
        "side": 1,
        "productType": "INTRADAY",
        "limitPrice": 0,
        "stopPrice": 0,
        "validity": "DAY",
        "disclosedQty": 0,
        "offlineOrder": False,
        "orderTag": "t1",
    }
    return order | changes


async def test_a_scripted_login_ends_with_an_access_token(caller: Caller) -> None:
    simulator, account = caller.simulator, caller.simulator.account
    step = await caller.call(
        "POST",
        f"{simulator.urls.login}/send_login_otp_v2",
        {"fy_id": base64.b64encode(account.client_id.encode()).decode(), "app_id": "2"},
    )
    otp = pyotp.TOTP(account.totp_secret).now()
    step = await caller.call(
        "POST",
        f"{simulator.urls.login}/verify_otp",
        {"request_key": step[1]["request_key"], "otp": otp},
    )
    user = await caller.call(
        "POST",
        f"{simulator.urls.login}/verify_pin_v2",
        {
            "request_key": step[1]["request_key"],
            "identity_type": "pin",
            "identifier": base64.b64encode(account.pin.encode()).decode(),
        },
    )
    app_id, app_type = account.app_id.split("-")
    wanted = {
        "fyers_id": account.client_id,
        "app_id": app_id,
        "appType": app_type,
        "redirect_uri": account.redirect_uri,
        "state": "s1",
        "response_type": "code",
        "create_cookie": True,
    }
    headers = {"Authorization": f"Bearer {user[1]['data']['access_token']}"}
    async with caller.session.post(
        f"{simulator.urls.api}/token", json=wanted, headers=headers, allow_redirects=False
    ) as response:
        assert response.status == 308
        answer = parse_qs(urlsplit((await response.json())["Url"]).query)
    assert answer["state"] == ["s1"]
    digest = hashlib.sha256(f"{account.app_id}:{account.secret}".encode()).hexdigest()
    exchanged = {
        "grant_type": "authorization_code",
        "appIdHash": digest,
        "code": answer["auth_code"][0],
    }
    tokens = await caller.api("POST", "/validate-authcode", exchanged)
    caller.token = tokens["access_token"]

    assert (await caller.api("GET", "/profile"))["data"]["fy_id"] == account.client_id
    assert (await caller.api("POST", "/validate-authcode", exchanged))["s"] == "error"


async def test_a_wrong_token_is_refused_with_401(caller: Caller) -> None:
    caller.token = "no.such.token"

    status, answer = await caller.call("GET", f"{caller.simulator.urls.api}/funds")

    assert (status, answer["s"], answer["code"]) == (401, "error", -15)


async def test_a_market_order_fills_and_shows_in_all_books(caller: Caller) -> None:
    placed = await caller.api("POST", "/orders/sync", an_order())

    assert placed["code"] == 1101
    orders = (await caller.api("GET", "/orders", order_tag="1:t1"))["orderBook"]
    assert [(o["id"], o["status"], o["filledQty"]) for o in orders] == [(placed["id"], 2, 10)]
    trades = (await caller.api("GET", "/tradebook"))["tradeBook"]
    assert sum(trade["tradedQty"] for trade in trades) == 10
    positions = (await caller.api("GET", "/positions"))["netPositions"]
    assert [(p["symbol"], p["netQty"]) for p in positions] == [(SBIN, 10)]


async def test_a_limit_order_rests_is_changed_and_cancelled(caller: Caller) -> None:
    placed = await caller.api("POST", "/orders/sync", an_order(type=1, limitPrice=800.0))
    changed = await caller.api(
        "PATCH", "/orders/sync", {"id": placed["id"], "type": 1, "limitPrice": 801.0, "qty": 20}
    )
    row = (await caller.api("GET", "/orders", id=placed["id"]))["orderBook"][0]
    assert (row["status"], row["limitPrice"], row["qty"]) == (6, 801.0, 20)
    cancelled = await caller.api("DELETE", "/orders/sync", {"id": placed["id"]})

    assert (changed["code"], cancelled["code"]) == (1102, 1103)
    assert (await caller.api("GET", "/orders"))["orderBook"][0]["status"] == 1


async def test_an_unanswered_order_has_arrived_all_the_same(caller: Caller) -> None:
    caller.simulator.faults.inject("unanswered", path="POST /api/v3/orders")

    with pytest.raises(aiohttp.ClientError):
        await caller.api("POST", "/orders/sync", an_order())

    orders = (await caller.api("GET", "/orders", order_tag="1:t1"))["orderBook"]
    assert len(orders) == 1


async def test_a_swallowed_order_has_not_arrived(caller: Caller) -> None:
    caller.simulator.faults.inject("swallowed", path="POST /api/v3/orders")

    with pytest.raises(aiohttp.ClientError):
        await caller.api("POST", "/orders/sync", an_order())

    assert (await caller.api("GET", "/orders"))["orderBook"] == []


async def test_the_eleventh_request_of_a_second_is_refused() -> None:
    now_ns = 0
    settings = SimulatorSettings(limits=RateLimits())
    simulator = FyersSimulator(settings, monotonic_ns=lambda: now_ns)
    async with simulator, aiohttp.ClientSession() as session:
        caller = Caller(simulator, session)
        urls = simulator.urls
        statuses = [(await caller.call("GET", f"{urls.api}/funds"))[0] for _ in range(11)]

        assert statuses == [200] * 10 + [429]


async def test_history_is_aligned_to_the_session_and_ends_unfinished(caller: Caller) -> None:
    answer = await caller.data(
        "/history",
        symbol="NSE:NIFTY50-INDEX",
        resolution="60",
        date_format="1",
        range_from="2026-11-25",
        range_to="2026-11-25",
    )

    assert [candle[0] for candle in answer["candles"]] == [1795578300]  # 09:15 IST
    assert answer["candles"][-1][4] == 25_000.0


async def test_the_same_seed_gives_the_same_market() -> None:
    prices = []
    for _ in range(2):
        simulator = FyersSimulator(SimulatorSettings(seed=11))
        async with simulator:
            simulator.market.quote("NSE:NIFTY26D0125000CE")
            await simulator.advance(30)
            prices.append([(q.last, q.volume, q.bid_sizes) for q in simulator.market.live_quotes])

    assert prices[0] == prices[1]


# What goes wrong with calls.


@pytest.mark.parametrize(
    ("kind", "status", "retry_after"),
    [
        ("unauthorised", 401, None),
        ("rate_limited", 429, "1"),
        ("rate_limited_bare", 429, None),
        ("server_error", 502, None),
    ],
)
async def test_calls_are_turned_away_as_often_as_told(
    caller: Caller, kind: FaultKind, status: int, retry_after: str | None
) -> None:
    caller.simulator.faults.inject(kind, count=2)
    seen = []
    headers = {"Authorization": f"{caller.simulator.account.app_id}:{caller.token}"}

    for _ in range(3):
        async with caller.session.get(
            f"{caller.simulator.urls.api}/funds", headers=headers
        ) as response:
            seen.append((response.status, response.headers.get("Retry-After")))

    assert seen == [(status, retry_after)] * 2 + [(200, None)]


async def test_an_order_without_acknowledgement_is_taken_all_the_same(caller: Caller) -> None:
    caller.simulator.faults.inject("no_acknowledgement", path="place")

    placed = await caller.api("POST", "/orders/sync", an_order())

    assert (placed["s"], placed["code"]) == ("ok", 201)
    assert placed["id"] in caller.simulator.exchange.orders


async def test_an_order_rejected_by_the_risk_desk_stays_in_the_book(caller: Caller) -> None:
    caller.simulator.faults.inject("order_rejected")

    status, placed = await caller.call(
        "POST", f"{caller.simulator.urls.api}/orders/sync", an_order()
    )

    assert (status, placed["s"], placed["code"]) == (400, "error", -99)
    row = (await caller.api("GET", "/orders"))["orderBook"][0]
    assert (row["status"], row["message"]) == (5, placed["message"])


async def test_a_reply_can_be_slow_and_a_request_hang(caller: Caller) -> None:
    caller.simulator.faults.inject("slow_reply", seconds=30, path="/profile")
    caller.simulator.faults.inject("unanswered", seconds=30, path="POST /api/v3/orders")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await caller.api("GET", "/profile")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await caller.api("POST", "/orders/sync", an_order())

    assert caller.simulator.portfolio.net(SBIN) == 10


async def test_a_margin_call_says_what_an_order_would_bind(caller: Caller) -> None:
    answer = await caller.api(
        "POST", "/multiorder/margin", {"data": [an_order(type=1, limitPrice=800.0)]}
    )

    assert answer["data"]["margin_new_order"] == 10 * 800 * 0.2
    assert answer["data"]["margin_avail"] == 1_000_000


# What goes wrong with logins.


def hashed(simulator: FyersSimulator) -> str:
    account = simulator.account
    return hashlib.sha256(f"{account.app_id}:{account.secret}".encode()).hexdigest()


async def test_the_login_page_sends_nobody_on_with_a_wrong_pin(caller: Caller) -> None:
    account = caller.simulator.account
    form = {
        "client_id": account.app_id,
        "redirect_uri": account.redirect_uri,
        "state": '"><script>',
        "fy_id": account.client_id,
        "pin": "0000",
        "totp": pyotp.TOTP(account.totp_secret).now(),
    }

    async with caller.session.post(
        f"{caller.simulator.urls.api}/generate-authcode", data=form, allow_redirects=False
    ) as response:
        assert response.status == 401
        assert "<script>" not in await response.text()


async def test_an_auth_code_lives_for_five_minutes() -> None:
    now_ns = 1_800_000_000 * 10**9
    simulator = FyersSimulator(SimulatorSettings(limits=None), wall_ns=lambda: now_ns)
    where = simulator.desk.redirect(simulator.account.app_id, simulator.account.redirect_uri, "s")
    code = parse_qs(urlsplit(where).query)["auth_code"][0]

    now_ns += 301 * 10**9

    body = {"grant_type": "authorization_code", "appIdHash": hashed(simulator), "code": code}
    with pytest.raises(Refusal, match="auth code"):
        simulator.desk.exchange(body)


@pytest.mark.parametrize("is_allowed", [True, False])
async def test_a_refresh_token_is_good_where_the_broker_allows_it(is_allowed: bool) -> None:
    settings = SimulatorSettings(limits=None, refresh_is_allowed=is_allowed)
    async with FyersSimulator(settings) as simulator, aiohttp.ClientSession() as session:
        caller = Caller(simulator, session)
        where = simulator.desk.redirect(
            simulator.account.app_id, simulator.account.redirect_uri, "s"
        )
        code = parse_qs(urlsplit(where).query)["auth_code"][0]
        known = {"appIdHash": hashed(simulator)}
        tokens = await caller.api(
            "POST",
            "/validate-authcode",
            known | {"grant_type": "authorization_code", "code": code},
        )
        asked = known | {
            "grant_type": "refresh_token",
            "refresh_token": tokens["refresh_token"],
            "pin": simulator.account.pin,
        }

        answer = await caller.api("POST", "/validate-refresh-token", asked)

        assert (answer["s"] == "ok") is is_allowed


def test_a_token_dies_at_six_in_the_morning_of_the_later_clock() -> None:
    at_noon_ns = 1_795_675_800 * 10**9  # 26 Nov 2026, 12:20 IST
    simulator = FyersSimulator(wall_ns=lambda: at_noon_ns)

    claims = claims_of(simulator.token())

    assert claims["exp"] == 1_795_739_400  # 27 Nov 2026, 06:00 IST
    assert len(claims["hsm_key"]) == 56


async def test_a_logout_ends_the_token(caller: Caller) -> None:
    assert (await caller.api("POST", "/logout"))["s"] == "ok"

    assert (await caller.api("GET", "/funds"))["code"] == -8
