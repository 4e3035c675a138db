"""The supervisor: parts come back after a crash, and end in order."""

# ruff: noqa: ASYNC110 - what is waited for is a state, which has no event

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from daemon.errors import PartCrashed
from daemon.supervisor import ActorProcess, Supervisor

WAIT_S = 20.0


class SteadyPart:
    """Run until stopped; note when it ended."""

    def __init__(self, name: str, log: list[str] | None = None) -> None:
        self.name = name
        self._log = log if log is not None else []
        self._stopping = asyncio.Event()
        self.starts = 0

    async def run(self) -> None:
        self.starts += 1
        await self._stopping.wait()
        self._log.append(f"{self.name} ended")

    def stop(self) -> None:
        self._log.append(f"{self.name} asked")
        self._stopping.set()


class CrashingPart(SteadyPart):
    """Raise in the first so many runs, and only then run steadily."""

    def __init__(self, name: str, crashes: int, error: Exception) -> None:
        super().__init__(name)
        self.times_s: list[float] = []
        self._crashes = crashes
        self._error = error

    async def run(self) -> None:
        self.times_s.append(time.monotonic())
        if len(self.times_s) <= self._crashes:
            raise self._error
        await super().run()


class EndingPart(CrashingPart):
    """Return in the first run without being asked to."""

    def __init__(self, name: str) -> None:
        super().__init__(name, 0, RuntimeError())

    async def run(self) -> None:
        if self.starts == 0:
            self.starts += 1
            return
        await super().run()


class DeafPart(SteadyPart):
    """Do not hear that it should stop."""

    was_cancelled = False

    def stop(self) -> None:
        return

    async def run(self) -> None:
        try:
            await super().run()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise


class Crashes:
    """What was told about crashes."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    async def __call__(self, name: str, reason: str) -> None:
        self.told.append((name, reason))


@pytest.fixture
def crashes() -> Crashes:
    return Crashes()


async def until(is_done: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_done():
            await asyncio.sleep(0.005)


async def test_parts_run_while_the_context_is_open(crashes: Crashes) -> None:
    part = SteadyPart("feed")

    async with Supervisor([part], crashes, monotonic_s=time.monotonic):
        await until(lambda: part.starts == 1)

    assert part._log == ["feed asked", "feed ended"]
    assert crashes.told == []


async def test_a_part_that_raises_is_told_of_and_started_again(crashes: Crashes) -> None:
    part = CrashingPart("risk", 1, ValueError("no such thing"))

    async with Supervisor([part], crashes, monotonic_s=time.monotonic) as supervisor:
        await until(lambda: part.starts == 1)

    assert crashes.told == [("risk", "ValueError: no such thing")]
    assert supervisor.restarts == {"risk": 1}


async def test_a_part_that_ends_by_itself_has_crashed(crashes: Crashes) -> None:
    part = EndingPart("feed")

    async with Supervisor([part], crashes, monotonic_s=time.monotonic):
        await until(lambda: part.starts == 2)

    assert crashes.told == [("feed", "it ended by itself")]


async def test_the_reason_names_every_error_of_a_group(crashes: Crashes) -> None:
    group = ExceptionGroup(
        "unhandled", [ValueError("first"), ExceptionGroup("inner", [KeyError("second")])]
    )
    part = CrashingPart("order_gateway", 1, group)

    async with Supervisor([part], crashes, monotonic_s=time.monotonic):
        await until(lambda: part.starts == 1)

    assert crashes.told == [("order_gateway", "ValueError: first; KeyError: 'second'")]


async def test_restarts_come_after_longer_and_longer_waits(crashes: Crashes) -> None:
    part = CrashingPart("risk", 3, ValueError())

    async with Supervisor([part], crashes, monotonic_s=time.monotonic):
        await until(lambda: part.starts == 1)

    waits = [after - before for before, after in zip(part.times_s, part.times_s[1:], strict=False)]
    assert all(wait >= least for wait, least in zip(waits, (0.1, 0.2, 0.4), strict=True))


async def test_a_part_that_was_stable_is_restarted_at_once_again(crashes: Crashes) -> None:
    part = CrashingPart("risk", 4, ValueError())
    now_s = iter(range(0, 10_000, 31))  # every run seems to last 31 seconds

    with capture_logs() as lines:
        async with Supervisor([part], crashes, monotonic_s=lambda: float(next(now_s))):
            await until(lambda: part.starts == 1)

    waits_s = [line["restart_in_s"] for line in lines if line["event"] == "part crashed"]
    assert waits_s == [0.1] * 4


async def test_a_listener_that_fails_does_not_keep_a_part_down() -> None:
    part = CrashingPart("risk", 1, ValueError())

    async def failing(name: str, reason: str) -> None:
        raise RuntimeError("nobody listens")

    async with Supervisor([part], failing, monotonic_s=time.monotonic):
        await until(lambda: part.starts == 1)


async def test_one_crash_leaves_the_other_parts_alone(crashes: Crashes) -> None:
    steady = SteadyPart("feed")
    part = CrashingPart("risk", 1, ValueError())

    async with Supervisor([steady, part], crashes, monotonic_s=time.monotonic):
        await until(lambda: part.starts == 1)

    assert steady.starts == 1


async def test_parts_are_asked_to_stop_in_the_order_given(crashes: Crashes) -> None:
    log: list[str] = []
    parts = [SteadyPart(name, log) for name in ("feed", "risk", "journal")]

    async with Supervisor(parts, crashes, monotonic_s=time.monotonic):
        await until(lambda: parts[-1].starts == 1)

    assert log[:3] == ["feed asked", "risk asked", "journal asked"]
    assert sorted(log[3:]) == ["feed ended", "journal ended", "risk ended"]


async def test_an_inner_supervisor_has_ended_before_the_outer_one_is_asked(
    crashes: Crashes,
) -> None:
    log: list[str] = []
    feed, journal = SteadyPart("feed", log), SteadyPart("journal", log)

    async with (
        Supervisor([journal], crashes, monotonic_s=time.monotonic),
        Supervisor([feed], crashes, monotonic_s=time.monotonic),
    ):
        await until(lambda: feed.starts == 1)

    assert log == ["feed asked", "feed ended", "journal asked", "journal ended"]


async def test_a_part_that_does_not_stop_is_cancelled(crashes: Crashes) -> None:
    part = DeafPart("feed")

    async with Supervisor([part], crashes, monotonic_s=time.monotonic, stop_wait_s=0.05):
        await until(lambda: part.starts == 1)

    assert part.was_cancelled


async def test_a_crash_while_stopping_is_no_news(crashes: Crashes) -> None:
    class FailingAtTheEnd(SteadyPart):
        async def run(self) -> None:
            await super().run()
            raise ValueError("too late")

    part = FailingAtTheEnd("feed")

    async with Supervisor([part], crashes, monotonic_s=time.monotonic):
        await until(lambda: part.starts == 1)

    assert crashes.told == []


async def test_stopping_does_not_wait_for_a_restart(
    crashes: Crashes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.supervisor._BACKOFF_FIRST_S", 3600.0)
    part = CrashingPart("risk", 100, ValueError())

    async with asyncio.timeout(WAIT_S):
        async with Supervisor([part], crashes, monotonic_s=time.monotonic, stop_wait_s=3600.0):
            await until(lambda: len(crashes.told) == 1)

    assert len(part.times_s) == 1


# --- processes ------------------------------------------------------------------------------------

PROGRAM = """
import signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
behaviour = sys.argv[2]
if behaviour == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
(folder / f"started-{sys.argv[sys.argv.index('--restarts') + 1]}").touch()
print("words", file=sys.stderr, flush=True)
if behaviour == "crash" and not (folder / "started-1").exists():
    sys.exit(3)
