"""Order gateway: the edge where an order leaves for the broker, and its answers come back.

The last look before money moves: kill latch, age, rate, and never the same order twice. What to
trade is not decided here. Every order is in the outbox before it is sent, every report before it is
published, so that a crash at any point neither loses nor repeats one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

import msgspec

from actors.messages import (
    FINAL_STATUSES,
    Alert,
    CancelOrder,
    ExecutionReport,
    ModifyOrder,
    OrderCounts,
    OrderStatus,
    PlaceOrder,
    RejectKind,
    Severity,
)
from daemon.brokers.base import Broker
from daemon.bus import Bus, Entry
from daemon.canceller import Canceller
from daemon.errors import BrokerError, BrokerRejected, BrokerUnavailable, BusError
from daemon.kill_switch import KillSwitchReader
from daemon.logs import get_logger
from daemon.lost_tail import find_lost_tail
from daemon.outbox import Outbox, OutboxOrder
from daemon.reconciler import Reconciler, is_outside
from daemon.reconciliation import Reconciliation
from daemon.reject_watch import RejectWatch
from daemon.send_rules import Refusal, SendRules

_SECOND_NS = 1_000_000_000
_RETRY_LONGEST_S = 2.0
_RECONCILE_PACE_S = 0.5  # real: no two comparisons closer than that, however fast the market
_FORGOTTEN = "the bus has lost this order in a power cut"

DIFFERENCE_RUNBOOK = "Log and broker differ"
STRANGER_RUNBOOK = "Stranger order"
UNKNOWN_RUNBOOK = "Order outcome unknown"
CIRCUIT_RUNBOOK = "Reject circuit open"
UNMANAGED_RUNBOOK = "Unmanaged position"


class OrderGateway:
    """Carry orders from the bus to the broker, and reports from the broker to the bus.

    An order whose outcome is unknown is reported so and then asked for until the broker has it or
    can prove that it has not; it is never sent again, and until then its instrument gets no entry.
    With a reconciler, no entry leaves either before log and broker have been compared and agree.
    `run` may be called again after it raised.
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
        retry_first_s: float = 0.05,
        reconciler: Reconciler | None = None,
        reconcile_every_s: float = 5.0,
        announce: Callable[[Alert], Awaitable[object]] | None = None,
    ) -> None:
        """`clock_ns` is market time: orders carry it, and their age and rate are measured in it.

        `announce` puts an alert on the bus and may raise BusError; it is then in the log alone.
        """
        self._bus = bus
        self._broker = broker
        self._outbox = outbox
        self._clock_ns = clock_ns
        self._timeout_s = request_timeout_s
        self._block_ms = block_ms
        self._retry_first_s = retry_first_s
        self._log = get_logger(edge=self.name)
        self._stopping = asyncio.Event()
        self.ready = asyncio.Event()
        self._unpublished = 0
        self._handled = 0
        self._to_publish = asyncio.Event()
        self._inquiries: dict[str, asyncio.Task[None]] = {}
        self._in_hand = 0
        self._collecting = False
        self._reconciler = reconciler
        self._reconcile_every_s = reconcile_every_s
        self._look_again = asyncio.Event()
        self._looked = asyncio.Event()
        self._announce = announce
        self._rules = SendRules(
            latch, clock_ns, max_per_second=max_order_rate_per_second, max_age_s=max_order_age_s
        )
        self._rejects = RejectWatch(outbox, clock_ns, self._tell_opened)
        self._canceller = Canceller(
            broker,
            outbox,
            timeout_s=request_timeout_s,
            retry_first_s=retry_first_s,
            find_out=self._inquire,
        )
        self._unknown: dict[str, PlaceOrder] = {}  # by client order id
        self._lost: set[str] = set()  # client order ids that the bus forgot in a power cut
        self._told: set[str] = set()  # executions of strangers that a person has heard of

    def stop(self) -> None:
        """Ask `run` to return after the orders in hand; unpublished reports wait in the outbox."""
        self._stopping.set()

    def is_idle(self) -> bool:
        """Tell whether nothing is in flight: no order in hand, no question open, no report unheard.

        False until `run` is ready. Orders that lie unread in the bus are for Bus.is_quiet to tell.
        """
        return self.ready.is_set() and not (
            self._in_hand
            or self._inquiries
            or self._canceller.is_busy
            or self._unpublished
            or self._broker.pending_reports
        )

    @property
    def handled(self) -> int:
        """Orders and cancels taken from the bus since the start."""
        return self._handled

    @property
    def unpublished(self) -> int:
        """Reports that the bus does not have yet."""
        return self._unpublished

    def order_counts(self) -> OrderCounts:
        """Return what was counted since the start, and what is open at this moment."""
        rejects, outcome = self._rejects.counts, self.reconciliation
        now_ns = self._clock_ns()
        ages_ns = [now_ns - order.placed_ns for order in self._unknown.values()]
        return OrderCounts(
            unknown=len(ages_ns),
            unknown_s=round(max([0, *ages_ns]) / _SECOND_NS, 3),
            rejected_permanent=rejects.get("permanent", 0),
            rejected_retryable=rejects.get("retryable", 0),
            rejected_auth=rejects.get("auth", 0),
            rejected_rate=rejects.get("rate", 0),
            circuits_opened=self._rejects.openings,
            differences=len(outcome.differences) if outcome else 0,
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
                    if self._reconciler is not None:
                        await self._reconcile(tasks, self._reconciler)
                        background.append(tasks.create_task(self._keep_reconciling(tasks)))
                    await self._serve(tasks)
                    await self._canceller.finish()
            finally:
                self.ready.clear()
                self._looked.set()  # whoever waits for a comparison waits for none
                self._canceller.stop()
                for task in (*background, *self._inquiries.values()):
                    task.cancel()

    # Orders

    async def _recover(self, tasks: asyncio.TaskGroup) -> bool:
        """Ask what became of unfinished orders before a new one goes out; False if stopped."""
        unfinished = [row for row in await self._outbox.unfinished() if row.stage != "intent"]
        for row in unfinished:
            self._inquire(tasks, row)
        await self._canceller.resume(tasks)
        stopped = tasks.create_task(self._stopping.wait())
        while self._inquiries and not self._stopping.is_set():
            await asyncio.wait(
                {stopped, *self._inquiries.values()}, return_when=asyncio.FIRST_COMPLETED
            )
        stopped.cancel()
        self._log.info("recovered", asked=len(unfinished), unpublished=self._unpublished)
        return not self._stopping.is_set()

    async def _make_good(self, tasks: asyncio.TaskGroup) -> None:
        """Publish again what the bus has lost, and end the orders that nobody watches any more."""
        lost = await find_lost_tail(self._bus, self._outbox)
        if not any(lost):
            return
        self._log.warning(
            "the bus has lost its end",
            reports=len(lost.execution_ids),
            orders=[row.order.client_order_id for row in lost.orders],
        )
        await self._publish_again(lost.execution_ids)
        for row in lost.orders:
            order, tag = row.order, row.order.client_order_id
            self._lost.add(tag)
            await self._alert(
                "warning",
                f"order {tag} was lost in a power cut: {order.side} {order.quantity} "
                f"{order.instrument}. What rests of it is taken back; what filled has no stop",
                UNMANAGED_RUNBOOK,
                order.instrument,
            )
            if row.stage == "intent" and not row.is_final:
                await self._keep([self._own_report(order, "rejected", _FORGOTTEN)], answers=tag)
            elif not row.is_final:
                await self._cancel(
                    tasks,
                    CancelOrder(
                        client_order_id=tag,
                        instrument=order.instrument,
                        reason=_FORGOTTEN,
                        placed_ns=self._clock_ns(),
                    ),
                )
        self._look_again.set()

    async def _serve(self, tasks: asyncio.TaskGroup) -> None:
        retry_s = self._retry_first_s
        is_whole = False
        while not self._stopping.is_set():
            try:
                consumer = await self._bus.consumer(self.name, [PlaceOrder.stream])
                try:
                    if not is_whole:
                        await self._make_good(tasks)
                        is_whole = True
                    self.ready.set()
                    while not self._stopping.is_set():
                        entries = await consumer.read(16, self._block_ms)
                        if entries:
                            with self._holding():
                                for entry in entries:
                                    await self._handle(tasks, entry)
                                    self._handled += 1
                                await consumer.commit(entries, [])
                            retry_s = self._retry_first_s
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
            case ModifyOrder() as request:
                await self._modify(tasks, request)
            case _:
                pass  # nothing else travels in this stream

    async def _place(self, tasks: asyncio.TaskGroup, order: PlaceOrder, entry_id: str) -> None:
        tag = order.client_order_id
        known = await self._outbox.record_intent(order, entry_id)
        if known is not None and (known.entry_id != entry_id or known.stage != "intent"):
            # The same entry again was handled before a crash; another entry is a second order.
            is_repeat = known.entry_id == entry_id
            self._log.warning("order not repeated", order_id=tag, redelivered=is_repeat)
            if tag in self._lost:  # execution had forgotten it, and left its reports out
                self._lost.discard(tag)
                reports = await self._outbox.every_report()
                await self._publish_again(
                    one.execution_id for one in reports if one.client_order_id == tag
                )
            return
        refusal = await self._refusal(order)
        if refusal is not None:
            self._log.warning("order refused", order_id=tag, reason=refusal.reason)
            await self._keep([self._own_report(order, "rejected", *refusal)], answers=tag)
            return
        await self._outbox.mark_sent(tag)
        self._rules.note_sent()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._broker.place(order)
        except BrokerRejected as error:
            self._log.warning("order rejected", order_id=tag, reason=str(error))
            said = self._own_report(order, "rejected", str(error), error.kind)
            await self._keep([said], answers=tag)
            await self._rejects.refused(order, error.kind, str(error))
        except (BrokerUnavailable, TimeoutError) as error:
            reason = str(error) or f"no answer in {self._timeout_s:g} s"
            self._log.warning("order outcome unknown", order_id=tag, reason=reason)
            await self._keep([self._own_report(order, "unknown", reason)])
            await self._alert(
                "warning",
                f"whether order {tag} arrived is not known ({reason}): no entry in "
                f"{order.instrument} until the broker has said",
                UNKNOWN_RUNBOOK,
                order.instrument,
            )
            self._inquire(tasks, OutboxOrder(order, entry_id, "sent", is_final=False))
        else:
            await self._outbox.mark_answered(tag)
            self._log.info("order sent", order_id=tag, decision_id=order.decision_id)

    async def _refusal(self, order: PlaceOrder) -> Refusal | None:
        """Return why an order must not leave, or None."""
        refusal = await self._rules.refusal(order)
        if refusal is not None:
            return refusal
        if order.purpose == "exit":
            return await self._exit_refusal(order)
        reason = self._entry_refusal(order)
        if reason is None and self._reconciler is not None:
            reason = await self._unmanaged(order)
        return None if reason is None else Refusal(reason)

    def _entry_refusal(self, order: PlaceOrder) -> str | None:
        unknown = [tag for tag, row in self._unknown.items() if row.instrument == order.instrument]
        if unknown:
            return f"what became of order {unknown[0]} in {order.instrument} is not known yet"
        refusal = self._rejects.refusal(order)
        if refusal is None and self._reconciler is not None:
            refusal = self._reconciler.refusal(order.instrument)
        return refusal

    async def _unmanaged(self, order: PlaceOrder) -> str | None:
        """Return why an entry would come on top of a position that execution does not know."""
        units = await self._outbox.held_before(order)
        if units == 0:
            return None
        reason = f"{units} units of {order.instrument} are held that execution does not know of"
        await self._alert(
            "critical",
            f"{reason}: nobody watches their stop; no entry comes on top of them",
            UNMANAGED_RUNBOOK,
            order.instrument,
        )
        return reason

    async def _exit_refusal(self, order: PlaceOrder) -> Refusal | None:
        """Return why an exit would not close what the broker holds; then look at the books."""
        if self._reconciler is None:
            return None
        problem = await self._reconciler.exit_problem(order)
        if problem is None:
            return None
        self._look_again.set()
        # The broker's positions may lag its trades, and the log may learn of an outside close.
        return Refusal(problem, "retryable")

    async def _cancel(self, tasks: asyncio.TaskGroup, request: CancelOrder) -> None:
        tag = request.client_order_id
        row = await self._outbox.find(tag)
        if row is None:
            self._log.warning("cancel of an order that was never sent", order_id=tag)
            return
        self._log.info("cancel", order_id=tag, reason=request.reason)
        self._rules.note_sent()
        await self._canceller.take_back(tasks, tag)

    async def _modify(self, tasks: asyncio.TaskGroup, request: ModifyOrder) -> None:
        """Ask once for another limit: whichever of the two holds was wanted, so none is sought."""
        tag = request.client_order_id
        row = await self._outbox.find(tag)
        if row is None or row.is_final or row.stage == "intent" or tag in self._unknown:
            self._log.info("nothing to modify", order_id=tag)
            return
        as_if_new = msgspec.structs.replace(row.order, placed_ns=request.placed_ns)
        refusal = await self._rules.refusal(as_if_new)
        if refusal is not None:
            self._log.info("not modified", order_id=tag, reason=refusal.reason)
            return
        self._log.info("modify", order_id=tag, limit_price=str(request.limit_price))
        self._rules.note_sent()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._broker.modify(tag, request.limit_price)
        except BrokerRejected as error:
            # It may have filled, and the fill not come: what became of the order, then?
            self._log.info("modify refused", order_id=tag, reason=str(error))
            self._inquire(tasks, row)
        except (BrokerUnavailable, TimeoutError) as error:
            self._log.warning("modify unanswered", order_id=tag, reason=str(error))

    # Questions to the broker

    def _inquire(self, tasks: asyncio.TaskGroup, row: OutboxOrder) -> None:
        tag = row.order.client_order_id
        if tag not in self._inquiries:
            task = tasks.create_task(self._find_out(row))
            self._inquiries[tag] = task
            task.add_done_callback(lambda _: self._inquiries.pop(tag, None))
            if row.stage == "sent" and not row.is_final:
                self._unknown[tag] = row.order

    async def _find_out(self, row: OutboxOrder) -> None:
        """Ask until the broker has the order or can prove that it has not."""
        tag = row.order.client_order_id
        if row.stage == "sent" and self._broker.is_remote:
            # A request that is still on its way would be missed by a question asked at once.
            await asyncio.sleep(self._timeout_s)
        retry_s = self._retry_first_s
        while True:
            try:
                async with asyncio.timeout(self._timeout_s):
                    found = await self._broker.find(tag)
                break
            except (BrokerError, TimeoutError) as error:
                self._log.warning("order cannot be asked for", order_id=tag, reason=str(error))
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _RETRY_LONGEST_S)
        if found is not None:
            await self._rejects.hear(found)
        elif not row.is_final:
            known = await self._outbox.find(tag)
            was_taken = known is not None and known.stage == "answered"
            status: OrderStatus = "expired" if was_taken else "rejected"
            reason = "the broker has no such order" + (" any more" if was_taken else "")
            kind: RejectKind | None = None if was_taken else "retryable"
            found = [self._own_report(row.order, status, reason, kind)]
        self._log.info("order found out", order_id=tag, reports=len(found or []))
        await self._keep(found or [], answers=tag)
        self._unknown.pop(tag, None)

    # Reconciliation

    @property
    def reconciliation(self) -> Reconciliation | None:
        """The last comparison of log and broker; None before the first."""
        return None if self._reconciler is None else self._reconciler.outcome

    async def reconcile_now(self) -> None:
        """Compare log and broker now, and return when it has been done or could not be."""
        self._looked.clear()
        self._look_again.set()
        await self._looked.wait()

    async def _keep_reconciling(self, tasks: asyncio.TaskGroup) -> None:
        while self._reconciler is not None:
            await self._until_due()
            self._look_again.clear()
            await self._reconcile(tasks, self._reconciler)
            self._looked.set()

    async def _until_due(self) -> None:
        """Wait for the next comparison: asked for, or due by the real or by the market's clock."""
        due_ns = self._clock_ns() + int(self._reconcile_every_s * _SECOND_NS)
        left_s = self._reconcile_every_s
        while left_s > 0 and not self._look_again.is_set():
            pause_s = min(left_s, _RECONCILE_PACE_S)
            with suppress(TimeoutError):
                # Not wait_for: in Python 3.11 it loses a cancellation that comes with the event.
                async with asyncio.timeout(pause_s):
                    await self._look_again.wait()
            left_s -= pause_s
            if self._clock_ns() >= due_ns:
                return

    async def _reconcile(self, tasks: asyncio.TaskGroup, reconciler: Reconciler) -> None:
        """Compare once, tell what is new, and ask after orders that the broker has not open."""

        def is_drained() -> bool:
            return not (self._broker.pending_reports or self._collecting)

        try:
            news = await reconciler.look(is_drained)
        except (BrokerError, TimeoutError) as error:
            self._log.warning("not reconciled", reason=str(error) or "no answer in time")
            return
        for row in await self._outbox.unfinished():
            if row.stage == "answered" and row.order.client_order_id in reconciler.not_open:
                self._inquire(tasks, row)
        for difference in news:
            await self._alert(
                "critical" if difference.blocks else "warning",
                f"log and broker differ in {difference.instrument} ({difference.kind}): ours "
                f"{difference.ours}, the broker's {difference.brokers}",
                DIFFERENCE_RUNBOOK,
                difference.instrument,
            )

    async def _take_outside(self, report: ExecutionReport) -> None:
        """Adopt a stranger's fill that closes what we hold; leave any other out, and say so."""
        if self._reconciler is None or await self._outbox.has_report(report.execution_id):
            return
        is_adopted = await self._reconciler.adopts(report)
        if is_adopted:
            await self._keep([report])
        elif report.execution_id in self._told:
            return
        self._told.add(report.execution_id)
        what = f"{report.side} {report.last_quantity} {report.instrument} at {report.last_price}"
        rule = "counted as an exit" if is_adopted else "left out: it opens what we did not decide"
        await self._alert(
            "warning" if is_adopted else "critical",
            f"an order that was not placed here has filled, {what}: {rule}",
            STRANGER_RUNBOOK,
            report.instrument,
        )

    async def _tell_opened(self, text: str, order: PlaceOrder) -> None:
        await self._alert("critical", text, CIRCUIT_RUNBOOK, order.instrument)

    async def _alert(self, severity: Severity, text: str, runbook: str, instrument: str) -> None:
        self._log.warning("alert", severity=severity, text=text, runbook=runbook)
        if self._announce is None:
            return
        alert = Alert(
            severity=severity,
            text=text,
            runbook=runbook,
            at_ns=self._clock_ns(),
            source=self.name,
            instrument=instrument,
        )
        try:
            await self._announce(alert)
        except BusError as error:
            self._log.error("alert not sent", text=text, reason=str(error))

    # Reports

    async def _collect_reports(self) -> None:
        async for report in self._broker.reports():
            self._collecting = True
            with self._holding():
                if is_outside(report):
                    await self._take_outside(report)
                else:
                    await self._rejects.hear([report])
                    await self._keep([report])
            self._collecting = False
        raise BrokerUnavailable("the broker's stream of reports has ended")

    async def _keep(self, reports: Sequence[ExecutionReport], answers: str | None = None) -> None:
        added = await self._outbox.add_reports(reports, answers)
        for report in reports:
            if report.status in FINAL_STATUSES:
                self._canceller.ended(report.client_order_id)
        self._unpublished += added  # not in one line: the count may change while it is awaited
        self._to_publish.set()

    async def _publish_again(self, execution_ids: Iterable[str]) -> None:
        lost = await self._outbox.take_for_lost(execution_ids)
        self._unpublished += lost  # not in one line, as above
        self._to_publish.set()

    async def _publish_reports(self) -> None:
        retry_s = self._retry_first_s
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
                        retry_s = self._retry_first_s
                finally:
                    await publisher.close()
            except BusError as error:
                self._log.warning("reports wait for the bus", reason=str(error), retry_s=retry_s)
                await asyncio.sleep(retry_s)
                retry_s = min(retry_s * 2, _RETRY_LONGEST_S)

    def _own_report(
        self,
        order: PlaceOrder,
        status: OrderStatus,
        reason: str,
        kind: RejectKind | None = None,
    ) -> ExecutionReport:
        """Return a report of what no broker will tell; its id is the same after a restart."""
        return ExecutionReport(
            execution_id=f"{order.client_order_id}-gateway-{status}",
            client_order_id=order.client_order_id,
            instrument=order.instrument,
            side=order.side,
            status=status,
            event_ns=max(self._clock_ns(), order.placed_ns),
            reason=reason,
            reject_kind=kind,
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
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
