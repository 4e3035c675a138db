"""Housekeeping: the server comes back, streams stay short, and a stop file reaches everyone."""

# ruff: noqa: ASYNC110 - what is waited for is a state, which has no event

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from builders import a_tick
from unreliable_bus import UnreliableBus

from actors.messages import KillSwitch, Tick
from daemon import housekeeping as housekeeping_module
from daemon.announcer import Announcer
from daemon.errors import BusError, ConfigError
from daemon.housekeeping import Housekeeping
from daemon.kill_switch import KillSwitchLatch

WAIT_S = 20.0


class Server:
    """A message server that can be started, or not."""

    def __init__(self, bus: UnreliableBus, error: Exception | None = None) -> None:
        self._bus = bus
        self.error = error
        self.starts = 0

    async def start(self) -> str:
        self.starts += 1
        if self.error:
            raise self.error
        self._bus.is_lost = False
        return "unix:///r.sock"


@pytest.fixture(autouse=True)
def swift_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping_module, "_LOOK_S", 0.003)
    monkeypatch.setattr(housekeeping_module, "_TRIM_EVERY", 3)


@pytest.fixture
def bus() -> UnreliableBus:
    return UnreliableBus()


@pytest.fixture
async def latch(tmp_path: Path) -> KillSwitchLatch:
    latch = KillSwitchLatch(tmp_path, "paper:v1", time.time_ns)
    await latch.release("a test", "anna")
    return latch


@asynccontextmanager
async def keeping(
    bus: UnreliableBus, latch: KillSwitchLatch, server: Server | None = None, retain: int = 1000
) -> AsyncIterator[Housekeeping]:
    announcer = Announcer(bus, "supervisor", [KillSwitch.stream])
    housekeeping = Housekeeping(bus, server or Server(bus), latch, announcer.publish, retain)
    task = asyncio.create_task(housekeeping.run())
    try:
        yield housekeeping
    finally:
        housekeeping.stop()
        await asyncio.wait_for(task, WAIT_S)
        await announcer.close()


async def until(is_done: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_done():
            await asyncio.sleep(0.002)


def announced(bus: UnreliableBus) -> list[tuple[bool, str]]:
    found: list[Any] = [e.envelope.message for e in bus.stream(KillSwitch.stream).entries]
    return [(switch.engaged, switch.reason) for switch in found]


async def test_what_the_stop_file_says_is_announced_once(
    bus: UnreliableBus, latch: KillSwitchLatch
) -> None:
    async with keeping(bus, latch):
        await until(lambda: bool(announced(bus)))
        await asyncio.sleep(0.02)

    assert announced(bus) == [(False, "a test")]


async def test_a_stop_file_written_by_another_process_reaches_the_actors(
    bus: UnreliableBus, latch: KillSwitchLatch, tmp_path: Path
) -> None:
    others = KillSwitchLatch(tmp_path, "paper:v1", time.time_ns)

    async with keeping(bus, latch):
        await until(lambda: len(announced(bus)) == 1)
        await others.engage("too many losses", "anna", flatten=True)
        await until(lambda: len(announced(bus)) == 2)

    [*_, entry] = bus.stream(KillSwitch.stream).entries
    state = others.state()
    assert entry.envelope.message == KillSwitch(
        engaged=True, reason="too many losses", operator="anna", at_ns=state.at, flatten=True
    )


async def test_a_stop_file_written_while_the_server_is_away_is_announced_later(
    bus: UnreliableBus, latch: KillSwitchLatch
) -> None:
    server = Server(bus, BusError("no binary"))

    async with keeping(bus, latch, server):
        await until(lambda: len(announced(bus)) == 1)
        bus.is_lost = True
        await latch.engage("while it was away", "anna")
        await until(lambda: server.starts >= 2)
        assert len(announced(bus)) == 1
        server.error = None
        await until(lambda: len(announced(bus)) == 2)

    assert announced(bus)[-1] == (True, "while it was away")


async def test_a_server_that_is_gone_is_noticed_at_the_next_look_and_started(
    bus: UnreliableBus, latch: KillSwitchLatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping_module, "_TRIM_EVERY", 10_000)
    server = Server(bus)

    async with keeping(bus, latch, server):
        await until(lambda: bool(announced(bus)))
        bus.is_lost = True
        await until(lambda: server.starts == 1)

    assert not bus.is_lost


@pytest.mark.parametrize("error", [BusError("no binary"), ConfigError("a stranger's")])
async def test_a_server_that_does_not_start_is_tried_again(
    bus: UnreliableBus, latch: KillSwitchLatch, error: Exception
) -> None:
    bus.is_lost = True
    server = Server(bus, error)

    async with keeping(bus, latch, server):
        await until(lambda: server.starts >= 3)


async def test_streams_are_trimmed_now_and_then(bus: UnreliableBus, latch: KillSwitchLatch) -> None:
    publisher = await bus.publisher("tick_source", [Tick.stream])
    await publisher.publish(*(a_tick(str(number)) for number in range(1, 11)))

    async with keeping(bus, latch, retain=4):
        await until(lambda: len(bus.stream(Tick.stream).entries) == 4)

    kept = [entry.envelope.message for entry in bus.stream(Tick.stream).entries]
    assert [tick.last_price for tick in kept if isinstance(tick, Tick)] == [7, 8, 9, 10]


async def test_stopping_does_not_wait_for_the_next_look(
    bus: UnreliableBus, latch: KillSwitchLatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping_module, "_LOOK_S", 3600)

    async with keeping(bus, latch):
        await until(lambda: bool(announced(bus)))

    assert announced(bus) == [(False, "a test")]
