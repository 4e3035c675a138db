"""Who is asking: the signed cookie, and a brake on guessing log-ins.

The cookie's value is a JWT with the broker's access token in it; nothing else keeps that token, and
no log, stream or answer shows it.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import jwt

from daemon.errors import ConfigError

COOKIE: Final = "auth_token"
COOKIE_LIFE_S: Final = 86_400
ALGORITHM: Final = "HS256"
LEAST_SECRET_BYTES: Final = 32

_KEPT_KEYS: Final = 10_000


class NotAuthenticated(Exception):
    """The cookie does not say who is asking; the text is what the client is told."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is asking, and what the broker gave him."""

    user_id: str
    access_token: str = field(repr=False)
    app_id: str


class CookieSigner:
    """Write and read the value of the cookie; `clock_s` is seconds since 1970."""

    def __init__(self, secret: str, clock_s: Callable[[], float]) -> None:
        if len(secret.encode()) < LEAST_SECRET_BYTES:
            raise ConfigError(
                f"JWT_SECRET must have at least {LEAST_SECRET_BYTES} bytes, has "
                f"{len(secret.encode())}: set it to the output of `openssl rand -hex 32`"
            )
        self._secret = secret
        self._clock_s = clock_s

    def issue(self, identity: Identity) -> str:
        """Return a cookie value that is good for a day."""
        claims = {
            "user_id": identity.user_id,
            "access_token": identity.access_token,
            "app_id": identity.app_id,
            "exp": int(self._clock_s()) + COOKIE_LIFE_S,
        }
        return jwt.encode(claims, self._secret, algorithm=ALGORITHM)

    def read(self, cookie: str | None) -> Identity:
        """Return who the cookie names, or raise NotAuthenticated."""
        if not cookie:
            raise NotAuthenticated("Authentication required")
        try:
            claims = jwt.decode(cookie, self._secret, algorithms=[ALGORITHM])
        except jwt.ExpiredSignatureError as error:
            raise NotAuthenticated("Token expired") from error
        except jwt.InvalidTokenError as error:
            raise NotAuthenticated("Invalid token") from error
        values = [claims.get(name) for name in ("user_id", "access_token", "app_id")]
        user_id, access_token, app_id = (v if isinstance(v, str) else "" for v in values)
        if not (user_id and access_token and app_id):
            raise NotAuthenticated("Invalid token payload")
        return Identity(user_id, access_token, app_id)


class LoginThrottle:
    """Refuse log-ins of a user or an address after so many failures within a time.

    A log-in counts from when it is tried, so that many at once are no way around; one that was no
    failure is taken back.
    """

    def __init__(self, clock_s: Callable[[], float], failures: int, window_s: float) -> None:
        self._clock_s = clock_s
        self._most = failures
        self._window_s = window_s
        self._failures: dict[str, deque[float]] = {}

    def wait_s(self, *keys: str) -> float:
        """Return how long these keys have to wait; 0 when they may try."""
        return max((self._wait_of(key) for key in keys), default=0.0)

    def count(self, *keys: str) -> float:
        """Count a log-in that is tried now; return when that is, for `take_back`."""
        now_s = self._clock_s()
        for key in keys:
            self._failures.setdefault(key, deque(maxlen=self._most)).append(now_s)
        while len(self._failures) > _KEPT_KEYS:
            del self._failures[next(iter(self._failures))]
        return now_s

    def take_back(self, at_s: float, *keys: str) -> None:
        """Forget a log-in that did not fail."""
        for key in keys:
            times = self._failures.get(key)
            if times is not None and at_s in times:
                times.remove(at_s)

    def _wait_of(self, key: str) -> float:
        times = self._failures.get(key)
        if not times:
            return 0.0
        if times[-1] <= self._clock_s() - self._window_s:
            del self._failures[key]
            return 0.0
        if len(times) < self._most:
            return 0.0
        return max(0.0, times[0] + self._window_s - self._clock_s())
