"""Events that follow by rule from sessions.yaml: expiries and holidays, within the days covered.

They are written nowhere twice: the calendar and the expiry rules say when, events.yaml how much
they weigh. What is only announced, such as a policy meeting, is listed in events.yaml itself.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from typing import Final

from actors.instruments import Instrument
from actors.policies import EventSettings, ScheduledEvent
from actors.session import SessionCalendar, SessionDay
from actors.session_table import TradingDays

_NS_PER_SECOND: Final = 1_000_000_000


def horizon_problems(
    settings: EventSettings, calendar: SessionCalendar, instruments: Iterable[Instrument]
) -> list[str]:
    """Say for which instruments days are covered whose holidays nobody knows."""
    if settings.covers_until is None:
        return []
    problems = []
    for instrument in covered(settings, instruments):
        known_until = _table(calendar, instrument.session).covered_until
        if settings.covers_until > known_until:
            problems.append(
                f"covers_until {settings.covers_until} is after {known_until}, the last day whose "
                f"holidays sessions.yaml knows for {instrument.symbol}: set it no later"
            )
    return problems


def events_by_rule(
    settings: EventSettings, calendar: SessionCalendar, instruments: Iterable[Instrument]
) -> tuple[ScheduledEvent, ...]:
    """Return the expiries and holidays of the days and instruments covered, in order of time.

    An expiry weighs at the close of its day, a holiday at the close of the session before it.
    """
    found: list[ScheduledEvent] = []
    for instrument in covered(settings, instruments):
        if settings.expiry_weight:
            found.extend(_expiries(settings, calendar, instrument))
        if settings.holiday_weight:
            found.extend(_holidays(settings, calendar, instrument))
    return tuple(sorted(found, key=lambda event: (event.at_ns, event.kind, event.instruments)))


def covered(settings: EventSettings, instruments: Iterable[Instrument]) -> list[Instrument]:
    """Return the instruments that the list of events is complete for."""
    if settings.covers_from is None:
        return []
    named = settings.covers_instruments
    return [one for one in instruments if not named or one.symbol in named]


def _expiries(
    settings: EventSettings, calendar: SessionCalendar, instrument: Instrument
) -> Iterator[ScheduledEvent]:
    for day in _days(settings, calendar, instrument):
        if day.intervals and calendar.days_to_expiry(instrument.exchange_symbol, day.start_ns) == 0:
            yield ScheduledEvent(
                at=_close(day),
                kind="expiry",
                name=f"{instrument.symbol} expiry",
                source="expiry rule and holidays of sessions.yaml",
                weight=settings.expiry_weight,
                instruments=(instrument.symbol,),
            )


def _holidays(
    settings: EventSettings, calendar: SessionCalendar, instrument: Instrument
) -> Iterator[ScheduledEvent]:
    occasions = _table(calendar, instrument.session).holidays
    last: SessionDay | None = None
    for day in _days(settings, calendar, instrument):
        if day.intervals:
            last = day
        elif day.key in occasions and last is not None:
            yield ScheduledEvent(
                at=_close(last),
                kind="holiday",
                name=f"before {occasions[day.key]}",
                source="holidays of sessions.yaml",
                weight=settings.holiday_weight,
                instruments=(instrument.symbol,),
            )
            last = None  # two holidays in a row are one closure


def _days(
    settings: EventSettings, calendar: SessionCalendar, instrument: Instrument
) -> Iterator[SessionDay]:
    if settings.covers_from is None or settings.covers_until is None:
        return iter(())
    first_ns, last_ns = _noon_ns(settings.covers_from), _noon_ns(settings.covers_until)
    return calendar.days(instrument.session, first_ns, last_ns)


def _table(calendar: SessionCalendar, market: str) -> TradingDays:
    return calendar.table.calendars[calendar.table.markets[market].calendar]


def _close(day: SessionDay) -> datetime:
    return datetime.fromtimestamp(day.intervals[-1].close_ns // _NS_PER_SECOND, UTC)


def _noon_ns(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp()) * _NS_PER_SECOND
