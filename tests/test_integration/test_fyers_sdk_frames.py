"""Every frame built by hand, through the official SDK's own encoder and decoder."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fyers_sdk import Sdk, is_tick, sdk_process

from daemon.brokers.fyers_simulator import FyersSimulator

pytestmark = pytest.mark.integration

FRAMES: dict[str, dict[str, Any]] = {
    frame["name"]: frame
    for frame in json.loads(
        (Path(__file__).parents[1] / "fixtures/fyers/golden_frames.json").read_text()
    )["frames"]
}
TOPICS = {"sf|nse_cm|3045": "NSE:SBIN-EQ", "if|nse_cm|Nifty 50": "NSE:NIFTY50-INDEX"}
SBIN, NIFTY = TOPICS.values()


@pytest.fixture
async def sdk(tmp_path: Path) -> AsyncIterator[Sdk]:
    async with FyersSimulator() as simulator, sdk_process(simulator, tmp_path) as sdk:
        await sdk.make("data", access_token="", log_path=".")
        await sdk.set("data", source="Sim-1.0", symbol_token=TOPICS | {"dp|nse_cm|3045": SBIN})
        yield sdk


async def test_the_sdk_writes_the_same_frames(sdk: Sdk) -> None:
    key = FRAMES["auth"]["means"]["hsm_key"]
    await sdk.set("data", _FyersDataSocket__hsm_token=key)
    topics = FRAMES["subscribe"]["means"]["topics"]

    async def written(builder: str, *arguments: Any) -> str:
        return str(await sdk.call("data", f"_FyersDataSocket__{builder}", *arguments))

    assert await written("access_token_msg") == FRAMES["auth"]["hex"]
    assert await written("ackowledgement_msg", 5) == FRAMES["ack_5"]["hex"]
    # From here on without the length in the head, which the SDK gets wrong.
    assert (await written("full_mode_msg"))[4:] == FRAMES["mode_full_ch11"]["hex"][4:]
    assert (await written("lite_mode_msg"))[4:] == FRAMES["mode_lite_ch11"]["hex"][4:]
    assert (await written("subscription_msg", topics))[4:] == FRAMES["subscribe"]["hex"][4:]
    assert (await written("unsubscription_msg", topics[:1]))[4:] == FRAMES["unsubscribe"]["hex"][4:]
    assert (await written("channel_pause_msg", 11))[4:] == FRAMES["pause_ch11"]["hex"][4:]
    assert (await written("channel_resume_msg", 11))[4:] == FRAMES["resume_ch11"]["hex"][4:]


async def test_the_sdk_reads_the_same_data(sdk: Sdk) -> None:
    for name in (
        "data_snapshots",
        "data_snapshot_depth",
        "data_updates",
        "data_update_short",
        "data_lite",
        "data_volume_wrap",
    ):
        await feed(sdk, name)

    first = (await sdk.wait_for(is_tick(SBIN, "sf")))["value"]
    record = FRAMES["data_snapshots"]["means"]["records"][0]
    names = {
        "ltp": "ltp", "vol_traded_today": "volume", "bid_price": "bid", "ask_price": "ask",
        "avg_trade_price": "atp", "low_price": "low", "high_price": "high",
        "open_price": "open", "prev_close_price": "prev_close", "exch_feed_time": "feed_time",
    }  # fmt: skip
    assert {name: first[name] for name in names} == {
        name: record[known] for name, known in names.items()
    }
    depth = (await sdk.wait_for(is_tick(SBIN, "dp")))["value"]
    levels = FRAMES["data_snapshot_depth"]["means"]["records"][0]
    for side, name in (("bids", "bid"), ("asks", "ask")):
        shown = [
            [depth[f"{name}_price{n}"], depth[f"{name}_size{n}"], depth[f"{name}_order{n}"]]
            for n in range(1, 6)
        ]
        assert shown == levels[side]
    ticks = [tick for tick in sdk.of("message") if "ltp" in tick]
    prices = [tick["ltp"] for tick in ticks if tick["symbol"] == SBIN]
    assert prices == [815.4, 815.45, 815.5, 815.55, 815.6]
    indices = [tick["ltp"] for tick in ticks if tick["symbol"] == NIFTY]
    assert indices == [25188.1, 25189.05, 25189.1]


async def test_the_sdk_reads_the_same_answers(sdk: Sdk) -> None:
    for name in FRAMES:
        if name.endswith(("_ok", "_ok_ack25", "_bad")) or name == "custom_symbol_limit":
            await feed(sdk, name)

    assert [(m["type"], m["s"]) for m in sdk.of("message")] == [
        ("cn", "ok"), ("sub", "ok"), ("unsub", "ok"), ("cp", "ok"), ("cr", "ok"), ("ful", "ok"),
    ]  # fmt: skip
    assert [(e["type"], e["code"]) for e in sdk.of("error")] == [
        ("cn", 11001),
        ("sub", 11011),
        ("sub", 51001),
    ]


async def feed(sdk: Sdk, name: str) -> None:
    """Give a frame to the SDK as if it had come from its socket."""
    await sdk.set("data", unsub_symbol=[])
    await sdk.call("data", "_FyersDataSocket__response_msg", {"hex": FRAMES[name]["hex"]})
