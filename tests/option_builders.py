"""Options on Nifty for tests: contracts, chains around a price, and what follows from them."""

from datetime import date
from decimal import Decimal
from typing import Any

from builders import OPEN_NS

from actors.messages import OptionChain, OptionContract, OptionKind, OptionQuote

DAY = date(2024, 3, 18)
"""The day of OPEN_NS, a Monday."""
EXPIRY = date(2024, 3, 21)
LOT = 50


def a_contract(strike: int = 22000, kind: OptionKind = "CE", **fields: Any) -> OptionContract:
    given: dict[str, Any] = {
        "symbol": f"NSE:NIFTY24321{strike}{kind}",
        "kind": kind,
        "strike": Decimal(strike),
        "expiry": EXPIRY,
        "lot_size": LOT,
        "freeze_quantity": 1800,
        "tick_size": Decimal("0.05"),
        "lower_price": Decimal("0.05"),
        "upper_price": Decimal(1000),
        "updated": DAY,
    }
    return OptionContract(**(given | fields))


def a_quote(strike: int, kind: OptionKind, price: str, **fields: Any) -> OptionQuote:
    """Return a quote with a spread of 0.20 around the price."""
    last = Decimal(price)
    return OptionQuote(
        contract=a_contract(strike, kind, **fields),
        last_price=last,
        bid=last - Decimal("0.10"),
        ask=last + Decimal("0.10"),
    )


def a_chain(read_ns: int = OPEN_NS, call: str = "100", put: str = "100") -> OptionChain:
    """Return three strikes at 21950, 22000 and 22050; all calls and all puts cost the same."""
    quotes = [a_quote(strike, "CE", call) for strike in (21950, 22000, 22050)]
    quotes += [a_quote(strike, "PE", put) for strike in (21950, 22000, 22050)]
    return OptionChain(underlying="Nifty", quotes=tuple(quotes), read_ns=read_ns)
