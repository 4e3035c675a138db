"""What the training benchmarks train on: some of the embedded candles, and steps as hrm-train's."""

from dataclasses import replace

import numpy as np
import torch

from hrm.config import HRMConfig
from hrm.model import HierarchicalReasoningModel
from hrm.training.candles import embedded_candles_path, read_candles
from hrm.training.deep_supervision import DeepSupervision, SupervisionSettings
from hrm.training.market_table import LabelSettings, Vocabulary, market_table, split_by_date
from hrm.training.samples import draw_samples

BARS = 1500  # enough to draw from; how many there are changes neither time nor memory of a step
STEPS = 1000  # of the schedule that the measured steps would be the start of


def a_training(config: HRMConfig, *, recompute: bool = False, cut_share: float) -> DeepSupervision:
    """Build a training on real candles, all terms of the loss on, the same every time."""
    whole = read_candles(embedded_candles_path())
    columns = ("open", "high", "low", "close", "volume", "close_ns")
    candles = replace(whole, **{name: getattr(whole, name)[:BARS] for name in columns})
    labels = LabelSettings()
    table = market_table(
        [candles],
        window=config.inputs.window_bars,
        labels=labels,
        vocabulary=Vocabulary.of([candles]),
    )
    rows = split_by_date(table).train
    torch.manual_seed(1)
    return DeepSupervision(
        HierarchicalReasoningModel(config),
        SupervisionSettings(
            steps=STEPS,
            learning_rate=config.training.learning_rate,
            commit_bars=labels.commit_bars,
            imitation_share=0.0,
            cut_share=cut_share,
        ),
        lambda count, generator: draw_samples(table, rows, count, generator),
        np.random.default_rng(1),
        recompute=recompute,
    )
