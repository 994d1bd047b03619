"""Settings of shards: what ranks and nodes they can be divided into, and which settings have an effect."""

from collections.abc import Mapping
from typing import Any, Literal

ShardReduce = Literal["exact", "bf16", "fp8", "int8", "int4", "loco", "sdp4bit"]
ShardGather = Literal["exact", "bf16", "fp8", "int8", "sdp4bit"]
"""Formats of FSDP2's collectives; `sage.reduction.shard_formats` defines them."""

FORMATS = ("shard_reduce", "shard_gather", "shard_block", "shard_node")
"""Settings that need several shards."""


def check_ranks(shards: int, world_size: int) -> None:
    """Refuse a number of shards that does not divide the number of ranks.

    Raises:
        ValueError: The shards do not divide the ranks.
    """
    if world_size % shards:
        raise ValueError(
            f"shards is {shards}, but {world_size} ranks cannot be divided into replicas of {shards} ranks: "
            f"allowed are {_divisors(world_size)}"
        )


def check_node(config: Mapping[str, Any]) -> None:
    """Refuse a size of nodes that does not divide the shards.

    Args:
        config: The fields of a configuration by name, each valid by itself.

    Raises:
        ValueError: It does not divide them.
    """
    node, shards = config["shard_node"], config["shards"]
    if "shard_node" not in unused(config) and node is not None and shards % node:
        raise ValueError(
            f"shard_node is {node}, but {shards} shards cannot be divided into nodes of {node}: allowed are "
            f"{_divisors(shards)}"
        )


def unused(config: Mapping[str, Any]) -> set[str]:
    """Return the settings of mounts that have no effect with the others, and are not in the hash."""
    found = _unused_of_shards(config)
    if config["mount"] == "whole":
        found.add("bucket_mb")
    if config["hierarchy"] == "flat":
        found.add("ranks_per_node")
    return found


def _unused_of_shards(config: Mapping[str, Any]) -> set[str]:
    if config["mount"] != "fsdp":
        return {"shards", *FORMATS}
    if config["shards"] == 1:
        return {*FORMATS}
    found = set()
    if config["shard_reduce"] == "exact":
        found.add("shard_node")
    if sends_shards_whole(config):
        found.add("shard_block")
    return found


def sends_shards_whole(config: Mapping[str, Any]) -> bool:
    """Whether the shards of a run are exchanged uncompressed; the configuration is that of config.json.

    bf16 counts as uncompressed, as the reducer bf16 does.
    """
    formats = {config.get("shard_reduce", "exact"), config.get("shard_gather", "exact")}
    return formats <= {"exact", "bf16"}


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)


def neighbours(world_size: int, ranks_per_node: int) -> list[list[int]]:
    """Return the ranks of each node, if neighbouring ranks share a node.

    Raises:
        ValueError: `ranks_per_node` does not divide the number of ranks.
    """
    if world_size % ranks_per_node:
        raise ValueError(
            f"ranks_per_node is {ranks_per_node}, but {world_size} ranks cannot be divided into nodes of "
            f"{ranks_per_node} ranks: allowed are {_divisors(world_size)}"
        )
    return [list(range(first, first + ranks_per_node)) for first in range(0, world_size, ranks_per_node)]
