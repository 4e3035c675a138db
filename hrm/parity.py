"""Parity: the model once more, in plain numpy, to hold a fast engine to before it serves.

Nothing here is fast. It follows hrm.model line by line, and the tests hold it to that.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.config import ACCOUNT_WIDTH, HRMConfig, ModuleConfig
from hrm.engine import Batch, Engine, Floats, Reading
from hrm.rotary import RMS_EPSILON, rotary_tables
from hrm.weights import SPECIAL_TOKENS, Arrays

TOLERANCE = 1e-4  # of states of unit size and of logits: rounding of float32 in another order
CHECK_SEED, CHECK_ROWS, CHECK_CYCLES = 11, 2, 3
BATCHES_CHECKED = (2, 3, 8, 20)  # a kernel takes rows in blocks and treats the rest apart

State = tuple[Floats, Floats]


class NumpyReference:
    """Run a model step by step in float32 with numpy; an Engine, for checks."""

    def __init__(self, arrays: Arrays, config: HRMConfig) -> None:
        self._arrays = arrays
        self._config = config

    def encode(self, batch: Batch) -> Floats:
        """Read a batch once, into [B, S, Dh]; raise ValueError naming an input that is wrong."""
        batch.check(self._config)
        encoder = self._config.architecture.encoder
        rows, readouts = len(batch), self._config.architecture.tokens_in_loop
        there = batch.bars_mask[..., None]
        filled = np.concatenate((np.where(there, batch.bars, np.float32(0)), there), -1)
        patches = self._linear(
            filled.reshape(rows, -1, encoder.patch_bars * filled.shape[-1]), "encoder.patch"
        )
        names = np.concatenate(
            (
                self._arrays["encoder.instrument.weight"][batch.instrument],
                self._arrays["encoder.timeframe.weight"][batch.timeframe],
            ),
            -1,
        )
        special = np.stack(
            (
                self._linear(names, "encoder.identity"),
                self._linear(batch.account, "encoder.account"),
                self._linear(batch.context, "encoder.context"),
            ),
            1,
        )
        readout = np.repeat(self._arrays["encoder.readout.weight"][None], rows, 0)
        tokens = np.concatenate(
            (readout, special + self._arrays["encoder.kind.weight"], patches), 1
        )
        any_bar = batch.bars_mask.reshape(rows, -1, encoder.patch_bars).any(-1)
        always = np.ones((rows, readouts + SPECIAL_TOKENS), dtype=np.bool_)
        present = np.concatenate((always, any_bar), 1)
        read = self._stack(tokens, "encoder.stack", encoder, present)[:, :readouts]
        has_projection = "encoder.to_loop.weight" in self._arrays
        return self._linear(read, "encoder.to_loop") if has_projection else read

    def start(self, encoded: Floats) -> State:
        """Return the fixed state that thinking starts from."""
        h, low = start_state(self._arrays, self._config, len(encoded))
        return h, low

    def cycle(self, state: State, encoded: Floats) -> State:
        """Return the state one cycle later; the one given stays readable."""
        architecture = self._config.architecture
        h, low = state
        injection = self._linear(h + encoded, "core.l_module.from_high")
        for _ in range(self._config.convergence.t_timesteps):
            low = self._stack(low + injection, "core.l_module.stack", architecture.l_module)
        mixed = h + self._linear(low, "core.h_module.from_low")
        return self._stack(mixed, "core.h_module.stack", architecture.h_module), low

    def residual(self, before: State, after: State) -> tuple[Floats, Floats]:
        """Return the relative residuals of H and of L, row by row: [B] each."""
        return residual(before[0], after[0]), residual(before[1], after[1])

    def rows(self, state: State, encoded: Floats, keep: Sequence[int]) -> tuple[State, Floats]:
        """Return what belongs to some rows of a batch, in the order of `keep`."""
        chosen = list(keep)
        return (state[0][chosen], state[1][chosen]), encoded[chosen]

    def read(self, state: State) -> Reading:
        """Read the heads."""
        h, low = state[0][:, 0], state[1][:, 0]
        size = self._linear(h, "size_head")[:, 0]
        return Reading(
            action_logits=self._linear(h, "action_head"),
            size=0.5 + 0.5 * np.tanh(0.5 * size),
            value=self._linear(h, "value_head")[:, 0],
            q=self._linear(h, "q_head") + self._arrays["q_head.bias"],
            l_logits=self._linear(low, "l_head"),
        )

    def _linear(self, x: NDArray[Any], name: str) -> Floats:
        product: Floats = x.astype(np.float32) @ self._arrays[f"{name}.weight"].T
        return product

    def _stack(
        self, x: Floats, name: str, module: ModuleConfig, present: NDArray[np.bool_] | None = None
    ) -> Floats:
        for index in range(module.num_layers):
            block = f"{name}.blocks.{index}"
            if f"{block}.attention.out.weight" in self._arrays:
                x = _rms_norm(x + self._attention(x, f"{block}.attention", module, present))
            gate, up = np.split(self._linear(x, f"{block}.feed_forward.gate_up"), 2, -1)
            silu = gate * (0.5 + 0.5 * np.tanh(0.5 * gate))
            x = _rms_norm(x + self._linear(silu * up, f"{block}.feed_forward.down"))
        return x

    def _attention(
        self, x: Floats, name: str, module: ModuleConfig, present: NDArray[np.bool_] | None
    ) -> Floats:
        rows, tokens, width = x.shape
        heads, head_width = module.num_heads, width // module.num_heads
        joined = self._linear(x, f"{name}.query_key_value")
        query, key, value = joined.reshape(rows, tokens, 3, heads, head_width).transpose(
            2, 0, 3, 1, 4
        )
        cos, sin = rotary_tables(tokens, head_width)
        scores = _turn(query, cos, sin) @ _turn(key, cos, sin).swapaxes(-1, -2)
        scores = scores / np.float32(math.sqrt(head_width))
        if present is not None:
            scores = np.where(present[:, None, None, :], scores, np.float32(-np.inf))
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (shares / shares.sum(-1, keepdims=True)) @ value
        return self._linear(mixed.swapaxes(1, 2).reshape(rows, tokens, width), f"{name}.out")


def largest_difference(engine: Engine[Any, Any], arrays: Arrays, config: HRMConfig) -> float:
    """Return the largest difference of any head, after each of some cycles, from the reference.

    Some bars of the drawn inputs are absent. Not a number where the engine's answer is none.
    """
    batch = drawn_batch(config, CHECK_ROWS)
    reference = NumpyReference(arrays, config)
    encoded, expected = engine.encode(batch), reference.encode(batch)
    state, wanted = engine.start(encoded), reference.start(expected)
    found: list[float] = []
    for _ in range(CHECK_CYCLES):
        state, wanted = engine.cycle(state, encoded), reference.cycle(wanted, expected)
        ours, theirs = vars(engine.read(state)), vars(reference.read(wanted))
        found += [float(np.abs(ours[name] - theirs[name]).max()) for name in theirs]
    return float(np.max(found))  # np.max, because max() may lose a NaN


def rows_stand_alone(engine: Engine[Any, Any], config: HRMConfig) -> bool:
    """Tell whether a row says the same alone and in batches of some sizes, to the bit.

    Only then may decisions be thought about together: a replay thinks about each alone.
    """
    batch = drawn_batch(config, max(BATCHES_CHECKED))
    for rows in BATCHES_CHECKED:
        together = _courses(engine, batch.part(slice(rows)), keep=range(rows))
        for row in {0, rows - 1}:
            alone = _courses(engine, batch.part(slice(row, row + 1)), keep=[0])
            if any(not np.array_equal(a[row], b[0]) for a, b in zip(together, alone, strict=True)):
                return False
    return True


def _courses(
    engine: Engine[Any, Any], batch: Batch, keep: Sequence[int]
) -> list[NDArray[np.float32]]:
    """Return residuals and heads after each of some cycles."""
    encoded = engine.encode(batch)
    before = engine.start(encoded)
    found: list[NDArray[np.float32]] = []
    for _ in range(CHECK_CYCLES):
        after = engine.cycle(before, encoded)
        found += [*engine.residual(before, after), *vars(engine.read(after)).values()]
        before, encoded = engine.rows(after, encoded, keep)
    return found


def drawn_batch(config: HRMConfig, rows: int) -> Batch:
    """Draw the observations that engines are checked on; some bars of the first are absent."""
    draw, sizes = np.random.default_rng(CHECK_SEED), config.inputs
    mask = np.ones((rows, sizes.window_bars), dtype=np.bool_)
    mask[0, : sizes.window_bars // 2] = False

    def normal(*shape: int) -> Floats:
        return draw.normal(size=shape).astype(np.float32)

    return Batch(
        bars=normal(*mask.shape, sizes.n_features),
        bars_mask=mask,
        instrument=draw.integers(0, sizes.instruments, rows),
        timeframe=draw.integers(0, sizes.timeframes, rows),
        account=normal(rows, ACCOUNT_WIDTH),
        context=normal(rows, sizes.n_context),
    )


def start_state(arrays: Arrays, config: HRMConfig, rows: int) -> State:
    """Return the fixed start, z_h [rows, S, Dh] and z_l [rows, S, Dl]."""
    tokens = config.architecture.tokens_in_loop
    h, low = (
        np.tile(arrays[f"core.{name}"], (rows, tokens, 1)) for name in ("z_h_start", "z_l_start")
    )
    return h, low


def residual(before: Floats, after: Floats) -> Floats:
    """Return |after - before| / |after| for each row of [B, S, D]."""
    axes = (1, 2)
    change = np.sqrt(np.square(after - before, dtype=np.float64).sum(axes))
    size = np.sqrt(np.square(after, dtype=np.float64).sum(axes))
    ratio: Floats = (change / np.maximum(size, 1e-12)).astype(np.float32)
    return ratio


def _rms_norm(x: Floats) -> Floats:
    scaled: Floats = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(RMS_EPSILON))
    return scaled


def _turn(x: Floats, cos: Floats, sin: Floats) -> Floats:
    first, second = np.split(x, 2, -1)
    turned: Floats = x * cos + np.concatenate((-second, first), -1) * sin
    return turned
