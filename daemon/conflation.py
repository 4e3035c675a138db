"""Flow control for live market data: what may be left out when the bus is slower than the market.

A market cannot be asked to wait. Of the quotes and of the order books that wait, the newest of an
instrument and instant stands for the ones before it; trades, option chains and the clock are never
left out. What the bars say is the same with and without.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from actors.messages import Alert, Depth, MarketEvent, Severity, Tick, TimeEvent
from daemon.clock import NS_PER_SECOND, Clock
from daemon.handover import Handover

MOST_WAITING: Final = 50_000
"""Some tens of MB; ten seconds of a market twice as fast as the bus is asked to be."""
_CALM: Final = 64  # as many as are published at once: fewer are no sign of a slow bus
_LASTING_NS: Final = 5_000_000_000
_SOURCE: Final = "tick_source"


class Conflation(Handover[MarketEvent]):
    """Replace waiting quotes by newer ones while more wait than are published at once.

    A tick is a quote when nothing but bid and ask differs from the tick before of its instrument:
    the exchange's time, the last price and the volume are the same, and so is what the market feed
    makes of it, but for the spread, of which a bar keeps the last. It takes the place of the quote
    before it, and counts it in `conflated`. A TimeEvent in between keeps both: it may have closed
    their bar. A repeated tick is no quote: the market feed counts it. A book takes the place of one
    of its instrument that was received within the same second, unless a tick of another instant,
    which may have closed the bar as well, came in between.

    When `most` events wait all the same, the source is not read on until some have gone: its
    socket then fills, and what the market does until the connection is made anew is not seen tick
    by tick. `on_alert` hears of that at once, of back-pressure after five seconds, and of its end.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        on_alert: Callable[[Alert], None],
        most: int = MOST_WAITING,
        calm: int = _CALM,
    ) -> None:
        """`calm`: waiting events up to which nothing is left out."""
        super().__init__(most)
        if not 0 <= calm < most:
            raise ValueError(f"calm must lie in 0 to {most - 1}, was {calm}")
        self._clock = clock
        self._on_alert = on_alert
        self._calm = calm
        self._gone = 0  # events taken so far
        self._last: dict[str, Tick] = {}  # by instrument, as it came
        self._quotes: dict[str, int] = {}  # number of the waiting quote that may be replaced
        self._books: dict[str, tuple[int, int]] = {}  # number of the last book, instant of its tick
        self._pressed_ns: int | None = None  # monotonic, since when more than `calm` wait
        self._is_told = False
        self._is_told_full = False
        self.conflated = 0  # quotes and books left out
        self.held = 0  # times the source had to wait
        self.longest = 0  # most events that ever waited

    def drain(self, most: int) -> list[MarketEvent]:
        taken = super().drain(most)
        self._gone += len(taken)
        if self._pressed_ns is not None and len(self) <= self._calm:
            self._pressed_ns = None
            if self._is_told:
                self._is_told = self._is_told_full = False
                self._tell("info", "market data no longer waits for the bus")
        return taken

    def _add(self, event: MarketEvent) -> None:
        is_in = False
        if isinstance(event, Tick):
            is_in = self._replaces(event)
        elif isinstance(event, TimeEvent):
            self._quotes.clear()
        elif isinstance(event, Depth):
            is_in = self._replaces_book(event)
        if not is_in:
            self._waiting.append(event)
            self.longest = max(self.longest, len(self))
        self._watch()

    def _replaces(self, tick: Tick) -> bool:
        """Put a quote in the place of the one that waits; say whether there was one."""
        name = tick.instrument
        before = self._last.get(name)
        self._last[name] = tick
        is_quote = before is not None and _differs_in_quotes_alone(tick, before)
        place = self._quotes.get(name, -1) - self._gone
        if not is_quote:
            self._quotes.pop(name, None)
        elif place >= 0 and len(self) > self._calm:
            waiting = self._waiting[place]
            assert isinstance(waiting, Tick)
            count = waiting.conflated + 1
            self._waiting[place] = msgspec.structs.replace(tick, conflated=count)
            self.conflated += 1
            return True
        else:
            self._quotes[name] = self._gone + len(self)
        return False

    def _replaces_book(self, depth: Depth) -> bool:
        """Put an order book in the place of the one that waits; say whether there was one."""
        name = depth.instrument
        tick = self._last.get(name)
        instant_ns = tick.event_ns if tick is not None else 0
        number, instant_before_ns = self._books.get(name, (-1, 0))
        place = number - self._gone
        if place >= 0 and instant_ns == instant_before_ns and len(self) > self._calm:
            waiting = self._waiting[place]
            assert isinstance(waiting, Depth)
            if waiting.received_ns // NS_PER_SECOND == depth.received_ns // NS_PER_SECOND:
                count = waiting.conflated + 1
                self._waiting[place] = msgspec.structs.replace(depth, conflated=count)
                self.conflated += 1
                return True
        self._books[name] = self._gone + len(self), instant_ns
        return False

    def _watch(self) -> None:
        if len(self) <= self._calm:
            return
        now_ns = self._clock.monotonic_ns()
        if self._pressed_ns is None:
            self._pressed_ns = now_ns
        elif not self._is_told and now_ns - self._pressed_ns > _LASTING_NS:
            self._is_told = True
            self._tell("warning", "market data waits for the bus")

    def _hold(self) -> None:
        self.held += 1
        if not self._is_told_full:
            self._is_told = self._is_told_full = True
            self._tell("critical", "market data is held back at the socket: no more may wait")

    def _tell(self, severity: Severity, text: str) -> None:
        self._on_alert(
            Alert(
                severity=severity,
                text=f"{text} ({len(self)} events wait, {self.conflated} quotes left out so far)",
                runbook="Market data waits",
                at_ns=self._clock.now_ns(),
                source=_SOURCE,
            )
        )


def _differs_in_quotes_alone(tick: Tick, before: Tick) -> bool:
    return (
        (tick.event_ns, tick.last_price, tick.volume_today)
        == (before.event_ns, before.last_price, before.volume_today)
        and (tick.bid, tick.ask) != (before.bid, before.ask)
        and tick.origin == before.origin
    )
