"""Market feed: ticks become closed bars; ticks that cannot be true, and silence, become alerts.

Where a bar begins and ends is for session.py to say, where ticks come from for the tick source.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from types import MappingProxyType

from actors.base import Actor
from actors.epochs import Epochs
from actors.instruments import InstrumentCatalogue
from actors.messages import (
    Alert,
    Bar,
    MarketContext,
    PartialBar,
    RefusedTick,
    Severity,
    Tick,
    TimeEvent,
)
from actors.policies import FeedSettings
from actors.session import SessionCalendar, timeframe_minutes

Input = Tick | TimeEvent | MarketContext
Output = Bar | PartialBar | RefusedTick | Alert

ANY_UNKNOWN = ""
"""What refused ticks of unknown instruments are counted under: their names have no end."""

_REPEAT_ALERT_EVERY = 100
_NS_PER_SECOND = 1_000_000_000
_NS_PER_MS = 1_000_000
_NS_PER_MINUTE = 60 * _NS_PER_SECOND


class MarketFeedActor(Actor[Input, Output]):
    """Build closed bars from ticks, refuse ticks that cannot be true, notice a silent feed.

    A bar closes at the first TimeEvent at or after its end, or at the first tick there, whichever
    is handled first; its content is the same. A stretch without ticks makes no bar. A refused tick
    never touches a bar; it goes to the quarantine with its reason, is counted in `refused` and
    reported the first time and then each hundredth time for its instrument and reason.

    After a far move within a bar the bar so far goes out as well (epochs.py), if so set. How far a
    move is far is known from the context of the bar before.

    Its memory is two bars of the longest timeframe: the bar that is open, and the one before it,
    whose last tick says how much volume of the day was known when the open one began.
    """

    name = "market_feed"

    def __init__(
        self,
        settings: FeedSettings,
        catalogue: InstrumentCatalogue,
        calendar: SessionCalendar,
        timeframes: Mapping[str, str],
    ) -> None:
        """`timeframes`: instrument in any spelling -> timeframe; ticks of others are refused."""
        self._settings = settings
        self._calendar = calendar
        self._feeds: dict[str, _Feed] = {}
        for name, timeframe in timeframes.items():
            instrument = catalogue[name]
            calendar.session_key(instrument.session, 0)  # raises for a market without hours
            length_ns = timeframe_minutes(timeframe) * _NS_PER_MINUTE
            segment = instrument.price_segment
            self._feeds[instrument.symbol] = _Feed(
                instrument.symbol,
                instrument.session,
                timeframe,
                length_ns,
                segment if segment in calendar.segments else None,
                instrument.exchange_symbol,
                instrument.expiry,
                Epochs(settings),
            )
        if not self._feeds:
            raise ValueError("timeframes names no instrument: give at least one")
        longest_ns = max(feed.bar_ns for feed in self._feeds.values())
        self.memory_ns = 2 * longest_ns  # type: ignore[misc]  # the timeframes are only known here
        self._refused: Counter[tuple[str, str]] = Counter()
        self._now_ns: int | None = None  # market time of the last TimeEvent
        self._started_ns: int | None = None  # of the first one

    @property
    def refused(self) -> Mapping[tuple[str, str], int]:
        """Ticks refused since the start, by instrument (ANY_UNKNOWN) and reason."""
        return MappingProxyType(self._refused)

    def handle(self, message: Input) -> Iterator[Output]:
        match message:
            case Tick():
                yield from self._ticked(message)
            case TimeEvent(now_ns=now_ns):
                yield from self._time_passed(now_ns)
            case MarketContext(instrument=name):
                if name in self._feeds:
                    self._feeds[name].epochs.begin(message)

    def _ticked(self, tick: Tick) -> Iterator[Output]:
        feed = self._feeds.get(tick.instrument)
        if feed is None:
            yield from self._refuse(ANY_UNKNOWN, "unknown instrument", tick, repr(tick.instrument))
            return
        if problem := self._problem(feed, tick):
            reason, detail = problem
            yield from self._refuse(feed.instrument, reason, tick, detail)
            return
        if feed.bar is not None and tick.event_ns >= feed.bar.close_ns:
            yield feed.closed_bar()
        if feed.silent_interval_ns is not None:
            feed.silent_interval_ns = None
            yield self._alert(
                "info", f"ticks of {feed.instrument} have come back", "Silent feed", tick
            )
        bar = self._fold(feed, tick)
        if bar.is_continuous and feed.epochs.is_due(bar.open_ns, tick.last_price, tick.event_ns):
            yield feed.partial_bar(bar, tick)
            feed.epochs.note(tick.last_price, tick.event_ns)

    def _problem(self, feed: "_Feed", tick: Tick) -> tuple[str, str] | None:
        """Return why the tick is not to be believed, as reason and detail, or None."""
        if not tick.last_price.is_finite() or tick.last_price <= 0:
            return "price not positive", f"last_price {tick.last_price}"
        if tick.volume_today < 0:
            return "negative volume", f"volume_today {tick.volume_today}"
        tolerance_ns = self._settings.future_tolerance_ms * _NS_PER_MS
        if self._now_ns is not None and tick.event_ns > self._now_ns + tolerance_ns:
            ahead = (tick.event_ns - self._now_ns) / _NS_PER_SECOND
            return "from the future", f"dated {ahead:.1f} s ahead of the market clock"
        last = feed.last
        if last is not None and _is_same(tick, last):
            return "duplicate", f"same time, price {tick.last_price}, volume and quotes as before"
        if feed.bar is not None and feed.bar.open_ns <= tick.event_ns < feed.bar.close_ns:
            pass  # the session is open, since this bar is
        elif self._calendar.phase(feed.market, tick.event_ns) == "closed":
            return "outside the session", f"dated {tick.event_ns} while {feed.market} is closed"
        elif tick.event_ns < feed.closed_until_ns or self._is_over(feed, tick.event_ns):
            return "late", f"dated {tick.event_ns}, in a bar that has closed"
        if last is not None and tick.event_ns < last.event_ns:
            return "out of order", f"dated {tick.event_ns}, before the one at {last.event_ns}"
        return None

    def _days_to_expiry(self, feed: "_Feed", at_ns: int) -> int | None:
        """Count the days to the instrument's own last one, or to that of the options on it."""
        if feed.expiry is None:
            return self._calendar.days_to_expiry(feed.underlying, at_ns)
        return max(0, (feed.expiry - self._calendar.session_key(feed.market, at_ns)).days)

    def _is_over(self, feed: "_Feed", tick_ns: int) -> bool:
        """Tell whether the bar of this tick ended before the present market time."""
        if self._now_ns is None:
            return False
        close_ns = self._calendar.bar_close_ns(feed.market, feed.timeframe, tick_ns)
        return close_ns <= self._now_ns

    def _fold(self, feed: "_Feed", tick: Tick) -> "_OpenBar":
        if feed.bar is None:
            market, timeframe, at_ns = feed.market, feed.timeframe, tick.event_ns
            open_ns = self._calendar.bar_open_ns(market, timeframe, at_ns)
            close_ns = self._calendar.bar_close_ns(market, timeframe, at_ns)
            feed.bar = _OpenBar(
                open_ns=open_ns,
                close_ns=close_ns,
                is_continuous=self._is_continuous(feed, open_ns, close_ns),
                days_to_expiry=self._days_to_expiry(feed, open_ns),
                open=tick.last_price,
                high=tick.last_price,
                low=tick.last_price,
                close=tick.last_price,
            )
        session = self._calendar.session_key(feed.market, tick.event_ns)
        feed.bar.add(tick, self._new_volume(feed, tick, session))
        feed.last, feed.session = tick, session
        return feed.bar

    def _is_continuous(self, feed: "_Feed", open_ns: int, close_ns: int) -> bool:
        """Tell whether the prices of a bar are those of continuous trading; a day's always are."""
        if feed.segment is None or feed.timeframe == "D":
            return True
        return self._calendar.is_continuous(feed.segment, open_ns, close_ns)

    def _new_volume(self, feed: "_Feed", tick: Tick, session: date) -> int:
        """Return the units traded since the last tick; volume_today starts anew each session."""
        if feed.last is not None and feed.session == session:
            # A correction may lower the count; a bar's volume never falls.
            return max(tick.volume_today - feed.last.volume_today, 0)
        if feed.last is not None:
            return tick.volume_today
        # The first tick ever: what was traded before it is this bar's only if the session began
        # with this bar.
        interval = self._calendar.interval(feed.market, tick.event_ns)
        bar_opens_session = (
            interval is not None and feed.bar is not None and feed.bar.open_ns <= interval.open_ns
        )
        return tick.volume_today if bar_opens_session else 0

    def _time_passed(self, now_ns: int) -> Iterator[Output]:
        self._now_ns = now_ns
        if self._started_ns is None:
            self._started_ns = now_ns
        over = [
            (feed.bar.close_ns, symbol, feed)
            for symbol, feed in self._feeds.items()
            if feed.bar is not None and feed.bar.close_ns <= now_ns
        ]
        for _, _, feed in sorted(over, key=lambda item: item[:2]):
            yield feed.closed_bar()
        for feed in self._feeds.values():
            yield from self._listen(feed, now_ns, self._started_ns)

    def _listen(self, feed: "_Feed", now_ns: int, started_ns: int) -> Iterator[Output]:
        interval = self._calendar.interval(feed.market, now_ns)
        if interval is None or feed.silent_interval_ns == interval.open_ns:
            return
        limit_ns = int(self._settings.stale_after_seconds * _NS_PER_SECOND)
        last_ns = 0
        if feed.last is not None:
            last_ns = feed.last.event_ns
            if feed.last.origin == "candle_path":
                # Such ticks come a few to a bar, a third of it apart, and the clock runs one bar
                # past the last candle: only what exceeds that says that something is missing.
                limit_ns += feed.bar_ns
        silence_ns = now_ns - max(last_ns, interval.open_ns, started_ns)
        if silence_ns > limit_ns:
            feed.silent_interval_ns = interval.open_ns
            seconds = silence_ns / _NS_PER_SECOND
            text = f"no tick of {feed.instrument} for {seconds:.0f} s while {feed.market} is open"
            yield self._alert("warning", text, "Silent feed", instrument=feed.instrument)

    def _refuse(self, instrument: str, reason: str, tick: Tick, detail: str) -> Iterator[Output]:
        key = (instrument, reason)
        self._refused[key] += 1
        times = self._refused[key]
        yield RefusedTick(
            tick=tick,
            reason=reason,
            detail=detail,
            count=times,
            refused_ns=tick.event_ns if self._now_ns is None else self._now_ns,
        )
        if times == 1 or times % _REPEAT_ALERT_EVERY == 0:
            text = f"tick of {tick.instrument} refused, {reason}: {detail} ({times} so far)"
            yield self._alert("warning", text, "Refused ticks", tick)

    def _alert(
        self,
        severity: Severity,
        text: str,
        runbook: str,
        tick: Tick | None = None,
        instrument: str | None = None,
    ) -> Alert:
        at_ns = self._now_ns
        if at_ns is None:
            at_ns = tick.event_ns if tick is not None else 0
        return Alert(
            severity=severity,
            text=text,
            runbook=runbook,
            at_ns=at_ns,
            source=self.name,
            instrument=tick.instrument if tick is not None else instrument,
        )


