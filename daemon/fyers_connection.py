"""Fyers connection: one account, real or simulated, with all that must run for it."""

from collections.abc import AsyncIterable, Mapping
from functools import partial
from random import Random

import aiohttp

from actors.instruments import Instrument
from actors.messages import Depth, PlaceOrder, Tick
from daemon.alert_teller import AlertTeller
from daemon.backfill import Backfill
from daemon.brokers.fyers.account import FyersAccount, Times
from daemon.brokers.fyers.broker import Product
from daemon.brokers.fyers.ledger import RateLedger
from daemon.brokers.fyers.past_candles import PastCandles
from daemon.brokers.fyers.rest import Endpoints
from daemon.brokers.fyers.token_keeper import TokenKeeper
from daemon.brokers.fyers.transport import Transport
from daemon.clock import Clock
from daemon.option_chains import CHAINS_EVERY_S, OptionChains
from daemon.outbox import Outbox
from daemon.plan import SessionPlan
from daemon.socket_feed import SocketFeed
from daemon.supervisor import Part
from daemon.venue import Listener
from daemon.wiring import Workshop

_DAILY = ("NSE:", "BSE:")


class FyersConnection:
    """An account for the instruments of a plan, its feed, and the parts that keep both alive.

    The keeper must have a token when this is built. `clock` is real, for calls and tokens;
    `market_clock` says when the exchange is open. With `warm_up_bars`, 0 included, gaps in the feed
    are filled from history; None: a played market has none.
    """

    def __init__(
        self,
        plan: SessionPlan,
        http: aiohttp.ClientSession,
        endpoints: Endpoints,
        keeper: TokenKeeper,
        ledger: RateLedger,
        teller: AlertTeller,
        outbox: Outbox,
        *,
        clock: Clock,
        market_clock: Clock,
        times: Times | None = None,
        warm_up_bars: int | None = None,
        transport: Transport | None = None,
    ) -> None:
        workshop = Workshop.of(plan)
        self.instruments = list(workshop.catalogue)
        sessions = {one.session for one in self.instruments}
        self.account = FyersAccount(
            http,
            endpoints,
            keeper,
            ledger,
            {one.symbol: one.exchange_symbol for one in self.instruments},
            is_open=lambda now_ns: any(
                workshop.calendar.interval(session, now_ns) for session in sessions
            ),
            recall=partial(_recalled, outbox),
            clock=clock,
            market_clock=market_clock,
            random=Random(plan.seed),
            on_alert=teller.tell,
            on_feed_lost=self._feed_lost,
            on_depth=self._depth_came if workshop.settings.feed.depth else None,
            products={one.symbol: product_of(one) for one in self.instruments},
            times=times,
            transport=transport,
        )
        has_options = workshop.settings.execution.trade_index_through == "options"
        self.chains = OptionChains(
            self.account.rest, self.instruments if has_options else (), workshop.calendar
        )
        self.feed = SocketFeed(self._ticks, clock, teller.tell)
        self.backfill: Backfill | None = None
        if warm_up_bars is not None:
            symbols = {one.symbol: one.exchange_symbol for one in self.instruments}
            self.backfill = Backfill(
                workshop.timeframes,
                workshop.catalogue,
                workshop.calendar,
                PastCandles(self.account.rest, symbols).ask,
                self.feed.put,
                clock=market_clock,
                warm_up_bars=warm_up_bars,
                on_alert=teller.tell,
            )
        self.parts: tuple[Part, ...] = (
            Listener("fyers_login", keeper.keep),
            Listener("order_socket", self.account.broker.run),
            Listener("broker_alerts", teller.keep_telling),
        )
        self.feeds: tuple[Part, ...] = (Listener("data_socket", self.feed.read),)
        if self.backfill is not None:
            self.feeds += (Listener("backfill", self.backfill.run),)
        self._keeper = keeper

    def _ticks(self) -> AsyncIterable[Tick]:
        ticks = self.account.data_socket.ticks()
        return ticks if self.backfill is None else self.backfill.watched(ticks)

    async def _feed_lost(self) -> None:
        if self.backfill is not None:
            await self.backfill.lost()

    async def _depth_came(self, depth: Depth) -> None:
        await self.feed.put(depth)

    def resume(self, known: Mapping[str, int]) -> None:
        """Hear up to when a session that goes on has bars of each instrument."""
        if self.backfill is not None:
            self.backfill.resume(known)

    async def keep_reading_chains(self, market_clock: Clock) -> None:
        """Put the option chains among the ticks every few seconds, for ever."""
        while True:
            for chain in await self.chains.read(market_clock.now_ns()):
                await self.feed.waiting.put(chain)
            await market_clock.sleep(CHAINS_EVERY_S)

    @property
    def logins(self) -> int:
        return self._keeper.logins

    @property
    def connections(self) -> dict[str, int]:
        """Return how often each socket has connected."""
        account = self.account
        return {
            "data": account.data_socket.connections,
            "order": account.order_socket.connections,
        }


async def _recalled(outbox: Outbox, tag: str) -> PlaceOrder | None:
    """Return the order of an earlier start under this tag."""
    row = await outbox.find(tag)
    return None if row is None else row.order


def product_of(instrument: Instrument) -> Product:
    """Return how an order is held: for the day at NSE and BSE, overnight in what never closes."""
    return "INTRADAY" if instrument.exchange_symbol.startswith(_DAILY) else "MARGIN"
