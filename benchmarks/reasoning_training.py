"""Training and examining the two rivals on a task, under a budget that is the same for both.

The budget is processor time of the one training thread, so that other programs on the machine
cost neither of them anything; making puzzles and examining are outside it. Which tasks and sizes
are worth comparing is for `reasoning` to say.
"""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reasoning_models import OneShotTransformer, TokenHRM
from benchmarks.reasoning_tasks import NOT_SCORED, Puzzles
from hrm.act import AdaptiveComputationTime
from hrm.config import AdaptiveComputationConfig

SAVE_EVERY_SECONDS = 30.0
CALIBRATION_BINS = 10
EASIEST = 0.1  # share of the puzzles that the curriculum begins with
EXAMINED_AT_ONCE = 250


@dataclass(frozen=True)
class TrainingSettings:
    """Set how one rival is trained. Both get the same, but for what only the HRM has.

    seconds: processor time of the training thread. steps: end there if that comes first (for
    tests). m_max, m_min_prob, epsilon: as in the product's settings. segment_price: what the
    continue target loses per segment, in chances of being right. full_depth_share: of puzzles that
    think to m_max regardless of Q. curriculum_share: of the budget, at the start, in which the
    puzzles drawn go from the easiest tenth to all of them; for both rivals.
    """

    seconds: float
    steps: int | None = None
    batch: int = 64
    learning_rate: float = 1e-3
    warmup_share: float = 0.02
    weight_decay: float = 0.1
    gradient_clip: float = 1.0
    ema_decay: float = 0.995
    m_max: int = 8
    m_min_prob: float = 0.7
    epsilon: float = 0.1
    segment_price: float = 0.02
    full_depth_share: float = 0.25
    curriculum_share: float = 0.3
    device: str = "cpu"

    def act(self) -> AdaptiveComputationTime:
        """Build the halting rules."""
        return AdaptiveComputationTime(
            AdaptiveComputationConfig(
                m_max=self.m_max, m_min_prob=self.m_min_prob, epsilon=self.epsilon
            )
        )


class Trainer(Protocol):
    """One rival in training: `averaged` holds the weights that are examined."""

    model: nn.Module
    averaged: nn.Module
    optimiser: torch.optim.Optimizer
    settings: TrainingSettings

    def step(self, share: float = 1.0) -> float:
        """Take one optimiser step at `share` of the budget; return the loss of the answers."""
        ...

    def extra_state(self) -> dict[str, Tensor]:
        """Return what a step depends on beside weights and optimiser."""
        ...

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `extra_state` returned."""
        ...


def answer_loss(logits: Tensor, answers: Tensor) -> Tensor:
    """Return the cross-entropy of each row, the mean over its scored cells: [B]."""
    losses = F.cross_entropy(
        logits.transpose(1, 2), answers, ignore_index=NOT_SCORED, reduction="none"
    )  # [B, S]
    scored = answers != NOT_SCORED
    return losses.sum(dim=1) / scored.sum(dim=1).clamp_min(1)


def right_cells(logits: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Return the share of scored cells that are right, and whether all are: [B] float, [B] bool."""
    scored = answers != NOT_SCORED
    right = (logits.argmax(dim=-1) == answers) & scored
    share = right.sum(dim=1) / scored.sum(dim=1).clamp_min(1)
    return share, (right == scored).all(dim=1)


def _optimiser(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    embedded = {
        id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()
    }
    matrices = [p for p in model.parameters() if p.ndim > 1 and id(p) not in embedded]
    others = [p for p in model.parameters() if p.ndim <= 1 or id(p) in embedded]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95))


class _Pool:
    """Draw puzzles at random from those made for training, the easiest first."""

    def __init__(self, puzzles: Puzzles, settings: TrainingSettings, seed: int) -> None:
        easiest_first = puzzles.rows(np.argsort(puzzles.difficulty, kind="stable"))
        self.tokens = torch.from_numpy(easiest_first.tokens).to(settings.device)
        self.answers = torch.from_numpy(easiest_first.answers).to(settings.device)
        self.generator = torch.Generator().manual_seed(seed)
        self._curriculum_share = settings.curriculum_share

    def draw(self, count: int, share: float) -> tuple[Tensor, Tensor]:
        """Draw `count` puzzles when `share` of the budget is used."""
        done = 1.0 if self._curriculum_share == 0.0 else min(share / self._curriculum_share, 1.0)
        among = max(int(len(self.tokens) * (EASIEST + (1.0 - EASIEST) * done)), 1)
        rows = torch.randint(among, (count,), generator=self.generator)
        rows = rows.to(self.tokens.device)
        return self.tokens[rows], self.answers[rows]


