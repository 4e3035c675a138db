"""What the exchange takes, how far a market order may go, and which positions an exit means."""

from collections.abc import Iterable
from typing import Any, Final

from daemon.brokers.fyers_simulator.instruments import CASH, Contract
from daemon.brokers.fyers_simulator.orders import Order
from daemon.brokers.fyers_simulator.portfolio import Position

CASH_PROTECTION: Final = 0.01  # the broker lists no band for shares; this one is assumed


def protection_price(contract: Contract, side: int, last: int) -> int:
    """Return the worst price of a market order, by the broker's published bands."""
    rupees = last / contract.scale
    if contract.option_type != "XX":
        band = 1.5 if rupees <= 10 else rupees * (0.15 if rupees <= 20 else 0.10)
    elif contract.segment != CASH and contract.underlying.is_index:
        band = 50.0 if rupees <= 10_000 else rupees * 0.005
    elif contract.expiry is not None:
        band = 0.75 if rupees <= 50 else rupees * 0.015
    else:
        band = rupees * CASH_PROTECTION
    ticks = max(1, int(band * contract.scale / contract.tick))
    price = last + side * ticks * contract.tick
    return min(max(price, contract.lower, contract.tick), contract.upper)


def exchange_refusal(order: Order) -> str | None:
    """Return why the exchange does not take an order: quantity freeze or price band."""
    contract = order.contract
    if contract.freeze and order.quantity > contract.freeze:
        return f"17070: quantity {order.quantity} is above the freeze of {contract.freeze}"
    for price in (order.limit, order.stop):
        if price and not contract.lower <= price <= contract.upper:
            low, high = contract.lower / contract.scale, contract.upper / contract.scale
            return f"16283: price is outside the band of {low:g} to {high:g}"
    return None


def is_named(position: Position, body: dict[str, Any]) -> bool:
    """Tell whether an exit call means this position."""
    name = f"{position.contract.symbol}-{position.product}"
    ids = body.get("id")
    if ids is not None:
        return name == ids if isinstance(ids, str) else name in ids
    if body.get("exit_all"):
        return True
    side = 1 if position.net > 0 else -1
    return (
        _allows(body.get("segment"), position.contract.segment)
        and _allows(body.get("side"), side)
        and _allows(body.get("productType"), position.product)
        and any(key in body for key in ("segment", "side", "productType"))
    )


def _allows(choices: Iterable[Any] | None, value: object) -> bool:
    return choices is None or value in choices
