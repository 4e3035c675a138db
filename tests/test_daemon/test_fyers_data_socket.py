"""Our data socket against the simulator, healthy and in the ways that the SDK does not survive."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import replace
from decimal import Decimal
from random import Random
from typing import Any

import aiohttp
import pytest

from actors.depth import imbalance
from actors.messages import Alert, Depth, Tick
from daemon.brokers.fyers.data_socket import DataSocket
from daemon.brokers.fyers.reconnecting import SocketTimes
from daemon.brokers.fyers_simulator import FaultKind, FyersSimulator, SimulatorSettings
from daemon.brokers.fyers_simulator.login import claims_of
from daemon.clock import SystemClock
from daemon.errors import BrokerRejected, ConfigError, LoginNeeded, TooManyCalls, TraderError

SBIN, NIFTY = "NSE:SBIN-EQ", "NSE:NIFTY50-INDEX"
TOPICS = {"sf|nse_cm|3045": SBIN, "if|nse_cm|Nifty 50": NIFTY}
# Only what a test is about may end a connection, and not a machine that is busy for a moment.
CALM = SocketTimes(
    connect_s=30.0, ping_s=30.0, silence_s=30.0, first_delay_s=0.01, longest_delay_s=0.05
)
QUICK = SocketTimes(
    connect_s=0.5, ping_s=0.2, silence_s=0.5, first_delay_s=0.01, longest_delay_s=0.05
)
PATIENCE_S = 30.0


class Feed:
    """A simulated market that runs, and a data socket to read it with."""

    def __init__(self, simulator: FyersSimulator, http: aiohttp.ClientSession) -> None:
        self.simulator = simulator
        self._http = http
        self.keys = 0
        self.problems: list[TraderError | None] = []  # of the next questions for a key
        self.alerts: list[Alert] = []
        self.books: list[Depth] = []

    async def _keep(self, depth: Depth) -> None:
        self.books.append(depth)

    def socket(
        self,
        *,
        with_depth: bool = False,
        is_open: Callable[[int], bool] = lambda _: True,
        topics: Mapping[str, str] = TOPICS,
        times: SocketTimes = CALM,
    ) -> DataSocket:
        async def session_key() -> str:
            self.keys += 1
            if self.problems and (problem := self.problems.pop(0)) is not None:
                raise problem
            return str(claims_of(self.simulator.token())["hsm_key"])

        async def resolve() -> Mapping[str, str]:
            return topics

        return DataSocket(
            self.simulator.urls.data_socket,
            self._http,
            session_key=session_key,
            resolve=resolve,
            is_open=is_open,
            clock=SystemClock(),
            random=Random(1),
            times=times,
            on_alert=self.alerts.append,
            on_depth=self._keep if with_depth else None,
        )

    async def read(self, socket: DataSocket, enough: Callable[[list[Tick]], bool]) -> list[Tick]:
        """Read while market time passes, until there is enough."""
        ticks: list[Tick] = []
        market = asyncio.create_task(self._run())
        try:
            async with asyncio.timeout(PATIENCE_S), aclosing(socket.ticks()) as stream:
                async for tick in stream:
                    ticks.append(tick)
                    if enough(ticks):
                        return ticks
        finally:
            market.cancel()
        raise AssertionError("the stream has ended")

    async def _run(self) -> None:
        while True:
            await self.simulator.advance(1)
            await asyncio.sleep(0.02)


@pytest.fixture
async def feed() -> AsyncIterator[Feed]:
    settings = SimulatorSettings(seed=3, limits=None, ack_every=2)
    async with FyersSimulator(settings) as simulator, aiohttp.ClientSession() as http:
        yield Feed(simulator, http)


def several_of_both(ticks: list[Tick]) -> bool:
    names = [tick.instrument for tick in ticks]
    return min(names.count(SBIN), names.count(NIFTY)) >= 5


async def test_ticks_are_those_of_the_market(feed: Feed) -> None:
    socket = feed.socket()

    ticks = await feed.read(socket, several_of_both)

    assert {tick.instrument for tick in ticks} == {SBIN, NIFTY}
    share = next(tick for tick in ticks if tick.instrument == SBIN)
    assert share.bid is not None
    assert share.ask is not None
    assert Decimal(0) < share.bid <= share.ask
    for symbol in (SBIN, NIFTY):
        times = [tick.event_ns for tick in ticks if tick.instrument == symbol]
        assert times == sorted(times)
    assert socket.state == "live"
    assert socket.connections == 1


async def test_frames_are_acknowledged_as_the_server_asks(feed: Feed) -> None:
    await feed.read(feed.socket(), several_of_both)

    assert feed.simulator.data_socket.acknowledged > 0


@pytest.mark.parametrize(
    ("fault", "more"),
    [
        ("data_slow_handshake", {"seconds": 1.0}),  # the SDK then says connected, and is mute
        ("data_auth_refused", {}),  # the SDK then connects for ever, with the key it has
        ("data_close_after_auth", {}),
        ("data_refused", {}),
        ("data_abort", {"after": 4}),
        ("data_mute", {"after": 4, "seconds": 1e6}),  # the SDK does not notice
        ("data_subscribe_refused", {}),
    ],
)
async def test_ticks_flow_again_over_a_new_connection(
    feed: Feed, fault: FaultKind, more: dict[str, Any]
) -> None:
    feed.simulator.faults.inject(fault, **more)
    socket = feed.socket(times=QUICK)

    def is_back(ticks: list[Tick]) -> bool:
        return feed.keys >= 2 and several_of_both(ticks[-20:])

    await feed.read(socket, is_back)

    assert feed.simulator.faults.fired[fault] == 1
    assert socket.state == "live"


@pytest.mark.parametrize(
    "fault", ["data_unknown_topic", "data_unmapped_snapshot", "data_unknown_record"]
)
async def test_a_strange_record_costs_no_connection(feed: Feed, fault: FaultKind) -> None:
    feed.simulator.faults.inject(fault, after=2)
    socket = feed.socket()

    def is_past(ticks: list[Tick]) -> bool:
        return feed.simulator.faults.fired[fault] == 1 and several_of_both(ticks[-20:])

    await feed.read(socket, is_past)

    assert socket.connections == 1


async def test_a_lost_snapshot_costs_the_connection_since_nothing_after_it_can_be_read(
    feed: Feed,
) -> None:
    feed.simulator.faults.inject("data_drop")  # the first frame: the snapshots of all
    socket = feed.socket(times=QUICK)

    await feed.read(socket, several_of_both)

    assert socket.connections >= 2
    assert socket.problem
    assert feed.alerts == []


async def test_one_lost_snapshot_of_several_costs_the_connection(feed: Feed) -> None:
    socket = feed.socket(topics=TOPICS | {"sf|nse_cm|99999": "NSE:NOBODY-EQ"}, times=QUICK)
    # No snapshot comes of NOBODY, as a frame about something unknown tells.
    feed.simulator.faults.inject("data_unknown_topic", after=60, count=10_000)

    def left(ticks: list[Tick]) -> bool:
        prices = {tick.instrument for tick in ticks}
        return len(prices) > 1 and "no snapshot has come of NSE:NOBODY-EQ" in socket.problem

    await feed.read(socket, left)


async def test_a_closed_market_may_be_silent(feed: Feed) -> None:
    times = replace(CALM, ping_s=0.1, silence_s=0.2)
    socket = feed.socket(is_open=lambda _: False, times=times)
    async with aclosing(socket.ticks()) as stream:
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        for _ in range(3):
            await asyncio.wait({waiting}, timeout=2 * times.silence_s)
            if waiting.done():  # the rest of the snapshots
                waiting = asyncio.ensure_future(anext(stream))
        waiting.cancel()
        await asyncio.wait({waiting})

    assert socket.connections == 1
    assert socket.silent(0) == []


async def test_a_symbol_without_a_record_is_named_silent(feed: Feed) -> None:
    socket = feed.socket(topics={**TOPICS, "sf|nse_cm|999999": "NSE:NOBODY-EQ"})

    await feed.read(socket, several_of_both)

    assert "NSE:NOBODY-EQ" in socket.silent(0.0)


async def test_a_missing_login_is_told_once_and_tried_again_until_there_is_one(feed: Feed) -> None:
    feed.problems = [LoginNeeded("run hrm-trader login")] * 3

    await feed.read(feed.socket(), several_of_both)

    assert feed.keys == 4
    (alert,) = feed.alerts
    assert (alert.severity, alert.runbook) == ("critical", "Feed refused")
    assert "hrm-trader login" in alert.text


async def test_a_used_up_budget_of_calls_is_waited_for_without_an_alert(feed: Feed) -> None:
    feed.problems = [TooManyCalls("the next one may go in 9 s")] * 2

    await feed.read(feed.socket(), several_of_both)

    assert feed.keys == 3
    assert feed.alerts == []


@pytest.mark.parametrize(
    "problem", [BrokerRejected("no such symbol: NSE:NOBODY-EQ"), ConfigError("key can be read")]
)
async def test_what_no_waiting_mends_ends_a_feed_that_never_flowed(
    feed: Feed, problem: TraderError
) -> None:
    feed.problems = [problem]

    with pytest.raises(type(problem), match=str(problem)):
        await feed.read(feed.socket(), several_of_both)

    assert [alert.runbook for alert in feed.alerts] == ["Feed refused"]


async def test_a_feed_that_has_flowed_outlives_a_refused_symbol(feed: Feed) -> None:
    feed.problems = [None, *[BrokerRejected("no such symbol")] * 2, None, ConfigError("no key")]
    feed.simulator.faults.inject("data_abort", after=6)
    feed.simulator.faults.inject("data_abort", after=20)
    socket = feed.socket()

    await feed.read(socket, lambda ticks: feed.keys == 6 and several_of_both(ticks[-20:]))

    assert [alert.text for alert in feed.alerts] == [
        "no market data: no such symbol",
        "no market data: no key",
    ]


# Order books


async def test_books_come_among_the_ticks_of_all_but_an_index(feed: Feed) -> None:
    socket = feed.socket(with_depth=True)
    before_ns = SystemClock().now_ns()

    await feed.read(socket, lambda ticks: several_of_both(ticks) and len(feed.books) > 3)

    assert socket.topics == len(TOPICS) + 1
    assert {book.instrument for book in feed.books} == {SBIN}
    for book in feed.books:
        assert (len(book.bids), len(book.asks)) == (5, 5)
        assert [level.price for level in book.bids] == sorted(
            {level.price for level in book.bids}, reverse=True
        )
        assert [level.price for level in book.asks] == sorted(level.price for level in book.asks)
        assert all(level.orders > 0 for level in (*book.bids, *book.asks))
        assert imbalance(book) is not None
    times = [book.received_ns for book in feed.books]
    assert before_ns <= times[0]
    assert times == sorted(times)


async def test_without_a_reader_no_book_is_asked_for(feed: Feed) -> None:
    socket = feed.socket()
    asked: list[int] = []

    def enough(ticks: list[Tick]) -> bool:
        asked.append(feed.simulator.data_socket.subscriptions)
        return several_of_both(ticks)

    await feed.read(socket, enough)

    assert socket.topics == asked[-1] == len(TOPICS)


async def test_prices_come_without_books_where_those_are_refused(feed: Feed) -> None:
    feed.simulator.faults.inject("data_subscribe_refused", after=1)  # the second request
    feed.simulator.faults.inject("data_unknown_topic", after=60)
    socket = feed.socket(with_depth=True)

    def is_past(ticks: list[Tick]) -> bool:
        is_strange = feed.simulator.faults.fired["data_unknown_topic"] == 1
        return is_strange and socket.topics == len(TOPICS) and several_of_both(ticks[-20:])

    await feed.read(socket, is_past)

    assert (socket.connections, feed.books) == (1, [])


async def test_prices_come_without_books_where_those_exceed_the_plan(feed: Feed) -> None:
    feed.simulator.faults.inject("data_symbol_limit", after=1)
    socket = feed.socket(with_depth=True)

    def enough(ticks: list[Tick]) -> bool:
        return socket.topics == len(TOPICS) and several_of_both(ticks)

    await feed.read(socket, enough)

    assert (socket.connections, feed.books) == (1, [])


async def test_books_come_again_over_a_new_connection(feed: Feed) -> None:
    feed.simulator.faults.inject("data_abort", after=8)
    socket = feed.socket(with_depth=True)
    before: list[int] = []

    def is_back(ticks: list[Tick]) -> bool:
        if socket.connections >= 2 and not before:
            before.append(len(feed.books))
        return bool(before) and len(feed.books) > before[0] + 3

    await feed.read(socket, is_back)

    assert socket.state == "live"


async def test_the_lost_snapshot_of_a_book_costs_the_connection(feed: Feed) -> None:
    del feed.simulator.market.master.by_topic["dp|nse_cm|3045"]  # no snapshot comes of the book
    feed.simulator.faults.inject("data_unknown_topic", count=10_000)
    socket = feed.socket(with_depth=True, times=QUICK)

    def left(_: list[Tick]) -> bool:
        return f"no snapshot has come of the book of {SBIN}" in socket.problem

    await feed.read(socket, left)

    assert feed.books == []


@pytest.mark.parametrize(("failures", "least", "most"), [(0, 0.25, 0.5), (3, 2, 4), (99, 30, 60)])
def test_waits_double_up_to_a_cap_and_differ(failures: int, least: float, most: float) -> None:
    random = Random(5)

    delays = {SocketTimes().delay_s(failures, random) for _ in range(50)}

    assert len(delays) == 50
    assert least <= min(delays) <= max(delays) <= most
