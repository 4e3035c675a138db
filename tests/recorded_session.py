"""A recorded session in one process: real actors, model, broker and gateway over a MemoryBus.

Two days of made-up five-minute candles of Nifty drive it in lock step. The model is tiny and was
never trained, so what it decides is arbitrary, but always the same.
"""

import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from builders import OPEN_NS, SECOND_NS, a_depth
from model_builders import a_card, a_config

from actors.messages import Alert, KillSwitch, Tick
from daemon.actor_process import builder, make_runner
from daemon.announcer import Announcer
from daemon.brokers.simulated import SimulatedBroker, SimulationSettings
from daemon.candle_path import market_events
from daemon.clock import SystemClock
from daemon.journal import Journal
from daemon.kill_switch import KillSwitchLatch
from daemon.memory_bus import MemoryBus
from daemon.order_gateway import OrderGateway
from daemon.outbox import Outbox
from daemon.plan import SessionPlan
from daemon.session_files import Market, begin_session, load_markets, make_plan
from daemon.settings import Settings, load_instruments, load_sessions, load_settings
from daemon.statistics import SessionStatistics
from daemon.supervisor import Part, Supervisor
from daemon.tick_source import MarketEvent, TickSource, until_quiet
from daemon.wiring import INPUT_STREAMS, NAMES, Workshop
from hrm.features import FEATURE_NAMES, FEATURE_SCHEMA_SHA256
from hrm.integrity import save_release
from hrm.manifest import FeatureRecord, Vocabularies
from hrm.model import HierarchicalReasoningModel

CONFIG_DIR = Path(__file__).parents[1] / "config"
BARS_PER_DAY = 75
BARS = 2 * BARS_PER_DAY
_DAY_S = 86_400
_MODEL_SEED = 5


@dataclass(frozen=True)
class RecordedSession:
    """Where a session lies and what was counted while it ran."""

    folder: Path
    plan: SessionPlan
    bus: MemoryBus
    statistics: SessionStatistics
    lost: int


def write_candles(folder: Path, days: int = 2) -> Path:
    """Write a random walk over so many trading days, as five-minute candles of Nifty."""
    draw = random.Random(7)
    price = 440_000  # ticks of 0.05
    lines = [",datetime,open,high,low,close,volume"]
    for number in range(days * BARS_PER_DAY):
        day, bar = divmod(number, BARS_PER_DAY)
        opened_s = OPEN_NS // SECOND_NS + day * _DAY_S + bar * 300
        close = price + draw.randint(-300, 300)
        high = max(price, close) + draw.randint(0, 150)
        low = min(price, close) - draw.randint(0, 150)
        prices = ",".join(f"{ticks / 20:.2f}" for ticks in (price, high, low, close))
        lines.append(f"{number},{opened_s},{prices},{draw.randint(0, 500)}")
        price = close
    path = folder / "Nifty_5.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def release_tiny_model(folder: Path, *, reads_depth: bool = False) -> None:
    """Release a model that takes the real features and has strong opinions for no reason."""
    config = a_config(inputs={"n_features": len(FEATURE_NAMES), "depth": reads_depth})
    torch.manual_seed(_MODEL_SEED)
    model = HierarchicalReasoningModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    card = a_card(
        config,
        features=FeatureRecord(names=FEATURE_NAMES, schema_sha256=FEATURE_SCHEMA_SHA256),
        vocabularies=Vocabularies(instruments={"Nifty": 1}, timeframes={"5": 1}),
    )
    save_release(folder, model, card)


def session_settings(state_dir: Path, **changes: Any) -> Settings:
    """Return the settings of the repository, made swift and eager to trade."""
    overrides = {
        "session.state_dir": str(state_dir),
        "session.model_dir": str(state_dir / "models"),
        "reasoning.warm_up_bars": 40,
        "risk_limits.min_confidence": 0.0,
        "risk_limits.max_daily_loss": 1.0,
        "risk_limits.max_drawdown": 1.0,
        "monitoring.latency_critical_ms": 60_000,
        "hierarchical_reasoning_model.performance.max_inference_time_ms": 50_000,
        "bus.block_ms": 20,
    }
    return load_settings(CONFIG_DIR, {}, overrides=overrides | changes)


