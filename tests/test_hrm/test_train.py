"""hrm-train: the same seed gives the same weights, a killed run goes on, bad input is refused."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from model_builders import a_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_builders import some_candles, write_candles
from typer.testing import CliRunner, Result

from hrm.features import FEATURE_NAMES, FEATURE_SCHEMA_SHA256
from hrm.integrity import load_release
from hrm.manifest import read_manifest
from hrm.training import checkpoint, evaluation
from hrm.training.deep_supervision import SupervisionSettings
from hrm.training.market_table import LabelSettings
from hrm.training.train import train_command
from hrm.training.trainer import Run

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def short_tracks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Score in more and shorter pieces side by side: an untrained model thinks long."""
    monkeypatch.setattr(evaluation, "TRACK_BARS", 12)


@pytest.fixture
def candles(tmp_path: Path) -> Path:
    return write_candles(tmp_path / "Nifty_5.csv", some_candles(1400))


def arguments(folder: Path, candles: Path, **changes: object) -> list[str]:
    given: dict[str, object] = {
        "data": candles,
        "seed": 3,
        "steps": 6,
        "out": folder / "models",
        "runs": folder / "runs",
        "batch": 4,
        "checkpoint-every": 2,
        "validate-every": 3,
    }
    pairs = [(f"--{key}", str(value)) for key, value in (given | changes).items()]
    return [part for pair in pairs for part in pair]


def run(folder: Path, candles: Path, *flags: str, **changes: object) -> Result:
    app = typer.Typer()
    app.command()(train_command)
    return CliRunner().invoke(app, [*arguments(folder, candles, **changes), *flags])


def summary(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


def run_folder(folder: Path) -> Path:
    return next((folder / "runs").iterdir())


def test_training_releases_a_model_that_says_where_it_came_from(
    tmp_path: Path, candles: Path
) -> None:
    report = summary(run(tmp_path, candles, "--json"))

    entry = load_release(tmp_path / "models").entry
    assert entry.sha256 == report["weights_sha256"]
    assert entry.features.names == FEATURE_NAMES
    assert entry.features.schema_sha256 == FEATURE_SCHEMA_SHA256
    assert entry.vocabularies.instruments == {"Nifty": 1}
    assert (entry.data[0].name, entry.data[0].rows) == ("Nifty_5.csv", 1400)
    assert entry.training["seed"] == 3
    assert "no edge" in str(entry.scores["note"])
    assert report["steps"] == 6
    assert report["parameters"] > 100_000


def test_metrics_are_one_json_line_per_step(tmp_path: Path, candles: Path) -> None:
    summary(run(tmp_path, candles, "--json"))

    text = (run_folder(tmp_path) / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "validation_direction_auc" in line] == [3, 6]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    tmp_path: Path, candles: Path
) -> None:
    one = summary(run(tmp_path / "one", candles, "--json"))
    two = summary(run(tmp_path / "two", candles, "--json"))
    other = summary(run(tmp_path / "other", candles, "--json", seed=4))

    assert one["weights_sha256"] == two["weights_sha256"] != other["weights_sha256"]


def test_a_finished_run_is_released_again_without_training(tmp_path: Path, candles: Path) -> None:
    first = summary(run(tmp_path, candles, "--json"))

    again = summary(run(tmp_path, candles, "--json"))

    assert again["resumed_at"] == 6
    assert again["weights_sha256"] == first["weights_sha256"]


def test_fresh_starts_over(tmp_path: Path, candles: Path) -> None:
    first = summary(run(tmp_path, candles, "--json"))

    again = summary(run(tmp_path, candles, "--json", "--fresh"))

    assert again["resumed_at"] == 0
    assert again["weights_sha256"] == first["weights_sha256"]


def test_without_json_the_summary_goes_to_stderr(tmp_path: Path, candles: Path) -> None:
    result = run(tmp_path, candles)

    assert result.exit_code == 0
    assert result.stdout == ""
    assert "weights_sha256" in result.stderr


def test_other_settings_get_a_folder_of_their_own(tmp_path: Path, candles: Path) -> None:
    summary(run(tmp_path, candles, "--json"))
    summary(run(tmp_path, candles, "--json", **{"cost-bps": 1.0}))

    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"data": "nowhere.csv"}, "no candle file at nowhere.csv"),
        ({"preset": "huge"}, "no preset 'huge'"),
        ({"prior": "hope"}, "no prior 'hope'"),
        ({"memory-gib": 0.01}, "lower training.segment_batch_size"),
        ({"learning-rate": -1.0}, "learning_rate"),
        ({"precision": "int4"}, "no precision 'int4'"),
        ({"learning-rate": 1e6, "steps": 60}, "lower the learning rate"),
    ],
)
def test_what_cannot_work_ends_with_one_sentence(
    tmp_path: Path, candles: Path, changes: dict[str, object], claim: str
) -> None:
    result = run(tmp_path, candles, "--json", **changes)

    assert result.exit_code == 1
    assert claim in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "models").exists()


def test_doubtful_candles_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    short = write_candles(tmp_path / "Nifty_5.csv", some_candles(100))

    result = run(tmp_path, short)

    assert result.exit_code == 1
    assert "only 100 bars" in result.stderr
    assert not list((tmp_path / "runs").rglob("checkpoint*"))


def test_no_training_claims_to_have_seen_order_books() -> None:
    with pytest.raises(ValueError, match="candles carry no order books"):
        Run(
            config=a_config(inputs={"depth": True}),
            labels=LabelSettings(),
            supervision=SupervisionSettings(steps=1, learning_rate=0.001),
            seed=1,
            candles=(some_candles(),),
        )


