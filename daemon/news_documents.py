"""What a feed's document says: RSS, Atom or JSON Feed as items with an impact, by the rules.

Nothing is opened from here, and nothing in a document decides more than the words of its entries,
their dates, and in JSON Feed a stated impact. One entry that cannot be understood costs itself.
"""

import calendar
import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import feedparser
import msgspec

from actors.messages import NewsItem
from daemon.errors import NewsError
from daemon.settings import NewsRule, NewsSettings

_NS_PER_SECOND: Final = 1_000_000_000
_LONGEST_TITLE: Final = 200
_ENTITY: Final = re.compile(rb"<!\s*E\s*N\s*T\s*I\s*T\s*Y", re.IGNORECASE)


@dataclass(frozen=True)
class Reading:
    """One document: what weighs in it, and how many entries could not be understood."""

    read_ns: int
    items: tuple[NewsItem, ...]
    refused: int


@dataclass(frozen=True)
class _Entry:
    """An entry of any format; `published_ns` is None where it has no date."""

    id: str
    title: str
    published_ns: int | None
    impact: float | None = None
    instruments: tuple[str, ...] = ()


class _JsonEntry(msgspec.Struct, frozen=True):
    id: str | int
    title: str = ""
    content_text: str = ""
    date_published: str | None = None
    impact: float | None = None
    instruments: tuple[str, ...] = ()


class _JsonFeed(msgspec.Struct, frozen=True):
    version: str
    items: list[msgspec.Raw]


def read_document(content: bytes, settings: NewsSettings, read_ns: int) -> Reading:
    """Read a document; NewsError for one that is no feed.

    An entry without a date, or with a later one, counts as published when it was read.
    """
    entries = _json_entries(content) if settings.format == "json" else _xml_entries(content)
    items: dict[str, NewsItem] = {}
    refused = 0
    for number, entry in enumerate(entries):
        if number == settings.max_items:
            break
        if entry is None:
            refused += 1
            continue
        item = _item(entry, settings.rules, read_ns)
        if item is not None:
            items.setdefault(item.id, item)
    return Reading(read_ns, tuple(items.values()), refused)


def _item(entry: _Entry, rules: Iterable[NewsRule], read_ns: int) -> NewsItem | None:
    impact, instruments = entry.impact, entry.instruments
    if impact is None:
        rule = next((rule for rule in rules if _fits(rule, entry.title)), None)
        if rule is None:
            return None
        impact, instruments = rule.impact, rule.instruments
    published_ns = read_ns if entry.published_ns is None else min(entry.published_ns, read_ns)
    return NewsItem(
        id=hashlib.sha256(entry.id.encode(errors="surrogatepass")).hexdigest()[:32],
        impact=impact,
        published_ns=published_ns,
        instruments=instruments,
        title=entry.title,
    )


def _fits(rule: NewsRule, title: str) -> bool:
    return any(
        re.search(rf"(?<!\w){re.escape(word)}(?!\w)", title, re.IGNORECASE) for word in rule.words
    )


def _xml_entries(content: bytes) -> Iterator[_Entry | None]:
    """Yield the entries of RSS or Atom, None for one without an id or a date that is readable."""
    if _ENTITY.search(content.replace(b"\0", b"")):
        raise NewsError("the feed declares entities, which no feed needs")
    # A stream: what is not one, feedparser may take for the name of a file or an address.
    try:
        feed = feedparser.parse(
            io.BytesIO(content), sanitize_html=False, resolve_relative_uris=False
        )
    except Exception as error:  # the parser promises nothing about what it raises
        raise NewsError(f"the feed cannot be read: {type(error).__name__}: {error}") from error
    problem = feed.get("bozo_exception")
    if problem is not None and not isinstance(problem, feedparser.CharacterEncodingOverride):
        raise NewsError(f"the feed is no well-formed XML: {problem}")
    if not feed.get("version"):
        raise NewsError("the document is neither RSS nor Atom")
    for entry in feed["entries"]:
        yield _xml_entry(entry)


def _xml_entry(entry: Any) -> _Entry | None:
    title = _one_line(entry.get("title", ""))
    identity = entry.get("id") or entry.get("link") or title
    if not identity:
        return None
    # Asked with `in` first: without the key itself feedparser answers one date for the other.
    key = next((key for key in ("published", "updated") if key in entry), None)
    when = entry.get(f"{key}_parsed") if key else None
    if key and not when:
        return None
    try:
        published_ns = calendar.timegm(when) * _NS_PER_SECOND if when else None
    except (ValueError, OverflowError):
        return None
    return _Entry(identity, title, published_ns) if _is_date(published_ns) else None


def _json_entries(content: bytes) -> Iterator[_Entry | None]:
    """Yield the entries of JSON Feed, None for one of another shape."""
    try:
        feed = msgspec.json.decode(content, type=_JsonFeed)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise NewsError(f"the document is no JSON Feed: {error}") from error
    for raw in feed.items:
        yield _json_entry(raw)


def _json_entry(raw: msgspec.Raw) -> _Entry | None:
    try:
        entry = msgspec.json.decode(raw, type=_JsonEntry)
        published_ns = _instant_ns(entry.date_published)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, OverflowError):
        return None
    if entry.impact is not None and not 0.0 <= entry.impact <= 1.0:
        return None
    if not _is_date(published_ns):
        return None
    title = _one_line(entry.title or entry.content_text)
    return _Entry(str(entry.id), title, published_ns, entry.impact, entry.instruments)


def _instant_ns(text: str | None) -> int | None:
    """Return a date of RFC 3339; ValueError for another, or one without a zone."""
    if text is None:
        return None
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return int(instant.timestamp()) * _NS_PER_SECOND


def _is_date(published_ns: int | None) -> bool:
    return published_ns is None or 0 <= published_ns < 2**62


def _one_line(text: str) -> str:
    """Return the text without control characters, cut to what a person reads at a glance."""
    printable = "".join(letter if letter.isprintable() else " " for letter in text[:2_000])
    return " ".join(printable.split())[:_LONGEST_TITLE]
