"""Settings of the web backend. Only backend/ reads them; they stand here since settings.yaml is one
file, checked in one place, and nothing in daemon/ may import the backend.
"""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _is_origin(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or f"{parts.scheme}://{parts.netloc}" != text:
        raise ValueError("must be http://host:port or https://host, without a path or a pattern")
    return text


Origin = Annotated[str, AfterValidator(_is_origin)]


class BackendSettings(BaseModel):
    """Say where the backend listens, how it gives way, and what its clients may ask of it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on; the frontend expects localhost."""
    port: int = Field(default=8000, ge=0, le=65_535)
    """Port to listen on; the frontend has 8000 compiled in. 0: any free one."""
    niceness: int = Field(default=10, ge=0, le=19)
    """How much the backend gives way to the daemon on the same machine."""
    origins: tuple[Origin, ...] = ("http://localhost:3000", "http://localhost:3001")
    """Whose pages may use the cookie, over HTTP and sockets; exact."""
    users: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Fyers ids that may log in; empty: any, but where the daemon trades real money none."""
    max_body_kib: int = Field(default=64, ge=1, le=10_240)
    """Size of a request's body, and of a socket's message, above which it is refused."""
    sockets_per_user: int = Field(default=3, ge=1, le=100)
    """Live sockets of one user; a further one closes his oldest."""
    waiting_messages: int = Field(default=256, ge=16, le=100_000)
    """Messages kept for a client that is behind; one more ends its socket."""
    stuck_seconds: float = Field(default=10.0, gt=0.0, le=600.0)
    """Real time without taking anything after which a client's socket ends."""
    answer_seconds: float = Field(default=5.0, gt=0.0, le=60.0)
    """Real time that the daemon has for the answer to a request."""
    profile_fresh_seconds: float = Field(default=60.0, ge=0.0, le=3_600.0)
    """Real time for which a profile is not asked for at the broker again."""
    login_failures: int = Field(default=5, ge=1, le=100)
    """Failed log-ins of a user or an address after which it has to wait."""
    login_window_seconds: float = Field(default=300.0, gt=0.0, le=86_400.0)
    """Real time within which failed log-ins count."""
    backtests_running: int = Field(default=2, ge=1, le=16)
    """Back-tests at a time, each a process of its own."""
    backtests_waiting: int = Field(default=4, ge=0, le=1_000)
    """Back-tests that wait for a place; a further one is refused."""
    backtest_pace_seconds: float = Field(default=0.1, ge=0.0, le=10.0)
    """Real time between two bars of a back-test on its socket; other pauses are multiples of it."""
