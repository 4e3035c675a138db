"""Our REST client and login against the simulator: errors by kind, nothing repeated, no secrets."""

import asyncio
import base64
import json
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from inspect import signature
from pathlib import Path
from random import Random
from typing import cast

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from daemon.brokers.fyers.ledger import CallBudget, RateLedger
from daemon.brokers.fyers.login import LoginFields, Token, TokenStore, fields_from, log_in
from daemon.brokers.fyers.rest import (
    CallTimes,
    Endpoints,
    FyersRest,
    Rejected,
    scrubbed,
    simulated,
)
from daemon.brokers.fyers.sdk import SdkTransport, TransportName, transport_of
from daemon.brokers.fyers.transport import Answer, Call, HttpTransport, Transport
from daemon.brokers.fyers_simulator import FaultKind, FyersSimulator, SimulatorSettings
from daemon.clock import NS_PER_SECOND, SimulatedClock, SystemClock
from daemon.errors import (
    BrokerError,
    BrokerRejected,
    BrokerUnavailable,
    ConfigError,
    LoginNeeded,
    TooManyCalls,
)
from daemon.order_gateway import OrderGateway

SBIN, NIFTY = "NSE:SBIN-EQ", "NSE:NIFTY50-INDEX"
START_NS = 1_800_000_000 * NS_PER_SECOND
QUICK = CallTimes(answer_s=30.0, budget_s=30.0, tries=3, first_delay_s=0.01)
ORDER = {
    "symbol": SBIN, "qty": 10, "type": 2, "side": 1, "productType": "INTRADAY", "limitPrice": 0,
    "stopPrice": 0, "validity": "DAY", "disclosedQty": 0, "offlineOrder": False,
    "stopLoss": 0, "takeProfit": 0, "orderTag": "a1",
}  # fmt: skip


class World:
    """A simulated broker, and our client of it."""

    def __init__(
        self,
        simulator: FyersSimulator,
        http: aiohttp.ClientSession,
        ledger: RateLedger,
        transport: Transport,
    ) -> None:
        self.simulator = simulator
        self.http = http
        self.ledger = ledger
        self.endpoints: Endpoints = simulated(simulator.urls.base)
        self.token = simulator.token()
        self.rest = FyersRest(
            http,
            self.endpoints,
            app_id=simulator.account.app_id,
            token=lambda: self.token,
            ledger=ledger,
            clock=SystemClock(),
            random=Random(1),
            times=QUICK,
            transport=transport,
        )

    @property
    def who(self) -> LoginFields:
        account = self.simulator.account
        return LoginFields(
            app_id=account.app_id,
            secret_key=account.secret,
            redirect_uri=account.redirect_uri,
            fy_id=account.client_id,
            pin=account.pin,
            totp_secret=account.totp_secret,
        )


@asynccontextmanager
async def a_world(folder: Path, transport: TransportName = "own") -> AsyncIterator[World]:
    settings = SimulatorSettings(seed=3)
    async with FyersSimulator(settings) as simulator, aiohttp.ClientSession() as http:
        endpoints = simulated(simulator.urls.base)
        with (
            RateLedger(folder / "calls", SystemClock()) as ledger,
            transport_of(transport, http, endpoints, QUICK.answer_s) as chosen,
        ):
            yield World(simulator, http, ledger, chosen)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with a_world(tmp_path) as world:
        yield world


