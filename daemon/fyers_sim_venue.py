"""Fyers, simulated in this process: candles played at an exchange, and our own client of it.

Every price comes over the data socket, every order goes over REST, every fill comes over the order
socket: what is left out of the real thing is the network alone. The simulator's market stands still
until it is moved on here, one instant of the candles after the other.
"""

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

import aiohttp
import msgspec

from actors.instruments import Instrument
from actors.messages import OptionChain, Tick, TimeEvent
from daemon.alert_teller import AlertTeller
from daemon.brokers.fyers.account import Times
from daemon.brokers.fyers.ledger import CallBudget, RateLedger
from daemon.brokers.fyers.login import LoginFields, Token, log_in
from daemon.brokers.fyers.reconnecting import SocketTimes
from daemon.brokers.fyers.rest import CallTimes, simulated
from daemon.brokers.fyers.sdk import transport_of
from daemon.brokers.fyers.token_keeper import TokenKeeper
from daemon.brokers.fyers_simulator import FyersSimulator, SimulatorSettings
from daemon.brokers.fyers_simulator.instruments import IST
from daemon.candle_path import paced
from daemon.clock import NS_PER_SECOND, Clock
from daemon.errors import LoginNeeded
from daemon.fyers_connection import FyersConnection, product_of
from daemon.history import CandleTable
from daemon.logs import get_logger
from daemon.option_chains import CHAINS_EVERY_S
from daemon.outbox import Outbox
from daemon.plan import SessionPlan
from daemon.session_files import Market
from daemon.tick_source import MarketEvent
from daemon.venue import Announce, OpenVenue, Venue
from daemon.wiring import Workshop

Speed = float | Literal["max"]

_STEP_S: Final = 86_400.0  # the instants of the candles are steps of their own
_CHAINS_EVERY_NS: Final = round(CHAINS_EVERY_S * NS_PER_SECOND)
_LATENCY_S: Final = 0.05  # an order meets the next price, not the one it was decided on
_BALANCE: Final = 1e9  # the daemon keeps to its own capital
_ARRIVAL_S: Final = 10.0
_LEDGER: Final = "fyers-calls.json"
_LOGIN_RETRY_S: Final = 0.05
_ANY_NUMBER: Final = 1_000_000  # nobody's account can be locked here
# Limits and budgets count real time, of which a played market has too little.
_BUDGET: Final = CallBudget(
    per_second=100_000, per_minute=100_000, per_day=100_000_000,
    reserve_per_second=1, reserve_per_minute=1, reserve_per_day=1, refusals_forgiven=1_000_000,
)  # fmt: skip
_TIMES: Final = Times(
    call=CallTimes(first_delay_s=0.01),
    data=SocketTimes(first_delay_s=0.01, longest_delay_s=0.02),
    order=SocketTimes(first_delay_s=0.01, longest_delay_s=0.02),
)


@dataclass(frozen=True, slots=True)
class _MarketClock:
    """The simulator's market time; waiting and differences are real."""

    now: Callable[[], int]
    real: Clock

    def now_ns(self) -> int:
        return self.now()

    def monotonic_ns(self) -> int:
        return self.real.monotonic_ns()

    async def sleep(self, seconds: float) -> None:
        await self.real.sleep(seconds)


def fyers_sim_venue(
    plan: SessionPlan, markets: Sequence[Market], clock: Clock, folder: Path, speed: Speed
) -> OpenVenue:
    """Return what opens a simulated Fyers on which the candles of these markets are played."""
    workshop = Workshop.of(plan)
    with_options = workshop.settings.execution.trade_index_through == "options"
    first_ns = min(int(market.table.open_ns[0]) for market in markets)
    settings = SimulatorSettings(
        seed=plan.seed,
        # Before the first candle: what comes after is its path.
        start=datetime.fromtimestamp(first_ns / NS_PER_SECOND - 1, IST),
        balance=_BALANCE,
        limits=None,
        latency_s=_LATENCY_S,
        played=tuple((workshop.catalogue[one.instrument], one.table) for one in markets),
        with_derivatives=with_options,
        calendar=workshop.calendar,
    )

    @asynccontextmanager
    async def opened(outbox: Outbox, announce: Announce) -> AsyncIterator[Venue]:
        async with (
            FyersSimulator(settings) as simulator,
            connected(simulator, plan, outbox, announce, clock, folder, _TIMES) as connection,
        ):
            market = PlayedMarket(simulator, connection, clock, speed)
            yield Venue(
                broker=connection.account.broker,
                events=market.events(),
                is_repeatable=False,
                parts=connection.parts,
                feeds=connection.feeds,
                is_idle=market.is_idle,
            )

    return opened


@asynccontextmanager
async def connected(
    simulator: FyersSimulator,
    plan: SessionPlan,
    outbox: Outbox,
    announce: Announce,
    clock: Clock,
    folder: Path,
    times: Times,
) -> AsyncIterator[FyersConnection]:
    """Log in to a simulator of this process and connect to it, without limits on calls."""
    teller = AlertTeller(announce)
    async with aiohttp.ClientSession() as http:
        keeper = _login(simulator, http, clock, teller)
        await keeper.renew()
        endpoints = simulated(simulator.urls.base)
        named = Workshop.of(plan).settings.broker.transport
        with (
            RateLedger(folder / _LEDGER, clock, _BUDGET) as ledger,
            transport_of(named, http, endpoints, times.call.answer_s) as transport,
        ):
            yield FyersConnection(
                plan,
                http,
                endpoints,
                keeper,
                ledger,
                teller,
                outbox,
                clock=clock,
                market_clock=_MarketClock(lambda: simulator.now_ns, clock),
                times=times,
                transport=transport,
            )


