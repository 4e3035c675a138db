"""How fast are ticks decoded, beside the official SDK, and how many reach the stream unharmed?

    python -m benchmarks.feed --json          about half a minute
    python -m benchmarks.feed --json --quick  a few seconds

Decoding: the same frames through our decoder up to a Tick message, and through the SDK's own
methods up to its callback, alternating, best of several rounds; nothing else of the SDK runs. Feed:
a server in a process of its own writes paced frames to a loopback socket; our DataSocket reads
them, they wait as they do in a live session, and TickSource publishes them to the bundled message
server. Every tick carries its number as its volume, so lost and repeated ones are counted; being
trades, none may be left out. Latency is from when a frame was due to leave the server until its
tick stands in the stream, so that a stall counts for all behind it.
"""

import argparse
import asyncio
import json
import logging
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import uvloop
from aiohttp import web

from actors.messages import Alert, AnyMessage, Tick
from benchmarks.machine import machine_facts, percentile
from daemon.brokers.fyers import hsm
from daemon.brokers.fyers.data_socket import DataSocket, tick_of
from daemon.brokers.fyers_simulator import frames
from daemon.clock import SystemClock
from daemon.embedded_redis import EmbeddedRedis
from daemon.redis_bus import RedisBus
from daemon.redis_writer import RedisPublisher
from daemon.socket_feed import SocketFeed
from daemon.tick_source import TickSource

TOPICS = 200
RECORDS_PER_FRAME = 5
RATES_PER_S = (2_000, 5_000, 10_000, 15_000)
FLUSHED_S = 10.0  # how long stragglers are waited for
NAMES = {number: f"sf|nse_cm|{number}" for number in range(TOPICS)}
SYMBOLS = {name: f"NSE:S{number}-EQ" for number, name in NAMES.items()}
Values = list[int | None]


def snapshots() -> list[bytes]:
    """Return a frame per topic with all fields."""
    records = []
    for number, name in NAMES.items():
        values: Values = [81_540 + field for field in range(frames.SCRIP_FIELDS)]
        values[hsm.VOLUME] = 0
        names = ("nse_cm", str(number), f"S{number}-EQ")
        records.append(frames.snapshot(number, name, values, names=names))
    return [frames.data_frame(0, [record]) for record in records]


def update_frame(first: int, records: int, at_s: int) -> bytes:
    """Return a frame of updates numbered from `first`: price, volume, both times."""
    changed: list[Values] = [
        [81_540 + number % 50, number, at_s, at_s] for number in range(first, first + records)
    ]
    padding: Values = [None] * (frames.SCRIP_FIELDS - 4)
    updates = [
        frames.update((first + position) % TOPICS, values + padding)
        for position, values in enumerate(changed)
    ]
    return frames.data_frame(first, updates)


def our_decoder() -> Callable[[bytes], int]:
    """Return a function that decodes a frame to ticks and says how many."""
    decoder = hsm.Decoder()
    clock = SystemClock()
    for frame in snapshots():
        decoder.decode(frame)

    def decode(frame: bytes) -> int:
        decoded = decoder.decode(frame)
        assert isinstance(decoded, hsm.Data)
        ticks = [tick_of(record, SYMBOLS[record[0].name], clock) for record in decoded.records]
        return sum(tick is not None for tick in ticks)

    return decode


def sdk_decoder(folder: str) -> Callable[[bytes], int]:
    """Return the same of the official SDK: up to its message callback, never connected."""
    # Not installed for everybody, and its import warns: only this comparison needs it.
    from fyers_apiv3.FyersWebsocket.data_ws import FyersDataSocket  # noqa: PLC0415

    got: list[Any] = []
    sdk = FyersDataSocket(access_token="none:none", log_path=folder, on_message=got.append)
    sdk.symbol_token = SYMBOLS
    logging.getLogger("FyersDataSocket").setLevel(logging.ERROR)
    decode_frame = sdk._FyersDataSocket__response_msg  # noqa: SLF001  it has no public decoder
    for frame in snapshots():
        decode_frame(frame)

    def decode(frame: bytes) -> int:
        got.clear()
        decode_frame(frame)
        return len(got)

    return decode


