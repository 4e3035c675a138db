"""Sections of settings.yaml that were there before the daemon, kept key by key and value by value.

Most belong to the training of the archived PPO agent and to tools around it: the daemon checks and
preserves them, and reads only what daemon/settings.py names. New settings do not belong here.
"""

from decimal import Decimal
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from actors.policies import MonitoringSettings

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Periods = tuple[Count, ...]
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]


class ExistingSection(BaseModel):
    """Refuse unknown keys and later changes; allow keys that begin with `model_`."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


class SuccessCriteria(ExistingSection):
    """Say when a training stage of the PPO agent counts as passed."""

    min_win_rate: Fraction = 0.35
    min_profit_factor: float = Field(default=0.8, ge=0.0)
    max_drawdown: Fraction = 0.4


class PPOStage(ExistingSection):
    """Describe the one training stage of the PPO agent."""

    algorithm: str = "PPO"
    episodes: Count = 5
    description: str = "Proximal policy optimisation on all instruments"
    objectives: tuple[str, ...] = (
        "Learn when to enter and when to leave",
        "Keep losses small",
        "Trade on several instruments with one model",
    )
    success_criteria: SuccessCriteria = SuccessCriteria()


class TrainingSequence(ExistingSection):
    """List the training stages."""

    stage_1_ppo: PPOStage = PPOStage()


class EnvironmentSection(ExistingSection):
    """Set up the simulated account; the daemon reads initial_capital."""

    initial_capital: Decimal = Field(default=Decimal("100000.0"), gt=0)
    lookback_window: Count = 50
    episode_length: Count = 500
    use_streaming: bool = False
    reward_function: str = "enhanced_trading_focused"
    trailing_stop_percentage: Fraction = 0.015
    smart_action_filtering: bool = True


class ModelSection(ExistingSection):
    """Size the archived PPO network and say where its weights are."""

    hidden_dim: Count = 256
    action_dim_discrete: Count = 5
    action_dim_continuous: Count = 1
    model_path: str = "models/universal_final_model.pth"
    model_type: str = "ppo"


class RiskManagementSection(ExistingSection):
    """Set stops and targets; the daemon reads the two multipliers of the average true range."""

    risk_multiplier: Decimal = Field(default=Decimal("1.5"), gt=0)
    reward_multiplier: Decimal = Field(default=Decimal("3.0"), gt=0)
    use_atr_based_stops: bool = True
    max_risk_per_trade: Fraction = 0.015
    stop_loss_percentage: Fraction = 0.015
    target_profit_percentage: Fraction = 0.045
    win_rate_bonus_threshold: Fraction = 0.6
    profit_factor_bonus_threshold: float = Field(default=1.5, ge=0.0)


class TradingSection(ExistingSection):
    """Set the brokerage per order in rupees; the daemon reads both."""

    brokerage_entry: Decimal = Field(default=Decimal(25), ge=0)
    brokerage_exit: Decimal = Field(default=Decimal(35), ge=0)


class PPOParameters(ExistingSection):
    """Set the optimisation of the PPO agent."""

    learning_rate: float = Field(default=0.0001, gt=0.0)
    batch_size: Count = 128
    gamma: Fraction = 0.995
    gae_lambda: Fraction = 0.95
    clip_epsilon: Fraction = 0.15
    k_epochs: Count = 6


class TrainingParameters(ExistingSection):
    """Hold the parameters of each algorithm."""

    ppo: PPOParameters = PPOParameters()


class CompletionCriteria(ExistingSection):
    """Say when a training stage may end."""

    min_episodes: Count = 300
    min_win_rate: Fraction = 0.35
    min_profit_factor: float = Field(default=0.8, ge=0.0)


class FallbackStrategies(ExistingSection):
    """Say what happens when a training stage misses its criteria."""

    extend_training: bool = True
    max_extension_episodes: int = Field(default=200, ge=0)
    hyperparameter_tuning: bool = True


class ProgressionRules(ExistingSection):
    """Govern the step from one training stage to the next."""

    auto_progression: bool = False
    completion_criteria: CompletionCriteria = CompletionCriteria()
    fallback_strategies: FallbackStrategies = FallbackStrategies()


class MonitoringSection(MonitoringSettings):
    """Hold the four keys about training reports beside what the monitoring actor reads."""

    save_checkpoints: bool = True
    checkpoint_frequency: Count = 50
    generate_reports: bool = True
    compare_stages: bool = True


class ModelManagement(ExistingSection):
    """Say which models of the PPO training are kept, and under which name."""

    save_stage_models: bool = True
    model_naming_convention: str = "{symbol}_{stage}_{algorithm}_{timestamp}"
    keep_best_models: bool = True
    transfer_learning: bool = True


class TestData(ExistingSection):
    """Bound the data that a trial run of the PPO training uses."""

    __test__ = False  # the name begins with Test, but pytest must not collect it

    num_rows: Count = 500
    symbols: tuple[str, ...] = ("RELIANCE_1", "Bank_Nifty_5")
    save_models: bool = False


class TestingOverrides(ExistingSection):
    """Replace the training sections by small values in a trial run."""

    __test__ = False  # as above

    training_sequence: TrainingSequence = TrainingSequence(
        stage_1_ppo=PPOStage(
            episodes=1,
            description="Trial run of the PPO stage",
            objectives=("Run end to end",),
            success_criteria=SuccessCriteria(
                min_win_rate=0.0, min_profit_factor=0.0, max_drawdown=1.0
            ),
        )
    )
    training_params: TrainingParameters = TrainingParameters(
        ppo=PPOParameters(batch_size=16, k_epochs=1)
    )
    progression_rules: ProgressionRules = ProgressionRules(
        completion_criteria=CompletionCriteria(
            min_episodes=1, min_win_rate=0.0, min_profit_factor=0.0
        ),
        fallback_strategies=FallbackStrategies(
            extend_training=False, max_extension_episodes=0, hyperparameter_tuning=False
        ),
    )
    test_data: TestData = TestData()


class FeatureGeneration(ExistingSection):
    """Set the indicator periods, in bars; the daemon reads atr_period."""

    sma_periods: Periods = (5, 10, 20, 50, 100, 200)
    ema_periods: Periods = (5, 10, 20, 50, 100, 200)
    rsi_periods: Periods = (14, 21)
    macd_fast: Count = 12
    macd_slow: Count = 26
    macd_signal: Count = 9
    bb_period: Count = 20
    bb_std_dev: float = Field(default=2.0, gt=0.0)
    atr_period: Count = 14
    stoch_k_period: Count = 14
    stoch_d_period: Count = 3
    williams_r_period: Count = 14
    cci_period: Count = 20
    adx_period: Count = 14
    momentum_period: Count = 10
    roc_period: Count = 10
    trix_period: Count = 14
    volatility_periods: Periods = (10, 20)


class PathsSection(ExistingSection):
    """Name the folders and files of the data tools."""

    raw_data_dir: str = "data/raw"
    final_data_dir: str = "data/final"
    processed_data_dir: str = "data/processed"
    test_data_dir: str = "data/test"
    fallback_data_path: str = "data/fallback_market_data.csv"
    fallback_backtest_results_path: str = "data/fallback_backtest_results.json"
    reports_dir: str = "reports"
    logs_dir: str = "logs"
    temp_dir: str = "temp"


class FilePatterns(ExistingSection):
    """Name the data files of one symbol."""

    raw_data: str = "{symbol}.csv"
    features: str = "features_{symbol}.csv"
    features_with_timeframe: str = "features_{symbol}_{timeframe}.csv"
    processed: str = "processed_{symbol}.csv"
    final: str = "final_{symbol}.csv"


class DataProcessing(ExistingSection):
    """Say how raw candles are cleaned by the data tools."""

    file_pattern: str = "*.csv"
    file_patterns: FilePatterns = FilePatterns()
    remove_volume_column: bool = True
    timezone: str = "Asia/Kolkata"
    round_decimals: int = Field(default=2, ge=0, le=12)
    required_columns: tuple[str, ...] = ("datetime", "open", "high", "low", "close")
    validate_ohlc: bool = True
    remove_duplicates: bool = True
    drop_nan_rows: bool = True


class LoggingSection(ExistingSection):
    """Say what is logged; the daemon reads level and always writes JSON lines to stderr."""

    level: LogLevel = "INFO"
    format: str = "%(asctime)s - %(name)s - %(levelname)s - %(message)s"
    log_to_file: bool = False
    log_file: str = "logs/pipeline.log"


class PerformanceSection(ExistingSection):
    """Size the work of the data tools."""

    batch_size: Count = 10_000
    parallel_processing: bool = False
    memory_optimization: bool = True


class ValidationSection(ExistingSection):
    """Say which checks the data tools make on features."""

    feature_correlation_check: bool = False
    max_correlation_threshold: Fraction = 0.95


class LiveTradingSection(ExistingSection):
    """Name the files of models from before the PPO agent."""

    autonomous_agent_path_template: str = "models/autonomous_agent_{symbol}.pth"
    supervised_model_path: str = "models/supervised_model.pth"
    scaler_path: str = "models/scaler.pkl"
    label_encoder_path: str = "models/label_encoder.pkl"
    hf_tokenizer_path: str = "models/hf_tokenizer"
    hf_model_path: str = "models/hf_model"
