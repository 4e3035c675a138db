"""Are decisions in time, with everything else running, and how deep is the thought behind them?

    python -m benchmarks.decisions --json          about four minutes
    python -m benchmarks.decisions --json --quick  about three quarters of one

Four sessions of the whole daemon (benchmarks.tick_to_order says how one is run and why times count
from when a tick was due), each at 500 ticks a second:

- `together`: twenty instruments whose one-minute bars close at the same instants, four times a
  second, with the released model as it is, in batches of twenty: ten thousand decisions on two days
  of the market, played one after the other.
- `depth`, three times: one instrument, with a Q head that never wants to halt, so that only the
  deadline ends a thought: the released shape; the production shape of 27 million parameters, with
  the weights that training starts from or those of `--production DIR`, whose depth is
  `segments_in_50ms_p99`; and a core of full width, with all of them inside the loop. How fast
  weights are does not depend on what they say, but which engine serves them does: 8 bits pass the
  gate or do not.

How long the daemon's event loop does not answer is asked by the kernel, a thousand times a second;
`idle_loop_p999_ms` is what a loop with nothing to do takes beside 0, 1 and 2 processes that only
compute, which is how the system shares its processors.
Besides, without a daemon, both shapes think about 1, 5, 20 and 100 observations at a time.
"""

import argparse
import asyncio
import dataclasses
import gc
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import torch
import uvloop

from actors.messages import Decision, Heartbeat
from actors.session import SessionCalendar
from actors.session_table import SessionTable
from benchmarks.engine_shapes import WIDE
from benchmarks.loop_probe import LoopProbe, idle_loop_p999_ms
from benchmarks.machine import ROOT, machine_facts, percentile
from benchmarks.tick_to_order import (
    BEGIN_NS,
    RATE_PER_S,
    Measurement,
    OpenMarket,
    make_plan,
    run_session,
    schedule,
)
from daemon.plan import SessionPlan
from daemon.replay import Recording
from hrm.agent import HRMAgent
from hrm.config import ACCOUNT_WIDTH, HRMConfig
from hrm.integrity import load_release, save_release
from hrm.manifest import ModelCard
from hrm.model import HierarchicalReasoningModel
from hrm.thought import DeadlineBudget, Observation, Question, Thought
from hrm.weights import load_weights

MODELS: Final = ROOT / "models"
INSTRUMENTS: Final = 20
TIME_EVENT_EVERY_S: Final = 20  # market seconds: one falls on every bar close
WARM_UP_TICKS_PER_BAR: Final = 2
BATCHES: Final = (1, 5, 20, 100)
DEADLINE_MS: Final = 50.0
THINKING_MS: Final = 45.0  # what reasoning gives the thinker of it
NAMED: Final = (
    "decisions",
    "deadline_misses",
    "tick_to_decision_p50_ms",
    "tick_to_decision_p99_ms",
    "loop_stall_p999_ms",
    "rss_mib",
)
"""Figures of the session of twenty instruments that stand at the top."""
PATIENT: Final = {"hierarchical_reasoning_model.convergence.convergence_thresh": 1e-30}


def never_halting(model: HierarchicalReasoningModel) -> HierarchicalReasoningModel:
    """Let a model always want to go on."""
    with torch.no_grad():
        model.q_head.weight.zero_()
        model.q_head.bias.copy_(torch.tensor([-5.0, 5.0]))
    return model


def models_of_depth(folder: Path, production: Path | None = None) -> dict[str, Path]:
    """Release the shapes with a Q head that never halts, each in a folder of its own.

    production: a folder with a trained model of that size, None: drawn weights.
    """
    entry = load_weights(MODELS).entry
    torch.manual_seed(0)
    models = {
        "released": load_release(MODELS).model,
        "production": load_release(production).model
        if production is not None
        else HierarchicalReasoningModel(HRMConfig()),
        "full_width": HierarchicalReasoningModel(HRMConfig().changed(architecture=WIDE)),
    }
    for name, model in models.items():
        card = ModelCard(
            config=model.config,
            features=entry.features,
            vocabularies=entry.vocabularies,
            created=entry.created,
        )
        save_release(folder / name, never_halting(model.eval()), card)
    return {name: folder / name for name in models}


