"""Gaps in the feed, and the candles of history that fill them."""

from decimal import Decimal
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from builders import MINUTE_NS, OPEN_NS, SECOND_NS, a_calendar, a_catalogue, a_tick, a_time
from builders import outputs_of as outputs
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.market_feed import ANY_UNKNOWN, MarketFeedActor
from actors.messages import Alert, Bar, FeedGap, Message, PastBar
from actors.policies import FeedSettings

BAR_NS = 5 * MINUTE_NS
DAY_NS = 24 * 60 * MINUTE_NS


def a_feed(**settings: Any) -> MarketFeedActor:
    return MarketFeedActor(FeedSettings(**settings), a_catalogue(), a_calendar(), {"Nifty": "5"})


def a_past_bar(number: int = 0, close: str = "22000", **fields: Any) -> PastBar:
    price = Decimal(close)
    given: dict[str, Any] = {
        "instrument": "Nifty",
        "timeframe": "5",
        "open": price,
        "high": price,
        "low": price,
        "close": price,
        "volume": 50,
        "open_ns": OPEN_NS + number * BAR_NS,
        "told_ns": OPEN_NS + 10 * BAR_NS,
    }
    return PastBar(**(given | fields))


def a_gap(since_ns: int, told_ns: int | None = None) -> FeedGap:
    told_ns = since_ns if told_ns is None else told_ns
    return FeedGap(instrument="Nifty", since_ns=since_ns, told_ns=told_ns)


def bars_of(messages: list[Message]) -> list[Bar]:
    return [message for message in messages if isinstance(message, Bar)]


def alerts_of(messages: list[Message]) -> list[Alert]:
    return [message for message in messages if isinstance(message, Alert)]


def test_a_candle_of_history_becomes_a_bar_that_says_so() -> None:
    [bar] = outputs(a_feed(), a_past_bar(2, high=Decimal(22010)))

    assert bar == Bar(
        instrument="Nifty",
        timeframe="5",
        open=Decimal(22000),
        high=Decimal(22010),
        low=Decimal(22000),
        close=Decimal(22000),
        volume=50,
        open_ns=OPEN_NS + 2 * BAR_NS,
        close_ns=OPEN_NS + 3 * BAR_NS,
        ticks=0,
        origin="backfilled",
    )


