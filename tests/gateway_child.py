"""A gateway for a process of its own, which kills itself at a named point.

Broker and published reports are files, so that they outlive the process as the real ones would.
The one order has the same entry id in every run, as an entry that is delivered again.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterable
from decimal import Decimal
from pathlib import Path

from builders import OPEN_NS, a_fill, an_order

from actors.messages import ExecutionReport, PlaceOrder
from daemon.kill_switch import Latch
from daemon.memory_bus import MemoryBus
from daemon.order_gateway import OrderGateway
from daemon.outbox import Outbox, OutboxOrder


class Fate:
    """Where the files lie, and at which point the process dies."""

    def __init__(self, folder: Path, point: str) -> None:
        self.folder = folder
        self._point = point

    def pass_point(self, point: str) -> None:
        if point == self._point:
            os.kill(os.getpid(), signal.SIGKILL)


class FileBroker:
    """A broker that fills at once, remembers in a file, and does not refuse duplicates."""

    is_remote = True
    pending_reports = 0

    def __init__(self, fate: Fate) -> None:
        self._fate = fate
        self._path = fate.folder / "placed"
        self._queue: asyncio.Queue[ExecutionReport] = asyncio.Queue()

    async def place(self, order: PlaceOrder) -> None:
        self._fate.pass_point("after_sent")
        with self._path.open("a") as file:
            file.write(f"{order.client_order_id}\n")
        self._fate.pass_point("after_place")
        self._queue.put_nowait(a_fill(order))

    async def cancel(self, client_order_id: str) -> None: ...

    async def modify(self, client_order_id: str, limit_price: Decimal) -> None: ...

    async def find(self, client_order_id: str) -> list[ExecutionReport] | None:
        placed = self._path.read_text().split() if self._path.exists() else []
        return [a_fill(an_order())] if client_order_id in placed else None

    async def reports(self) -> AsyncIterator[ExecutionReport]:
        while True:
            yield await self._queue.get()

    async def refresh(self) -> None: ...

    async def positions(self, *, reduces_risk: bool = False) -> dict[str, int]:
        return {}

    async def open_orders(self) -> list[PlaceOrder]:
        return []

    async def cancel_all(self) -> list[str]:
        return []

    async def close(self) -> None: ...


class MortalOutbox(Outbox):
    """The outbox, with points to die at around what it does."""

    def __init__(self, fate: Fate) -> None:
        super().__init__(fate.folder / "outbox.sqlite")
        self._fate = fate

    async def record_intent(self, order: PlaceOrder, entry_id: str) -> OutboxOrder | None:
        self._fate.pass_point("before_intent")
        known = await super().record_intent(order, entry_id)
        self._fate.pass_point("after_intent")
        return known

    async def mark_answered(self, client_order_id: str) -> None:
        await super().mark_answered(client_order_id)
        self._fate.pass_point("after_answered")

    async def add_reports(
        self, reports: Iterable[ExecutionReport], answers: str | None = None
    ) -> int:
        added = await super().add_reports(reports, answers)
        self._fate.pass_point("after_report_stored")
        return added

    async def mark_published(self, execution_ids: Iterable[str]) -> None:
        ids = list(execution_ids)
        with (self._fate.folder / "published").open("a") as file:
            file.writelines(f"{execution_id}\n" for execution_id in ids)
        self._fate.pass_point("after_publish")
        await super().mark_published(ids)


class Released:
    async def read(self) -> Latch:
        return Latch(engaged=False, reason="test", operator="test", at=1)


async def serve_one_order(fate: Fate) -> None:
    bus = MemoryBus(clock_ns=lambda: OPEN_NS)
    outbox = await MortalOutbox(fate).open()
    gateway = OrderGateway(
        bus,
        FileBroker(fate),
        outbox,
        Released(),
        clock_ns=lambda: OPEN_NS,
        max_order_rate_per_second=8,
        request_timeout_s=0.05,
        block_ms=20,
    )
    publisher = await bus.publisher("execution", ["order"])
    await publisher.publish(an_order())
    task = asyncio.create_task(gateway.run())
    row: OutboxOrder | None = None
    while not (row and row.is_final and await outbox.count_unpublished() == 0):
        await asyncio.sleep(0.01)
        row = await outbox.find("order1")
    gateway.stop()
    await task
    await outbox.close()


def run(folder: Path, point: str) -> None:
    """Run the gateway until the order is done, or until it kills itself."""
    asyncio.run(serve_one_order(Fate(folder, point)))