class OneShotTrainer:
    """Train the transformer: every step a fresh batch."""

    def __init__(
        self, model: OneShotTransformer, settings: TrainingSettings, puzzles: Puzzles, seed: int
    ) -> None:
        self.settings = settings
        self.model: nn.Module = model.to(settings.device).train()
        self.averaged: nn.Module = copy.deepcopy(model).requires_grad_(requires_grad=False)
        self.optimiser: torch.optim.Optimizer = _optimiser(model, settings)
        self._pool = _Pool(puzzles, settings, seed)

    def step(self, share: float = 1.0) -> float:
        """Take one optimiser step at `share` of the budget; return the loss of the answers."""
        tokens, answers = self._pool.draw(self.settings.batch, share)
        loss = answer_loss(self.model(tokens), answers).mean()
        descend(self, loss)
        return float(loss.detach())

    def extra_state(self) -> dict[str, Tensor]:
        """Return the generator's state."""
        return {"generator": self._pool.generator.get_state()}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `extra_state` returned."""
        self._pool.generator.set_state(state["generator"])


class HRMTrainer:
    """Train the HRM by deep supervision: one step per segment, the carry detached.

    A batch is a set of slots; a slot whose Q says halt gets a new puzzle, the others think on.
    """

    def __init__(
        self, model: TokenHRM, settings: TrainingSettings, puzzles: Puzzles, seed: int
    ) -> None:
        self.settings = settings
        self.model: nn.Module = model.to(settings.device).train()
        self.averaged: nn.Module = copy.deepcopy(model).requires_grad_(requires_grad=False)
        self.optimiser: torch.optim.Optimizer = _optimiser(model, settings)
        self._hrm = model
        self._act = settings.act()
        self._pool = _Pool(puzzles, settings, seed)
        batch, device = settings.batch, settings.device
        z_h, z_l = model.core.initial_state(batch, device)
        tokens, answers = self._pool.draw(batch, 0.0)
        self._slots: dict[str, Tensor] = {
            "tokens": tokens,
            "answers": answers,
            "z_h": z_h.clone(),
            "z_l": z_l.clone(),
            "read": z_h[:, 0].clone(),  # what the Q head read one segment earlier
            "segment": torch.zeros(batch, dtype=torch.int64, device=device),
            "floor": self._floors(batch),
        }

    def _floors(self, count: int) -> Tensor:
        settings, generator = self.settings, self._pool.generator
        floors = self._act.draw_floors(count, generator)
        full = torch.rand(count, generator=generator) < settings.full_depth_share
        return torch.where(full, settings.m_max, floors).to(settings.device)

    def step(self, share: float = 1.0) -> float:
        """Refill halted slots, think one segment, take one optimiser step."""
        slots, model, act = self._slots, self._hrm, self._act
        state = model.segment((slots["z_h"], slots["z_l"]), slots["tokens"])
        logits, q = model.answers(state), model.q(state)
        segment = slots["segment"] + 1
        _, correct = right_cells(logits.detach(), slots["answers"])
        loss = answer_loss(logits, slots["answers"]).mean()
        halt = act.halt_loss(q[:, 0], correct.float()).mean()
        # One segment later the best Q is known: what Q_continue should have said before.
        said = model.q_head(slots["read"])[:, 1]
        onward = act.onward_loss(said, q, segment, self.settings.segment_price)
        onward = (onward * (segment > 1)).mean()
        descend(self, loss + 0.5 * (halt + onward))

        ignored = act.draw_ignored(len(segment), self._pool.generator)
        halts = act.should_halt(q.detach(), segment, slots["floor"], ignored)
        slots["z_h"], slots["z_l"] = state[0].detach(), state[1].detach()
        slots["read"] = slots["z_h"][:, 0]
        slots["segment"] = segment
        self._refill(halts, share)
        return float(loss.detach())

    def _refill(self, halts: Tensor, share: float) -> None:
        rows = halts.nonzero().squeeze(-1)
        if len(rows) == 0:
            return
        slots = self._slots
        tokens, answers = self._pool.draw(len(rows), share)
        z_h, z_l = self._hrm.core.initial_state(len(rows), self.settings.device)
        fresh = {
            "tokens": tokens,
            "answers": answers,
            "z_h": z_h,
            "z_l": z_l,
            "segment": torch.zeros_like(rows),
            "floor": self._floors(len(rows)),
        }
        for name, value in fresh.items():
            slots[name][rows] = value

    def extra_state(self) -> dict[str, Tensor]:
        """Return the slots and the generator's state."""
        return {**self._slots, "generator": self._pool.generator.get_state()}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `extra_state` returned."""
        self._pool.generator.set_state(state["generator"])
        self._slots = {name: state[name] for name in self._slots}


def descend(trainer: Trainer, loss: Tensor) -> None:
    """Take one clipped optimiser step; raise FloatingPointError for a loss that is no number."""
    if not bool(torch.isfinite(loss)):
        raise FloatingPointError(f"the loss is {loss.item()}: lower the learning rate")
    trainer.optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.settings.gradient_clip)
    trainer.optimiser.step()


@dataclass
class Progress:
    """Count what a training has used and reached so far; curve rows are [seconds, loss, score]."""

    steps: int = 0
    seconds: float = 0.0
    curve: list[list[float]] | None = None

    def share(self, settings: TrainingSettings) -> float:
        """Return how much of the budget is used, 0 to 1."""
        used = self.seconds / settings.seconds
        if settings.steps is not None:
            used = max(used, self.steps / settings.steps)
        return min(used, 1.0)


def _learning_rate(settings: TrainingSettings, share: float) -> float:
    """Rise linearly, hold for half of the budget, then fall along a cosine to a tenth."""
    if share < settings.warmup_share:
        return settings.learning_rate * max(share / settings.warmup_share, 0.01)
    falling = max(share - 0.5, 0.0) / 0.5
    return settings.learning_rate * (0.1 + 0.45 * (1.0 + math.cos(math.pi * falling)))


@torch.no_grad()
def _average(trainer: Trainer, steps: int) -> None:
    # Early on a long average would still be mostly the random start.
    decay = min(trainer.settings.ema_decay, (1 + steps) / (10 + steps))
    for kept, now in zip(trainer.averaged.parameters(), trainer.model.parameters(), strict=True):
        kept.lerp_(now, 1.0 - decay)


def train(
    trainer: Trainer,
    *,
    score: Callable[[nn.Module], float],
    checkpoint: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    looks: int = 12,
) -> Progress:
    """Train until the budget is spent; go on from `checkpoint` where there is one.

    score: looked at `looks` times on the averaged weights, outside the budget.
    """
    settings, progress = trainer.settings, Progress(curve=[])
    if checkpoint is not None and checkpoint.exists():
        progress = _restore(trainer, checkpoint)
    curve = cast("list[list[float]]", progress.curve)
    saved = progress.seconds
    loss_average = math.nan
    while progress.share(settings) < 1.0:
        for group in trainer.optimiser.param_groups:
            group["lr"] = _learning_rate(settings, progress.share(settings))
        before = _spent_seconds(settings.device)
        loss = trainer.step(progress.share(settings))
        _average(trainer, progress.steps)
        progress.seconds += _spent_seconds(settings.device) - before
        progress.steps += 1
        loss_average = loss if math.isnan(loss_average) else 0.98 * loss_average + 0.02 * loss
        if progress.share(settings) * looks >= len(curve) + 1:
            curve.append([round(progress.seconds, 1), loss_average, score(trainer.averaged)])
            say(
                f"{progress.seconds:7.1f} s  step {progress.steps:6d}  "
                f"loss {loss_average:.4f}  whole answers {curve[-1][2]:.3f}"
            )
        if checkpoint is not None and progress.seconds - saved >= SAVE_EVERY_SECONDS:
            _save(trainer, progress, checkpoint)
            saved = progress.seconds
    if checkpoint is not None:
        _save(trainer, progress, checkpoint)
    return progress


def _spent_seconds(device: str) -> float:
    """Read the clock of the budget: of the processor, or the wall's where a GPU does the work."""
    if device == "cpu":
        return time.thread_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _save(trainer: Trainer, progress: Progress, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "model": trainer.model.state_dict(),
        "averaged": trainer.averaged.state_dict(),
        "optimiser": trainer.optimiser.state_dict(),
        "extra": trainer.extra_state(),
        "progress": asdict(progress),
    }
    partial = path.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(path)


