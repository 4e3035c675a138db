"""The access token in use: read where hrm-trader login has put it, and replaced when it dies.

It dies every morning, and at the broker's will. Where the fields of a login are at hand, a new one
is fetched; without them only a person can, and is asked once.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from actors.messages import Alert
from daemon.brokers.fyers.login import Token
from daemon.clock import NS_PER_SECOND, Clock
from daemon.errors import BrokerUnavailable, LoginNeeded
from daemon.logs import get_logger

LOGINS_IN_A_ROW: Final = 3
"""Logins that may fail one after the other: wrong PINs lock the account."""


class TokenKeeper:
    """Hand out the token of the day; `keep` must run for it to be replaced.

    `load` reads the token that was kept, LoginNeeded where there is none. `log_in` fetches a new
    one; None: only a person can. `on_alert` hears once per outage. Use from one event loop.
    """

    def __init__(
        self,
        load: Callable[[], Token],
        log_in: Callable[[], Awaitable[Token]] | None,
        clock: Clock,
        *,
        on_alert: Callable[[Alert], None],
        retry_s: float = 10.0,
        logins_in_a_row: int = LOGINS_IN_A_ROW,
    ) -> None:
        self._load = load
        self._log_in = log_in
        self._clock = clock
        self._on_alert = on_alert
        self._retry_s = retry_s
        self._logins_in_a_row = logins_in_a_row
        self._token: Token | None = None
        self._refused: set[str] = set()  # tokens that the broker has turned down
        self._failures = 0
        self._is_told = False
        self._wanted = asyncio.Event()
        self._renewing = asyncio.Lock()
        self._log = get_logger(part="fyers_login")
        self.logins = 0

    @property
    def app_id(self) -> str:
        return self._good().app_id

    def access_token(self) -> str:
        """Return the token for a call; LoginNeeded while there is none."""
        return self._good().access_token

    def hsm_key(self) -> str:
        """Return what opens the data socket; LoginNeeded while there is none."""
        return self._good().hsm_key

    def refuse(self, access_token: str) -> None:
        """Note that the broker does not take this token any more."""
        self._refused.add(access_token)
        self._wanted.set()

    async def renew(self) -> None:
        """See to it that there is a good token; LoginNeeded or BrokerUnavailable if that fails."""
        async with self._renewing:
            if self._is_good(self._token):
                return
            self._token = await self._fresh()
            self._failures, self._is_told = 0, False
            self._log.info("token renewed", expires_s=self._token.expires_s)

    async def keep(self) -> None:
        """Renew the token whenever it has been refused or its day is over; never returns."""
        while True:
            try:
                await self.renew()
                self._wanted.clear()
                await self._until_wanted()
            except (LoginNeeded, BrokerUnavailable) as error:
                self._tell(error)
                await asyncio.sleep(self._retry_s)

    async def _until_wanted(self) -> None:
        while not self._wanted.is_set() and self._is_good(self._token):
            try:
                async with asyncio.timeout(self._retry_s):
                    await self._wanted.wait()
            except TimeoutError:
                continue  # to look at the time again

    async def _fresh(self) -> Token:
        try:
            kept = self._load()
        except LoginNeeded as error:
            missing: LoginNeeded = error
        else:
            if self._is_good(kept):
                return kept
            missing = LoginNeeded("the broker has refused the token: run hrm-trader login")
        if self._log_in is None:
            raise missing
        if self._failures >= self._logins_in_a_row:
            raise LoginNeeded(
                f"{self._failures} logins have failed, no more are tried: run hrm-trader login"
            )
        try:
            token = await self._log_in()
        except LoginNeeded:
            self._failures += 1  # no answer is none: nothing was refused
            raise
        self.logins += 1
        return token

    def _good(self) -> Token:
        if self._token is None or not self._is_good(self._token):
            self._wanted.set()
            raise LoginNeeded("there is no good access token: a new one is being waited for")
        return self._token

    def _is_good(self, token: Token | None) -> bool:
        return (
            token is not None
            and token.access_token not in self._refused
            and token.expires_s * NS_PER_SECOND > self._clock.now_ns()
        )

    def _tell(self, error: LoginNeeded | BrokerUnavailable) -> None:
        self._log.warning("no token", reason=str(error))
        if self._is_told or not isinstance(error, LoginNeeded):
            return
        self._is_told = True
        self._on_alert(
            Alert(
                severity="critical",
                text=f"no order can be placed: {error}",
                runbook="Feed refused",
                at_ns=self._clock.now_ns(),
                source="fyers_login",
            )
        )
