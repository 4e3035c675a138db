"""How long from a tick to the decision and the order that follow from it, through the daemon?

    python -m benchmarks.tick_to_order --json          about three quarters of a minute
    python -m benchmarks.tick_to_order --json --quick  about fifteen seconds

Runs daemon/live.py itself on a server of its own: tick source, five actors and the order gateway on
one event loop, reasoning with the released model in a process of its own, recording and logging as
always. The figures are taken from the recording afterwards.

The load is open: 500 ticks a second, each due at a fixed time, sent late rather than left out.
Latencies count from the time a tick was due, so what a stall holds up is in the figures
(no coordinated omission). `due_to_tick` is that part alone: the timer's millisecond, and waiting.

The market is synthetic: five instruments, each a seeded random walk, one tick of each every 10 ms.
Market time runs 240 times as fast as real time, so that one-minute bars close 20 times a second
and there are enough decisions; limits in market time are stretched accordingly (SETTINGS). Before
the measurement come the bars that reasoning needs to begin, with four ticks each at the same rate.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import uvloop

from actors.messages import Decision, ExecutionReport, PlaceOrder, Tick, TimeEvent
from benchmarks.bus import PIPELINE, raw_xadd_per_s
from benchmarks.machine import ROOT, machine_facts, summary
from daemon.bus import Envelope
from daemon.embedded_redis import EmbeddedRedis
from daemon.kill_switch import KillSwitchLatch
from daemon.live import LiveTradingService
from daemon.logs import configure_logs
from daemon.paper_venue import paper_venue
from daemon.plan import MarketPlan, SessionPlan, versions
from daemon.replay import Recording
from daemon.session_files import begin_session, check_model
from daemon.settings import load_instruments, load_sessions, load_settings
from daemon.tick_source import MarketEvent

RATE_PER_S: Final = 500
COMPRESSION: Final = 240  # market seconds per real second
TIME_EVENT_EVERY_S: Final = 24  # market seconds: ten times in a real one
WARM_UP_TICKS_PER_BAR: Final = 4
BAR_S: Final = 60
DAY_S: Final = 375 * 60  # from 9:15 to 15:30
PRICES: Final = {"Nifty": 22000, "Bank_Nifty": 47000, "Reliance": 2900, "TCS": 4100, "HDFC": 1450}
SEED: Final = 11
BEGIN_NS: Final = (
    int(datetime(2026, 3, 2, 9, 15, tzinfo=ZoneInfo("Asia/Kolkata")).timestamp()) * 1_000_000_000
)
SETTINGS: Final[dict[str, Any]] = {
    "session.model_dir": str(ROOT / "models"),
    "feed.instruments": list(PRICES),
    "feed.timeframe": "1",
    # Limits in market seconds, which last 1/240 as long here.
    "feed.future_tolerance_ms": 60_000,
    "feed.stale_after_seconds": 3600,
    "execution.order_timeout_seconds": 600,
    "risk_limits.max_decision_age_seconds": 3600,
    "risk_limits.max_orders_per_minute": 480,
    # A random walk is no market to earn on: what it loses must not end the measurement.
    "risk_limits.max_open_positions": len(PRICES),
    "risk_limits.max_daily_loss": 1,
    "risk_limits.max_drawdown": 1,
}

Place = tuple[str, str]


class Due(NamedTuple):
    """An event and when it is to be sent, in seconds from the beginning."""

    at_s: float
    event: MarketEvent


def schedule(
    warm_up_bars: int,
    measured_s: float,
    prices: Mapping[str, float] = PRICES,
    *,
    time_event_every_s: float = TIME_EVENT_EVERY_S,
    warm_up_ticks_per_bar: int = WARM_UP_TICKS_PER_BAR,
    opens_ns: Sequence[int] = (BEGIN_NS,),
) -> tuple[list[Due], float]:
    """Return all events in order, and from when on they are measured.

    opens_ns: when each of the days opens that they last, one after the other without the nights.
    """
    draw = np.random.default_rng(SEED)
    logs = {name: float(np.log(price)) for name, price in prices.items()}
    names = list(prices)
    warm_up = warm_up_bars * len(names) * warm_up_ticks_per_bar
    measured_from_s = warm_up / RATE_PER_S
    dues: list[Due] = []
    time_event_s = 0.0  # market time of the next one
    day = 0
    for number in range(warm_up + int(measured_s * RATE_PER_S)):
        at_s = number / RATE_PER_S
        if number < warm_up:
            bar_s = BAR_S / (len(names) * warm_up_ticks_per_bar)
            market_s = number * bar_s
            step = 0.0004
        else:
            market_s = warm_up_bars * BAR_S + (at_s - measured_from_s) * COMPRESSION
            step = 0.0001
        if market_s >= (day + 1) * DAY_S:
            closed_ns = opens_ns[day] + DAY_S * 1_000_000_000
            dues.append(Due(at_s, TimeEvent(now_ns=closed_ns, wall_ns=0)))
            day += 1
        now_ns = opens_ns[day] + int((market_s - day * DAY_S) * 1e9)
        if market_s >= time_event_s:
            dues.append(Due(at_s, TimeEvent(now_ns=now_ns, wall_ns=0)))
            time_event_s += time_event_every_s
        name = names[number % len(names)]
        logs[name] += float(draw.normal(0.0, step))
        price = Decimal(round(float(np.exp(logs[name])) * 20)) / 20  # ticks of 0.05
        dues.append(Due(at_s, Tick(instrument=name, last_price=price, event_ns=now_ns)))
    return dues, measured_from_s


class OpenMarket:
    """Yield events when they are due, late ones at once; `began_ns` is when the first one was."""

    def __init__(self, dues: Sequence[Due]) -> None:
        self._dues = dues
        self.began_ns = 0

    def due_ns(self) -> tuple[list[int], list[int]]:
        """Return when each tick and each time event was due, in the order of their numbers."""
        ticks: list[int] = []
        times: list[int] = []
        for at_s, event in self._dues:
            (ticks if isinstance(event, Tick) else times).append(self.began_ns + int(at_s * 1e9))
        return ticks, times

    async def __aiter__(self) -> AsyncIterator[MarketEvent]:
        self.began_ns = time.time_ns()
        began_s = time.perf_counter()
        for at_s, event in self._dues:
            left_s = began_s + at_s - time.perf_counter()
            # Also when late, so that whoever else is on this loop gets a turn.
            await asyncio.sleep(max(left_s, 0))
            yield event


def make_plan(overrides: Mapping[str, Any] | None = None) -> SessionPlan:
    """Return the plan of a session on the synthetic market; overrides: settings by dotted key."""
    settings = load_settings(ROOT / "config", {}, overrides=SETTINGS | dict(overrides or {}))
    catalogue = load_instruments(ROOT / "config", {}).catalogue
    digest, problem = check_model(settings.session.model_dir)
    return SessionPlan(
        session="tick-to-order",
        mode="paper",
        prefix="paper:v1",
        created_ns=time.time_ns(),
        settings=settings.model_dump(mode="json", exclude={"secrets"}),
        instruments=[catalogue[name] for name in PRICES],
        calendar=load_sessions(ROOT / "config", {}).table.model_dump(mode="json"),
        markets=[
            MarketPlan(
                instrument=name,
                timeframe="1",
                label=f"synthetic random walk, seed {SEED}",
                path="",
                sha256="",
                rows=0,
                first_open_ns=BEGIN_NS,
                repairs={},
            )
            for name in PRICES
        ],
        speed=float(COMPRESSION),
        seed=SEED,
        models_dir=str(settings.session.model_dir.resolve()),
        model_digest=digest,
        no_model_reason=problem,
        versions=versions(),
    )


class Measurement:
    """What a recording says of the time from when a tick was due to what followed from it."""

    def __init__(self, recording: Recording, market: OpenMarket, from_s: float) -> None:
        self._entries = recording.entries
        ticks, times = market.due_ns()
        self._due_ns = {"tick": ticks, "time": times}
        self.from_ns = market.began_ns + int(from_s * 1e9)
        self._origins: dict[Place, Place | None] = {}
        self.measured = {
            place: envelope
            for place, envelope in self._entries.items()
            if (due := self.due_ns(place)) is not None and due >= self.from_ns
        }

    def due_ns(self, place: Place) -> int | None:
        """Return when the market event that a message follows from was due; None without one."""
        origin = self._origin(place)
        if origin is None:
            return None
        return self._due_ns[origin[0]][self._entries[origin].sequence - 1]

    def _origin(self, place: Place) -> Place | None:
        if place[0] in self._due_ns:
            return place
        if place not in self._origins:
            stream, _, entry_id = self._entries[place].cause.partition("/")
            known = (stream, entry_id) in self._entries
            self._origins[place] = self._origin((stream, entry_id)) if known else None
        return self._origins[place]

    def since_due_us(self, place: Place, envelope: Envelope) -> float:
        """Return the time from when the origin was due to the publication of a message."""
        due_ns = self.due_ns(place)
        if due_ns is None:
            raise ValueError(f"{place} does not follow from a market event")
        return (envelope.published_ns - due_ns) / 1000

    def hops_us(self) -> dict[str, list[float]]:
        """Return the samples of each hop, from publication to publication."""
        hops: dict[str, list[float]] = {}
        for place, envelope in self.measured.items():
            stream = place[0]
            if not envelope.cause:
                hops.setdefault(f"due_to_{stream}", []).append(self.since_due_us(place, envelope))
                continue
            name = f"{envelope.cause.partition('/')[0]}_to_{stream}"
            took_ns = envelope.published_ns - envelope.cause_published_ns
            hops.setdefault(name, []).append(took_ns / 1000)
        hops["order_to_report"] = list(self._order_to_report_us())
        return hops

    def _order_to_report_us(self) -> Iterator[float]:
        """Yield the time from an order to the broker's first word about it."""
        placed_ns = {
            envelope.message.client_order_id: envelope.published_ns
            for envelope in self.measured.values()
            if isinstance(envelope.message, PlaceOrder)
        }
        for envelope in self._entries.values():
            if isinstance(envelope.message, ExecutionReport):
                began_ns = placed_ns.pop(envelope.message.client_order_id, None)
                if began_ns is not None:
                    yield (envelope.published_ns - began_ns) / 1000


