"""What every broker offers: place, cancel, ask, and a stream of what became of the orders.

Only what all brokers share belongs here. How one of them speaks is in its own file.
"""

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Protocol

from actors.messages import ExecutionReport, PlaceOrder


class Broker(Protocol):
    """An account that takes orders, real or simulated. Use from one event loop."""

    is_remote: bool
    """Whether a request may still be on its way when nobody waits for its answer any more."""

    async def place(self, order: PlaceOrder) -> None:
        """Hand over one order under its client order id.

        Returns once the broker has taken it; what becomes of it comes through `reports`. Raises
        BrokerRejected when the broker said no, and BrokerUnavailable when the outcome is unknown:
        then ask `find`, never place the order again.
        """
        ...

    async def cancel(self, client_order_id: str) -> None:
        """Ask for a resting order to be taken back; the outcome comes through `reports`.

        Raises BrokerRejected when there is nothing to take back. Repeating a cancel is harmless.
        """
        ...

    async def modify(self, client_order_id: str, limit_price: Decimal) -> None:
        """Ask for another limit of a resting limit order; a fill may be faster than the change.

        Raises BrokerRejected when there is nothing to change or the new limit is not taken, and
        BrokerUnavailable when nobody knows which limit holds. Repeating it is harmless.
        """
        ...

    async def find(self, client_order_id: str) -> list[ExecutionReport] | None:
        """Return all that is known of one order, oldest first; None: proven absent.

        The reports carry the same execution ids as in `reports`. Raises BrokerUnavailable when the
        broker cannot be asked, which proves nothing.
        """
        ...

    def reports(self) -> AsyncIterator[ExecutionReport]:
        """Yield reports as they come, for ever. One reader at a time."""
        ...

    @property
    def pending_reports(self) -> int:
        """How many reports are made and not yet taken by the reader of `reports`."""
        ...

    async def refresh(self) -> None:
        """Read the books and let `reports` tell what it has not told yet.

        Fills of orders that were not placed here come under a client order id that begins with
        `outside`. Raises BrokerUnavailable.
        """
        ...

    async def positions(self, *, reduces_risk: bool = False) -> dict[str, int]:
        """Return signed units per instrument, zeros left out.

        `reduces_risk`: an exit waits for the answer, so calls kept for exits may be spent on it.
        """
        ...

    async def open_orders(self) -> list[PlaceOrder]:
        """Return the orders that may still fill, oldest first."""
        ...

    async def cancel_all(self) -> list[str]:
        """Take back every resting order, also ones this program did not place; return their ids."""
        ...

    async def close(self) -> None:
        """End the connection. Resting orders stay where they are."""
        ...
