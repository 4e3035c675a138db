"""Leaving: the exits of a position, tried so many times, and the call for a person after that.

A reject that mends itself (no login, too many calls) counts as no try. After the call it is tried
on, slowly, while the market trades. Why to leave is for execution.py to say; a kill switch without
flatten holds every exit back here.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from actors.entering import Entering
from actors.holding import Exit, Holding
from actors.messages import Alert, CancelOrder, PlaceOrder, RejectKind
from actors.order_book import OrderBook
from actors.orders import Order
from actors.policies import ExecutionSettings
from actors.session import SessionCalendar

NOT_CLOSED_RUNBOOK = "Position not closed"
SQUARE_OFF = "SQUARE_OFF"

_SECOND_NS = 1_000_000_000
_PUT_OFF_NS: Final[Mapping[RejectKind, tuple[int, int]]] = {
    # A login is tried every 10 s; neither it nor the count of calls lets an order out before.
    "auth": (1 * _SECOND_NS, 10 * _SECOND_NS),
    "rate": (1 * _SECOND_NS, 10 * _SECOND_NS),
    "retryable": (1 * _SECOND_NS, 60 * _SECOND_NS),
}
"""Rejects that mend themselves: the first pause after one, and the longest; it doubles."""
_SLOW_NS: Final = (30 * _SECOND_NS, 300 * _SECOND_NS)
"""The same pauses once a person was called."""


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
        """Start to leave; `again` at full pace also after an endeavour that failed."""
        if holding.exit is None:
            holding.exit = Exit(reason, decision_id)
        elif again and holding.exit.has_failed:
            holding.exit = Exit(reason, decision_id, orders=holding.exit.orders)
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
        if self.is_held_back:
            return
        is_over = leaving.left == 0 and not leaving.orders
        if is_over and leaving.attempts >= self._most_attempts and not leaving.has_failed:
            leaving.has_failed = True
            leaving.next_ns = self._book.now_ns + _doubled(_SLOW_NS, 0)
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
            if leaving.has_failed and not self._is_trading(holding):
                return
            leaving.attempts += 1
            leaving.passing, leaving.is_spent = None, False
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

    def note_end(self, holding: Holding, order: Order) -> Iterator[Alert]:
        """Take note that an order is done; after one that was not filled the next attempt waits."""
        leaving = holding.exit
        if leaving is None or order not in leaving.orders:
            return
        leaving.orders.remove(order)
        if order.left:
            leaving.left = 0
            kind = order.reject_kind
            if kind in _PUT_OFF_NS and self._is_trading(holding):
                leaving.passing = kind
            else:
                leaving.is_spent = True
        if leaving.left or leaving.orders:
            return
        if leaving.has_failed:
            leaving.slow_attempts += 1
            pause_ns = _doubled(_SLOW_NS, leaving.slow_attempts)
        elif leaving.passing and not leaving.is_spent:
            leaving.attempts -= 1
            pause_ns = _doubled(_PUT_OFF_NS[leaving.passing], leaving.times_put_off)
            pause_ns = max(self._retry_ns, pause_ns)
            leaving.times_put_off += 1
            yield from self._tell_put_off(holding, leaving)
        else:
            leaving.times_put_off = 0
            pause_ns = self._retry_ns
        leaving.next_ns = self._book.now_ns + pause_ns

    def _tell_put_off(self, holding: Holding, leaving: Exit) -> Iterator[Alert]:
        """Call a person, once, for an exit that was put off as often as another may fail."""
        if leaving.is_told_put_off or leaving.times_put_off < self._most_attempts:
            return
        leaving.is_told_put_off = True
        yield self._book.alert(
            "critical",
            f"{holding.net} units of {holding.name} are still open: the exit was rejected "
            f"{leaving.times_put_off} times in a row ({leaving.passing}). It is tried on until "
            "it goes out; close them by hand if that must not wait.",
            NOT_CLOSED_RUNBOOK,
            holding.name,
        )

    def _is_trading(self, holding: Holding) -> bool:
        instrument = holding.instrument
        phase = self._calendar.phase(instrument.session, self._book.now_ns, instrument.expiry)
        return phase != "closed"

    def square_off(self, holding: Holding) -> Iterator[PlaceOrder | CancelOrder | Alert]:
        """Close what is open at the end of the day, or say once why that is not done."""
        yield from self._entering.stop(holding, SQUARE_OFF)
        if not holding.net:
            return
        if not self.is_held_back:
            is_first = holding.exit is not None and holding.exit.reason != SQUARE_OFF
            yield from self.begin(holding, SQUARE_OFF, holding.decision_id, again=is_first)
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


def _doubled(pause_ns: tuple[int, int], times: int) -> int:
    """Return the first pause doubled so many times, at most the longest."""
    first_ns, longest_ns = pause_ns
    return min(first_ns << min(times, 16), longest_ns)
