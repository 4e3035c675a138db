"""News: how much unscheduled news weigh on an instrument at an instant, from readings of a feed.

An item weighs fully when it is published and half as much after each half-life. Without a reading
near the instant nothing is known, which is not the same as no news.
"""

import math
from typing import Final

from actors.messages import NewsItem, NewsUpdate

_MOST_ITEMS: Final = 500
_FORGOTTEN_AFTER: Final = 10.0  # half-lives: by then a thousandth is left
_NS_PER_SECOND: Final = 1_000_000_000
_NS_PER_MINUTE: Final = 60 * _NS_PER_SECOND


class NewsMemory:
    """Remember items that still weigh, each once, at most 500: then the latest published stay."""

    def __init__(self, half_life_minutes: float, stale_after_seconds: float) -> None:
        self._half_life_ns = half_life_minutes * _NS_PER_MINUTE
        self._stale_after_ns = stale_after_seconds * _NS_PER_SECOND
        self._items: dict[str, NewsItem] = {}
        self._read_ns: int | None = None

    def add(self, update: NewsUpdate) -> None:
        """Take a reading; ValueError for an impact that is none, and then nothing of it counts."""
        for item in update.items:
            if not (math.isfinite(item.impact) and 0.0 <= item.impact <= 1.0):
                raise ValueError(
                    f"news {item.id}: impact must be between 0 and 1, was {item.impact}"
                )
        self._read_ns = update.read_ns
        for item in update.items:
            # The first word on an item stands: a feed that dates it anew does not renew it.
            self._items.setdefault(item.id, item)
        oldest_ns = update.read_ns - _FORGOTTEN_AFTER * self._half_life_ns
        kept = [item for item in self._items.values() if item.published_ns >= oldest_ns]
        kept.sort(key=lambda item: (item.published_ns, item.id))
        self._items = {item.id: item for item in kept[-_MOST_ITEMS:]}

    def impact(self, instrument: str, now_ns: int) -> float | None:
        """Return the impact in [0, 1]; None where the feed was not read around that time.

        The feed lives by the real clock: of a market that is played back at another time it knows
        nothing. A reading made while the bar was closing counts; an item published later does not.
        """
        if self._read_ns is None or abs(now_ns - self._read_ns) > self._stale_after_ns:
            return None
        impact: float | None = 0.0
        for item in self._items.values():
            if item.published_ns > now_ns or (
                item.instruments and instrument not in item.instruments
            ):
                continue
            age = (now_ns - item.published_ns) / self._half_life_ns
            impact = together(impact, item.impact * 0.5 ** min(age, 60.0))
        return impact


def together(one: float | None, other: float | None) -> float | None:
    """Weigh two impacts like independent chances, never above 1; leave out one that is unknown."""
    if one is None or other is None:
        return other if one is None else one
    return 1.0 - (1.0 - one) * (1.0 - other)
