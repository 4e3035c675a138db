"""One connection to the message server, driven directly: pack, send, read as many replies.

No retries, no pool, no reconnect: after any error, timeout or cancellation the connection is gone
and everything raises BusError, since a reply that comes late would answer the wrong question. What
the commands mean is for redis_bus.py to say.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import hiredis
from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, OutOfMemoryError, RedisError, ResponseError

from daemon.errors import BusError, ConfigError

OLDEST_SERVER = (7, 0)
CONNECT_TIMEOUT_S = 2.0
REPLY_TIMEOUT_S = 5.0
"""How long a command that does not block may take: a disk that stalls takes seconds."""

Command = tuple[str | bytes | int, ...]

# The stub of hiredis takes tuples of one element only; the function takes any.
_pack: Callable[[Command], bytes] = hiredis.pack_command  # type: ignore[assignment]


class RedisLink:
    """One connection; use from one task at a time."""

    def __init__(self, connection: AbstractConnection, server: str) -> None:
        self._connection: AbstractConnection | None = connection
        self._server = server

    @classmethod
    async def open(cls, url: str, name: str = "") -> "RedisLink":
        """Connect; `name` is what the server lists this connection under."""
        connection, server = _connection_for(url)
        link = cls(connection, server)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py's own gap
        except (RedisError, OSError) as error:
            await connection.disconnect(nowait=True)
            raise BusError(f"cannot reach the message server at {server}: {error}") from error
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        if name:
            await link.call("CLIENT", "SETNAME", "".join(name.split()))
        return link

    @property
    def is_open(self) -> bool:
        """Whether commands can still be sent."""
        return self._connection is not None

    async def exchange(
        self, commands: Sequence[Command], timeout_s: float = REPLY_TIMEOUT_S
    ) -> list[Any]:
        """Send the commands together and return their replies; a refusal is a reply too."""
        connection = self._connection
        if connection is None:
            raise BusError(f"the connection to the message server at {self._server} is closed")
        replies: list[Any] = []
        try:
            # One deadline for the whole exchange: it is cheaper than one per reply, and a large
            # answer that keeps coming in must not outlive it either.
            async with asyncio.timeout(timeout_s):
                packed = b"".join(map(_pack, commands))
                await connection.send_packed_command(packed, check_health=False)
                for _ in commands:
                    try:
                        replies.append(await connection.read_response())
                    except ResponseError as refusal:
                        replies.append(refusal)
        except TimeoutError as error:
            await self.drop()
            raise BusError(
                f"the message server at {self._server} did not answer within {timeout_s:g} s"
            ) from error
        except (RedisError, OSError) as error:
            await self.drop()
            raise BusError(f"lost the message server at {self._server}: {error}") from error
        except BaseException:
            await self.drop()
            raise
        return replies

    async def call(self, *command: str | bytes | int, timeout_s: float = REPLY_TIMEOUT_S) -> Any:
        """Send one command and return its reply; raises BusError where the server refuses."""
        return accepted((await self.exchange([command], timeout_s))[0])

    async def drop(self) -> None:
        """Close without waiting, since what is on its way may belong to a broken exchange."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """Close the connection; harmless when it is gone."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(RedisError, OSError):
                await connection.disconnect()

    async def check_server(self) -> None:
        """Refuse a server that is too old, still loading, or free to throw entries away."""
        replies = await self.exchange(
            [("INFO", "server"), ("CONFIG", "GET", "maxmemory-policy"), ("INFO", "memory")]
        )
        facts = info_fields(accepted(replies[0]))
        version = facts.get("valkey_version") or facts.get("redis_version", "0.0")
        if version_of(version) < OLDEST_SERVER:
            raise BusError(
                f"the message server at {self._server} has version {version}: use Redis or Valkey "
                f"{'.'.join(map(str, OLDEST_SERVER))} or later"
            )
        # A managed server may refuse CONFIG; INFO tells the same where it is allowed.
        policy = info_fields(accepted(replies[2])).get("maxmemory_policy", "noeviction")
        if not isinstance(replies[1], ResponseError) and replies[1]:
            policy = replies[1][1].decode()
        if policy != "noeviction":
            raise BusError(
                f"the message server at {self._server} has maxmemory-policy {policy} and may throw "
                "unread messages away: set it to noeviction"
            )


def accepted(reply: Any) -> Any:
    """Return the reply, or raise BusError where it is a refusal."""
    if not isinstance(reply, RedisError):
        return reply
    text = str(reply)
    if isinstance(reply, OutOfMemoryError) or text.startswith("OOM"):
        raise BusError(
            f"message server is full: {text}; raise its memory limit or retain fewer messages"
        )
    if text.startswith(("NOGROUP", "UNBLOCKED")):
        raise BusError(f"the message server lost this group, open it again: {text}")
    raise BusError(f"the message server refused: {text}")


def is_loading(error: BaseException | None) -> bool:
    """Tell whether an error came about because the server still loads its data."""
    while error is not None and not isinstance(error, BusyLoadingError):
        error = error.__cause__ or error.__context__
    return error is not None


def info_fields(reply: bytes) -> dict[str, str]:
    """Return the fields of an INFO reply."""
    lines = reply.decode().splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


def version_of(text: str) -> tuple[int, int]:
    """Return major and minor of a version text; (0, 0) where it is none."""
    major, _, rest = text.partition(".")
    minor = rest.partition(".")[0]
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else (0, 0)


def public_url(url: str) -> str:
    """Return the url without its password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return url.replace(f":{parts.password}@", ":***@", 1)


def check_url(url: str) -> None:
    """Raise ConfigError unless a link could be opened with this url."""
    _connection_for(url)


def _connection_for(url: str) -> tuple[AbstractConnection, str]:
    server = public_url(url)
    try:
        options: dict[str, Any] = dict(parse_url(url))
    except ValueError as error:
        raise ConfigError(
            f"bus url must be unix:///path or redis://host:port, was {server!r}: {error}"
        ) from error
    connection_class: type[AbstractConnection] = options.pop("connection_class", Connection)
    options.update(
        protocol=2,
        # The client would repeat a command whose reply was lost: a message published twice.
        retry=Retry(NoBackoff(), 0),
        # Deadlines are kept by `exchange`, over all replies of an exchange.
        socket_timeout=None,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
    )
    return connection_class(**options), server
