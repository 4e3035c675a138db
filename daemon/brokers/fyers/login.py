"""Log in to Fyers with TOTP and PIN, and keep the day's token, encrypted, in the state folder.

Nothing here is logged, and no error shows what was sent. The token file is worth nothing without
its key: a systemd credential named `fyers-key`, or else a file of mode 0600 beside it.
"""

import asyncio
import base64
import binascii
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import aiohttp
import msgspec
import pyotp
from cryptography.fernet import Fernet, InvalidToken

from daemon.brokers.fyers.rest import Endpoints, scrubbed
from daemon.clock import NS_PER_SECOND, Clock
from daemon.errors import BrokerUnavailable, ConfigError, LoginNeeded

CREDENTIAL: Final = "fyers-key"
CREDENTIALS_VARIABLE: Final = "CREDENTIALS_DIRECTORY"
FIELD_VARIABLES: Final[Mapping[str, str]] = {
    "app_id": "FYERS_APP_ID",
    "secret_key": "FYERS_SECRET_KEY",
    "redirect_uri": "FYERS_REDIRECT_URI",
    "fy_id": "FYERS_FY_ID",
    "pin": "FYERS_PIN",
    "totp_secret": "FYERS_TOTP_SECRET",
}
_ANSWER_S: Final = 15.0
_SECRET_PARTS: Final = frozenset(
    {"fy_id", "fyers_id", "request_key", "otp", "identifier", "appIdHash", "code"}
)
_WEB_APP: Final = "2"  # what the broker's own login page says that it is


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginFields:
    """Who logs in to which app; its text shows no secret."""

    app_id: str
    secret_key: str = field(repr=False)
    redirect_uri: str
    fy_id: str
    pin: str = field(repr=False)
    totp_secret: str = field(repr=False)


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """An access token and what its claims say."""

    app_id: str
    access_token: str
    hsm_key: str  # opens the data socket
    expires_s: int  # epoch seconds

    def __repr__(self) -> str:
        return f"Token(app_id={self.app_id!r}, expires_s={self.expires_s})"


def fields_from(environment: Mapping[str, str]) -> LoginFields:
    """Read the six fields from the environment; ConfigError names the variables that lack."""
    values = {name: environment.get(key, "").strip() for name, key in FIELD_VARIABLES.items()}
    missing = [FIELD_VARIABLES[name] for name, value in values.items() if not value]
    if missing:
        raise ConfigError(f"login needs the environment variables {', '.join(missing)}")
    return LoginFields(**values)


