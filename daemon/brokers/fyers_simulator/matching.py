"""The exchange and the broker's order desk: places, matches, changes, cancels and squares off.

Nothing here waits or connects: `step` is called after each move of the market, and what happens is
told to `listeners` as events in the order socket's own words. So tests can drive it without HTTP.

With a latency, requests take that much market time to reach the exchange, so that a fill may be
faster than the cancel, or than the change, that has been answered already.

An order passes TRANSIT (status 4) on to PENDING (6), TRADED (2) or REJECTED (5); parameter errors
make no order at all. Orders of type 2 and triggered stops carry market protection: they fill up
to a band beyond the last price and rest as limit orders after that.

Assumed, since no document says it: the risk desk's rejects are told in the reply and kept in the
book, the exchange's come after an accepted order; what rests at the close expires (7) and is not
cancelled (1); an offline order meets the checks of the exchange when the market opens.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import date, time
from typing import Any, Literal

from daemon.brokers.fyers_simulator import rows
from daemon.brokers.fyers_simulator.instruments import CASH, Contract, instant_ns, local_time
from daemon.brokers.fyers_simulator.market import Market, Quote
from daemon.brokers.fyers_simulator.orders import (
    BUY,
    INVALID,
    LIMIT,
    MARKET,
    REJECTED,
    SELL,
    STOP,
    STOP_LIMIT,
    UNKNOWN_ORDER,
    UNKNOWN_POSITION,
    Order,
    Refusal,
    Status,
    Trade,
    check_prices,
    check_quantity,
    check_stop_side,
    price_in_points,
    read_order,
)
from daemon.brokers.fyers_simulator.portfolio import Portfolio, Position
from daemon.brokers.fyers_simulator.rules import exchange_refusal, is_named, protection_price

EventKind = Literal["orders", "trades", "positions"]
Listener = Callable[[EventKind, dict[str, Any]], None]


class Exchange:
    """One account's orders on one market."""

    def __init__(
        self,
        market: Market,
        portfolio: Portfolio,
        *,
        client_id: str,
        latency_ns: int = 0,
        square_off_cash: time = time(15, 12),
        square_off_derivatives: time = time(15, 15),
        rejects: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.market = market
        self.portfolio = portfolio
        self.client_id = client_id
        self.orders: dict[str, Order] = {}
        self.trades: list[Trade] = []
        self.listeners: list[Listener] = []
        self._latency_ns = latency_ns
        self._square_off = {True: square_off_cash, False: square_off_derivatives}
        self._rejects = rejects
        self._open: dict[str, Order] = {}
        self._underway: list[tuple[int, Callable[[], None]]] = []  # when each request arrives
        self._serial = 0
        self._day = local_time(market.now_ns).date()
        self._squared: set[tuple[date, bool]] = set()

    # What the account holder asks for.

    def place(self, body: Any, *, source: str = "ITS") -> Order:
        """Take an order; Refusal when no order comes of it or the risk desk rejects it."""
        request = read_order(body, self.market.master, self.client_id)
        quote = self.market.quote(request.contract.symbol)
        check_stop_side(request.type, request.side, request.stop, quote.last)
        order = self._new_order(
            contract=request.contract,
            quantity=request.quantity,
            type=request.type,
            side=request.side,
            product=request.product,
            validity=request.validity,
            limit=request.limit,
            stop=request.stop,
            disclosed=request.disclosed,
            is_offline=request.is_offline,
            tag=request.tag,
            source=source,
        )
        refusal = self._risk_refusal(order)
        if refusal is not None:
            self._end(order, Status.REJECTED, refusal)
            raise Refusal(REJECTED, refusal)
        self._accept(order)
        return order

    def modify(self, body: Any) -> Order:
        """Change price, quantity or type of a resting order; what is left out stays."""
        order = self._resting(body)
        if "type" not in body:
            raise Refusal(INVALID, "type is mandatory")
        contract, type_ = order.contract, body["type"]
        if type_ not in (LIMIT, MARKET, STOP, STOP_LIMIT):
            raise Refusal(INVALID, f"type must be one of 1, 2, 3, 4, was {type_!r}")
        limit, stop = order.limit, order.stop
        if "limitPrice" in body or type_ in (MARKET, STOP):
            limit = price_in_points(body.get("limitPrice", 0), "limitPrice", contract)
        if "stopPrice" in body or type_ in (LIMIT, MARKET):
            stop = price_in_points(body.get("stopPrice", 0), "stopPrice", contract)
        quantity = body.get("qty", order.quantity)
        if isinstance(quantity, bool) or not isinstance(quantity, int):
            raise Refusal(INVALID, f"qty must be a whole number, was {quantity!r}")
        check_quantity(contract, quantity)
        check_prices(contract, type_, order.side, limit, stop)
        check_stop_side(type_, order.side, stop, self.market.quote(contract.symbol).last)
        if quantity <= order.filled:
            raise Refusal(INVALID, f"qty must be above the {order.filled} already traded")
        changed = replace(order, type=type_, limit=limit, stop=stop, quantity=quantity)
        refusal = exchange_refusal(changed) or self._margin_refusal(changed)
        if refusal is not None:
            raise Refusal(REJECTED, refusal)
        self._send(lambda: self._change(order, changed))
        return order

    def cancel(self, body: Any) -> Order:
        """Take a resting order out of the market."""
        order = self._resting(body)
        self._send(lambda: self._take_out(order))
        return order

    def exit(self, body: Any) -> list[Order]:
        """Close positions by market orders, all of them or those named."""
        positions = [p for p in self.portfolio.positions.values() if p.net and is_named(p, body)]
        if not positions:
            raise Refusal(UNKNOWN_POSITION, "Looks like you have no open positions")
        if body.get("pending_orders_cancel"):
            symbols = {position.contract.symbol for position in positions}
            for order in list(self._open.values()):
                if order.contract.symbol in symbols:
                    self._end(order, Status.CANCELLED, "cancelled before the exit")
        return [order for p in positions for order in self._close(p, source="ITS")]

    def convert(self, body: Any) -> Position:
        """Move units of a position to another product."""
        wanted = str(body.get("symbol", "")) if isinstance(body, dict) else ""
        source = str(body.get("convertFrom", "")) if wanted else ""
        found = self.portfolio.positions.get((wanted.removesuffix(f"-{source}"), source))
        if found is None or found.net == 0:
            raise Refusal(UNKNOWN_POSITION, f"no position {wanted!r} to convert")
        units, target = body.get("convertQty"), str(body.get("convertTo", ""))
        if not isinstance(units, int) or not 0 < units <= abs(found.net):
            raise Refusal(INVALID, f"convertQty must be 1 to {abs(found.net)}, was {units!r}")
        if target not in ("CNC", "INTRADAY", "MARGIN") or target == source:
            raise Refusal(INVALID, f"convertTo must be another product, was {target!r}")
        side, price = (BUY if found.net > 0 else SELL), round(found.net_average)
        if side == BUY:
            found.buy_quantity -= units
            found.buy_value -= units * price
        else:
            found.sell_quantity -= units
            found.sell_value -= units * price
        moved = self.portfolio.position(found.contract, target)
        moved.add(side, units, price)
        self._tell("positions", rows.position_event(found, self.market))
        self._tell("positions", rows.position_event(moved, self.market))
        return moved

    @property
    def pending(self) -> list[Order]:
        """Orders that may still fill."""
        return list(self._open.values())

    # What time and the market do.

    def step(self) -> None:
        """Act on the market as it stands: triggers, fills, square-off, expiry, a new day."""
        now_ns = self.market.now_ns
        today = local_time(now_ns).date()
        if today != self._day:
            self._begin_day(today)
        due = [act for ready_ns, act in self._underway if ready_ns <= now_ns]
        self._underway = [sent for sent in self._underway if sent[0] > now_ns]
        for act in due:
            act()
        for order in list(self._open.values()):
            contract = order.contract
            if order.status is Status.TRANSIT and now_ns >= order.ready_ns:
                self._reach_exchange(order)
            elif not order.is_offline and not self._trades(contract):
                self._end(order, Status.EXPIRED, "the session has ended")
            elif order.is_offline and self._trades(contract):
                order.is_offline = False
                self._reach_exchange(order)
            elif order.status is Status.PENDING and not order.is_offline:
                self._match(order, self.market.quote(contract.symbol))
        for is_cash in (True, False):
            due_ns = instant_ns(today, self._square_off[is_cash])
            if now_ns >= due_ns and (today, is_cash) not in self._squared:
                self._squared.add((today, is_cash))
                self._square_off_intraday(is_cash=is_cash)

    def fill(self, order: Order, quantity: int, price: int) -> None:
        """Book a fill of an open order and tell of it: trade, order, position."""
        order.filled += quantity
        order.traded_value += quantity * price
        order.updated_ns = self.market.now_ns
        number = len(self.trades) + 1
        trade = Trade(
            id=f"{order.id}-{number}",
            order=order,
            quantity=quantity,
            price=price,
            traded_ns=self.market.now_ns,
        )
        self.trades.append(trade)
        position = self.portfolio.position(order.contract, order.product)
        position.add(order.side, quantity, price)
        if order.remaining == 0:
            order.status = Status.TRADED
            self._open.pop(order.id, None)
        self._tell("trades", rows.trade_event(trade, self.client_id))
        self._tell_order(order)
        self._tell("positions", rows.position_event(position, self.market))

    def _new_order(self, **fields: Any) -> Order:
        self._serial += 1
        now_ns = self.market.now_ns
        order = Order(
            id=f"{local_time(now_ns):%y%m%d}{self._serial:08d}",
            placed_ns=now_ns,
            updated_ns=now_ns,
            ready_ns=now_ns + self._latency_ns,
            **fields,
        )
        self.orders[order.id] = order
        return order

    def _accept(self, order: Order) -> None:
        self._open[order.id] = order
        self._tell_order(order)
        if order.is_offline:
            order.status = Status.PENDING
            self._tell_order(order)
        elif self._latency_ns == 0:
            self._reach_exchange(order)

    def _send(self, act: Callable[[], None]) -> None:
        """Let a request reach the exchange: at once, or when the latency has passed."""
        if self._latency_ns == 0:
            act()
        else:
            self._underway.append((self.market.now_ns + self._latency_ns, act))

    def _take_out(self, order: Order) -> None:
        """Cancel an order, unless a fill was faster."""
        if not order.status.is_final:
            self._end(order, Status.CANCELLED, "")

    def _change(self, order: Order, changed: Order) -> None:
        """Make a change that was let through, unless fills have overtaken it."""
        if order.status.is_final:
            return
        if changed.quantity <= order.filled:
            order.message = f"modification refused: {order.filled} already traded"
            self._tell_order(order)
            return
        order.type, order.limit, order.stop = changed.type, changed.limit, changed.stop
        order.quantity, order.is_triggered, order.worst = changed.quantity, False, 0
        self._tell_order(order)
        self._match(order, self.market.quote(order.contract.symbol))

    def _reach_exchange(self, order: Order) -> None:
        refusal = exchange_refusal(order)
        if refusal is not None:
            self._end(order, Status.REJECTED, refusal)
            return
        order.status = Status.PENDING
        order.exchange_id = f"11{int(order.id[6:]):014d}"
        self._tell_order(order)
        self._match(order, self.market.quote(order.contract.symbol))

    def _risk_refusal(self, order: Order) -> str | None:
        """Return why the broker's risk desk says no; None when it lets the order through."""
        on_command = self._rejects()
        if on_command is not None:
            return on_command
        is_trading = self._trades(order.contract)
        if order.is_offline and is_trading:
            return "RMS: offline orders are not taken while the market is open"
        if not order.is_offline and not is_trading:
            return f"RMS: market is closed for {order.contract.symbol}"
        if order.product == "CNC" and order.side == SELL:
            there = self.portfolio.deliverable(order.contract.symbol, self._open.values())
            if order.quantity > there:
                return f"RMS: {order.quantity} shares to deliver, {there} held"
        return self._margin_refusal(order)

    def _margin_refusal(self, order: Order) -> str | None:
        """Return why the money does not suffice for an order, new or changed."""
        needed = self.portfolio.order_margin(order)
        others = [other for other in self._open.values() if other.id != order.id]
        available = self.portfolio.available(others)
        if needed > available:
            return f"RMS: Margin Shortfall: required {needed:.2f}, available {available:.2f}"
        return None

    def _match(self, order: Order, quote: Quote) -> None:
        if not self._trades(order.contract):
            return
        if order.type in (STOP, STOP_LIMIT) and not order.is_triggered:
            if (quote.last - order.stop) * order.side < 0:
                return
            order.is_triggered = True
            self._tell_order(order)
        if order.type in (MARKET, STOP) and not order.worst:
            order.worst = protection_price(order.contract, order.side, quote.last)
        worst = order.limit or order.worst
        for price, size in quote.levels(buying=order.side == BUY):
            if order.remaining == 0 or (price - worst) * order.side > 0:
                break
            quantity = min(order.remaining, size)
            if quantity:
                _take(quote, order.side, price, quantity)
                self.fill(order, quantity, price)
        if order.validity == "IOC" and order.remaining:
            self._end(order, Status.CANCELLED, "IOC: what did not trade at once")

    def _resting(self, body: Any) -> Order:
        wanted = body.get("id") if isinstance(body, dict) else None
        order = self.orders.get(wanted) if isinstance(wanted, str) else None
        if order is None:
            raise Refusal(UNKNOWN_ORDER, f"Please provide a valid order id, was {wanted!r}")
        if order.status.is_final:
            raise Refusal(REJECTED, f"Looks like the order is already {order.status.name.lower()}")
        if order.status is Status.TRANSIT:
            raise Refusal(REJECTED, "the order has not reached the exchange yet")
        return order

    def _end(self, order: Order, status: Status, message: str) -> None:
        order.status, order.message = status, message
        order.updated_ns = self.market.now_ns
        self._open.pop(order.id, None)
        self._tell_order(order)

    def _close(self, position: Position, source: str) -> list[Order]:
        """Close a position by market orders of no more than the freeze quantity each."""
        contract, left = position.contract, abs(position.net)
        side = SELL if position.net > 0 else BUY
        most = contract.freeze // contract.lot * contract.lot or left
        orders = []
        while left > 0:
            order = self._new_order(
                contract=contract,
                quantity=min(left, most),
                type=MARKET,
                side=side,
                product=position.product,
                validity="DAY",
                source=source,
            )
            left -= order.quantity
            self._accept(order)
            orders.append(order)
        return orders

    def _square_off_intraday(self, *, is_cash: bool) -> None:
        for order in list(self._open.values()):
            if order.product == "INTRADAY" and (order.contract.segment == CASH) is is_cash:
                self._end(order, Status.CANCELLED, "cancelled by the risk desk: square-off")
        for position in list(self.portfolio.positions.values()):
            in_segment = (position.contract.segment == CASH) is is_cash
            if position.net and position.product == "INTRADAY" and in_segment:
                self._close(position, source="A")

    def _begin_day(self, today: date) -> None:
        self._day = today
        for order in [order for order in self._open.values() if not order.is_offline]:
            self._end(order, Status.EXPIRED, "the session has ended")
        for position in self.portfolio.settle_expired(self.market.now_ns):
            self._tell("positions", rows.position_event(position, self.market))
        self.orders = dict(self._open)
        self.trades.clear()
        self.portfolio.roll_day()

    def _trades(self, contract: Contract) -> bool:
        return self.market.hours.trades(contract, self.market.now_ns)

    def _tell_order(self, order: Order) -> None:
        self._tell("orders", rows.order_event(order, self.client_id))

    def _tell(self, kind: EventKind, event: dict[str, Any]) -> None:
        for listener in self.listeners:
            listener(kind, event)


def _take(quote: Quote, side: int, price: int, quantity: int) -> None:
    """Remove what was traded from the book, and let it be the last trade."""
    sizes = quote.ask_sizes if side == BUY else quote.bid_sizes
    best = quote.ask if side == BUY else quote.bid
    sizes[abs(price - best) // quote.contract.tick] -= quantity
    quote.last = price
    quote.last_quantity = quantity
    quote.volume += quantity
    quote.traded_value += quantity * price
    quote.high, quote.low = max(quote.high, price), min(quote.low, price)
