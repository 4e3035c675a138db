"""The ONNX Runtime engine: the model as three graphs on one thread, without torch.

Denormals are not flushed: the runtime's switch for it stays on in the thread that made the first
session, for all of Python's arithmetic too, and no other. States of unit size do not need it.
"""

import os
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from hrm.config import HRMConfig
from hrm.engine import Batch, Floats, Reading
from hrm.onnx_graphs import Bits, cycle_graph, encoder_graph, heads_graph
from hrm.parity import residual, start_state
from hrm.weights import Arrays

State = tuple[Floats, Floats]


class OnnxEncoder:
    """Read batches with ONNX Runtime in float32; engines may share one, it keeps nothing."""

    def __init__(self, arrays: Arrays, config: HRMConfig) -> None:
        self._config = config
        self._session = _session(encoder_graph(arrays, config))

    def encode(self, batch: Batch) -> Floats:
        """Read a batch once, into [B, S, Dh]; raise ValueError naming an input that is wrong."""
        batch.check(self._config)
        encoded: Floats = self._session.run(["encoded"], vars(batch))[0]
        return encoded


class OnnxEngine:
    """Run a model with ONNX Runtime; states are z_h [B, S, Dh] and z_l [B, S, Dl], float32.

    bits: of the looped weights; encoder and heads are float32.
    """

    def __init__(
        self, arrays: Arrays, config: HRMConfig, encoder: OnnxEncoder, *, bits: Bits = 32
    ) -> None:
        self._config = config
        self._starts = {name: arrays[name].copy() for name in ("core.z_h_start", "core.z_l_start")}
        self._encoder = encoder
        self._cycle = _session(cycle_graph(arrays, config, bits))
        self._heads = _session(heads_graph(arrays, config))

    def encode(self, batch: Batch) -> Floats:
        """Read a batch once, into [B, S, Dh]; raise ValueError naming an input that is wrong."""
        return self._encoder.encode(batch)

    def start(self, encoded: Floats) -> State:
        """Return the fixed state that thinking starts from."""
        return start_state(self._starts, self._config, len(encoded))

    def cycle(self, state: State, encoded: Floats) -> State:
        """Return the state one cycle later; the one given stays readable."""
        h, low = self._cycle.run(None, {"h": state[0], "low": state[1], "encoded": encoded})
        return h, low

    def residual(self, before: State, after: State) -> tuple[Floats, Floats]:
        """Return the relative residuals of H and of L, row by row: [B] each."""
        return residual(before[0], after[0]), residual(before[1], after[1])

    def rows(self, state: State, encoded: Floats, keep: Sequence[int]) -> tuple[State, Floats]:
        """Return what belongs to some rows of a batch, in the order of `keep`."""
        chosen = list(keep)
        return (state[0][chosen], state[1][chosen]), encoded[chosen]

    def read(self, state: State) -> Reading:
        """Read the heads."""
        values = self._heads.run(None, {"h": state[0], "low": state[1]})
        names = [output.name for output in self._heads.get_outputs()]
        return Reading(**dict(zip(names, map(np.asarray, values), strict=True)))


def _session(graph: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # Two threads on two cores lose to one as soon as anything else runs.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    # From a file in memory: a session made from bytes keeps them, 94 MiB at production size.
    with os.fdopen(os.memfd_create("hrm-graph"), "wb") as file:
        file.write(graph)
        file.flush()
        path = f"/proc/self/fd/{file.fileno()}"
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
