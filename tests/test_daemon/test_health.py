"""What the service manager hears, on a socket as systemd gives one."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from daemon.errors import BusError
from daemon.health import ServiceManager


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


async def keep_alive_for(
    manager: ServiceManager, seconds: float, *answers: bool | Exception
) -> None:
    """Feed the watchdog while the answers last, the last of them for ever."""
    remaining = list(answers)

    async def is_healthy() -> bool:
        answer = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    with suppress(TimeoutError):
        await asyncio.wait_for(manager.keep_alive(is_healthy), seconds)


def test_a_session_that_stands_is_ready_under_its_name(
    manager: ServiceManager, ear: socket.socket
) -> None:
    manager.ready("20240318T034500Z-paper-1a2b")

    assert heard(ear) == ["READY=1", "STATUS=20240318T034500Z-paper-1a2b"]


def test_stopping_is_said(manager: ServiceManager, ear: socket.socket) -> None:
    manager.stopping()

    assert heard(ear) == ["STATUS=stopping"]


async def test_the_watchdog_is_fed_three_times_in_its_time(
    manager: ServiceManager, ear: socket.socket
) -> None:
    await keep_alive_for(manager, 0.1, True)

    words = heard(ear)
    assert set(words) == {"WATCHDOG=1"}
    assert 3 <= len(words) <= 11


async def test_the_watchdog_of_an_unhealthy_session_is_not_fed(
    manager: ServiceManager, ear: socket.socket
) -> None:
    await keep_alive_for(manager, 0.05, True, False)

    assert heard(ear) == ["WATCHDOG=1"]


async def test_a_session_that_recovers_is_fed_again(
    manager: ServiceManager, ear: socket.socket
) -> None:
    await keep_alive_for(manager, 0.1, False, True)

    assert heard(ear)


async def test_a_service_manager_that_does_not_listen_holds_nothing_up(
    manager: ServiceManager, ear: socket.socket
) -> None:
    manager.ready("session")
    for _ in range(1000):  # more than any queue of such a socket holds
        manager.stopping()

    await asyncio.wait_for(keep_alive_for(manager, 0.05, True), 5.0)

    assert heard(ear)[:2] == ["READY=1", "STATUS=session"]


async def test_a_lost_message_server_is_not_held_against_the_session(
    manager: ServiceManager, ear: socket.socket
) -> None:
    await keep_alive_for(manager, 0.05, BusError("gone"))

    assert heard(ear)


async def test_without_a_service_manager_nothing_is_sent_and_nothing_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    manager = ServiceManager()

    async def is_healthy() -> bool:
        raise AssertionError("nobody asks")

    manager.ready("session")
    await asyncio.wait_for(manager.keep_alive(is_healthy), 1.0)
    manager._watchdog._socket.close()
