"""The eager engine: the model as written, the reference that any faster engine is held to."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import Module

from hrm.convergence import relative_residual
from hrm.engine import Batch, Floats, Reading
from hrm.layers import Attention, SwiGLU
from hrm.model import HierarchicalReasoningModel, ModelInputs, State

SMALLEST_NORMAL = 2.0**-1022  # half of it is a denormal, which a flushing processor turns into zero


class EagerEngine:
    """Run the model in float32 with PyTorch.

    Sets torch to `threads` compute threads for the whole process (two on two cores lose to one as
    soon as anything else runs), so make it in the process that serves, not in one that trains.
    """

    def __init__(self, model: HierarchicalReasoningModel, *, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self._model = model.eval()
        self._spent_ns: dict[str, int] = {}  # by layer, once layers are timed

    def encode(self, batch: Batch) -> Tensor:
        """Read a batch once, into [B, S, Dh]; raise ValueError naming an input that is wrong."""
        with _serving():
            batch.check(self._model.config)
            # Copies: a tensor made from an array would share its memory.
            inputs = ModelInputs(
                **{name: torch.tensor(value) for name, value in vars(batch).items()}
            )
            return self._model.encode(inputs)

    def start(self, encoded: Tensor) -> State:
        """Return the fixed state that thinking starts from."""
        with _serving():
            return self._model.initial_state(len(encoded), encoded.device)

    def cycle(self, state: State, encoded: Tensor) -> State:
        """Return the state one cycle later; the one given stays readable."""
        with _serving():
            return self._model.cycle(state, encoded)

    def residual(self, before: State, after: State) -> tuple[Floats, Floats]:
        """Return the relative residuals of H and of L, row by row: [B] each."""
        with _serving():
            h, low = (relative_residual(b, a) for b, a in zip(before, after, strict=True))
            return h.cpu().numpy(), low.cpu().numpy()

    def rows(self, state: State, encoded: Tensor, keep: Sequence[int]) -> tuple[State, Tensor]:
        """Return what belongs to some rows of a batch, in the order of `keep`."""
        chosen = list(keep)
        with _serving():
            return (state[0][chosen], state[1][chosen]), encoded[chosen]

    def read(self, state: State) -> Reading:
        """Read the heads as numpy."""
        with _serving():
            heads = self._model.heads(state)
            return Reading(**{name: value.cpu().numpy() for name, value in vars(heads).items()})

    def time_layers(self) -> None:
        """Note from now on how long each layer takes, without the norm that follows it."""
        for path, layer in self._model.named_modules():
            if isinstance(layer, Attention | SwiGLU):
                name = path.removeprefix("core.").replace("stack.blocks.", "")
                self._time(name, layer)

    def layer_times(self) -> dict[str, int]:
        """Return nanoseconds by layer since this was asked last."""
        found, self._spent_ns = self._spent_ns, {}
        return found

    def _time(self, name: str, layer: Module) -> None:
        began_ns = 0

        def begin(*_: object) -> None:
            nonlocal began_ns
            began_ns = time.perf_counter_ns()

        def end(*_: object) -> None:
            spent_ns = time.perf_counter_ns() - began_ns
            self._spent_ns[name] = self._spent_ns.get(name, 0) + spent_ns

        layer.register_forward_pre_hook(begin)
        layer.register_forward_hook(end)


@contextmanager
def _serving() -> Iterator[None]:
    """Turn gradients off and denormals to zero, and leave the thread as it was.

    Both are switches of the calling thread, so they are set in every call and not once. A state
    that converges makes ever smaller differences, and processors are slow on denormal ones.
    """
    was_flushing = SMALLEST_NORMAL / 2.0 == 0.0
    torch.set_flush_denormal(True)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_flush_denormal(was_flushing)
