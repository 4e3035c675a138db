"""Fyers as a venue: what must be allowed, who must have logged in, and whose clock counts."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from recorded_session import CONFIG_DIR

from actors.messages import Alert, OptionChain, Tick, TimeEvent
from daemon.brokers.fyers_simulator import FyersSimulator, SimulatorSettings
from daemon.clock import NS_PER_SECOND, ShiftedClock, SimulatedClock, SystemClock
from daemon.errors import BrokerUnavailable, ConfigError, LoginNeeded
from daemon.fyers_venue import (
    fyers_venue,
    market_clock,
    refuse_unless_allowed,
    streamed_markets,
)
from daemon.outbox import Outbox
from daemon.plan import SessionPlan
from daemon.session_files import StreamedMarket, begin_session, make_plan, open_session
from daemon.settings import Settings, load_instruments, load_sessions, load_settings
from daemon.supervisor import Supervisor
from daemon.tick_source import MarketEvent

WEDNESDAY_9_NS = 1_795_577_400 * NS_PER_SECOND  # 25 Nov 2026, 09:00 in India: before the open
OPEN_NS = WEDNESDAY_9_NS + 900 * NS_PER_SECOND


def a_setting(state_dir: Path, **changes: object) -> Settings:
    overrides = {
        "session.state_dir": str(state_dir),
        "session.model_dir": str(state_dir / "models"),
        "feed.instruments": ["Reliance"],
        "feed.timeframe": "1",
    }
    return load_settings(CONFIG_DIR, {}, overrides=overrides | changes)


def markets_at(now_ns: int, state_dir: Path, **changes: object) -> list[StreamedMarket]:
    catalogue = load_instruments(CONFIG_DIR, {}).catalogue
    calendar = load_sessions(CONFIG_DIR, {})
    return streamed_markets(a_setting(state_dir, **changes), catalogue, calendar, now_ns)


def a_plan(
    state_dir: Path, now_ns: int = OPEN_NS, broker: str = "fyers-sim", **changes: object
) -> SessionPlan:
    return make_plan(
        a_setting(state_dir, **changes),
        load_instruments(CONFIG_DIR, {}).catalogue,
        load_sessions(CONFIG_DIR, {}),
        markets_at(now_ns, state_dir, **changes),
        mode="paper",
        now_ns=now_ns,
        seed=1,
        speed=1.0,
        broker=broker,
    )


def test_real_orders_are_refused_until_the_settings_allow_them(tmp_path: Path) -> None:
    limits = {"execution.order_type": "limit"}
    allowed = a_setting(tmp_path, **{"broker.allow_real_orders": True}, **limits)

    with pytest.raises(ConfigError, match=r"real money and broker\.allow_real_orders is off"):
        refuse_unless_allowed("fyers", a_setting(tmp_path, **limits))
    refuse_unless_allowed("fyers", allowed)
    refuse_unless_allowed("fyers-sim", a_setting(tmp_path))


def test_real_orders_at_the_market_are_refused(tmp_path: Path) -> None:
    settings = a_setting(
        tmp_path, **{"broker.allow_real_orders": True, "execution.order_type": "market"}
    )

    with pytest.raises(ConfigError, match=r"execution\.order_type is market.*set it to limit"):
        refuse_unless_allowed("fyers", settings)
    refuse_unless_allowed("fyers-sim", settings)


THROUGH_OPTIONS = {
    "feed.instruments": ["Nifty"],
    "execution.trade_index_through": "options",
}


def test_an_index_is_refused_unless_it_is_traded_through_options(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is an index.* set execution\.trade_index_through"):
        markets_at(OPEN_NS, tmp_path, **{"feed.instruments": ["Reliance", "Nifty"]})

    (market,) = markets_at(OPEN_NS, tmp_path, **THROUGH_OPTIONS)

    assert market.instrument == "Nifty"


def test_a_session_belongs_to_its_day_and_its_broker(tmp_path: Path) -> None:
    begin_session(tmp_path, a_plan(tmp_path))
    at = datetime.fromtimestamp(OPEN_NS / NS_PER_SECOND, UTC)

    before, during = (markets_at(ns, tmp_path) for ns in (WEDNESDAY_9_NS, OPEN_NS + 1))
    next_day = markets_at(OPEN_NS + 86_400 * NS_PER_SECOND, tmp_path)

    assert (at.hour, at.minute) == (3, 45)
    assert open_session(tmp_path, before, "fyers-sim") is not None
    assert open_session(tmp_path, during, "fyers-sim") is not None
    assert open_session(tmp_path, during, "fyers") is None
    assert open_session(tmp_path, next_day, "fyers-sim") is None


@pytest.mark.parametrize(
    "day",
    ["2027-01-04", "2027-01-26", "2036-11-22"],  # a Monday, Republic Day, a Saturday
)
@pytest.mark.parametrize("hour", [8, 10, 16])
def test_beyond_the_calendar_nothing_is_begun_at_any_hour(
    tmp_path: Path, day: str, hour: int
) -> None:
    at = datetime.fromisoformat(f"{day}T{hour:02}:00+05:30")

    with pytest.raises(ConfigError, match=r"sessions\.yaml knows no further session of NSE"):
        markets_at(round(at.timestamp()) * NS_PER_SECOND, tmp_path)


async def test_without_a_login_the_account_is_not_opened(tmp_path: Path) -> None:
    outbox = await Outbox(None).open()
    clock = SystemClock()

    async def announce(_: Alert) -> None: ...

    opened = fyers_venue(a_plan(tmp_path), tmp_path, None, clock, clock, environment={})
    with pytest.raises(LoginNeeded, match="run hrm-trader login"):
        async with opened(outbox, announce):
            pass
    await outbox.close()


async def test_a_simulator_must_answer_and_keep_real_pace() -> None:
    with pytest.raises(BrokerUnavailable, match="start hrm-trader simulate-broker"):
        await market_clock("http://127.0.0.1:9", SystemClock())
    async with FyersSimulator(SimulatorSettings()) as simulator:
        with pytest.raises(ConfigError, match="runs at 0 market seconds"):
            await market_clock(simulator.urls.base, SystemClock())
    with pytest.raises(ConfigError, match="on loopback"):
        await market_clock("https://api-t1.fyers.in", SystemClock())


async def test_the_markets_clock_is_the_real_one_or_a_simulators() -> None:
    real = SystemClock()

    async with FyersSimulator(SimulatorSettings(speed=1.0)) as simulator:
        shifted = await market_clock(simulator.urls.base, real)
        apart_ns = shifted.now_ns() - simulator.now_ns

    assert abs(apart_ns) < 60 * NS_PER_SECOND  # the two times are days apart
    assert await market_clock(None, real) is real


def test_a_shifted_clock_is_ahead_by_as_much_for_ever() -> None:
    clock = SimulatedClock(10)
    shifted = ShiftedClock(clock, 5)

    clock.advance_to(20)

    assert (shifted.now_ns(), shifted.monotonic_ns()) == (25, 10)


@pytest.mark.parametrize(("changes", "instrument"), [({}, "Reliance"), (THROUGH_OPTIONS, "Nifty")])
async def test_prices_and_time_come_in_and_a_login_is_made_where_the_fields_are_at_hand(
    tmp_path: Path, changes: dict[str, Any], instrument: str
) -> None:
    outbox = await Outbox(None).open()
    alerts: list[Alert] = []
    clock = SystemClock()

    async def announce(alert: Alert) -> None:
        alerts.append(alert)

    async def crashed(name: str, reason: str) -> None:
        raise AssertionError(f"{name} crashed: {reason}")

    async with FyersSimulator(SimulatorSettings(speed=1.0)) as simulator:
        who = simulator.account
        environment = {
            "FYERS_APP_ID": who.app_id,
            "FYERS_SECRET_KEY": who.secret,
            "FYERS_REDIRECT_URI": who.redirect_uri,
            "FYERS_FY_ID": who.client_id,
            "FYERS_PIN": who.pin,
            "FYERS_TOTP_SECRET": who.totp_secret,
        }
        base = simulator.urls.base
        times = await market_clock(base, clock)
        plan = a_plan(tmp_path, times.now_ns(), **changes)
        opened = fyers_venue(plan, tmp_path, base, clock, times, environment)
        events: list[MarketEvent] = []
        async with opened(outbox, announce) as venue:
            parts = (*venue.parts, *venue.feeds)
            async with Supervisor(parts, crashed, monotonic_s=lambda: 0.0):
                async for event in venue.events:
                    events.append(event)
                    chains = [one for one in events if isinstance(one, OptionChain)]
                    ticks = sum(isinstance(one, Tick) for one in events)
                    if ticks >= 2 and bool(chains) == bool(changes):
                        break
            positions = await venue.broker.positions()
    await outbox.close()

    assert isinstance(events[0], TimeEvent)
    assert {one.instrument for one in events if isinstance(one, Tick)} == {instrument}
    assert {one.underlying for one in chains} == ({"Nifty"} if changes else set())
    assert (positions, alerts, venue.is_repeatable) == ({}, [], False)
    assert (tmp_path / "fyers" / "token").stat().st_mode & 0o777 == 0o600
