"""Market hours, holidays, end of entries and square-off time, as dated data.

The only module that knows Indian time. It reads no clock: every question brings its instant, in
nanoseconds UTC. The dates and hours themselves are data (config/sessions.yaml), whose form is in
`session_table`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Final, Literal
from zoneinfo import ZoneInfo

from actors.expiry import next_expiry
from actors.session_table import (
    WEEKDAYS,
    ExchangePhase,
    IntervalHours,
    Market,
    RegularHours,
    SessionTable,
    TradingDays,
)

__all__ = [
    "DAY_MINUTES",
    "Interval",
    "Phase",
    "SessionCalendar",
    "SessionDay",
    "SessionTable",
    "timeframe_minutes",
]

Phase = Literal["closed", "open", "exits_only", "square_off"]

DAY_MINUTES: Final = 24 * 60
_SECOND_NS: Final = 1_000_000_000
_MINUTE_NS: Final = 60 * _SECOND_NS
_ONE_DAY: Final = timedelta(days=1)
_LONGEST_CLOSURE_DAYS: Final = 14


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
    last_intervals: tuple[Interval, ...]  # of contracts that expire on this date
    special: str | None = None

    def intervals_of(self, expiry: date | None) -> tuple[Interval, ...]:
        """Return the trading of what expires on a date; None: of what does not expire."""
        if expiry is None or expiry > self.key:
            return self.intervals
        return self.last_intervals if expiry == self.key else ()


class SessionCalendar:
    """Answer what a market does at an instant.

    A market is a name of sessions.yaml: NSE and BSE (indices and derivatives), NSE_CASH and
    BSE_CASH (shares), FX, US. Unknown names raise ValueError. Days outside the covered dates, and
    days whose hours nobody has confirmed, keep their weekday hours, but for exits only.
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

    @property
    def segments(self) -> tuple[str, ...]:
        """Names of all segments; none in the plan of an old recording."""
        return tuple(self._table.segments)

    def phase(self, exchange: str, now_ns: int, expiry: date | None = None) -> Phase:
        """Tell what is allowed: nothing, everything, exits only, or closing what is open.

        expiry: last trading day of a contract, whose hours end earlier on it, and for ever after.
        """
        day = self._day_at(exchange, now_ns)
        for interval in day.intervals_of(expiry):
            if interval.open_ns <= now_ns < interval.close_ns:
                phase = interval.phase(now_ns)
                return "exits_only" if phase == "open" and not day.is_covered else phase
        return "closed"

    def interval(self, exchange: str, now_ns: int, expiry: date | None = None) -> Interval | None:
        """Return the stretch of trading that holds this instant; None while the market is closed.

        expiry: as for `phase`. In a market around the clock a stretch ends with the day and the
        next follows at once.
        """
        for interval in self._day_at(exchange, now_ns).intervals_of(expiry):
            if interval.open_ns <= now_ns < interval.close_ns:
                return interval
        return None

    def session_key(self, exchange: str, now_ns: int) -> date:
        """Return the date that daily figures of this instant count for, trading or not.

        The local date; around the clock, the date on which the session day ends.
        """
        return self._day_at(exchange, now_ns).key

    def is_covered(self, exchange: str, now_ns: int) -> bool:
        """Tell whether holidays and hours are known for this day; if not, no entry may be made."""
        return self._day_at(exchange, now_ns).is_covered

    def exchange_phase(self, segment: str, now_ns: int) -> ExchangePhase:
        """Tell what the exchange does in a segment of sessions.yaml at an instant.

        A special session with hours of its own is continuous in all segments: none of those known
        had an auction. Raises ValueError for an unknown segment.
        """
        rules = self._table.segments.get(segment)
        if rules is None:
            raise ValueError(
                f"no segment {segment!r} in sessions.yaml: use one of "
                f"{', '.join(self._table.segments)}"
            )
        day = self._day_at(rules.market, now_ns)
        if not day.intervals:
            return "closed"
        calendar = self._table.calendars[self._market(rules.market).calendar]
        special = calendar.special_sessions.get(day.key)
        if special is not None and special.sessions != "regular":
            within = any(i.open_ns <= now_ns < i.close_ns for i in day.intervals)
            return "continuous" if within else "closed"
        local = self._local(rules.market, now_ns).time()
        for phases in [days for days in rules.days if days.effective_from <= day.key][-1:]:
            for hours in phases.phases:
                if hours.start <= local < hours.until:
                    return hours.phase
        return "closed"

    def is_continuous(self, segment: str, start_ns: int, end_ns: int) -> bool:
        """Tell whether a bar [start_ns, end_ns) of a segment holds continuous trading only."""
        ends = (start_ns, end_ns - 1)
        return all(self.exchange_phase(segment, at_ns) == "continuous" for at_ns in ends)

    def days_to_expiry(self, underlying: str, now_ns: int) -> int | None:
        """Count calendar days to the next expiry of an underlying, 0 on the day; None: not known.

        underlying: the broker's name, as sessions.yaml has it. By rule, not by symbol master.
        """
        expiries = self._table.expiries.get(underlying)
        if expiries is None:
            return None
        market = expiries.market
        today = self._day_at(market, now_ns).key
        found = next_expiry(today, expiries.rules, lambda day: self._is_regular(market, day))
        holidays_until = self._table.calendars[self._market(market).calendar].covered_until
        return (found - today).days if found is not None and found <= holidays_until else None

    def _is_regular(self, exchange: str, key: date) -> bool:
        """Tell whether a date has the hours of a normal day."""
        market = self._market(exchange)
        special = self._table.calendars[market.calendar].special_sessions.get(key)
        if special is not None and special.sessions != "regular":
            return False
        return bool(self._day(exchange, key).intervals)

    def entries_until(self, exchange: str) -> date:
        """Return the last date on which entries may be made: covered, and its hours confirmed."""
        market = self._market(exchange)
        last = self._table.calendars[market.calendar].covered_until
        unconfirmed = [hours.effective_from for hours in market.hours if not hours.confirmed]
        return min([last, *(day - _ONE_DAY for day in unconfirmed)])

    def last_trading_day(self, exchange: str, now_ns: int) -> date:
        """Return the last date with regular hours up to that of an instant, itself included.

        Raises ValueError when the two weeks before had none: the calendar does not reach so far.
        """
        key = self._day_at(exchange, now_ns).key
        for back in range(_LONGEST_CLOSURE_DAYS):
            day = key - back * _ONE_DAY
            if self._is_regular(exchange, day):
                return day
        raise ValueError(
            f"sessions.yaml knows no trading day of {exchange} in the {_LONGEST_CLOSURE_DAYS} days "
            f"up to {key}: extend its calendar"
        )

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
            is_covered=calendar.covered_from <= key <= calendar.covered_until
            and all(hours.confirmed for hours in _regular_hours(market, key)),
            intervals=tuple(
                self._interval(exchange, key, hours)
                for hours in _hours_of_day(market, calendar, key)
            ),
            last_intervals=tuple(
                self._interval(exchange, key, _on_last_day(hours))
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


def _regular_hours(market: Market, key: date) -> tuple[RegularHours, ...]:
    """Return the hours of a normal day at that date: one set, or none before the first."""
    return tuple(hours for hours in market.hours if hours.effective_from <= key)[-1:]


def _on_last_day(hours: IntervalHours) -> IntervalHours:
    """Return the hours as they are for a contract that expires on the day."""
    last = hours.last_day if isinstance(hours, RegularHours) else None
    return hours if last is None else hours.model_copy(update=dict(last))


def _hours_of_day(market: Market, calendar: TradingDays, key: date) -> tuple[IntervalHours, ...]:
    regular = _regular_hours(market, key)
    special = calendar.special_sessions.get(key)
    if special is not None:
        return regular if special.sessions == "regular" else special.sessions
    if key in calendar.holidays or WEEKDAYS[key.weekday()] not in market.weekdays:
        return ()
    return regular
