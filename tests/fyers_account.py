"""A simulated Fyers account over HTTP and socket, and our broker on it."""

import asyncio
from collections.abc import Callable
from decimal import Decimal
from random import Random
from typing import Any

import aiohttp

from actors.messages import Alert, ExecutionReport, PlaceOrder
from daemon.brokers.fyers.broker import FyersBroker
from daemon.brokers.fyers.ledger import CallBudget, RateLedger
from daemon.brokers.fyers.order_socket import OrderSocket
from daemon.brokers.fyers.reconnecting import SocketTimes
from daemon.brokers.fyers.rest import CallTimes, FyersRest, simulated
from daemon.brokers.fyers.transport import Transport
from daemon.brokers.fyers_simulator import DEFAULT_START, FyersSimulator
from daemon.brokers.fyers_simulator.hours import TradingHours
from daemon.brokers.fyers_simulator.listing import build_master
from daemon.brokers.fyers_simulator.market import Market
from daemon.brokers.fyers_simulator.matching import Exchange
from daemon.brokers.fyers_simulator.portfolio import Portfolio
from daemon.clock import NS_PER_SECOND, SystemClock
from daemon.settings import load_sessions

SBIN = "NSE:SBIN-EQ"
WAIT_S = 30.0
QUICK = CallTimes(answer_s=WAIT_S, budget_s=WAIT_S, tries=3, first_delay_s=0.01)
SOCKET = SocketTimes(
    connect_s=1.0, ping_s=0.4, silence_s=1.0, first_delay_s=0.01, longest_delay_s=0.05
)
AMPLE = CallBudget(per_second=500, per_minute=5000)


class Account:
    """A simulated broker and our broker on it, listening."""

    def __init__(
        self,
        simulator: FyersSimulator,
        http: aiohttp.ClientSession,
        ledger: RateLedger,
        transport: Transport | None = None,
    ) -> None:
        self.simulator = simulator
        self.http = http
        self.ledger = ledger
        self.token = simulator.token()
        self.alerts: list[Alert] = []
        self.problems: list[str] = []
        self.written: dict[str, PlaceOrder] = {}
        self.told: list[ExecutionReport] = []
        self.rest = FyersRest(
            http,
            simulated(simulator.urls.base),
            app_id=simulator.account.app_id,
            token=lambda: self.token,
            ledger=ledger,
            clock=SystemClock(),
            random=Random(1),
            times=QUICK,
            transport=transport,
        )
        self.broker = self.new_broker()

    def new_broker(self) -> FyersBroker:
        """Return a broker as after a restart."""
        self.socket = OrderSocket(
            self.simulator.urls.order_socket,
            self.http,
            header=self.header,
            clock=SystemClock(),
            random=Random(1),
            times=SOCKET,
            on_alert=self.alerts.append,
        )
        return FyersBroker(
            self.rest,
            self.socket,
            {"SBIN": SBIN},
            recall=self.recall,
            is_remote=False,
            on_problem=self.problems.append,
        )

    async def header(self) -> str:
        return f"{self.simulator.account.app_id}:{self.token}"

    async def recall(self, tag: str) -> PlaceOrder | None:
        return self.written.get(tag)

    async def collect(self) -> None:
        async for report in self.broker.reports():
            self.told.append(report)

    async def listening(self) -> None:
        await self.until(lambda: self.socket.state == "live")

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not holds():  # noqa: ASYNC110 - two programs have no event in common
                await asyncio.sleep(0.01)

    async def trade(self, seconds: int = 2) -> None:
        await self.simulator.advance(seconds)

    def filled(self) -> int:
        """Return the units that reports prove, each fact once."""
        return sum({one.execution_id: one.last_quantity for one in self.told}.values())

    def statuses(self) -> list[str]:
        return [report.status for report in self.told]


def an_order(tag: str = "a1", **changes: Any) -> PlaceOrder:
    fields: dict[str, Any] = {
        "client_order_id": tag,
        "decision_id": "d1",
        "instrument": "SBIN",
        "side": "buy",
        "quantity": 10,
        "order_type": "market",
        "purpose": "entry",
        "reason": "test",
        "placed_ns": 1,
    }
    return PlaceOrder(**(fields | changes))


def a_resting_order(account: Account, tag: str = "a1") -> PlaceOrder:
    last = account.simulator.market.quote(SBIN).last
    price = Decimal(round(last * 0.97) // 10 * 10) / 100
    return an_order(tag, order_type="limit", limit_price=price)


def an_exchange() -> Exchange:
    """Return a simulated exchange of shares, open, that stands still."""
    calendar = load_sessions()
    start_ns = round(DEFAULT_START.timestamp()) * NS_PER_SECOND
    master = build_master(DEFAULT_START.date(), calendar, with_derivatives=False)
    market = Market(master, TradingHours(calendar), seed=1, start_ns=start_ns)
    return Exchange(market, Portfolio(1e6, market), client_id="XS00001")
