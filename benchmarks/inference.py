"""How deep does the model think in 50 ms, and does an engine with 8-bit weights still decide alike?

Segments of the released and of the production shape, engine after engine in turn, beside the time
that reading the looped weights from memory takes at the bandwidth measured in the same run. The
8-bit loop is measured only; what serves is `engine`. Times of segments are of the engine alone;
what the whole daemon makes of them stands beside, from `benchmarks.decisions`.

    python -m benchmarks.inference --json [--quick]
"""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from benchmarks import decisions
from benchmarks.machine import ROOT, machine_facts, percentile
from daemon.demo_data import demo_candles
from daemon.history import load_candles
from daemon.lookahead import training_candles
from hrm.config import ACCOUNT_WIDTH, HRMConfig
from hrm.eager_engine import EagerEngine
from hrm.engine import Batch, Engine
from hrm.engine_choice import choose_engine
from hrm.features import CONTEXT_NAMES, WARMUP_BARS
from hrm.halting import min_segments
from hrm.integrity import load_release
from hrm.model import HierarchicalReasoningModel
from hrm.onnx_engine import OnnxEncoder, OnnxEngine
from hrm.training.market_table import Account, LabelSettings, Vocabulary, market_table
from hrm.weights import Arrays, Weights, load_weights

MODELS = ROOT / "models"
BUDGET_MS = 50.0
BITS = {"onnx_fp32": 32.0, "onnx_8bit": 8.0 + 32.0 / 32}  # a weight, with a scale for 32 of them
COMPLEXITY = CONTEXT_NAMES.index("complexity")
# Admission of an engine with coarser weights: shares of decisions, and a difference of chances.
MIN_ACTION_AGREEMENT, MAX_SHIFT, MIN_DEPTH_AGREEMENT = 0.99, 0.02, 0.97
COLD_START = (
    "import json, sys, time; from pathlib import Path; from hrm.agent import HRMAgent\n"
    "from daemon.memory_use import resident_mib\n"
    "HRMAgent.load(Path(sys.argv[1]), time.monotonic_ns).warm_up()\n"
    "print(json.dumps([resident_mib(), 'torch' in sys.modules]))"
)


@dataclass(frozen=True)
class Shape:
    """Hold the engines of one model by name, and what its loop reads."""

    config: HRMConfig
    engines: dict[str, Engine[Any, Any]]
    looped: int  # weights of the core, each read once or t_timesteps times a cycle
    read: int  # weights read in one segment

    @classmethod
    def of(cls, model: HierarchicalReasoningModel) -> "Shape":
        """Make every engine of a model."""
        arrays: Arrays = {name: value.numpy() for name, value in model.state_dict().items()}
        sizes = {name: value.size for name, value in arrays.items() if name.startswith("core.")}
        low = sum(size for name, size in sizes.items() if name.startswith("core.l_module.stack"))
        rounds = model.config.convergence
        cycle = sum(sizes.values()) + (rounds.t_timesteps - 1) * low
        encoder = OnnxEncoder(arrays, model.config)
        engines: dict[str, Engine[Any, Any]] = {
            "eager": EagerEngine(model),
            "onnx_fp32": OnnxEngine(arrays, model.config, encoder),
            "onnx_8bit": OnnxEngine(arrays, model.config, encoder, bits=8),
        }
        return cls(model.config, engines, sum(sizes.values()), cycle * rounds.n_cycles)


def bandwidth(numbers: int, rounds: int) -> float:
    """Return how many bytes a second one thread reads from that many float32 numbers."""
    held = torch.ones(numbers)
    torch.dot(held, held)
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        torch.dot(held, held)
        taken.append(time.perf_counter() - began)
    return 4.0 * numbers / percentile(taken, 0.5)


