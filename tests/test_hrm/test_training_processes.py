"""Several processes: one model, the step that a single process would have taken."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import process_child
import pytest
import torch
from training_builders import some_candles, write_candles

from hrm.integrity import load_release
from hrm.training import checkpoint
from hrm.training.processes import Processes, joined_processes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Run process_child in two processes that find each other as torchrun has them do."""
    folder = tmp_path_factory.mktemp("pair")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
    }
    children = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "process_child.py"), str(folder)],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    answers = []
    try:
        for child in children:
            out, err = child.communicate(timeout=240)
            assert child.returncode == 0, err
            answers.append(json.loads(out))
    finally:
        for child in children:
            child.kill()
            child.wait()
    return answers


def test_one_process_is_alone_and_averages_nothing() -> None:
    weight = torch.ones(2, requires_grad=True)
    weight.grad = torch.tensor([1.0, 2.0])
    alone = Processes()

    alone.average_gradients([weight])
    alone.wait()
    alone.check_agreement({"weight": weight})

    assert weight.grad.tolist() == [1.0, 2.0]
    assert alone.average({"loss": 3.0}) == {"loss": 3.0}
    assert alone.gather("state") == ["state"]
    assert alone.is_first


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)

    with joined_processes() as processes:
        assert processes == Processes(rank=0, count=1)


def test_a_batch_that_does_not_split_evenly_is_refused() -> None:
    assert Processes(count=4).share(32) == 8
    with pytest.raises(ValueError, match=r"batch of 32 .* among 3 processes"):
        Processes(count=3).share(32)


@pytest.mark.slow
def test_two_processes_exchange_what_they_should(pair: list[dict[str, Any]]) -> None:
    first, second = (answer["exchange"] for answer in pair)

    assert first["gradients"] == second["gradients"] == [[1.5, 3.0], [2.0], None]
    assert first["figures"] == second["figures"] == {"loss": 1.5}
    assert first["gathered"] == second["gathered"] == [0, 1]
    assert "the weights differ between the processes" in first["disagreement"]


@pytest.mark.slow
def test_two_processes_take_the_steps_that_one_would_with_the_whole_batch(
    pair: list[dict[str, Any]],
) -> None:
    alone = process_child.train(Processes())

    first, second = (answer["train"] for answer in pair)

    assert first["digest"] == second["digest"]
    assert first["losses"] == second["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    for name, value in alone["weights"].items():
        assert first["weights"][name] == pytest.approx(value, abs=2e-4), name
    assert sum(first["imitated"][-4:]) < 0.95 * sum(first["imitated"][:4])


@pytest.mark.slow
def test_two_processes_go_on_from_one_checkpoint_bit_by_bit(pair: list[dict[str, Any]]) -> None:
    first, second = (answer["go_on"] for answer in pair)

    assert first["resumed_at"] == second["resumed_at"] == 2
    assert first["whole"] == first["resumed"]
    assert second["whole"] == second["resumed"]
    assert first["whole"] != second["whole"]  # each thinks about samples of its own
    assert first["files"] == [checkpoint.FILE_NAME, "metrics.jsonl"]


@pytest.mark.slow
def test_torchrun_trains_one_model_and_reports_it_once(tmp_path: Path) -> None:
    candles = write_candles(tmp_path / "Nifty_5.csv", some_candles(1400))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "hrm.training.train", "--data", str(candles)]
    command += ["--steps", "4", "--batch", "4", "--json"]

    launcher = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = launcher.communicate(timeout=240)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)  # the launcher's children too, if it hangs

    assert launcher.returncode == 0, err
    report = json.loads(out)
    entry = load_release(tmp_path / "models").entry
    assert entry.sha256 == report["weights_sha256"]
    assert entry.training["processes"] == 2
    text = next((tmp_path / "runs").rglob("metrics.jsonl")).read_text(encoding="utf-8")
    assert [json.loads(line)["step"] for line in text.splitlines()] == [1, 2, 3, 4]
