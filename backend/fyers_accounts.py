"""The Fyers account calls of the backend: the TOTP log-in, profile, funds and history.

Facts of the log-in page's steps and of the calls are those that the loopback simulator speaks.
"""

import asyncio
import base64
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pyotp

from backend.accounts import Credentials, Funds, PastCandle, Profile
from backend.auth import Identity
from daemon.errors import BrokerError, BrokerRejected, BrokerUnavailable

_TIMEOUT_S: Final = 10.0
_LOGIN_APP: Final = "2"  # the application id of the log-in page itself
_TOTAL, _REALISED = 1, 4  # ids in fund_limit
_LONGEST_RANGE_S: Final = 100 * 86_400


@dataclass(frozen=True, slots=True)
class FyersUrls:
    """Where the broker's calls are; `at` gives those of a simulator."""

    api: str = "https://api-t1.fyers.in/api/v3"
    data: str = "https://api-t1.fyers.in/data"
    login: str = "https://api-t2.fyers.in/vagator/v2"

    @classmethod
    def at(cls, base: str) -> Self:
        """Return the urls of a server that speaks all of it under one address."""
        return cls(f"{base}/api/v3", f"{base}/data", f"{base}/vagator/v2")


class FyersAccounts:
    """Ask Fyers; one HTTP session, opened when it is first needed. Use from one event loop."""

    def __init__(self, urls: FyersUrls, clock_s: Callable[[], float] = time.time) -> None:
        self._urls = urls
        self._clock_s = clock_s
        self._session: aiohttp.ClientSession | None = None

    async def log_in(self, credentials: Credentials) -> Identity:
        """Walk through TOTP, PIN, authorisation code and token."""
        if not all((credentials.app_id, credentials.secret_key, credentials.totp_secret)):
            raise BrokerRejected(
                "Fyers API credentials (app_id, secret_key, totp_secret) must be provided."
            )
        try:
            otp = pyotp.TOTP(credentials.totp_secret).at(int(self._clock_s()))
        except (ValueError, TypeError) as error:
            raise BrokerRejected("totp_secret is not base32: copy it again") from error
        login = self._urls.login
        key = (
            await self._post(
                f"{login}/send_login_otp_v2",
                {"fy_id": _base64(credentials.fy_id), "app_id": _LOGIN_APP},
            )
        ).get("request_key")
        key = (await self._post(f"{login}/verify_otp", {"request_key": key, "otp": otp})).get(
            "request_key"
        )
        body = {
            "request_key": key,
            "identity_type": "pin",
            "identifier": _base64(credentials.pin),
        }
        page = await self._post(f"{login}/verify_pin_v2", body)
        code = await self._auth_code(credentials, str(_object(page, "data").get("access_token")))
        secret = hashlib.sha256(f"{credentials.app_id}:{credentials.secret_key}".encode())
        tokens = await self._post(
            f"{self._urls.api}/validate-authcode",
            {
                "grant_type": "authorization_code",
                "appIdHash": secret.hexdigest(),
                "code": code,
            },
        )
        token = tokens.get("access_token")
        if not isinstance(token, str) or not token:
            raise BrokerRejected("the broker gave no access token")
        return Identity(credentials.fy_id, token, credentials.app_id)

    async def _auth_code(self, credentials: Credentials, page_token: str) -> str:
        app, _, kind = credentials.app_id.partition("-")
        body = {
            "fyers_id": credentials.fy_id,
            "app_id": app,
            "redirect_uri": credentials.redirect_uri,
            "appType": kind,
            "code_challenge": "",
            "state": "hrm",
            "scope": "",
            "nonce": "",
            "response_type": "code",
            "create_cookie": True,
        }
        answer = await self._post(
            f"{self._urls.api}/token", body, {"Authorization": f"Bearer {page_token}"}
        )
        codes = parse_qs(urlsplit(str(answer.get("Url", ""))).query).get("auth_code", [])
        if not codes:
            raise BrokerRejected("the broker gave no authorisation code")
        return codes[0]

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
        """Ask for the candles that open in [start_s, end_s]; at most 100 days."""
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
        return sorted(rows)

    async def _get(
        self, url: str, identity: Identity, query: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        headers = {"Authorization": f"{identity.app_id}:{identity.access_token}", "version": "3"}
        return await self._call("GET", url, headers=headers, params=query)

    async def _post(
        self, url: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        return await self._call("POST", url, json=body, headers=headers)

    async def _call(self, method: str, url: str, **arguments: Any) -> dict[str, Any]:
        # Neither body nor headers may come into a text: they hold secrets.
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S))
        path = urlsplit(url).path
        try:
            async with self._session.request(
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

    async def close(self) -> None:
        """Close the HTTP session."""
        if self._session is not None:
            await self._session.close()
            self._session = None


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _object(answer: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = answer.get(name)
    if not isinstance(value, dict):
        raise BrokerError(f"the broker's answer has no {name}")
    return value
