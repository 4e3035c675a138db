"""What is listed on a day: spots, futures and options of every underlying, by the exchanges' rules.

Expiry falls on the weekdays of today's rules (Tuesday at NSE, Thursday at BSE, since 1 Sep 2025),
on earlier dates as well; on a holiday, the trading day before.
"""

from collections.abc import Iterator
from dataclasses import replace
from datetime import date, time, timedelta
from functools import lru_cache
from typing import Final

from actors.instruments import Instrument
from actors.session import SessionCalendar
from daemon.brokers.fyers_simulator.instruments import (
    CASH,
    CURRENCY,
    DERIVATIVES,
    NSE,
    UNDERLYINGS,
    Contract,
    Master,
    Underlying,
    instant_ns,
    on_tick,
    tick_of,
)

_MONTHS: Final = (
    "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
)  # fmt: skip
_MONTH_LETTERS: Final = "123456789OND"
_STRIKES_EACH_WAY: Final = 25
_LONGEST_BREAK_DAYS: Final = 10
_MONTHLY_EXPIRIES: Final = 2
_WEEKLY_EXPIRIES: Final = 3
_BAND_OF: Final = {"share": 0.10, "index": 0.20, "future": 0.10}


def listing(instrument: Instrument, price: int, precision: int) -> Contract:
    """Make a contract of an instrument that the exchange does not list, to play its candles.

    It stands in the currency segment, keeps the hours of the instrument's own session and has a
    band so wide that no candle leaves it.
    """
    underlying = Underlying(
        symbol=instrument.exchange_symbol,
        root=instrument.symbol,
        scrip=str(90_000 + sum(instrument.symbol.encode())),
        price=price,
        annual_volatility=0.1,
    )
    return Contract(
        symbol=instrument.exchange_symbol,
        token=underlying.scrip,
        exchange=NSE,
        segment=CURRENCY,
        instrument=0,
        underlying=underlying,
        lot=instrument.lot_size,
        tick=max(1, int(instrument.tick_size * 10**precision)),
        freeze=0,
        previous_close=price,
        lower=1,
        upper=10 * price,
        description=instrument.name,
        precision=precision,
        session=instrument.session,
    )


def build_master(
    day: date,
    sessions: SessionCalendar,
    prices: dict[str, int] | None = None,
    *,
    with_derivatives: bool = True,
) -> Master:
    """List everything that trades on a day around the given prices in paise (default: built in)."""
    given = tuple(sorted((prices or {}).items()))
    return _master_of(day, sessions, given, with_derivatives).copy()


@lru_cache(maxsize=8)
def _master_of(
    day: date,
    sessions: SessionCalendar,
    prices: tuple[tuple[str, int], ...],
    with_derivatives: bool,
) -> Master:
    contracts = _contracts(day, sessions, dict(prices), with_derivatives=with_derivatives)
    return Master(contracts)


def _contracts(
    day: date, sessions: SessionCalendar, prices: dict[str, int], *, with_derivatives: bool
) -> Iterator[Contract]:
    for number, listed in enumerate(UNDERLYINGS):
        underlying = replace(listed, price=prices.get(listed.symbol, listed.price))
        yield _spot(underlying)
        if not (underlying.freeze and with_derivatives):
            continue
        market = "NSE" if underlying.exchange == NSE else "BSE"
        monthly = _monthly_expiries(day, market, sessions)
        serial = 40_000 + 1_000 * number
        for position, expiry in enumerate(monthly):
            yield _future(underlying, expiry, str(serial + 900 + position))
        if underlying.strike_step:
            weekly = _weekly_expiries(day, market, sessions) if underlying.weekly else []
            expiries = sorted({*monthly, *weekly})
            yield from _options(underlying, expiries, set(monthly), serial)


def _spot(underlying: Underlying) -> Contract:
    band = _BAND_OF["index" if underlying.is_index else "share"]
    tick = 5 if underlying.is_index else tick_of(underlying.price)
    return Contract(
        symbol=underlying.symbol,
        token=underlying.scrip,
        exchange=underlying.exchange,
        segment=CASH,
        instrument=10 if underlying.is_index else 0,
        underlying=underlying,
        lot=1,
        tick=tick,
        freeze=0,
        previous_close=underlying.price,
        lower=on_tick(underlying.price * (1 - band), tick),
        upper=on_tick(underlying.price * (1 + band), tick),
        description=underlying.root,
    )


