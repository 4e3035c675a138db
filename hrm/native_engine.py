"""The native engine: the loop in one foreign call per cycle, on one thread, without dispatch.

The encoder, which runs once a decision, stays with ONNX Runtime. A call releases the interpreter,
flushes denormals while it lasts, and gives a row the same bits alone and in a batch.
"""

import ctypes
import threading
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm.config import HRMConfig, ModuleConfig
from hrm.engine import Batch, Floats, Reading
from hrm.native_library import (
    GROUPS,
    LEVELS,
    Block,
    Core,
    Matrix,
    Module,
    NativeLibrary,
    NativeUnavailable,
    Step,
)
from hrm.native_packing import Format, Packed, aligned, packed, packed_gate_up
from hrm.onnx_engine import OnnxEncoder
from hrm.parity import start_state
from hrm.rotary import RMS_EPSILON
from hrm.weights import Arrays

State = tuple[Floats, Floats]
NativeBits = Literal[8, 16, 32]
FORMATS = {8: Format.I8, 16: Format.F16, 32: Format.F32}
OF_H = ("action_head", "size_head", "value_head", "q_head")  # read off one product, in this order
ACTIONS, SIZE, VALUE, Q = slice(0, 5), 5, 6, slice(7, 9)  # where they stand in it


class NativeEngine:
    """Run the loop with the compiled kernel; states are z_h [B, 1, Dh] and z_l [B, 1, Dl], float32.

    bits: of the looped weights; the heads are float32. In 8 bits every output of a matrix has a
    scale, and the inputs of a product are rounded to 16 bits, row by row. Raises NativeUnavailable
    for a model that the kernel cannot run. States are not to be changed by whoever holds them.
    """

    def __init__(
        self,
        arrays: Arrays,
        config: HRMConfig,
        library: NativeLibrary,
        encoder: OnnxEncoder,
        *,
        bits: NativeBits = 32,
    ) -> None:
        architecture = config.architecture
        if architecture.tokens_in_loop != 1:
            raise NativeUnavailable(
                f"tokens_in_loop is {architecture.tokens_in_loop}: the kernel knows one token, "
                "which needs no attention"
            )
        self._config = config
        self._widths = architecture.h_module.hidden_size, architecture.l_module.hidden_size
        self._functions, self._level = library.functions, LEVELS[library.level]
        self._group = GROUPS[library.level]
        self._starts = {name: arrays[name].copy() for name in ("core.z_h_start", "core.z_l_start")}
        self._q_bias = arrays["q_head.bias"].copy()
        self._encoder = encoder
        self._kept: list[Any] = []  # what the structures below point to
        kind = FORMATS[bits]
        self._core = Core(
            self._module(arrays, "core.h_module", "from_low", architecture.h_module, kind),
            self._module(arrays, "core.l_module", "from_high", architecture.l_module, kind),
            config.convergence.t_timesteps,
            RMS_EPSILON,
        )
        of_h = np.concatenate([arrays[f"{name}.weight"] for name in OF_H])
        self._of_h = self._matrix(packed(of_h, Format.F32))
        self._of_l = self._matrix(packed(arrays["l_head.weight"], Format.F32))
        self._step = Step()
        self._arguments = (self._level, ctypes.addressof(self._core), ctypes.addressof(self._step))
        self._scratch: NDArray[np.uint8] = aligned(0, np.uint8)
        self._ratios: NDArray[np.float32] = np.empty(0, np.float32)
        self._last: _Cycle | None = None
        self._one_at_a_time = threading.Lock()  # there is one step, and one scratch

    def encode(self, batch: Batch) -> Floats:
        """Read a batch once, into [B, 1, Dh]; raise ValueError naming an input that is wrong."""
        return self._encoder.encode(batch)

    def start(self, encoded: Floats) -> State:
        """Return the fixed state that thinking starts from."""
        return start_state(self._starts, self._config, len(encoded))

    def cycle(self, state: State, encoded: Floats) -> State:
        """Return the state one cycle later; the one given stays readable."""
        rows, (h_width, l_width) = len(encoded), self._widths
        with self._one_at_a_time:
            last, step = self._last, self._step
            if last is not None and encoded is last.encoded.given:
                read = last.encoded
            else:
                read = _located(encoded, rows, h_width)
            if last is not None and state is last.after:
                high, low = last.high, last.low
            else:
                high, low = _located(state[0], rows, h_width), _located(state[1], rows, l_width)
            if rows != step.rows:
                self._make_room(rows)
            next_high, next_low = _new(rows, h_width), _new(rows, l_width)
            step.encoded, step.high, step.low = read.address, high.address, low.address
            step.next_high, step.next_low = next_high.address, next_low.address
            self._functions.hrm_cycle(*self._arguments)
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
            self._residual(one, other, width)
            for one, other, width in zip(before, after, self._widths, strict=True)
        )
        return h, low

    def rows(self, state: State, encoded: Floats, keep: Sequence[int]) -> tuple[State, Floats]:
        """Return what belongs to some rows of a batch, in the order of `keep`."""
        chosen = list(keep)
        return (state[0][chosen], state[1][chosen]), encoded[chosen]

    def read(self, state: State) -> Reading:
        """Read the heads."""
        of_h = self._product(self._of_h, state[0][:, 0])
        return Reading(
            action_logits=of_h[:, ACTIONS],
            size=0.5 + 0.5 * np.tanh(0.5 * of_h[:, SIZE]),
            value=of_h[:, VALUE],
            q=of_h[:, Q] + self._q_bias,
            l_logits=self._product(self._of_l, state[1][:, 0])[:, ACTIONS],
        )

    def _residual(self, before: Floats, after: Floats, width: int) -> Floats:
        rows = len(after)
        one, other = _located(before, rows, width), _located(after, rows, width)
        ratios = np.empty(rows, np.float32)
        self._functions.hrm_residual(rows, width, one.address, other.address, _address(ratios))
        return ratios

    def _product(self, matrix: Matrix, x: Floats) -> Floats:
        """Return [B, outputs], with the padding, of [B, inputs]."""
        rows, width = x.shape
        inputs = np.zeros((rows, matrix.inputs), np.float32)
        inputs[:, :width] = x
        outputs = np.empty((rows, matrix.outputs), np.float32)
        self._functions.hrm_float_product(
            self._level, matrix, rows, _address(inputs), _address(outputs)
        )
        return outputs

    def _make_room(self, rows: int) -> None:
        """Prepare the step for so many rows; the scratch only grows."""
        needed = self._functions.hrm_scratch_bytes(self._core, rows)
        if needed > len(self._scratch):
            self._scratch = aligned(needed, np.uint8)
        self._ratios = np.empty(2 * rows, np.float32)
        self._step.scratch, self._step.ratios = _address(self._scratch), _address(self._ratios)
        self._step.rows = rows

    def _module(
        self, arrays: Arrays, name: str, other: str, module: ModuleConfig, kind: Format
    ) -> Module:
        blocks = (Block * module.num_layers)()
        for index in range(module.num_layers):
            layer = f"{name}.stack.blocks.{index}.feed_forward"
            gate_up = packed_gate_up(arrays[f"{layer}.gate_up.weight"], kind, self._group)
            down = packed(arrays[f"{layer}.down.weight"], kind, self._group)
            blocks[index] = Block(self._matrix(gate_up), self._matrix(down))
        self._kept.append(blocks)
        from_other = packed(arrays[f"{name}.{other}.weight"], kind, self._group)
        return Module(blocks, module.num_layers, module.hidden_size, self._matrix(from_other))

    def _matrix(self, source: Packed) -> Matrix:
        self._kept.append(source)
        return Matrix(
            _address(source.panels),
            _address(source.scales),
            _address(source.offsets),
            source.outputs,
            source.inputs,
            source.format,
            source.peak,
        )


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


def _located(x: Floats, rows: int, width: int) -> _Located:
    """Find an array; raise ValueError for one of another shape or type."""
    if x.shape != (rows, 1, width) or x.dtype != np.float32:
        raise ValueError(
            f"the engine takes float32 of shape {[rows, 1, width]}, was {x.dtype} of shape "
            f"{list(x.shape)}"
        )
    dense = np.ascontiguousarray(x)
    return _Located(x, dense, _address(dense))


def _new(rows: int, width: int) -> _Located:
    array: Floats = np.empty((rows, 1, width), np.float32)
    return _Located(array, array, _address(array))


def _address(array: NDArray[Any]) -> int:
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array.data))
    except (TypeError, ValueError):  # read-only, or empty: the other way is slower
        return int(array.ctypes.data)
