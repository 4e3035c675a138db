"""The official SDK, unmodified, works against the simulator: so the simulator is faithful.

What the SDK does wrong is in test_fyers_sdk_faults.py.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pyotp
import pytest
from fyers_sdk import Sdk, is_tick, says, sdk_process

from daemon.brokers.fyers_simulator import FyersSimulator, SimulatorSettings

pytestmark = pytest.mark.integration

SBIN, NIFTY, CALL = "NSE:SBIN-EQ", "NSE:NIFTY50-INDEX", "NSE:NIFTY26D0125000CE"
MODELS = ["model", "async_model"]
SPEED = 8.0  # of the SDK's waits, save in the one test that takes it as it is


@pytest.fixture
async def simulator() -> AsyncIterator[FyersSimulator]:
    async with FyersSimulator(SimulatorSettings(seed=5, limits=None)) as simulator:
        yield simulator


@pytest.fixture
async def sdk(simulator: FyersSimulator, tmp_path: Path) -> AsyncIterator[Sdk]:
    async with sdk_process(simulator, tmp_path, speed=SPEED) as sdk:
        yield sdk


def an_order(**changes: Any) -> dict[str, Any]:
    order = {
        "symbol": SBIN, "qty": 10, "type": 2, "side": 1, "productType": "INTRADAY",
        "limitPrice": 0, "stopPrice": 0, "validity": "DAY", "disclosedQty": 0,
        "offlineOrder": False, "orderTag": "sdk1",
    }  # fmt: skip
    return order | changes


async def test_the_sdk_logs_in_by_auth_code(simulator: FyersSimulator, sdk: Sdk) -> None:
    account = simulator.account
    await sdk.make(
        "session",
        client_id=account.app_id,
        secret_key=account.secret,
        redirect_uri=account.redirect_uri,
        response_type="code",
        grant_type="authorization_code",
        state="s7",
    )
    page = await sdk.call("session", "generate_authcode")
    form = {name: values[0] for name, values in parse_qs(urlsplit(page).query).items()}
    form |= {
        "fy_id": account.client_id,
        "pin": account.pin,
        "totp": pyotp.TOTP(account.totp_secret).now(),
    }
    async with aiohttp.ClientSession() as browser:
        async with browser.get(page) as response:
            assert "TOTP" in await response.text()
        where = page.partition("?")[0]
        async with browser.post(where, data=form, allow_redirects=False) as response:
            assert response.status == 302
            answer = parse_qs(urlsplit(response.headers["Location"]).query)
    assert answer["state"] == ["s7"]
    await sdk.call("session", "set_token", answer["auth_code"][0])
    tokens = await sdk.call("session", "generate_token")

    await sdk.make("model", client_id=account.app_id, token=tokens["access_token"])

    assert (await sdk.call("model", "get_profile"))["data"]["fy_id"] == account.client_id


@pytest.mark.parametrize("model", MODELS)
async def test_the_sdk_reads_market_data(simulator: FyersSimulator, sdk: Sdk, model: str) -> None:
    await sdk.make(model, client_id=simulator.account.app_id, token=simulator.token())

    quotes = await sdk.call(model, "quotes", data={"symbols": f"{SBIN},{NIFTY}"})
    posted = await sdk.call(model, "quotes_v2", data={"symbols": [SBIN]})
    depth = await sdk.call(model, "depth", data={"symbol": SBIN, "ohlcv_flag": "1"})
    history = await sdk.call(
        model,
        "history",
        data={
            "symbol": NIFTY,
            "resolution": "5",
            "date_format": "1",
            "range_from": "2026-11-23",
            "range_to": "2026-11-25",
            "cont_flag": "1",
        },
    )
    chain = await sdk.call(
        model, "optionchain", data={"symbol": NIFTY, "strikecount": 3, "timestamp": ""}
    )
    status = await sdk.call(model, "market_status")

    assert [row["v"]["lp"] for row in quotes["d"]] == [
        simulator.market.quote(SBIN).last / 100,
        25_000.0,
    ]
    assert posted["d"][0]["n"] == SBIN
    assert len(depth["d"][SBIN]["bids"]) == len(depth["d"][SBIN]["ask"]) == 5
    assert history["candles"][0][0] == 1795405500  # Monday 09:15 IST; Tuesday was a holiday
    assert len(history["candles"]) == 77 + 9
    assert len(chain["data"]["optionsChain"]) == 1 + 2 * 7
    assert {row["status"] for row in status["marketStatus"]} == {"OPEN"}


@pytest.mark.parametrize("model", MODELS)
async def test_the_sdk_trades(simulator: FyersSimulator, sdk: Sdk, model: str) -> None:
    await sdk.make(model, client_id=simulator.account.app_id, token=simulator.token())

    bought = await sdk.call(model, "place_order", data=an_order())
    resting = await sdk.call(model, "place_order", data=an_order(type=1, limitPrice=800.0))
    changed = await sdk.call(
        model, "modify_order", data={"id": resting["id"], "type": 1, "limitPrice": 801.5}
    )
    cancelled = await sdk.call(model, "cancel_order", data={"id": resting["id"]})
    refused = await sdk.call(model, "place_order", data=an_order(type=1, limitPrice=800.01))
    basket = await sdk.call(
        model, "place_basket_orders", data=[an_order(orderTag="b1"), an_order(qty=0)]
    )
    book = await sdk.call(model, "orderbook")
    mine = await sdk.call(model, "orderbook", data={"order_tag": "1:b1"})
    trades = await sdk.call(model, "tradebook")
    positions = await sdk.call(model, "positions")
    funds = await sdk.call(model, "funds")
    closed = await sdk.call(model, "exit_positions", data={"id": f"{SBIN}-INTRADAY"})

    assert [bought["code"], changed["code"], cancelled["code"]] == [1101, 1102, 1103]
    assert (refused["s"], refused["code"]) == ("error", -50)
    assert [item["statusCode"] for item in basket["data"]] == [200, 400]
    assert [order["status"] for order in book["orderBook"]] == [2, 1, 2]
    assert [order["orderTag"] for order in mine["orderBook"]] == ["1:b1"]
    assert sum(trade["tradedQty"] for trade in trades["tradeBook"]) == 20
    assert [row["netQty"] for row in positions["netPositions"]] == [20]
    assert {row["id"] for row in funds["fund_limit"]} == set(range(1, 11))
    assert closed["code"] == 200
    assert simulator.portfolio.net(SBIN) == 0


async def test_the_sdk_decodes_snapshots_updates_and_depth(
    simulator: FyersSimulator, tmp_path: Path
) -> None:
    async with sdk_process(simulator, tmp_path) as sdk:
        await all_kinds_of_ticks_are_right(simulator, sdk)


async def all_kinds_of_ticks_are_right(simulator: FyersSimulator, sdk: Sdk) -> None:
    """Subscribe to everything and compare what arrives with the market itself."""
    await sdk.make("data", access_token=sdk.app_and_token, log_path=".")
    await sdk.call("data", "connect")
    await sdk.call("data", "subscribe", [SBIN, NIFTY, CALL], "SymbolUpdate")
    await sdk.call("data", "subscribe", [SBIN], "DepthUpdate")
    for symbol, kind in ((SBIN, "sf"), (CALL, "sf"), (NIFTY, "if"), (SBIN, "dp")):
        await sdk.wait_for(is_tick(symbol, kind))

    await simulator.advance(40)

    sbin, nifty = simulator.market.quote(SBIN), simulator.market.quote(NIFTY)
    tick = (
        await sdk.wait_for(
            lambda event: (
                is_tick(SBIN, "sf")(event)
                and event["value"]["exch_feed_time"] == sbin.feed_ns // 10**9
            )
        )
    )["value"]
    assert tick["ltp"] == sbin.last / 100
    assert (tick["bid_price"], tick["ask_price"]) == (sbin.bid / 100, sbin.ask / 100)
    assert tick["vol_traded_today"] == sbin.volume
    assert (tick["low_price"], tick["high_price"]) == (sbin.low / 100, sbin.high / 100)
    await sdk.wait_for(is_tick(NIFTY, "if", ltp=nifty.last / 100))
    depth = (
        await sdk.wait_for(
            lambda event: (
                is_tick(SBIN, "dp")(event)
                and event["value"]["bid_size1"] == sbin.bid_sizes[0]
                and event["value"]["ask_size5"] == sbin.ask_sizes[4]
            )
        )
    )["value"]
    assert depth["bid_price1"] == sbin.bid / 100
    assert depth["ask_price5"] == (sbin.ask + 4 * 5) / 100
    assert sdk.of("error") == []


async def test_the_sdk_acknowledges_every_nth_data_frame(tmp_path: Path) -> None:
    settings = SimulatorSettings(seed=5, limits=None, ack_every=4)
    async with (
        FyersSimulator(settings) as simulator,
        sdk_process(simulator, tmp_path, speed=SPEED) as sdk,
    ):
        await sdk.make("data", access_token=sdk.app_and_token, log_path=".")
        await sdk.call("data", "connect")
        await sdk.call("data", "subscribe", [SBIN], "SymbolUpdate")
        await sdk.wait_for(is_tick(SBIN, "sf"))
        await simulator.advance(7)  # one snapshot and seven updates

        await sdk.settle(lambda: simulator.data_socket.acknowledged == 8)


async def test_the_sdk_follows_the_last_price_in_lite_mode(
    simulator: FyersSimulator, sdk: Sdk
) -> None:
    await sdk.make("data", access_token=sdk.app_and_token, log_path=".", litemode=True)
    await sdk.call("data", "connect")
    await sdk.call("data", "subscribe", [SBIN, NIFTY], "SymbolUpdate")
    await sdk.wait_for(is_tick(NIFTY, "if"))

    await simulator.set_price(SBIN, 822.5)

    tick = (await sdk.wait_for(is_tick(SBIN, "sf", ltp=822.5)))["value"]
    assert set(tick) == {"ltp", "symbol", "type"}


async def test_the_sdk_hears_of_orders_trades_and_positions(
    simulator: FyersSimulator, sdk: Sdk
) -> None:
    await sdk.make("order", access_token=sdk.app_and_token, log_path=".")
    await sdk.call("order", "connect")
    await sdk.call("order", "subscribe", "OnOrders,OnTrades,OnPositions,OnGeneral")
    await sdk.wait_for(lambda event: event["event"] == "general" and event["value"]["code"] == 1605)

    order = simulator.exchange.place(an_order(qty=10))

    done = await sdk.wait_for(
        lambda event: event["event"] == "orders" and event["value"]["orders"]["status"] == 2
    )
    row = done["value"]["orders"]
    assert (row["id"], row["filledQty"], row["remainingQuantity"]) == (order.id, 10, 0)
    assert row["orderTag"] == "1:sdk1"
    trade = (await sdk.wait_for(lambda event: event["event"] == "trades"))["value"]["trades"]
    assert (trade["orderNumber"], trade["symbol"]) == (order.id, SBIN)
    held = await sdk.wait_for(
        lambda event: event["event"] == "positions" and event["value"]["positions"]["netQty"] == 10
    )
    assert held["value"]["positions"]["id"] == f"{SBIN}-INTRADAY"
    statuses = [value["orders"]["status"] for value in sdk.of("orders")]
    assert statuses[:2] == [4, 6]

    await sdk.call("order", "unsubscribe", "OnGeneral")  # sends a nested list
    simulator.exchange.place(an_order(orderTag="sdk2"))

    await sdk.wait_for(
        lambda event: (
            event["event"] == "orders" and event["value"]["orders"]["orderTag"] == "1:sdk2"
        )
    )


async def test_the_sdk_takes_a_burst_of_snapshots_beyond_the_length_of_a_frame(
    simulator: FyersSimulator, sdk: Sdk
) -> None:
    symbols = list(simulator.market.master.by_symbol)[:490]
    await sdk.make("data", access_token=sdk.app_and_token, log_path=".")
    await sdk.call("data", "connect")
    simulator.faults.inject("data_large_frame")

    await sdk.call("data", "subscribe", symbols, "SymbolUpdate")

    for symbol in symbols:
        kind = "if" if symbol.endswith("-INDEX") else "sf"
        await sdk.wait_for(is_tick(symbol, kind, ltp=simulator.market.quote(symbol).last / 100))
    assert simulator.faults.fired["data_large_frame"] == 1


async def test_the_sdk_pauses_one_channel_for_another_and_resumes_it(
    simulator: FyersSimulator, sdk: Sdk
) -> None:
    await sdk.make("data", access_token=sdk.app_and_token, log_path=".")
    await sdk.call("data", "connect")
    await sdk.call("data", "subscribe", [SBIN], "SymbolUpdate", 11)
    await sdk.wait_for(is_tick(SBIN, "sf"))
    await sdk.call("data", "subscribe", [NIFTY], "SymbolUpdate", 12)
    await sdk.wait_for(is_tick(NIFTY, "if"))

    await simulator.set_price(SBIN, 822.5)
    await simulator.set_price(NIFTY, 25_100.0)
    await sdk.wait_for(is_tick(NIFTY, "if", ltp=25_100.0))
    assert [tick for tick in sdk.of("message") if tick.get("ltp") == 822.5] == []

    await sdk.call("data", "channel_resume", 11)
    await sdk.wait_for(says("Channel Resumed"))
    await simulator.set_price(SBIN, 823.5)
    await sdk.wait_for(is_tick(SBIN, "sf", ltp=823.5))


async def test_the_sdk_is_told_what_it_cannot_have(simulator: FyersSimulator, sdk: Sdk) -> None:
    await sdk.make("data", access_token=sdk.app_and_token, log_path=".")
    await sdk.call("data", "connect")
    await sdk.call("data", "subscribe", [SBIN, "NSE:NOPE-EQ"], "SymbolUpdate")
    await sdk.wait_for(is_tick(SBIN, "sf"))
    assert sdk.of("error")[0]["invalid_symbols"] == ["NSE:NOPE-EQ"]

    simulator.faults.inject("data_symbol_limit")
    await sdk.call("data", "subscribe", [CALL], "SymbolUpdate")
    refused = await sdk.wait_for(
        lambda event: event["event"] == "error" and event["value"].get("code") == 51001
    )
    assert refused["value"]["type"] == "sub"

    await sdk.call("data", "subscribe", [SBIN], "SymbolUpdate")
    await sdk.call("data", "unsubscribe", [SBIN], "SymbolUpdate")
    await sdk.wait_for(says("Unsubscribed"))
    ticks = len(sdk.of("message"))
    await simulator.advance(5)
    await sdk.call("data", "is_connected")
    assert len(sdk.of("message")) == ticks


async def test_the_sdk_changes_and_cancels_baskets_and_converts_positions(
    simulator: FyersSimulator, sdk: Sdk
) -> None:
    await sdk.make("model", client_id=simulator.account.app_id, token=simulator.token())
    resting = [an_order(type=1, limitPrice=price, orderTag="") for price in (800.0, 801.0)]
    placed = await sdk.call("model", "place_basket_orders", data=resting)
    ids = [item["body"]["id"] for item in placed["data"]]

    changes = [{"id": id_, "type": 1, "limitPrice": 790.0} for id_ in ids]
    changed = await sdk.call("model", "modify_basket_orders", data=changes)
    cancelled = await sdk.call("model", "cancel_basket_orders", data=[{"id": id_} for id_ in ids])
    await sdk.call("model", "place_order", data=an_order())
    converted = await sdk.call(
        "model",
        "convert_position",
        data={
            "symbol": f"{SBIN}-INTRADAY",
            "positionSide": 1,
            "convertQty": 4,
            "convertFrom": "INTRADAY",
            "convertTo": "CNC",
            "overnight": 0,
        },
    )
    holdings = await sdk.call("model", "holdings")

    assert [item["body"]["code"] for item in changed["data"]] == [1102, 1102]
    assert [item["body"]["code"] for item in cancelled["data"]] == [1103, 1103]
    assert converted["s"] == "ok"
    held = {product: p.net for (_, product), p in simulator.portfolio.positions.items()}
    assert held == {"INTRADAY": 6, "CNC": 4}
    assert (holdings["s"], holdings["holdings"]) == ("ok", [])


async def test_the_sdk_meets_the_limits_and_an_expired_token(tmp_path: Path) -> None:
    simulator = FyersSimulator(SimulatorSettings(seed=5), monotonic_ns=lambda: 0)
    async with simulator, sdk_process(simulator, tmp_path) as sdk:
        await sdk.make("model", client_id=simulator.account.app_id, token=simulator.token())
        answers = [await sdk.call("model", "funds") for _ in range(11)]
        assert [answer["s"] for answer in answers] == ["ok"] * 10 + ["error"]
        assert answers[-1]["code"] == -429

    async with FyersSimulator() as simulator, sdk_process(simulator, tmp_path) as sdk:
        await sdk.make("model", client_id=simulator.account.app_id, token=simulator.token())
        simulator.faults.inject("token_expired")
        refused = await sdk.call("model", "positions")
        assert (refused["s"], refused["code"]) == ("error", -8)
