"""Order book: places and takes back orders, finds them again by their ids, and calls for late ones.

It stamps everything with the market time it was last told. Which order is wanted, and what follows
from an answer, is for execution.py and leaving.py.
"""

from collections.abc import Iterator
from typing import Final

from actors.holding import Holding
from actors.instruments import Instrument
from actors.limits import Limits, Paid
from actors.messages import (
    Alert,
    CancelOrder,
    ExecutionReport,
    ModifyOrder,
    OrderIntent,
    PlaceOrder,
    Purpose,
    Severity,
    Tick,
)
from actors.orders import OUTSIDE, Order, client_order_id
from actors.policies import ExecutionSettings

SOURCE: Final = "execution"
CLOSED_OUTSIDE: Final = "OUTSIDE_CLOSE"
FORGOTTEN: Final = "FORGOTTEN_ORDER"
NO_ANSWER_RUNBOOK = "Order without answer"

_SECOND_NS = 1_000_000_000
_REMEMBERED_ORDERS = 4096


class OrderBook:
    """All orders of execution, by client order id."""

    def __init__(self, settings: ExecutionSettings) -> None:
        self._timeout_ns = int(settings.order_timeout_seconds * _SECOND_NS)
        # As many as the gateway takes of entries in a second: a quarter is kept for exits, cancels.
        rate = settings.max_order_rate_per_second
        self._burst = rate - rate // 4
        self._limits = Limits(settings)
        self._orders: dict[str, Order] = {}
        self.now_ns = 0  # market time

    def __len__(self) -> int:
        return len(self._orders)

    def __contains__(self, client_order_id_: str) -> bool:
        return client_order_id_ in self._orders

    def find(self, report: ExecutionReport, holding: Holding | None) -> Order | None:
        """Return the order that a report speaks of; an adopted one where it is not known here.

        holding: what is held of the instrument, if anything ever was.
        """
        adopted = self._orders.get(report.execution_id)
        known = adopted or self._orders.get(report.client_order_id)
        return known or self._adopted(report, holding)

    def _adopted(self, report: ExecutionReport, holding: Holding | None) -> Order | None:
        """Return an order that stands for a fill which closes what is held here.

        It is a stranger's, or one of an order that was lost with the end of the bus.
        """
        signed = report.last_quantity if report.side == "buy" else -report.last_quantity
        if holding is None or holding.net * signed >= 0 or abs(signed) > abs(holding.net):
            return None
        placed = PlaceOrder(
            client_order_id=report.client_order_id,
            decision_id=holding.decision_id,
            instrument=holding.name,
            side=report.side,
            quantity=report.last_quantity,
            order_type="market",
            purpose="exit",
            reason=CLOSED_OUTSIDE if report.client_order_id.startswith(OUTSIDE) else FORGOTTEN,
            placed_ns=report.event_ns,
        )
        order = Order(placed, None, state_ns=self.now_ns)
        self._orders[report.execution_id] = order
        return order

    def next_slices(self, instrument: Instrument, units: int) -> Iterator[int]:
        """Yield the sizes of the orders that may go out now for so many units.

        Each is below the freeze quantity, and there are no more than the gateway takes in a second.
        """
        largest = instrument.largest_order or units
        for _ in range(self._burst):
            if units == 0:
                return
            size = min(units, largest)
            units -= size
            yield size

    @property
    def next_burst_ns(self) -> int:
        """Market time from which the gateway takes as many orders again."""
        return self.now_ns + _SECOND_NS

    def order(
        self,
        holding: Holding,
        purpose: Purpose,
        quantity: int,
        reason: str,
        decision_id: str,
        number: int,
        intent: OrderIntent | None = None,
    ) -> Order:
        """Return a new order for signed units; `number` tells it from others of its decision."""
        instrument = holding.instrument
        given = intent.limit_price if intent else None
        limit = None
        if given is None:
            limit = self._limits.of(instrument, quantity, intent, _paid(holding))
        limit_price = limit if given is None else given
        placed = PlaceOrder(
            client_order_id=client_order_id(decision_id, purpose, number),
            decision_id=decision_id,
            instrument=holding.name,
            side="buy" if quantity > 0 else "sell",
            quantity=abs(quantity),
            order_type="market" if limit_price is None else "limit",
            purpose=purpose,
            reason=reason,
            placed_ns=self.now_ns,
            limit_price=limit_price,
            underlying=instrument.underlying,
        )
        order = Order(placed, intent, state_ns=self.now_ns, limit=limit, limit_ns=self.now_ns)
        self._remember(order)
        return order

    def cancel(self, order: Order, reason: str) -> Iterator[CancelOrder]:
        """Ask once for an order to be taken back."""
        if order.cancel_asked_ns is not None:
            return
        order.cancel_asked_ns = self.now_ns
        yield CancelOrder(
            client_order_id=order.placed.client_order_id,
            instrument=order.placed.instrument,
            reason=reason,
            placed_ns=self.now_ns,
        )

    def see(self, tick: Tick, underlying: str = "") -> None:
        """Note the last price of an instrument; limits are set by it. underlying: of an option."""
        self._limits.see(tick, underlying)

    def reprice(self, holding: Holding) -> Iterator[ModifyOrder]:
        """Let the limits of orders that rest too long follow the price, so many times."""
        for order in holding.open_orders:
            limit = self._limits.next_of(order, holding.instrument, self.now_ns, _paid(holding))
            if limit is None:
                continue
            waited_s = (self.now_ns - order.limit_ns) / _SECOND_NS
            order.limit, order.limit_ns = limit, self.now_ns
            order.repriced += 1
            yield ModifyOrder(
                client_order_id=order.placed.client_order_id,
                instrument=holding.name,
                limit_price=limit,
                reason=f"not filled in {waited_s:g} s",
                placed_ns=self.now_ns,
            )

    def chase(self, holding: Holding) -> Iterator[CancelOrder | Alert]:
        """Ask once for an order that has no final answer in time; then call a person."""
        for order in holding.open_orders:
            asked_ns = order.cancel_asked_ns
            if asked_ns is None:
                since_ns = order.waits_since_ns
                if since_ns is not None and self.now_ns - since_ns >= self._timeout_ns:
                    yield from self.cancel(order, "no final answer in time")
            elif self.now_ns - asked_ns >= self._timeout_ns and not order.is_reported_late:
                order.is_reported_late = True
                yield self.alert(
                    "critical",
                    f"order {order.placed.client_order_id} for {order.placed.quantity} "
                    f"{holding.name} has no final answer, state {order.state}: nothing new is "
                    "opened there until it has",
                    NO_ANSWER_RUNBOOK,
                    holding.name,
                )

    def alert(
        self, severity: Severity, text: str, runbook: str, instrument: str | None = None
    ) -> Alert:
        """Return an alert of execution, of now."""
        return Alert(
            severity=severity,
            text=text,
            runbook=runbook,
            at_ns=self.now_ns,
            source=SOURCE,
            instrument=instrument,
        )

    def _remember(self, order: Order) -> None:
        self._orders[order.placed.client_order_id] = order
        if len(self._orders) > _REMEMBERED_ORDERS:
            oldest = next(iter(self._orders))
            if self._orders[oldest].is_done:
                del self._orders[oldest]


def _paid(holding: Holding) -> Paid | None:
    """Return what a bought option cost; None for anything else, or with none held."""
    if holding.net <= 0 or not holding.instrument.underlying:
        return None
    return Paid(holding.average_price, holding.underlying_entry)
