"""Candle paths: what the ticks of a candle promise, their order, and their pace."""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import count, groupby, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.messages import Tick, TimeEvent
from daemon.candle_path import (
    USUAL_WAY,
    Source,
    goes_low_first,
    market_events,
    paced,
)
from daemon.candle_quality import NS_PER_MINUTE, QualityReport
from daemon.clock import SimulatedClock
from daemon.errors import ConfigError, DataError
from daemon.history import Candle, CandleTable

START_NS = 1_710_733_500_000_000_000  # 2024-03-18 03:45 UTC
SECOND = 1_000_000_000
Prices = tuple[float, float, float, float]


def a_table(
    prices: Sequence[Prices],
    *,
    minutes: int = 5,
    volumes: Sequence[int] | None = None,
    opens: Sequence[int] | None = None,
    start_ns: int = START_NS,
) -> CandleTable:
    """A table of bars with these prices; `opens` counts bars from the start, all by default."""
    numbers = range(len(prices)) if opens is None else opens
    columns = np.array(prices, dtype=np.float64).reshape(-1, 4).T
    return CandleTable(
        symbol="NIFTY",
        timeframe_minutes=minutes,
        decimals=2,
        sha256="",
        quality=QualityReport(len(prices), len(prices), (), (), ()),
        open_ns=np.array([start_ns + n * minutes * NS_PER_MINUTE for n in numbers], dtype=np.int64),
        open=columns[0].copy(),
        high=columns[1].copy(),
        low=columns[2].copy(),
        close=columns[3].copy(),
        volume=np.array(volumes or [0] * len(prices), dtype=np.int64),
    )


def events_of(*sources: Source, seed: int = 7) -> list[Tick | TimeEvent]:
    return list(market_events(sources, seed=seed, wall_ns=count().__next__))


def ticks_of(*sources: Source, seed: int = 7) -> list[Tick]:
    return [event for event in events_of(*sources, seed=seed) if isinstance(event, Tick)]


@st.composite
def tables(draw: st.DrawFn) -> CandleTable:
    """Tables of 1 to 12 bars with gaps, prices in paise."""
    bars = draw(
        st.lists(
            st.tuples(
                st.lists(st.integers(1, 10_000_000), min_size=4, max_size=4),
                st.integers(0, 1000),
                st.integers(1, 4),
            ),
            min_size=1,
            max_size=12,
        )
    )
    prices: list[Prices] = []
    for four, _, _ in bars:
        low, first, last, high = (paise / 100 for paise in [min(four), *four[1:3], max(four)])
        prices.append((first, high, low, last))
    opens = np.cumsum([gap for _, _, gap in bars]).tolist()
    volumes = [volume for _, volume, _ in bars]
    minutes = draw(st.sampled_from([1, 2, 5, 60]))
    return a_table(prices, minutes=minutes, volumes=volumes, opens=opens)


RISING: Prices = (100.05, 101.5, 99.95, 101.1)
FALLING: Prices = (101.1, 101.5, 99.95, 100.05)
LEVEL: Prices = (100.0, 101.5, 99.95, 100.0)


# --- promises -----------------------------------------------------------------------------------


