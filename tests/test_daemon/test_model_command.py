"""hrm-trader model: what is released and what production would be, from verified files only."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from model_builders import a_card, a_config, a_model
from typer.testing import CliRunner

from daemon.cli import app
from daemon.errors import ConfigError
from daemon.model_command import describe
from hrm.config import HRMConfig
from hrm.features import FEATURE_NAMES
from hrm.integrity import save_release
from hrm.manifest import MANIFEST_NAME, FeatureRecord, read_manifest


@pytest.fixture
def models(tmp_path: Path) -> Path:
    config = a_config(inputs={"n_features": len(FEATURE_NAMES)})
    save_release(tmp_path, a_model(config), a_card(config, scores={"test": {"bars": 5}}))
    return tmp_path


def test_the_production_size_is_that_of_the_paper_and_fits_a_clone(models: Path) -> None:
    answer = describe(models)

    assert 26_000_000 <= answer["parameters"] <= 28_000_000
    assert answer["parameters"] == sum(answer["parts"].values())
    assert set(answer["parts"]) == {"encoder", "embeddings", "h_module", "l_module", "heads"}
    # Too large in float32, so it is stored in float16, with a header of some kB.
    assert answer["file_mb"] == pytest.approx(2 * answer["parameters"] / 1e6, rel=0.001)
    assert answer["file_mb"] < 100
    assert answer["production"]["segments"] == HRMConfig().adaptive_computation.m_max


def test_the_released_model_is_described_as_verified(models: Path) -> None:
    result = CliRunner().invoke(app, ["model", "--json", "--models", str(models)])

    released = json.loads(result.stdout)["released"]
    manifest = read_manifest(models)
    path = models / manifest.released
    assert released["name"] == manifest.released
    assert released["digest"] == manifest.models[manifest.released].sha256
    assert released["file_mb"] == pytest.approx(path.stat().st_size / 1e6, abs=0.001)
    assert released["parameters"] == sum(released["parts"].values())
    assert (released["segments"], released["cycles"], released["timesteps"]) == (6, 2, 2)
    assert released["scores"] == {"test": {"bars": 5}}
    assert released["created"] == "2026-01-05T09:15:00Z"


def test_people_get_a_table(models: Path) -> None:
    result = CliRunner().invoke(app, ["model", "--models", str(models)])

    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert rows["cycles"] == ["2", "8"]
    assert rows["parameters"][1].replace(",", "").isdigit()
    assert "SHA-256 verified" in result.stdout


def test_weights_that_were_changed_are_named_and_nothing_is_described(models: Path) -> None:
    path = models / read_manifest(models).released
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))

    with pytest.raises(ConfigError, match=rf"{path.name} has SHA-256 .* restore the file"):
        describe(models)


def test_a_folder_without_a_manifest_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"{MANIFEST_NAME} cannot be read .*hrm-train"):
        describe(tmp_path)


def test_a_model_of_other_features_cannot_be_used(tmp_path: Path) -> None:
    config = a_config()
    features = FeatureRecord(names=("a", "b", "c"), schema_sha256="0" * 64)
    save_release(tmp_path, a_model(config), a_card(config, features=features))

    with pytest.raises(ConfigError, match="was trained on other features"):
        describe(tmp_path)


def test_the_command_line_loads_no_torch_before_a_command_needs_it() -> None:
    code = "import sys, daemon.cli; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_profile_says_what_each_step_of_thinking_took(models: Path) -> None:
    result = CliRunner().invoke(app, ["model", "--json", "--profile", "--models", str(models)])

    steps = json.loads(result.stdout)["profile"]
    assert {"check", "encode", "cycle", "residual", "heads", "answer", "thought"} <= set(steps)
    assert steps["thought"]["count"] == 200
    assert 0 < steps["encode"]["p50_us"] <= steps["thought"]["p99_us"]
