"""One Fyers account, connected: calls, both sockets, the broker on them, and the day's token."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from random import Random

import aiohttp

from actors.messages import Alert, Depth, PlaceOrder
from daemon.brokers.fyers.broker import FyersBroker, Product
from daemon.brokers.fyers.data_socket import DataSocket, nobody_hears
from daemon.brokers.fyers.ledger import RateLedger
from daemon.brokers.fyers.order_socket import OrderSocket
from daemon.brokers.fyers.reconnecting import SocketTimes
from daemon.brokers.fyers.rest import CallTimes, Endpoints, FyersRest
from daemon.brokers.fyers.token_keeper import TokenKeeper
from daemon.brokers.fyers.transport import Transport
from daemon.clock import Clock
from daemon.errors import LoginNeeded


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long everything that talks to the account waits."""

    call: CallTimes = field(default_factory=CallTimes)
    data: SocketTimes = field(default_factory=SocketTimes)
    order: SocketTimes = field(default_factory=lambda: SocketTimes(silence_s=25.0))


class FyersAccount:
    """Build what talks to the account; running it is for the owner.

    `symbols` maps each instrument to the broker's symbol. `is_open` says whether a silent feed is a
    dead one, at an instant of `market_clock`; all else goes by `clock`. `recall` finds an order of
    an earlier start by its tag. `on_feed_lost` hears of each data connection that has ended. With
    `on_depth` order books are subscribed beside the prices. Calls go by `transport`, None: our own;
    sockets are always ours.
    """

    def __init__(
        self,
        http: aiohttp.ClientSession,
        endpoints: Endpoints,
        keeper: TokenKeeper,
        ledger: RateLedger,
        symbols: Mapping[str, str],
        *,
        is_open: Callable[[int], bool],
        recall: Callable[[str], Awaitable[PlaceOrder | None]],
        clock: Clock,
        market_clock: Clock,
        random: Random,
        on_alert: Callable[[Alert], None],
        on_feed_lost: Callable[[], Awaitable[None]] = nobody_hears,
        on_depth: Callable[[Depth], Awaitable[None]] | None = None,
        products: Mapping[str, Product] | None = None,
        times: Times | None = None,
        transport: Transport | None = None,
    ) -> None:
        times = times or Times()
        self._keeper = keeper
        self._symbols = dict(symbols)
        self._clock = clock
        self._on_alert = on_alert
        self.rest = FyersRest(
            http,
            endpoints,
            app_id=keeper.app_id,
            token=keeper.access_token,
            ledger=ledger,
            clock=clock,
            random=random,
            times=times.call,
            on_refused=keeper.refuse,
            transport=transport,
        )
        self.data_socket = DataSocket(
            endpoints.data_socket,
            http,
            session_key=self._hsm_key,
            resolve=self._topics,
            is_open=is_open,
            clock=market_clock,
            random=random,
            times=times.data,
            on_alert=on_alert,
            on_lost=on_feed_lost,
            on_depth=on_depth,
        )
        self.order_socket = OrderSocket(
            endpoints.order_socket,
            http,
            header=self._header,
            clock=clock,
            random=random,
            times=times.order,
            on_alert=on_alert,
        )
        self.broker = FyersBroker(
            self.rest,
            self.order_socket,
            self._symbols,
            recall=recall,
            products=products,
            on_problem=self._tell_problem,
        )

    async def _topics(self) -> dict[str, str]:
        """Return the instrument behind each topic of the data socket."""
        names = {symbol: instrument for instrument, symbol in self._symbols.items()}
        topics = await self.rest.topics(list(names))
        return {topic: names[symbol] for topic, symbol in topics.items()}

    async def _hsm_key(self) -> str:
        await self._check_token()
        return self._keeper.hsm_key()

    async def _header(self) -> str:
        await self._check_token()
        return f"{self._keeper.app_id}:{self._keeper.access_token()}"

    async def _check_token(self) -> None:
        """Ask whether the token still holds: a socket only says no, and it dies every morning."""
        try:
            await self.rest.profile()
        except LoginNeeded:
            await self._keeper.renew()

    def _tell_problem(self, text: str) -> None:
        self._on_alert(
            Alert(
                severity="critical",
                text=f"the broker's books contradict what is known: {text}",
                runbook="Log and broker differ",
                at_ns=self._clock.now_ns(),
                source="fyers_broker",
            )
        )