def speed(shape: Shape, rounds: int) -> dict[str, Any]:
    """Time segments and whole decisions of one shape, the engines in turn."""
    batch = _drawn(shape.config)
    segment_ms: dict[str, list[float]] = {name: [] for name in shape.engines}
    depth: dict[str, list[int]] = {name: [] for name in BITS}
    for turn in range(rounds + 2):
        for name, engine in shape.engines.items():
            encoded = engine.encode(batch)
            began = time.perf_counter()
            _segment(engine, engine.start(encoded), encoded, shape.config)
            elapsed_ms = 1e3 * (time.perf_counter() - began)
            if turn >= 2:  # the first two warm up
                segment_ms[name].append(elapsed_ms)
                if name in BITS:
                    depth[name].append(_segments_within(engine, batch, shape.config))
    bound_ms = {
        name: 1e3 * shape.read * bits / 8 / bandwidth(max(1, int(shape.looped * bits / 32)), 50)
        for name, bits in BITS.items()
    }
    middle = {name: percentile(taken, 0.5) for name, taken in segment_ms.items()}
    return {
        "looped_parameters": shape.looped,
        "bound_ms": _rounded(bound_ms),
        "segment_ms": {
            name: {"p50": round(middle[name], 3), "p99": round(percentile(taken, 0.99), 3)}
            for name, taken in segment_ms.items()
        },
        "ratio_to_bound": _rounded({name: middle[name] / bound_ms[name] for name in BITS}),
        "speedup_over_eager": _rounded({name: middle["eager"] / middle[name] for name in BITS}),
        # The depth that 99 of 100 decisions reach at least.
        "engine_segments_in_50ms_p99": {n: percentile(d, 0.01) for n, d in depth.items()},
    }


def agreement(shape: Shape, batch: Batch) -> dict[str, Any]:
    """Compare the 8-bit loop with float32, each row read where it halts by itself."""
    fine, coarse = (
        _course(shape.engines[name], batch, shape.config) for name in ("onnx_fp32", "onnx_8bit")
    )
    rows = np.arange(len(batch))
    floors = [min_segments(value, len(fine.chances)) for value in _complexities(batch)]
    depth, coarse_depth = fine.depths(floors), coarse.depths(floors)
    one, other = fine.chances[depth - 1, rows], coarse.chances[coarse_depth - 1, rows]
    found = {
        "decisions": len(batch),
        "action_agreement": float((one.argmax(-1) == other.argmax(-1)).mean()),
        "max_probability_shift": float(np.abs(one - other).max()),
        "halting_depth_agreement": float((depth == coarse_depth).mean()),
    }
    admitted = (
        found["action_agreement"] >= MIN_ACTION_AGREEMENT
        and found["max_probability_shift"] <= MAX_SHIFT
        and found["halting_depth_agreement"] >= MIN_DEPTH_AGREEMENT
    )
    last = fine.chances[-1].argmax(-1)
    return {
        "gate": found | {"admitted": admitted},
        "agreement_with_full_depth": [
            float((chances.argmax(-1) == last).mean()) for chances in fine.chances
        ],
    }


@dataclass(frozen=True)
class Course:
    """Hold what B rows say after every segment: chances [M, B, 5], q logits [M, B, 2]."""

    chances: NDArray[np.float64]
    q: NDArray[np.float32]

    def depths(self, floors: list[int]) -> NDArray[np.int64]:
        """Return the segment, from 1, after which each row halts."""
        number = np.arange(1, len(self.q) + 1)[:, None]
        halts = (self.q[..., 0] > self.q[..., 1]) & (number >= np.array(floors))
        halts[-1] = True
        return np.asarray(halts.argmax(0) + 1, np.int64)


def real_batch(weights: Weights, rows: int) -> Batch:
    """Take bars spread over the embedded hourly candles, without a position."""
    candles = training_candles(load_candles(demo_candles().path))
    table = market_table(
        [candles],
        window=weights.entry.config.inputs.window_bars,
        labels=LabelSettings(),
        vocabulary=Vocabulary.of([candles]),
    )
    first = table.first_row[0]
    chosen = np.linspace(first + WARMUP_BARS, first + len(candles) - 1, rows).astype(np.int64)
    seen = table.observe(chosen, [Account()] * rows)
    known = weights.entry.vocabularies
    return Batch(
        bars=seen.bars,
        bars_mask=seen.bars_mask,
        instrument=np.full(rows, known.instrument_row(candles.instrument), np.int64),
        timeframe=np.full(rows, known.timeframe_row(candles.timeframe), np.int64),
        account=seen.account,
        context=seen.context,
    )


