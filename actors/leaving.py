"""Leaving: the exits of a position, tried so many times, and the call for a person after that.

Why to leave is for execution.py to say; a kill switch without flatten holds every exit back here.
"""

from collections.abc import Iterator

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
        self, settings: ExecutionSettings, calendar: SessionCalendar, book: OrderBook
    ) -> None:
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
        yield from self._book.cancel(holding.entry_order, reason)
        yield from self.pursue(holding)

    def pursue(self, holding: Holding) -> Iterator[PlaceOrder | Alert]:
        """Place the next order of an endeavour that has begun, once it is due."""
        leaving = holding.exit
        if leaving is None or holding.exit_order is not None:
            return
        if holding.net == 0:
            holding.exit = None
            return
        if leaving.has_failed or self.is_held_back:
            return
        if leaving.attempts >= self._most_attempts:
            leaving.has_failed = True
            yield self._book.alert(
                "critical",
                f"Failed to close position for {holding.name}. Please check manually.",
                NOT_CLOSED_RUNBOOK,
                holding.name,
            )
        elif self._book.now_ns >= leaving.next_ns:
            leaving.attempts += 1
            yield self._book.place(
                holding, "exit", -holding.net, leaving.reason, leaving.decision_id
            )

    def note_end(self, holding: Holding, order: Order) -> None:
        """Take note that an order is done; the next attempt waits a while."""
        if holding.exit_order is order:
            holding.exit_order = None
            if holding.exit is not None:
                holding.exit.next_ns = self._book.now_ns + self._retry_ns

    def square_off(self, holding: Holding) -> Iterator[PlaceOrder | CancelOrder | Alert]:
        """Close what is open at the end of the day, or say once why that is not done."""
        yield from self._book.cancel(holding.entry_order, SQUARE_OFF)
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
        interval = self._calendar.interval(holding.instrument.session, now_ns)
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
