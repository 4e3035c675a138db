"""The Fyers account calls of the backend: login, profile, funds and history."""

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

from backend.accounts import Funds, PastCandle, Profile
from backend.auth import Identity
from backend.call_pace import CallPace
from backend.responses import fetch_seconds
from daemon.brokers.fyers.login import LoginFields, log_in
from daemon.brokers.fyers.rest import Endpoints
from daemon.clock import SystemClock
from daemon.errors import BrokerError, BrokerRejected, BrokerUnavailable, ConfigError

_TIMEOUT_S: Final = 10.0
_TOTAL, _REALISED = 1, 4  # ids in fund_limit
_LONGEST_RANGE_S: Final = 100 * 86_400
_LONGEST_FRESH_S: Final = 900
_KEPT_HISTORIES: Final = 32


class FyersAccounts:
    """Ask Fyers, at a pace; one HTTP session, opened when first needed. Use from one event loop."""

    def __init__(self, urls: Endpoints, pace: CallPace) -> None:
        self._urls = urls
        self._pace = pace
        self._histories: OrderedDict[tuple[str, str, int], tuple[int, list[PastCandle]]] = (
            OrderedDict()
        )
        self._clock = SystemClock()
        self._session: aiohttp.ClientSession | None = None

    async def log_in(self, credentials: LoginFields) -> Identity:
        """Take the steps of the broker's login, once; BrokerError says why not."""
        if not all((credentials.app_id, credentials.secret_key, credentials.totp_secret)):
            raise BrokerRejected(
                "Fyers API credentials (app_id, secret_key, totp_secret) must be provided."
            )
        try:
            token = await log_in(credentials, self._http(), self._urls, self._clock)
        except ConfigError as error:
            raise BrokerRejected(str(error)) from error
        return Identity(credentials.fy_id, token.access_token, credentials.app_id)

    async def profile(self, identity: Identity) -> Profile:
        """Ask for name and total funds."""
        answer, funds = await asyncio.gather(
            self._get(f"{self._urls.api}/profile", identity), self.funds(identity)
        )
        name = _object(answer, "data").get("name")
        return Profile(str(name or identity.user_id), funds.total)

    async def funds(self, identity: Identity) -> Funds:
        """Ask for the realised result of today and the total; 0 where the answer lacks one."""
        answer = await self._get(f"{self._urls.api}/funds", identity)
        amounts = {
            row.get("id"): row.get("equityAmount", 0.0)
            for row in answer.get("fund_limit") or []
            if isinstance(row, dict)
        }
        return Funds(float(amounts.get(_REALISED, 0.0)), float(amounts.get(_TOTAL, 0.0)))

    async def history(
        self, identity: Identity, exchange_symbol: str, timeframe: str, start_s: int, end_s: int
    ) -> list[PastCandle]:
        """Ask for the candles that open in [start_s, end_s]; at most 100 days.

        An answer is good until the bar ends, or for a quarter of an hour.
        """
        key = (exchange_symbol, timeframe, end_s - start_s)
        period = end_s // min(fetch_seconds(timeframe), _LONGEST_FRESH_S)
        kept = self._histories.get(key)
        if kept is not None and kept[0] == period:
            return kept[1]
        query = {
            "symbol": exchange_symbol,
            "resolution": timeframe,
            "date_format": "0",
            "range_from": str(max(start_s, end_s - _LONGEST_RANGE_S)),
            "range_to": str(end_s),
            "cont_flag": "1",
        }
        answer = await self._get(f"{self._urls.data}/history", identity, query)
        try:
            rows = [PastCandle(int(row[0]), *map(float, row[1:6])) for row in answer["candles"]]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise BrokerUnavailable("the broker's candles cannot be read") from error
        rows.sort()
        self._histories[key] = (period, rows)
        self._histories.move_to_end(key)
        if len(self._histories) > _KEPT_HISTORIES:
            self._histories.popitem(last=False)
        return rows

    async def _get(
        self, url: str, identity: Identity, query: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        headers = {"Authorization": f"{identity.app_id}:{identity.access_token}", "version": "3"}
        return await self._call("GET", url, headers=headers, params=query)

    async def _call(self, method: str, url: str, **arguments: Any) -> dict[str, Any]:
        # Neither body nor headers may come into a text: they hold secrets.
        path = urlsplit(url).path
        await asyncio.sleep(self._pace.turn())
        try:
            async with self._http().request(
                method, url, allow_redirects=False, **arguments
            ) as response:
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            text = f"the broker did not answer {method} {path}: {type(error).__name__}"
            raise BrokerUnavailable(text) from error
        if not isinstance(answer, dict):
            raise BrokerUnavailable(f"the broker's answer to {method} {path} is no object")
        if answer.get("s") not in ("ok", "no_data"):
            raise BrokerRejected(str(answer.get("message") or "the broker refused"))
        return answer

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S))
        return self._session

    async def close(self) -> None:
        """Close the HTTP session."""
        if self._session is not None:
            await self._session.close()
            self._session = None


def _object(answer: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = answer.get(name)
    if not isinstance(value, dict):
        raise BrokerError(f"the broker's answer has no {name}")
    return value
