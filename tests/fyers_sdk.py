"""The official SDK in a process of its own, as tests hold it. See fyers_sdk_child.py."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from daemon.brokers.fyers_simulator import FyersSimulator

Event = dict[str, Any]
CHILD = Path(__file__).with_name("fyers_sdk_child.py")
PATIENCE_S = 60.0


class Sdk:
    """Commands to the SDK's process and the events that come back, in order."""

    def __init__(self, process: asyncio.subprocess.Process, simulator: FyersSimulator) -> None:
        self.events: list[Event] = []
        self.printed: list[str] = []
        self.has_ended = False
        self._process = process
        self._simulator = simulator
        self._news = asyncio.Condition()
        self._answered = 0

    async def settle(self, reached: Callable[[], bool]) -> None:
        """Wait until something is so on the simulator's side."""
        async with asyncio.timeout(PATIENCE_S):
            while not reached():  # noqa: ASYNC110  the simulator counts, but tells nobody
                await asyncio.sleep(0.02)

    @property
    def app_and_token(self) -> str:
        """A good `app_id:token`."""
        return f"{self._simulator.account.app_id}:{self._simulator.token()}"

    async def make(self, name: str, **values: Any) -> None:
        """Construct one of the SDK's objects."""
        await self._command(make=name, values=values)

    async def call(self, name: str, method: str, *arguments: Any, **values: Any) -> Any:
        """Call a method of an object and return its result."""
        return await self._command(call=name, method=method, arguments=arguments, values=values)

    async def set(self, name: str, **values: Any) -> None:
        """Set attributes of an object."""
        await self._command(set=name, values=values)

    async def wait_for(
        self, is_wanted: Callable[[Event], bool], *, timeout_s: float = PATIENCE_S
    ) -> Event:
        """Return the first event that fits, past or to come; TimeoutError when none does."""
        seen = 0
        async with asyncio.timeout(timeout_s), self._news:
            while True:
                for event in self.events[seen:]:
                    if is_wanted(event):
                        return event
                seen = len(self.events)
                await self._news.wait()

    async def wait_for_text(self, text: str, *, timeout_s: float = PATIENCE_S) -> None:
        """Wait until the SDK has printed a text."""
        async with asyncio.timeout(timeout_s), self._news:
            await self._news.wait_for(lambda: any(text in line for line in self.printed))

    def of(self, event: str) -> list[Any]:
        """Return the values of all events of a kind so far."""
        return [seen["value"] for seen in self.events if seen["event"] == event]

    async def read(self) -> None:
        """Take in what the process writes until it ends."""
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            text = line.decode()
            async with self._news:
                if text.startswith('{"event"'):
                    self.events.append(json.loads(text))
                else:
                    self.printed.append(text)
                self._news.notify_all()

    async def _command(self, **command: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        await self._process.stdin.drain()
        position = self._answered
        answers = ("made", "result", "raised")
        async with asyncio.timeout(PATIENCE_S), self._news:
            while True:
                found = [event for event in self.events if event["event"] in answers]
                if len(found) > position:
                    break
                await self._news.wait()
        self._answered += 1
        answer = found[position]
        if answer["event"] == "raised":
            raise RuntimeError(answer["value"])
        return answer["value"]


@asynccontextmanager
async def sdk_process(
    simulator: FyersSimulator, folder: Path, *, speed: float = 1.0
) -> AsyncIterator[Sdk]:
    """Run the SDK against a simulator; its log files go to `folder`."""
    names = ("api", "data", "public", "data_socket", "order_socket")
    urls = {name: getattr(simulator.urls, name) for name in names}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "ignore", str(CHILD), json.dumps(urls), str(speed),
        cwd=folder, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    sdk = Sdk(process, simulator)
    reader = asyncio.create_task(sdk.read())
    try:
        await sdk.wait_for(lambda event: event["event"] == "ready")
        yield sdk
    finally:
        process.kill()
        await process.wait()
        await reader


def is_tick(symbol: str, kind: str, **fields: Any) -> Callable[[Event], bool]:
    """Return a test for a tick of the data socket with these fields; kind is sf, if or dp."""
    wanted = {"symbol": symbol, "type": kind, **fields}

    def fits(event: Event) -> bool:
        if event["event"] != "message":
            return False
        return all(event["value"].get(name) == value for name, value in wanted.items())

    return fits


def says(text: str) -> Callable[[Event], bool]:
    """Return a test for an answer of the data socket with this text."""
    return lambda event: event["event"] == "message" and event["value"].get("message") == text
