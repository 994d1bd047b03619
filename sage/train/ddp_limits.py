"""What `--mount ddp` cannot do, refused by name."""

import math

from sage.config import Config
from sage.output.units import printable
from sage.reduction.reducer import Reducer

MIB = 2**20


def check_reducer(config: Config, reducer: Reducer) -> None:
    """Refuse a reducer that needs squares of gradients.

    Raises:
        ValueError: The reducer needs them.
    """
    if reducer.needs_squares:
        raise ValueError(
            f"the reducer {printable(config.reducer)} needs the squares of the samples' gradients, which "
            f"DistributedDataParallel does not compute: use --mount whole instead of {config.mount}"
        )


def check_buckets(config: Config, reducer: Reducer, num_buckets: int, num_bytes: int) -> None:
    """Refuse what needs the whole gradient, if it is divided into several buckets.

    Args:
        config: The configuration of the run.
        reducer: The reducer.
        num_buckets: Number of buckets.
        num_bytes: Bytes of the whole gradient.

    Raises:
        ValueError: The reducer or an option needs the whole gradient.
    """
    if num_buckets == 1:
        return
    grouping = config.grouping or reducer.grouping
    remedy = f"use --bucket-mb {_one_bucket(num_bytes)} for a single bucket, or --mount whole"
    if config.clip_local is not None:
        what = "clip_local clips by the norm of the whole gradient"
    elif reducer.decides_by == "vector":
        what = f"the reducer {printable(config.reducer)} decides over the whole gradient"
    elif reducer.decides_by == "group" and grouping == "model":
        what = f"the reducer {printable(config.reducer)} decides over the whole gradient (grouping is model)"
        remedy = f"use --grouping layer, {remedy.removeprefix('use ')}"
    else:
        return
    raise ValueError(f"{what}, but --mount {config.mount} reduces {num_buckets} buckets one by one: {remedy}")


def needs_one_bucket(config: Config, reducer: Reducer) -> bool:
    """Whether several buckets would be refused."""
    try:
        check_buckets(config, reducer, num_buckets=2, num_bytes=0)
    except ValueError:
        return True
    return False


def _one_bucket(num_bytes: int) -> int:
    """The least bucket size, in MiB, into which all parameters fit; not DDP's default (`FixedBuckets`)."""
    size = math.floor(num_bytes / MIB) + 1
    return size + 1 if size == 25 else size
