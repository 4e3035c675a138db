"""The market: prices that move second by second, books of five levels, and candles of both.

Spot prices come from a seeded random walk or from candles played as a path; futures and options
follow their underlying. Prices are points, sizes units. A derivative begins to move once somebody
asks for it, and from then on with every step.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from random import Random
from typing import Final

from daemon.brokers.fyers_simulator.candles import (
    MINUTE_NS,
    TRADING_DAYS,
    TRADING_SECONDS,
    Bar,
    SeededPast,
    between,
)
from daemon.brokers.fyers_simulator.hours import TradingHours
from daemon.brokers.fyers_simulator.instruments import (
    NS_PER_SECOND,
    Contract,
    Master,
    local_time,
    on_tick,
)
from daemon.brokers.fyers_simulator.options import RATE, Valuation, value, years_between
from daemon.brokers.fyers_simulator.played import PlayedCandles
from daemon.history import CandleTable

LEVELS: Final = 5
_OPTION_SPREAD: Final = 0.002  # of the premium, at least one tick
_SIZES: Final = range(1, 41)  # lots of a level
_ORDERS: Final = range(1, 31)  # that make up a level


@dataclass(slots=True)
class Quote:
    """What is known of one contract now; prices in points."""

    contract: Contract
    last: int
    bid: int
    ask: int
    open: int
    high: int
    low: int
    previous_close: int
    last_trade_ns: int
    feed_ns: int
    bid_sizes: list[int] = field(default_factory=lambda: [0] * LEVELS)
    ask_sizes: list[int] = field(default_factory=lambda: [0] * LEVELS)
    bid_orders: list[int] = field(default_factory=lambda: [0] * LEVELS)
    ask_orders: list[int] = field(default_factory=lambda: [0] * LEVELS)
    volume: int = 0
    last_quantity: int = 0
    traded_value: int = 0
    total_buy: int = 0
    total_sell: int = 0
    open_interest: int = 0

    @property
    def average(self) -> int:
        return round(self.traded_value / self.volume) if self.volume else self.last

    def levels(self, *, buying: bool) -> list[tuple[int, int]]:
        """Return price and size of what an order of that side meets, best first."""
        tick = self.contract.tick
        if buying:
            prices = [self.ask + k * tick for k in range(LEVELS)]
            return list(zip(prices, self.ask_sizes, strict=True))
        prices = [max(tick, self.bid - k * tick) for k in range(LEVELS)]
        return list(zip(prices, self.bid_sizes, strict=True))


class Market:
    """Quotes of everything in the master, at `now_ns`."""

    def __init__(
        self,
        master: Master,
        hours: TradingHours,
        *,
        seed: int,
        start_ns: int,
        played: Sequence[tuple[str, CandleTable]] = (),
    ) -> None:
        self.master = master
        self.hours = hours
        self.now_ns = start_ns
        self._seed = seed
        self._start_ns = start_ns
        self._past = SeededPast(seed, hours, start_ns)
        self._played = {
            name: PlayedCandles(master[name], table, hours.calendar, seed=seed, start_ns=start_ns)
            for name, table in played
        }
        self._draw: dict[str, Random] = {}
        self._spot: dict[str, float] = {}  # unrounded, of underlyings
        self._quotes: dict[str, Quote] = {}
        self._minutes: dict[str, list[Bar]] = {}
        for contract in list(master):
            if contract.symbol == contract.underlying.symbol:
                self._begin(contract)

    def advance_to(self, now_ns: int) -> list[Quote]:
        """Move on to an instant in one step; return the quotes that changed."""
        if now_ns < self.now_ns:
            raise ValueError(f"the market stands at {self.now_ns} ns, cannot go back to {now_ns}")
        seconds = (now_ns - self.now_ns) / NS_PER_SECOND
        self.now_ns = now_ns
        if seconds == 0:
            return []
        return [quote for quote in self._quotes.values() if self._move(quote, seconds)]

    @property
    def next_point_ns(self) -> int | None:
        """When the next point of played candles is due, None without any."""
        due = [at for played in self._played.values() if (at := played.next_ns) is not None]
        return min(due, default=None)

    def quote(self, symbol: str) -> Quote:
        """Return the live quote of a listed symbol; KeyError for another."""
        found = self._quotes.get(symbol)
        if found is None:
            contract = self.master[symbol]
            found = self._quotes[symbol] = self._derived(contract)
        return found

    def remove_expired(self, today: date) -> None:
        """Take off the list what expired before today."""
        for contract in list(self.master):
            if contract.expiry is not None and contract.expiry < today:
                self.master.remove(contract)
                self._quotes.pop(contract.symbol, None)

    def spot_prices(self) -> dict[str, int]:
        """Return the price in points at which each underlying stands."""
        return {symbol: round(price) for symbol, price in self._spot.items()}

    @property
    def live_quotes(self) -> list[Quote]:
        """All quotes that somebody has asked for."""
        return list(self._quotes.values())

    def set_price(self, symbol: str, price: int) -> Quote:
        """Trade at a price in points now; of an underlying, its derivatives follow."""
        quote = self.quote(symbol)
        if symbol in self._spot:
            self._spot[symbol] = float(price)
        self._print(quote, float(price), 0.0)
        quote.last = on_tick(price, quote.contract.tick)
        self._extend_day(quote)
        for other in self._quotes.values():
            if other.contract.underlying.symbol == symbol and other is not quote:
                self._print(other, self.fair(other.contract), 0.0)
        return quote

    def fair(self, contract: Contract) -> float:
        """Return the unrounded value of a contract in points."""
        spot = self._spot[contract.underlying.symbol]
        return self._value_at(contract, spot, self.now_ns)

    def valuation(self, contract: Contract) -> Valuation:
        """Return price and sensitivities of an option, in points."""
        return self._valuation(contract, self._spot[contract.underlying.symbol], self.now_ns)

    def finest_seconds(self, symbol: str) -> int:
        """Return the shortest candles that are known of a symbol."""
        played = self._played.get(self.master[symbol].underlying.symbol)
        return 60 if played is None else played.table.bar_ns // NS_PER_SECOND

    def bars(self, symbol: str, start_ns: int, end_ns: int) -> list[Bar]:
        """Return candles that open in [start, end) up to now, as fine as they are known.

        Minutes, or what the file has. A derivative's candles are those of its underlying, valued
        at their opening times. The last one may be unfinished.
        """
        contract = self.master[symbol]
        spot = self._spot_bars(self.master[contract.underlying.symbol], start_ns, end_ns)
        if contract.symbol == contract.underlying.symbol:
            return list(spot)
        return [self._derived_bar(contract, bar) for bar in spot]

    def _spot_bars(self, contract: Contract, start_ns: int, end_ns: int) -> Iterable[Bar]:
        end_ns = min(end_ns, self.now_ns + 1)
        played = self._played.get(contract.symbol)
        if played is not None:
            return self._cut_at_now(contract, played.bars(start_ns, end_ns))
        past = self._past.bars(contract, start_ns, min(end_ns, self._start_ns))
        live = between(self._minutes.get(contract.symbol, []), start_ns, end_ns)
        return _without_overlap([*past, *live])

    def _cut_at_now(self, contract: Contract, bars: Iterable[Bar]) -> Iterator[Bar]:
        """Show of an unfinished candle only what has been traded of it."""
        for bar in bars:
            if bar.open_ns + self._played[contract.symbol].table.bar_ns <= self.now_ns:
                yield bar
                continue
            minutes = between(self._minutes.get(contract.symbol, []), bar.open_ns, self.now_ns + 1)
            if minutes:
                yield Bar(
                    bar.open_ns,
                    minutes[0].open,
                    max(minute.high for minute in minutes),
                    min(minute.low for minute in minutes),
                    minutes[-1].close,
                    sum(minute.volume for minute in minutes),
                )

    def _begin(self, contract: Contract) -> None:
        played = self._played.get(contract.symbol)
        price = contract.underlying.price
        close = self._past.previous_close(contract)
        if played is not None:
            close = played.close_before(self._start_ns) or price
        self._spot[contract.symbol] = float(price)
        close = on_tick(close, contract.tick)
        contract = self._closed_at(contract, close)
        quote = self._empty(contract, on_tick(price, contract.tick), close)
        self._quotes[contract.symbol] = quote
        self._print(quote, float(price), 0.0)

    def _derived(self, contract: Contract) -> Quote:
        underlying = self._quotes[contract.underlying.symbol]
        value_of = self._value_at
        yesterday = self._start_ns - 86_400 * NS_PER_SECOND
        close = on_tick(value_of(contract, underlying.previous_close, yesterday), contract.tick)
        contract = self.master.change(contract.symbol, previous_close=close)
        first = on_tick(value_of(contract, underlying.open, self._start_ns), contract.tick)
        quote = self._empty(contract, first, close)
        self._print(quote, self.fair(contract), 0.0)
        return quote

    def _empty(self, contract: Contract, first: int, close: int) -> Quote:
        interest = 0
        if contract.expiry is not None:
            interest = contract.lot * self._random(contract.symbol).randint(500, 50_000)
        return Quote(
            contract=contract,
            last=first,
            bid=first,
            ask=first,
            open=first,
            high=first,
            low=first,
            previous_close=close,
            last_trade_ns=self.now_ns,
            feed_ns=self.now_ns,
            open_interest=interest,
        )

    def _move(self, quote: Quote, seconds: float) -> bool:
        contract = quote.contract
        played = self._played.get(contract.symbol)
        if played is not None:
            return self._play(quote, played)
        if not self.hours.trades(contract, self.now_ns):
            return False
        self._roll_day(quote)
        if contract.symbol in self._spot:
            self._walk(contract, seconds)
        before = quote.volume
        self._print(quote, self.fair(contract), seconds)
        self._extend_day(quote)
        if contract.symbol in self._spot:
            self._record(quote, self.now_ns, quote.volume - before)
        return True

    def _play(self, quote: Quote, played: PlayedCandles) -> bool:
        """Follow the path of candles; when they trade is for them to say."""
        moved = False
        for at_ns, price, volume in played.until(self.now_ns):
            self._roll_day(quote)
            self._spot[quote.contract.symbol] = float(price)
            self._print(quote, float(price), 0.0)
            quote.last = price
            # The candles' count is the market's; it begins anew with their session.
            traded = volume - quote.volume if volume >= quote.volume else volume
            self._trade(quote, traded)
            quote.volume = volume
            self._extend_day(quote)
            self._record(quote, at_ns, traded)
            moved = True
        return moved

    def _walk(self, contract: Contract, seconds: float) -> None:
        volatility = contract.underlying.annual_volatility / math.sqrt(TRADING_DAYS)
        step = self._random(contract.symbol).gauss(0, 1)
        step *= volatility * math.sqrt(seconds / TRADING_SECONDS)
        moved = self._spot[contract.symbol] * math.exp(step)
        self._spot[contract.symbol] = min(max(moved, contract.lower), contract.upper)

    def _print(self, quote: Quote, fair: float, seconds: float) -> None:
        """Put new quotes around a value and, when time has passed, trade at one of them."""
        contract, draw = quote.contract, self._random(quote.contract.symbol)
        quote.feed_ns = self.now_ns
        if contract.is_index:
            quote.last = quote.bid = quote.ask = on_tick(fair, contract.tick)
            quote.last_trade_ns = self.now_ns
            return
        spread = contract.tick
        if contract.option_type != "XX":
            spread = max(spread, on_tick(fair * _OPTION_SPREAD, contract.tick))
        bid = max(contract.tick, math.floor((fair - spread / 2) / contract.tick) * contract.tick)
        quote.bid, quote.ask = bid, bid + spread
        sizes = [lots * contract.lot for lots in draw.choices(_SIZES, k=2 * LEVELS)]
        quote.bid_sizes, quote.ask_sizes = sizes[:LEVELS], sizes[LEVELS:]
        orders = draw.choices(_ORDERS, k=2 * LEVELS)
        quote.bid_orders, quote.ask_orders = orders[:LEVELS], orders[LEVELS:]
        quote.total_buy = sum(quote.bid_sizes) * draw.randint(5, 20)
        quote.total_sell = sum(quote.ask_sizes) * draw.randint(5, 20)
        quote.last = draw.choice((quote.bid, quote.ask))
        if seconds:
            self._trade(quote, draw.randint(1, 8) * contract.lot)

    def _trade(self, quote: Quote, units: int) -> None:
        quote.last_quantity = units
        quote.volume += units
        quote.traded_value += units * quote.last
        quote.last_trade_ns = self.now_ns

    @staticmethod
    def _extend_day(quote: Quote) -> None:
        quote.high = max(quote.high, quote.last)
        quote.low = min(quote.low, quote.last)

    def _roll_day(self, quote: Quote) -> None:
        """Begin the day's figures anew when the last trade was on another day."""
        today = local_time(self.now_ns).date()
        if local_time(quote.last_trade_ns).date() != today:
            quote.previous_close = quote.last
            quote.contract = self._closed_at(quote.contract, quote.last)
            quote.open = quote.high = quote.low = quote.last
            quote.volume = quote.traded_value = 0

    def _closed_at(self, contract: Contract, close: int) -> Contract:
        """Give a contract a new previous close, and its price band around it."""
        old, tick = contract.previous_close, contract.tick
        band = (contract.lower, contract.upper)
        if contract.option_type == "XX":
            band = (on_tick(band[0] * close / old, tick), on_tick(band[1] * close / old, tick))
        return self.master.change(
            contract.symbol, previous_close=close, lower=band[0], upper=band[1]
        )

    def _record(self, quote: Quote, instant_ns: int, volume: int = 0) -> None:
        minutes = self._minutes.setdefault(quote.contract.symbol, [])
        open_ns = instant_ns // MINUTE_NS * MINUTE_NS
        last = quote.last
        if minutes and minutes[-1].open_ns == open_ns:
            bar = minutes[-1]
            minutes[-1] = Bar(
                open_ns,
                bar.open,
                max(bar.high, last),
                min(bar.low, last),
                last,
                bar.volume + volume,
            )
        else:
            minutes.append(Bar(open_ns, last, last, last, last, volume))

    def _value_at(self, contract: Contract, spot: float, now_ns: int) -> float:
        if contract.option_type != "XX":
            return self._valuation(contract, spot, now_ns).price
        if contract.expires_at_ns is not None:
            return spot * math.exp(RATE * years_between(now_ns, contract.expires_at_ns))
        return spot

    @staticmethod
    def _valuation(contract: Contract, spot: float, now_ns: int) -> Valuation:
        expires_ns = contract.expires_at_ns
        if expires_ns is None:
            raise ValueError(f"{contract.symbol} is not an option")
        return value(
            spot,
            contract.strike,
            years_between(now_ns, expires_ns),
            contract.underlying.annual_volatility,
            is_call=contract.option_type == "CE",
        )

    def _derived_bar(self, contract: Contract, bar: Bar) -> Bar:
        def valued(spot: int) -> int:
            return on_tick(self._value_at(contract, spot, bar.open_ns), contract.tick)

        prices = [valued(price) for price in bar[1:5]]
        return bar._replace(open=prices[0], high=max(prices), low=min(prices), close=prices[3])

    def _random(self, symbol: str) -> Random:
        found = self._draw.get(symbol)
        if found is None:
            found = self._draw[symbol] = Random(f"{self._seed}|{symbol}|live")
        return found


def _without_overlap(bars: list[Bar]) -> list[Bar]:
    """Join a minute that the start of the simulation has cut in two."""
    joined: list[Bar] = []
    for bar in bars:
        if joined and joined[-1].open_ns == bar.open_ns:
            last = joined[-1]
            joined[-1] = Bar(
                bar.open_ns,
                last.open,
                max(last.high, bar.high),
                min(last.low, bar.low),
                bar.close,
                last.volume + bar.volume,
            )
        else:
            joined.append(bar)
    return joined
