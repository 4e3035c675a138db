"""The model as three ONNX graphs, built node by node from arrays: encoder, one cycle, heads.

The names in the code are those of hrm.model. Built by hand, because PyTorch's exporter does not
know the norm, and because a graph of one cycle leaves the decision to stop with the caller.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from hrm.config import ACCOUNT_WIDTH, HRMConfig, ModuleConfig
from hrm.rotary import RMS_EPSILON, rotary_tables
from hrm.weights import SPECIAL_TOKENS, Arrays

OPSET, IR_VERSION = 18, 10
HIDDEN = -1e30  # what is added to the score of a token that may not be read: its share becomes 0
BATCH = "batch"
RUNTIME_DOMAIN = "com.microsoft"  # of the operator for matrices of few bits
BLOCK = 32  # neighbouring weights that share a scale
INT8_ACTIVATIONS = 4  # accuracy_level: multiply in 8 bits as well, which is the fast way

Bits = Literal[8, 32]


class GraphBuilder:
    """Collect nodes and constants; every value is known by its name."""

    def __init__(self, arrays: Arrays, bits: Bits = 32) -> None:
        self._arrays = arrays
        self._bits = bits
        self._nodes: list[NodeProto] = []
        self._constants: dict[str, TensorProto] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output and return its name."""
        return self.split(kind, 1, *inputs, **attributes)[0]

    def split(self, kind: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node with several outputs and return their names."""
        names = [f"v{len(self._nodes)}_{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def constant(self, value: NDArray[np.generic] | float | Sequence[int], name: str = "") -> str:
        """Add a constant, once for a name given; whole numbers are int64, others float32."""
        name = name or f"c{len(self._constants)}"
        if name not in self._constants:
            array = np.asarray(value)
            array = array.astype(np.int64 if array.dtype.kind in "iu" else np.float32)
            self._constants[name] = numpy_helper.from_array(np.array(array, order="C"), name)
        return name

    def weight(self, name: str) -> str:
        """Add a stored array as it is."""
        return self.constant(self._arrays[name], name)

    def has(self, name: str) -> bool:
        """Tell whether the model has an array of this name."""
        return name in self._arrays

    def linear(self, x: str, name: str) -> str:
        """Multiply by the matrix of a layer without bias; in 8 bits where its blocks fit."""
        matrix = self._arrays[f"{name}.weight"]
        if self._bits == 8 and matrix.shape[1] % BLOCK == 0:
            return self._coarse_linear(x, name, matrix)
        return self.op("MatMul", x, self.constant(self._arrays[f"{name}.weight"].T, f"{name}.T"))

    def norm(self, x: str, width: int) -> str:
        """Scale the last axis to unit root mean square; ONNX Runtime's own operator."""
        ones = self.constant(np.ones(width, np.float32), f"ones{width}")
        return self.op("SimplifiedLayerNormalization", x, ones, axis=-1, epsilon=RMS_EPSILON)

    def stack(
        self, x: str, name: str, module: ModuleConfig, tokens: int, hidden: str | None = None
    ) -> str:
        """Apply the blocks of a module to [B, tokens, D]; hidden: [B, 1, 1, tokens], added."""
        for index in range(module.num_layers):
            block = f"{name}.blocks.{index}"
            if self.has(f"{block}.attention.out.weight"):
                mixed = self._attention(x, f"{block}.attention", module, tokens, hidden)
                x = self.norm(self.op("Add", x, mixed), module.hidden_size)
            joined = self.linear(x, f"{block}.feed_forward.gate_up")
            gate, up = self.split("Split", 2, joined, axis=-1, num_outputs=2)
            silu = self.op("Mul", gate, self.op("Sigmoid", gate))
            down = self.linear(self.op("Mul", silu, up), f"{block}.feed_forward.down")
            x = self.norm(self.op("Add", x, down), module.hidden_size)
        return x

    def finish(
        self, name: str, inputs: Sequence[ValueInfoProto], outputs: dict[str, tuple[str, list[int]]]
    ) -> bytes:
        """Return the graph as a file; outputs: by name, the value and its shape after the batch."""
        nodes = [
            *self._nodes,
            *(helper.make_node("Identity", [value], [out]) for out, (value, _) in outputs.items()),
        ]
        infos = [floats(out, *shape) for out, (_, shape) in outputs.items()]
        graph = helper.make_graph(nodes, name, inputs, infos, list(self._constants.values()))
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(RUNTIME_DOMAIN, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        return bytes(model.SerializeToString())

    def _coarse_linear(self, x: str, name: str, matrix: NDArray[np.float32]) -> str:
        if f"{name}.q" not in self._constants:
            codes, scales = quantised(matrix)
            codes_name = f"{name}.q"
            self._constants[codes_name] = numpy_helper.from_array(codes, codes_name)
            self.constant(scales.reshape(-1), f"{name}.scale")
        outputs, inputs = matrix.shape
        return self.op(
            "MatMulNBits",
            x,
            f"{name}.q",
            f"{name}.scale",
            domain=RUNTIME_DOMAIN,
            K=inputs,
            N=outputs,
            bits=8,
            block_size=BLOCK,
            accuracy_level=INT8_ACTIVATIONS,
        )

    def _attention(
        self, x: str, name: str, module: ModuleConfig, tokens: int, hidden: str | None
    ) -> str:
        width, heads = module.hidden_size, module.num_heads
        head_width = width // heads
        parts = self.split(
            "Split", 3, self.linear(x, f"{name}.query_key_value"), axis=-1, num_outputs=3
        )
        shape = self.constant([0, tokens, heads, head_width])
        query, key, value = (
            self.op("Transpose", self.op("Reshape", part, shape), perm=[0, 2, 1, 3])
            for part in parts
        )
        turned = self.op("Transpose", self._turn(key, tokens, head_width), perm=[0, 1, 3, 2])
        scores = self.op("MatMul", self._turn(query, tokens, head_width), turned)
        scores = self.op("Mul", scores, self.constant(1.0 / math.sqrt(head_width)))
        if hidden is not None:
            scores = self.op("Add", scores, hidden)
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), value)
        mixed = self.op("Transpose", mixed, perm=[0, 2, 1, 3])
        return self.linear(
            self.op("Reshape", mixed, self.constant([0, tokens, width])), f"{name}.out"
        )

    def _turn(self, x: str, tokens: int, head_width: int) -> str:
        cos, sin = (
            self.constant(table, f"{kind}{tokens}x{head_width}")
            for kind, table in zip(("cos", "sin"), rotary_tables(tokens, head_width), strict=True)
        )
        first, second = self.split("Split", 2, x, axis=-1, num_outputs=2)
        across = self.op("Concat", self.op("Neg", second), first, axis=-1)
        return self.op("Add", self.op("Mul", x, cos), self.op("Mul", across, sin))


