"""Fixtures that several test folders share."""

import asyncio
import os
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import structlog
from hypothesis import settings

from daemon.embedded_redis import EmbeddedRedis

# Read when torch is first imported. Test processes that each compute on all cores hold one another
# up: a training of four seconds took more than two minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A time limit per example would test the machine, which is shared and noisy; pytest-timeout bounds
# each test as a whole.
settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")

Result = TypeVar("Result")


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    # A loop of its own, so that the loop of the test that asked first stays as it is.
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


@pytest.fixture(autouse=True)
def _logs_as_they_were() -> Iterator[None]:
    """Undo what a command run in this process set: its logs go to a stream that is then closed."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def message_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the url of a message server that runs for the whole session."""
    server = EmbeddedRedis(tmp_path_factory.mktemp("message-server"), max_memory_mib=128)
    url = _run(server.start())
    yield url
    _run(server.stop())


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a released model: small, untrained, and it trades often."""
    from model_builders import a_card, a_config, a_model

    from hrm.features import CONTEXT_NAMES, FEATURE_NAMES, FEATURE_SCHEMA_SHA256
    from hrm.integrity import save_release
    from hrm.manifest import FeatureRecord

    folder = tmp_path_factory.mktemp("models")
    config = a_config(
        inputs={"n_features": len(FEATURE_NAMES), "n_context": len(CONTEXT_NAMES)},
    )
    features = FeatureRecord(names=FEATURE_NAMES, schema_sha256=FEATURE_SCHEMA_SHA256)
    save_release(folder, a_model(config, seed=8), a_card(config, features=features))
    return folder
