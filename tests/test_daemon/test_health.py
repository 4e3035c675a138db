"""What the service manager hears, on a socket as systemd gives one."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from daemon.errors import BusError
from daemon.health import ServiceManager

WAIT_S = 20.0


@pytest.fixture
def ear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Return the socket that a service manager listens at, with a watchdog of 30 ms."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", "30000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield listener


@pytest.fixture
def manager(ear: socket.socket) -> Iterator[ServiceManager]:
    manager = ServiceManager()
    yield manager
    manager._watchdog._socket.close()


def heard(ear: socket.socket) -> list[str]:
    words = []
    with suppress(BlockingIOError):
        while True:
            words.append(ear.recv(1024).decode().strip())
    return words


async def keep_alive_for(manager: ServiceManager, *answers: bool | Exception) -> float:
    """Let the watchdog be fed for so many answers; return the time from the first to the last."""
    remaining = list(answers)
    asked_s: list[float] = []
    is_over = asyncio.Event()

    async def is_healthy() -> bool:
        if not remaining:
            is_over.set()
            await asyncio.Event().wait()
        asked_s.append(time.monotonic())
        answer = remaining.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    feeding = asyncio.create_task(manager.keep_alive(is_healthy))
    async with asyncio.timeout(WAIT_S):
        await is_over.wait()
    feeding.cancel()
    await asyncio.wait({feeding})
    return asked_s[-1] - asked_s[0]


def test_a_session_that_stands_is_ready_under_its_name(
    manager: ServiceManager, ear: socket.socket
) -> None:
    manager.ready("20240318T034500Z-paper-1a2b")

    assert heard(ear) == ["READY=1", "STATUS=20240318T034500Z-paper-1a2b"]


def test_stopping_is_said(manager: ServiceManager, ear: socket.socket) -> None:
    manager.stopping()

    assert heard(ear) == ["STATUS=stopping"]


async def test_the_watchdog_is_fed_three_times_in_its_time(
    manager: ServiceManager, ear: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits_s: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        waits_s.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr("daemon.health.asyncio.sleep", noted)
    took_s = await keep_alive_for(manager, True, True, True, True)

    assert heard(ear) == ["WATCHDOG=1"] * 4
    assert waits_s == [pytest.approx(0.01)] * 4
    assert took_s >= 0.03


async def test_the_watchdog_of_an_unhealthy_session_is_not_fed(
    manager: ServiceManager, ear: socket.socket
) -> None:
    await keep_alive_for(manager, True, False, False)

    assert heard(ear) == ["WATCHDOG=1"]


async def test_a_session_that_recovers_is_fed_again(
    manager: ServiceManager, ear: socket.socket
) -> None:
    await keep_alive_for(manager, False, True)

    assert heard(ear) == ["WATCHDOG=1"]


async def test_a_service_manager_that_does_not_listen_holds_nothing_up(
    manager: ServiceManager, ear: socket.socket
) -> None:
    manager.ready("session")
    for _ in range(1000):  # more than any queue of such a socket holds
        manager.stopping()

    await keep_alive_for(manager, True, True)

    assert heard(ear)[:2] == ["READY=1", "STATUS=session"]


async def test_a_lost_message_server_is_not_held_against_the_session(
    manager: ServiceManager, ear: socket.socket
) -> None:
    await keep_alive_for(manager, BusError("gone"))

    assert heard(ear) == ["WATCHDOG=1"]


async def test_without_a_service_manager_nothing_is_sent_and_nothing_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    manager = ServiceManager()

    async def is_healthy() -> bool:
        raise AssertionError("nobody asks")

    manager.ready("session")
    async with asyncio.timeout(WAIT_S):
        await manager.keep_alive(is_healthy)
    manager._watchdog._socket.close()
