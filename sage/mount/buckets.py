"""The buckets in which a model's gradients are reduced beneath DistributedDataParallel."""

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
    """In the flat gradient's order."""
    missing: set[Tensor] = field(default_factory=set)
    """Those whose gradients have not come yet in this backward."""


def cut(named: Listed, first: int, cap: int) -> list[Listed]:
    """Parameters in buckets, the last parameter's bucket first, as DDP cuts them from the second step on.

    DDP goes by the order in which gradients come, this by the reverse of that in which the model has the
    parameters: in most models the same. A bucket is closed once it has `first` bytes, the later ones `cap`.
    Parameters of one bucket are of one dtype, and in the model's order.
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
    """The gradients in a bucket of DDP's; those of complex parameters as reals, in the shape (*shape, 2)."""
    parameters = bucket.parameters()
    if not any(p.is_complex() for p in parameters):
        return bucket.gradients()
    # Not `bucket.gradients()`: it counts complex numbers, where the buffer has twice as many reals.
    pieces = bucket.buffer().split([2 * p.numel() for p in parameters])
    return [piece.view(real_shape(p)) for piece, p in zip(pieces, parameters, strict=True)]
