"""Send rules: what forbids to send anything for an order now: kill latch, age and rate.

What is known of its instrument is not asked here; that is for the gateway.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from actors.messages import PlaceOrder, RejectKind
from daemon.kill_switch import KillSwitchReader

_SECOND_NS: Final = 1_000_000_000
_RESERVE_DIVISOR: Final = 4  # one order in so many is kept for exits and cancels


class Refusal(NamedTuple):
    """Why an order must not leave, and of which class that is to its sender."""

    reason: str
    kind: RejectKind = "permanent"


class SendRules:
    """Measure orders, new and changed, by market time; what was sent is noted here."""

    def __init__(
        self,
        latch: KillSwitchReader,
        clock_ns: Callable[[], int],
        *,
        max_per_second: int,
        max_age_s: float,
    ) -> None:
        self._latch = latch
        self._clock_ns = clock_ns
        self._max_rate = max_per_second
        self._max_age_ns = int(max_age_s * _SECOND_NS)
        self._sent_ns: deque[int] = deque()

    def note_sent(self) -> None:
        """Count an order, a change or a cancel that goes out now."""
        self._sent_ns.append(self._clock_ns())

    async def refusal(self, order: PlaceOrder) -> Refusal | None:
        """Return why nothing may be sent for an order, or None."""
        latch = await self._latch.read()
        is_exit = order.purpose == "exit"
        if latch.engaged and not (is_exit and latch.flatten):
            return Refusal(f"kill switch: {latch.reason}", "retryable")
        now_ns = self._clock_ns()
        age_ns = now_ns - order.placed_ns
        # An exit is as needed late as in time, and its position cannot change without it.
        if not is_exit and age_ns > self._max_age_ns:
            allowed_s = self._max_age_ns / _SECOND_NS
            return Refusal(f"order is {age_ns / _SECOND_NS:.1f} s old, allowed: {allowed_s:g} s")
        while self._sent_ns and self._sent_ns[0] <= now_ns - _SECOND_NS:
            self._sent_ns.popleft()
        allowed = self._max_rate if is_exit else self._max_rate - self._max_rate // _RESERVE_DIVISOR
        if len(self._sent_ns) >= allowed:
            sent = len(self._sent_ns)
            return Refusal(f"{sent} orders in the last second, allowed: {allowed}", "rate")
        return None
