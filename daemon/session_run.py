"""Begin or go on with a session and run it: what `demo` and `run` have in common, and where not."""

import asyncio
import fcntl
import os
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TextIO

from actors.instruments import InstrumentCatalogue
from actors.messages import Tick, TimeEvent
from actors.session import SessionCalendar
from daemon.candle_path import market_events
from daemon.clock import Clock, SystemClock
from daemon.drill_venue import Drill, drill_venue
from daemon.errors import ConfigError, TraderError
from daemon.fyers_sim_venue import fyers_sim_venue
from daemon.fyers_venue import (
    fyers_venue,
    market_clock,
    refuse_unless_allowed,
    streamed_markets,
)
from daemon.health import ServiceManager
from daemon.history import Candle
from daemon.kill_switch import KillSwitchLatch
from daemon.live import LiveTradingService
from daemon.live_view import LiveView
from daemon.logs import configure_logs, get_logger
from daemon.paper_venue import paper_venue, replayed
from daemon.plan import SessionPlan
from daemon.redis_bus import RedisBus
from daemon.session_files import (
    AnyMarket,
    Market,
    StreamedMarket,
    as_configured,
    begin_session,
    check_model,
    make_plan,
    open_session,
)
from daemon.settings import Settings, trading_indices_themselves
from daemon.tick_source import MarketEvent
from daemon.venue import BrokerName, OpenVenue
from daemon.wiring import NAMES

_KEPT_DEMOS = 5
_LOCK_NAME = "daemon.lock"


@dataclass(frozen=True)
class Options:
    """What the command line says about one run."""

    duration_s: float | None
    every_actor_isolated: bool
    seed: int
    broker: BrokerName = "simulated"
    simulator: str | None = None  # where hrm-trader simulate-broker is
    drill: Drill | None = None  # faults to try the session with, in place of candles


@dataclass(frozen=True)
class Setting:
    """Where and on what a session is run."""

    settings: Settings
    catalogue: InstrumentCatalogue
    calendar: SessionCalendar
    markets: list[Market]
    clock: Clock
    streamed: Sequence[StreamedMarket] = ()
    market_clock: Clock = field(default_factory=SystemClock)  # of prices over a socket

    @property
    def traded(self) -> list[AnyMarket]:
        """What is traded, however its prices come."""
        return [*self.markets, *self.streamed]


async def run_demo(where: Setting, options: Options) -> dict[str, Any]:
    """Run a session in a state folder of its own, released from the start; keep the last five."""
    demos = where.settings.session.state_dir / "demo"
    _make(demos)
    # A prefix of its own: a configured server may carry a daemon's session at the same time.
    plan = _new_plan(where, options, prefix=f"demo-{secrets.token_hex(4)}:v1")
    state_dir = demos / plan.session
    folder = begin_session(state_dir, plan)
    latch = KillSwitchLatch(state_dir, plan.prefix, where.clock.now_ns)
    await latch.release("demo: simulated money only", operator="demo")
    with (state_dir / "log.jsonl").open("w") as log:
        configure_logs(where.settings.logging.level, log)
        service = _service(where, options, plan, state_dir, folder, log=log, seal_when_stopped=True)
        _stop_on_signals(service.stop)
        with LiveView(plan, service.statistics, lambda: service.market_now_ns):
            summary = await service.run(options.duration_s)
    # The recording holds it all.
    if where.settings.bus.url is None:
        shutil.rmtree(state_dir / "redis", ignore_errors=True)
    else:
        bus = RedisBus(where.settings.bus.url, plan.prefix)
        try:
            await bus.forget()
        finally:
            await bus.close()
    for old in sorted(demos.iterdir())[:-_KEPT_DEMOS]:
        shutil.rmtree(old, ignore_errors=True)
    return _facts(plan) | summary | {"state_dir": str(state_dir)}


def demo_broker(where: Setting) -> BrokerName:
    """Return what a demo trades at when nobody says: an index is in no exchange's order book."""
    kinds = {where.catalogue[market.instrument].kind for market in where.traded}
    is_itself = where.settings.execution.trade_index_through == "index"
    return "simulated" if "index" in kinds and is_itself else "fyers-sim"


