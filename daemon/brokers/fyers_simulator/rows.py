"""How the broker writes things down: rows of the REST books, and events of the order socket.

Prices become rupees here and nowhere else.
"""

from typing import Any

from daemon.brokers.fyers_simulator.instruments import Contract, local_time
from daemon.brokers.fyers_simulator.market import Market, Quote
from daemon.brokers.fyers_simulator.orders import Order, Trade
from daemon.brokers.fyers_simulator.portfolio import Holding, Portfolio, Position

JsonObject = dict[str, Any]


def order_row(order: Order, client_id: str, quote: Quote) -> JsonObject:
    """Return an order as GET /orders shows it."""
    contract = order.contract
    scale = contract.scale
    change, percent = _change(quote)
    return {
        "id": order.id,
        "exchOrdId": order.exchange_id,
        "parentId": "",
        "clientId": client_id,
        "symbol": contract.symbol,
        "fyToken": contract.fy_token,
        "exchange": contract.exchange,
        "segment": contract.segment,
        "instrument": contract.instrument,
        "qty": order.quantity,
        "remainingQuantity": 0 if order.status.is_final else order.remaining,
        "filledQty": order.filled,
        "type": order.type,
        "side": order.side,
        "productType": order.product,
        "orderValidity": order.validity,
        "limitPrice": order.limit / scale,
        "stopPrice": order.stop / scale,
        "tradedPrice": round(order.average / scale, 4),
        "disclosedQty": order.disclosed,
        "discloseQty": order.disclosed,
        "dqQtyRem": 0,
        "offlineOrder": order.is_offline,
        "status": int(order.status),
        "orderNumStatus": f"{order.id}:{int(order.status)}",
        "message": order.message,
        "orderTag": order.shown_tag,
        "orderDateTime": order_time(order.placed_ns),
        "source": order.source,
        "ex_sym": contract.underlying.root,
        "description": contract.description,
        "slNo": int(order.id[6:]),
        "lp": quote.last / scale,
        "ch": change,
        "chp": percent,
        "pan": "",
    }


def order_event(order: Order, client_id: str) -> JsonObject:
    """Return an order as the order socket tells of it."""
    contract, scale = order.contract, order.contract.scale
    return {
        "client_id": client_id,
        "id": order.id,
        "id_parent": "",
        "id_exchange": order.exchange_id,
        "symbol": contract.symbol,
        "symbol_exch": contract.underlying.root,
        "symbol_desc": contract.description,
        "fy_token": contract.fy_token,
        "exchange": contract.exchange,
        "segment": contract.segment,
        "instrument": contract.instrument,
        "ord_type": order.type,
        "tran_side": order.side,
        "qty": order.quantity,
        "qty_filled": order.filled,
        "qty_remaining": 0 if order.status.is_final else order.remaining,
        "price_limit": order.limit / scale,
        "price_stop": order.stop / scale,
        "price_traded": round(order.average / scale, 4),
        "product_type": order.product,
        "validity": order.validity,
        "org_ord_status": int(order.status),
        "ord_status": {2: 90, 4: 20}.get(int(order.status), int(order.status)),
        "oms_msg": order.message,
        "ord_source": order.source,
        "ordertag": order.shown_tag,
        "offline_flag": order.is_offline,
        "time_oms": order_time(order.updated_ns),
        "time_epoch_oms": order.updated_ns // 10**9,
        "lot_size": contract.lot,
        "tick_size": contract.tick / scale,
        "precision": contract.precision,
        "price_multiplier": 1,
    }


def trade_row(trade: Trade, client_id: str, number: int) -> JsonObject:
    """Return a fill as GET /tradebook shows it."""
    order, contract = trade.order, trade.order.contract
    price = trade.price / contract.scale
    return {
        "tradeNumber": trade.id,
        "orderNumber": order.id,
        "exchangeOrderNo": order.exchange_id,
        "symbol": contract.symbol,
        "fyToken": contract.fy_token,
        "exchange": contract.exchange,
        "segment": contract.segment,
        "side": order.side,
        "productType": order.product,
        "orderType": order.type,
        "tradedQty": trade.quantity,
        "tradePrice": price,
        "tradeValue": round(price * trade.quantity, 4),
        "orderDateTime": order_time(trade.traded_ns),
        "row": number,
        "clientId": client_id,
        "orderTag": order.shown_tag,
    }


