"""Everything the routes use, built once and handed to them; nothing here is global."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fastapi import HTTPException, Request
from starlette.requests import HTTPConnection

from backend.accounts import Accounts, Profile
from backend.auth import COOKIE, CookieSigner, Identity, LoginThrottle, NotAuthenticated
from backend.backtest_jobs import BacktestJobs
from backend.candles import CandleShelf
from backend.daemon_link import DaemonLink
from backend.files import ResultFiles
from backend.hub import Hub, Line, Patience, SocketClient
from backend.reader import BusReader
from backend.trade_keeper import TradeKeeper
from daemon.backend_settings import BackendSettings
from daemon.logs import get_logger

_KEPT_PROFILES: Final = 1000
NO_USERS: Final = (
    "the daemon trades real money, and the setting backend.users is empty: name there the Fyers "
    "ids that may log in"
)


@dataclass
class Backend:
    """The parts of one backend process."""

    settings: BackendSettings
    signer: CookieSigner
    throttle: LoginThrottle
    accounts: Accounts
    reader: BusReader
    hub: Hub
    link: DaemonLink
    files: ResultFiles
    keeper: TradeKeeper
    shelf: CandleShelf
    jobs: BacktestJobs
    config_dir: Path
    wall_ns: Callable[[], int]
    monotonic_s: Callable[[], float]
    _followers: int = 0
    _tasks: tuple[asyncio.Task[None], ...] = ()  # the reader's, and the keeper's
    _profiles: OrderedDict[str, tuple[float, Profile]] = field(default_factory=OrderedDict)

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Have the reader follow the daemon for as long as anybody is in here."""
        self._followers += 1
        if not self._tasks:
            self._tasks = (
                asyncio.create_task(self.reader.run()),
                asyncio.create_task(self.keeper.run()),
            )
        try:
            yield
        finally:
            self._followers -= 1
            if not self._followers and self._tasks:
                (reading, keeping), self._tasks = self._tasks, ()
                reading.cancel()
                with suppress(asyncio.CancelledError):
                    await reading
                self.keeper.close()
                await keeping

    def client(self, user_id: str, line: Line, on_end: Callable[[], object]) -> SocketClient:
        """Return a user's socket over a line; whoever asks attaches it to the hub."""
        patience = Patience(self.settings.waiting_messages, self.settings.stuck_seconds)
        return SocketClient(
            user_id, line, patience=patience, monotonic_s=self.monotonic_s, on_end=on_end
        )

    def note_action(self, user_id: str, action_type: str, details: Mapping[str, Any]) -> None:
        """Note what a user did; where the file cannot be written, the log has it.

        Never raises OSError: what was done must not be told as a failure, or it is asked for again.
        """
        try:
            self.files.note_action(user_id, action_type, details)
        except OSError as error:
            get_logger(part="actions").error(
                "action not written",
                user=user_id,
                action=action_type,
                details=dict(details),
                reason=str(error),
            )

    def admitted(self, cookie: str | None) -> Identity:
        """Return who a cookie names, or raise NotAuthenticated, also for who may not come in."""
        identity = self.signer.read(cookie)
        if problem := self.exclusion(identity.user_id):
            raise NotAuthenticated(problem)
        return identity

    def exclusion(self, user_id: str) -> str | None:
        """Return why a user may not come in here, or None.

        All users of one daemon trade one account, so where that is real money they must be named.
        """
        users = self.settings.users
        if user_id.casefold() in (name.casefold() for name in users):
            return None
        if users:
            return f"{user_id} is not among the setting backend.users"
        place = self.reader.place
        return NO_USERS if place is not None and place.mode == "REAL" else None

    async def profile(self, identity: Identity) -> Profile:
        """Return name and capital, asked for at the broker only now and then."""
        kept = self._profiles.get(identity.access_token)
        if kept is not None and self.monotonic_s() - kept[0] < self.settings.profile_fresh_seconds:
            return kept[1]
        profile = await self.accounts.profile(identity)
        self._profiles[identity.access_token] = (self.monotonic_s(), profile)
        if len(self._profiles) > _KEPT_PROFILES:
            self._profiles.popitem(last=False)
        return profile


def backend_of(connection: HTTPConnection) -> Backend:
    """Return the parts that belong to the application being asked."""
    backend: Backend = connection.app.state.backend
    return backend


async def identity_of(request: Request) -> Identity:
    """Return who is asking by his cookie, or answer 401.

    A coroutine only so that it is not run in a thread, which costs more than what it does.
    """
    try:
        return backend_of(request).admitted(request.cookies.get(COOKIE))
    except NotAuthenticated as error:
        raise HTTPException(401, str(error)) from error
