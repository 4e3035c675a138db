"""What the backend asks a broker about a user: log in, name, funds, candles of the past.

Orders never go this way: they are the daemon's.
"""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from backend.auth import Identity


@dataclass(frozen=True, slots=True)
class Credentials:
    """The six fields of the log-in form; none but the ids is ever shown."""

    app_id: str
    secret_key: str = field(repr=False)
    redirect_uri: str
    fy_id: str
    pin: str = field(repr=False)
    totp_secret: str = field(repr=False)


class Profile(NamedTuple):
    """Whose account it is, and what is in it, in rupees."""

    name: str
    capital: float


class Funds(NamedTuple):
    """Result of today and total funds, in rupees."""

    today_pnl: float
    total: float


class PastCandle(NamedTuple):
    """One candle; `time_s` is its open, seconds since 1970."""

    time_s: int
    open: float
    high: float
    low: float
    close: float
    volume: float


class Accounts(Protocol):
    """A broker as the backend sees it. Methods raise BrokerError, the text without any secret."""

    async def log_in(self, credentials: Credentials) -> Identity: ...

    async def profile(self, identity: Identity) -> Profile: ...

    async def funds(self, identity: Identity) -> Funds: ...

    async def history(
        self, identity: Identity, exchange_symbol: str, timeframe: str, start_s: int, end_s: int
    ) -> list[PastCandle]: ...

    async def close(self) -> None: ...