def a_plan(instruments: int, overrides: Mapping[str, Any]) -> tuple[SessionPlan, dict[str, float]]:
    """Return the plan of a session of so many shares, and what each begins at."""
    prices = {f"share {number:02}": 1000.0 + 250 * number for number in range(instruments)}
    # The model that is late stays in: what it misses is to be counted, not to end the measurement.
    plan = make_plan({"monitoring.failures_before_fallback": 100, **overrides})
    [like] = [each for each in plan.instruments if each.symbol == "Reliance"]
    shares = [
        dataclasses.replace(like, symbol=name, name=name, exchange_symbol=f"NSE:{number}-EQ")
        for number, name in enumerate(prices)
    ]
    markets = [msgspec.structs.replace(plan.markets[0], instrument=name) for name in prices]
    return msgspec.structs.replace(plan, instruments=shares, markets=markets), prices


def opens_of(plan: SessionPlan, days: int) -> list[int]:
    """Return when the market opens on so many trading days, from the first of the plan on."""
    calendar = SessionCalendar(SessionTable.model_validate(plan.calendar))
    opens = [BEGIN_NS]
    while len(opens) < days:
        following = calendar.next_open_ns("NSE", opens[-1])
        if following is None:
            raise ValueError("sessions.yaml covers too few days: extend its calendar")
        opens.append(following)
    return opens


async def session(
    instruments: int,
    measured_s: float,
    overrides: Mapping[str, Any],
) -> dict[str, Any]:
    """Run the daemon on so many instruments; return what its decisions and its loop took."""
    plan, prices = a_plan(instruments, overrides)
    warm_up_bars = int(plan.settings["reasoning"]["warm_up_bars"]) + 1
    dues, from_s = schedule(
        warm_up_bars,
        measured_s,
        prices,
        time_event_every_s=TIME_EVENT_EVERY_S,
        warm_up_ticks_per_bar=WARM_UP_TICKS_PER_BAR,
        opens_ns=opens_of(plan, days=2),
    )
    market = OpenMarket(dues)
    asker = LoopProbe(asyncio.get_running_loop())
    gc.collect()
    gc.freeze()  # what the benchmark holds is no part of the daemon and must not slow it
    with tempfile.TemporaryDirectory(prefix="decisions-") as folder:
        async with asker.asking():
            recording, answer = await run_session(plan, market, Path(folder))
    measured = Measurement(recording, market, from_s)
    decisions = [
        (measured.since_due_us(place, envelope) / 1000, envelope.published_ns, envelope.message)
        for place, envelope in measured.measured.items()
        if isinstance(envelope.message, Decision)
    ]
    last_ns = max(market.due_ns()[0])  # reading the recording afterwards holds the loop up as well
    asked = [answer for answer in asker.samples if measured.from_ns <= answer[0] <= last_ns]
    return report(decisions, asked, recording) | {
        "lost": answer["lost"],
        "alerts": answer["alerts"],
    }


def report(
    decisions: list[tuple[float, int, Decision]],
    answers: list[tuple[int, int]],
    recording: Recording,
) -> dict[str, Any]:
    """Sum up decisions, each with milliseconds since its tick was due and when it was published."""
    took_ms = [took for took, _, _ in decisions]
    thought = [decision for _, _, decision in decisions if decision.cycles]
    beats = [
        envelope.message.rss_mib
        for envelope in recording.entries.values()
        if isinstance(envelope.message, Heartbeat) and envelope.message.actor == "reasoning"
    ]
    thinking = [
        (published_ns - 1000 * decision.elapsed_us, published_ns)
        for _, published_ns, decision in decisions
        if decision.cycles
    ]
    return {
        "decisions": len(decisions),
        "decisions_thought": len(thought),
        "deadline_misses": sum(d.late or d.failed for _, _, d in decisions),
        "over_50ms": sum(took > DEADLINE_MS for took in took_ms),
        "tick_to_decision_p50_ms": round(percentile(took_ms, 0.5), 2),
        "tick_to_decision_p99_ms": round(percentile(took_ms, 0.99), 2),
        "waited_p99_ms": round(percentile([d.waited_us for _, _, d in decisions], 0.99) / 1000, 2),
        "batch_size_p50": percentile([d.batch_size for _, _, d in decisions], 0.5),
        # The depth that 99 of 100 decisions reach at least, those without a thought included.
        "segments_p99": percentile([d.reasoning_depth for _, _, d in decisions], 0.01),
        "segments_p50": percentile([d.reasoning_depth for _, _, d in decisions], 0.5),
        "stops": counts([d.stop_reason for d in thought]),
        "rss_mib": max(beats),
        **stalls(answers, thinking),
    }


