"""Refuses, by name, options and reducers that a mount cannot support because it divides the gradient."""

import math

from sage.config import EXCHANGING, Config
from sage.output.units import printable
from sage.reduction.reducer import Reducer

MIB = 2**20


def check_hierarchy(config: Config) -> None:
    """Refuse two levels under a mount that has its own.

    Raises:
        ValueError: The mount is fsdp.
    """
    if config.hierarchy == "node" and config.mount == "fsdp":
        raise ValueError(
            "hierarchy is 'node' with mount 'fsdp', which has --shards for the ranks of a node: leave "
            "--hierarchy out, or use --mount whole or ddp"
        )


def check_measured(config: Config) -> None:
    """Refuse `vnmse_every` where a reduction overlaps with backward, or there is none.

    Raises:
        ValueError: The mount is ddp or fsdp, or the optimiser communicates itself.
    """
    if config.vnmse_every is None:
        return
    what = None
    if config.mount != "whole":
        what = f"mount is {config.mount!r}, whose reductions run during backward"
    elif config.optimizer in EXCHANGING:
        what = f"optimizer is {config.optimizer!r}, with which no gradient is reduced"
    if what is not None:
        raise ValueError(
            f"vnmse_every is {config.vnmse_every}, but {what}: leave --vnmse-every out, or use --mount whole "
            "and another optimiser"
        )


def check_reducer(config: Config, reducer: Reducer, wrapper: str) -> None:
    """Refuse a reducer that needs squares of gradients, which `wrapper` does not compute.

    Raises:
        ValueError: The reducer needs squares.
    """
    if reducer.needs_squares:
        raise ValueError(
            f"the reducer {printable(config.reducer)} needs the squares of the samples' gradients, which "
            f"{wrapper} does not compute: use --mount whole instead of {config.mount}"
        )


def check_buckets(config: Config, reducer: Reducer, num_buckets: int, num_bytes: int) -> None:
    """Refuse options and reducers that need the whole gradient, if it is divided into several buckets.

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
    what = _needs_whole(config, reducer)
    if what is None:
        return
    layer = "--grouping layer, " if "grouping" in what else ""
    remedy = f"use {layer}--bucket-mb {_one_bucket(num_bytes)} for a single bucket, or --mount whole"
    raise ValueError(f"{what}, but --mount {config.mount} reduces {num_buckets} buckets one by one: {remedy}")


def check_shards(config: Config, reducer: Reducer, num_units: int, num_bytes: int) -> None:
    """Refuse options and reducers that need the whole gradient, if FSDP2 divides it into units or shards.

    Args:
        config: The configuration of the run.
        reducer: The reducer.
        num_units: Number of modules whose parameters are reduced together.
        num_bytes: Bytes of the whole gradient.

    Raises:
        ValueError: The reducer or an option needs the whole gradient.
    """
    what = _needs_whole(config, reducer)
    if what is None or (num_units == 1 and config.shards == 1):
        return
    remedies = ["--grouping layer"] if "grouping" in what else []
    alone = [f"--bucket-mb {_one_bucket(num_bytes)}"] if num_units > 1 else []
    alone += ["--shards 1"] if config.shards > 1 else []
    remedies += [f"{' '.join(alone)} for a single part"]
    raise ValueError(
        f"{what}, but --mount {config.mount} reduces {num_units * config.shards} parts one by one: "
        f"use {', '.join(remedies)}, or --mount whole"
    )


def _needs_whole(config: Config, reducer: Reducer) -> str | None:
    """Return why the whole gradient is needed at once; None if it is not."""
    by = f"the reducer {printable(config.reducer)} decides over the whole gradient"
    if config.clip_local is not None:
        return "clip_local clips by the norm of the whole gradient"
    if reducer.decides_by == "vector":
        return by
    if reducer.decides_by == "group" and (config.grouping or reducer.grouping) == "model":
        return f"{by} (grouping is model)"
    return None


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
