import asyncio
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from builders import a_fill, a_position, an_order
from fyers_account import an_exchange
from order_world import NAME, OpenLatch, OrderWorld

from actors.messages import Alert, Heartbeat
from actors.monitoring import MonitoringActor
from actors.policies import MonitoringSettings
from daemon import reconciliation
from daemon.brokers.fyers_simulator.direct import DirectBroker
from daemon.brokers.fyers_simulator.orders import Status
from daemon.bus import Output
from daemon.clock import NS_PER_SECOND
from daemon.errors import TraderError
from daemon.gateway_pulse import GatewayPulse
from daemon.live import managed_units
from daemon.memory_bus import MemoryBus
from daemon.order_gateway import OrderGateway
from daemon.outbox import Outbox
from daemon.reconciler import Reconciler
from daemon.reconciliation import Difference, Ledger, Reconciliation, compare

WAIT_S = 20.0


@pytest.fixture
def world() -> Iterator[OrderWorld]:
    world = OrderWorld()
    yield world
    world.close()


def texts(world: OrderWorld) -> str:
    return "\n".join(alert.text for alert in world.alerts)


def test_what_agrees_has_no_difference() -> None:
    ledger = Ledger(positions={"Nifty": 75}, unfinished={})

    assert compare(ledger, {"Nifty": 75}, [], {"Nifty"}) == ((), ())


def test_positions_are_not_judged_while_an_order_is_on_its_way() -> None:
    ledger = Ledger(positions={}, unfinished={"order1": "Nifty"})

    assert compare(ledger, {"Nifty": 75}, [an_order()], {"Nifty"}) == ((), ("Nifty",))


def test_what_execution_does_not_hold_as_the_log_does_is_a_difference() -> None:
    ledger = Ledger(positions={"Nifty": 75}, unfinished={})

    (difference,), _ = compare(ledger, {"Nifty": 75}, [], {"Nifty"}, {"Reliance": 0})

    assert difference.kind == "unmanaged_position"
    assert Reconciliation(checked_ns=1, agreed_ns=0, differences=(difference,)).refusal(
        "Nifty"
    ) == (
        "log and broker differ (unmanaged_position): ours 75 units, of which execution knows 0, "
        "the broker's 75 units"
    )


def test_what_is_not_traded_here_is_told_and_blocks_nothing() -> None:
    ledger = Ledger(positions={}, unfinished={})

    (difference,), _ = compare(ledger, {"MCX:GOLD": 1}, [], {"Nifty"})

    assert not difference.blocks


def test_a_stranger_order_and_a_second_order_under_one_tag_are_differences() -> None:
    ledger = Ledger(positions={}, unfinished={"order1": "Nifty"})
    orders = [an_order(), an_order(), an_order(client_order_id="x")]

    differences, _ = compare(ledger, {}, orders, {"Nifty"})

    assert [one.kind for one in differences] == ["duplicate_order", "stranger_order"]
    assert all(one.blocks for one in differences)


def test_an_outcome_is_read_back_with_its_ages(tmp_path: Path) -> None:
    difference = Difference(
        kind="position", instrument="Nifty", ours="0 units", brokers="75 units", blocks=True
    )
    outcome = Reconciliation(
        checked_ns=4_000_000_000, agreed_ns=1_000_000_000, differences=(difference,)
    )
    reconciliation.write(tmp_path, outcome)

    read = reconciliation.read(tmp_path, 5_000_000_000)

    assert read is not None
    assert (read["agreed"], read["checked_age_s"], read["agreement_age_s"]) == (False, 1.0, 4.0)
    assert read["differences"][0]["brokers"] == "75 units"


def test_a_damaged_outcome_is_named(tmp_path: Path) -> None:
    (tmp_path / reconciliation.FILE_NAME).write_text("{")

    with pytest.raises(TraderError, match="cannot be read"):
        reconciliation.read(tmp_path, 0)


def test_an_ambiguous_order_blocks_its_instrument_until_it_is_found(world: OrderWorld) -> None:
    world.line.armed += ["answer_lost"]

    world.intend(10)

    assert "no entry in SBIN until the broker has said" in texts(world)
    assert (world.net, world.true_net) == (10, 10)
    assert len(world.exchange.orders) == 1


def test_a_request_that_comes_late_is_found_and_not_sent_again(world: OrderWorld) -> None:
    world.line.armed += ["request_late", "question_lost"]

    world.intend(10)

    assert (world.net, world.true_net) == (10, 10)
    assert world.broker.duplicates() == []


def test_a_request_that_never_arrived_is_proven_absent_and_leaves_no_trace(
    world: OrderWorld,
) -> None:
    world.line.armed += ["request_lost"]

    world.intend(10)

    assert (world.net, world.true_net, world.unaccounted()) == (0, 0, [])