def stalls(
    answers: list[tuple[int, int]], thinking: list[tuple[int, int]]
) -> dict[str, float | None]:
    """Return how long the loop did not answer while there was thinking going on, and in all.

    On a machine too busy for any thought there is only the second.
    """
    asked = np.array([at_ns for at_ns, _ in answers])
    took_ms = np.array([took_ns for _, took_ns in answers]) / 1e6
    in_all = {"loop_stall_all_p999_ms": round(percentile(took_ms.tolist(), 0.999), 3)}
    if not thinking:
        return {"loop_stall_p999_ms": None, **in_all}
    begins, ends = (np.array(sorted(set(side))) for side in zip(*thinking, strict=True))
    # Batches do not overlap, so a question falls into one where more have begun than ended.
    inside = np.searchsorted(begins, asked, "right") > np.searchsorted(ends, asked, "right")
    return {
        "loop_stall_p999_ms": round(percentile(took_ms[inside].tolist(), 0.999), 3),
        **in_all,
    }


def counts(names: list[str]) -> dict[str, int]:
    """Count how often each name occurs."""
    return {name: names.count(name) for name in sorted(set(names))}


def batch_figures(models: Path, rounds: int) -> dict[str, Any]:
    """Let one agent think about 1, 5, 20, 100 observations at a time, until the deadline."""
    patience = HRMConfig().changed(convergence={"convergence_thresh": 1e-30})
    agent = HRMAgent.load(models, time.monotonic_ns, patience)
    agent.warm_up(max(BATCHES))
    found: dict[str, Any] = {}
    for size in BATCHES:
        questions = drawn_questions(agent.config, size)
        taken_ms, depths, answered = [], [], []
        for _ in range(rounds):
            began = time.perf_counter()
            answers = agent.reason_many(questions)
            taken_ms.append(1e3 * (time.perf_counter() - began))
            thoughts = [answer for answer in answers if isinstance(answer, Thought)]
            answered.append(len(thoughts))
            depths.append(min((thought.segments for thought in thoughts), default=0))
        found[str(size)] = {
            "ms": {
                "p50": round(percentile(taken_ms, 0.5), 2),
                "p99": round(percentile(taken_ms, 0.99), 2),
            },
            "answered_p50": percentile(answered, 0.5),
            "segments_in_50ms_p50": percentile(depths, 0.5),
            "segments_in_50ms_p99": percentile(depths, 0.01),
        }
    return {"rows_stand_alone": agent.batches, "sizes": found}


def drawn_questions(config: HRMConfig, size: int) -> list[Question]:
    """Draw observations of one bar close; their content does not matter for speed."""
    draw, sizes = np.random.default_rng(3), config.inputs
    return [
        (
            Observation(
                bars=draw.normal(size=(sizes.window_bars, sizes.n_features)).astype(np.float32),
                mask=np.ones(sizes.window_bars, dtype=np.bool_),
                instrument="",
                timeframe="",
                account=draw.normal(size=ACCOUNT_WIDTH).astype(np.float32),
                context=draw.normal(size=sizes.n_context).astype(np.float32),
                complexity=0.0,
                allowed_actions=(True, True, True, True, True),
            ),
            DeadlineBudget(THINKING_MS),
        )
        for _ in range(size)
    ]


async def sessions(models: Mapping[str, Path], *, quick: bool) -> dict[str, Any]:
    """Run the four sessions."""
    together = await session(INSTRUMENTS, 8.0 if quick else 125.0, {})
    depth = {
        name: await session(
            1, 4.0 if quick else 30.0, {"session.model_dir": str(folder), **PATIENT}
        )
        for name, folder in models.items()
    }
    return {"together": together, "depth": depth}


def measure(*, quick: bool, production: Path | None = None) -> dict[str, Any]:
    """Measure everything; the figures that the goal names stand at the top."""
    with tempfile.TemporaryDirectory(prefix="decisions-") as name:
        models = models_of_depth(Path(name), production)
        ran = uvloop.run(sessions(models, quick=quick))
        batches = {
            shape: batch_figures(models[shape], 5 if quick else 40)
            for shape in ("released", "production")
        }
    idle = {str(busy): idle_loop_p999_ms(busy, 2.0 if quick else 10.0) for busy in range(3)}
    depths = {shape: one["segments_p99"] for shape, one in ran["depth"].items()}
    return {
        **{key: ran["together"][key] for key in NAMED},
        "idle_loop_p999_ms": idle,
        "segments_in_50ms_p99": depths["production"],
        "segments_in_50ms_p99_by_shape": depths,
        "daemon": {"rate_per_s": RATE_PER_S, "instruments": INSTRUMENTS, **ran},
        "batches": batches,
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decisions", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--production", type=Path, help="folder with a trained model of that size")
    options = parser.parse_args()
    machine = machine_facts()  # before we are the load ourselves
    found = {
        "machine": machine,
        "quick": options.quick,
        **measure(quick=options.quick, production=options.production),
    }
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:26}{json.dumps(value)}")


if __name__ == "__main__":
    main()
