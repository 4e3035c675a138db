"""Feature files: named as the contract names them, listed by their names, copied to Parquet."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from daemon.cli import app
from daemon.demo_data import demo_candles
from daemon.errors import DataError
from daemon.feature_files import base_symbol, feature_tasks, load_features, write_features
from daemon.feature_frame import FRAME_COLUMNS, feature_frame
from daemon.history import CandleTable, load_candles


@pytest.fixture(scope="module")
def table() -> CandleTable:
    whole = load_candles(demo_candles().path)
    return whole.between(0, int(whole.open_ns[260]))


def test_a_written_file_reads_back_to_the_last_bit(table: CandleTable, tmp_path: Path) -> None:
    path = write_features(table, tmp_path / "final")

    assert path.name == "features_EURUSD_60.csv"
    first = load_features(path.parent, "EURUSD")
    again = load_features(path.parent, "EURUSD_60")
    pd.testing.assert_frame_equal(first, again)
    pd.testing.assert_frame_equal(
        first, feature_frame(table), check_index_type=False, check_freq=False
    )
    assert (path.parent / "parquet" / "features_EURUSD_60.parquet").is_file()


def test_a_copy_is_made_again_when_the_csv_is_newer(table: CandleTable, tmp_path: Path) -> None:
    path = write_features(table, tmp_path)
    before = len(load_features(tmp_path, "EURUSD"))
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-5]) + "\n")

    assert len(load_features(tmp_path, "EURUSD")) == before - 5


def test_columns_of_older_files_are_let_through(table: CandleTable, tmp_path: Path) -> None:
    path = tmp_path / "features_Nifty_5.csv"
    feature_frame(table).assign(doji=1, support=100.5).to_csv(path)

    frame = load_features(tmp_path, "Nifty")

    assert tuple(frame.columns) == (*FRAME_COLUMNS, "doji", "support")


def test_an_unknown_symbol_gives_an_empty_frame(tmp_path: Path) -> None:
    frame = load_features(tmp_path, "Nobody_5")

    assert frame.empty
    assert tuple(frame.columns) == FRAME_COLUMNS


def test_tasks_are_read_off_the_names(tmp_path: Path) -> None:
    for name in ("Bank_Nifty_5", "features_Nifty_2", "features_RELIANCE_1", "notes", "2"):
        (tmp_path / f"{name}.csv").touch()

    tasks = feature_tasks(tmp_path)

    assert [(task.symbol, task.minutes) for task in tasks] == [
        ("Bank_Nifty", 5),
        ("Nifty", 2),
        ("RELIANCE", 1),
    ]


@pytest.mark.parametrize(
    ("name", "symbol"), [("Bank_Nifty_5", "Bank_Nifty"), ("Bank_Nifty", "Bank_Nifty")]
)
def test_a_base_symbol_has_no_timeframe(name: str, symbol: str) -> None:
    assert base_symbol(name) == symbol


def test_a_file_that_breaks_the_schema_is_refused(table: CandleTable, tmp_path: Path) -> None:
    feature_frame(table).assign(rsi_14=400.0).to_csv(tmp_path / "features_Nifty_5.csv")

    with pytest.raises(DataError, match="break the schema: rsi_14"):
        load_features(tmp_path, "Nifty")


def test_a_file_that_lacks_columns_is_refused(table: CandleTable, tmp_path: Path) -> None:
    feature_frame(table).drop(columns="cci").to_csv(tmp_path / "features_Nifty_5.csv")

    with pytest.raises(DataError, match="lacks the columns cci"):
        load_features(tmp_path, "Nifty")


def test_too_short_a_history_writes_nothing(table: CandleTable, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few for a row of features"):
        write_features(table.between(0, int(table.open_ns[150])), tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_the_file_and_says_where(tmp_path: Path) -> None:
    arguments = ["data", "features", str(demo_candles().path), "--out", str(tmp_path), "--json"]

    result = CliRunner().invoke(app, arguments)

    answer = json.loads(result.stdout)
    assert result.exit_code == 0
    assert Path(answer["file"]).is_file()
    assert answer["bars"] == 6225
