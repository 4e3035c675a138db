"""How long from a tick to the order that follows from it, with the whole daemon running?

Open loop: ticks of four indices, drawn from a seeded random walk (no market data: only its timing
matters), leave at a fixed rate whatever the daemon does. Market time runs 240 times faster, so that
one-minute bars close four times a second and the released model decides often. The daemon is the
real one: embedded server, six actors with reasoning in its own process, gateway, simulated broker,
recording. Latencies are read from the recording and count from when a tick was due, not from when
it left, so that a stall counts against every tick it held up.

    python -m benchmarks.tick_to_order [--json] [--quick] [--rate 500] [--seconds 40]
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import uvloop

from actors.messages import Decision, PlaceOrder, Tick, TimeEvent
from benchmarks.bus import raw_xadd_per_s
from benchmarks.machine import machine_facts, summary
from daemon.bus import id_key
from daemon.embedded_redis import EmbeddedRedis
from daemon.kill_switch import KillSwitchLatch
from daemon.live import LiveTradingService
from daemon.logs import configure_logs
from daemon.plan import MarketPlan, SessionPlan, versions
from daemon.replay import Recording
from daemon.session_files import begin_session, check_model
from daemon.settings import load_instruments, load_sessions, load_settings

START_NS = 1_772_423_100 * 1_000_000_000  # Monday 2026-03-02 09:15 IST, an ordinary session
COMPRESSION = 240  # market seconds per real second
INSTRUMENTS = ("Nifty", "Bank_Nifty", "Finnifty", "Sensex")
TICK = Decimal("0.05")
TIME_EVENTS_PER_S = 20
PIPELINE = 100
OVERRIDES = {
    "reasoning.warm_up_bars": 33,  # the fewest that the features need
    "execution.order_timeout_seconds": 600,
    # Limits in market time, which runs faster here; what is measured is not what they are for.
    "risk_limits.max_decision_age_seconds": 3600,
    "feed.future_tolerance_ms": 60_000,
    "feed.stale_after_seconds": 3600,
    "risk_limits.max_open_positions": len(INSTRUMENTS),
    "risk_limits.max_daily_loss": 1.0,
    "risk_limits.max_drawdown": 1.0,
    "logging.level": "WARNING",
}


class OpenLoop:
    """Ticks and time events that leave when they are due; remembers when each was."""

    def __init__(self, rate: float, seconds: float) -> None:
        self._rate = rate
        self._seconds = seconds
        self.due_ns: list[int] = []  # real time each event was due, in order

    async def events(self) -> AsyncIterator[Tick | TimeEvent]:
        """Yield events until the time is over."""
        walk = random.Random(7)
        prices = dict.fromkeys(INSTRUMENTS, Decimal(22_000))
        began_ns = time.time_ns()
        next_time_ns = began_ns
        for number in range(int(self._rate * self._seconds)):
            due_ns = began_ns + int(number * 1e9 / self._rate)
            if (left_ns := due_ns - time.time_ns()) > 0:
                await asyncio.sleep(left_ns / 1e9)
            market_ns = START_NS + (due_ns - began_ns) * COMPRESSION
            if due_ns >= next_time_ns:
                self.due_ns.append(due_ns)
                yield TimeEvent(now_ns=market_ns, wall_ns=time.time_ns())
                next_time_ns += int(1e9 / TIME_EVENTS_PER_S)
            name = INSTRUMENTS[number % len(INSTRUMENTS)]
            prices[name] += TICK * walk.randint(-20, 20)
            self.due_ns.append(due_ns)
            yield Tick(instrument=name, last_price=prices[name], event_ns=market_ns)


def make_plan(state_dir: Path) -> SessionPlan:
    """Return the plan of the measured session, in a fresh state folder."""
    overrides = OVERRIDES | {"session.state_dir": str(state_dir)}
    settings = load_settings(overrides=overrides)
    catalogue = load_instruments().catalogue
    digest, reason = check_model(settings.session.model_dir)
    return SessionPlan(
        session="benchmark",
        mode="paper",
        prefix="benchmark:v1",
        created_ns=time.time_ns(),
        settings=settings.model_dump(mode="json", exclude={"secrets"}),
        instruments=[catalogue[name] for name in INSTRUMENTS],
        calendar=load_sessions().table.model_dump(mode="json"),
        markets=[
            MarketPlan(
                instrument=name,
                timeframe="1",
                label="seeded random walk",
                path="",
                sha256="",
                rows=0,
                first_open_ns=0,
                repairs={},
            )
            for name in INSTRUMENTS
        ],
        speed=float(COMPRESSION),
        seed=7,
        models_dir=str(settings.session.model_dir.resolve()),
        model_digest=digest,
        no_model_reason=reason,
        versions=versions(),
    )


def latencies(recording: Recording, due_ns: list[int]) -> dict[str, Any]:
    """Return what the recording says, in microseconds, counted from when events were due."""
    edges = sorted(
        (id_key(entry_id), envelope.published_ns)
        for (stream, entry_id), envelope in recording.entries.items()
        if stream in {Tick.stream, TimeEvent.stream}
    )
    # Published time of an edge event -> how late it left.
    late_ns = {
        published_ns: published_ns - due
        for (_, published_ns), due in zip(edges, due_ns, strict=True)
    }
    hops: dict[str, list[float]] = {}
    chains: dict[type, list[float]] = {Decision: [], PlaceOrder: []}
    thought: list[float] = []
    for (stream, _), envelope in recording.entries.items():
        if envelope.cause:
            hop = f"{envelope.cause.partition('/')[0]}_to_{stream}"
            hops.setdefault(hop, []).append(
                (envelope.published_ns - envelope.cause_published_ns) / 1000
            )
        message = envelope.message
        if isinstance(message, Decision) and message.cycles:
            thought.append(message.elapsed_us)
        if (isinstance(message, Decision) and message.cycles) or isinstance(message, PlaceOrder):
            origin_ns = envelope.origin_published_ns
            waited_ns = envelope.published_ns - origin_ns + late_ns.get(origin_ns, 0)
            chains[type(message)].append(waited_ns / 1000)
    left_late = [value / 1000 for value in late_ns.values()]
    return {
        "hops_us": {name: summary(values) | {"n": len(values)} for name, values in hops.items()},
        "tick_to_decision_us": _counted(chains[Decision]),
        "tick_to_order_us": _counted(chains[PlaceOrder]),
        "thinking_us": _counted(thought),
        "events_left_late_us": _counted(left_late),
    }


def _counted(values: list[float]) -> dict[str, float]:
    return (summary(values) if values else {}) | {"n": len(values)}


async def measure(rate: float, seconds: float) -> dict[str, Any]:
    """Run the daemon once and the raw server beside it; return the answer of the benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        state_dir = Path(folder)
        plan = make_plan(state_dir)
        session = begin_session(state_dir, plan)
        await KillSwitchLatch(state_dir, plan.prefix, time.time_ns).release(
            "benchmark", "benchmark"
        )
        loop = OpenLoop(rate, seconds)
        service = LiveTradingService(
            plan,
            state_dir=state_dir,
            folder=session,
            market=loop.events(),
            lock_step=False,
            isolated=("reasoning",),
            log_level="WARNING",
            log_file=None,
            seal_when_stopped=True,
        )
        summary_of_run = await service.run()
        measured = latencies(Recording(session), loop.due_ns)
        server = EmbeddedRedis(state_dir / "redis")
        await server.start()
        state = await server.state()
        raw = await asyncio.to_thread(raw_xadd_per_s, state.socket, 1.0, 1)
        pipelined = await asyncio.to_thread(raw_xadd_per_s, state.socket, 1.0, PIPELINE)
        await server.stop()
    messages = sum(hop["n"] for hop in measured["hops_us"].values()) + summary_of_run["ticks"]
    return {
        "machine": machine_facts(),
        "server": {"version": state.version},
        "model_digest": plan.model_digest,
        "no_model_reason": plan.no_model_reason,
        "rate_per_s": rate,
        "instruments": len(INSTRUMENTS),
        "ticks": summary_of_run["ticks"],
        "bars": summary_of_run["bars"],
        "decisions": summary_of_run["decisions"],
        "late_decisions": summary_of_run["late_decisions"],
        "orders": summary_of_run["orders"],
        "lost": summary_of_run["lost"],
        **measured,
        "messages_per_s": round(messages / seconds),
        "raw_xadd_per_s": round(raw),
        "raw_pipelined_xadd_per_s": round(pipelined),
        "duration_s": seconds,
    }


def main() -> None:
    """Entry of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="15 seconds")
    parser.add_argument("--rate", type=float, default=500.0, help="ticks a second")
    parser.add_argument("--seconds", type=float, default=40.0)
    given = parser.parse_args()
    configure_logs("WARNING", sys.stderr)
    seconds = 15.0 if given.quick else given.seconds
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answer = runner.run(measure(given.rate, seconds))
    print(json.dumps(answer) if given.json else json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
