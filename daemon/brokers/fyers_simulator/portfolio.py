"""Positions, margin and funds of the one account that the simulator keeps.

Money is in rupees as exact as floats are; quantities are units. Averages are those of the day's
buys and of its sells, as the broker shows them; what was matched between them is realised.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from daemon.brokers.fyers_simulator.instruments import CASH, DERIVATIVES, Contract, local_time
from daemon.brokers.fyers_simulator.market import Market
from daemon.brokers.fyers_simulator.orders import BUY, SELL, Order

# Shares of the value held as margin; the broker's own figures change daily and per contract.
INTRADAY_SHARE_MARGIN: Final = 0.20
FUTURE_MARGIN: Final = 0.12
SHORT_OPTION_MARGIN: Final = 0.12


@dataclass(slots=True)
class Position:
    """What was bought and sold of one contract under one product; values in points x units."""

    contract: Contract
    product: str
    buy_quantity: int = 0
    buy_value: int = 0
    sell_quantity: int = 0
    sell_value: int = 0
    carried_buy: int = 0  # of the quantities above, from earlier days
    carried_sell: int = 0

    @property
    def net(self) -> int:
        return self.buy_quantity - self.sell_quantity

    @property
    def buy_average(self) -> float:
        return self.buy_value / self.buy_quantity if self.buy_quantity else 0.0

    @property
    def sell_average(self) -> float:
        return self.sell_value / self.sell_quantity if self.sell_quantity else 0.0

    @property
    def net_average(self) -> float:
        if self.net == 0:
            return 0.0
        return self.buy_average if self.net > 0 else self.sell_average

    @property
    def realised(self) -> float:
        """Rupees earned on what was both bought and sold."""
        matched = min(self.buy_quantity, self.sell_quantity)
        return matched * (self.sell_average - self.buy_average) / self.contract.scale

    def unrealised(self, last: int) -> float:
        """Rupees that closing at the last price would earn."""
        return self.net * (last - self.net_average) / self.contract.scale

    def add(self, side: int, quantity: int, price: int) -> None:
        """Book a fill."""
        if side == BUY:
            self.buy_quantity += quantity
            self.buy_value += quantity * price
        else:
            self.sell_quantity += quantity
            self.sell_value += quantity * price


@dataclass(slots=True)
class Holding:
    """Shares delivered on an earlier day; average in points."""

    contract: Contract
    quantity: int
    average: float


class Portfolio:
    """The account: balance, positions by (symbol, product), holdings, and what they bind.

    Shares bought for delivery become holdings on the next day. Selling them makes a position with
    negative units, as the broker shows it, which reduces the holdings on the day after.
    """

    def __init__(self, balance: float, market: Market) -> None:
        self.balance = balance  # rupees at the start of the day, the cost of holdings included
        self.positions: dict[tuple[str, str], Position] = {}
        self.holdings: dict[str, Holding] = {}
        self._market = market

    def position(self, contract: Contract, product: str) -> Position:
        """Return the position of a contract, an empty one if there was none."""
        return self.positions.setdefault((contract.symbol, product), Position(contract, product))

    def net(self, symbol: str) -> int:
        """Return the units of a symbol in positions of all products, without holdings."""
        return sum(p.net for (name, _), p in self.positions.items() if name == symbol)

    @property
    def realised(self) -> float:
        return sum(position.realised for position in self.positions.values())

    def deliverable(self, symbol: str, pending: Iterable[Order]) -> int:
        """Return how many shares may still be sold as delivery."""
        held = self.holdings.get(symbol)
        position = self.positions.get((symbol, "CNC"))
        promised = sum(
            order.remaining
            for order in pending
            if order.contract.symbol == symbol and order.product == "CNC" and order.side == SELL
        )
        return (held.quantity if held else 0) + (position.net if position else 0) - promised

    def used(self, pending: Iterable[Order]) -> float:
        """Return the rupees bound by positions and by the orders that would add to them."""
        held = sum(
            self._margin(p.contract, p.product, p.net, p.net_average)
            for p in self.positions.values()
        )
        held += sum(h.quantity * h.average / h.contract.scale for h in self.holdings.values())
        return held + sum(self.order_margin(order) for order in pending)

    def available(self, pending: Iterable[Order]) -> float:
        return self.balance + self.realised - self.used(pending)

    def order_margin(self, order: Order) -> float:
        """Return what the rest of an order would bind; 0 for the part that closes a position."""
        held = self.positions.get((order.contract.symbol, order.product))
        net = held.net if held is not None else 0
        closes = min(order.remaining, max(0, -net * order.side))
        price = order.limit or self._market.quote(order.contract.symbol).ask
        return self._margin(
            order.contract, order.product, (order.remaining - closes) * order.side, price
        )

    def roll_day(self) -> None:
        """Begin a new day: realised profit joins the balance, open positions are carried."""
        self.balance += self.realised
        carried: dict[tuple[str, str], Position] = {}
        for position in self.positions.values():
            if position.net == 0:
                continue
            contract, net = position.contract, position.net
            if contract.segment == CASH and (net > 0 or position.product == "CNC"):
                self._deliver(position)
                continue
            product = "MARGIN" if contract.segment == DERIVATIVES else position.product
            kept = carried.setdefault((contract.symbol, product), Position(contract, product))
            kept.add(BUY if net > 0 else -BUY, abs(net), round(position.net_average))
            kept.carried_buy, kept.carried_sell = kept.buy_quantity, kept.sell_quantity
        self.positions = carried

    def _deliver(self, position: Position) -> None:
        """Book the day's delivery into or out of the holdings."""
        contract, net = position.contract, position.net
        held = self.holdings.setdefault(contract.symbol, Holding(contract, 0, 0.0))
        if net > 0:
            cost = held.quantity * held.average + net * position.net_average
            held.quantity += net
            held.average = cost / held.quantity
            return
        self.balance += -net * (position.net_average - held.average) / contract.scale
        held.quantity += net
        if held.quantity == 0:
            del self.holdings[contract.symbol]

    def settle_expired(self, now_ns: int) -> list[Position]:
        """Close at intrinsic value what expired before today; return those positions."""
        today = local_time(now_ns).date()
        settled: list[Position] = []
        for position in self.positions.values():
            contract = position.contract
            if contract.expiry is None or contract.expiry >= today or position.net == 0:
                continue
            quote = self._market.quote(contract.underlying.symbol)
            has_traded_today = local_time(quote.last_trade_ns).date() == today
            spot = quote.previous_close if has_traded_today else quote.last
            worth = spot
            if contract.option_type != "XX":
                sign = 1 if contract.option_type == "CE" else -1
                worth = max(0, sign * (spot - contract.strike))
            position.add(-1 if position.net > 0 else 1, abs(position.net), worth)
            settled.append(position)
        return settled

    def _margin(self, contract: Contract, product: str, units: int, price: float) -> float:
        value = abs(units) * price / contract.scale
        if contract.option_type != "XX":
            if units >= 0:
                return value
            spot = self._market.quote(contract.underlying.symbol).last
            return abs(units) * spot / contract.scale * SHORT_OPTION_MARGIN
        if contract.segment == CASH and product == "CNC":
            return value if units > 0 else 0.0  # what is sold was delivered before
        if contract.segment == CASH:
            return value * INTRADAY_SHARE_MARGIN
        return value * FUTURE_MARGIN
