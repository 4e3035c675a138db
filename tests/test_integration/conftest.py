"""Fixtures of the tests that run the command line."""

from collections.abc import Iterator

import pytest
from command_line import Sandbox, a_sandbox


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Return a sandbox; fails the test when it leaves a process behind."""
    with a_sandbox() as sandbox:
        yield sandbox
