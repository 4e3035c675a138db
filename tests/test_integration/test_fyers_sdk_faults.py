"""What the official SDK does wrong, each on the simulator: why the daemon has its own client.

These tests pass when the SDK fails. `SPEED` shortens the SDK's waits, and nothing else.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fyers_sdk import Sdk, is_tick, says, sdk_process

from daemon.brokers.fyers_simulator import FaultKind, FyersSimulator, SimulatorSettings

pytestmark = pytest.mark.integration

SBIN, NIFTY = "NSE:SBIN-EQ", "NSE:NIFTY50-INDEX"
SPEED = 20.0


@pytest.fixture
async def simulator() -> AsyncIterator[FyersSimulator]:
    async with FyersSimulator(SimulatorSettings(seed=5, limits=None)) as simulator:
        yield simulator


@pytest.fixture
async def sdk(simulator: FyersSimulator, tmp_path: Path) -> AsyncIterator[Sdk]:
    async with sdk_process(simulator, tmp_path, speed=SPEED) as sdk:
        yield sdk


async def connected(sdk: Sdk, *symbols: str, **values: Any) -> None:
    """Open the SDK's data socket, subscribe and wait for the first ticks."""
    await sdk.make("data", access_token=sdk.app_and_token, log_path=".", **values)
    await sdk.call("data", "connect")
    await sdk.wait_for(lambda event: event["event"] == "message" and event["value"]["s"] == "ok")
    await sdk.call("data", "subscribe", list(symbols), "SymbolUpdate")
    for symbol in symbols:
        await sdk.wait_for(is_tick(symbol, "if" if symbol == NIFTY else "sf"))


def an_order(tag: str) -> dict[str, Any]:
    return {
        "symbol": SBIN, "qty": 1, "type": 2, "side": 1, "productType": "INTRADAY",
        "limitPrice": 0, "stopPrice": 0, "validity": "DAY", "disclosedQty": 0,
        "offlineOrder": False, "orderTag": tag,
    }  # fmt: skip


async def test_after_a_slow_handshake_the_sdk_is_connected_and_deaf(
    simulator: FyersSimulator, sdk: Sdk
) -> None:
    simulator.faults.inject("data_slow_handshake", seconds=8.0)
    simulator.faults.inject("order_slow_handshake", seconds=8.0)
    await sdk.make("data", access_token=sdk.app_and_token, log_path=".")
    await sdk.make("order", access_token=sdk.app_and_token, log_path=".")

    await sdk.call("data", "connect")
    await sdk.call("order", "connect")
    await sdk.call("data", "subscribe", [SBIN], "SymbolUpdate")
    await sdk.call("order", "subscribe", "OnOrders,OnTrades,OnPositions")
    assert simulator.data_socket.connections == simulator.order_socket.connections == 0
    await sdk.settle(lambda: simulator.data_socket.connections == 1)
    await sdk.settle(lambda: simulator.order_socket.connections == 1)
    await sdk.wait_for(says("Full Mode On"))
    await simulator.advance(30)
    simulator.exchange.place(an_order("s1"))

    assert await sdk.call("data", "is_connected")
    assert await sdk.call("order", "is_connected")
    assert [value for value in sdk.of("message") if "ltp" in value] == []
    assert sdk.of("orders") == sdk.of("trades") == []
    assert sdk.of("error") == sdk.of("order_error") == []


async def test_the_sdk_dials_without_end_when_its_credentials_are_refused(
    simulator: FyersSimulator, sdk: Sdk
) -> None:
    simulator.faults.inject("data_auth_refused", count=1_000)
    await sdk.make("data", access_token=sdk.app_and_token, log_path=".", reconnect_retry=2)

    await sdk.call("data", "connect")
    await sdk.settle(lambda: simulator.faults.fired["data_auth_refused"] >= 6)

    assert sdk.of("close") == []
    assert not any("abandoned" in line for line in sdk.printed)


async def test_the_sdk_gives_up_after_an_outage_and_tells_nobody(
    simulator: FyersSimulator, sdk: Sdk
) -> None:
    await connected(sdk, SBIN, reconnect_retry=2)

    await simulator.stop()
    await sdk.wait_for_text("Connection abandoned")

    assert sdk.of("close") == []
    assert await sdk.call("data", "is_connected") is False


@pytest.mark.parametrize("kind", ["data_mute", "data_half_open"])
async def test_the_sdk_does_not_notice_a_feed_that_has_gone_silent(
    simulator: FyersSimulator, sdk: Sdk, kind: FaultKind
) -> None:
    await connected(sdk, SBIN, NIFTY)
    ticks = len(sdk.of("message"))

    simulator.faults.inject(kind, seconds=3_600)
    await simulator.advance(900)

    assert await sdk.call("data", "is_connected")
    assert len(sdk.of("message")) == ticks
    assert sdk.of("error") == sdk.of("close") == []


