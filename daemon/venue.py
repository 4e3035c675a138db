"""Venue: where a session trades: the account, its market data, and what must run for both.

How one is built is for its own file: paper_venue.py, fyers_venue.py, fyers_sim_venue.py.
"""

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal

from actors.messages import Alert, Position, Tick
from daemon.brokers.base import Broker
from daemon.order_gateway import OrderGateway
from daemon.outbox import Outbox
from daemon.supervisor import Part
from daemon.tick_source import MarketEvent

BrokerName = Literal["simulated", "fyers-sim", "fyers"]

Announce = Callable[[Alert], Awaitable[object]]
"""Puts an alert on the bus; raises BusError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """What a session has written down, for whoever compares it with the broker at its end."""

    gateway: OrderGateway
    outbox: Outbox
    positions: Callable[[], Awaitable[dict[str, Position]]]  # as the actors have them
    settle: Callable[[], Awaitable[bool]]  # wait for all that is under way; False: not in time


async def _concludes_nothing(_books: Books) -> dict[str, Any]:
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Venue:
    """An account and a market, connected.

    `is_repeatable`: after a restart `events` begins with the first one again (played candles); a
    socket goes on with the next. `parts` run as long as the gateway, `feeds` as long as the tick
    source. `resume` hears, before those run, up to when the session has bars of each instrument.
    `is_idle`: nothing is on its way between the broker and us. `conclude` is awaited once
    the session has run out, before it stops; what it returns becomes part of the summary, its
    `lost` added to the messages that were. The times are real seconds, for the gateway.
    """

    broker: Broker
    events: AsyncIterable[MarketEvent]
    is_repeatable: bool
    on_tick: Callable[[Tick], None] = lambda _: None
    parts: tuple[Part, ...] = ()
    feeds: tuple[Part, ...] = ()
    resume: Callable[[Mapping[str, int]], None] = lambda _: None
    is_idle: Callable[[], bool] = lambda: True
    request_timeout_s: float = 5.0
    reconcile_every_s: float = 5.0
    conclude: Callable[[Books], Awaitable[dict[str, Any]]] = _concludes_nothing


OpenVenue = Callable[[Outbox, Announce], AbstractAsyncContextManager[Venue]]
"""Connects a venue for one session; TraderError when that cannot be done."""


class Listener:
    """Something that listens for ever, as a part: `work` only ends when it fails."""

    def __init__(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self.name = name
        self._work = work
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ask `run` to return."""
        self._stopping.set()

    async def run(self) -> None:
        """Work until `stop`."""
        working = asyncio.ensure_future(self._work())
        stopped = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                await working
        finally:
            working.cancel()
            stopped.cancel()
            await asyncio.wait({working, stopped})
