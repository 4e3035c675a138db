"""Market feed: ticks become closed bars; ticks that cannot be true, and silence, become alerts.

Where no tick came, candles of the broker's history become bars too, marked as such.

Where a bar begins and ends is for session.py to say, where ticks come from for the tick source.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import date
from decimal import Decimal
from types import MappingProxyType

from actors.base import Actor
from actors.depth import LastBook
from actors.epochs import Epochs
from actors.instruments import InstrumentCatalogue
from actors.messages import (
    Alert,
    Bar,
    Depth,
    FeedGap,
    MarketContext,
    PartialBar,
    PastBar,
    RefusedTick,
    Severity,
    Tick,
    TimeEvent,
)
from actors.open_bars import Feed, OpenBar
from actors.policies import FeedSettings
from actors.session import SessionCalendar, timeframe_minutes

Input = Tick | FeedGap | PastBar | TimeEvent | MarketContext | Depth
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
    is handled first; its content is the same. A stretch without ticks makes no bar; candles of the
    broker's history may fill it, each before any later bar has closed. A bar that ticks have begun
    is never replaced: one that misses more of them than the feed may be silent is not complete. A
    refused tick never touches a bar; it goes to the quarantine with its reason, is counted in
    `refused` and reported the first time and then each hundredth time for its instrument and
    reason; a refused candle is only counted and reported.

    Of the last order book before its close, if that is not older than the feed may be silent, a bar
    says how far bids outweigh asks.

    After a far move within a bar that misses nothing yet the bar so far goes out as well
    (epochs.py), if so set. How far a move is far is known from the context of the bar before.

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
        self._feeds: dict[str, Feed] = {}
        silence_ns = int(settings.stale_after_seconds * _NS_PER_SECOND)
        for name, timeframe in timeframes.items():
            instrument = catalogue[name]
            calendar.session_key(instrument.session, 0)  # raises for a market without hours
            length_ns = timeframe_minutes(timeframe) * _NS_PER_MINUTE
            segment = instrument.price_segment
            self._feeds[instrument.symbol] = Feed(
                instrument.symbol,
                instrument.session,
                timeframe,
                length_ns,
                segment if segment in calendar.segments else None,
                instrument.exchange_symbol,
                instrument.expiry,
                Epochs(settings),
                silence_ns,
                LastBook(silence_ns),
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
        """Ticks and candles refused since the start, by instrument (ANY_UNKNOWN) and reason."""
        return MappingProxyType(self._refused)

    def handle(self, message: Input) -> Iterator[Output]:
        match message:
            case Tick():
                yield from self._ticked(message)
            case FeedGap(instrument=name, since_ns=since_ns):
                feed = self._feeds.get(name)
                if feed is not None:
                    feed.begin_gap(since_ns)
            case PastBar():
                yield from self._filled(message)
            case TimeEvent(now_ns=now_ns):
                yield from self._time_passed(now_ns)
            case MarketContext(instrument=name):
                if name in self._feeds:
                    self._feeds[name].epochs.begin(message)
            case Depth(instrument=name):
                if name in self._feeds:
                    self._feeds[name].book.add(message)

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
        is_whole = bar.is_continuous and bar.is_complete
        if is_whole and feed.epochs.is_due(bar.open_ns, tick.last_price, tick.event_ns):
            yield feed.partial_bar(bar, tick)
            feed.epochs.note(tick.last_price, tick.event_ns)

    def _problem(self, feed: Feed, tick: Tick) -> tuple[str, str] | None:
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

    def _days_to_expiry(self, feed: Feed, at_ns: int) -> int | None:
        """Count the days to the instrument's own last one, or to that of the options on it."""
        if feed.expiry is None:
            return self._calendar.days_to_expiry(feed.underlying, at_ns)
        return max(0, (feed.expiry - self._calendar.session_key(feed.market, at_ns)).days)

    def _is_over(self, feed: Feed, tick_ns: int) -> bool:
        """Tell whether the bar of this tick ended before the present market time."""
        if self._now_ns is None:
            return False
        close_ns = self._calendar.bar_close_ns(feed.market, feed.timeframe, tick_ns)
        return close_ns <= self._now_ns

    def _fold(self, feed: Feed, tick: Tick) -> OpenBar:
        if feed.bar is None:
            market, timeframe, at_ns = feed.market, feed.timeframe, tick.event_ns
            open_ns = self._calendar.bar_open_ns(market, timeframe, at_ns)
            close_ns = self._calendar.bar_close_ns(market, timeframe, at_ns)
            feed.bar = OpenBar(
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
        is_first = feed.end_gap(tick) or feed.last is None
        feed.bar.add(tick, self._new_volume(feed, tick, session, is_first=is_first))
        feed.last, feed.session = tick, session
        return feed.bar

    def _is_continuous(self, feed: Feed, open_ns: int, close_ns: int) -> bool:
        """Tell whether the prices of a bar are those of continuous trading; a day's always are."""
        if feed.segment is None or feed.timeframe == "D":
            return True
        return self._calendar.is_continuous(feed.segment, open_ns, close_ns)

    def _new_volume(self, feed: Feed, tick: Tick, session: date, *, is_first: bool) -> int:
        """Return the units traded since the last tick; volume_today starts anew each session.

        is_first: what was traded before this tick is this bar's only if the session began with it.
        """
        if is_first or feed.last is None:
            interval = self._calendar.interval(feed.market, tick.event_ns)
            bar_opens_session = (
                interval is not None
                and feed.bar is not None
                and feed.bar.open_ns <= interval.open_ns
            )
            return tick.volume_today if bar_opens_session else 0
        if feed.session != session:
            return tick.volume_today
        # A correction may lower the count; a bar's volume never falls.
        return max(tick.volume_today - feed.last.volume_today, 0)

    def _filled(self, past: PastBar) -> Iterator[Output]:
        """Make a bar of a candle of history, or say why not."""
        feed = self._feeds.get(past.instrument)
        if feed is None or past.timeframe != feed.timeframe:
            yield from self._refuse_past(past, "not traded here")
            return
        if problem := self._past_problem(feed, past):
            yield from self._refuse_past(past, problem)
            return
        close_ns = self._calendar.bar_close_ns(feed.market, feed.timeframe, past.open_ns)
        yield feed.past_bar(
            past,
            close_ns,
            is_continuous=self._is_continuous(feed, past.open_ns, close_ns),
            days_to_expiry=self._days_to_expiry(feed, past.open_ns),
        )

    def _past_problem(self, feed: Feed, past: PastBar) -> str | None:
        prices = (past.open, past.high, past.low, past.close)
        if not all(price.is_finite() and price > 0 for price in prices) or past.volume < 0:
            return "impossible"
        if not past.low <= min(past.open, past.close) <= max(past.open, past.close) <= past.high:
            return "impossible"
        if self._calendar.phase(feed.market, past.open_ns) == "closed":
            return "outside the session"
        if self._calendar.bar_open_ns(feed.market, feed.timeframe, past.open_ns) != past.open_ns:
            return "not at the open of a bar"
        close_ns = self._calendar.bar_close_ns(feed.market, feed.timeframe, past.open_ns)
        if close_ns > max(past.told_ns, self._now_ns or 0):
            return "not closed yet"
        if past.open_ns < feed.closed_until_ns:
            return "late"
        if feed.bar is not None and close_ns > feed.bar.open_ns:
            return "made of ticks"
        return None

    def _refuse_past(self, past: PastBar, reason: str) -> Iterator[Alert]:
        known = past.instrument if past.instrument in self._feeds else ANY_UNKNOWN
        times = self._count(known, f"candle {reason}")
        if times == 1 or times % _REPEAT_ALERT_EVERY == 0:
            text = (
                f"candle of {past.instrument} opening at {past.open_ns} refused, {reason} "
                f"({times} so far)"
            )
            yield self._alert(
                "warning",
                text,
                "Refused candles",
                instrument=past.instrument,
                at_ns=past.told_ns,
            )

    def _count(self, instrument: str, reason: str) -> int:
        self._refused[instrument, reason] += 1
        return self._refused[instrument, reason]

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

    def _listen(self, feed: Feed, now_ns: int, started_ns: int) -> Iterator[Output]:
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
        times = self._count(instrument, reason)
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
        at_ns: int = 0,
    ) -> Alert:
        """`at_ns`: the time while no TimeEvent has told it."""
        if self._now_ns is not None:
            at_ns = self._now_ns
        elif tick is not None:
            at_ns = tick.event_ns
        return Alert(
            severity=severity,
            text=text,
            runbook=runbook,
            at_ns=at_ns,
            source=self.name,
            instrument=tick.instrument if tick is not None else instrument,
        )


def _is_same(tick: Tick, last: Tick) -> bool:
    """Tell whether a tick says what the last one said; new quotes within its second are news."""
    return not tick.conflated and _said(tick) == _said(last)


def _said(tick: Tick) -> tuple[int, Decimal, int, Decimal | None, Decimal | None]:
    return tick.event_ns, tick.last_price, tick.volume_today, tick.bid, tick.ask