def measure(*, quick: bool) -> dict[str, Any]:
    """Measure the released and the production shape; return what the command prints."""
    torch.set_num_threads(1)
    weights = load_weights(MODELS)
    released = Shape.of(load_release(MODELS).model)
    torch.manual_seed(0)  # drawn weights: speed does not depend on them
    production = Shape.of(HierarchicalReasoningModel(HRMConfig()).eval())
    rounds = 20 if quick else 200
    shapes = {name: speed(shape, rounds) for name, shape in _named(released, production)}
    compared = agreement(released, real_batch(weights, 64 if quick else 1000))
    milliseconds = shapes["released"]["segment_ms"]["onnx_fp32"]["p50"]
    frontier = [
        {"segments": number, "ms": round(number * milliseconds, 3), "agreement": round(share, 4)}
        for number, share in enumerate(compared["agreement_with_full_depth"], 1)
    ]
    return {
        "machine": machine_facts(),
        "quick": quick,
        "engine": choose_engine(MODELS, weights, "auto")[1].name,
        "shapes": shapes,
        "gate": compared["gate"],
        "frontier": frontier,
        **cold_start(),
        **decisions.measure(quick=quick),
    }


def cold_start() -> dict[str, Any]:
    """Start an interpreter that loads the released model and thinks; seconds, and its memory."""
    began = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-c", COLD_START, str(MODELS)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ,
    )
    elapsed_s = time.perf_counter() - began
    rss_mib, has_torch = json.loads(ran.stdout)
    return {
        "cold_start_s": round(elapsed_s, 2),
        "rss_mib": round(rss_mib, 1),
        "serving_imports_torch": has_torch,
    }


def _segment(engine: Engine[Any, Any], state: Any, encoded: Any, config: HRMConfig) -> Any:
    for _ in range(config.convergence.n_cycles):
        state = engine.cycle(state, encoded)
    return state


def _segments_within(engine: Engine[Any, Any], batch: Batch, config: HRMConfig) -> int:
    """Return how many whole segments, up to m_max, are read before the budget has passed."""
    began, done = time.perf_counter(), 0
    encoded = engine.encode(batch)
    state = engine.start(encoded)
    while done < config.adaptive_computation.m_max:
        before = state
        state = _segment(engine, state, encoded, config)
        engine.residual(before, state)
        engine.read(state)
        if 1e3 * (time.perf_counter() - began) > BUDGET_MS:
            return done
        done += 1
    return done


def _course(engine: Engine[Any, Any], batch: Batch, config: HRMConfig) -> Course:
    encoded = engine.encode(batch)
    state = engine.start(encoded)
    chances, q = [], []
    for _ in range(config.adaptive_computation.m_max):
        state = _segment(engine, state, encoded, config)
        reading = engine.read(state)
        logits = reading.action_logits.astype(np.float64)
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        chances.append(shares / shares.sum(-1, keepdims=True))
        q.append(reading.q)
    return Course(np.stack(chances), np.stack(q))


def _complexities(batch: Batch) -> list[float]:
    found: list[float] = batch.context[:, COMPLEXITY].tolist()
    return found


def _drawn(config: HRMConfig) -> Batch:
    draw, sizes = np.random.default_rng(7), config.inputs
    return Batch(
        bars=draw.normal(size=(1, sizes.window_bars, sizes.n_features)).astype(np.float32),
        bars_mask=np.ones((1, sizes.window_bars), dtype=np.bool_),
        instrument=np.zeros(1, np.int64),
        timeframe=np.zeros(1, np.int64),
        account=draw.normal(size=(1, ACCOUNT_WIDTH)).astype(np.float32),
        context=draw.normal(size=(1, sizes.n_context)).astype(np.float32),
    )


def _named(released: Shape, production: Shape) -> list[tuple[str, Shape]]:
    return [("released", released), ("production", production)]


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds and decisions.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure the engines."""
    found = measure(quick=quick)
    typer.echo(json.dumps(found) if as_json else json.dumps(found, indent=1))


if __name__ == "__main__":
    typer.run(main)
