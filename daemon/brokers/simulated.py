"""A simulated account: orders fill at the market's next price, made worse by slippage.

For paper trading and backtests. A market order never fills at a price that was known when it was
placed: it rests until the next tick of its instrument, since no real order is faster than the
price it follows. A limit order fills once a later price reaches it. The only clock is the ticks'.
Costs are not charged here but booked by execution, so reports carry no charges.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from actors.instruments import Instrument, InstrumentCatalogue
from actors.messages import ExecutionReport, OrderStatus, PlaceOrder, Tick
from actors.session import SessionCalendar
from daemon.errors import BrokerRejected

_BASIS_POINT = Decimal("0.0001")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationSettings:
    """How much worse than the market the simulated account fills."""

    slippage_ticks: int = 1
    slippage_bps: Decimal = Decimal("0.5")  # of the price, on top of the ticks
    max_lots_per_tick: int | None = None  # fills are cut to so many lots a tick; None: never


@dataclass(slots=True)
class _Ticket:
    """One order and all that was reported of it."""

    order: PlaceOrder
    instrument: Instrument
    placed_ns: int  # market time
    limit: Decimal | None  # as placed, or as last modified
    filled: int = 0
    is_open: bool = True
    reports: list[ExecutionReport] = field(default_factory=list)


class SimulatedBroker:
    """Take orders and fill them from the ticks given to `on_tick`.

    With a calendar, what rests when the session day ends expires, as day orders do. `positions`
    are the units held at the start. Lives in memory: after a restart older orders are unknown.
    """

    is_remote = False

    def __init__(
        self,
        catalogue: InstrumentCatalogue,
        settings: SimulationSettings,
        calendar: SessionCalendar | None = None,
        positions: Mapping[str, int] | None = None,
    ) -> None:
        self._catalogue = catalogue
        self._settings = settings
        self._calendar = calendar
        self._tickets: dict[str, _Ticket] = {}
        self._resting: dict[str, list[_Ticket]] = {}
        self._ticks: dict[str, Tick] = {}
        self._positions: dict[str, int] = dict(positions or {})
        self._queue: asyncio.Queue[ExecutionReport] = asyncio.Queue()

    def on_tick(self, tick: Tick) -> None:
        """Match the resting orders of the instrument; a tick older than the last is left out."""
        last = self._ticks.get(tick.instrument)
        if last is not None and tick.event_ns < last.event_ns:
            return
        self._ticks[tick.instrument] = tick
        resting = self._resting.get(tick.instrument)
        if not resting:
            return
        for ticket in resting:
            if self._has_expired(ticket, tick.event_ns):
                self._end(ticket, "expired", tick.event_ns, "the session day has ended")
            elif tick.event_ns > ticket.placed_ns:  # not the very tick that led to the order
                self._match(ticket, tick)
        self._resting[tick.instrument] = [ticket for ticket in resting if ticket.is_open]

    @property
    def pending_reports(self) -> int:
        return self._queue.qsize()

    async def place(self, order: PlaceOrder) -> None:
        known = self._tickets.get(order.client_order_id)
        if known is not None:
            if known.order != order:
                raise BrokerRejected(
                    f"client order id {order.client_order_id} belongs to another order: "
                    f"{known.order.side} {known.order.quantity} {known.order.instrument}"
                )
            return
        refusal = self._refusal(order)
        if refusal is not None:
            raise BrokerRejected(refusal)
        placed_ns = max(order.placed_ns, self._ticks[order.instrument].event_ns)
        limit = order.limit_price if order.order_type == "limit" else None
        ticket = _Ticket(order, self._catalogue[order.instrument], placed_ns, limit)
        self._tickets[order.client_order_id] = ticket
        self._resting.setdefault(order.instrument, []).append(ticket)
        self._report(ticket, "accepted", placed_ns)

    async def cancel(self, client_order_id: str) -> None:
        ticket = self._tickets.get(client_order_id)
        if ticket is None or not ticket.is_open:
            state = ticket.reports[-1].status if ticket else "unknown here"
            raise BrokerRejected(f"order {client_order_id} does not rest: it is {state}")
        self._take_back(ticket, "cancelled on request")

    async def modify(self, client_order_id: str, limit_price: Decimal) -> None:
        ticket = self._tickets.get(client_order_id)
        if ticket is None or not ticket.is_open or ticket.limit is None:
            state = ticket.reports[-1].status if ticket else "unknown here"
            raise BrokerRejected(f"order {client_order_id} is no resting limit: it is {state}")
        refusal = _limit_refusal(ticket.instrument, limit_price)
        if refusal is not None:
            raise BrokerRejected(refusal)
        ticket.limit = limit_price

    async def find(self, client_order_id: str) -> list[ExecutionReport] | None:
        ticket = self._tickets.get(client_order_id)
        return None if ticket is None else list(ticket.reports)

    async def reports(self) -> AsyncIterator[ExecutionReport]:
        while True:
            yield await self._queue.get()

    async def refresh(self) -> None:
        """Do nothing: nothing is lost on the way, and nobody else trades here."""

    async def positions(
        self,
        *,
        reduces_risk: bool = False,  # noqa: ARG002  no call is counted here
    ) -> dict[str, int]:
        return {name: units for name, units in self._positions.items() if units}

    async def open_orders(self) -> list[PlaceOrder]:
        return [ticket.order for ticket in self._tickets.values() if ticket.is_open]

    async def cancel_all(self) -> list[str]:
        resting = [ticket for ticket in self._tickets.values() if ticket.is_open]
        for ticket in resting:
            self._take_back(ticket, "all orders cancelled")
        return [ticket.order.client_order_id for ticket in resting]

    async def close(self) -> None:
        """Do nothing: there is no connection."""

    def _refusal(self, order: PlaceOrder) -> str | None:
        if order.instrument not in self._catalogue:
            return f"unknown instrument {order.instrument!r}"
        instrument = self._catalogue[order.instrument]
        if order.quantity <= 0 or order.quantity % instrument.lot_size:
            return (
                f"quantity must be a multiple of the lot {instrument.lot_size}, "
                f"was {order.quantity}"
            )
        most = instrument.freeze_quantity
        if most is not None and order.quantity >= most:
            return f"quantity must be below the freeze quantity {most}, was {order.quantity}"
        if order.instrument not in self._ticks:
            return f"no price of {order.instrument} yet"
        if order.order_type == "limit":
            return _limit_refusal(instrument, order.limit_price)
        return None

    def _has_expired(self, ticket: _Ticket, now_ns: int) -> bool:
        if self._calendar is None:
            return False
        market = ticket.instrument.session
        return self._calendar.session_key(market, now_ns) > self._calendar.session_key(
            market, ticket.placed_ns
        )

    def _match(self, ticket: _Ticket, tick: Tick) -> None:
        order = ticket.order
        price = self._fill_price(ticket, tick)
        if price is None:
            return
        remaining = order.quantity - ticket.filled
        most_lots = self._settings.max_lots_per_tick
        quantity = remaining
        if most_lots is not None:
            quantity = min(remaining, ticket.instrument.units(most_lots))
        ticket.filled += quantity
        ticket.is_open = ticket.filled < order.quantity
        signed = quantity if order.side == "buy" else -quantity
        self._positions[order.instrument] = self._positions.get(order.instrument, 0) + signed
        status: OrderStatus = "partially_filled" if ticket.is_open else "filled"
        self._report(ticket, status, tick.event_ns, quantity, price)

    def _fill_price(self, ticket: _Ticket, tick: Tick) -> Decimal | None:
        """Return the price of a fill on this tick, None while a limit is not reached."""
        order = ticket.order
        instrument = ticket.instrument
        is_buy = order.side == "buy"
        quoted = (tick.ask if is_buy else tick.bid) or tick.last_price
        limit = ticket.limit
        if limit is not None and (quoted > limit if is_buy else quoted < limit):
            return None
        slippage = self._settings.slippage_ticks * instrument.tick_size
        slippage += self._settings.slippage_bps * _BASIS_POINT * quoted
        if is_buy:
            price = instrument.round_to_tick(quoted + slippage, "up")
            return price if limit is None else min(price, limit)
        worst = max(instrument.tick_size, quoted - slippage)
        price = instrument.round_to_tick(worst, "down")
        return price if limit is None else max(price, limit)

    def _take_back(self, ticket: _Ticket, reason: str) -> None:
        now_ns = max(ticket.placed_ns, self._ticks[ticket.order.instrument].event_ns)
        self._end(ticket, "cancelled", now_ns, reason)
        self._resting[ticket.order.instrument].remove(ticket)

    def _end(self, ticket: _Ticket, status: OrderStatus, now_ns: int, reason: str) -> None:
        ticket.is_open = False
        self._report(ticket, status, now_ns, reason=reason)

    def _report(
        self,
        ticket: _Ticket,
        status: OrderStatus,
        event_ns: int,
        quantity: int = 0,
        price: Decimal = Decimal(0),
        reason: str = "",
    ) -> None:
        order = ticket.order
        report = ExecutionReport(
            execution_id=f"{order.client_order_id}-{len(ticket.reports) + 1}",
            client_order_id=order.client_order_id,
            instrument=order.instrument,
            side=order.side,
            status=status,
            event_ns=event_ns,
            last_quantity=quantity,
            last_price=price,
            cumulative_quantity=ticket.filled,
            reason=reason,
        )
        ticket.reports.append(report)
        self._queue.put_nowait(report)


def _limit_refusal(instrument: Instrument, limit: Decimal | None) -> str | None:
    if limit is None or not limit.is_finite() or limit <= 0:
        return f"the price of a limit order must be above 0, was {limit}"
    if limit != instrument.round_to_tick(limit):
        return f"limit price must be a multiple of {instrument.tick_size}, was {limit}"
    return None