def trade_event(trade: Trade, client_id: str) -> JsonObject:
    """Return a fill as the order socket tells of it."""
    order, contract = trade.order, trade.order.contract
    price = trade.price / contract.scale
    return {
        "id_fill": trade.id,
        "id": order.id,
        "id_exchange": order.exchange_id,
        "qty_traded": trade.quantity,
        "price_traded": price,
        "traded_val": round(price * trade.quantity, 4),
        "ord_type": order.type,
        "tran_side": order.side,
        "product_type": order.product,
        "fill_time": f"{local_time(trade.traded_ns):%d-%m-%Y %H:%M:%S}",
        "client_id": client_id,
        "symbol": contract.symbol,
        "fy_token": contract.fy_token,
        "exchange": contract.exchange,
        "segment": contract.segment,
        "ordertag": order.shown_tag,
    }


def position_row(position: Position, market: Market, number: int) -> JsonObject:
    """Return a position as GET /positions shows it."""
    contract, scale = position.contract, position.contract.scale
    last = market.quote(contract.symbol).last
    unrealised = position.unrealised(last)
    return {
        "id": f"{contract.symbol}-{position.product}",
        "symbol": contract.symbol,
        "netQty": position.net,
        "qty": abs(position.net),
        "side": _side(position.net),
        "netAvg": round(position.net_average / scale, 4),
        "avgPrice": round(position.net_average / scale, 4),
        "buyQty": position.buy_quantity,
        "buyAvg": round(position.buy_average / scale, 4),
        "buyVal": round(position.buy_value / scale, 4),
        "sellQty": position.sell_quantity,
        "sellAvg": round(position.sell_average / scale, 4),
        "sellVal": round(position.sell_value / scale, 4),
        "productType": position.product,
        "realized_profit": round(position.realised, 4),
        "unrealized_profit": round(unrealised, 4),
        "pl": round(position.realised + unrealised, 4),
        "ltp": last / scale,
        "dayBuyQty": position.buy_quantity - position.carried_buy,
        "daySellQty": position.sell_quantity - position.carried_sell,
        "cfBuyQty": position.carried_buy,
        "cfSellQty": position.carried_sell,
        "fyToken": contract.fy_token,
        "exchange": contract.exchange,
        "segment": contract.segment,
        "slNo": number,
        "crossCurrency": "N",
        "rbiRefRate": 1,
        "qtyMulti_com": 1,
    }


def position_event(position: Position, market: Market) -> JsonObject:
    """Return a position as the order socket tells of it."""
    row = position_row(position, market, 0)
    return {
        "symbol": row["symbol"],
        "id": row["id"],
        "qty": row["qty"],
        "net_qty": row["netQty"],
        "net_avg": row["netAvg"],
        "buy_qty": row["buyQty"],
        "buy_avg": row["buyAvg"],
        "buy_val": row["buyVal"],
        "sell_qty": row["sellQty"],
        "sell_avg": row["sellAvg"],
        "sell_val": row["sellVal"],
        "tran_side": row["side"],
        "product_type": row["productType"],
        "pl_realized": row["realized_profit"],
        "pl_unrealized": row["unrealized_profit"],
        "pl_total": row["pl"],
        "day_buy_qty": row["dayBuyQty"],
        "day_sell_qty": row["daySellQty"],
        "cf_buy_qty": row["cfBuyQty"],
        "cf_sell_qty": row["cfSellQty"],
        "qty_multiplier": 1,
        "rbirefrate": 1,
        "cross_curr_flag": "N",
        "fy_token": row["fyToken"],
        "exchange": row["exchange"],
        "segment": row["segment"],
    }


def holding_row(holding: Holding, quote: Quote, number: int) -> JsonObject:
    """Return delivered shares as GET /holdings shows them."""
    contract, scale = holding.contract, holding.contract.scale
    cost, last = holding.average / scale, quote.last / scale
    return {
        "symbol": contract.symbol,
        "holdingType": "HLD",
        "quantity": holding.quantity,
        "remainingQuantity": holding.quantity,
        "costPrice": round(cost, 4),
        "marketVal": round(last * holding.quantity, 4),
        "ltp": last,
        "pl": round((last - cost) * holding.quantity, 4),
        "fyToken": contract.fy_token,
        "exchange": contract.exchange,
        "segment": contract.segment,
        "isin": "",
        "id": number,
    }


def holdings_overall(holdings: list[JsonObject]) -> JsonObject:
    """Return the sums under the holdings."""
    invested = sum(row["costPrice"] * row["quantity"] for row in holdings)
    earned = sum(row["pl"] for row in holdings)
    return {
        "count_total": len(holdings),
        "total_investment": round(invested, 4),
        "total_current_value": round(sum(row["marketVal"] for row in holdings), 4),
        "total_pl": round(earned, 4),
        "pnl_perc": round(100 * earned / invested, 4) if invested else 0.0,
    }


