"""What sessions.yaml may say: calendars, markets, hours and phases, checked as they are read.

What a market does at an instant is for `session` to answer.
"""

from datetime import date, datetime, time
from itertools import pairwise
from typing import Annotated, Final, Literal, Self, get_args
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
WEEKDAYS: Final[tuple[Weekday, ...]] = get_args(Weekday)

ExchangePhase = Literal[
    "pre_open",
    "continuous",
    "auction_reference",
    "auction_entry",
    "auction_limit_only",
    "auction_matching",
    "post_close",
    "closed",
]
"""What the exchange does in a segment, whatever we are allowed to do."""


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
        if self.is_overnight():
            del marks[0]
        for (earlier, a), (later, b) in pairwise(marks):
            if a > b:
                raise ValueError(
                    f"{earlier} {a:%H:%M} must not be after {later} {b:%H:%M}: move one of them"
                )
        if self.open >= self.close and not self.is_overnight():
            raise ValueError(f"open {self.open:%H:%M} must be before close {self.close:%H:%M}")
        return self

    def is_overnight(self) -> bool:
        """Tell whether the open is on the calendar day before."""
        return False


class LastDay(_Table):
    """What ends earlier on the last trading day of a contract, in local wall time."""

    entries_until: LocalTime
    square_off: LocalTime
    flat_by: LocalTime

    @model_validator(mode="after")
    def _times_come_in_order(self) -> Self:
        if not self.entries_until <= self.square_off <= self.flat_by:
            raise ValueError(
                f"last_day: entries_until {self.entries_until:%H:%M}, square_off "
                f"{self.square_off:%H:%M} and flat_by {self.flat_by:%H:%M} must come in that order"
            )
        return self


class RegularHours(IntervalHours):
    """The hours of a normal day, from a date on."""

    effective_from: CalendarDate
    confirmed: bool = True
    """False: nobody has read the circular. Days with such hours are not covered."""
    last_day: LastDay | None = None
    """For contracts that expire on the day; without it the hours are those of any other day."""
    opens_day_before: bool = False
    """The open is on the calendar day before: a market that trades around the clock."""
    square_off_on: tuple[Weekday, ...] = WEEKDAYS
    """Days on which entries end and positions are closed; on others both wait for another day."""

    def is_overnight(self) -> bool:
        """Tell whether the open is on the calendar day before."""
        return self.opens_day_before

    @model_validator(mode="after")
    def _last_day_is_no_later(self) -> Self:
        if self.last_day is None:
            return self
        for name, latest in (
            ("entries_until", self.entries_until),
            ("square_off", self.square_off),
            ("flat_by", self.flat_by or self.close),
        ):
            if getattr(self.last_day, name) > latest:
                raise ValueError(
                    f"last_day: {name} {getattr(self.last_day, name):%H:%M} must not be after that "
                    f"of other days, {latest:%H:%M}"
                )
        return self


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


class PhaseHours(_Table):
    """One phase of a day, in local wall time; `until` is exclusive."""

    phase: ExchangePhase
    start: LocalTime
    until: LocalTime


class DayPhases(_Table):
    """The phases of a normal day, from a date on."""

    effective_from: CalendarDate
    phases: tuple[PhaseHours, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _phases_come_in_order(self) -> Self:
        for hours in self.phases:
            if hours.start >= hours.until:
                raise ValueError(
                    f"{hours.phase} from {hours.start:%H:%M} must end later than it begins, was "
                    f"until {hours.until:%H:%M}"
                )
        for earlier, later in pairwise(self.phases):
            if later.start < earlier.until:
                raise ValueError(
                    f"{later.phase} from {later.start:%H:%M} begins before {earlier.phase} has "
                    f"ended at {earlier.until:%H:%M}: list them in order, apart"
                )
        return self


class Segment(_Table):
    """A part of an exchange whose prices come about in the same way; its days are a market's."""

    market: str
    days: tuple[DayPhases, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _days_come_in_order_of_date(self) -> Self:
        dates = [day.effective_from for day in self.days]
        if dates != sorted(set(dates)):
            raise ValueError("days must be listed by effective_from, oldest first, each date once")
        return self


class ExpiryRule(_Table):
    """On which weekday derivatives expire, from a date on: every week, or the month's last one."""

    effective_from: CalendarDate
    weekday: Weekday
    every: Literal["week", "month"]


class Expiries(_Table):
    """Expiry days of one underlying; a holiday moves one to the trading day of `market` before."""

    market: str
    rules: tuple[ExpiryRule, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _rules_come_in_order_of_date(self) -> Self:
        dates = [rule.effective_from for rule in self.rules]
        if dates != sorted(set(dates)):
            raise ValueError("rules must be listed by effective_from, oldest first, each date once")
        return self


class SessionTable(_Table):
    """The whole of sessions.yaml."""

    calendars: dict[str, TradingDays] = Field(min_length=1)
    markets: dict[str, Market] = Field(min_length=1)
    segments: dict[str, Segment] = Field(default_factory=dict)
    expiries: dict[str, Expiries] = Field(default_factory=dict)
    """By the broker's name of the underlying."""

    @model_validator(mode="after")
    def _markets_name_a_calendar(self) -> Self:
        for name, market in self.markets.items():
            if market.calendar not in self.calendars:
                raise ValueError(
                    f"market {name} names the calendar {market.calendar!r}: "
                    f"use one of {', '.join(self.calendars)}"
                )
        parts: dict[str, Segment | Expiries] = {**self.segments, **self.expiries}
        for name, part in parts.items():
            if part.market not in self.markets:
                raise ValueError(
                    f"{name} names the market {part.market!r}: use one of {', '.join(self.markets)}"
                )
        return self
