"""Vehicles: what a view of an instrument is traded through, itself or an option on it.

An option comes from the last chain that the venue has read, never from a rule. Whether the trade
may be made is for risk.py.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from actors.instruments import Instrument
from actors.levels import is_price
from actors.messages import Action, OptionChain, OptionContract, OptionQuote
from actors.options import NoContract, Strategy, View, as_instrument, choose_option
from actors.policies import ExecutionSettings, RiskLimits
from actors.session import SessionCalendar

_SECOND_NS: Final = 1_000_000_000
_VIEW_OF_ACTION: Final[dict[Action, View]] = {"BUY_LONG": "long", "SELL_SHORT": "short"}


@dataclass(frozen=True, slots=True)
class Vehicle:
    """What is ordered for a view, and at what price it can be had."""

    instrument: Instrument
    price: Decimal  # of one unit
    sign: int  # 1 buys, -1 sells
    contract: OptionContract | None = None


class Vehicles:
    """Keep the last chain of each underlying and choose from it."""

    def __init__(
        self, settings: ExecutionSettings, limits: RiskLimits, calendar: SessionCalendar
    ) -> None:
        self._settings = settings
        self._limits = limits
        self._calendar = calendar
        self._chains: dict[str, OptionChain] = {}

    def take(self, chain: OptionChain) -> None:
        """Choose from this chain from now on."""
        self._chains[chain.underlying] = chain

    def are_options(self, instrument: Instrument) -> bool:
        """Tell whether a view of the instrument is traded by buying options."""
        return instrument.kind == "index" and self._settings.trade_index_through == "options"

    def of(
        self,
        instrument: Instrument,
        action: Action,
        price: Decimal,
        now_ns: int,
        strategy: Strategy | None = None,
    ) -> Vehicle:
        """Return what to order for an entry; NoContract says why there is nothing.

        price: of the instrument itself. strategy: None takes that of the settings.
        """
        if not self.are_options(instrument):
            return Vehicle(instrument, price, 1 if action == "BUY_LONG" else -1)
        chain = self._chain_of(instrument, now_ns)
        view = _VIEW_OF_ACTION[action]
        session = instrument.session
        today = self._calendar.session_key(session, now_ns)
        on_expiry_day = (
            self._limits.min_days_to_expiry == 0
            and self._calendar.phase(session, now_ns, today) == "open"
        )
        chosen = choose_option(
            (quote.contract for quote in chain.quotes),
            view=view,
            spot=price,
            today=today,
            valid_from=self._calendar.last_trading_day(session, now_ns),
            strategy=strategy or self._settings.option_strategy,
            on_expiry_day=on_expiry_day,
        )
        quote = next(quote for quote in chain.quotes if quote.contract is chosen)
        return Vehicle(as_instrument(chosen, instrument), _premium(quote), 1, chosen)

    def _chain_of(self, instrument: Instrument, now_ns: int) -> OptionChain:
        chain = self._chains.get(instrument.symbol)
        if chain is None:
            raise NoContract(f"no option chain of {instrument.symbol} has been read yet")
        most_s = self._limits.max_chain_age_seconds
        age_s = (now_ns - chain.read_ns) / _SECOND_NS
        if age_s > most_s:
            raise NoContract(f"the option chain is {age_s:.1f} s old, allowed: {most_s:g} s")
        return chain


def _premium(quote: OptionQuote) -> Decimal:
    """Return what one unit costs now, or raise NoContract."""
    contract = quote.contract
    price = quote.last_price if quote.ask is None else quote.ask
    if not is_price(price):
        raise NoContract(f"{contract.symbol} has no price, only {price}")
    if not contract.lower_price <= price <= contract.upper_price:
        raise NoContract(
            f"{contract.symbol} at {price} is outside its band of the day, "
            f"{contract.lower_price} to {contract.upper_price}"
        )
    return price
