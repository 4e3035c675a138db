"""How fast is the bus, and how near to what the server itself can do?

    python -m benchmarks.bus --json          about half a minute
    python -m benchmarks.bus --json --quick  a few seconds

Starts a server of its own. The server's bound is a loop of XADD commands packed beforehand and sent
over a plain socket (one at a time, and a hundred at a time), with entries of the size of a tick:
less work than any client can do. Times are wall times of one process on one event loop (uvloop).
"""

import argparse
import asyncio
import gc
import json
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from actors.messages import (
    AnyMessage,
    Bar,
    Decision,
    MarketContext,
    OrderIntent,
    PlaceOrder,
    Tick,
)
from benchmarks.machine import machine_facts, summary
from daemon.bus import Bus, Envelope, Output
from daemon.embedded_redis import EmbeddedRedis
from daemon.memory_bus import MemoryBus
from daemon.redis_bus import RedisBus

HOP_RATE_PER_S = 500
BATCH_SIZES = (1, 16, 64, 256)
BATCH = 64  # of the figures that stand for the bus
IN_FLIGHT = 2000  # ticks on their way through the six stages at once
PIPELINE = 100
AT_NS = 1_710_733_500_000_000_000
PRICE = Decimal("22055.70")

TICK = Tick(instrument="NSE:NIFTY50-INDEX", last_price=PRICE, event_ns=AT_NS, bid=PRICE, ask=PRICE)
BAR = Bar(
    instrument=TICK.instrument, timeframe="5", open=PRICE, high=PRICE, low=PRICE, close=PRICE,
    volume=0, open_ns=AT_NS, close_ns=AT_NS + 300_000_000_000, ticks=1,
)  # fmt: skip
CONTEXT = MarketContext(
    instrument=TICK.instrument, timeframe="5", bar=BAR, volatility=0.5, regime="ranging",
    regime_stability=0.5, correlation_score=0.0, news_impact=0.0, complexity=0.4, atr=PRICE,
)  # fmt: skip
DECISION = Decision(
    id=f"{TICK.instrument}@{AT_NS}", instrument=TICK.instrument, timeframe="5", action="BUY_LONG",
    size_fraction=1.0, confidence=0.6, policy="hrm", reference_price=PRICE, atr=PRICE,
    bar_close_ns=AT_NS, reason="benchmark",
)  # fmt: skip
INTENT = OrderIntent(
    decision_id=DECISION.id, instrument=TICK.instrument, quantity=75, purpose="entry",
    reference_price=PRICE, decided_ns=AT_NS,
)  # fmt: skip
ORDER = PlaceOrder(
    client_order_id="b1", decision_id=DECISION.id, instrument=TICK.instrument, side="buy",
    quantity=75, order_type="market", purpose="entry", reason="benchmark", placed_ns=AT_NS,
)  # fmt: skip
STAGES: tuple[tuple[str, str, AnyMessage | None], ...] = (
    ("market_feed", "tick", BAR),
    ("complexity", "bar", CONTEXT),
    ("reasoning", "context", DECISION),
    ("risk", "decision", INTENT),
    ("execution", "intent", ORDER),
    ("monitoring", "order", None),
)
XADD_PER_TICK = len(STAGES)  # the tick itself, and what five stages publish

MakeBus = Callable[[], Bus]


