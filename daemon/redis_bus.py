"""RedisBus: messages between processes, as streams and consumer groups of a Redis-like server.

Keys under the prefix (`paper:v1`): `{stream}` the entries, `{stream}:latest` the last message per
instrument or actor, `fold:{group}` what each commit acknowledged and in which order,
`mark:{group}` how far a group has come, `fence:{owner}` who may write, `dead` the dead letters.
Commands are those of Redis 7.0. Reading and committing is in redis_consumer.py.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from actors.messages import STREAMS
from daemon.bus import Entry, Envelope, Handled, id_key
from daemon.delivery import SHARED_STREAMS, DeadEntry, OutputLedger
from daemon.errors import BusError
from daemon.redis_consumer import RedisConsumer
from daemon.redis_link import Command, RedisLink, accepted, check_url
from daemon.redis_wire import (
    Group,
    Keys,
    decode_envelope,
    entries_of,
    fold_of,
    groups_of,
    pairs,
)
from daemon.redis_writer import FencedWriter, RedisPublisher

_SCAN_ENTRIES = 1000  # entries per reply when a whole stream is walked

# Drops from one stream what every group has acknowledged, at most ARGV[2] entries a call, and keeps
# the last ARGV[1]. A script, so that no group can appear between looking and dropping. Ids are
# compared as text: their halves exceed what Lua's numbers hold exactly.
_TRIM = """
local function below(a, b)
  local a_ms, a_seq = string.match(a, '(%d+)-(%d+)')
  local b_ms, b_seq = string.match(b, '(%d+)-(%d+)')
  if #a_ms ~= #b_ms then return #a_ms < #b_ms end
  if a_ms ~= b_ms then return a_ms < b_ms end
  if #a_seq ~= #b_seq then return #a_seq < #b_seq end
  return a_seq < b_seq
end
local excess = redis.call('XLEN', KEYS[1]) - tonumber(ARGV[1])
if excess <= 0 then return 0 end
local head = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT',
                        math.min(excess, tonumber(ARGV[2])) + 1)
