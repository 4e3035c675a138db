"""The REST calls: routes, envelopes, limits, and the faults that calls meet.

Every call of the app passes the same gate: faults that keep it from being processed, the request
limits, the token. What it asks for is done by the exchange, the login desk or data_calls.py.
"""

import asyncio
import html
import json
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

from aiohttp import web

from daemon.brokers.fyers_simulator import data_calls, rows
from daemon.brokers.fyers_simulator.faults import Faults
from daemon.brokers.fyers_simulator.limits import RateLimiter
from daemon.brokers.fyers_simulator.login import CANNOT_AUTHENTICATE, INVALID_APP, LoginDesk
from daemon.brokers.fyers_simulator.matching import Exchange
from daemon.brokers.fyers_simulator.orders import (
    INVALID,
    Order,
    Refusal,
    read_order,
)

JsonObject = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Action = Literal["place", "modify", "cancel"]

MOST_IN_BASKET: Final = 10
_UNAUTHORISED: Final = (-8, -15, CANNOT_AUTHENTICATE, -17)
_ACTIONS: Final[dict[str, Action]] = {"POST": "place", "PATCH": "modify", "DELETE": "cancel"}
_DONE: Final[dict[Action, tuple[int, str]]] = {
    "place": (1101, "Order submitted successfully. Your Order Ref. No.{id}"),
    "modify": (1102, "Successfully modified order"),
    "cancel": (1103, "Successfully cancelled order"),
}
_LOGIN_PAGE: Final = """<!doctype html><title>Simulated login</title>
<h1>Simulated broker: log in</h1><p>{problem}</p>
<form method="post" action="/api/v3/generate-authcode">{hidden}
<label>Client id <input name="fy_id"></label>
<label>TOTP <input name="totp" inputmode="numeric"></label>
<label>PIN <input name="pin" type="password"></label>
<button>Log in</button></form>"""


