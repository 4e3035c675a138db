"""Entering: an intent becomes the orders of one entry, slice by slice above the freeze quantity.

All slices of an entry live and die together: one that ends unfilled takes the others back, and
no further one follows. What was filled by then is the position.
"""

from collections.abc import Iterator

from actors.holding import Entry, Holding
from actors.messages import CancelOrder, OrderIntent, PlaceOrder, Position
from actors.order_book import OrderBook
from actors.orders import Order


class Entering:
    """Open positions through the order book, never of more than was intended."""

    def __init__(self, book: OrderBook) -> None:
        self._book = book

    def begin(self, holding: Holding, intent: OrderIntent, reason: str) -> Iterator[PlaceOrder]:
        """Place the first orders of an intent that may become one."""
        holding.entry = Entry(intent, reason, left=abs(intent.quantity))
        yield from self.pursue(holding)

    def pursue(self, holding: Holding) -> Iterator[PlaceOrder]:
        """Place the next orders of an entry, once they are due."""
        entry = holding.entry
        if entry is None or entry.left == 0 or self._book.now_ns < entry.next_ns:
            return
        sign = 1 if entry.intent.quantity > 0 else -1
        for units in self._book.next_slices(holding.instrument, entry.left):
            entry.left -= units
            order = self._book.order(
                holding,
                "entry",
                sign * units,
                entry.reason,
                entry.intent.decision_id,
                entry.sent,
                entry.intent,
            )
            entry.sent += 1
            entry.orders.append(order)
            yield order.placed
        entry.next_ns = self._book.next_burst_ns

    def stop(self, holding: Holding, reason: str) -> Iterator[CancelOrder]:
        """Place no more of an entry, and ask for what is out to be taken back."""
        entry = holding.entry
        if entry is None:
            return
        entry.left = 0
        for order in entry.orders:
            yield from self._book.cancel(order, reason)
        if not entry.orders:
            holding.entry = None  # between two bursts, and all of the last one filled

    def note_end(self, holding: Holding, order: Order) -> Iterator[CancelOrder | Position]:
        """Draw the consequences for its entry of an order that is done."""
        entry = holding.entry
        if entry is None or order not in entry.orders:
            return
        entry.orders.remove(order)
        entry.filled += order.booked
        if order.left:
            entry.left = 0
            for other in entry.orders:
                yield from self._book.cancel(other, "another slice of the entry ended unfilled")
        if not entry.orders and entry.left == 0:
            holding.entry = None
            if not entry.filled:
                yield holding.position(self._book.now_ns)
