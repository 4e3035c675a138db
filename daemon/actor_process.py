"""The process of one actor: a loop, a bus, one runner, and a model if there is thinking to do."""

import argparse
import asyncio
import ctypes
import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvloop

from actors.base import Actor
from actors.reasoning import Thinker
from daemon.bus import Bus
from daemon.kill_switch import KillSwitchLatch
from daemon.logs import configure_logs, get_logger
from daemon.memory_use import resident_mib
from daemon.plan import SessionPlan, read_plan
from daemon.redis_bus import RedisBus
from daemon.runner import Runner
from daemon.settings import Settings
from daemon.wiring import Workshop, on_crash
from hrm.manifest import IntegrityError

_PR_SET_PDEATHSIG = 1


def load_thinker(
    plan: SessionPlan, monotonic_ns: Callable[[], int] = time.monotonic_ns
) -> Thinker | None:
    """Load the model the plan names, verified and warm; None when it names none.

    Raises IntegrityError when the file is not the one the session began with.
    """
    if not plan.model_digest:
        return None
    from hrm.agent import HRMAgent  # noqa: PLC0415 - loads the runtime, which only this one needs

    settings = Settings.model_validate(plan.settings)
    limits = settings.hierarchical_reasoning_model
    if "onnxruntime" not in plan.versions:  # begun before there was a choice
        limits = limits.changed(performance={"engine": "eager"})
    agent = HRMAgent.load(Path(plan.models_dir), monotonic_ns, limits)
    if agent.digest != plan.model_digest:
        raise IntegrityError(
            f"{plan.models_dir} holds model {agent.digest}, the session began with "
            f"{plan.model_digest}: put it back, or begin a new session"
        )
    if agent.choice is not None and agent.choice.reason:
        get_logger(model=agent.digest).warning("slower engine", reason=agent.choice.reason)
    agent.warm_up(settings.reasoning.max_together)
    return agent


def builder(plan: SessionPlan, name: str) -> Callable[[], Actor[Any, Any]]:
    """Return what makes fresh actors of one name; the model is loaded once."""
    workshop = Workshop.of(plan)
    thinker = load_thinker(plan) if name == "reasoning" else None
    return lambda: workshop.build(name, thinker)


def make_runner(
    build: Callable[[], Actor[Any, Any]],
    bus: Bus,
    settings: Settings,
    latch: KillSwitchLatch,
    restarts: int = 0,
) -> Runner:
    """Return the runner of an actor; a failure of one that may not fail engages the latch."""
    name = build().name

    async def halt(reason: str) -> None:
        if on_crash(name) == "halt":
            await latch.engage(reason, operator=name)

    return Runner(
        build,
        bus,
        clock_ns=time.time_ns,
        monotonic_ns=time.monotonic_ns,
        batch_entries=settings.bus.batch_entries,
        block_ms=settings.bus.block_ms,
        heartbeat_s=settings.monitoring.heartbeat_seconds,
        on_failure=halt,
        rss_mib=resident_mib,
        restarts=restarts,
    )


async def serve(name: str, folder: Path, bus_url: str, state_dir: Path, restarts: int) -> None:
    """Run one actor of a session until SIGTERM."""
    plan = read_plan(folder)
    bus = RedisBus(bus_url, plan.prefix)
    latch = KillSwitchLatch(state_dir, plan.prefix, time.time_ns)
    build = builder(plan, name)
    runner = make_runner(build, bus, Workshop.of(plan).settings, latch, restarts)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, runner.stop)
    gc.collect()
    gc.freeze()  # what start-up made stays: later collections need not walk it
    try:
        await runner.run()
    finally:
        await bus.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m daemon.actor_process`; the supervisor calls it."""
    parser = argparse.ArgumentParser(prog="actor_process")
    parser.add_argument("name")
    parser.add_argument("--session", type=Path, required=True)
    parser.add_argument("--bus", required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--log-level", default="INFO")
    parser.add_argument("--restarts", type=int, default=0)
    parser.add_argument("--parent", type=int, default=os.getppid())
    given = parser.parse_args(arguments)
    # An actor without its supervisor would trade unwatched: let the kernel end it with its parent.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != given.parent:
        return 1  # it had died before we asked to be told
    configure_logs(given.log_level)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(given.name, given.session, given.bus, given.state, given.restarts))
    except Exception:  # noqa: BLE001 - the last words of this process; its supervisor acts on them
        get_logger(actor=given.name).exception("actor process ends")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