class RestApi:
    """All HTTP routes of the broker, added to an application by `add_routes`."""

    def __init__(
        self,
        exchange: Exchange,
        desk: LoginDesk,
        limiter: RateLimiter,
        faults: Faults,
    ) -> None:
        self._exchange = exchange
        self._market = exchange.market
        self._desk = desk
        self._limiter = limiter
        self._faults = faults

    def add_routes(self, app: web.Application) -> None:
        """Register every route; `app` must lead calls through `gate`."""
        router, api, data = app.router, "/api/v3", "/data"
        router.add_get(f"{api}/generate-authcode", self._login_page)
        router.add_post(f"{api}/generate-authcode", self._login_form)
        router.add_post("/vagator/v2/send_login_otp_v2", self._send_otp)
        router.add_post("/vagator/v2/verify_otp", self._verify_otp)
        router.add_post("/vagator/v2/verify_pin_v2", self._verify_pin)
        router.add_post(f"{api}/token", self._user_token)
        router.add_post(f"{api}/validate-authcode", self._validate_authcode)
        router.add_post(f"{api}/validate-refresh-token", self._validate_refresh)
        router.add_post(f"{api}/logout", self._logout)
        router.add_get(f"{api}/profile", self._profile)
        router.add_get(f"{api}/funds", self._funds)
        router.add_get(f"{api}/holdings", self._holdings)
        router.add_get(f"{api}/positions", self._positions)
        router.add_delete(f"{api}/positions", self._exit)
        router.add_post(f"{api}/positions", self._convert)
        router.add_get(f"{api}/orders", self._order_book)
        router.add_get(f"{api}/tradebook", self._trade_book)
        router.add_post(f"{api}/multiorder/margin", self._margin)
        for method in _ACTIONS:
            router.add_route(method, f"{api}/orders/sync", self._order)
            router.add_route(method, f"{api}/multi-order/sync", self._basket)
        router.add_get(f"{data}/quotes", self._quotes)
        router.add_post(f"{data}/quotes", self._quotes)
        router.add_get(f"{data}/depth", self._depth)
        router.add_get(f"{data}/history", self._history)
        router.add_get(f"{data}/options-chain-v3", self._option_chain)
        router.add_get(f"{data}/marketStatus", self._market_status)
        router.add_post(f"{data}/symbol-token", self._symbol_token)
        router.add_get("/sym_details/index_hsm_mapping.json", self._index_names)
        router.add_get("/sym_details/{name}.csv", self._master_csv)
        router.add_get("/sym_details/{name}_sym_master.json", self._master_json)

    async def gate(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let a call through to its handler, unless a fault, a limit or its token is in the way."""
        where = f"{request.method} {request.path}"
        if (fault := self._faults.take("swallowed", where)) is not None:
            await asyncio.sleep(fault.seconds)
            return _cut(request)
        if (refused := self._refused(where)) is not None:
            return refused
        unanswered = self._faults.take("unanswered", where)
        slow = unanswered or self._faults.take("slow_reply", where)
        try:
            if _needs_token(request):
                self._desk.check_header(request.headers.get("Authorization", ""))
            response = await handler(request)
        except Refusal as refusal:
            response = _refusal(refusal.code, refusal.text)
        if slow is not None:
            await asyncio.sleep(slow.seconds)
        return response if unanswered is None else _cut(request)

    def _refused(self, where: str) -> web.Response | None:
        """Return the answer of a call that is turned away before anything is done."""
        if self._faults.take("server_error", where) is not None:
            text = "<html><body><h1>502 Bad Gateway</h1></body></html>"
            return web.Response(status=502, text=text, content_type="text/html")
        if self._faults.take("unauthorised", where) is not None:
            return _refusal(CANNOT_AUTHENTICATE, "Could not authenticate the user")
        if self._faults.take("rate_limited", where) is not None:
            return _too_many("request limit reached", 1)
        if self._faults.take("rate_limited_bare", where) is not None:
            return _too_many("request limit reached", None)
        if where.startswith("GET /sym_details"):  # public files are not counted
            return None
        verdict = self._limiter.admit()
        return None if verdict is None else _too_many(verdict.reason, verdict.retry_after_s)

    # Login.

    async def _login_page(self, request: web.Request) -> web.Response:
        return _page(dict(request.query), "")

    async def _login_form(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        account = self._desk.account
        given = form.get("fy_id"), form.get("pin")
        if given != (account.client_id, account.pin) or not self._desk.is_totp(
            form.get("totp", "")
        ):
            return _page(form, "client id, TOTP or PIN is wrong", status=401)
        where = self._desk.redirect(
            form.get("client_id", ""), form.get("redirect_uri", ""), form.get("state", "")
        )
        return web.Response(status=302, headers={"Location": where})

    async def _send_otp(self, request: web.Request) -> web.Response:
        body = await _object(request)
        return _ok(request_key=self._desk.send_otp(body.get("fy_id")))

    async def _verify_otp(self, request: web.Request) -> web.Response:
        body = await _object(request)
        return _ok(request_key=self._desk.verify_otp(body.get("request_key"), body.get("otp")))

    async def _verify_pin(self, request: web.Request) -> web.Response:
        body = await _object(request)
        token = self._desk.verify_pin(body.get("request_key"), body.get("identifier"))
        return _ok(data={"access_token": token})

    async def _user_token(self, request: web.Request) -> web.Response:
        body = await _object(request)
        user = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not self._desk.is_logged_in(user):
            raise Refusal(CANNOT_AUTHENTICATE, "Could not authenticate the user")
        app_id = f"{body.get('app_id', '')}-{body.get('appType', '')}"
        where = self._desk.redirect(
            app_id, str(body.get("redirect_uri", "")), str(body.get("state", ""))
        )
        return web.json_response({"s": "ok", "code": 308, "message": "", "Url": where}, status=308)

    async def _validate_authcode(self, request: web.Request) -> web.Response:
        return web.json_response(self._desk.exchange(await _body(request)))

    async def _validate_refresh(self, request: web.Request) -> web.Response:
        return web.json_response(self._desk.refresh(await _body(request)))

    async def _logout(self, request: web.Request) -> web.Response:
        self._desk.revoke(request.headers["Authorization"].partition(":")[2])
        return _ok(message="you are successfully logged out")

    # The account.

    async def _profile(self, _request: web.Request) -> web.Response:
        account = self._desk.account
        profile = {
            "fy_id": account.client_id,
            "name": account.name,
            "display_name": account.name,
            "email_id": "simulated@localhost",
            "image": None,
            "PAN": "",
            "totp": True,
            "pwd_change_date": None,
            "pwd_to_expire": 90,
            "pin_change_date": None,
            "ddpi_enabled": False,
            "mtf_enabled": False,
        }
        return _ok(data=profile)

    async def _funds(self, _request: web.Request) -> web.Response:
        portfolio, pending = self._exchange.portfolio, self._exchange.pending
        return _ok(
            fund_limit=rows.fund_rows(
                portfolio.balance,
                portfolio.used(pending),
                portfolio.realised,
                portfolio.available(pending),
            )
        )

    async def _holdings(self, _request: web.Request) -> web.Response:
        holdings = list(self._exchange.portfolio.holdings.values())
        listed = [
            rows.holding_row(holding, self._market.quote(holding.contract.symbol), number)
            for number, holding in enumerate(holdings, start=1)
        ]
        return _ok(holdings=listed, overall=rows.holdings_overall(listed))

    async def _positions(self, _request: web.Request) -> web.Response:
        portfolio = self._exchange.portfolio
        positions = [
            rows.position_row(position, self._market, number)
            for number, position in enumerate(portfolio.positions.values(), start=1)
        ]
        overall = rows.positions_overall(portfolio, self._market)
        return _ok(netPositions=positions, overall=overall)

    async def _exit(self, request: web.Request) -> web.Response:
        orders = self._exchange.exit(await _object(request))
        is_done = all(order.remaining == 0 for order in orders)
        text = "The position is closed." if is_done else "Exit order placed, not yet filled."
        return _ok(code=200 if is_done else 201, message=text)

    async def _convert(self, request: web.Request) -> web.Response:
        self._exchange.convert(await _object(request))
        return _ok(message="Position Conversion Success")

    async def _order_book(self, request: web.Request) -> web.Response:
        ids, tag = request.query.get("id"), request.query.get("order_tag")
        orders = [
            rows.order_row(
                order, self._exchange.client_id, self._market.quote(order.contract.symbol)
            )
            for order in self._exchange.orders.values()
            if (ids is None or order.id in ids.split(","))
            and (tag is None or order.shown_tag == tag)
        ]
        return _ok(orderBook=orders)

    def _order_row(self, order: Order) -> JsonObject:
        quote = self._market.quote(order.contract.symbol)
        return rows.order_row(order, self._exchange.client_id, quote)

    async def _trade_book(self, request: web.Request) -> web.Response:
        tag = request.query.get("order_tag")
        trades = [
            rows.trade_row(trade, self._exchange.client_id, number)
            for number, trade in enumerate(self._exchange.trades, start=1)
            if tag is None or trade.order.shown_tag == tag
        ]
        return _ok(tradeBook=trades)

    async def _margin(self, request: web.Request) -> web.Response:
        body = await _object(request)
        new = 0.0
        for entry in body.get("data") or []:
            asked = read_order(entry, self._market.master, self._exchange.client_id)
            new += self._exchange.portfolio.order_margin(
                Order(
                    id="",
                    contract=asked.contract,
                    quantity=asked.quantity,
                    type=asked.type,
                    side=asked.side,
                    product=asked.product,
                    validity=asked.validity,
                    limit=asked.limit,
                )
            )
        portfolio, pending = self._exchange.portfolio, self._exchange.pending
        return _ok(
            data={
                "margin_avail": round(portfolio.available(pending), 2),
                "margin_total": round(portfolio.used(pending) + new, 2),
                "margin_new_order": round(new, 2),
            }
        )

    # Orders.

    async def _order(self, request: web.Request) -> web.Response:
        status, answer = self._act(_ACTIONS[request.method], await _body(request))
        return web.json_response(answer, status=status)

    async def _basket(self, request: web.Request) -> web.Response:
        body = await _body(request)
        if not isinstance(body, list) or not 1 <= len(body) <= MOST_IN_BASKET:
            raise Refusal(INVALID, f"a basket is a list of 1 to {MOST_IN_BASKET} orders")
        data = []
        for entry in body:
            status, answer = self._act(_ACTIONS[request.method], entry)
            data.append({"statusCode": status, "body": answer, "statusDescription": ""})
        return _ok(data=data)

    def _act(self, action: Action, body: Any) -> tuple[int, JsonObject]:
        """Place, modify or cancel one order; return HTTP status and answer."""
        exchange = self._exchange
        try:
            order = {
                "place": exchange.place,
                "modify": exchange.modify,
                "cancel": exchange.cancel,
            }[action](body)
        except Refusal as refusal:
            return 400, {"s": "error", "code": refusal.code, "message": refusal.text}
        if self._faults.take("no_acknowledgement", action) is not None:
            text = "Order request taken, no acknowledgement from the exchange yet"
            return 200, {"s": "ok", "code": 201, "message": text, "id": order.id}
        code, text = _DONE[action]
        return 200, {"s": "ok", "code": code, "message": text.format(id=order.id), "id": order.id}

    # Market data.

    async def _quotes(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            symbols = (await _object(request)).get("symbols") or []
        else:
            symbols = request.query.get("symbols", "").split(",")
        if not 1 <= len(symbols) <= data_calls.MOST_QUOTES:
            raise Refusal(INVALID, f"symbols must be 1 to {data_calls.MOST_QUOTES}")
        return _ok(d=[self._quote(str(symbol)) for symbol in symbols])

    def _quote(self, symbol: str) -> JsonObject:
        if self._market.master.get(symbol) is None:
            problem = {"code": -300, "errmsg": "Invalid symbol", "symbol": symbol}
            return {"n": symbol, "s": "error", "v": problem}
        return rows.quote_row(self._market.quote(symbol))

    async def _depth(self, request: web.Request) -> web.Response:
        contract = data_calls.listed(self._market.master, request.query.get("symbol", ""))
        with_ohlcv = request.query.get("ohlcv_flag") == "1"
        quote = self._market.quote(contract.symbol)
        return _ok(d={contract.symbol: rows.depth_row(quote, with_ohlcv=with_ohlcv)})

    async def _history(self, request: web.Request) -> web.Response:
        return web.json_response(data_calls.history(self._market, request.query))

    async def _option_chain(self, request: web.Request) -> web.Response:
        return _ok(data=data_calls.option_chain(self._market, request.query))

    async def _market_status(self, _request: web.Request) -> web.Response:
        return _ok(marketStatus=self._market.hours.status_rows(self._market.now_ns))

    async def _symbol_token(self, request: web.Request) -> web.Response:
        self._desk.check(request.headers.get("Authorization", ""))
        answer = data_calls.symbol_tokens(self._market.master, await _body(request))
        return web.json_response(answer)

    async def _index_names(self, _request: web.Request) -> web.Response:
        return web.json_response(data_calls.index_names(self._market.master))

    async def _master_csv(self, request: web.Request) -> web.Response:
        name = _master_name(request)
        return web.Response(text=data_calls.master_csv(self._market, name), content_type="text/csv")

    async def _master_json(self, request: web.Request) -> web.Response:
        return web.json_response(data_calls.master_json(self._market, _master_name(request)))


def _needs_token(request: web.Request) -> bool:
    path = request.path
    if path.startswith("/data"):
        return path != "/data/symbol-token"  # that one wants the bare token
    open_calls = ("/generate-authcode", "/token", "/validate-authcode", "/validate-refresh-token")
    return path.startswith("/api/v3") and not path.endswith(open_calls)


def _master_name(request: web.Request) -> str:
    name = request.match_info["name"]
    if name not in data_calls.MASTER_FILES:
        raise web.HTTPNotFound(text=f"no master {name!r}: {', '.join(data_calls.MASTER_FILES)}")
    return name


def _page(fields: JsonObject, problem: str, status: int = 200) -> web.Response:
    names = ("client_id", "redirect_uri", "state")
    hidden = "".join(
        f'<input type="hidden" name="{name}" value="{html.escape(str(fields.get(name, "")))}">'
        for name in names
    )
    text = _LOGIN_PAGE.format(problem=html.escape(problem), hidden=hidden)
    return web.Response(text=text, content_type="text/html", status=status)


def _ok(code: int = 200, message: str = "", **payload: Any) -> web.Response:
    return web.json_response({"s": "ok", "code": code, "message": message, **payload})


def _refusal(code: int, text: str) -> web.Response:
    status = 401 if code in _UNAUTHORISED or code == INVALID_APP else 400
    return web.json_response({"s": "error", "code": code, "message": text}, status=status)


def _too_many(reason: str, retry_after_s: int | None) -> web.Response:
    headers = {}
    if retry_after_s is not None:
        headers = {
            "Retry-After": str(retry_after_s),
            "X-Retry-After-Ms": str(1_000 * retry_after_s),
        }
    answer = {"s": "error", "code": -429, "message": reason}
    return web.json_response(answer, status=429, headers=headers)


def _cut(request: web.Request) -> web.Response:
    """Close the connection without an answer."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)


async def _body(request: web.Request) -> Any:
    try:
        return json.loads(await request.text() or "null")
    except json.JSONDecodeError as error:
        raise Refusal(INVALID, f"the body is no JSON: {error}") from error


async def _object(request: web.Request) -> JsonObject:
    body = await _body(request)
    if not isinstance(body, dict):
        raise Refusal(INVALID, "Please provide valid inputs: a JSON object is expected")
    return body
