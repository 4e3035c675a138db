"""Candles of the past for charts and back-tests: local files, else the broker.

For what the daemon trades they end where its market stands, so that a chart never runs ahead of its
ticks.
"""

from dataclasses import dataclass
from pathlib import Path

from actors.instruments import Instrument, InstrumentCatalogue, UnknownInstrument
from backend.accounts import Accounts, PastCandle
from backend.auth import Identity
from backend.place import Place
from backend.projection import Projection
from backend.responses import timeframe_of, timeframe_seconds
from daemon.history import CandleTable, load_candles

_DAYS = 30
_WARM_UP_BARS = 199  # without features, which the existing answer leaves out
_NS = 1_000_000_000


@dataclass(frozen=True)
class CandleShelf:
    """Find candles by instrument and timeframe; raises DataError and BrokerError."""

    raw_dir: Path
    catalogue: InstrumentCatalogue
    accounts: Accounts

    def instrument(self, name: str, place: Place | None) -> Instrument | None:
        """Return the instrument of a symbol or name in any spelling, or None."""
        for catalogue in (self.catalogue, place.catalogue if place else None):
            try:
                return catalogue[name] if catalogue else None
            except UnknownInstrument:
                continue
        return None

    def path(self, symbol: str, timeframe: str, place: Place | None) -> Path | None:
        """Return the file of candles: the daemon's own where it plays one, else a raw one."""
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

    def table(self, symbol: str, timeframe: str, place: Place | None) -> CandleTable | None:
        """Return all candles of a file, or None where there is no file."""
        path = self.path(symbol, timeframe, place)
        table = load_candles(path) if path else None
        return table if table and table.timeframe == timeframe else None

    def local(
        self, symbol: str, timeframe: str, place: Place | None, view: Projection | None
    ) -> list[PastCandle]:
        """Return the last 30 days of a file, up to where the daemon's market stands."""
        table = self.table(symbol, timeframe, place)
        if table is None or not len(table):
            return []
        end_ns = int(table.open_ns[-1]) + 1
        if view is not None and symbol in view.ticks:
            bar_ns = timeframe_seconds(timeframe) * _NS
            end_ns = min(end_ns, view.ticks[symbol].event_ns - bar_ns + 1)
        cut = table.between(end_ns - _DAYS * 86_400 * _NS, end_ns)
        return [
            PastCandle(
                candle.open_ns // _NS,
                float(candle.open),
                float(candle.high),
                float(candle.low),
                float(candle.close),
                float(candle.volume),
            )
            for candle in cut.candles()
        ]

    async def recent(
        self,
        identity: Identity,
        name: str,
        timeframe: str,
        place: Place | None,
        view: Projection | None,
        now_s: int,
    ) -> list[PastCandle]:
        """Return about 30 days of candles but the first 199; [] where nobody has any."""
        instrument = self.instrument(name, place)
        symbol = instrument.symbol if instrument else name
        timeframe = timeframe_of(timeframe)
        found = self.local(symbol, timeframe, place, view)
        if not found:
            exchange_symbol = instrument.exchange_symbol if instrument else name
            start_s = now_s - _DAYS * 86_400
            found = await self.accounts.history(
                identity, exchange_symbol, timeframe, start_s, now_s
            )
        return found[_WARM_UP_BARS:]
