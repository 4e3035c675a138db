"""Calls to Fyers' REST interface: counted, timed, judged.

Every call passes the rate ledger. An answer is judged by `s` first, then `code`, then the HTTP
status, and what is no success becomes one of four errors: Rejected (the broker said no, for good),
LoginNeeded, TooManyCalls, and BrokerUnavailable, where nothing is known. Only reads are repeated.
"""

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from random import Random
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from daemon.brokers.fyers.ledger import RateLedger
from daemon.brokers.fyers.transport import Call, HttpTransport, Transport
from daemon.clock import Clock
from daemon.errors import (
    BrokerRejected,
    BrokerUnavailable,
    ConfigError,
    LoginNeeded,
    TooManyCalls,
)
from daemon.reject_circuit import reject_kind

JsonObject = dict[str, Any]

MOST_TOKENS: Final = 500  # symbols of one symbol-token call
_LOGIN_CODES: Final = frozenset({-8, -15, -16, -17})
_TOO_MANY: Final = -429
_HIDDEN: Final = "***"
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_KEY: Final = re.compile(r"[\w+/=.-]{24,}")  # no word, symbol or order id is so long
_LONGEST_MESSAGE: Final = 300
_FILE_S: Final = 60.0
_UNACKNOWLEDGED: Final = 201  # taken, but the exchange has not said anything
_SEGMENTS: Final[Mapping[str, str]] = {
    "1010": "nse_cm",
    "1011": "nse_fo",
    "1012": "cde_fo",
    "1020": "nse_com",
    "1120": "mcx_fo",
    "1210": "bse_cm",
    "1211": "bse_fo",
    "1212": "bcs_fo",
}


