"""Candles from files: what is read, what is repaired and counted, what is refused."""

import hashlib
import os
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.candle_quality import Rule, exact_number, read_numbers
from daemon.demo_data import demo_candles
from daemon.errors import DataError
from daemon.history import CandleTable, load_candles, name_and_minutes

FIRST_S = 1_710_733_500  # 2024-03-18 09:15 in India
KOLKATA = ZoneInfo("Asia/Kolkata")
HEADER = ",datetime,open,high,low,close,volume"


def row(number: int, prices: str = "100.05,101.5,99.95,100.1", volume: str = "0") -> str:
    """A line of the raw CSV: bar `number` of five minutes."""
    return f"{number},{FIRST_S + 300 * number},{prices},{volume}"


def rows(count: int = 300) -> list[str]:
    return [row(number) for number in range(count)]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_csv(
        lines: Sequence[str], header: str = HEADER, name: str = "Bank_Nifty_5.csv"
    ) -> Path:
        path = tmp_path / name
        path.write_text("\n".join([header, *lines]) + "\n")
        return path

    return write_csv


def write_parquet(path: Path, **columns: object) -> Path:
    """Write a file of three five-minute bars; columns given replace the usual ones."""
    epochs = [FIRST_S, FIRST_S + 300, FIRST_S + 600]
    usual: dict[str, object] = {
        "epoch": epochs,
        "time": pa.array([second * 1000 for second in epochs], pa.timestamp("ms", "Asia/Kolkata")),
        "open": [100.05, 100.1, 100.2],
        "high": [101.5, 100.3, 100.4],
        "low": [99.95, 100.0, 100.1],
        "close": [100.1, 100.2, 100.3],
        "volume": [7, 8, 9],
    }
    kept = {name: column for name, column in (usual | columns).items() if column is not None}
    pq.write_table(pa.table(kept), path)
    return path


def examples_of(table: CandleTable, rule: Rule) -> tuple[str, ...]:
    found = [*table.quality.repairs, *table.quality.notes]
    return next(finding.examples for finding in found if finding.rule == rule)


# --- good files ---------------------------------------------------------------------------------


def test_the_raw_csv_is_read_with_its_nameless_index(write: Callable[..., Path]) -> None:
    path = write([row(0, "100.05,101.5,99.95,100.1", "12"), row(1)])

    table = load_candles(path)

    assert (table.symbol, table.timeframe, len(table)) == ("Bank_Nifty", "5", 2)
    assert table.open_ns.tolist() == [FIRST_S * 10**9, (FIRST_S + 300) * 10**9]
    assert table.close_ns[0] == table.open_ns[1]
    assert table.candle(0).open == Decimal("100.05")
    assert table.volume.tolist() == [12, 0]
    assert table.quality.is_clean
    assert table.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_index_column_extra_columns_and_other_case_are_tolerated(
    write: Callable[..., Path],
) -> None:
    header = "index,DateTime,Open,HIGH,low,Close,Volume,support,date"
    path = write([f"{line},1.5,2024-03-18" for line in rows(3)], header=header)

    table = load_candles(path, strict=True)

    assert len(table) == 3


def test_a_file_without_volume_has_none(write: Callable[..., Path]) -> None:
    lines = [line.rpartition(",")[0] for line in rows(3)]
    path = write(lines, header="index,datetime,open,high,low,close")

    table = load_candles(path, strict=True)

    assert table.volume.tolist() == [0, 0, 0]


def test_epoch_seconds_may_be_written_as_floats_and_lines_may_be_blank(
    write: Callable[..., Path],
) -> None:
    path = write([line.replace(",100.05", ".0,100.05", 1) + "\n" for line in rows(3)])

    table = load_candles(path, strict=True)

    assert table.open_ns[0] == FIRST_S * 10**9


def test_a_parquet_file_is_read_whatever_its_name_ends_in(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "nifty_5m.data")

    table = load_candles(path, strict=True)

    assert (table.symbol, table.timeframe_minutes, table.decimals) == ("nifty", 5, 2)
    assert table.candle(1).high == Decimal("100.3")
    assert table.volume.tolist() == [7, 8, 9]


