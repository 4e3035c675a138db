"""The Hierarchical Reasoning Model: market encoder, looped core, heads. Read it top to bottom.

The encoder reads the bar window once. The core then thinks about that reading: a fast module L and
a slow module H update their states in turn, for as many cycles and segments as the caller allows.
How many that should be is for act.py and agent.py to say, not for this file.
"""

from dataclasses import dataclass, fields
from typing import Literal, cast

import torch
from torch import Tensor, nn

from hrm.config import ACCOUNT_WIDTH, Action, ArchitectureConfig, ConvergenceConfig, HRMConfig
from hrm.layers import QHead, Stack, initialise, truncated_normal_
from hrm.weights import SPECIAL_TOKENS

State = tuple[Tensor, Tensor]  # z_h [B, S, Dh], z_l [B, S, Dl]
Drops = tuple[Tensor | None, Tensor | None]  # dropout masks of H and of L, for one segment
Gradient = Literal["one_step", "last_cycle", "bptt"]

CALM_GAIN = 0.2  # growth of 0.7 to 0.9 per segment in every preset; 0.1 forgets twice as fast


@dataclass(frozen=True)
class ModelInputs:
    """Hold a batch of observations as tensors.

    bars [B, T, F] float32, oldest first; bars_mask [B, T] bool, True where the bar is present;
    instrument, timeframe [B] int64, 0 = unknown; account [B, 6] float32; context [B, C] float32.
    """

    bars: Tensor
    bars_mask: Tensor
    instrument: Tensor
    timeframe: Tensor
    account: Tensor
    context: Tensor

    def __len__(self) -> int:
        """Count the observations."""
        return self.bars.shape[0]

    def to(self, device: torch.device | str) -> "ModelInputs":
        """Return the same batch on another device."""
        return ModelInputs(*(value.to(device) for value in self._values()))

    def rows(self, index: Tensor) -> "ModelInputs":
        """Return the rows that index (int64 positions or a bool mask, [B]) picks."""
        return ModelInputs(*(value[index] for value in self._values()))

    def check_form(self, config: HRMConfig, device: torch.device) -> None:
        """Raise ValueError for a tensor of the wrong shape, type or device; values are not read."""
        batch, sizes = self.bars.shape[0], config.inputs
        window = (batch, sizes.window_bars)
        expected: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "bars": ((*window, sizes.n_features), torch.float32),
            "bars_mask": (window, torch.bool),
            "instrument": ((batch,), torch.int64),
            "timeframe": ((batch,), torch.int64),
            "account": ((batch, ACCOUNT_WIDTH), torch.float32),
            "context": ((batch, sizes.n_context), torch.float32),
        }
        for name, (shape, dtype) in expected.items():
            value: Tensor = getattr(self, name)
            if tuple(value.shape) != shape or value.dtype != dtype:
                raise ValueError(
                    f"{name} must be {dtype} of shape {list(shape)}, was {value.dtype} of shape "
                    f"{list(value.shape)}"
                )
            if value.device != device:
                raise ValueError(
                    f"{name} is on {value.device} but the model is on {device}: move one with .to()"
                )

    def check(self, config: HRMConfig) -> None:
        """Raise ValueError for a number that is not finite, or an embedding row that is not there.

        Separate from `check_form`, which every encode does, because this waits for the device.
        """
        for name in ("bars", "account", "context"):
            value: Tensor = getattr(self, name)
            finite = torch.isfinite(value)
            if not bool(finite.all()):
                place = tuple(int(i) for i in (~finite).nonzero()[0])
                raise ValueError(
                    f"{name}{list(place)} is {value[place].item()}: every input must be finite, "
                    "absent bars are zeros with bars_mask False"
                )
        sizes = {"instrument": config.inputs.instruments, "timeframe": config.inputs.timeframes}
        for name, size in sizes.items():
            rows: Tensor = getattr(self, name)
            outside = (rows < 0) | (rows >= size)
            if bool(outside.any()):
                raise ValueError(
                    f"{name} {int(rows[outside][0])} is outside the vocabulary 0..{size - 1}: use "
                    "0 for an unknown one, or grow_vocabulary first"
                )

    def _values(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Heads:
    """Hold what a state says.

    action_logits [B, 5], size [B] in (0, 1), value [B], q [B, 2], l_logits [B, 5]. size is a
    fraction of what the risk layer allows; q are logits (halt, continue); l_logits are what L alone
    would do, an auxiliary reading that no decision is taken from.
    """

    action_logits: Tensor
    size: Tensor
    value: Tensor
    q: Tensor
    l_logits: Tensor


class MarketEncoder(nn.Module):
    """Read bars, instrument, account and context once, into the tokens that the loop works on."""

    def __init__(self, config: HRMConfig) -> None:
        super().__init__()
        encoder, inputs = config.architecture.encoder, config.inputs
        self.patch_bars = encoder.patch_bars
        self.readouts = config.architecture.tokens_in_loop
        width = encoder.hidden_size
        patches = inputs.window_bars // encoder.patch_bars
        # One more number a bar: whether it is there, so that zeros are not read as prices at rest.
        self.patch = nn.Linear(encoder.patch_bars * (inputs.n_features + 1), width, bias=False)
        self.instrument = nn.Embedding(inputs.instruments, inputs.instrument_width)
        self.timeframe = nn.Embedding(inputs.timeframes, inputs.timeframe_width)
        identity_width = inputs.instrument_width + inputs.timeframe_width
        self.identity = nn.Linear(identity_width, width, bias=False)
        self.account = nn.Linear(ACCOUNT_WIDTH, width, bias=False)
        self.context = nn.Linear(inputs.n_context, width, bias=False)
        self.readout = nn.Embedding(self.readouts, width)  # the tokens handed to the loop
        self.kind = nn.Embedding(SPECIAL_TOKENS, width)  # tells apart tokens that may be zero
        self.stack = Stack(
            width,
            encoder.num_layers,
            encoder.feed_forward,
            encoder.num_heads,
            self.readouts + SPECIAL_TOKENS + patches,
            encoder.dropout,
        )
        loop_width = config.architecture.h_module.hidden_size
        self.to_loop = (
            nn.Identity() if width == loop_width else nn.Linear(width, loop_width, bias=False)
        )

    def forward(self, inputs: ModelInputs) -> Tensor:
        """Read a batch into [B, S, Dh]."""
        batch, bars, _ = inputs.bars.shape
        there = inputs.bars_mask.unsqueeze(-1)  # [B, T, 1]
        filled = torch.cat((inputs.bars.masked_fill(~there, 0.0), there.to(inputs.bars.dtype)), -1)
        patches = self.patch(filled.view(batch, bars // self.patch_bars, -1))  # [B, P, D]
        identity = torch.cat(
            (self.instrument(inputs.instrument), self.timeframe(inputs.timeframe)), dim=-1
        )
        special = torch.stack(
            (self.identity(identity), self.account(inputs.account), self.context(inputs.context)), 1
        )  # [B, 3, D]
        readout = self.readout.weight.expand(batch, -1, -1)
        tokens = torch.cat((readout, special + self.kind.weight, patches), dim=1)  # [B, N, D]
        always = there.new_ones(batch, self.readouts + SPECIAL_TOKENS)
        any_bar = inputs.bars_mask.view(batch, -1, self.patch_bars).any(dim=-1)  # [B, P]
        present = torch.cat((always, any_bar), dim=1)  # [B, N]
        read = self.stack(tokens, self.stack.draw_drops(tokens), present)
        return cast("Tensor", self.to_loop(read[:, : self.readouts]))


class HighLevelModule(nn.Module):
    """Update the slow state from itself and from what the fast module has reached."""

    def __init__(self, architecture: ArchitectureConfig) -> None:
        super().__init__()
        h, tokens = architecture.h_module, architecture.tokens_in_loop
        self.from_low = nn.Linear(architecture.l_module.hidden_size, h.hidden_size, bias=False)
        self.stack = Stack(
            h.hidden_size, h.num_layers, h.feed_forward, h.num_heads, tokens, h.dropout
        )

    def forward(self, z_h: Tensor, z_l: Tensor, drops: Tensor | None = None) -> Tensor:
        """Return the next z_h [B, S, Dh] from z_h [B, S, Dh] and z_l [B, S, Dl]."""
        return cast("Tensor", self.stack(z_h + self.from_low(z_l), drops))


class LowLevelModule(nn.Module):
    """Update the fast state from itself, the slow state and the encoded market."""

    def __init__(self, architecture: ArchitectureConfig) -> None:
        super().__init__()
        low, tokens = architecture.l_module, architecture.tokens_in_loop
        self.from_high = nn.Linear(architecture.h_module.hidden_size, low.hidden_size, bias=False)
        self.stack = Stack(
            low.hidden_size, low.num_layers, low.feed_forward, low.num_heads, tokens, low.dropout
        )

    def injection(self, z_h: Tensor, encoded: Tensor) -> Tensor:
        """Project what stays the same during one cycle, z_h + encoded [B, S, Dh], to [B, S, Dl]."""
        return cast("Tensor", self.from_high(z_h + encoded))

    def forward(self, z_l: Tensor, injection: Tensor, drops: Tensor | None = None) -> Tensor:
        """Return the next z_l [B, S, Dl] from z_l and `injection`, both [B, S, Dl]."""
        return cast("Tensor", self.stack(z_l + injection, drops))


class ReasoningCore(nn.Module):
    """Loop H and L over an encoding [B, S, Dh], wherever that encoding comes from."""

    z_h_start: Tensor
    z_l_start: Tensor

    def __init__(
        self, architecture: ArchitectureConfig, convergence: ConvergenceConfig, gradient: Gradient
    ) -> None:
        super().__init__()
        self.n_cycles = convergence.n_cycles
        self.t_timesteps = convergence.t_timesteps
        self.gradient: Gradient = gradient
        self.tokens = architecture.tokens_in_loop
        self.h_module = HighLevelModule(architecture)
        self.l_module = LowLevelModule(architecture)
        # Where thinking starts: drawn once, saved with the weights, never trained. Not zeros, which
        # lie off the unit sphere that every later state is on.
        self.register_buffer("z_h_start", torch.empty(architecture.h_module.hidden_size))
        self.register_buffer("z_l_start", torch.empty(architecture.l_module.hidden_size))

    def start_calm(self) -> None:
        """Weaken what the freshly initialised blocks add, so that the untrained loop contracts.

        At full strength a small change of the state grows 5,000-fold per segment at production
        size, and training spends itself on undoing that (`python -m benchmarks.contraction`).
        """
        with torch.no_grad():
            for stack in (self.h_module.stack, self.l_module.stack):
                for branch in stack.branches():
                    branch.mul_(CALM_GAIN)

    def initial_state(self, batch: int, device: torch.device | str | None = None) -> State:
        """Return the fixed start, z_h [batch, S, Dh] and z_l [batch, S, Dl], read-only views."""
        z_h = self.z_h_start.to(device or self.z_h_start.device)
        z_l = self.z_l_start.to(device or self.z_l_start.device)
        return z_h.expand(batch, self.tokens, -1), z_l.expand(batch, self.tokens, -1)

    def cycle(self, state: State, encoded: Tensor, drops: Drops = (None, None)) -> State:
        """Run t_timesteps updates of L and one of H, on the graph if gradients are on."""
        z_h, z_l = state
        h_drops, l_drops = drops
        injection = self.l_module.injection(z_h, encoded)
        for _ in range(self.t_timesteps):
            z_l = self.l_module(z_l, injection, l_drops)
        return self.h_module(z_h, z_l, h_drops), z_l

    def segment(
        self,
        state: State,
        encoded: Tensor,
        *,
        cycles: int | None = None,
        gradient: Gradient | None = None,
    ) -> State:
        """Run all cycles of one segment; only its end carries gradients.

        cycles: fewer than n_cycles, for training on answers read early. gradient: `one_step` keeps
        the last L and the last H update on the graph, `last_cycle` the whole last cycle; both
        detach the state they are given, so memory grows neither with cycles nor with segments.
        `bptt` keeps everything, the given state's graph included, and is for comparison only.
        """
        cycles = self.n_cycles if cycles is None else cycles
        gradient = gradient or self.gradient
        if cycles < 1:
            raise ValueError(f"a segment needs at least one cycle, was {cycles}")
        drops = (
            self.h_module.stack.draw_drops(state[0]),
            self.l_module.stack.draw_drops(state[1]),
        )
        if gradient == "bptt":
            for _ in range(cycles):
                state = self.cycle(state, encoded, drops)
            return state
        with torch.no_grad():
            for _ in range(cycles - 1):
                state = self.cycle(state, encoded, drops)
            z_h, z_l = state[0].detach(), state[1].detach()
            if gradient == "one_step" and self.t_timesteps > 1:
                injection = self.l_module.injection(z_h, encoded)
                for _ in range(self.t_timesteps - 1):
                    z_l = self.l_module(z_l, injection, drops[1])
        if gradient == "last_cycle":
            return self.cycle((z_h, z_l), encoded, drops)
        z_l = self.l_module(z_l, self.l_module.injection(z_h, encoded), drops[1])
        return self.h_module(z_h, z_l, drops[0]), z_l


class HierarchicalReasoningModel(nn.Module):
    """Read a market, think about it, and say what to do, how much, and whether to think on."""

    def __init__(self, config: HRMConfig) -> None:
        super().__init__()
        self.config = config
        architecture = config.architecture
        h_width, l_width = architecture.h_module.hidden_size, architecture.l_module.hidden_size
        self.encoder = MarketEncoder(config)
        self.core = ReasoningCore(architecture, config.convergence, config.training.gradient)
        self.action_head = nn.Linear(h_width, len(Action), bias=False)
        self.size_head = nn.Linear(h_width, 1, bias=False)
        self.value_head = nn.Linear(h_width, 1, bias=False)
        self.q_head = QHead(h_width)
        self.l_head = nn.Linear(l_width, len(Action), bias=False)
        self._initialise()

    def _initialise(self) -> None:
        initialise(self)
        self.core.start_calm()
        truncated_normal_(self.core.z_h_start, 1.0)
        truncated_normal_(self.core.z_l_start, 1.0)

    def encode(self, inputs: ModelInputs) -> Tensor:
        """Read a batch once, into [B, S, Dh]; raise ValueError for a wrong shape, type or device.

        Values are not read: call `inputs.check(config)` where they come from outside.
        """
        inputs.check_form(self.config, self.core.z_h_start.device)
        return cast("Tensor", self.encoder(inputs))

    def initial_state(self, batch: int, device: torch.device | str | None = None) -> State:
        """Return the fixed start of thinking, z_h [batch, S, Dh] and z_l [batch, S, Dl]."""
        return self.core.initial_state(batch, device)

    def cycle(self, state: State, encoded: Tensor) -> State:
        """Run t_timesteps updates of L and one of H, without dropout; heads can be read after."""
        return self.core.cycle(state, encoded)

    def segment(
        self,
        state: State,
        encoded: Tensor,
        *,
        cycles: int | None = None,
        gradient: Gradient | None = None,
    ) -> State:
        """Run one segment; see ReasoningCore.segment for what carries gradients."""
        return self.core.segment(state, encoded, cycles=cycles, gradient=gradient)

    def heads(self, state: State) -> Heads:
        """Read every head from the first token of each module's state."""
        h, low = state[0][:, 0], state[1][:, 0]  # [B, Dh], [B, Dl]
        return Heads(
            action_logits=self.action_head(h),
            size=torch.sigmoid(self.size_head(h)).squeeze(-1),
            value=self.value_head(h).squeeze(-1),
            q=self.q_head(h),
            l_logits=self.l_head(low),
        )

    def forward(
        self,
        inputs: ModelInputs,
        state: State | None = None,
        *,
        cycles: int | None = None,
        gradient: Gradient | None = None,
    ) -> tuple[State, Heads]:
        """Encode, run one segment from state (None: the fixed start) and read the heads.

        One optimiser step of deep supervision is one call. The returned state is still on its
        graph; giving it to the next call detaches it there.
        """
        encoded = self.encode(inputs)
        if state is None:
            state = self.initial_state(len(inputs), encoded.device)
        state = self.segment(state, encoded, cycles=cycles, gradient=gradient)
        return state, self.heads(state)

    def grow_vocabulary(
        self, *, instruments: int | None = None, timeframes: int | None = None
    ) -> None:
        """Enlarge the embedding tables to the given row counts; known rows keep their values.

        New rows start as the unknown row 0, so that a new name behaves as before until trained.
        The parameters are new objects: make the optimiser after this, not before.
        """
        wanted = {"instruments": instruments, "timeframes": timeframes}
        tables = {"instruments": self.encoder.instrument, "timeframes": self.encoder.timeframe}
        sizes: dict[str, int] = {}
        for name, table in tables.items():
            size = wanted[name] or table.num_embeddings
            if size < table.num_embeddings:
                raise ValueError(
                    f"{name} {size} is fewer than the {table.num_embeddings} rows in use: a "
                    "vocabulary only grows"
                )
            added = table.weight.detach()[:1].expand(size - table.num_embeddings, -1)
            table.weight = nn.Parameter(torch.cat((table.weight.detach(), added)))
            table.num_embeddings = sizes[name] = size
        self.config = self.config.changed(inputs=sizes)

    def parameter_counts(self) -> dict[str, int]:
        """Count trained numbers per part, and in total; projections belong to who reads them."""
        embeddings = [self.encoder.instrument, self.encoder.timeframe]
        heads = [self.action_head, self.size_head, self.value_head, self.q_head, self.l_head]
        parts = {
            "encoder": _count(self.encoder) - sum(map(_count, embeddings)),
            "embeddings": sum(map(_count, embeddings)),
            "h_module": _count(self.core.h_module),
            "l_module": _count(self.core.l_module),
            "heads": sum(map(_count, heads)),
        }
        return parts | {"total": _count(self)}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