class Rejected(BrokerRejected):
    """The broker refused the call for good; `code` is its own number."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text, reject_kind(code, text))
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """Where the broker is; the defaults are the real one."""

    api: str = "https://api-t1.fyers.in/api/v3"
    data: str = "https://api-t1.fyers.in/data"
    public: str = "https://public.fyers.in/sym_details"
    login: str = "https://api-t2.fyers.in/vagator/v2"
    data_socket: str = "wss://socket.fyers.in/hsm/v1-5/prod"
    order_socket: str = "wss://socket.fyers.in/trade/v3"


def simulated(base: str) -> Endpoints:
    """Return where everything is at a simulated broker; ConfigError for one not on loopback."""
    parts = urlsplit(base)
    if parts.scheme != "http" or parts.hostname not in _LOOPBACK:
        raise ConfigError(
            f"a simulated broker is on loopback, http://127.0.0.1:PORT, was {base!r}: leave it out "
            "for the real one"
        )
    base = base.rstrip("/")
    socket = base.replace("http", "ws", 1)
    return Endpoints(
        api=f"{base}/api/v3",
        data=f"{base}/data",
        public=f"{base}/sym_details",
        login=f"{base}/vagator/v2",
        data_socket=f"{socket}/hsm/v1-5/prod",
        order_socket=f"{socket}/trade/v3",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTimes:
    """How long to wait, in seconds, and how often a read is tried."""

    answer_s: float = 10.0
    budget_s: float = 90.0  # longest wait for the rate ledger; a minute's window fits
    # The same of an order or a change: a second's window fits, and of the gateway's request timeout
    # (5 s) most is left for the answer.
    order_budget_s: float = 2.0
    tries: int = 4
    first_delay_s: float = 0.5


class FyersRest:
    """Make calls with the access token that `token` returns at that moment.

    Raises Rejected, LoginNeeded, TooManyCalls or BrokerUnavailable. Use from one event loop.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        endpoints: Endpoints,
        *,
        app_id: str,
        token: Callable[[], str],
        ledger: RateLedger,
        clock: Clock,
        random: Random,
        times: CallTimes | None = None,
        on_refused: Callable[[str], None] = lambda _: None,
        transport: Transport | None = None,
    ) -> None:
        """`on_refused` hears an access token that the broker does not take; transport: ours."""
        self._on_refused = on_refused
        self._http = http
        self._transport = transport or HttpTransport(http)
        self._endpoints = endpoints
        self._app_id = app_id
        self._token = token
        self._ledger = ledger
        self._clock = clock
        self._random = random
        self._times = times or CallTimes()

    async def read(
        self, url: str, query: Mapping[str, str] | None = None, *, reduces_risk: bool = False
    ) -> JsonObject:
        """Make a call that changes nothing, again if it is not answered.

        `reduces_risk`: it may use the calls kept for cancels and exits, being needed for one.
        """
        return await self._repeated("GET", url, query=query, reduces_risk=reduces_risk)

    async def write(
        self, method: str, path: str, body: Any, *, reduces_risk: bool = False
    ) -> JsonObject:
        """Make a call that changes something, once; `path` begins at the trading base.

        BrokerUnavailable: nobody knows whether it had an effect; look before doing anything else.
        TooManyCalls: it had none. A cancel (DELETE) waits for the rate ledger as long as a read,
        since late is better than never; anything else comes too late soon.
        """
        url = self._endpoints.api + path
        budget_s = self._times.budget_s if method == "DELETE" else self._times.order_budget_s
        return await self._once(
            method, url, body=body, reduces_risk=reduces_risk, budget_s=budget_s
        )

    async def profile(self) -> JsonObject:
        """Return who is logged in."""
        return _object(await self.read(f"{self._endpoints.api}/profile"), "data")

    async def orders(self, *, reduces_risk: bool = False) -> list[JsonObject]:
        """Return the orders of the day, as the broker writes them."""
        url = f"{self._endpoints.api}/orders"
        return _rows(await self.read(url, reduces_risk=reduces_risk), "orderBook")

    async def trades(self, *, reduces_risk: bool = False) -> list[JsonObject]:
        """Return the fills of the day."""
        url = f"{self._endpoints.api}/tradebook"
        return _rows(await self.read(url, reduces_risk=reduces_risk), "tradeBook")

    async def positions(self, *, reduces_risk: bool = False) -> list[JsonObject]:
        """Return positions, carried ones and those of other programs included."""
        url = f"{self._endpoints.api}/positions"
        return _rows(await self.read(url, reduces_risk=reduces_risk), "netPositions")

    async def history(
        self, symbol: str, resolution: str, first_s: int, last_s: int
    ) -> list[list[Any]]:
        """Return candles [epoch s, open, high, low, close, volume], prices as Decimal.

        Bounds are epoch seconds, both included; at most 100 days, 366 of daily candles. The
        unfinished candle comes too when asked for up to now.
        """
        query = {
            "symbol": symbol,
            "resolution": resolution,
            "date_format": "0",
            "range_from": str(first_s),
            "range_to": str(last_s),
            "cont_flag": "0",
        }
        answer = await self.read(f"{self._endpoints.data}/history", query)
        return _rows(answer, "candles")

    async def option_chain(
        self, symbol: str, strikes: int, expiry_s: str | None = None
    ) -> JsonObject:
        """Return the quotes of so many strikes each way of the price, and the expiries there are.

        expiry_s: one of them as the broker writes it; None takes the nearest.
        """
        query = {"symbol": symbol, "strikecount": str(strikes)}
        if expiry_s is not None:
            query["timestamp"] = expiry_s
        return _object(await self.read(f"{self._endpoints.data}/options-chain-v3", query), "data")

    async def symbol_master(self, name: str) -> bytes:
        """Return a file of the symbol master of today, such as NSE_FO: JSON, one row per symbol.

        It is public, counts for no limit, and is tens of MB: it has a minute. BrokerUnavailable.
        """
        url = f"{self._endpoints.public}/{name}_sym_master.json"
        try:
            async with asyncio.timeout(_FILE_S), self._http.get(url) as response:
                if response.status == 200:
                    return await response.read()
                raise BrokerUnavailable(f"GET {url}: HTTP {response.status}")
        except (aiohttp.ClientError, OSError) as error:
            raise BrokerUnavailable(f"GET {url}: {type(error).__name__}") from None

    async def topics(self, symbols: Sequence[str]) -> dict[str, str]:
        """Return the data socket's topic of each symbol as topic -> symbol.

        Rejected names the symbols that the broker does not know.
        """
        names: JsonObject = {}
        if any(symbol.endswith("-INDEX") for symbol in symbols):
            names = await self.read(f"{self._endpoints.public}/index_hsm_mapping.json")
        found: dict[str, str] = {}
        for first in range(0, len(symbols), MOST_TOKENS):
            part = list(symbols[first : first + MOST_TOKENS])
            url = f"{self._endpoints.data}/symbol-token"
            answer = await self._repeated("POST", url, body={"symbols": part}, has_bare_token=True)
            valid: dict[str, str] = _object(answer, "validSymbol")
            missing = [symbol for symbol in part if symbol not in valid]
            if missing:
                raise Rejected(f"no such symbol at the broker: {', '.join(missing)}", -300)
            found |= {_topic(symbol, valid[symbol], names): symbol for symbol in part}
        return found

    async def _repeated(
        self,
        method: str,
        url: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        reduces_risk: bool = False,
        has_bare_token: bool = False,
    ) -> JsonObject:
        async def once() -> JsonObject:
            return await self._once(
                method,
                url,
                query=query,
                body=body,
                reduces_risk=reduces_risk,
                has_bare_token=has_bare_token,
            )

        delay_s = self._times.first_delay_s
        for _ in range(self._times.tries - 1):
            try:
                return await once()
            except BrokerUnavailable:
                await self._clock.sleep(delay_s * (0.5 + self._random.random()))
                delay_s *= 2
        return await once()

    async def _once(
        self,
        method: str,
        url: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        reduces_risk: bool = False,
        has_bare_token: bool = False,
        budget_s: float | None = None,
    ) -> JsonObject:
        if not url.startswith(self._endpoints.public):
            longest_s = self._times.budget_s if budget_s is None else budget_s
            await self._wait_for_budget(longest_s, reduces_risk=reduces_risk)
        token = self._token()
        call = Call(
            method, url, token if has_bare_token else f"{self._app_id}:{token}", query, body
        )
        try:
            async with asyncio.timeout(self._times.answer_s):
                answer = await self._transport.send(call)
        except TimeoutError:
            raise BrokerUnavailable(f"{call}: TimeoutError") from None
        try:
            return self._judged(str(call), *answer)
        except LoginNeeded:
            self._on_refused(token)
            raise

    async def _wait_for_budget(self, longest_s: float, *, reduces_risk: bool) -> None:
        waited_s = 0.0
        while (wait_s := self._ledger.take(reduces_risk=reduces_risk)) > 0:
            if waited_s + wait_s > longest_s:
                raise TooManyCalls(
                    f"{self._ledger.calls_today} calls made and {self._ledger.refusals_today} "
                    f"refused today: the next one may go in {wait_s:g} s"
                )
            await self._clock.sleep(wait_s)
            waited_s += wait_s

    def _judged(self, call: str, status: int, text: str) -> JsonObject:
        try:
            # Prices stay as they are written.
            answer = json.loads(text, parse_float=Decimal)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            if status == 429:
                self._ledger.note_refusal()
                raise TooManyCalls(f"{call}: the broker says that there were too many calls")
            raise BrokerUnavailable(f"{call}: HTTP {status} without a JSON object")
        code = answer.get("code", 0)
        message = scrubbed(str(answer.get("message", "")))
        if status == 429 or code == _TOO_MANY:
            self._ledger.note_refusal()
            raise TooManyCalls(f"{call}: {message or 'too many calls'}")
        if status == 401 or code in _LOGIN_CODES:
            raise LoginNeeded(f"{call}: {message} (code {code}): run hrm-trader login")
        if status >= 500 or code == _UNACKNOWLEDGED:
            raise BrokerUnavailable(f"{call}: HTTP {status}, code {code}: {message}")
        if status >= 400 or answer.get("s") == "error":
            raise Rejected(f"{message} (code {code})", code if isinstance(code, int) else 0)
        return answer


