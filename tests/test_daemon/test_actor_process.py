"""The process of one actor: what it is built from, how it begins and how it ends."""

# ruff: noqa: ASYNC110, ASYNC220 - what is waited for is a state; a test may block for a moment

import asyncio
import ctypes
import gc
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import structlog
from builders import OPEN_NS, a_tick, a_time
from recorded_session import RecordedSession, session_settings

from actors.messages import Bar, Heartbeat, Tick, TimeEvent
from daemon.actor_process import builder, load_thinker, main, make_runner, serve
from daemon.engine_record import EngineRecord, note_engine, read_engine
from daemon.kill_switch import KillSwitchLatch
from daemon.memory_bus import MemoryBus
from daemon.memory_use import resident_mib
from daemon.plan import SessionPlan
from daemon.redis_bus import RedisBus
from daemon.runner import Runner
from hrm.agent import HRMAgent
from hrm.manifest import IntegrityError

WAIT_S = 20.0
NO_SERVER = "unix:///nowhere/r.sock"


@pytest.fixture
def plan(recorded: RecordedSession) -> SessionPlan:
    """Return the plan of a session of its own on any bus."""
    return msgspec.structs.replace(recorded.plan, prefix=f"test:{uuid.uuid4().hex}")


@pytest.fixture
def folder(plan: SessionPlan, tmp_path: Path) -> Path:
    plan.write(tmp_path / "session")
    return tmp_path / "session"


@pytest.fixture
def process_as_before() -> Iterator[None]:
    """Undo what `main` does to the process it runs in."""
    yield
    structlog.reset_defaults()
    ctypes.CDLL(None).prctl(1, 0)
    gc.unfreeze()
    gc.enable()


def arguments(name: str, folder: Path, url: str) -> list[str]:
    return [name, "--session", str(folder), "--bus", url, "--state", str(folder.parent)]


async def until_heard(bus: RedisBus, name: str) -> Heartbeat:
    async with asyncio.timeout(WAIT_S):
        while name not in (beats := await bus.latest(Heartbeat.stream)):
            await asyncio.sleep(0.02)
    beat = beats[name].message
    assert isinstance(beat, Heartbeat)
    return beat


def test_without_a_model_there_is_no_thinker(plan: SessionPlan) -> None:
    assert load_thinker(msgspec.structs.replace(plan, model_digest="")) is None


def test_the_thinker_is_the_model_of_the_plan(recorded: RecordedSession) -> None:
    thinker = load_thinker(recorded.plan)

    assert thinker is not None
    assert thinker.digest == recorded.plan.model_digest != ""


@pytest.mark.parametrize(
    ("missing", "names"),
    [((), {"native", "onnx"}), (("native",), {"onnx"}), (("native", "onnxruntime"), {"eager"})],
)
def test_a_session_begun_before_an_engine_was_there_keeps_the_older_one(
    recorded: RecordedSession, missing: tuple[str, ...], names: set[str]
) -> None:
    versions = {k: v for k, v in recorded.plan.versions.items() if k not in missing}

    thinker = load_thinker(msgspec.structs.replace(recorded.plan, versions=versions))

    assert isinstance(thinker, HRMAgent)
    assert thinker.choice is not None
    assert thinker.choice.name in names


def test_a_session_keeps_the_engine_it_began_with(
    recorded: RecordedSession, tmp_path: Path
) -> None:
    first = load_thinker(recorded.plan, folder=tmp_path)
    noted = read_engine(tmp_path)
    assert isinstance(first, HRMAgent)
    assert first.choice is not None
    assert noted is not None
    assert noted.name == first.choice.name

    (tmp_path / "engine.json").write_bytes(
        msgspec.json.encode(msgspec.structs.replace(noted, name="onnx"))
    )
    again = load_thinker(recorded.plan, folder=tmp_path)

    assert isinstance(again, HRMAgent)
    assert again.choice is not None
    assert again.choice.name == "onnx"


