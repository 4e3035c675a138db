"""Settings: what is shipped, where values come from, and what is refused."""

import copy
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.charges import ChargeTable
from actors.forecast import FEATURES
from actors.policies import ActorSettings, ComplexityCoefficients, EventSettings
from daemon.errors import ConfigError
from daemon.settings import (
    WRITTEN_ELSEWHERE,
    Settings,
    find_config_dir,
    load_instruments,
    load_sessions,
    load_settings,
)

SHIPPED = Path(__file__).parents[2] / "config"
SHIPPED_SETTINGS: dict[str, Any] = yaml.safe_load((SHIPPED / "settings.yaml").read_text("utf-8"))
OTHER_FILES = ("complexity.coefficients", "complexity.events", "execution.charge_table")
"""Keys of settings that files of their own give."""

EXISTING_VALUES: dict[str, Any] = {
    "training_sequence.stage_1_ppo.algorithm": "PPO",
    "training_sequence.stage_1_ppo.episodes": 5,
    "training_sequence.stage_1_ppo.success_criteria.min_win_rate": 0.35,
    "training_sequence.stage_1_ppo.success_criteria.min_profit_factor": 0.8,
    "training_sequence.stage_1_ppo.success_criteria.max_drawdown": 0.4,
    "environment.initial_capital": 100000.0,
    "environment.lookback_window": 50,
    "environment.episode_length": 500,
    "environment.use_streaming": False,
    "environment.reward_function": "enhanced_trading_focused",
    "environment.trailing_stop_percentage": 0.015,
    "environment.smart_action_filtering": True,
    "model.hidden_dim": 256,
    "model.action_dim_discrete": 5,
    "model.action_dim_continuous": 1,
    "model.model_path": "models/universal_final_model.pth",
    "model.model_type": "ppo",
    "risk_management.risk_multiplier": 1.5,
    "risk_management.reward_multiplier": 3.0,
    "risk_management.use_atr_based_stops": True,
    "risk_management.max_risk_per_trade": 0.015,
    "risk_management.stop_loss_percentage": 0.015,
    "risk_management.target_profit_percentage": 0.045,
    "risk_management.win_rate_bonus_threshold": 0.6,
    "risk_management.profit_factor_bonus_threshold": 1.5,
    "trading.brokerage_entry": 25,
    "trading.brokerage_exit": 35,
    "training_params.ppo.learning_rate": 0.0001,
    "training_params.ppo.batch_size": 128,
    "training_params.ppo.gamma": 0.995,
    "training_params.ppo.gae_lambda": 0.95,
    "training_params.ppo.clip_epsilon": 0.15,
    "training_params.ppo.k_epochs": 6,
    "progression_rules.auto_progression": False,
    "progression_rules.completion_criteria.min_episodes": 300,
    "progression_rules.completion_criteria.min_win_rate": 0.35,
    "progression_rules.completion_criteria.min_profit_factor": 0.8,
    "progression_rules.fallback_strategies.extend_training": True,
    "progression_rules.fallback_strategies.max_extension_episodes": 200,
    "progression_rules.fallback_strategies.hyperparameter_tuning": True,
    "monitoring.save_checkpoints": True,
    "monitoring.checkpoint_frequency": 50,
    "monitoring.generate_reports": True,
    "monitoring.compare_stages": True,
    "model_management.save_stage_models": True,
    "model_management.model_naming_convention": "{symbol}_{stage}_{algorithm}_{timestamp}",
    "model_management.keep_best_models": True,
    "model_management.transfer_learning": True,
    "testing_overrides.test_data.num_rows": 500,
    "testing_overrides.test_data.symbols": ["RELIANCE_1", "Bank_Nifty_5"],
    "testing_overrides.test_data.save_models": False,
    "feature_generation.sma_periods": [5, 10, 20, 50, 100, 200],
    "feature_generation.ema_periods": [5, 10, 20, 50, 100, 200],
    "feature_generation.rsi_periods": [14, 21],
    "feature_generation.macd_fast": 12,
    "feature_generation.macd_slow": 26,
    "feature_generation.macd_signal": 9,
    "feature_generation.bb_period": 20,
    "feature_generation.bb_std_dev": 2.0,
    "feature_generation.atr_period": 14,
    "feature_generation.stoch_k_period": 14,
    "feature_generation.stoch_d_period": 3,
    "feature_generation.williams_r_period": 14,
    "feature_generation.cci_period": 20,
    "feature_generation.adx_period": 14,
    "feature_generation.momentum_period": 10,
    "feature_generation.roc_period": 10,
    "feature_generation.trix_period": 14,
    "feature_generation.volatility_periods": [10, 20],
    "paths.raw_data_dir": "data/raw",
    "paths.final_data_dir": "data/final",
    "paths.processed_data_dir": "data/processed",
    "paths.test_data_dir": "data/test",
    "paths.fallback_data_path": "data/fallback_market_data.csv",
    "paths.fallback_backtest_results_path": "data/fallback_backtest_results.json",
    "data_processing.file_pattern": "*.csv",
    "data_processing.file_patterns.raw_data": "{symbol}.csv",
    "data_processing.file_patterns.features": "features_{symbol}.csv",
    "data_processing.file_patterns.features_with_timeframe": "features_{symbol}_{timeframe}.csv",
    "data_processing.file_patterns.processed": "processed_{symbol}.csv",
    "data_processing.file_patterns.final": "final_{symbol}.csv",
    "data_processing.remove_volume_column": True,
    "data_processing.timezone": "Asia/Kolkata",
    "data_processing.round_decimals": 2,
    "data_processing.required_columns": ["datetime", "open", "high", "low", "close"],
    "data_processing.validate_ohlc": True,
    "data_processing.remove_duplicates": True,
    "data_processing.drop_nan_rows": True,
    "logging.level": "INFO",
    "logging.log_to_file": False,
    "performance.batch_size": 10000,
    "performance.parallel_processing": False,
    "performance.memory_optimization": True,
    "validation.feature_correlation_check": False,
    "validation.max_correlation_threshold": 0.95,
}
"""Values of the existing system's file that its users rely on."""