async def run_daemon(where: Setting, options: Options) -> dict[str, Any]:
    """Run the session of the state folder: go on with an open one, or begin a new one.

    A state folder that is used for the first time is halted, unless `session.start_halted` is off;
    with real orders it always is.
    """
    where = replace(where, markets=as_configured(where.markets, where.settings.feed))
    if options.broker != "simulated":
        where = await _at_fyers(where, options)
    state_dir = where.settings.session.state_dir
    configure_logs(where.settings.logging.level)
    with _only_daemon_of(state_dir):
        return await _run_alone(where, options, state_dir)


async def _at_fyers(where: Setting, options: Options) -> Setting:
    """Return where a session at Fyers trades, real or simulated; TraderError if it must not."""
    refuse_unless_allowed(options.broker, where.settings)
    clock = await market_clock(options.simulator, where.clock)
    streamed = streamed_markets(where.settings, where.catalogue, where.calendar, clock.now_ns())
    return replace(where, streamed=streamed, market_clock=clock)


async def _run_alone(where: Setting, options: Options, state_dir: Path) -> dict[str, Any]:
    settings = where.settings
    opened = open_session(state_dir, where.traded, options.broker)
    if opened:
        folder, plan = opened
        _refuse_another_model(plan, settings)
    else:
        plan = _new_plan(where, options)
        folder = begin_session(state_dir, plan)
    latch = KillSwitchLatch(state_dir, plan.prefix, where.clock.now_ns)
    is_released = not settings.session.start_halted and plan.mode != "live"
    if is_released and not latch.path.exists():
        await latch.release("session.start_halted is off", operator="settings")
    manager = ServiceManager()
    service = _service(
        where, options, plan, state_dir, folder, log=None, seal_when_stopped=False,
        on_ready=lambda: manager.ready(plan.session),
    )  # fmt: skip
    _stop_on_signals(service.stop)
    alive = asyncio.create_task(manager.keep_alive(service.is_healthy))
    try:
        summary = await service.run(options.duration_s)
    finally:
        manager.stopping()
        alive.cancel()
        with suppress(asyncio.CancelledError):
            await alive
    return _facts(plan) | summary | {"state_dir": str(state_dir), "resumed": opened is not None}


def _new_plan(where: Setting, options: Options, prefix: str | None = None) -> SessionPlan:
    settings = where.settings
    if options.broker == "simulated":
        settings = trading_indices_themselves(settings)
    return make_plan(
        settings,
        where.catalogue,
        where.calendar,
        where.traded,
        mode="live" if options.broker == "fyers" else "paper",
        now_ns=where.clock.now_ns(),
        seed=options.seed,
        speed=1.0 if where.streamed else settings.feed.speed,
        prefix=prefix,
        trader="model" if options.drill is None else "drill",
        broker=options.broker,
        simulator=options.simulator or "",
    )


def _service(
    where: Setting,
    options: Options,
    plan: SessionPlan,
    state_dir: Path,
    folder: Path,
    *,
    log: TextIO | None,
    seal_when_stopped: bool,
    on_ready: Callable[[], None] = lambda: None,
) -> LiveTradingService:
    service = LiveTradingService(
        plan,
        state_dir=state_dir,
        folder=folder,
        open_venue=_venue(where, options, plan, state_dir, folder, lambda: service.published),
        lock_step=plan.speed == "max",
        isolated=NAMES if options.every_actor_isolated else _isolated(plan),
        log_level=where.settings.logging.level,
        log_file=log,
        seal_when_stopped=seal_when_stopped,
        on_ready=on_ready,
    )
    return service


def _isolated(plan: SessionPlan) -> tuple[str, ...]:
    """Return who has a process of its own: the model, where there is one to think."""
    return ("reasoning",) if plan.trader == "model" else ()


