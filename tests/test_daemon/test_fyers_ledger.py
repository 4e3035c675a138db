"""The rate ledger: below the broker's limits, across restarts, with a share for exits."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.brokers.fyers.ledger import CallBudget, RateLedger, read_use
from daemon.brokers.fyers_simulator.limits import RateLimiter, RateLimits
from daemon.clock import NS_PER_SECOND, SimulatedClock
from daemon.errors import ConfigError

NOON_NS = 1_795_330_800 * NS_PER_SECOND  # 22 November 2026, 12:30 in India
DAY_S = 86_400


def clock_at(seconds: float = 0.0) -> SimulatedClock:
    return SimulatedClock(NOON_NS + round(seconds * NS_PER_SECOND))


def spend(ledger: RateLedger, clock: SimulatedClock, calls: int, *, reduces_risk: bool) -> None:
    for _ in range(calls):
        while wait_s := ledger.take(reduces_risk=reduces_risk):
            clock.advance_to(clock.now_ns() + max(1, round(wait_s * NS_PER_SECOND)))


def test_entries_leave_the_reserve_to_exits(tmp_path: Path) -> None:
    with RateLedger(tmp_path / "calls", clock_at()) as ledger:
        entries = [ledger.take() for _ in range(6)]
        exits = [ledger.take(reduces_risk=True) for _ in range(4)]

    assert entries == [0, 0, 0, 0, 0, 1]
    assert exits == [0, 0, 0, 1]


def test_a_restart_forgets_nothing(tmp_path: Path) -> None:
    for _ in range(5):
        with RateLedger(tmp_path / "calls", clock_at()) as ledger:
            assert ledger.take() == 0

    with RateLedger(tmp_path / "calls", clock_at(0.25)) as ledger:
        assert ledger.take() == 0.75
        assert ledger.calls_today == 5


def test_one_refusal_leaves_a_quarter_and_two_leave_the_reserve(tmp_path: Path) -> None:
    clock = clock_at()
    with RateLedger(tmp_path / "calls", clock) as ledger:
        ledger.note_refusal()
        quarter = [ledger.take() for _ in range(2)]
        ledger.note_refusal()
        clock.advance_to(clock.now_ns() + 60 * NS_PER_SECOND)

        assert quarter == [0, 1]
        assert ledger.take() == float("inf")
        assert ledger.take(reduces_risk=True) == 0


def test_the_next_day_of_india_begins_anew(tmp_path: Path) -> None:
    with RateLedger(tmp_path / "calls", clock_at()) as ledger:
        ledger.note_refusal()
        ledger.note_refusal()

    with RateLedger(tmp_path / "calls", clock_at(DAY_S)) as ledger:
        assert (ledger.calls_today, ledger.refusals_today) == (0, 0)
        assert ledger.take() == 0


def test_a_clock_set_back_gives_no_second_day(tmp_path: Path) -> None:
    with RateLedger(tmp_path / "calls", clock_at()) as ledger:
        ledger.take()

    with RateLedger(tmp_path / "calls", clock_at(-DAY_S)) as ledger:
        assert ledger.calls_today == 1


def test_the_budget_of_a_day_ends(tmp_path: Path) -> None:
    budget = CallBudget(per_day=3, reserve_per_day=1)
    with RateLedger(tmp_path / "calls", clock_at(), budget) as ledger:
        assert [ledger.take() for _ in range(3)] == [0, 0, float("inf")]
        assert ledger.take(reduces_risk=True) == 0
        assert ledger.take(reduces_risk=True) == float("inf")


def test_a_second_owner_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calls"
    with (
        RateLedger(path, clock_at()),
        pytest.raises(ConfigError, match="belongs to a running process"),
    ):
        RateLedger(path, clock_at())


def test_an_unreadable_ledger_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "calls"
    path.write_text("{")

    with pytest.raises(ConfigError, match="cannot be read"):
        RateLedger(path, clock_at())


@settings(max_examples=15, deadline=None)
@given(
    pauses_s=st.lists(st.sampled_from([0.0, 0.01, 0.3, 1.0, 20.0]), max_size=12),
    calls=st.integers(1, 60),
    reduces_risk=st.booleans(),
)
def test_no_pace_of_calls_meets_a_limit_of_the_broker(
    tmp_path_factory: pytest.TempPathFactory,
    pauses_s: list[float],
    calls: int,
    *,
    reduces_risk: bool,
) -> None:
    clock = clock_at()
    broker = RateLimiter(RateLimits(), clock.now_ns)
    path = tmp_path_factory.mktemp("ledger") / "calls"
    taken_ns = []
    for pause_s in [0.0, *pauses_s]:
        clock.advance_to(clock.now_ns() + round(pause_s * NS_PER_SECOND))
        with RateLedger(path, clock) as ledger:
            for _ in range(calls):
                spend(ledger, clock, 1, reduces_risk=reduces_risk)
                taken_ns.append(clock.now_ns())
                assert broker.admit() is None

    assert all(earlier <= later for earlier, later in pairwise(taken_ns))
    assert broker.minute_breaches == 0


def test_what_is_used_can_be_read_while_a_process_counts(tmp_path: Path) -> None:
    path = tmp_path / "calls"
    assert read_use(path, NOON_NS) is None
    with RateLedger(path, clock_at()) as ledger:
        ledger.take()
        ledger.take()
        ledger.note_refusal()

        today = read_use(path, NOON_NS)
        tomorrow = read_use(path, NOON_NS + DAY_S * NS_PER_SECOND)

    assert today == {"calls_today": 2, "refusals_today": 1, "budget_of_the_day": 90_000}
    assert tomorrow == {"calls_today": 0, "refusals_today": 0, "budget_of_the_day": 90_000}
