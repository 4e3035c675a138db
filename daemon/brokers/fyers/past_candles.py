"""Closed candles out of Fyers' history, as the program speaks of them."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from daemon.backfill import Candle
from daemon.brokers.fyers.rest import FyersRest
from daemon.clock import NS_PER_SECOND
from daemon.errors import BrokerUnavailable

MOST_DAYS: Final = 100  # that one call may ask for
_S_PER_DAY: Final = 86_400


class PastCandles:
    """Ask for candles of instruments; `symbols` maps them to the broker's."""

    def __init__(self, rest: FyersRest, symbols: Mapping[str, str]) -> None:
        self._rest = rest
        self._symbols = dict(symbols)

    async def ask(
        self, instrument: str, timeframe: str, first_ns: int, end_ns: int
    ) -> list[Candle]:
        """Return candles that open in [first_ns, end_ns), the earliest first; at most 100 days.

        Raises what FyersRest raises, and BrokerUnavailable for an answer that cannot be read.
        """
        last_s = (end_ns - 1) // NS_PER_SECOND
        first_s = max(first_ns // NS_PER_SECOND, last_s - MOST_DAYS * _S_PER_DAY)
        rows = await self._rest.history(self._symbols[instrument], timeframe, first_s, last_s)
        candles = sorted(_candle(row) for row in rows)
        return [candle for candle in candles if first_ns <= candle.open_ns < end_ns]


def _candle(row: Any) -> Candle:
    is_row = isinstance(row, list) and len(row) >= 6
    if not is_row or not all(type(value) in (int, Decimal) for value in row[:6]):
        raise BrokerUnavailable(f"a candle must be six numbers, was {row!r}")
    second, open_, high, low, close, volume = map(Decimal, row[:6])
    return Candle(int(second) * NS_PER_SECOND, open_, high, low, close, int(volume))
