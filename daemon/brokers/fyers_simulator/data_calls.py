"""Answers of the data calls: history, option chain, symbol tokens and the symbol master."""

from collections.abc import Mapping
from datetime import date, datetime, time
from typing import Any, Final

from daemon.brokers.fyers_simulator.candles import merged
from daemon.brokers.fyers_simulator.hours import SECONDS_PER_DAY
from daemon.brokers.fyers_simulator.instruments import (
    IST,
    NS_PER_SECOND,
    NSE,
    Contract,
    Master,
    instant_ns,
    local_time,
)
from daemon.brokers.fyers_simulator.market import Market, Quote
from daemon.brokers.fyers_simulator.orders import INVALID, INVALID_SYMBOL, Refusal
from daemon.brokers.fyers_simulator.rows import expiry_text

JsonObject = dict[str, Any]

MOST_QUOTES: Final = 50
MOST_TOKENS: Final = 500
MOST_STRIKES: Final = 50
INTRADAY_DAYS, DAILY_DAYS = 100, 366
_MINUTES: Final = (1, 2, 3, 5, 10, 15, 20, 30, 45, 60, 120, 180, 240)
_SECONDS: Final = {str(minutes): minutes * 60 for minutes in _MINUTES} | {
    "D": SECONDS_PER_DAY,
    "1D": SECONDS_PER_DAY,
}
MASTER_FILES: Final = ("NSE_CM", "NSE_FO", "BSE_CM", "BSE_FO", "NSE_CD")
_FILE_OF_SEGMENT: Final = {
    "nse_cm": "NSE_CM",
    "nse_fo": "NSE_FO",
    "bse_cm": "BSE_CM",
    "bse_fo": "BSE_FO",
    "cde_fo": "NSE_CD",
}


def listed(master: Master, symbol: str) -> Contract:
    """Return the contract of a symbol, or refuse it as the broker does."""
    contract = master.get(symbol)
    if contract is None:
        raise Refusal(INVALID_SYMBOL, f"Invalid symbol provided: {symbol!r}")
    return contract


