"""The compiled kernel: built where there is a compiler, and loaded only as it was built."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from native_builders import a_kernel, kernel_folder

from hrm import native_build
from hrm.native_build import BuildFailed, build
from hrm.native_library import (
    ABI,
    LIBRARY_NAME,
    RECORD_NAME,
    SIMD_VARIABLE,
    NativeUnavailable,
    native_library,
    sources_digest,
)


def a_copy(tmp_path: Path) -> Path:
    folder = tmp_path / "build"
    folder.mkdir()
    for name in (LIBRARY_NAME, RECORD_NAME):
        shutil.copy(kernel_folder() / name, folder / name)
    return folder


def record(folder: Path, **changes: object) -> None:
    found = {
        "abi": ABI,
        "sha256": hashlib.sha256((folder / LIBRARY_NAME).read_bytes()).hexdigest(),
        "sources": sources_digest(),
    }
    (folder / RECORD_NAME).write_text(json.dumps(found | changes))


def test_a_build_is_loaded_from_wherever_it_lies(tmp_path: Path) -> None:
    library = native_library(a_copy(tmp_path))

    assert library.level == a_kernel().level


def test_without_a_build_the_reason_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(NativeUnavailable, match="make setup builds it"):
        native_library(tmp_path)


def test_one_changed_byte_is_refused_before_any_of_it_runs(tmp_path: Path) -> None:
    folder = a_copy(tmp_path)
    content = bytearray((folder / LIBRARY_NAME).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / LIBRARY_NAME).write_bytes(content)

    with pytest.raises(NativeUnavailable, match="its sha256 is"):
        native_library(folder)


@pytest.mark.parametrize("name", ["sources", "abi"])
def test_a_build_of_other_sources_or_another_interface_is_refused(
    tmp_path: Path, name: str
) -> None:
    folder = a_copy(tmp_path)
    record(folder, **{name: 99})

    with pytest.raises(NativeUnavailable, match=f"its {name} is .* the record says 99"):
        native_library(folder)


def test_what_is_no_library_is_refused_whatever_the_record_says(tmp_path: Path) -> None:
    folder = a_copy(tmp_path)
    (folder / LIBRARY_NAME).write_bytes(b"\x7fELF and no more")
    record(folder)

    with pytest.raises(NativeUnavailable, match="cannot be loaded"):
        native_library(folder)
    (folder / RECORD_NAME).write_text("no json")
    with pytest.raises(NativeUnavailable, match="no record of a build"):
        native_library(folder)


def test_a_library_that_answers_with_another_interface_is_refused(tmp_path: Path) -> None:
    folder = a_copy(tmp_path)
    source = tmp_path / "other.c"
    source.write_text("unsigned hrm_abi(void) { return 99; }\n")
    compiler = shutil.which("cc") or pytest.skip("no compiler")
    target = folder / LIBRARY_NAME
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(target)], check=True)
    record(folder)

    with pytest.raises(NativeUnavailable, match="has interface 99, this version calls"):
        native_library(folder)


def test_the_variable_lowers_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SIMD_VARIABLE, "avx2")
    assert native_library(kernel_folder()).level == "avx2"

    monkeypatch.setenv(SIMD_VARIABLE, "sse9")
    with pytest.raises(NativeUnavailable, match="HRM_NATIVE_SIMD is 'sse9': this processor has"):
        native_library(kernel_folder())


def test_without_a_compiler_nothing_is_built_and_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)

    with pytest.raises(BuildFailed, match="no C compiler was found"):
        build(tmp_path)
    native_build.main()

    assert "the native engine is not built" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_fails_leaves_no_half_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho cannot >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))

    with pytest.raises(BuildFailed, match="cannot"):
        build(tmp_path / "build")

    assert list((tmp_path / "build").iterdir()) == []
