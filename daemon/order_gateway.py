"""Order gateway: the edge where an order leaves for the broker, and its answers come back.

The last look before money moves: kill latch, age, rate, and never the same order twice. What to
trade is not decided here. Every order is in the outbox before it is sent, every report before it is
published, so that a crash at any point neither loses nor repeats one.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from actors.messages import CancelOrder, ExecutionReport, OrderStatus, PlaceOrder
from daemon.brokers.base import Broker
from daemon.bus import Bus, Entry
from daemon.errors import BrokerError, BrokerRejected, BrokerUnavailable, BusError
from daemon.kill_switch import KillSwitchReader
from daemon.logs import get_logger
from daemon.outbox import Outbox, OutboxOrder

_SECOND_NS = 1_000_000_000
_RETRY_FIRST_S = 0.05
_RETRY_LONGEST_S = 2.0
_CANCEL_ATTEMPTS = 3
_RESERVE_DIVISOR = 4  # one order in so many is kept for exits and cancels


class OrderGateway:
    """Carry orders from the bus to the broker, and reports from the broker to the bus.

    An order whose outcome is unknown is reported so and then asked for until the broker has it or
    can prove that it has not; it is never sent again. `run` may be called again after it raised.
    """

    name = "order_gateway"

    def __init__(
        self,
        bus: Bus,
        broker: Broker,
        outbox: Outbox,
        latch: KillSwitchReader,
        *,
        clock_ns: Callable[[], int],
        max_order_rate_per_second: int,
        request_timeout_s: float = 5.0,
        max_order_age_s: float = 30.0,
        block_ms: int = 1000,
    ) -> None:
        """`clock_ns` is market time: orders carry it, and their age and rate are measured in it."""
        self._bus = bus
        self._broker = broker
        self._outbox = outbox
        self._latch = latch
        self._clock_ns = clock_ns
        self._max_rate = max_order_rate_per_second
        self._timeout_s = request_timeout_s
        self._max_age_ns = int(max_order_age_s * _SECOND_NS)
        self._block_ms = block_ms
        self._log = get_logger(edge=self.name)
        self._stopping = asyncio.Event()
        self.ready = asyncio.Event()
        self._sent_ns: deque[int] = deque()
        self._unpublished = 0
        self._to_publish = asyncio.Event()
        self._inquiries: dict[str, asyncio.Task[None]] = {}
        self._in_hand = 0

    def stop(self) -> None:
        """Ask `run` to return after the orders in hand; unpublished reports wait in the outbox."""
        self._stopping.set()

    def is_idle(self) -> bool:
        """Tell whether nothing is in flight: no order in hand, no question open, no report unheard.

        False until `run` is ready. Orders that lie unread in the bus are for Bus.is_quiet to tell.
        """
        return self.ready.is_set() and not (
            self._in_hand or self._inquiries or self._unpublished or self._broker.pending_reports
        )

    async def run(self) -> None:
        """Serve until `stop`; outlive every outage of the bus and the broker."""
        self._unpublished = await self._outbox.count_unpublished()
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(self._collect_reports()),
                tasks.create_task(self._publish_reports()),
            ]
            try:
                if await self._recover(tasks):
                    await self._serve(tasks)
            finally:
                self.ready.clear()
                for task in (*background, *self._inquiries.values()):
                    task.cancel()

    # Orders

    async def _recover(self, tasks: asyncio.TaskGroup) -> bool:
        """Ask what became of unfinished orders before a new one goes out; False if stopped."""
        unfinished = [row for row in await self._outbox.unfinished() if row.stage != "intent"]
        for row in unfinished:
            self._inquire(tasks, row)
        stopped = tasks.create_task(self._stopping.wait())
        while self._inquiries and not self._stopping.is_set():
            await asyncio.wait(
                {stopped, *self._inquiries.values()}, return_when=asyncio.FIRST_COMPLETED
            )
        stopped.cancel()
        self._log.info("recovered", asked=len(unfinished), unpublished=self._unpublished)
        return not self._stopping.is_set()

    async def _serve(self, tasks: asyncio.TaskGroup) -> None:
        retry_s = _RETRY_FIRST_S
        while not self._stopping.is_set():
            try:
                consumer = await self._bus.consumer(self.name, [PlaceOrder.stream])
                try:
                    self.ready.set()
                    while not self._stopping.is_set():
                        entries = await consumer.read(16, self._block_ms)
                        if entries:
                            with self._holding():
                                for entry in entries:
                                    await self._handle(tasks, entry)
                                await consumer.commit(entries, [])
                            retry_s = _RETRY_FIRST_S
                finally:
                    await consumer.close()
            except BusError as error:
                self.ready.clear()
                self._log.warning("bus lost", reason=str(error), retry_s=retry_s)
                await self._sleep(retry_s)
                retry_s = min(retry_s * 2, _RETRY_LONGEST_S)

    async def _handle(self, tasks: asyncio.TaskGroup, entry: Entry) -> None:
        match entry.envelope.message:
            case PlaceOrder() as order:
                await self._place(tasks, order, entry.id)
            case CancelOrder() as request:
                await self._cancel(tasks, request)
            case _:
                pass  # nothing else travels in this stream

    async def _place(self, tasks: asyncio.TaskGroup, order: PlaceOrder, entry_id: str) -> None:
        tag = order.client_order_id
        known = await self._outbox.record_intent(order, entry_id)
        if known is not None and (known.entry_id != entry_id or known.stage != "intent"):
            # The same entry again was handled before a crash; another entry is a second order.
            is_repeat = known.entry_id == entry_id
            self._log.warning("order not repeated", order_id=tag, redelivered=is_repeat)
            return
        refusal = await self._refusal(order)
        if refusal is not None:
            self._log.warning("order refused", order_id=tag, reason=refusal)
            await self._keep([self._own_report(order, "rejected", refusal)], answers=tag)
            return
        await self._outbox.mark_sent(tag)
        self._sent_ns.append(self._clock_ns())
        try:
            await asyncio.wait_for(self._broker.place(order), self._timeout_s)
        except BrokerRejected as error:
            self._log.warning("order rejected", order_id=tag, reason=str(error))
            await self._keep([self._own_report(order, "rejected", str(error))], answers=tag)
        except (BrokerUnavailable, TimeoutError) as error:
            reason = str(error) or f"no answer in {self._timeout_s:g} s"
            self._log.warning("order outcome unknown", order_id=tag, reason=reason)
            await self._keep([self._own_report(order, "unknown", reason)])
            self._inquire(tasks, OutboxOrder(order, entry_id, "sent", is_final=False))
        else:
            await self._outbox.mark_answered(tag)
            self._log.info("order sent", order_id=tag, decision_id=order.decision_id)

    async def _refusal(self, order: PlaceOrder) -> str | None:
        latch = await self._latch.read()
        is_exit = order.purpose == "exit"
        if latch.engaged and not (is_exit and latch.flatten):
            return f"kill switch: {latch.reason}"
        now_ns = self._clock_ns()
        age_ns = now_ns - order.placed_ns
        # An exit is as needed late as in time, and its position cannot change without it.
        if not is_exit and age_ns > self._max_age_ns:
            allowed_s = self._max_age_ns / _SECOND_NS
            return f"order is {age_ns / _SECOND_NS:.1f} s old, allowed: {allowed_s:g} s"
        while self._sent_ns and self._sent_ns[0] <= now_ns - _SECOND_NS:
            self._sent_ns.popleft()
        allowed = self._max_rate if is_exit else self._max_rate - self._max_rate // _RESERVE_DIVISOR
        if len(self._sent_ns) >= allowed:
            return f"{len(self._sent_ns)} orders in the last second, allowed: {allowed}"
        return None

    async def _cancel(self, tasks: asyncio.TaskGroup, request: CancelOrder) -> None:
        tag = request.client_order_id
        row = await self._outbox.find(tag)
        if row is None:
            self._log.warning("cancel of an order that was never sent", order_id=tag)
            return
        self._log.info("cancel", order_id=tag, reason=request.reason)
        self._sent_ns.append(self._clock_ns())
        for attempt in range(_CANCEL_ATTEMPTS):
            try:
                await asyncio.wait_for(self._broker.cancel(tag), self._timeout_s)
            except BrokerRejected as error:
                # There was nothing to take back: what became of the order, then?
                self._log.info("nothing to cancel", order_id=tag, reason=str(error))
                break
            except (BrokerUnavailable, TimeoutError) as error:
                self._log.warning("cancel unanswered", order_id=tag, reason=str(error))
                await self._sleep(_RETRY_FIRST_S * 2**attempt)
            else:
                return
        self._inquire(tasks, row)

    # Questions to the broker

    def _inquire(self, tasks: asyncio.TaskGroup, row: OutboxOrder) -> None:
        tag = row.order.client_order_id
        if tag not in self._inquiries:
            task = tasks.create_task(self._find_out(row))
            self._inquiries[tag] = task
            task.add_done_callback(lambda _: self._inquiries.pop(tag, None))

    async def _find_out(self, row: OutboxOrder) -> None:
        """Ask until the broker has the order or can prove that it has not."""
        tag = row.order.client_order_id
        if row.stage == "sent" and self._broker.is_live:
            # A request that is still on its way would be missed by a question asked at once.
            await asyncio.sleep(self._timeout_s)
        retry_s = _RETRY_FIRST_S
        while True:
            try:
                found = await asyncio.wait_for(self._broker.find(tag), self._timeout_s)
                break
            except (BrokerError, TimeoutError) as error:
                self._log.warning("order cannot be asked for", order_id=tag, reason=str(error))
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _RETRY_LONGEST_S)
        if found is None and not row.is_final:
            known = await self._outbox.find(tag)
            was_taken = known is not None and known.stage == "answered"
            status: OrderStatus = "expired" if was_taken else "rejected"
            reason = "the broker has no such order" + (" any more" if was_taken else "")
            found = [self._own_report(row.order, status, reason)]
        self._log.info("order found out", order_id=tag, reports=len(found or []))
        await self._keep(found or [], answers=tag)

    # Reports

    async def _collect_reports(self) -> None:
        async for report in self._broker.reports():
            with self._holding():
                await self._keep([report])
        raise BrokerUnavailable("the broker's stream of reports has ended")

    async def _keep(self, reports: Iterable[ExecutionReport], answers: str | None = None) -> None:
        added = await self._outbox.add_reports(reports, answers)
        self._unpublished += added  # not in one line: the count may change while it is awaited
        self._to_publish.set()

    async def _publish_reports(self) -> None:
        retry_s = _RETRY_FIRST_S
        while True:
            try:
                publisher = await self._bus.publisher(self.name, [ExecutionReport.stream])
                try:
                    while True:
                        self._to_publish.clear()
                        reports = await self._outbox.unpublished()
                        if not reports:
                            await self._to_publish.wait()
                            continue
                        await publisher.publish(*reports)
                        await self._outbox.mark_published(report.execution_id for report in reports)
                        self._unpublished -= len(reports)
                        retry_s = _RETRY_FIRST_S
                finally:
                    await publisher.close()
            except BusError as error:
                self._log.warning("reports wait for the bus", reason=str(error), retry_s=retry_s)
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _RETRY_LONGEST_S)

    def _own_report(self, order: PlaceOrder, status: OrderStatus, reason: str) -> ExecutionReport:
        """Return a report of what no broker will tell; its id is the same after a restart."""
        return ExecutionReport(
            execution_id=f"{order.client_order_id}-gateway-{status}",
            client_order_id=order.client_order_id,
            instrument=order.instrument,
            side=order.side,
            status=status,
            event_ns=max(self._clock_ns(), order.placed_ns),
            reason=reason,
        )

    @contextmanager
    def _holding(self) -> Iterator[None]:
        """Count what is in hand, for `is_idle`."""
        self._in_hand += 1
        try:
            yield
        finally:
            self._in_hand -= 1

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
