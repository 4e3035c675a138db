"""Depth: what a bar says of the order book, and when it rather says nothing."""

from typing import Any

import pytest
from builders import (
    MINUTE_NS,
    OPEN_NS,
    SECOND_NS,
    a_calendar,
    a_catalogue,
    a_depth,
    a_tick,
    a_time,
    outputs_of,
)

from actors.depth import imbalance
from actors.market_feed import MarketFeedActor
from actors.messages import Bar, Depth, Message
from actors.policies import FeedSettings

CLOSE_NS = OPEN_NS + MINUTE_NS
FRESH_S = 10


def a_book(wanted: int, offered: int = 100, before_close_ms: int = 500, **fields: Any) -> Depth:
    at_ns = CLOSE_NS - before_close_ms * SECOND_NS // 1000
    return a_depth({"99": wanted}, {"101": offered}, at_ns, **fields)


def bar_after(*messages: Message, feed: MarketFeedActor | None = None) -> Bar:
    """Return the first bar, of a minute with a tick shortly before its end."""
    feed = feed or a_feed()
    tick = a_tick("100", CLOSE_NS - SECOND_NS)
    outputs = outputs_of(feed, tick, *messages, a_time(CLOSE_NS))
    [bar] = [output for output in outputs if isinstance(output, Bar)]
    return bar


def a_feed() -> MarketFeedActor:
    return MarketFeedActor(
        FeedSettings(stale_after_seconds=FRESH_S), a_catalogue(), a_calendar(), {"Nifty": "1"}
    )


# A book


def test_the_imbalance_is_the_difference_of_all_levels_over_their_sum() -> None:
    book = a_depth({"99.95": 300, "99.9": 100}, {"100": 50, "100.05": 50})

    assert imbalance(book) == 0.6


@pytest.mark.parametrize(
    ("bids", "asks"),
    [
        ({}, {}),
        ({"99": 5}, {}),
        ({}, {"101": 5}),
        ({"101": 5}, {"99": 5}),  # crossed
        ({"100": 5}, {"100": 5}),  # locked
        ({"0": 5}, {"100": 5}),
        ({"NaN": 5}, {"100": 5}),
        ({"99": 5}, {"Infinity": 5}),
        ({"99": 5, "98": -1}, {"100": 5}),
        ({"99": 5}, {"100": 0}),
    ],
)
def test_a_book_that_is_one_sided_crossed_or_impossible_says_nothing(
    bids: dict[str, int], asks: dict[str, int]
) -> None:
    assert imbalance(a_depth(bids, asks)) is None


# At the close of a bar


def test_a_bar_has_the_imbalance_of_the_last_book_before_its_close() -> None:
    assert bar_after(a_book(100, before_close_ms=700), a_book(300)).depth_imbalance == 0.5


def test_a_bar_without_a_book_has_none() -> None:
    assert bar_after().depth_imbalance is None


def test_a_book_of_another_instrument_is_no_matter() -> None:
    assert bar_after(a_book(300, instrument="Bank_Nifty")).depth_imbalance is None


@pytest.mark.parametrize(
    ("age_ms", "expected"), [(FRESH_S * 1000, 0.5), (FRESH_S * 1000 + 1, None)]
)
def test_a_book_older_than_the_feed_may_be_silent_says_nothing(
    age_ms: int, expected: float | None
) -> None:
    assert bar_after(a_book(300, before_close_ms=age_ms)).depth_imbalance == expected


def test_a_one_sided_book_hides_the_one_before_it() -> None:
    one_sided = a_depth({"99": 5}, {}, CLOSE_NS - 1)

    assert bar_after(a_book(300), one_sided).depth_imbalance is None


def test_a_book_received_at_or_after_the_close_belongs_to_the_next_bar() -> None:
    feed = a_feed()

    bar = bar_after(a_book(300), a_book(100, before_close_ms=0), feed=feed)
    later = outputs_of(
        feed,
        a_time(CLOSE_NS + 55 * SECOND_NS),
        a_tick("100", CLOSE_NS + 55 * SECOND_NS),
        a_book(900, before_close_ms=-55_000),
        a_time(CLOSE_NS + MINUTE_NS),
    )

    assert bar.depth_imbalance == 0.5
    assert [one.depth_imbalance for one in later if isinstance(one, Bar)] == [0.8]


@pytest.mark.parametrize("later_book_first", [True, False])
def test_a_bar_is_the_same_in_whatever_order_clock_and_later_books_come(
    later_book_first: bool,
) -> None:
    feed = a_feed()
    outputs_of(feed, a_tick("100", CLOSE_NS - SECOND_NS), a_book(300))
    later = [a_book(100, before_close_ms=-20), a_book(90, before_close_ms=-40)]
    streams = [*later, a_time(CLOSE_NS)] if later_book_first else [a_time(CLOSE_NS), *later]

    [bar] = [out for out in outputs_of(feed, *streams) if isinstance(out, Bar)]

    assert bar.depth_imbalance == 0.5


def test_an_actor_that_is_built_anew_remembers_the_book() -> None:
    feed = a_feed()
    for message in (a_tick("100", CLOSE_NS - SECOND_NS), a_book(300)):
        feed.remember(message)

    [bar] = [out for out in outputs_of(feed, a_time(CLOSE_NS)) if isinstance(out, Bar)]

    assert bar.depth_imbalance == 0.5
