"""Option chains: what the options on our indices cost now, read from Fyers and its symbol master.

The chain has prices and the master everything else (lot, freeze quantity, band, expiry); what one
of them does not list is left out. Which option is bought is for the actors to say.
"""

from collections.abc import Iterable, Mapping
from datetime import date
from decimal import Decimal
from typing import Final

from actors.instruments import Instrument
from actors.messages import OptionChain, OptionContract, OptionQuote
from actors.session import SessionCalendar
from daemon.brokers.fyers.rest import FyersRest, JsonObject
from daemon.clock import NS_PER_SECOND
from daemon.errors import BrokerError, BrokerUnavailable, DataError
from daemon.logs import get_logger
from daemon.symbol_master import MasterRows, options_of, rows_about

STRIKES: Final = 10
"""Each way of the price: at NIFTY's distance of 50 about 2 % of it."""
CHAINS_EVERY_S: Final = 10.0
"""Between two readings: a call or two of the 200 a minute, a third of the age that risk allows."""
_OLD_MASTER_NS: Final = 1800 * NS_PER_SECOND
_MASTERS: Final = ("CM", "FO")


class OptionChains:
    """Ask for the chains of some indices; the symbol master is read anew each day."""

    def __init__(
        self, rest: FyersRest, instruments: Iterable[Instrument], calendar: SessionCalendar
    ) -> None:
        self._rest = rest
        self._underlyings = [one for one in instruments if one.kind == "index"]
        self._calendar = calendar
        self._log = get_logger(part="option_chains")
        self._rows: dict[str, MasterRows] = {}  # by exchange, of our indices and their options
        self._read_ns: dict[str, int] = {}  # by exchange: market time of these rows
        self._contracts: dict[str, dict[str, OptionContract]] = {}  # by underlying, by symbol

    @property
    def names(self) -> list[str]:
        """Symbols of the indices that are asked for."""
        return [underlying.symbol for underlying in self._underlyings]

    async def read(self, now_ns: int) -> list[OptionChain]:
        """Return the chain of each index whose market trades, but for those that cannot be had.

        What is lacking is no error here: the age of its last chain ends what is bought by it.
        """
        chains = []
        for underlying in self._underlyings:
            if self._calendar.phase(underlying.session, now_ns) != "closed":
                try:
                    chains.append(await self._chain(underlying, now_ns))
                except (BrokerError, DataError) as error:
                    name = underlying.symbol
                    self._log.warning("option chain not read", of=name, reason=str(error))
        return chains

    async def _chain(self, underlying: Instrument, now_ns: int) -> OptionChain:
        today = self._calendar.session_key(underlying.session, now_ns)
        if self._is_outdated(underlying, today, now_ns):
            await self._read_master(underlying.exchange, now_ns)
        if underlying.symbol not in self._contracts:
            options = options_of(self._rows[underlying.exchange], underlying.exchange_symbol)
            self._contracts[underlying.symbol] = {one.symbol: one for one in options}
        contracts = self._contracts[underlying.symbol]
        answer = await self._rest.option_chain(underlying.exchange_symbol, STRIKES)
        quotes = _quotes(answer, contracts)
        if any(quote.contract.expiry == today for quote in quotes):
            # An option on its last day may not be bought late: the next expiry takes its place.
            for expiry_s in _expiries(answer)[1:2]:
                answer = await self._rest.option_chain(
                    underlying.exchange_symbol, STRIKES, expiry_s
                )
                quotes += _quotes(answer, contracts)
        return OptionChain(underlying=underlying.symbol, quotes=tuple(quotes), read_ns=now_ns)

    def _is_outdated(self, underlying: Instrument, today: date, now_ns: int) -> bool:
        """Tell whether the master is to be read: once a day, and again while it is an old one."""
        exchange = underlying.exchange
        read_ns = self._read_ns.get(exchange)
        if read_ns is None or self._calendar.session_key(underlying.session, read_ns) != today:
            return True
        is_old = any(
            str(row.get("lastUpdate")) < str(today) for row in self._rows[exchange].values()
        )
        return is_old and now_ns - read_ns >= _OLD_MASTER_NS

    async def _read_master(self, exchange: str, now_ns: int) -> None:
        files = [await self._rest.symbol_master(f"{exchange}_{file}") for file in _MASTERS]
        ours = [one for one in self._underlyings if one.exchange == exchange]
        self._rows[exchange] = rows_about(files, {one.exchange_symbol for one in ours})
        self._read_ns[exchange] = now_ns
        for one in ours:
            self._contracts.pop(one.symbol, None)


def _expiries(answer: JsonObject) -> list[str]:
    listed = answer.get("expiryData")
    if not isinstance(listed, list):
        raise BrokerUnavailable("the option chain names no expiries")
    return [str(row["expiry"]) for row in listed if isinstance(row, dict) and "expiry" in row]


def _quotes(answer: JsonObject, contracts: Mapping[str, OptionContract]) -> list[OptionQuote]:
    rows = answer.get("optionsChain")
    if not isinstance(rows, list):
        raise BrokerUnavailable("the option chain has no rows")
    found = []
    for row in rows:
        contract = contracts.get(str(row.get("symbol"))) if isinstance(row, dict) else None
        last = _price(row.get("ltp")) if contract is not None else None
        if contract is not None and last is not None:
            bid, ask = _price(row.get("bid")), _price(row.get("ask"))
            found.append(OptionQuote(contract=contract, last_price=last, bid=bid, ask=ask))
    return found


def _price(value: object) -> Decimal | None:
    """Return a price; None for what is none: 0 stands for a side without orders."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        return None
    price = Decimal(value)
    return price if price.is_finite() and price > 0 else None
