"""Depth: what an order book says at the close of a bar, and when it says nothing.

Where books come from is for the tick source to know, whether a model reads them for reasoning.
"""

from typing import Final

from actors.messages import Depth

_NS_PER_SECOND: Final = 1_000_000_000


class LastBook:
    """The newest order book of one instrument.

    Bars end at whole seconds, and a book of the second after may arrive before the bar has been
    closed: the newest of an earlier second is kept beside it. So what a bar gets does not depend on
    which of the two is handled first.
    """

    __slots__ = ("_before", "_fresh_ns", "_last")

    def __init__(self, fresh_ns: int) -> None:
        """fresh_ns: age from which a book says nothing any more."""
        self._fresh_ns = fresh_ns
        self._last: Depth | None = None
        self._before: Depth | None = None  # of an earlier second than the last one

    def add(self, depth: Depth) -> None:
        """Take in a book, later than all before."""
        last = self._last
        if last is not None and _second(last) != _second(depth):
            self._before = last
        self._last = depth

    def imbalance(self, close_ns: int) -> float | None:
        """Return that of the last book before an instant; None without a fresh one."""
        for book in (self._last, self._before):
            if book is not None and book.received_ns < close_ns:
                is_fresh = close_ns - book.received_ns <= self._fresh_ns
                return imbalance(book) if is_fresh else None
        return None


def imbalance(depth: Depth) -> float | None:
    """Return bid quantity less ask quantity over their sum, of five levels, in (-1, 1).

    None for a book that is one-sided, crossed (also where bid and ask are the same) or impossible:
    such a book is no opinion of the market.
    """
    if not depth.bids or not depth.asks:
        return None
    bid, ask = depth.bids[0].price, depth.asks[0].price
    if not (bid.is_finite() and ask.is_finite() and 0 < bid < ask):
        return None
    if any(level.quantity <= 0 for level in (*depth.bids, *depth.asks)):
        return None
    wanted = sum(level.quantity for level in depth.bids)
    offered = sum(level.quantity for level in depth.asks)
    return (wanted - offered) / (wanted + offered)


def _second(depth: Depth) -> int:
    return depth.received_ns // _NS_PER_SECOND
