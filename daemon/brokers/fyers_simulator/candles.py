"""Candles of the past: days before the start, made up by seed or read from a file.

A made-up day is a random walk in the logarithm of the price, tied to the close of the day before
and to its own close; both are drawn from (seed, symbol, date), so that the same day looks the same
whenever it is asked for. Prices are paise, volumes units.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from datetime import date, time, timedelta
from functools import lru_cache
from random import Random
from typing import Final, NamedTuple

from daemon.brokers.fyers_simulator.hours import TradingHours
from daemon.brokers.fyers_simulator.instruments import (
    NS_PER_SECOND,
    Contract,
    instant_ns,
    local_time,
)

MINUTE_NS: Final = 60 * NS_PER_SECOND
TRADING_DAYS: Final = 252  # a year
TRADING_SECONDS: Final = 22_500  # of a day, for scaling volatility
_FARTHEST_DAYS: Final = 1_500  # calendar days that made-up history goes back


class Bar(NamedTuple):
    """One candle: paise and units; `open_ns` is its start."""

    open_ns: int
    open: int
    high: int
    low: int
    close: int
    volume: int


class SeededPast:
    """History that never was, for every underlying; minute bars."""

    def __init__(self, seed: int, hours: TradingHours, start_ns: int) -> None:
        self._seed = seed
        self._hours = hours
        self._start_ns = start_ns
        self._day = lru_cache(maxsize=256)(self._make_day)
        self._closes: dict[str, list[tuple[date, float, float]]] = {}

    def previous_close(self, contract: Contract) -> int:
        """Return the close of the trading day before the start."""
        today = local_time(self._start_ns).date()
        return round(contract.underlying.price / math.exp(self._daily_return(contract, today)))

    def bars(self, contract: Contract, start_ns: int, end_ns: int) -> Iterator[Bar]:
        """Yield minute bars that open in [start, end) and before the simulation began."""
        day = local_time(start_ns).date()
        last = local_time(min(end_ns, self._start_ns) - 1).date()
        earliest = local_time(self._start_ns).date() - timedelta(days=_FARTHEST_DAYS)
        day = max(day, earliest)
        while day <= last:
            for bar in self._day(contract, day):
                if start_ns <= bar.open_ns < end_ns:
                    yield bar
            day += timedelta(days=1)

    def _daily_return(self, contract: Contract, day: date) -> float:
        drawn = Random(f"{self._seed}|{contract.symbol}|{day}|close").gauss()
        return drawn * contract.underlying.annual_volatility / math.sqrt(TRADING_DAYS)

    def _ends(self, contract: Contract, day: date) -> tuple[float, float]:
        """Return the close of the day before and of the day, in paise."""
        chain = self._closes.setdefault(contract.symbol, [])
        if not chain:
            today = local_time(self._start_ns).date()
            price = float(contract.underlying.price)
            before = price / math.exp(self._daily_return(contract, today))
            chain.append((today, before, price))
        while chain[-1][0] > day:
            earlier = chain[-1][0] - timedelta(days=1)
            close = chain[-1][1]
            before = close
            if self._span(contract, earlier) is not None:
                before = close / math.exp(self._daily_return(contract, earlier))
            chain.append((earlier, before, close))
        found = chain[(chain[0][0] - day).days]
        return found[1], found[2]

    def _span(self, contract: Contract, day: date) -> tuple[int, int] | None:
        return self._hours.span_ns(contract.market, instant_ns(day, time(12)))

    def _make_day(self, contract: Contract, day: date) -> tuple[Bar, ...]:
        span = self._span(contract, day)
        if span is None:
            return ()
        open_ns, close_ns = span[0], min(span[1], self._start_ns)
        minutes = max(0, -(-(close_ns - open_ns) // MINUTE_NS))
        if minutes == 0:
            return ()
        before, after = self._ends(contract, day)
        draw = Random(f"{self._seed}|{contract.symbol}|{day}|path")
        volatility = contract.underlying.annual_volatility / math.sqrt(TRADING_DAYS)
        step = volatility * math.sqrt(60 / TRADING_SECONDS)
        walk = [0.0]
        for _ in range(minutes):
            walk.append(walk[-1] + draw.gauss(0, step))
        drift = (math.log(after / before) - walk[-1]) / minutes
        points = [before * math.exp(w + drift * k) for k, w in enumerate(walk)]
        return tuple(
            self._bar(contract, draw, open_ns + k * MINUTE_NS, points[k], points[k + 1], step)
            for k in range(minutes)
        )

    @staticmethod
    def _bar(
        contract: Contract, draw: Random, open_ns: int, first: float, last: float, step: float
    ) -> Bar:
        reach = [abs(draw.gauss(0, step / 2)) for _ in range(2)]
        tick = contract.tick
        high = max(first, last) * (1 + reach[0])
        low = min(first, last) * (1 - reach[1])
        volume = 0 if contract.is_index else contract.lot * draw.randint(200, 4_000)
        return Bar(
            open_ns,
            round(first / tick) * tick,
            math.ceil(high / tick) * tick,
            math.floor(low / tick) * tick,
            round(last / tick) * tick,
            volume,
        )


def merged(bars: Iterable[Bar], seconds: int, hours: TradingHours, market: str) -> list[Bar]:
    """Join bars into longer ones, counted from the open of their session; 86400 is a day."""
    joined: list[Bar] = []
    for bar in bars:
        start_ns = hours.bar_open_ns(market, seconds, bar.open_ns)
        if joined and joined[-1].open_ns == start_ns:
            last = joined[-1]
            joined[-1] = Bar(
                start_ns,
                last.open,
                max(last.high, bar.high),
                min(last.low, bar.low),
                bar.close,
                last.volume + bar.volume,
            )
        else:
            joined.append(bar._replace(open_ns=start_ns))
    return joined


def between(bars: list[Bar], start_ns: int, end_ns: int) -> list[Bar]:
    """Return the bars that open in [start, end) of a list in ascending order."""
    first = bisect_left(bars, start_ns, key=lambda bar: bar.open_ns)
    last = bisect_left(bars, end_ns, key=lambda bar: bar.open_ns)
    return bars[first:last]