EXISTING_KEYS_WITH_FREE_TEXT = (
    "training_sequence.stage_1_ppo.description",
    "training_sequence.stage_1_ppo.objectives",
    "testing_overrides.training_sequence.stage_1_ppo",
    "testing_overrides.training_params.ppo",
    "testing_overrides.progression_rules.completion_criteria",
    "testing_overrides.progression_rules.fallback_strategies",
    "paths.reports_dir",
    "paths.logs_dir",
    "paths.temp_dir",
    "logging.format",
    "logging.log_file",
    "live_trading.autonomous_agent_path_template",
    "live_trading.supervised_model_path",
    "live_trading.scaler_path",
    "live_trading.label_encoder_path",
    "live_trading.hf_tokenizer_path",
    "live_trading.hf_model_path",
)

DESIGNED_MODEL_SECTION = """
architecture:
  h_module: {hidden_size: 512, num_layers: 6, dropout: 0.1}
  l_module: {hidden_size: 256, num_layers: 4, dropout: 0.1}
convergence: {n_cycles: 8, t_timesteps: 4, convergence_thresh: 1e-6}
adaptive_computation: {m_max: 16, m_min_prob: 0.8, epsilon: 0.1}
training:
  {deep_supervision: true, one_step_gradient: true, segment_batch_size: 32, learning_rate: 0.0001}
performance: {max_inference_time_ms: 50, memory_limit_gb: 4, enable_profiling: true}
"""


