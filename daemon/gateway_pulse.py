"""Gateway pulse: the order gateway's sign of life, with what it counts of orders."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from actors.messages import Heartbeat
from daemon.announcer import Announcer
from daemon.bus import Bus
from daemon.errors import BusError
from daemon.order_gateway import OrderGateway


class GatewayPulse:
    """Publish a heartbeat of the gateway while it serves; monitoring misses one that stops."""

    name = "gateway_pulse"

    def __init__(
        self, gateway: OrderGateway, bus: Bus, real_ns: Callable[[], int], *, every_s: float
    ) -> None:
        self._gateway = gateway
        self._bus = bus
        self._real_ns = real_ns
        self._every_s = every_s
        self._began_ns = real_ns()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Ask `run` to return soon."""
        self._stopping.set()

    async def run(self) -> None:
        """Beat until `stop`."""
        heart = Announcer(self._bus, self._gateway.name, [Heartbeat.stream])
        try:
            while not self._stopping.is_set():
                if self._gateway.ready.is_set():
                    with suppress(BusError):  # the gateway meets the outage too and says so
                        await heart.publish(self.beat())
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._every_s):
                        await self._stopping.wait()
        finally:
            await heart.close()

    def beat(self) -> Heartbeat:
        """Return the sign of life of this moment."""
        now_ns, outcome = self._real_ns(), self._gateway.reconciliation
        # Never yet: then the age is that of this session, which nobody is to wait out in silence.
        agreed_ns = (outcome.agreed_ns if outcome else 0) or self._began_ns
        return Heartbeat(
            actor=self._gateway.name,
            at_ns=now_ns,
            handled=self._gateway.handled,
            failed=0,
            lost=0,
            lag=self._gateway.unpublished,
            p50_us=0,
            p99_us=0,
            agreement_age_s=round((now_ns - agreed_ns) / 1e9, 3),
            orders=self._gateway.order_counts(),
        )
