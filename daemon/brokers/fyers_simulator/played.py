"""Candles of a file as a market: a path of prices in time, and history up to now."""

from collections.abc import Iterator
from datetime import time
from typing import Final

from actors.messages import Tick
from actors.session import SessionCalendar
from daemon.brokers.fyers_simulator.candles import Bar
from daemon.brokers.fyers_simulator.instruments import (
    NS_PER_SECOND,
    Contract,
    instant_ns,
    local_time,
)
from daemon.candle_path import market_events
from daemon.history import Candle, CandleTable

_LONGEST_BREAK_NS: Final = 10 * 86_400 * NS_PER_SECOND
_END_NS: Final = 2**63 - 1


class PlayedCandles:
    """Candles of one symbol as a path of prices in time, and as history."""

    def __init__(
        self,
        contract: Contract,
        table: CandleTable,
        calendar: SessionCalendar,
        *,
        seed: int,
        start_ns: int,
    ) -> None:
        self.contract = contract
        self.table = table
        source = (contract.symbol, table.timeframe, table.between(start_ns, _END_NS))

        def end_of(_symbol: str, candle: Candle) -> int:
            if calendar.phase(contract.market, candle.open_ns) == "closed":
                return candle.close_ns
            return calendar.bar_close_ns(contract.market, table.timeframe, candle.open_ns)

        events = market_events(
            [source],
            seed=seed,
            wall_ns=lambda: 0,
            session_key=lambda instant_ns: calendar.session_key(contract.market, instant_ns),
            end_of=end_of,
        )
        self._ticks = (event for event in events if isinstance(event, Tick))
        self._next = next(self._ticks, None)

    @property
    def next_ns(self) -> int | None:
        """When the next point of the path is due; None at the end of the candles."""
        return None if self._next is None else self._next.event_ns

    def until(self, now_ns: int) -> Iterator[tuple[int, int, int]]:
        """Yield instant, price and volume of the day of the points up to now, once each."""
        while self._next is not None and self._next.event_ns <= now_ns:
            price = round(self._next.last_price * self.contract.scale)
            yield self._next.event_ns, price, self._next.volume_today
            self._next = next(self._ticks, None)

    def close_before(self, start_ns: int) -> int | None:
        """Return the close of the last day before that of an instant, None at the beginning."""
        midnight_ns = instant_ns(local_time(start_ns).date(), time())
        bars = list(self.bars(midnight_ns - _LONGEST_BREAK_NS, midnight_ns))
        return bars[-1].close if bars else None

    def bars(self, start_ns: int, end_ns: int) -> Iterator[Bar]:
        """Yield the candles that open in [start, end), as they are in the file."""
        table, scale = self.table.between(start_ns, end_ns), self.contract.scale
        for candle in table.candles():
            prices = (candle.open, candle.high, candle.low, candle.close)
            first, high, low, last = (round(price * scale) for price in prices)
            yield Bar(candle.open_ns, first, high, low, last, candle.volume)
