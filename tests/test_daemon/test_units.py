"""The systemd units: understood by systemd, runnable by our command line, and locked down."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main

from daemon.brokers.fyers.login import CREDENTIAL
from daemon.cli import app
from daemon.settings import Settings

UNITS = Path(__file__).resolve().parents[2] / "systemd"
NAMES = ("hrm-trader.service", "hrm-trader-kill.service")
LIVE = "hrm-trader-live.conf"
INSTALLED = "/opt/hrm-trading-daemon/.venv/bin/hrm-trader"
GIB = 2**30
MIB = 2**20
MACHINE_BYTES = 8 * GIB

Unit = dict[str, list[str]]


def a_unit(name: str) -> Unit:
    """Return the settings of a unit file: key -> its values, in order."""
    unit: Unit = {}
    for line in (UNITS / name).read_text().splitlines():
        if line.strip() and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            unit.setdefault(key, []).append(value)
    return unit


def seconds(unit: Unit, key: str) -> float:
    (value,) = unit[key]
    return float(value)


def command_line(unit: Unit) -> list[str]:
    """Return the words of ExecStart, with what systemd and the environment file put in."""
    (line,) = unit["ExecStart"]
    line = line.replace("%S", "/var/lib").replace("${HRM_TRADER_SPEED}", "60")
    line = re.sub(r"\$\{(\w+)\}", r"\1", line)
    return shlex.split(line)


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here"
)
def test_systemd_understands_every_line_of_the_units(tmp_path: Path) -> None:
    exists_here = shutil.which("true")
    assert exists_here is not None
    for name in NAMES:
        text = (UNITS / name).read_text()
        (tmp_path / name).write_text(text.replace(INSTALLED, exists_here))

    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in NAMES)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    ours = [line for line in verified.stderr.splitlines() if "hrm-trader" in line]
    assert ours == []
    assert verified.returncode == 0, verified.stderr


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here"
)
def test_systemd_understands_the_unit_with_the_drop_in_for_real_orders(tmp_path: Path) -> None:
    exists_here = shutil.which("true")
    assert exists_here is not None
    folder = tmp_path / f"{NAMES[0]}.d"
    folder.mkdir()
    for source, target in ((NAMES[0], tmp_path / NAMES[0]), (LIVE, folder / "live.conf")):
        target.write_text((UNITS / source).read_text().replace(INSTALLED, exists_here))

    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / NAMES[0])],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert [line for line in verified.stderr.splitlines() if "hrm-trader" in line] == []
    assert verified.returncode == 0, verified.stderr


def test_the_drop_in_runs_at_fyers_with_the_key_of_the_token() -> None:
    unit = a_unit(LIVE)
    cleared, line = unit["ExecStart"]
    program, command, *arguments = command_line({"ExecStart": [line]})
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)

    context = group.commands[command].make_context(command, arguments)

    assert (cleared, program) == ("", INSTALLED)
    assert context.params["broker"] == "fyers"
    (credential,) = unit["LoadCredential"]
    assert credential.partition(":")[0] == CREDENTIAL
    (fields,) = unit["EnvironmentFile"]
    assert fields.startswith("-")  # without it a person logs in
    assert a_unit("hrm-trader-kill-live.conf")["LoadCredential"] == [credential]


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here"
)
def test_systemd_refuses_a_unit_with_a_wrong_line(tmp_path: Path) -> None:
    text = (UNITS / NAMES[0]).read_text().replace(INSTALLED, "/nonexistent/hrm-trader")
    (tmp_path / NAMES[0]).write_text(text.replace("WatchdogSec=30", "WatchdogSec=often"))

    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / NAMES[0])],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert "ignoring: often" in verified.stderr
    assert "/nonexistent/hrm-trader" in verified.stderr


@pytest.mark.parametrize("name", NAMES)
def test_the_command_of_a_unit_is_one_our_command_line_takes(name: str) -> None:
    program, command, *arguments = command_line(a_unit(name))
    group = typer.main.get_command(app)
    assert program == INSTALLED
    assert isinstance(group, typer.core.TyperGroup)

    context = group.commands[command].make_context(command, arguments)

    assert context.params["state"] == Path("/var/lib/hrm-trader")


def test_the_units_run_the_daemon_and_the_kill_switch() -> None:
    commands = [command_line(a_unit(name))[1] for name in NAMES]

    assert commands == ["run", "kill"]


def test_a_failed_daemon_stops_trading() -> None:
    unit = a_unit("hrm-trader.service")

    assert unit["OnFailure"] == ["hrm-trader-kill.service"]
    assert unit["Restart"] == ["on-failure"]
    # OnFailure needs the failed state, which a unit without a start limit never reaches.
    slowest_start_s = seconds(unit, "TimeoutStartSec") + seconds(unit, "RestartSec")
    starts = int(unit["StartLimitBurst"][0])
    assert starts * slowest_start_s < seconds(unit, "StartLimitIntervalSec")


def test_settings_that_cannot_be_used_are_not_tried_again() -> None:
    assert a_unit("hrm-trader.service")["RestartPreventExitStatus"] == ["2"]


def test_only_the_daemon_itself_speaks_to_systemd() -> None:
    unit = a_unit("hrm-trader.service")

    assert unit["Type"] == ["notify"]
    assert unit["NotifyAccess"] == ["main"]
    assert seconds(unit, "WatchdogSec") == 30


def test_an_orderly_stop_has_the_time_it_needs() -> None:
    unit = a_unit("hrm-trader.service")

    assert unit["KillMode"] == ["mixed"]
    # 15 s to drain, 10 s for each of three groups of parts, 15 s to record, 20 s for the server.
    assert seconds(unit, "TimeoutStopSec") >= 15 + 3 * 10 + 15 + 20
    # 60 s for the server to load its file, 60 s for the actors to recover.
    assert seconds(unit, "TimeoutStartSec") >= 60 + 60


def test_the_memory_limit_leaves_room_for_what_the_settings_allow() -> None:
    settings = Settings()
    (text,) = a_unit("hrm-trader.service")["MemoryMax"]
    limit = int(text.removesuffix("G")) * GIB

    model = settings.hierarchical_reasoning_model.performance.memory_limit_gb * 1e9
    server = settings.bus.max_memory_mib * MIB

    assert model + server < limit < MACHINE_BYTES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("ProtectHome", "yes"),
        ("PrivateTmp", "yes"),
        ("PrivateDevices", "yes"),
        ("StateDirectory", "hrm-trader"),
        ("StateDirectoryMode", "0700"),
        ("UMask", "0077"),
        ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6"),
        ("CapabilityBoundingSet", ""),
        ("User", "hrm-trader"),
    ],
)
def test_a_unit_is_locked_down(name: str, key: str, value: str) -> None:
    assert a_unit(name)[key] == [value]


def test_the_kill_unit_has_a_last_resort_that_needs_no_settings() -> None:
    (last,) = a_unit("hrm-trader-kill.service")["ExecStopPost"]

    assert "$SERVICE_RESULT" in last
    assert "kill_switch.json" in last
    assert "hrm-trader kill" not in last