def test_single_precision_prices_keep_their_shortest_text(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", open=pa.array([100.05, 100.1, 100.2], "float32"))

    table = load_candles(path)

    assert table.candle(0).open == Decimal("100.05")
    assert table.decimals == 2


def test_decimal_prices_of_a_parquet_file_are_exact(tmp_path: Path) -> None:
    prices = pa.array([Decimal("100.05"), Decimal("100.10"), Decimal("100.20")])
    path = write_parquet(tmp_path / "a.parquet", open=prices)

    table = load_candles(path)

    assert [candle.open for candle in table.candles()] == prices.to_pylist()


def test_a_parquet_file_with_zoned_times_alone_is_read(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", epoch=None)

    table = load_candles(path, strict=True)

    assert table.open_ns[0] == FIRST_S * 10**9


def test_day_first_times_are_utc(write: Callable[..., Path]) -> None:
    lines = [
        "01.01.2017 22:00:00.000,1.05236,1.05253,1.05221,1.05227,143539993.3",
        "01.01.2017 23:00:00.000,1.05227,1.05426,1.05226,1.05282,253139999",
    ]
    path = write(lines, header="Time,Open,High,Low,Close,Volume", name="FOREX_EURUSD_1H_ASK.csv")

    table = load_candles(path, timezone="America/New_York", strict=True)

    assert (table.symbol, table.timeframe, table.decimals) == ("EURUSD", "60", 5)
    assert table.open_ns[0] == int(datetime(2017, 1, 1, 22, tzinfo=UTC).timestamp()) * 10**9
    assert table.volume[0] == 143539993
    assert examples_of(table, "rounded volume") == ("line 2: volume is 143539993.3",)


def test_days_are_utc_and_make_daily_bars(write: Callable[..., Path]) -> None:
    days = ("2009-05-20", "2009-05-21", "2009-05-22", "2009-05-26")
    lines = [f"{day},198.528534,199.524521,196.196198,196.946945,1.5,3433700" for day in days]
    path = write(lines, header="Date,Open,High,Low,Close,Adj Close,Volume", name="STOCKS_GOOGL.csv")

    table = load_candles(path, strict=True)

    assert (table.symbol, table.timeframe, table.decimals) == ("GOOGL", "D", 6)
    assert table.candle(0).open == Decimal("198.528534")
    assert len(table.quality.gaps) == 1
    assert table.quality.gaps[0].end_ns == table.open_ns[3]


def test_the_demo_candles_need_no_repair() -> None:
    table = load_candles(demo_candles().path, strict=True)

    assert len(table) > 6000


def test_a_time_column_in_another_zone_that_denotes_the_same_instants_is_fine(
    write: Callable[..., Path],
) -> None:
    header = "time," + HEADER.removeprefix(",")
    lines = [line.replace("0,", "2024-03-18 03:45:00+00:00,", 1) for line in rows(1)]
    lines.append(f"2024-03-18T09:20:00+05:30,{FIRST_S + 300},1,1,1,1,0")

    table = load_candles(write(lines, header=header), strict=True)

    assert len(table) == 2


def test_a_naive_time_that_agrees_with_epoch_in_the_stated_zone_is_fine(tmp_path: Path) -> None:
    opens = [datetime.fromtimestamp(FIRST_S + 300 * i, KOLKATA) for i in range(3)]
    naive = pa.array([moment.replace(tzinfo=None) for moment in opens], pa.timestamp("us"))
    path = write_parquet(tmp_path / "a.parquet", time=naive)

    table = load_candles(path, timezone="Asia/Kolkata", strict=True)

    assert len(table) == 3


def test_gaps_are_reported_and_are_no_repair(write: Callable[..., Path]) -> None:
    path = write([row(0), row(1), row(2), row(5), row(6)])

    table = load_candles(path, strict=True)

    (gap,) = table.quality.gaps
    assert gap.start_ns == table.close_ns[2]
    assert gap.end_ns == table.open_ns[3]


def test_a_file_name_that_says_another_timeframe_is_noted(write: Callable[..., Path]) -> None:
    path = write(rows(3), name="Nifty_2.csv")

    table = load_candles(path, strict=True)

    assert table.timeframe_minutes == 5
    assert table.quality.count("other timeframe in file name") == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nifty_5m.parquet", ("nifty", 5)),
        ("Bank_Nifty_5.csv", ("Bank_Nifty", 5)),
        ("FOREX_EURUSD_1H_ASK.csv", ("EURUSD", 60)),
        ("features_RELIANCE_1.csv", ("RELIANCE", 1)),
        ("GOOGL_1d.csv", ("GOOGL", 1440)),
        ("Bank_Nifty.csv", ("Bank_Nifty", None)),
        ("5.csv", ("5", None)),
    ],
)
def test_symbol_and_timeframe_are_guessed_from_the_name(
    name: str, expected: tuple[str, int | None]
) -> None:
    assert name_and_minutes(Path(name)) == expected