def test_a_session_whose_engine_is_refused_here_goes_on_with_another(
    recorded: RecordedSession, tmp_path: Path
) -> None:
    # The gate has no inputs for the features of this model.
    note_engine(tmp_path, EngineRecord(name="native8", simd="avx2", processor="another"))

    thinker = load_thinker(recorded.plan, folder=tmp_path)

    assert isinstance(thinker, HRMAgent)
    assert thinker.choice is not None
    assert thinker.choice.name in ("native", "onnx")


def test_another_model_than_the_plans_is_refused(recorded: RecordedSession) -> None:
    plan = msgspec.structs.replace(recorded.plan, model_digest="0" * 64)

    with pytest.raises(IntegrityError, match=f"the session began with {'0' * 64}"):
        load_thinker(plan)


def test_every_build_makes_a_fresh_actor(plan: SessionPlan) -> None:
    build = builder(plan, "risk")

    assert build().name == "risk"
    assert build() is not build()


async def test_only_actors_that_may_not_fail_stop_trading_when_they_do(
    plan: SessionPlan, tmp_path: Path
) -> None:
    bus = MemoryBus()
    settings = session_settings(tmp_path)
    latch = KillSwitchLatch(tmp_path, plan.prefix, time.time_ns)
    await latch.release("a test", "anna")

    async def fail(name: str) -> tuple[bool, str]:
        runner: Runner = make_runner(builder(plan, name), bus, settings, latch)
        assert runner._on_failure is not None
        await runner._on_failure(f"{name} failed")
        return latch.is_engaged(), latch.state().operator

    feed = await fail("market_feed")
    risk = await fail("risk")

    assert feed == (False, "anna")
    assert risk == (True, "risk")
    assert latch.state().reason == "risk failed"


def test_a_process_knows_how_much_memory_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_mib = resident_mib()
    unknown = []
    for content in ("", "1", "1 many"):
        (tmp_path / "statm").write_text(content)
        monkeypatch.setattr("daemon.memory_use._STATM", tmp_path / "statm")
        unknown.append(resident_mib())
    monkeypatch.setattr("daemon.memory_use._STATM", tmp_path / "absent")

    assert 20 < held_mib < 20_000
    assert [*unknown, resident_mib()] == [0.0] * 4


# --- the process itself ---------------------------------------------------------------------------


@pytest.mark.integration
async def test_an_actor_is_served_until_it_is_asked_to_end(
    plan: SessionPlan, folder: Path, message_server: str, process_as_before: None
) -> None:
    bus = RedisBus(message_server, plan.prefix)
    serving = asyncio.create_task(serve("market_feed", folder, message_server, folder.parent, 2))
    beat = await until_heard(bus, "market_feed")
    publisher = await bus.publisher("tick_source", [Tick.stream, TimeEvent.stream])
    await publisher.publish(a_time(), a_tick(), a_time(OPEN_NS + 300 * 10**9))
    async with asyncio.timeout(WAIT_S):
        while not (bars := await bus.entries(Bar.stream)):
            await asyncio.sleep(0.02)

    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(serving, WAIT_S)

    assert beat.restarts == 2
    assert len(bars) == 1
    await publisher.close()
    await bus.close()


@pytest.mark.integration
async def test_a_process_serves_its_actor_and_ends_well_on_sigterm(
    plan: SessionPlan, folder: Path, message_server: str
) -> None:
    bus = RedisBus(message_server, plan.prefix)
    process = subprocess.Popen(
        [sys.executable, "-m", "daemon.actor_process",
         *arguments("complexity", folder, message_server), "--parent", str(os.getpid())],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    beat = await until_heard(bus, "complexity")

    process.terminate()
    code = await asyncio.to_thread(process.wait, WAIT_S)

    assert code == 0
    assert beat.rss_mib > 10
    await bus.close()


def test_a_process_whose_supervisor_has_gone_does_not_begin(
    folder: Path, process_as_before: None
) -> None:
    assert main([*arguments("risk", folder, NO_SERVER), "--parent", "1"]) == 1


def test_the_last_words_of_a_process_say_why_it_ended(
    tmp_path: Path, process_as_before: None, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(arguments("risk", tmp_path / "nowhere", NO_SERVER))

    assert code == 1
    assert "ReplayError" in capsys.readouterr().err