def _restore(trainer: Trainer, path: Path) -> Progress:
    content = torch.load(path, map_location=trainer.settings.device, weights_only=True)
    trainer.model.load_state_dict(content["model"])
    trainer.averaged.load_state_dict(content["averaged"])
    trainer.optimiser.load_state_dict(content["optimiser"])
    extra = content["extra"]
    extra["generator"] = extra["generator"].cpu()
    trainer.load_extra_state(extra)
    return Progress(**content["progress"])


def training_flops(trainer: Trainer, steps: int = 3) -> float:
    """Count the floating-point operations of one training step, forward and backward.

    Takes `steps` steps; give it a trainer that is not used afterwards.
    """
    with FlopCounterMode(display=False) as counter:
        for _ in range(steps):
            trainer.step()
    return float(counter.get_total_flops()) / steps


# --- examining ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Examination:
    """Hold what an HRM said about N puzzles after each of M segments.

    cells [M, N] share of right cells, whole [M, N] bool, halt and onward [M, N] chances from Q.
    """

    cells: NDArray[np.float64]
    whole: NDArray[np.bool_]
    halt: NDArray[np.float64]
    onward: NDArray[np.float64]

    def depths(self, m_max: int) -> NDArray[np.int64]:
        """Return the segment, from 1, at which each puzzle would halt: [N]."""
        wants = self.halt[:m_max] > self.onward[:m_max]
        wants[-1] = True
        return np.asarray(wants.argmax(axis=0) + 1, dtype=np.int64)


