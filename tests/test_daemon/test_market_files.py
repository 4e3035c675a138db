"""instruments.yaml: what is shipped, and what is refused."""

import contextlib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from daemon.config_files import Problems
from daemon.errors import ConfigError
from daemon.market_files import InstrumentsFile, read_instruments, read_sessions

SHIPPED = Path(__file__).parents[2] / "config"

EXPECTED = [
    ("Bank Nifty", "Bank_Nifty", "NSE:NIFTYBANK-INDEX", "index", 35, [0.02, 0.03]),
    ("Nifty 50", "Nifty", "NSE:NIFTY50-INDEX", "index", 75, [0.01, 0.02]),
    ("Bankex", "Bankex", "NSE:BANKEX-INDEX", "index", 50, [0.02, 0.03]),
    ("Finnifty", "Finnifty", "NSE:FINNIFTY-INDEX", "index", 50, [0.02, 0.03]),
    ("Sensex", "Sensex", "BSE:SENSEX-INDEX", "index", 20, [0.02, 0.03]),
    ("Reliance Industries", "Reliance", "NSE:RELIANCE-EQ", "stock", 1, None),
    ("Tata Consultancy Services", "TCS", "NSE:TCS-EQ", "stock", 1, None),
    ("HDFC Bank", "HDFC", "NSE:HDFCBANK-EQ", "stock", 1, None),
]


def problems_of(tmp_path: Path, text: str, *, demo: str | None = None) -> str:
    """The problems of an instruments.yaml of this text, perhaps with a demo file."""
    (tmp_path / "instruments.yaml").write_text(text, encoding="utf-8")
    if demo is not None:
        (tmp_path / "demo_instruments.yaml").write_text(demo, encoding="utf-8")
    problems = Problems()
    with contextlib.suppress(ConfigError):  # raised where no instrument is left; then all is noted
        read_instruments(tmp_path, problems, demo=demo is not None)
    return "\n".join(problems.texts)


def an_entry(**changes: Any) -> str:
    entry: dict[str, Any] = {
        "name": "Nifty 50",
        "symbol": "Nifty",
        "exchange-symbol": "NSE:NIFTY50-INDEX",
        "type": "index",
        "instrument_type": "index",
        "lot_size": 75,
        "tick_size": 0.05,
        "option_premium_range": [0.01, 0.02],
    }
    changed = entry | {key.replace("__", "-"): value for key, value in changes.items()}
    kept = {key: value for key, value in changed.items() if value is not None}
    return yaml.safe_dump({"instruments": [kept], "timeframes": ["5", "D"]}, sort_keys=False)


def test_the_shipped_file_is_that_of_the_existing_system() -> None:
    shipped = yaml.safe_load((SHIPPED / "instruments.yaml").read_text(encoding="utf-8"))
    for entry in shipped["instruments"]:
        entry.pop("freeze_quantity", None)  # ours: the existing system does not know it

    expected = []
    for name, symbol, exchange_symbol, kind, lot_size, premium in EXPECTED:
        entry = {
            "name": name,
            "symbol": symbol,
            "exchange-symbol": exchange_symbol,
            "type": kind,
            "instrument_type": kind,
            "lot_size": lot_size,
            "tick_size": 0.05,
        }
        expected.append(entry if premium is None else entry | {"option_premium_range": premium})
    assert shipped == {
        "instruments": expected,
        "timeframes": ["1", "3", "5", "15", "30", "60", "120", "240", "D"],
    }


def test_the_shipped_files_have_no_problems() -> None:
    problems = Problems()

    file = read_instruments(SHIPPED, problems, demo=True)
    read_sessions(SHIPPED, problems)

    problems.raise_if_any()
    assert file.catalogue["EURUSD"].tick_size == Decimal("0.00001")
    assert file.catalogue["EURUSD"].lot_size == 1000
    assert file.catalogue["Nifty"].tick_size == Decimal("0.05")
    assert [file.catalogue[name].session for name in ("Sensex", "TCS", "EURUSD", "GOOGL")] == [
        "BSE",
        "NSE_CASH",
        "FX",
        "US",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lot_size": 0}, "instruments[0].lot_size = 0: must be greater than or equal to 1"),
        ({"lot_size": 2.5}, "instruments[0].lot_size = 2.5: must be a valid integer"),
        ({"tick_size": 0}, "instruments[0].tick_size = 0: must be greater than 0"),
        ({"tick_size": None}, "instruments[0]: the key tick_size is missing: add it"),
        ({"type": "future"}, "instruments[0].type = 'future': must be 'index' or 'stock'"),
        ({"instrument_type": "stock"}, "instrument_type stock differs from type index"),
        ({"exchange__symbol": "NIFTY"}, "exchange-symbol must read EXCHANGE:SYMBOL, was 'NIFTY'"),
        ({"exchange_symbol": "NSE:X"}, "unknown key: did you mean exchange-symbol?"),
        ({"option_premium_range": [0.3, 0.2]}, "0 < low <= high < 1, was [0.3, 0.2]"),
        ({"lots": 5}, "instruments[0].lots = 5: unknown key: did you mean lot_size?"),
    ],
)
def test_impossible_instruments_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    problems = problems_of(tmp_path, an_entry(**changes))

    assert message in problems
    assert "instruments.yaml line " in problems


@pytest.mark.parametrize(
    ("timeframes", "message"),
    [
        ("[5]", 'timeframes[0] = 5: must be text: write it in quotes, "5"'),
        ('["5m"]', "timeframe must be minutes from 1 to 1440"),
        ('["5", "5"]', "timeframes 5, 5 name one twice: remove it"),
    ],
)
def test_impossible_timeframes_are_refused(tmp_path: Path, timeframes: str, message: str) -> None:
    text = an_entry().split("timeframes:")[0] + f"timeframes: {timeframes}\n"

    assert message in problems_of(tmp_path, text)


def test_two_instruments_of_one_name_are_refused(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, an_entry(), demo=an_entry(symbol="NIFTY_50", name="Other"))

    assert "demo_instruments.yaml: does not go with instruments.yaml" in problems
    assert "also names Nifty" in problems


def test_an_extended_file_keeps_its_own_timeframes_first() -> None:
    own = InstrumentsFile.model_validate(yaml.safe_load(an_entry()))
    more = InstrumentsFile.model_validate(
        yaml.safe_load(an_entry(symbol="X", name="X", exchange__symbol="NSE:X"))
        | {"timeframes": ["7", "5"]}
    )

    assert own.extended(more).timeframes == ("5", "D", "7")
