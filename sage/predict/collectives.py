"""The costs of collectives: messages in sequence and bytes through a link, by algorithm.

A collective of S bytes takes steps·α + share·S/B, where S is what each rank contributes, α the latency of a
message and B the bandwidth of a link (Thakur, Rabenseifner and Gropp 2005; Patarasuk and Yuan 2009). The ring
of an all-reduce has 2(p−1) steps and moves 2(p−1)/p·S through each link.
"""
# p = ranks of the collective, g = ranks per node, N = nodes

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from sage.predict.calibration_schema import Collective

Algorithm = Literal["ring", "tree"]
Layout = Literal["flat", "hierarchical"]
"""Whether a collective runs over all ranks at once, or within nodes and then between them."""

COUNTS_BYTES = 8
"""Bytes that a ragged gather sends before its vectors, for each rank's length."""


@dataclass(frozen=True)
class Terms:
    """Coefficients of a collective's time."""

    steps: float
    """Messages in sequence: the factor of the latency."""
    share: float
    """Bytes through a link for each byte that a rank contributes."""
    fixed_bytes: float = 0.0
    """Bytes through a link in addition, which do not depend on what a rank contributes."""


def ring(collective: Collective, p: int) -> Terms:
    """Return the terms of the algorithm that SAGE's wire uses at every size; for all but two it is a ring.

    An all-to-all sends its blocks directly, and a broadcast goes along a binomial tree.
    """
    doublings = math.ceil(math.log2(p))
    return {
        "all_reduce": Terms(2 * (p - 1), 2 * (p - 1) / p),
        "reduce_scatter": Terms(p - 1, (p - 1) / p),
        "all_to_all": Terms(p - 1, (p - 1) / p),
        "all_gather": Terms(p - 1, p - 1),
        "ragged_gather": Terms(p - 1 + doublings, p - 1, COUNTS_BYTES * (p - 1)),
        "broadcast": Terms(doublings, doublings),
    }[collective]


def tree(collective: Collective, p: int) -> Terms:
    """Return the terms of an algorithm with about log₂ p steps; those of `ring` if there is none.

    The all-reduce and the broadcast are pipelined trees, the gathers double recursively, and the
    reduce-scatter halves recursively.
    """
    doublings = math.log2(p)
    terms = {
        "all_reduce": Terms(2 * doublings, 2.0),
        "reduce_scatter": Terms(doublings, (p - 1) / p),
        "all_gather": Terms(doublings, p - 1),
        "ragged_gather": Terms(2 * doublings, p - 1, COUNTS_BYTES * (p - 1)),
        "broadcast": Terms(doublings, 1.0),
    }
    return terms.get(collective) or ring(collective, p)


ALGORITHMS: Mapping[Algorithm, Callable[[Collective, int], Terms]] = {"ring": ring, "tree": tree}


@dataclass(frozen=True)
class Cost:
    """The terms of a collective over several nodes: between them and within them."""

    inter: Terms
    """Bytes are those through the network interface of a node."""
    intra: Terms
    together: bool
    """Whether bytes pass both kinds of links at the same time, so that the slower one sets the time."""


NOTHING = Terms(0, 0)


def flat(collective: Collective, p: int, g: int, algorithm: Algorithm) -> Cost:
    """Return the cost of one ring or tree over all ranks, in the order of the nodes.

    A ring passes from node to node N times, so its NIC carries what one link of the ring carries. Of its
    steps, (N−1)/(p−1) cross the network (NCCL 2.30, src/graph/tuning.cc). Blocks of an all-to-all are sent
    directly: the NIC carries those of all g ranks to the other nodes.
    """
    terms = ALGORITHMS[algorithm](collective, p)
    nodes = math.ceil(p / g)
    if nodes == 1:
        return Cost(NOTHING, terms, together=True)
    if g == 1:
        return Cost(terms, NOTHING, together=True)
    crossing = (nodes - 1) / (p - 1) if algorithm == "ring" else math.log2(nodes) / math.log2(p)
    share = g * (p - g) / p if collective == "all_to_all" else terms.share
    return Cost(
        Terms(crossing * terms.steps, share, terms.fixed_bytes),
        Terms((1 - crossing) * terms.steps, terms.share, terms.fixed_bytes),
        together=True,
    )


def hierarchical(collective: Collective, p: int, g: int, algorithm: Algorithm) -> Cost:
    """Return the cost of a collective within each node and then between nodes.

    An all-reduce is a reduce-scatter within nodes, g all-reduces of S/g between nodes, and an all-gather
    within nodes: its NIC carries 2(N−1)/N·S, in 2(N−1) steps instead of 2(p−1).
    """
    nodes = math.ceil(p / g)
    if nodes == 1 or g == 1:
        return flat(collective, p, g, algorithm)
    between, within = ALGORITHMS[algorithm](collective, nodes), ring(collective, g)
    if collective in ("all_gather", "ragged_gather"):
        # The NIC receives what the g(N−1) ranks of other nodes contribute; a rank receives all of it.
        return Cost(
            Terms(between.steps, p - g, between.fixed_bytes * g),
            Terms(within.steps, p - 1, within.fixed_bytes * nodes),
            together=False,
        )
    if collective == "all_to_all":
        return Cost(Terms(between.steps, g * (p - g) / p), within, together=False)
    return Cost(between, within, together=False)


LAYOUTS: Mapping[Layout, Callable[[Collective, int, int, Algorithm], Cost]] = {
    "flat": flat,
    "hierarchical": hierarchical,
}

# NCCL 2.30.7, src/graph/tuning.cc, protocol Simple: the latency of a hop in seconds.
NCCL_NETWORK = 14e-6
NCCL_INTRA = {"nvlink": 3.4e-6, "pci": 5.7e-6}
NCCL_NOTE = "latency from NCCL's table, not measured"
