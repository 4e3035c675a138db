"""Memory of training: what the backward pass keeps, and how to keep less.

The one-step gradient makes the first constant in depth; this file measures that it does. Where
that is still too much, batch and gradient are settings, and blocks can be computed twice.
"""

import resource
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hrm.layers import Block

REMEDY = (
    "lower training.segment_batch_size (--batch), keep fewer activations "
    "(--checkpoint-activations), choose a smaller preset, or raise performance.memory_limit_gb"
)
"""What to do about a training that holds too much."""


def recompute_activations(model: nn.Module) -> None:
    """Let backward compute each block again instead of keeping what it computed: same gradients.

    For the model that is trained, not for copies made later. Blocks draw nothing at random (their
    dropout masks are handed in), so both computations agree to the bit.
    """
    for block in model.modules():
        if isinstance(block, Block):
            block.forward = partial(_recomputed, block.forward)  # type: ignore[method-assign]  # of this one only


def _recomputed(
    forward: Callable[..., Tensor],
    x: Tensor,
    drop: Tensor | None = None,
    present: Tensor | None = None,
) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(x, drop, present)
    result: Tensor = checkpoint(
        forward, x, drop, present, use_reentrant=False, preserve_rng_state=False
    )
    return result


def saved_tensor_bytes(forward: Callable[[], object], parameters: Iterable[Tensor]) -> int:
    """Count the bytes that autograd keeps for the backward pass of what `forward` computes.

    Distinct storages only, parameters left out; deterministic, unlike the resident size.
    """
    excluded = {p.untyped_storage().data_ptr() for p in parameters}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in excluded:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()  # held until the sum is taken, so that no address is used twice
    total = sum(kept.values())
    del result
    return total


def peak_resident_bytes() -> int:
    """Return the most memory this process has ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