@dataclass(slots=True)
class _OpenBar:
    """A bar that may still change."""

    open_ns: int
    close_ns: int
    is_continuous: bool
    days_to_expiry: int | None
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: int = 0
    ticks: int = 0
    spread: Decimal | None = None

    def add(self, tick: Tick, volume: int) -> None:
        price = tick.last_price
        self.high = max(self.high, price)
        self.low = min(self.low, price)
        self.close = price
        self.volume += volume
        self.ticks += 1 + tick.conflated
        self.spread = _spread(tick)


@dataclass(slots=True)
class _Feed:
    """What is known of one instrument."""

    instrument: str
    market: str
    timeframe: str
    bar_ns: int
    segment: str | None  # where its prices come about
    underlying: str  # the broker's name
    expiry: date | None  # of the instrument itself
    epochs: Epochs
    bar: _OpenBar | None = None
    closed_until_ns: int = 0
    last: Tick | None = None  # the last tick believed
    session: date | None = None  # of that tick
    silent_interval_ns: int | None = None  # open of the trading that was reported as silent

    def closed_bar(self) -> Bar:
        """Close the open bar and return it."""
        bar = self.bar
        if bar is None:
            raise ValueError(f"{self.instrument} has no open bar to close")
        self.bar, self.closed_until_ns = None, bar.close_ns
        return Bar(
            instrument=self.instrument,
            timeframe=self.timeframe,
            open=bar.open,
            high=bar.high,
            low=bar.low,
            close=bar.close,
            volume=bar.volume,
            open_ns=bar.open_ns,
            close_ns=bar.close_ns,
            ticks=bar.ticks,
            is_continuous=bar.is_continuous,
            spread=bar.spread,
            days_to_expiry=bar.days_to_expiry,
        )

    def partial_bar(self, bar: _OpenBar, tick: Tick) -> PartialBar:
        """Return the bar so far."""
        return PartialBar(
            instrument=self.instrument,
            timeframe=self.timeframe,
            open=bar.open,
            high=bar.high,
            low=bar.low,
            last_price=bar.close,
            volume=bar.volume,
            open_ns=bar.open_ns,
            as_of_ns=tick.event_ns,
            ticks=bar.ticks,
            reference_price=self.epochs.reference,
            spread=bar.spread,
            days_to_expiry=bar.days_to_expiry,
        )


def _spread(tick: Tick) -> Decimal | None:
    """Return what lies between the quotes; None without two of them that can be true."""
    if tick.bid is None or tick.ask is None:
        return None
    is_possible = tick.bid.is_finite() and tick.ask.is_finite() and 0 < tick.bid <= tick.ask
    return tick.ask - tick.bid if is_possible else None


def _is_same(tick: Tick, last: Tick) -> bool:
    """Tell whether a tick says what the last one said; new quotes within its second are news."""
    return not tick.conflated and _said(tick) == _said(last)


def _said(tick: Tick) -> tuple[int, Decimal, int, Decimal | None, Decimal | None]:
    return tick.event_ns, tick.last_price, tick.volume_today, tick.bid, tick.ask
