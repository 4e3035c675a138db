"""Day profile: what is usual at a time of day, and which times belong to the day."""

import pytest

from actors.day_profile import DAY_NS, DayProfile

BAR_NS = 300 * 1_000_000_000
OPEN_NS = 225 * 60 * 1_000_000_000  # 03:45 UTC
BARS = 6


def learned(days: range, *, bars: int = BARS) -> DayProfile:
    """Return a profile of days whose bars move by their place in the day."""
    profile = DayProfile()
    for day in days:
        learn_day(profile, day, bars)
    return profile


def learn_day(profile: DayProfile, day: int, bars: int = BARS) -> None:
    for place in range(bars):
        profile.learn(at(day, place), float(place), 10.0 + place)


def at(day: int, place: int) -> int:
    return day * DAY_NS + OPEN_NS + place * BAR_NS


def test_nothing_surprises_that_was_never_seen() -> None:
    assert DayProfile().surprise(at(0, 0), 5.0) == 0.0


def test_a_surprise_is_what_exceeds_the_usual_movement_of_that_time() -> None:
    profile = learned(range(5))

    assert profile.surprise(at(5, 3), 4.5) == pytest.approx(1.5)


def test_the_window_ahead_is_that_of_the_slot_in_which_it_ends() -> None:
    profile = learned(range(3))

    assert profile.ahead(at(2, 1), 3) == (14.0, 0.0)


def test_the_window_ahead_reaches_into_the_next_day() -> None:
    profile = learned(range(3))

    assert profile.ahead(at(2, 4), 4) == (12.0, 0.75)
    assert profile.ahead(at(2, 5), 1) == (10.0, 1.0)


def test_before_two_days_nothing_lies_ahead() -> None:
    assert learned(range(1)).ahead(at(0, 5), 1) is None
    assert learned(range(2)).ahead(at(1, 5), 1) is not None


def test_one_evening_session_does_not_lengthen_the_day() -> None:
    profile = learned(range(3))
    evening_ns = 3 * DAY_NS + 12 * 3600 * 1_000_000_000
    profile.learn(evening_ns, 9.0, 9.0)
    learn_day(profile, 4)

    assert profile.ahead(at(4, 5), 1) == (10.0, 1.0)


def test_slots_that_are_traded_no_more_are_forgotten_after_two_weeks() -> None:
    profile = learned(range(10))
    for day in range(10, 26):
        learn_day(profile, day, bars=4)

    assert profile.ahead(at(25, 3), 1) == (10.0, 1.0)


def test_early_values_of_a_slot_count_alike_and_later_ones_fade() -> None:
    profile = DayProfile()
    for day, move in enumerate((1.0, 2.0, 3.0)):
        profile.learn(at(day, 0), move, move)
    assert profile.usual_window(at(2, 0)) == pytest.approx(2.0)

    for day in range(3, 203):
        profile.learn(at(day, 0), 2.0, 2.0)
    before = profile.usual_window(at(202, 0))
    profile.learn(at(203, 0), 3.0, 3.0)

    assert profile.usual_window(at(203, 0)) - before == pytest.approx(1 - 0.5 ** (1 / 20), rel=0.01)
