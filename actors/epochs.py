"""Epochs: when a decision is due before the close of a bar, and what is then decided on.

Models are trained on closed bars. What a bar that is still open may lead to is for reasoning.py to
say; how bars are made, for market_feed.py.
"""

from decimal import Decimal

import msgspec

from actors.messages import Bar, MarketContext, PartialBar
from actors.policies import FeedSettings

_NS_PER_SECOND = 1_000_000_000


class Epochs:
    """Tell, of one instrument, at which ticks a decision is due within the bar.

    One is due when the price has moved by `epoch_move_atr` average true ranges since the last
    decision, the one at the close of the bar before included, at most `epochs_per_bar` times and
    `epoch_spacing_seconds` apart. Only the context of the bar directly before says what far is:
    none is due in a bar that follows a gap, a night, or a bar that misses ticks.
    """

    def __init__(self, settings: FeedSettings) -> None:
        self._settings = settings
        self._spacing_ns = int(settings.epoch_spacing_seconds * _NS_PER_SECOND)
        self._open_ns: int | None = None  # of the bar that may have epochs
        self._distance = Decimal(0)
        self._last_ns = 0
        self._left = 0
        self.reference = Decimal(0)
        """Price of the last decision."""

    def begin(self, context: MarketContext) -> None:
        """Take the close of a bar as the last decision; the next bar may have epochs."""
        bar, atr = context.bar, context.atr
        is_whole = bar.is_continuous and bar.is_complete
        self._open_ns = bar.close_ns if atr is not None and is_whole else None
        self._distance = self._settings.epoch_move_atr * (atr or Decimal(0))
        self._last_ns = bar.close_ns
        self._left = self._settings.epochs_per_bar
        self.reference = bar.close

    def is_due(self, open_ns: int, price: Decimal, now_ns: int) -> bool:
        """Tell whether a tick of the bar that began at `open_ns` calls for a decision."""
        return (
            self._left > 0
            and open_ns == self._open_ns
            and now_ns - self._last_ns >= self._spacing_ns
            and abs(price - self.reference) >= self._distance
        )

    def note(self, price: Decimal, now_ns: int) -> None:
        """Take a tick as the last decision."""
        self._left -= 1
        self._last_ns = now_ns
        self.reference = price


def context_within(before: MarketContext, partial: PartialBar) -> MarketContext:
    """Return the context of the last close with the open bar in it, as if that closed now.

    Complexity, regime and average true range stay those of the closed bars.
    """
    bar = Bar(
        instrument=partial.instrument,
        timeframe=partial.timeframe,
        open=partial.open,
        high=partial.high,
        low=partial.low,
        close=partial.last_price,
        volume=partial.volume,
        open_ns=partial.open_ns,
        close_ns=partial.as_of_ns,
        ticks=partial.ticks,
        spread=partial.spread,
        days_to_expiry=partial.days_to_expiry,
    )
    return msgspec.structs.replace(before, bar=bar, checked=None)
