"""Reject watch: tells the reject circuit how orders end, also those that are refused late.

That the broker has taken an order is no news of it: the risk desk and the exchange refuse some a
moment later. So the count begins anew when an order proves not to be refused, never before.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from actors.messages import ExecutionReport, OrderStatus, PlaceOrder, RejectKind
from daemon.outbox import Outbox
from daemon.reject_circuit import RejectCircuit

_NOT_REFUSED: Final[frozenset[OrderStatus]] = frozenset(
    {"partially_filled", "filled", "cancelled", "expired"}
)


class RejectWatch:
    """Count each rejected order once, whether the reply said so or a report.

    An option counts as its underlying: the next entry would take another strike.
    """

    def __init__(
        self,
        outbox: Outbox,
        clock_ns: Callable[[], int],
        on_open: Callable[[str, PlaceOrder], Awaitable[None]],
    ) -> None:
        """`on_open` hears a sentence when the circuit opens, and of the order that opened it."""
        self._outbox = outbox
        self._clock_ns = clock_ns
        self._on_open = on_open
        self._circuit = RejectCircuit()
        self._counted: set[str] = set()  # client order ids

    @property
    def counts(self) -> dict[RejectKind, int]:
        """Rejects by class since the start."""
        return dict(self._circuit.rejects)

    @property
    def openings(self) -> int:
        """How often the circuit has opened since the start."""
        return self._circuit.openings

    def refusal(self, order: PlaceOrder) -> str | None:
        """Return why an entry must not be tried now, or None."""
        return self._circuit.refusal(order.subject, self._clock_ns())

    async def refused(self, order: PlaceOrder, kind: RejectKind, reason: str) -> None:
        """Count the reject of an order."""
        if order.client_order_id in self._counted:
            return
        self._counted.add(order.client_order_id)
        opened = self._circuit.rejected(order.subject, kind, reason, self._clock_ns())
        if opened is not None:
            await self._on_open(opened, order)

    async def hear(self, reports: Sequence[ExecutionReport]) -> None:
        """Learn from what the broker says of orders; to be called before it is written down."""
        for report in reports:
            is_reject = report.status == "rejected"
            if not is_reject and report.status not in _NOT_REFUSED:
                continue
            row = await self._outbox.find(report.client_order_id)
            if row is None or row.is_final:
                continue  # said before, perhaps in an earlier run
            if is_reject:
                await self.refused(row.order, report.reject_kind or "permanent", report.reason)
            else:
                self._circuit.confirmed(row.order.subject)
