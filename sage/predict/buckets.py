"""The buckets in which a gradient is reduced during backward, as DistributedDataParallel forms them."""

from collections.abc import Sequence
from dataclasses import dataclass

from sage.predict.calibration import Parameter

FIRST_BYTES = 1024 * 1024
"""The size at which DDP closes its first bucket (`torch.distributed._DEFAULT_FIRST_BUCKET_BYTES`)."""

DEFAULT_MB = 25.0
"""DDP's default for `bucket_cap_mb`. With another value, the first bucket has this size too."""

ELEMENT_BYTES = 4


@dataclass(frozen=True)
class Bucket:
    """Parameters whose gradients are reduced together."""

    numel: int
    ready_seconds: float
    """When its last gradient is ready, from the start of backward."""


def cut(parameters: Sequence[Parameter], bucket_mb: float | None = None) -> list[Bucket]:
    """Divide parameters into buckets, in the order in which their gradients are ready.

    A bucket is closed once it has `bucket_mb` MiB of float32. At DDP's default, or with None,
    the first bucket has 1 MiB and the others have 25 MiB.
    """
    cap = (DEFAULT_MB if bucket_mb is None else bucket_mb) * 1024 * 1024
    room = FIRST_BYTES if bucket_mb in (None, DEFAULT_MB) else cap
    buckets: list[Bucket] = []
    numel, ready = 0, 0.0
    for parameter in parameters:
        numel += parameter.numel
        ready = max(ready, parameter.ready_seconds)
        room -= ELEMENT_BYTES * parameter.numel
        if room <= 0:
            buckets.append(Bucket(numel, ready))
            numel, room = 0, cap
    if numel:
        buckets.append(Bucket(numel, ready))
    return buckets
