"""Limits: the worst price of an order that should fill at once, and when it follows the market.

Quotes of an option come more seldom than prices of its underlying, and end where the price leaves
the strikes that are read: a sale reckons with what the underlying has moved since. An order at the
market has no worst price; exchanges penalise algorithms that send many of them. Whether and when to
trade is for others to say.
"""

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Final, NamedTuple

from actors.instruments import Instrument
from actors.messages import OrderIntent, Tick
from actors.orders import Order
from actors.policies import ExecutionSettings

_SECOND_NS = 1_000_000_000
_SHARE_STEP: Final = Decimal("0.0002")  # of the price


class Paid(NamedTuple):
    """What a bought option cost, with the price of its underlying at that time, if known."""

    price: Decimal
    underlying: Decimal | None


class Limits:
    """Set limits a band beyond the price that an order would trade at now."""

    def __init__(self, settings: ExecutionSettings) -> None:
        self._is_on = settings.order_type == "limit"
        self._band = Decimal(str(settings.limit_band))
        self._after_ns = int(settings.reprice_after_seconds * _SECOND_NS)
        self._most_times = settings.reprice_attempts
        self._ticks: dict[str, Tick] = {}
        self._underlying_then: dict[str, Decimal] = {}  # option -> price when it was quoted

    def see(self, tick: Tick, underlying: str = "") -> None:
        """Note the last price of an instrument; an older one is left out.

        underlying: of an option.
        """
        if not self._is_on:
            return
        last = self._ticks.get(tick.instrument)
        if last is None or tick.event_ns >= last.event_ns:
            self._ticks[tick.instrument] = tick
            if underlying in self._ticks:
                self._underlying_then[tick.instrument] = self._ticks[underlying].last_price

    def of(
        self,
        instrument: Instrument,
        quantity: int,
        intent: OrderIntent | None,
        paid: Paid | None = None,
    ) -> Decimal | None:
        """Return the limit of an order for signed units; None: it goes out at the market.

        Without a tick the intent's reference price counts, or for an option that is sold what was
        paid; without any there is no limit, since an exit must not wait for a price.
        """
        if not self._is_on:
            return None
        price = self._price(instrument, paid, is_buy=quantity > 0)
        if price is None and intent is not None:
            price = intent.reference_price
        return None if price is None else self._beyond(instrument, price, is_buy=quantity > 0)

    def next_of(
        self, order: Order, instrument: Instrument, now_ns: int, paid: Paid | None = None
    ) -> Decimal | None:
        """Return the limit that a resting order should have now; None: leave it as it is."""
        is_waiting = (
            order.limit is not None
            and order.state in ("accepted", "partially_filled")
            and order.cancel_asked_ns is None
            and order.repriced < self._most_times
            and now_ns - order.limit_ns >= self._after_ns
        )
        is_buy = order.placed.side == "buy"
        price = self._price(instrument, paid, is_buy=is_buy)
        if not is_waiting or order.limit is None or price is None:
            return None
        limit = self._beyond(instrument, price, is_buy=is_buy)
        is_nearer = limit > order.limit if is_buy else limit < order.limit
        return limit if is_nearer else None

    def _price(self, instrument: Instrument, paid: Paid | None, *, is_buy: bool) -> Decimal | None:
        tick = self._ticks.get(instrument.symbol)
        if tick is not None:
            price = (tick.ask if is_buy else tick.bid) or tick.last_price
            then = self._underlying_then.get(instrument.symbol)
        elif paid is not None:
            price, then = paid
        else:
            return None
        return price if is_buy else price - self._lost(instrument, then)

    def _lost(self, instrument: Instrument, then: Decimal | None) -> Decimal:
        """Return the most that an option can have lost by what its underlying did since `then`."""
        now = self._ticks.get(instrument.underlying)
        if now is None or then is None:
            return Decimal(0)
        rise = now.last_price - then
        return max(Decimal(0), rise if instrument.option_kind == "PE" else -rise)

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
