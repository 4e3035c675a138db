"""Engines of one model: made, measured, compared with the reference, and sent through the gate.

Each at most once, and only what is asked for. What is measured is kept in the state folder.
"""

import math
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from hrm.config import HRMConfig, ServingEngine
from hrm.engine import Engine
from hrm.engine_facts import EngineFacts, facts_path, read_facts, write_facts
from hrm.gate import Decided, GateFigures, compared, decided
from hrm.gate_inputs import NoGateInputs, gate_batch
from hrm.native_engine import NativeBits, NativeEngine
from hrm.native_library import NativeLibrary, NativeUnavailable, native_library
from hrm.parity import TOLERANCE, drawn_batch, largest_difference
from hrm.weights import Weights

FINE: tuple[ServingEngine, ...] = ("native", "onnx")  # float32: they differ by rounding only
COARSE: tuple[ServingEngine, ...] = ("native16", "native8", "onnx8")  # finer, then faster first
ONNX_BITS: dict[ServingEngine, Literal[8, 32]] = {"onnx": 32, "onnx8": 8}
NATIVE_BITS: dict[ServingEngine, NativeBits] = {"native": 32, "native16": 16, "native8": 8}
LEAST_ROUNDS, MOST_ROUNDS, MEASURE_SECONDS = 5, 40, 0.3
SEGMENTS_PER_ROUND = 4
DRIFT = 1.01  # how far a coarser engine's difference may lie from the one it was admitted with


class Refused(Exception):
    """An engine may not serve; the text says why."""


class Candidates:
    """Make, measure and check engines of one model, each at most once."""

    def __init__(self, weights: Weights, state_dir: Path | None) -> None:
        self._weights = weights
        self.config = weights.entry.config
        self._path: Path | None = None
        if state_dir is not None and state_dir.is_dir():
            self._path = facts_path(state_dir, weights.entry.sha256)
        self.facts = EngineFacts() if self._path is None else read_facts(self._path)
        self._engines: dict[ServingEngine, Engine[Any, Any]] = {}
        self.unavailable: dict[ServingEngine, str] = {}

    def admitted(self, name: ServingEngine) -> tuple[Engine[Any, Any], float]:
        """Return an engine and its difference from the reference; raise Refused."""
        engine = self._engine(name)
        difference = largest_difference(engine, self._weights.arrays, self.config)
        if difference <= TOLERANCE:  # false for a difference that is no number
            return engine, difference
        if name in COARSE:
            self._check_gate(name, engine, difference)
        else:
            raise Refused(
                f"it differs from the reference by {difference:.3g} on this processor, "
                f"{TOLERANCE:g} is allowed"
            )
        return engine, difference

    def _check_gate(self, name: ServingEngine, engine: Engine[Any, Any], difference: float) -> None:
        figures = self.facts.gates.get(name)
        if figures is None:
            figures = self._gate(engine)
            self.facts.gates[name] = figures
            self.facts.differences[name] = difference
            self._keep()
        if figures.refusal:
            raise Refused(f"the gate: {figures.refusal}")
        if not difference <= DRIFT * self.facts.differences.get(name, 0.0):
            raise Refused(
                f"it differs from the reference by {difference:.3g}, by "
                f"{self.facts.differences.get(name, 0.0):.3g} when the gate admitted it"
            )

    def _gate(self, engine: Engine[Any, Any]) -> GateFigures:
        try:
            batch = gate_batch(self._weights.entry)
        except NoGateInputs as error:
            raise Refused(f"the gate has no inputs: {error}") from error
        return compared(self._finely_decided, decided(engine, batch, self.config))

    @cached_property
    def _finely_decided(self) -> Decided:
        """Return what an engine in float32 decides on the gate's inputs."""
        for name in FINE:
            try:
                engine, _ = self.admitted(name)
            except Refused:
                continue
            return decided(engine, gate_batch(self._weights.entry), self.config)
        raise Refused("the gate has nothing to compare with: no float32 engine is admitted")

    def measured(self, names: tuple[ServingEngine, ...]) -> dict[ServingEngine, float]:
        """Return the milliseconds of a segment of every one that is available."""
        missing = [name for name in names if name not in self.facts.segment_ms]
        engines: dict[ServingEngine, Engine[Any, Any]] = {}
        for name in missing:
            try:
                engines[name] = self._engine(name)
            except Refused as error:
                self.unavailable[name] = str(error)
        if engines:
            taken_ms = measured_milliseconds(engines, self.config)
            for kept, times in zip(
                (self.facts.encode_ms, self.facts.segment_ms), taken_ms, strict=True
            ):
                kept |= {str(name): value for name, value in times.items()}
            self._keep()
        known = self.facts.segment_ms
        return {name: known[name] for name in names if name in known}

    @cached_property
    def library(self) -> NativeLibrary:
        return native_library()

    def _engine(self, name: ServingEngine) -> Engine[Any, Any]:
        if name not in self._engines:
            arrays, config = self._weights.arrays, self.config
            if name in ONNX_BITS:
                from hrm.onnx_engine import (  # noqa: PLC0415 - loads the runtime, 60 MiB of it
                    OnnxEncoder,
                    OnnxEngine,
                )

                encoder = OnnxEncoder(arrays, config)
                self._engines[name] = OnnxEngine(arrays, config, encoder, bits=ONNX_BITS[name])
            else:
                try:
                    bits = NATIVE_BITS[name]
                    self._engines[name] = NativeEngine(arrays, config, self.library, bits=bits)
                except NativeUnavailable as error:
                    raise Refused(str(error)) from error
        return self._engines[name]

    def _keep(self) -> None:
        if self._path is not None:
            write_facts(self._path, self.facts)


def measured_milliseconds(
    engines: dict[ServingEngine, Engine[Any, Any]],
    config: HRMConfig,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[ServingEngine, float], dict[ServingEngine, float]]:
    """Return how fast each engine has read one market, and thought one segment.

    They run in turn, for a few hundred milliseconds together. The least of the times counts: what
    is above it is what else the machine did, and the choice is kept for long.
    """
    batch = drawn_batch(config, 1)
    encoding = dict.fromkeys(engines, math.inf)
    thinking = dict.fromkeys(engines, math.inf)
    began = clock()
    for turn in range(MOST_ROUNDS):
        for name, engine in engines.items():
            start = clock()
            encoded = engine.encode(batch)
            encoding[name] = min(encoding[name], clock() - start)
            state = engine.start(encoded)
            for _ in range(SEGMENTS_PER_ROUND):
                start = clock()
                for _ in range(config.convergence.n_cycles):
                    state = engine.cycle(state, encoded)
                thinking[name] = min(thinking[name], clock() - start)
        if turn >= LEAST_ROUNDS and clock() - began > MEASURE_SECONDS:
            break
    return _milliseconds(encoding), _milliseconds(thinking)


def _milliseconds(seconds: dict[ServingEngine, float]) -> dict[ServingEngine, float]:
    return {name: round(1e3 * value, 4) for name, value in seconds.items()}
