"""How far engines with coarser weights decide as float32 does, and what depth is worth.

Read by `benchmarks.inference`; on bars spread over the demo candles, flat, long and short in turn.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.engine_shapes import Shape, segment
from benchmarks.gate_inputs import account_at, demo_table
from hrm.engine import Batch, Engine, Floats
from hrm.features import WARMUP_BARS
from hrm.gate import ROWS_AT_ONCE, allowed_in, chances_of, compared, decided
from hrm.native_engine import NativeEngine
from hrm.native_library import NativeUnavailable, native_library
from hrm.onnx_engine import OnnxEncoder, OnnxEngine
from hrm.weights import Arrays, Weights

COARSE = ("native16", "native8", "onnx8")
BLOCK = 32  # weights that share a scale in four bits


def real_batch(weights: Weights, rows: int) -> Batch:
    """Take bars spread over the embedded hourly candles, as this model reads them."""
    table, count = demo_table()
    first = table.first_row[0]
    chosen = np.linspace(first + WARMUP_BARS, first + count - 2, rows).astype(np.int64)
    accounts = [account_at(table, int(row), number) for number, row in enumerate(chosen)]
    seen = table.observe(chosen, accounts)
    candles, known = table.candles[0], weights.entry.vocabularies
    return Batch(
        bars=seen.bars,
        bars_mask=seen.bars_mask,
        instrument=np.full(rows, known.instrument_row(candles.instrument), np.int64),
        timeframe=np.full(rows, known.timeframe_row(candles.timeframe), np.int64),
        account=seen.account,
        context=seen.context,
    )


def agreement(shape: Shape, batch: Batch) -> dict[str, Any]:
    """Return the gate's figures of every engine with coarser weights, and of H in four bits.

    No engine runs four bits: the rounded weights are run in float32, to see what they would decide.
    """
    config = shape.config
    fine = decided(shape.engines["onnx"], batch, config)
    found = {
        name: compared(fine, decided(shape.engines[name], batch, config)).as_json()
        for name in COARSE
        if name in shape.engines
    }
    rounded = _float_engine(with_h_in_four_bits(shape.weights.arrays), shape)
    return found | {"h_in_4_bits": compared(fine, decided(rounded, batch, config)).as_json()}


def frontier(shape: Shape, batch: Batch) -> list[dict[str, float]]:
    """Return the agreement with the answer at full depth, after every segment.

    Of the engine that is chosen, on the actions it would take there.
    """
    engine, config = shape.engines[shape.choice.name], shape.config
    parts = [
        _actions(engine, batch.part(slice(start, start + ROWS_AT_ONCE)), shape)
        for start in range(0, len(batch), ROWS_AT_ONCE)
    ]
    actions = np.concatenate(parts, 1)  # [M, B]
    share = (actions == actions[-1]).mean(1)
    return [
        {"segments": number, "agreement": round(float(value), 4)}
        for number, value in zip(
            range(1, config.adaptive_computation.m_max + 1), share, strict=True
        )
    ]


def with_h_in_four_bits(arrays: Arrays) -> dict[str, Floats]:
    """Round the matrices of H to four bits, one scale for 32 neighbouring inputs."""
    return {
        name: rounded_to_four_bits(value)
        if name.startswith("core.h_module") and value.ndim == 2
        else value
        for name, value in arrays.items()
    }


def rounded_to_four_bits(matrix: Floats) -> Floats:
    """Round [N, K] in blocks of 32 inputs, the last one maybe shorter, to -7..7 times a scale."""
    parts: Sequence[Floats] = np.split(matrix, range(BLOCK, matrix.shape[1], BLOCK), axis=1)
    done = []
    for part in parts:
        scale = np.abs(part).max(1, keepdims=True) / np.float32(7)
        scale = np.where(scale > 0, scale, np.float32(1))
        done.append((np.rint(part / scale) * scale).astype(np.float32))
    return np.concatenate(done, 1)


def _float_engine(arrays: Arrays, shape: Shape) -> Engine[Any, Any]:
    try:
        return NativeEngine(arrays, shape.config, native_library())
    except NativeUnavailable:
        return OnnxEngine(arrays, shape.config, OnnxEncoder(arrays, shape.config))


def _actions(engine: Engine[Any, Any], batch: Batch, shape: Shape) -> Any:
    allowed = allowed_in(batch)
    encoded = engine.encode(batch)
    state = engine.start(encoded)
    actions = []
    for _ in range(shape.config.adaptive_computation.m_max):
        state = segment(engine, state, encoded, shape.config)
        actions.append(chances_of(engine.read(state).action_logits, allowed).argmax(-1))
    return np.stack(actions)
