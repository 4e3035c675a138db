"""What systemd hears: ready, still alive, stopping. Without systemd nothing is sent.

The watchdog is fed only while the event loop turns and every actor gives signs of life, so a wedged
session is ended and started again, which a timer of its own would hide.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable

from systemd_watchdog.systemd_watchdog import WatchDog

from daemon.errors import BusError
from daemon.logs import get_logger

_LONGEST_S = 5.0


class ServiceManager:
    """The service manager this process runs under, if there is one."""

    def __init__(self) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        listener.setblocking(False)
        self._watchdog = WatchDog(listener)
        self._is_ready = False

    def ready(self, text: str) -> None:
        """Say that the session stands."""
        self._is_ready = True
        self._tell(self._watchdog.ready)
        self._tell(lambda: self._watchdog.status(text))

    def stopping(self) -> None:
        """Say that the session is being stopped in order."""
        self._tell(lambda: self._watchdog.status("stopping"))

    async def keep_alive(self, is_healthy: Callable[[], Awaitable[bool]]) -> None:
        """Feed the watchdog while `is_healthy`, until cancelled; return at once without one."""
        if not self._watchdog.is_enabled:
            return
        interval_s = min(self._watchdog.timeout / 1e6 / 3, _LONGEST_S)
        while True:
            try:
                healthy = await is_healthy()
            except BusError:
                healthy = True  # the message server is another unit's matter: trading holds
            if healthy:
                self._tell(self._watchdog.notify)
            elif self._is_ready:
                get_logger().error("unhealthy: the watchdog is not fed")
            await asyncio.sleep(interval_s)

    def _tell(self, say: Callable[[], None]) -> None:
        try:
            say()
        except OSError as error:  # one that does not listen must not hold up trading
            get_logger().warning("service manager not told", reason=str(error))