def _future(underlying: Underlying, expiry: date, token: str) -> Contract:
    exchange = underlying.symbol.partition(":")[0]
    tick = tick_of(underlying.price, is_index_future=underlying.is_index)
    band = _BAND_OF["future"]
    return Contract(
        symbol=f"{exchange}:{underlying.root}{_month_code(expiry)}FUT",
        token=token,
        exchange=underlying.exchange,
        segment=DERIVATIVES,
        instrument=11 if underlying.is_index else 13,
        underlying=underlying,
        lot=underlying.lot,
        tick=tick,
        freeze=underlying.freeze,
        previous_close=on_tick(underlying.price, tick),
        lower=on_tick(underlying.price * (1 - band), tick),
        upper=on_tick(underlying.price * (1 + band), tick),
        description=f"{underlying.root} {expiry:%d %b %y} FUT",
        expiry=expiry,
    )


def _options(
    underlying: Underlying, expiries: list[date], monthly: set[date], serial: int
) -> Iterator[Contract]:
    exchange = underlying.symbol.partition(":")[0]
    step = underlying.strike_step
    middle = round(underlying.price / step) * step
    for expiry in expiries:
        code = _month_code(expiry) if expiry in monthly else _week_code(expiry)
        for offset in range(-_STRIKES_EACH_WAY, _STRIKES_EACH_WAY + 1):
            strike = middle + offset * step
            if strike <= 0:
                continue
            for kind in ("CE", "PE"):
                yield Contract(
                    symbol=f"{exchange}:{underlying.root}{code}{strike // 100}{kind}",
                    token=str(serial),
                    exchange=underlying.exchange,
                    segment=DERIVATIVES,
                    instrument=14,
                    underlying=underlying,
                    lot=underlying.lot,
                    tick=5,
                    freeze=underlying.freeze,
                    previous_close=0,  # set by the market, which can value it
                    lower=5,
                    upper=on_tick(underlying.price * 0.2, 5),
                    description=f"{underlying.root} {expiry:%d %b %y} {strike // 100} {kind}",
                    expiry=expiry,
                    strike=strike,
                    option_type=kind,
                )
                serial += 1


def _month_code(expiry: date) -> str:
    return f"{expiry:%y}{_MONTHS[expiry.month - 1]}"


def _week_code(expiry: date) -> str:
    return f"{expiry:%y}{_MONTH_LETTERS[expiry.month - 1]}{expiry:%d}"


def _weekly_expiries(day: date, market: str, sessions: SessionCalendar) -> list[date]:
    weekday = 1 if market == "NSE" else 3  # Tuesday, Thursday: since 1 Sep 2025
    nominal = day + timedelta(days=(weekday - day.weekday()) % 7)
    found: list[date] = []
    while len(found) < _WEEKLY_EXPIRIES:
        expiry = _trading_day(nominal, market, sessions)
        if expiry >= day:
            found.append(expiry)
        nominal += timedelta(days=7)
    return found


def _monthly_expiries(day: date, market: str, sessions: SessionCalendar) -> list[date]:
    weekday = 1 if market == "NSE" else 3
    first = day.replace(day=1)
    found: list[date] = []
    while len(found) < _MONTHLY_EXPIRIES:
        following = (first + timedelta(days=32)).replace(day=1)
        last = following - timedelta(days=1)
        nominal = last - timedelta(days=(last.weekday() - weekday) % 7)
        expiry = _trading_day(nominal, market, sessions)
        if expiry >= day:
            found.append(expiry)
        first = following
    return found


def _trading_day(day: date, market: str, sessions: SessionCalendar) -> date:
    """Return the day itself, or the trading day before it; itself where no hours are known."""
    for back in range(_LONGEST_BREAK_DAYS):
        earlier = day - timedelta(days=back)
        if sessions.interval(market, instant_ns(earlier, time(12))) is not None:
            return earlier
    return day
