"""What has to be looked after while a session runs: its server, its streams, and the stop file."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from actors.messages import KillSwitch
from daemon.bus import Bus
from daemon.errors import BusError, ConfigError
from daemon.kill_switch import Latch
from daemon.logs import get_logger

_LOOK_S = 0.2
_TRIM_EVERY = 25  # looks


class LatchReader(Protocol):
    """The side of the latch that needs no server."""

    def state(self) -> Latch:
        """Return what the stop file says."""
        ...


class Server(Protocol):
    """The message server, as far as it is looked after here."""

    async def start(self) -> str:
        """Return the url of a server that answers, started if need be."""
        ...


class Housekeeping:
    """Start the server again when it is gone, trim the streams, tell everyone of a new stop file.

    The stop file may be written with the server down or by another process: what it says reaches
    the actors as a KillSwitch as soon as both are there.
    """

    name = "housekeeping"

    def __init__(
        self,
        bus: Bus,
        server: Server,
        latch: LatchReader,
        announce: Callable[[KillSwitch], Awaitable[object]],
        retain_entries: int,
    ) -> None:
        self._bus = bus
        self._server = server
        self._latch = latch
        self._announce = announce
        self._retain_entries = retain_entries
        self._announced: Latch | None = None
        self._stopping = asyncio.Event()
        self._log = get_logger(part=self.name)

    def stop(self) -> None:
        """Ask `run` to return soon."""
        self._stopping.set()

    async def run(self) -> None:
        """Look after everything until `stop`."""
        looks = 0
        while not self._stopping.is_set():
            try:
                await self._bus.latest(KillSwitch.stream)  # raises when the server is gone
                await self.announce_latch()
                looks += 1
                if looks % _TRIM_EVERY == 0:
                    await self._bus.trim(self._retain_entries)
            except BusError as error:
                await self._restart_server(str(error))
            try:
                async with asyncio.timeout(_LOOK_S):
                    await self._stopping.wait()
            except TimeoutError:
                continue

    async def announce_latch(self) -> None:
        """Publish what the stop file says, if it is news; raises BusError when that fails."""
        latch = self._latch.state()
        if latch == self._announced:
            return
        message = KillSwitch(
            engaged=latch.engaged,
            reason=latch.reason,
            operator=latch.operator,
            at_ns=latch.at,
            flatten=latch.flatten,
        )
        await self._announce(message)
        self._announced = latch
        self._log.info("kill switch", engaged=latch.engaged, reason=latch.reason)

    async def _restart_server(self, reason: str) -> None:
        self._log.warning("message server gone", reason=reason)
        try:
            await self._server.start()  # adopts one that lives, leaves a configured one alone
        except (BusError, ConfigError) as error:
            self._log.error("message server not started", reason=str(error))
