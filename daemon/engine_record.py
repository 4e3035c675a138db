"""Which engine a session thinks with: noted by the first process that chooses, kept by the others.

Engines differ in the last digits, or in more where weights are coarser; so a restart and a replay
take the one the session began with, whatever is fastest by then.
"""

from pathlib import Path

import msgspec

from daemon.logs import get_logger
from hrm.config import HRMConfig, ServingEngine

FILE_NAME = "engine.json"


class EngineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Name the engine, the instruction set of a native one, and the processor it ran on."""

    name: ServingEngine
    simd: str
    processor: str


def read_engine(folder: Path) -> EngineRecord | None:
    """Return what was noted in a session's folder; None where nothing was, or it cannot be read."""
    path = folder / FILE_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=EngineRecord)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        get_logger().warning("the engine's record cannot be read", path=str(path), error=str(error))
        return None


def note_engine(folder: Path, record: EngineRecord) -> None:
    """Note the engine, unless one is noted already."""
    path = folder / FILE_NAME
    if path.exists():
        return
    temporary = folder / f"{FILE_NAME}.new"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(record)))
    temporary.replace(path)


def limits_of_session(
    limits: HRMConfig, versions: dict[str, str], record: EngineRecord | None
) -> HRMConfig:
    """Return the settings with the engine that a session began with, so far as that is known."""
    if "onnxruntime" not in versions:  # begun before there was a choice
        return limits.changed(performance={"engine": "eager"})
    if record is not None:
        return limits.changed(performance={"engine": record.name})
    if "native" not in versions and limits.performance.engine == "auto":
        return limits.changed(performance={"engine": "onnx"})  # what auto meant then
    return limits