def at(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values[key]
    return values


def leaves(values: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A copy of the shipped configuration, with an empty settings.yaml."""
    folder = tmp_path / "config"
    shutil.copytree(SHIPPED, folder)
    (folder / "settings.yaml").write_text("", encoding="utf-8")
    return folder


def settings_of(config: Path, text: str, environment: Mapping[str, str] | None = None) -> Settings:
    (config / "settings.yaml").write_text(text, encoding="utf-8")
    return load_settings(config, environment or {})


def refusal(config: Path, text: str, environment: Mapping[str, str] | None = None) -> str:
    """The error that settings of this text raise."""
    with pytest.raises(ConfigError) as error:
        settings_of(config, text, environment)
    return str(error.value)


@pytest.mark.parametrize("path", EXISTING_VALUES)
def test_every_existing_value_is_kept(path: str) -> None:
    assert at(SHIPPED_SETTINGS, path) == EXISTING_VALUES[path]


@pytest.mark.parametrize("path", EXISTING_KEYS_WITH_FREE_TEXT)
def test_every_existing_key_is_kept(path: str) -> None:
    assert at(SHIPPED_SETTINGS, path)


def test_the_model_section_is_spelled_as_designed() -> None:
    section = copy.deepcopy(SHIPPED_SETTINGS["hierarchical_reasoning_model"])

    assert section["performance"].pop("engine") == "auto"  # the one key of our own in it
    assert section == yaml.safe_load(DESIGNED_MODEL_SECTION)


def test_sections_keep_their_order() -> None:
    sections = [name for name in Settings.model_fields if name != "secrets"]

    assert list(SHIPPED_SETTINGS) == sections


def test_the_shipped_file_gives_the_defaults_and_names_them_all() -> None:
    settings = without_data(load_settings(SHIPPED, {}))

    assert settings == Settings()
    named = set(leaves(SHIPPED_SETTINGS))
    written_elsewhere = {".".join(location) for location in WRITTEN_ELSEWHERE}
    for section, value in settings.effective().items():
        if section not in {"secrets", "hierarchical_reasoning_model"}:
            expected = set(leaves({section: value})) - written_elsewhere
            in_other_files = {name for name in expected if name.startswith(OTHER_FILES)}
            assert expected - in_other_files <= named


def without_data(settings: Settings) -> Settings:
    """Return the settings without what complexity.yaml, events.yaml and charges.yaml add."""
    plain = {"coefficients": ComplexityCoefficients(), "events": EventSettings()}
    return settings.model_copy(
        update={
            "complexity": settings.complexity.model_copy(update=plain),
            "execution": settings.execution.model_copy(update={"charge_table": ChargeTable()}),
        }
    )


def test_coefficients_and_events_come_from_files_of_their_own() -> None:
    complexity = load_settings(SHIPPED, {}).complexity

    assert set(complexity.coefficients.forecasts) == {"2", "5", "15", "60"}
    for coefficients in complexity.coefficients.forecasts.values():
        assert len(coefficients.weights) == len(FEATURES)
    assert complexity.events.covers_until == date(2026, 12, 31)
    assert all(event.source for event in complexity.events.events)


def test_an_event_of_an_unknown_instrument_is_refused(config: Path) -> None:
    path = config / "events.yaml"
    path.write_text(
        path.read_text().replace("name: RBI policy", "instruments: [Nifti], name: RBI policy", 1)
    )

    with pytest.raises(ConfigError, match=r"names 'Nifti', which is no symbol"):
        load_settings(config, {})


def test_every_setting_has_a_comment() -> None:
    lines = (SHIPPED / "settings.yaml").read_text(encoding="utf-8").splitlines()
    keys = [line for line in lines if re.match(r"\s*[a-z_0-9]+:", line)]

    without = [line for line in keys if not re.search(r"\s# \S", line)]

    assert len(keys) > 200
    assert without == []


def test_a_file_from_before_the_daemon_still_loads(config: Path) -> None:
    old = {name: SHIPPED_SETTINGS[name] for name in ("environment", "trading", "logging")}

    settings = without_data(settings_of(config, yaml.safe_dump(old)))

    assert settings == Settings()


def test_the_actors_settings_carry_what_is_written_in_older_sections(config: Path) -> None:
    settings = settings_of(
        config,
        "environment: {initial_capital: 250000}\n"
        "trading: {brokerage_entry: 20, brokerage_exit: 21}\n"
        "risk_management: {risk_multiplier: 1, reward_multiplier: 2}\n"
        "feature_generation: {atr_period: 10}\n",
    )

    assert settings.risk_limits.initial_capital == 250_000
    assert settings.risk_limits.brokerage_entry == 20
    assert settings.execution.brokerage_entry == 20
    assert settings.execution.brokerage_exit == 21
    assert settings.execution.risk_multiplier == 1
    assert settings.execution.reward_multiplier == 2
    assert settings.complexity.atr_period == 10


def test_a_value_is_written_in_one_place_only(config: Path) -> None:
    text = refusal(config, "risk_limits:\n  initial_capital: 5\n")

    assert (
        "settings.yaml line 2: risk_limits.initial_capital = 5: this value is written once, "
        "as environment.initial_capital: set it there and remove it here"
    ) in text


def test_a_bad_value_that_two_actors_read_is_reported_once_where_it_is_written(
    config: Path,
) -> None:
    text = refusal(config, "trading:\n  brokerage_entry: -1\n")

    assert text.count("brokerage_entry") == 1
    assert "settings.yaml line 2: trading.brokerage_entry = -1: must be greater than" in text


def test_a_value_that_only_the_actor_refuses_is_reported_where_it_is_written(
    config: Path,
) -> None:
    text = refusal(config, "feature_generation:\n  atr_period: 500\n")

    assert "settings.yaml line 2: feature_generation.atr_period = 500: must be less than" in text


def test_the_environment_overrides_the_file(config: Path) -> None:
    settings = settings_of(
        config,
        "feed: {speed: 30}\n",
        {
            "HRM_TRADER__FEED__SPEED": "max",
            "HRM_TRADER__FEED__TIMEFRAME": "15",
            "HRM_TRADER__FEED__INSTRUMENTS": "[Nifty, Sensex]",
            "HRM_TRADER__SESSION__START_HALTED": "false",
            "HRM_TRADER__ENVIRONMENT__INITIAL_CAPITAL": "5000.50",
            "HRM_TRADER__BUS__URL": "null",
            "HRM_TRADER_CONFIG_DIR": "elsewhere",
        },
    )

    assert settings.feed.speed == "max"
    assert settings.feed.timeframe == "15"
    assert settings.feed.instruments == ("Nifty", "Sensex")
    assert settings.session.start_halted is False
    assert settings.risk_limits.initial_capital == Decimal("5000.50")
    assert settings.bus.url is None


def test_the_command_line_overrides_the_environment(config: Path) -> None:
    settings = load_settings(
        config, {"HRM_TRADER__FEED__SPEED": "5"}, overrides={"feed.speed": "max"}
    )

    assert settings.feed.speed == "max"


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ("HRM_TRADER__FEED__SPEDE", "feed.spede = '1': unknown key: did you mean speed?"),
        ("HRM_TRADER__FED__SPEED", "fed: unknown key: did you mean feed?"),
        ("HRM_TRADER__FEED__SPEED__X", "feed.speed: must be a valid number or must be 'max'"),
        ("HRM_TRADER__RISK_LIMITS__INITIAL_CAPITAL", "this value is written once, as environment"),
        ("HRM_TRADER__SECRETS__JWT_SECRET", "set the environment variables JWT_SECRET"),
    ],
)
def test_unknown_environment_settings_are_refused(
    config: Path, variable: str, message: str
) -> None:
    text = refusal(config, "", {variable: "1"})

    assert f"environment variable {variable}: " in text
    assert message in text


def test_all_problems_of_all_files_come_in_one_error(config: Path) -> None:
    instruments = config / "instruments.yaml"
    instruments.write_text(instruments.read_text("utf-8").replace("lot_size: 35", "lot_size: 0"))
    sessions = config / "sessions.yaml"
    sessions.write_text(sessions.read_text("utf-8").replace('l: "14:00"\n', 'l: "16:30"\n'))

    text = refusal(
        config,
        "monitoring: {latency_warning_ms: 200}\n"
        "complexity: {weights: {news: 0.5}}\n"
        "risk_management: {risk_multiplier: 0}\n"
        "feed: {instruments: [Nifti], timeframe: '7'}\n"
        "buss: {}\n",
    )

    assert text.startswith("the configuration has 9 problems:")
    for expected in (
        "settings.yaml line 1: monitoring: latency_warning_ms 200 must be below latency_critical",
        "settings.yaml line 2: complexity.weights: the weights must sum to 1, they sum to 1.3",
        "settings.yaml line 3: risk_management.risk_multiplier = 0: must be greater than 0 (the ",
        "settings.yaml line 4: feed.instruments: unknown instrument 'Nifti': did you mean Nifty",
        "settings.yaml line 4: feed.timeframe: '7' is not offered: use one of 1, 3, 5, 15, 30, 60",
        "settings.yaml line 5: buss: unknown key: did you mean bus?",
        "instruments[0].lot_size = 0: must be greater than or equal to 1",
        "entries_until 16:30 must not be after square_off 16:00: move one of them",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("feed: {instruments: [Nifty, NIFTY50]}", "'NIFTY50' is Nifty, which is named already"),
        ("feed: {instruments: [EURUSD]}", "unknown instrument 'EURUSD'"),
        ("feed: {timeframe: 5}", 'feed.timeframe = 5: must be text: write it in quotes, "5"'),
        ("complexity: {volatility_window: 30}", "models are trained on 20: set it to 20"),
        (
            "hierarchical_reasoning_model: {performance: {max_inference_time_ms: 500}}",
            "500 ms lies above monitoring.latency_critical_ms 100",
        ),
        (
            "risk_limits: {max_orders_per_minute: 100}\nexecution: {max_order_rate_per_second: 1}",
            "100 can never be reached at execution.max_order_rate_per_second 1: use at most 60",
        ),
        ("environment: {initial_capital: 25}", "25 uses up environment.initial_capital 25"),
        ("bus: {url: http://localhost}", "must be redis://host:port/0"),
        ("bus: {url: 'redis://'}", "must be redis://host:port/0"),
        ("bus: {block_ms: 501}", "bus.block_ms = 501: must be less than or equal to 500"),
        ("logging: {level: LOUD}", "logging.level = 'LOUD': must be 'DEBUG', 'INFO'"),
        ("secrets: {jwt_secret: x}", "secrets: remove it; set the environment variables JWT_SEC"),
        ("feed: {speed: .nan}", "feed.speed = nan: must be a finite number or must be 'max'"),
    ],
)
def test_impossible_settings_are_refused(config: Path, text: str, message: str) -> None:
    assert message in refusal(config, text)


def test_broken_yaml_names_line_and_column(config: Path) -> None:
    text = refusal(config, "feed:\n  speed: [1\nbus: {}\n")

    assert "settings.yaml line 3 column 4: not valid YAML" in text


def test_duplicate_sections_are_refused(config: Path) -> None:
    text = refusal(config, "feed: {speed: 1}\nbus: {}\nfeed: {speed: 2}\n")

    assert "settings.yaml line 3 column 1: feed is already given in line 1: remove one" in text


def test_instruments_come_back_as_symbols(config: Path) -> None:
    settings = settings_of(config, "feed: {instruments: [bank nifty, NIFTY50]}")

    assert settings.feed.instruments == ("Bank_Nifty", "Nifty")


def test_demo_instruments_are_known_only_on_demand() -> None:
    overrides = {"feed.instruments": ["EURUSD"], "feed.timeframe": "60"}

    settings = load_settings(SHIPPED, {}, overrides=overrides, demo=True)

    assert settings.feed.instruments == ("EURUSD",)
    with pytest.raises(ConfigError, match=r"command line: feed\.instruments: unknown instrument"):
        load_settings(SHIPPED, {}, overrides=overrides)


def test_secrets_come_from_the_environment_and_are_never_shown(config: Path) -> None:
    environment = {"JWT_SECRET": "hush-hush", "FYERS_APP_ID": "APP-100"}

    settings = settings_of(config, "bus: {url: 'redis://me:hidden@host:6379/0'}", environment)

    assert settings.secrets.jwt_secret is not None
    assert settings.secrets.jwt_secret.get_secret_value() == "hush-hush"
    shown = json.dumps(settings.effective())
    for secret in ("hush-hush", "APP-100", "hidden@"):
        assert secret not in shown
    assert settings.effective()["bus"]["url"] == "redis://me:**********@host:6379/0"
    assert settings.bus.url == "redis://me:hidden@host:6379/0"


def test_an_url_without_a_password_is_shown_as_it_is(config: Path) -> None:
    settings = settings_of(config, "bus: {url: 'unix:///run/redis.sock'}")

    assert settings.effective()["bus"]["url"] == "unix:///run/redis.sock"


def test_a_password_is_not_shown_in_an_error(config: Path) -> None:
    text = refusal(config, "bus: {url: 'http://me:hidden@host'}", {"JWT_SECRET": "hush"})

    assert "hidden@" not in text
    assert "hush" not in text


def test_the_hash_follows_the_settings_and_not_the_secrets(config: Path) -> None:
    plain = settings_of(config, "", {"JWT_SECRET": "a"})
    other_secret = settings_of(config, "", {"JWT_SECRET": "b"})
    other_setting = settings_of(config, "feed: {speed: 1}", {"JWT_SECRET": "a"})

    assert re.fullmatch("[0-9a-f]{64}", plain.settings_sha256)
    assert plain.settings_sha256 == other_secret.settings_sha256
    assert plain.settings_sha256 != other_setting.settings_sha256


def test_the_config_folder_is_searched_in_order(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(config, other)
    monkeypatch.chdir(tmp_path)

    assert find_config_dir(other, {"HRM_TRADER_CONFIG_DIR": str(config)}) == other
    assert find_config_dir(None, {"HRM_TRADER_CONFIG_DIR": str(other)}) == other
    assert find_config_dir(None, {}) == Path("config")


def test_outside_a_checkout_the_installed_folder_is_used(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "share" / "hrm-trading-daemon" / "config"
    shutil.move(config, installed)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("daemon.settings.sysconfig.get_path", lambda _: str(tmp_path))

    assert find_config_dir(None, {}) == installed


def test_without_any_folder_the_error_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("daemon.settings.sysconfig.get_path", lambda _: str(tmp_path))
    monkeypatch.setattr("daemon.settings.__file__", str(tmp_path / "daemon" / "settings.py"))

    with pytest.raises(ConfigError, match=r"no settings\.yaml in config, .*share.*: set HRM_TR"):
        find_config_dir(None, {})


def test_a_named_folder_without_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the folder given, .*has no settings\.yaml"):
        load_settings(tmp_path, {})
    with pytest.raises(ConfigError, match=r"HRM_TRADER_CONFIG_DIR, /none, has no settings\.yaml"):
        load_settings(None, {"HRM_TRADER_CONFIG_DIR": "/none"})


def test_no_url_means_the_bundled_server(config: Path) -> None:
    assert settings_of(config, "bus: {url: null}").bus.url is None


def test_an_instrument_needs_a_market_with_hours(config: Path) -> None:
    path = config / "instruments.yaml"
    text = path.read_text("utf-8").replace("symbol: TCS", "symbol: TCS\n    session: MCX")
    path.write_text(text, encoding="utf-8")

    message = refusal(config, "")

    assert "instruments.yaml: TCS trades in the session 'MCX', which sessions.yaml" in message
    assert "use one of NSE, NSE_CASH, BSE, BSE_CASH, FX, US" in message


def test_a_missing_instruments_file_is_named(config: Path) -> None:
    (config / "instruments.yaml").unlink()

    assert "instruments.yaml: the file does not exist" in refusal(config, "")


def test_sessions_load_as_a_calendar() -> None:
    assert "NSE" in load_sessions(SHIPPED, {}).markets


def test_instruments_load_with_the_demo_behind_them() -> None:
    plain = load_instruments(SHIPPED, {})
    demo = load_instruments(SHIPPED, {}, demo=True)

    assert "EURUSD" not in plain.catalogue
    assert demo.catalogue.symbols == (*plain.catalogue.symbols, "EURUSD", "GOOGL")
    assert demo.timeframes == plain.timeframes


def test_each_owner_has_its_own_section() -> None:
    owners = [
        kind.annotation
        for kind in Settings.model_fields.values()
        if isinstance(kind.annotation, type) and issubclass(kind.annotation, ActorSettings)
    ]

    assert len(owners) == len(set(owners)) == 6
