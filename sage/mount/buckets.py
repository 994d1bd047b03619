"""Buckets of gradients that the DistributedDataParallel mount reduces together."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sage.mount.flat import Flat
from sage.mount.parameters import real_shape

Listed = Sequence[tuple[str, nn.Parameter]]
"""Parameters by name, in order."""


@dataclass(eq=False)
class Bucket:
    """Parameters whose gradients are reduced together."""

    flat: Flat
    parameters: list[nn.Parameter]
    """The parameters, in the order of the flat gradient."""
    missing: set[Tensor] = field(default_factory=set)
    """Parameters whose gradients have not arrived yet in this backward."""


def cut(named: Listed, first: int, cap: int) -> list[Listed]:
    """Divide parameters into buckets, the last parameter's bucket first, as DDP does from the second step on.

    DDP uses the order in which gradients arrive; this function uses the reverse order of the model's
    parameters, which is the same in most models. A bucket is closed once it has `first` bytes (the first one)
    or `cap` bytes (the later ones). The parameters of a bucket have one dtype and are in the model's order.
    """
    closed: list[Listed] = []
    begun: dict[torch.dtype, list[tuple[str, nn.Parameter]]] = {}
    room: dict[torch.dtype, int] = {}
    for name, p in reversed(named):
        begun.setdefault(p.dtype, []).append((name, p))
        room[p.dtype] = room.get(p.dtype, first) - p.nbytes
        if room[p.dtype] <= 0:
            closed.append(begun.pop(p.dtype)[::-1])
            room[p.dtype] = cap
    return [*closed, *(bucket[::-1] for bucket in begun.values())]


def gradients_of(bucket: dist.GradBucket) -> list[Tensor]:
    """Gradients in a DDP bucket; those of complex parameters as real tensors of shape (*shape, 2)."""
    parameters = bucket.parameters()
    if not any(p.is_complex() for p in parameters):
        return bucket.gradients()
    # Not `bucket.gradients()`: it counts complex numbers, where the buffer has twice as many reals.
    pieces = bucket.buffer().split([2 * p.numel() for p in parameters])
    return [piece.view(real_shape(p)) for piece, p in zip(pieces, parameters, strict=True)]
