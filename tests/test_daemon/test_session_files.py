"""Sessions as files: begun, found again, gone on with; and the plan that all is built from."""

import re
import shutil
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from builders import MINUTE_NS, OPEN_NS
from model_builders import a_card, a_config, a_model
from recorded_session import (
    BARS,
    CONFIG_DIR,
    release_tiny_model,
    session_plan,
    session_settings,
    write_candles,
)

from actors.instruments import InstrumentCatalogue
from actors.policies import FeedSettings
from daemon.errors import ConfigError, DataError, ReplayError
from daemon.journal import SessionWriter
from daemon.plan import FORMAT, SessionPlan, read_plan, versions
from daemon.session_files import (
    Market,
    as_configured,
    begin_session,
    check_model,
    current_session,
    find_session,
    load_markets,
    make_plan,
    open_session,
    within_days,
)
from daemon.settings import load_instruments, load_sessions
from hrm.integrity import save_release
from hrm.manifest import FeatureRecord


@pytest.fixture
def catalogue() -> InstrumentCatalogue:
    return load_instruments(CONFIG_DIR, {}, demo=True).catalogue


@pytest.fixture
def markets(tmp_path: Path, catalogue: InstrumentCatalogue) -> list[Market]:
    return load_markets([write_candles(tmp_path, days=1)], [], catalogue)


@pytest.fixture
def plan(tmp_path: Path, markets: list[Market]) -> SessionPlan:
    return session_plan(tmp_path, markets)


# --- markets --------------------------------------------------------------------------------------


def test_a_market_is_named_by_its_file(tmp_path: Path, catalogue: InstrumentCatalogue) -> None:
    path = write_candles(tmp_path)

    [market] = load_markets([path], [], catalogue)

    assert (market.instrument, len(market.table)) == ("Nifty", BARS)
    assert market.label == "Nifty_5.csv: 5-minute candles played as ticks"
    planned = market.plan()
    assert (planned.timeframe, planned.rows, planned.path) == ("5", BARS, str(path))
    assert planned.sha256 == market.table.sha256


def test_a_given_name_wins_in_any_spelling(tmp_path: Path, catalogue: InstrumentCatalogue) -> None:
    [market] = load_markets([write_candles(tmp_path)], ["bank nifty"], catalogue)

    assert market.instrument == "Bank_Nifty"


def test_without_files_the_candles_of_the_demo_are_taken(catalogue: InstrumentCatalogue) -> None:
    [market] = load_markets([], [], catalogue)

    assert market.instrument == "EURUSD"
    assert "EUR/USD" in market.label


def test_more_files_than_one_event_may_close_bars_of_are_refused(
    tmp_path: Path, catalogue: InstrumentCatalogue
) -> None:
    with pytest.raises(ConfigError, match="at most 60"):
        load_markets([tmp_path / f"{number}.csv" for number in range(61)], [], catalogue)


def a_nifty_market(tmp_path: Path, catalogue: InstrumentCatalogue) -> Market:
    rows = "".join(f"{1710733500 + 60 * n},100,101,99,100,0\n" for n in range(30))
    path = tmp_path / "Nifty_1.csv"
    path.write_text(f"datetime,open,high,low,close,volume\n{rows}")
    [market] = load_markets([path], [], catalogue)
    return market


def test_a_daemon_decides_on_bars_of_the_configured_timeframe(
    tmp_path: Path, catalogue: InstrumentCatalogue
) -> None:
    market = a_nifty_market(tmp_path, catalogue)

    [configured] = as_configured([market], FeedSettings(timeframe="5"))

    assert (market.plan().timeframe, configured.plan().timeframe) == ("1", "5")


def test_bars_finer_than_the_candles_are_refused(
    tmp_path: Path, catalogue: InstrumentCatalogue
) -> None:
    market = a_nifty_market(tmp_path, catalogue)
    coarse = replace(market, table=replace(market.table, timeframe_minutes=15))

    with pytest.raises(ConfigError, match=r"no bars of feed\.timeframe '5'"):
        as_configured([coarse], FeedSettings(timeframe="5"))


def test_a_daemon_trades_only_the_instruments_of_its_settings(
    tmp_path: Path, catalogue: InstrumentCatalogue
) -> None:
    market = a_nifty_market(tmp_path, catalogue)

    with pytest.raises(ConfigError, match=r"feed\.instruments names Sensex: add it there"):
        as_configured([market], FeedSettings(instruments=("Sensex",)))


