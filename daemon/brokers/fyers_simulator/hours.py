"""When the simulated exchange is open: the session calendar, and changes made to it on command."""

from datetime import date, time
from typing import Final

from actors.session import SessionCalendar
from daemon.brokers.fyers_simulator.instruments import (
    BSE,
    CASH,
    NS_PER_SECOND,
    NSE,
    Contract,
    instant_ns,
    local_time,
)

SECONDS_PER_DAY: Final = 86_400

_MARKETS: Final = {
    (NSE, CASH): "NSE_CASH",
    (NSE, 11): "NSE",
    (BSE, CASH): "BSE_CASH",
    (BSE, 11): "BSE",
}


class TradingHours:
    """Tell what is open. A changed day counts for all markets."""

    def __init__(self, calendar: SessionCalendar) -> None:
        self.calendar = calendar
        self._changed: dict[date, tuple[time, time] | None] = {}

    def change_day(self, day: date, hours: tuple[time, time] | None) -> None:
        """Let a day have other hours than the calendar says; None makes it a holiday."""
        self._changed[day] = hours

    def span_ns(self, market: str, now_ns: int) -> tuple[int, int] | None:
        """Return open and close of the day of this instant; None on a day without trading.

        A day with several sessions counts from the first open to the last close.
        """
        day = local_time(now_ns).date()
        if day in self._changed:
            hours = self._changed[day]
            if hours is None:
                return None
            return instant_ns(day, hours[0]), instant_ns(day, hours[1])
        return self._calendar_span(market, day)

    def is_open(self, market: str, now_ns: int) -> bool:
        if local_time(now_ns).date() not in self._changed:
            return self.calendar.interval(market, now_ns) is not None
        span = self.span_ns(market, now_ns)
        return span is not None and span[0] <= now_ns < span[1]

    def trades(self, contract: Contract, now_ns: int) -> bool:
        """Tell whether orders in this contract are matched now."""
        if contract.expiry is not None and local_time(now_ns).date() > contract.expiry:
            return False
        return self.is_open(contract.market, now_ns)

    def status_rows(self, now_ns: int) -> list[dict[str, object]]:
        """Return what the market status call answers."""
        return [
            {
                "exchange": exchange,
                "segment": segment,
                "market_type": "NORMAL",
                "status": "OPEN" if self.is_open(market, now_ns) else "CLOSED",
            }
            for (exchange, segment), market in _MARKETS.items()
        ]

    def bar_open_ns(self, market: str, seconds: int, now_ns: int) -> int:
        """Return the start of the bar that holds an instant, counted from the open of its day."""
        day = local_time(now_ns).date()
        if seconds >= SECONDS_PER_DAY:
            return instant_ns(day, time())
        interval = None if day in self._changed else self.calendar.interval(market, now_ns)
        span = (interval.open_ns, 0) if interval is not None else self.span_ns(market, now_ns)
        base_ns = span[0] if span is not None else instant_ns(day, time())
        length_ns = seconds * NS_PER_SECOND
        return base_ns + (now_ns - base_ns) // length_ns * length_ns

    def _calendar_span(self, market: str, day: date) -> tuple[int, int] | None:
        first_ns = last_ns = None
        opens_ns = self.calendar.next_open_ns(market, instant_ns(day, time()) - 1)
        while opens_ns is not None and local_time(opens_ns).date() == day:
            interval = self.calendar.interval(market, opens_ns)
            if interval is None:
                break
            first_ns, last_ns = first_ns or interval.open_ns, interval.close_ns
            opens_ns = self.calendar.next_open_ns(market, last_ns - 1)
        if first_ns is not None and last_ns is not None:
            return first_ns, last_ns
        # Around the clock, or beyond the dates covered: what is open at noon.
        interval = self.calendar.interval(market, instant_ns(day, time(12)))
        return None if interval is None else (interval.open_ns, interval.close_ns)