@pytest.fixture(params=["own", "sdk"])
async def either(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """A world whose calls go by our client, and one where the SDK makes them."""
    async with a_world(tmp_path, request.param) as world:
        yield world


async def test_reads_return_what_the_broker_has(either: World) -> None:
    assert (await either.rest.profile())["fy_id"] == either.simulator.account.client_id
    assert await either.rest.orders() == []
    assert await either.rest.trades() == []
    assert await either.rest.positions() == []


async def test_an_order_is_placed_and_found(either: World) -> None:
    answer = await either.rest.write("POST", "/orders/sync", ORDER)

    (order,) = await either.rest.orders()
    assert order["id"] == answer["id"]
    assert order["orderTag"] == "1:a1"


async def test_candles_have_exact_prices(either: World) -> None:
    now_s = either.simulator.now_ns // NS_PER_SECOND

    candles = await either.rest.history(SBIN, "5", now_s - 3600, now_s)

    assert candles
    assert all(isinstance(candle[4], Decimal) for candle in candles)
    assert [candle[0] for candle in candles] == sorted({candle[0] for candle in candles})


async def test_topics_are_those_of_the_data_socket(either: World) -> None:
    topics = await either.rest.topics([SBIN, NIFTY])

    assert topics["if|nse_cm|Nifty 50"] == NIFTY
    assert SBIN in topics.values()


async def test_an_unknown_symbol_is_named(world: World) -> None:
    with pytest.raises(Rejected, match="NSE:NOBODY-EQ"):
        await world.rest.topics([SBIN, "NSE:NOBODY-EQ"])


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("unauthorised", LoginNeeded),
        ("rate_limited", TooManyCalls),
        ("rate_limited_bare", TooManyCalls),
        ("server_error", BrokerUnavailable),
        ("unanswered", BrokerUnavailable),
        ("no_acknowledgement", BrokerUnavailable),
    ],
)
async def test_a_failed_order_call_is_told_by_its_kind_and_never_repeated(
    either: World, fault: FaultKind, error: type[BrokerError]
) -> None:
    either.simulator.faults.inject(fault, count=5)

    with pytest.raises(error):
        await either.rest.write("POST", "/orders/sync", ORDER)

    assert either.simulator.faults.fired[fault] == 1
    assert len(either.simulator.exchange.orders) <= 1
    assert either.ledger.calls_today == 1


async def test_a_refused_order_is_rejected_for_good(either: World) -> None:
    with pytest.raises(Rejected) as refused:
        await either.rest.write("POST", "/orders/sync", {**ORDER, "qty": 0})

    assert refused.value.code < 0


async def test_a_read_is_tried_again(either: World) -> None:
    either.simulator.faults.inject("server_error", count=2)

    assert await either.rest.orders() == []
    assert either.ledger.calls_today == 3


async def test_a_refusal_for_too_many_calls_is_remembered(either: World) -> None:
    either.simulator.faults.inject("rate_limited")

    with pytest.raises(TooManyCalls):
        await either.rest.orders()

    assert either.ledger.refusals_today == 1


async def test_a_burst_of_calls_meets_no_limit(world: World) -> None:
    for _ in range(12):
        await world.rest.orders()

    assert world.ledger.refusals_today == 0


@asynccontextmanager
async def a_rest_whose_minute_is_used_up(
    world: World, folder: Path
) -> AsyncIterator[tuple[FyersRest, SimulatedClock]]:
    """Make calls where the next one may go in a minute, by a clock that only sleepers move."""
    clock = SimulatedClock(START_NS)
    budget = CallBudget(per_minute=1, reserve_per_minute=0)
    with RateLedger(folder / "few_calls", clock, budget) as ledger:
        rest = FyersRest(
            world.http,
            world.endpoints,
            app_id=world.simulator.account.app_id,
            token=lambda: world.token,
            ledger=ledger,
            clock=clock,
            random=Random(1),
        )
        assert ledger.take() == 0
        yield rest, clock


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_an_order_call_that_would_wait_long_for_its_turn_is_not_made(
    world: World, tmp_path: Path, method: str
) -> None:
    async with a_rest_whose_minute_is_used_up(world, tmp_path) as (rest, clock):
        with pytest.raises(TooManyCalls) as refused:
            await rest.write(method, "/orders/sync", ORDER, reduces_risk=True)

    assert refused.value.kind == "rate"
    assert clock.now_ns() == START_NS
    assert world.simulator.exchange.orders == {}


async def test_a_cancel_waits_for_its_turn(world: World, tmp_path: Path) -> None:
    async with a_rest_whose_minute_is_used_up(world, tmp_path) as (rest, clock):
        with pytest.raises(Rejected):  # there is no such order, says the broker
            await rest.write("DELETE", "/orders/sync", {"id": "1"}, reduces_risk=True)

    assert clock.now_ns() == START_NS + 60 * NS_PER_SECOND


def test_an_order_call_gives_up_long_before_the_gateway_takes_it_for_lost() -> None:
    timeout = signature(OrderGateway).parameters["request_timeout_s"].default

    assert CallTimes().order_budget_s <= timeout / 2


async def test_a_dead_token_is_told_and_a_new_one_taken(either: World) -> None:
    good, either.token = either.token, "dead"
    with pytest.raises(LoginNeeded):
        await either.rest.orders()
    either.token = good

    assert await either.rest.orders() == []


