"""The benchmarks run and give the fields that others read."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


def answer_of(*command: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", *command, "--json"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def test_the_bus_benchmark_stands_beside_the_raw_server() -> None:
    answer = answer_of("benchmarks.bus", "--quick")

    assert {"p50", "p99", "max"} <= answer["hop_us"].keys()
    assert answer["messages_per_s"] > 0
    assert answer["raw_pipelined_xadd_per_s"] > 0
    assert answer["ratio_to_raw"] > 0


def test_the_whole_daemon_at_500_ticks_a_second_loses_nothing() -> None:
    answer = answer_of("benchmarks.tick_to_order", "--quick")

    assert answer["rate_per_s"] == 500
    assert answer["lost"] == 0
    assert answer["decisions"] > 0
    assert {"p50", "p99", "max"} <= answer["tick_to_decision_us"].keys()
    assert {"bar_to_context", "context_to_decision"} <= answer["hops_us"].keys()
    assert answer["messages_per_s"] > 0
    assert answer["raw_pipelined_xadd_per_s"] > 0


def test_the_backend_benchmark_measures_sockets_answers_and_the_trading_path() -> None:
    answer = answer_of("benchmarks.backend", "--quick")

    assert answer["sockets_lost"] == 0
    assert answer["ticks_delivered"] > 0 < answer["gets"]
    for name in ("get_ms", "tick_fan_out_ms", "floor_fan_out_ms"):
        assert {"p50", "p99", "max"} <= answer[name].keys()
    low, high = answer["tick_to_decision_p99_ratio_ci95"]
    assert 0 < low <= high
    assert answer["tick_to_decision_p99_ratio"] > 0
    assert min(answer["decisions"].values()) > 10
    assert "memory_per_socket_kib" in answer


def test_the_feed_benchmark_loses_no_tick_and_compares_two_decoders() -> None:
    pytest.importorskip("fyers_apiv3")

    answer = answer_of("benchmarks.feed", "--quick")

    assert [run["lost"] for run in answer["rates"]] == [0, 0]
    assert [run["repeated"] for run in answer["rates"]] == [0, 0]
    assert answer["decode_ns_per_tick"] > 0
    assert answer["sdk_decode_ns_per_tick"] > 0


def test_deciding_some_thousand_times_does_not_make_the_process_grow() -> None:
    answer = answer_of("benchmarks.growth", "--quick")

    assert answer["decisions"] == 4000
    assert answer["decisions_thought"] > 2000
    assert answer["growth_mib"] < 8
    assert answer["rss_mib"] < 250
    assert answer["has_torch"] is False
