"""The simulated sockets, and everything that can be made to go wrong with them."""

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator
from datetime import date, time
from typing import Any

import aiohttp
import pytest

from daemon.brokers.fyers_simulator import (
    SCHEDULED,
    FaultKind,
    FyersSimulator,
    SimulatorSettings,
)
from daemon.brokers.fyers_simulator.faults import Faults, Schedule
from daemon.brokers.fyers_simulator.frames import FrameType, answer
from daemon.brokers.fyers_simulator.login import claims_of
from daemon.brokers.fyers_simulator.orders import Refusal

SBIN, NIFTY = "NSE:SBIN-EQ", "NSE:NIFTY50-INDEX"
SCRIP, INDEX, DEPTH = "sf|nse_cm|3045", "if|nse_cm|Nifty 50", "dp|nse_cm|3045"
CHANNEL = 11
WAIT_S = 20.0


class Feed:
    """A client of the data socket that keeps frames apart by their type."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket

    async def authenticate(self, token: str) -> bytes:
        key = claims_of(token)["hsm_key"].encode()
        fields = [(1, key), (2, b"P"), (3, b"\1"), (4, b"test")]
        await self.socket.send_bytes(answer(FrameType.AUTHENTICATE, fields))
        return await self.next()

    async def mode(self, letter: bytes) -> bytes:
        bits = struct.pack("!Q", 1 << CHANNEL)
        await self.socket.send_bytes(answer(FrameType.MODE, [(1, bits), (2, letter)]))
        return await self.next()

    async def channel(self, type_: int) -> bytes:
        bits = struct.pack("!Q", 1 << CHANNEL)
        await self.socket.send_bytes(answer(type_, [(1, bits)]))
        return await self.next()

    async def subscribe(self, *topics: str, type_: int = FrameType.SUBSCRIBE) -> bytes:
        listed = struct.pack("!H", len(topics))
        listed += b"".join(bytes([len(topic)]) + topic.encode() for topic in topics)
        await self.socket.send_bytes(answer(type_, [(1, listed), (2, bytes([CHANNEL]))]))
        return await self.next()

    async def next(self) -> bytes:
        message = await self.socket.receive(timeout=WAIT_S)
        assert message.type is aiohttp.WSMsgType.BINARY, message
        return bytes(message.data)

    async def waiting(self) -> list[bytes]:
        """Return the frames that have arrived, by asking for one more answer behind them."""
        await self.socket.send_bytes(answer(FrameType.RESUME, [(1, struct.pack("!Q", 1))]))
        frames = []
        while (frame := await self.next())[2] != FrameType.RESUME:
            frames.append(frame)
        return frames


@pytest.fixture
async def simulator() -> AsyncIterator[FyersSimulator]:
    async with FyersSimulator(SimulatorSettings(seed=5, limits=None)) as simulator:
        yield simulator


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def feed(simulator: FyersSimulator, session: aiohttp.ClientSession) -> AsyncIterator[Feed]:
    """A connection that is authenticated and has subscribed to one share."""
    async with session.ws_connect(simulator.urls.data_socket) as socket:
        feed = Feed(socket)
        await feed.authenticate(simulator.token())
        assert (await feed.subscribe(SCRIP))[-1:] == b"K"
        assert (await feed.next())[9:10] == b"S"
        yield feed


def message_numbers(frames: list[bytes]) -> list[int]:
    return [int.from_bytes(frame[3:7]) for frame in frames]


async def test_a_wrong_key_is_refused_and_the_connection_closed(
    simulator: FyersSimulator, session: aiohttp.ClientSession
) -> None:
    token = simulator.token()
    simulator.desk.revoke_all()
    async with session.ws_connect(simulator.urls.data_socket) as socket:
        reply = await Feed(socket).authenticate(token)

        assert reply[7:8] == b"N"
        assert (await socket.receive(timeout=WAIT_S)).type is aiohttp.WSMsgType.CLOSE


async def test_a_ping_may_come_first_and_lengths_do_not_matter(
    simulator: FyersSimulator, session: aiohttp.ClientSession
) -> None:
    async with session.ws_connect(simulator.urls.data_socket) as socket:
        await socket.send_bytes(b"\0\1\x0b")
        reply = await Feed(socket).authenticate(simulator.token())

        assert (reply[7:8], reply[-4:]) == (b"K", (25).to_bytes(4))


async def test_a_second_connection_is_refused_while_one_is_open(
    simulator: FyersSimulator, session: aiohttp.ClientSession, feed: Feed
) -> None:
    async with session.ws_connect(simulator.urls.data_socket) as socket:
        reply = await Feed(socket).authenticate(simulator.token())

    assert reply[7:8] == b"N"
    assert simulator.data_socket.refused == 1
    await simulator.advance(1)
    assert len(await feed.waiting()) == 1


async def test_an_unknown_topic_is_answered_with_silence(
    simulator: FyersSimulator, feed: Feed
) -> None:
    reply = await feed.subscribe("sf|nse_cm|99999999")

    assert reply[-1:] == b"K"
    assert await feed.waiting() == []


async def test_updates_carry_what_changed_and_number_their_frames(
    simulator: FyersSimulator, feed: Feed
) -> None:
    await simulator.set_price(SBIN, 822.5)
    await simulator.advance(2)

    frames = await feed.waiting()

    assert message_numbers(frames) == [2, 3, 4]
    assert [frame[9:10] for frame in frames] == [b"U"] * 3
    assert struct.unpack("!i", frames[0][13:17]) == (82_250,)


async def test_a_paused_channel_is_silent_until_it_is_resumed(
    simulator: FyersSimulator, feed: Feed
) -> None:
    assert (await feed.channel(FrameType.PAUSE))[2] == FrameType.PAUSE
    await simulator.advance(3)
    assert await feed.waiting() == []

    await feed.channel(FrameType.RESUME)
    await simulator.advance(1)

    assert len(await feed.waiting()) == 1


async def test_lite_mode_sends_the_last_price_alone_but_depth_in_full(
    simulator: FyersSimulator, feed: Feed
) -> None:
    await feed.mode(b"L")
    await feed.subscribe(DEPTH)
    await feed.next()

    await simulator.set_price(SBIN, 822.5)

    records = (await feed.waiting())[0][9:]
    assert records[:1] == b"L"
    assert struct.unpack("!i", records[3:7]) == (82_250,)
    assert records[7:8] == b"U"


async def test_an_unsubscribed_topic_is_no_longer_sent(
    simulator: FyersSimulator, feed: Feed
) -> None:
    await feed.subscribe(SCRIP, type_=FrameType.UNSUBSCRIBE)

    await simulator.advance(2)

    assert await feed.waiting() == []


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        ("data_drop", [3, 4, 5, 6]),
        ("data_repeat", [2, 2, 3, 4, 5, 6]),
        ("data_reorder", [3, 2, 4, 5, 6]),
        ("data_late", [3, 4, 5, 2, 6]),
    ],
)
async def test_frames_are_lost_repeated_reordered_and_late(
    simulator: FyersSimulator, feed: Feed, kind: FaultKind, numbers: list[int]
) -> None:
    simulator.faults.inject(kind)

    await simulator.advance(5)

    assert message_numbers(await feed.waiting()) == numbers


async def test_a_mute_feed_answers_but_sends_no_data_until_it_is_over(
    simulator: FyersSimulator, feed: Feed
) -> None:
    simulator.faults.inject("data_mute", seconds=10)
    await simulator.advance(9)
    assert await feed.waiting() == []

    await simulator.advance(2)

    assert len(await feed.waiting()) == 2


async def test_a_half_open_connection_is_dead_and_still_counts_as_open(
    simulator: FyersSimulator, session: aiohttp.ClientSession, feed: Feed
) -> None:
    simulator.faults.inject("data_half_open", seconds=30)
    await simulator.advance(1)
    await feed.socket.ping()
    with pytest.raises(asyncio.TimeoutError):
        await feed.socket.receive(timeout=0.2)

    async with session.ws_connect(simulator.urls.data_socket) as second:
        assert (await Feed(second).authenticate(simulator.token()))[7:8] == b"N"
    await simulator.advance(30)
    async with asyncio.timeout(WAIT_S):
        while simulator.data_socket.connections:  # noqa: ASYNC110  nothing tells of it
            await asyncio.sleep(0.01)
    async with session.ws_connect(simulator.urls.data_socket) as third:
        assert (await Feed(third).authenticate(simulator.token()))[7:8] == b"K"


async def test_a_connection_can_be_cut_in_the_middle_of_a_frame(
    simulator: FyersSimulator, feed: Feed
) -> None:
    simulator.faults.inject("data_abort")

    await simulator.advance(1)

    message = await feed.socket.receive(timeout=WAIT_S)
    assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)


@pytest.mark.parametrize(
    ("kind", "reply"),
    [("data_subscribe_refused", b"N"), ("data_symbol_limit", b"\4")],
)
async def test_a_subscription_can_be_refused(
    simulator: FyersSimulator, feed: Feed, kind: FaultKind, reply: bytes
) -> None:
    simulator.faults.inject(kind)

    assert (await feed.subscribe(INDEX))[-1:] == reply
    assert await feed.waiting() == []


async def test_an_upgrade_can_be_refused_and_an_authentication_followed_by_a_close(
    simulator: FyersSimulator, session: aiohttp.ClientSession
) -> None:
    simulator.faults.inject("data_refused")
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await session.ws_connect(simulator.urls.data_socket)
    assert refused.value.status == 403

    simulator.faults.inject("data_close_after_auth")
    async with session.ws_connect(simulator.urls.data_socket) as socket:
        assert (await Feed(socket).authenticate(simulator.token()))[7:8] == b"K"
        assert (await socket.receive(timeout=WAIT_S)).type is aiohttp.WSMsgType.CLOSE


async def test_at_six_in_the_morning_tokens_die_and_sockets_close(
    simulator: FyersSimulator, feed: Feed
) -> None:
    token = simulator.token()

    await simulator.move_to(simulator.now_ns + 20 * 3600 * 10**9, step_s=3_600)

    with pytest.raises(Exception, match="expired"):
        simulator.desk.check(token)
    while (message := await feed.socket.receive(timeout=WAIT_S)).type is aiohttp.WSMsgType.BINARY:
        pass
    assert message.type is aiohttp.WSMsgType.CLOSE
    simulator.desk.check(simulator.token())


async def test_a_client_that_does_not_read_holds_up_nobody(
    simulator: FyersSimulator, feed: Feed, session: aiohttp.ClientSession
) -> None:
    await feed.subscribe(*list(simulator.market.master.by_topic)[:200])

    async with asyncio.timeout(60):
        await simulator.advance(60)
        async with session.get(f"{simulator.urls.public}/NSE_CM.csv") as response:
            assert response.status == 200


# The order socket.


def an_order(**changes: Any) -> dict[str, Any]:
    order = {
        "symbol": SBIN, "qty": 1, "type": 2, "side": 1, "productType": "INTRADAY",
        "limitPrice": 0, "stopPrice": 0, "validity": "DAY", "disclosedQty": 0,
        "offlineOrder": False,
    }  # fmt: skip
    return order | changes


@pytest.fixture
async def events(
    simulator: FyersSimulator, session: aiohttp.ClientSession
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """An order socket that has asked for everything."""
    headers = {"authorization": f"{simulator.account.app_id}:{simulator.token()}"}
    async with session.ws_connect(simulator.urls.order_socket, headers=headers) as socket:
        asked = {"T": "SUB_ORD", "SLIST": ["orders", "trades", "positions"], "SUB_T": 1}
        await socket.send_str(json.dumps(asked))
        assert (await socket.receive_json(timeout=WAIT_S))["code"] == 1605
        yield socket


async def heard(socket: aiohttp.ClientWebSocketResponse) -> list[str]:
    """Return the kinds of the events that have arrived; orders with their status."""
    await socket.send_str("ping")
    kinds: list[str] = []
    while (text := await socket.receive_str(timeout=WAIT_S)) != "pong":
        event = json.loads(text)
        kind = next(key for key in event if key != "s")
        kinds.append(f"order {event[kind]['org_ord_status']}" if kind == "orders" else kind[:-1])
    return kinds


async def test_an_order_is_told_of_step_by_step(
    simulator: FyersSimulator, events: aiohttp.ClientWebSocketResponse
) -> None:
    simulator.exchange.place(an_order(), source="W")

    assert await heard(events) == ["order 4", "order 6", "trade", "order 2", "position"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("order_drop", ["order 6", "trade", "order 2", "position"]),
        ("order_repeat", ["order 4", "order 4", "order 6", "trade", "order 2", "position"]),
        ("order_reorder", ["order 6", "order 4", "trade", "order 2", "position"]),
        ("order_late", ["order 6", "trade", "order 2", "order 4", "position"]),
        ("order_missing_fill", ["order 4", "order 6"]),
    ],
)
async def test_events_are_lost_repeated_reordered_and_late(
    simulator: FyersSimulator,
    events: aiohttp.ClientWebSocketResponse,
    kind: FaultKind,
    expected: list[str],
) -> None:
    simulator.faults.inject(kind)

    order = simulator.exchange.place(an_order())

    assert await heard(events) == expected
    assert order.filled == 1


async def test_a_bad_token_is_refused_at_the_upgrade(
    simulator: FyersSimulator, session: aiohttp.ClientSession
) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await session.ws_connect(simulator.urls.order_socket, headers={"authorization": "a:b"})

    assert refused.value.status == 403


# Faults as such.


def test_a_schedule_repeats_itself_by_seed() -> None:
    def drawn(seed: int) -> list[Any]:
        return Schedule(seed, SCHEDULED, 5.0, 0).due(3_600 * 10**9)

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert 500 < len(drawn(1)) < 1_000
    assert {fault.kind for fault in drawn(1)} == set(SCHEDULED)


def test_a_fault_fires_as_often_and_where_it_was_told_to() -> None:
    faults = Faults()
    faults.inject("server_error", count=2, after=1, path="POST /api/v3/orders")

    fired = [
        faults.take("server_error", where) is not None
        for where in ("GET /api/v3/funds", *["POST /api/v3/orders/sync"] * 4)
    ]

    assert fired == [False, False, True, True, False]
    assert faults.fired["server_error"] == 2
    assert faults.armed == []


def test_an_unknown_fault_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no fault 'gremlins'"):
        Faults().inject("gremlins")  # type: ignore[arg-type]


async def test_an_expired_token_is_refused_until_the_next_login(
    simulator: FyersSimulator, session: aiohttp.ClientSession
) -> None:
    token = simulator.token()

    simulator.faults.inject("token_expired")

    headers = {"Authorization": f"{simulator.account.app_id}:{token}"}
    async with session.get(f"{simulator.urls.api}/funds", headers=headers) as response:
        answer_ = await response.json()
        assert (response.status, answer_["code"]) == (401, -8)
    simulator.desk.check(simulator.token())


async def test_a_changed_session_closes_the_exchange_early(simulator: FyersSimulator) -> None:
    resting = simulator.exchange.place(an_order(type=1, limitPrice=800.0))
    simulator.faults.inject("session_changed", seconds=60)
    await simulator.advance(59)
    assert resting in simulator.exchange.pending

    await simulator.advance(2)

    assert resting not in simulator.exchange.pending
    assert not simulator.hours.is_open("NSE", simulator.now_ns)


def test_a_day_can_be_made_a_holiday(simulator: FyersSimulator) -> None:
    simulator.change_session(date(2026, 11, 25), None)
    assert simulator.hours.span_ns("NSE", simulator.now_ns) is None

    simulator.change_session(date(2026, 11, 25), (time(9), time(12)))
    assert simulator.hours.is_open("NSE_CASH", simulator.now_ns)


async def test_the_control_calls_do_what_the_object_does(
    simulator: FyersSimulator, session: aiohttp.ClientSession
) -> None:
    control = simulator.urls.control
    body = {"kind": "server_error", "count": 2}
    async with session.post(f"{control}/faults", json=body) as response:
        assert response.status == 200
    assert [fault.count for fault in simulator.faults.armed] == [2]
    async with session.post(f"{control}/faults", json={"kind": "gremlins"}) as response:
        assert response.status == 400
    async with session.post(f"{control}/price", json={"symbol": "NSE:NOPE-EQ"}) as response:
        assert response.status == 400
    async with session.delete(f"{control}/faults") as response:
        assert response.status == 200
    assert simulator.faults.armed == []
    async with session.post(f"{control}/advance", json={"seconds": 5}) as response:
        assert (await response.json())["now"] == "2026-11-25T10:00:05+05:30"
    body = {"symbol": SBIN, "price": 820.0}
    async with session.post(f"{control}/price", json=body) as response:
        assert response.status == 200
    assert simulator.market.quote(SBIN).last == 820_00


async def test_under_all_faults_the_simulator_itself_keeps_its_books(
    simulator: FyersSimulator, feed: Feed, events: aiohttp.ClientWebSocketResponse
) -> None:
    simulator.follow_faults("all", seed=4, mean_gap_s=1.0)
    asked = 0

    for number in range(40):
        await simulator.advance(2)
        side = 1 if number % 3 else -1
        with contextlib.suppress(Refusal):  # rejected on command
            asked += side * simulator.exchange.place(an_order(side=side)).quantity

    assert simulator.portfolio.net(SBIN) == asked
    assert sum(trade.order.side * trade.quantity for trade in simulator.exchange.trades) == asked
    assert len(simulator.faults.fired) > 10