def test_candles_that_never_move_are_refused_by_the_quality_gate(tmp_path: Path) -> None:
    candles = some_candles(1400)
    still = write_candles(
        tmp_path / "Nifty_5.csv",
        replace(candles, high=candles.low, close=candles.low, open=candles.low),
    )

    result = run(tmp_path, still)

    assert result.exit_code == 1
    assert "100% of the bars never moved" in result.stderr
    assert not (tmp_path / "models").exists()


def test_a_run_over_its_memory_says_what_would_help(tmp_path: Path, candles: Path) -> None:
    result = run(tmp_path, candles, **{"memory-gib": 0.05})

    assert result.exit_code == 1
    for remedy in ("--batch", "--checkpoint-activations", "performance.memory_limit_gb"):
        assert remedy in result.stderr


def test_computing_activations_twice_changes_neither_weights_nor_run_folder(
    tmp_path: Path, candles: Path
) -> None:
    plain = summary(run(tmp_path, candles, "--json"))

    again = summary(run(tmp_path, candles, "--json", "--fresh", "--checkpoint-activations"))

    assert again["weights_sha256"] == plain["weights_sha256"]
    assert again["run"] == plain["run"]


def test_scores_say_how_much_a_perturbation_grows(tmp_path: Path, candles: Path) -> None:
    report = summary(run(tmp_path, candles, "--json"))

    assert report["scores"]["test"]["perturbation_growth"] > 0.0


def test_the_penalty_on_growth_is_part_of_what_names_a_run(tmp_path: Path, candles: Path) -> None:
    one = summary(run(tmp_path, candles, "--json"))
    other = summary(run(tmp_path, candles, "--json", **{"contraction-weight": 0.0}))

    assert one["run"] != other["run"]
    assert one["weights_sha256"] != other["weights_sha256"]


def test_the_fastest_precision_is_timed_said_and_kept(tmp_path: Path, candles: Path) -> None:
    first = run(tmp_path, candles, "--json", precision="fastest")
    again = run(tmp_path, candles, "--json", precision="fastest")

    entry = load_release(tmp_path / "models").entry
    assert f"training in {entry.training['precision']}: float32 " in first.stderr
    assert "training in" not in again.stderr  # a run that was begun is not timed again
    assert summary(again)["resumed_at"] == 6
    assert summary(again)["weights_sha256"] == summary(first)["weights_sha256"]


def test_a_run_folder_of_the_former_format_is_refused(tmp_path: Path, candles: Path) -> None:
    summary(run(tmp_path, candles, "--json"))
    path = run_folder(tmp_path) / checkpoint.FILE_NAME
    with safe_open(path, framework="pt") as opened:
        state = json.loads(opened.metadata()["state"])
    state["generator"] = state.pop("generators")[0]
    del state["format"]
    save_file(load_file(path), path, metadata={"state": json.dumps(state)})

    refused = run(tmp_path, candles)
    fresh = run(tmp_path, candles, "--json", "--fresh")

    assert refused.exit_code == 1
    assert "checkpoint of format 1" in refused.stderr
    assert "--fresh" in refused.stderr
    assert summary(fresh)["resumed_at"] == 0


def test_a_checkpoint_that_is_damaged_is_refused(tmp_path: Path, candles: Path) -> None:
    summary(run(tmp_path, candles, "--json"))
    (run_folder(tmp_path) / checkpoint.FILE_NAME).write_bytes(b"not safetensors")

    result = run(tmp_path, candles)

    assert result.exit_code == 1
    assert "cannot be read" in result.stderr


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, candles: Path) -> None:
    summary(run(tmp_path / "one", candles, "--json"))
    summary(run(tmp_path / "two", candles, "--json", seed=4))
    stranger = run_folder(tmp_path / "two") / checkpoint.FILE_NAME
    stranger.replace(run_folder(tmp_path / "one") / checkpoint.FILE_NAME)

    result = run(tmp_path / "one", candles)

    assert result.exit_code == 1
    assert "other settings or data" in result.stderr


def steps_saved(folder: Path) -> int:
    """Return how many steps the checkpoint holds, 0 without one."""
    files = list(folder.rglob(checkpoint.FILE_NAME))
    if not files:
        return 0
    with safe_open(files[0], framework="pt") as opened:
        return int(opened.get_tensor("progress")[0])


# Killed from within: a test that was not scheduled for a second would come too late.
KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
from safetensors import safe_open
from hrm.training import checkpoint
from hrm.training.train import main

folder, least = Path(sys.argv.pop(1)), int(sys.argv.pop(1))

def steps_saved():
    for path in folder.rglob(checkpoint.FILE_NAME):
        with safe_open(path, framework="pt") as opened:
            return int(opened.get_tensor("progress")[0])
    return 0

def end():
    while steps_saved() < least:
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=end, daemon=True).start()
main()
"""


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_same_weights(
    tmp_path: Path, candles: Path
) -> None:
    steps = 60
    whole = summary(run(tmp_path / "whole", candles, "--json", steps=steps))
    folder = tmp_path / "killed"
    words = [str(folder), "10", *arguments(folder, candles, steps=steps)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *words],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = steps_saved(folder)

    resumed = summary(run(folder, candles, "--json", steps=steps))

    assert 10 <= kept < steps
    assert resumed["resumed_at"] == kept
    assert resumed["weights_sha256"] == whole["weights_sha256"]
    names = read_manifest(folder / "models").released
    assert names == read_manifest(tmp_path / "whole" / "models").released
    lines = (run_folder(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, steps + 1))
