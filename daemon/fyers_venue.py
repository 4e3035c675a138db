"""Fyers, real or as `hrm-trader simulate-broker`: live prices, orders, and a clock that fits.

The real one takes orders with real money, so it must have been allowed in the settings, and
somebody must have logged in. Nothing here ever stands in for it: what is lacking is an error.
"""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import aiohttp

from actors.instruments import InstrumentCatalogue
from actors.session import SessionCalendar
from daemon.alert_teller import AlertTeller
from daemon.brokers.fyers.ledger import RateLedger
from daemon.brokers.fyers.login import FIELD_VARIABLES, TokenStore, fields_from
from daemon.brokers.fyers.rest import CallTimes, Endpoints, simulated
from daemon.brokers.fyers.sdk import transport_of
from daemon.brokers.fyers.token_keeper import TokenKeeper
from daemon.clock import Clock, ShiftedClock
from daemon.errors import BrokerUnavailable, ConfigError
from daemon.fyers_connection import FyersConnection
from daemon.login_command import log_in_and_save
from daemon.outbox import Outbox
from daemon.plan import SessionPlan
from daemon.session_files import StreamedMarket
from daemon.settings import Settings
from daemon.venue import Announce, BrokerName, Listener, OpenVenue, Venue
from daemon.wiring import Workshop

FOLDER: Final = "fyers"
"""Within the state folder: token, key, and the count of calls; one account each."""
LEDGER: Final = "calls"
_ANSWER_S: Final = 5.0


def refuse_unless_allowed(broker: BrokerName, settings: Settings) -> None:
    """Raise ConfigError for the real broker, unless the settings say that it may trade, and how."""
    if broker != "fyers":
        return
    if not settings.broker.allow_real_orders:
        raise ConfigError(
            "--broker fyers places orders with real money and broker.allow_real_orders is off: set "
            "it to true once the checklist of docs/runbooks/deployment.md is done, or use "
            "--broker fyers-sim"
        )
    if settings.execution.order_type != "limit":
        raise ConfigError(
            f"execution.order_type is {settings.execution.order_type}, which has no worst price, "
            "and exchanges penalise algorithms for it: set it to limit, or use --broker fyers-sim"
        )


def streamed_markets(
    settings: Settings, catalogue: InstrumentCatalogue, calendar: SessionCalendar, now_ns: int
) -> list[StreamedMarket]:
    """Return what `feed` names, of today's or the next session.

    ConfigError for an index that is not traded through options, and on a day whose holidays and
    hours are not known, with none ahead that are.
    """
    markets = []
    for name in settings.feed.instruments:
        instrument = catalogue[name]
        if instrument.kind == "index" and settings.execution.trade_index_through == "index":
            raise ConfigError(
                f"{instrument.symbol} is an index, in which no order can be placed: set "
                "execution.trade_index_through to options, or name shares in feed.instruments"
            )
        session = instrument.session
        is_covered = calendar.is_covered(session, now_ns)
        interval = calendar.interval(session, now_ns) if is_covered else None
        opens_ns = interval.open_ns if interval else calendar.next_open_ns(session, now_ns)
        if opens_ns is None:
            raise ConfigError(
                f"sessions.yaml knows no further session of {session}: bring it up to "
                "date from the exchange's circulars"
            )
        markets.append(
            StreamedMarket(
                instrument.symbol,
                settings.feed.timeframe,
                f"{instrument.exchange_symbol}, live",
                first_open_ns=opens_ns,
            )
        )
    return markets


async def market_clock(simulator: str | None, clock: Clock) -> Clock:
    """Return the clock of the market: the real one, or a simulator's, which must run as fast."""
    if simulator is None:
        return clock
    endpoints = simulated(simulator)
    url = endpoints.api.removesuffix("/api/v3") + "/simulator/state"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(_ANSWER_S)) as http,
            http.get(url) as answer,
        ):
            state = await answer.json()
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise BrokerUnavailable(
            f"no simulator answers at {simulator} ({type(error).__name__}): start "
            "hrm-trader simulate-broker"
        ) from error
    if state["speed"] != 1.0:
        raise ConfigError(
            f"the simulator runs at {state['speed']:g} market seconds per second, this needs 1: "
            "hrm-trader simulate-broker --speed 1"
        )
    return ShiftedClock(clock, int(state["now_ns"]) - clock.now_ns())


def fyers_venue(
    plan: SessionPlan,
    state_dir: Path,
    simulator: str | None,
    clock: Clock,
    market_clock: Clock,
    environment: Mapping[str, str] = os.environ,
) -> OpenVenue:
    """Return what opens the account that was logged in to; `simulator` None: the real one.

    When it is opened, LoginNeeded is raised where there is no good token and no way to get one.
    """
    endpoints = Endpoints() if simulator is None else simulated(simulator)
    folder = state_dir / FOLDER

    @asynccontextmanager
    async def opened(outbox: Outbox, announce: Announce) -> AsyncIterator[Venue]:
        teller = AlertTeller(announce)
        keeper = _keeper(folder, endpoints, clock, teller, environment)
        await keeper.renew()
        async with aiohttp.ClientSession() as http:
            settings = Workshop.of(plan).settings
            with (
                RateLedger(folder / LEDGER, clock) as ledger,
                transport_of(
                    settings.broker.transport, http, endpoints, CallTimes().answer_s
                ) as transport,
            ):
                connection = FyersConnection(
                    plan,
                    http,
                    endpoints,
                    keeper,
                    ledger,
                    teller,
                    outbox,
                    clock=clock,
                    market_clock=market_clock,
                    warm_up_bars=settings.feed.warm_up_bars,
                    transport=transport,
                )
                # Off, it is no part at all.
                reading = partial(connection.keep_reading_chains, market_clock)
                chains = [Listener("option_chains", reading)] if connection.chains.names else []
                telling = partial(connection.feed.tell_time, market_clock)
                yield Venue(
                    broker=connection.account.broker,
                    events=connection.feed.events(),
                    is_repeatable=False,
                    resume=connection.resume,
                    parts=connection.parts,
                    feeds=(Listener("market_clock", telling), *connection.feeds, *chains),
                )

    return opened


def _keeper(
    folder: Path,
    endpoints: Endpoints,
    clock: Clock,
    teller: AlertTeller,
    environment: Mapping[str, str],
) -> TokenKeeper:
    """Return a keeper that logs in by itself where all six fields of a login are at hand."""
    store = TokenStore(folder, environment)
    has_fields = all(environment.get(name, "").strip() for name in FIELD_VARIABLES.values())
    log_in = (
        partial(log_in_and_save, fields_from(environment), endpoints, folder)
        if has_fields
        else None
    )
    return TokenKeeper(lambda: store.load(clock.now_ns()), log_in, clock, on_alert=teller.tell)
