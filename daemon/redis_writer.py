"""Writing to a message server: transactions with a fence, and the publisher of an edge.

Opening a writer fences out whoever wrote under the same name before, so that a process thought dead
cannot add half of what its successor adds.
"""

import re
from collections.abc import Sequence
from typing import Any, Self

import msgspec

from actors.messages import AnyMessage
from daemon.bus import id_key
from daemon.delivery import OutputLedger, Planned, id_text
from daemon.errors import BusError
from daemon.redis_link import Command, RedisLink, accepted
from daemon.redis_wire import FIELD, Keys, blob_of, decode_envelope, encode


class FencedWriter:
    """Sends transactions that take effect only while their owner is the latest to have opened."""

    def __init__(self, link: RedisLink, keys: Keys, fence: str | None) -> None:
        self._link = link
        self._keys = keys
        self._fence = fence
        self._token: bytes | None = None
        self._seen_token: bytes | None = None  # the fence as it was when last watched

    @classmethod
    async def open(cls, link: RedisLink, keys: Keys, owner: str | None, name: str = "") -> Self:
        """Take over from whoever wrote as `owner`; None: anyone may write beside us.

        `name` is the connection name under which a predecessor's connections are cut off.
        """
        writer = cls(link, keys, keys.fence(owner) if owner else None)
        if writer._fence is None:
            return writer
        token = await link.call("INCR", writer._fence)
        writer._token = writer._seen_token = str(token).encode()
        replies = await link.exchange([("WATCH", writer._fence), ("GET", writer._fence)])
        writer.check(accepted(replies[1]))
        # From here on the predecessor can commit nothing; its blocked read must end as well, or it
        # would still take entries that nobody then handles.
        await _cut_off(link, name)
        return writer

    @property
    def fence(self) -> str:
        """Key that tells who opened last; only where the writer has one."""
        return self._fence or ""

    def check(self, token: bytes | None) -> None:
        """Raise BusError unless `token`, just read from the fence, is ours."""
        if token != self._token:
            raise BusError(
                f"another process has opened {self._fence!r} since: this one may not write any more"
            )

    async def recover(self, ledger: OutputLedger, streams: Sequence[str]) -> None:
        """Let the ledger go on after the newest entry of each stream."""
        keys = [self._keys.stream(stream) for stream in streams]
        replies = await self._link.exchange(
            [("XREVRANGE", key, "+", "-", "COUNT", 1) for key in keys]
        )
        for stream, reply in zip(streams, replies, strict=True):
            for raw_id, fields in accepted(reply):
                try:
                    sequence = decode_envelope(blob_of(fields)).sequence
                except (msgspec.DecodeError, UnicodeDecodeError):
                    sequence = 0  # not written by us; readers take a number that falls as a restart
                ledger.recover(stream, id_key(raw_id.decode()), sequence)

    def publications(self, planned: Sequence[Planned]) -> list[Command]:
        """Return the commands that publish: first one per message, in order."""
        commands: list[Command] = []
        latest: dict[str, dict[str, bytes]] = {}
        for stream, key, envelope in planned:
            blob = encode(envelope)
            entry_id = "*" if key is None else id_text(key)
            commands.append(("XADD", self._keys.stream(stream), entry_id, FIELD, blob))
            field = envelope.message.latest_by
            if field is not None:
                latest.setdefault(stream, {})[getattr(envelope.message, field)] = blob
        for stream, values in latest.items():
            pairs = [part for pair in values.items() for part in pair]
            commands.append(("HSET", self._keys.latest(stream), *pairs))
        return commands

    async def transact(self, commands: Sequence[Command]) -> list[Any]:
        """Run the commands together and return their replies; all or nothing.

        After a BusError the writer is of no more use; whether the commands took effect is then
        unknown, unless the error says that another has taken over.
        """
        watch: list[Command] = []
        if self._fence is not None:
            if self._seen_token != self._token:
                await self._link.drop()
            self.check(self._seen_token)
            # Watched anew for the next transaction, then read: what happened before is seen here.
            watch = [("WATCH", self._fence), ("GET", self._fence)]
        replies = await self._link.exchange([("MULTI",), *commands, ("EXEC",), *watch])
        try:
            return self._results(replies, len(commands))
        except BusError:
            await self._link.drop()
            raise

    def _results(self, replies: Sequence[Any], commands: int) -> list[Any]:
        for reply in replies[: commands + 1]:
            accepted(reply)
        results: list[Any] | None = accepted(replies[commands + 1])
        if results is None:  # the watched fence has changed: nothing was done
            self.check(None)
            raise BusError("the message server dropped a transaction that nothing had fenced")
        for result in results:
            accepted(result)
        if self._fence is not None:
            self._seen_token = accepted(replies[-1])
        return results

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()


class RedisPublisher:
    """An edge writer over one connection."""

    def __init__(self, writer: FencedWriter, ledger: OutputLedger) -> None:
        self._writer = writer
        self._ledger = ledger

    @property
    def sequence(self) -> int:
        """How many messages this source has published to its streams since the session began.

        After a BusError a new publisher's number tells whether the last messages got in. Of shared
        streams it counts only what this publisher wrote.
        """
        return self._ledger.published

    async def publish(self, *messages: AnyMessage) -> list[str]:
        """Publish in order, together; returns their ids."""
        if not messages:
            return []
        planned = self._ledger.plan_edge(messages)
        results = await self._writer.transact(self._writer.publications(planned))
        self._ledger.accept()
        return [raw_id.decode() for raw_id in results[: len(planned)]]

    async def close(self) -> None:
        """Close the connection."""
        await self._writer.close()


async def _cut_off(link: RedisLink, name: str) -> None:
    """Close the connections of earlier owners, which the server lists under the same name."""
    replies = await link.exchange([("CLIENT", "ID"), ("CLIENT", "LIST")])
    own = accepted(replies[0])
    found = re.findall(r"^id=(\d+) .*? name=(\S*) ", accepted(replies[1]).decode(), re.MULTILINE)
    for client_id, client_name in found:
        if client_name == name and int(client_id) != own:
            await link.exchange([("CLIENT", "KILL", "ID", client_id)])
