"""The engine of a session: noted once, kept by restarts and replays."""

from pathlib import Path

import pytest

from daemon.engine_record import (
    FILE_NAME,
    EngineRecord,
    limits_of_session,
    note_engine,
    read_engine,
)
from hrm.config import EngineName, HRMConfig

NATIVE = EngineRecord(name="native8", simd="avx2", processor="x86_64 some")


def test_the_first_engine_noted_stays(tmp_path: Path) -> None:
    assert read_engine(tmp_path) is None

    note_engine(tmp_path, NATIVE)
    note_engine(tmp_path, EngineRecord(name="onnx", simd="", processor="another"))

    assert read_engine(tmp_path) == NATIVE


def test_a_note_that_cannot_be_read_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('{"name": "steam"}')

    assert read_engine(tmp_path) is None


@pytest.mark.parametrize(
    ("versions", "record", "configured", "expected"),
    [
        ({}, None, "auto", "eager"),
        ({"onnxruntime": "1"}, None, "auto", "onnx"),
        ({"onnxruntime": "1"}, None, "eager", "eager"),
        ({"onnxruntime": "1", "native": "1"}, None, "auto", "auto"),
        ({"onnxruntime": "1", "native": "1"}, NATIVE, "auto", "native8"),
    ],
)
def test_a_session_goes_on_with_the_engine_it_began_with(
    versions: dict[str, str], record: EngineRecord | None, configured: EngineName, expected: str
) -> None:
    limits = HRMConfig().changed(performance={"engine": configured})

    assert limits_of_session(limits, versions, record).performance.engine == expected