async def test_an_error_page_in_bytes_that_are_no_text_is_an_answer_all_the_same(
    world: World,
) -> None:
    async def page(_: web.Request) -> web.Response:
        return web.Response(
            status=502, body=b"<html>\xe9\xff</html>", content_type="text/html", charset="utf-8"
        )

    app = web.Application()
    app.router.add_post("/api/v3/orders/sync", page)
    async with TestServer(app) as server:
        endpoints = simulated(str(server.make_url("")))
        answer = await HttpTransport(world.http).send(
            Call("POST", f"{endpoints.api}/orders/sync", "a:b", body=ORDER)
        )

    assert answer == Answer(502, "<html>\ufffd\ufffd</html>")


async def test_a_broker_that_says_nothing_does_not_hold_a_call_up(tmp_path: Path) -> None:
    """The SDK by itself waits for ever."""
    heard = asyncio.Event()

    async def swallow(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.set()
        await gone.wait()
        writer.close()

    gone = asyncio.Event()
    server = await asyncio.start_server(swallow, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with aiohttp.ClientSession() as http, server:
        endpoints = simulated(f"http://127.0.0.1:{port}")
        call = Call("POST", f"{endpoints.api}/orders/sync", "app:token", body=ORDER)
        with (
            transport_of("sdk", http, endpoints, 0.05) as transport,
            pytest.raises(BrokerUnavailable, match="got no answer"),
        ):
            await transport.send(call)
        gone.set()
    assert heard.is_set()


async def test_the_sdk_writes_nothing_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async with a_world(tmp_path, "sdk") as world:
        with caplog.at_level(logging.DEBUG):
            await world.rest.profile()
            with pytest.raises(Rejected):
                await world.rest.write("POST", "/orders/sync", {**ORDER, "qty": 0})
        sdk_said = [record for record in caplog.records if "fyers" in record.name.lower()]
        assert sdk_said == []
        assert world.token not in " ".join((caplog.text, *capfd.readouterr()))


def test_who_does_not_use_the_sdk_does_not_load_it() -> None:
    code = "import daemon.fyers_venue, sys; sys.exit('fyers_apiv3' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_sdk_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fyers_apiv3.fyersModel", None)

    with pytest.raises(ConfigError, match="set it to own"):
        SdkTransport(Endpoints(), cast("Transport", None), 1.0)


async def test_a_login_gives_a_token_that_the_broker_takes(world: World, tmp_path: Path) -> None:
    token = await log_in(world.who, world.http, world.endpoints, SystemClock())
    store = TokenStore(tmp_path / "fyers", {})
    store.save(token)

    world.token = TokenStore(tmp_path / "fyers", {}).load(SystemClock().now_ns()).access_token

    assert (await world.rest.profile())["fy_id"] == world.who.fy_id
    assert world.simulator.desk.is_hsm_key(token.hsm_key)


@pytest.mark.parametrize("wrong", ["pin", "secret_key", "totp_secret", "fy_id", "redirect_uri"])
async def test_a_refused_login_shows_no_secret(
    world: World, wrong: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    planted = "PLANTEDSECRET234PLANTEDSECRET234"  # base32, so that it passes as a TOTP secret
    fields = {name: getattr(world.who, name) for name in LoginFields.__slots__}
    who = LoginFields(**(fields | {wrong: planted}))

    with caplog.at_level(logging.DEBUG), pytest.raises(LoginNeeded) as refused:
        await log_in(who, world.http, world.endpoints, SystemClock())

    secrets = [planted, world.who.secret_key, world.who.pin, world.who.totp_secret]
    if wrong in ("fy_id", "redirect_uri"):
        secrets.remove(planted)
    shown = " ".join((str(refused.value), caplog.text, *capfd.readouterr()))
    assert [secret for secret in secrets if secret in shown.replace("127.0.0.1", "")] == []
    secret_fields = (who.secret_key, who.pin, who.totp_secret)
    assert all(secret not in repr(who) for secret in secret_fields)


async def test_a_kept_token_is_unreadable_without_its_key(world: World, tmp_path: Path) -> None:
    token = await log_in(world.who, world.http, world.endpoints, SystemClock())
    folder = tmp_path / "fyers"
    TokenStore(folder, {}).save(token)

    contents = b" ".join(path.read_bytes() for path in folder.iterdir())
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert token.access_token.encode() not in contents
    assert token.hsm_key.encode() not in contents
    assert token.access_token not in repr(token)
    (folder / "key").unlink()
    with pytest.raises(LoginNeeded, match="key is gone"):
        TokenStore(folder, {}).load(0)


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    store = TokenStore(tmp_path, {})
    store.save(Token(app_id="A-100", access_token="t", hsm_key="h", expires_s=9))
    (tmp_path / "key").chmod(0o644)

    with pytest.raises(ConfigError, match="chmod 600"):
        store.load(0)


def test_an_expired_token_is_not_handed_out(tmp_path: Path) -> None:
    store = TokenStore(tmp_path, {})
    token = Token(app_id="A-100", access_token="t", hsm_key="h", expires_s=9)
    store.save(token)

    assert msgspec.structs.asdict(store.load(8 * NS_PER_SECOND)) == msgspec.structs.asdict(token)
    with pytest.raises(LoginNeeded, match="expired"):
        store.load(9 * NS_PER_SECOND)


def test_the_missing_fields_of_a_login_are_named() -> None:
    with pytest.raises(ConfigError, match="FYERS_PIN, FYERS_TOTP_SECRET"):
        fields_from({
            "FYERS_APP_ID": "A-100", "FYERS_SECRET_KEY": "s", "FYERS_REDIRECT_URI": "r",
            "FYERS_FY_ID": "X",
        })  # fmt: skip


def test_only_loopback_is_a_simulator() -> None:
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:PORT"):
        simulated("http://example.org:80")


async def test_the_command_keeps_a_token_and_prints_no_secret(world: World, tmp_path: Path) -> None:
    who = world.who
    secrets = {"FYERS_SECRET_KEY": who.secret_key, "FYERS_TOTP_SECRET": who.totp_secret}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "daemon.cli", "login", "--json", "--state", str(tmp_path),
        "--simulator", world.simulator.urls.base,
        env=os.environ | secrets | {
            "FYERS_APP_ID": who.app_id, "FYERS_REDIRECT_URI": who.redirect_uri,
            "FYERS_FY_ID": who.fy_id, "FYERS_PIN": who.pin,
        },
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await process.communicate()

    assert process.returncode == 0, errors.decode()
    assert json.loads(out)["fy_id"] == who.fy_id
    token = TokenStore(tmp_path / "fyers", {}).load(SystemClock().now_ns())
    world.simulator.desk.check(token.access_token)
    shown = (out + errors).decode()
    planted = [*secrets.values(), token.access_token, token.hsm_key]
    assert [secret for secret in planted if secret in shown] == []


def test_a_missing_login_and_a_used_up_budget_are_rejects_of_their_kinds() -> None:
    errors = [LoginNeeded("x"), TooManyCalls("x"), Rejected("market is closed", -50)]

    assert all(isinstance(error, BrokerRejected) for error in errors)
    assert [error.kind for error in errors] == ["auth", "rate", "retryable"]


def test_a_message_of_the_broker_is_shown_without_keys_and_line_breaks() -> None:
    token = "eyJ0eXAiOiJKV1Qi.eyJpc3MiOiJhcGk.S5x-9_Qq" + "A" * 30

    shown = scrubbed(f"Invalid PIN 4711 of XX00001\nfor {token}", "4711", "XX00001")

    assert shown == "Invalid PIN *** of *** for ***"


async def test_a_refused_login_does_not_show_what_the_broker_repeats(world: World) -> None:
    async def repeat(request: web.Request) -> web.Response:
        said = await request.text()
        return web.json_response(
            {"s": "error", "code": -1, "message": f"unknown {said} {world.who.fy_id}"}, status=400
        )

    app = web.Application()
    app.router.add_post("/vagator/v2/send_login_otp_v2", repeat)
    async with TestServer(app) as server:
        endpoints = simulated(str(server.make_url("")))
        with pytest.raises(LoginNeeded) as refused:
            await log_in(world.who, world.http, endpoints, SystemClock())

    shown = str(refused.value)
    assert "unknown" in shown
    assert world.who.fy_id not in shown
    assert base64.b64encode(world.who.fy_id.encode()).decode() not in shown