def test_a_fill_that_nobody_was_told_of_is_found_by_the_next_look(world: OrderWorld) -> None:
    world.line.armed += ["event_lost"] * 8
    world.intend(10)
    assert world.net == 0

    world.mend()

    assert (world.net, world.true_net, world.lost()) == (10, 10, [])


def test_a_close_by_the_risk_desk_is_adopted_as_an_exit(world: OrderWorld) -> None:
    world.intend(10)

    world.close_outside()

    assert (world.net, world.true_net) == (0, 0)
    assert "counted as an exit" in texts(world)
    world.mend()
    assert world.reconciler.outcome is not None
    assert world.reconciler.outcome.agreed


def test_a_trade_by_hand_that_opens_is_left_out_and_stops_entries_there(world: OrderWorld) -> None:
    world.stranger(7)
    world.mend()

    world.intend(10)

    assert (world.net, world.true_net) == (0, 7)
    assert "it opens what we did not decide" in texts(world)
    assert world.reconciler.refusal(NAME) == (
        "log and broker differ (position): ours 0 units, the broker's 7 units"
    )


def test_an_exit_never_sells_more_than_the_broker_holds(world: OrderWorld) -> None:
    world.intend(10)
    world.line.armed += ["event_lost"] * 8
    world.close_outside()
    assert (world.net, world.true_net) == (10, 0)

    world.leave()
    world.mend()

    assert (world.net, world.true_net) == (0, 0)


def test_an_exit_above_the_brokers_net_is_sized_once_the_trade_is_found(world: OrderWorld) -> None:
    world.intend(75)
    world.line.armed += ["event_lost"] * 8
    world.stranger(-35)
    assert (world.net, world.true_net) == (75, 40)

    world.leave()
    after_refusal = world.true_net
    world.mend()
    for _ in range(3):
        world.wait(1)

    assert after_refusal == 40
    assert (world.net, world.logged_net, world.true_net) == (0, 0, 0)


def test_three_identical_rejects_open_the_circuit(world: OrderWorld) -> None:
    world.line.armed += ["refused"] * 3
    for _ in range(4):
        world.intend(10)

    assert "3 identical rejects (permanent)" in texts(world)
    assert world.true_net == 0


def test_so_do_three_that_the_exchange_makes_of_orders_that_the_broker_took(
    world: OrderWorld,
) -> None:
    beyond_the_band = (world.price * 2).quantize(Decimal(1))
    for _ in range(4):
        world.intend(10, beyond_the_band)

    assert "3 identical rejects (permanent)" in texts(world)
    assert [order.status for order in world.exchange.orders.values()] == [Status.REJECTED] * 3


def test_a_restart_on_the_same_log_sends_nothing_twice(world: OrderWorld) -> None:
    world.line.armed += ["event_lost"] * 8
    world.intend(10)

    world.restart()

    assert (world.net, world.true_net, world.broker.duplicates()) == (10, 10, [])


def test_fills_that_the_bus_lost_in_a_power_cut_come_again(world: OrderWorld) -> None:
    world.intend(10)

    world.lose_power(world.reports)

    assert (world.net, world.true_net, world.alerts) == (10, 10, [])


def test_a_report_that_the_bus_kept_does_not_come_again(world: OrderWorld) -> None:
    world.intend(10)
    reports = world.reports
    world.leave()

    world.lose_power(world.reports - reports)

    assert (world.net, world.true_net) == (0, 0)
    assert world.reports == len(world.reported)


def test_a_position_that_execution_forgot_in_a_power_cut_takes_no_entry_on_top(
    world: OrderWorld,
) -> None:
    world.intend(10)

    world.lose_power(world.inputs)
    world.intend(10)

    assert (world.net, world.logged_net, world.true_net) == (0, 10, 10)
    assert "no such order was placed here" in texts(world)
    assert "10 units of SBIN are held that execution does not know of" in texts(world)


def test_a_position_that_execution_forgot_is_a_difference_of_log_and_broker(
    world: OrderWorld,
) -> None:
    world.intend(10)
    world.lose_power(world.inputs)

    world.mend()

    assert world.reconciler.outcome is not None
    assert [one.kind for one in world.reconciler.outcome.differences] == ["unmanaged_position"]
    assert "ours 10 units, of which execution knows 0, the broker's 10 units" in texts(world)


def test_an_exit_that_execution_forgot_in_a_power_cut_is_booked_once(world: OrderWorld) -> None:
    world.intend(10)
    before = world.inputs
    world.leave()

    for _ in range(2):
        world.lose_power(world.inputs - before)

    assert (world.net, world.logged_net, world.true_net) == (0, 0, 0)