def _venue(
    where: Setting,
    options: Options,
    plan: SessionPlan,
    state_dir: Path,
    folder: Path,
    published: Callable[[], int],
) -> OpenVenue:
    if options.drill is not None:
        return drill_venue(plan, options.drill, where.clock, folder)
    if where.streamed:
        return fyers_venue(plan, state_dir, options.simulator, where.clock, where.market_clock)
    if options.broker == "fyers-sim":
        speed = _speed(plan.speed)
        return fyers_sim_venue(plan, where.markets, where.clock, folder, speed)
    if where.settings.execution.trade_index_through == "options":
        get_logger().warning("an index is traded at its own price: candles alone hold no options")
    return paper_venue(plan, _replayed(where, plan, published))


def _replayed(
    where: Setting, plan: SessionPlan, published: Callable[[], int]
) -> AsyncIterator[MarketEvent]:
    bar_ns = min(market.table.bar_ns for market in where.markets)
    return replayed(played(where, plan), _speed(plan.speed), published, where.clock, bar_ns=bar_ns)


def played(where: Setting, plan: SessionPlan) -> Iterator[Tick | TimeEvent]:
    """Return the candles of the plan as ticks and time, in order."""
    candles = {market.instrument: market.table.timeframe for market in where.markets}
    exchanges = {name: where.catalogue[name].session for name in candles}
    first = exchanges[where.markets[0].instrument]

    def end_of(instrument: str, candle: Candle) -> int:
        exchange = exchanges[instrument]
        if where.calendar.phase(exchange, candle.open_ns) == "closed":
            return candle.close_ns  # the market feed refuses its ticks and says so
        return where.calendar.bar_close_ns(exchange, candles[instrument], candle.open_ns)

    return market_events(
        [
            (market.instrument, bars.timeframe, market.table)
            for market, bars in zip(where.markets, plan.markets, strict=True)
        ],
        seed=plan.seed,
        wall_ns=where.clock.now_ns,
        session_key=lambda instant_ns: where.calendar.session_key(first, instant_ns),
        end_of=end_of,
    )


def _speed(speed: float | str) -> float | Literal["max"]:
    if isinstance(speed, str):
        if speed != "max":
            raise ConfigError(f"speed must be a positive number or 'max', was {speed!r}")
        return "max"
    return speed


def _make(state_dir: Path) -> None:
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(state_dir, os.W_OK | os.X_OK):
            raise PermissionError("no permission to write there")
    except OSError as error:
        raise ConfigError(
            f"state folder {state_dir} cannot be used: {error}; choose another with --state"
        ) from error


@contextmanager
def _only_daemon_of(state_dir: Path) -> Iterator[None]:
    """Hold the state folder; raises TraderError while another daemon does.

    A second daemon would take over the message server and fence out the actors of the first. The
    lock is the kernel's and ends with this process, however it ends.
    """
    _make(state_dir)
    with (state_dir / _LOCK_NAME).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise TraderError(
                f"state folder {state_dir} is in use by another daemon (pid {file.read().strip()}):"
                " stop it first, or choose another folder with --state"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _refuse_another_model(plan: SessionPlan, settings: Settings) -> None:
    """Raise ConfigError when the open session began with another model than there is now.

    Its recording would otherwise hold decisions of two models, and could not be replayed.
    """
    digest, reason = check_model(settings.session.model_dir)
    if digest != plan.model_digest:
        raise ConfigError(
            f"session {plan.session} began with {_named(plan.model_digest)}, "
            f"{settings.session.model_dir} holds {_named(digest)}{reason and f' ({reason})'}: put "
            "the first one back, or begin a new session in another folder with --state"
        )


def _named(digest: str) -> str:
    return f"model {digest[:12]}" if digest else "no valid model"


def _stop_on_signals(stop: Callable[[], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)


def _facts(plan: SessionPlan) -> dict[str, Any]:
    return {
        "session": plan.session,
        "mode": plan.mode,
        "speed": plan.speed,
        "seed": plan.seed,
        "trader": plan.trader,
        "broker": plan.broker,
        "data": [
            {
                "instrument": market.instrument,
                "timeframe": market.timeframe,
                "label": market.label,
                "rows": market.rows,
                "sha256": market.sha256,
                "repairs": market.repairs,
            }
            for market in plan.markets
        ],
        "model_digest": plan.model_digest,
        "no_model_reason": plan.no_model_reason,
    }