# --- the table ----------------------------------------------------------------------------------


def test_a_part_of_the_table_holds_the_bars_that_open_in_it(write: Callable[..., Path]) -> None:
    table = load_candles(write(rows(10)))

    part = table.between(int(table.open_ns[2]), int(table.open_ns[5]))

    assert part.open_ns.tolist() == table.open_ns[2:5].tolist()
    assert part.sha256 == table.sha256


def test_the_arrays_cannot_be_written(write: Callable[..., Path]) -> None:
    table = load_candles(write(rows(3)))

    with pytest.raises(ValueError, match="read-only"):
        table.close[0] = 1.0


def test_columns_of_different_length_are_refused(write: Callable[..., Path]) -> None:
    table = load_candles(write(rows(3)))

    with pytest.raises(ValueError, match="columns must be"):
        CandleTable(
            symbol="A",
            timeframe_minutes=5,
            decimals=2,
            sha256="",
            quality=table.quality,
            open_ns=table.open_ns,
            open=table.open,
            high=table.high,
            low=table.low,
            close=table.close[:2],
            volume=table.volume,
        )


@given(st.decimals(min_value="0.01", max_value="9999999", places=5))
def test_a_price_survives_the_float_it_is_kept_as(price: Decimal) -> None:
    numbers = read_numbers((f"{price:f}",))

    assert Decimal(repr(float(numbers.values[0]))).quantize(Decimal("0.00001")) == price
    assert numbers.digits[0] <= 5
    assert not numbers.rounded[0]


