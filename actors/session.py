"""Market hours, holidays, end of entries and square-off time, as dated data.

The only module that knows Indian time. It reads no clock: every question brings its instant, in
nanoseconds UTC. The dates and hours themselves are data (config/sessions.yaml); the models of that
file stand here because nothing else needs them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise
from typing import Annotated, Final, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Phase = Literal["closed", "open", "exits_only", "square_off"]
Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]

WEEKDAYS: Final[tuple[Weekday, ...]] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES: Final = 24 * 60
_SECOND_NS: Final = 1_000_000_000
_MINUTE_NS: Final = 60 * _SECOND_NS
_ONE_DAY: Final = timedelta(days=1)


def _quoted_time(value: object) -> object:
    if isinstance(value, str | time):
        return value
    # YAML 1.1 reads a bare 15:30 as the number 930 (base 60).
    raise ValueError(f'a time must be written in quotes, like "15:30", was {value!r}')


def _calendar_date(value: object) -> object:
    if isinstance(value, date | str) and not isinstance(value, datetime):
        return value
    raise ValueError(f"a date must be written like 2026-01-26, was {value!r}")


def _known_timezone(value: object) -> object:
    if isinstance(value, str):
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError(
                f"unknown time zone {value!r}: use a name like Asia/Kolkata; if every name is "
                "unknown, install the package tzdata"
            ) from error
    return value


LocalTime = Annotated[time, BeforeValidator(_quoted_time)]
CalendarDate = Annotated[date, BeforeValidator(_calendar_date)]
TimezoneName = Annotated[str, BeforeValidator(_known_timezone)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class IntervalHours(_Table):
    """One stretch of continuous trading, in local wall time.

    Entries are allowed from open to entries_until, only exits after that; from square_off on
    positions are closed by the daemon, and by flat_by (the close, if not given) none should be
    left. entries_until equal to open means a session without entries.
    """

    open: LocalTime
    entries_until: LocalTime
    square_off: LocalTime
    close: LocalTime
    flat_by: LocalTime | None = None

    @model_validator(mode="after")
    def _times_come_in_order(self) -> Self:
        marks = [
            ("open", self.open),
            ("entries_until", self.entries_until),
            ("square_off", self.square_off),
            ("close", self.close),
        ]
        if self.flat_by is not None:
            marks.insert(3, ("flat_by", self.flat_by))
        if self._opens_day_before():
            del marks[0]
        for (earlier, a), (later, b) in pairwise(marks):
            if a > b:
                raise ValueError(
                    f"{earlier} {a:%H:%M} must not be after {later} {b:%H:%M}: move one of them"
                )
        if self.open >= self.close and not self._opens_day_before():
            raise ValueError(f"open {self.open:%H:%M} must be before close {self.close:%H:%M}")
        return self

    def _opens_day_before(self) -> bool:
        return False


class RegularHours(IntervalHours):
    """The hours of a normal day, from a date on."""

    effective_from: CalendarDate
    opens_day_before: bool = False
    """The open is on the calendar day before: a market that trades around the clock."""
    square_off_on: tuple[Weekday, ...] = WEEKDAYS
    """Days on which entries end and positions are closed; on others both wait for another day."""

    def _opens_day_before(self) -> bool:
        return self.opens_day_before


class SpecialSession(_Table):
    """A day with hours of its own, whatever its weekday; it overrides a holiday."""

    name: str = Field(min_length=1)
    sessions: Literal["regular"] | tuple[IntervalHours, ...]

    @model_validator(mode="after")
    def _sessions_do_not_overlap(self) -> Self:
        if self.sessions != "regular":
            for earlier, later in pairwise(self.sessions):
                if later.open < earlier.close:
                    raise ValueError(
                        f"the session from {later.open} begins before the one until "
                        f"{earlier.close} has ended: list them in order, apart"
                    )
        return self


class TradingDays(_Table):
    """Holidays and special sessions of some markets, and the dates for which they are known."""

    covered_from: CalendarDate
    covered_until: CalendarDate
    holidays: dict[CalendarDate, str] = Field(default_factory=dict)
    special_sessions: dict[CalendarDate, SpecialSession] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _dates_are_covered(self) -> Self:
        if self.covered_from > self.covered_until:
            raise ValueError("covered_from must not be after covered_until")
        outside = [
            day.isoformat()
            for day in (*self.holidays, *self.special_sessions)
            if not self.covered_from <= day <= self.covered_until
        ]
        if outside:
            raise ValueError(
                f"{', '.join(outside)} lie outside {self.covered_from} to {self.covered_until}: "
                "correct the dates or move covered_until"
            )
        return self


class Market(_Table):
    """One market: its clock, its weekdays, its holidays and its hours through time."""

    timezone: TimezoneName
    calendar: str
    weekdays: tuple[Weekday, ...] = Field(default=WEEKDAYS[:5], min_length=1)
    hours: tuple[RegularHours, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _hours_come_in_order_of_date(self) -> Self:
        dates = [hours.effective_from for hours in self.hours]
        if dates != sorted(set(dates)):
            raise ValueError("hours must be listed by effective_from, oldest first, each date once")
        if len({hours.opens_day_before for hours in self.hours}) > 1:
            raise ValueError("opens_day_before must be the same in all hours of one market")
        return self


class SessionTable(_Table):
    """The whole of sessions.yaml."""

    calendars: dict[str, TradingDays] = Field(min_length=1)
    markets: dict[str, Market] = Field(min_length=1)

    @model_validator(mode="after")
    def _markets_name_a_calendar(self) -> Self:
        for name, market in self.markets.items():
            if market.calendar not in self.calendars:
                raise ValueError(
                    f"market {name} names the calendar {market.calendar!r}: "
                    f"use one of {', '.join(self.calendars)}"
                )
        return self


@dataclass(frozen=True, slots=True)
class Interval:
    """One stretch of continuous trading as instants; all ends are exclusive."""

    open_ns: int
    entries_until_ns: int
    square_off_ns: int
    flat_by_ns: int
    close_ns: int

    def phase(self, now_ns: int) -> Phase:
        """Tell what is allowed at an instant."""
        if not self.open_ns <= now_ns < self.close_ns:
            return "closed"
        if now_ns < self.entries_until_ns:
            return "open"
        return "exits_only" if now_ns < self.square_off_ns else "square_off"


@dataclass(frozen=True, slots=True)
class SessionDay:
    """One session day of one market: which date, from when to when, and its trading.

    special: the name of a day with hours of its own. is_covered: its hours are known.
    """

    key: date
    start_ns: int
    end_ns: int
    is_covered: bool
    intervals: tuple[Interval, ...]
    special: str | None = None


class SessionCalendar:
    """Answer what a market does at an instant.

    A market is a name of sessions.yaml: NSE and BSE (indices and derivatives), NSE_CASH and
    BSE_CASH (shares), FX, US. Unknown names raise ValueError. Days outside the covered dates keep
    their weekday hours, but for exits only: nobody knows whether they are holidays.
    """

    def __init__(self, table: SessionTable) -> None:
        self._table = table
        self._zones = {name: ZoneInfo(market.timezone) for name, market in table.markets.items()}
        self._days: dict[tuple[str, date], SessionDay] = {}
        self._last_day: dict[
            str, SessionDay
        ] = {}  # a tick mostly falls on the day of the one before

    @property
    def table(self) -> SessionTable:
        """The table this calendar was built from."""
        return self._table

    @property
    def markets(self) -> tuple[str, ...]:
        """Names of all markets."""
        return tuple(self._table.markets)

    def phase(self, exchange: str, now_ns: int) -> Phase:
        """Tell what is allowed: nothing, everything, exits only, or closing what is open."""
        day = self._day_at(exchange, now_ns)
        for interval in day.intervals:
            if interval.open_ns <= now_ns < interval.close_ns:
                phase = interval.phase(now_ns)
                return "exits_only" if phase == "open" and not day.is_covered else phase
        return "closed"

    def interval(self, exchange: str, now_ns: int) -> Interval | None:
        """Return the stretch of trading that holds this instant; None while the market is closed.

        In a market around the clock a stretch ends with the day and the next follows at once.
        """
        for interval in self._day_at(exchange, now_ns).intervals:
            if interval.open_ns <= now_ns < interval.close_ns:
                return interval
        return None

    def session_key(self, exchange: str, now_ns: int) -> date:
        """Return the date that daily figures of this instant count for, trading or not.

        The local date; around the clock, the date on which the session day ends.
        """
        return self._day_at(exchange, now_ns).key

    def is_covered(self, exchange: str, now_ns: int) -> bool:
        """Tell whether holidays are known for this day; if not, no entry may be made."""
        return self._day_at(exchange, now_ns).is_covered

    def next_open_ns(self, exchange: str, now_ns: int) -> int | None:
        """Return when the market opens next after now; None beyond the dates covered.

        While it is open, that is the opening after the coming close.
        """
        closed_since: int | None = None
        day = self._day_at(exchange, now_ns)
        for later in self._covered_days_from(exchange, day.key):
            for interval in later.intervals:
                if interval.open_ns > now_ns and interval.open_ns != closed_since:
                    return interval.open_ns
                closed_since = interval.close_ns
        return None

    def days(self, exchange: str, start_ns: int, end_ns: int) -> Iterator[SessionDay]:
        """Yield every session day from that of `start_ns` to that of `end_ns`, trading or not."""
        key, last = self._day_at(exchange, start_ns).key, self._day_at(exchange, end_ns).key
        while key <= last:
            yield self._day(exchange, key)
            key += _ONE_DAY

    def bar_open_ns(self, exchange: str, timeframe: str | int, tick_ns: int) -> int:
        """Return the start of the bar that holds a tick, counted from the open of its session.

        timeframe: minutes, or "D" (also 1440) for the session day, midnight to midnight. Raises
        ValueError while the market is closed; a day bar only needs a day with trading.
        """
        start, _ = self._bar(exchange, timeframe, tick_ns)
        return start

    def bar_close_ns(self, exchange: str, timeframe: str | int, tick_ns: int) -> int:
        """Return the exclusive end of the bar that holds a tick, cut at the close of the session.

        The open of a bar may stand for the tick. Raises as bar_open_ns does.
        """
        _, end = self._bar(exchange, timeframe, tick_ns)
        return end

    def _bar(self, exchange: str, timeframe: str | int, tick_ns: int) -> tuple[int, int]:
        minutes = timeframe_minutes(timeframe)
        if minutes == DAY_MINUTES:
            day = self._day_at(exchange, tick_ns)
            if day.intervals:
                return day.start_ns, day.end_ns
        else:
            interval = self.interval(exchange, tick_ns)
            if interval is not None:
                length = minutes * _MINUTE_NS
                start = tick_ns - (tick_ns - interval.open_ns) % length
                return start, min(start + length, interval.close_ns)
        raise ValueError(f"{exchange} is closed at {self._local(exchange, tick_ns).isoformat()}")

    def _market(self, exchange: str) -> Market:
        try:
            return self._table.markets[exchange]
        except KeyError:
            raise ValueError(
                f"no market {exchange!r} in sessions.yaml: use one of {', '.join(self.markets)}"
            ) from None

    def _local(self, exchange: str, now_ns: int) -> datetime:
        self._market(exchange)
        return datetime.fromtimestamp(now_ns // _SECOND_NS, self._zones[exchange])

    def _day_at(self, exchange: str, now_ns: int) -> SessionDay:
        last = self._last_day.get(exchange)
        if last is not None and last.start_ns <= now_ns < last.end_ns:
            return last
        local = self._local(exchange, now_ns)
        rolls_at = self._day_begins(exchange)
        rolled = rolls_at is not None and local.time() >= rolls_at
        day = self._day(exchange, local.date() + _ONE_DAY if rolled else local.date())
        self._last_day[exchange] = day
        return day

    def _day_begins(self, exchange: str) -> time | None:
        """Return the local time at which the session day begins the evening before, if it does."""
        first = self._market(exchange).hours[0]
        return first.open if first.opens_day_before else None

    def _day(self, exchange: str, key: date) -> SessionDay:
        known = self._days.get((exchange, key))
        if known is None:
            known = self._days[exchange, key] = self._make_day(exchange, key)
        return known

    def _make_day(self, exchange: str, key: date) -> SessionDay:
        market = self._market(exchange)
        calendar = self._table.calendars[market.calendar]
        begins = self._day_begins(exchange)
        start, end = (key, key + _ONE_DAY) if begins is None else (key - _ONE_DAY, key)
        midnight_or_roll = begins or time()
        return SessionDay(
            key=key,
            start_ns=self._instant(exchange, start, midnight_or_roll),
            end_ns=self._instant(exchange, end, midnight_or_roll),
            is_covered=calendar.covered_from <= key <= calendar.covered_until,
            intervals=tuple(
                self._interval(exchange, key, hours)
                for hours in _hours_of_day(market, calendar, key)
            ),
            special=calendar.special_sessions[key].name
            if key in calendar.special_sessions
            else None,
        )

    def _interval(self, exchange: str, key: date, hours: IntervalHours) -> Interval:
        close_ns = self._instant(exchange, key, hours.close)
        day_before = isinstance(hours, RegularHours) and hours.opens_day_before
        open_ns = self._instant(exchange, key - _ONE_DAY if day_before else key, hours.open)
        if isinstance(hours, RegularHours) and WEEKDAYS[key.weekday()] not in hours.square_off_on:
            return Interval(open_ns, close_ns, close_ns, close_ns, close_ns)
        return Interval(
            open_ns=open_ns,
            entries_until_ns=self._instant(exchange, key, hours.entries_until),
            square_off_ns=self._instant(exchange, key, hours.square_off),
            flat_by_ns=self._instant(exchange, key, hours.flat_by or hours.close),
            close_ns=close_ns,
        )

    def _instant(self, exchange: str, day: date, moment: time) -> int:
        local = datetime.combine(day, moment, tzinfo=self._zones[exchange])
        return round(local.astimezone(UTC).timestamp()) * _SECOND_NS

    def _covered_days_from(self, exchange: str, key: date) -> Iterator[SessionDay]:
        calendar = self._table.calendars[self._market(exchange).calendar]
        day = max(key, calendar.covered_from)
        while day <= calendar.covered_until:
            yield self._day(exchange, day)
            day += _ONE_DAY


def timeframe_minutes(timeframe: str | int) -> int:
    """Return the length of a bar in minutes; "D" is 1440. Raise ValueError for anything else."""
    if timeframe == "D":
        return DAY_MINUTES
    text = str(timeframe)
    minutes = int(text) if text.isascii() and text.isdigit() else 0
    if not 1 <= minutes <= DAY_MINUTES:
        raise ValueError(f'timeframe must be minutes from 1 to 1440, or "D", was {timeframe!r}')
    return minutes


def _hours_of_day(market: Market, calendar: TradingDays, key: date) -> tuple[IntervalHours, ...]:
    regular = [hours for hours in market.hours if hours.effective_from <= key][-1:]
    special = calendar.special_sessions.get(key)
    if special is not None:
        return tuple(regular) if special.sessions == "regular" else special.sessions
    if key in calendar.holidays or WEEKDAYS[key.weekday()] not in market.weekdays:
        return ()
    return tuple(regular)