def test_each_file_needs_one_name(tmp_path: Path, catalogue: InstrumentCatalogue) -> None:
    with pytest.raises(ConfigError, match="1 candle files but 2 instruments"):
        load_markets([write_candles(tmp_path)], ["Nifty", "Bankex"], catalogue)


def test_an_unknown_instrument_is_refused_with_the_remedy(
    tmp_path: Path, catalogue: InstrumentCatalogue
) -> None:
    with pytest.raises(ConfigError, match=r"did you mean Nifty.*--instrument"):
        load_markets([write_candles(tmp_path)], ["Nifti"], catalogue)


def test_two_files_of_one_instrument_are_refused(
    tmp_path: Path, catalogue: InstrumentCatalogue
) -> None:
    path = write_candles(tmp_path)

    with pytest.raises(ConfigError, match="Nifty has a file already"):
        load_markets([path, path], [], catalogue)


def test_candles_are_cut_to_days_of_the_market(
    tmp_path: Path, catalogue: InstrumentCatalogue
) -> None:
    markets = load_markets([write_candles(tmp_path, days=2)], [], catalogue)
    calendar = load_sessions(CONFIG_DIR, {})
    first_day, second_day = date(2024, 3, 18), date(2024, 3, 19)

    [first] = within_days(markets, catalogue, calendar, None, first_day)
    [second] = within_days(markets, catalogue, calendar, second_day, second_day)

    assert within_days(markets, catalogue, calendar, None, None) == markets
    assert (len(first.table), len(second.table)) == (BARS // 2, BARS // 2)
    assert first.table.open_ns[0] == OPEN_NS
    assert second.plan().first_open_ns == OPEN_NS + 24 * 60 * MINUTE_NS


def test_days_without_candles_are_refused(
    tmp_path: Path, markets: list[Market], catalogue: InstrumentCatalogue
) -> None:
    calendar = load_sessions(CONFIG_DIR, {})

    with pytest.raises(DataError, match=r"no candles from 2024-03-20 to the end.*--start"):
        within_days(markets, catalogue, calendar, date(2024, 3, 20), None)


# --- the model ------------------------------------------------------------------------------------


def test_a_valid_model_is_known_by_its_digest(tmp_path: Path) -> None:
    release_tiny_model(tmp_path)

    digest, problem = check_model(tmp_path)

    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert problem == ""


def test_a_model_that_is_absent_or_damaged_is_none(tmp_path: Path) -> None:
    absent = check_model(tmp_path)
    release_tiny_model(tmp_path)
    [weights] = tmp_path.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")

    damaged = check_model(tmp_path)

    assert absent[0] == damaged[0] == ""
    assert "manifest.json" in absent[1]
    assert weights.name in damaged[1]


def test_a_model_of_other_features_is_none(tmp_path: Path) -> None:
    config = a_config()
    names = tuple(f"feature_{number}" for number in range(config.inputs.n_features))
    features = FeatureRecord(names=names, schema_sha256="0" * 64)
    save_release(tmp_path, a_model(config), a_card(config, features=features))

    digest, problem = check_model(tmp_path)

    assert digest == ""
    assert "was trained on other features" in problem


# --- plans ----------------------------------------------------------------------------------------


def test_a_plan_comes_back_from_its_file(plan: SessionPlan, tmp_path: Path) -> None:
    plan.write(tmp_path / "session")

    assert read_plan(tmp_path / "session") == plan
    assert [path.name for path in (tmp_path / "session").iterdir()] == ["session.json"]


def test_a_plan_holds_all_that_decides_and_no_secret(tmp_path: Path, markets: list[Market]) -> None:
    release_tiny_model(tmp_path / "models")
    now_ns = 1_790_000_000 * 10**9

    plan = make_plan(
        session_settings(tmp_path), load_instruments(CONFIG_DIR, {}).catalogue,
        load_sessions(CONFIG_DIR, {}), markets,
        mode="paper", now_ns=now_ns, seed=3, speed=60.0,
    )  # fmt: skip

    assert re.fullmatch(r"20260921T141320Z-paper-[0-9a-f]{4}", plan.session)
    assert (plan.mode, plan.prefix, plan.created_ns) == ("paper", "paper:v1", now_ns)
    assert (plan.seed, plan.speed, plan.format) == (3, 60.0, FORMAT)
    assert [instrument.symbol for instrument in plan.instruments] == ["Nifty"]
    assert plan.instruments[0].tick_size == Decimal("0.05")
    assert plan.model_digest == check_model(tmp_path / "models")[0]
    assert "secrets" not in plan.settings
    assert plan.versions == versions()


def test_a_plan_says_why_there_is_no_model(plan: SessionPlan) -> None:
    assert plan.model_digest == ""
    assert "manifest.json" in plan.no_model_reason


@pytest.mark.parametrize("content", [b"{", b"{}", b'{"a\xff": 1}'])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "session.json").write_bytes(content)

    with pytest.raises(ReplayError, match="is no plan of a session"):
        read_plan(tmp_path)


