"""Weights as arrays: the verified load of a release for engines that run without torch.

hrm.integrity loads the same files into the model, and writes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from hrm.config import ACCOUNT_WIDTH, Action, HRMConfig, ModuleConfig
from hrm.manifest import (
    MANIFEST_NAME,
    IntegrityError,
    Manifest,
    ModelEntry,
    read_manifest,
    verified_bytes,
)

SPECIAL_TOKENS = 3  # identity, account, context: read by the market encoder beside the patches
Arrays = Mapping[str, NDArray[np.float32]]
Shape = tuple[int, ...]


class Shaped(Protocol):
    """An array or a tensor, of which only the shape is asked."""

    @property
    def shape(self) -> Shape:
        """Return the length of every axis."""
        ...


@dataclass(frozen=True)
class Weights:
    """Hold verified weights in float32, by their name in the model, and what the manifest says."""

    arrays: Arrays
    manifest: Manifest
    name: str

    @property
    def entry(self) -> ModelEntry:
        """Return the manifest's entry of this model."""
        return self.manifest.models[self.name]


def load_weights(directory: Path, name: str | None = None) -> Weights:
    """Verify and load the arrays of a model; name: listed in the manifest, None: the released."""
    manifest = read_manifest(directory)
    name = manifest.released if name is None else name
    data = verified_bytes(directory, name, manifest)
    path = directory / name
    try:
        arrays = load(data)
    except SafetensorError as error:
        raise IntegrityError(
            f"{path} has the right digest but is no safetensors file ({error}): release it again "
            "with hrm-train"
        ) from error
    check_fit(path, arrays, manifest.models[name].config)
    floats = {key: np.ascontiguousarray(value, np.float32) for key, value in arrays.items()}
    return Weights(floats, manifest, name)


def check_fit(path: Path, stored: Mapping[str, Shaped], config: HRMConfig) -> None:
    """Raise IntegrityError unless a file holds exactly the arrays that the config asks for."""
    found = {name: tuple(array.shape) for name, array in stored.items()}
    expected = shapes(config)
    for name in sorted(found.keys() | expected.keys()):
        has, wants = (
            "nothing" if name not in side else f"shape {list(side[name])}"
            for side in (found, expected)
        )
        if has != wants:
            raise IntegrityError(
                f"{path} does not fit the config beside it in {MANIFEST_NAME}: {name} has {has}, "
                f"the config asks for {wants}; restore both from the same release"
            )


def shapes(config: HRMConfig) -> dict[str, Shape]:
    """Return the shape of everything that is saved of a model of this config, by name."""
    architecture, inputs = config.architecture, config.inputs
    encoder, h, low = architecture.encoder, architecture.h_module, architecture.l_module
    width, tokens = encoder.hidden_size, architecture.tokens_in_loop
    found: dict[str, Shape] = {
        "encoder.patch.weight": (width, encoder.patch_bars * (inputs.n_features + 1)),
        "encoder.instrument.weight": (inputs.instruments, inputs.instrument_width),
        "encoder.timeframe.weight": (inputs.timeframes, inputs.timeframe_width),
        "encoder.identity.weight": (width, inputs.instrument_width + inputs.timeframe_width),
        "encoder.account.weight": (width, ACCOUNT_WIDTH),
        "encoder.context.weight": (width, inputs.n_context),
        "encoder.readout.weight": (tokens, width),
        "encoder.kind.weight": (SPECIAL_TOKENS, width),
        "core.z_h_start": (h.hidden_size,),
        "core.z_l_start": (low.hidden_size,),
        "core.h_module.from_low.weight": (h.hidden_size, low.hidden_size),
        "core.l_module.from_high.weight": (low.hidden_size, h.hidden_size),
        "action_head.weight": (len(Action), h.hidden_size),
        "size_head.weight": (1, h.hidden_size),
        "value_head.weight": (1, h.hidden_size),
        "q_head.weight": (2, h.hidden_size),
        "q_head.bias": (2,),
        "l_head.weight": (len(Action), low.hidden_size),
    }
    if width != h.hidden_size:
        found["encoder.to_loop.weight"] = (h.hidden_size, width)
    found |= _stack("encoder.stack", encoder, has_attention=True)
    found |= _stack("core.h_module.stack", h, has_attention=tokens > 1)
    return found | _stack("core.l_module.stack", low, has_attention=tokens > 1)


def _stack(prefix: str, module: ModuleConfig, *, has_attention: bool) -> dict[str, Shape]:
    width, inner = module.hidden_size, module.feed_forward
    found: dict[str, Shape] = {}
    for index in range(module.num_layers):
        block = f"{prefix}.blocks.{index}"
        if has_attention:
            found[f"{block}.attention.query_key_value.weight"] = (3 * width, width)
            found[f"{block}.attention.out.weight"] = (width, width)
        found[f"{block}.feed_forward.gate_up.weight"] = (2 * inner, width)
        found[f"{block}.feed_forward.down.weight"] = (width, inner)
    return found
