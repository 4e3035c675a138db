"""Events: how much scheduled news weighs on an instrument at an instant, from dated facts.

What the events are stands in config/events.yaml; expiries and holidays follow by rule. An event
weighs more and more before its time, fully at it, and less and less after it. Outside the days and
the instruments that the file covers nothing is known, which is not the same as no news.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from actors.policies import EventSettings, ScheduledEvent

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NS_PER_SECOND: Final = 1_000_000_000
_NS_PER_HOUR: Final = 3_600_000_000_000
_FORGOTTEN_AFTER: Final = 40.0  # half-lives: by then a millionth of a millionth is left


class EventCalendar:
    """Answer for any instant what is known of scheduled events."""

    def __init__(self, settings: EventSettings) -> None:
        self._settings = settings
        self._events = sorted(settings.events, key=lambda event: event.at_ns)
        self._times = [event.at_ns for event in self._events]

    def impact(self, instrument: str, now_ns: int) -> float | None:
        """Return the impact in [0, 1]; None where the file does not say what there is.

        Several events at once weigh like independent chances: together never above 1.
        """
        settings = self._settings
        if settings.covers_from is None or settings.covers_until is None:
            return None
        if settings.covers_instruments and instrument not in settings.covers_instruments:
            return None
        day = (_EPOCH + timedelta(seconds=now_ns // _NS_PER_SECOND)).date()
        if not settings.covers_from <= day <= settings.covers_until:
            return None
        quiet = 1.0
        for event in _concerning(self._near(now_ns), instrument):
            quiet *= 1.0 - event.weight * self._nearness(event.at_ns, now_ns)
        return 1.0 - quiet

    def _near(self, now_ns: int) -> list[ScheduledEvent]:
        """Return the events that are not too long ago or too far ahead to weigh anything."""
        reach_ns = _FORGOTTEN_AFTER * _NS_PER_HOUR
        first = bisect_left(self._times, now_ns - reach_ns * self._settings.half_life_hours)
        last = bisect_right(
            self._times, now_ns + reach_ns * self._settings.approach_half_life_hours
        )
        return self._events[first:last]

    def _nearness(self, at_ns: int, now_ns: int) -> float:
        """Return 1 at the event, falling by half with each half-life before and after it."""
        hours = (now_ns - at_ns) / _NS_PER_HOUR
        half_life = self._settings.half_life_hours
        if hours < 0:
            hours, half_life = -hours, self._settings.approach_half_life_hours
        return float(0.5 ** (hours / half_life))


def _concerning(events: Sequence[ScheduledEvent], instrument: str) -> list[ScheduledEvent]:
    return [event for event in events if not event.instruments or instrument in event.instruments]
