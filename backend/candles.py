"""Candles of the past for charts and back-tests: local files, else the broker.

While the daemon trades live prices, a file that ends before its session is only what is left where
the broker does not answer.

For what the daemon trades they end where its market stands, so that a chart never runs ahead of its
ticks.
"""

import asyncio
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Final, NamedTuple, Self

import msgspec

from actors.instruments import Instrument, InstrumentCatalogue, UnknownInstrument
from backend.accounts import Accounts, PastCandle
from backend.auth import Identity
from backend.place import Place
from backend.projection import Projection
from backend.responses import timeframe_of, timeframe_seconds
from daemon.errors import BrokerError, DataError
from daemon.history import load_candles

_DAYS = 30
_WARM_UP_BARS = 199  # without features, which the existing answer leaves out
_NS = 1_000_000_000
_KEPT_FILES = 8
_TIME: Final = attrgetter("time_s")
_encode = msgspec.json.Encoder().encode


class Chart(NamedTuple):
    """Candles in a row, and each as JSON: a chart of a month is asked for more often than made."""

    candles: list[PastCandle]
    texts: list[bytes]

    @classmethod
    def of(cls, candles: list[PastCandle]) -> Self:
        """Return the chart of some candles."""
        return cls(candles, [_encode(candle_of(candle)) for candle in candles])

    def part(self, first: int, last: int | None = None) -> Self:
        """Return the candles from `first` up to, without, `last`."""
        return type(self)(self.candles[first:last], self.texts[first:last])

    def as_json(self) -> bytes:
        """Return all candles as one JSON array."""
        return b"[" + b",".join(self.texts) + b"]"


class _Read(NamedTuple):
    """A file as it was read: its time of change and size then, and all its candles."""

    state: tuple[int, int]
    timeframe: str
    chart: Chart


@dataclass(frozen=True)
class CandleShelf:
    """Find candles by instrument and timeframe; raises DataError and BrokerError.

    Files are read in a thread, one at a time, since some take a third of a second, and their
    candles kept until they change.
    """

    raw_dir: Path
    catalogue: InstrumentCatalogue
    timeframes: AbstractSet[str]  # on offer
    accounts: Accounts
    _files: OrderedDict[Path, _Read] = field(default_factory=OrderedDict)
    _reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    def instrument(self, name: str, place: Place | None) -> Instrument | None:
        """Return the instrument of a symbol or name in any spelling, or None."""
        for catalogue in (self.catalogue, place.catalogue if place else None):
            try:
                return catalogue[name] if catalogue else None
            except UnknownInstrument:
                continue
        return None

    def path(self, symbol: str, timeframe: str, place: Place | None) -> Path | None:
        """Return the file of candles: the daemon's own where it plays one, else a raw one.

        None also for what is not known or not offered: such a name must not become a path.
        """
        instrument = self.instrument(symbol, place)
        if instrument is None or instrument.symbol != symbol:
            return None
        if not self._is_offered(timeframe, place):
            return None
        for market in place.plan.markets if place else ():
            if market.instrument == symbol and market.timeframe == timeframe:
                path = Path(market.path)
                if market.path and path.is_file():
                    return path
        for suffix in ("csv", "parquet"):
            path = self.raw_dir / f"{symbol}_{timeframe}.{suffix}"
            if path.is_file():
                return path
        return None

    def _is_offered(self, timeframe: str, place: Place | None) -> bool:
        return timeframe in self.timeframes or (
            place is not None and timeframe in place.timeframes.values()
        )

    async def _of_file(self, path: Path, timeframe: str, market_ns: int | None) -> Chart:
        """Return the last 30 days of a file up to a candle that opens at market_ns, if given."""
        kept = self._kept(path) or await self._fresh(path)
        self._files[path] = kept
        self._files.move_to_end(path)
        while len(self._files) > _KEPT_FILES:
            self._files.popitem(last=False)
        if kept.timeframe != timeframe or not kept.chart.candles:
            return _NOTHING
        return _last_days(kept.chart, market_ns)

    def _kept(self, path: Path) -> _Read | None:
        """Return a file as it was read, unless it has changed since or is gone."""
        kept = self._files.get(path)
        with suppress(OSError):
            if kept is not None and kept.state == _state_of(path):
                return kept
        return None

    async def _fresh(self, path: Path) -> _Read:
        """Read a file, unless somebody else just did."""
        async with self._reading:
            if (kept := self._kept(path)) is not None:
                return kept
            try:
                return await asyncio.to_thread(_read, path)
            except OSError as error:
                raise DataError(f"{path.name} cannot be read: {error.strerror}") from error
            except DataError as error:
                raise DataError(without_folder(str(error), path)) from error

    async def recent(
        self,
        identity: Identity,
        name: str,
        timeframe: str,
        place: Place | None,
        view: Projection | None,
        now_s: int,
    ) -> Chart:
        """Return about 30 days of candles but the first 199; none where nobody has any."""
        timeframe = timeframe_of(timeframe)
        if not self._is_offered(timeframe, place):
            offered = ", ".join(sorted(self.timeframes, key=timeframe_seconds))
            raise DataError(f"timeframe must be one of {offered}, was {timeframe!r}")
        instrument = self.instrument(name, place)
        found = _NOTHING
        path = self.path(instrument.symbol, timeframe, place) if instrument else None
        if instrument is not None and path is not None:
            market_ns = None
            if view is not None and (tick := view.ticks.get(instrument.symbol)) is not None:
                market_ns = tick.event_ns - timeframe_seconds(timeframe) * _NS
            found = await self._of_file(path, timeframe, market_ns)
        if not found.candles or found.candles[-1].time_s < _live_since_s(place):
            exchange_symbol = instrument.exchange_symbol if instrument else name
            start_s = now_s - _DAYS * 86_400
            try:
                asked = await self.accounts.history(
                    identity, exchange_symbol, timeframe, start_s, now_s
                )
            except BrokerError:
                if not found.candles:
                    raise
                asked = []
            found = Chart.of(asked) if asked else found
        return found.part(_WARM_UP_BARS)


def _live_since_s(place: Place | None) -> int:
    """Return when the session of live prices began; 0 where the daemon plays files or is not."""
    markets = place.plan.markets if place else ()
    return max((market.first_open_ns for market in markets if not market.path), default=0) // _NS


def without_folder(text: str, path: Path) -> str:
    """Return a text that names a file without the folder that it lies in."""
    return text.replace(f"{path.parent}/", "")


def _state_of(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _read(path: Path) -> _Read:
    state = _state_of(path)
    table = load_candles(path)
    candles = [
        PastCandle(
            candle.open_ns // _NS,
            float(candle.open),
            float(candle.high),
            float(candle.low),
            float(candle.close),
            float(candle.volume),
        )
        for candle in table.candles()
    ]
    return _Read(state, table.timeframe, Chart.of(candles))


def _last_days(chart: Chart, market_ns: int | None) -> Chart:
    last_s = chart.candles[-1].time_s
    if market_ns is not None:
        last_s = min(last_s, market_ns // _NS)
    first = bisect_right(chart.candles, last_s - _DAYS * 86_400, key=_TIME)
    return chart.part(first, bisect_right(chart.candles, last_s, key=_TIME))


def candle_of(candle: PastCandle) -> dict[str, int | float]:
    """Return a candle as charts take it."""
    return {
        "time": candle.time_s,
        "open": candle.open,
        "high": candle.high,
        "low": candle.low,
        "close": candle.close,
        "volume": candle.volume,
    }


_NOTHING: Final = Chart([], [])
