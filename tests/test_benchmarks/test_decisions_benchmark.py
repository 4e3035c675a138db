"""The benchmark of decisions: what it counts, and a short session; no speed is judged here."""

from pathlib import Path

import pytest
import uvloop

from actors.messages import TimeEvent
from benchmarks.decisions import a_plan, batch_figures, models_of_depth, opens_of, session, stalls
from benchmarks.loop_probe import idle_loop_p999_ms
from benchmarks.tick_to_order import DAY_S, schedule

MS = 1_000_000


def test_the_loop_is_judged_while_there_is_thinking_and_in_all() -> None:
    answers = [(number * MS, MS // 10) for number in range(1000)]
    answers[150] = (150 * MS, 3 * MS)  # between two thoughts
    answers[500] = (500 * MS, 2 * MS)
    answers[501] = (501 * MS, 2 * MS)

    found = stalls(answers, [(100 * MS, 140 * MS), (100 * MS, 140 * MS), (490 * MS, 510 * MS)])

    assert found == {"loop_stall_p999_ms": 2.0, "loop_stall_all_p999_ms": 2.0}
    assert stalls(answers, []) == {"loop_stall_p999_ms": None, "loop_stall_all_p999_ms": 2.0}


def test_batches_are_answered_as_far_as_there_is_time(tmp_path: Path) -> None:
    models = models_of_depth(tmp_path)

    found = batch_figures(models["released"], 7)

    assert list(found["sizes"]) == ["1", "5", "20", "100"]
    assert found["sizes"]["1"]["answered_p50"] == 1
    assert found["sizes"]["1"]["segments_in_50ms_p50"] > 0


@pytest.mark.integration
@pytest.mark.slow
def test_a_session_of_several_instruments_decides_together() -> None:
    far_off = {
        "hierarchical_reasoning_model.performance.max_inference_time_ms": 3000,
        "monitoring.latency_warning_ms": 5000,
        "monitoring.latency_critical_ms": 6000,
        "reasoning.warm_up_bars": 33,
    }

    found = uvloop.run(session(4, 2.0, far_off))

    assert (found["lost"], found["deadline_misses"]) == (0, 0)
    assert found["decisions"] == found["decisions_thought"] == 4 * 8
    assert found["batch_size_p50"] == 4


def test_a_schedule_longer_than_a_day_goes_on_with_the_next_trading_day() -> None:
    plan, prices = a_plan(2, {})
    opens_ns = opens_of(plan, days=2)  # Monday, and Wednesday after a holiday

    dues, _ = schedule(370, 5.0, prices, time_event_every_s=20, opens_ns=opens_ns)

    times_ns = [due.event.now_ns for due in dues if isinstance(due.event, TimeEvent)]
    after = times_ns.index(opens_ns[1])
    assert times_ns == sorted(times_ns)
    assert times_ns[after - 1] == opens_ns[0] + DAY_S * 1_000_000_000
    assert opens_ns[1] - opens_ns[0] == 2 * 24 * 3600 * 1_000_000_000


def test_an_idle_loop_is_asked_beside_a_busy_process() -> None:
    assert idle_loop_p999_ms(1, 0.1) > 0
