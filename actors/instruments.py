"""Instruments: lot and tick arithmetic, what a lot costs, and names that find them.

Which instruments there are is data (config/instruments.yaml, read by the daemon); when they trade
is for session.py. Prices and money are Decimal, quantities of this module are lots unless a name
says units.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from difflib import get_close_matches
from typing import Final, Literal

InstrumentKind = Literal["index", "stock"]
Toward = Literal["nearest", "up", "down"]

PremiumRange = tuple[Decimal, Decimal]
DEFAULT_OPTION_PREMIUM_RANGE: Final[PremiumRange] = (Decimal("0.025"), Decimal("0.05"))
"""Option premium as a fraction of the index, where an index entry gives none."""

EVERYTHING: Final = 50
"""A predicted quantity from here on asks for all lots that the capital pays for."""

_ROUNDING: Final = {"nearest": ROUND_HALF_EVEN, "up": ROUND_CEILING, "down": ROUND_FLOOR}


class UnknownInstrument(ValueError):
    """A name that no instrument has; the text names the nearest ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrument:
    """One thing to trade, with the arithmetic of its lots and ticks."""

    symbol: str  # what the web frontend and all messages call it
    name: str
    exchange_symbol: str  # what the broker calls it: "NSE:NIFTY50-INDEX"
    kind: InstrumentKind  # an index is traded through bought options, a stock directly
    lot_size: int  # units
    tick_size: Decimal
    option_premium_range: PremiumRange | None = None  # fractions of the index price
    freeze_quantity: int | None = None  # units; the exchange rejects an order of more
    expiry: date | None = None  # last trading day of a contract
    underlying: str = ""  # symbol of what a bought option stands for a view of
    session: str = field(default="")  # market of sessions.yaml; derived when empty

    def __post_init__(self) -> None:
        exchange, separator, rest = self.exchange_symbol.partition(":")
        if not (separator and exchange and rest):
            raise ValueError(
                f"exchange-symbol must read EXCHANGE:SYMBOL, was {self.exchange_symbol!r}"
            )
        if not self.symbol.strip() or not self.name.strip():
            raise ValueError(f"symbol and name must not be empty: {self.symbol!r}, {self.name!r}")
        if self.lot_size < 1:
            raise ValueError(f"lot_size must be at least 1 unit, was {self.lot_size}")
        if not (self.tick_size.is_finite() and self.tick_size > 0):
            raise ValueError(f"tick_size must be above 0, was {self.tick_size}")
        if self.freeze_quantity is not None:
            largest_order(self.lot_size, self.freeze_quantity)
        if self.option_premium_range is not None:
            _check_premium_range(self.kind, self.option_premium_range)
        if not self.session:
            # Shares close before the derivatives do (15:15 against 15:40 since 2026-08-03).
            market = f"{exchange}_CASH" if rest.endswith("-EQ") else exchange
            object.__setattr__(self, "session", market)

    @property
    def exchange(self) -> str:
        """Exchange code of the broker's symbol: NSE, BSE, FX, US."""
        return self.exchange_symbol.partition(":")[0]

    @property
    def is_contract(self) -> bool:
        """Whether it is a future or an option, which has a last trading day."""
        return self.exchange_symbol.endswith(("FUT", "CE", "PE"))

    @property
    def option_kind(self) -> Literal["CE", "PE", ""]:
        """Kind of an option that is held for a view of its underlying."""
        if not self.underlying:
            return ""
        return "PE" if self.exchange_symbol.endswith("PE") else "CE"

    @property
    def price_segment(self) -> str | None:
        """Segment of sessions.yaml in which its prices come about; None: no auction is known.

        Of shares, nothing says whether they have derivatives: they count as those that stop first.
        """
        if self.exchange not in {"NSE", "BSE"}:
            return None
        if self.exchange_symbol.endswith("-INDEX"):
            return "index"
        return "derivative_shares" if self.exchange_symbol.endswith("-EQ") else "equity_derivatives"

    @property
    def largest_order(self) -> int | None:
        """Units that one order may have; None: the exchange sets no limit."""
        if self.freeze_quantity is None:
            return None
        return largest_order(self.lot_size, self.freeze_quantity)

    def round_to_tick(self, price: Decimal, toward: Toward = "nearest") -> Decimal:
        """Move a price onto the tick grid; halves go to the even tick."""
        if not price.is_finite() or price < 0:
            raise ValueError(f"a price of {self.symbol} must be 0 or more, was {price}")
        ticks = (price / self.tick_size).to_integral_value(rounding=_ROUNDING[toward])
        return ticks * self.tick_size

    def cost_per_lot(self, price: Decimal, premium: Decimal | None = None) -> Decimal:
        """Return what one lot takes from the capital, in rupees, without brokerage.

        For an index that is an option: the given premium, else the middle of the usual range.
        """
        if not price.is_finite() or price <= 0:
            raise ValueError(f"a price of {self.symbol} must be above 0, was {price}")
        if self.kind == "stock":
            return price * self.lot_size
        if premium is not None:
            if not premium.is_finite() or premium <= 0:
                raise ValueError(f"a premium of {self.symbol} must be above 0, was {premium}")
            return premium * self.lot_size
        low, high = self.option_premium_range or DEFAULT_OPTION_PREMIUM_RANGE
        return price * (low + high) / 2 * self.lot_size

    def max_lots(
        self,
        price: Decimal,
        capital: Decimal,
        brokerage_entry: Decimal,
        premium: Decimal | None = None,
    ) -> int:
        """Return how many whole lots the capital pays for after the entry brokerage, at least 0."""
        spendable = capital - brokerage_entry
        if not spendable.is_finite():
            raise ValueError(f"capital must be a finite amount, was {capital}")
        lots = spendable / self.cost_per_lot(price, premium)
        return max(0, int(lots.to_integral_value(rounding=ROUND_FLOOR)))

    def capital_for(self, price: Decimal, lots: int, premium: Decimal | None = None) -> Decimal:
        """Return the rupees set aside for an entry of so many lots, without brokerage."""
        if lots < 0:
            raise ValueError(f"lots must be 0 or more, was {lots}")
        return self.cost_per_lot(price, premium) * lots

    def units(self, lots: int) -> int:
        """Return lots as the units that orders are counted in."""
        return lots * self.lot_size

    @staticmethod
    def adjusted_lots(predicted: float, max_lots: int) -> int:
        """Fit a predicted number of lots to the capital: at least 1, at most max_lots.

        From 50 on it means everything. 0 comes back only when max_lots is 0: do not trade.
        """
        if math.isnan(predicted):
            raise ValueError("the predicted quantity must be a number, was NaN")
        if predicted >= EVERYTHING:
            return max_lots
        return min(max(1, round(max(predicted, 0.0))), max_lots)

    @staticmethod
    def lots_for_fraction(fraction: float, max_lots: int) -> int:
        """Return that share of max_lots, halves to even, at least 1 where one lot is affordable.

        0 comes back only when max_lots is 0: do not trade. Fraction 0 still means the smallest
        trade, since the decision to trade at all lies in the action.
        """
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"fraction must lie in [0, 1], was {fraction}")
        return min(max(1, round(fraction * max_lots)), max_lots)


