"""Samples: bars and imagined positions drawn from a table, and what every action would have earned.

What is learned from them is for `deep_supervision`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hrm.config import Action
from hrm.features import FEATURE_NAMES
from hrm.training.candles import IntArray
from hrm.training.market_table import Account, MarketTable, Observation
from hrm.training.prior import prior_policy

VOLUME_COLUMNS = [FEATURE_NAMES.index(name) for name in ("volume_ratio_16", "volume_known")]
LONG_COLUMNS = [i for i, name in enumerate(FEATURE_NAMES) if "x12" in name]
DAY_COLUMNS = [
    FEATURE_NAMES.index(name)
    for name in (
        "day_return",
        "day_range",
        "place_in_day",
        "day_gap",
        "place_in_previous_day",
        "day_known",
    )
]
EXPIRY_COLUMN = FEATURE_NAMES.index("expiry_nearness")
DEPTH_COLUMNS = [FEATURE_NAMES.index(name) for name in ("spread", "depth_imbalance", "depth_known")]
USUAL_SPREAD_ATR = 0.1  # scale of the spreads drawn, in average true ranges
LONGEST_EXPIRY_DAYS = 35


@dataclass(frozen=True, slots=True)
class Samples:
    """Hold what is learned at B bars with B imagined positions.

    reward: [B, 5] net reward of every action over commit_bars, in volatilities; valid: [B, 5];
    prior: [B, 5] what to fall back on;
    label: [B] the triple barrier's action in this position; move: [B] the forward return in
    volatilities; next_observation: [3 B], sample by sample, what is seen commit_bars later in each
    of three positions (stayed, the first and the second change); next_of_action: [B, 5] which of
    the three an action leads to; next_unit: [B] the volatility then, in units of the one now.
    """

    observation: Observation
    reward: NDArray[np.float32]
    valid: NDArray[np.bool_]
    prior: NDArray[np.float32]
    label: IntArray
    move: NDArray[np.float32]
    next_observation: Observation
    next_of_action: IntArray
    next_unit: NDArray[np.float32]


def draw_samples(
    table: MarketTable, rows: IntArray, count: int, generator: np.random.Generator
) -> Samples:
    """Draw bars and positions, and work out the net reward of every action in each.

    The market does not depend on our position, so the outcome of actions not taken is known too.
    Part of the samples show only the newest bars, without the columns that look further back (a
    daemon's first hours), hide the names of instrument and timeframe, or carry correlation, news,
    expiry and depth drawn at random: sources that this history lacks, so that the model learns to
    disregard them instead of reading live values through untrained weights.
    """
    chosen = generator.choice(rows, size=count)
    accounts = [_drawn_account(table, int(row), generator) for row in chosen]
    visible = np.where(
        generator.random(count) < 0.3, generator.integers(1, table.window + 1, count), table.window
    )
    is_unknown = generator.random(count) < 0.5
    context = table.context[chosen].copy()
    has_sources = generator.random(count) < 0.25
    context[has_sources, 5:7] = generator.random((int(has_sources.sum()), 2))
    context[has_sources, 7] = 1.0
    observation = table.observe(
        chosen, accounts, visible=visible, is_unknown=is_unknown, context=context
    )
    changes = _ColumnChanges(
        no_volume=generator.random(count) < 0.5,
        is_young=visible < table.window,
        no_day=(visible < table.window) & (generator.random(count) < 0.5),
        has_depth=generator.random(count) < 0.25,
        expiry=_drawn_expiry(count, generator),
    )
    changes.apply(observation, generator)

    reward = np.zeros((count, len(Action)), dtype=np.float32)
    valid = np.zeros((count, len(Action)), dtype=np.bool_)
    next_of_action = np.zeros((count, len(Action)), dtype=np.int64)
    prior = np.zeros((count, len(Action)), dtype=np.float32)
    label = np.zeros(count, dtype=np.int64)
    move = np.zeros(count, dtype=np.float32)
    next_accounts: list[Account] = []
    for i, (row, account) in enumerate(zip(chosen, accounts, strict=True)):
        outcome = _outcome(table, int(row), account, generator)
        reward[i], valid[i], next_of_action[i] = outcome.reward, outcome.valid, outcome.next_index
        label[i], move[i] = outcome.label, outcome.move
        prior[i] = prior_policy(table.labels.prior, table.features[row], account.sign)
        next_accounts.extend(outcome.accounts)
    next_rows = np.repeat(chosen + table.labels.commit_bars, 3)
    three = np.repeat(np.arange(count), 3)
    next_observation = table.observe(
        next_rows,
        next_accounts,
        visible=np.minimum(visible + table.labels.commit_bars, table.window)[three],
        is_unknown=is_unknown[three],
    )
    changes.rows(three).apply(next_observation, generator)
    later = table.volatility[chosen + table.labels.commit_bars]
    return Samples(
        observation=observation,
        reward=reward,
        valid=valid,
        prior=prior,
        label=label,
        move=move,
        next_observation=next_observation,
        next_of_action=next_of_action,
        next_unit=(later / table.volatility[chosen]).astype(np.float32),
    )


@dataclass(frozen=True, slots=True)
class _Outcome:
    reward: NDArray[np.float32]
    valid: NDArray[np.bool_]
    next_index: IntArray
    label: int
    move: float
    accounts: list[Account]


def _outcome(
    table: MarketTable, row: int, account: Account, generator: np.random.Generator
) -> _Outcome:
    later = row + table.labels.commit_bars
    move = float(table.forward[row]) / table.unit(row)
    cost = table.side_cost(row)
    flat = Account(capital=account.capital)
    if account.sign:
        close = Action.CLOSE_LONG if account.sign > 0 else Action.CLOSE_SHORT
        effects = {Action.HOLD: (account.sign, 0.0, 0), close: (0, cost, 1)}
        stayed = table.aged(account, later)
        accounts = [stayed, flat, flat]
    else:
        effects = {
            Action.HOLD: (0, 0.0, 0),
            Action.BUY_LONG: (1, cost, 1),
            Action.SELL_SHORT: (-1, cost, 2),
        }
        size = _drawn_size(generator)
        entered = [table.opened(row, sign, size, account.capital) for sign in (1, -1)]
        accounts = [flat, *(table.aged(a, later) for a in entered)]
    reward = np.zeros(len(Action), dtype=np.float32)
    valid = np.zeros(len(Action), dtype=np.bool_)
    next_index = np.zeros(len(Action), dtype=np.int64)
    for action, (sign, paid, index) in effects.items():
        reward[action] = sign * move - paid
        valid[action] = True
        next_index[action] = index
    label = _barrier_action(int(table.barrier[row]), account.sign)
    return _Outcome(reward, valid, next_index, label, move, accounts)


def _barrier_action(barrier: int, sign: int) -> int:
    """Say what one would do in this position if the touched barrier (1 up, 2 down) were known."""
    direction = {0: 0, 1: 1, 2: -1}[barrier]
    if sign == 0:
        return int({0: Action.HOLD, 1: Action.BUY_LONG, -1: Action.SELL_SHORT}[direction])
    if direction == -sign:
        return int(Action.CLOSE_LONG if sign > 0 else Action.CLOSE_SHORT)
    return int(Action.HOLD)


def _drawn_size(generator: np.random.Generator) -> float:
    return float(generator.uniform(0.2, 1.0))


def _drawn_account(table: MarketTable, row: int, generator: np.random.Generator) -> Account:
    """Imagine what is held when bar `row` closes: nothing, or a position of 1 to 24 bars."""
    capital = float(np.clip(1.0 + 0.05 * generator.standard_normal(), 0.5, 1.5))
    sign = int(generator.choice([0, 1, -1], p=[0.4, 0.3, 0.3]))
    age = int(generator.integers(1, 25))
    size = _drawn_size(generator)
    entry = row - age
    if sign == 0 or not np.isfinite(table.atr[entry]):
        return Account(capital=capital)
    return table.aged(table.opened(entry, sign, size, capital), row)


def _drawn_expiry(count: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Draw how near an expiry is, [count], 0 (not known) for three samples in four."""
    days = generator.integers(0, LONGEST_EXPIRY_DAYS + 1, count)
    is_known = generator.random(count) < 0.25
    return np.where(is_known, 1.0 / (1.0 + days), 0.0).astype(np.float32)


@dataclass(frozen=True, slots=True)
class _ColumnChanges:
    """Say which columns of which samples are hidden or drawn, [B] each."""

    no_volume: NDArray[np.bool_]
    is_young: NDArray[np.bool_]  # nothing that looks back further than the bars shown
    no_day: NDArray[np.bool_]
    has_depth: NDArray[np.bool_]
    expiry: NDArray[np.float32]

    def rows(self, index: IntArray) -> "_ColumnChanges":
        """Return the changes of the samples at `index`."""
        return _ColumnChanges(
            self.no_volume[index],
            self.is_young[index],
            self.no_day[index],
            self.has_depth[index],
            self.expiry[index],
        )

    def apply(self, observation: Observation, generator: np.random.Generator) -> None:
        """Change the bars in place; what the history knows itself is never drawn."""
        bars, mask = observation.bars, observation.bars_mask
        for is_hidden, columns in (
            (self.no_volume, VOLUME_COLUMNS),
            (self.is_young, LONG_COLUMNS),
            (self.no_day, DAY_COLUMNS),
        ):
            kept = np.ones(bars.shape[2], dtype=np.float32)
            kept[columns] = 0.0
            bars[is_hidden] *= kept
        unknown = mask & (bars[:, :, EXPIRY_COLUMN] == 0.0)
        bars[:, :, EXPIRY_COLUMN] += unknown * self.expiry[:, None]
        drawn = np.stack(
            [
                generator.exponential(USUAL_SPREAD_ATR, mask.shape),
                generator.uniform(-1.0, 1.0, mask.shape),
                np.ones(mask.shape),
            ],
            axis=-1,
        )  # [B, T, 3]
        unknown = mask & (bars[:, :, DEPTH_COLUMNS[-1]] == 0.0) & self.has_depth[:, None]
        bars[:, :, DEPTH_COLUMNS] += (unknown[:, :, None] * drawn).astype(np.float32)
