"""Who may come in: the login with TOTP and PIN, one-time codes, and tokens that die daily.

A token is a JWT with the claims that clients read (`exp`, `hsm_key`). It expires at the next
06:00 IST of real or of market time, whichever is later, so that a simulated day in the past still
gives tokens that a client accepts; market time passing 06:00 revokes all of them.
"""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import time, timedelta
from random import Random
from typing import Any, Final
from urllib.parse import urlencode

import pyotp

from daemon.brokers.fyers_simulator.instruments import NS_PER_SECOND, instant_ns, local_time
from daemon.brokers.fyers_simulator.orders import Refusal

EXPIRED, INVALID_TOKEN, CANNOT_AUTHENTICATE = -8, -15, -16
INVALID_APP: Final = -352
CODE_LIFE_S: Final = 300
TOTP_WINDOW: Final = 1  # codes of the step before and after pass too
_EXPIRY_TIME: Final = time(6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The one user and app that the simulator knows. Nothing of it is secret: it is loopback."""

    client_id: str = "XS00001"
    app_id: str = "SIMULATED1-100"
    secret: str = "simulated-secret"  # noqa: S105  known to everybody
    pin: str = "1234"
    totp_secret: str = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"  # noqa: S105  known to everybody
    redirect_uri: str = "http://127.0.0.1/callback"
    name: str = "Simulated Account"


@dataclass(slots=True)
class _Step:
    """A login under way: whose it is, what comes next."""

    client_id: str
    wants: str  # "otp", "pin"
    until_ns: int


@dataclass(slots=True)
class LoginDesk:
    """Issue and check codes and tokens of one account."""

    account: Account
    seed: int
    wall_ns: Callable[[], int]
    market_ns: Callable[[], int]
    refresh_is_allowed: bool = True
    _codes: dict[str, int] = field(default_factory=dict)  # auth code -> until when, real time
    _steps: dict[str, _Step] = field(default_factory=dict)
    _users: set[str] = field(default_factory=set)  # tokens of the login page, not of an app
    _tokens: dict[str, int] = field(default_factory=dict)  # access token -> exp, seconds
    _revoked: set[str] = field(default_factory=set)
    _refresh: set[str] = field(default_factory=set)
    _serial: int = 0

    # The login page, in the steps that scripts take.

    def send_otp(self, encoded_id: Any) -> str:
        """Begin a login for a base64 client id; return the request key."""
        if _decoded(encoded_id) != self.account.client_id:
            raise Refusal(INVALID_TOKEN, "unknown client id")
        return self._step(self.account.client_id, "otp")

    def verify_otp(self, key: Any, otp: Any) -> str:
        """Check the TOTP; return the next request key."""
        step = self._take_step(key, "otp")
        if not self.is_totp(str(otp)):
            raise Refusal(CANNOT_AUTHENTICATE, "invalid TOTP")
        return self._step(step.client_id, "pin")

    def verify_pin(self, key: Any, encoded_pin: Any) -> str:
        """Check the base64 PIN; return the token of the login page."""
        self._take_step(key, "pin")
        if _decoded(encoded_pin) != self.account.pin:
            raise Refusal(CANNOT_AUTHENTICATE, "invalid PIN")
        token = self._random_text("user")
        self._users.add(token)
        return token

    def is_logged_in(self, user_token: str) -> bool:
        """Tell whether a token of the login page is one of ours."""
        return user_token in self._users

    def is_totp(self, otp: str) -> bool:
        """Tell whether a TOTP is right now, give or take one step of 30 seconds."""
        now_s = self.wall_ns() // NS_PER_SECOND
        totp = pyotp.TOTP(self.account.totp_secret)
        return totp.verify(otp, for_time=now_s, valid_window=TOTP_WINDOW)

    def redirect(self, app_id: str, redirect_uri: str, state: str) -> str:
        """Return where the browser is sent with an auth code; Refusal for another app."""
        if app_id != self.account.app_id:
            raise Refusal(INVALID_APP, f"invalid app id {app_id!r}")
        if redirect_uri != self.account.redirect_uri:
            raise Refusal(-50, f"redirect_uri {redirect_uri!r} is not the registered one")
        code = self._random_text("code")
        self._codes[code] = self.wall_ns() + CODE_LIFE_S * NS_PER_SECOND
        answer = {"s": "ok", "code": 200, "auth_code": code, "state": state}
        return f"{redirect_uri}?{urlencode(answer)}"

    # Tokens of the app.

    def exchange(self, body: Any) -> dict[str, Any]:
        """Give tokens for an auth code, once."""
        self._check_hash(body, "authorization_code")
        until_ns = self._codes.pop(str(body.get("code")), 0)
        if until_ns < self.wall_ns():
            raise Refusal(CANNOT_AUTHENTICATE, "invalid or expired auth code")
        refresh = self._random_text("refresh")
        self._refresh.add(refresh)
        token = self.issue()
        return {"s": "ok", "code": 200, "message": "", "access_token": token,
                "refresh_token": refresh}  # fmt: skip

    def refresh(self, body: Any) -> dict[str, Any]:
        """Give a new access token for a refresh token and the PIN, where that is allowed."""
        self._check_hash(body, "refresh_token")
        if not self.refresh_is_allowed or body.get("refresh_token") not in self._refresh:
            raise Refusal(CANNOT_AUTHENTICATE, "invalid refresh token: log in again")
        if body.get("pin") != self.account.pin:
            raise Refusal(CANNOT_AUTHENTICATE, "invalid PIN")
        return {"s": "ok", "code": 200, "message": "", "access_token": self.issue()}

    def issue(self) -> str:
        """Return a new access token, as after a full login."""
        now_s = self.wall_ns() // NS_PER_SECOND
        expires_s = max(_next_six(self.wall_ns()), _next_six(self.market_ns())) // NS_PER_SECOND
        self._serial += 1
        hsm_key = hashlib.sha256(f"{self.seed}|hsm|{self._serial}".encode()).hexdigest()[:56]
        claims = {
            "iss": "api.fyers.in",
            "iat": now_s,
            "nbf": now_s,
            "exp": expires_s,
            "sub": "access_token",
            "aud": ["x:0", "x:1", "x:2"],
            "fy_id": self.account.client_id,
            "display_name": self.account.name,
            "hsm_key": hsm_key,
        }
        token = _jwt(claims, self.account.secret)
        self._tokens[token] = expires_s
        return token

    def check(self, token: str) -> None:
        """Raise Refusal for a token that is not, or no longer, good."""
        if token not in self._tokens:
            raise Refusal(INVALID_TOKEN, "Please provide a valid token")
        now_s = self.wall_ns() // NS_PER_SECOND
        if token in self._revoked or self._tokens[token] <= now_s:
            raise Refusal(EXPIRED, "Your token has expired. Please generate a token")

    def check_header(self, header: str) -> str:
        """Check `app_id:token`; return the token."""
        app_id, _, token = header.partition(":")
        if app_id != self.account.app_id or not token:
            raise Refusal(CANNOT_AUTHENTICATE, "Could not authenticate the user")
        self.check(token)
        return token

    def is_hsm_key(self, key: str) -> bool:
        """Tell whether a key of the data socket belongs to a token that is good now."""
        for token in self._tokens:
            if claims_of(token)["hsm_key"] == key:
                try:
                    self.check(token)
                except Refusal:
                    return False
                return True
        return False

    def revoke(self, token: str) -> None:
        """End one token: a logout."""
        self._revoked.add(token)

    def revoke_all(self) -> None:
        """End all tokens, as at 06:00."""
        self._revoked.update(self._tokens)
        self._users.clear()

    def _check_hash(self, body: Any, grant_type: str) -> None:
        expected = hashlib.sha256(f"{self.account.app_id}:{self.account.secret}".encode())
        if not isinstance(body, dict) or body.get("appIdHash") != expected.hexdigest():
            raise Refusal(INVALID_APP, "invalid app id hash")
        if body.get("grant_type") != grant_type:
            raise Refusal(-50, f"grant_type must be {grant_type}")

    def _step(self, client_id: str, wants: str) -> str:
        key = self._random_text("step")
        until_ns = self.wall_ns() + CODE_LIFE_S * NS_PER_SECOND
        self._steps[key] = _Step(client_id, wants, until_ns)
        return key

    def _take_step(self, key: Any, wants: str) -> _Step:
        step = self._steps.pop(str(key), None)
        if step is None or step.wants != wants or step.until_ns < self.wall_ns():
            raise Refusal(INVALID_TOKEN, "invalid or expired request key")
        return step

    def _random_text(self, what: str) -> str:
        self._serial += 1
        return f"{Random(f'{self.seed}|{what}|{self._serial}').getrandbits(128):032x}"


def claims_of(token: str) -> dict[str, Any]:
    """Return the claims of a JWT without checking it, as clients do."""
    payload = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=="))
    return claims


def _jwt(claims: dict[str, Any], secret: str) -> str:
    parts = [{"alg": "HS256", "typ": "JWT"}, claims]
    signed = ".".join(_base64url(json.dumps(part).encode()) for part in parts)
    digest = hmac.new(secret.encode(), signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{_base64url(digest)}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: Any) -> str | None:
    try:
        return base64.b64decode(str(text), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def _next_six(now_ns: int) -> int:
    """Return the next 06:00 IST after an instant."""
    today = local_time(now_ns).date()
    six_ns = instant_ns(today, _EXPIRY_TIME)
    return six_ns if six_ns > now_ns else instant_ns(today + timedelta(days=1), _EXPIRY_TIME)
