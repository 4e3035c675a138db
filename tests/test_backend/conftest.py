"""A backend without a daemon, and one beside a daemon that trades."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from backend_server import OTHER, USER, Site, a_daemon, a_site, stop_session
from command_line import a_sandbox


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Site]:
    """Serve a backend over a state folder that no daemon has used."""
    with a_site(tmp_path / "state") as site:
        yield site


@pytest.fixture(scope="session")
def trading_site(tiny_models: Path) -> Iterator[Site]:
    """Serve a backend beside a daemon that plays a bar in one and a half seconds.

    Its candles last for nine minutes, longer than all tests of one process that use it.
    """
    with (
        a_sandbox() as sandbox,
        a_daemon(sandbox, tiny_models, speed=40.0) as state,
        a_site(state) as site,
    ):
        yield site


@pytest.fixture
def site(trading_site: Site) -> Iterator[Site]:
    """Serve a backend beside a daemon; nobody has a session before or after."""
    stop_session(trading_site, USER, OTHER)
    trading_site.accounts.is_down = False
    yield trading_site
    stop_session(trading_site, USER, OTHER)
