"""Memory: what the process holds, and the cap on it, in training and where the model serves."""

import resource
from pathlib import Path

BYTES_PER_GIB = 1024**3


class MemoryLimitExceededError(RuntimeError):
    """The process holds more memory than the settings allow."""


class HRMMemoryOptimizer:
    """Stop a process that exceeds its cap; remedy: what to do then, the end of the error."""

    def __init__(self, limit_gib: float, remedy: str) -> None:
        if limit_gib <= 0:
            raise ValueError(f"the memory limit must be positive, was {limit_gib} GiB")
        self.limit_gib = limit_gib
        self._remedy = remedy

    def check(self) -> int:
        """Return the resident bytes, or raise MemoryLimitExceededError beyond the cap."""
        resident = resident_bytes()
        if resident > self.limit_gib * BYTES_PER_GIB:
            raise MemoryLimitExceededError(
                f"the process holds {resident / BYTES_PER_GIB:.2f} GiB, the limit is "
                f"{self.limit_gib} GiB: {self._remedy}"
            )
        return resident


def resident_bytes() -> int:
    """Return the memory this process holds now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()