def test_history_fills_the_bars_between_two_ticks_and_no_others() -> None:
    feed = a_feed()
    back_ns = OPEN_NS + 4 * BAR_NS + SECOND_NS

    told = outputs(
        feed,
        a_tick("100", volume_today=10),
        a_gap(OPEN_NS, OPEN_NS + SECOND_NS),
        *(a_time(OPEN_NS + n * BAR_NS) for n in range(1, 5)),
        a_tick("104", back_ns, volume_today=500),
        *(a_past_bar(n, told_ns=back_ns) for n in range(5)),
        a_tick("105", back_ns + SECOND_NS, volume_today=530),
        a_time(OPEN_NS + 5 * BAR_NS),
    )

    assert [(bar.open_ns - OPEN_NS) // BAR_NS for bar in bars_of(told)] == [0, 1, 2, 3, 4]
    assert [bar.origin == "backfilled" for bar in bars_of(told)] == [False, True, True, True, False]
    # What was traded in the gap is in the candles: the bar after it does not count it again.
    assert [bar.volume for bar in bars_of(told)] == [10, 50, 50, 50, 30]


def test_bars_at_the_edges_of_a_gap_are_not_complete() -> None:
    feed = a_feed()
    lost_ns, back_ns = OPEN_NS + 3 * MINUTE_NS, OPEN_NS + 2 * BAR_NS + MINUTE_NS

    told = outputs(
        feed,
        a_tick("100"),
        a_tick("101", lost_ns),
        a_gap(lost_ns),
        a_time(OPEN_NS + BAR_NS),
        a_time(back_ns),
        a_tick("104", back_ns),
        a_time(OPEN_NS + 3 * BAR_NS),
        a_tick("105", OPEN_NS + 3 * BAR_NS),
        a_time(OPEN_NS + 4 * BAR_NS - SECOND_NS),
        a_tick("106", OPEN_NS + 4 * BAR_NS - SECOND_NS),
        a_time(OPEN_NS + 4 * BAR_NS),
    )

    assert [bar.is_complete for bar in bars_of(told)] == [False, False, True]


@pytest.mark.parametrize(("seconds", "is_complete"), [(9, True), (11, False)])
def test_a_bar_may_miss_ticks_for_as_long_as_a_feed_may_be_silent(
    seconds: int, is_complete: bool
) -> None:
    feed = a_feed(stale_after_seconds=10.0)

    told = outputs(
        feed,
        a_tick("100", volume_today=10),
        a_gap(OPEN_NS),
        a_tick("101", OPEN_NS + seconds * SECOND_NS, volume_today=25),
        a_tick("102", OPEN_NS + BAR_NS - SECOND_NS, volume_today=25),
        a_tick("101", OPEN_NS + BAR_NS),
    )

    [bar] = bars_of(told)
    assert bar.is_complete == is_complete
    assert bar.volume == 25  # traded within the bar, seen or not


def test_a_bar_that_ends_in_a_silence_nobody_has_noticed_is_not_complete() -> None:
    told = outputs(
        a_feed(),
        a_tick("100"),
        a_tick("101", OPEN_NS + BAR_NS - 11 * SECOND_NS),
        a_time(OPEN_NS + BAR_NS),
    )

    assert [bar.is_complete for bar in bars_of(told)] == [False]


def test_played_candles_have_few_ticks_and_are_complete() -> None:
    told = outputs(a_feed(), a_tick("100", origin="candle_path"), a_time(OPEN_NS + BAR_NS))

    assert [bar.is_complete for bar in bars_of(told)] == [True]


def test_a_connection_that_was_lost_over_night_spoils_no_bar() -> None:
    feed = a_feed()
    close_ns = OPEN_NS + 375 * MINUTE_NS

    told = outputs(
        feed,
        a_tick("100", close_ns - SECOND_NS, volume_today=900),
        a_time(close_ns),
        a_gap(close_ns - SECOND_NS, close_ns),
        a_time(OPEN_NS + DAY_NS),
        a_tick("101", OPEN_NS + DAY_NS, volume_today=7),
        a_time(OPEN_NS + DAY_NS + BAR_NS - SECOND_NS),
        a_tick("102", OPEN_NS + DAY_NS + BAR_NS - SECOND_NS, volume_today=7),
        a_time(OPEN_NS + DAY_NS + BAR_NS),
    )

    assert [(bar.is_complete, bar.volume) for bar in bars_of(told)] == [(True, 0), (True, 7)]


def test_the_first_bar_after_a_late_start_is_not_complete() -> None:
    told = outputs(
        a_feed(),
        a_gap(0, OPEN_NS + MINUTE_NS),
        a_tick("100", OPEN_NS + MINUTE_NS, volume_today=9),
        a_tick("101", OPEN_NS + BAR_NS, volume_today=12),
        a_tick("102", OPEN_NS + 2 * BAR_NS - SECOND_NS, volume_today=13),
        a_tick("101", OPEN_NS + 2 * BAR_NS, volume_today=15),
    )

    assert [bar.is_complete for bar in bars_of(told)] == [False, True]


def test_a_restart_within_a_bar_counts_from_the_last_tick() -> None:
    told = outputs(
        a_feed(),
        a_tick("100", OPEN_NS + 2 * MINUTE_NS),
        a_gap(0),
        a_tick("101", OPEN_NS + 2 * MINUTE_NS + 5 * SECOND_NS),
        a_tick("102", OPEN_NS + BAR_NS - SECOND_NS),
        a_tick("101", OPEN_NS + BAR_NS),
    )

    assert [bar.is_complete for bar in bars_of(told)] == [True]


@pytest.mark.parametrize(
    ("candle", "reason"),
    [
        (a_past_bar(0), "late"),  # ticks made it
        (a_past_bar(1), "made of ticks"),  # they are making it
        (a_past_bar(3, told_ns=OPEN_NS + 3 * BAR_NS), "not closed yet"),
        (a_past_bar(2, open_ns=OPEN_NS + 2 * BAR_NS + 1), "not at the open of a bar"),
        (a_past_bar(-1), "outside the session"),
        (a_past_bar(2, low=Decimal(22001)), "impossible"),
        (a_past_bar(2, close="NaN"), "impossible"),
        (a_past_bar(2, volume=-1), "impossible"),
        (a_past_bar(2, timeframe="15"), "not traded here"),
        (a_past_bar(2, instrument="Gold"), "not traded here"),
    ],
)
def test_a_candle_that_has_no_place_is_refused_and_told(candle: PastBar, reason: str) -> None:
    feed = a_feed()
    outputs(feed, a_tick(), a_tick(at_ns=OPEN_NS + BAR_NS))

    told = outputs(feed, candle)

    assert bars_of(told) == []
    [alert] = alerts_of(told)
    assert alert.runbook == "Refused candles"
    assert reason in alert.text
    known = candle.instrument if candle.instrument == "Nifty" else ANY_UNKNOWN
    assert feed.refused[known, f"candle {reason}"] == 1


def test_refused_candles_are_told_the_first_time_and_each_hundredth() -> None:
    feed = a_feed()

    told = outputs(feed, *(a_past_bar(-1) for _ in range(200)))

    assert len(alerts_of(told)) == 3


def test_a_tick_of_a_bar_that_history_has_filled_is_late() -> None:
    feed = a_feed()
    outputs(feed, a_past_bar(0), a_past_bar(1))

    outputs(feed, a_tick(at_ns=OPEN_NS + BAR_NS))

    assert feed.refused["Nifty", "late"] == 1


_MOVES = st.lists(
    st.tuples(st.sampled_from(["tick", "gap", "past", "time"]), st.integers(0, 20 * 60)),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(_MOVES)
def test_bars_come_in_order_each_once_and_volume_is_never_counted_twice(
    moves: list[tuple[str, int]],
) -> None:
    """Whatever comes when: bars never overlap, and candles hold all that their time traded."""
    feed = a_feed()
    told: list[Message] = []
    now_s = 0
    for kind, value in moves:
        now_ns = OPEN_NS + now_s * SECOND_NS
        match kind:
            case "tick":
                now_s += value % 200
                at_ns = OPEN_NS + now_s * SECOND_NS
                # One unit a second: a bar can hold 300 at most.
                told += outputs(feed, a_tick("100", at_ns, volume_today=now_s))
            case "gap":
                told += outputs(feed, a_gap(0, now_ns))
                now_s += value
            case "past":
                told += outputs(feed, a_past_bar(value // 60, volume=300, told_ns=now_ns))
            case _:
                told += outputs(feed, a_time(now_ns))

    bars = bars_of(told)
    ends = [(bar.open_ns, bar.close_ns) for bar in bars]
    assert all(before[1] <= after[0] for before, after in pairwise(ends))
    assert all(bar.close_ns <= OPEN_NS + now_s * SECOND_NS for bar in bars)
    for bar in bars:
        if bar.origin == "backfilled":
            assert (bar.volume, bar.ticks) == (300, 0)


def test_old_recordings_of_bars_are_live_and_complete() -> None:
    last_ns = OPEN_NS + BAR_NS - SECOND_NS
    told = outputs(a_feed(), a_tick(), a_tick(at_ns=last_ns), a_tick(at_ns=OPEN_NS + BAR_NS))
    [bar] = bars_of(told)
    old = msgspec.json.encode(bar)
    fields = msgspec.json.decode(old)
    del fields["origin"], fields["is_complete"]

    assert msgspec.json.decode(msgspec.json.encode(fields), type=Bar) == bar
