"""The compiled kernel: found, checked and loaded, or a reason why there is none."""

import ctypes
import hashlib
import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

ABI = 4  # HRM_ABI of hrm/native/core.h
SOURCES = Path(__file__).with_name("native")
BUILT = SOURCES / "build"
LIBRARY_NAME, RECORD_NAME = "kernel.so", "kernel.json"
SIMD_VARIABLE = "HRM_NATIVE_SIMD"  # lowers the instruction set: avx2

Level = Literal["avx2", "avx512"]
LEVELS: dict[Level, int] = {"avx2": 1, "avx512": 2}  # as in dispatch.c
GROUPS: dict[Level, int] = {"avx2": 2, "avx512": 4}  # GROUP of the lanes


class NativeUnavailable(Exception):
    """There is no kernel that can be used; the text says why."""


class Matrix(ctypes.Structure):
    """Mirror struct hrm_matrix."""

    _fields_ = (
        ("panels", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("outputs", ctypes.c_int32),
        ("inputs", ctypes.c_int32),
        ("format", ctypes.c_int32),
        ("peak", ctypes.c_int32),
    )


class Block(ctypes.Structure):
    """Mirror struct hrm_block."""

    _fields_ = tuple((name, Matrix) for name in ("query_key_value", "out", "gate_up", "down"))


class Module(ctypes.Structure):
    """Mirror struct hrm_module."""

    _fields_ = (
        ("blocks", ctypes.POINTER(Block)),
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
        ("spent_ns", ctypes.c_void_p),
        ("n_blocks", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("tokens", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
        ("from_other", Matrix),
    )


class Core(ctypes.Structure):
    """Mirror struct hrm_core."""

    _fields_ = (("high", Module), ("low", Module), ("timesteps", ctypes.c_int32))


class Step(ctypes.Structure):
    """Mirror struct hrm_step."""

    _fields_ = (
        ("encoded", ctypes.c_void_p),
        ("high", ctypes.c_void_p),
        ("low", ctypes.c_void_p),
        ("next_high", ctypes.c_void_p),
        ("next_low", ctypes.c_void_p),
        ("ratios", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("rows", ctypes.c_int32),
    )


class Reading(ctypes.Structure):
    """Mirror struct hrm_reading."""

    _fields_ = (
        ("tokens", ctypes.c_void_p),
        ("present", ctypes.c_void_p),
        ("read", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("rows", ctypes.c_int32),
    )


@dataclass(frozen=True)
class NativeLibrary:
    """Hold the loaded kernel and the instruction set to run it with."""

    functions: ctypes.CDLL
    level: Level


def native_library(folder: Path = BUILT) -> NativeLibrary:
    """Load the kernel built in a folder; raise NativeUnavailable if that cannot be done safely."""
    functions = _loaded(folder)
    best = int(functions.hrm_best_level())
    names: list[Level] = [name for name, number in LEVELS.items() if number <= best]
    if not names:
        raise NativeUnavailable("this processor has no AVX2 with FMA and F16C")
    wanted = os.environ.get(SIMD_VARIABLE, "")
    if wanted and wanted not in names:
        raise NativeUnavailable(
            f"{SIMD_VARIABLE} is {wanted!r}: this processor has {', '.join(names)}"
        )
    chosen = next((name for name in names if name == wanted), names[-1])
    return NativeLibrary(functions, chosen)


def sources_digest() -> str:
    """Return the SHA-256 of the kernel's sources, by which a build that is out of date is known."""
    digest = hashlib.sha256()
    for path in sorted((*SOURCES.glob("*.c"), *SOURCES.glob("*.h"))):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


@cache
def _loaded(folder: Path) -> ctypes.CDLL:
    """Compare a build with what was recorded of it before any of its code runs."""
    library, record = folder / LIBRARY_NAME, folder / RECORD_NAME
    try:
        content = library.read_bytes()
        recorded = json.loads(record.read_bytes())
    except OSError as error:
        raise NativeUnavailable(f"no kernel is built ({error}): make setup builds it") from error
    except ValueError as error:
        raise NativeUnavailable(f"{record} is no record of a build: {error}") from error
    found = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "sources": sources_digest(),
        "abi": ABI,
    }
    for name, value in found.items():
        if recorded.get(name) != value:
            raise NativeUnavailable(
                f"{library} is not what was built here: its {name} is {value}, the record says "
                f"{recorded.get(name)}; build it again with python -m hrm.native_build"
            )
    try:
        functions = ctypes.CDLL(str(library))
        functions.hrm_abi.restype = ctypes.c_uint32
        version = functions.hrm_abi()
    except (OSError, AttributeError) as error:
        raise NativeUnavailable(f"{library} cannot be loaded: {error}") from error
    if version != ABI:
        raise NativeUnavailable(f"{library} has interface {version}, this version calls {ABI}")
    _declare(functions)
    return functions


def _declare(functions: ctypes.CDLL) -> None:
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    functions.hrm_best_level.argtypes, functions.hrm_best_level.restype = (), number
    functions.hrm_scratch_bytes.argtypes = (pointer, pointer, number)
    functions.hrm_scratch_bytes.restype = ctypes.c_size_t
    functions.hrm_cycle.argtypes = (number, pointer, pointer)  # addresses: faster to pass
    functions.hrm_cycle.restype = None
    functions.hrm_read.argtypes, functions.hrm_read.restype = (number, pointer, pointer), None
    functions.hrm_float_product.argtypes = (
        number,
        ctypes.POINTER(Matrix),
        number,
        pointer,
        pointer,
    )
    functions.hrm_float_product.restype = None
    functions.hrm_residual.argtypes = (number, number, pointer, pointer, pointer)
    functions.hrm_residual.restype = None
