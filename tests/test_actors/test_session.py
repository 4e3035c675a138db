"""Phases, days and bars of the markets, on the sessions that the project ships."""

import copy
import warnings
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from actors.session import Interval, Phase, SessionCalendar, SessionTable, timeframe_minutes
from actors.session_table import ExchangePhase

SESSIONS_FILE = Path(__file__).parents[2] / "config" / "sessions.yaml"
SHIPPED: dict[str, Any] = yaml.safe_load(SESSIONS_FILE.read_text(encoding="utf-8"))
CALENDAR = SessionCalendar(SessionTable.model_validate(SHIPPED))

SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS
DAY_NS = 24 * 60 * MINUTE_NS
INDIA = ZoneInfo("Asia/Kolkata")
NEW_YORK = ZoneInfo("America/New_York")

COVERED = st.integers(
    min_value=int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()) * SECOND_NS,
    max_value=int(datetime(2026, 12, 30, tzinfo=UTC).timestamp()) * SECOND_NS,
)
MARKETS = st.sampled_from(["NSE", "NSE_CASH", "BSE", "FX"])


def india(text: str) -> int:
    """Nanoseconds UTC of an Indian wall time."""
    return int(datetime.fromisoformat(text).replace(tzinfo=INDIA).timestamp()) * SECOND_NS


