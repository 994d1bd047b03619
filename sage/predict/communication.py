"""The time of a reduction's collectives, through links that may pass a burst of bytes at once."""
# D = draws, X = bandwidths, K = buckets

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from sage.predict.calibration_schema import Collective
from sage.predict.links import Links
from sage.predict.payload import Traffic

Array = NDArray[numpy.float64]


@dataclass(frozen=True)
class Communication:
    """The collectives of one reduction of the whole gradient, on the links of a cluster.

    A link that a token bucket limits passes a burst at once. The messages of a step share it, and the link
    recovers it at its bandwidth.
    """

    messages: Sequence[Traffic]
    sizes: Sequence[Array]
    """Bytes that each rank contributes to each message, of shape (D, 1)."""
    network: Links
    ranks: int
    ranks_per_node: int

    def seconds(self, share: float = 1.0, spent: Array | float = 0.0) -> tuple[Array, Array | float]:
        """Return the seconds of all collectives, and the bytes of the burst that are spent after them.

        Args:
            share: the part of the gradient that is reduced.
            spent: bytes of the burst that are spent before.
        """
        total: Array = numpy.zeros((1, 1))
        for of in self._collectives(share):
            total = total + self.network.seconds(*of, spent=spent)
            if self.network.burst:
                spent = numpy.minimum(spent + self.network.bytes_between(*of), self.network.burst)
        return total, spent

    def of_buckets(self, share_K: Sequence[float], ready_K: Sequence[Array], idle: Array) -> list[Array]:
        """Return the seconds of each bucket's collectives.

        Args:
            share_K: the buckets' shares of the gradient.
            ready_K: when they are ready; the link recovers in between.
            idle: seconds of a step's computation before the first bucket and after the last one.
        """
        if not self.network.burst:
            of_share = {share: self.seconds(share)[0] for share in set(share_K)}
            return [of_share[share] for share in share_K]
        spent = self.spent(idle)
        comm_K, before = [], ready_K[0]
        for share, ready in zip(share_K, ready_K, strict=True):
            spent = numpy.maximum(spent - self.network.passed(ready - before), 0.0)
            seconds, spent = self.seconds(share, spent)
            comm_K.append(seconds)
            before = ready
        return comm_K

    def spent(self, idle: Array) -> Array | float:
        """Return the bytes of the burst that are spent when a step begins to communicate.

        In `idle` seconds before, the link recovers as many bytes as it passes in this time. If a step sends
        no more than these, the burst is whole again at every step; otherwise nothing is left after a step.
        """
        if not self.network.burst:
            return 0.0
        sent = sum((self.network.bytes_between(*of) for of in self._collectives()), numpy.zeros((1, 1)))
        recovered = self.network.passed(idle)
        return numpy.where(sent <= recovered, 0.0, numpy.maximum(self.network.burst - recovered, 0.0))

    def _collectives(self, share: float = 1.0) -> Iterator[tuple[Collective, Array, int, int, float]]:
        """The arguments of `Links.seconds` and `Links.bytes_between` for each message."""
        for message, size_D1 in zip(self.messages, self.sizes, strict=True):
            yield message.collective, share * size_D1, self.ranks, self.ranks_per_node, message.count
