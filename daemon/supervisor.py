"""Keep the parts of the daemon running: one task each, restart with backoff, orderly stop.

What a crash of a part means beyond its restart (a halt, an alert) is the caller's to say.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol, Self, TextIO

from daemon.errors import PartCrashed
from daemon.logs import get_logger

_BACKOFF_FIRST_S = 0.1
_BACKOFF_LONGEST_S = 10.0
_STABLE_AFTER_S = 30.0
_STOP_WAIT_S = 10.0


class Part(Protocol):
    """Something that runs until it is told to stop."""

    name: str

    async def run(self) -> None:
        """Serve until `stop`; raising or returning earlier is a crash."""
        ...

    def stop(self) -> None:
        """Ask `run` to return soon."""
        ...


class ActorProcess:
    """One actor in a process of its own; `command` should end when it gets SIGTERM.

    One that does not end within `stop_wait_s` of a SIGTERM is killed when `run` is cancelled.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log_file: TextIO | None = None,
        *,
        stop_wait_s: float = _STOP_WAIT_S,
    ) -> None:
        self.name = name
        self._log_file = log_file  # where its stderr goes; None: to ours
        self._command = tuple(command)
        self._stop_wait_s = stop_wait_s
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._ended_because = ""
        self.starts = 0

    @property
    def pid(self) -> int | None:
        """Process id while the process runs."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def run(self) -> None:
        """Start the process and wait for its end; raises PartCrashed when it was not asked to."""
        self.starts += 1
        self._ended_because = ""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *self._command,
            "--restarts",
            str(self.starts - 1),
            stdin=asyncio.subprocess.DEVNULL,
            stderr=self._log_file,
            # Ctrl-C in the daemon's terminal is for the daemon, which stops its parts in order.
            start_new_session=True,
        )
        if self._stopping:
            self._terminate()  # `stop` came while the process was being made
        try:
            code = await self._process.wait()
        except asyncio.CancelledError:
            await self._end(self._process)
            raise
        if not self._stopping:
            because = self._ended_because and f": {self._ended_because}"
            raise PartCrashed(f"process {self.name} ended with code {code}{because}")

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if not self._stopping:  # else it was asked before, and did not end in time
            self._terminate()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._stop_wait_s):
                    await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()

    def end(self, reason: str) -> None:
        """Kill the process, which does not do its work any more; `run` raises with the reason."""
        if self._process and self._process.returncode is None:
            self._ended_because = reason
            self._process.kill()

    def stop(self) -> None:
        """Send SIGTERM; `run` returns when the process is gone."""
        self._stopping = True
        self._terminate()

    def _terminate(self) -> None:
        if self._process and self._process.returncode is None:
            self._process.terminate()


class Supervisor:
    """Run parts for as long as its context is open; restart each that crashes.

    `on_crash` hears the name and the reason of every crash before the restart.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        on_crash: Callable[[str, str], Awaitable[None]],
        *,
        monotonic_s: Callable[[], float],
        stop_wait_s: float = _STOP_WAIT_S,
    ) -> None:
        self._stop_wait_s = stop_wait_s
        self._parts = tuple(parts)
        self._on_crash = on_crash
        self._monotonic_s = monotonic_s
        self._stopping = asyncio.Event()
        self._keepers: list[asyncio.Task[None]] = []
        self.restarts: dict[str, int] = {part.name: 0 for part in parts}

    async def __aenter__(self) -> Self:
        self._keepers = [
            asyncio.create_task(self._keep(part), name=part.name) for part in self._parts
        ]
        return self

    async def __aexit__(self, *_exception: object) -> None:
        """Stop the parts in the order they were given; cancel what does not end in time."""
        self._stopping.set()
        for part in self._parts:
            part.stop()
        _, late = await asyncio.wait(set(self._keepers), timeout=self._stop_wait_s)
        for keeper in late:
            get_logger().error("part does not stop", part=keeper.get_name())
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    async def _keep(self, part: Part) -> None:
        log = get_logger(part=part.name)
        backoff_s = _BACKOFF_FIRST_S
        while not self._stopping.is_set():
            began_s = self._monotonic_s()
            try:
                await part.run()
                reason = "it ended by itself"
            except Exception as error:  # noqa: BLE001 - whatever it was, the part must come back
                reason = _reason(error)
            if self._stopping.is_set():
                return
            if self._monotonic_s() - began_s > _STABLE_AFTER_S:
                backoff_s = _BACKOFF_FIRST_S
            self.restarts[part.name] += 1
            log.error("part crashed", reason=reason, restart_in_s=backoff_s)
            try:
                await self._on_crash(part.name, reason)
            except Exception:
                log.exception("crash not told")  # whoever listens, the part must come back
            try:
                async with asyncio.timeout(backoff_s):
                    await self._stopping.wait()
            except TimeoutError:
                backoff_s = min(backoff_s * 2, _BACKOFF_LONGEST_S)


def _reason(error: BaseException) -> str:
    """Say what went wrong; of a group, which says nothing itself, each error in it."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(map(_reason, error.exceptions))
    return f"{type(error).__name__}: {error}"
