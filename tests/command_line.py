"""The hrm-trader command in a sandbox: started as a process, watched from outside, ended.

What a test leaves behind is found by a mark in the environment of every process it started.
"""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO, cast
from zoneinfo import ZoneInfo

import numpy as np
import redis

COMMAND = Path(sys.executable).with_name("hrm-trader")
CONFIG = Path(__file__).parents[1] / "config"
PREFIX = "paper:v1"
INSTRUMENT = "Nifty"
FIRST_BAR_S = int(
    datetime(2026, 3, 2, 9, 15, tzinfo=ZoneInfo("Asia/Kolkata")).timestamp()
)  # a Monday that NSE trades on
WARM_UP_BARS = 33  # the fewest that a window of features needs
HEADER = "datetime,open,high,low,close,volume"

_PATIENCE_S = 120.0
_MARK = "HRM_TEST_MARK"


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it said."""

    code: int
    stdout: str
    stderr: str

    @property
    def answer(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        lines = self.stdout.splitlines()
        assert len(lines) == 1, f"stdout must hold one line: {self.stdout!r}; {self.stderr[-3000:]}"
        answer = json.loads(lines[0])
        assert isinstance(answer, dict)
        return answer

    def assert_no_traceback(self) -> None:
        """Fail if an exception has come through to the operator."""
        assert "Traceback" not in self.stdout + self.stderr, self.stderr


class Running:
    """A command that runs; its output goes to files, so that it never waits for a reader."""

    def __init__(self, arguments: list[str], work: Path, environment: dict[str, str]) -> None:
        self._state = work.parent / "state"
        self._outputs = [work.parent / f"{uuid.uuid4().hex}.{name}" for name in ("out", "err")]
        with self._outputs[0].open("wb") as stdout, self._outputs[1].open("wb") as stderr:
            self.process = subprocess.Popen(
                [str(COMMAND), *arguments],
                cwd=work,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,  # a group of its own, as a shell gives to each command
            )

    @property
    def stdout(self) -> str:
        """What it has written to stdout so far."""
        return self._outputs[0].read_text()

    @property
    def stderr(self) -> str:
        """What it has written to stderr so far."""
        return self._outputs[1].read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this one process."""
        self.process.send_signal(number)

    def press_ctrl_c(self) -> None:
        """Do what a terminal does: SIGINT to the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self, timeout_s: float = _PATIENCE_S) -> Outcome:
        """Wait for the end; a command that does not come to it says where it is."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # faulthandler prints all stacks
            self.process.wait(5.0)
            logs = [path.read_text()[-4000:] for path in self._state.rglob("log.jsonl")]
            text = "\n".join([f"still running after {timeout_s:g} s:", self.stderr[-8000:], *logs])
            raise AssertionError(text) from None
        return Outcome(code, *(path.read_text() for path in self._outputs))