class InstrumentCatalogue:
    """Find instruments by symbol, name or broker symbol, in file order.

    Case, spaces, underscores and hyphens do not count, so that BANKNIFTY, "bank nifty" and
    Bank_Nifty are one; so are Nifty, NIFTY50 and "Nifty 50".
    """

    def __init__(self, instruments: Iterable[Instrument]) -> None:
        self._instruments = tuple(instruments)
        self._by_key: dict[str, Instrument] = {}
        for instrument in self._instruments:
            for spelling in (instrument.symbol, instrument.name, instrument.exchange_symbol):
                owner = self._by_key.setdefault(_key(spelling), instrument)
                if owner is not instrument:
                    raise ValueError(
                        f"{spelling!r} of {instrument.symbol} also names {owner.symbol}: "
                        "symbols and names must differ in more than case, spaces and underscores"
                    )

    def __iter__(self) -> Iterator[Instrument]:
        return iter(self._instruments)

    def __len__(self) -> int:
        return len(self._instruments)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _key(name) in self._by_key

    def __getitem__(self, name: str) -> Instrument:
        """Return the instrument of that name, or raise UnknownInstrument naming the nearest."""
        found = self._by_key.get(_key(name))
        if found is not None:
            return found
        near = get_close_matches(_key(name), self._by_key, n=3, cutoff=0.5)
        nearest = list(dict.fromkeys(self._by_key[key].symbol for key in near))
        known = nearest or [instrument.symbol for instrument in self._instruments]
        hint = "did you mean" if nearest else "known are"
        raise UnknownInstrument(f"unknown instrument {name!r}: {hint} {', '.join(known)}")

    @property
    def symbols(self) -> tuple[str, ...]:
        """All symbols in file order."""
        return tuple(instrument.symbol for instrument in self._instruments)

    def extended(self, instruments: Iterable[Instrument]) -> "InstrumentCatalogue":
        """Return a catalogue that knows these as well, behind the present ones."""
        return InstrumentCatalogue((*self._instruments, *instruments))


def largest_order(lot_size: int, freeze_quantity: int) -> int:
    """Return the most units in whole lots that one order may have, or raise ValueError.

    Below the freeze quantity: whether an order of exactly that many passes is not known.
    """
    largest = (freeze_quantity - 1) // lot_size * lot_size
    if largest < lot_size:
        raise ValueError(f"the freeze quantity {freeze_quantity} lets no lot of {lot_size} through")
    return largest


def _key(name: str) -> str:
    return "".join(character for character in name.casefold() if character not in " _-\t")


def _check_premium_range(kind: InstrumentKind, premium_range: PremiumRange) -> None:
    low, high = premium_range
    if kind != "index":
        raise ValueError("option_premium_range belongs to an index; remove it from a stock")
    if not (low.is_finite() and high.is_finite() and 0 < low <= high < 1):
        raise ValueError(
            f"option_premium_range must be [low, high] with 0 < low <= high < 1, "
            f"was [{low}, {high}]"
        )
