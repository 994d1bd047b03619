"""Clusters to predict: a TOML file of clusters that may not exist, or world sizes and bandwidths.

    [[cluster]]
    name = "eight nodes at 10 Gbit/s"
    nodes = [2, 4, 8]                 # a number, or several
    gpus_per_node = 4
    bits_per_second = [10e9, 100e9]   # of the links between nodes: a number, or several
    intra_bits_per_second = 1.2e12    # of the links within a node

The optional keys are `burst_bytes`, `latency_seconds` and `intra_latency_seconds`, `intra` (the kind of links
within a node, whose latency NCCL's table has), `collectives` and `speedup`.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from sage.predict.collectives import NCCL_INTRA, NCCL_NETWORK, NCCL_NOTE, Layout
from sage.predict.links import Link
from sage.predict.step_time import Setup
from sage.storage import read_toml
from sage.validate import Range, coerce, known, shown

MOST_RANKS = 10_000
MOST_CLUSTERS = 200
"""The most combinations of world size and bandwidth of a plan."""
MOST_RATIO = 1000
"""The largest finite ratio of steps; its inverse is the least one."""
REFERENCE = "bf16"
"""The reducer whose steps the ratios are relative to."""

Nodes = Annotated[int, Range(1, MOST_RANKS)]
Bits = Annotated[float, Range(1e3, 1e15)]
Seconds = Annotated[float, Range(0, 10)]
Burst = Annotated[float, Range(0, 1e12)]

KEYS: dict[str, Any] = {
    "name": str,
    "nodes": Nodes | tuple[Nodes, ...],
    "gpus_per_node": Nodes,
    "bits_per_second": Bits | tuple[Bits, ...],
    "burst_bytes": Burst,
    "latency_seconds": Seconds,
    "intra_bits_per_second": Bits,
    "intra_latency_seconds": Seconds,
    "intra": Literal["nvlink", "pci"],
    "collectives": Layout,
    "speedup": Annotated[float, Range(0.001, 1000)],
}
"""The keys of a cluster and the types of their values."""


def read(path: Path) -> list[Setup]:
    """Read the clusters of a plan, one setup for each number of nodes.

    Raises:
        ValueError: if the file is missing or cannot be read, or a key or a value is not allowed; one line.
    """
    try:
        table = read_toml(path, "a plan with tables [[cluster]]")
    except FileNotFoundError as cause:
        raise ValueError(
            f"there is no file {path}; --plan needs a TOML file with tables [[cluster]]"
        ) from cause
    for name in table:
        known(f"key (in {path.name})", name, ["cluster"])
    clusters = table.get("cluster")
    if (
        not isinstance(clusters, list)
        or not clusters
        or not all(isinstance(entry, dict) for entry in clusters)
    ):
        raise ValueError(f"{path.name} has no cluster; allowed are tables written as [[cluster]]")
    setups = [setup for number, entry in enumerate(clusters, 1) for setup in _cluster(path, number, entry)]
    count = sum(len(setup.link.bytes_per_second or ()) for setup in setups)
    if count > MOST_CLUSTERS:
        raise ValueError(
            f"{path.name} has {count} combinations of nodes and bandwidths; allowed are {MOST_CLUSTERS}: "
            "divide it into several plans"
        )
    return setups


def _cluster(path: Path, number: int, table: Mapping[str, Any]) -> list[Setup]:
    where = f"(in {path.name}, cluster {number})"
    for name in table:
        known(f"key {where}", name, KEYS)
    given = {name: coerce(f"{name} {where}", value, KEYS[name]) for name, value in table.items()}
    for name in ("nodes", "bits_per_second"):
        if not given.get(name):
            raise ValueError(f"{name} {where} is missing; give a number, or a list of numbers")
    nodes, bits = _several(given["nodes"]), _several(given["bits_per_second"])
    per_node = given.get("gpus_per_node", 1)
    intra_bits, latency = given.get("intra_bits_per_second"), given.get("latency_seconds")
    if per_node > 1 and intra_bits is None:
        raise ValueError(
            f"intra_bits_per_second {where} is missing; clusters of several GPUs per node need it"
        )
    if max(nodes) * per_node > MOST_RANKS:
        raise ValueError(
            f"nodes × gpus_per_node {where} is {max(nodes) * per_node}; allowed are up to {MOST_RANKS} ranks"
        )
    intra_latency = given.get("intra_latency_seconds")
    is_default = latency is None or (per_node > 1 and intra_latency is None)
    link = Link(
        bytes_per_second=tuple(value / 8 for value in bits),
        burst=given.get("burst_bytes", 0.0),
        latency=NCCL_NETWORK if latency is None else latency,
        intra_bytes_per_second=None if intra_bits is None else intra_bits / 8,
        intra_latency=NCCL_INTRA[given.get("intra", "nvlink")] if intra_latency is None else intra_latency,
        layout=given.get("collectives", "flat"),
    )
    base = Setup(
        ranks=1,
        ranks_per_node=per_node,
        link=link,
        speedup=given.get("speedup", 1.0),
        name=given.get("name", f"cluster {number}"),
        notes=(NCCL_NOTE,) if is_default else (),
    )
    return [replace(base, ranks=count * per_node) for count in nodes]


def of_flags(
    world_sizes: Sequence[int],
    bits: Sequence[float],
    *,
    burst: float | None,
    latency: float | None,
    ranks_per_node: int,
) -> list[Setup]:
    """Return one setup for each world size, with links as measured except for what is given.

    Raises:
        ValueError: if a value is out of its range, or there is a burst without a bandwidth.
    """
    if burst is not None and not bits:
        raise ValueError("--burst is that of links of a given bandwidth: add --bandwidth, or leave it out")
    ranks = coerce("--world-size", tuple(world_sizes), tuple[Nodes, ...])
    bandwidths = coerce("--bandwidth", tuple(bits), tuple[Bits, ...])
    link = Link(
        bytes_per_second=tuple(bandwidth / 8 for bandwidth in bandwidths) or None,
        burst=coerce("--burst", burst or 0.0, Burst),
        latency=coerce("--latency", latency, Seconds | None),
    )
    per_node = coerce("--ranks-per-node", ranks_per_node, Nodes)
    return [Setup(ranks=count, ranks_per_node=per_node, link=link) for count in ranks]


def steps_ratios(words: Sequence[str], reducers: Collection[str]) -> dict[str, float]:
    """Return the ratio of steps by reducer, from words such as `topk=1.2`.

    Raises:
        ValueError: if a word has another form, a reducer was not measured or is given twice, or the
            reference has another ratio than 1.
    """
    ratios: dict[str, float] = {}
    for word in words:
        name, _, value = word.partition("=")
        known("reducer of the calibration", name, reducers)
        if name in ratios:
            raise ValueError(f"--steps-ratio has {name} twice: give each reducer once")
        try:
            ratios[name] = float(value)
        except ValueError:
            ratios[name] = math.nan
        if not (1 / MOST_RATIO <= ratios[name] <= MOST_RATIO or ratios[name] == math.inf):
            raise ValueError(
                f"--steps-ratio is {shown(word)}; allowed is REDUCER=RATIO with a number from "
                f"{1 / MOST_RATIO:g} to {MOST_RATIO:g}, or inf for a reducer that misses the target"
            )
        if name == REFERENCE and ratios[name] != 1:
            raise ValueError(
                f"--steps-ratio is {shown(word)}, but {name} is the reference, whose ratio is 1: leave it out"
            )
    return ratios


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
