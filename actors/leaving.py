"""Leaving: the exits of a position, tried so many times, and the call for a person after that.

Why to leave is for execution.py to say; a kill switch without flatten holds every exit back here.
"""

from collections.abc import Iterator

from actors.entering import Entering
from actors.holding import Exit, Holding
from actors.messages import Alert, CancelOrder, PlaceOrder
from actors.order_book import OrderBook
from actors.orders import Order
from actors.policies import ExecutionSettings
from actors.session import SessionCalendar

NOT_CLOSED_RUNBOOK = "Position not closed"
SQUARE_OFF = "SQUARE_OFF"

_SECOND_NS = 1_000_000_000


class Leaving:
    """Close positions through the order book, always sized by what is held."""

    def __init__(
        self,
        settings: ExecutionSettings,
        calendar: SessionCalendar,
        book: OrderBook,
        entering: Entering,
    ) -> None:
        self._entering = entering
        self._most_attempts = settings.exit_attempts
        self._retry_ns = int(settings.exit_retry_seconds * _SECOND_NS)
        self._calendar = calendar
        self._book = book
        self.is_held_back = False

    def begin(
        self, holding: Holding, reason: str, decision_id: str, *, again: bool = False
    ) -> Iterator[PlaceOrder | CancelOrder | Alert]:
        """Start to leave; `again` also after an endeavour that failed."""
        if holding.exit is None or (again and holding.exit.has_failed):
            holding.exit = Exit(reason, decision_id)
        yield from self._entering.stop(holding, reason)
        yield from self.pursue(holding)

    def pursue(self, holding: Holding) -> Iterator[PlaceOrder | Alert]:
        """Place the next orders of an endeavour that has begun, once they are due."""
        leaving = holding.exit
        if leaving is None:
            return
        if holding.net == 0 and not leaving.orders:
            holding.exit = None
            return
        if leaving.has_failed or self.is_held_back:
            return
        is_over = leaving.left == 0 and not leaving.orders
        if is_over and leaving.attempts >= self._most_attempts:
            leaving.has_failed = True
            yield self._book.alert(
                "critical",
                f"Failed to close position for {holding.name}. Please check manually.",
                NOT_CLOSED_RUNBOOK,
                holding.name,
            )
            return
        if self._book.now_ns < leaving.next_ns:
            return
        if is_over:
            leaving.attempts += 1
            leaving.left = abs(holding.net)
        yield from self._send(holding, leaving)

    def _send(self, holding: Holding, leaving: Exit) -> Iterator[PlaceOrder]:
        """Place what is left of an attempt; all orders out never close more than is held."""
        closing = 1 if holding.net < 0 else -1
        out = sum(
            order.left if (order.placed.side == "buy") == (closing > 0) else abs(holding.net)
            for order in leaving.orders
        )
        leaving.left = max(0, min(leaving.left, abs(holding.net) - out))
        if leaving.left == 0:
            return
        for units in self._book.next_slices(holding.instrument, leaving.left):
            leaving.left -= units
            holding.exits_sent += 1
            order = self._book.order(
                holding,
                "exit",
                closing * units,
                leaving.reason,
                leaving.decision_id,
                holding.exits_sent,
            )
            leaving.orders.append(order)
            yield order.placed
        leaving.next_ns = self._book.next_burst_ns if leaving.left else leaving.next_ns

    def note_end(self, holding: Holding, order: Order) -> None:
        """Take note that an order is done; after one that was not filled the next attempt waits."""
        leaving = holding.exit
        if leaving is None or order not in leaving.orders:
            return
        leaving.orders.remove(order)
        if order.left:
            leaving.left = 0
        if leaving.left == 0:
            leaving.next_ns = self._book.now_ns + self._retry_ns

    def square_off(self, holding: Holding) -> Iterator[PlaceOrder | CancelOrder | Alert]:
        """Close what is open at the end of the day, or say once why that is not done."""
        yield from self._entering.stop(holding, SQUARE_OFF)
        if not holding.net:
            return
        if not self.is_held_back:
            yield from self.begin(holding, SQUARE_OFF, holding.decision_id)
        elif not holding.is_held_back:
            holding.is_held_back = True
            yield self._book.alert(
                "critical",
                f"{holding.net} units of {holding.name} are open at square-off and the kill switch "
                "holds exits back. Close them by hand, or kill with --flatten.",
                NOT_CLOSED_RUNBOOK,
                holding.name,
            )

    def stays_open(self, holding: Holding) -> Alert:
        """Return the alert of a position that the kill switch leaves open."""
        return self._book.alert(
            "warning",
            f"kill switch without flatten: {holding.net} units of {holding.name} stay open, and "
            "their stops are not acted on",
            NOT_CLOSED_RUNBOOK,
            holding.name,
        )

    def tell_if_late(self, holding: Holding) -> Iterator[Alert]:
        """Call a person, once, for a position that is open when it should be closed (`flat_by`)."""
        if not holding.net or holding.is_told_late:
            return
        now_ns = self._book.now_ns
        instrument = holding.instrument
        interval = self._calendar.interval(instrument.session, now_ns, instrument.expiry)
        if interval is None or now_ns < interval.flat_by_ns:
            return
        holding.is_told_late = True
        left_s = (interval.close_ns - now_ns) // _SECOND_NS
        yield self._book.alert(
            "critical",
            f"{holding.net} units of {holding.name} should be closed by now and trading ends in "
            f"{left_s} s. Close them by hand if the exit does not fill.",
            NOT_CLOSED_RUNBOOK,
            holding.name,
        )
