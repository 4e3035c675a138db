"""The simulated Fyers as a venue: candles come over its socket as they are, then orders fill."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from recorded_session import CONFIG_DIR, session_settings

from actors.market_feed import MarketFeedActor
from actors.messages import (
    Alert,
    Bar,
    Depth,
    ExecutionReport,
    OptionChain,
    PlaceOrder,
    Tick,
    TimeEvent,
)
from actors.policies import FeedSettings
from daemon.clock import SystemClock
from daemon.fyers_sim_venue import fyers_sim_venue
from daemon.history import CandleTable
from daemon.outbox import Outbox
from daemon.session_files import Market, load_markets, make_plan
from daemon.settings import load_instruments, load_sessions
from daemon.supervisor import Supervisor
from daemon.tick_source import MarketEvent
from daemon.venue import Venue

BARS = 8
FIRST_S = 1_483_394_400  # 2 Jan 2017, 22:00 UTC: tokens die, at 06:00 in India, in bar three


@pytest.fixture
def markets(tmp_path: Path) -> list[Market]:
    path = tmp_path / "EURUSD_60.csv"
    rows = [
        f"{FIRST_S + 3600 * n},1.05{n}10,1.05{n}53,1.05{n}02,1.05{n}27,{(n + 1) * 100_000_000_000}"
        for n in range(BARS)
    ]
    path.write_text("\n".join(["datetime,open,high,low,close,volume", *rows]) + "\n")
    return load_markets([path], ["EURUSD"], load_instruments(CONFIG_DIR, demo=True).catalogue)


@asynccontextmanager
async def opened(
    folder: Path, markets: list[Market], alerts: list[Alert], **changes: Any
) -> AsyncIterator[Venue]:
    plan = make_plan(
        session_settings(folder, **changes),
        load_instruments(CONFIG_DIR, demo=True).catalogue,
        load_sessions(CONFIG_DIR),
        markets,
        mode="paper",
        now_ns=1,
        seed=1,
        speed="max",
    )
    outbox = await Outbox(None).open()

    async def announce(alert: Alert) -> None:
        alerts.append(alert)

    async def crashed(name: str, reason: str) -> None:
        raise AssertionError(f"{name} crashed: {reason}")

    open_venue = fyers_sim_venue(plan, markets, SystemClock(), folder, "max")
    async with open_venue(outbox, announce) as venue:
        parts = (*venue.parts, *venue.feeds)
        async with Supervisor(parts, crashed, monotonic_s=lambda: 0.0):
            yield venue
    await outbox.close()


def candles_of(ticks: list[Tick], table: CandleTable) -> Iterator[tuple[Decimal, ...]]:
    for open_ns, close_ns in zip(table.open_ns.tolist(), table.close_ns.tolist(), strict=True):
        prices = [tick.last_price for tick in ticks if open_ns <= tick.event_ns < close_ns]
        yield prices[0], max(prices), min(prices), prices[-1]


async def test_the_candles_arrive_exactly_and_so_does_the_end_of_each(
    tmp_path: Path, markets: list[Market]
) -> None:
    alerts: list[Alert] = []
    async with opened(tmp_path, markets, alerts) as venue:
        events: list[MarketEvent] = [event async for event in venue.events]

    table = markets[0].table
    ticks = [event for event in events if isinstance(event, Tick)]
    times = [event.now_ns for event in events if isinstance(event, TimeEvent)]
    assert list(candles_of(ticks, table)) == [
        (candle.open, candle.high, candle.low, candle.close) for candle in table.candles()
    ]
    assert len(ticks) == 4 * BARS
    assert {(tick.origin, tick.bid, tick.ask) for tick in ticks} == {("candle_path", None, None)}
    assert ticks[-1].volume_today == int(table.volume.sum())
    assert times == sorted(set(times))
    assert set(table.close_ns.tolist()) <= set(times)
    assert alerts == []


async def test_with_depth_books_come_beside_the_candles_and_every_bar_has_an_imbalance(
    tmp_path: Path, markets: list[Market]
) -> None:
    async with opened(tmp_path, markets, []) as venue:
        without: list[MarketEvent] = [event async for event in venue.events]
    async with opened(tmp_path, markets, [], **{"feed.depth": True}) as venue:
        events: list[MarketEvent] = [event async for event in venue.events]

    books = [event for event in events if isinstance(event, Depth)]
    assert len(books) >= 4 * BARS
    assert [one for one in events if isinstance(one, Tick)] == [
        one for one in without if isinstance(one, Tick)
    ]
    assert not any(isinstance(event, Depth) for event in without)
    catalogue = load_instruments(CONFIG_DIR, demo=True).catalogue
    feed = MarketFeedActor(
        FeedSettings(), catalogue, load_sessions(CONFIG_DIR), {"EURUSD": markets[0].table.timeframe}
    )
    bars = [
        output
        for event in events
        if not isinstance(event, OptionChain)
        for output in feed.handle(event)
        if isinstance(output, Bar)
    ]
    assert len(bars) == BARS
    assert all(bar.depth_imbalance is not None for bar in bars)


async def test_an_order_fills_at_the_next_instant_and_not_at_the_price_it_was_decided_on(
    tmp_path: Path, markets: list[Market]
) -> None:
    async with opened(tmp_path, markets, []) as venue:
        events = aiter(venue.events)
        while not isinstance(await anext(events), Tick):
            pass
        order = PlaceOrder(
            client_order_id="a1",
            decision_id="d1",
            instrument="EURUSD",
            side="buy",
            quantity=1000,
            order_type="market",
            purpose="entry",
            reason="test",
            placed_ns=1,
        )
        await venue.broker.place(order)
        before = await venue.broker.positions()
        while not isinstance(event := await anext(events), Tick):
            pass
        after = await venue.broker.positions()
        reports: list[ExecutionReport] = []
        async for report in venue.broker.reports():
            reports.append(report)
            if report.status == "filled":
                break

    fill = next(report for report in reports if report.last_quantity)
    assert (before, after) == ({}, {"EURUSD": 1000})
    assert abs(fill.last_price - event.last_price) <= Decimal("0.00002")