local keep = head[#head][1]
for _, fields in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for i = 1, #fields, 2 do group[fields[i]] = fields[i + 1] end
  local unread
  if group['pending'] > 0 then
    unread = redis.call('XPENDING', KEYS[1], group['name'])[2]
  else
    local after = redis.call('XRANGE', KEYS[1], '(' .. group['last-delivered-id'], '+', 'COUNT', 1)
    unread = after[1] and after[1][1]
  end
  if unread and below(unread, keep) then keep = unread end
end
return redis.call('XTRIM', KEYS[1], 'MINID', '=', keep)
"""


class RedisBus:
    """The bus of one mode on one server; connects as consumers and publishers ask.

    `undecodable` counts entries that `entries` and `latest` left out.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        *,
        clock_ns: Callable[[], int] = time.time_ns,
        block_ms_cap: int = 500,
    ) -> None:
        check_url(url)
        self._url = url
        self._keys = Keys(prefix)
        self._clock_ns = clock_ns
        self._block_ms_cap = block_ms_cap
        self._control: RedisLink | None = None
        self._control_lock = asyncio.Lock()
        self.undecodable = 0

    async def consumer(
        self, group: str, streams: Sequence[str], outputs: Sequence[str] = (), name: str = "0"
    ) -> RedisConsumer:
        """Open a reader; whoever read for this group before can neither read nor commit any more.

        A group begins at the first retained entry. `name` must stay the same over restarts: what
        was read and not acknowledged is kept under it.
        """
        client = f"{self._keys.prefix}/consumer/{group}"
        link = await RedisLink.open(self._url, client)
        reader: RedisLink | None = None
        try:
            await link.check_server()
            writer = await FencedWriter.open(link, self._keys, group, client)
            # Named alike and opened last, so that the successor cuts off this one and not we it.
            reader = await RedisLink.open(self._url, client)
            return await RedisConsumer.open(
                reader, writer, self._keys, group, streams, outputs, name,
                clock_ns=self._clock_ns, block_ms_cap=self._block_ms_cap,
            )  # fmt: skip
        except BaseException:
            await link.drop()
            if reader is not None:
                await reader.drop()
            raise

    async def publisher(self, source: str, streams: Sequence[str]) -> RedisPublisher:
        """Open an edge writer; of streams that are not shared it becomes the only one."""
        alone = [stream for stream in streams if stream not in SHARED_STREAMS]
        client = f"{self._keys.prefix}/publisher/{source}" if alone else ""
        link = await RedisLink.open(self._url, client)
        try:
            await link.check_server()
            owner = f"publisher:{source}" if alone else None
            writer = await FencedWriter.open(link, self._keys, owner, client)
            ledger = OutputLedger(source, streams, self._clock_ns)
            await writer.recover(ledger, alone)
        except BaseException:
            await link.drop()
            raise
        return RedisPublisher(writer, ledger)

    async def latest(self, stream: str) -> dict[str, Envelope]:
        """Return the last message per instrument, actor or kind of a stream that keeps them."""
        (reply,) = await self._ask(("HGETALL", self._keys.latest(stream)))
        found = {}
        for field, blob in pairs(accepted(reply)):
            try:
                found[field.decode()] = decode_envelope(blob)
            except (msgspec.DecodeError, UnicodeDecodeError):
                self.undecodable += 1
        return found

    async def withdraw(self, stream: str, entry_id: str) -> None:
        """Take an entry out of a shared stream; who has not read it by now never will."""
        if stream not in SHARED_STREAMS:
            raise BusError(f"{stream} numbers its entries: nothing can be taken out of it")
        accepted((await self._ask(("XDEL", self._keys.stream(stream), entry_id)))[0])

    async def entries(self, stream: str, start: str = "-", limit: int | None = None) -> list[Entry]:
        """Return retained entries of a stream from `start` (inclusive id) on."""
        found: list[Entry] = []
        while limit is None or len(found) < limit:
            count = _SCAN_ENTRIES if limit is None else min(_SCAN_ENTRIES, limit - len(found))
            key = self._keys.stream(stream)
            (reply,) = await self._ask(("XRANGE", key, start, "+", "COUNT", count))
            raw = accepted(reply)
            for item in entries_of(stream, raw):
                if isinstance(item, Entry):
                    found.append(item)
                else:
                    self.undecodable += 1
            if len(raw) < count:
                break
            start = f"({raw[-1][0].decode()}"
        return found

    async def handled(self, group: str, after: str = "0-0", limit: int = 1000) -> list[Handled]:
        """Return what a group committed after the commit `after`, oldest first."""
        key = self._keys.fold(group)
        (reply,) = await self._ask(("XRANGE", key, f"({after}", "+", "COUNT", limit))
        return [
            Handled(raw_id.decode(), fold_of(fields).inputs) for raw_id, fields in accepted(reply)
        ]

    async def dead_letters(self, limit: int = 100) -> list[DeadEntry]:
        """Return the last inputs that were set aside, oldest first."""
        (reply,) = await self._ask(("XREVRANGE", self._keys.dead, "+", "-", "COUNT", limit))
        letters = []
        for _, fields in reversed(accepted(reply)):
            text = {name.decode(): value for name, value in pairs(fields)}
            letters.append(
                DeadEntry(*(text[name].decode() for name in ("group", "stream", "id", "error")))
            )
        return letters

    async def is_quiet(self, streams: Collection[str] | None = None) -> bool:
        """Tell whether every group has handled everything in its streams, or in these of them.

        Looks at all streams in one instant; a stream that nobody reads does not count.
        """
        replies = await self._snapshot(
            command
            for stream in (STREAMS if streams is None else streams)
            for command in (
                ("XINFO", "GROUPS", self._keys.stream(stream)),
                # Ids, not the server's `lag`, which is unknown or wrong after some trims.
                ("XREVRANGE", self._keys.stream(stream), "+", "-", "COUNT", 1),
            )
        )
        for groups, newest in zip(replies[::2], replies[1::2], strict=True):
            last = id_key(accepted(newest)[0][0].decode()) if accepted(newest) else (0, 0)
            for group in _groups_or_none(groups):
                if group.pending or id_key(group.last_id) < last:
                    return False
        return True

    async def trim(self, retain: int) -> int:
        """Drop entries that every group has acknowledged, keeping the last `retain` of each stream.

        Returns how many were dropped. What a group has not acknowledged is never dropped, nor is
        the newest entry of a stream, from which its writer goes on counting.
        """
        if retain < 0:
            raise ValueError(f"retain must not be negative, was {retain}")
        dropped = {stream: await self._trim_stream(stream, max(retain, 1)) for stream in STREAMS}
        trimmed = {stream for stream, count in dropped.items() if count}
        if trimmed:
            await self._trim_folds(trimmed)
        return sum(dropped.values())

    async def _trim_stream(self, stream: str, retain: int) -> int:
        dropped = 0
        while True:
            (reply,) = await self._ask(
                ("EVAL", _TRIM, 1, self._keys.stream(stream), retain, _SCAN_ENTRIES)
            )
            count: int = accepted(reply)
            dropped += count
            if count < _SCAN_ENTRIES:
                return dropped

    async def _trim_folds(self, trimmed: set[str]) -> None:
        """Drop the commits of which no input is retained from the logs of all groups."""
        replies = await self._snapshot(
            command
            for stream in STREAMS
            for command in (
                ("XINFO", "GROUPS", self._keys.stream(stream)),
                ("XRANGE", self._keys.stream(stream), "-", "+", "COUNT", 1),
            )
        )
        first = {
            stream: id_key(items[0][0].decode())
            for stream, items in zip(STREAMS, replies[1::2], strict=True)
            if items
        }
        groups: dict[str, set[str]] = {}
        for stream, reply in zip(STREAMS, replies[::2], strict=True):
            for group in _groups_or_none(reply):
                groups.setdefault(group.name, set()).add(stream)
        for name, streams in groups.items():
            await self._trim_fold(name, streams & trimmed, first)

    async def _trim_fold(
        self, group: str, trimmed: set[str], first: dict[str, tuple[int, int]]
    ) -> None:
        key, start = self._keys.fold(group), "-"
        passed: set[str] = set()  # streams whose retained part the walk has reached
        while passed < trimmed:
            (reply,) = await self._ask(("XRANGE", key, start, "+", "COUNT", _SCAN_ENTRIES))
            commits = accepted(reply)
            gone: list[bytes] = []
            for raw_id, fields in commits:
                kept = {
                    stream
                    for stream, entry_id in fold_of(fields).inputs
                    if stream in first and id_key(entry_id) >= first[stream]
                }
                passed |= kept
                if not kept:
                    gone.append(raw_id)
            at_end = len(commits) < _SCAN_ENTRIES
            if at_end and gone and gone[-1] == commits[-1][0]:
                gone.pop()  # the group counts its commits on from the newest
            if gone:
                accepted((await self._ask(("XDEL", key, *gone)))[0])
            if at_end:
                return
            start = f"({commits[-1][0].decode()}"

    async def forget(self) -> None:
        """Drop all streams, groups and logs of this prefix; keep the kill latch.

        For the start of a new session, when nobody reads or writes.
        """
        kept = f"{self._keys.prefix}:kill".encode()
        cursor = b"0"
        while True:
            (reply,) = await self._ask(
                ("SCAN", cursor, "MATCH", f"{self._keys.prefix}:*", "COUNT", _SCAN_ENTRIES)
            )
            cursor, keys = accepted(reply)
            gone = [key for key in keys if key != kept]
            if gone:
                accepted((await self._ask(("UNLINK", *gone)))[0])
            if cursor == b"0":
                return

    async def ping(self) -> None:
        """Raise BusError unless the server answers and is fit for use."""
        async with self._control_lock:
            link = await self._control_link()
            await link.call("PING")

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until the server answers; raises the last BusError after `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                return await self.ping()
            except BusError:
                if time.monotonic() >= deadline_s:
                    raise
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Close the bus's own connection; consumers and publishers are closed by their owners."""
        if self._control is not None:
            await self._control.close()
            self._control = None

    async def _control_link(self) -> RedisLink:
        if self._control is None or not self._control.is_open:
            link = await RedisLink.open(self._url)
            try:
                await link.check_server()
            except BaseException:
                await link.drop()
                raise
            self._control = link
        return self._control

    async def _ask(self, *commands: Command) -> list[Any]:
        async with self._control_lock:
            return await (await self._control_link()).exchange(commands)

    async def _snapshot(self, commands: Iterable[Command]) -> list[Any]:
        """Run the commands in one instant; a refusal stands among the replies."""
        replies = await self._ask(("MULTI",), *commands, ("EXEC",))
        return list(accepted(replies[-1]))


def _groups_or_none(reply: Any) -> list[Group]:
    """Return the groups of a stream; none where the stream does not exist yet."""
    if isinstance(reply, ResponseError) and "no such key" in str(reply):
        return []
    return groups_of(accepted(reply))
