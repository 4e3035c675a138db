"""hrm-trader contract, on the symbol master of the simulated broker."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from daemon.brokers.fyers_simulator import FyersSimulator, SimulatorSettings
from daemon.brokers.fyers_simulator.data_calls import master_json
from daemon.brokers.fyers_simulator.instruments import IST
from daemon.cli import app
from daemon.errors import ConfigError, DataError
from daemon.settings import load_sessions

CONFIG = Path(__file__).parents[2] / "config"
Files = tuple[Path, Path]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Return the master of Friday 20 Nov 2026; Tuesday the 24th is a holiday."""
    start = datetime(2026, 11, 20, 10, tzinfo=IST)
    calendar = load_sessions(CONFIG)
    market = FyersSimulator(SimulatorSettings(calendar=calendar, start=start)).market
    folder = tmp_path_factory.mktemp("master")
    for name in ("NSE_CM", "NSE_FO"):
        (folder / name).write_text(json.dumps(master_json(market, name)))
    return folder / "NSE_CM", folder / "NSE_FO"


def contract(files: tuple[Path, ...], *more: str) -> Result:
    given = [word for file in files for word in ("--master", str(file))]
    given += ["--spot", "25012.5", "--view", "long", "--day", "2026-11-20", "--json"]
    return CliRunner().invoke(app, ["contract", "--config", str(CONFIG), *given, *more])


def answer(files: Files, *more: str) -> dict[str, Any]:
    result = contract(files, *more)
    assert result.exit_code == 0, result.output
    answered: dict[str, Any] = json.loads(result.stdout)
    return answered


def test_a_long_view_buys_the_call_behind_the_spot_that_expires_before_the_holiday(
    files: Files,
) -> None:
    assert answer(files, "--lots", "28", "--limit", "120.05") == {
        "symbol": "NSE:NIFTY26NOV25000CE",
        "side": "buy",
        "strike": 25000.0,
        "expiry": "2026-11-23",
        "lot_size": 65,
        "freeze_quantity": 1800,
        "tick_size": 0.05,
        "band": [0.05, 5000.0],
        "orders": [1755, 65],
    }


def test_a_short_view_buys_the_put(files: Files) -> None:
    assert answer(files, "--view", "short")["symbol"] == "NSE:NIFTY26NOV25050PE"


def test_on_expiry_day_the_next_expiry_can_be_asked_for(files: Files) -> None:
    rows = json.loads(files[1].read_text())
    for row in rows.values():
        row["lastUpdate"] = "2026-11-23"
    later = files[1].with_name("NSE_FO_23")
    later.write_text(json.dumps(rows))
    monday = ("--day", "2026-11-23")

    assert answer((files[0], later), *monday)["expiry"] == "2026-11-23"
    assert answer((files[0], later), *monday, "--no-expiry-day")["expiry"] == "2026-12-01"


def test_friday_s_master_holds_on_sunday_and_is_stale_on_monday(files: Files) -> None:
    assert answer(files, "--day", "2026-11-22")["expiry"] == "2026-11-23"

    result = contract(files, "--day", "2026-11-23")

    assert result.exit_code == 1
    assert json.loads(result.stdout)["refused"] == (
        "the symbol master is of 2026-11-20, older than the last trading day 2026-11-23: "
        "download it again"
    )


def test_a_price_outside_the_band_is_refused(files: Files) -> None:
    result = contract(files, "--limit", "5000.05")

    assert result.exit_code == 1
    assert "0.05 to 5000" in json.loads(result.stdout)["refused"]


def without_freeze(row: dict[str, Any]) -> None:
    row["qtyFreeze"] = ""


def with_a_wrong_expiry(row: dict[str, Any]) -> None:
    row["expiryDate"] = "soon"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [(without_freeze, "qtyFreeze = ''"), (with_a_wrong_expiry, "expiryDate = 'soon'")],
)
def test_a_row_that_lacks_a_fact_is_an_error_and_no_default(
    files: Files, tmp_path: Path, damage: Callable[[dict[str, Any]], None], problem: str
) -> None:
    rows = json.loads(files[1].read_text())
    damage(rows["NSE:NIFTY26NOV25000CE"])
    (tmp_path / "master").write_text(json.dumps(rows))

    error = contract((files[0], tmp_path / "master")).exception

    assert isinstance(error, DataError)
    assert problem in str(error)


def test_a_contract_that_is_not_active_is_passed_over(files: Files, tmp_path: Path) -> None:
    rows = json.loads(files[1].read_text())
    rows["NSE:NIFTY26NOV25000CE"]["tradeStatus"] = 0
    (tmp_path / "master").write_text(json.dumps(rows))

    assert answer((files[0], tmp_path / "master"))["strike"] == 24950.0


def test_without_the_cash_file_it_says_what_is_missing(files: Files) -> None:
    error = contract(files[1:]).exception

    assert isinstance(error, DataError)
    assert "no NSE:NIFTY50-INDEX: give the cash file" in str(error)


def test_a_share_has_no_contract_to_choose(files: Files) -> None:
    error = contract(files, "--instrument", "Reliance").exception

    assert isinstance(error, ConfigError)
    assert "--instrument must be an index" in str(error)


@pytest.mark.parametrize(
    ("option", "value"), [("--spot", "much"), ("--limit", "much"), ("--day", "today")]
)
def test_an_option_that_cannot_be_read_is_named(files: Files, option: str, value: str) -> None:
    error = contract(files, option, value).exception

    assert isinstance(error, ConfigError)
    assert f"{option} must " in str(error)


def test_a_file_that_is_no_master_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b")

    error = contract((tmp_path / "a.csv",)).exception

    assert isinstance(error, DataError)
    assert "a.csv cannot be read as JSON" in str(error)