def test_a_plan_of_another_format_is_refused(plan: SessionPlan, tmp_path: Path) -> None:
    msgspec.structs.replace(plan, format=FORMAT + 1).write(tmp_path)

    with pytest.raises(ReplayError, match=f"has format {FORMAT + 1}, this version reads {FORMAT}"):
        read_plan(tmp_path)


# --- folders --------------------------------------------------------------------------------------


def test_the_session_that_was_begun_last_is_the_current_one(
    plan: SessionPlan, tmp_path: Path
) -> None:
    before = current_session(tmp_path)
    begin_session(tmp_path, msgspec.structs.replace(plan, session="20260101T000000Z-paper-0001"))

    folder = begin_session(tmp_path, plan)

    assert before is None
    assert current_session(tmp_path) == folder
    assert read_plan(folder) == plan


def test_a_session_whose_folder_was_removed_is_not_current(
    plan: SessionPlan, tmp_path: Path
) -> None:
    shutil.rmtree(begin_session(tmp_path, plan))

    assert current_session(tmp_path) is None


def test_an_open_session_of_the_same_candles_is_gone_on_with(
    plan: SessionPlan, tmp_path: Path, markets: list[Market]
) -> None:
    folder = begin_session(tmp_path, plan)

    assert open_session(tmp_path, markets) == (folder, plan)


def test_a_sealed_session_is_over(plan: SessionPlan, tmp_path: Path, markets: list[Market]) -> None:
    SessionWriter(begin_session(tmp_path, plan)).seal()

    assert open_session(tmp_path, markets) is None


def test_other_candles_make_another_session(
    plan: SessionPlan, tmp_path: Path, markets: list[Market], catalogue: InstrumentCatalogue
) -> None:
    begin_session(tmp_path, plan)
    others = load_markets([write_candles(tmp_path, days=2)], [], catalogue)

    assert open_session(tmp_path, markets) is not None
    assert open_session(tmp_path, others) is None
    assert open_session(tmp_path / "elsewhere", markets) is None


def test_other_days_of_the_same_candles_make_another_session(
    tmp_path: Path, catalogue: InstrumentCatalogue
) -> None:
    markets = load_markets([write_candles(tmp_path, days=2)], [], catalogue)
    calendar = load_sessions(CONFIG_DIR, {})
    begin_session(tmp_path, session_plan(tmp_path, markets))

    cut = within_days(markets, catalogue, calendar, date(2024, 3, 19), None)

    assert open_session(tmp_path, markets) is not None
    assert open_session(tmp_path, cut) is None


def test_a_session_is_found_by_path_id_and_as_the_last(plan: SessionPlan, tmp_path: Path) -> None:
    old = begin_session(tmp_path, msgspec.structs.replace(plan, session="20250101T000000Z-x"))
    of_demo = begin_session(
        tmp_path / "demo" / "one", msgspec.structs.replace(plan, session="20990101T000000Z-x")
    )

    assert find_session(str(old), tmp_path / "nowhere") == old
    assert find_session("20250101T000000Z-x", tmp_path) == old
    assert find_session("last", tmp_path) == of_demo


def test_an_unknown_session_is_refused_and_the_newest_named(
    plan: SessionPlan, tmp_path: Path
) -> None:
    with pytest.raises(ReplayError, match="the newest there are none"):
        find_session("last", tmp_path)

    begin_session(tmp_path, plan)

    with pytest.raises(ReplayError, match=f"no session 'x'.* are {plan.session}"):
        find_session("x", tmp_path)