time.sleep(60)
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return str(path)


async def test_a_process_ends_with_its_supervisor(
    program: str, tmp_path: Path, crashes: Crashes
) -> None:
    process = ActorProcess("reasoning", [program, str(tmp_path), "steady"])

    async with Supervisor([process], crashes, monotonic_s=time.monotonic):
        await until((tmp_path / "started-0").exists)
        pid = process.pid
        assert pid is not None

    assert process.pid is None
    assert crashes.told == []
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_process_that_crashes_is_told_how_often_it_has_been_restarted(
    program: str, tmp_path: Path, crashes: Crashes
) -> None:
    process = ActorProcess("reasoning", [program, str(tmp_path), "crash"])

    async with Supervisor([process], crashes, monotonic_s=time.monotonic):
        await until((tmp_path / "started-1").exists)

    assert crashes.told == [("reasoning", "PartCrashed: process reasoning ended with code 3")]
    assert process.starts == 2


async def test_a_process_that_is_killed_comes_back(
    program: str, tmp_path: Path, crashes: Crashes
) -> None:
    process = ActorProcess("reasoning", [program, str(tmp_path), "steady"])

    async with Supervisor([process], crashes, monotonic_s=time.monotonic):
        await until((tmp_path / "started-0").exists)
        first = process.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until((tmp_path / "started-1").exists)

    assert crashes.told == [("reasoning", "PartCrashed: process reasoning ended with code -9")]


async def test_a_process_that_ignores_the_request_is_killed(
    program: str, tmp_path: Path, crashes: Crashes
) -> None:
    process = ActorProcess("reasoning", [program, str(tmp_path), "deaf"])

    async with Supervisor([process], crashes, monotonic_s=time.monotonic, stop_wait_s=0.1):
        await until((tmp_path / "started-0").exists)
        pid = process.pid
        assert pid is not None

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("behaviour", ["steady", "deaf"])
async def test_a_run_that_is_cancelled_takes_its_process_along(
    program: str, tmp_path: Path, behaviour: str
) -> None:
    process = ActorProcess("reasoning", [program, str(tmp_path), behaviour], stop_wait_s=0.1)
    task = asyncio.create_task(process.run())
    await until((tmp_path / "started-0").exists)
    pid = process.pid
    assert pid is not None

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_stop_while_the_process_is_being_made_reaches_it(
    program: str, tmp_path: Path
) -> None:
    process = ActorProcess("reasoning", [program, str(tmp_path), "steady"])
    task = asyncio.create_task(process.run())
    await asyncio.sleep(0)

    process.stop()

    await asyncio.wait_for(task, WAIT_S)
    assert process.pid is None


async def test_what_a_process_says_goes_where_it_was_told_to(program: str, tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        process = ActorProcess("reasoning", [program, str(tmp_path), "steady"], log)
        task = asyncio.create_task(process.run())
        await until(lambda: "words" in (tmp_path / "log").read_text())
        process.stop()
        await task


async def test_an_end_that_nobody_asked_for_is_a_crash(program: str, tmp_path: Path) -> None:
    process = ActorProcess("reasoning", [program, str(tmp_path), "crash"])

    with pytest.raises(PartCrashed, match="process reasoning ended with code 3"):
        await process.run()
