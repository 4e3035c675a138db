"""The systemd unit of the backend: a command it takes, locked down, behind the daemon."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main

from backend.__main__ import app

UNITS = Path(__file__).resolve().parents[2] / "systemd"
UNIT = UNITS / "hrm-trader-backend.service"
PROGRAM = "/opt/hrm-trading-daemon/.venv/bin/python"


def settings_of(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if re.match(r"\w+=", line)]
    return dict(line.split("=", 1) for line in lines)


def test_the_command_of_the_unit_is_one_that_the_backend_takes() -> None:
    program, flag, module, *arguments = shlex.split(settings_of(UNIT)["ExecStart"])

    context = typer.main.get_command(app).make_context("backend", arguments)

    assert (program, flag, module) == (PROGRAM, "-m", "backend")
    assert context.params["port"] == 8000


def test_the_unit_is_locked_down_as_the_daemons_is_and_gives_way_to_it() -> None:
    ours, daemons = settings_of(UNIT), settings_of(UNITS / "hrm-trader.service")
    same = [key for key in daemons if key.startswith(("Protect", "Restrict", "Private", "System"))]

    assert {key: ours.get(key) for key in same} == {key: daemons[key] for key in same}
    assert int(ours["CPUWeight"]) < 100 < int(daemons["CPUWeight"])


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here"
)
def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    exists_here = shutil.which("true")
    assert exists_here is not None
    (tmp_path / UNIT.name).write_text(UNIT.read_text().replace(PROGRAM, exists_here))

    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / UNIT.name)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert [line for line in verified.stderr.splitlines() if "hrm-trader" in line] == []
