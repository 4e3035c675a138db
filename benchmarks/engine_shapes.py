"""Models of several shapes with every engine of each, and how fast those are beside memory.

Read by `benchmarks.inference`. Engines run in turn, so that what else the machine does meets all.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import percentile
from hrm.config import HRMConfig
from hrm.eager_engine import EagerEngine
from hrm.engine import Batch, Engine
from hrm.engine_candidates import NATIVE_BITS
from hrm.engine_choice import EngineChoice, choose_engine
from hrm.features import FEATURE_NAMES, FEATURE_SCHEMA_SHA256
from hrm.integrity import load_release, save_release
from hrm.manifest import FeatureRecord, ModelCard
from hrm.model import HierarchicalReasoningModel
from hrm.native_engine import NativeEngine
from hrm.native_library import NativeUnavailable, native_library
from hrm.onnx_engine import OnnxEncoder, OnnxEngine
from hrm.parity import drawn_batch
from hrm.weights import Weights, load_weights

BUDGET_MS = 50.0
LIBRARY = ("onnx", "onnx8")  # engines of the library, to be beaten by our own
BITS = {"eager": 32, "onnx": 32, "onnx8": 9, "native": 32, "native16": 16, "native8": 8}
"""Of one weight as the engine reads it; the library's 8 bits have a scale for each 32 of them."""
WARM_UP_ROUNDS = 2
BATCHES = (1, 5, 20, 100)
WIDE = {  # feed-forward widths of full size inside the loop, and one layer outside it
    "h_module": {"feed_forward": 2176},
    "l_module": {"feed_forward": 1088},
    "encoder": {"num_layers": 1},
}


@dataclass(frozen=True)
class Shape:
    """Hold a released folder, its engines by name, and what is chosen to serve it."""

    weights: Weights
    engines: dict[str, Engine[Any, Any]]
    choice: EngineChoice

    @classmethod
    def of(cls, folder: Path) -> "Shape":
        """Make every engine of the model that a folder releases."""
        weights = load_weights(folder)
        arrays, config = weights.arrays, weights.entry.config
        encoder = OnnxEncoder(arrays, config)
        engines: dict[str, Engine[Any, Any]] = {
            "eager": EagerEngine(load_release(folder).model),
            "onnx": OnnxEngine(arrays, config, encoder),
            "onnx8": OnnxEngine(arrays, config, encoder, bits=8),
        }
        try:
            library = native_library()
            for name, bits in NATIVE_BITS.items():
                engines[name] = NativeEngine(arrays, config, library, bits=bits)
        except NativeUnavailable:
            pass
        choice = choose_engine(folder, weights, "auto", deadline_ms=BUDGET_MS)[1]
        return cls(weights, engines, choice)

    @property
    def config(self) -> HRMConfig:
        """Return the model's settings."""
        return self.weights.entry.config

    @cached_property
    def looped(self) -> tuple[int, int]:
        """Count the weights of the core, and those of L, which a cycle reads t_timesteps times."""
        sizes = {n: v.size for n, v in self.weights.arrays.items() if n.startswith("core.")}
        low = sum(size for name, size in sizes.items() if name.startswith("core.l_module.stack"))
        return sum(sizes.values()), low


