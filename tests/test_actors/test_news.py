"""News in complexity: they decay, count once, and are masked while nobody reads the feed."""

from typing import Any

import pytest
from builders import MINUTE_NS, OPEN_NS, SECOND_NS, a_bar, outputs_of
from hypothesis import given
from hypothesis import strategies as st

from actors.complexity import MarketComplexityActor
from actors.messages import MarketContext, Message, NewsItem, NewsUpdate
from actors.news import NewsMemory, together
from actors.policies import ComplexitySettings, EventSettings

CLOSE_NS = OPEN_NS + 5 * MINUTE_NS


def an_item(impact: float = 0.8, at_ns: int = CLOSE_NS, **fields: Any) -> NewsItem:
    given_fields: dict[str, Any] = {"id": "a", "impact": impact, "published_ns": at_ns}
    return NewsItem(**(given_fields | fields))


def a_reading(*items: NewsItem, read_ns: int = CLOSE_NS) -> NewsUpdate:
    return NewsUpdate(read_ns=read_ns, items=items)


def last_context(*messages: Message, **settings: Any) -> MarketContext:
    actor = MarketComplexityActor(ComplexitySettings(**settings))
    context = outputs_of(actor, *messages)[-1]
    assert isinstance(context, MarketContext)
    return context


def impact_of(*readings: NewsUpdate, now_ns: int = CLOSE_NS, half_life: float = 60) -> float | None:
    memory = NewsMemory(half_life, 300)
    for reading in readings:
        memory.add(reading)
    return memory.impact("Nifty", now_ns)


def test_news_raise_the_component_and_a_quiet_feed_is_known_to_be_quiet() -> None:
    loud = last_context(a_reading(an_item()), a_bar())
    quiet = last_context(a_reading(), a_bar())

    assert (loud.news_impact, quiet.news_impact) == (0.8, 0.0)
    assert "news" not in loud.missing
    assert "news" not in quiet.missing
    assert loud.complexity > quiet.complexity


def test_news_by_themselves_yield_nothing() -> None:
    actor = MarketComplexityActor(ComplexitySettings())

    assert outputs_of(actor, a_reading(an_item())) == []


def test_a_feed_that_was_never_read_is_masked() -> None:
    assert "news" in last_context(a_bar()).missing


@pytest.mark.parametrize("distance_s", [-301, 301])
def test_a_feed_that_was_not_read_around_the_close_is_masked(distance_s: int) -> None:
    read_ns = CLOSE_NS + distance_s * SECOND_NS

    context = last_context(a_reading(an_item(1.0, read_ns), read_ns=read_ns), a_bar())

    assert "news" in context.missing
    assert context.complexity == last_context(a_bar()).complexity


def test_an_item_weighs_half_after_a_half_life() -> None:
    item = an_item(0.8, CLOSE_NS - 30 * MINUTE_NS)

    assert impact_of(a_reading(item), half_life=30) == pytest.approx(0.4)


def test_an_item_published_after_the_close_is_not_known_at_it() -> None:
    late = a_reading(an_item(1.0, CLOSE_NS + 1), read_ns=CLOSE_NS + 1)

    assert impact_of(late) == 0.0


def test_the_same_item_counts_once_and_is_not_renewed() -> None:
    first = a_reading(an_item(0.8, CLOSE_NS - 60 * MINUTE_NS))

    assert impact_of(first, a_reading(an_item(0.8))) == pytest.approx(0.4)


def test_an_item_of_another_instrument_does_not_count() -> None:
    assert impact_of(a_reading(an_item(instruments=("Bank_Nifty",)))) == 0.0
    assert impact_of(a_reading(an_item(instruments=("Nifty", "Bank_Nifty")))) == 0.8


def test_news_and_scheduled_events_count_together() -> None:
    event: dict[str, Any] = {
        "at": "2024-03-18T09:20:00+05:30",
        "kind": "policy",
        "name": "Decision",
        "source": "a calendar",
        "weight": 0.5,
    }
    events = EventSettings.model_validate(
        {"covers_from": "2024-03-18", "covers_until": "2024-03-18", "events": [event]}
    )

    both = last_context(a_reading(an_item(0.5)), a_bar(), events=events)
    only_events = last_context(a_bar(), events=events)

    assert (both.news_impact, only_events.news_impact) == (0.75, 0.5)


@pytest.mark.parametrize("impact", [-0.1, 1.1, float("nan"), float("inf")])
def test_an_impact_that_is_none_is_refused_and_leaves_no_trace(impact: float) -> None:
    memory = NewsMemory(60, 300)

    with pytest.raises(ValueError, match="impact must be between 0 and 1"):
        memory.add(a_reading(an_item(id="good"), an_item(impact)))

    assert memory.impact("Nifty", CLOSE_NS) is None


def test_memory_keeps_the_latest_five_hundred() -> None:
    items = [an_item(0.5, CLOSE_NS - n * SECOND_NS, id=str(n)) for n in range(600)]
    memory = NewsMemory(60, 300)

    memory.add(a_reading(*items))
    memory.add(a_reading(an_item(1.0, CLOSE_NS - 500 * SECOND_NS, id="older")))

    assert impact_of(a_reading(*items)) == impact_of(a_reading(*items[:500]))
    assert memory.impact("Nifty", CLOSE_NS) == impact_of(a_reading(*items[:500]))


ratios = st.floats(0, 1)


@given(st.lists(st.tuples(ratios, st.integers(0, 10**14)), max_size=30))
def test_any_items_together_stay_a_ratio(given_items: list[tuple[float, int]]) -> None:
    items = [an_item(one, CLOSE_NS - age, id=str(n)) for n, (one, age) in enumerate(given_items)]

    impact = impact_of(a_reading(*items))

    assert impact is not None
    assert 0.0 <= impact <= 1.0


@given(st.none() | ratios, st.none() | ratios)
def test_what_is_unknown_is_left_out(one: float | None, other: float | None) -> None:
    both = together(one, other)

    if one is None or other is None:
        assert both == (other if one is None else one)
    else:
        assert both is not None
        assert max(one, other) <= both + 1e-12
        assert both <= 1.0