async def measure_hops_us(bus: Bus, count: int) -> tuple[list[float], list[float]]:
    """Publish one tick at a time at a steady rate; time each until a waiting consumer has it.

    Returns times from the call of publish, and times from when the tick was due: the second also
    counts what a stall does to the ticks behind it, and the timer's own millisecond.
    """
    publisher = await bus.publisher("edge", ["tick"])
    consumer = await bus.consumer("feed", ["tick"])
    due_s: list[float] = []
    called_s: list[float] = []
    took_us: list[float] = []
    late_us: list[float] = []

    async def publish() -> None:
        began_s = time.perf_counter()
        for number in range(count):
            due_s.append(began_s + number / HOP_RATE_PER_S)
            await asyncio.sleep(max(due_s[-1] - time.perf_counter(), 0))
            called_s.append(time.perf_counter())
            await publisher.publish(TICK)

    async def receive() -> None:
        while len(took_us) < count:
            batch = await consumer.read(BATCH, 500)
            now_s = time.perf_counter()
            for number in range(len(took_us), len(took_us) + len(batch)):
                took_us.append((now_s - called_s[number]) * 1e6)
                late_us.append((now_s - due_s[number]) * 1e6)
            await consumer.commit(batch, [])

    await asyncio.gather(publish(), receive())
    await publisher.close()
    await consumer.close()
    warm = min(50, count // 10)
    return took_us[warm:], late_us[warm:]


async def fill(bus: Bus, count: int) -> None:
    publisher = await bus.publisher("edge", ["tick"])
    for first in range(0, count, 500):
        await publisher.publish(*[TICK] * min(500, count - first))
    await publisher.close()


async def measure_commits_us(bus: Bus, count: int) -> list[float]:
    """Time commits of one input and one output."""
    await fill(bus, count)
    consumer = await bus.consumer("feed", ["tick"], ["bar"])
    took_us = []
    for _ in range(count):
        batch = await consumer.read(1, 500)
        began_s = time.perf_counter()
        await consumer.commit(batch, [Output(0, BAR)])
        took_us.append((time.perf_counter() - began_s) * 1e6)
    await consumer.close()
    return took_us[min(50, count // 10) :]


async def measure_hop_per_s(bus: Bus, count: int, batch_size: int) -> float:
    """Read and commit a full stream, one output per input; returns messages per second."""
    await fill(bus, count)
    consumer = await bus.consumer("feed", ["tick"], ["bar"])
    gc.collect()
    began_s = time.perf_counter()
    done = 0
    while done < count:
        batch = await consumer.read(batch_size, 500)
        await consumer.commit(batch, [Output(position, BAR) for position in range(len(batch))])
        done += len(batch)
    took_s = time.perf_counter() - began_s
    await consumer.close()
    return count / took_s


async def measure_six_stages_per_s(bus: Bus, count: int) -> float:
    """Send ticks through six actors' worth of hops; returns ticks per second through all."""
    publisher = await bus.publisher("edge", ["tick"])
    arrived = 0
    room = asyncio.Event()

    async def publish() -> None:
        sent = 0
        while sent < count:
            while sent - arrived >= IN_FLIGHT:
                room.clear()
                await room.wait()
            await publisher.publish(*[TICK] * min(BATCH, count - sent))
            sent += min(BATCH, count - sent)

    async def stage(name: str, stream: str, output: AnyMessage | None) -> None:
        nonlocal arrived
        consumer = await bus.consumer(name, [stream], [output.stream] if output else [])
        done = 0
        while done < count:
            batch = await consumer.read(BATCH, 500)
            if not batch:
                continue
            outputs = [Output(position, output) for position in range(len(batch)) if output]
            await consumer.commit(batch, outputs)
            done += len(batch)
            if output is None:
                arrived = done
                room.set()
        await consumer.close()

    gc.collect()
    began_s = time.perf_counter()
    await asyncio.gather(publish(), *[stage(*description) for description in STAGES])
    took_s = time.perf_counter() - began_s
    await publisher.close()
    return count / took_s


def raw_xadd_per_s(path: str, duration_s: float, pipeline: int) -> float:
    """Send XADD commands packed beforehand over a plain socket; returns how many a second."""
    blob = msgspec.msgpack.encode(
        Envelope(
            source="edge", sequence=1, cause="", published_ns=AT_NS, cause_published_ns=0,
            origin_published_ns=AT_NS, message=TICK,
        )
    )  # fmt: skip
    head = b"*5\r\n$4\r\nXADD\r\n$3\r\nraw\r\n$1\r\n*\r\n$1\r\nd\r\n"
    command = (head + b"$%d\r\n%s\r\n" % (len(blob), blob)) * pipeline
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(path)
        sent = 0
        began_s = time.perf_counter()
        while time.perf_counter() - began_s < duration_s:
            link.sendall(command)
            answers = 0
            while answers < 2 * pipeline:  # each is "$<length>\r\n<id>\r\n"
                answers += link.recv(65536).count(b"\n")
            sent += pipeline
        rate = sent / (time.perf_counter() - began_s)
        link.sendall(b"*2\r\n$3\r\nDEL\r\n$3\r\nraw\r\n")
        link.recv(64)
    return rate


async def on_a_fresh_bus(make: MakeBus, measure: Callable[[Bus], Awaitable[Any]]) -> Any:
    bus = make()
    try:
        return await measure(bus)
    finally:
        await bus.close()


async def measure_bus(make: MakeBus, scale: float) -> dict[str, Any]:
    """Return all figures of one kind of bus; `scale` shortens the run."""
    hops = int(4000 * scale)
    commits = int(3000 * scale)
    messages = int(24_000 * scale)
    ticks = int(16_000 * scale)
    hop_us, late_us = await on_a_fresh_bus(make, lambda bus: measure_hops_us(bus, hops))
    commit_us = await on_a_fresh_bus(make, lambda bus: measure_commits_us(bus, commits))
    per_s = {}
    for size in BATCH_SIZES:
        count = messages if size > 1 else messages // 8
        measure = partial(measure_hop_per_s, count=count, batch_size=size)
        per_s[str(size)] = round(await on_a_fresh_bus(make, measure))
    six = await on_a_fresh_bus(make, lambda bus: measure_six_stages_per_s(bus, ticks))
    return {
        "hop_us": summary(hop_us),
        "hop_from_due_us": summary(late_us),
        "commit_us": summary(commit_us),
        "messages_per_s": per_s[str(BATCH)],
        "messages_per_s_by_batch": per_s,
        "six_stage_ticks_per_s": round(six),
    }


async def run(quick: bool) -> dict[str, Any]:
    """Measure everything and return the report."""
    began_s = time.perf_counter()
    scale = 0.12 if quick else 1.0
    raw_s = 0.3 if quick else 2.0
    with tempfile.TemporaryDirectory(prefix="bus-benchmark-") as folder:
        server = EmbeddedRedis(Path(folder), max_memory_mib=1024)
        url = await server.start()
        try:
            state = await server.state()
            numbers = iter(range(100))

            def fresh_redis() -> Bus:
                return RedisBus(url, f"benchmark{next(numbers)}")

            raw = await asyncio.to_thread(raw_xadd_per_s, state.socket, raw_s, 1)
            pipelined = await asyncio.to_thread(raw_xadd_per_s, state.socket, raw_s, PIPELINE)
            redis = await measure_bus(fresh_redis, scale)
        finally:
            await server.stop()
        memory = await measure_bus(MemoryBus, scale)
    return {
        "machine": machine_facts(),
        "server": {
            "version": state.version,
            "transport": "unix socket",
            "appendfsync": "everysec",
        },
        "settings": {
            "hop_rate_per_s": HOP_RATE_PER_S,
            "batch": BATCH,
            "in_flight": IN_FLIGHT,
            "pipeline": PIPELINE,
            "loop": "uvloop",
            "quick": quick,
        },
        **redis,
        "raw_xadd_per_s": round(raw),
        "raw_pipelined_xadd_per_s": round(pipelined),
        # XADDs per second that six stages of the bus make, against the bare pipelined loop.
        "ratio_to_raw": round(redis["six_stage_ticks_per_s"] * XADD_PER_TICK / pipelined, 3),
        "memory_bus": memory,
        "duration_s": round(time.perf_counter() - began_s, 1),
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bus", description=__doc__)
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
