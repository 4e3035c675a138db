"""*LiveTradingService*: one trading session, built out of its plan and run to its end.

Everything is built here and handed in by constructor: bus, latch, gateway, runners or processes,
recording; the account and its market data come as a venue. What is traded, and when, is for the
actors to say.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Literal, TextIO

from actors.messages import (
    Alert,
    ExecutionReport,
    Heartbeat,
    KillSwitch,
    MarketContext,
    Position,
)
from daemon import reconciliation
from daemon.actor_process import builder, make_runner
from daemon.announcer import Announcer
from daemon.bus import Bus, Entry
from daemon.embedded_redis import EmbeddedRedis
from daemon.errors import BusError, TraderError
from daemon.gateway_pulse import GatewayPulse
from daemon.housekeeping import Housekeeping
from daemon.journal import Journal
from daemon.kill_switch import KillSwitchLatch, RedisLatchStore
from daemon.logs import get_logger
from daemon.news_feed import NewsFeed
from daemon.order_gateway import OrderGateway
from daemon.outbox import Outbox
from daemon.plan import SessionPlan
from daemon.reconciler import Reconciler
from daemon.redis_bus import RedisBus
from daemon.statistics import SessionStatistics
from daemon.supervisor import ActorProcess, Part, Supervisor
from daemon.thinking_watch import WATCHED, ThinkingWatch
from daemon.tick_source import TickSource, until_quiet
from daemon.venue import Books, OpenVenue
from daemon.wiring import INPUT_STREAMS, NAMES, Workshop, on_crash

_POLL_S = 0.02
_RECORD_EVERY_S = 0.02  # an account of what has happened may be a little behind
_START_WAIT_S = 60.0
_DRAIN_WAIT_S = 15.0
_CRASHES_THAT_HALT = 3
_CRASH_WINDOW_S = 60.0

StoppedBy = Literal["duration", "end_of_data", "operator"]


class LiveTradingService:
    """Run one session: start everything, feed it, stop in order, close the recording, report.

    `isolated` names the actors that get a process of their own; the others are tasks of this one.
    With `lock_step` each market event waits until everything has followed from the one before.
    A session without a recording begins with empty streams. `on_ready` hears when market data
    begins to flow.
    """

    def __init__(
        self,
        plan: SessionPlan,
        *,
        state_dir: Path,
        folder: Path,
        open_venue: OpenVenue,
        lock_step: bool,
        isolated: Collection[str],
        log_level: str,
        log_file: TextIO | None,
        seal_when_stopped: bool,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._plan = plan
        self._workshop = Workshop.of(plan)
        self._settings = self._workshop.settings
        self._state_dir = state_dir
        self._folder = folder
        self._open_venue = open_venue
        self._lock_step = lock_step
        self._isolated = frozenset(isolated)
        self._log_level = log_level
        self._log_file = log_file
        self._seal_when_stopped = seal_when_stopped
        self._on_ready = on_ready
        self._stopping = asyncio.Event()
        self.statistics = SessionStatistics()
        self.server = EmbeddedRedis(
            state_dir / "redis",
            url=self._settings.bus.url,
            max_memory_mib=self._settings.bus.max_memory_mib,
        )
        self.processes: dict[str, ActorProcess] = {}
        self._crashes: dict[str, deque[float]] = {}
        self._bus: RedisBus | None = None
        self._source: TickSource | None = None

    @property
    def published(self) -> int:
        """Market events that the session's streams hold, once the feed has begun; else 0."""
        return self._source.published if self._source else 0

    @property
    def market_now_ns(self) -> int:
        """Market time of the last event, nanoseconds UTC; 0 before the first."""
        return self._source.now_ns if self._source else 0

    def stop(self) -> None:
        """End the session in order, as an operator would."""
        self._stopping.set()

    async def run(self, duration_s: float | None = None) -> dict[str, Any]:
        """Run to the end of the data, for `duration_s`, or until `stop`; return the summary.

        Raises TraderError when the session cannot be started.
        """
        began_s = time.monotonic()
        async with AsyncExitStack() as stack:
            url = await self.server.start()
            stack.push_async_callback(self.server.stop)
            bus = RedisBus(url, self._plan.prefix)
            stack.push_async_callback(bus.close)
            if not (self._folder / "records").exists():
                await bus.forget()  # what an earlier session left; its recording holds it
            return await self._run(stack, bus, url, duration_s, began_s)

    async def _run(
        self,
        stack: AsyncExitStack,
        bus: RedisBus,
        url: str,
        duration_s: float | None,
        began_s: float,
    ) -> dict[str, Any]:
        control = Announcer(bus, "supervisor", [Alert.stream, KillSwitch.stream])
        stack.push_async_callback(control.close)
        store = RedisLatchStore.connect(url)
        stack.push_async_callback(store.close)
        latch = KillSwitchLatch(
            self._state_dir, self._plan.prefix, time.time_ns, store, control.publish
        )
        outbox = await Outbox(self._folder / "outbox.sqlite").open()
        stack.push_async_callback(outbox.close)
        venue = await stack.enter_async_context(self._open_venue(outbox, control.publish))
        latest = await bus.latest(MarketContext.stream)
        contexts = [envelope.message for envelope in latest.values()]
        venue.resume(
            {c.instrument: c.bar.close_ns for c in contexts if isinstance(c, MarketContext)}
        )
        source = TickSource(
            venue.events, bus, on_tick=venue.on_tick, is_repeatable=venue.is_repeatable
        )
        gateway = OrderGateway(
            bus,
            venue.broker,
            outbox,
            latch,
            clock_ns=lambda: source.now_ns,
            max_order_rate_per_second=self._settings.execution.max_order_rate_per_second,
            reconciler=Reconciler(
                venue.broker,
                outbox,
                [market.instrument for market in self._plan.markets],
                real_ns=time.time_ns,
                on_outcome=lambda outcome: reconciliation.write(self._folder, outcome),
                managed=lambda: managed_units(bus, gateway),
            ),
            announce=control.publish,
            request_timeout_s=venue.request_timeout_s,
            reconcile_every_s=venue.reconcile_every_s,
        )
        if self._lock_step:
            source.wait_until_quiet = lambda: until_quiet(bus, gateway.is_idle, venue.is_idle)
        self._bus, self._source = bus, source
        actors = [self._actor(name, bus, url, latch) for name in NAMES]
        # Only a process can be ended without its consent.
        watches = [self._thinking_watch(bus)] if WATCHED in self.processes else []

        def note(entry: Entry) -> None:
            self._note(entry)
            for watch in watches:
                watch.note(entry)

        journal = Journal(
            bus,
            self._folder,
            (*NAMES, gateway.name),
            batch_entries=self._settings.bus.batch_entries,
            block_ms=self._settings.bus.block_ms,
            gather_s=0.0 if self._lock_step else _RECORD_EVERY_S,
            on_entry=note,
        )

        async def crashed(name: str, reason: str) -> None:
            if name == WATCHED:
                for watch in watches:
                    watch.forget()
            await self._crashed(control, latch, name, reason)

        def supervise(*parts: Part) -> Supervisor:
            return Supervisor(parts, crashed, monotonic_s=time.monotonic)

        housekeeping = Housekeeping(
            bus, self.server, latch, control.publish, self._settings.bus.retain_entries
        )
        pulse = GatewayPulse(
            gateway, bus, time.time_ns, every_s=self._settings.monitoring.heartbeat_seconds
        )
        # Off, it is no part at all.
        news = [NewsFeed(self._settings.news, bus)] if self._settings.news.url else []
        # Left from the inside out: feed, actors, recording. What the actors still say while they
        # stop belongs to the recording.
        async with supervise(journal, housekeeping, *venue.parts):
            async with supervise(*watches, *actors, gateway, pulse):
                await self._until_ready(bus)
                await housekeeping.announce_latch()
                self._on_ready()
                async with supervise(source, *venue.feeds, *news):
                    stopped_by = await self._until_done(source, duration_s)
                drained = await self._drain(bus, gateway)
                concluded = await venue.conclude(
                    Books(
                        gateway=gateway,
                        outbox=outbox,
                        positions=lambda: positions_of(bus),
                        settle=lambda: self._drain(bus, gateway),
                    )
                )
            await journal.catch_up()
        lost = journal.lost + journal.unhandled(INPUT_STREAMS)
        records = journal.close(seal=self._seals(stopped_by))
        return self.statistics.summary() | {
            "stopped_by": stopped_by,
            "duration_s": round(time.monotonic() - began_s, 3),
            "drained": drained,
            "recording": str(self._folder),
            "records": records,
            **concluded,
            "lost": lost + concluded.get("lost", 0),
        }

    def _thinking_watch(self, bus: Bus) -> ThinkingWatch:
        deadline_ms = self._settings.hierarchical_reasoning_model.performance.max_inference_time_ms
        return ThinkingWatch(
            bus,
            limit_s=(deadline_ms + self._settings.reasoning.stuck_grace_ms) / 1000,
            silent_after_s=self._settings.monitoring.silent_after_seconds,
            end=self.processes[WATCHED].end,
            monotonic_s=time.monotonic,
            clock_ns=time.time_ns,
        )

    def _note(self, entry: Entry) -> None:
        self.statistics.add(entry)
        message = entry.envelope.message
        if isinstance(message, Alert):
            write = get_logger().info if message.severity == "info" else get_logger().warning
            write("alert", severity=message.severity, text=message.text, runbook=message.runbook)

    async def is_healthy(self) -> bool:
        """Tell whether every actor gave a sign of life within the time monitoring allows."""
        if self._bus is None:
            return True  # not started yet: start-up has a deadline of its own
        beats = await self._bus.latest(Heartbeat.stream)
        oldest_ns = time.time_ns() - int(self._settings.monitoring.silent_after_seconds * 1e9)
        return all(name in beats and beats[name].published_ns > oldest_ns for name in NAMES)

    def _seals(self, stopped_by: StoppedBy) -> bool:
        """Tell whether the session is over: an operator's stop may be followed by a restart."""
        return self._seal_when_stopped or stopped_by == "end_of_data"

    def _actor(self, name: str, bus: Bus, url: str, latch: KillSwitchLatch) -> Part:
        if name in self._isolated:
            command = [
                "-m", "daemon.actor_process", name,
                "--session", str(self._folder),
                "--bus", url,
                "--state", str(self._state_dir),
                "--log-level", self._log_level,
                "--parent", str(os.getpid()),
            ]  # fmt: skip
            self.processes[name] = ActorProcess(name, command, self._log_file)
            return self.processes[name]
        return make_runner(builder(self._plan, name), bus, self._settings, latch)

    async def _crashed(
        self, control: Announcer, latch: KillSwitchLatch, name: str, reason: str
    ) -> None:
        alert = Alert(
            severity="critical",
            text=f"{name} crashed and is started again: {reason}",
            runbook="Part crashed",
            at_ns=time.time_ns(),
            source="supervisor",
        )
        try:
            await control.publish(alert)
        except BusError as error:
            get_logger().error("alert not sent", text=alert.text, reason=str(error))
        # A process that died is recovered exactly; one that keeps dying cannot be trusted.
        crashes = self._crashes.setdefault(name, deque(maxlen=_CRASHES_THAT_HALT))
        crashes.append(time.monotonic())
        if (
            on_crash(name) == "halt"
            and len(crashes) == _CRASHES_THAT_HALT
            and crashes[-1] - crashes[0] < _CRASH_WINDOW_S
        ):
            text = f"{name} crashed {len(crashes)} times within a minute, the last time: {reason}"
            await latch.engage(text, operator="supervisor")

    async def _until_ready(self, bus: Bus) -> None:
        """Wait until every actor has recovered and says so; TraderError when one does not."""
        began_ns = time.time_ns()
        deadline_s = time.monotonic() + _START_WAIT_S
        while time.monotonic() < deadline_s:
            beats = await bus.latest(Heartbeat.stream)
            silent = [
                name for name in NAMES if name not in beats or beats[name].published_ns < began_ns
            ]
            if not silent:
                return
            await asyncio.sleep(_POLL_S)
        raise TraderError(
            f"no sign of life from {', '.join(silent)} within {_START_WAIT_S:g} s: see the log"
        )

    async def _until_done(self, source: TickSource, duration_s: float | None) -> StoppedBy:
        waits: dict[asyncio.Task[object], StoppedBy] = {
            asyncio.create_task(self._stopping.wait()): "operator",
            asyncio.create_task(source.finished.wait()): "end_of_data",
        }
        done, pending = await asyncio.wait(
            waits, timeout=duration_s, return_when=asyncio.FIRST_COMPLETED
        )
        for task in pending:
            task.cancel()
        return waits[done.pop()] if done else "duration"

    async def _drain(self, bus: Bus, gateway: OrderGateway) -> bool:
        """Let what has been published run to its end; False when it did not in time."""
        try:
            async with asyncio.timeout(_DRAIN_WAIT_S):
                await until_quiet(bus, gateway.is_idle)
        except TimeoutError:
            get_logger().error("not drained", seconds=_DRAIN_WAIT_S)
            return False
        return True


async def positions_of(bus: Bus) -> dict[str, Position]:
    """Return the last position of each instrument."""
    latest = await bus.latest(Position.stream)
    messages = (envelope.message for envelope in latest.values())
    return {one.instrument: one for one in messages if isinstance(one, Position)}


async def managed_units(bus: Bus, gateway: OrderGateway) -> dict[str, int] | None:
    """Return what execution holds, in signed units; None until it has handled every report."""
    if not gateway.ready.is_set() or gateway.unpublished:
        return None
    try:
        if not await bus.is_quiet([ExecutionReport.stream]):
            return None
        held = await positions_of(bus)
    except BusError:
        return None
    return {name: one.net_quantity for name, one in held.items() if one.net_quantity}