def test_noise_of_binary_floats_is_rounded_away_and_noted(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", open=[100.05000000000001, 100.1, 100.2])

    table = load_candles(path, strict=True)

    assert table.candle(0).open == Decimal("100.05")
    assert table.decimals == 2
    assert table.quality.count("rounded price") == 1


@pytest.mark.parametrize("text", ["1_000", "1,000", "0x10", "inf", "nan", "", "--1", "1e9999"])
def test_only_plain_finite_numbers_are_numbers(text: str) -> None:
    assert exact_number(text) is None


def test_scientific_notation_is_a_number() -> None:
    assert exact_number("1.5e2") == 150


# --- repairs ------------------------------------------------------------------------------------


def test_unsorted_rows_are_sorted_and_counted(write: Callable[..., Path]) -> None:
    lines = rows(10)
    path = write([*lines[5:], *lines[:5]])

    table = load_candles(path)

    assert (np.diff(table.open_ns) == table.bar_ns).all()
    assert table.quality.count("out of order") == 5
    assert not table.quality.is_clean
    assert examples_of(table, "out of order")[0].startswith("line 7: 2024-03-18 03:45:00+00:00")


def test_duplicate_rows_are_dropped_and_counted(write: Callable[..., Path]) -> None:
    path = write([*rows(10), row(4), row(5)])

    table = load_candles(path)

    assert len(table) == 10
    assert table.quality.count("duplicate") == 2
    assert "is there already, at line 6" in examples_of(table, "duplicate")[0]


def test_of_conflicting_duplicates_the_first_in_the_file_wins(write: Callable[..., Path]) -> None:
    path = write([*rows(), row(4, "50,51,49,50")])

    table = load_candles(path)

    assert table.candle(4).open == Decimal("100.05")
    assert table.quality.count("conflicting duplicate") == 1


def test_the_first_of_a_time_wins_in_an_unsorted_file_too(write: Callable[..., Path]) -> None:
    shuffled = random.Random(5).sample(rows(400), 400)
    later = [row(number, "50,51,49,50") for number in (3, 200, 399)]

    table = load_candles(write([*shuffled, *later]))

    assert table.quality.count("conflicting duplicate") == 3
    assert set(table.open.tolist()) == {100.05}


@pytest.mark.parametrize(
    ("prices", "rule"),
    [
        ("100,101,99,", "missing price"),
        ("100,NaN,99,100", "missing price"),
        ("100,101,99,abc", "unreadable price"),
        ("100,inf,99,100", "unreadable price"),
        ("100,1e15,99,100", "unreadable price"),
        ("-100,101,99,100", "non-positive price"),
        ("100,101,0,100", "non-positive price"),
        ("100,101,0.000000001,100", "non-positive price"),
        ("100,99,98,99", "high not highest"),
        ("100,98,99,98.5", "high not highest"),
        ("100,101,99.5,99", "low not lowest"),
    ],
)
def test_an_impossible_row_is_dropped_counted_and_shown(
    prices: str, rule: Rule, write: Callable[..., Path]
) -> None:
    lines = rows()
    lines[7] = row(7, prices)

    table = load_candles(write(lines))

    assert len(table) == 299
    assert table.quality.count(rule) == 1
    assert examples_of(table, rule)[0].startswith("line 9: open ")
    assert table.quality.rows_read == 300


def test_a_line_cut_short_counts_as_a_missing_price(write: Callable[..., Path]) -> None:
    path = write([*rows(), "300,1710823500,100.0"])

    table = load_candles(path)

    assert table.quality.count("missing price") == 1


def test_a_row_without_a_time_is_dropped(write: Callable[..., Path]) -> None:
    lines = rows()
    lines[7] = lines[7].replace(str(FIRST_S + 300 * 7), "soon")

    table = load_candles(write(lines))

    assert examples_of(table, "no time") == ("line 9: time is 'soon'",)


def test_a_row_inside_the_previous_bar_is_dropped(write: Callable[..., Path]) -> None:
    lines = rows()
    lines.insert(8, f"8,{FIRST_S + 300 * 7 + 120},100,101,99,100,0")

    table = load_candles(write(lines))

    assert len(table) == 300
    assert table.quality.count("overlap") == 1
    assert "opens before the previous bar of 5 minutes ends" in examples_of(table, "overlap")[0]


@pytest.mark.parametrize("volume", ["", "NaN", "-5", "many", "1e30"])
def test_a_volume_that_is_none_becomes_zero_and_is_counted(
    volume: str, write: Callable[..., Path]
) -> None:
    path = write([row(0, volume=volume), row(1), row(2)])

    table = load_candles(path)

    assert table.volume[0] == 0
    assert table.quality.count("no volume") == 1


def test_at_most_five_examples_are_kept_of_a_rule(write: Callable[..., Path]) -> None:
    lines = rows(20)

    table = load_candles(write([*lines, *lines]))

    assert table.quality.count("duplicate") == 20
    assert len(examples_of(table, "duplicate")) == 5


def test_strict_reading_refuses_any_repair(write: Callable[..., Path]) -> None:
    lines = rows(10)

    with pytest.raises(DataError, match=r"strict.*out of order 1 \(line 3: .*duplicate 1"):
        load_candles(write([lines[1], lines[0], *lines[1:]]), strict=True)


# --- refusals -----------------------------------------------------------------------------------


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.csv: no such file"):
        load_candles(tmp_path / "nowhere.csv")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_candles(tmp_path)


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xef\xbb\xbf\n", b",,,\n,,\n"])
def test_an_empty_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "Nifty_5.csv"
    path.write_bytes(content)

    with pytest.raises(DataError, match=r"Nifty_5.csv: is empty"):
        load_candles(path)


def test_a_header_without_rows_is_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="is empty: a header and no rows"):
        load_candles(write([]))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"\x89PNG\r\n\x1a\n\x00\x00"),
        ("a.csv", b"once upon a time\nthere was a market\n"),
        ("a.csv", b"datetime,open\x00\n1,2\n"),
        ("a.csv", b'datetime,"open\n1,2\n'),
        ("a.parquet", b"datetime,open,high,low,close\n1,2,3,1,2\n"),
        ("a.parquet", b"PAR1 but nothing behind it"),
    ],
)
def test_what_is_not_a_table_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(DataError, match=f"{name}: is not a table of candles"):
        load_candles(path)


