"""Modules as the native kernel takes them: packed, placed, and kept while it may read them."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.config import ModuleConfig
from hrm.engine import Floats
from hrm.native_library import GROUPS, LEVELS, Block, Matrix, Module, NativeLibrary
from hrm.native_packing import Format, Packed, aligned, packed, packed_gate_up
from hrm.rotary import RMS_EPSILON, rotary_tables
from hrm.weights import Arrays

LAYERS = ("attention", "feed_forward")  # of a block, as the kernel times them


class NativeModules:
    """Build structures for the kernel, and hold what they point to.

    bits of the matrices: by their format; those of `float_matrix` are float32.
    """

    def __init__(self, library: NativeLibrary, kind: Format) -> None:
        self.functions, self.level = library.functions, LEVELS[library.level]
        self._group, self._kind = GROUPS[library.level], kind
        self._kept: list[Any] = []
        self._timed: dict[str, tuple[Sequence[str], NDArray[np.int64]]] = {}  # by module

    def module(
        self, arrays: Arrays, name: str, sizes: ModuleConfig, tokens: int, other: str = ""
    ) -> Module:
        """Pack the blocks below a name; other: the matrix that reads the other module's state."""
        has_attention = f"{name}.stack.blocks.0.attention.out.weight" in arrays
        blocks = (Block * sizes.num_layers)()
        for index in range(sizes.num_layers):
            layer = f"{name}.stack.blocks.{index}"
            if has_attention:
                blocks[index].query_key_value = self._matrix(
                    arrays, f"{layer}.attention.query_key_value"
                )
                blocks[index].out = self._matrix(arrays, f"{layer}.attention.out")
            gate_up = arrays[f"{layer}.feed_forward.gate_up.weight"]
            blocks[index].gate_up = self._placed(packed_gate_up(gate_up, self._kind, self._group))
            blocks[index].down = self._matrix(arrays, f"{layer}.feed_forward.down")
        tables = rotary_tables(tokens, sizes.hidden_size // sizes.num_heads)
        self._kept += [blocks, *tables]
        return Module(
            blocks=blocks,
            cosines=address_of(tables[0]),
            sines=address_of(tables[1]),
            n_blocks=sizes.num_layers,
            width=sizes.hidden_size,
            heads=sizes.num_heads if has_attention else 0,
            tokens=tokens,
            epsilon=RMS_EPSILON,
            from_other=self._matrix(arrays, f"{name}.{other}") if other else Matrix(),
        )

    def time(self, name: str, module: Module) -> None:
        """Let the kernel note from now on how long each layer of a module takes."""
        spent_ns = np.zeros((module.n_blocks, len(LAYERS)), np.int64)
        layers = LAYERS if module.heads else LAYERS[1:]
        self._timed[name] = layers, spent_ns
        module.spent_ns = address_of(spent_ns)

    def spent_ns(self) -> dict[str, int]:
        """Return what each timed layer has taken since this was asked last, by its name."""
        found: dict[str, int] = {}
        for name, (layers, spent_ns) in self._timed.items():
            for index, block in enumerate(spent_ns.tolist()):
                spent = dict(zip(LAYERS, block, strict=True))
                found |= {f"{name}.{index}.{layer}": spent[layer] for layer in layers}
            spent_ns[:] = 0
        return found

    def float_matrix(self, matrix: Floats) -> Matrix:
        """Pack a matrix [outputs, inputs] in float32, for `product`."""
        return self._placed(packed(matrix, Format.F32))

    def product(self, matrix: Matrix, x: Floats) -> Floats:
        """Return [B, outputs], with the padding, of [B, inputs]."""
        rows, width = x.shape
        inputs = np.zeros((rows, matrix.inputs), np.float32)
        inputs[:, :width] = x
        outputs = np.empty((rows, matrix.outputs), np.float32)
        self.functions.hrm_float_product(
            self.level, matrix, rows, address_of(inputs), address_of(outputs)
        )
        return outputs

    def scratch_for(self, one: Module, other: Module, rows: int) -> NDArray[np.uint8]:
        """Return room for a call with so many rows that runs these modules."""
        modules = ctypes.addressof(one), ctypes.addressof(other)
        scratch: NDArray[np.uint8] = aligned(
            self.functions.hrm_scratch_bytes(*modules, rows), np.uint8
        )
        return scratch

    def _matrix(self, arrays: Arrays, name: str) -> Matrix:
        return self._placed(packed(arrays[f"{name}.weight"], self._kind, self._group))

    def _placed(self, source: Packed) -> Matrix:
        self._kept.append(source)
        return Matrix(
            address_of(source.panels),
            address_of(source.scales),
            address_of(source.offsets),
            source.outputs,
            source.inputs,
            source.format,
            source.peak,
        )


def address_of(array: NDArray[Any]) -> int:
    """Return where a contiguous array begins."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array.data))
    except (TypeError, ValueError):  # read-only, or empty: the other way is slower
        return int(array.ctypes.data)
