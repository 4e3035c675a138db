"""What an operator does to a session from outside: stop trading, allow it again, look at it.

Each works with the daemon or its message server down, and says what came of every step.
"""

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from actors.execution import ExecutionActor
from actors.messages import (
    Alert,
    Decision,
    Heartbeat,
    KillSwitch,
    MarketContext,
    Policy,
    PolicySwitch,
    Position,
)
from daemon import reconciliation
from daemon.announcer import Announcer
from daemon.broker_cancel import cancel_at_broker
from daemon.brokers.fyers.ledger import read_use
from daemon.clock import Clock
from daemon.embedded_redis import EmbeddedRedis
from daemon.errors import BusError, ReplayError, TraderError
from daemon.fyers_venue import FOLDER, LEDGER
from daemon.kill_switch import KillSwitchLatch, RedisLatchStore, Step
from daemon.order_gateway import OrderGateway
from daemon.plan import SessionPlan, read_plan
from daemon.redis_bus import RedisBus
from daemon.session_files import current_session
from daemon.settings import Settings

_SHOWN = (Decision, Position, MarketContext, PolicySwitch)
_PAPER_PREFIX = "paper:v1"
_ALERTS_BACK_NS = 3600 * 1_000_000_000
_ALERTS_SHOWN = 20
_ANSWER_S = 2.0


async def stop_without_settings(
    state_dir: Path, reason: str, operator: str, clock: Clock
) -> list[Step]:
    """Write the stop file alone, for when the settings cannot be read.

    A running daemon obeys it within a second.
    """
    latch = KillSwitchLatch(state_dir, _PAPER_PREFIX, clock.now_ns)
    return await latch.engage(reason, operator)


