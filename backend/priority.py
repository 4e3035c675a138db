"""How the backend gives way to the daemon on the same machine. Units do it with CPUWeight."""

import os
from contextlib import suppress
from pathlib import Path

_AUTOGROUP = Path("/proc/self/autogroup")


def give_way(niceness: int) -> None:
    """Lower the priority of this process; of its whole session, where it leads one.

    Where Linux groups tasks by session (`sched_autogroup_enabled`), niceness counts only among the
    tasks of one session: a backend and a daemon of two terminals share a processor evenly.
    """
    os.nice(niceness)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # not Linux, or without such groups: niceness alone counts
            _AUTOGROUP.write_text(str(niceness))
