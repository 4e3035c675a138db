"""Candle path: ticks drawn from candles, and the clock that goes with them.

A candle says where a price began, how far it went and where it ended, not in which order it went
there. The path drawn here is a guess at that order and nothing else: four ticks per bar, at the
exact prices of the candle, marked `origin="candle_path"`. No quotes are made up: bid and ask stay
None. What the ticks become is for the market feed to say.

The path of one bar, from its open at 0 to its end at 1:

| at      | 0    | 1/3         | 2/3         | 1 less one millisecond |
|---------|------|-------------|-------------|------------------------|
| O-L-H-C | open | low         | high        | close                  |
| O-H-L-C | open | high        | low         | close                  |

A rising bar goes low first seven times in eight, a falling one high first seven times in eight, a
bar that closes where it opened either way: so does a driftless random walk (20,000 walks of 400
steps: 88 % and 89 %). Which of them a bar is, is drawn from (seed, instrument, open time) alone:
the same bar takes the same path in whatever file, order or process it is read.
"""

import heapq
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from hashlib import blake2b
from itertools import groupby
from typing import Final, Literal, NamedTuple

from actors.messages import MarketEvent, Tick, TimeEvent
from daemon.candle_quality import MINUTES_PER_DAY, NS_PER_MINUTE
from daemon.errors import ConfigError, DataError
from daemon.history import Candle, CandleTable

USUAL_WAY: Final = 7 / 8  # share of rising bars that go low first, of falling ones high first
NS_BEFORE_CLOSE: Final = 1_000_000
NS_PER_SECOND: Final = 1_000_000_000
NS_PER_DAY: Final = 86_400 * NS_PER_SECOND
BARS_WORTH_WAITING: Final = 5
SKIPPED_GAP_S: Final = 1.0

Source = tuple[str, str, CandleTable]
"""Instrument, timeframe that its bars are wanted in, candles of that timeframe or a finer one."""


class _Step(NamedTuple):
    """A tick, or with None the end of a bar, at an instant; ties go by order of the source."""

    instant_ns: int
    source: int
    tick: Tick | None


def goes_low_first(seed: int, instrument: str, candle: Candle) -> bool:
    """Tell whether the path of a candle visits its low before its high."""
    key = f"{seed}|{instrument}|{candle.open_ns}".encode()
    drawn = int.from_bytes(blake2b(key, digest_size=8).digest()) / 2**64  # uniform in [0, 1)
    if candle.close > candle.open:
        return drawn < USUAL_WAY
    if candle.close < candle.open:
        return drawn >= USUAL_WAY
    return drawn < 0.5


def utc_day(instant_ns: int) -> object:
    """Return the UTC day of an instant: one trading session, for sessions that end before 00:00."""
    return instant_ns // NS_PER_DAY


def nominal_end(_instrument: str, candle: Candle) -> int:
    """Return the end of a candle by its timeframe alone."""
    return candle.close_ns


def market_events(
    tables: Sequence[Source],
    *,
    seed: int,
    wall_ns: Callable[[], int],
    session_key: Callable[[int], object] = utc_day,
    end_of: Callable[[str, Candle], int] = nominal_end,
) -> Iterator[Tick | TimeEvent]:
    """Yield all candles as ticks in time order, with a TimeEvent before the ticks of each instant.

    A TimeEvent also stands at the end of each bar, before any tick of the next, and one wanted bar
    after the last: it closes what is still open. TimeEvents ascend strictly. `session_key` maps the
    open time of a bar to its session, within which `volume_today` adds up. `end_of` gives the
    exclusive end of an instrument's candle where its session may cut it short. `wall_ns` is read
    once per TimeEvent, when it is yielded.
    """
    _refuse_unusable(tables)
    paths = [
        _steps(source, instrument, table, seed, session_key, end_of)
        for source, (instrument, _, table) in enumerate(tables)
    ]
    end_ns = max(int(table.close_ns[-1]) + _bar_ns(timeframe) for _, timeframe, table in tables)
    return _events(paths, end_ns, wall_ns)


def _refuse_unusable(tables: Sequence[Source]) -> None:
    if not tables:
        raise DataError("no candles to replay; name at least one file")
    instruments = [instrument for instrument, _, _ in tables]
    for instrument, timeframe, table in tables:
        if instruments.count(instrument) > 1:
            raise DataError(f"{instrument} has two sources of candles; give it one")
        if not len(table):
            raise DataError(f"{instrument} has no candles in the range asked for; widen it")
        if _bar_ns(timeframe) % table.bar_ns:
            raise DataError(
                f"{instrument}: bars of {timeframe} cannot be made of candles of"
                f" {table.timeframe}; use a multiple of it"
            )