def session_plan(state_dir: Path, markets: list[Market], **changes: Any) -> SessionPlan:
    """Return the plan of a new session in this state folder."""
    return make_plan(
        session_settings(state_dir, **changes),
        load_instruments(CONFIG_DIR, {}).catalogue,
        load_sessions(CONFIG_DIR, {}),
        markets,
        mode="paper",
        now_ns=SystemClock().now_ns(),
        seed=1,
        speed="max",
    )


async def record_session(
    state_dir: Path,
    *,
    in_lock_step: bool = True,
    has_depth: bool = False,
    reads_depth: bool = False,
    **changes: Any,
) -> RecordedSession:
    """Run a session to the end of its candles and close its recording.

    Out of lock step events are published as many at a time as wait. has_depth: a made-up order book
    follows each tick; reads_depth: the model is one that knows them. changes: of settings.
    """
    release_tiny_model(state_dir / "models", reads_depth=reads_depth)
    catalogue = load_instruments(CONFIG_DIR, {}).catalogue
    markets = load_markets([write_candles(state_dir)], [], catalogue)
    plan = session_plan(state_dir, markets, **changes)
    folder = begin_session(state_dir, plan)
    workshop = Workshop.of(plan)
    settings = workshop.settings
    bus = MemoryBus()
    control = Announcer(bus, "supervisor", [Alert.stream, KillSwitch.stream])
    latch = KillSwitchLatch(state_dir, plan.prefix, time.time_ns, announce=control.publish)
    await latch.release("a test", "test")
    broker = SimulatedBroker(workshop.catalogue, SimulationSettings(), workshop.calendar)
    events = _events(markets, plan, has_depth=has_depth)
    source = TickSource(events, bus, on_tick=broker.on_tick)
    outbox = await Outbox(None).open()
    gateway = OrderGateway(
        bus,
        broker,
        outbox,
        latch,
        clock_ns=lambda: source.now_ns,
        max_order_rate_per_second=settings.execution.max_order_rate_per_second,
    )
    if in_lock_step:
        source.wait_until_quiet = lambda: until_quiet(bus, gateway.is_idle)
    statistics = SessionStatistics()
    journal = Journal(
        bus, folder, (*NAMES, gateway.name), batch_entries=64, block_ms=20, on_entry=statistics.add
    )
    runners = [make_runner(builder(plan, name), bus, settings, latch) for name in NAMES]
    stages: list[list[Part]] = [[journal], [*runners, gateway], [source]]
    crashes: list[str] = []

    async def crashed(name: str, reason: str) -> None:
        crashes.append(f"{name}: {reason}")

    async with AsyncExitStack() as stack:
        for parts in stages:
            supervisor = Supervisor(parts, crashed, monotonic_s=time.monotonic)
            await stack.enter_async_context(supervisor)
            for runner in runners if runners[0] in parts else ():
                await runner.ready.wait()
        await source.finished.wait()
        await until_quiet(bus, gateway.is_idle)
        await journal.catch_up()
    await control.close()
    await outbox.close()
    assert crashes == []
    lost = journal.lost + journal.unhandled(INPUT_STREAMS)
    journal.close(seal=True)
    return RecordedSession(folder, plan, bus, statistics, lost)


async def _events(
    markets: list[Market], plan: SessionPlan, *, has_depth: bool
) -> AsyncIterator[MarketEvent]:
    draw = random.Random(9)
    for event in market_events(
        [(market.instrument, market.table.timeframe, market.table) for market in markets],
        seed=plan.seed,
        wall_ns=time.time_ns,
    ):
        yield event
        if has_depth and isinstance(event, Tick):
            bid, ask = event.last_price, event.last_price + 1
            wanted, offered = ({str(price): draw.randint(1, 500)} for price in (bid, ask))
            yield a_depth(wanted, offered, event.event_ns)