@given(table=tables(), seed=st.integers(0, 2**64))
def test_the_ticks_of_a_bar_make_exactly_the_bar_again(table: CandleTable, seed: int) -> None:
    ticks = ticks_of(("NIFTY", table.timeframe, table), seed=seed)

    groups = [
        list(group)
        for _, group in groupby(ticks, lambda tick: (tick.event_ns - START_NS) // table.bar_ns)
    ]
    day = None
    volume_before = 0
    made: list[Candle] = []
    for group in groups:
        open_ns = group[0].event_ns
        if open_ns // (86_400 * SECOND) != day:
            day, volume_before = open_ns // (86_400 * SECOND), 0
        prices = [tick.last_price for tick in group]
        made.append(
            Candle(
                open_ns=open_ns,
                close_ns=open_ns + table.bar_ns,
                open=prices[0],
                high=max(prices),
                low=min(prices),
                close=prices[-1],
                volume=group[-1].volume_today - volume_before,
            )
        )
        volume_before = group[-1].volume_today
    assert made == list(table.candles())


@given(table=tables(), seed=st.integers(0, 2**64))
def test_a_path_stays_in_its_candle_and_visits_both_ends(table: CandleTable, seed: int) -> None:
    ticks = iter(ticks_of(("NIFTY", table.timeframe, table), seed=seed))

    for candle in table.candles():
        path = [next(ticks) for _ in range(4)]
        prices = [tick.last_price for tick in path]
        instants = [tick.event_ns for tick in path]
        assert (prices[0], prices[-1]) == (candle.open, candle.close)
        assert set(prices[1:3]) == {candle.low, candle.high}
        assert all(candle.low <= price <= candle.high for price in prices)
        assert all(before < after for before, after in pairwise(instants))
        assert instants[0] == candle.open_ns
        assert instants[-1] == candle.close_ns - 1_000_000
    assert next(ticks, None) is None


@given(first=tables(), second=tables(), seed=st.integers(0, 2**64))
def test_the_clock_is_never_behind_a_price_and_ticks_at_every_close(
    first: CandleTable, second: CandleTable, seed: int
) -> None:
    events = events_of(
        ("NIFTY", first.timeframe, first), ("BANK", second.timeframe, second), seed=seed
    )

    clock_ns = -1
    told: list[int] = []
    for event in events:
        if isinstance(event, TimeEvent):
            assert event.now_ns > clock_ns
            clock_ns = event.now_ns
            told.append(clock_ns)
        else:
            assert event.event_ns == clock_ns
    assert set(told) >= {*first.close_ns.tolist(), *second.close_ns.tolist()}
    assert isinstance(events[-1], TimeEvent)
    ends = [int(table.close_ns[-1]) + table.bar_ns for table in (first, second)]
    assert events[-1].now_ns == max(ends)


@given(table=tables(), seed=st.integers(0, 2**64))
def test_the_same_seed_draws_the_same_path(table: CandleTable, seed: int) -> None:
    source = ("NIFTY", table.timeframe, table)

    assert ticks_of(source, seed=seed) == ticks_of(source, seed=seed)


# --- single behaviours --------------------------------------------------------------------------


def test_the_ticks_of_one_bar_in_full() -> None:
    table = a_table([RISING], volumes=[10])

    events = events_of(("NIFTY", "5", table), seed=0)

    minute = NS_PER_MINUTE
    instants = [START_NS, START_NS + 100 * SECOND, START_NS + 200 * SECOND]
    instants += [START_NS + 5 * minute - 1_000_000]
    prices = ["100.05", "99.95", "101.50", "101.10"]
    volumes = [2, 5, 7, 10]
    expected: list[Tick | TimeEvent] = []
    for wall_ns, (at, price, volume) in enumerate(zip(instants, prices, volumes, strict=True)):
        expected.append(TimeEvent(now_ns=at, wall_ns=wall_ns))
        expected.append(
            Tick(
                instrument="NIFTY",
                last_price=Decimal(price),
                event_ns=at,
                volume_today=volume,
                origin="candle_path",
            )
        )
    expected.append(TimeEvent(now_ns=START_NS + 5 * minute, wall_ns=4))
    expected.append(TimeEvent(now_ns=START_NS + 10 * minute, wall_ns=5))
    assert events == expected


def test_another_seed_draws_another_path_somewhere() -> None:
    table = a_table([LEVEL] * 50)

    assert ticks_of(("NIFTY", "5", table), seed=1) != ticks_of(("NIFTY", "5", table), seed=2)


def test_another_instrument_draws_another_path_somewhere() -> None:
    table = a_table([LEVEL] * 50)

    paths = [
        [tick.last_price for tick in ticks_of((name, "5", table))] for name in ("NIFTY", "BANK")
    ]

    assert paths[0] != paths[1]


def test_a_bar_takes_the_same_path_in_a_part_of_the_file() -> None:
    table = a_table([LEVEL] * 50)
    part = table.between(int(table.open_ns[20]), int(table.open_ns[30]))

    assert ticks_of(("NIFTY", "5", part)) == ticks_of(("NIFTY", "5", table))[80:120]


@pytest.mark.parametrize(
    ("prices", "share"), [(RISING, USUAL_WAY), (FALLING, 1 - USUAL_WAY), (LEVEL, 0.5)]
)
def test_a_rising_bar_usually_goes_low_first_and_a_falling_one_high_first(
    prices: Prices, share: float
) -> None:
    candles = list(a_table([prices] * 2000).candles())

    low_first = sum(goes_low_first(0, "NIFTY", candle) for candle in candles) / len(candles)

    assert low_first == pytest.approx(share, abs=0.04)  # 3.5 standard errors of a fair coin


def test_no_quotes_are_made_up() -> None:
    ticks = ticks_of(("NIFTY", "5", a_table([RISING])))

    assert {(tick.bid, tick.ask, tick.origin) for tick in ticks} == {(None, None, "candle_path")}


def test_ticks_of_the_same_instant_go_by_the_order_of_the_instruments() -> None:
    ticks = ticks_of(("ZED", "5", a_table([RISING])), ("ABC", "5", a_table([FALLING])))

    assert [tick.instrument for tick in ticks] == ["ZED", "ABC"] * 4


def test_a_bar_closes_before_any_tick_of_the_next() -> None:
    events = events_of(("NIFTY", "5", a_table([RISING, FALLING])))

    close_ns = START_NS + 5 * NS_PER_MINUTE
    (at_close,) = [
        position
        for position, event in enumerate(events)
        if isinstance(event, TimeEvent) and event.now_ns == close_ns
    ]
    assert all(event.time_ns < close_ns for event in events[:at_close])
    assert isinstance(events[at_close + 1], Tick)


def test_a_candle_that_its_session_cuts_short_keeps_all_its_ticks_inside() -> None:
    table = a_table([(100.0, 105.0, 95.0, 102.0), (102.0, 103.0, 90.0, 91.0)], minutes=60)
    cut_ns = table.bar_ns // 4

    events = market_events(
        [("Nifty", table.timeframe, table)],
        seed=1,
        wall_ns=lambda: 0,
        end_of=lambda _, candle: candle.open_ns + cut_ns,
    )

    ticks = [event for event in events if isinstance(event, Tick)]
    opens = [int(open_ns) for open_ns in table.open_ns for _ in range(4)]
    assert len(ticks) == len(opens)
    assert all(
        open_ns <= tick.event_ns < open_ns + cut_ns
        for tick, open_ns in zip(ticks, opens, strict=True)
    )


def test_the_volume_of_the_day_starts_again_with_each_session() -> None:
    table = a_table([RISING] * 3, volumes=[10, 10, 10], opens=[0, 1, 288])

    ticks = ticks_of(("NIFTY", "5", table))

    assert [tick.volume_today for tick in ticks[3::4]] == [10, 20, 10]


def test_the_caller_says_what_a_session_is() -> None:
    table = a_table([RISING] * 3, volumes=[10, 10, 10])
    second_bar_ns = int(table.open_ns[1])

    events = market_events(
        [("NIFTY", "5", table)],
        seed=0,
        wall_ns=lambda: 0,
        session_key=lambda instant_ns: instant_ns >= second_bar_ns,
    )

    ticks = [event for event in events if isinstance(event, Tick)]
    assert [tick.volume_today for tick in ticks[3::4]] == [10, 10, 20]


def test_the_last_event_lies_one_wanted_bar_behind_the_last_close() -> None:
    table = a_table([RISING] * 3)

    events = events_of(("NIFTY", "15", table))

    assert events[-1].time_ns == int(table.close_ns[-1]) + 15 * NS_PER_MINUTE


def test_daily_candles_make_daily_bars() -> None:
    table = a_table([RISING], minutes=1440)

    assert len(ticks_of(("GOOGL", "D", table))) == 4


def test_no_tables_are_refused() -> None:
    with pytest.raises(DataError, match="no candles to replay"):
        events_of()


def test_a_table_without_candles_is_refused() -> None:
    with pytest.raises(DataError, match="NIFTY has no candles in the range"):
        events_of(("NIFTY", "5", a_table([])))


def test_two_tables_of_one_instrument_are_refused() -> None:
    table = a_table([RISING])

    with pytest.raises(DataError, match="NIFTY has two sources of candles"):
        events_of(("NIFTY", "5", table), ("NIFTY", "5", table))


@pytest.mark.parametrize("timeframe", ["2", "7"])
def test_bars_that_the_candles_cannot_make_are_refused(timeframe: str) -> None:
    with pytest.raises(DataError, match=f"bars of {timeframe} cannot be made of candles of 5"):
        events_of(("NIFTY", timeframe, a_table([RISING])))


@pytest.mark.parametrize("timeframe", ["soon", "0", "-5"])
def test_a_timeframe_that_is_none_is_refused(timeframe: str) -> None:
    with pytest.raises(DataError, match=f"number of minutes or D, was '{timeframe}'"):
        events_of(("NIFTY", timeframe, a_table([RISING])))


# --- pace ---------------------------------------------------------------------------------------


def clock_at(*seconds: float) -> list[TimeEvent]:
    return [TimeEvent(now_ns=round(second * SECOND), wall_ns=0) for second in seconds]


async def due_seconds(
    events: Sequence[Tick | TimeEvent], speed: float, *, busy_s: Sequence[float] = ()
) -> list[float]:
    """When each event comes, on a clock that only moves by waiting and by the consumer's work."""
    clock = SimulatedClock(0)
    work: Iterator[float] = iter(busy_s)
    found: list[float] = []
    async for _ in paced(events, speed, clock.sleep, clock.monotonic_ns, bar_ns=60 * SECOND):
        found.append(clock.monotonic_ns() / SECOND)
        clock.advance_to(clock.now_ns() + round(next(work, 0.0) * SECOND))
    return found


async def test_events_come_at_their_market_time_divided_by_the_speed() -> None:
    due = await due_seconds(clock_at(1000, 1030, 1030, 1060), 60.0)

    assert due == [0, 0.5, 0.5, 1.0]


async def test_a_busy_consumer_does_not_make_the_events_drift() -> None:
    due = await due_seconds(clock_at(0, 60, 120, 180), 60.0, busy_s=[0.25, 1.5, 0.25])

    assert due == [0, 1.0, 2.5, 3.0]


async def test_a_night_takes_one_second() -> None:
    due = await due_seconds(clock_at(0, 60, 60 + 63_000, 120 + 63_000), 60.0)

    assert due == [0, 1.0, 2.0, 3.0]


async def test_a_gap_of_five_bars_is_waited_for() -> None:
    due = await due_seconds(clock_at(0, 300, 300 + 301), 60.0)

    assert due == [0, 5.0, 6.0]


async def test_a_night_never_takes_longer_than_its_own_time() -> None:
    due = await due_seconds(clock_at(0, 36_000), 360_000.0)

    assert due == [0, pytest.approx(0.1)]


async def test_maximum_speed_never_waits() -> None:
    async def refuse(seconds: float) -> None:
        raise AssertionError(f"waited {seconds} s")

    events = events_of(("NIFTY", "5", a_table([RISING, FALLING])))

    found = [event async for event in paced(events, "max", refuse, lambda: 0, bar_ns=1)]

    assert found == events


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan"), float("inf")])
def test_a_speed_that_is_none_is_refused(speed: float) -> None:
    clock = SimulatedClock(0)

    with pytest.raises(ConfigError, match="speed must be a positive number or 'max'"):
        paced([], speed, clock.sleep, clock.monotonic_ns, bar_ns=1)