def quantised(matrix: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return codes [N, K / BLOCK, BLOCK] and scales [N, K / BLOCK]: weight = (code - 128) * scale.

    Symmetric, one scale for BLOCK neighbours, each rounded to the nearest of 255 values.
    """
    blocks = matrix.reshape(len(matrix), -1, BLOCK)
    scales = np.abs(blocks).max(-1) / np.float32(127.0)
    scales = np.where(scales == 0.0, np.float32(1.0), scales)
    codes = np.rint(blocks / scales[..., None]) + 128.0
    return codes.astype(np.uint8), scales


def floats(name: str, *shape: int) -> ValueInfoProto:
    """Describe a float32 value of [batch, *shape]."""
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, *shape])


def encoder_graph(arrays: Arrays, config: HRMConfig) -> bytes:
    """Build what reads a batch once: the fields of hrm.engine.Batch -> encoded [B, S, Dh]."""
    build = GraphBuilder(arrays)
    architecture, sizes = config.architecture, config.inputs
    encoder, readouts = architecture.encoder, architecture.tokens_in_loop
    patches = sizes.window_bars // encoder.patch_bars
    mask = build.op("Cast", "bars_mask", to=TensorProto.FLOAT)
    there = build.op("Unsqueeze", mask, build.constant([-1]))
    shown = build.op(
        "Where",
        build.op("Unsqueeze", "bars_mask", build.constant([-1])),
        "bars",
        build.constant(0.0),
    )
    filled = build.op("Concat", shown, there, axis=-1)
    patch_width = encoder.patch_bars * (sizes.n_features + 1)
    patch = build.linear(
        build.op("Reshape", filled, build.constant([0, patches, patch_width])), "encoder.patch"
    )
    names = build.op(
        "Concat",
        build.op("Gather", build.weight("encoder.instrument.weight"), "instrument", axis=0),
        build.op("Gather", build.weight("encoder.timeframe.weight"), "timeframe", axis=0),
        axis=-1,
    )
    one = build.constant([1])
    parts = [
        build.op("Unsqueeze", build.linear(value, f"encoder.{name}"), one)
        for value, name in ((names, "identity"), ("account", "account"), ("context", "context"))
    ]
    special = build.op(
        "Add", build.op("Concat", *parts, axis=1), build.weight("encoder.kind.weight")
    )
    width = encoder.hidden_size
    rows = build.op(
        "Concat", build.op("Shape", "bars", end=1), build.constant([readouts, width]), axis=0
    )
    readout = build.op("Expand", build.weight("encoder.readout.weight"), rows)
    tokens = build.op("Concat", readout, special, patch, axis=1)
    count = readouts + SPECIAL_TOKENS + patches
    read = build.stack(
        tokens,
        "encoder.stack",
        encoder,
        count,
        _hidden(build, mask, patches, encoder.patch_bars, readouts + SPECIAL_TOKENS),
    )
    first = build.split("Split", 2, read, build.constant([readouts, count - readouts]), axis=1)[0]
    if build.has("encoder.to_loop.weight"):
        first = build.linear(first, "encoder.to_loop")
    inputs = [
        floats("bars", sizes.window_bars, sizes.n_features),
        helper.make_tensor_value_info("bars_mask", TensorProto.BOOL, [BATCH, sizes.window_bars]),
        helper.make_tensor_value_info("instrument", TensorProto.INT64, [BATCH]),
        helper.make_tensor_value_info("timeframe", TensorProto.INT64, [BATCH]),
        floats("account", ACCOUNT_WIDTH),
        floats("context", sizes.n_context),
    ]
    shape = [readouts, architecture.h_module.hidden_size]
    return build.finish("encoder", inputs, {"encoded": (first, shape)})


def cycle_graph(arrays: Arrays, config: HRMConfig, bits: Bits = 32) -> bytes:
    """Build one cycle: h [B, S, Dh], low [B, S, Dl], encoded [B, S, Dh] -> h_next, low_next."""
    build = GraphBuilder(arrays, bits)
    architecture, tokens = config.architecture, config.architecture.tokens_in_loop
    injection = build.linear(build.op("Add", "h", "encoded"), "core.l_module.from_high")
    low = "low"
    for _ in range(config.convergence.t_timesteps):
        mixed = build.op("Add", low, injection)
        low = build.stack(mixed, "core.l_module.stack", architecture.l_module, tokens)
    mixed = build.op("Add", "h", build.linear(low, "core.h_module.from_low"))
    high = build.stack(mixed, "core.h_module.stack", architecture.h_module, tokens)
    h_shape = [tokens, architecture.h_module.hidden_size]
    l_shape = [tokens, architecture.l_module.hidden_size]
    inputs = [floats("h", *h_shape), floats("low", *l_shape), floats("encoded", *h_shape)]
    return build.finish("cycle", inputs, {"h_next": (high, h_shape), "low_next": (low, l_shape)})


def heads_graph(arrays: Arrays, config: HRMConfig) -> bytes:
    """Build the heads: h, low -> action_logits, size, value, q, l_logits."""
    build = GraphBuilder(arrays)
    architecture, tokens = config.architecture, config.architecture.tokens_in_loop
    first = build.constant(np.array(0))
    h, low = (build.op("Gather", name, first, axis=1) for name in ("h", "low"))
    last = build.constant([-1])
    size = build.op("Sigmoid", build.op("Squeeze", build.linear(h, "size_head"), last))
    value = build.op("Squeeze", build.linear(h, "value_head"), last)
    q = build.op("Add", build.linear(h, "q_head"), build.weight("q_head.bias"))
    actions = len(arrays["action_head.weight"])
    inputs = [
        floats("h", tokens, architecture.h_module.hidden_size),
        floats("low", tokens, architecture.l_module.hidden_size),
    ]
    return build.finish(
        "heads",
        inputs,
        {
            "action_logits": (build.linear(h, "action_head"), [actions]),
            "size": (size, []),
            "value": (value, []),
            "q": (q, [2]),
            "l_logits": (build.linear(low, "l_head"), [actions]),
        },
    )


def _hidden(build: GraphBuilder, mask: str, patches: int, patch_bars: int, always: int) -> str:
    """Return [B, 1, 1, tokens]: 0 for a token that may be read, HIDDEN for a patch without bars."""
    by_patch = build.op("Reshape", mask, build.constant([0, patches, patch_bars]))
    present = build.op("ReduceMax", by_patch, build.constant([-1]), keepdims=0)
    absent = build.op("Sub", build.constant(1.0), present)
    scores = build.op("Mul", absent, build.constant(HIDDEN))
    padded = build.op("Pad", scores, build.constant([0, always, 0, 0]))
    return build.op("Unsqueeze", padded, build.constant([1, 2]))
