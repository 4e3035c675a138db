"""Events: how scheduled news weighs before, at and after its time, and where nothing is known."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from builders import a_bar
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from actors.complexity import MarketComplexityActor
from actors.events import EventCalendar
from actors.policies import ComplexitySettings, EventSettings, ScheduledEvent

NOON = datetime(2024, 3, 20, 12, tzinfo=UTC)


def an_event(hours: float = 0.0, **fields: Any) -> ScheduledEvent:
    given_fields: dict[str, Any] = {"kind": "policy", "name": "a decision", "source": "a test"}
    return ScheduledEvent(at=NOON + timedelta(hours=hours), **(given_fields | fields))


def impact(*events: ScheduledEvent, hours: float = 0.0, instrument: str = "Nifty") -> float | None:
    calendar = EventCalendar(
        EventSettings(events=events, covers_from=date(2024, 3, 18), covers_until=date(2024, 3, 22))
    )
    return calendar.impact(instrument, at_ns(NOON + timedelta(hours=hours)))


def at_ns(instant: datetime) -> int:
    return int(instant.timestamp()) * 1_000_000_000


def test_an_event_weighs_fully_at_its_time_and_half_a_half_life_before_and_after() -> None:
    assert impact(an_event()) == 1.0
    assert impact(an_event(), hours=2.0) == pytest.approx(0.5)
    assert impact(an_event(), hours=-6.0) == pytest.approx(0.5)
    assert impact(an_event(weight=0.4), hours=2.0) == pytest.approx(0.2)


def test_a_covered_day_without_events_is_quiet_and_any_other_day_unknown() -> None:
    assert impact() == 0.0
    assert impact(hours=72) is None
    assert impact(hours=-72) is None
    assert EventCalendar(EventSettings(events=(an_event(),))).impact("Nifty", at_ns(NOON)) is None


def test_an_event_of_one_instrument_does_not_concern_another() -> None:
    event = an_event(instruments=("Bank_Nifty",))

    assert impact(event, instrument="Bank_Nifty") == 1.0
    assert impact(event, instrument="Nifty") == 0.0


def test_of_instruments_that_the_list_is_not_complete_for_nothing_is_known() -> None:
    calendar = EventCalendar(
        EventSettings(
            covers_from=date(2024, 3, 18),
            covers_until=date(2024, 3, 22),
            covers_instruments=("Nifty",),
            events=(an_event(),),
        )
    )

    assert calendar.impact("Nifty", at_ns(NOON)) == 1.0
    assert calendar.impact("Reliance", at_ns(NOON)) is None


@given(
    st.lists(st.tuples(st.floats(-90, 90), st.floats(0, 1)), max_size=6),
    st.floats(-40, 40),
    st.floats(-90, 90),
)
def test_impact_is_a_ratio_and_one_more_event_never_lowers_it(
    events: list[tuple[float, float]], now: float, more: float
) -> None:
    known = [an_event(hours, weight=weight) for hours, weight in events]

    before = impact(*known, hours=now)
    after = impact(*known, an_event(more), hours=now)

    assert before is not None
    assert after is not None
    assert 0.0 <= before <= after <= 1.0


def test_a_list_that_covers_only_one_end_or_runs_backwards_is_refused() -> None:
    with pytest.raises(ValidationError, match="belong together"):
        EventSettings(covers_from=date(2024, 3, 18))
    with pytest.raises(ValidationError, match="must not be after"):
        EventSettings(covers_from=date(2024, 3, 18), covers_until=date(2024, 3, 17))
    with pytest.raises(ValidationError, match="timezone"):
        ScheduledEvent(at=datetime(2024, 3, 20), kind="other", name="x", source="y")  # noqa: DTZ001


def test_news_counts_in_complexity_where_the_list_covers_the_day_and_is_missing_elsewhere() -> None:
    bar = a_bar("1000")
    day = datetime.fromtimestamp(bar.close_ns / 1e9, UTC).date()
    event = ScheduledEvent(
        at=datetime.fromtimestamp(bar.close_ns / 1e9, UTC), kind="policy", name="x", source="y"
    )
    covered = EventSettings(covers_from=day, covers_until=day, events=(event,))

    [known] = MarketComplexityActor(ComplexitySettings(events=covered)).handle(bar)
    [unknown] = MarketComplexityActor(ComplexitySettings()).handle(bar)

    assert (known.news_impact, "news" in known.missing) == (1.0, False)
    assert known.complexity == 1.0  # nothing else is known on the first bar
    assert (unknown.news_impact, "news" in unknown.missing) == (0.0, True)