async def log_in(
    who: LoginFields, http: aiohttp.ClientSession, endpoints: Endpoints, clock: Clock
) -> Token:
    """Take all steps of a login and return the token.

    Raises LoginNeeded when the broker refuses a step, BrokerUnavailable when it does not answer,
    ConfigError for a field that cannot be right. A login is not repeated here: wrong PINs lock the
    account.
    """
    app, _, app_type = who.app_id.rpartition("-")
    if not app:
        raise ConfigError(f"app_id must read like ABCDEFGH-100, was {who.app_id!r}")
    try:
        otp = pyotp.TOTP(who.totp_secret).at(clock.now_ns() // NS_PER_SECOND)
    except (binascii.Error, ValueError):
        raise ConfigError(
            "totp_secret must be base32 of 112 bits or more: copy it from the broker's page"
        ) from None
    page = endpoints.login
    step = await _post(
        http, f"{page}/send_login_otp_v2", {"fy_id": _base64(who.fy_id), "app_id": _WEB_APP}
    )
    key = _text(step, "request_key")
    step = await _post(http, f"{page}/verify_otp", {"request_key": key, "otp": otp})
    key = _text(step, "request_key")
    body = {"request_key": key, "identity_type": "pin", "identifier": _base64(who.pin)}
    step = await _post(http, f"{page}/verify_pin_v2", body)
    user_token = _text(step.get("data"), "access_token")
    code = await _auth_code(who, app, app_type, user_token, http, endpoints)
    app_hash = hashlib.sha256(f"{who.app_id}:{who.secret_key}".encode()).hexdigest()
    body = {"grant_type": "authorization_code", "appIdHash": app_hash, "code": code}
    answer = await _post(http, f"{endpoints.api}/validate-authcode", body)
    return token_of(who.app_id, _text(answer, "access_token"))


def token_of(app_id: str, access_token: str) -> Token:
    """Read the claims of an access token; its signature is the broker's business."""
    try:
        payload = access_token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return Token(
            app_id=app_id,
            access_token=access_token,
            hsm_key=str(claims["hsm_key"]),
            expires_s=int(claims["exp"]),
        )
    except (IndexError, KeyError, TypeError, ValueError):
        raise LoginNeeded("the access token cannot be read: it has no exp or hsm_key") from None


class TokenStore:
    """The encrypted token of the day in a folder of the state."""

    def __init__(self, folder: Path, environment: Mapping[str, str] = os.environ) -> None:
        self._folder = folder
        self._environment = environment
        self._path = folder / "token"

    def save(self, token: Token) -> None:
        """Replace the token; readers see the old one or the new one."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        content = self._cipher(may_create=True).encrypt(msgspec.json.encode(token))
        _write_private(self._path, content)

    def load(self, now_ns: int) -> Token:
        """Return the token; LoginNeeded when there is none, or none that is good now."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            raise LoginNeeded("nobody has logged in yet: run hrm-trader login") from None
        try:
            token = msgspec.json.decode(self._cipher().decrypt(content), type=Token)
        except (InvalidToken, msgspec.MsgspecError):
            raise LoginNeeded(
                f"{self._path} does not open with this key: run hrm-trader login"
            ) from None
        if token.expires_s * NS_PER_SECOND <= now_ns:
            raise LoginNeeded("the token of the last login has expired: run hrm-trader login")
        return token

    def _cipher(self, *, may_create: bool = False) -> Fernet:
        path = self._folder / "key"
        if directory := self._environment.get(CREDENTIALS_VARIABLE):
            credential = Path(directory) / CREDENTIAL
            path = credential if credential.is_file() else path
        if may_create and not path.exists():
            _write_private(path, Fernet.generate_key())
        try:
            if path.parent == self._folder and path.stat().st_mode & 0o077:
                raise ConfigError(f"{path} can be read by others: chmod 600 {path}")
            return Fernet(path.read_bytes().strip())
        except FileNotFoundError:
            raise LoginNeeded(f"{path} is gone: run hrm-trader login") from None
        except ValueError:
            raise ConfigError(f"{path} is no Fernet key: remove it and log in again") from None


async def _auth_code(
    who: LoginFields,
    app: str,
    app_type: str,
    user_token: str,
    http: aiohttp.ClientSession,
    endpoints: Endpoints,
) -> str:
    """Let the user of the login page allow the app; the code comes in an address, not followed."""
    state = secrets.token_hex(8)
    body = {
        "fyers_id": who.fy_id,
        "app_id": app,
        "appType": app_type,
        "redirect_uri": who.redirect_uri,
        "code_challenge": "",
        "state": state,
        "scope": "",
        "nonce": "",
        "response_type": "code",
        "create_cookie": True,
    }
    answer = await _post(http, f"{endpoints.api}/token", body, bearer=user_token)
    query = parse_qs(urlsplit(_text(answer, "Url")).query)
    if query.get("state") != [state]:
        raise LoginNeeded("the answer belongs to another login: its state differs")
    codes = query.get("auth_code", [])
    if len(codes) != 1:
        raise LoginNeeded("the broker gave no auth code: check app_id and redirect_uri")
    return codes[0]


async def _post(
    http: aiohttp.ClientSession, url: str, body: dict[str, Any], *, bearer: str = ""
) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    step = urlsplit(url).path.rpartition("/")[2]
    try:
        async with (
            asyncio.timeout(_ANSWER_S),
            http.post(url, json=body, headers=headers, allow_redirects=False) as response,
        ):
            status = response.status
            answer = await response.json(content_type=None)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise BrokerUnavailable(f"login step {step}: {type(error).__name__}") from None
    if not isinstance(answer, dict):
        raise BrokerUnavailable(f"login step {step}: HTTP {status} without a JSON object")
    if status >= 400 or answer.get("s") == "error":
        sent = [str(value) for name, value in body.items() if name in _SECRET_PARTS]
        text = scrubbed(str(answer.get("message", "")), bearer, *sent, *map(_readable, sent))
        raise LoginNeeded(
            f"login step {step} was refused: {text} (code {answer.get('code')!r:.20})"
        )
    return answer


def _text(answer: Any, key: str) -> str:
    value = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(value, str) or not value:
        raise BrokerUnavailable(f"the login's answer has no {key}")
    return value


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _readable(sent: str) -> str:
    """Return what a value says in base64, empty if it is none: the broker may show it so."""
    try:
        return base64.b64decode(sent, validate=True).decode()
    except ValueError:
        return ""


def _write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner reads, whole or not at all."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:  # mkstemp makes it 0600
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