def test_a_forgotten_position_that_is_closed_by_hand_lets_entries_pass_again(
    world: OrderWorld,
) -> None:
    world.intend(10)
    world.lose_power(world.inputs)

    world.close_outside()
    world.mend()
    world.intend(5)

    assert (world.net, world.logged_net, world.true_net) == (5, 5, 5)


def test_an_order_that_is_made_again_after_a_power_cut_finds_its_fills(world: OrderWorld) -> None:
    world.intend(10)

    world.lose_power(world.inputs)
    world.repeat()

    assert (world.net, world.true_net, len(world.exchange.orders)) == (10, 10, 1)


def test_an_order_that_rests_when_a_power_cut_makes_execution_forget_it_is_taken_back() -> None:
    world = OrderWorld(3, with_limits=True)
    try:
        world.intend(2000)
        rested = len(world.exchange.pending)

        world.lose_power(world.inputs)

        assert rested > 0
        assert world.exchange.pending == []
        assert "was lost in a power cut" in texts(world)
    finally:
        world.close()


def test_later_slices_of_an_entry_are_not_taken_for_one_on_top(world: OrderWorld) -> None:
    world.intend(2000)

    assert [order.placed_ns for order in world.sent] == [world.sent[0].placed_ns] * 4
    assert len(world.exchange.orders) == 4


async def test_a_comparison_older_than_a_minute_lets_no_entry_pass() -> None:
    broker = DirectBroker(an_exchange(), {"SBIN": "NSE:SBIN-EQ"})
    outbox = await Outbox(None).open()
    now_s = [0]
    reconciler = Reconciler(broker, outbox, ["SBIN"], real_ns=lambda: now_s[0] * NS_PER_SECOND)
    before = reconciler.refusal("SBIN")
    await reconciler.look(lambda: True)

    refusals = []
    for now_s[0] in (0, 60, 61):
        refusals.append(reconciler.refusal("SBIN"))
    await outbox.close()

    assert before is not None
    assert refusals == [
        None, None, "log and broker were last compared 61 s ago, allowed: 60 s",
    ]  # fmt: skip


async def test_a_market_played_fast_is_compared_by_its_own_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("daemon.order_gateway._RECONCILE_PACE_S", 0.001)
    outcomes: list[Reconciliation] = []
    broker = DirectBroker(an_exchange(), {"SBIN": "NSE:SBIN-EQ"})
    outbox = await Outbox(None).open()
    market_s = [0]
    gateway = OrderGateway(
        MemoryBus(),
        broker,
        outbox,
        OpenLatch(),
        clock_ns=lambda: market_s[0] * NS_PER_SECOND,
        max_order_rate_per_second=9,
        block_ms=2,
        reconciler=Reconciler(
            broker, outbox, ["SBIN"], real_ns=lambda: 1, on_outcome=outcomes.append
        ),
        reconcile_every_s=60.0,
    )
    serving = asyncio.create_task(gateway.run())
    await gateway.ready.wait()
    await asyncio.sleep(0.02)
    at_rest = len(outcomes)

    market_s[0] = 60
    async with asyncio.timeout(WAIT_S):
        while len(outcomes) == at_rest:  # noqa: ASYNC110 - a list has no event
            await asyncio.sleep(0.001)
    gateway.stop()
    await serving
    await outbox.close()

    assert at_rest == 1
    assert gateway.reconciliation is not None
    assert gateway.reconciliation.agreed


async def test_whoever_waits_for_a_comparison_is_let_go_when_the_gateway_ends() -> None:
    broker = DirectBroker(an_exchange(), {"SBIN": "NSE:SBIN-EQ"})
    outbox = await Outbox(None).open()
    gateway = OrderGateway(
        MemoryBus(),
        broker,
        outbox,
        OpenLatch(),
        clock_ns=lambda: 1,
        max_order_rate_per_second=9,
        block_ms=2,
    )
    serving = asyncio.create_task(gateway.run())  # it has nothing that compares
    await gateway.ready.wait()
    waiting = asyncio.create_task(gateway.reconcile_now())
    await asyncio.sleep(0)

    gateway.stop()
    await serving
    await outbox.close()

    await asyncio.wait_for(waiting, WAIT_S)


