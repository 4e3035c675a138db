"""Back-tests as jobs: each in a worker process, a few at a time, frames kept for who comes late.

A frame is sent at the pace of the contract; the worker waits meanwhile, since its pipe is full.
"""

import asyncio
import json
import sys
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from backend.hub import as_text
from daemon.backend_settings import BackendSettings
from daemon.logs import get_logger

_KEPT: Final = 20
_CHART_EVERY: Final = 50  # bars
_PROGRESS_REPORTS: Final = 20
_LONGEST_LINE: Final = 64 * 1024 * 1024  # the results hold every bar's value
_KILL_WAIT_S: Final = 5.0


class TooManyJobs(Exception):
    """No further back-test is taken now; the text says why."""


class JobFailed(Exception):
    """A back-test came to no result; the text is for its user."""


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What is to be tested."""

    user_id: str
    instrument: str  # as the user wrote it
    symbol: str | None  # None: unknown
    timeframe: str
    days: int
    capital: float
    path: Path | None  # of the candles; None: there are none


@dataclass
class Job:
    """One back-test, from its request to its last frame."""

    id: str
    request: JobRequest
    frames: list[str] = field(default_factory=list)
    is_over: bool = False
    task: asyncio.Task[None] | None = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def say(self, body: dict[str, Any]) -> None:
        """Add a frame; every socket of the job gets it."""
        self.frames.append(as_text(body))
        self._tell()

    def end(self) -> None:
        """Say that no frame follows."""
        self.is_over = True
        self._tell()

    async def more_than(self, count: int) -> None:
        """Return when there are more frames than that, or none will follow."""
        while len(self.frames) <= count and not self.is_over:
            await self._news.wait()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()


class BacktestJobs:
    """Run back-tests, a few at a time. Use from one event loop."""

    def __init__(
        self, wall_ns: Callable[[], int], config: Path | None, settings: BackendSettings
    ) -> None:
        self._wall_ns = wall_ns
        self._config = config
        self._pace_s = settings.backtest_pace_seconds
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._places = asyncio.Semaphore(settings.backtests_running)
        self._most = settings.backtests_running + settings.backtests_waiting
        self._log = get_logger(part="backtests")

    def start(self, request: JobRequest) -> Job:
        """Take a back-test; raises TooManyJobs where there is no room."""
        unfinished = sum(1 for job in self._jobs.values() if not job.is_over)
        if unfinished >= self._most:
            raise TooManyJobs(f"{unfinished} back-tests are under way, at most {self._most}: wait")
        job_id = f"{request.user_id}_{self._wall_ns() / 1e9:.6f}"
        job = Job(job_id, request)
        self._jobs[job_id] = job
        for old in [key for key, kept in self._jobs.items() if kept.is_over][:-_KEPT]:
            del self._jobs[old]
        job.task = asyncio.create_task(self._run(job), name=job_id)
        return job

    def find(self, job_id: str, user_id: str) -> Job | None:
        """Return a user's own job; None for an unknown one and for anybody else's."""
        job = self._jobs.get(job_id)
        return job if job is not None and job.request.user_id == user_id else None

    async def cancel(self, job: Job) -> None:
        """End a job; its sockets hear of it."""
        if job.task is not None:
            job.task.cancel()
            await asyncio.gather(job.task, return_exceptions=True)

    async def close(self) -> None:
        """End all jobs."""
        for job in tuple(self._jobs.values()):
            await self.cancel(job)

    async def _run(self, job: Job) -> None:
        try:
            await asyncio.sleep(20 * self._pace_s)  # the client needs time to open its socket
            job.say({"type": "started", "message": "Backtest started"})
            async with self._places:
                await self._serve(job)
        except JobFailed as error:
            job.say({"type": "error", "message": f"Backtest failed: {error}"})
        except asyncio.CancelledError:
            job.say({"type": "error", "message": "Backtest failed: cancelled"})
            raise
        except (OSError, ValueError, KeyError) as error:  # what the worker may do to its pipe
            job.say({"type": "error", "message": f"Backtest failed: {type(error).__name__}"})
            self._log.exception("back-test broke", job=job.id)
        finally:
            job.end()

    async def _serve(self, job: Job) -> None:
        request = job.request
        await self._stage(job, 10, "Loading data", "loading_data")
        if request.symbol is None:
            raise JobFailed(f"No trading symbol found for instrument: {request.instrument}")
        if request.path is None:
            raise JobFailed(
                f"no candles of {request.symbol} on bars of {request.timeframe!r}: put "
                f"{request.symbol}_{request.timeframe}.csv into the folder of raw data"
            )
        await self._stage(job, 30, "Processing data", "processing_data")
        worker = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "backend.backtest_worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            start_new_session=True,
        )  # fmt: skip
        try:
            await self._follow(job, worker)
        finally:
            if worker.returncode is None:
                with suppress(ProcessLookupError):
                    worker.kill()
            async with asyncio.timeout(_KILL_WAIT_S):
                await worker.wait()

    async def _follow(self, job: Job, worker: asyncio.subprocess.Process) -> None:
        if worker.stdin is None or worker.stdout is None:
            raise JobFailed("the worker has no pipes")
        request = job.request
        order = {
            "path": str(request.path),
            "instrument": request.symbol,
            "timeframe": request.timeframe,
            "days": request.days,
            "capital": request.capital,
            "config": str(self._config) if self._config else "",
        }
        worker.stdin.write((json.dumps(order) + "\n").encode())
        await worker.stdin.drain()
        while line := await worker.stdout.readline():
            said = json.loads(line)
            match said["kind"]:
                case "loaded":
                    await self._loaded(job, said["total"])
                case "bar":
                    await self._bar(job, said)
                case "result":
                    job.say(
                        {
                            "type": "completed",
                            "results": said["results"],
                            "message": "Backtest completed successfully",
                        }
                    )
                    return
                case _:
                    raise JobFailed(said["text"])
        raise JobFailed(f"the worker process ended early, code {await worker.wait()}")

    async def _loaded(self, job: Job, total: int) -> None:
        job.say(
            {"type": "data_loaded", "total_points": total, "message": "Data processing complete"}
        )
        await self._stage(job, 40, "Starting backtest", "starting_backtest")
        await self._stage(job, 50, "Running backtest", "running_backtest")

    async def _stage(self, job: Job, progress: int, message: str, step: str) -> None:
        job.say({"type": "progress", "progress": progress, "message": message, "step": step})
        await asyncio.sleep(5 * self._pace_s)

    async def _bar(self, job: Job, said: dict[str, Any]) -> None:
        number, total = said["number"], said["total"]
        progress = 100 * number // total
        value = said["portfolio_value"]
        if number % max(1, total // _PROGRESS_REPORTS) == 0:
            text = f"Processing {number}/{total} data points"
            job.say({"type": "progress", "progress": progress, "message": text})
        job.say(
            {
                "type": "candle_update",
                "candle": said["candle"],
                "action": said["action"],
                "portfolio_value": value,
                "current_step": number,
                "total_steps": total,
                "progress": progress,
            }
        )
        if number % _CHART_EVERY == 0:
            # Points that candle_update has brought already would run backwards in the chart.
            price = said["candle"]["close"]
            job.say(
                {
                    "type": "chart_update",
                    "data": [],
                    "current_price": price,
                    "portfolio_value": value,
                }
            )
        if self._pace_s:
            await asyncio.sleep(self._pace_s)
