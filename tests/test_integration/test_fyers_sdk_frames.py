"""Every frame built by hand, through the official SDK's own encoder and decoder."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fyers_sdk import Sdk, is_tick, sdk_process

from daemon.brokers.fyers_simulator import FyersSimulator, frames

pytestmark = pytest.mark.integration

FRAMES: dict[str, dict[str, Any]] = {
    frame["name"]: frame
    for frame in json.loads(
        (Path(__file__).parents[1] / "fixtures/fyers/golden_frames.json").read_text()
    )["frames"]
}
TOPICS = {"sf|nse_cm|3045": "NSE:SBIN-EQ", "if|nse_cm|Nifty 50": "NSE:NIFTY50-INDEX"}
SBIN, NIFTY = TOPICS.values()

# Fields as the SDK names them: "=" for those that are no prices, "*" for those it hides.
SCRIP = [
    "ltp", "=vol_traded_today", "=last_traded_time", "=exch_feed_time", "=bid_size",
    "=ask_size", "bid_price", "ask_price", "=last_traded_qty", "=tot_buy_qty", "=tot_sell_qty",
    "avg_trade_price", "*OI", "low_price", "high_price", "*Yhigh", "*Ylow", "*lower_ckt",
    "*upper_ckt", "open_price", "prev_close_price",
]  # fmt: skip
INDEX = ["ltp", "prev_close_price", "=exch_feed_time", "high_price", "low_price", "open_price"]
DEPTH = [
    f"{mark}{side}_{what}{level}"
    for mark, what in (("", "price"), ("=", "size"), ("=", "order"))
    for side in ("bid", "ask")
    for level in range(1, 6)
]


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


async def test_the_sdk_follows_whatever_is_sent_to_the_last_field(sdk: Sdk) -> None:
    draw = Random(7)
    topics = {101: ("sf|nse_cm|3045", SCRIP), 102: ("if|nse_cm|Nifty 50", INDEX)}
    topics[103] = ("dp|nse_cm|3045", DEPTH)
    state: dict[int, list[int | None]] = {}
    expected: list[dict[str, Any]] = []

    for number in range(150):
        id_ = draw.choice(list(topics))
        topic, names = topics[id_]
        before = state.get(id_)
        if before is None or draw.random() < 0.1:
            values: list[int | None] = [draw.randrange(1, 10**6) for _ in names]
            record = frames.snapshot(id_, topic, values, names=("nse_cm", "1", "X"))
        elif topic.startswith("dp") or draw.random() < 0.8:
            moves = [draw.randrange(1, 10**6) if draw.random() < 0.2 else old for old in before]
            record = frames.update(id_, frames.changed(before, moves))
            values = list(moves)
        else:
            values = [draw.randrange(1, 10**6), *before[1:]]
            record = frames.lite(id_, values[0] or 0)
        if values != before or record[:1] == b"S":
            expected.append(shown(topic, names, values))
        state[id_] = values
        await feed_bytes(sdk, frames.data_frame(number + 1, [record]))

    ticks = [{name: tick[name] for name in kept} for tick, kept in paired(sdk, expected)]
    assert ticks == expected


def paired(sdk: Sdk, expected: list[dict[str, Any]]) -> list[tuple[Any, list[str]]]:
    """Return the SDK's ticks, each with the names of the fields to compare."""
    ticks = sdk.of("message")
    assert len(ticks) == len(expected)
    return [(tick, list(wanted)) for tick, wanted in zip(ticks, expected, strict=True)]


def shown(topic: str, names: list[str], values: list[int | None]) -> dict[str, Any]:
    """Return what the SDK shows of the values of a topic."""
    fields = {
        name.removeprefix("="): value if name.startswith("=") else (value or 0) / 100
        for name, value in zip(names, values, strict=True)
        if not name.startswith("*")
    }
    return fields | {"type": topic[:2]}


async def feed(sdk: Sdk, name: str) -> None:
    """Give a frame to the SDK as if it had come from its socket."""
    await sdk.set("data", unsub_symbol=[])
    await feed_bytes(sdk, bytes.fromhex(FRAMES[name]["hex"]))


async def feed_bytes(sdk: Sdk, frame: bytes) -> None:
    """Give bytes to the SDK as if they had come from its socket."""
    await sdk.call("data", "_FyersDataSocket__response_msg", {"hex": frame.hex()})
