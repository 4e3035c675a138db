"""Data check: what a file lacks beside its market's calendar, and what is odd in it."""

import contextlib
import gzip
import json
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from actors.session import SessionCalendar
from daemon.candle_schema import candle_frame
from daemon.candle_sources import load_any
from daemon.cli import app
from daemon.data_check import DataReport, check_table
from daemon.demo_data import demo_candles
from daemon.errors import DataError
from daemon.history import load_candles
from daemon.settings import load_sessions

SHARED = os.environ.get("HRM_TRADER_SHARED_DATA")
MONDAY_S = 1_710_733_500  # 2024-03-18 09:15 IST
DAY_S = 86_400
BARS = 75
Row = tuple[int, float, float, float, float, int]


@pytest.fixture(scope="module")
def calendar() -> SessionCalendar:
    return load_sessions(None)


def day_of(number: int, price: float = 22_000.0) -> list[Row]:
    """Return the candles of the Monday plus so many days."""
    opens = [MONDAY_S + number * DAY_S + 300 * k for k in range(BARS)]
    closes = [price + (k * k) % 17 for k in range(BARS)]  # moves of many sizes
    return [(at, c - 1, c + 3, c - 3, c, 0) for at, c in zip(opens, closes, strict=True)]


def written(folder: Path, rows: list[Row], name: str = "Nifty_5.csv") -> Path:
    """Write rows as the existing system does: with a nameless index column."""
    lines = [",datetime,open,high,low,close,volume"]
    lines += [f"{k},{','.join(map(str, row))}" for k, row in enumerate(rows)]
    path = folder / name
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def reported(tmp_path: Path, calendar: SessionCalendar) -> Callable[[list[Row]], DataReport]:
    return lambda rows: check_table(load_candles(written(tmp_path, rows)), "made", calendar, "NSE")


def test_whole_sessions_have_nothing_to_report(
    reported: Callable[[list[Row]], DataReport],
) -> None:
    report = reported(day_of(0) + day_of(1) + day_of(2))

    assert report.is_clean
    assert report.gaps is not None
    assert (report.gaps.missing_bars, report.outside_session, report.sessions) == (0, 0, 3)
    assert not report.has_volume
    assert report.zero_volume_bars == 3 * BARS


def test_missing_bars_are_found_by_stretch_and_a_missing_session_by_date(
    reported: Callable[[list[Row]], DataReport],
) -> None:
    first, last = day_of(0), day_of(3)

    report = reported([*first[:10], *first[14:], *day_of(1), *last])

    assert report.gaps is not None
    assert report.gaps.missing_bars == 4 + BARS
    assert report.gaps.stretches == 2
    assert report.gaps.missing_sessions == ("2024-03-20",)
    assert report.gaps.examples[1].start == "2024-03-18 04:35:00+00:00"


def test_a_holiday_and_a_weekend_are_no_gaps(
    reported: Callable[[list[Row]], DataReport],
) -> None:
    # Friday 2024-03-22, then Tuesday: Monday the 25th was Holi.
    report = reported(day_of(4) + day_of(8))

    assert report.gaps is not None
    assert report.gaps.missing_bars == 0


def test_bars_outside_the_session_and_off_its_grid_are_counted(
    reported: Callable[[list[Row]], DataReport],
) -> None:
    evening = [(at + 12 * 3600, *rest) for at, *rest in day_of(0)[:3]]
    shifted = [(at + 60, *rest) for at, *rest in day_of(1)]

    report = reported([*day_of(0), *evening, *shifted])  # type: ignore[list-item]  # same shape

    assert report.outside_session == 3
    assert report.off_grid == BARS
    assert report.gaps is not None
    assert report.gaps.missing_bars == 0  # shifted bars cover the session all the same


def test_a_session_that_the_calendar_lacks_is_named(
    reported: Callable[[list[Row]], DataReport],
) -> None:
    report = reported(day_of(4) + day_of(5))  # a Friday and the Saturday after it

    [special] = report.special_sessions
    assert (special.date, special.name, special.bars) == ("2024-03-23", "not in the calendar", BARS)


def test_repairs_are_counted_and_named(reported: Callable[[list[Row]], DataReport]) -> None:
    rows = day_of(0) + day_of(1) + day_of(2)
    rows[5], rows[6] = rows[6], rows[5]
    rows.append(rows[20])

    report = reported(rows)

    assert not report.is_clean
    assert (report.duplicates, report.conflicting_duplicates) == (1, 0)
    assert report.unsorted_rows == 2
    assert {finding.rule for finding in report.repairs} == {"duplicate", "out of order"}


