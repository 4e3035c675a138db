"""What the backend asks a broker about a user: log in, name, funds, candles of the past.

Orders never go this way: they are the daemon's.
"""

from typing import NamedTuple, Protocol

from backend.auth import Identity
from daemon.brokers.fyers.login import LoginFields


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

    async def log_in(self, credentials: LoginFields) -> Identity: ...

    async def profile(self, identity: Identity) -> Profile: ...

    async def funds(self, identity: Identity) -> Funds: ...

    async def history(
        self, identity: Identity, exchange_symbol: str, timeframe: str, start_s: int, end_s: int
    ) -> list[PastCandle]: ...

    async def close(self) -> None: ...
