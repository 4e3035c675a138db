"""The backend gives way: as a process, and as a session where it leads one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

AUTOGROUP = Path("/proc/self/autogroup")
CODE = (
    "import os; from pathlib import Path; from backend.priority import give_way; give_way(7); "
    "group = Path('/proc/self/autogroup'); "
    "print(os.nice(0), group.read_text() if group.exists() else '')"
)


def said(*, leads_a_session: bool) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=Path(__file__).parents[2],
        start_new_session=leads_a_session,
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    return done.stdout.strip()


def test_the_process_gives_way() -> None:
    assert int(said(leads_a_session=False).split()[0]) == min(os.nice(0) + 7, 19)


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="tasks are not grouped by session here")
def test_a_session_gives_way_with_its_leader_and_a_strangers_session_does_not() -> None:
    before = AUTOGROUP.read_text()

    assert said(leads_a_session=True).endswith("nice 7")
    said(leads_a_session=False)
    assert AUTOGROUP.read_text() == before
