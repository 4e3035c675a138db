"""How fast the backend may ask the broker: what the daemon's budget leaves of the broker's limits.

The daemon grants itself 8 calls a second and 150 a minute of the broker's 10 and 200
(daemon/brokers/fyers/ledger.py). A page that is opened too often must never cost it an order.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from daemon.errors import TooManyCalls

PER_SECOND: Final = 1
PER_MINUTE: Final = 40
LONGEST_WAIT_S: Final = 5.0


class CallPace:
    """Give calls their turns. Use from one event loop."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        self._turns_s: deque[float] = deque(maxlen=PER_MINUTE)

    def turn(self) -> float:
        """Take a turn; return in how many seconds it is, or raise TooManyCalls."""
        now_s = self._monotonic_s()
        at_s = now_s
        for most, window_s in ((PER_SECOND, 1.0), (PER_MINUTE, 60.0)):
            if len(self._turns_s) >= most:
                at_s = max(at_s, self._turns_s[-most] + window_s)
        wait_s = at_s - now_s
        if wait_s > LONGEST_WAIT_S:
            raise TooManyCalls(
                "the backend has made as many calls to the broker as it may: ask again in "
                f"{wait_s:.0f} s"
            )
        self._turns_s.append(at_s)
        return wait_s