class Sandbox:
    """A folder with state, working directory, home and temporary files of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self._mark = uuid.uuid4().hex
        self._commands: list[Running] = []
        self.places = [folder / name for name in ("work", "home", "temporary", "runtime")]
        for place in self.places:
            place.mkdir()
        work, home, temporary, runtime = map(str, self.places)
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("HRM_TRADER")
        }
        self._work = Path(work)
        self.environment = inherited | {
            _MARK: self._mark,
            "HOME": home,
            "TMPDIR": temporary,
            "XDG_RUNTIME_DIR": runtime,
            "OMP_NUM_THREADS": "1",
            "PYTHONFAULTHANDLER": "1",
            "HRM_TRADER_CONFIG_DIR": str(CONFIG),
            "HRM_TRADER__SESSION__STATE_DIR": str(self.state),
            "HRM_TRADER__FEED__TIMEFRAME": "1",
            "HRM_TRADER__SESSION__MODEL_DIR": str(folder / "no-models"),
        }

    def set(self, setting: str, value: object) -> None:
        """Change a setting, `section.key`, for all commands from here on."""
        self.environment[f"HRM_TRADER__{setting.replace('.', '__').upper()}"] = str(value)

    def trade_with(self, models: Path) -> None:
        """Use this model, and let what it decides become orders as often as can be.

        Nothing of it depends on how busy the machine is.
        """
        self.be_patient()
        self.set("session.model_dir", models)
        self.set("reasoning.warm_up_bars", WARM_UP_BARS)
        self.set("risk_limits.min_confidence", 0)
        self.set("risk_limits.max_decision_age_seconds", 3600)
        self.set("risk_limits.max_daily_loss", 1)
        self.set("risk_limits.max_drawdown", 1)

    def be_patient(self) -> None:
        """Put every deadline far off: a busy machine changes no decision and raises no alert."""
        self.set("hierarchical_reasoning_model.performance.max_inference_time_ms", 5000)
        self.set("monitoring.latency_warning_ms", 10_000)
        self.set("monitoring.latency_critical_ms", 20_000)
        # Unless it is what a test is about.
        self.environment.setdefault("HRM_TRADER__MONITORING__SILENT_AFTER_SECONDS", "120")

    def start(self, *arguments: object) -> Running:
        """Start a command and return at once."""
        words = [str(argument) for argument in arguments]
        self._commands.append(Running(words, self._work, self.environment))
        return self._commands[-1]

    def run(self, *arguments: object, timeout_s: float = _PATIENCE_S) -> Outcome:
        """Run a command to its end."""
        return self.start(*arguments).wait(timeout_s)

    @contextmanager
    def locked(self, file: TextIO) -> Iterator[None]:
        """Hold a lock on a file, as another program would."""
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        fcntl.flock(file, fcntl.LOCK_UN)

    def stream_length(self, stream: str) -> int:
        """Return how many entries a stream of `run` holds; 0 while the server is away."""
        length = self._ask(lambda server: server.xlen(f"{PREFIX}:{stream}"))
        return 0 if length is None else cast("int", length)

    def _ask(self, question: Callable[["redis.Redis"], Any]) -> Any:
        socket = self.state / "redis" / "r.sock"
        with redis.Redis(unix_socket_path=str(socket), socket_timeout=2.0) as server:
            try:
                return question(server)
            except (redis.ConnectionError, redis.TimeoutError):
                return None

    def wait_for(
        self, stream: str, length: int, daemon: Running, timeout_s: float = _PATIENCE_S
    ) -> None:
        """Wait until a stream of a running daemon holds so many entries."""
        wait_until(
            lambda: self.stream_length(stream) >= length,
            f"{length} entries in {stream}",
            lambda: daemon.process.poll() is None,
            timeout_s,
        )

    def processes(self) -> dict[int, str]:
        """Return every process started here that still lives: pid -> command line."""
        found = {}
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                # Processes come and go, and those of other users cannot be read.
                with suppress(OSError):
                    if self._is_ours(folder):
                        words = (folder / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                        found[int(folder.name)] = b" ".join(words).decode(errors="replace")
        return found

    def _is_ours(self, process: Path) -> bool:
        mark = f"{_MARK}={self._mark}".encode()
        # The message server writes its title over its environment, but works in our folder.
        return mark in (process / "environ").read_bytes().split(b"\0") or (
            (process / "cwd").readlink().is_relative_to(self.folder)
        )

    def actor_pid(self, name: str) -> int:
        """Return the process of an actor."""
        return self._only(f"daemon.actor_process {name} ")

    def daemon_pid(self) -> int:
        """Return the process of the one daemon."""
        return self._only("hrm-trader run ")

    def server_pid(self) -> int:
        """Return the process of the message server."""
        return self._only("valkey-server")

    def _only(self, words: str) -> int:
        (pid,) = [pid for pid, line in self.processes().items() if words in line]
        return pid

    def end_all(self) -> dict[int, str]:
        """Kill what still lives and return what that was."""
        wait_until_quietly(lambda: not self.processes(), 30.0)
        left = self.processes()
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for command in self._commands:
            command.process.wait(30.0)
        return left


@contextmanager
def a_sandbox() -> Iterator[Sandbox]:
    """Return a sandbox; fails when it leaves a process behind."""
    # Not tmp_path: with its long names the server's socket would not fit into the state folder.
    folder = Path(tempfile.mkdtemp(prefix="hrm-"))
    sandbox = Sandbox(folder)
    try:
        yield sandbox
    finally:
        left = sandbox.end_all()
        shutil.rmtree(folder)
    assert not left, f"processes were left behind: {left}"


def wait_until(
    condition: Callable[[], bool],
    wanted: str,
    is_possible: Callable[[], bool] = lambda: True,
    timeout_s: float = _PATIENCE_S,
) -> None:
    """Poll until a condition holds; fails with what was `wanted` when it does not in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert is_possible(), f"ended before there were {wanted}"
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {wanted}"
        time.sleep(0.02)


def wait_until_quietly(condition: Callable[[], bool], timeout_s: float) -> None:
    """Poll until a condition holds or the time is up."""
    deadline_s = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(0.02)


def candle_rows(bars: int, seed: int = 7) -> Iterator[str]:
    """Yield one-minute candles of a seeded random walk around 22000, as CSV rows."""
    draw = np.random.default_rng(seed)
    price = 22000.0
    for number in range(bars):
        close = price * float(np.exp(draw.normal(0.0, 0.0008)))
        high = max(price, close) * (1 + abs(float(draw.normal(0.0, 0.0003))))
        low = min(price, close) * (1 - abs(float(draw.normal(0.0, 0.0003))))
        prices = ",".join(f"{value:.2f}" for value in (price, high, low, close))
        yield f"{FIRST_BAR_S + 60 * number},{prices},0"
        price = close


def write_candles(path: Path, bars: int) -> Path:
    """Write a file of one-minute candles from the open of a trading day on."""
    path.write_text("\n".join([HEADER, *candle_rows(bars)]) + "\n")
    return path


def decision_ids(bars: int) -> list[str]:
    """Return the ids of the decisions on `write_candles(bars)`, in order."""
    ends_s = [FIRST_BAR_S + 60 * number for number in range(1, bars + 1)]
    return [f"{INSTRUMENT}@{end_s * 1_000_000_000}" for end_s in ends_s]
