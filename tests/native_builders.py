"""The native kernel for tests: the one that is built, or one built for this run."""

import platform
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from hrm.native_build import NoCompiler, build
from hrm.native_library import BUILT, Level, NativeLibrary, NativeUnavailable, native_library


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="hrm-kernel-")  # removed when the run ends


@cache
def kernel_folder() -> Path:
    """Return where a kernel of these sources lies; skip the test where there can be none.

    Sources that do not compile fail the test.
    """
    if platform.machine() != "x86_64":
        pytest.skip(f"the kernel is for x86_64, this is {platform.machine()}")
    try:
        native_library()
    except NativeUnavailable:
        folder = Path(_scratch().name)
        try:
            build(folder)
        except NoCompiler as error:
            pytest.skip(str(error))
        return folder
    return BUILT


def a_kernel(level: Level | None = None) -> NativeLibrary:
    """Return the kernel at a level; skip the test where the processor does not have it."""
    library = native_library(kernel_folder())
    if level == "avx512" and library.level != level:
        pytest.skip("this processor has no AVX-512 with VNNI")
    return library if level is None else replace(library, level=level)