def test_a_price_that_stands_still_is_a_stale_run(
    reported: Callable[[list[Row]], DataReport],
) -> None:
    rows = day_of(0)
    rows[30:40] = [(at, *rows[30][1:]) for at, *_ in rows[30:40]]

    report = reported(rows + day_of(1))

    assert (report.stale_runs.runs, report.stale_runs.longest_bars) == (1, 9)


def test_a_leap_within_a_session_is_an_outlier_and_a_leap_overnight_is_not(
    reported: Callable[[list[Row]], DataReport],
) -> None:
    rows = day_of(0) + day_of(1, price=23_000.0)
    at, _, _, _, _, volume = rows[40]
    rows[40] = (at, 22_500.0, 22_503.0, 22_497.0, 22_501.0, volume)

    report = reported(rows)

    assert report.outliers.bars == 2  # there and back
    assert "2024-03-18 07:05" in report.outliers.examples[0]


def test_days_beyond_the_calendar_are_not_judged(
    reported: Callable[[list[Row]], DataReport],
) -> None:
    years = 1100 * DAY_S
    rows = [(at + years, *rest) for at, *rest in day_of(0)]

    report = reported(rows)  # type: ignore[arg-type]  # same shape

    assert report.uncovered_bars == BARS
    assert report.gaps is not None
    assert report.gaps.missing_bars == 0


def test_without_a_market_there_is_no_calendar_to_hold_it_against(
    tmp_path: Path, calendar: SessionCalendar
) -> None:
    report = check_table(load_candles(written(tmp_path, day_of(0))), "made", calendar, None)

    assert report.gaps is None
    assert report.special_sessions == ()


@pytest.mark.skipif(SHARED is None, reason="HRM_TRADER_SHARED_DATA names no folder")
def test_the_special_sessions_of_real_bars_are_named(calendar: SessionCalendar) -> None:
    report = check_table(
        load_candles(Path(str(SHARED)) / "nifty_5m.parquet"), "real", calendar, "NSE"
    )

    assert report.gaps is not None
    assert (report.gaps.missing_bars, report.outside_session, report.off_grid) == (0, 0, 0)
    assert [special.date for special in report.special_sessions] == ["2024-05-18", "2024-11-01"]


def test_a_checked_table_fulfils_the_schema_and_a_doctored_one_is_refused() -> None:
    table = load_candles(demo_candles().path)
    assert len(candle_frame(table)) == len(table)

    table.high.flags.writeable = True
    table.high[3] = 0.5

    with pytest.raises(DataError, match=r"break the schema: .*high is highest"):
        candle_frame(table)


# The command