def utc(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * SECOND_NS


def changed(path: tuple[str | int | date, ...], value: object) -> dict[str, Any]:
    """The shipped sessions with one value replaced."""
    table = copy.deepcopy(SHIPPED)
    at: Any = table
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return table


@pytest.mark.parametrize(
    ("market", "at", "phase"),
    [
        # until August 2026
        ("NSE", "2024-03-18 09:14:59", "closed"),
        ("NSE", "2024-03-18 09:15:00", "open"),
        ("NSE", "2024-03-18 15:14:59", "open"),
        ("NSE", "2024-03-18 15:15:00", "exits_only"),
        ("NSE", "2024-03-18 15:20:00", "square_off"),
        ("NSE", "2024-03-18 15:29:59", "square_off"),
        ("NSE", "2024-03-18 15:30:00", "closed"),
        ("NSE", "2026-07-31 15:00:00", "open"),
        # with the closing auction
        ("NSE", "2026-08-03 14:54:59", "open"),
        ("NSE", "2026-08-03 14:55:00", "exits_only"),
        ("NSE", "2026-08-03 15:05:00", "square_off"),
        ("BSE", "2026-08-03 15:39:59", "square_off"),
        ("BSE", "2026-08-03 15:40:00", "closed"),
        ("NSE_CASH", "2026-08-03 15:00:00", "square_off"),
        ("NSE_CASH", "2026-08-03 15:15:00", "closed"),
        # weekends, holidays, special sessions
        ("NSE", "2024-03-17 11:00:00", "closed"),
        ("NSE", "2026-11-24 11:00:00", "closed"),
        ("NSE", "2024-05-18 09:30:00", "open"),
        ("NSE", "2024-05-18 10:30:00", "closed"),
        ("NSE", "2024-05-18 11:45:00", "open"),
        ("NSE", "2024-05-18 12:30:00", "closed"),
        ("NSE", "2024-11-01 11:00:00", "closed"),
        ("NSE", "2024-11-01 18:10:00", "open"),
        ("NSE", "2025-02-01 15:10:00", "open"),
        ("NSE", "2025-10-21 13:50:00", "open"),
        ("NSE", "2026-02-01 10:00:00", "open"),
        ("NSE", "2026-11-08 18:10:00", "exits_only"),  # timing not confirmed: no entries
    ],
)
def test_phases_of_the_indian_markets(market: str, at: str, phase: Phase) -> None:
    assert CALENDAR.phase(market, india(at)) == phase


@pytest.mark.parametrize(
    ("at", "phase"),
    [
        ("2017-01-01 21:59:59", "closed"),  # Sunday, winter: opens at 22:00 UTC
        ("2017-01-01 22:00:00", "open"),
        ("2017-01-05 22:30:00", "open"),  # no square-off on weekdays
        ("2017-01-06 18:59:59", "open"),
        ("2017-01-06 19:00:00", "exits_only"),  # Friday
        ("2017-01-06 21:00:00", "square_off"),
        ("2017-01-06 22:00:00", "closed"),
        ("2017-01-07 12:00:00", "closed"),
        ("2017-07-09 20:59:59", "closed"),  # summer: an hour earlier
        ("2017-07-09 21:00:00", "open"),
        ("2017-07-14 20:00:00", "square_off"),
        ("2017-07-14 21:00:00", "closed"),
    ],
)
def test_phases_of_the_currency_market(at: str, phase: Phase) -> None:
    assert CALENDAR.phase("FX", utc(at)) == phase


def test_phases_of_the_us_market() -> None:
    assert CALENDAR.phase("US", utc("2018-01-03 14:29:59")) == "closed"
    assert CALENDAR.phase("US", utc("2018-01-03 14:30:00")) == "open"
    assert CALENDAR.phase("US", utc("2018-07-03 13:30:00")) == "open"
    assert CALENDAR.phase("US", utc("2018-01-03 21:00:00")) == "closed"


def test_a_day_beyond_the_covered_dates_allows_exits_only() -> None:
    beyond = india("2027-01-04 10:00:00")

    assert not CALENDAR.is_covered("NSE", beyond)
    assert CALENDAR.phase("NSE", beyond) == "exits_only"
    assert CALENDAR.phase("NSE", india("2027-01-04 15:10:00")) == "square_off"
    assert CALENDAR.is_covered("NSE", india("2026-12-04 10:00:00"))


def test_a_day_before_all_known_hours_is_closed() -> None:
    assert CALENDAR.phase("NSE", india("2019-01-01 10:00:00")) == "closed"
    assert not CALENDAR.is_covered("NSE", india("2019-01-01 10:00:00"))


def test_the_session_key_is_the_local_date() -> None:
    assert CALENDAR.session_key("NSE", utc("2024-03-18 18:29:59")) == date(2024, 3, 18)
    assert CALENDAR.session_key("NSE", utc("2024-03-18 18:30:00")) == date(2024, 3, 19)


def test_the_currency_day_ends_at_the_new_york_close() -> None:
    assert CALENDAR.session_key("FX", utc("2017-01-01 22:00:00")) == date(2017, 1, 2)
    assert CALENDAR.session_key("FX", utc("2017-01-02 21:59:59")) == date(2017, 1, 2)
    assert CALENDAR.session_key("FX", utc("2017-01-02 22:00:00")) == date(2017, 1, 3)


@pytest.mark.parametrize(
    ("market", "now", "expected"),
    [
        ("NSE", india("2024-03-18 03:00:00"), india("2024-03-18 09:15:00")),
        ("NSE", india("2024-03-18 09:15:00"), india("2024-03-19 09:15:00")),
        ("NSE", india("2024-03-22 16:00:00"), india("2024-03-26 09:15:00")),  # weekend and Holi
        ("NSE", india("2024-05-18 10:00:00"), india("2024-05-18 11:30:00")),
        ("NSE", india("2026-11-23 16:00:00"), india("2026-11-25 09:15:00")),
        ("NSE", india("2019-01-01 10:00:00"), india("2024-01-01 09:15:00")),
        ("FX", utc("2017-01-03 12:00:00"), utc("2017-01-08 22:00:00")),
        ("FX", utc("2017-01-07 12:00:00"), utc("2017-01-08 22:00:00")),
    ],
)
def test_the_next_open_skips_what_is_closed(market: str, now: int, expected: int) -> None:
    assert CALENDAR.next_open_ns(market, now) == expected


def test_the_next_open_is_unknown_beyond_the_covered_dates() -> None:
    assert CALENDAR.next_open_ns("NSE", india("2026-12-31 16:00:00")) is None


@pytest.mark.parametrize(
    ("market", "timeframe", "tick", "start", "end"),
    [
        ("NSE", "5", "2024-03-18 09:15:00", "2024-03-18 09:15:00", "2024-03-18 09:20:00"),
        ("NSE", "5", "2024-03-18 09:19:59", "2024-03-18 09:15:00", "2024-03-18 09:20:00"),
        ("NSE", "60", "2024-03-18 10:16:00", "2024-03-18 10:15:00", "2024-03-18 11:15:00"),
        ("NSE", "60", "2024-03-18 15:29:00", "2024-03-18 15:15:00", "2024-03-18 15:30:00"),
        ("NSE", "2", "2024-03-18 15:29:30", "2024-03-18 15:29:00", "2024-03-18 15:30:00"),
        ("NSE", "5", "2026-08-03 15:39:00", "2026-08-03 15:35:00", "2026-08-03 15:40:00"),
        ("NSE", "60", "2024-05-18 11:45:00", "2024-05-18 11:30:00", "2024-05-18 12:30:00"),
        ("NSE", "60", "2024-05-18 09:45:00", "2024-05-18 09:15:00", "2024-05-18 10:00:00"),
        ("NSE", "D", "2024-03-18 12:00:00", "2024-03-18 00:00:00", "2024-03-19 00:00:00"),
        ("NSE", "D", "2024-03-18 00:00:00", "2024-03-18 00:00:00", "2024-03-19 00:00:00"),
    ],
)
def test_bars_are_counted_from_the_open_and_cut_at_the_close(
    market: str, timeframe: str, tick: str, start: str, end: str
) -> None:
    assert CALENDAR.bar_open_ns(market, timeframe, india(tick)) == india(start)
    assert CALENDAR.bar_close_ns(market, timeframe, india(tick)) == india(end)


def test_currency_bars_of_an_hour_lie_on_the_hour() -> None:
    tick = utc("2017-07-12 14:59:59")

    assert CALENDAR.bar_open_ns("FX", 60, tick) == utc("2017-07-12 14:00:00")
    assert CALENDAR.bar_close_ns("FX", 60, tick) == utc("2017-07-12 15:00:00")


def test_a_daily_bar_in_new_york_follows_the_daylight_saving_of_its_day() -> None:
    tick = utc("2018-07-03 15:00:00")

    assert CALENDAR.bar_open_ns("US", "D", tick) == utc("2018-07-03 04:00:00")
    assert CALENDAR.bar_close_ns("US", "D", tick) == utc("2018-07-04 04:00:00")


@pytest.mark.parametrize(
    ("timeframe", "at"), [("5", "2024-03-18 15:30:00"), ("D", "2024-03-17 12:00:00")]
)
def test_a_tick_of_a_closed_market_has_no_bar(timeframe: str, at: str) -> None:
    with pytest.raises(ValueError, match=r"NSE is closed at 2024-03-1.*\+05:30"):
        CALENDAR.bar_open_ns("NSE", timeframe, india(at))


def test_the_interval_tells_when_all_must_be_flat() -> None:
    assert CALENDAR.interval("NSE", india("2026-08-03 10:00:00")) == Interval(
        open_ns=india("2026-08-03 09:15:00"),
        entries_until_ns=india("2026-08-03 14:55:00"),
        square_off_ns=india("2026-08-03 15:05:00"),
        flat_by_ns=india("2026-08-03 15:12:00"),
        close_ns=india("2026-08-03 15:40:00"),
    )
    assert CALENDAR.interval("NSE", india("2026-08-03 15:40:00")) is None


def test_an_interval_is_closed_outside_itself() -> None:
    interval = Interval(10, 20, 30, 35, 40)

    assert [interval.phase(at) for at in (9, 10, 20, 30, 40)] == [
        "closed",
        "open",
        "exits_only",
        "square_off",
        "closed",
    ]


@pytest.mark.parametrize("timeframe", ["0", "-5", "5m", "", "1441", "d", "\u0665", 0])
def test_an_impossible_timeframe_is_refused(timeframe: str | int) -> None:
    with pytest.raises(ValueError, match="timeframe must be minutes from 1 to 1440"):
        timeframe_minutes(timeframe)


def test_an_unknown_market_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no market 'MCX' in sessions\.yaml: use one of NSE"):
        CALENDAR.phase("MCX", 0)


ORDER: dict[Phase, int] = {"closed": 3, "open": 0, "exits_only": 1, "square_off": 2}


@given(market=MARKETS, start_ns=COVERED, step_minutes=st.integers(min_value=5, max_value=600))
def test_within_a_stretch_of_trading_the_phase_only_moves_on(
    market: str, start_ns: int, step_minutes: int
) -> None:
    interval = CALENDAR.interval(market, start_ns)
    if interval is None:
        return
    steps = range(interval.open_ns, interval.close_ns, step_minutes * MINUTE_NS)

    phases = [ORDER[CALENDAR.phase(market, at)] for at in (*steps, interval.close_ns - 1)]

    assert phases == sorted(phases)
    assert phases[-1] < ORDER["closed"]


@given(market=MARKETS, now_ns=COVERED)
def test_the_next_open_turns_a_closed_market_into_an_open_one(market: str, now_ns: int) -> None:
    opens_ns = CALENDAR.next_open_ns(market, now_ns)
    if opens_ns is None:
        return

    assert opens_ns > now_ns
    assert CALENDAR.phase(market, opens_ns - 1) == "closed"
    assert CALENDAR.phase(market, opens_ns) in {"open", "exits_only"}
    if CALENDAR.phase(market, now_ns) == "closed":
        assert CALENDAR.phase(market, (now_ns + opens_ns) // 2) == "closed"


@given(market=MARKETS, tick_ns=COVERED, minutes=st.sampled_from([1, 3, 5, 15, 30, 60, 120, 240]))
def test_bars_hold_their_tick_and_tile_the_session(market: str, tick_ns: int, minutes: int) -> None:
    interval = CALENDAR.interval(market, tick_ns)
    if interval is None:
        return

    opens = CALENDAR.bar_open_ns(market, minutes, tick_ns)
    closes = CALENDAR.bar_close_ns(market, minutes, tick_ns)

    assert interval.open_ns <= opens <= tick_ns < closes <= interval.close_ns
    assert closes - opens == minutes * MINUTE_NS or closes == interval.close_ns
    assert CALENDAR.bar_close_ns(market, minutes, opens) == closes
    if opens > interval.open_ns:
        assert CALENDAR.bar_close_ns(market, minutes, opens - 1) == opens


@given(market=MARKETS, tick_ns=COVERED)
def test_a_session_key_never_goes_back(market: str, tick_ns: int) -> None:
    assert CALENDAR.session_key(market, tick_ns) <= CALENDAR.session_key(market, tick_ns + DAY_NS)


def test_answers_do_not_depend_on_the_questions_before() -> None:
    fresh = SessionCalendar(SessionTable.model_validate(SHIPPED))
    monday, sunday = utc("2017-01-02 12:00:00"), utc("2017-01-01 12:00:00")

    forwards = [fresh.phase("FX", at) for at in (sunday, monday)]
    backwards = [fresh.phase("FX", at) for at in (monday, sunday)]

    assert forwards == backwards[::-1]


# Expiry days by rule


@pytest.mark.parametrize(
    ("underlying", "day", "expiry"),
    [
        ("NSE:NIFTY50-INDEX", "2026-11-26", "2026-12-01"),
        ("NSE:NIFTY50-INDEX", "2026-12-01", "2026-12-01"),  # on the day itself
        ("NSE:NIFTY50-INDEX", "2026-11-18", "2026-11-23"),  # Tuesday the 24th is a holiday
        ("NSE:NIFTY50-INDEX", "2026-11-24", "2026-12-01"),  # and on that holiday
        ("NSE:NIFTYBANK-INDEX", "2026-11-02", "2026-11-23"),  # the monthly one moves as well
        ("NSE:NIFTYBANK-INDEX", "2026-10-28", "2026-11-23"),
        ("NSE:NIFTYBANK-INDEX", "2026-12-01", "2026-12-29"),
        ("NSE:NIFTY50-INDEX", "2026-03-02", "2026-03-02"),  # moved from the 3rd
        ("NSE:NIFTY50-INDEX", "2026-03-27", "2026-03-30"),  # from the 31st
        ("NSE:NIFTY50-INDEX", "2026-04-08", "2026-04-13"),
        ("NSE:NIFTY50-INDEX", "2026-10-15", "2026-10-19"),
        ("NSE:NIFTY50-INDEX", "2026-11-05", "2026-11-09"),  # not the Sunday of Muhurat before it
        ("BSE:SENSEX-INDEX", "2026-01-13", "2026-01-14"),
        ("BSE:SENSEX-INDEX", "2026-03-24", "2026-03-25"),
        ("BSE:SENSEX-INDEX", "2026-05-26", "2026-05-27"),
        ("NSE:BANKEX-INDEX", "2026-11-02", "2026-11-26"),
    ],
)
def test_expiries_fall_on_the_trading_day_before_a_holiday(
    underlying: str, day: str, expiry: str
) -> None:
    days = CALENDAR.days_to_expiry(underlying, india(f"{day} 11:00:00"))

    assert days == (date.fromisoformat(expiry) - date.fromisoformat(day)).days


@pytest.mark.parametrize(
    ("underlying", "day"),
    [
        ("NSE:NIFTY50-INDEX", "2025-08-29"),  # before the first rule
        ("NSE:NIFTY50-INDEX", "2026-12-30"),  # the next one is beyond what is known
        ("FX:EURUSD", "2026-11-26"),
    ],
)
def test_an_expiry_that_nobody_knows_is_none(underlying: str, day: str) -> None:
    assert CALENDAR.days_to_expiry(underlying, india(f"{day} 11:00:00")) is None


# What the exchange does, by segment


@pytest.mark.parametrize(
    ("segment", "at", "phase"),
    [
        # before the closing auction
        ("derivative_shares", "2026-07-31 09:10:00", "pre_open"),
        ("derivative_shares", "2026-07-31 15:29:59", "continuous"),
        ("derivative_shares", "2026-07-31 15:30:00", "closed"),
        ("equity_derivatives", "2025-12-05 09:10:00", "closed"),
        ("equity_derivatives", "2025-12-08 09:10:00", "pre_open"),
        ("equity_derivatives", "2026-07-31 15:35:00", "closed"),
        ("index", "2026-07-31 15:20:00", "continuous"),
        # with it
        ("derivative_shares", "2026-08-03 15:14:59", "continuous"),
        ("derivative_shares", "2026-08-03 15:15:00", "auction_reference"),
        ("derivative_shares", "2026-08-03 15:20:00", "auction_entry"),
        ("derivative_shares", "2026-08-03 15:25:00", "auction_limit_only"),
        ("derivative_shares", "2026-08-03 15:34:59", "auction_matching"),
        ("derivative_shares", "2026-08-03 15:35:00", "closed"),
        ("derivative_shares", "2026-08-03 15:55:00", "post_close"),
        ("other_shares", "2026-08-03 15:20:00", "continuous"),
        ("other_shares", "2026-08-03 15:30:00", "closed"),
        ("equity_derivatives", "2026-08-03 15:39:59", "continuous"),
        ("equity_derivatives", "2026-08-03 15:40:00", "closed"),
        ("index", "2026-08-03 15:15:00", "auction_reference"),
        ("index", "2026-08-03 15:37:00", "closed"),
        # no normal days
        ("index", "2026-11-24 11:00:00", "closed"),  # a holiday
        ("equity_derivatives", "2026-02-01 15:20:00", "continuous"),  # the Budget, a Sunday
        ("derivative_shares", "2024-05-18 10:30:00", "closed"),  # between the halves of a drill
        ("derivative_shares", "2024-05-18 12:00:00", "continuous"),
    ],
)
def test_the_exchange_has_phases_by_segment_and_date(
    segment: str, at: str, phase: ExchangePhase
) -> None:
    assert CALENDAR.exchange_phase(segment, india(at)) == phase


def test_an_unknown_segment_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no segment 'commodities' .* derivative_shares"):
        CALENDAR.exchange_phase("commodities", 0)


@pytest.mark.parametrize(
    ("day", "last"), [("2026-07-31", "15:25"), ("2026-08-03", "15:10"), ("2026-11-26", "15:10")]
)
def test_the_last_continuous_bar_of_an_index_moves_with_the_auction(day: str, last: str) -> None:
    length = 5 * MINUTE_NS
    interval = CALENDAR.interval("NSE", india(f"{day} 11:00:00"))
    assert interval is not None
    opens = range(interval.open_ns, interval.close_ns, length)

    continuous = [at for at in opens if CALENDAR.is_continuous("index", at, at + length)]

    assert continuous == list(range(opens[0], india(f"{day} {last}:00") + 1, length))


@given(at_ns=COVERED, segment=st.sampled_from(["derivative_shares", "equity_derivatives"]))
def test_we_are_open_only_while_the_exchange_trades_continuously(at_ns: int, segment: str) -> None:
    market = "NSE_CASH" if segment == "derivative_shares" else "NSE"

    if CALENDAR.phase(market, at_ns) != "closed":
        assert CALENDAR.exchange_phase(segment, at_ns) == "continuous"


@pytest.mark.parametrize("market", ["NSE", "NSE_CASH", "BSE", "BSE_CASH"])
def test_hours_that_nobody_has_confirmed_allow_exits_only(market: str) -> None:
    before, after = india("2026-12-04 11:00:00"), india("2026-12-07 11:00:00")

    assert (CALENDAR.phase(market, before), CALENDAR.phase(market, after)) == (
        "open",
        "exits_only",
    )
    assert not CALENDAR.is_covered(market, after)


def test_the_last_day_of_entries_is_told() -> None:
    assert CALENDAR.entries_until("NSE") == date(2026, 12, 6)
    assert CALENDAR.entries_until("FX") == date(2026, 12, 31)


def test_confirmed_hours_allow_entries_again() -> None:
    table = changed(("markets", "NSE", "hours", 2, "confirmed"), value=True)

    calendar = SessionCalendar(SessionTable.model_validate(table))

    assert calendar.phase("NSE", india("2026-12-07 11:00:00")) == "open"


def test_the_days_between_two_instants_are_all_there() -> None:
    days = list(CALENDAR.days("NSE", india("2024-05-17 10:00"), india("2024-05-20 10:00")))

    assert [day.key.day for day in days] == [17, 18, 19, 20]
    assert [len(day.intervals) for day in days] == [1, 2, 0, 0]
    assert days[1].special is not None


@pytest.mark.parametrize("year", [2024, 2025, 2026])
@pytest.mark.parametrize("name", ["NSE", "BSE"])
def test_weekday_holidays_agree_with_a_second_published_calendar(year: int, name: str) -> None:
    calendars = pytest.importorskip("pandas_market_calendars")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        published = calendars.get_calendar(name).valid_days(f"{year}-01-01", f"{year}-12-31")
    theirs = {stamp.date() for stamp in published if stamp.weekday() < 5}
    days = [date(year, 1, 1) + timedelta(days=offset) for offset in range(366)]

    ours = {
        day
        for day in days
        if day.year == year
        and day.weekday() < 5
        and CALENDAR.phase(name, india(f"{day} 10:00")) != "closed"
    }

    # NSE's list there has the days of Muhurat trading, on which 10:00 is closed; BSE's has not.
    muhurat = {date(2024, 11, 1), date(2025, 10, 21)}
    assert ours == theirs - muhurat


@pytest.mark.parametrize("year", [2024, 2025, 2026])
def test_weekday_holidays_agree_with_a_published_calendar(year: int) -> None:
    exchange_calendars = pytest.importorskip("exchange_calendars")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package uses what its own dependencies deprecate
        bombay = exchange_calendars.get_calendar("XBOM", start="2024-01-01", end="2026-12-31")
        theirs = {stamp.date() for stamp in bombay.sessions}
    days = [date(year, 1, 1) + timedelta(days=offset) for offset in range(366)]

    weekdays = [day for day in days if day.year == year and day.weekday() < 5]

    ours = {day for day in weekdays if CALENDAR.phase("NSE", india(f"{day} 10:00")) != "closed"}
    assert ours == theirs & set(weekdays)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("markets", "NSE", "hours", 0, "entries_until"), "15:25", "must not be after square_off"),
        (("markets", "NSE", "hours", 0, "close"), "09:00", "must not be after close"),
        (("markets", "NSE", "hours", 1, "flat_by"), "15:01", "15:05 must not be after flat_by"),
        (("markets", "NSE", "hours", 0, "open"), 555, "written in quotes"),
        (("markets", "NSE", "hours", 1, "effective_from"), date(2023, 1, 1), "oldest first"),
        (("markets", "NSE", "hours", 1, "effective_from"), 20260803, "a date must be written"),
        (("markets", "NSE", "hours", 1, "opens_day_before"), True, "the same in all hours"),
        (("markets", "NSE", "timezone"), "Asia/Kolkatta", "unknown time zone 'Asia/Kolkatta'"),
        (("markets", "NSE", "timezone"), 5, "valid string"),
        (("markets", "NSE", "calendar"), "indian", "use one of india, forex, united_states"),
        (("markets", "NSE", "weekdays"), [], "at least 1 item"),
        (("markets", "NSE", "weekdays"), ["monday"], "'mon'"),
        (("markets", "NSE", "lunch"), "12:00", "Extra inputs"),
        (("segments", "index", "market"), "MCX", "use one of NSE, NSE_CASH"),
        (("expiries", "BSE:SENSEX-INDEX", "market"), "MCX", "use one of NSE, NSE_CASH"),
        (("segments", "index", "days", 1, "phases", 0, "until"), "15:16", "list them in order"),
        (("segments", "index", "days", 1, "phases", 0, "until"), "09:15", "must end later"),
        (("segments", "index", "days", 1, "effective_from"), date(2023, 1, 1), "oldest first"),
        (("segments", "index", "days", 0, "phases", 0, "phase"), "lunch", "'continuous'"),
        (("calendars", "india", "covered_until"), date(2023, 1, 1), "must not be after"),
        (("calendars", "india", "holidays", date(2027, 1, 26)), "Republic Day", "lie outside"),
        (
            ("calendars", "india", "special_sessions", date(2024, 5, 18), "sessions", 1, "open"),
            "09:45",
            "begins before the one until",
        ),
    ],
)
def test_impossible_sessions_are_refused(
    path: tuple[str | int | date, ...], value: object, message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        SessionTable.model_validate(changed(path, value))


def test_a_session_that_opens_as_it_closes_is_refused() -> None:
    table = copy.deepcopy(SHIPPED)
    hours = {"open": "09:15", "entries_until": "09:15", "square_off": "09:15", "close": "09:15"}
    table["calendars"]["india"]["special_sessions"][date(2024, 5, 18)]["sessions"] = [hours]

    with pytest.raises(ValidationError, match="open 09:15 must be before close 09:15"):
        SessionTable.model_validate(table)


# The last day of a contract


@pytest.mark.parametrize(
    ("at", "phase"),
    [
        ("2026-08-10 14:30:00", "open"),  # the day before
        ("2026-08-11 09:15:00", "open"),
        ("2026-08-11 13:59:59", "open"),
        ("2026-08-11 14:00:00", "exits_only"),
        ("2026-08-11 14:45:00", "square_off"),
        ("2026-08-11 15:39:59", "square_off"),
        ("2026-08-12 11:00:00", "closed"),  # it has expired
    ],
)
def test_on_its_last_day_a_contract_is_left_earlier(at: str, phase: Phase) -> None:
    assert CALENDAR.phase("NSE", india(at), date(2026, 8, 11)) == phase


def test_on_the_last_day_a_person_is_called_earlier() -> None:
    last = CALENDAR.interval("NSE", india("2026-08-11 11:00"), date(2026, 8, 11))
    other = CALENDAR.interval("NSE", india("2026-08-11 11:00"))

    assert last is not None
    assert other is not None
    assert last.flat_by_ns == india("2026-08-11 15:00")
    assert last.close_ns == other.close_ns == india("2026-08-11 15:40")


def test_a_special_session_keeps_its_hours_on_a_last_day() -> None:
    drill = india("2024-05-18 09:30")

    assert CALENDAR.phase("NSE", drill, date(2024, 5, 18)) == CALENDAR.phase("NSE", drill)


@pytest.mark.parametrize(
    ("times", "why"),
    [
        (("15:16", "15:17", "15:18"), "must not be after that of other days, 15:15"),
        (("14:00", "13:00", "15:00"), "must come in that order"),
    ],
)
def test_a_last_day_that_ends_later_or_out_of_order_is_refused(
    times: tuple[str, str, str], why: str
) -> None:
    last_day = dict(zip(("entries_until", "square_off", "flat_by"), times, strict=True))

    with pytest.raises(ValidationError, match=why):
        SessionTable.model_validate(changed(("markets", "NSE", "hours", 0, "last_day"), last_day))
