"""Flow control: under back-pressure quotes are left out, and nothing that a bar is made of."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from typing import Any, TypeVar

import msgspec
import pytest
from builders import OPEN_NS, SECOND_NS, a_calendar, a_catalogue, a_depth, a_tick, a_time
from hypothesis import given, settings
from hypothesis import strategies as st
from option_builders import a_chain
from unreliable_bus import UnreliableBus

from actors.market_feed import MarketFeedActor
from actors.messages import Alert, Bar, Depth, OptionChain, Tick
from actors.policies import FeedSettings
from daemon import tick_source as tick_source_module
from daemon.clock import SimulatedClock
from daemon.conflation import Conflation
from daemon.socket_feed import SocketFeed
from daemon.tick_source import MarketEvent, TickSource

Event = TypeVar("Event", Tick, MarketEvent)
NAMES = ("Nifty", "Bank_Nifty")
CATALOGUE, CALENDAR = a_catalogue(), a_calendar()


class World:
    """A conflation with a clock to move and the alerts it gave."""

    def __init__(self, most: int = 1000, calm: int = 0) -> None:
        self.clock = SimulatedClock(OPEN_NS)
        self.alerts: list[Alert] = []
        self.conflation = Conflation(self.clock, on_alert=self.alerts.append, most=most, calm=calm)

    async def offer(self, *events: MarketEvent) -> None:
        """Let a source give these events, as long as there is room."""
        await self.conflation.read(source(events))

    async def drained(self, at_once: int = 64) -> list[MarketEvent]:
        return [event async for event in self.rest(at_once)]

    async def rest(self, at_once: int) -> AsyncIterator[MarketEvent]:
        while len(self.conflation):
            for event in await self.conflation.take(at_once):
                yield event


async def source(events: Sequence[Event]) -> AsyncIterator[Event]:
    for event in events:
        yield event


def a_quote(bid: int, volume: int = 10, second: int = 0, **fields: Any) -> Tick:
    """Return a tick at 100, with a bid, an ask above it, and the volume of the day."""
    return a_tick(
        "100",
        OPEN_NS + second * SECOND_NS,
        bid=Decimal(bid),
        ask=Decimal(bid + 2),
        volume_today=volume,
        **fields,
    )


def a_book(units: int, ms: int = 0, **fields: Any) -> Depth:
    """Return a book with so many units wanted."""
    return a_depth({"99": units}, {"101": 10}, OPEN_NS + ms * SECOND_NS // 1000, **fields)


def standing_for(tick: Tick, older: int) -> Tick:
    return msgspec.structs.replace(tick, conflated=older)


async def test_the_newest_of_the_waiting_quotes_stands_for_the_others() -> None:
    world = World()

    await world.offer(a_quote(90), a_quote(91), a_quote(92), a_quote(93))

    assert await world.drained() == [a_quote(90), standing_for(a_quote(93), 2)]
    assert world.conflation.conflated == 2


async def test_a_trade_is_kept_and_parts_the_quotes_around_it() -> None:
    world = World()
    trade = a_quote(92, volume=15)

    await world.offer(a_quote(90), a_quote(91), trade, a_quote(93, volume=15))

    assert await world.drained() == [a_quote(90), a_quote(91), trade, a_quote(93, volume=15)]


async def test_a_quote_of_another_second_replaces_none() -> None:
    world = World()
    events = [a_quote(90), a_quote(91), a_quote(92, second=1), a_quote(91)]

    await world.offer(*events)

    assert await world.drained() == events


async def test_the_clock_between_two_quotes_keeps_both() -> None:
    world = World()
    events: list[MarketEvent] = [
        a_quote(90),
        a_quote(91),
        a_time(OPEN_NS + SECOND_NS),
        a_quote(92),
    ]

    await world.offer(*events)

    assert await world.drained() == events


async def test_quotes_of_another_instrument_are_left_alone() -> None:
    world = World()
    other = [a_quote(bid, instrument="Bank_Nifty") for bid in (50, 51)]

    await world.offer(a_quote(90), other[0], a_quote(91), other[1])

    assert await world.drained() == [a_quote(90), other[0], a_quote(91), other[1]]


async def test_a_repeated_tick_is_left_to_the_market_feed() -> None:
    world = World()
    events = [a_quote(90), a_quote(91), a_quote(91), a_quote(92)]

    await world.offer(*events)

    assert await world.drained() == events


async def test_the_newest_of_the_waiting_books_of_a_second_stands_for_the_others() -> None:
    world = World()

    await world.offer(a_quote(90), a_book(1, 100), a_quote(91), a_book(2, 200), a_book(3, 900))

    newest = msgspec.structs.replace(a_book(3, 900), conflated=2)
    assert await world.drained() == [a_quote(90), newest, a_quote(91)]
    assert world.conflation.conflated == 2


@pytest.mark.parametrize(
    "later",
    [
        [a_book(2, 1000)],
        [a_quote(91, second=1), a_book(2, 999)],  # the tick may have ended the bar
        [a_book(2, 999, instrument="Bank_Nifty")],
    ],
)
async def test_a_book_is_kept_where_a_bar_may_have_ended_since(later: list[MarketEvent]) -> None:
    world = World()
    events = [a_quote(90), a_book(1, 999), *later]

    await world.offer(*events)

    assert await world.drained() == events


async def test_books_are_all_kept_while_few_wait_and_once_they_are_taken() -> None:
    world = World(calm=2)
    await world.offer(a_book(1), a_book(2))
    taken = await world.conflation.take(64)

    await world.offer(a_book(3), a_book(4))

    assert [*taken, *await world.drained()] == [a_book(1), a_book(2), a_book(3), a_book(4)]


async def test_nothing_is_left_out_while_few_wait() -> None:
    world = World(calm=4)
    events = [a_quote(bid) for bid in range(90, 95)]

    await world.offer(*events, a_quote(95))

    assert await world.drained() == [*events[:4], standing_for(a_quote(95), 1)]


async def test_what_has_been_taken_is_replaced_no_more() -> None:
    world = World()
    await world.offer(a_quote(90), a_quote(91))
    taken = await world.conflation.take(64)

    await world.offer(a_quote(92), a_quote(93))

    assert taken == [a_quote(90), a_quote(91)]
    assert await world.drained() == [standing_for(a_quote(93), 1)]


async def test_trades_beyond_the_bound_hold_the_source_and_call_a_person_once() -> None:
    world = World(most=4)
    market = [a_quote(90, volume=volume) for volume in range(12)]
    reading = asyncio.create_task(world.offer(*market))
    for _ in range(5):
        await asyncio.sleep(0)

    assert len(world.conflation) == 4
    assert [alert.severity for alert in world.alerts] == ["critical"]
    taken = []
    while not reading.done() or len(world.conflation):
        taken += await world.conflation.take(1)
        await asyncio.sleep(0)
    assert taken == market
    assert world.conflation.longest == 4
    assert world.conflation.held > 1
    assert [alert.severity for alert in world.alerts] == ["critical", "info"]


async def test_back_pressure_that_lasts_is_reported_once_and_its_end_as_well() -> None:
    world = World(calm=2)
    for second in range(10):
        world.clock.advance_to(OPEN_NS + second * SECOND_NS)
        await world.offer(*(a_quote(90 + n, second=second) for n in range(3)))
    lasting = list(world.alerts)

    await world.drained()

    assert [alert.severity for alert in lasting] == ["warning"]
    assert lasting[0].runbook == "Market data waits"
    assert "quotes left out so far" in lasting[0].text
    assert [alert.severity for alert in world.alerts] == ["warning", "info"]


async def test_a_burst_is_no_matter_for_an_alert() -> None:
    world = World(calm=2)

    await world.offer(*(a_quote(90 + n, volume=n) for n in range(50)))
    world.clock.advance_to(OPEN_NS + 60 * SECOND_NS)
    await world.drained()
    await world.offer(a_quote(90), a_quote(91, volume=5), a_quote(92, volume=6))

    assert world.alerts == []


def test_a_bound_below_what_is_published_at_once_is_refused() -> None:
    with pytest.raises(ValueError, match="calm must lie in 0 to 9"):
        World(most=10, calm=10)


# Any market, any slowness of the bus


@st.composite
def markets(draw: st.DrawFn) -> list[MarketEvent]:
    """Return some minutes of ticks and clock, with faults: repeats, late and future ticks."""
    events: list[MarketEvent] = [a_time(OPEN_NS)]
    now_s, exchange_s, volume, price = 0, 0, 0, 100
    for _ in range(draw(st.integers(0, 60))):
        step = draw(
            st.sampled_from(("quote", "quote", "quote", "trade", "clock", "book", "odd", "again"))
        )
        name = draw(st.sampled_from(NAMES))
        at_s = exchange_s
        if step == "clock":
            now_s += draw(st.sampled_from((1, 20, 60)))
            if draw(st.booleans()):  # else the exchange's ticks come late
                exchange_s = now_s
            events.append(a_time(OPEN_NS + now_s * SECOND_NS))
            continue
        if step == "book":
            units, ms = draw(st.integers(1, 50)), draw(st.integers(0, 999))
            events.append(a_book(units, 1000 * now_s + ms, instrument=name))
            continue
        if step == "again" and isinstance(events[-1], Tick):
            events.append(events[-1])
            continue
        if step == "trade":
            volume += draw(st.integers(0, 5))
            price += draw(st.integers(-3, 3))
        if step == "odd":
            at_s += draw(st.sampled_from((-70, -1, 1, 2, 3)))
        bid = draw(st.integers(90, 92))
        events.append(
            a_tick(
                str(price),
                OPEN_NS + at_s * SECOND_NS,
                instrument=name,
                bid=Decimal(bid),
                ask=Decimal(bid + draw(st.integers(1, 3))),
                volume_today=volume,
            )
        )
    return events


async def test_an_option_chain_waits_among_the_quotes_and_is_not_left_out() -> None:
    world = World()
    chain = a_chain()

    await world.offer(a_quote(99), chain, a_quote(98), chain, a_quote(97))

    assert [one for one in await world.drained() if isinstance(one, OptionChain)] == [chain, chain]
    assert world.conflation.conflated == 1


def bars(events: Sequence[MarketEvent]) -> list[Bar]:
    """Return the bars of one minute that these events make, in the order of their instruments."""
    feed = MarketFeedActor(FeedSettings(), CATALOGUE, CALENDAR, dict.fromkeys(NAMES, "1"))
    end = a_time(OPEN_NS + 3000 * SECOND_NS)
    seen = [one for one in [*events, end] if not isinstance(one, OptionChain)]
    made = [out for event in seen for out in feed.handle(event) if isinstance(out, Bar)]
    return sorted(made, key=lambda bar: (bar.instrument, bar.open_ns))


def trades(events: Sequence[MarketEvent]) -> list[tuple[Any, ...]]:
    """Return the price changes and volumes of each instrument, each once, in order."""
    said: dict[str, list[tuple[Any, ...]]] = {name: [] for name in NAMES}
    for event in events:
        if isinstance(event, Tick):
            trade = (event.instrument, event.event_ns, event.last_price, event.volume_today)
            if said[event.instrument][-1:] != [trade]:
                said[event.instrument].append(trade)
    return [trade for name in NAMES for trade in said[name]]


def last_quotes(events: Sequence[MarketEvent]) -> dict[str, tuple[Any, ...]]:
    return {event.instrument: (event.bid, event.ask) for event in events if isinstance(event, Tick)}


@settings(max_examples=100, deadline=None)
@given(
    markets(),
    st.lists(st.tuples(st.integers(1, 12), st.integers(0, 6)), min_size=1, max_size=12),
    st.integers(0, 3),
    st.integers(4, 40),
)
def test_however_slow_the_bus_trades_newest_quotes_and_bars_are_the_same(
    market: list[MarketEvent], turns: list[tuple[int, int]], calm: int, most: int
) -> None:
    async def scenario() -> list[MarketEvent]:
        world = World(most=most, calm=calm)
        offered = asyncio.Semaphore(0)

        async def paced() -> AsyncIterator[MarketEvent]:
            for event in market:
                await offered.acquire()
                yield event

        reading = asyncio.create_task(world.conflation.read(paced()))
        taken: list[MarketEvent] = []
        for step in range(4 * len(market) + 4):
            arrive, leave = turns[step % len(turns)]
            for _ in range(arrive):
                offered.release()
            for _ in range(3 * arrive):
                await asyncio.sleep(0)
            assert len(world.conflation) <= most
            if leave and len(world.conflation):
                taken += await world.conflation.take(leave)
        for _ in market:
            offered.release()
        while rest := await world.conflation.take(64):
            taken += rest
        await reading
        return taken

    taken = asyncio.run(scenario())

    assert trades(taken) == trades(market)
    assert last_quotes(taken) == last_quotes(market)
    assert bars(taken) == bars(market)
    ticks = [event for event in market if isinstance(event, Tick)]
    kept = [event for event in taken if isinstance(event, Tick)]
    assert sum(1 + tick.conflated for tick in kept) == len(ticks)
    books = [event for event in market if isinstance(event, Depth)]
    kept_books = [event for event in taken if isinstance(event, Depth)]
    assert sum(1 + book.conflated for book in kept_books) == len(books)


async def test_an_outage_of_the_bus_costs_quotes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tick_source_module, "_RETRY_S", 0.005)
    bus = UnreliableBus()
    alerts: list[Alert] = []
    market = [
        a_quote(bid, volume=volume, second=volume // 5)
        for volume in range(30)
        for bid in range(90, 95)
    ]
    feed = SocketFeed(lambda: source(market), SimulatedClock(OPEN_NS), alerts.append)
    bus.publish_faults.extend(["refused", "unanswered", "refused"])
    tick_source = TickSource(feed.events(), bus, is_repeatable=False)

    running = asyncio.create_task(tick_source.run())
    await feed.read()
    async with asyncio.timeout(20):
        while tick_source.now_ns < market[-1].event_ns or len(feed.waiting):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    tick_source.stop()
    await running

    published = [entry.envelope.message for entry in await bus.entries(Tick.stream)]
    ticks = [message for message in published if isinstance(message, Tick)]
    assert trades(ticks) == trades(market)
    assert last_quotes(ticks) == last_quotes(market)
    assert sum(1 + tick.conflated for tick in ticks) == len(market) > len(ticks)
