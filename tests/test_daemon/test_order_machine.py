"""Random lives of orders, over a line that loses, delays and repeats: what must hold at the end.

HRM_ORDER_EXAMPLES sets how many are tried; `make torture` tries 50,000.
"""

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from order_world import NAME, OrderWorld

from daemon.brokers.fyers_simulator.direct import LINE_FAULTS, LineFault

EXAMPLES = int(os.environ.get("HRM_ORDER_EXAMPLES", "2000"))


class OrderMachine(RuleBasedStateMachine):
    """Decide, wait, break the line, meddle by hand, kill, restart; then mend and compare."""

    @initialize(
        seed=st.integers(0, 2**16),
        probability=st.sampled_from([0.0, 0.1, 0.3]),
        with_limits=st.booleans(),
        latency_s=st.sampled_from([0, 0, 2]),
    )
    def begin(self, seed: int, probability: float, with_limits: bool, latency_s: int) -> None:
        self.world = OrderWorld(seed, with_limits=with_limits, latency_s=latency_s)
        self.world.line.probability = probability
        self.is_killed = self.has_lost_power = False

    @rule(units=st.sampled_from([-400, -5, 1, 10, 2000]))
    def intend(self, units: int) -> None:
        self.world.intend(units)

    @rule()
    def leave(self) -> None:
        self.world.leave()

    @rule(seconds=st.sampled_from([1, 3, 10, 60]))
    def wait(self, seconds: int) -> None:
        self.world.wait(seconds)

    @rule(fault=st.sampled_from(LINE_FAULTS))
    def break_line(self, fault: str) -> None:
        self.world.line.armed.append(fault)  # type: ignore[arg-type]

    @rule(units=st.sampled_from([-10, -1, 3]))
    def trade_by_hand(self, units: int) -> None:
        self.world.stranger(units)

    @rule()
    def close_outside(self) -> None:
        self.world.close_outside()

    @rule(flatten=st.booleans())
    def kill(self, flatten: bool) -> None:
        self.world.kill(flatten=flatten)
        self.is_killed = True

    @precondition(lambda self: self.is_killed)
    @rule()
    def resume(self) -> None:
        self.world.resume()
        self.is_killed = False

    @rule()
    def restart(self) -> None:
        self.world.restart()

    @rule(forgotten=st.sampled_from([1, 2, 3, 5, 1000]))
    def lose_power(self, forgotten: int) -> None:
        self.world.lose_power(forgotten)
        self.has_lost_power = True

    @rule()
    def reconcile(self) -> None:
        self.world.look()

    @invariant()
    def no_order_stands_twice_at_the_exchange(self) -> None:
        if hasattr(self, "world"):
            assert self.world.broker.duplicates() == []

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        try:
            world.mend()

            assert world.lost() == []
            assert world.unaccounted() == []
            assert world.logged_net == world.true_net - world.quarantined
            is_managed = world.net == world.logged_net
            assert is_managed or self.has_lost_power
            assert world.broker.duplicates() == []
            outcome = world.reconciler.outcome
            assert outcome is not None
            if not outcome.unsettled:
                is_alone = world.quarantined == 0 and not world.strangers_resting
                assert outcome.agreed is (is_alone and is_managed)
            if not outcome.agreed:
                assert world.reconciler.refusal(NAME) is not None
            if not is_managed and world.net == 0:
                assert world.adds_nothing()
        finally:
            world.close()


# At 20 examples a second and more; the usual limit of a test would end `make torture` early.
@pytest.mark.timeout(max(600, EXAMPLES // 2))
def test_no_life_of_orders_loses_repeats_or_invents_one() -> None:
    run_state_machine_as_test(
        OrderMachine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=8,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("latency_s", [0, 2])
@pytest.mark.parametrize("fault", [None, "modify_lost", "modify_unanswered"])
def test_limits_follow_the_price_and_no_fill_is_lost_however_a_change_arrives(
    latency_s: int, fault: LineFault | None
) -> None:
    world = OrderWorld(3, with_limits=True, latency_s=latency_s)
    try:
        world.intend(2000)
        world.line.armed += [fault] * 4 if fault else []
        for _ in range(12):
            world.wait(1)
        world.leave()
        for _ in range(20):
            world.wait(1)
        world.mend()

        assert world.modified > 0
        assert fault is None or world.line.fired[fault] > 0
        assert world.lost() == []
        assert world.unaccounted() == []
        assert world.net == world.logged_net == world.true_net
    finally:
        world.close()
