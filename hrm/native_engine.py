"""The native engine: the whole model in foreign calls, one per cycle, on one thread.

A call releases the interpreter, flushes denormals while it lasts, and gives a row the same bits
alone and in a batch.
"""

import ctypes
import threading
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm.config import HRMConfig
from hrm.engine import Batch, Floats, Reading
from hrm.native_encoder import NativeEncoder
from hrm.native_library import Core, NativeLibrary, Step
from hrm.native_modules import NativeModules, address_of
from hrm.native_packing import Format
from hrm.parity import start_state
from hrm.weights import Arrays

State = tuple[Floats, Floats]
NativeBits = Literal[8, 16, 32]
FORMATS = {8: Format.I8, 16: Format.F16, 32: Format.F32}
# What is read once a decision is read more finely: 8 bits there move decisions ten times as far.
ENCODER_FORMATS = {8: Format.F16, 16: Format.F16, 32: Format.F32}
OF_H = ("action_head", "size_head", "value_head", "q_head")  # read off one product, in this order
ACTIONS, SIZE, VALUE, Q = slice(0, 5), 5, 6, slice(7, 9)  # where they stand in it


class NativeEngine:
    """Run a model with the compiled kernel; states are z_h [B, S, Dh] and z_l [B, S, Dl], float32.

    bits: of the weights in the loop; those of the encoder have at least 16, the heads 32. In 8 bits
    every output of a matrix has a scale, and the inputs of a product are rounded to 16 bits, token
    by token. States are not to be changed by whoever holds them.
    """

    def __init__(
        self, arrays: Arrays, config: HRMConfig, library: NativeLibrary, *, bits: NativeBits = 32
    ) -> None:
        architecture, tokens = config.architecture, config.architecture.tokens_in_loop
        self._config = config
        self._shapes = tuple(
            (tokens, module.hidden_size)
            for module in (architecture.h_module, architecture.l_module)
        )
        self._starts = {name: arrays[name].copy() for name in ("core.z_h_start", "core.z_l_start")}
        self._q_bias = arrays["q_head.bias"].copy()
        self._encoder = NativeEncoder(arrays, config, library, ENCODER_FORMATS[bits])
        self._modules = NativeModules(library, FORMATS[bits])
        module = self._modules.module
        self._core = Core(
            module(arrays, "core.h_module", architecture.h_module, tokens, "from_low"),
            module(arrays, "core.l_module", architecture.l_module, tokens, "from_high"),
            config.convergence.t_timesteps,
        )
        of_h = np.concatenate([arrays[f"{name}.weight"] for name in OF_H])
        self._of_h = self._modules.float_matrix(of_h)
        self._of_l = self._modules.float_matrix(arrays["l_head.weight"])
        self._step = Step()
        places = ctypes.addressof(self._core), ctypes.addressof(self._step)
        self._arguments = (self._modules.level, *places)
        self._scratch: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._most_rows = 0
        self._ratios: NDArray[np.float32] = np.empty(0, np.float32)
        self._last: _Cycle | None = None
        self._one_at_a_time = threading.Lock()  # there is one step, and one scratch

    def encode(self, batch: Batch) -> Floats:
        """Read a batch once, into [B, S, Dh]; raise ValueError naming an input that is wrong."""
        return self._encoder.encode(batch)

    def start(self, encoded: Floats) -> State:
        """Return the fixed state that thinking starts from."""
        return start_state(self._starts, self._config, len(encoded))

    def cycle(self, state: State, encoded: Floats) -> State:
        """Return the state one cycle later; the one given stays readable."""
        rows, (h_shape, l_shape) = len(encoded), self._shapes
        with self._one_at_a_time:
            last, step = self._last, self._step
            if last is not None and encoded is last.encoded.given:
                read = last.encoded
            else:
                read = _located(encoded, rows, h_shape)
            if last is not None and state is last.after:
                high, low = last.high, last.low
            else:
                high, low = _located(state[0], rows, h_shape), _located(state[1], rows, l_shape)
            if rows != step.rows:
                self._make_room(rows)
            next_high, next_low = _new(rows, h_shape), _new(rows, l_shape)
            step.encoded, step.high, step.low = read.address, high.address, low.address
            step.next_high, step.next_low = next_high.address, next_low.address
            self._modules.functions.hrm_cycle(*self._arguments)
            after = next_high.array, next_low.array
            self._last = _Cycle(state, after, read, next_high, next_low)
        return after

    def residual(self, before: State, after: State) -> tuple[Floats, Floats]:
        """Return the relative residuals of H and of L, row by row: [B] each."""
        with self._one_at_a_time:
            last, rows = self._last, len(after[0])
            if last is not None and before is last.before and after is last.after:
                return self._ratios[:rows].copy(), self._ratios[rows:].copy()
        h, low = (
            self._residual(one, other, shape)
            for one, other, shape in zip(before, after, self._shapes, strict=True)
        )
        return h, low

    def rows(self, state: State, encoded: Floats, keep: Sequence[int]) -> tuple[State, Floats]:
        """Return what belongs to some rows of a batch, in the order of `keep`."""
        chosen = list(keep)
        return (state[0][chosen], state[1][chosen]), encoded[chosen]

    def read(self, state: State) -> Reading:
        """Read the heads, from the first token of each module."""
        of_h = self._modules.product(self._of_h, state[0][:, 0])
        return Reading(
            action_logits=of_h[:, ACTIONS],
            size=0.5 + 0.5 * np.tanh(0.5 * of_h[:, SIZE]),
            value=of_h[:, VALUE],
            q=of_h[:, Q] + self._q_bias,
            l_logits=self._modules.product(self._of_l, state[1][:, 0])[:, ACTIONS],
        )

    def time_layers(self) -> None:
        """Note from now on how long each layer takes."""
        self._encoder.time_layers()
        self._modules.time("h_module", self._core.high)
        self._modules.time("l_module", self._core.low)

    def layer_times(self) -> dict[str, int]:
        """Return nanoseconds by layer since this was asked last."""
        return self._encoder.layer_times() | self._modules.spent_ns()

    def _residual(self, before: Floats, after: Floats, shape: tuple[int, int]) -> Floats:
        rows = len(after)
        one, other = _located(before, rows, shape), _located(after, rows, shape)
        ratios = np.empty(rows, np.float32)
        places = one.address, other.address, address_of(ratios)
        self._modules.functions.hrm_residual(rows, shape[0] * shape[1], *places)
        return ratios

    def _make_room(self, rows: int) -> None:
        """Prepare the step for so many rows; the scratch only grows."""
        if rows > self._most_rows:
            self._scratch = self._modules.scratch_for(self._core.high, self._core.low, rows)
            self._most_rows = rows
        self._ratios = np.empty(2 * rows, np.float32)
        self._step.scratch, self._step.ratios = address_of(self._scratch), address_of(self._ratios)
        self._step.rows = rows


class _Located(NamedTuple):
    """Hold an array, as it was given and as the kernel reads it, with its address."""

    given: Floats
    array: Floats
    address: int


class _Cycle(NamedTuple):
    """Remember the last cycle, so that the next one need not ask for addresses again."""

    before: State
    after: State
    encoded: _Located
    high: _Located
    low: _Located


def _located(x: Floats, rows: int, shape: tuple[int, int]) -> _Located:
    """Find an array; raise ValueError for one of another shape or type."""
    if x.shape != (rows, *shape) or x.dtype != np.float32:
        raise ValueError(
            f"the engine takes float32 of shape {[rows, *shape]}, was {x.dtype} of shape "
            f"{list(x.shape)}"
        )
    dense = np.ascontiguousarray(x)
    return _Located(x, dense, address_of(dense))


def _new(rows: int, shape: tuple[int, int]) -> _Located:
    array: Floats = np.empty((rows, *shape), np.float32)
    return _Located(array, array, address_of(array))
