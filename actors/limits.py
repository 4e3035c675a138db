"""Limits: the worst price of an order that should fill at once, and when it follows the market.

An order at the market has no worst price; exchanges penalise algorithms that send many of them.
Whether and when to trade is for others to say.
"""

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Final

from actors.instruments import Instrument
from actors.messages import OrderIntent, Tick
from actors.orders import Order
from actors.policies import ExecutionSettings

_SECOND_NS = 1_000_000_000
_SHARE_STEP: Final = Decimal("0.0002")  # of the price


class Limits:
    """Set limits a band beyond the price that an order would trade at now."""

    def __init__(self, settings: ExecutionSettings) -> None:
        self._is_on = settings.order_type == "limit"
        self._band = Decimal(str(settings.limit_band))
        self._after_ns = int(settings.reprice_after_seconds * _SECOND_NS)
        self._most_times = settings.reprice_attempts
        self._ticks: dict[str, Tick] = {}

    def see(self, tick: Tick) -> None:
        """Note the last price of an instrument; an older one is left out."""
        if not self._is_on:
            return
        last = self._ticks.get(tick.instrument)
        if last is None or tick.event_ns >= last.event_ns:
            self._ticks[tick.instrument] = tick

    def of(
        self, instrument: Instrument, quantity: int, intent: OrderIntent | None
    ) -> Decimal | None:
        """Return the limit of an order for signed units; None: it goes out at the market.

        Without a tick the intent's reference price counts; without both there is no limit, since an
        exit must not wait for a price.
        """
        if not self._is_on:
            return None
        price = self._price(instrument.symbol, is_buy=quantity > 0)
        if price is None and intent is not None:
            price = intent.reference_price
        return None if price is None else self._beyond(instrument, price, is_buy=quantity > 0)

    def next_of(self, order: Order, instrument: Instrument, now_ns: int) -> Decimal | None:
        """Return the limit that a resting order should have now; None: leave it as it is."""
        is_waiting = (
            order.limit is not None
            and order.state in ("accepted", "partially_filled")
            and order.cancel_asked_ns is None
            and order.repriced < self._most_times
            and now_ns - order.limit_ns >= self._after_ns
        )
        is_buy = order.placed.side == "buy"
        price = self._price(instrument.symbol, is_buy=is_buy)
        if not is_waiting or order.limit is None or price is None:
            return None
        limit = self._beyond(instrument, price, is_buy=is_buy)
        is_nearer = limit > order.limit if is_buy else limit < order.limit
        return limit if is_nearer else None

    def _price(self, name: str, *, is_buy: bool) -> Decimal | None:
        tick = self._ticks.get(name)
        if tick is None:
            return None
        return (tick.ask if is_buy else tick.bid) or tick.last_price

    def _beyond(self, instrument: Instrument, price: Decimal, *, is_buy: bool) -> Decimal:
        step = _step(instrument, price)
        steps = price * (1 + self._band if is_buy else 1 - self._band) / step
        if is_buy:
            return steps.to_integral_value(rounding=ROUND_CEILING) * step
        return max(step, steps.to_integral_value(rounding=ROUND_FLOOR) * step)


def _step(instrument: Instrument, price: Decimal) -> Decimal:
    """Return what limits are a multiple of: the tick, or for a share whatever its tick may be.

    Exchanges set the ticks of shares anew each month, by price: 1 or 5 of a power of ten, at most a
    4000th of the price (NSE since April 2025: 5 from 20,000 on). The next such number from a 5000th
    on is a multiple of them all.
    """
    if not instrument.exchange_symbol.endswith("-EQ"):
        return instrument.tick_size
    least = price * _SHARE_STEP
    power = Decimal(10) ** least.adjusted()
    return max(instrument.tick_size, next(n * power for n in (1, 5, 10) if n * power >= least))
