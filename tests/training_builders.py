"""Candles, tables and tiny trainings for tests."""

from pathlib import Path

import numpy as np
from model_builders import a_config, a_model

from hrm.config import HRMConfig
from hrm.features import FEATURE_NAMES
from hrm.model import HierarchicalReasoningModel
from hrm.training.candles import NS_PER_MINUTE, Candles
from hrm.training.deep_supervision import DeepSupervision, SupervisionSettings
from hrm.training.market_table import (
    LabelSettings,
    MarketTable,
    Vocabulary,
    market_table,
    split_by_date,
)
from hrm.training.precision import Precision
from hrm.training.samples import draw_samples

START_S = 1_710_733_500


def some_candles(
    count: int = 600, seed: int = 1, name: str = "Nifty", persistence: float = 0.0
) -> Candles:
    """Make five-minute candles of a walk; persistence in (-1, 1) makes moves follow each other."""
    generator = np.random.default_rng(seed)
    shocks = 0.001 * generator.standard_normal(count)
    moves = np.zeros(count)
    for i in range(1, count):
        moves[i] = persistence * moves[i - 1] + shocks[i]
    close = 100.0 * np.exp(np.cumsum(moves))
    open_ = np.concatenate([[100.0], close[:-1]])
    return Candles(
        instrument=name,
        timeframe="5",
        bar_ns=5 * NS_PER_MINUTE,
        open=open_,
        high=np.maximum(open_, close) * 1.0003,
        low=np.minimum(open_, close) * 0.9997,
        close=close,
        volume=np.zeros(count),
        close_ns=START_S * 1_000_000_000 + 5 * NS_PER_MINUTE * np.arange(1, count + 1),
    )


def write_candles(path: Path, candles: Candles) -> Path:
    """Write candles as the existing system's CSV."""
    opens_s = (candles.close_ns - candles.bar_ns) // 1_000_000_000
    columns = (opens_s, candles.open, candles.high, candles.low, candles.close)
    rows = [",".join(map(repr, row)) for row in zip(*(c.tolist() for c in columns), strict=True)]
    path.write_text("\n".join(["datetime,open,high,low,close", *rows]), encoding="utf-8")
    return path


def a_table(*candles: Candles, window: int = 16, **labels: object) -> MarketTable:
    """Lay out candles (default: one walk) with short windows."""
    series = list(candles) or [some_candles()]
    return market_table(
        series,
        window=window,
        labels=LabelSettings(**({"commit_bars": 4, "barrier_bars": 8} | labels)),  # type: ignore[arg-type]  # by name
        vocabulary=Vocabulary.of(series),
    )


def a_training_config() -> HRMConfig:
    """Build a tiny config that reads the real features."""
    return a_config(
        inputs={"window_bars": 16, "n_features": len(FEATURE_NAMES)},
        adaptive_computation={"m_max": 4},
        training={"segment_batch_size": 16},
    )


def a_trainable_model(seed: int = 0) -> HierarchicalReasoningModel:
    return a_model(a_training_config(), seed)


def a_training(
    table: MarketTable | None = None,
    seed: int = 0,
    *,
    precision: Precision = "float32",
    recompute: bool = False,
    **settings: float,
) -> DeepSupervision:
    """Build a tiny training without dropout surprises; name only the settings that matter."""
    table = table or a_table()
    rows = split_by_date(table).train
    given: dict[str, float] = {
        "steps": 100,
        "learning_rate": 3e-3,
        "warmup_steps": 5,
        "commit_bars": table.labels.commit_bars,
    }
    return DeepSupervision(
        a_trainable_model(seed),
        SupervisionSettings(**(given | settings)),  # type: ignore[arg-type]  # by name
        lambda count, generator: draw_samples(table, rows, count, generator),
        np.random.default_rng(seed),
        precision=precision,
        recompute=recompute,
    )
