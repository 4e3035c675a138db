"""The plan of a session: everything that decides how its actors behave, written down once.

Every process of a session, a restart of one, and a replay years later build their actors from this
file and not from the settings of the day.
"""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import msgspec

from actors.instruments import Instrument
from daemon.errors import ReplayError
from hrm.native_library import ABI

FORMAT = 1
FILE_NAME = "session.json"
TraderName = Literal["model", "drill"]
"""Who decides: the released model, or a drill's draw by seed (actors/drill.py)."""
_VERSIONED = ("hrm-trading-daemon", "numpy", "onnxruntime", "torch", "redis", "msgspec")


class MarketPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One instrument that is traded and where its prices come from."""

    instrument: str
    timeframe: str
    label: str
    path: str
    sha256: str
    rows: int
    first_open_ns: int
    repairs: dict[str, int]  # what the loader had to repair, by rule


class SessionPlan(msgspec.Struct, frozen=True, kw_only=True):
    """All that the parts of a session are built from."""

    session: str
    mode: str
    prefix: str
    created_ns: int
    settings: dict[str, Any]
    instruments: list[Instrument]
    calendar: dict[str, Any]
    markets: list[MarketPlan]
    speed: float | str
    seed: int
    models_dir: str
    model_digest: str  # "" when there is no valid model
    no_model_reason: str  # why there is none
    trader: TraderName = "model"
    broker: str = "simulated"  # what it trades at; another one is another session
    simulator: str = ""  # address of a simulated broker in another process
    versions: dict[str, str]
    format: int = FORMAT

    def write(self, folder: Path) -> None:
        """Write the plan into a session's folder, atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{FILE_NAME}.new"
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(self)))
        temporary.replace(folder / FILE_NAME)


def read_plan(folder: Path) -> SessionPlan:
    """Read the plan of a recorded session; ReplayError when there is none that can be read."""
    path = folder / FILE_NAME
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=SessionPlan)
    except OSError as error:
        raise ReplayError(f"{folder} is no session: {path.name} cannot be read: {error}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ReplayError(f"{path} is no plan of a session: {error}") from error
    if plan.format != FORMAT:
        raise ReplayError(f"{path} has format {plan.format}, this version reads {FORMAT}")
    return plan


def versions() -> dict[str, str]:
    """Return the versions a result depends on; native: of the kernel's interface."""
    own = {"python": platform.python_version(), "native": str(ABI)}
    return own | {name: version(name) for name in _VERSIONED}
