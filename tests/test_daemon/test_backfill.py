"""What the feed did not carry: noticed, asked of history, put among the ticks."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import aiohttp
import pytest
from builders import MINUTE_NS, OPEN_NS, SECOND_NS, a_calendar, a_catalogue, a_tick
from fyers_account import AMPLE, QUICK

from actors.market_feed import MarketFeedActor
from actors.messages import Alert, Bar, FeedGap, MarketEvent, OptionChain, PastBar, Tick, TimeEvent
from actors.policies import FeedSettings
from daemon.backfill import Backfill, Candle
from daemon.brokers.fyers.data_socket import DataSocket
from daemon.brokers.fyers.ledger import RateLedger
from daemon.brokers.fyers.past_candles import PastCandles
from daemon.brokers.fyers.reconnecting import SocketTimes
from daemon.brokers.fyers.rest import FyersRest, simulated
from daemon.brokers.fyers_simulator import FaultKind, FyersSimulator, SimulatorSettings
from daemon.brokers.fyers_simulator.login import claims_of
from daemon.clock import SimulatedClock, SystemClock
from daemon.errors import BrokerUnavailable
from daemon.settings import load_sessions

BAR_NS = 5 * MINUTE_NS
DAY_NS = 1440 * MINUTE_NS
# While the socket waits for a sign of life, minutes of market time pass.
PATIENT = SocketTimes(
    connect_s=10.0, ping_s=0.4, silence_s=0.8, first_delay_s=0.01, longest_delay_s=0.05
)
Known = TypeVar("Known")
NIFTY = "NSE:NIFTY50-INDEX"


def a_candle(number: int, day: int = 0, volume: int = 0) -> Candle:
    price = Decimal(22000 + number)
    open_ns = OPEN_NS + day * DAY_NS + number * BAR_NS
    return Candle(open_ns, price, price, price, price, volume)


class History:
    """Answers questions for candles, or fails."""

    def __init__(self, *answers: list[Candle] | BrokerUnavailable) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[int, int]] = []

    async def ask(
        self, _instrument: str, _timeframe: str, first_ns: int, end_ns: int
    ) -> list[Candle]:
        self.asked.append((first_ns, end_ns))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BrokerUnavailable):
            raise answer
        return [one for one in answer if first_ns <= one.open_ns < end_ns]


class Bench:
    """A backfill on a clock that stands still, and all that it puts."""

    def __init__(self, history: History, *, now_ns: int = OPEN_NS, **settings: Any) -> None:
        self.events: list[MarketEvent] = []
        self.alerts: list[Alert] = []
        self.clock = SimulatedClock(now_ns)
        self._ticks: asyncio.Queue[Tick | None] = asyncio.Queue()
        given: dict[str, Any] = {"warm_up_bars": 0}
        self.backfill = Backfill(
            {"Nifty": "5"},
            a_catalogue(),
            a_calendar(),
            history.ask,
            self._put,
            clock=self.clock,
            on_alert=self.alerts.append,
            **(given | settings),
        )

    async def _put(self, event: MarketEvent) -> None:
        self.events.append(event)

    async def _source(self) -> AsyncIterator[Tick]:
        while (tick := await self._ticks.get()) is not None:
            yield tick

    async def read(self) -> None:
        async for tick in self.backfill.watched(self._source()):
            self.events.append(tick)

    async def tick(self, at_ns: int) -> None:
        self.clock.advance_to(max(at_ns, self.clock.now_ns()))
        self._ticks.put_nowait(a_tick(at_ns=at_ns))
        await self.settle()

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.events]

    def opened(self) -> list[int]:
        """Return the numbers of the candles that were told."""
        return [(e.open_ns - OPEN_NS) // BAR_NS for e in self.events if isinstance(e, PastBar)]


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Bench]:
    tasks = [asyncio.create_task(bench.read()), asyncio.create_task(bench.backfill.run())]
    await bench.settle()
    try:
        yield bench
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_ticks_without_a_gap_are_passed_on_and_nothing_is_asked() -> None:
    history = History([])
    async with running(Bench(history)) as bench:
        for number in range(4):
            await bench.tick(OPEN_NS + number * BAR_NS)

        assert bench.kinds() == ["FeedGap", "Tick", "Tick", "Tick", "Tick"]  # the start is a gap
        assert history.asked == []


async def test_a_silence_with_whole_bars_in_it_is_told_before_the_tick_and_filled_after() -> None:
    history = History([a_candle(number) for number in range(10)])
    async with running(Bench(history)) as bench:
        await bench.tick(OPEN_NS + SECOND_NS)
        await bench.tick(OPEN_NS + 3 * BAR_NS + SECOND_NS)

        assert bench.kinds() == ["FeedGap", "Tick", "FeedGap", "Tick", "PastBar", "PastBar"]
        assert history.asked == [(OPEN_NS + BAR_NS, OPEN_NS + 3 * BAR_NS)]
        assert bench.opened() == [1, 2]
        gap = bench.events[2]
        assert isinstance(gap, FeedGap)
        assert gap.since_ns == OPEN_NS + SECOND_NS


async def test_a_lost_connection_is_told_at_once_and_once() -> None:
    async with running(Bench(History([]))) as bench:
        await bench.tick(OPEN_NS + SECOND_NS)
        await bench.backfill.lost()
        await bench.backfill.lost()  # the next try fails as well
        await bench.tick(OPEN_NS + 9 * SECOND_NS)

        assert bench.kinds() == ["FeedGap", "Tick", "FeedGap", "Tick"]


async def test_a_night_is_no_gap() -> None:
    history = History([])
    async with running(Bench(history, now_ns=OPEN_NS + 374 * MINUTE_NS)) as bench:
        await bench.tick(OPEN_NS + 374 * MINUTE_NS)
        await bench.tick(OPEN_NS + DAY_NS + SECOND_NS)

        assert history.asked == []


async def test_a_session_that_ended_and_began_unheard_is_filled_on_both_days() -> None:
    history = History([a_candle(73), a_candle(74), a_candle(0, day=1)])
    async with running(Bench(history, now_ns=OPEN_NS + 72 * BAR_NS)) as bench:
        await bench.tick(OPEN_NS + 73 * BAR_NS - SECOND_NS)
        await bench.tick(OPEN_NS + DAY_NS + BAR_NS)

        assert bench.opened() == [73, 74, DAY_NS // BAR_NS]


async def test_before_the_first_tick_the_last_bars_of_history_are_told() -> None:
    candles = [a_candle(number, day=-3) for number in range(75)] + [a_candle(0), a_candle(1)]
    history = History(candles)
    now_ns = OPEN_NS + BAR_NS + MINUTE_NS
    async with running(Bench(history, now_ns=now_ns, warm_up_bars=3)) as bench:
        friday = -3 * DAY_NS // BAR_NS
        assert bench.opened() == [friday + 73, friday + 74, 0]  # the open bar is not among them

        await bench.tick(OPEN_NS + 2 * BAR_NS + SECOND_NS)

        assert bench.opened()[3:] == [1]  # it closed before its first tick came


async def test_a_session_that_goes_on_asks_from_its_last_bar_on() -> None:
    history = History([a_candle(number) for number in range(5)])
    known = {"Nifty": OPEN_NS + 2 * BAR_NS}
    bench = Bench(history, now_ns=OPEN_NS + 4 * BAR_NS, warm_up_bars=100)
    bench.backfill.resume(known)
    async with running(bench):
        assert bench.opened() == [2, 3]


async def test_history_that_lags_is_asked_again_and_each_candle_told_once() -> None:
    history = History([a_candle(1)], [a_candle(1), a_candle(2)])
    async with running(Bench(history)) as bench:
        await bench.tick(OPEN_NS)
        await bench.tick(OPEN_NS + 3 * BAR_NS)

        assert bench.opened() == [1, 2]
        assert len(history.asked) == 2


async def test_an_unanswered_question_is_asked_again() -> None:
    history = History(BrokerUnavailable("no answer"), [a_candle(1)])
    async with running(Bench(history)) as bench:
        await bench.tick(OPEN_NS)
        await bench.tick(OPEN_NS + 2 * BAR_NS)

        assert bench.opened() == [1]
        assert bench.alerts == []


async def test_a_gap_that_cannot_be_filled_calls_for_a_person_and_stays() -> None:
    history = History(BrokerUnavailable("no answer"))
    async with running(Bench(history)) as bench:
        await bench.tick(OPEN_NS)
        await bench.tick(OPEN_NS + 2 * BAR_NS)

        assert bench.opened() == []
        [alert] = bench.alerts
        assert (alert.runbook, alert.instrument) == ("No history", "Nifty")
        assert len(history.asked) == 3


# Over the simulator, sockets and all


class Daemon:
    """The simulator, our socket and REST on it, and the market feed behind them."""

    def __init__(
        self, simulator: FyersSimulator, http: aiohttp.ClientSession, ledger: RateLedger
    ) -> None:
        self.simulator = simulator
        token = simulator.token()
        self._key = str(claims_of(token)["hsm_key"])
        self.bars: list[Bar] = []
        self.alerts: list[Any] = []
        self.ticks = 0
        calendar = load_sessions()
        self._actor = MarketFeedActor(
            FeedSettings(stale_after_seconds=20.0), a_catalogue(), calendar, {"Nifty": "1"}
        )
        rest = FyersRest(
            http,
            simulated(simulator.urls.base),
            app_id=simulator.account.app_id,
            token=lambda: token,
            ledger=ledger,
            clock=SystemClock(),
            random=Random(1),
            times=QUICK,
        )
        clock = _MarketTime(simulator)
        self.backfill = Backfill(
            {"Nifty": "1"},
            a_catalogue(),
            calendar,
            PastCandles(rest, {"Nifty": NIFTY}).ask,
            self._handle,
            clock=clock,
            warm_up_bars=100,
            on_alert=self.alerts.append,
        )
        self.socket = DataSocket(
            simulator.urls.data_socket,
            http,
            session_key=partial(_at_once, self._key),
            resolve=partial(_at_once, {"if|nse_cm|Nifty 50": "Nifty"}),
            is_open=lambda _: True,
            clock=clock,
            random=Random(1),
            times=PATIENT,
            on_lost=self.backfill.lost,
        )

    async def _handle(self, event: MarketEvent) -> None:
        assert not isinstance(event, OptionChain)
        for output in self._actor.handle(event):
            if isinstance(output, Bar):
                self.bars.append(output)
            else:
                self.alerts.append(output)

    async def read(self) -> None:
        async for tick in self.backfill.watched(self.socket.ticks()):
            self.ticks += 1
            await self._handle(tick)

    async def drive(self) -> None:
        """Let market time pass by the second, as the clock of a session does."""
        while True:
            await self.simulator.advance(1)
            await asyncio.sleep(0.003)
            now_ns = self.simulator.now_ns // SECOND_NS * SECOND_NS
            await self._handle(TimeEvent(now_ns=now_ns, wall_ns=now_ns))

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not holds():  # noqa: ASYNC110 - two programs have no event in common
                await asyncio.sleep(0.01)


class _MarketTime:
    def __init__(self, simulator: FyersSimulator) -> None:
        self._simulator = simulator
        self._real = SystemClock()

    def now_ns(self) -> int:
        return self._simulator.now_ns

    def monotonic_ns(self) -> int:
        return self._real.monotonic_ns()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds / 50)


async def _at_once(value: Known) -> Known:
    return value


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[Daemon]:
    settings = SimulatorSettings(seed=3, limits=None, with_derivatives=False)
    async with FyersSimulator(settings) as simulator, aiohttp.ClientSession() as http:
        with RateLedger(tmp_path / "calls.json", SystemClock(), AMPLE) as ledger:
            daemon = Daemon(simulator, http, ledger)
            tasks = [
                asyncio.create_task(daemon.read()),
                asyncio.create_task(daemon.backfill.run()),
                asyncio.create_task(daemon.drive()),
            ]
            await daemon.until(lambda: daemon.ticks > 0 and daemon.backfill.told >= 100)
            yield daemon
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.integration
@pytest.mark.parametrize("fault", ["data_mute", "data_half_open"])
async def test_a_feed_that_fell_silent_leaves_no_hole_and_no_bar_twice(
    daemon: Daemon, fault: FaultKind
) -> None:
    def live() -> list[Bar]:
        return [bar for bar in daemon.bars if bar.origin == "live"]

    def is_good(bar: Bar) -> bool:
        return bar.origin == "live" and bar.is_complete

    # A slow beginning leaves a gap of its own.
    await daemon.until(lambda: all(is_good(bar) for bar in daemon.bars[-3:]))
    warm, told = len(daemon.bars) - 3, daemon.backfill.told
    daemon.simulator.faults.inject(fault, seconds=240)
    # Whether on the same connection or on another is a matter of how fast the machine is.
    await daemon.until(lambda: daemon.backfill.told > told)
    before = len(live())
    await daemon.until(lambda: len(live()) >= before + 3)

    bars = daemon.bars[warm:]
    assert all(a.close_ns == b.open_ns for a, b in pairwise(bars))  # no hole, none twice
    first = [bar.origin for bar in bars].index("backfilled")
    assert not bars[first - 1].is_complete
    assert bars[first - 2].is_complete
    assert (bars[-1].origin, bars[-1].is_complete) == ("live", True)
    exchange = {
        bar.open_ns: bar
        for bar in daemon.simulator.market.bars(NIFTY, bars[0].open_ns, bars[-1].close_ns)
    }
    for bar in bars:
        if bar.origin == "backfilled":
            assert bar.high == Decimal(exchange[bar.open_ns].high) / 100
            assert bar.close == Decimal(exchange[bar.open_ns].close) / 100


@pytest.mark.integration
async def test_a_start_begins_with_a_full_window_of_history(daemon: Daemon) -> None:
    await daemon.until(lambda: len(daemon.bars) >= 102)

    assert {bar.origin for bar in daemon.bars[:100]} == {"backfilled"}
    assert all(a.close_ns <= b.open_ns for a, b in pairwise(daemon.bars))
    assert daemon.bars[-1].origin == "live"
    assert daemon.alerts == []
