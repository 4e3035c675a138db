"""The news feed against a local server: what it reads, what it refuses, and that it goes on."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from pydantic import ValidationError
from unreliable_bus import UnreliableBus

from actors.messages import NewsUpdate
from daemon.errors import NewsError
from daemon.news_documents import read_document
from daemon.news_feed import NewsFeed
from daemon.settings import NewsSettings

NOW_NS = 1_764_140_400_000_000_000  # 2025-11-26 12:30 IST
WAIT_S = 20.0
RULES = (
    {"words": ["repo rate", "RBI"], "impact": 0.9},
    {"words": ["bank"], "impact": 0.4, "instruments": ["Bank_Nifty"]},
)

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


def rss(*entries: str, before: str = "") -> bytes:
    body = "".join(f"<item>{entry}</item>" for entry in entries)
    return f'{before}<rss version="2.0"><channel><title>N</title>{body}</channel></rss>'.encode()


def an_entry(title: str, number: int = 1) -> str:
    date = "Wed, 26 Nov 2025 12:00:00 +0530"
    return f"<title>{title}</title><guid>{number}</guid><pubDate>{date}</pubDate>"


def settings_of(url: str = "http://127.0.0.1:1/", **fields: Any) -> NewsSettings:
    given = {"url": url, "poll_seconds": 1.0, "timeout_seconds": 5.0, "rules": RULES}
    return NewsSettings.model_validate(given | fields)


def answering(content: bytes, **fields: Any) -> Answer:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=content, **fields)

    return answer


@asynccontextmanager
async def feed_of(answer: Answer, bus: UnreliableBus, **fields: Any) -> AsyncIterator[NewsFeed]:
    """Yield a running feed of a server that answers so."""
    app = web.Application()
    app.router.add_get("/{name:.*}", answer)
    async with TestServer(app) as server:
        settings = settings_of(str(server.make_url("/feed")), **fields)
        feed = NewsFeed(settings, bus, real_ns=lambda: NOW_NS)
        task = asyncio.create_task(feed.run())
        try:
            yield feed
        finally:
            feed.stop()
            await asyncio.wait_for(task, WAIT_S)


async def until(is_done: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_done():  # noqa: ASYNC110 - a state without an event
            await asyncio.sleep(0.005)


async def updates(bus: UnreliableBus) -> list[NewsUpdate]:
    messages = [entry.envelope.message for entry in await bus.entries(NewsUpdate.stream)]
    return [message for message in messages if isinstance(message, NewsUpdate)]


@pytest.fixture
def bus() -> UnreliableBus:
    return UnreliableBus()


async def test_rss_becomes_items_with_impact_and_date(bus: UnreliableBus) -> None:
    content = rss(
        an_entry("RBI keeps &amp; holds", 1), an_entry("Bank merger", 2), an_entry("Weather", 3)
    )

    async with feed_of(answering(content), bus) as feed:
        await until(lambda: feed.readings == 1)

    (update,) = await updates(bus)
    assert update.read_ns == NOW_NS
    assert [(item.title, item.impact, item.instruments) for item in update.items] == [
        ("RBI keeps & holds", 0.9, ()),
        ("Bank merger", 0.4, ("Bank_Nifty",)),
    ]
    assert {item.published_ns for item in update.items} == {NOW_NS - 1800 * 10**9}


async def test_json_may_state_its_impact(bus: UnreliableBus) -> None:
    content = b"""{"version": "https://jsonfeed.org/version/1.1", "items": [
        {"id": 7, "title": "Flash", "date_published": "2025-11-26T12:29:00+05:30",
         "impact": 0.25, "instruments": ["Nifty"]},
        {"id": "8", "content_text": "repo rate cut"},
        {"id": "9", "title": "RBI", "impact": 7},
        {"id": "10", "title": "RBI", "date_published": "yesterday"},
        "no entry"]}"""

    async with feed_of(answering(content), bus, format="json") as feed:
        await until(lambda: feed.readings == 1)

    (update,) = await updates(bus)
    assert [(item.impact, item.instruments, item.published_ns) for item in update.items] == [
        (0.25, ("Nifty",), NOW_NS - 60 * 10**9),
        (0.9, (), NOW_NS),
    ]
    assert update.refused == 3


async def test_each_item_is_published_once_and_every_reading_is(bus: UnreliableBus) -> None:
    async with feed_of(answering(rss(an_entry("RBI"))), bus) as feed:
        await until(lambda: feed.readings == 2)

    assert [len(update.items) for update in await updates(bus)] == [1, 0]


async def _too_slow(_: web.Request) -> web.StreamResponse:
    await asyncio.sleep(WAIT_S)
    return web.Response()


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 65_536)


async def _elsewhere(request: web.Request) -> web.StreamResponse:
    if request.path == "/other":
        return web.Response(body=rss(an_entry("RBI")))
    raise web.HTTPFound("/other")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(_too_slow, id="slow"),
        pytest.param(_endless, id="endless"),
        pytest.param(_elsewhere, id="redirect"),
        pytest.param(answering(rss(an_entry("RBI")), status=500), id="failing"),
        pytest.param(answering(rss() + b" " * 3_000), id="oversize"),
        pytest.param(answering(rss(), headers={"Content-Encoding": "gzip"}), id="compressed"),
        pytest.param(answering(b"<rss version='2.0'><channel><item>"), id="broken"),
        pytest.param(answering(b""), id="empty"),
        pytest.param(answering(b"<html><body>login</body></html>"), id="page"),
    ],
)
async def test_what_is_no_feed_publishes_nothing_and_is_tried_again(
    answer: Answer, bus: UnreliableBus
) -> None:
    is_well = False

    async def later_well(request: web.Request) -> web.StreamResponse:
        return web.Response(body=rss(an_entry("RBI"))) if is_well else await answer(request)

    async with feed_of(later_well, bus, timeout_seconds=0.5, max_bytes=2_048) as feed:
        await until(lambda: feed.failures >= 1)
        assert await updates(bus) == []
        is_well = True
        await until(lambda: feed.readings == 1)

    assert feed.failures == 0
    assert [len(update.items) for update in await updates(bus)] == [1]


async def test_after_a_bus_outage_the_items_come_with_the_next_reading(bus: UnreliableBus) -> None:
    bus.publish_faults.append("refused")

    async with feed_of(answering(rss(an_entry("RBI"))), bus) as feed:
        await until(lambda: feed.readings == 1)

    assert [len(update.items) for update in await updates(bus)] == [1]


async def test_stopping_does_not_wait_for_a_slow_server(bus: UnreliableBus) -> None:
    async with feed_of(_too_slow, bus) as feed:
        feed.stop()

    assert await updates(bus) == []


def test_entities_are_refused_however_they_are_written() -> None:
    bomb = '<!DOCTYPE r [<!ENTITY a "RBI"><!ENTITY b "&a;&a;">]>'
    for content in (rss(an_entry("&b;"), before=bomb), bomb.encode("utf-16")):
        with pytest.raises(NewsError, match="declares entities"):
            read_document(content, settings_of(), NOW_NS)


def test_an_external_entity_reads_no_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("RBI")
    outside = f'<!DOCTYPE rss SYSTEM "file://{tmp_path}/secret">'

    reading = read_document(rss(an_entry("RBI"), before=outside), settings_of(), NOW_NS)

    assert [item.title for item in reading.items] == ["RBI"]


def test_a_document_that_is_a_file_name_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "feed.xml"
    path.write_bytes(rss(an_entry("RBI")))

    with pytest.raises(NewsError):
        read_document(str(path).encode(), settings_of(), NOW_NS)


def test_json_that_nests_without_end_is_refused() -> None:
    content = b'{"version": "1", "items": ' + b"[" * 100_000

    with pytest.raises(NewsError, match="no JSON Feed"):
        read_document(content, settings_of(format="json"), NOW_NS)


def test_only_so_many_entries_are_looked_at() -> None:
    content = rss(*(an_entry("RBI", number) for number in range(9)))

    assert len(read_document(content, settings_of(max_items=4), NOW_NS).items) == 4


def test_words_are_whole_words_and_dates_are_never_later_than_the_reading() -> None:
    entries = (
        "<title>Embankment</title><guid>1</guid>",
        "<title>BANK, again</title><guid>2</guid><pubDate>Wed, 26 Nov 2098 12:00:00 GMT</pubDate>",
    )

    (item,) = read_document(rss(*entries), settings_of(), NOW_NS).items

    assert (item.title, item.published_ns) == ("BANK, again", NOW_NS)


def test_an_entry_with_an_unreadable_date_costs_itself() -> None:
    broken = "<title>RBI</title><guid>1</guid><pubDate>soon</pubDate>"

    reading = read_document(rss(broken, an_entry("RBI", 2)), settings_of(), NOW_NS)

    assert (len(reading.items), reading.refused) == (1, 1)


def test_atom_is_read_as_well() -> None:
    content = (
        b'<feed xmlns="http://www.w3.org/2005/Atom"><title>N</title><entry><id>1</id>'
        b"<title>RBI</title><updated>2025-11-26T12:00:00+05:30</updated></entry></feed>"
    )

    (item,) = read_document(content, settings_of(), NOW_NS).items

    assert item.published_ns == NOW_NS - 1800 * 10**9


@pytest.mark.parametrize(
    "url", ["http://example.com/feed", "https://me:word@example.com/", "file:///etc/passwd", "feed"]
)
def test_an_address_that_cannot_be_trusted_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="must"):
        NewsSettings(url=url)


def test_without_an_address_there_is_no_feed(bus: UnreliableBus) -> None:
    with pytest.raises(ValueError, match="there is no feed to read"):
        NewsFeed(NewsSettings(), bus)
