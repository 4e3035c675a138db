"""What the feed knows of one instrument: the bar that is still open, and what came before it."""

from dataclasses import dataclass
from datetime import date
from decimal import Decimal

from actors.depth import LastBook
from actors.epochs import Epochs
from actors.messages import Bar, PartialBar, PastBar, Tick


@dataclass(slots=True)
class OpenBar:
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
    is_complete: bool = True

    def add(self, tick: Tick, volume: int) -> None:
        price = tick.last_price
        self.high = max(self.high, price)
        self.low = min(self.low, price)
        self.close = price
        self.volume += volume
        self.ticks += 1 + tick.conflated
        self.spread = _spread(tick)


@dataclass(slots=True)
class Feed:
    """What is known of one instrument."""

    instrument: str
    market: str
    timeframe: str
    bar_ns: int
    segment: str | None  # where its prices come about
    underlying: str  # the broker's name
    expiry: date | None  # of the instrument itself
    epochs: Epochs
    longest_gap_ns: int  # that a bar may have and still be complete
    book: LastBook
    bar: OpenBar | None = None
    closed_until_ns: int = 0
    last: Tick | None = None  # the last tick believed
    session: date | None = None  # of that tick
    silent_interval_ns: int | None = None  # open of the trading that was reported as silent
    gap_since_ns: int | None = None  # ticks from here on may be missing; None: none are

    def begin_gap(self, since_ns: int) -> None:
        """Note that ticks may be missing from an instant on, or from the last one that came."""
        if self.gap_since_ns is None:
            self.gap_since_ns = max(since_ns, 0 if self.last is None else self.last.event_ns)

    def end_gap(self, tick: Tick) -> bool:
        """Let a tick in the open bar end the gap before it, if there is one.

        Returns whether other bars lie in it, so that the volume since the last tick is theirs too.
        """
        since_ns, self.gap_since_ns = self.gap_since_ns, None
        if self.bar is None or since_ns is None:
            return False
        if self._lacks(self.bar, since_ns, tick.event_ns):
            self.bar.is_complete = False
        is_long = tick.event_ns - since_ns > self.longest_gap_ns
        return is_long and self.bar.ticks == 0

    def _heard_until_ns(self) -> int | None:
        """Return from when on ticks may be missing up to now; None for played candles.

        A live feed that has fallen silent is cut as well, only that nobody has noticed yet.
        """
        if self.gap_since_ns is None and self.last is not None and self.last.origin == "live":
            return self.last.event_ns
        return self.gap_since_ns

    def _lacks(self, bar: OpenBar, since_ns: int, until_ns: int) -> bool:
        missing_ns = min(until_ns, bar.close_ns) - max(since_ns, bar.open_ns)
        return missing_ns > self.longest_gap_ns

    def closed_bar(self) -> Bar:
        """Close the open bar and return it."""
        bar = self.bar
        if bar is None:
            raise ValueError(f"{self.instrument} has no open bar to close")
        self.bar, self.closed_until_ns = None, bar.close_ns
        since_ns = self._heard_until_ns()
        is_cut = since_ns is not None and self._lacks(bar, since_ns, bar.close_ns)
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
            is_complete=bar.is_complete and not is_cut,
            depth_imbalance=self.book.imbalance(bar.close_ns),
        )

    def partial_bar(self, bar: OpenBar, tick: Tick) -> PartialBar:
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

    def past_bar(
        self, past: PastBar, close_ns: int, *, is_continuous: bool, days_to_expiry: int | None
    ) -> Bar:
        """Return a candle of history as the next bar; no tick makes a bar before its end."""
        self.closed_until_ns = close_ns
        return Bar(
            instrument=self.instrument,
            timeframe=self.timeframe,
            open=past.open,
            high=past.high,
            low=past.low,
            close=past.close,
            volume=past.volume,
            open_ns=past.open_ns,
            close_ns=close_ns,
            ticks=0,
            is_continuous=is_continuous,
            days_to_expiry=days_to_expiry,
            origin="backfilled",
        )


def _spread(tick: Tick) -> Decimal | None:
    """Return what lies between the quotes; None without two of them that can be true."""
    if tick.bid is None or tick.ask is None:
        return None
    is_possible = tick.bid.is_finite() and tick.ask.is_finite() and 0 < tick.bid <= tick.ask
    return tick.ask - tick.bid if is_possible else None
