"""What both sockets do between two connections: wait, note why, and call a person once."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Literal

import aiohttp

from actors.messages import Alert
from daemon.clock import Clock
from daemon.errors import TraderError
from daemon.logs import get_logger

State = Literal["connecting", "live", "lost", "refused"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketTimes:
    """How long to wait, in seconds."""

    connect_s: float = 15.0  # for the handshake, and again for the answer to the login
    ping_s: float = 10.0
    silence_s: float = 15.0  # without any record while the market is open
    first_delay_s: float = 0.5
    longest_delay_s: float = 60.0

    def delay_s(self, failures: int, random: Random) -> float:
        """Return the wait before the next try: doubling up to a cap, half of it by chance."""
        full = min(self.longest_delay_s, self.first_delay_s * 2.0 ** min(failures, 30))
        return full * (0.5 + 0.5 * random.random())


class ReconnectingSocket:
    """Hold the state of a socket that connects again and again.

    part: its name in logs and alerts; lacking: what there is none of while it is refused.
    """

    def __init__(
        self,
        part: str,
        lacking: str,
        *,
        clock: Clock,
        random: Random,
        times: SocketTimes,
        on_alert: Callable[[Alert], None],
    ) -> None:
        self._part = part
        self._lacking = lacking
        self._clock = clock
        self._random = random
        self._times = times
        self._on_alert = on_alert
        self._log = get_logger(part=part)
        self._is_told = False  # whether a person has heard of this outage
        self.state: State = "connecting"
        self.problem = ""  # why the last connection ended
        self.connections = 0
        self.unreadable = 0  # what was received and passed over
        self.handled = 0  # frames of this connection whose handling is over
        self._received = 0

    def _begin(self) -> None:
        """Note that a new connection stands."""
        self.connections += 1
        self.handled = self._received = 0

    async def _receive(
        self, socket: aiohttp.ClientWebSocketResponse, timeout_s: float | None = None
    ) -> aiohttp.WSMessage:
        """Take the next frame; whoever asks for it is done with those before. TimeoutError."""
        self.handled = self._received
        message = await socket.receive(timeout=timeout_s)
        self._received += 1
        return message

    def _lost(self, problem: str) -> None:
        self.state, self.problem = "lost", problem

    def _refused(self, error: TraderError) -> None:
        """Note what no waiting mends, and tell it once per outage."""
        self.state, self.problem = "refused", str(error)
        if not self._is_told:
            self._is_told = True
            alert = Alert(
                severity="critical",
                text=f"{self._lacking}: {error}",
                runbook="Feed refused",
                at_ns=self._clock.now_ns(),
                source=self._part,
            )
            self._on_alert(alert)

    async def _pause(self, failures: int) -> None:
        """Wait before the next connection, after so many failures before this one."""
        delay_s = self._times.delay_s(failures, self._random)
        self._log.warning(
            "socket lost", reason=self.problem, failures=failures + 1, retry_s=round(delay_s, 2)
        )
        await asyncio.sleep(delay_s)
