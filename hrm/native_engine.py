"""The native engine: the loop in one foreign call per cycle, on one thread, without dispatch.

The encoder, which runs once a decision, stays with ONNX Runtime. A call releases the interpreter,
flushes denormals while it lasts, and gives a row the same bits alone and in a batch.
"""

import threading
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hrm.config import HRMConfig, ModuleConfig
from hrm.engine import Batch, Floats, Reading
from hrm.native_library import (
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
    for a model that the kernel cannot run.
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
        self._scratch: NDArray[np.uint8] = aligned(0, np.uint8)
        self._scratch_rows = 0
        self._one_at_a_time = threading.Lock()  # there is one scratch

    def encode(self, batch: Batch) -> Floats:
        """Read a batch once, into [B, 1, Dh]; raise ValueError naming an input that is wrong."""
        return self._encoder.encode(batch)

    def start(self, encoded: Floats) -> State:
        """Return the fixed state that thinking starts from."""
        return start_state(self._starts, self._config, len(encoded))

    def cycle(self, state: State, encoded: Floats) -> State:
        """Return the state one cycle later; the one given stays readable."""
        rows, (h_width, l_width) = len(encoded), self._widths
        high, low = _dense(state[0], rows, h_width), _dense(state[1], rows, l_width)
        encoded = _dense(encoded, rows, h_width)
        after = np.empty_like(high), np.empty_like(low)
        with self._one_at_a_time:
            step = Step(*map(_address, (encoded, high, low, *after)), self._room_for(rows), rows)
            self._functions.hrm_cycle(self._level, self._core, step)
        return after

    def residual(self, before: State, after: State) -> tuple[Floats, Floats]:
        """Return the relative residuals of H and of L, row by row: [B] each."""
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
        before, after = _dense(before, rows, width), _dense(after, rows, width)
        ratios = np.empty(rows, np.float32)
        self._functions.hrm_residual(rows, width, *map(_address, (before, after, ratios)))
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

    def _room_for(self, rows: int) -> int:
        """Return the address of a scratch for so many rows; it only grows."""
        if rows > self._scratch_rows:
            needed = self._functions.hrm_scratch_bytes(self._core, rows)
            self._scratch, self._scratch_rows = aligned(needed, np.uint8), rows
        return _address(self._scratch)

    def _module(
        self, arrays: Arrays, name: str, other: str, module: ModuleConfig, kind: Format
    ) -> Module:
        blocks = (Block * module.num_layers)()
        for index in range(module.num_layers):
            layer = f"{name}.stack.blocks.{index}.feed_forward"
            gate_up = packed_gate_up(arrays[f"{layer}.gate_up.weight"], kind)
            down = packed(arrays[f"{layer}.down.weight"], kind)
            blocks[index] = Block(self._matrix(gate_up), self._matrix(down))
        self._kept.append(blocks)
        from_other = self._matrix(packed(arrays[f"{name}.{other}.weight"], kind))
        return Module(blocks, module.num_layers, module.hidden_size, from_other)

    def _matrix(self, source: Packed) -> Matrix:
        self._kept.append(source)
        return Matrix(
            _address(source.panels),
            _address(source.scales),
            source.outputs,
            source.inputs,
            source.format,
            source.peak,
        )


def _dense(x: Floats, rows: int, width: int) -> Floats:
    """Return an array as the kernel reads it; raise ValueError for one of another shape or type."""
    if x.shape != (rows, 1, width) or x.dtype != np.float32:
        raise ValueError(
            f"the engine takes float32 of shape {[rows, 1, width]}, was {x.dtype} of shape "
            f"{list(x.shape)}"
        )
    return np.ascontiguousarray(x)


def _address(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)
