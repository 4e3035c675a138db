"""Does deciding make the reasoning process grow, and does it stay small?

    python -m benchmarks.growth --json          100,000 decisions, some minutes
    python -m benchmarks.growth --json --quick  4,000

The reasoning actor with the released model, as its process builds it, on twenty random walks whose
bars close together. Resident memory is read after each tenth; `growth_mib` is from the first tenth
to the last, since what is allocated once comes before. Garbage is collected as in the process.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any, Final

import numpy as np

from actors.base import Arrival
from actors.messages import Bar, MarketContext
from actors.reasoning import Input, ReasoningActor
from benchmarks.machine import machine_facts, percentile
from benchmarks.tick_to_order import BEGIN_NS, make_plan
from daemon.actor_process import care_of, load_thinker
from daemon.logs import configure_logs
from daemon.memory_use import resident_mib
from daemon.wiring import Workshop

DECISIONS: Final = 100_000
QUICK: Final = 4_000
TENTHS: Final = 10
INSTRUMENTS: Final = 20
BAR_NS: Final = 60_000_000_000
SEED: Final = 17


def closes() -> Iterator[list[MarketContext]]:
    """Yield the contexts of one bar close after the other, for ever."""
    draw = np.random.default_rng(SEED)
    prices = np.full(INSTRUMENTS, 1000.0)
    number = 0
    while True:
        prices *= np.exp(draw.normal(0.0, 0.0005, INSTRUMENTS))
        yield [
            a_context(f"share {place:02}", Decimal(round(price * 20)) / 20, number)
            for place, price in enumerate(prices.tolist())
        ]
        number += 1


def a_context(name: str, price: Decimal, number: int) -> MarketContext:
    """Return the context of bar `number` of an instrument."""
    bar = Bar(
        instrument=name,
        timeframe="1",
        open=price,
        high=price + 1,
        low=price - 1,
        close=price,
        volume=100,
        open_ns=BEGIN_NS + number * BAR_NS,
        close_ns=BEGIN_NS + (number + 1) * BAR_NS,
        ticks=4,
    )
    return MarketContext(
        instrument=name,
        timeframe="1",
        bar=bar,
        volatility=0.5,
        regime="ranging",
        regime_stability=0.5,
        correlation_score=0.0,
        news_impact=0.0,
        complexity=0.4,
        atr=Decimal(2),
    )


def measure(decisions: int) -> dict[str, Any]:
    """Decide so many times; return what memory did."""
    plan = make_plan()
    workshop = Workshop.of(plan)
    thinker = load_thinker(plan)
    if thinker is None:
        raise ValueError(f"there is no model to decide with: {plan.no_model_reason}")
    actor = workshop.build("reasoning", thinker)
    if not isinstance(actor, ReasoningActor):
        raise TypeError(f"reasoning is a {type(actor).__name__}")
    care = care_of(thinker, workshop.settings)
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        return run(actor, care.rest, decisions)
    finally:
        gc.enable()
        gc.unfreeze()


def run(actor: ReasoningActor, rest: Callable[[bool], None], decisions: int) -> dict[str, Any]:
    """Let an actor decide so many times; `rest` is called between bar closes."""
    made: int = 0
    thought: int = 0
    rss_mib: list[float] = []
    taken_us: list[float] = []
    for contexts in closes():
        began_ns = time.perf_counter_ns()
        arrivals: list[Arrival[Input]] = [Arrival(context) for context in contexts]
        answered = [one for each in actor.handle_many(arrivals) for one in each]
        taken_us.append((time.perf_counter_ns() - began_ns) / 1000)
        rest(True)
        before, made = made, made + len(answered)
        thought += sum(one.cycles > 0 for one in answered)
        if made * TENTHS // decisions > before * TENTHS // decisions:
            rss_mib.append(round(resident_mib(), 2))
        if made >= decisions:
            break
    return {
        "decisions": made,
        "decisions_thought": thought,
        "rss_mib": rss_mib[-1],
        "growth_mib": round(rss_mib[-1] - rss_mib[0], 2),
        "rss_mib_by_tenth": rss_mib,
        "close_us": {
            "p50": round(percentile(taken_us, 0.5)),
            "p99": round(percentile(taken_us, 0.99)),
        },
        "has_torch": "torch" in sys.modules,
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} decisions")
    options = parser.parse_args()
    configure_logs("WARNING", sys.stderr)
    machine = machine_facts()  # before we are the load ourselves
    found = measure(QUICK if options.quick else DECISIONS)
    report = {"machine": machine, "quick": options.quick, "instruments": INSTRUMENTS, **found}
    if options.json:
        print(json.dumps(report))
        return
    for name, value in report.items():
        print(f"{name:26}{json.dumps(value)}")


if __name__ == "__main__":
    main()
