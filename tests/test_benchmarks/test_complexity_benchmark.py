"""The benchmark of complexity: fits on days it then leaves out, and says what it checked."""

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from command_line import CONFIG

from actors.policies import ComplexitySettings
from benchmarks.complexity import fit, main, measure
from daemon.errors import DataError
from hrm.training.worlds import generate, write_csv


@pytest.fixture(scope="module")
def candles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return candles of a synthetic market, 2,500 bars of five minutes."""
    path = tmp_path_factory.mktemp("candles") / "W2_5.csv"
    write_csv(path, generate("W2", 2500, 1).candles)
    return path


def days_of(path: Path) -> list[date]:
    lines = path.read_text().splitlines()[1:]
    where = path.read_text().splitlines()[0].split(",").index("datetime")
    return [datetime.fromtimestamp(float(line.split(",")[where]), UTC).date() for line in lines]


def test_coefficients_fitted_on_the_first_days_are_checked_on_the_others(candles: Path) -> None:
    days = days_of(candles)
    until = days[len(days) * 2 // 3]

    settings = ComplexitySettings.model_validate({"coefficients": fit([candles], until)})
    result = measure(candles, settings)

    assert result["fitted_on"][1] == str(until)
    later = sum(day > until for day in days)
    assert 0 < result["n"] < later
    assert 0.0 <= result["accuracy"] <= 1.0
    assert sum(result["confusion"].values()) == result["n"]
    assert result["formula"]["n"] <= result["n"]


def test_a_file_without_a_day_that_the_fit_has_not_seen_is_refused(candles: Path) -> None:
    until = max(days_of(candles))
    settings = ComplexitySettings.model_validate({"coefficients": fit([candles], until)})

    with pytest.raises(DataError, match="no forecast could be checked outside"):
        measure(candles, settings)


def test_the_command_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HRM_TRADER_CONFIG", str(CONFIG))

    code = main(["--json", "--data", str(tmp_path / "none_5.csv")])

    assert code == 1
    assert "none_5.csv" in capsys.readouterr().err


def test_the_command_prints_one_object(candles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--json", "--data", str(candles)])

    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == (0 if answer["accuracy"] >= answer["required"] else 1)
    assert {"accuracy", "baseline_same_as_last", "largest_class_share", "p99_us"} <= set(answer)
