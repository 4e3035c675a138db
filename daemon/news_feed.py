"""The edge where unscheduled news come in: one RSS, Atom or JSON feed, read now and then.

What a document says is in news_documents.py. A reading that fails publishes nothing: complexity
then has no news, after a while, and says so. The feed is not trusted: no redirects, no compression,
no proxy, no cookies, a limit on time and size, and nothing in it can name a file or an address to
be opened.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import aiohttp

from actors.messages import NewsUpdate
from daemon.announcer import Announcer
from daemon.bus import Bus
from daemon.errors import BusError, NewsError
from daemon.logs import get_logger
from daemon.news_documents import Reading, read_document
from daemon.settings import NewsSettings

_LONGEST_WAIT_S: Final = 900.0
_CHUNK_BYTES: Final = 16_384
_HEADERS: Final = {
    "User-Agent": "hrm-trading-daemon",
    "Accept": "application/rss+xml, application/atom+xml, application/feed+json, */*;q=0.1",
    "Accept-Encoding": "identity",
}


class NewsFeed:
    """Read the feed of the settings until stopped; publish each item once, and that it was read."""

    name = "news_feed"

    def __init__(
        self, settings: NewsSettings, bus: Bus, *, real_ns: Callable[[], int] = time.time_ns
    ) -> None:
        if settings.url is None:
            raise ValueError("news.url is not set: there is no feed to read")
        self._url = settings.url
        self._settings = settings
        self._announcer = Announcer(bus, self.name, [NewsUpdate.stream])
        self._real_ns = real_ns
        self._log = get_logger(part=self.name)
        self._stopping = asyncio.Event()
        self._known: frozenset[str] = frozenset()  # items of the last document
        self.readings = 0
        self.failures = 0  # since the last reading that succeeded

    def stop(self) -> None:
        """Ask `run` to return soon."""
        self._stopping.set()

    async def run(self) -> None:
        """Read, wait, and read again, until `stop`; a reading in progress is given up then."""
        reading = asyncio.create_task(self._read_on())
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({reading, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()  # raises what ended it
        finally:
            reading.cancel()
            stopped.cancel()
            await asyncio.gather(reading, stopped, return_exceptions=True)
            await self._announcer.close()

    async def _read_on(self) -> None:
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._settings.timeout_seconds),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
        ) as session:
            while True:
                await self._attempt(session)
                await asyncio.sleep(self._wait_s())

    def _wait_s(self) -> float:
        poll_s = self._settings.poll_seconds
        return max(poll_s, min(poll_s * 2.0 ** min(self.failures, 20), _LONGEST_WAIT_S))

    async def _attempt(self, session: aiohttp.ClientSession) -> None:
        try:
            content = await self._fetch(session)
            # A thread: a large document must not hold up the orders of this process.
            reading = await asyncio.to_thread(
                read_document, content, self._settings, self._real_ns()
            )
            await self._publish(reading)
        except (NewsError, aiohttp.ClientError, TimeoutError, BusError) as error:
            self.failures += 1
            reason = str(error) or type(error).__name__
            self._log.warning("news not read", reason=reason, failures=self.failures)
        else:
            self.failures = 0
            self.readings += 1

    async def _fetch(self, session: aiohttp.ClientSession) -> bytes:
        """Return the document; NewsError for an answer that is none, or is too large."""
        limit = self._settings.max_bytes
        async with session.get(self._url, allow_redirects=False) as response:
            if response.status != 200:
                where = response.headers.get("Location")
                moved = f", it points to {where[:200]!r}: set news.url" if where else ""
                raise NewsError(f"the feed answered {response.status}{moved}")
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding.lower() != "identity":
                raise NewsError(f"the feed answered compressed ({encoding[:40]!r}), unasked")
            content = bytearray()
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                content += chunk
                if len(content) > limit:
                    raise NewsError(f"the feed is larger than news.max_bytes {limit}")
            return bytes(content)

    async def _publish(self, reading: Reading) -> None:
        fresh = tuple(item for item in reading.items if item.id not in self._known)
        await self._announcer.publish(
            NewsUpdate(read_ns=reading.read_ns, items=fresh, refused=reading.refused)
        )
        self._known = frozenset(item.id for item in reading.items)
