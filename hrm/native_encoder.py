"""The market encoder on the native kernel: what hrm.model.MarketEncoder says, without torch."""

import ctypes
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hrm.config import HRMConfig
from hrm.engine import Batch, Floats
from hrm.native_library import Matrix, NativeLibrary, Reading
from hrm.native_modules import NativeModules, address_of
from hrm.native_packing import Format
from hrm.weights import SPECIAL_TOKENS, Arrays


class NativeEncoder:
    """Read batches with the compiled kernel; a row has the same bits alone and in a batch.

    Its blocks have weights of the given format, what makes the tokens is float32.
    """

    def __init__(
        self, arrays: Arrays, config: HRMConfig, library: NativeLibrary, kind: Format
    ) -> None:
        self._config = config
        self._modules = NativeModules(library, kind)
        self._tables = {
            name: arrays[f"encoder.{name}.weight"].copy()
            for name in ("instrument", "timeframe", "readout", "kind")
        }
        names = ("patch", "identity", "account", "context")
        self._matrices: dict[str, Matrix] = {
            name: self._modules.float_matrix(arrays[f"encoder.{name}.weight"]) for name in names
        }
        if "encoder.to_loop.weight" in arrays:
            to_loop = arrays["encoder.to_loop.weight"]
            self._matrices["to_loop"] = self._modules.float_matrix(to_loop)
        sizes = config.architecture.encoder
        patches = config.inputs.window_bars // sizes.patch_bars
        self._readouts = config.architecture.tokens_in_loop
        self._tokens = self._readouts + SPECIAL_TOKENS + patches
        self._stack = self._modules.module(arrays, "encoder", sizes, self._tokens)
        self._scratch: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._most_rows = 0
        self._one_at_a_time = threading.Lock()

    def encode(self, batch: Batch) -> Floats:
        """Read a batch once, into [B, S, Dh]; raise ValueError naming an input that is wrong."""
        batch.check(self._config)
        tokens, present = self._tokens_of(batch)
        read = np.empty_like(tokens)
        rows = len(batch)
        with self._one_at_a_time:
            if rows > self._most_rows:
                self._scratch = self._modules.scratch_for(self._stack, self._stack, rows)
                self._most_rows = rows
            reading = Reading(*map(address_of, (tokens, present, read, self._scratch)), rows)
            self._modules.functions.hrm_read(
                self._modules.level, ctypes.addressof(self._stack), ctypes.addressof(reading)
            )
        first = np.ascontiguousarray(read[:, : self._readouts])
        if "to_loop" not in self._matrices:
            return first
        width = self._config.architecture.h_module.hidden_size
        looped = self._linear("to_loop", first.reshape(rows * self._readouts, -1), width)
        return looped.reshape(rows, self._readouts, width)

    def time_layers(self) -> None:
        """Note from now on how long each layer takes."""
        self._modules.time("encoder", self._stack)

    def layer_times(self) -> dict[str, int]:
        """Return nanoseconds by layer since this was asked last."""
        return self._modules.spent_ns()

    def _tokens_of(self, batch: Batch) -> tuple[Floats, NDArray[np.bool_]]:
        """Return what the blocks read, [B, N, D], and which of it may be read, [B, N]."""
        sizes, rows = self._config.architecture.encoder, len(batch)
        width = sizes.hidden_size
        there = batch.bars_mask[..., None]
        filled = np.concatenate((np.where(there, batch.bars, np.float32(0)), there), -1)
        patch_width = sizes.patch_bars * filled.shape[-1]
        patches = self._linear("patch", filled.reshape(-1, patch_width), width)
        names = np.concatenate(
            (
                self._tables["instrument"][batch.instrument],
                self._tables["timeframe"][batch.timeframe],
            ),
            -1,
        )
        special = np.stack(
            (
                self._linear("identity", names, width),
                self._linear("account", batch.account, width),
                self._linear("context", batch.context, width),
            ),
            1,
        )
        readout = np.repeat(self._tables["readout"][None], rows, 0)
        special += self._tables["kind"]
        tokens: Any = np.concatenate((readout, special, patches.reshape(rows, -1, width)), 1)
        any_bar = batch.bars_mask.reshape(rows, -1, sizes.patch_bars).any(-1)
        present = np.ones((rows, self._tokens), np.bool_)
        present[:, self._readouts + SPECIAL_TOKENS :] = any_bar
        return np.ascontiguousarray(tokens, np.float32), present

    def _linear(self, name: str, x: Floats, width: int) -> Floats:
        return self._modules.product(self._matrices[name], x)[:, :width]