def history(market: Market, query: Mapping[str, str]) -> JsonObject:
    """Answer GET /data/history; the last candle is unfinished when asked for up to now."""
    contract = listed(market.master, query.get("symbol", ""))
    resolution = query.get("resolution", "")
    seconds = _SECONDS.get(resolution)
    if seconds is None:
        known = ", ".join(_SECONDS)
        raise Refusal(INVALID, f"resolution {resolution!r} is not simulated: use one of {known}")
    finest = market.finest_seconds(contract.symbol)
    if seconds % finest:
        raise Refusal(INVALID, f"{contract.symbol} is played from candles of {finest} s")
    first_ns, last_ns = _range(query)
    most = DAILY_DAYS if seconds == SECONDS_PER_DAY else INTRADAY_DAYS
    if not first_ns <= last_ns <= first_ns + most * SECONDS_PER_DAY * NS_PER_SECOND:
        raise Refusal(INVALID, f"range_from to range_to must be 0 to {most} days")
    bars = market.bars(contract.symbol, first_ns, last_ns + 1)
    scale = contract.scale
    interest = market.quote(contract.symbol).open_interest
    candles = []
    for bar in merged(bars, seconds, market.hours, contract.market):
        candle: list[float] = [bar.open_ns // NS_PER_SECOND]
        candle += [price / scale for price in bar[1:5]]
        candle.append(bar.volume)
        if query.get("oi_flag") == "1":
            candle.append(interest)
        candles.append(candle)
    return {"s": "ok", "candles": candles} if candles else {"s": "no_data", "candles": []}


def option_chain(market: Market, query: Mapping[str, str]) -> JsonObject:
    """Answer GET /data/options-chain-v3: `strikecount` strikes each way of the spot."""
    underlying = listed(market.master, query.get("symbol", ""))
    expiries = market.master.expiries(underlying.symbol)
    if not expiries:
        raise Refusal(INVALID_SYMBOL, f"{underlying.symbol} has no options")
    count = _number(query, "strikecount", 5)
    if not 1 <= count <= MOST_STRIKES:
        raise Refusal(INVALID, f"strikecount must be 1 to {MOST_STRIKES}, was {count}")
    expiry = _chosen(expiries, query.get("timestamp", ""))
    spot = market.quote(underlying.symbol)
    options = market.master.chain(underlying.symbol, expiry)
    strikes = sorted({option.strike for option in options})
    middle = min(range(len(strikes)), key=lambda k: abs(strikes[k] - spot.last))
    wanted = set(strikes[max(0, middle - count) : middle + count + 1])
    with_greeks = query.get("greeks") == "1"
    rows = [
        _chain_row(market, market.quote(option.symbol), with_greeks=with_greeks)
        for option in options
        if option.strike in wanted
    ]
    interest = {
        kind: sum(row["oi"] for row in rows if row["option_type"] == kind) for kind in ("CE", "PE")
    }
    vix = market.quote("NSE:INDIAVIX-INDEX")
    return {
        "callOi": interest["CE"],
        "putOi": interest["PE"],
        "expiryData": [
            {"date": f"{day:%d-%m-%Y}", "expiry": str(instant_ns(day, time(15, 30)) // 10**9)}
            for day in expiries
        ],
        "indiavixData": _spot_row(vix),
        "optionsChain": [_spot_row(spot), *rows],
    }


def symbol_tokens(master: Master, body: Any) -> JsonObject:
    """Answer POST /data/symbol-token."""
    symbols = body.get("symbols") if isinstance(body, dict) else None
    if not isinstance(symbols, list) or not symbols or len(symbols) > MOST_TOKENS:
        raise Refusal(INVALID, f"symbols must be a list of 1 to {MOST_TOKENS} symbols")
    found = {str(symbol): master.get(str(symbol)) for symbol in symbols}
    return {
        "s": "ok",
        "code": 200,
        "message": "",
        "validSymbol": {
            symbol: contract.fy_token for symbol, contract in found.items() if contract is not None
        },
        "invalidSymbol": [symbol for symbol, contract in found.items() if contract is None],
    }


def index_names(master: Master) -> dict[str, str]:
    """Return the published map of index symbols to topic tokens."""
    return {c.symbol: c.underlying.hsm_name for c in master if c.is_index}


def master_json(market: Market, name: str) -> JsonObject:
    """Return one file of the symbol master as JSON."""
    return {c.symbol: _master_row(c, market.now_ns) for c in _of_file(market.master, name)}


def master_csv(market: Market, name: str) -> str:
    """Return one file of the symbol master as CSV, 21 columns without a head."""
    return "".join(_csv_line(c, market.now_ns) for c in _of_file(market.master, name))


def _of_file(master: Master, name: str) -> list[Contract]:
    return [contract for contract in master if _FILE_OF_SEGMENT[contract.segment_name] == name]


def _master_row(contract: Contract, now_ns: int) -> JsonObject:
    scale = contract.scale
    return {
        "fyToken": contract.fy_token,
        "symTicker": contract.symbol,
        "symbolDesc": contract.description,
        "exSymbol": contract.underlying.root,
        "exchange": contract.exchange,
        "segment": contract.segment,
        "exToken": int(contract.token),
        "exSeries": "XX" if contract.is_index or contract.expiry else "EQ",
        "exInstType": contract.instrument,
        "minLotSize": contract.lot,
        "tickSize": contract.tick / scale,
        "qtyFreeze": str(contract.freeze) if contract.freeze else "",
        "upperPrice": contract.upper / scale,
        "lowerPrice": contract.lower / scale,
        "expiryDate": expiry_text(contract),
        "strikePrice": contract.strike / scale if contract.option_type != "XX" else -1.0,
        "optType": contract.option_type,
        "underSym": contract.underlying.root,
        "underFyTok": _underlying_token(contract),
        "tradeStatus": 1,
        "tradingSession": "0915-1540|1815-1915:",
        "previousClose": contract.previous_close / scale,
        "previousOi": 0.0,
        "isin": "",
        "faceValue": 0.0,
        "qtyMultiplier": 1.0,
        "is_mtf_tradable": 0,
        "mtf_margin": 0.0,
        "stream": "",
        "asmGsmVal": "",
        "lastUpdate": f"{local_time(now_ns):%Y-%m-%d}",
    }


def _csv_line(contract: Contract, now_ns: int) -> str:
    columns = (
        contract.fy_token,
        contract.description,
        contract.instrument,
        contract.lot,
        f"{contract.tick / contract.scale:g}",
        "",
        "0915-1540|1815-1915:",
        f"{local_time(now_ns):%Y-%m-%d}",
        expiry_text(contract),
        contract.symbol,
        contract.exchange,
        contract.segment,
        contract.token,
        contract.underlying.root,
        contract.underlying.scrip,
        contract.strike / contract.scale if contract.option_type != "XX" else -1.0,
        contract.option_type,
        _underlying_token(contract),
        "None",
        0,
        0.0,
    )
    return ",".join(str(column) for column in columns) + "\n"


def _underlying_token(contract: Contract) -> str:
    exchange = NSE if contract.underlying.exchange == NSE else contract.underlying.exchange
    return f"{exchange}10000000{contract.underlying.scrip}"


def _chain_row(market: Market, quote: Quote, *, with_greeks: bool) -> JsonObject:
    contract, scale = quote.contract, quote.contract.scale
    row: JsonObject = {
        "symbol": contract.symbol,
        "fyToken": contract.fy_token,
        "strike_price": contract.strike / scale,
        "option_type": contract.option_type,
        "ltp": quote.last / scale,
        "ltpch": (quote.last - quote.previous_close) / scale,
        "ltpchp": round(100 * (quote.last / quote.previous_close - 1), 2),
        "ask": quote.ask / scale,
        "bid": quote.bid / scale,
        "oi": quote.open_interest,
        "oich": 0,
        "oichp": 0.0,
        "prev_oi": quote.open_interest,
        "volume": quote.volume,
    }
    if with_greeks:
        valued = market.valuation(contract)
        row["greeks"] = {
            "iv": round(100 * valued.volatility, 4),
            "delta": round(valued.delta, 6),
            "gamma": round(valued.gamma * scale, 8),
            "theta": round(valued.theta / scale, 4),
            "vega": round(valued.vega / scale, 4),
        }
    return row


def _spot_row(quote: Quote) -> JsonObject:
    contract, scale = quote.contract, quote.contract.scale
    return {
        "symbol": contract.symbol,
        "fyToken": contract.fy_token,
        "description": contract.description,
        "ex_symbol": contract.underlying.root,
        "exchange": contract.symbol.partition(":")[0],
        "strike_price": -1,
        "option_type": "",
        "ltp": quote.last / scale,
        "ltpch": round((quote.last - quote.previous_close) / scale, 4),
        "ltpchp": round(100 * (quote.last / quote.previous_close - 1), 2),
        "ask": 0 if contract.is_index else quote.ask / scale,
        "bid": 0 if contract.is_index else quote.bid / scale,
    }


def _range(query: Mapping[str, str]) -> tuple[int, int]:
    if query.get("date_format") == "1":
        first = _day(query, "range_from")
        last = _day(query, "range_to")
        return instant_ns(first, time()), instant_ns(last, time(23, 59, 59))
    first_s, last_s = _number(query, "range_from"), _number(query, "range_to")
    return first_s * NS_PER_SECOND, last_s * NS_PER_SECOND


def _day(query: Mapping[str, str], name: str) -> date:
    text = query.get(name, "")
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=IST).date()
    except ValueError:
        raise Refusal(INVALID, f"{name} must read yyyy-mm-dd, was {text!r}") from None


def _number(query: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = query.get(name, "" if default is None else str(default))
    try:
        return int(text)
    except ValueError:
        raise Refusal(INVALID, f"{name} must be a whole number, was {text!r}") from None


def _chosen(expiries: list[date], timestamp: str) -> date:
    if not timestamp:
        return expiries[0]
    for day in expiries:
        if str(instant_ns(day, time(15, 30)) // NS_PER_SECOND) == timestamp:
            return day
    raise Refusal(INVALID, f"no expiry at {timestamp!r}")
