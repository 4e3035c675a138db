"""A reader without a group: sees what is published, acknowledges nothing, holds nothing back.

For those who watch and must never be waited for, as the web backend: a group that lags would keep
entries from being trimmed and a market in lock step from going on.
"""

from collections.abc import Mapping, Sequence
from typing import Self

from daemon.bus import Entry, id_key
from daemon.redis_link import RedisLink, accepted
from daemon.redis_wire import Keys, entries_of

_SLACK_S = 2.0


class RedisTail:
    """Read what comes after given entries of some streams. Use from one task."""

    def __init__(self, link: RedisLink, keys: Keys, after: Mapping[str, str]) -> None:
        self._link = link
        self._keys = keys
        self._after = dict(after)
        self._stream_of = {keys.stream(name).encode(): name for name in after}
        self.undecodable = 0

    @classmethod
    async def open(
        cls, url: str, prefix: str, streams: Sequence[str], after: Mapping[str, str] | None = None
    ) -> Self:
        """Connect; begin after `after` (stream -> entry id), else behind the newest entry."""
        link = await RedisLink.open(url)
        keys = Keys(prefix)
        try:
            places = dict(after or {})
            missing = [name for name in streams if name not in places]
            replies = await link.exchange(
                [("XREVRANGE", keys.stream(name), "+", "-", "COUNT", 1) for name in missing]
            )
            for name, reply in zip(missing, replies, strict=True):
                newest = accepted(reply)
                places[name] = newest[0][0].decode() if newest else "0-0"
        except BaseException:
            await link.drop()
            raise
        return cls(link, keys, {name: places[name] for name in streams})

    @property
    def after(self) -> dict[str, str]:
        """The last entry seen of each stream."""
        return dict(self._after)

    async def read(self, limit: int, block_ms: int) -> list[Entry]:
        """Return up to `limit` entries per stream in id order, or [] after `block_ms`."""
        names = list(self._after)
        (reply,) = await self._link.exchange(
            [
                (
                    "XREAD", "COUNT", limit, "BLOCK", block_ms, "STREAMS",
                    *(self._keys.stream(name) for name in names),
                    *(self._after[name] for name in names),
                )
            ],
            block_ms / 1000 + _SLACK_S,
        )  # fmt: skip
        found: list[Entry] = []
        for key, raw in accepted(reply) or []:
            name = self._stream_of[key]
            self._after[name] = raw[-1][0].decode()
            for item in entries_of(name, raw):
                if isinstance(item, Entry):
                    found.append(item)
                else:
                    self.undecodable += 1
        found.sort(key=lambda entry: id_key(entry.id))
        return found

    async def close(self) -> None:
        """Close the connection."""
        await self._link.close()