def run(*arguments: str) -> tuple[int, dict[str, object]]:
    result = CliRunner().invoke(app, ["data", *arguments, "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    answer: dict[str, object] = json.loads(result.stdout)
    return result.exit_code, answer


def test_the_command_reports_on_the_embedded_candles() -> None:
    status, answer = run("check", str(demo_candles().path))

    assert status == 0
    assert (answer["usable"], answer["market"], answer["rows_kept"]) == (True, "FX", 6225)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff\xfe",
        b"PAR1 and then nothing",
        b"datetime,open,high,low,close\n",
        b"datetime,open,high,low,close\n1,2,3\n",
        b"datetime,open,high,low,close\n1710733500,nan,nan,nan,nan\n1710733800,1,2,3,4\n",
        b"a,b,c\n1,2,3\n",
        b"datetime,open,OPEN,high,low,close\n1710733500,1,1,1,1,1\n",
        b"datetime,open,high,low,close\n" + b"9" * 5000 + b",1,1,1,1\n",
        b"datetime,open,high,low,close\n1710733500,1e400,1e400,1,1\n1710733800,9,9,9,1e-400\n",
        b"time,open,high,low,close\n2024-03-18 09:15,1,1,1,1\n2024-03-18T09:20+05:30,1,1,1,1\n",
        b"time,open,high,low,close\n9999-12-31T23:59:59-23:59,1,1,1,1\n",
        b"datetime,open,high,low,close\n1710733500,1\x00,1,1,1\n",
        gzip.compress(b"datetime,open,high,low,close\n1710733500,1,1,1,1\n", mtime=0),
    ],
)
def test_a_broken_file_gets_a_reason_and_a_status_never_a_traceback(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "broken.csv"
    path.write_bytes(content)

    status, answer = run("check", str(path))

    assert status == 1
    assert answer["usable"] is False
    assert str(path) in str(answer["problem"])


def test_a_packed_file_is_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "Nifty_5.csv.gz"
    path.write_bytes(gzip.compress(b"datetime,open,high,low,close\n1710733500,1,1,1,1\n"))

    assert "packed with gzip; unpack it first" in str(run("check", str(path))[1]["problem"])


def test_a_history_nested_beyond_reason_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "Nifty_5.json"
    path.write_text("[" * 100_000)

    status, answer = run("check", str(path))

    assert (status, answer["usable"]) == (1, False)


_HEADER = b"datetime,open,high,low,close,volume\n"


@given(
    st.binary(max_size=300)
    | st.binary(max_size=200).map(lambda tail: _HEADER + tail)
    | st.lists(
        st.sampled_from([b"1710733500", b"1710733800", b"-1", b"nan", b"1e999", b"", b"5"])
    ).map(lambda cells: _HEADER + b",".join(cells))
    | st.text(max_size=120).map(lambda text: _HEADER + text.encode())
)
@settings(max_examples=150, deadline=None)
def test_whatever_the_bytes_there_is_a_table_or_a_reason(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "Nifty_5.csv"
        path.write_bytes(content)
        table = None
        with contextlib.suppress(DataError):  # anything else is a traceback for the operator
            table = load_any(path)

    assert table is None or len(table) >= 2


def test_a_share_is_held_against_the_hours_of_shares(tmp_path: Path) -> None:
    """In the layout of the contract, with volume; the days around the closing auction's first."""
    lines = [",datetime,open,high,low,close,volume"]
    for day, bars in ((date(2026, 7, 31), 75), (date(2026, 8, 3), 72)):
        opened = int(datetime(day.year, day.month, day.day, 3, 45, tzinfo=UTC).timestamp())
        for bar in range(bars):
            lines.append(f"{len(lines) - 1},{opened + bar * 300},1400,1401.5,1399,1400.5,900")
    path = tmp_path / "Reliance_5.csv"
    path.write_text("\n".join(lines) + "\n")

    status, answer = run("check", str(path))

    assert (status, answer["market"], answer["has_volume"]) == (0, "NSE_CASH", True)
    assert (answer["sessions"], answer["outside_session"]) == (2, 0)
    assert isinstance(answer["gaps"], dict)
    assert answer["gaps"]["missing_bars"] == 0


def index_days(folder: Path, days: list[date]) -> Path:
    """Write Nifty from 09:15 to 15:40: its values go on in the auction."""
    lines = [",datetime,open,high,low,close,volume"]
    for day in days:
        opened = int(datetime(day.year, day.month, day.day, 3, 45, tzinfo=UTC).timestamp())
        for bar in range(77):
            price = 22_000 + (len(lines) * len(lines)) % 97
            row = f"{opened + bar * 300},{price},{price + 5},{price - 5},{price + 1},0"
            lines.append(f"{len(lines) - 1},{row}")
    path = folder / "Nifty_5.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_bars_of_the_closing_auction_are_counted_from_its_first_day_on(tmp_path: Path) -> None:
    before = run("check", str(index_days(tmp_path, [date(2026, 7, 30), date(2026, 7, 31)])))[1]
    since = run("check", str(index_days(tmp_path, [date(2026, 7, 31), date(2026, 8, 3)])))[1]

    assert (before["auction_bars"], before["outside_session"]) == (0, 2 * 2)
    assert (since["auction_bars"], since["outside_session"]) == (5, 2)  # 15:15 to 15:40


def test_an_instrument_without_auctions_has_no_bars_of_them(
    tmp_path: Path, calendar: SessionCalendar
) -> None:
    table = load_candles(index_days(tmp_path, [date(2026, 8, 3), date(2026, 8, 4)]))

    assert check_table(table, "made", calendar, "NSE", None).auction_bars == 0


def test_look_ahead_leaves_them_out_and_says_how_many(tmp_path: Path) -> None:
    path = index_days(tmp_path, [date(2026, 8, day) for day in (3, 4, 5, 6, 7, 10)])

    status, answer = run("lookahead", "--data", str(path))

    assert (status, answer["violations"]) == (0, 0)
    assert (answer["bars"], answer["auction_bars_left_out"]) == (6 * 72, 6 * 5)


def test_an_unknown_instrument_is_checked_without_a_calendar_unless_a_market_is_named(
    tmp_path: Path,
) -> None:
    path = written(tmp_path, day_of(0), "Somebodys_Own_5.csv")

    assert run("check", str(path))[1]["market"] is None
    assert run("check", str(path), "--market", "NSE")[1]["market"] == "NSE"
