"""How good is a model on bars it did not learn from: net of costs, with intervals, no flattery.

The policy is the model's own best valid action, with the same halting rule as live; no noise, no
threshold. Positions are closed by the trading rules' stop (1.5 average true ranges, trailing) and
target (3) as well.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hrm.act import AdaptiveComputationTime
from hrm.config import Action
from hrm.convergence import perturbation_growth
from hrm.features import CONTEXT_NAMES, valid_actions
from hrm.model import HierarchicalReasoningModel, ModelInputs
from hrm.training.market_table import Account, MarketTable
from hrm.training.slots import as_inputs

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

COMPLEXITY_COLUMN = CONTEXT_NAMES.index("complexity")
TARGET_ATR = 3.0
TRACK_BARS = 250  # evaluated side by side, each starting flat, to think in batches
BLOCK_BARS = 24  # of the bootstrap: neighbouring bars share a position
RESAMPLES = 1000
GROWTH_ROWS = 64  # of the rows scored, spread evenly, on which the growth of perturbations is taken
GROWTH_SEGMENTS = 4


@dataclass(frozen=True, slots=True)
class Answer:
    """Hold decisions: action [B], its probability [B], logits [B, 5] with invalid actions masked,
    size [B], segments thought [B].
    """

    action: Tensor
    probability: Tensor
    logits: Tensor
    size: Tensor
    segments: Tensor


@torch.no_grad()
def decide(model: HierarchicalReasoningModel, inputs: ModelInputs, valid: Tensor) -> Answer:
    """Think about each row to its own halt and take the best valid action.

    valid: [B, 5]. The model must be in evaluation mode.
    """
    act = AdaptiveComputationTime(model.config.adaptive_computation)
    conclusion = act.think(model, inputs, inputs.context[:, COMPLEXITY_COLUMN])
    logits = conclusion.heads.action_logits.masked_fill(~valid, -1e9)
    probability, action = torch.softmax(logits, dim=-1).max(-1)
    return Answer(action, probability, logits, conclusion.heads.size, conclusion.segments)


@dataclass(frozen=True, slots=True)
class Trades:
    """Hold what trading a stretch of bars gave, bar by bar, [N] each.

    net: log return after costs; action: what was decided; held: the sign held after it.
    """

    net: FloatArray
    gross: FloatArray
    action: IntArray
    held: IntArray
    rows: IntArray
    segments: IntArray
    entries: int
    stops: int
    mean_size: float


def trade(
    model: HierarchicalReasoningModel, table: MarketTable, rows: IntArray, cost_bps: float
) -> Trades:
    """Trade the given rows (stretches of neighbouring rows) greedily, filled at the next open.

    cost_bps: per side; it need not be the cost trained with. Each stretch, and each piece of
    TRACK_BARS of it, starts flat and is closed at its end.
    """
    tracks = _tracks(rows)
    longest = max(len(track) for track in tracks)
    accounts = [Account() for _ in tracks]
    record: list[list[_Bar]] = [[] for _ in tracks]
    sizes: list[float] = []
    for step in range(longest):
        running = [i for i, track in enumerate(tracks) if step < len(track)]
        now = np.array([tracks[i][step] for i in running], dtype=np.int64)
        held = [table.aged(accounts[i], int(r)) for i, r in zip(running, now, strict=True)]
        valid = np.stack([valid_actions(account.sign) for account in held])
        answer = decide(model, as_inputs(table.observe(now, held)), torch.from_numpy(valid))
        for k, i in enumerate(running):
            is_last = step == len(tracks[i]) - 1
            action = Action(int(answer.action[k]))
            accounts[i], bar = _next_bar(
                table, int(now[k]), held[k], action, cost_bps, is_last=is_last
            )
            bar.segments = int(answer.segments[k])
            record[i].append(bar)
            if action in (Action.BUY_LONG, Action.SELL_SHORT):
                sizes.append(float(answer.size[k]))
    bars = [bar for track in record for bar in track]
    return Trades(
        net=np.array([bar.gross - bar.cost for bar in bars]),
        gross=np.array([bar.gross for bar in bars]),
        action=np.array([bar.action for bar in bars], dtype=np.int64),
        held=np.array([bar.held for bar in bars], dtype=np.int64),
        rows=np.concatenate(tracks),
        segments=np.array([bar.segments for bar in bars], dtype=np.int64),
        entries=sum(bar.action in (Action.BUY_LONG, Action.SELL_SHORT) for bar in bars),
        stops=sum(bar.is_stopped for bar in bars),
        mean_size=float(np.mean(sizes)) if sizes else 0.0,
    )


def scores(
    model: HierarchicalReasoningModel, table: MarketTable, rows: IntArray, cost_bps: float
) -> dict[str, object]:
    """Score a model on rows it did not learn from, beside doing nothing and holding throughout."""
    trades = trade(model, table, rows, cost_bps)
    count = len(trades.net)
    low, high = bootstrap_interval(trades.net)
    drift = np.log(table.open[trades.rows + 2] / table.open[trades.rows + 1])
    drift_low, drift_high = bootstrap_interval(drift)
    shares = np.bincount(trades.action, minlength=len(Action)) / count
    unit = np.array([table.volatility[row] for row in trades.rows])
    auc, auc_error = direction_auc(model, table, rows)
    return {
        "bars": count,
        "net_bps_per_bar": _bps(trades.net.mean()),
        "net_bps_per_bar_ci95": [_bps(low), _bps(high)],
        "net_volatilities_per_bar": round(float((trades.net / unit).mean()), 5),
        "gross_bps_per_bar": _bps(trades.gross.mean()),
        "flat_bps_per_bar": 0.0,
        "buy_and_hold_bps_per_bar": _bps(drift.mean()),
        "buy_and_hold_bps_per_bar_ci95": [_bps(drift_low), _bps(drift_high)],
        "direction_auc": round(auc, 4),
        "direction_auc_standard_error": round(auc_error, 4),
        "trades_per_100_bars": round(100.0 * trades.entries / count, 2),
        "stopped_or_target_per_100_bars": round(100.0 * trades.stops / count, 2),
        "share_of_bars_in_position": round(float(np.mean(trades.held != 0)), 4),
        "action_shares": {a.name: round(float(shares[a]), 4) for a in Action},
        "mean_size": round(trades.mean_size, 4),
        "perturbation_growth": growth_on(model, table, rows),
        "mean_segments": round(float(trades.segments.mean()), 3),
        "cost_bps_per_side": cost_bps,
        "shows_an_edge": bool(low > 0),
    }


def direction_auc(
    model: HierarchicalReasoningModel, table: MarketTable, rows: IntArray, batch: int = 256
) -> tuple[float, float]:
    """Score P(buy) - P(sell) when flat against the sign of the return over commit_bars.

    Returns the area under the curve and its standard error, widened for overlapping outcomes.
    """
    lean = []
    valid = torch.from_numpy(valid_actions(0))
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        inputs = as_inputs(table.observe(part, [Account()] * len(part)))
        answer = decide(model, inputs, valid.expand(len(part), -1))
        chance = torch.softmax(answer.logits, dim=-1)
        lean.append((chance[:, Action.BUY_LONG] - chance[:, Action.SELL_SHORT]).numpy())
    moves = table.forward[rows]
    return area_under_curve(np.concatenate(lean), moves > 0, overlap=table.labels.commit_bars)


@torch.no_grad()
def growth_on(model: HierarchicalReasoningModel, table: MarketTable, rows: IntArray) -> float:
    """Give the factor per segment by which a small change of the state grows at these rows."""
    part = rows[:: max(1, len(rows) // GROWTH_ROWS)]
    encoded = model.encode(as_inputs(table.observe(part, [Account()] * len(part))))
    growth = perturbation_growth(model.core, encoded, segments=GROWTH_SEGMENTS, seed=1)
    return float(f"{growth:.3g}")


def area_under_curve(
    score: FloatArray | NDArray[np.float32], is_positive: NDArray[np.bool_], overlap: int = 1
) -> tuple[float, float]:
    """Give the rank AUC (ties count half) and its standard error (Hanley and McNeil 1982)."""
    positives, negatives = int(is_positive.sum()), int((~is_positive).sum())
    if not positives or not negatives:
        return 0.5, 0.5
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks = (last - (counts - 1) / 2.0)[inverse]
    auc = (ranks[is_positive].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    one = auc / (2 - auc)
    two = 2 * auc**2 / (1 + auc)
    variance = auc * (1 - auc) + (positives - 1) * (one - auc**2) + (negatives - 1) * (two - auc**2)
    return float(auc), math.sqrt(max(variance, 0.0) * overlap / (positives * negatives))


def bootstrap_interval(values: FloatArray, level: float = 0.95) -> tuple[float, float]:
    """Give the interval of the mean by moving blocks of BLOCK_BARS, seeded, so always the same."""
    count = len(values)
    block = min(BLOCK_BARS, count)
    generator = np.random.default_rng(20_170_101)
    starts = generator.integers(0, count - block + 1, (RESAMPLES, math.ceil(count / block)))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    means = (sums[starts + block] - sums[starts]).mean(axis=1) / block
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    return float(low), float(high)


@dataclass(slots=True)
class _Bar:
    action: Action
    held: int
    gross: float
    cost: float
    is_stopped: bool
    segments: int = 0


def _next_bar(
    table: MarketTable,
    row: int,
    account: Account,
    action: Action,
    cost_bps: float,
    *,
    is_last: bool,
) -> tuple[Account, _Bar]:
    """Fill the action at the next open and carry the position through that bar."""
    cost = cost_bps * 1e-4
    filled, paid = row + 1, 0.0
    if action in (Action.CLOSE_LONG, Action.CLOSE_SHORT):
        account, paid = Account(), cost
    elif action in (Action.BUY_LONG, Action.SELL_SHORT):
        account = table.opened(row, 1 if action is Action.BUY_LONG else -1, 1.0, 1.0)
        paid = cost
    sign = account.sign
    if not sign:
        return account, _Bar(action, 0, 0.0, paid, is_stopped=False)
    start = float(table.open[filled])
    exit_price = _exit_price(table, filled, account)
    is_stopped = exit_price is not None
    end = float(table.open[filled + 1]) if exit_price is None else exit_price
    if is_stopped or is_last:
        paid += cost
        account = Account()
    gross = sign * math.log(end / start)
    return account, _Bar(action, sign, gross, paid, is_stopped=is_stopped)


def _exit_price(table: MarketTable, bar: int, account: Account) -> float | None:
    """Say where stop or target close the position within a bar; the stop is assumed first."""
    opened = float(table.open[bar])
    stop, sign = account.trailing_stop, account.sign
    target = account.entry_price + sign * TARGET_ATR * float(table.atr[account.entry_row])
    worst = float(table.low[bar] if sign > 0 else table.high[bar])
    best = float(table.high[bar] if sign > 0 else table.low[bar])
    if stop is not None and sign * (worst - stop) <= 0:
        return opened if sign * (opened - stop) <= 0 else stop
    if sign * (best - target) >= 0:
        return opened if sign * (opened - target) >= 0 else target
    return None


def _tracks(rows: IntArray) -> list[IntArray]:
    """Cut rows where they are not neighbours, and every TRACK_BARS."""
    stretches: Sequence[IntArray] = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    return [
        stretch[start : start + TRACK_BARS]
        for stretch in stretches
        for start in range(0, len(stretch), TRACK_BARS)
    ]


def _bps(log_return: float) -> float:
    return round(float(log_return) * 1e4, 4)
