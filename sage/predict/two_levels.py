"""Reductions on two levels: dense phases within a node, and the reducer between nodes on each rank's part.

With g ranks on each of N nodes and a gradient of S bytes of float32 (docs/explanation/hierarchy.md), these
follow one another: a reduce-scatter of S within the node, the reducer's messages among N ranks, an all-gather
of S/g from each rank within the node, and the sum of 8 bytes within it.

The g ranks of a node reduce their parts at the same time through the link of the node. Each contributes 1/g
of what a rank contributes for the whole gradient at W = N. The link therefore carries what it would carry for
one rank on each node, in as many messages in sequence. Encoding and decoding are of S/g bytes. The model
takes equal parts, and payloads in proportion to a part's elements.
"""
# D = draws, X = bandwidths

from dataclasses import dataclass
from typing import Literal

import numpy
from numpy.typing import NDArray

from sage.predict.links import Links

Array = NDArray[numpy.float64]
Hierarchy = Literal["flat", "node"]

WITHOUT = ("variance",)
"""Reducers that do not support two levels."""

NOTE = (
    "node: a model of equal parts, with payloads in proportion to those of the whole gradient at W = nodes; "
    "not compared with measurements"
)


@dataclass(frozen=True)
class Level:
    """The ranks between which the reducer of a choice runs, and its share of the gradient."""

    ranks: int
    ranks_per_node: int
    parts: int
    """Number of parts of the gradient; the ranks of a node have one each."""

    @staticmethod
    def of(hierarchy: Hierarchy, ranks: int, ranks_per_node: int) -> "Level":
        """Return the level on which the reducer runs; its ranks count as one on each node."""
        if hierarchy == "node" and ranks_per_node > 1:
            return Level(ranks // ranks_per_node, 1, ranks_per_node)
        return Level(ranks, ranks_per_node, 1)

    def within(self, network: Links, numel: int, share: float = 1.0) -> Array:
        """Return the seconds of the dense phases within a node, for draws and bandwidths.

        Args:
            network: The links of the cluster.
            numel: Number of elements of the whole gradient.
            share: The part of the gradient that is reduced.
        """
        if self.parts == 1:
            return numpy.zeros((1, 1))
        size = numpy.full((1, 1), 4.0 * numel * share)
        scattered = network.seconds("reduce_scatter", size, self.parts, self.parts)
        gathered = network.seconds("all_gather", size / self.parts, self.parts, self.parts)
        return scattered + gathered + network.seconds("all_reduce", EIGHT, self.parts, self.parts)


EIGHT = numpy.full((1, 1), 8.0)
"""Bytes of the density, which is summed within the node."""


def fits(ranks: int, ranks_per_node: int) -> bool:
    """Whether a cluster has several nodes of several ranks, as many on each."""
    return 1 < ranks_per_node < ranks and ranks % ranks_per_node == 0