def measure_decoding_ns(count: int, rounds: int) -> dict[str, float]:
    """Return the best time per tick of both decoders; each tick changes, so none is skipped."""
    best = {"ours": float("inf"), "sdk": float("inf")}
    with tempfile.TemporaryDirectory(prefix="feed-benchmark-") as folder:
        decoders = {"ours": our_decoder(), "sdk": sdk_decoder(folder)}
        number = 1
        for _ in range(rounds):
            batch = [
                update_frame(first, RECORDS_PER_FRAME, 1_795_375_715 + first)
                for first in range(number, number + count, RECORDS_PER_FRAME)
            ]
            number += count
            for name, decode in decoders.items():
                began_ns = time.perf_counter_ns()
                ticks = sum(map(decode, batch))
                took_ns = time.perf_counter_ns() - began_ns
                if ticks != len(batch) * RECORDS_PER_FRAME:
                    raise RuntimeError(f"{name} decoded {ticks} ticks of {len(batch)} frames")
                best[name] = min(best[name], took_ns / ticks)
    return best


async def serve(rate_per_s: int, count: int) -> None:
    """Send `count` updates at a steady rate to the first client; print port and first instant."""
    finished = asyncio.Event()

    async def feed(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            kind = message.data[2]
            if kind == hsm.AUTHENTICATE:
                await socket.send_bytes(frames.authenticated(0))
            elif kind == hsm.SUBSCRIBE:
                break
        for frame in snapshots():
            await socket.send_bytes(frame)
        await asyncio.sleep(0.5)
        began_ns = time.monotonic_ns()
        print(json.dumps({"began_ns": began_ns}), flush=True)
        for first in range(1, count + 1, RECORDS_PER_FRAME):
            due_ns = began_ns + first * 1_000_000_000 // rate_per_s
            if (early_ns := due_ns - time.monotonic_ns()) > 0:
                await asyncio.sleep(early_ns / 1e9)
            await socket.send_bytes(update_frame(first, RECORDS_PER_FRAME, 1_795_375_715))
        await asyncio.sleep(FLUSHED_S)
        finished.set()
        return socket

    app = web.Application()
    app.router.add_get("/feed", feed)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    print(json.dumps({"url": f"ws://{host}:{port}/feed"}), flush=True)
    await finished.wait()
    await runner.cleanup()


@asynccontextmanager
async def server_process(rate_per_s: int, count: int) -> AsyncIterator[asyncio.StreamReader]:
    """Run `serve` in a process of its own; yields what it prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.feed", "--serve", str(rate_per_s), str(count),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


class Seen:
    """When each numbered tick stood in the stream."""

    def __init__(self) -> None:
        self.published_ns: dict[int, int] = {}
        self.repeated = 0
        self.batches = 0

    def note(self, messages: Sequence[AnyMessage]) -> None:
        now_ns = time.monotonic_ns()
        self.batches += 1
        for message in messages:
            number = message.volume_today if isinstance(message, Tick) else 0
            if number:  # 0: a snapshot
                self.repeated += number in self.published_ns
                self.published_ns[number] = now_ns


class TimedBus(RedisBus):
    """A bus that notes when the message server has answered that it holds a tick."""

    def __init__(self, url: str, prefix: str, seen: Seen) -> None:
        super().__init__(url, prefix)
        self._seen = seen

    async def publisher(self, source: str, streams: Sequence[str]) -> RedisPublisher:
        publisher = await super().publisher(source, streams)
        publish = publisher.publish

        async def timed(*messages: AnyMessage) -> list[str]:
            ids = await publish(*messages)
            self._seen.note(messages)
            return ids

        vars(publisher).update(publish=timed)
        return publisher


async def measure_feed(redis_url: str, rate_per_s: int, seconds: float) -> dict[str, Any]:
    """Run one rate from the socket to the stream; return what arrived, how often, how late."""
    count = round(rate_per_s * seconds / RECORDS_PER_FRAME) * RECORDS_PER_FRAME
    seen = Seen()
    published_ns = seen.published_ns
    async with server_process(rate_per_s, count) as lines, aiohttp.ClientSession() as http:
        socket = DataSocket(
            json.loads(await lines.readline())["url"],
            http,
            session_key=lambda: _value("0" * 56),
            resolve=lambda: _value(SYMBOLS),
            is_open=lambda _: True,
            clock=SystemClock(),
            random=Random(1),
        )
        bus = TimedBus(redis_url, f"feed{rate_per_s}", seen)
        alerts: list[Alert] = []
        feed = SocketFeed(socket.ticks, SystemClock(), alerts.append)
        reading = asyncio.create_task(feed.read())
        source = TickSource(feed.events(), bus, is_repeatable=False)
        running = asyncio.create_task(source.run())
        began_ns = json.loads(await lines.readline())["began_ns"]
        cpu_ns = time.process_time_ns()
        deadline_ns = began_ns + round((seconds + FLUSHED_S) * 1e9)
        # TickSource tells nobody when the last tick is through.
        while len(published_ns) < count and time.monotonic_ns() < deadline_ns:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        cpu_ns = time.process_time_ns() - cpu_ns
        reading.cancel()
        source.stop()
        await asyncio.wait({reading, running})
        await bus.close()
    late_ms = [
        (at_ns - began_ns - 1e9 * (number - (number - 1) % RECORDS_PER_FRAME) / rate_per_s) / 1e6
        for number, at_ns in published_ns.items()
    ]
    took_s = (max(published_ns.values(), default=began_ns) - began_ns) / 1e9
    return {
        "rate_per_s": rate_per_s,
        "sent": count,
        "lost": count - len(published_ns),
        "repeated": seen.repeated,
        "ticks_per_s": round(len(published_ns) / took_s) if took_s > 0 else 0,
        "kept_up": len(published_ns) == count and took_s < 1.02 * seconds + 0.1,
        "socket_to_stream_ms": {
            "p50": round(percentile(late_ms, 0.5), 2),
            "p99": round(percentile(late_ms, 0.99), 2),
        }
        if late_ms
        else None,
        "most_waiting": feed.waiting.longest,
        "alerts": len(alerts),
        "ticks_per_batch": round(len(published_ns) / max(seen.batches, 1), 1),
        "cpu_us_per_tick": round(cpu_ns / 1e3 / max(len(published_ns), 1), 1),
    }


async def _value(value: Any) -> Any:
    return value


async def run(*, quick: bool) -> dict[str, Any]:
    """Measure everything and return the report."""
    count, rounds, seconds = (2_000, 2, 0.5) if quick else (20_000, 5, 4.0)
    decoding = measure_decoding_ns(count, rounds)
    with tempfile.TemporaryDirectory(prefix="feed-benchmark-") as folder:
        server = EmbeddedRedis(Path(folder), max_memory_mib=1024)
        url = await server.start()
        try:
            rates = RATES_PER_S[:2] if quick else RATES_PER_S
            runs = [await measure_feed(url, rate_per_s, seconds) for rate_per_s in rates]
        finally:
            await server.stop()
    kept = [run for run in runs if run["kept_up"]]
    best = max(kept, key=lambda run: int(run["rate_per_s"]), default=None)
    return {
        "machine": machine_facts(),
        "settings": {"topics": TOPICS, "records_per_frame": RECORDS_PER_FRAME, "quick": quick},
        "decode_ns_per_tick": round(decoding["ours"]),
        "sdk_decode_ns_per_tick": round(decoding["sdk"]),
        "decode_ratio": round(decoding["sdk"] / decoding["ours"], 2),
        "sustained_ticks_per_s": best["rate_per_s"] if best else 0,  # the highest rate kept up with
        "socket_to_stream_p99_ms": best["socket_to_stream_ms"]["p99"] if best else None,
        "rates": runs,
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.feed", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.add_argument("--quick", action="store_true", help="a few seconds instead of thirty")
    parser.add_argument("--serve", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve(*options.serve))
        return
    report = uvloop.run(run(quick=options.quick))
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:26}{json.dumps(value)}")


if __name__ == "__main__":
    main()
