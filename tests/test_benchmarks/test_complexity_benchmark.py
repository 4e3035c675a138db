"""The benchmark of complexity: fits on days it then leaves out, and says what it checked."""

import json
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from command_line import CONFIG

from actors.forecast import FEATURES
from actors.policies import ComplexitySettings
from benchmarks import complexity_fit
from benchmarks.complexity import main, measure
from benchmarks.complexity_fit import fit, measured_alike, merged, read_series, samples_of
from daemon.errors import DataError
from daemon.settings import load_settings
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


def fitted(path: Path, until: date) -> ComplexitySettings:
    coefficients = fit(read_series([path], until, []), until)
    return ComplexitySettings.model_validate({"coefficients": coefficients})


def test_coefficients_fitted_on_the_first_days_are_checked_on_the_others(candles: Path) -> None:
    days = days_of(candles)
    until = days[len(days) * 2 // 3]

    result = measure(candles, fitted(candles, until), 1500)

    assert result["fitted_on"][1] == str(until)
    later = sum(day > until for day in days)
    assert 0 < result["n"] < later
    assert 0.0 <= result["accuracy"] <= 1.0
    assert sum(result["confusion"].values()) == result["n"]
    assert 0 < result["formula"]["n"] <= result["n"]


def test_a_forecaster_restarted_daily_knows_its_warm_up_and_no_more(candles: Path) -> None:
    days = days_of(candles)
    settings = fitted(candles, days[len(days) * 2 // 3])

    few, some, all_bars = (measure(candles, settings, bars) for bars in (1000, 1500, len(days)))

    # A forecast needs a week of bars, here more than 1,000.
    assert (few["n_restarted_daily"], few["accuracy_restarted_daily"]) == (0, None)
    assert some["n_restarted_daily"] == all_bars["n_restarted_daily"] == some["n"]
    assert all_bars["accuracy_restarted_daily"] == all_bars["accuracy"]
    assert some["accuracy_restarted_daily"] != some["accuracy"] == few["accuracy"]


def test_a_file_without_a_day_that_the_fit_has_not_seen_is_refused(candles: Path) -> None:
    settings = fitted(candles, max(days_of(candles)))

    with pytest.raises(DataError, match="no forecast could be checked outside"):
        measure(candles, settings, 1500)


def test_a_fit_reads_nothing_after_its_last_day(candles: Path, tmp_path: Path) -> None:
    days = days_of(candles)
    until = days[len(days) * 3 // 4]
    lines = candles.read_text().splitlines()
    cut = tmp_path / candles.name
    cut.write_text(
        "\n".join(
            [lines[0], *(line for line, day in zip(lines[1:], days, strict=True) if day <= until)]
        )
        + "\n"
    )

    assert fit(read_series([cut], until, []), until) == fit(
        read_series([candles], until, []), until
    )


def test_blocks_are_forecast_by_what_ended_before_them(
    candles: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (series,) = read_series([candles], max(days_of(candles)), [])
    samples = [samples_of(series)]
    fits: list[int] = []
    logistic = complexity_fit._logistic

    def counted(rows: Any, classes: Any) -> Any:
        fits.append(len(rows))
        return logistic(rows, classes)

    monkeypatch.setattr(complexity_fit, "_logistic", counted)

    result = complexity_fit._blocks_ahead(samples, FEATURES)

    # Those windows are neither learned from nor asked for that lie across the edge of a block.
    total = len(samples[0].checks)
    assert fits == sorted(fits)
    assert total // 2 - 15 <= fits[0] <= total // 2
    assert total // 2 - 5 * 15 <= result["n"] <= total // 2 + 15


def test_merged_bars_hold_what_their_parts_held(candles: Path) -> None:
    (fine,) = read_series([candles], max(days_of(candles)), [])

    coarse = list(merged(fine.bars, 15))

    first, parts = coarse[0], fine.bars[:3]
    assert (first.open, first.close) == (parts[0].open, parts[-1].close)
    assert first.high == max(bar.high for bar in parts)
    assert first.low == min(bar.low for bar in parts)
    assert (first.open_ns, first.close_ns) == (parts[0].open_ns, parts[-1].close_ns)
    assert sum(bar.volume for bar in coarse) == sum(bar.volume for bar in fine.bars)


def test_a_class_by_the_same_bars_is_the_same_class(candles: Path) -> None:
    fine, coarse = read_series([candles], max(days_of(candles)), [15])

    assert measured_alike(fine, fine) == 1.0
    assert 0.5 < measured_alike(coarse, fine) < 1.0


def test_the_command_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HRM_TRADER_CONFIG", str(CONFIG))

    code = main(["--json", "--data", str(tmp_path / "none_5.csv")])

    assert code == 1
    assert "none_5.csv" in capsys.readouterr().err


def test_a_folder_without_candles_is_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--json", "--data", str(tmp_path)]) == 1
    assert "no .csv or .parquet file there" in capsys.readouterr().err


def test_the_command_prints_one_object(candles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--json", "--data", str(candles), "--warm-up-bars", "1500"])

    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == (0 if answer["accuracy"] >= answer["required"] else 1)
    assert {"accuracy", "baseline_same_as_last", "largest_class_share", "p99_us"} <= set(answer)
    assert answer["warm_up_bars"] == 1500
    assert 0.0 <= answer["accuracy_restarted_daily"] <= 1.0


def test_a_folder_of_candles_gives_one_object_that_is_kept(
    candles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("W2_5.csv", "W3_5.csv"):
        (tmp_path / name).write_bytes(candles.read_bytes())
    out = tmp_path / "result.json"

    main(["--json", "--data", str(tmp_path), "--out", str(out)])

    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == answer
    assert [one["file"] for one in answer["files"]] == ["W2_5.csv", "W3_5.csv"]
    assert answer["accuracy"] == min(one["accuracy"] for one in answer["files"])
    assert answer["files"][0]["warm_up_bars"] == load_settings(demo=True).feed.warm_up_bars
    assert "machine" in answer