class Operator:
    """The operator's hand on one state folder."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._state_dir: Path = settings.session.state_dir
        self._silent_ns = int(settings.monitoring.silent_after_seconds * 1e9)
        self._clock = clock
        folder = current_session(self._state_dir)
        self._plan, self._plan_problem = _readable_plan(folder)
        self._folder = folder
        self._prefix = self._plan.prefix if self._plan else _PAPER_PREFIX
        self._server = EmbeddedRedis(self._state_dir / "redis", url=settings.bus.url)

    async def kill(self, reason: str, operator: str, *, flatten: bool) -> dict[str, Any]:
        """Engage the kill switch; with `flatten` the daemon also closes what is open.

        Resting orders of a session at Fyers are taken back from here, unless its daemon has been
        told and gives signs of life.
        """
        steps = await self._change(lambda latch: latch.engage(reason, operator, flatten))
        if self._plan is not None:
            step = await cancel_at_broker(
                self._plan,
                self._state_dir,
                self._clock,
                is_daemon_told=all(step.ok for step in steps) and await self._takes_orders_back(),
            )
            steps += [step] if step else []
        return self._outcome(steps, engaged=True) | {"flatten": flatten}

    async def resume(self, reason: str, operator: str) -> dict[str, Any]:
        """Release the kill switch; the reason is kept."""
        steps = await self._change(lambda latch: latch.release(reason, operator))
        return self._outcome(steps, engaged=False)

    async def _change(self, change: Any) -> list[Step]:
        bus = RedisBus(self._server.url, self._prefix)
        announcer = Announcer(bus, "operator", [KillSwitch.stream])
        store = RedisLatchStore.connect(self._server.url)
        latch = KillSwitchLatch(
            self._state_dir, self._prefix, self._clock.now_ns, store, announcer.publish
        )
        try:
            steps: list[Step] = await change(latch)
        finally:
            await announcer.close()
            await store.close()
            await bus.close()
        return steps

    async def _takes_orders_back(self) -> bool:
        """Tell whether all that a cancel passes through has lately given a sign of life."""
        bus = RedisBus(self._server.url, self._prefix)
        try:
            async with asyncio.timeout(_ANSWER_S):
                beats = await bus.latest(Heartbeat.stream)
        except (BusError, TimeoutError):
            return False
        finally:
            await bus.close()
        now_ns = self._clock.now_ns()
        return all(
            name in beats and now_ns - beats[name].published_ns < self._silent_ns
            for name in (ExecutionActor.name, OrderGateway.name)
        )

    def _outcome(self, steps: list[Step], *, engaged: bool) -> dict[str, Any]:
        latch = KillSwitchLatch(self._state_dir, self._prefix, self._clock.now_ns)
        return {
            "engaged": latch.is_engaged(),
            "done": latch.is_engaged() is engaged,
            "steps": [step._asdict() for step in steps],
        }

    async def switch_policy(self, policy: Policy, reason: str, operator: str) -> dict[str, Any]:
        """Tell reasoning which policy decides from now on; raises BusError without a server."""
        bus = RedisBus(self._server.url, self._prefix)
        announcer = Announcer(bus, "operator", [PolicySwitch.stream])
        text = f"{operator}: {reason}"
        message = PolicySwitch(policy=policy, reason=text, at_ns=self._clock.now_ns())
        try:
            (entry_id,) = await announcer.publish(message)
        finally:
            await announcer.close()
            await bus.close()
        return {"policy": policy, "reason": text, "entry": f"{PolicySwitch.stream}/{entry_id}"}

    def reconcile(self) -> dict[str, Any]:
        """Return how log and broker compared when the daemon last looked, with the differences.

        Raises TraderError when the session has not compared them yet.
        """
        outcome = self._reconciliation()
        if self._folder is None or outcome is None:
            raise TraderError(
                f"log and broker have not been compared in {self._state_dir}: start the daemon, "
                "it compares them before the first order"
            )
        return {"session": self._folder.name} | outcome

    def _reconciliation(self) -> dict[str, Any] | None:
        if self._folder is None:
            return None
        return reconciliation.read(self._folder, self._clock.now_ns())

    async def status(self) -> dict[str, Any]:
        """Return what is known: latch, server, session, signs of life, last messages."""
        latch = KillSwitchLatch(self._state_dir, self._prefix, self._clock.now_ns).state()
        answer: dict[str, Any] = {
            "state_dir": str(self._state_dir),
            "session": self._plan.session if self._plan else None,
            "recording": str(self._folder) if self._folder else None,
            "kill_switch": msgspec.to_builtins(latch),
            "server": msgspec.to_builtins(await self._server.state()),
            "running": False,
            "actors": {},
        }
        answer["reconciliation"] = self._reconciliation()
        answer["broker_calls"] = read_use(self._state_dir / FOLDER / LEDGER, self._clock.now_ns())
        if self._plan_problem:
            answer["problem"] = self._plan_problem
        bus = RedisBus(self._server.url, self._prefix)
        try:
            beats = await bus.latest(Heartbeat.stream)
            answer["actors"] = {
                name: msgspec.to_builtins(beat.message)
                | {"alive": self._clock.now_ns() - beat.published_ns < self._silent_ns}
                for name, beat in sorted(beats.items())
            }
            answer["running"] = any(actor["alive"] for actor in answer["actors"].values())
            for kind in _SHOWN:
                latest = await bus.latest(kind.stream)
                answer[kind.stream] = {
                    key: msgspec.to_builtins(envelope.message)
                    for key, envelope in sorted(latest.items())
                    if not isinstance(envelope.message, KillSwitch)
                }
            back_ms = (self._clock.now_ns() - _ALERTS_BACK_NS) // 1_000_000
            alerts = await bus.entries(Alert.stream, f"{back_ms}-0")
            answer["alerts_of_the_last_hour"] = [
                msgspec.to_builtins(entry.envelope.message) for entry in alerts[-_ALERTS_SHOWN:]
            ]
        except BusError as error:
            answer["problem"] = str(error)
        finally:
            await bus.close()
        return answer


def _readable_plan(folder: Path | None) -> tuple[SessionPlan | None, str]:
    """Return the plan, or none and the problem: a damaged file must not keep anyone from a stop."""
    try:
        return (read_plan(folder) if folder else None), ""
    except ReplayError as error:
        return None, str(error)