@contextmanager
def drawn_release(config: HRMConfig) -> Iterator[Path]:
    """Release an untrained model into a folder that is removed afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HierarchicalReasoningModel(config)
    features = FeatureRecord(names=FEATURE_NAMES, schema_sha256=FEATURE_SCHEMA_SHA256)
    card = ModelCard(config=config, features=features, created="drawn to be measured")
    with tempfile.TemporaryDirectory(prefix="hrm-drawn-") as name:
        save_release(Path(name), model, card)
        yield Path(name)


def bandwidth(size: float, rounds: int = 30) -> float:
    """Return how many bytes a second one thread reads, over and over, from that many bytes."""
    held = torch.ones(max(1, int(size / 4)))
    times = _times(held.sum, rounds)
    return 4.0 * len(held) / percentile(times, 0.5)


def bound_ms(shape: Shape, bits: float) -> float:
    """Return the time in which memory delivers the weights of one segment.

    Every cycle reads the whole core once, and L again from wherever so few bytes lie.
    """
    rounds = shape.config.convergence
    whole, low = (count * bits / 8 for count in shape.looped)
    again = (rounds.t_timesteps - 1) * low
    cycle_s = whole / bandwidth(whole) + (again / bandwidth(low) if again else 0.0)
    return 1e3 * rounds.n_cycles * cycle_s


def speed(shape: Shape, rounds: int, batches: Sequence[int] = BATCHES) -> dict[str, Any]:
    """Time segments of one row, whole decisions and batches; the engines in turn."""
    taken = segment_times(shape, list(shape.engines), 1, rounds)
    middle = {name: percentile(times, 0.5) for name, times in taken.items()}
    bounds = {name: bound_ms(shape, BITS[name]) for name in taken if name != "eager"}
    best_library = min(LIBRARY, key=middle.__getitem__)
    thinkers = [*LIBRARY, shape.choice.name]
    return {
        "looped_parameters": shape.looped[0],
        "chosen": shape.choice.name,
        "why": shape.choice.reason,
        "refused": shape.choice.refused,
        "simd": shape.choice.simd,
        "best_library": best_library,
        "bound_ms": _rounded(bounds),
        "segment_ms": {name: _spread(times) for name, times in taken.items()},
        "ratio_to_bound": _rounded({name: middle[name] / bounds[name] for name in bounds}),
        "speedup_over_eager": _rounded({name: middle["eager"] / middle[name] for name in bounds}),
        "encode_ms": {
            name: _spread(times) for name, times in encode_times(shape, rounds // 4).items()
        },
        "engine_segments_in_50ms_p99": depths(shape, thinkers, rounds),
        "batches": {str(rows): batch_speed(shape, rows, rounds) for rows in batches},
    }


def segment_times(
    shape: Shape, names: Sequence[str], rows: int, rounds: int
) -> dict[str, list[float]]:
    """Return the milliseconds of segments of a batch, by engine.

    A thought has up to m_max of them: the first of each turn, in caches that another engine has
    filled, is not counted.
    """
    encoded = {name: shape.engines[name].encode(_batch(shape.config, rows)) for name in names}
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + WARM_UP_ROUNDS):
        for name in names:
            engine = shape.engines[name]
            state = segment(engine, engine.start(encoded[name]), encoded[name], shape.config)
            began = time.perf_counter()
            segment(engine, state, encoded[name], shape.config)
            if turn >= WARM_UP_ROUNDS:
                taken[name].append(1e3 * (time.perf_counter() - began))
    return taken


def batch_speed(shape: Shape, rows: int, rounds: int) -> dict[str, Any]:
    """Time segments of a batch with the library, eagerly, and as chosen."""
    names = ["eager", "onnx", shape.choice.name]
    taken = segment_times(shape, list(dict.fromkeys(names)), rows, max(5, rounds // rows))
    return {name: _spread(times) for name, times in taken.items()}


def encode_times(shape: Shape, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of reading one market, by engine."""
    batch = _batch(shape.config, 1)
    taken: dict[str, list[float]] = {name: [] for name in shape.engines}
    for turn in range(rounds + WARM_UP_ROUNDS):
        for name, engine in shape.engines.items():
            began = time.perf_counter()
            engine.encode(batch)
            if turn >= WARM_UP_ROUNDS:
                taken[name].append(1e3 * (time.perf_counter() - began))
    return taken


def depths(shape: Shape, names: Sequence[str], rounds: int) -> dict[str, int]:
    """Return the whole segments that 99 of 100 decisions reach at least, with the engine alone."""
    batch = _batch(shape.config, 1)
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, reached in found.items():
            reached.append(_segments_within(shape.engines[name], batch, shape.config))
    return {name: int(percentile(depth, 0.01)) for name, depth in found.items()}


def segment(engine: Engine[Any, Any], state: Any, encoded: Any, config: HRMConfig) -> Any:
    """Run the cycles of one segment."""
    for _ in range(config.convergence.n_cycles):
        state = engine.cycle(state, encoded)
    return state


def _segments_within(engine: Engine[Any, Any], batch: Batch, config: HRMConfig) -> int:
    """Return how many whole segments, up to m_max, are read before the budget has passed."""
    began, done = time.perf_counter(), 0
    encoded = engine.encode(batch)
    state = engine.start(encoded)
    while done < config.adaptive_computation.m_max:
        for _ in range(config.convergence.n_cycles):
            before = state
            state = engine.cycle(before, encoded)
            engine.residual(before, state)
        engine.read(state)
        if 1e3 * (time.perf_counter() - began) > BUDGET_MS:
            return done
        done += 1
    return done


def _batch(config: HRMConfig, rows: int) -> Batch:
    return drawn_batch(config, rows)


def _times(action: Callable[[], Any], rounds: int) -> list[float]:
    taken = []
    for _ in range(rounds + WARM_UP_ROUNDS):
        began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - began)
    return taken[WARM_UP_ROUNDS:]


def _spread(times: Sequence[float]) -> dict[str, float]:
    values = np.asarray(times, np.float64).tolist()
    return {"p50": round(percentile(values, 0.5), 4), "p99": round(percentile(values, 0.99), 4)}


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}
