"""Kill latch: engaged or not, since when. When to engage it is for risk and the operator to say.

The latch has two sides: a stop file in the state folder, which works with everything else down and
survives restarts, and a key on the message server, which reaches every process. The newer word
counts; what is absent, unreadable or unreachable counts as engaged, but for a key never set.
"""

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import msgspec
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from actors.messages import KillSwitch
from daemon.errors import BusError

FILE_NAME = "kill_switch.json"
KEY_NAME = "kill"
UNTRUSTED = 0
"""Time of a word nobody gave: it engages, and no other side can outvote it."""
FIRST_START = "first start: review the settings, then `hrm-trader resume --reason ...`"


class Latch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The word of one side, as it is stored."""

    engaged: bool
    reason: str
    operator: str
    at: int  # real clock, nanoseconds UTC
    flatten: bool = False


class Step(NamedTuple):
    """What came of one step of engaging or releasing."""

    step: str
    ok: bool
    detail: str


class KillSwitchReader(Protocol):
    """All that an edge needs in order to obey the latch."""

    async def read(self) -> Latch:
        """Return what both sides together say; never raises."""
        ...


class LatchStore(Protocol):
    """The side of the latch that other processes see. Its methods raise BusError if it is gone."""

    async def get(self, key: str) -> bytes | None: ...

    async def set(self, key: str, value: bytes) -> None: ...


class RedisLatchStore:
    """Keep the latch as a plain key on the message server."""

    @classmethod
    def connect(cls, url: str) -> Self:
        """Return a store that connects when it is asked, and never asks twice."""
        retry = Retry(NoBackoff(), 0)
        return cls(
            redis.asyncio.Redis.from_url(
                url, protocol=2, retry=retry, socket_timeout=2.0, socket_connect_timeout=2.0
            )
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client

    async def get(self, key: str) -> bytes | None:
        try:
            value = await self._client.get(key)
        except (RedisError, OSError) as error:
            raise BusError(f"key {key} cannot be read: {error}") from error
        return value.encode() if isinstance(value, str) else value

    async def set(self, key: str, value: bytes) -> None:
        try:
            await self._client.set(key, value)
        except (RedisError, OSError) as error:
            raise BusError(f"key {key} cannot be written: {error}") from error


class KillSwitchLatch:
    """Engage, release and read the latch of one mode.

    Without a store only the file counts. `announce` puts the KillSwitch message on the bus, after
    the latch itself is set; it may raise BusError.
    """

    def __init__(
        self,
        state_dir: Path,
        prefix: str,
        clock_ns: Callable[[], int],
        store: LatchStore | None = None,
        announce: Callable[[KillSwitch], Awaitable[object]] | None = None,
        timeout_s: float = 2.0,
    ) -> None:
        self._path = state_dir / FILE_NAME
        self._key = f"{prefix}:{KEY_NAME}"
        self._clock_ns = clock_ns
        self._store = store
        self._announce = announce
        self._timeout_s = timeout_s
        self._seen: tuple[int, ...] | None = None  # what the file looked like when last read
        self._latch = _absent()

    @property
    def path(self) -> Path:
        """Where the stop file lies."""
        return self._path

    def is_engaged(self) -> bool:
        """Tell what the stop file says; takes microseconds. The key needs `read`."""
        return self.state().engaged

    def state(self) -> Latch:
        """Return what the stop file says, reading it only when it has changed."""
        try:
            stat = self._path.stat()
            seen = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_size)
            if seen != self._seen:
                self._latch = _decoded(self._path.read_bytes(), str(self._path))
                self._seen = seen
        except FileNotFoundError:
            self._seen, self._latch = None, _absent()
        except OSError as error:
            self._seen = None
            self._latch = _untrusted(f"stop file {self._path} cannot be read: {error}")
        return self._latch

    async def read(self) -> Latch:
        """Return what both sides together say: the newer word, and engaged when in doubt."""
        latch = self.state()
        if self._store is None or latch.at == UNTRUSTED:
            return latch
        try:
            async with asyncio.timeout(self._timeout_s):
                value = await self._store.get(self._key)
        except (BusError, TimeoutError) as error:
            detail = str(error) or f"no answer in {self._timeout_s:g} s"
            if latch.engaged:
                return latch
            return _untrusted(f"kill latch key is unreachable: {detail}")
        if value is None:
            return latch
        other = _decoded(value, f"key {self._key}")
        if other.at == UNTRUSTED:
            return other
        return max(latch, other, key=lambda word: (word.at, word.engaged))

    async def engage(self, reason: str, operator: str, flatten: bool = False) -> list[Step]:
        """Stop trading: file, then key, then message. A failed step never stops the next."""
        latch = self._next(engaged=True, reason=reason, operator=operator, flatten=flatten)
        return [
            await asyncio.to_thread(self._write_or_remove, latch),
            await self._set_key(latch),
            await self._tell(latch),
        ]

    async def release(self, reason: str, operator: str) -> list[Step]:
        """Allow trading again; the message goes out only after the file has changed."""
        if not reason.strip():
            raise ValueError("a release needs a reason: `hrm-trader resume --reason ...`")
        latch = self._next(engaged=False, reason=reason, operator=operator, flatten=False)
        try:
            await asyncio.to_thread(self._write, latch)
        except OSError as error:
            failed = Step("stop file", False, f"{self._path}: {error}; the latch stays engaged")
            return [failed]
        steps = [Step("stop file", True, str(self._path)), await self._set_key(latch)]
        steps.append(await self._tell(latch))
        return steps

    def _next(self, *, engaged: bool, reason: str, operator: str, flatten: bool) -> Latch:
        # A clock that was set back must not make this word older than the one before.
        at = max(self._clock_ns(), self.state().at + 1)
        return Latch(engaged=engaged, reason=reason, operator=operator, at=at, flatten=flatten)

    def _write_or_remove(self, latch: Latch) -> Step:
        try:
            self._write(latch)
        except OSError as error:
            # No file means engaged: where nothing can be written, removing still stops trading.
            try:
                self._path.unlink(missing_ok=True)
            except OSError as second:
                return Step("stop file", False, f"{self._path}: {error}; nor removed: {second}")
            return Step("stop file", True, f"removed, since it cannot be written: {error}")
        return Step("stop file", True, str(self._path))

    def _write(self, latch: Latch) -> None:
        folder = self._path.parent
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{FILE_NAME}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.encode(latch))
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self._path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    async def _set_key(self, latch: Latch) -> Step:
        if self._store is None:
            return Step("latch key", True, "none in this mode")
        try:
            value = msgspec.json.encode(latch)
            async with asyncio.timeout(self._timeout_s):
                await self._store.set(self._key, value)
        except (BusError, TimeoutError) as error:
            return Step("latch key", False, str(error) or f"no answer in {self._timeout_s:g} s")
        return Step("latch key", True, self._key)

    async def _tell(self, latch: Latch) -> Step:
        if self._announce is None:
            return Step("message", True, "none in this mode")
        message = KillSwitch(
            engaged=latch.engaged,
            reason=latch.reason,
            operator=latch.operator,
            at_ns=latch.at,
            flatten=latch.flatten,
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._announce(message)
        except (BusError, TimeoutError) as error:
            return Step("message", False, str(error) or f"no answer in {self._timeout_s:g} s")
        return Step("message", True, "KillSwitch published")


def _absent() -> Latch:
    return _untrusted(FIRST_START)


def _untrusted(reason: str) -> Latch:
    return Latch(engaged=True, reason=reason, operator="nobody", at=UNTRUSTED)


def _decoded(value: bytes, where: str) -> Latch:
    try:
        return msgspec.json.decode(value, type=Latch)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return _untrusted(f"{where} is damaged ({error}): engage and release it anew")
