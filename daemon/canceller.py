"""Canceller: asks the broker to take an order back, again and again until the order is final.

Each order has a task of its own, so that one that cannot be taken back holds up no other. That it
is to be taken back is in the outbox before the broker hears of it, so that a restart goes on. Which
order that is, is for execution to say; that it is over, reports say, never the answer to a cancel.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from daemon.brokers.base import Broker
from daemon.errors import BrokerRejected, BrokerUnavailable
from daemon.logs import get_logger
from daemon.outbox import Outbox, OutboxOrder

_UNANSWERED_LONGEST_S = 5.0  # twelve calls a minute; fifty are kept for cancels and exits
_ANSWERED_LONGEST_S = 60.0


@dataclass(slots=True)
class _Pursuit:
    """One order that is to be taken back."""

    tried: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Canceller:
    """Take orders back, each until a report says that it is final.

    A cancel without an answer is repeated at once, then with waits that double up to 5 s. One that
    was answered is repeated when the order is not final a request timeout later.
    """

    def __init__(
        self,
        broker: Broker,
        outbox: Outbox,
        *,
        timeout_s: float,
        retry_first_s: float,
        find_out: Callable[[asyncio.TaskGroup, OutboxOrder], None],
    ) -> None:
        """`find_out` asks what became of an order, and lets the answer come as a report."""
        self._broker = broker
        self._outbox = outbox
        self._timeout_s = timeout_s
        self._retry_first_s = retry_first_s
        self._find_out = find_out
        self._pursuits: dict[str, _Pursuit] = {}  # by client order id
        self._unanswered: set[str] = set()
        self._log = get_logger(edge="order_gateway")

    @property
    def is_busy(self) -> bool:
        """Whether the broker has not answered yet to a cancel."""
        return bool(self._unanswered)

    async def take_back(self, tasks: asyncio.TaskGroup, client_order_id: str) -> None:
        """Write down that an order is to be taken back, and begin to ask for it."""
        if client_order_id in self._pursuits:
            return
        await self._outbox.note_cancel(client_order_id)
        pursuit = self._begin(tasks, client_order_id)
        if not self._broker.is_remote:
            # It answers at once, and a back-test is to see its reports in one order.
            await pursuit.tried.wait()

    async def resume(self, tasks: asyncio.TaskGroup) -> None:
        """Go on with what an earlier run was to take back."""
        for client_order_id in await self._outbox.cancels_due():
            self._log.info("cancel again", order_id=client_order_id)
            self._begin(tasks, client_order_id)

    def ended(self, client_order_id: str) -> None:
        """Hear that an order is final."""
        pursuit = self._pursuits.get(client_order_id)
        if pursuit is not None:
            pursuit.over.set()

    async def finish(self) -> None:
        """Wait until every order was asked for once; what is still open then waits for `resume`."""
        for pursuit in list(self._pursuits.values()):
            await pursuit.tried.wait()

    def stop(self) -> None:
        """End all tasks."""
        for pursuit in self._pursuits.values():
            if pursuit.task is not None:
                pursuit.task.cancel()

    def _begin(self, tasks: asyncio.TaskGroup, tag: str) -> _Pursuit:
        pursuit = self._pursuits[tag] = _Pursuit()
        self._unanswered.add(tag)

        def done(_: asyncio.Task[None]) -> None:
            del self._pursuits[tag]
            self._unanswered.discard(tag)
            pursuit.tried.set()

        pursuit.task = tasks.create_task(self._pursue(tasks, tag, pursuit))
        pursuit.task.add_done_callback(done)
        return pursuit

    async def _pursue(self, tasks: asyncio.TaskGroup, tag: str, pursuit: _Pursuit) -> None:
        unanswered_s, answered_s = self._retry_first_s, self._timeout_s
        while True:
            self._unanswered.add(tag)
            is_answered = await self._ask(tasks, tag)
            row = await self._outbox.find(tag)
            if row is None or row.is_final:
                return
            if is_answered:
                self._unanswered.discard(tag)
                pause_s, answered_s = answered_s, min(answered_s * 2, _ANSWERED_LONGEST_S)
            else:
                pause_s, unanswered_s = unanswered_s, min(unanswered_s * 2, _UNANSWERED_LONGEST_S)
            pursuit.tried.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await pursuit.over.wait()
            if pursuit.over.is_set():
                return

    async def _ask(self, tasks: asyncio.TaskGroup, tag: str) -> bool:
        """Ask once; return whether the broker answered."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._broker.cancel(tag)
        except BrokerRejected as error:
            # There was nothing to take back: what became of the order, then?
            self._log.info("nothing to cancel", order_id=tag, reason=str(error))
            row = await self._outbox.find(tag)
            if row is not None:
                self._find_out(tasks, row)
        except (BrokerUnavailable, TimeoutError) as error:
            reason = str(error) or f"no answer in {self._timeout_s:g} s"
            self._log.warning("cancel unanswered", order_id=tag, reason=reason)
            return False
        return True