def positions_overall(portfolio: Portfolio, market: Market) -> JsonObject:
    """Return the sums under the positions."""
    positions = portfolio.positions.values()
    unrealised = sum(p.unrealised(market.quote(p.contract.symbol).last) for p in positions)
    return {
        "count_total": len(positions),
        "count_open": sum(1 for position in positions if position.net),
        "pl_total": round(portfolio.realised + unrealised, 4),
        "pl_realized": round(portfolio.realised, 4),
        "pl_unrealized": round(unrealised, 4),
    }


def fund_rows(balance: float, used: float, realised: float, available: float) -> list[JsonObject]:
    """Return the account's money as GET /funds shows it, in rupees."""
    amounts = (
        (1, "Total Balance", balance + realised),
        (2, "Utilized Amount", used),
        (3, "Clear Balance", balance),
        (4, "Realized Profit and Loss", realised),
        (5, "Collaterals", 0.0),
        (6, "Fund Transfer", 0.0),
        (7, "Receivables", 0.0),
        (8, "Adhoc Limit", 0.0),
        (9, "Limit at start of the day", balance),
        (10, "Available Balance", available),
    )
    return [
        {"id": id_, "title": title, "equityAmount": round(amount, 2), "commodityAmount": 0}
        for id_, title, amount in amounts
    ]


def quote_row(quote: Quote) -> JsonObject:
    """Return a quote as GET /quotes shows it."""
    contract, scale = quote.contract, quote.contract.scale
    change, percent = _change(quote)
    return {
        "n": contract.symbol,
        "s": "ok",
        "v": {
            "lp": quote.last / scale,
            "ch": change,
            "chp": percent,
            "ask": 0 if contract.is_index else quote.ask / scale,
            "bid": 0 if contract.is_index else quote.bid / scale,
            "spread": (quote.ask - quote.bid) / scale,
            "open_price": quote.open / scale,
            "high_price": quote.high / scale,
            "low_price": quote.low / scale,
            "prev_close_price": quote.previous_close / scale,
            "atp": quote.average / scale,
            "volume": quote.volume,
            "tt": str(quote.feed_ns // 10**9),
            "short_name": contract.symbol.partition(":")[2],
            "exchange": contract.symbol.partition(":")[0],
            "description": contract.description,
            "original_name": contract.symbol,
            "symbol": contract.symbol,
            "fyToken": contract.fy_token,
        },
    }


def depth_row(quote: Quote, *, with_ohlcv: bool) -> JsonObject:
    """Return the five best levels as GET /depth shows them."""
    contract, scale = quote.contract, quote.contract.scale
    change, percent = _change(quote)

    def side(levels: list[tuple[int, int]], orders: list[int]) -> list[JsonObject]:
        return [
            {"price": price / scale, "volume": size, "ord": count}
            for (price, size), count in zip(levels, orders, strict=True)
        ]

    row: JsonObject = {
        "totalbuyqty": quote.total_buy,
        "totalsellqty": quote.total_sell,
        "bids": side(quote.levels(buying=False), quote.bid_orders),
        "ask": side(quote.levels(buying=True), quote.ask_orders),
    }
    if with_ohlcv:
        row |= {
            "o": quote.open / scale,
            "h": quote.high / scale,
            "l": quote.low / scale,
            "c": quote.previous_close / scale,
            "ltp": quote.last / scale,
            "ltq": quote.last_quantity,
            "ltt": quote.last_trade_ns // 10**9,
            "v": quote.volume,
            "atp": quote.average / scale,
            "ch": change,
            "chp": percent,
            "lower_ckt": contract.lower / scale,
            "upper_ckt": contract.upper / scale,
            "oi": quote.open_interest,
            "pdoi": quote.open_interest,
            "oipercent": 0.0,
            "oiflag": bool(quote.open_interest),
            "tick_Size": contract.tick / scale,
            "expiry": ""
            if contract.expires_at_ns is None
            else str(contract.expires_at_ns // 10**9),
        }
    return row


def expiry_text(contract: Contract) -> str:
    """Return the expiry as epoch seconds in a string, empty for what does not expire."""
    expires_ns = contract.expires_at_ns
    return "" if expires_ns is None else str(expires_ns // 10**9)


def order_time(now_ns: int) -> str:
    """Return an instant as the order book writes it: local time of India, no zone."""
    return f"{local_time(now_ns):%d-%b-%Y %H:%M:%S}"


def _change(quote: Quote) -> tuple[float, float]:
    change = (quote.last - quote.previous_close) / quote.contract.scale
    percent = 100 * (quote.last / quote.previous_close - 1) if quote.previous_close else 0.0
    return round(change, 4), round(percent, 4)


def _side(net: int) -> int:
    return (net > 0) - (net < 0)