def scrubbed(text: str, *sent: str) -> str:
    """Return a broker's message fit for a log: without what was sent, keys and tokens, and short.

    sent: values that must not show, such as a PIN, which no pattern would know.
    """
    for value in sorted(filter(None, sent), key=len, reverse=True):
        text = text.replace(value, _HIDDEN)
    shown = "".join(char if char.isprintable() else " " for char in _KEY.sub(_HIDDEN, text))
    return shown[:_LONGEST_MESSAGE]


def _object(answer: JsonObject, key: str) -> JsonObject:
    value = answer.get(key)
    if not isinstance(value, dict):
        raise _without(answer, f"object {key!r}")
    return value


def _rows(answer: JsonObject, key: str) -> list[Any]:
    value = answer.get(key)
    if not isinstance(value, list):
        raise _without(answer, f"list {key!r}")
    return value


def _without(answer: JsonObject, what: str) -> BrokerUnavailable:
    return BrokerUnavailable(f"the answer has no {what}, only {', '.join(answer) or 'nothing'}")


def _topic(symbol: str, fy_token: str, index_names: Mapping[str, Any]) -> str:
    """Return `kind|segment|token`; an index goes by a published name."""
    segment = _SEGMENTS.get(fy_token[:4])
    if segment is None:
        raise Rejected(f"{symbol}: token {fy_token} is of an unknown segment", -300)
    if symbol.endswith("-INDEX"):
        bare = symbol.partition(":")[2].removesuffix("-INDEX")
        return f"if|{segment}|{index_names.get(symbol, bare)}"
    return f"sf|{segment}|{fy_token[10:]}"
