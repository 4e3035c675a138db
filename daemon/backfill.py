"""Backfill: what the feed did not carry, asked of the broker's history and put among the ticks.

Whether a candle becomes a bar is for market_feed to say, how history is asked for the broker's
files. Nothing is made up: where history has no candle, the gap stays one.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, NamedTuple

from actors.instruments import InstrumentCatalogue
from actors.messages import Alert, FeedGap, PastBar, Tick
from actors.session import SessionCalendar, timeframe_minutes
from daemon.clock import NS_PER_SECOND, Clock
from daemon.errors import BrokerError
from daemon.logs import get_logger
from daemon.tick_source import MarketEvent

_TRIES: Final = 3  # history may lack a candle for a moment after its end
_DELAY_S: Final = 2.0
_NS_PER_MINUTE: Final = 60 * NS_PER_SECOND
_NS_PER_DAY: Final = 1440 * _NS_PER_MINUTE
_SHORTEST_DAY_MINUTES: Final = 300  # of trading, roughly: how far back so many bars may reach
_FREE_DAYS: Final = 7


class Candle(NamedTuple):
    """A candle of history; prices in rupees."""

    open_ns: int
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal
    volume: int


AskHistory = Callable[[str, str, int, int], Awaitable[list[Candle]]]
"""(instrument, timeframe, first_ns, end_ns) -> candles that open within, the earliest first."""


@dataclass(slots=True)
class _Market:
    """What is known of one instrument."""

    instrument: str
    hours: str  # the market whose session it keeps
    timeframe: str
    until_ns: int = 0  # end of the last bar that ticks have begun or that is being asked for
    last_ns: int = 0  # of the last tick
    is_cut: bool = True


class Backfill:
    """Tell of gaps in the feed, and fill them; `run` must run for that.

    Three things are a gap: a lost connection, a tick after a silence with a whole bar in it, and
    the start, before which `warm_up_bars` are wanted. Candles go out as PastBar, each once and in
    order, so that what follows them is as if the program had been there. Ticks pass through
    `watched`; `put` takes what belongs among them.
    """

    name = "backfill"

    def __init__(
        self,
        timeframes: Mapping[str, str],
        catalogue: InstrumentCatalogue,
        calendar: SessionCalendar,
        ask: AskHistory,
        put: Callable[[MarketEvent], Awaitable[None]],
        *,
        clock: Clock,
        warm_up_bars: int,
        on_alert: Callable[[Alert], None] = lambda _: None,
    ) -> None:
        """clock: market time."""
        self._calendar = calendar
        self._ask = ask
        self._put = put
        self._clock = clock
        self._warm_up_bars = warm_up_bars
        self._on_alert = on_alert
        self._markets = {
            name: _Market(name, catalogue[name].session, timeframe)
            for name, timeframe in timeframes.items()
        }
        self._known: dict[str, int] = {}
        self._wanted: asyncio.Queue[tuple[_Market, int, int]] = asyncio.Queue()
        self._log = get_logger(part=self.name)
        self.told = 0  # candles put among the ticks

    def resume(self, known: Mapping[str, int]) -> None:
        """Take over a session: instrument -> end of the last bar it has, nanoseconds UTC."""
        self._known = dict(known)

    async def watched(self, ticks: AsyncIterable[Tick]) -> AsyncGenerator[Tick, None]:
        """Yield the ticks; tell before one that there was a gap."""
        now_ns = self._clock.now_ns()
        for market in self._markets.values():
            if market.until_ns:
                continue  # it is read again: what is missing shows at the next tick
            await self._tell_gap(market, now_ns)
            first_ns = self._known.get(market.instrument) or self._warm_up_from(market, now_ns)
            self._want(market, first_ns, now_ns)
        async for tick in ticks:
            await self._note(tick)
            yield tick

    async def lost(self) -> None:
        """Hear that the connection has ended."""
        now_ns = self._clock.now_ns()
        for market in self._markets.values():
            if not market.is_cut:
                market.is_cut = True
                await self._tell_gap(market, now_ns)

    async def run(self) -> None:
        """Ask for what is missing, for ever."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                market, first_ns, end_ns = await self._wanted.get()
                tasks.create_task(self._fill(market, first_ns, end_ns))

    async def _note(self, tick: Tick) -> None:
        market = self._markets.get(tick.instrument)
        if market is None or self._calendar.phase(market.hours, tick.event_ns) == "closed":
            return
        open_ns = self._calendar.bar_open_ns(market.hours, market.timeframe, tick.event_ns)
        first_ns = self._first_missing(market, open_ns)
        if first_ns is not None:
            if not market.is_cut:
                await self._tell_gap(market, self._clock.now_ns())
            self._want(market, first_ns, open_ns)
        market.is_cut = False
        market.last_ns = tick.event_ns
        close_ns = self._calendar.bar_close_ns(market.hours, market.timeframe, tick.event_ns)
        market.until_ns = max(market.until_ns, close_ns)

    async def _tell_gap(self, market: _Market, now_ns: int) -> None:
        gap = FeedGap(instrument=market.instrument, since_ns=market.last_ns, told_ns=now_ns)
        await self._put(gap)

    def _want(self, market: _Market, first_ns: int, end_ns: int) -> None:
        market.until_ns = max(market.until_ns, end_ns)
        if first_ns < end_ns:
            self._wanted.put_nowait((market, first_ns, end_ns))

    def _first_missing(self, market: _Market, end_ns: int) -> int | None:
        """Return the open of the first bar that should lie between what is known and `end_ns`."""
        calendar, hours = self._calendar, market.hours
        if calendar.phase(hours, market.until_ns) == "closed":
            open_ns = calendar.next_open_ns(hours, market.until_ns)
        else:
            open_ns = calendar.bar_open_ns(hours, market.timeframe, market.until_ns)
        return None if open_ns is None or open_ns >= end_ns else open_ns

    def _warm_up_from(self, market: _Market, now_ns: int) -> int:
        """Return an instant that is surely early enough; now without a warm-up."""
        if not self._warm_up_bars:
            return now_ns
        minutes = timeframe_minutes(market.timeframe)
        days = self._warm_up_bars * minutes / _SHORTEST_DAY_MINUTES * 7 / 5
        return now_ns - round((days + _FREE_DAYS) * _NS_PER_DAY)

    async def _fill(self, market: _Market, first_ns: int, end_ns: int) -> None:
        """Tell the candles of a stretch; ask again while the last one is missing."""
        problem, told = "", 0
        for number in range(_TRIES):
            if number:
                await self._clock.sleep(_DELAY_S)
            try:
                candles = await self._ask(market.instrument, market.timeframe, first_ns, end_ns)
            except BrokerError as error:
                problem = str(error)
                continue
            problem = ""
            for past in self._closed(market, candles, first_ns, end_ns):
                await self._put(past)
                told += 1
                first_ns = self._close_ns(market, past.open_ns)
            if not self._lacks(market, first_ns, end_ns):
                break
        self.told += told
        self._log.info("history asked", instrument=market.instrument, candles=told, reason=problem)
        if problem:
            self._on_alert(self._no_history(market, problem))

    def _closed(
        self, market: _Market, candles: list[Candle], first_ns: int, end_ns: int
    ) -> list[PastBar]:
        """Return the wanted ones of the candles, no more of them than a warm-up needs."""
        told_ns = self._clock.now_ns()
        found = []
        for candle in candles:
            open_ns = self._open_ns(market, candle.open_ns)
            if open_ns is None or open_ns < first_ns or self._close_ns(market, open_ns) > end_ns:
                continue
            found.append(
                PastBar(
                    instrument=market.instrument,
                    timeframe=market.timeframe,
                    open=candle.open,
                    high=candle.high,
                    low=candle.low,
                    close=candle.close,
                    volume=candle.volume,
                    open_ns=open_ns,
                    told_ns=told_ns,
                )
            )
        return found[-self._warm_up_bars :] if self._warm_up_bars else found

    def _open_ns(self, market: _Market, candle_ns: int) -> int | None:
        """Return where the bar of a candle opens; None outside the session. Days open at 0:00."""
        if self._calendar.phase(market.hours, candle_ns) != "closed":
            return candle_ns
        if market.timeframe != "D":
            return None
        return self._calendar.next_open_ns(market.hours, candle_ns)

    def _close_ns(self, market: _Market, open_ns: int) -> int:
        return self._calendar.bar_close_ns(market.hours, market.timeframe, open_ns)

    def _lacks(self, market: _Market, first_ns: int, end_ns: int) -> bool:
        """Tell whether a bar that has ended by `end_ns` is still missing from `first_ns` on."""
        calendar, hours = self._calendar, market.hours
        open_ns: int | None = first_ns
        if calendar.phase(hours, first_ns) == "closed":
            open_ns = calendar.next_open_ns(hours, first_ns)
        if open_ns is None or open_ns >= end_ns:
            return False
        return self._close_ns(market, open_ns) <= end_ns

    def _no_history(self, market: _Market, problem: str) -> Alert:
        return Alert(
            severity="warning",
            text=f"the gap in {market.instrument} stays: {problem}",
            runbook="No history",
            at_ns=self._clock.now_ns(),
            source=self.name,
            instrument=market.instrument,
        )
