"""Thinking care: what the reasoning process does between decisions, so that none waits for it.

Garbage is collected when there is nothing to decide, memory is held to its limit, and the times of
the steps of thinking go to the log. A segment thought about nothing would keep no cache warm: the
next decision takes as long with it as without.
"""

import gc
from collections.abc import Callable

from daemon.logs import get_logger
from hrm.memory import HRMMemoryOptimizer
from hrm.profiling import Profile

REMEDY = (
    "it begins anew; if that happens again raise performance.memory_limit_gb, and report it: "
    "deciding does not grow"
)
_CHECK_S = 1.0
_LONGEST_S = 60.0  # between two collections also without a pause, and between two lines of the log


class ThinkingCare:
    """Look after a process that thinks; call `rest` after every read of its runner."""

    def __init__(
        self,
        memory: HRMMemoryOptimizer,
        profile: Profile | None,
        monotonic_s: Callable[[], float],
    ) -> None:
        """profile: None where profiling is off."""
        self._memory = memory
        self._profile = profile
        self._monotonic_s = monotonic_s
        self._checked_s = self._collected_s = self._told_s = monotonic_s()

    def rest(self, is_idle: bool) -> None:
        """Do what is due; raise MemoryLimitExceededError when the process holds too much."""
        now_s = self._monotonic_s()
        if now_s - self._collected_s > (_CHECK_S if is_idle else _LONGEST_S):
            self._collected_s = now_s
            gc.collect()
        if now_s - self._checked_s > _CHECK_S:
            self._checked_s = now_s
            self._memory.check()
        if self._profile is not None and now_s - self._told_s > _LONGEST_S:
            self._told_s = now_s
            get_logger(actor="reasoning").info("thinking took", steps=self._profile.summary())
