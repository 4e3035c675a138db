"""Deep supervision: one optimiser step after every segment of thought, on a detached state.

A batch is a set of slots. Each slot thinks about one sample; when its Q head says halt, it gets
the next sample, while the others think on. What is learned: the net utility of every action
(known for all of them, because the market does not depend on our position), the value of being
in a position, a size, and when further thought no longer changes the answer. Where samples come
from is for `samples`.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor

from hrm.act import AdaptiveComputationTime
from hrm.config import HRMConfig
from hrm.convergence import follow_perturbation
from hrm.model import Heads, HierarchicalReasoningModel, State
from hrm.training.memory import recompute_activations
from hrm.training.precision import Precision, as_float32, autocast
from hrm.training.processes import Processes
from hrm.training.samples import Samples
from hrm.training.slots import Slots, as_inputs

DEFAULT_TEMPERATURE = 0.5
DEFAULT_CONTRACTION_WEIGHT = 1.0
DEFAULT_CONTRACTION_TARGET = 0.9  # lower, and the loop forgets what it has worked out
RUNAWAY_LOSS = 5.0  # all terms are of order one: a rise by five of the smoothed loss is no noise

Source = Callable[[int, np.random.Generator], Samples]


class TrainingDivergedError(RuntimeError):
    """A loss or a gradient is no longer finite, or the loss has run away."""


@dataclass(frozen=True, slots=True)
class SupervisionSettings:
    """Set the optimiser and the weights of the loss.

    temperature: of the pull towards the prior policy, in volatilities of the commitment: where
    utilities differ by less, the prior decides. discount: per bar;
    commit_bars must be that of the labels.
    imitation_share: of all steps, at the start, that only imitate: the prior with the policy, the
    triple barrier with L's own reading, which goes on doing so.
    cut_share: of segments that end after a random number of cycles, so that an answer read early
    is nothing new. segment_price: what one more segment costs, in chances of a changed answer.
    full_depth_share: of samples that think to m_max regardless, to learn what halting forfeits.
    contraction_target: the factor per segment above which the growth of a small perturbation of
    the state is penalised, by the logarithm of the excess; below 1 the recursion forgets rounding
    errors. contraction_share: of slots in which it is measured.
    """

    steps: int
    learning_rate: float
    warmup_steps: int = 200
    weight_decay: float = 0.1
    gradient_clip: float = 1.0
    ema_decay: float = 0.999
    temperature: float = DEFAULT_TEMPERATURE
    discount: float = 0.93
    commit_bars: int = 8
    imitation_share: float = 0.1
    imitation_weight: float = 0.3
    value_weight: float = 0.5
    size_weight: float = 0.25
    halt_weight: float = 0.5
    risk_aversion: float = 0.1
    cut_share: float = 0.25
    segment_price: float = 0.02
    full_depth_share: float = 0.1
    contraction_weight: float = DEFAULT_CONTRACTION_WEIGHT
    contraction_target: float = DEFAULT_CONTRACTION_TARGET
    contraction_share: float = 0.25


@dataclass(frozen=True, slots=True)
class StepReport:
    """Report one optimiser step: loss terms, gradient norm before clipping, depth, refills.

    growth: the factor by which a small perturbation grew over the segment; 0 if not measured.
    """

    step: int
    loss: float
    policy: float
    entropy: float
    prior: float
    value: float
    imitation: float
    size: float
    halt: float
    contraction: float
    growth: float
    gradient_norm: float
    learning_rate: float
    mean_segment: float
    refilled: int

    def as_dict(self) -> dict[str, float]:
        """Return the report as one line of metrics."""
        return asdict(self)


class DeepSupervision:
    """Train a model segment by segment; `serving` holds the averaged weights that are released.

    Everything that decides the next step is in `state_tensors`, the generator's state and torch's
    own: restored, training goes on as if it had never stopped, bit by bit.
    """

    def __init__(
        self,
        model: HierarchicalReasoningModel,
        settings: SupervisionSettings,
        source: Source,
        generator: np.random.Generator,
        *,
        precision: Precision = "float32",
        recompute: bool = False,
        processes: Processes | None = None,
    ) -> None:
        """Take over the model; recompute: keep fewer activations, to the same result.

        processes: those that train this model together, each with its share of the batch and, in
        `source` and `generator`, with samples of its own.
        """
        self.processes = processes or Processes()
        self._batch = self.processes.share(model.config.training.segment_batch_size)
        self._precision = precision
        self.model = model.train()
        self.serving = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
        self.settings = settings
        self.generator = generator
        self.steps_done = 0
        self.source = source
        self._config: HRMConfig = model.config
        self._act = AdaptiveComputationTime(model.config.adaptive_computation)
        self._optimiser = _optimiser(model, settings)
        self._slots: Slots | None = None
        self._loss_average = 0.0
        self._loss_lowest = math.inf
        if recompute:
            recompute_activations(self.model)

    def step(self) -> StepReport:
        """Refill halted slots, think one segment, take one optimiser step.

        Raise TrainingDivergedError rather than go on with numbers that mean nothing.
        """
        slots, refilled = self._filled_slots()
        rate = self._set_learning_rate()
        cycles = None
        n_cycles = self._config.convergence.n_cycles
        if n_cycles > 1 and self.generator.random() < self.settings.cut_share:
            cycles = int(self.generator.integers(1, n_cycles))

        before = (slots.z_h, slots.z_l)
        with autocast(self._precision):
            encoded = self.model.encode(slots.inputs())
            state = self.model.segment(before, encoded, cycles=cycles)
            heads = self.model.heads(state)
        heads = as_float32(heads)
        self._remember(slots, state, heads)
        depth = float(slots.segment.float().mean())
        terms = self._losses(slots, heads) | self._contraction(before, encoded)
        terms["loss"] = terms["loss"] + self.settings.contraction_weight * terms["contraction"]
        loss = terms["loss"]

        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.processes.average_gradients(list(self.model.parameters()))
        figures = self.processes.average({name: term.item() for name, term in terms.items()})
        norm = self._clip_gradients()
        self._check_progress(figures["loss"], norm)
        self._optimiser.step()
        self._average_weights()
        self.steps_done += 1
        return StepReport(
            step=self.steps_done,
            **figures,
            gradient_norm=norm,
            learning_rate=rate,
            mean_segment=depth,
            refilled=refilled,
        )

    def state_tensors(self) -> dict[str, Tensor]:
        """Return all weights, averages, moments and slots, by name; torch's random state is not
        one."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"serving.{k}": v for k, v in self.serving.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self._optimiser.state.get(parameter, {}).items():
                tensors[f"optimiser.{name}/{key}"] = value
        if self._slots is not None:
            tensors |= {f"slots.{k}": v for k, v in self._slots.tensors().items()}
        tensors["progress"] = torch.tensor(
            [self.steps_done, self._loss_average, self._loss_lowest], dtype=torch.float64
        )
        return {name: value.detach().clone().contiguous() for name, value in tensors.items()}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned; the settings must be the same."""
        groups: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            group, _, rest = name.partition(".")
            groups.setdefault(group, {})[rest] = value.clone()
        self.model.load_state_dict(groups["model"])
        self.serving.load_state_dict(groups["serving"])
        parameters = dict(self.model.named_parameters())
        for name, value in groups.get("optimiser", {}).items():
            parameter, _, key = name.rpartition("/")
            self._optimiser.state[parameters[parameter]][key] = value
        self._slots = Slots(**groups["slots"]) if "slots" in groups else None
        progress = tensors["progress"].tolist()
        self.steps_done = int(progress[0])
        self._loss_average, self._loss_lowest = progress[1], progress[2]

    def _filled_slots(self) -> tuple[Slots, int]:
        """Give every slot that has halted a new sample."""
        if self._slots is None:
            self._slots = self._new_slots(self._batch)
            return self._slots, self._batch
        index = (self._slots.segment == 0).nonzero().squeeze(-1)
        if len(index):
            fresh = self._new_slots(len(index))
            for name, value in fresh.tensors().items():
                getattr(self._slots, name)[index] = value
        return self._slots, len(index)

    def _new_slots(self, count: int) -> Slots:
        samples = self.source(count, self.generator)
        inputs = as_inputs(samples.observation)
        act = self._config.adaptive_computation
        z_h, z_l = self.serving.initial_state(count)
        floor = self._act.draw_floors(count)
        floor[torch.rand(count) < self.settings.full_depth_share] = act.m_max
        return Slots(
            bars=inputs.bars,
            bars_mask=inputs.bars_mask,
            instrument=inputs.instrument,
            timeframe=inputs.timeframe,
            account=inputs.account,
            context=inputs.context,
            utility=self._utility(samples),
            valid=torch.from_numpy(samples.valid),
            prior=torch.from_numpy(samples.prior),
            label=torch.from_numpy(samples.label),
            move=torch.from_numpy(samples.move),
            z_h=z_h.clone(),
            z_l=z_l.clone(),
            segment=torch.zeros(count, dtype=torch.int64),
            floor=floor,
            read=torch.zeros(count, act.m_max, z_h.shape[-1]),
            answers=torch.zeros(count, act.m_max, dtype=torch.int64),
        )

    @torch.no_grad()
    def _utility(self, samples: Samples) -> Tensor:
        """Add to each action's reward the discounted value of where it leads: [B, 5]."""
        inputs = as_inputs(samples.next_observation)
        state = self.serving.initial_state(len(inputs))
        state = self.serving.segment(state, self.serving.encode(inputs))
        value = self.serving.heads(state).value.view(-1, 3)  # [B, 3]
        discount = self.settings.discount**self.settings.commit_bars
        later = discount * value * torch.from_numpy(samples.next_unit)[:, None]
        following = later.gather(1, torch.from_numpy(samples.next_of_action))  # [B, 5]
        return torch.from_numpy(samples.reward) + following

    def _remember(self, slots: Slots, state: tuple[Tensor, Tensor], heads: Heads) -> None:
        rows = torch.arange(len(slots.segment))
        slots.z_h, slots.z_l = state[0].detach().float(), state[1].detach().float()
        slots.read[rows, slots.segment] = slots.z_h[:, 0]
        slots.answers[rows, slots.segment] = _masked(heads.action_logits, slots.valid).argmax(-1)
        slots.segment = slots.segment + 1

    def _losses(self, slots: Slots, heads: Heads) -> dict[str, Tensor]:
        s = self.settings
        logits = _masked(heads.action_logits, slots.valid)
        low_logits = _masked(heads.l_logits, slots.valid)
        imitation = F.cross_entropy(low_logits, slots.label)
        halt = self._halt_loss(slots, heads)
        log_pi = torch.log_softmax(logits, dim=-1).masked_fill(~slots.valid, 0.0)
        pi = log_pi.exp() * slots.valid
        entropy = -(pi * log_pi).sum(-1).mean()
        # The prior's cross-entropy, not the policy's: it keeps pulling at a policy that has
        # collapsed onto one action, where the utilities' own gradient has died.
        prior = -(slots.prior * log_pi).sum(-1).mean()
        expected = (pi * slots.utility).sum(-1)  # [B]
        if self.steps_done < s.imitation_share * s.steps:
            loss = prior + s.imitation_weight * imitation + s.halt_weight * halt
            zero = loss.new_zeros(())
            return {
                "loss": loss,
                "policy": zero,
                "entropy": entropy,
                "prior": prior,
                "value": zero,
                "imitation": imitation,
                "size": zero,
                "halt": halt,
            }
        # Linear in the utility, so that the noise of single outcomes averages out.
        mean = (slots.utility * slots.valid).sum(-1, keepdim=True) / slots.valid.sum(
            -1, keepdim=True
        )
        policy = -(pi * (slots.utility - mean)).sum(-1).mean()
        value = F.smooth_l1_loss(heads.value, expected.detach())
        # The gain of the side that the policy favours; its best size is E[gain] / risk_aversion.
        side = (pi[:, 0] + pi[:, 3] - pi[:, 1] - pi[:, 2]).detach().sign()
        gain = side * slots.move
        size = (-heads.size * gain + 0.5 * s.risk_aversion * heads.size**2).mean()
        loss = (
            policy
            + s.temperature * prior
            + s.value_weight * value
            + s.size_weight * size
            + s.imitation_weight * imitation
            + s.halt_weight * halt
        )
        return {
            "loss": loss,
            "policy": policy,
            "entropy": entropy,
            "prior": prior,
            "value": value,
            "imitation": imitation,
            "size": size,
            "halt": halt,
        }

    def _contraction(self, state: State, encoded: Tensor) -> dict[str, Tensor]:
        """Measure how a small perturbation grows over a segment, and penalise the excess.

        In float32 and without dropout, as when serving; the gradient runs through the last cycle,
        and into the loop only: what the encoder says is taken as given.
        """
        zero = encoded.new_zeros((), dtype=torch.float32)
        s = self.settings
        if s.contraction_weight == 0.0:
            return {"contraction": zero, "growth": zero}
        rows = max(1, round(s.contraction_share * len(encoded)))  # slots are alike: any will do
        _, growth = follow_perturbation(
            self.model.core,
            (state[0][:rows], state[1][:rows]),
            encoded[:rows].detach().float(),
            cycles=self._config.convergence.n_cycles,
        )
        excess = F.relu(growth - math.log(s.contraction_target)).mean()
        return {"contraction": excess, "growth": growth.detach().mean().exp()}

    def _halt_loss(self, slots: Slots, heads: Heads) -> Tensor:
        """Teach the Q head, and mark with segment 0 the slots that have finished.

        Continue: one segment later the best Q is known, less the price of that segment; the
        read-out kept from before is scored against it. Halt: was the answer already that of full
        depth? Only slots that went there can tell, all their segments at once. The Q head alone
        learns from this: what it reads is detached.
        """
        act = self._config.adaptive_computation
        count = len(slots.segment)
        q = heads.q.detach()
        loss = heads.q.new_zeros(())
        later = (slots.segment > 1).nonzero().squeeze(-1)
        if len(later):
            before = slots.read[later, slots.segment[later] - 2]
            onward = self.model.q_head(before)[:, 1]
            loss = (
                loss
                + self._act.onward_loss(
                    onward, q[later], slots.segment[later], self.settings.segment_price
                ).sum()
            )
        full = (slots.segment == act.m_max).nonzero().squeeze(-1)
        if len(full):
            agrees = (slots.answers[full] == slots.answers[full, -1:]).float()  # [n, M]
            halt = self._act.halt_loss(self.model.q_head(slots.read[full])[..., 0], agrees)
            loss = loss + halt.mean(-1).sum()  # a sample counts once, however deep it went

        ignored = self._act.draw_ignored(count)
        halts = self._act.should_halt(q, slots.segment, slots.floor, ignored)
        slots.segment = torch.where(halts, 0, slots.segment)
        return loss / count

    def _clip_gradients(self) -> float:
        """Clip the Q head by itself, lest its errors shrink all other steps; return the norm."""
        limit = self.settings.gradient_clip
        q_head = list(self.model.q_head.parameters())
        own = {id(p) for p in q_head}
        rest = [p for p in self.model.parameters() if id(p) not in own]
        q_norm = torch.nn.utils.clip_grad_norm_(q_head, limit)
        norm = torch.nn.utils.clip_grad_norm_(rest, limit)
        return math.hypot(float(norm), float(q_norm))

    def _set_learning_rate(self) -> float:
        """Rise linearly, then fall along a cosine to a tenth."""
        s = self.settings
        if self.steps_done < s.warmup_steps:
            factor = (self.steps_done + 1) / s.warmup_steps
        else:
            done = (self.steps_done - s.warmup_steps) / max(s.steps - s.warmup_steps, 1)
            factor = 0.1 + 0.45 * (1.0 + math.cos(math.pi * min(done, 1.0)))
        rate = s.learning_rate * factor
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        return rate

    @torch.no_grad()
    def _average_weights(self) -> None:
        # Early on a long average would still be mostly the random start.
        decay = min(self.settings.ema_decay, (1 + self.steps_done) / (10 + self.steps_done))
        averages = dict(self.serving.named_parameters())
        for name, parameter in self.model.named_parameters():
            averages[name].lerp_(parameter, 1.0 - decay)

    def _check_progress(self, loss: float, norm: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingDivergedError(
                f"loss {loss} and gradient norm {norm} at step {self.steps_done + 1}: lower the "
                "learning rate and start again from the last checkpoint"
            )
        first = self.steps_done == 0
        self._loss_average = loss if first else 0.99 * self._loss_average + 0.01 * loss
        self._loss_lowest = min(self._loss_lowest, self._loss_average)
        if self._loss_average > self._loss_lowest + RUNAWAY_LOSS:
            raise TrainingDivergedError(
                f"the average loss rose from {self._loss_lowest:.3f} to {self._loss_average:.3f} "
                f"by step {self.steps_done + 1}: lower the learning rate"
            )


def _masked(logits: Tensor, valid: Tensor) -> Tensor:
    return logits.masked_fill(~valid, -1e9)


def _optimiser(
    model: HierarchicalReasoningModel, settings: SupervisionSettings
) -> torch.optim.AdamW:
    """Decay the matrices only: embeddings and biases have no scale that decay would keep."""
    embeddings = {
        id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()
    }
    parameters = list(model.parameters())
    matrices = [p for p in parameters if p.ndim > 1 and id(p) not in embeddings]
    others = [p for p in parameters if p.ndim <= 1 or id(p) in embeddings]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
    )
