"""Packing: matrices as the native kernel reads them; hrm/native/core.h describes the layout."""

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hrm.engine import Floats

PANEL = 64  # outputs that are computed side by side; every width is padded to a multiple of it
LARGEST_CODE = 127
LARGEST_INPUT = 32767  # what 16 bits hold
INPUT_SHIFT = 1 << 15  # what makes such a number positive, so that its bytes are
ALIGNMENT = 64  # bytes: one cache line


class Format(IntEnum):
    """Name how a weight is stored; the numbers are those of core.h."""

    F32 = 0
    F16 = 1
    I8 = 2


class Packed(NamedTuple):
    """Hold one matrix in panels; scales, offsets: of every output, for whole numbers, else empty.

    peak: the whole number that the largest input of a row becomes, 0 for floats.
    """

    panels: NDArray[Any]
    scales: Floats
    offsets: NDArray[np.int32]
    outputs: int
    inputs: int
    format: Format
    peak: int


class Codes(NamedTuple):
    """Hold a matrix in whole numbers: w = codes * scales[:, None]; codes int8 [N, K]."""

    codes: NDArray[np.int8]
    scales: Floats


def padded(width: int) -> int:
    """Return the next multiple of PANEL."""
    return -(-width // PANEL) * PANEL


def packed(matrix: Floats, kind: Format, group: int = 2) -> Packed:
    """Pack a matrix [outputs, inputs], padded with zeros; group: of whole numbers, see core.h."""
    outputs, inputs = map(padded, matrix.shape)
    whole = np.zeros((outputs, inputs), np.float32)
    whole[: matrix.shape[0], : matrix.shape[1]] = matrix
    if kind == Format.I8:
        codes, scales = coarsened(whole)
        groups = codes.reshape(-1, PANEL, inputs // group, group).transpose(0, 2, 1, 3)
        offsets = (-INPUT_SHIFT * codes.sum(1, dtype=np.int64)).astype(np.uint32).view(np.int32)
        peak = largest_peak(inputs)
        panels = _in_order(groups, np.int8)
        return Packed(panels, scales, offsets, outputs, inputs, kind, peak)
    columns = whole.reshape(-1, PANEL, inputs).transpose(0, 2, 1)
    panels = _in_order(columns, np.float16 if kind == Format.F16 else np.float32)
    nothing = np.zeros(0, np.float32), np.zeros(0, np.int32)
    return Packed(panels, *nothing, outputs, inputs, kind, 0)


def packed_gate_up(matrix: Floats, kind: Format, group: int = 2) -> Packed:
    """Pack [gate; up], each half padded by itself, so that the halves stay halves."""
    gate, up = np.split(matrix, 2)
    both = np.zeros((2, padded(len(gate)), matrix.shape[1]), np.float32)
    both[0, : len(gate)], both[1, : len(up)] = gate, up
    return packed(both.reshape(-1, matrix.shape[1]), kind, group)


def coarsened(matrix: Floats) -> Codes:
    """Round [N, K] to eight bits, one scale for each output; an output of zeros keeps zeros."""
    scales = np.abs(matrix).max(1) / np.float32(LARGEST_CODE)
    per = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales > 0)
    return Codes(np.rint(matrix * per[:, None]).astype(np.int8), scales.astype(np.float32))


def largest_peak(inputs: int) -> int:
    """Return the largest rounded input at which no sum over that many inputs leaves 32 bits."""
    return min(LARGEST_INPUT, (2**31 - 1) // (LARGEST_CODE * inputs))


def aligned(count: int, dtype: type[np.generic]) -> NDArray[Any]:
    """Return an uninitialised array that begins at a cache line."""
    size = count * np.dtype(dtype).itemsize
    room = np.empty(size + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size].view(dtype)


def _in_order(view: NDArray[Any], dtype: type[np.generic]) -> NDArray[Any]:
    """Copy a view in its own order to the beginning of a cache line."""
    copy = aligned(view.size, dtype).reshape(view.shape)
    copy[...] = view
    return copy