def counted(samples: Sequence[float]) -> dict[str, float]:
    """Return the summary of samples with their number; the number alone where there are none."""
    return {"n": len(samples), **(summary(samples) if samples else {})}


def report(
    recording: Recording, market: OpenMarket, from_s: float, answer: dict[str, Any]
) -> dict[str, Any]:
    """Return what was measured, all times in microseconds."""
    measured = Measurement(recording, market, from_s)
    to_decision: list[float] = []
    to_order: list[float] = []
    thinking: list[float] = []
    thought_through: list[float] = []
    for place, envelope in measured.measured.items():
        took_us = measured.since_due_us(place, envelope)
        match envelope.message:
            case Decision(cycles=cycles, elapsed_us=elapsed_us):
                to_decision.append(took_us)
                if cycles:
                    thinking.append(elapsed_us)
                    thought_through.append(took_us)
            case PlaceOrder() if envelope.cause.startswith("intent/"):
                to_order.append(took_us)
            case _:
                pass
    envelopes = recording.entries.values()
    in_window = [e.published_ns for e in envelopes if e.published_ns >= measured.from_ns]
    handled = [place for place in recording.handled["market_feed"] if place[0] == "tick"]
    hops = measured.hops_us()
    seconds = (max(market.due_ns()[0]) - measured.from_ns) / 1e9
    return {
        "ticks": answer["ticks"],
        "ticks_handled": len(handled),
        "ticks_measured": len(hops["due_to_tick"]),
        "decisions": len(to_decision),
        "decisions_thought": len(thinking),
        "orders": len(to_order),
        "orders_in_all": len(hops["order_to_report"]),
        "lost": answer["lost"],
        "drained": answer["drained"],
        "alerts": answer["alerts"],
        "hops_us": {name: counted(samples) for name, samples in sorted(hops.items())},
        "tick_to_decision_us": counted(to_decision),
        "tick_to_order_us": counted(to_order),
        "thinking_us": counted(thinking),
        "thinking_share": round(sum(thinking) / sum(thought_through), 3) if thinking else 0.0,
        "messages_per_s": round(len(in_window) / seconds),
    }


