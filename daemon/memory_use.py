"""How much memory this process holds."""

import ctypes
import gc
import os
from pathlib import Path

_STATM = Path("/proc/self/statm")
_BYTES_PER_MIB = 1 << 20


def resident_mib() -> float:
    """Return the resident set size of this process in MiB; 0 where the system does not tell."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / _BYTES_PER_MIB


def return_unused() -> None:
    """Give memory that was freed back to the system, which loading a model leaves much of."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, others need none
    if trim is not None:
        trim(0)