def test_a_parquet_file_with_damaged_text_is_refused(tmp_path: Path) -> None:
    times = pa.array([b"2024-03-18", b"\xff\xfe", b"2024-03-20"]).view(pa.string())
    path = write_parquet(tmp_path / "a.parquet", epoch=None, time=None, date=times)

    with pytest.raises(DataError, match=r"a\.parquet: is not a table of candles: damaged Parquet"):
        load_candles(path)


def test_missing_columns_are_named_with_what_was_found(write: Callable[..., Path]) -> None:
    path = write(["0,1,2"], header=",datetime,open")

    with pytest.raises(
        DataError, match=r"lacks the column high, low, close; found: \(nameless\), d"
    ):
        load_candles(path)


def test_a_missing_time_column_is_named(write: Callable[..., Path]) -> None:
    path = write(["1,2,1,1"], header="open,high,low,close")

    with pytest.raises(DataError, match=r"lacks the column datetime \(or epoch, time, date\)"):
        load_candles(path)


def test_a_column_that_is_there_twice_is_refused(write: Callable[..., Path]) -> None:
    path = write(["1,1,2,1,1,1"], header="datetime,open,high,low,close,Close")

    with pytest.raises(DataError, match="column close is there twice"):
        load_candles(path)


def test_a_line_with_too_many_values_is_refused(write: Callable[..., Path]) -> None:
    path = write([row(0), row(1) + ",5"])

    with pytest.raises(DataError, match="line 3 has 8 values under 7 column names"):
        load_candles(path)


def test_one_row_is_refused_since_it_has_no_length(write: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="1 usable row of 1, at least 2 are needed"):
        load_candles(write(rows(1)))


def test_a_file_of_impossible_rows_alone_is_refused(write: Callable[..., Path]) -> None:
    path = write([row(number, "100,99,98,97") for number in range(5)])

    with pytest.raises(DataError, match=r"no usable row of 5.*high not highest 5 \(line 2"):
        load_candles(path)


def test_more_than_one_percent_of_impossible_rows_is_refused(write: Callable[..., Path]) -> None:
    lines = rows()
    lines[10:14] = [row(number, "100,101,99,NaN") for number in range(10, 14)]

    with pytest.raises(DataError, match=r"4 of 300 rows are impossible, more than 1%.*line 12"):
        load_candles(write(lines))


@pytest.mark.parametrize(
    ("factor", "unit"), [(10**3, "milliseconds"), (10**6, "microseconds"), (10**9, "nanoseconds")]
)
def test_times_in_a_finer_unit_are_refused(
    factor: int, unit: str, write: Callable[..., Path]
) -> None:
    path = write([f"0,{FIRST_S * factor},1,1,1,1,0", f"1,{(FIRST_S + 300) * factor},1,1,1,1,0"])

    with pytest.raises(DataError, match=f"line 2, column datetime: {FIRST_S * factor} .*{unit}"):
        load_candles(path)


@pytest.mark.parametrize("second", [0, 600_000_000, 4_200_000_000])
def test_times_outside_1990_to_2100_are_refused(second: int, write: Callable[..., Path]) -> None:
    path = write([f"0,{second},1,1,1,1,0", *rows(3)])

    with pytest.raises(DataError, match=rf"{second} is not an instant between 1990 and 2100"):
        load_candles(path)


def test_a_written_day_outside_1990_to_2100_is_refused(write: Callable[..., Path]) -> None:
    path = write(["1970-01-01,1,1,1,1"], header="date,open,high,low,close")

    with pytest.raises(DataError, match="0 is not an instant between 1990 and 2100"):
        load_candles(path)


def test_text_in_the_epoch_column_is_refused(write: Callable[..., Path]) -> None:
    path = write(["0,2024-03-18 09:15:00,1,1,1,1,0"])

    with pytest.raises(DataError, match="datetime must be whole seconds since 1970 UTC, was '2024"):
        load_candles(path)


