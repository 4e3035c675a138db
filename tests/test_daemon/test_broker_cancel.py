"""A kill takes back what rests at the broker, unless a daemon is there to do it."""

from pathlib import Path

import msgspec
import pytest
from fyers_account import SBIN

from daemon.broker_cancel import cancel_at_broker
from daemon.brokers.fyers.ledger import RateLedger
from daemon.brokers.fyers.login import TokenStore, token_of
from daemon.brokers.fyers_simulator import FyersSimulator, SimulatorSettings
from daemon.brokers.fyers_simulator.orders import Status
from daemon.clock import SystemClock
from daemon.plan import SessionPlan

CLOCK = SystemClock()
PLAN = SessionPlan(
    session="s", mode="paper", prefix="paper:v1", created_ns=1, settings={}, instruments=[],
    calendar={}, markets=[], speed=1.0, seed=1, models_dir="", model_digest="",
    no_model_reason="", versions={}, broker="fyers-sim",
)  # fmt: skip


def logged_in(simulator: FyersSimulator, state_dir: Path) -> SessionPlan:
    """Keep a good token in the state folder, and return the plan of a session that used it."""
    token = token_of(simulator.account.app_id, simulator.token())
    TokenStore(state_dir / "fyers", {}).save(token)
    return msgspec.structs.replace(PLAN, simulator=simulator.urls.base)


def rest(simulator: FyersSimulator) -> Status:
    """Let an order of somebody rest below the market."""
    low = simulator.market.quote(SBIN).last * 0.97
    body = {
        "symbol": SBIN, "qty": 10, "type": 1, "side": 1, "productType": "INTRADAY",
        "limitPrice": round(low) // 10 * 10 / 100, "stopPrice": 0, "validity": "DAY",
    }  # fmt: skip
    return simulator.exchange.place(body).status


async def test_with_the_daemon_down_resting_orders_are_taken_back(tmp_path: Path) -> None:
    async with FyersSimulator(SimulatorSettings()) as simulator:
        plan = logged_in(simulator, tmp_path)
        before = rest(simulator)

        step = await cancel_at_broker(plan, tmp_path, CLOCK, is_daemon_told=False)
        again = await cancel_at_broker(plan, tmp_path, CLOCK, is_daemon_told=False)

        assert simulator.exchange.pending == []
    assert before is Status.PENDING
    assert step is not None
    assert step.ok
    assert step.detail.startswith("cancelled ")
    assert again is not None
    assert "nothing" in again.detail


async def test_a_daemon_that_was_told_takes_them_back_itself(tmp_path: Path) -> None:
    async with FyersSimulator(SimulatorSettings()) as simulator:
        plan = logged_in(simulator, tmp_path)
        rest(simulator)

        with RateLedger(tmp_path / "fyers" / "calls", CLOCK):
            step = await cancel_at_broker(plan, tmp_path, CLOCK, is_daemon_told=True)

        assert len(simulator.exchange.pending) == 1
    assert step is not None
    assert (step.ok, step.detail) == (True, "left to the daemon, which runs")


async def test_from_a_daemon_that_was_not_told_they_are_taken_back(tmp_path: Path) -> None:
    async with FyersSimulator(SimulatorSettings()) as simulator:
        plan = logged_in(simulator, tmp_path)
        rest(simulator)

        with RateLedger(tmp_path / "fyers" / "calls", CLOCK):
            step = await cancel_at_broker(plan, tmp_path, CLOCK, is_daemon_told=False)

        assert simulator.exchange.pending == []
    assert step is not None
    assert step.ok
    assert step.detail.startswith("cancelled ")
    assert "gives no sign of life" in step.detail


async def test_two_kills_at_once_do_not_count_on_each_other(tmp_path: Path) -> None:
    plan = msgspec.structs.replace(PLAN, simulator="http://127.0.0.1:9")

    with (
        RateLedger(tmp_path / "fyers" / "calls", CLOCK),
        RateLedger(tmp_path / "fyers" / "calls_of_kill", CLOCK),
    ):
        step = await cancel_at_broker(plan, tmp_path, CLOCK, is_daemon_told=False)

    assert step is not None
    assert (step.ok, "another kill is at it" in step.detail) == (False, True)


async def test_what_keeps_them_from_being_taken_back_is_told(tmp_path: Path) -> None:
    nobody = await cancel_at_broker(
        msgspec.structs.replace(PLAN, simulator="http://127.0.0.1:9"),
        tmp_path,
        CLOCK,
        is_daemon_told=False,
    )
    async with FyersSimulator(SimulatorSettings()) as simulator:
        plan = logged_in(simulator, tmp_path)
        simulator.desk.revoke_all()
        refused = await cancel_at_broker(plan, tmp_path, CLOCK, is_daemon_told=False)

    for step in (nobody, refused):
        assert step is not None
        assert not step.ok
        assert "hrm-trader login" in step.detail
        assert "the broker's own app" in step.detail


@pytest.mark.parametrize("broker", ["simulated", "fyers-sim"])
async def test_a_session_without_such_a_broker_has_nothing_to_take_back(
    tmp_path: Path, broker: str
) -> None:
    plan = msgspec.structs.replace(PLAN, broker=broker)

    assert await cancel_at_broker(plan, tmp_path, CLOCK, is_daemon_told=False) is None