async def run_session(
    plan: SessionPlan, market: OpenMarket, state_dir: Path
) -> tuple[Recording, dict[str, Any]]:
    """Run the daemon on a market to its end; return the recording and the summary."""
    folder = begin_session(state_dir, plan)
    latch = KillSwitchLatch(state_dir, plan.prefix, time.time_ns)
    await latch.release("benchmark: simulated money only", operator="benchmark")
    with (state_dir / "log.jsonl").open("w") as log:
        configure_logs("INFO", log)
        service = LiveTradingService(
            plan,
            state_dir=state_dir,
            folder=folder,
            open_venue=paper_venue(plan, market),
            lock_step=False,
            isolated=("reasoning",),
            log_level="INFO",
            log_file=log,
            seal_when_stopped=True,
        )
        answer = await service.run()  # stops the server too
    return Recording(folder), answer


async def run(quick: bool) -> dict[str, Any]:
    """Measure everything and return the report."""
    began_s = time.perf_counter()
    machine = machine_facts()  # before we are the load ourselves
    plan = make_plan()
    warm_up_bars = int(plan.settings["reasoning"]["warm_up_bars"]) + 1
    dues, from_s = schedule(warm_up_bars, 5.0 if quick else 30.0)
    market = OpenMarket(dues)
    with tempfile.TemporaryDirectory(prefix="tick-to-order-") as name:
        state_dir = Path(name)
        server = EmbeddedRedis(state_dir / "redis")
        await server.start()
        state = await server.state()
        raw_s = 0.3 if quick else 2.0
        raw = await asyncio.to_thread(raw_xadd_per_s, state.socket, raw_s, 1)
        pipelined = await asyncio.to_thread(raw_xadd_per_s, state.socket, raw_s, PIPELINE)
        recording, answer = await run_session(plan, market, state_dir)
        found = report(recording, market, from_s, answer)
    return {
        "machine": machine,
        "server": {
            "version": state.version,
            "transport": "unix socket",
            "appendfsync": "everysec",
        },
        "model": {"digest": plan.model_digest, "problem": plan.no_model_reason},
        "settings": {
            "instruments": list(PRICES),
            "data": f"synthetic random walks, seed {SEED}",
            "compression": COMPRESSION,
            "bar_s": BAR_S,
            "overrides": SETTINGS | {"session.model_dir": "models"},
            "loop": "uvloop",
            "quick": quick,
        },
        "rate_per_s": RATE_PER_S,
        **found,
        "raw_xadd_per_s": round(raw),
        "raw_pipelined_xadd_per_s": round(pipelined),
        "duration_s": round(time.perf_counter() - began_s, 1),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tick_to_order", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.add_argument("--quick", action="store_true", help="a few seconds instead of thirty")
    options = parser.parse_args()
    report = uvloop.run(run(options.quick))
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:26}{json.dumps(value)}")


if __name__ == "__main__":
    main()
