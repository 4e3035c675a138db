"""Reconciler: looks at the broker's books now and then, and remembers what it saw.

It never trades and never corrects: what is missing in the log comes through the broker's reports,
and what stays different is for a person. How two ledgers compare is in reconciliation.py.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping

from actors.messages import ExecutionReport, PlaceOrder
from actors.orders import OUTSIDE
from daemon.brokers.base import Broker
from daemon.errors import BrokerUnavailable
from daemon.outbox import Outbox
from daemon.reconciliation import Difference, Ledger, Reconciliation, compare

_LOOKS = 3  # the log may move while the broker answers; so often a look is tried again
_STALE_S = 60.0
_NEVER = "log and broker have not been compared yet: the broker could not be asked"


class Reconciler:
    """Compare the outbox with the broker; say what forbids an entry.

    The first look counts at once. After that a difference must be seen twice in a row, since a
    fill may be on its way while the books are read; an agreement counts at once.
    """

    def __init__(
        self,
        broker: Broker,
        outbox: Outbox,
        traded: Collection[str],
        *,
        real_ns: Callable[[], int],
        on_outcome: Callable[[Reconciliation], None] = lambda _: None,
        timeout_s: float = 5.0,
        stale_s: float = _STALE_S,
        managed: Callable[[], Awaitable[Mapping[str, int] | None]] | None = None,
    ) -> None:
        """`stale_s`: a comparison older than that, in real time, lets no entry pass.

        `managed` returns the signed units that execution holds by instrument, or None while it has
        not heard of everything in the log.
        """
        self._managed = managed
        self._stale_s = stale_s
        self._broker = broker
        self._outbox = outbox
        self._traded = frozenset(traded)
        self._real_ns = real_ns
        self._on_outcome = on_outcome
        self._timeout_s = timeout_s
        self._suspected: frozenset[Difference] = frozenset()
        self.not_open: frozenset[str] = frozenset()
        """Orders without an end that the broker had not open, when the two were last compared."""
        self.outcome: Reconciliation | None = None

    async def look(self, drained: Callable[[], bool]) -> tuple[Difference, ...]:
        """Compare now; return the differences that are new. BrokerUnavailable, TimeoutError.

        drained: whether all reports that the broker has made are in the outbox.
        """
        seen = await self._compare(drained)
        if seen is None:
            return ()  # busy: the last outcome stands
        found, moving = seen
        first, confirmed = self.outcome is None, self._suspected.intersection(found)
        differences = found if first else tuple(one for one in found if one in confirmed)
        self._suspected = frozenset(found)
        known = self.outcome.differences if self.outcome else ()
        now_ns = self._real_ns()
        agreed_ns = now_ns if not found else (self.outcome.agreed_ns if self.outcome else 0)
        self.outcome = Reconciliation(
            checked_ns=now_ns, agreed_ns=agreed_ns, differences=differences, unsettled=moving
        )
        self._on_outcome(self.outcome)
        return tuple(one for one in differences if one not in known)

    def refusal(self, instrument: str) -> str | None:
        """Return why an entry must wait, or None."""
        if self.outcome is None:
            return _NEVER
        age_s = (self._real_ns() - self.outcome.checked_ns) / 1e9
        if age_s > self._stale_s:
            return (
                f"log and broker were last compared {age_s:.0f} s ago, allowed: {self._stale_s:g} s"
            )
        return self.outcome.refusal(instrument)

    async def exit_problem(self, order: PlaceOrder) -> str | None:
        """Return why an exit would open a position, by the broker's own net; None if it closes one.

        A broker that cannot be asked is no reason to stay in: then the log's word counts.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                positions = await self._broker.positions(reduces_risk=True)
        except (BrokerUnavailable, TimeoutError):
            return None
        net = positions.get(order.instrument, 0)
        closable = max(0, net if order.side == "sell" else -net)
        if order.quantity <= closable:
            return None
        return (
            f"the broker's net position is {net} units: {order.side} {order.quantity} would "
            "open another"
        )

    async def adopts(self, report: ExecutionReport) -> bool:
        """Tell whether a stranger's fill counts as ours: it makes a position of ours smaller."""
        ledger = await self._outbox.ledger()
        net = ledger.positions.get(report.instrument, 0)
        signed = report.last_quantity if report.side == "buy" else -report.last_quantity
        return net * signed < 0 and abs(signed) <= abs(net)

    async def _compare(
        self, drained: Callable[[], bool]
    ) -> tuple[tuple[Difference, ...], tuple[str, ...]] | None:
        for _ in range(_LOOKS):
            async with asyncio.timeout(self._timeout_s):
                await self._broker.refresh()
            await self._until(drained)
            before = await self._outbox.ledger()
            async with asyncio.timeout(self._timeout_s):
                positions = await self._broker.positions()
                open_orders = await self._broker.open_orders()
            managed = None if self._managed is None else await self._managed()
            await self._until(drained)
            after: Ledger = await self._outbox.ledger()
            if before == after:
                at_broker = {order.client_order_id for order in open_orders}
                self.not_open = frozenset(after.unfinished.keys() - at_broker)
                return compare(after, positions, open_orders, self._traded, managed)
        return None

    async def _until(self, drained: Callable[[], bool]) -> None:
        async with asyncio.timeout(self._timeout_s):
            while not drained():  # noqa: ASYNC110 - queue and outbox have no event in common
                await asyncio.sleep(0.001)


def is_outside(report: ExecutionReport) -> bool:
    """Tell whether a report speaks of an order that was not placed here."""
    return report.client_order_id.startswith(OUTSIDE)