async def test_what_execution_holds_is_told_once_it_has_handled_every_report() -> None:
    bus, outbox = MemoryBus(), await Outbox(None).open()
    await outbox.add_reports([a_fill(an_order())])
    execution = await bus.consumer("execution", ["report"], ["position"])
    gateway = OrderGateway(
        bus,
        DirectBroker(an_exchange(), {"SBIN": "NSE:SBIN-EQ"}),
        outbox,
        OpenLatch(),
        clock_ns=lambda: 1,
        max_order_rate_per_second=9,
        block_ms=2,
    )
    serving = asyncio.create_task(gateway.run())
    async with asyncio.timeout(WAIT_S):
        while not (batch := await execution.read(1, 10)):
            pass

    before = await managed_units(bus, gateway)
    await execution.commit(batch, [Output(0, a_position(75))])
    async with asyncio.timeout(WAIT_S):
        while gateway.unpublished or not gateway.ready.is_set():  # noqa: ASYNC110 - two events
            await asyncio.sleep(0.001)
    after = await managed_units(bus, gateway)
    gateway.stop()
    await serving
    await outbox.close()

    assert (before, after) == (None, {"Nifty": 75})


CALL, PUT = "NSE:NIFTY24MAR22000CE", "NSE:NIFTY24MAR22000PE"


def test_a_difference_in_an_option_that_was_traded_holds_back_entries_in_all_options() -> None:
    ledger = Ledger(positions={}, unfinished={}, known=frozenset({CALL}))

    differences, _ = compare(ledger, {CALL: 65}, [], {"Nifty"})
    outcome = Reconciliation(checked_ns=1, agreed_ns=0, differences=differences)

    assert [one.blocks for one in differences] == [True]
    assert outcome.refusal(PUT) is not None
    assert outcome.refusal("Reliance") is None


def test_an_option_of_somebody_else_holds_nothing_back() -> None:
    ledger = Ledger(positions={}, unfinished={}, known=frozenset({CALL}))

    differences, _ = compare(ledger, {PUT: 65}, [], {"Nifty"})

    assert Reconciliation(checked_ns=1, agreed_ns=0, differences=differences).refusal(CALL) is None


async def test_the_log_knows_what_it_has_traded_when_nothing_is_held_any_more() -> None:
    outbox = await Outbox(None).open()
    buy = an_order(65, instrument=CALL)
    await outbox.add_reports([a_fill(buy), a_fill(buy, side="sell", execution_id="2")])

    ledger = await outbox.ledger()
    await outbox.close()

    assert (ledger.positions, ledger.known) == ({}, frozenset({CALL}))


async def test_log_and_broker_that_have_never_agreed_are_as_old_as_the_session() -> None:
    broker = DirectBroker(an_exchange(), {"SBIN": "NSE:SBIN-EQ"})
    outbox = Outbox(None)
    now_s = [100]

    def real_ns() -> int:
        return now_s[0] * NS_PER_SECOND

    gateway = OrderGateway(
        MemoryBus(),
        broker,
        outbox,
        OpenLatch(),
        clock_ns=lambda: 1,
        max_order_rate_per_second=9,
        reconciler=Reconciler(broker, outbox, ["SBIN"], real_ns=real_ns),
    )
    pulse = GatewayPulse(gateway, MemoryBus(), real_ns, every_s=1.0)
    monitor = MonitoringActor(MonitoringSettings())

    alerts = []
    for now_s[0] in (100, 160, 161, 162):
        alerts += list(monitor.handle(pulse.beat()))
    await outbox.close()

    assert [one.text for one in alerts if isinstance(one, Alert)] == [
        "log and broker have not agreed for 61 s, allowed: 60 s"
    ]


async def test_the_gateways_heartbeat_says_how_long_ago_log_and_broker_agreed() -> None:
    broker = DirectBroker(an_exchange(), {"SBIN": "NSE:SBIN-EQ"})
    bus, outbox = MemoryBus(), await Outbox(None).open()
    now_s = [100]

    def real_ns() -> int:
        return now_s[0] * NS_PER_SECOND

    gateway = OrderGateway(
        bus,
        broker,
        outbox,
        OpenLatch(),
        clock_ns=lambda: 1,
        max_order_rate_per_second=9,
        block_ms=2,
        reconciler=Reconciler(broker, outbox, ["SBIN"], real_ns=real_ns),
        reconcile_every_s=60.0,
    )
    pulse = GatewayPulse(gateway, bus, real_ns, every_s=0.001)
    serving = asyncio.create_task(gateway.run())
    await gateway.ready.wait()
    now_s[0] = 107
    beating = asyncio.create_task(pulse.run())
    async with asyncio.timeout(WAIT_S):
        while not (beats := await bus.latest("heartbeat")):  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.001)
    pulse.stop()
    gateway.stop()
    await asyncio.gather(serving, beating)
    await outbox.close()

    told = beats["order_gateway"].message
    assert isinstance(told, Heartbeat)
    assert (told.actor, told.agreement_age_s) == ("order_gateway", 7.0)
    assert told.orders == gateway.order_counts()
