"""Build the backend out of settings and environment; the one place that knows all its parts."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fastapi import FastAPI

from backend.accounts import Accounts
from backend.app import create_app
from backend.auth import CookieSigner, LoginThrottle
from backend.backtest_jobs import BacktestJobs
from backend.call_pace import CallPace
from backend.candles import CandleShelf
from backend.context import NO_USERS, Backend
from backend.daemon_link import DaemonLink
from backend.files import ResultFiles
from backend.fyers_accounts import FyersAccounts
from backend.hub import Hub
from backend.place import find_place
from backend.reader import BusReader
from backend.trade_keeper import TradeKeeper
from daemon.brokers.fyers.rest import Endpoints, simulated
from daemon.errors import ConfigError
from daemon.logs import get_logger
from daemon.settings import Settings, find_config_dir, load_instruments, load_settings

_UNSIGNED: Final = (
    "JWT_SECRET is not set, and the daemon trades real money: set it to the output of "
    "`openssl rand -hex 32`"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says; `overrides` are settings, `{"backend.port": 8000}`."""

    state: Path | None = None
    config: Path | None = None
    broker_url: str | None = None
    demo: bool = False
    overrides: Mapping[str, object] = field(default_factory=dict)


def load_for(options: Options, environment: Mapping[str, str]) -> Settings:
    """Return the settings that the command line, the environment and the file say."""
    overrides = dict(options.overrides)
    if options.state:
        overrides["session.state_dir"] = str(options.state)
    return load_settings(options.config, environment, overrides=overrides, demo=options.demo)


def build(
    settings: Settings,
    options: Options,
    environment: Mapping[str, str],
    *,
    new_secret: Callable[[], str],
) -> FastAPI:
    """Return the application; raises ConfigError for settings that cannot be used."""
    accounts = FyersAccounts(
        Endpoints() if options.broker_url is None else simulated(options.broker_url),
        CallPace(time.monotonic),
    )
    return create_app(build_backend(settings, options, environment, accounts, new_secret))


def build_backend(
    settings: Settings,
    options: Options,
    environment: Mapping[str, str],
    accounts: Accounts,
    new_secret: Callable[[], str],
) -> Backend:
    """Return the parts of a backend for these settings; raises ConfigError for unusable ones."""
    if not settings.backend.users and _is_real(settings, options):
        raise ConfigError(NO_USERS)
    config_dir = find_config_dir(options.config, environment)
    folder = settings.session.state_dir / "backend"
    files = ResultFiles(folder / "demo" if options.demo else folder, time.time_ns)
    keeper = TradeKeeper(files.add_trades)
    limits = settings.backend
    has_secret = settings.secrets.jwt_secret is not None
    link = DaemonLink(
        time.time_ns,
        limits.answer_seconds,
        not_for_real="" if has_secret else f"{_UNSIGNED}, and start the backend anew",
    )
    hub = Hub(limits.sockets_per_user)
    reader = BusReader(
        lambda: find_place(settings, demo=options.demo),
        hub,
        wall_ns=time.time_ns,
        monotonic_s=time.monotonic,
        on_answer=link.take,
        on_trades=keeper.note,
    )
    offered = load_instruments(options.config, environment, demo=options.demo)
    return Backend(
        settings=limits,
        signer=CookieSigner(_secret(settings, options, new_secret), time.time),
        throttle=LoginThrottle(time.monotonic, limits.login_failures, limits.login_window_seconds),
        accounts=accounts,
        reader=reader,
        hub=hub,
        link=link,
        files=files,
        keeper=keeper,
        shelf=CandleShelf(
            Path(settings.paths.raw_data_dir),
            offered.catalogue,
            frozenset(offered.timeframes),
            accounts,
        ),
        jobs=BacktestJobs(time.time_ns, options.config, limits),
        config_dir=config_dir,
        wall_ns=time.time_ns,
        monotonic_s=time.monotonic,
    )


def _secret(settings: Settings, options: Options, new_secret: Callable[[], str]) -> str:
    """Return what cookies are signed with; there is no built-in value.

    On paper one is drawn at each start, which ends all log-ins. Where real money can be reached it
    must be given; a daemon that comes to trade it later is asked for nothing (see DaemonLink).
    """
    given = settings.secrets.jwt_secret
    if given is not None:
        return given.get_secret_value()
    if _is_real(settings, options):
        raise ConfigError(_UNSIGNED)
    get_logger(part="build").warning("JWT_SECRET is not set: log-ins end with this process")
    return new_secret()


def _is_real(settings: Settings, options: Options) -> bool:
    place = find_place(settings, demo=options.demo)
    return place is not None and place.mode == "REAL"
