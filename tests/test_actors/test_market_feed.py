"""The market feed: which ticks make which bars, which are refused, and when silence is news."""

from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from builders import (
    MINUTE_NS,
    OPEN_NS,
    SECOND_NS,
    a_calendar,
    a_catalogue,
    a_tick,
    a_time,
    outputs_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.instruments import Instrument, InstrumentCatalogue, UnknownInstrument
from actors.market_feed import ANY_UNKNOWN, MarketFeedActor
from actors.messages import Alert, Bar, Message, RefusedTick, Tick, TimeEvent
from actors.policies import FeedSettings
from daemon.settings import load_sessions

BAR_NS = 5 * MINUTE_NS
CLOSE_NS = OPEN_NS + 375 * MINUTE_NS
"""15:30 IST."""
DAY_NS = 24 * 60 * MINUTE_NS
CALENDAR = a_calendar()


def a_feed(timeframes: Mapping[str, str] | None = None, **settings: Any) -> MarketFeedActor:
    wanted = {"Nifty": "5"} if timeframes is None else timeframes
    return MarketFeedActor(FeedSettings(**settings), a_catalogue(), CALENDAR, wanted)


def bars_of(outputs: list[Message]) -> list[Bar]:
    return [output for output in outputs if isinstance(output, Bar)]


def alerts_of(outputs: list[Message]) -> list[Alert]:
    return [output for output in outputs if isinstance(output, Alert)]


# Bars


def test_a_bar_holds_first_highest_lowest_and_last_price_of_its_ticks() -> None:
    feed = a_feed()
    prices = ("100", "104", "97", "101")

    outputs = outputs_of(
        feed,
        *(a_tick(price, OPEN_NS + n * MINUTE_NS) for n, price in enumerate(prices)),
        a_time(OPEN_NS + BAR_NS),
    )

    assert outputs == [
        Bar(
            instrument="Nifty",
            timeframe="5",
            open=Decimal(100),
            high=Decimal(104),
            low=Decimal(97),
            close=Decimal(101),
            volume=0,
            open_ns=OPEN_NS,
            close_ns=OPEN_NS + BAR_NS,
            ticks=4,
            is_complete=False,  # the last minute was silent
        )
    ]


def test_a_bar_stays_open_until_the_clock_has_reached_its_end() -> None:
    outputs = outputs_of(a_feed(stale_after_seconds=3600), a_tick(), a_time(OPEN_NS + BAR_NS - 1))

    assert outputs == []


def test_a_tick_at_the_end_of_a_bar_closes_it_and_begins_the_next() -> None:
    feed = a_feed()

    first = outputs_of(feed, a_tick("100"), a_tick("105", OPEN_NS + BAR_NS))
    second = outputs_of(feed, a_time(OPEN_NS + 2 * BAR_NS))

    assert [bar.close for bar in bars_of(first)] == [Decimal(100)]
    assert [(bar.open, bar.open_ns) for bar in bars_of(second)] == [
        (Decimal(105), OPEN_NS + BAR_NS)
    ]


def test_bars_are_aligned_to_the_open_of_the_session_not_to_the_first_tick() -> None:
    feed = a_feed()

    outputs = outputs_of(feed, a_tick(at_ns=OPEN_NS + 7 * MINUTE_NS), a_time(OPEN_NS + 2 * BAR_NS))

    assert [bar.open_ns for bar in bars_of(outputs)] == [OPEN_NS + BAR_NS]


def test_a_gap_makes_no_bar() -> None:
    feed = a_feed()

    outputs = outputs_of(
        feed,
        a_tick(),
        *(a_time(OPEN_NS + n * BAR_NS) for n in range(1, 4)),
        a_tick(at_ns=OPEN_NS + 3 * BAR_NS),
        a_time(OPEN_NS + 4 * BAR_NS),
    )

    assert [bar.open_ns for bar in bars_of(outputs)] == [OPEN_NS, OPEN_NS + 3 * BAR_NS]


def test_the_last_bar_of_a_session_is_cut_at_its_close() -> None:
    feed = a_feed({"Nifty": "60"})

    outputs = outputs_of(feed, a_tick(at_ns=CLOSE_NS - MINUTE_NS), a_time(CLOSE_NS))

    assert [(bar.open_ns, bar.close_ns) for bar in bars_of(outputs)] == [
        (CLOSE_NS - 15 * MINUTE_NS, CLOSE_NS)
    ]


def test_instruments_close_their_bars_in_order_of_time_and_name() -> None:
    feed = a_feed({"Nifty": "5", "bank nifty": "5"})
    messages = [a_tick(), a_tick(instrument="Bank_Nifty"), a_time(OPEN_NS + BAR_NS)]

    outputs = outputs_of(feed, *messages)

    assert [bar.instrument for bar in bars_of(outputs)] == ["Bank_Nifty", "Nifty"]


def test_the_volume_of_a_bar_is_the_change_of_the_volume_of_the_day() -> None:
    feed = a_feed()

    outputs = outputs_of(
        feed,
        a_tick(volume_today=100),
        a_tick(at_ns=OPEN_NS + MINUTE_NS, volume_today=150),
        a_tick(at_ns=OPEN_NS + BAR_NS, volume_today=170),
        a_tick(at_ns=OPEN_NS + BAR_NS + MINUTE_NS, volume_today=400),
        a_time(OPEN_NS + 2 * BAR_NS),
    )

    assert [bar.volume for bar in bars_of(outputs)] == [150, 250]


def test_the_volume_starts_anew_with_each_session() -> None:
    feed = a_feed()

    outputs = outputs_of(
        feed,
        a_tick(volume_today=5000, at_ns=CLOSE_NS - MINUTE_NS),
        a_time(CLOSE_NS),
        a_time(OPEN_NS + DAY_NS),
        a_tick(volume_today=30, at_ns=OPEN_NS + DAY_NS + SECOND_NS),
        a_time(OPEN_NS + DAY_NS + BAR_NS),
    )

    assert [bar.volume for bar in bars_of(outputs)] == [0, 30]


def test_volume_traded_before_a_start_in_mid_session_is_no_bars() -> None:
    feed = a_feed()
    start = OPEN_NS + 60 * MINUTE_NS

    outputs = outputs_of(
        feed,
        a_tick(volume_today=90_000, at_ns=start),
        a_tick(volume_today=90_040, at_ns=start + SECOND_NS),
        a_time(start + BAR_NS),
    )

    assert [bar.volume for bar in bars_of(outputs)] == [40]


def test_a_correction_of_the_volume_never_makes_a_bar_negative() -> None:
    feed = a_feed()

    outputs = outputs_of(
        feed,
        a_tick(volume_today=100),
        a_tick(volume_today=80, at_ns=OPEN_NS + SECOND_NS),
        a_tick(volume_today=85, at_ns=OPEN_NS + 2 * SECOND_NS),
        a_time(OPEN_NS + BAR_NS),
    )

    assert [bar.volume for bar in bars_of(outputs)] == [105]


def test_the_memory_is_two_bars_of_the_longest_timeframe() -> None:
    feed = a_feed({"Nifty": "5", "Bank_Nifty": "15"})

    assert feed.memory_ns == 30 * MINUTE_NS


def test_a_feed_that_restarts_from_its_memory_goes_on_with_the_same_bars() -> None:
    ticks = [
        a_tick(str(100 + n), OPEN_NS + n * MINUTE_NS, volume_today=10 * n) for n in range(1, 30)
    ]
    whole = bars_of(outputs_of(a_feed(), *ticks, a_time(OPEN_NS + 6 * BAR_NS)))
    restarted = a_feed()
    cut = 17
    since = ticks[cut].event_ns - (restarted.memory_ns or 0)

    outputs_of(restarted, *(tick for tick in ticks[:cut] if tick.event_ns >= since))
    after = bars_of(outputs_of(restarted, *ticks[cut:], a_time(OPEN_NS + 6 * BAR_NS)))

    assert after == whole[-len(after) :]
    assert len(after) == 3


def test_unknown_instruments_and_impossible_timeframes_are_refused_at_the_start() -> None:
    with pytest.raises(UnknownInstrument, match="Nifti"):
        a_feed({"Nifti": "5"})
    with pytest.raises(ValueError, match="timeframe must be minutes"):
        a_feed({"Nifty": "5m"})
    with pytest.raises(ValueError, match="names no instrument"):
        a_feed({})


# Refused ticks


REFUSED: dict[str, list[Message]] = {
    "price not positive": [a_tick("0", OPEN_NS + SECOND_NS)],
    "negative volume": [a_tick("100", OPEN_NS + SECOND_NS, volume_today=-1)],
    "from the future": [a_time(OPEN_NS), a_tick("999", OPEN_NS + 3 * SECOND_NS)],
    "outside the session": [a_tick("999", OPEN_NS - SECOND_NS)],
    "duplicate": [a_tick("100", OPEN_NS)],
    "out of order": [
        a_tick("100", OPEN_NS + 2 * SECOND_NS),
        a_tick("999", OPEN_NS + SECOND_NS),
    ],
}


def test_new_quotes_within_a_second_are_news_and_count_as_the_ticks_they_stand_for() -> None:
    quotes = [a_tick("100", bid=Decimal(99), ask=Decimal(ask)) for ask in (101, 102, 103)]
    conflated = msgspec.structs.replace(quotes[2], conflated=1)
    close = a_time(OPEN_NS + BAR_NS)

    [bar] = bars_of(outputs_of(a_feed(), *quotes, close))
    [same] = bars_of(outputs_of(a_feed(), quotes[0], conflated, close))

    assert (bar.ticks, bar.spread) == (3, Decimal(4))
    assert same == bar


@pytest.mark.parametrize("reason", REFUSED)
def test_a_refused_tick_is_counted_and_reported_and_touches_no_bar(reason: str) -> None:
    feed = a_feed()

    outputs = outputs_of(feed, a_tick("100"), *REFUSED[reason])
    closing = outputs_of(feed, a_time(OPEN_NS + BAR_NS))

    [alert] = alerts_of(outputs)
    assert (alert.severity, alert.runbook, alert.instrument) == (
        "warning",
        "Refused ticks",
        "Nifty",
    )
    assert reason in alert.text
    assert feed.refused == {("Nifty", reason): 1}
    [quarantined] = [one for one in outputs if isinstance(one, RefusedTick)]
    assert (quarantined.tick, quarantined.reason) == (REFUSED[reason][-1], reason)
    assert quarantined.count == 1
    [bar] = bars_of(closing)
    assert (bar.high, bar.low) == (Decimal(100), Decimal(100))


@pytest.mark.parametrize("price", ["NaN", "sNaN", "Infinity", "-5"])
def test_a_price_that_is_no_price_is_refused(price: str) -> None:
    feed = a_feed()

    outputs_of(feed, a_tick(price))

    assert feed.refused == {("Nifty", "price not positive"): 1}


def test_a_tick_of_a_closed_bar_is_refused() -> None:
    feed = a_feed()
    outputs_of(feed, a_tick("100"), a_time(OPEN_NS + BAR_NS))

    outputs = outputs_of(feed, a_tick("999", OPEN_NS + SECOND_NS))

    assert feed.refused == {("Nifty", "late"): 1}
    assert "late" in alerts_of(outputs)[0].text


def test_a_tick_of_a_bar_that_ended_before_the_start_is_refused() -> None:
    feed = a_feed()

    outputs_of(feed, a_time(OPEN_NS + BAR_NS), a_tick("999", OPEN_NS + SECOND_NS))

    assert feed.refused == {("Nifty", "late"): 1}


def test_a_tick_of_a_bar_closed_by_a_tick_is_refused_without_a_clock() -> None:
    feed = a_feed()

    outputs_of(feed, a_tick(), a_tick(at_ns=OPEN_NS + BAR_NS), a_tick("1", OPEN_NS + SECOND_NS))

    assert sum(feed.refused.values()) == 1


def test_unknown_instruments_are_counted_together() -> None:
    feed = a_feed()

    outputs = outputs_of(feed, *(a_tick(instrument=f"Stranger{n}") for n in range(250)))

    assert feed.refused == {(ANY_UNKNOWN, "unknown instrument"): 250}
    assert [alert.instrument for alert in alerts_of(outputs)] == [
        "Stranger0",
        "Stranger99",
        "Stranger199",
    ]


def test_refusals_are_reported_first_and_then_each_hundredth_time() -> None:
    feed = a_feed()
    outputs_of(feed, a_tick())

    outputs = outputs_of(feed, *[a_tick()] * 205)

    assert ["1 so far" in alert.text for alert in alerts_of(outputs)] == [True, False, False]
    assert "200 so far" in alerts_of(outputs)[2].text


def test_two_trades_in_one_instant_at_different_prices_both_count() -> None:
    feed = a_feed()

    outputs = outputs_of(feed, a_tick("100"), a_tick("101"), a_time(OPEN_NS + BAR_NS))

    assert bars_of(outputs)[0].ticks == 2


def test_a_tick_within_the_tolerance_of_the_clock_is_believed() -> None:
    feed = a_feed()

    outputs_of(feed, a_time(OPEN_NS), a_tick(at_ns=OPEN_NS + 2 * SECOND_NS))

    assert not feed.refused


def test_a_holiday_is_outside_the_session() -> None:
    feed = a_feed()

    outputs_of(feed, a_tick(at_ns=OPEN_NS + 7 * DAY_NS))

    assert feed.refused == {("Nifty", "outside the session"): 1}


# Silence


def seconds(start: int, stop: int) -> list[TimeEvent]:
    return [a_time(OPEN_NS + second * SECOND_NS) for second in range(start, stop)]


def test_a_silent_feed_raises_one_alert_after_ten_seconds() -> None:
    feed = a_feed()

    early = outputs_of(feed, a_tick(), *seconds(0, 11))
    late = outputs_of(feed, *seconds(11, 100))

    assert early == []
    [alert] = alerts_of(late)
    assert (alert.severity, alert.runbook, alert.instrument) == ("warning", "Silent feed", "Nifty")
    assert alert.at_ns == OPEN_NS + 11 * SECOND_NS


def test_ticks_that_come_back_are_reported_once() -> None:
    feed = a_feed()
    outputs_of(feed, a_tick(), *seconds(0, 20))

    outputs = outputs_of(feed, *(a_tick(at_ns=OPEN_NS + (19 + n) * SECOND_NS) for n in range(2)))

    assert [(alert.severity, alert.runbook) for alert in alerts_of(outputs)] == [
        ("info", "Silent feed")
    ]


def test_a_feed_that_never_speaks_is_silent_too() -> None:
    outputs = outputs_of(a_feed(), *seconds(0, 12))

    assert [alert.runbook for alert in alerts_of(outputs)] == ["Silent feed"]


def test_the_same_tick_again_and_again_is_silence() -> None:
    feed = a_feed()
    outputs_of(feed, a_tick())

    outputs = [output for time in seconds(0, 12) for output in outputs_of(feed, a_tick(), time)]

    assert {alert.runbook for alert in alerts_of(outputs)} == {"Refused ticks", "Silent feed"}


def test_nobody_expects_ticks_while_the_exchange_is_closed() -> None:
    feed = a_feed()
    outputs_of(feed, a_tick(at_ns=CLOSE_NS - SECOND_NS), a_time(CLOSE_NS))

    night = outputs_of(feed, *(a_time(CLOSE_NS + n * MINUTE_NS) for n in range(1, 1000)))

    assert night == []


def test_a_new_session_has_its_own_ten_seconds_and_its_own_alert() -> None:
    feed = a_feed()
    outputs_of(feed, *seconds(0, 20))

    early = outputs_of(feed, a_time(OPEN_NS + DAY_NS), a_time(OPEN_NS + DAY_NS + 10 * SECOND_NS))
    late = outputs_of(feed, a_time(OPEN_NS + DAY_NS + 11 * SECOND_NS))

    assert early == []
    assert [alert.runbook for alert in alerts_of(late)] == ["Silent feed"]


def test_candles_played_as_ticks_are_not_silent_between_them() -> None:
    feed = a_feed()
    third = BAR_NS // 3
    messages: list[Message] = []
    for bar in range(5):
        for part, price in enumerate(("100", "99", "103", "102")):
            at_ns = OPEN_NS + bar * BAR_NS + min(part * third, BAR_NS - 1_000_000)
            messages += [
                a_time(at_ns),
                a_tick(price, at_ns, origin="candle_path"),
                *(a_time(at_ns + second * SECOND_NS) for second in range(1, 100, 10) if part < 3),
            ]
    messages += [a_time(OPEN_NS + 5 * BAR_NS), a_time(OPEN_NS + 6 * BAR_NS)]

    outputs = outputs_of(feed, *messages)

    assert len(bars_of(outputs)) == 5
    assert alerts_of(outputs) == []


def test_a_missing_stretch_of_candles_is_silence() -> None:
    feed = a_feed()
    outputs_of(feed, a_time(), a_tick(origin="candle_path"))

    early = outputs_of(feed, a_time(OPEN_NS + BAR_NS + 10 * SECOND_NS))
    late = outputs_of(feed, a_time(OPEN_NS + BAR_NS + 11 * SECOND_NS))

    assert alerts_of(early) == []
    assert [alert.runbook for alert in alerts_of(late)] == ["Silent feed"]


# Promises


ticks = st.lists(
    st.builds(
        lambda price, second, volume: a_tick(
            Decimal(price) / 20, OPEN_NS + second * SECOND_NS, volume_today=volume
        ),
        st.integers(-5, 10_000),
        st.integers(-10, 4000),
        st.integers(-1, 1000),
    ),
    max_size=40,
)


def with_clock(messages: list[Tick]) -> list[Message]:
    """Put a TimeEvent before every tick and behind the last one, as a clock in step does."""
    timed: list[Message] = []
    for tick in messages:
        timed += [a_time(max(tick.event_ns, OPEN_NS)), tick]
    return timed


@settings(max_examples=60, deadline=None)
@given(ticks, st.lists(st.integers(-10, 4000), max_size=10))
def test_any_ticks_and_times_give_true_ascending_bars(ticks: list[Tick], times: list[int]) -> None:
    feed = a_feed()
    messages: list[Message] = list(ticks)
    for position, second in enumerate(times):
        messages.insert(3 * position, a_time(OPEN_NS + second * SECOND_NS))

    outputs = outputs_of(feed, *messages, a_time(CLOSE_NS))

    bars = bars_of(outputs)
    for bar in bars:
        assert bar.low <= min(bar.open, bar.close) <= max(bar.open, bar.close) <= bar.high
        assert bar.low > 0
        assert bar.volume >= 0
        assert bar.ticks > 0
        assert bar.close_ns - bar.open_ns == BAR_NS
    for before, after in pairwise(bars):
        assert before.close_ns <= after.open_ns
    assert sum(bar.ticks for bar in bars) + sum(feed.refused.values()) == len(ticks)
    quarantined = [output for output in outputs if isinstance(output, RefusedTick)]
    assert len(quarantined) == sum(feed.refused.values())


@settings(max_examples=60, deadline=None)
@given(ticks)
def test_ticks_and_the_clock_close_the_same_bars(ticks: list[Tick]) -> None:
    ascending = sorted(ticks, key=lambda tick: tick.event_ns)

    by_ticks = bars_of(outputs_of(a_feed(), *ascending, a_time(CLOSE_NS)))
    by_clock = bars_of(outputs_of(a_feed(), *with_clock(ascending), a_time(CLOSE_NS)))

    assert by_ticks == by_clock


@pytest.mark.parametrize(
    ("instrument", "at", "expected"),
    [
        ("Nifty", "2026-07-31 15:20", True),
        ("Nifty", "2026-08-03 15:10", True),
        ("Nifty", "2026-08-03 15:15", False),
        ("Nifty", "2026-08-03 15:35", False),
    ],
)
def test_a_bar_of_the_closing_auction_is_marked(
    instrument: str, at: str, *, expected: bool
) -> None:
    moment = datetime.fromisoformat(at).replace(tzinfo=ZoneInfo("Asia/Kolkata"))
    open_ns = int(moment.timestamp()) * SECOND_NS
    feed = MarketFeedActor(FeedSettings(), a_catalogue(), load_sessions(None), {instrument: "5"})

    outputs = outputs_of(feed, a_tick(at_ns=open_ns), a_time(open_ns + BAR_NS))

    [bar] = bars_of(outputs)
    assert bar.is_continuous is expected


def test_a_calendar_without_segments_marks_nothing() -> None:
    outputs = outputs_of(a_feed(), a_tick(), a_time(OPEN_NS + BAR_NS))

    assert bars_of(outputs)[0].is_continuous


@pytest.mark.parametrize(
    ("bid", "ask", "spread"),
    [
        ("100.05", "100.20", Decimal("0.15")),
        ("100.05", "100.05", Decimal("0.00")),
        ("100.20", "100.05", None),  # crossed quotes say nothing
        (None, "100.20", None),
        ("NaN", "100.20", None),
    ],
)
def test_a_bar_carries_the_spread_of_its_last_quotes(
    bid: str | None, ask: str, spread: Decimal | None
) -> None:
    quotes = {"bid": None if bid is None else Decimal(bid), "ask": Decimal(ask)}

    outputs = outputs_of(
        a_feed(),
        a_tick("100", bid=Decimal(90), ask=Decimal(95)),
        a_tick("100.1", OPEN_NS + SECOND_NS, **quotes),
        a_time(OPEN_NS + BAR_NS),
    )

    assert bars_of(outputs)[0].spread == spread


def test_a_bar_carries_the_days_to_expiry_of_its_day() -> None:
    moment = datetime(2026, 11, 18, 11, 0, tzinfo=ZoneInfo("Asia/Kolkata"))
    open_ns = int(moment.timestamp()) * SECOND_NS
    feed = MarketFeedActor(FeedSettings(), a_catalogue(), load_sessions(None), {"Nifty": "5"})

    outputs = outputs_of(feed, a_tick(at_ns=open_ns), a_time(open_ns + BAR_NS))

    assert bars_of(outputs)[0].days_to_expiry == 5  # Monday: Tuesday the 24th is a holiday


def test_a_contract_counts_the_days_to_its_own_expiry() -> None:
    moment = datetime(2026, 11, 18, 11, 0, tzinfo=ZoneInfo("Asia/Kolkata"))
    open_ns = int(moment.timestamp()) * SECOND_NS
    future = Instrument(
        symbol="Nifty_Dec",
        name="Nifty future",
        exchange_symbol="NSE:NIFTY26DECFUT",
        kind="stock",
        lot_size=65,
        tick_size=Decimal("0.10"),
        expiry=date(2026, 12, 29),
    )
    feed = MarketFeedActor(
        FeedSettings(), InstrumentCatalogue([future]), load_sessions(None), {"Nifty_Dec": "5"}
    )

    outputs = outputs_of(
        feed, a_tick(instrument="Nifty_Dec", at_ns=open_ns), a_time(open_ns + BAR_NS)
    )

    assert bars_of(outputs)[0].days_to_expiry == 41