@pytest.mark.parametrize("kind", ["data_unknown_topic", "data_unmapped_snapshot"])
async def test_one_strange_record_costs_the_sdk_the_rest_of_its_frame(
    simulator: FyersSimulator, sdk: Sdk, kind: FaultKind
) -> None:
    await connected(sdk, SBIN, NIFTY)

    simulator.faults.inject(kind)
    await simulator.set_price(SBIN, 822.5)
    await simulator.set_price(NIFTY, 25_100.0)

    await sdk.wait_for(is_tick(NIFTY, "if", ltp=25_100.0))
    assert simulator.faults.fired[kind] == 1
    assert 822.5 not in [value.get("ltp") for value in sdk.of("message")]


async def test_a_multiplier_of_zero_silences_a_symbol_of_the_sdk(
    simulator: FyersSimulator, sdk: Sdk
) -> None:
    await connected(sdk, NIFTY)
    simulator.faults.inject("data_zero_multiplier")

    await sdk.call("data", "subscribe", [SBIN], "SymbolUpdate")
    await sdk.settle(lambda: simulator.faults.fired["data_zero_multiplier"] == 1)
    await simulator.advance(10)
    await simulator.set_price(NIFTY, 25_100.0)

    await sdk.wait_for(is_tick(NIFTY, "if", ltp=25_100.0))
    assert [value for value in sdk.of("message") if value.get("symbol") == SBIN] == []


async def test_the_sdk_cannot_unsubscribe_what_it_subscribed_before_the_last_call(
    simulator: FyersSimulator, sdk: Sdk
) -> None:
    await connected(sdk, SBIN)
    await sdk.call("data", "subscribe", [NIFTY], "SymbolUpdate")
    await sdk.wait_for(is_tick(NIFTY, "if"))

    await sdk.call("data", "unsubscribe", [SBIN], "SymbolUpdate")

    refused = await sdk.wait_for(lambda event: event["event"] == "error")
    assert refused["value"]["message"] == "Please provide a valid symbol"
    await simulator.set_price(SBIN, 822.5)
    await sdk.wait_for(is_tick(SBIN, "sf", ltp=822.5))


async def test_a_second_socket_of_the_sdk_wipes_the_first(
    simulator: FyersSimulator, sdk: Sdk
) -> None:
    await connected(sdk, SBIN)

    await sdk.make("data", access_token=sdk.app_and_token, log_path=".")

    assert await sdk.call("data", "is_connected") is False
    assert simulator.data_socket.connections == 1


async def test_the_sdk_shows_a_volume_beyond_int32_as_negative(
    simulator: FyersSimulator, sdk: Sdk
) -> None:
    await connected(sdk, SBIN)

    simulator.market.quote(SBIN).volume = 3_000_000_000
    await simulator.set_price(SBIN, 822.5)

    tick = await sdk.wait_for(is_tick(SBIN, "sf", ltp=822.5))
    assert tick["value"]["vol_traded_today"] == 3_000_000_000 - 2**32


async def test_closing_the_order_socket_of_the_sdk_raises(
    simulator: FyersSimulator, sdk: Sdk
) -> None:
    await sdk.make("order", access_token=sdk.app_and_token, log_path=".")
    await sdk.call("order", "connect")
    await sdk.settle(lambda: simulator.order_socket.connections == 1)

    with pytest.raises(RuntimeError, match="join"):
        await sdk.call("order", "close_connection")


async def test_to_the_sdk_an_order_that_arrived_looks_like_any_other_failure(
    simulator: FyersSimulator, sdk: Sdk
) -> None:
    await sdk.make("model", client_id=simulator.account.app_id, token=simulator.token())
    simulator.faults.inject("unanswered", path="POST /api/v3/orders")
    simulator.faults.inject("server_error", path="GET /api/v3/funds")

    answer = await sdk.call("model", "place_order", data=an_order("s1"))
    funds = await sdk.call("model", "funds")

    assert answer == {"s": "error", "code": -99, "message": "Bad request"}
    assert simulator.portfolio.net(SBIN) == 1
    assert (funds["code"], funds["message"]) == (502, "Bad request")


async def test_the_async_sdk_cannot_read_single_orders(simulator: FyersSimulator, sdk: Sdk) -> None:
    await sdk.make("async_model", client_id=simulator.account.app_id, token=simulator.token())

    with pytest.raises(RuntimeError, match="subscriptable"):
        await sdk.call("async_model", "get_orders", data={"id": "1"})
