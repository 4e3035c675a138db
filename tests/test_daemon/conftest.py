"""Fixtures of the daemon's tests."""

import asyncio
from pathlib import Path

import pytest
from recorded_session import RecordedSession, record_session


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RecordedSession:
    """Return a session that was recorded once for all tests; copy its folder before changing it."""
    state_dir: Path = tmp_path_factory.mktemp("state")
    # A loop of its own, so that the loop of the test that asked first stays as it is.
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(record_session(state_dir))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