def _bar_ns(timeframe: str) -> int:
    minutes = MINUTES_PER_DAY if timeframe == "D" else timeframe
    try:
        bar_ns = int(minutes) * NS_PER_MINUTE
    except ValueError:
        bar_ns = 0
    if bar_ns <= 0:
        raise DataError(f"timeframe must be a number of minutes or D, was {timeframe!r}")
    return bar_ns


def _steps(
    source: int,
    instrument: str,
    table: CandleTable,
    seed: int,
    session_key: Callable[[int], object],
    end_of: Callable[[str, Candle], int],
) -> Iterator[_Step]:
    session: object = None
    volume_today = 0
    for candle in table.candles():
        if session_key(candle.open_ns) != session:
            session, volume_today = session_key(candle.open_ns), 0
        end_ns = end_of(instrument, candle)
        third_ns = (end_ns - candle.open_ns) // 3
        instants = (
            candle.open_ns,
            candle.open_ns + third_ns,
            candle.open_ns + 2 * third_ns,
            end_ns - NS_BEFORE_CLOSE,
        )
        prices = _path(candle, low_first=goes_low_first(seed, instrument, candle))
        for quarter, (instant_ns, price) in enumerate(zip(instants, prices, strict=True), start=1):
            tick = Tick(
                instrument=instrument,
                last_price=price,
                event_ns=instant_ns,
                volume_today=volume_today + candle.volume * quarter // 4,
                origin="candle_path",
            )
            yield _Step(instant_ns, source, tick)
        volume_today += candle.volume
        yield _Step(end_ns, source, None)


def _path(candle: Candle, *, low_first: bool) -> tuple[Decimal, Decimal, Decimal, Decimal]:
    if low_first:
        return candle.open, candle.low, candle.high, candle.close
    return candle.open, candle.high, candle.low, candle.close


def _events(
    paths: Sequence[Iterator[_Step]], end_ns: int, wall_ns: Callable[[], int]
) -> Iterator[Tick | TimeEvent]:
    merged = heapq.merge(*paths, key=lambda step: step[:2])
    for instant_ns, steps in groupby(merged, key=lambda step: step.instant_ns):
        yield TimeEvent(now_ns=instant_ns, wall_ns=wall_ns())
        for step in steps:
            if step.tick is not None:
                yield step.tick
    yield TimeEvent(now_ns=end_ns, wall_ns=wall_ns())


def paced(
    events: Iterable[MarketEvent],
    speed: float | Literal["max"],
    sleep: Callable[[float], Awaitable[None]],
    monotonic_ns: Callable[[], int],
    *,
    bar_ns: int,
) -> AsyncIterator[MarketEvent]:
    """Yield events when they are due at `speed` times real time; "max" never waits.

    Gaps of more than five bars in market time (nights, weekends) are cut to one second of real
    time. Due times count from the first event, so that waits do not drift; after a stall, events
    follow one another without waiting until they are due again. With "max" the generator never
    gives way to other tasks: the caller has to, between events.
    """
    if speed != "max" and not (math.isfinite(speed) and speed > 0):
        raise ConfigError(f"speed must be a positive number or 'max', was {speed}; try 60")
    return _paced(events, speed, sleep, monotonic_ns, bar_ns)


async def _paced(
    events: Iterable[MarketEvent],
    speed: float | Literal["max"],
    sleep: Callable[[float], Awaitable[None]],
    monotonic_ns: Callable[[], int],
    bar_ns: int,
) -> AsyncIterator[MarketEvent]:
    due_ns = float(monotonic_ns())
    before_ns: int | None = None
    for event in events:
        if speed != "max" and before_ns is not None:
            gap_ns = event.time_ns - before_ns
            wait_ns = gap_ns / speed
            if gap_ns > BARS_WORTH_WAITING * bar_ns:
                wait_ns = min(wait_ns, SKIPPED_GAP_S * NS_PER_SECOND)
            due_ns += wait_ns
            if (left_ns := due_ns - monotonic_ns()) > 0:
                await sleep(left_ns / NS_PER_SECOND)
        before_ns = event.time_ns
        yield event
