"""Lost tail: what the bus forgot when the machine lost power, though the outbox has it.

The bus syncs its file once a second, the outbox every change. So after a power cut the last second
of the bus is gone: reports that were published, orders that were sent. What to do about it is for
the order gateway to say.
"""

from typing import NamedTuple

from actors.messages import ExecutionReport, PlaceOrder
from daemon.bus import Bus
from daemon.outbox import Outbox, OutboxOrder


class LostTail(NamedTuple):
    """What the bus has lost of the outbox."""

    execution_ids: list[str]  # of reports that it had
    orders: list[OutboxOrder]  # that it asked for: execution may not know them any more


async def find_lost_tail(bus: Bus, outbox: Outbox) -> LostTail:
    """Compare the outbox with the streams of reports and orders. Raises BusError.

    Only an end is ever lost; what is missing before the newest report of the bus was trimmed.
    """
    confirmed = await outbox.confirmed()  # before the bus is read: what comes later is no loss
    kept = {
        entry.envelope.message.execution_id
        for entry in await bus.entries(ExecutionReport.stream)
        if isinstance(entry.envelope.message, ExecutionReport)
    }
    lost: dict[str, str] = {}
    for execution_id, client_order_id in reversed(confirmed):
        if execution_id in kept:
            break
        lost[execution_id] = client_order_id
    rows = {row.order.client_order_id: row for row in await outbox.unfinished()}
    for tag in lost.values():
        row = rows.get(tag) or await outbox.find(tag)
        if row is not None:
            rows[tag] = row
    return LostTail(list(lost), [row for row in rows.values() if not await _has(bus, row)])


async def _has(bus: Bus, row: OutboxOrder) -> bool:
    for entry in await bus.entries(PlaceOrder.stream, start=row.entry_id, limit=1):
        match entry.envelope.message:
            case PlaceOrder(client_order_id=tag):
                return entry.id == row.entry_id and tag == row.order.client_order_id
            case _:
                return False
    return False
