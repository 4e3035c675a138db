"""Orders as the broker takes them: the request, its checks, and the order it becomes.

Prices are points of the contract. What an order does in the market is for matching.py.
"""

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

from daemon.brokers.fyers_simulator.instruments import CASH, Contract, Master

LIMIT, MARKET, STOP, STOP_LIMIT = 1, 2, 3, 4
BUY, SELL = 1, -1

INVALID = -50
UNKNOWN_ORDER = -51
UNKNOWN_POSITION = -53
REJECTED = -99
INVALID_SYMBOL = -300

_TAG: Final = re.compile(r"[A-Za-z0-9]{1,30}")
_PRODUCTS: Final = ("CNC", "INTRADAY", "MARGIN")


class Status(IntEnum):
    """The broker's order states."""

    CANCELLED = 1
    TRADED = 2
    TRANSIT = 4
    REJECTED = 5
    PENDING = 6
    EXPIRED = 7

    @property
    def is_final(self) -> bool:
        return self not in (Status.TRANSIT, Status.PENDING)


class Refusal(Exception):
    """The broker says no to a request: code and text of the reply."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


@dataclass(slots=True, kw_only=True)
class Order:
    """One order and all that became of it."""

    id: str
    contract: Contract
    quantity: int
    type: int
    side: int
    product: str
    validity: str
    limit: int = 0
    stop: int = 0
    disclosed: int = 0
    is_offline: bool = False
    tag: str = ""  # as sent; empty: none
    source: str = "ITS"
    placed_ns: int = 0
    updated_ns: int = 0
    ready_ns: int = 0  # when it reaches the exchange
    status: Status = Status.TRANSIT
    message: str = ""
    exchange_id: str = ""
    filled: int = 0
    traded_value: int = 0
    is_triggered: bool = False
    worst: int = 0  # market protection: no fill beyond this price; 0: none yet

    @property
    def remaining(self) -> int:
        return self.quantity - self.filled

    @property
    def average(self) -> float:
        """Average fill price in points, 0 without a fill."""
        return self.traded_value / self.filled if self.filled else 0.0

    @property
    def shown_tag(self) -> str:
        """The tag as books and events carry it."""
        return f"1:{self.tag}" if self.tag else "2:Untagged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trade:
    """One fill."""

    id: str
    order: Order
    quantity: int
    price: int
    traded_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderRequest:
    """The body of a place call, checked against the master."""

    contract: Contract
    quantity: int
    type: int
    side: int
    product: str
    validity: str
    limit: int
    stop: int
    disclosed: int
    is_offline: bool
    tag: str


def read_order(body: Any, master: Master, client_id: str) -> OrderRequest:
    """Check a place body by everything that needs no price; raise Refusal."""
    if not isinstance(body, dict):
        raise Refusal(INVALID, "Please provide valid inputs: a JSON object is expected")
    contract = master.get(str(body.get("symbol", "")))
    if contract is None:
        raise Refusal(INVALID_SYMBOL, f"Invalid symbol provided: {body.get('symbol')!r}")
    if contract.is_index:
        raise Refusal(INVALID, f"{contract.symbol} is an index and cannot be traded")
    request = OrderRequest(
        contract=contract,
        quantity=_whole(body, "qty"),
        type=_one_of(body, "type", (LIMIT, MARKET, STOP, STOP_LIMIT)),
        side=_one_of(body, "side", (BUY, SELL)),
        product=_one_of(body, "productType", _PRODUCTS),
        validity=_one_of(body, "validity", ("DAY", "IOC")),
        limit=_points(body, "limitPrice", contract),
        stop=_points(body, "stopPrice", contract),
        disclosed=_whole(body, "disclosedQty", 0),
        is_offline=_flag(body, "offlineOrder"),
        tag=_tag(body, client_id),
    )
    for name in ("takeProfit", "stopLoss", "isSliceOrder"):
        if body.get(name):
            raise Refusal(INVALID, f"{name} is not simulated: leave it out")
    check_quantity(contract, request.quantity)
    check_prices(contract, request.type, request.side, request.limit, request.stop)
    _check_product(request)
    return request


def check_quantity(contract: Contract, quantity: int) -> None:
    """Refuse what is no whole number of lots."""
    if quantity <= 0 or quantity % contract.lot:
        raise Refusal(INVALID, f"Quantity {quantity} is not a multiple of lot size {contract.lot}")


def check_prices(contract: Contract, type_: int, side: int, limit: int, stop: int) -> None:
    """Refuse prices that the order type does not take, or off the tick."""
    wants_limit, wants_stop = type_ in (LIMIT, STOP_LIMIT), type_ in (STOP, STOP_LIMIT)
    for name, price, wanted in (
        ("limitPrice", limit, wants_limit),
        ("stopPrice", stop, wants_stop),
    ):
        if wanted and price <= 0:
            raise Refusal(INVALID, f"{name} must be above 0 for order type {type_}")
        if not wanted and price:
            raise Refusal(INVALID, f"{name} must be 0 for order type {type_}")
        if price % contract.tick:
            tick = contract.tick / contract.scale
            raise Refusal(INVALID, f"{name} is not a multiple of tick size {tick:g}")
    if type_ == STOP_LIMIT and (stop - limit) * side > 0:
        raise Refusal(INVALID, "stopPrice must not lie beyond limitPrice")


def check_stop_side(type_: int, side: int, stop: int, last: int) -> None:
    """Refuse a stop that the last price has already reached."""
    if type_ in (STOP, STOP_LIMIT) and (stop - last) * side <= 0:
        raise Refusal(INVALID, "stopPrice is on the wrong side of the last traded price")


def price_in_points(value: Any, name: str, contract: Contract) -> int:
    """Return a price of a request in points; Refusal for what is no price of the contract."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refusal(INVALID, f"{name} must be a number, was {value!r}")
    points = value * contract.scale
    if not 0 <= points < 2**31 or abs(points - round(points)) > 1e-6 * max(1.0, points):
        raise Refusal(INVALID, f"{name} is not a multiple of tick size, was {value!r}")
    return round(points)


def _points(body: dict[str, Any], name: str, contract: Contract) -> int:
    return price_in_points(body.get(name, 0), name, contract)


def _whole(body: dict[str, Any], name: str, default: int | None = None) -> int:
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Refusal(INVALID, f"{name} must be a whole number, was {value!r}")
    return value


def _one_of(body: dict[str, Any], name: str, choices: tuple[Any, ...]) -> Any:
    value = body.get(name)
    if isinstance(value, bool) or value not in choices:
        raise Refusal(INVALID, f"{name} must be one of {choices}, was {value!r}")
    return value


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise Refusal(INVALID, f"{name} must be true or false, was {value!r}")
    return value


def _tag(body: dict[str, Any], client_id: str) -> str:
    tag = body.get("orderTag") or ""
    if tag and (not isinstance(tag, str) or not _TAG.fullmatch(tag)):
        raise Refusal(INVALID, f"orderTag takes 1 to 30 letters and digits, was {tag!r}")
    if tag in (client_id, "Untagged"):
        raise Refusal(INVALID, f"orderTag must not be {tag}")
    return str(tag)


def _check_product(request: OrderRequest) -> None:
    segment = request.contract.segment
    if request.product == "CNC" and segment != CASH:
        raise Refusal(INVALID, "productType CNC is for the cash segment only")
    if request.product == "MARGIN" and segment == CASH:
        raise Refusal(INVALID, "productType MARGIN is for derivatives only")
    if request.disclosed and (segment != CASH or request.disclosed > request.quantity):
        raise Refusal(INVALID, "disclosedQty is for the cash segment and at most the quantity")
