"""The simulated broker over HTTP: login, calls, orders, limits and faults."""

import base64
import hashlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pyotp
import pytest

from daemon.brokers.fyers_simulator import FyersSimulator, RateLimits, SimulatorSettings

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
