"""Fixtures of the tests that run the command line."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Sandbox, a_sandbox
from model_builders import a_card, a_config, a_model


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    """Return a sandbox; fails the test when it leaves a process behind."""
    with a_sandbox() as sandbox:
        yield sandbox


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a released model: small, untrained, and it trades often."""
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
