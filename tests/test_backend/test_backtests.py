"""Back-tests over HTTP and sockets: the order of the frames, real numbers, bounds, cancelling."""

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from backend_server import OTHER, PATIENCE_S, Site, a_site, check_frame
from command_line import CONFIG, HEADER, candle_rows, wait_until

from backend.backtest_worker import SEED, days_of
from daemon.backtest import BacktestService, prepare

pytestmark = pytest.mark.integration

CHANNEL = "/ws/backtest/{backtest_id}"
BARS = 120


@pytest.fixture(scope="module")
def tester(tmp_path_factory: pytest.TempPathFactory, tiny_models: Path) -> Iterator[Site]:
    """Serve a backend with a folder of raw candles, and no daemon."""
    folder = tmp_path_factory.mktemp("backtests")
    candles = "\n".join([HEADER, *candle_rows(BARS)]) + "\n"
    (folder / "Nifty_1.csv").write_text(candles)
    environment = {
        "HRM_TRADER__PATHS__RAW_DATA_DIR": str(folder),
        "HRM_TRADER__SESSION__MODEL_DIR": str(tiny_models),
        "HRM_TRADER__REASONING__WARM_UP_BARS": "33",
        "HRM_TRADER__RISK_LIMITS__MIN_CONFIDENCE": "0",
        "HRM_TRADER__BACKEND__BACKTEST_PACE_SECONDS": "0",
    }
    patch = pytest.MonkeyPatch()
    for name, value in environment.items():
        patch.setenv(name, value)  # the worker process reads the environment, as the backend does
    with a_site(folder / "state", environment=environment) as site:
        yield site
    patch.undo()


def start(site: Site, path: str = "/api/backtest/start", **fields: Any) -> str:
    body = {"instrument": "nifty 50", "timeframe": "1", "duration": 1} | fields
    with site.client() as client:
        answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    job_id: str = answer.json()["backtest_id"]
    return job_id


def frames_of(site: Site, job_id: str) -> list[dict[str, Any]]:
    """Return every frame of a back-test, each of them checked."""
    found: list[dict[str, Any]] = []
    with site.socket(f"/ws/backtest/{job_id}") as socket:
        while not found or found[-1]["type"] not in ("completed", "error"):
            found.append(json.loads(socket.recv(timeout=PATIENCE_S)))
            check_frame(CHANNEL, found[-1])
    return found


def test_the_frames_come_in_the_contracts_order_with_real_numbers(tester: Site) -> None:
    frames = frames_of(tester, start(tester))

    kinds = [f"{f['type']} {f['progress']}" if "step" in f else f["type"] for f in frames]
    assert kinds[:7] == [
        "connected", "started", "progress 10", "progress 30", "data_loaded", "progress 40",
        "progress 50",
    ]  # fmt: skip
    candles = [frame for frame in frames if frame["type"] == "candle_update"]
    times = [frame["candle"]["time"] for frame in candles]
    assert len(times) == BARS == candles[-1]["total_steps"]
    assert times == sorted(set(times))
    assert all(frame["data"] == [] for frame in frames if frame["type"] == "chart_update")
    results = frames[-1]["results"]
    assert results["final_capital"] == pytest.approx(
        results["initial_capital"] + results["total_pnl"], abs=0.01
    )
    assert len(results["portfolio_values"]) == BARS
    assert results["trades"]


def test_the_results_equal_those_of_the_command(tester: Site) -> None:
    results = frames_of(tester, start(tester, path="/api/backtest"))[-1]["results"]

    path = tester.backend.shelf.raw_dir / "Nifty_1.csv"
    first, last = days_of(path, "Nifty", 1, CONFIG)
    where = prepare(
        [path], ["Nifty"], config=CONFIG, timeframe="1", first=first, last=last, capital=100_000.0
    )
    expected = BacktestService(where, seed=SEED).run_alone().contract()
    assert results["fingerprint"] == expected["fingerprint"]
    assert results == json.loads(json.dumps(expected))


def test_days_are_counted_back_from_the_newest_candle(tester: Site) -> None:
    path = tester.backend.shelf.raw_dir / "Nifty_1.csv"

    assert days_of(path, "Nifty", 3, CONFIG) == (date(2026, 2, 28), date(2026, 3, 2))


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"instrument": "Nonsense"},
            "Backtest failed: No trading symbol found for instrument: Nonsense",
        ),
        ({"timeframe": "15"}, "Backtest failed: no candles of Nifty on bars of '15'"),
    ],
)
def test_what_cannot_be_tested_is_told_on_the_socket(
    tester: Site, fields: dict[str, str], text: str
) -> None:
    last = frames_of(tester, start(tester, **fields))[-1]

    assert last["type"] == "error"
    assert last["message"].startswith(text)


def test_an_unknown_job_and_one_of_another_user_are_not_found(tester: Site) -> None:
    job_id = start(tester)

    for path, user in ((f"/ws/backtest/{job_id}", OTHER), ("/ws/backtest/nothing", OTHER)):
        with tester.socket(path, user=user) as socket:
            assert json.loads(socket.recv(timeout=PATIENCE_S)) == {
                "type": "error",
                "message": "Backtest not found",
            }


def test_a_job_can_be_cancelled_by_its_owner_alone(
    tester: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tester.backend.jobs, "_pace_s", 0.2)
    job_id = start(tester)

    with tester.client(OTHER) as other, tester.client() as owner:
        refused = other.post(f"/api/backtest/{job_id}/cancel")
        cancelled = owner.post(f"/api/backtest/{job_id}/cancel")

    assert (refused.status_code, cancelled.status_code) == (404, 200)
    assert frames_of(tester, job_id)[-1]["message"] == "Backtest failed: cancelled"


def test_only_so_many_are_taken_at_a_time(tester: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = tester.backend.jobs
    wait_until(lambda: all(job.is_over for job in jobs._jobs.values()), "no job under way")
    monkeypatch.setattr(jobs, "_pace_s", 0.2)
    monkeypatch.setattr(jobs, "_most", 2)
    ids = [start(tester), start(tester)]

    with tester.client() as client:
        body = {"instrument": "Nifty", "timeframe": "1", "duration": 1}
        answer = client.post("/api/backtest/run", json=body)
        for job_id in ids:
            client.post(f"/api/backtest/{job_id}/cancel")

    assert answer.status_code == 500
    assert answer.json()["detail"] == (
        "Failed to start backtest: 2 back-tests are under way, at most 2: wait"
    )