@torch.no_grad()
def examine(model: TokenHRM, puzzles: Puzzles, segments: int) -> Examination:
    """Let an HRM think `segments` segments about every puzzle, reading it after each."""
    device = model.core.z_h_start.device
    parts: list[list[list[NDArray[Any]]]] = []
    for start in range(0, len(puzzles), EXAMINED_AT_ONCE):
        some = puzzles.rows(slice(start, start + EXAMINED_AT_ONCE))
        tokens = torch.from_numpy(some.tokens).to(device)
        answers = torch.from_numpy(some.answers).to(device)
        state = model.core.initial_state(len(some), device)
        rows: list[list[NDArray[Any]]] = []
        for _ in range(segments):
            state = model.segment(state, tokens)
            share, whole = right_cells(model.answers(state), answers)
            chances = torch.sigmoid(model.q(state))
            rows.append([x.cpu().numpy() for x in (share, whole, chances[:, 0], chances[:, 1])])
        parts.append(rows)
    joined = [
        np.stack(
            [
                np.concatenate([part[segment][field] for part in parts])
                for segment in range(segments)
            ]
        )
        for field in range(4)
    ]
    return Examination(
        joined[0].astype(np.float64), joined[1], joined[2].astype(np.float64), joined[3]
    )


@torch.no_grad()
def examine_one_shot(
    model: OneShotTransformer, puzzles: Puzzles
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the share of right cells and whether all are, per puzzle: [N], [N]."""
    device = model.answer_head.weight.device
    cells, whole = [], []
    for start in range(0, len(puzzles), EXAMINED_AT_ONCE):
        some = puzzles.rows(slice(start, start + EXAMINED_AT_ONCE))
        logits = model(torch.from_numpy(some.tokens).to(device))
        share, right = right_cells(logits, torch.from_numpy(some.answers).to(device))
        cells.append(share.cpu().numpy().astype(np.float64))
        whole.append(right.cpu().numpy())
    return np.concatenate(cells), np.concatenate(whole)


def expected_calibration_error(chances: NDArray[np.float64], happened: NDArray[np.bool_]) -> float:
    """Return the mean gap between chance and frequency over ten equal bins of [0, 1]."""
    bins = np.minimum((chances * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gap = 0.0
    for index in range(CALIBRATION_BINS):
        inside = bins == index
        if inside.any():
            gap += abs(chances[inside].mean() - happened[inside].mean()) * inside.mean()
    return float(gap)


def brier_skill(chances: NDArray[np.float64], happened: NDArray[np.bool_]) -> float | None:
    """Return one minus the Brier score over that of the base rate; None if nothing varies."""
    base = happened.mean()
    worst = float(((base - happened) ** 2).mean())
    if worst == 0.0:
        return None
    return 1.0 - float(((chances - happened) ** 2).mean()) / worst


def rank_correlation(one: NDArray[np.int64], other: NDArray[np.int64]) -> float | None:
    """Return Spearman's rank correlation, ties at their mean rank; None if one is constant."""

    def ranks(values: NDArray[np.int64]) -> NDArray[np.float64]:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        last = np.cumsum(counts)
        return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)

    a, b = ranks(one), ranks(other)
    if a.std() == 0.0 or b.std() == 0.0:
        return None
    return float(np.corrcoef(a, b)[0, 1])