@pytest.mark.parametrize("text", ["31.02.2017 22:00:00.000", "half past nine", "1710733500"])
def test_times_that_cannot_be_read_are_refused(text: str, write: Callable[..., Path]) -> None:
    path = write([f"{text},1,1,1,1"], header="time,open,high,low,close")

    with pytest.raises(DataError, match=f"column time: '{text}' is not a time; give"):
        load_candles(path)


def test_an_unreadable_time_among_readable_ones_is_dropped(write: Callable[..., Path]) -> None:
    start = datetime(2024, 3, 18, tzinfo=UTC)
    lines = [f"{start + timedelta(hours=hour)},1,1,1,1" for hour in range(200)]
    lines.append("later,1,1,1,1")

    table = load_candles(write(lines, header="time,open,high,low,close"))

    assert table.quality.count("no time") == 1


def test_times_without_a_zone_and_without_epoch_are_refused(write: Callable[..., Path]) -> None:
    path = write(["2024-03-18 09:15:00,1,1,1,1"], header="time,open,high,low,close")

    with pytest.raises(DataError, match="'2024-03-18 09:15:00' has no timezone; give"):
        load_candles(path)


@pytest.mark.parametrize("zone", [None, "UTC"])
def test_a_time_column_in_the_wrong_timezone_is_refused(zone: str | None, tmp_path: Path) -> None:
    indian_wall_time = [(FIRST_S + 19_800 + 300 * i) * 1000 for i in range(3)]
    time = pa.array(indian_wall_time, pa.timestamp("ms", zone))
    path = write_parquet(tmp_path / "a.parquet", time=time)

    with pytest.raises(DataError, match=r"row 1, wrong timezone: time .*\+5.50 h off the epoch"):
        load_candles(path, timezone="UTC")


def test_a_naive_time_in_another_zone_than_stated_is_refused(write: Callable[..., Path]) -> None:
    header = "time," + HEADER.removeprefix(",")
    path = write([f"2024-03-18 03:45:00,{FIRST_S},1,1,1,1,0"], header=header)

    with pytest.raises(DataError, match=r"wrong timezone.*naive, read as Asia/Kolkata.*-5.50 h"):
        load_candles(path, timezone="Asia/Kolkata")


@pytest.mark.parametrize("zone", [None, "UTC"])
def test_a_time_column_far_beyond_any_calendar_is_refused(zone: str | None, tmp_path: Path) -> None:
    time = pa.array([FIRST_S * 1000] * 3, pa.timestamp("s", zone))  # milliseconds, said seconds
    path = write_parquet(tmp_path / "a.parquet", time=time)

    with pytest.raises(DataError, match="wrong timezone"):
        load_candles(path)


def test_an_unknown_timezone_is_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="'Asia/Nowhere' is not known; use an IANA name"):
        load_candles(write(rows(2)), timezone="Asia/Nowhere")


def test_bars_shorter_than_a_minute_are_refused(write: Callable[..., Path]) -> None:
    lines = [f"{i},{FIRST_S + 30 * i},1,1,1,1,0" for i in range(4)]

    with pytest.raises(DataError, match=r"bars open 30 s apart.*whole number of minutes"):
        load_candles(write(lines))


def test_bars_of_no_clear_length_are_refused(write: Callable[..., Path]) -> None:
    lines = [f"{i},{FIRST_S + 60 * i * i},1,1,1,1,0" for i in range(6)]

    with pytest.raises(DataError, match="no clear length of a bar"):
        load_candles(write(lines))


# --- files by hand ------------------------------------------------------------------------------


@pytest.fixture
def shared_files() -> list[Path]:
    folder = os.environ.get("HRM_TRADER_SHARED_DATA")
    if folder is None:
        pytest.skip("HRM_TRADER_SHARED_DATA does not name a folder of candle files")
    files = sorted(Path(folder).glob("*.parquet"))
    assert files, f"no Parquet files in {folder}"
    return files


def test_shared_files_load_without_repair(shared_files: list[Path]) -> None:
    for path in shared_files:
        table = load_candles(path, strict=True)

        assert table.quality.is_clean
        assert table.timeframe_minutes == name_and_minutes(path)[1]
