"""Options: which contract stands for a view of an index, and how its order may leave.

Everything about a contract comes from the broker's symbol master: lot, freeze quantity, tick, band
and expiry. A view buys: a call when prices should rise, a put when they should fall.
"""

from collections.abc import Iterable
from datetime import date
from decimal import Decimal
from typing import Final, Literal, get_args

from actors.instruments import Instrument, largest_order
from actors.messages import OptionContract, OptionKind

View = Literal["long", "short"]
Strategy = Literal["ITM", "ATM", "OTM"]
STRATEGIES: Final[tuple[Strategy, ...]] = get_args(Strategy)

KIND_OF_VIEW: Final[dict[View, OptionKind]] = {"long": "CE", "short": "PE"}


class NoContract(ValueError):
    """No contract may be bought for the view; the text says why."""


class OrderRefused(ValueError):
    """The exchange would not take the order; the text names value and limit."""


def choose_option(
    options: Iterable[OptionContract],
    *,
    view: View,
    spot: Decimal,
    today: date,
    valid_from: date,
    strategy: Strategy = "ITM",
    on_expiry_day: bool = True,
) -> OptionContract:
    """Return what to buy for a view of the underlying, or raise NoContract.

    options: all of one underlying. valid_from: oldest day whose entries still hold, the last
    trading day. The expiry is the nearest from today on, by date and not by name; without
    `on_expiry_day`, from tomorrow on. Of its strikes: ITM the nearest at or in the money, OTM the
    nearest out of it, ATM the nearest to the spot, of two the one in the money.
    """
    if not spot.is_finite() or spot <= 0:
        raise NoContract(f"the price of the underlying must be above 0, was {spot}")
    kind = KIND_OF_VIEW[view]
    listed = [option for option in options if option.kind == kind]
    expiries = {option.expiry for option in listed}
    ahead = {day for day in expiries if day > today or (on_expiry_day and day == today)}
    if not ahead:
        newest = max(expiries, default=None)
        raise NoContract(
            f"no {kind} expires {'on or ' if on_expiry_day else ''}after {today}: "
            + ("none is listed" if newest is None else f"the last one expires on {newest}")
        )
    nearest = [option for option in listed if option.expiry == min(ahead)]
    oldest = min(option.updated for option in nearest)
    if oldest < valid_from:
        raise NoContract(
            f"the symbol master is of {oldest}, older than the last trading day {valid_from}: "
            "download it again"
        )
    return _at_strike(nearest, kind, spot, strategy)


def is_option_symbol(name: str) -> bool:
    """Tell whether an instrument is an option that goes by the broker's symbol."""
    return ":" in name and name.endswith(("CE", "PE"))


def as_instrument(contract: OptionContract, underlying: Instrument) -> Instrument:
    """Return a contract as something to order, or raise NoContract for one that cannot be.

    It goes by the broker's symbol, trades when its underlying does, and costs its premium.
    """
    try:
        return Instrument(
            symbol=contract.symbol,
            name=contract.symbol,
            exchange_symbol=contract.symbol,
            kind="stock",
            lot_size=contract.lot_size,
            tick_size=contract.tick_size,
            freeze_quantity=contract.freeze_quantity,
            expiry=contract.expiry,
            session=underlying.session,
            underlying=underlying.symbol,
        )
    except ValueError as error:
        raise NoContract(f"{contract.symbol} cannot be ordered: {error}") from error


def _at_strike(
    options: list[OptionContract], kind: OptionKind, spot: Decimal, strategy: Strategy
) -> OptionContract:
    def depth(option: OptionContract) -> Decimal:
        """How far in the money, negative: out of it."""
        return spot - option.strike if kind == "CE" else option.strike - spot

    if strategy == "ATM":
        return min(options, key=lambda option: (abs(depth(option)), -depth(option)))
    if strategy == "ITM":
        fitting = [option for option in options if depth(option) >= 0]
    else:
        fitting = [option for option in options if depth(option) < 0]
    if not fitting:
        strikes = [option.strike for option in options]
        raise NoContract(
            f"no {strategy} {kind} at a spot of {spot}: strikes of {options[0].expiry} go from "
            f"{min(strikes)} to {max(strikes)}"
        )
    return min(fitting, key=lambda option: abs(depth(option)))


def split_quantity(units: int, *, lot_size: int, freeze_quantity: int) -> tuple[int, ...]:
    """Return the order quantities that together make `units`, largest first.

    Each is whole lots and below the freeze quantity: whether an order of exactly that many passes
    is not known. Raises OrderRefused for what is not whole lots.
    """
    if lot_size < 1:
        raise ValueError(f"lot_size must be at least 1 unit, was {lot_size}")
    if units < 1 or units % lot_size:
        raise OrderRefused(f"quantity must be a multiple of the lot {lot_size}, was {units}")
    try:
        largest = largest_order(lot_size, freeze_quantity)
    except ValueError as error:
        raise OrderRefused(str(error)) from error
    whole, rest = divmod(units, largest)
    return (largest,) * whole + ((rest,) if rest else ())


def check_limit_price(contract: OptionContract, price: Decimal) -> None:
    """Raise OrderRefused for a limit price off the tick grid or outside the band of the day."""
    if not price.is_finite() or price <= 0:
        raise OrderRefused(f"a limit price must be above 0, was {price}")
    if price % contract.tick_size:
        raise OrderRefused(f"limit price must be a multiple of {contract.tick_size}, was {price}")
    if not contract.lower_price <= price <= contract.upper_price:
        raise OrderRefused(
            f"limit price must lie in the band of {contract.symbol}, {contract.lower_price} to "
            f"{contract.upper_price}, was {price}"
        )
