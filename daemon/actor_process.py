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
from typing import TYPE_CHECKING, Any

import uvloop

from actors.base import Actor
from daemon.bus import Bus
from daemon.engine_record import EngineRecord, limits_of_session, note_engine, read_engine
from daemon.kill_switch import KillSwitchLatch
from daemon.logs import configure_logs, get_logger
from daemon.memory_use import resident_mib, return_unused
from daemon.plan import SessionPlan, read_plan
from daemon.redis_bus import RedisBus
from daemon.runner import Runner
from daemon.settings import Settings
from daemon.thinking_care import REMEDY, ThinkingCare
from daemon.wiring import Workshop, on_crash
from hrm.engine_facts import processor
from hrm.manifest import EngineRefused, IntegrityError
from hrm.memory import HRMMemoryOptimizer

if TYPE_CHECKING:
    from hrm.agent import HRMAgent

_PR_SET_PDEATHSIG = 1


def load_thinker(
    plan: SessionPlan,
    monotonic_ns: Callable[[], int] = time.monotonic_ns,
    folder: Path | None = None,
) -> "HRMAgent | None":
    """Load the model the plan names, verified and warm; None when it names none.

    folder: of the session, which keeps its engine there; None for one that is not recorded. Raises
    IntegrityError when the file is not the one the session began with.
    """
    if plan.trader != "model" or not plan.model_digest:
        return None
    settings = Settings.model_validate(plan.settings)
    noted = None if folder is None else read_engine(folder)
    agent = _load_agent(plan, settings, noted, monotonic_ns)
    if agent.digest != plan.model_digest:
        raise IntegrityError(
            f"{plan.models_dir} holds model {agent.digest}, the session began with "
            f"{plan.model_digest}: put it back, or begin a new session"
        )
    if agent.choice is not None:
        log = get_logger(model=agent.digest)
        log.info("engine", name=agent.choice.name, simd=agent.choice.simd, why=agent.choice.reason)
        for name, reason in agent.choice.refused.items():
            log.warning("engine refused", name=name, reason=reason)
        if folder is not None:
            note_engine(
                folder,
                EngineRecord(name=agent.choice.name, simd=agent.choice.simd, processor=processor()),
            )
    agent.warm_up(settings.reasoning.max_together)
    if agent.profile is not None:
        agent.profile.clear()
    return_unused()
    return agent


def _load_agent(
    plan: SessionPlan,
    settings: Settings,
    noted: EngineRecord | None,
    monotonic_ns: Callable[[], int],
) -> "HRMAgent":
    """Load with the engine the session began with, or where it is gone with another and a word."""
    from hrm.agent import HRMAgent  # noqa: PLC0415 - loads the runtime, which only this one needs

    configured = settings.hierarchical_reasoning_model
    models_dir, state_dir = Path(plan.models_dir), settings.session.state_dir
    limits = limits_of_session(configured, plan.versions, noted)
    try:
        return HRMAgent.load(models_dir, monotonic_ns, limits, state_dir)
    except EngineRefused as error:
        if noted is None:
            raise
        get_logger(model=plan.model_digest).warning(
            "the session began with another engine, answers may differ",
            began_with=noted.name,
            on=noted.processor,
            reason=str(error),
        )
        return HRMAgent.load(models_dir, monotonic_ns, configured, state_dir)


def builder(
    plan: SessionPlan, name: str, folder: Path | None = None
) -> Callable[[], Actor[Any, Any]]:
    """Return what makes fresh actors of one name; the model is loaded once."""
    workshop = Workshop.of(plan)
    thinker = load_thinker(plan, folder=folder) if name == "reasoning" else None
    return lambda: workshop.build(name, thinker)


def make_runner(
    build: Callable[[], Actor[Any, Any]],
    bus: Bus,
    settings: Settings,
    latch: KillSwitchLatch,
    restarts: int = 0,
    rest: Callable[[bool], None] = lambda _: None,
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
        rest=rest,
    )


def care_of(thinker: "HRMAgent", settings: Settings) -> ThinkingCare:
    """Return what looks after the process of a thinker between its decisions."""
    performance = settings.hierarchical_reasoning_model.performance
    memory = HRMMemoryOptimizer(performance.memory_limit_gb, REMEDY)
    return ThinkingCare(memory, thinker.profile, time.monotonic)


async def serve(name: str, folder: Path, bus_url: str, state_dir: Path, restarts: int) -> None:
    """Run one actor of a session until SIGTERM."""
    plan = read_plan(folder)
    bus = RedisBus(bus_url, plan.prefix)
    latch = KillSwitchLatch(state_dir, plan.prefix, time.time_ns)
    workshop = Workshop.of(plan)
    thinker = load_thinker(plan, folder=folder) if name == "reasoning" else None
    rest = care_of(thinker, workshop.settings).rest if thinker else lambda _: None
    runner = make_runner(
        lambda: workshop.build(name, thinker), bus, workshop.settings, latch, restarts, rest
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, runner.stop)
    gc.collect()
    gc.freeze()  # what start-up made stays: later collections need not walk it
    if thinker:
        gc.disable()  # a decision does not wait for one; rest() collects
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
