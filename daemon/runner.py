"""One actor's loop: read, handle, publish and acknowledge together.

Starting is recovering: acknowledged history is folded back with its outputs dropped, then come the
entries this actor had read and not acknowledged, then new ones. After any error the actor is built
anew and recovers the same way, so there is one path for every kind of restart.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from actors.base import Actor, Arrival
from actors.histogram import Histogram
from actors.messages import Alert, Depth, Heartbeat, Message, Tick, TimeEvent
from daemon.announcer import Announcer
from daemon.bus import Bus, Consumer, DeadLetter, Entry, Envelope, Output
from daemon.errors import BusError
from daemon.logs import get_logger

DEAD_LETTER_RUNBOOK = "Dead letter"
_RETRY_FIRST_S = 0.05
_RETRY_LONGEST_S = 2.0
_QUIET_TYPES = (Tick, Depth, TimeEvent, Heartbeat)  # logged at DEBUG: hundreds a second say little


class Runner:
    """Run one actor on one bus until told to stop.

    `build` makes a fresh actor for each recovery. `on_failure` is awaited, with the reason, when
    `handle` raised; the entry then lies in the dead letters and is acknowledged. `rest` is called
    after every read and what followed from it, and told whether the read brought nothing.
    """

    def __init__(
        self,
        build: Callable[[], Actor[Any, Any]],
        bus: Bus,
        *,
        clock_ns: Callable[[], int],
        monotonic_ns: Callable[[], int],
        batch_entries: int,
        block_ms: int,
        heartbeat_s: float,
        on_failure: Callable[[str], Awaitable[None]] | None = None,
        rss_mib: Callable[[], float] = lambda: 0.0,
        restarts: int = 0,
        rest: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._build = build
        self._bus = bus
        self._clock_ns = clock_ns
        self._monotonic_ns = monotonic_ns
        self._batch_entries = batch_entries
        self._block_ms = block_ms
        self._heartbeat_s = heartbeat_s
        self._on_failure = on_failure
        self._rss_mib = rss_mib
        self._rest = rest
        self._actor = build()
        self.name = self._actor.name
        self._inputs = self._actor.inputs()
        self._input_streams = _streams(self._inputs)
        self._output_streams = _streams((*self._actor.outputs(), Alert))
        self._log = get_logger(actor=self.name)
        self._stopping = asyncio.Event()
        self.ready = asyncio.Event()
        self._latency_us = Histogram()
        self._handled = 0
        self._failed = 0
        self._lost = 0
        self._lag = 0
        self._lag_due_ns = 0
        self._restarts = restarts - 1  # the first start is none
        self._retry_s = _RETRY_FIRST_S

    def stop(self) -> None:
        """Ask the loop to end after the batch in hand; `run` then returns."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until `stop`; outlive every outage of the bus. May run again after it raised."""
        while not self._stopping.is_set():
            self._actor = self._build()
            self._restarts += 1
            try:
                await self._serve_and_beat()
            except* BusError as errors:
                reason = "; ".join(str(error) for error in errors.exceptions)
                self._log.warning("bus lost", reason=reason, retry_s=self._retry_s)
                await self._sleep(self._retry_s)
                self._retry_s = min(self._retry_s * 2, _RETRY_LONGEST_S)

    async def _serve_and_beat(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            beat = tasks.create_task(self._beat())
            try:
                await self._serve()
            finally:
                self.ready.clear()
                beat.cancel()

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    async def _serve(self) -> None:
        """Recover, then handle batches until stopped or until a message fails."""
        consumer = await self._bus.consumer(self.name, self._input_streams, self._output_streams)
        lost_before = self._lost
        limit = self._actor.together if self._actor.heavy else self._batch_entries
        try:
            await self._recover(consumer)
            self.ready.set()
            self._retry_s = _RETRY_FIRST_S
            good = True
            while good and not self._stopping.is_set():
                batch = await consumer.read(limit, self._block_ms)
                if batch:
                    good = await self._handle_batch(consumer, batch)
                    self._lost = lost_before + consumer.lost
                await self._measure_lag(consumer)
                self._rest(not batch)
        finally:
            await consumer.close()

    async def _measure_lag(self, consumer: Consumer) -> None:
        now_ns = self._monotonic_ns()
        if now_ns >= self._lag_due_ns:
            self._lag = await consumer.lag()
            self._lag_due_ns = now_ns + int(self._heartbeat_s * 1e9)

    async def _recover(self, consumer: Consumer) -> None:
        folded = 0
        async for entry in consumer.history(self._actor.memory_ns):
            message = entry.envelope.message
            if isinstance(message, self._inputs):
                try:
                    self._actor.remember(message)
                except Exception as error:  # noqa: BLE001 - it failed then as now, and is on record
                    self._log.debug("skipped again", entry=entry.id, error=str(error))
            folded += 1
        self._log.info("recovered", folded=folded, restarts=self._restarts)

    async def _handle_batch(self, consumer: Consumer, batch: Sequence[Entry]) -> bool:
        """Fold and commit a batch; False when a message failed and the actor must be rebuilt."""
        if self._actor.heavy:
            outputs, failure = await asyncio.to_thread(self._fold, batch)
        else:
            outputs, failure = self._fold(batch)
        dead: list[DeadLetter] = []
        if failure:
            # What stands before the failed entry is good; the entry itself goes to the dead
            # letters; what stands behind it is read again.
            batch = batch[: failure.position + 1]
            dead = [failure]
            outputs.append(Output(failure.position, self._failure_alert(batch[-1], failure.error)))
        ids = await consumer.commit(batch, outputs, dead)
        self._log_batch(batch, outputs, ids)
        if failure is None:
            return True
        self._failed += 1
        if self._on_failure:
            await self._on_failure(f"{self.name} failed: {failure.error}")
        return False

    def _fold(self, batch: Sequence[Entry]) -> tuple[list[Output], DeadLetter | None]:
        """Handle a batch up to the first entry that fails; return its outputs, and the failure."""
        outputs: list[Output] = []
        # The streams carry other types too.
        ours = [
            (position, entry)
            for position, entry in enumerate(batch)
            if isinstance(entry.envelope.message, self._inputs)
        ]
        began_ns = self._monotonic_ns()
        produced = self._actor.handle_many([self._arrival(entry.envelope) for _, entry in ours])
        for position, entry in ours:
            try:
                outputs.extend(Output(position, output) for output in next(produced))
            except Exception as error:  # noqa: BLE001 - a bug in an actor must fail closed
                self._log.exception("handling failed", entry=entry.id, stream=entry.stream)
                return outputs, DeadLetter(position, f"{type(error).__name__}: {error}")
            now_ns = self._monotonic_ns()
            self._latency_us.record((now_ns - began_ns) / 1000)
            if not self._actor.heavy:  # there, the others of the batch took part of the time
                began_ns = now_ns
            self._handled += 1
        return outputs, None

    def _arrival(self, envelope: Envelope) -> Arrival[Any]:
        """Say when the market event that led to a message reached us, on the monotonic clock."""
        if not self._actor.heavy:
            return Arrival(envelope.message)
        age_ns = max(0, self._clock_ns() - envelope.origin_published_ns)
        return Arrival(envelope.message, self._monotonic_ns() - age_ns)

    def _failure_alert(self, entry: Entry, error: str) -> Alert:
        return Alert(
            severity="critical",
            text=f"{self.name} could not handle {entry.stream}/{entry.id}: {error}",
            runbook=DEAD_LETTER_RUNBOOK,
            at_ns=self._clock_ns(),
            source=self.name,
        )

    def _log_batch(self, batch: Sequence[Entry], outputs: Sequence[Output], ids: list[str]) -> None:
        published: dict[int, list[str]] = {}
        for output, entry_id in zip(outputs, ids, strict=True):
            where = f"{output.message.stream}/{entry_id}"
            published.setdefault(output.cause, []).append(where)
        for position, entry in enumerate(batch):
            message = entry.envelope.message
            write = self._log.debug if isinstance(message, _QUIET_TYPES) else self._log.info
            write(
                "handled",
                type=type(message).__name__,
                entry=f"{entry.stream}/{entry.id}",
                cause=entry.envelope.cause,
                outputs=published.get(position, []),
                reason=getattr(message, "reason", None),
            )

    async def _beat(self) -> None:
        heart = Announcer(self._bus, self.name, [Heartbeat.stream])
        try:
            while True:
                await self.ready.wait()
                try:
                    await heart.publish(self._heartbeat())
                except BusError as error:
                    # Serving meets the outage as well and recovers from it. To end it from here
                    # would leave a heavy actor's thread thinking beside its successor's.
                    self._log.debug("heartbeat not sent", reason=str(error))
                await asyncio.sleep(self._heartbeat_s)
        finally:
            await heart.close()

    def _heartbeat(self) -> Heartbeat:
        return Heartbeat(
            actor=self.name,
            at_ns=self._clock_ns(),
            handled=self._handled,
            failed=self._failed,
            lost=self._lost,
            lag=self._lag,
            p50_us=round(self._latency_us.percentile(0.50)),
            p99_us=round(self._latency_us.percentile(0.99)),
            restarts=self._restarts,
            rss_mib=round(self._rss_mib(), 1),
        )


def _streams(types: Sequence[type[Message]]) -> list[str]:
    return list(dict.fromkeys(kind.stream for kind in types))
