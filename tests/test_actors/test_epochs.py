"""Epochs: a decision within a bar comes after a far move, seldom, and only leads out."""

from collections.abc import Iterator
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from builders import (
    MINUTE_NS,
    OPEN_NS,
    SECOND_NS,
    a_bar,
    a_calendar,
    a_catalogue,
    a_context,
    a_tick,
    a_time,
    outputs_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.epochs import context_within
from actors.market_feed import MarketFeedActor
from actors.messages import Bar, FeedGap, Message, PartialBar
from actors.policies import FeedSettings

BAR_NS = 5 * MINUTE_NS
SECOND_BAR_NS, THIRD_BAR_NS = OPEN_NS + BAR_NS, OPEN_NS + 2 * BAR_NS
NEXT_DAY_NS = OPEN_NS + 24 * 60 * MINUTE_NS
CUT_BAR = a_bar("22000", is_complete=False)
CATALOGUE, CALENDAR = a_catalogue(), a_calendar()


def a_feed(**given: Any) -> MarketFeedActor:
    """Return a feed that decides within bars: 20 points are far, ten seconds long."""
    feed = FeedSettings(**({"epochs_per_bar": 2, "epoch_spacing_seconds": 10.0} | given))
    return MarketFeedActor(feed, CATALOGUE, CALENDAR, {"Nifty": "5"})


def the_bar_before(bar: Bar | None = None, **fields: Any) -> list[Message]:
    """Return a tick of the first bar and the context of its close at 22000, with an ATR of 20."""
    return [a_tick("22000", OPEN_NS), a_context(bar or a_bar("22000"), **fields)]


def at(seconds: float, price: int | str, **fields: Any) -> Message:
    """Return a tick of the second bar."""
    return a_tick(str(price), SECOND_BAR_NS + round(seconds * SECOND_NS), **fields)


def a_gap(seconds: float) -> FeedGap:
    """Say that ticks may be missing from so many seconds after the second bar's open."""
    since_ns = SECOND_BAR_NS + round(seconds * SECOND_NS)
    return FeedGap(instrument="Nifty", since_ns=since_ns, told_ns=since_ns)


def partials(feed: MarketFeedActor, *messages: Message) -> list[PartialBar]:
    return [one for one in outputs_of(feed, *messages) if isinstance(one, PartialBar)]


def test_a_far_move_brings_out_the_bar_so_far() -> None:
    [partial] = partials(
        a_feed(),
        *the_bar_before(),
        at(20, 22005, volume_today=5),
        at(30, 21980, volume_today=12, bid=Decimal(21979), ask=Decimal(21981)),
    )

    assert partial == PartialBar(
        instrument="Nifty",
        timeframe="5",
        open=Decimal(22005),
        high=Decimal(22005),
        low=Decimal(21980),
        last_price=Decimal(21980),
        volume=12,
        open_ns=SECOND_BAR_NS,
        as_of_ns=SECOND_BAR_NS + 30 * SECOND_NS,
        ticks=2,
        reference_price=Decimal(22000),
        spread=Decimal(2),
        days_to_expiry=partial.days_to_expiry,
    )


def test_the_bar_itself_is_the_same_with_and_without() -> None:
    ticks = [*the_bar_before(), at(20, 22050), at(40, 21950), a_time(SECOND_BAR_NS + BAR_NS)]

    some = [one for one in outputs_of(a_feed(), *ticks) if isinstance(one, Bar)]
    none = outputs_of(a_feed(epochs_per_bar=0), *ticks)

    assert none == some


def test_the_next_move_counts_from_the_last_one() -> None:
    found = partials(
        a_feed(), *the_bar_before(), at(20, 22020), at(40, 22039), at(60, 22001), at(80, 22000)
    )

    moves = [(int(one.reference_price), int(one.last_price)) for one in found]
    assert moves == [(22000, 22020), (22020, 22000)]


def test_there_are_not_more_in_a_bar_than_set_and_the_next_bar_begins_anew() -> None:
    feed = a_feed(epochs_per_bar=1)
    first = partials(feed, *the_bar_before(), at(20, 22100), at(40, 22000), at(60, 22100))

    second = partials(feed, a_context(a_bar("22100", 1)), a_tick("22200", THIRD_BAR_NS + MINUTE_NS))

    assert [one.last_price for one in first] == [22100]
    assert [one.open_ns for one in second] == [THIRD_BAR_NS]


@pytest.mark.parametrize(
    ("why", "before", "ticks"),
    [
        ("too soon after the close", the_bar_before(), [at(9.9, 22100)]),
        ("not far enough", the_bar_before(), [at(60, "22019.95")]),
        ("nobody knows what is far", the_bar_before(atr=None), [at(60, 22100)]),
        ("no context has come", the_bar_before()[:1], [at(60, 22100)]),
        ("a gap lies before it", the_bar_before(), [a_tick("22100", THIRD_BAR_NS + MINUTE_NS)]),
        ("a night lies before it", the_bar_before(), [a_tick("22100", NEXT_DAY_NS + MINUTE_NS)]),
        ("its own ticks are missing", the_bar_before(), [at(1, 22000), a_gap(1), at(60, 22100)]),
        ("its first ticks are missing", the_bar_before(), [a_gap(-60), at(60, 22100)]),
        ("the bar before misses ticks", the_bar_before(bar=CUT_BAR), [at(60, 22100)]),
        ("it is refused", the_bar_before(), [at(60, 22100, volume_today=-1)]),
    ],
)  # fmt: skip
def test_no_decision_is_due_when(why: str, before: list[Message], ticks: list[Message]) -> None:
    assert partials(a_feed(), *before, *ticks) == [], why


def test_a_gap_shorter_than_a_silence_spoils_no_decision_within_the_bar() -> None:
    found = partials(a_feed(), *the_bar_before(), at(55, 22000), a_gap(55), at(60, 22100))

    assert [one.last_price for one in found] == [22100]


def test_they_are_off_unless_set() -> None:
    feed = MarketFeedActor(FeedSettings(), CATALOGUE, CALENDAR, {"Nifty": "5"})

    assert partials(feed, *the_bar_before(), at(60, 23000)) == []


def test_an_open_bar_is_shown_as_if_it_closed_now_among_what_is_known_of_closed_ones() -> None:
    before = a_context(a_bar("22000"), complexity=0.7)
    [partial] = partials(a_feed(), *the_bar_before(), at(30, 21950))

    within = context_within(before, partial)

    assert within.bar.close_ns == partial.as_of_ns < SECOND_BAR_NS + BAR_NS
    assert (within.bar.close, within.bar.open_ns) == (Decimal(21950), SECOND_BAR_NS)
    assert (within.complexity, within.atr) == (0.7, before.atr)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(-40, 40)), max_size=60),
    st.integers(1, 4),
    st.sampled_from((1.0, 15.0, 60.0)),
)
def test_whatever_the_market_does_they_are_few_apart_and_within_their_bar(
    steps: list[tuple[int, int]], most: int, spacing_s: float
) -> None:
    feed = a_feed(epochs_per_bar=most, epoch_spacing_seconds=spacing_s)

    def market() -> Iterator[Message]:
        now_s, price = 0, 22000
        for wait_s, move in steps:
            now_s, price = now_s + wait_s, price + move
            yield a_tick(str(price), OPEN_NS + now_s * SECOND_NS)

    found: list[PartialBar] = []
    decided_ns: list[int] = []
    for message in market():
        for output in outputs_of(feed, message):
            if isinstance(output, Bar):
                outputs_of(feed, a_context(output))
                decided_ns.append(output.close_ns)
            elif isinstance(output, PartialBar):
                found.append(output)
                decided_ns.append(output.as_of_ns)

    assert all(one.open_ns < one.as_of_ns < one.open_ns + BAR_NS for one in found)
    assert all(abs(one.last_price - one.reference_price) >= 20 for one in found)
    opens = [one.open_ns for one in found]
    assert all(opens.count(open_ns) <= most for open_ns in opens)
    # What was decided on last lies so far back; the ids of decisions, made of these, are unique.
    assert all(
        later - earlier >= spacing_s * SECOND_NS
        for earlier, later in pairwise(decided_ns)
        if later in {one.as_of_ns for one in found}
    )
    assert len(set(decided_ns)) == len(decided_ns)