def _login(
    simulator: FyersSimulator, http: aiohttp.ClientSession, clock: Clock, teller: AlertTeller
) -> TokenKeeper:
    """Return a keeper that logs in as the simulator's only user, step by step."""
    who = simulator.account
    fields = LoginFields(
        app_id=who.app_id,
        secret_key=who.secret,
        redirect_uri=who.redirect_uri,
        fy_id=who.client_id,
        pin=who.pin,
        totp_secret=who.totp_secret,
    )

    def nothing_kept() -> Token:
        raise LoginNeeded("nobody has logged in to the simulator yet")

    return TokenKeeper(
        nothing_kept,
        lambda: log_in(fields, http, simulated(simulator.urls.base), clock),
        clock,
        on_alert=teller.tell,
        retry_s=_LOGIN_RETRY_S,
        logins_in_a_row=_ANY_NUMBER,
    )


class PlayedMarket:
    """Move the simulator from one instant of its candles to the next, and hand on what arrives.

    The next instant comes when everything sent for the last has arrived, so that a run is
    repeatable and nothing waits in a buffer.
    """

    def __init__(
        self,
        simulator: FyersSimulator,
        connection: FyersConnection,
        clock: Clock,
        speed: Speed,
    ) -> None:
        self._chains = connection.chains
        self._chains_ns = 0  # market time of the last reading
        self._simulator = simulator
        self._account = connection.account
        self._feed = connection.feed
        self._clock = clock
        self._speed = speed
        self._played = simulator.settings.played
        # The feed counts lots where nothing is held for the day alone: in the currency segment.
        self._units = {
            one.symbol: one.lot_size for one, _ in self._played if product_of(one) == "MARGIN"
        }

    async def events(self) -> AsyncIterator[MarketEvent]:
        """Yield the time of each instant, then the ticks that came over the socket."""
        bar_ns = min(table.bar_ns for _, table in self._played)
        instants = paced(
            self._instants(), self._speed, self._clock.sleep, self._clock.monotonic_ns,
            bar_ns=bar_ns,
        )  # fmt: skip
        await self._arrival()
        self._feed.arrived()  # the prices before the first instant are those of its own candle
        async for instant in instants:
            await self._simulator.move_to(instant.time_ns, step_s=_STEP_S)
            await self._arrival()
            yield instant
            for chain in await self._read_chains(instant.time_ns):
                yield chain
            for event in self._feed.arrived():
                yield self._as_played(event) if isinstance(event, Tick) else event

    async def _read_chains(self, now_ns: int) -> list[OptionChain]:
        """Return the option chains of this instant, before its prices can lead to an order."""
        if now_ns - self._chains_ns < _CHAINS_EVERY_NS:
            return []
        self._chains_ns = now_ns
        return await self._chains.read(now_ns)

    def _as_played(self, tick: Tick) -> Tick:
        """Mark a tick as one of candles: quotes around them are made up, and left out."""
        units = self._units.get(tick.instrument, 1)
        return msgspec.structs.replace(
            tick,
            origin="candle_path",
            bid=None,
            ask=None,
            volume_today=tick.volume_today * units,
        )

    def is_idle(self) -> bool:
        """Tell whether all that was sent over both sockets has been taken in."""
        account, simulator = self._account, self._simulator
        return (
            account.data_socket.state == account.order_socket.state == "live"
            and simulator.data_socket.subscriptions >= account.data_socket.topics
            and simulator.order_socket.subscriptions == 1
            and account.data_socket.handled == simulator.data_socket.sent
            and account.order_socket.handled == simulator.order_socket.sent
            and not account.broker.is_behind
        )

    async def _arrival(self) -> None:
        try:
            async with asyncio.timeout(_ARRIVAL_S):
                while not self.is_idle():  # noqa: ASYNC110 - two programs have no event in common
                    await asyncio.sleep(0)
        except TimeoutError:
            get_logger().error("sockets lag behind the simulator", seconds=_ARRIVAL_S)

    def _instants(self) -> Iterator[TimeEvent]:
        """Yield each instant of the candles and each end of one, when it is wanted."""
        market = self._simulator.market
        closings = heapq.merge(*(self._closings(*played) for played in self._played))
        closing_ns = next(closings, None)
        last_ns = 0
        while True:
            due = [at_ns for at_ns in (market.next_point_ns, closing_ns) if at_ns is not None]
            if not due:
                break
            last_ns = min(due)
            while closing_ns is not None and closing_ns <= last_ns:
                closing_ns = next(closings, None)
            yield TimeEvent(now_ns=last_ns, wall_ns=self._clock.now_ns())
        bar_ns = max(table.bar_ns for _, table in self._played)
        yield TimeEvent(now_ns=last_ns + bar_ns, wall_ns=self._clock.now_ns())

    def _closings(self, instrument: Instrument, table: CandleTable) -> Iterator[int]:
        calendar = self._simulator.hours.calendar
        for open_ns in table.open_ns.tolist():
            if calendar.phase(instrument.session, open_ns) == "closed":
                yield open_ns + table.bar_ns
            else:
                yield calendar.bar_close_ns(instrument.session, table.timeframe, open_ns)
