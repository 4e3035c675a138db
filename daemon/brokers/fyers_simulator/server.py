"""The simulator as a whole: one HTTP server on loopback, driven by its own clock."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from datetime import time as wall_time
from decimal import Decimal
from typing import Any, Final, Literal, Self

from aiohttp import web

from actors.instruments import Instrument
from actors.session import SessionCalendar
from daemon.brokers.fyers_simulator.data_socket import DataSocket
from daemon.brokers.fyers_simulator.faults import LONGEST_S, SCHEDULED, Fault, FaultKind, Faults
from daemon.brokers.fyers_simulator.hours import TradingHours
from daemon.brokers.fyers_simulator.instruments import (
    IST,
    NS_PER_SECOND,
    Master,
    instant_ns,
    local_time,
)
from daemon.brokers.fyers_simulator.limits import RateLimiter, RateLimits
from daemon.brokers.fyers_simulator.listing import build_master, listing
from daemon.brokers.fyers_simulator.login import Account, LoginDesk
from daemon.brokers.fyers_simulator.market import Market
from daemon.brokers.fyers_simulator.matching import Exchange
from daemon.brokers.fyers_simulator.order_socket import OrderSocket
from daemon.brokers.fyers_simulator.portfolio import Portfolio
from daemon.brokers.fyers_simulator.rest import Handler, RestApi
from daemon.errors import ConfigError
from daemon.history import CandleTable
from daemon.settings import load_sessions

LOOPBACK: Final = "127.0.0.1"
DEFAULT_START: Final = datetime(2026, 11, 25, 10, 0, tzinfo=IST)
"""A Wednesday, in the middle of a session, four days before an expiry."""
_DATA_SOCKET, _ORDER_SOCKET = _SOCKETS = "/hsm/v1-5/prod", "/trade/v3"
_SIX: Final = wall_time(6)
_REAL_STEP_S: Final = 0.25


@dataclass(frozen=True, kw_only=True)
class SimulatorSettings:
    """What is simulated, from when, and how faithful in its limits."""

    seed: int = 1
    start: datetime | None = None  # India's time; default: the first candle, or DEFAULT_START
    speed: float = 0.0  # market seconds per real second; 0: time moves with `advance` only
    port: int = 0  # 0: any free one
    balance: float = 1_000_000.0  # rupees
    account: Account = field(default_factory=Account)
    limits: RateLimits | None = field(default_factory=RateLimits)  # None: no limits
    latency_s: float = 0.0  # market time between a request of an order and the exchange
    ack_every: int = 25  # data frames per acknowledgement; 0: none
    most_topics: int = 5_000
    refresh_is_allowed: bool = True
    played: tuple[tuple[Instrument, CandleTable], ...] = ()  # candles instead of a seeded walk
    with_derivatives: bool = True  # list futures and options too
    calendar: SessionCalendar | None = None  # default: config/sessions.yaml


@dataclass(frozen=True, slots=True)
class Urls:
    """Where everything is, once the server runs."""

    base: str

    @property
    def api(self) -> str:
        """Trading calls: `https://api-t1.fyers.in/api/v3` of the broker."""
        return f"{self.base}/api/v3"

    @property
    def data(self) -> str:
        """Market data calls: `https://api-t1.fyers.in/data`."""
        return f"{self.base}/data"

    @property
    def public(self) -> str:
        """Symbol master and index names: `https://public.fyers.in/sym_details`."""
        return f"{self.base}/sym_details"

    @property
    def login(self) -> str:
        """Steps of the login page: `https://api-t2.fyers.in/vagator/v2`."""
        return f"{self.base}/vagator/v2"

    @property
    def data_socket(self) -> str:
        """`wss://socket.fyers.in/hsm/v1-5/prod`."""
        return f"{self.base.replace('http', 'ws', 1)}{_DATA_SOCKET}"

    @property
    def order_socket(self) -> str:
        """`wss://socket.fyers.in/trade/v3`."""
        return f"{self.base.replace('http', 'ws', 1)}{_ORDER_SOCKET}"

    @property
    def control(self) -> str:
        """Ours alone: GET state, POST faults, advance, price."""
        return f"{self.base}/simulator"


class FyersSimulator:
    """A broker on loopback: `async with FyersSimulator() as simulator`.

    `wall_ns` is real time, for tokens, codes and limits; market time is `now_ns`.
    """

    def __init__(
        self,
        settings: SimulatorSettings | None = None,
        *,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.settings = settings or SimulatorSettings()
        self.faults = Faults()
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        start_ns = _start_ns(self.settings)
        self.hours = TradingHours(self.settings.calendar or load_sessions())
        self.market = self._market(start_ns)
        account = self.settings.account
        self.portfolio = Portfolio(self.settings.balance, self.market)
        self.exchange = Exchange(
            self.market,
            self.portfolio,
            client_id=account.client_id,
            latency_ns=round(self.settings.latency_s * NS_PER_SECOND),
            rejects=self._rejection,
        )
        self.desk = LoginDesk(
            account,
            self.settings.seed,
            wall_ns,
            lambda: self.market.now_ns,
            self.settings.refresh_is_allowed,
        )
        self.limiter = RateLimiter(self.settings.limits, monotonic_ns)
        self.data_socket = DataSocket(
            self.market,
            self.desk,
            self.faults,
            ack_every=self.settings.ack_every,
            most_topics=self.settings.most_topics,
        )
        self.order_socket = OrderSocket(self.desk, self.faults)
        self.exchange.listeners.append(self.order_socket.listen)
        self.faults.on_inject("token_expired", lambda _: self.desk.revoke_all())
        self.faults.on_inject("session_changed", self._close_early)
        self.faults.step(start_ns)
        self._runner: web.AppRunner | None = None
        self._driver: asyncio.Task[None] | None = None
        self._urls: Urls | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen on loopback, and let time run if a speed is set."""
        self._runner = web.AppRunner(self._application(), access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, LOOPBACK, self.settings.port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigError(
                f"port {self.settings.port} cannot be opened ({error.strerror}): choose another"
            ) from error
        port = self._runner.addresses[0][1]
        self._urls = Urls(f"http://{LOOPBACK}:{port}")
        if self.settings.speed > 0:
            self._driver = asyncio.create_task(self._drive(), name="fyers simulator")

    async def stop(self) -> None:
        """Close every connection and the server."""
        if self._driver is not None:
            driver, self._driver = self._driver, None
            driver.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await driver
        self.data_socket.abort_all()
        self.order_socket.abort_all()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def urls(self) -> Urls:
        if self._urls is None:
            raise ConfigError("the simulator is not running: use it in `async with`")
        return self._urls

    @property
    def driver(self) -> asyncio.Task[None] | None:
        """What moves market time on; it ends only when it fails."""
        return self._driver

    @property
    def account(self) -> Account:
        return self.settings.account

    @property
    def now_ns(self) -> int:
        """Market time, nanoseconds UTC."""
        return self.market.now_ns

    def token(self) -> str:
        """Return a good access token without a login, for tests."""
        return self.desk.issue()

    async def advance(self, seconds: float, *, step_s: float = 1.0) -> None:
        """Let market time pass in steps, with fills, square-off and frames as they come."""
        await self.move_to(self.now_ns + round(seconds * NS_PER_SECOND), step_s=step_s)

    async def move_to(self, end_ns: int, *, step_s: float = 1.0) -> None:
        """Let market time pass up to an instant; points of played candles are steps as well."""
        step_ns = max(1, round(step_s * NS_PER_SECOND))
        while self.now_ns < end_ns:
            stops = [end_ns, self.now_ns + step_ns]
            if (point_ns := self.market.next_point_ns) is not None:
                stops.append(max(point_ns, self.now_ns + 1))
            await self._step(min(stops))

    async def _step(self, now_ns: int) -> None:
        before, now = local_time(self.now_ns), local_time(now_ns)
        quotes = self.market.advance_to(now_ns)
        self.faults.step(now_ns)
        self.exchange.step()
        if now.date() != before.date():
            self._begin_day(now.date())
        if _passed_six(before, now):
            self.desk.revoke_all()
            self.data_socket.drop_all()
            self.order_socket.drop_all()
        self.data_socket.push(quotes)
        await asyncio.sleep(0)  # whoever serves connections gets a turn with every step

    async def set_price(self, symbol: str, rupees: float) -> None:
        """Trade at a price now, match what it reaches, and tell the sockets."""
        scale = self.market.master[symbol].scale
        self.market.set_price(symbol, round(rupees * scale))
        self.exchange.step()
        self.data_socket.push(self.market.live_quotes)
        await asyncio.sleep(0)

    def change_session(self, day: date, hours: tuple[wall_time, wall_time] | None) -> None:
        """Give a day other hours than the calendar, None for a holiday."""
        self.hours.change_day(day, hours)

    def follow_faults(
        self,
        kinds: Iterable[FaultKind] | Literal["all"] = "all",
        *,
        seed: int | None = None,
        mean_gap_s: float = 20.0,
        longest_s: float = LONGEST_S,
    ) -> None:
        """Inject faults at random instants of market time, by seed."""
        chosen = SCHEDULED if kinds == "all" else tuple(kinds)
        seed = self.settings.seed if seed is None else seed
        self.faults.follow(seed, chosen, mean_gap_s, longest_s)

    def state(self) -> dict[str, Any]:
        """Return what the simulator knows of itself, for people and for comparisons."""
        positions = self.portfolio.positions.values()
        return {
            "now": local_time(self.now_ns).isoformat(),
            "now_ns": self.now_ns,
            "speed": self.settings.speed,
            "orders": len(self.exchange.orders),
            "pending": len(self.exchange.pending),
            "trades": len(self.exchange.trades),
            "net": {p.contract.symbol: self.portfolio.net(p.contract.symbol) for p in positions},
            "requests": self.limiter.requests,
            "is_blocked": self.limiter.is_blocked,
            "data_connections": self.data_socket.connections,
            "order_connections": self.order_socket.connections,
            "faults_fired": dict(self.faults.fired),
        }

    def _market(self, start_ns: int) -> Market:
        played = [(i.exchange_symbol, table) for i, table in self.settings.played]
        prices = {symbol: round(_first_price(table, start_ns) * 100) for symbol, table in played}
        master = self._listed(local_time(start_ns).date(), prices)
        for instrument, table in self.settings.played:
            if master.get(instrument.exchange_symbol) is None:
                precision = max(2, table.decimals, _decimals(instrument.tick_size))
                price = round(_first_price(table, start_ns) * 10**precision)
                master.add(listing(instrument, price, precision))
        return Market(master, self.hours, seed=self.settings.seed, start_ns=start_ns, played=played)

    def _begin_day(self, today: date) -> None:
        """List the contracts of a new day, and give the user its requests back."""
        self.market.remove_expired(today)
        self.market.master.list_missing(self._listed(today, self.market.spot_prices()))
        self.limiter.new_day()

    def _listed(self, day: date, prices: dict[str, int]) -> Master:
        return build_master(
            day,
            self.hours.calendar,
            prices,
            with_derivatives=self.settings.with_derivatives,
        )

    def _application(self) -> web.Application:
        api = RestApi(self.exchange, self.desk, self.limiter, self.faults)

        @web.middleware
        async def gate(request: web.Request, handler: Handler) -> web.StreamResponse:
            if request.path.startswith("/simulator"):
                return await _control(request, handler)
            if request.path in _SOCKETS:
                return await handler(request)
            return await api.gate(request, handler)

        app = web.Application(middlewares=[gate])
        api.add_routes(app)
        app.router.add_get(_DATA_SOCKET, self.data_socket.handle)
        app.router.add_get(_ORDER_SOCKET, self.order_socket.handle)
        app.router.add_get("/simulator/state", self._control_state)
        app.router.add_post("/simulator/faults", self._control_fault)
        app.router.add_delete("/simulator/faults", self._control_clear)
        app.router.add_post("/simulator/advance", self._control_advance)
        app.router.add_post("/simulator/price", self._control_price)
        return app

    async def _drive(self) -> None:
        began_ns, began_real_ns = self.now_ns, self._monotonic_ns()
        while True:
            await asyncio.sleep(_REAL_STEP_S)
            passed_ns = self._monotonic_ns() - began_real_ns
            due_ns = began_ns + round(passed_ns * self.settings.speed)
            await self.move_to(due_ns, step_s=_REAL_STEP_S * self.settings.speed)

    def _rejection(self) -> str | None:
        fault = self.faults.take("order_rejected")
        return None if fault is None else "RMS: order rejected on command"

    def _close_early(self, fault: Fault) -> None:
        """Change today's hours so that the session ends soon."""
        today = local_time(self.now_ns).date()
        span = self.hours.span_ns("NSE", self.now_ns)
        opens = local_time(span[0] if span is not None else instant_ns(today, wall_time(9, 15)))
        closes = local_time(self.now_ns + round(fault.seconds * NS_PER_SECOND))
        self.hours.change_day(today, (opens.time(), closes.time()))

    # The control calls, for whoever has no hold of the object.

    async def _control_state(self, _request: web.Request) -> web.Response:
        return web.json_response(self.state())

    async def _control_fault(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.faults.inject(
            body["kind"],
            count=int(body.get("count", 1)),
            after=int(body.get("after", 0)),
            seconds=float(body.get("seconds", 0.0)),
            path=str(body.get("path", "")),
        )
        return web.json_response(self.state())

    async def _control_clear(self, _request: web.Request) -> web.Response:
        self.faults.clear()
        return web.json_response(self.state())

    async def _control_advance(self, request: web.Request) -> web.Response:
        body = await request.json()
        await self.advance(float(body["seconds"]), step_s=float(body.get("step_s", 1.0)))
        return web.json_response(self.state())

    async def _control_price(self, request: web.Request) -> web.Response:
        body = await request.json()
        await self.set_price(body["symbol"], float(body["price"]))
        return web.json_response(self.state())


async def _control(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let a control call through; what is wrong with it is its answer."""
    try:
        return await handler(request)
    except (KeyError, TypeError, ValueError) as error:
        return web.json_response({"problem": repr(error)}, status=400)


def _start_ns(settings: SimulatorSettings) -> int:
    if settings.start is not None:
        start = settings.start
        zoned = start if start.tzinfo is not None else start.replace(tzinfo=IST)
        return round(zoned.timestamp()) * NS_PER_SECOND
    if settings.played:
        return min(int(table.open_ns[0]) for _, table in settings.played)
    return round(DEFAULT_START.timestamp()) * NS_PER_SECOND


def _decimals(tick_size: Decimal) -> int:
    exponent = tick_size.normalize().as_tuple().exponent
    return max(0, -exponent) if isinstance(exponent, int) else 0


def _first_price(table: CandleTable, start_ns: int) -> float:
    """Return the price at which played candles stand when the simulation begins."""
    later = table.between(start_ns, 2**63 - 1)
    if not len(later):
        last, start = local_time(int(table.open_ns[-1])), local_time(start_ns)
        raise ConfigError(
            f"the candles of {table.symbol} end at {last:%Y-%m-%d %H:%M}, before the start at "
            f"{start:%Y-%m-%d %H:%M}: begin earlier, or give another file"
        )
    return float(later.open[0])


def _passed_six(before: datetime, now: datetime) -> bool:
    """Tell whether 06:00 lies in (before, now]."""
    six = before.replace(hour=_SIX.hour, minute=0, second=0)
    following = six if before < six else six + timedelta(days=1)
    return now >= following
