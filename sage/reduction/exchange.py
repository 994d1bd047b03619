"""Exchanges: how the mean is formed if ranks select different elements, and different numbers of them.

| exchange | payload bytes per rank in addition to 4 (or 2) per value and 4 per index | what is sent |
|---|---|---|
| `padded` | 8 for the count, and padding up to the longest payload | the selection |
| `uneven` | 8 for the count | the same, bitwise identical result |
| `auto` | those of the faster of these two in the first steps; 16 once to agree on it | the same, bitwise
identical result |
| `chunks` | 8 for the count, and padding up to a fixed capacity | at most the capacity: the largest elements
|
| `union` | 8 for the count; values at all indices that any rank selected | the whole union |
| `exclusive` | as `union` | the union; each rank selects in its own part of the vector |

`padded` and `chunks` are one all-gather; `uneven` is one of payloads of different lengths. `union` and
`exclusive` gather the indices as `uneven` does and all-reduce the values, so the cost of the mean does not
depend on the number of ranks.
"""
# N = elements of the vector, K = elements this rank selects, M = of all ranks, U = of the union

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sage import ops
from sage.comm.wire import Wire
from sage.reduction.reducer import Reduced
from sage.timing import phase

Name = Literal["padded", "uneven", "auto", "chunks", "union", "exclusive"]
SLACK = 0.02
"""Capacity of a chunk beyond the target number of elements, as a share of it."""
TRIALS = 3
"""Steps for which `auto` measures each of its two exchanges."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The elements that a rank selects from a vector in one step, and how they are sent."""

    signal_N: Tensor
    """The vector that the selection was taken from; with `keep`, what is not sent is added back to it."""
    own_K: Tensor
    """The selected values."""
    at_K: Tensor
    """Their indices (int32, ascending)."""
    density: float
    """Target density of the step."""
    dtype: torch.dtype
    """Precision in which values are sent."""
    keep: bool
    """Whether the signal is a residual."""
    out_N: Tensor
    """Output buffer for the mean."""


class Padded:
    """Gather counts first, then all payloads at once, padded to the longest."""

    def partition(self, n: int, step: int, wire: Wire) -> tuple[int, int]:
        """(start, stop) of the part of the vector that this rank selects from."""
        return 0, n

    def reduce(self, selection: Selection, wire: Wire) -> tuple[Reduced, list[int]]:
        """Send a selection and return the result, and the number of elements each rank selected."""
        signal_N, out_N = selection.signal_N, selection.out_N
        with phase("select"):
            own_K, at_K = self.limit(selection)
            values_K = ops.rounded(signal_N, own_K, at_K, dtype=selection.dtype, keep=selection.keep)
        counts, (values_M, at_M) = self.gather(values_K, at_K, wire, selection.density, signal_N.numel())
        with phase("scatter"):
            mean_N = ops.scatter_mean(values_M, at_M, counts, out_N=out_N)
        return Reduced(mean_N, at_K, _share(counts, out_N), at_M), counts

    def limit(self, selection: Selection) -> tuple[Tensor, Tensor]:
        """The values and indices of the part of the selection that may be sent."""
        return selection.own_K, selection.at_K

    def gather(
        self, values_K: Tensor, at_K: Tensor, wire: Wire, density: float, n: int
    ) -> tuple[list[int], tuple[Tensor, ...]]:
        """Counts, values and indices of all ranks."""
        return wire.gather_uneven(values=values_K, indices=at_K)

    def payload(
        self, counts: list[int], rank: int, item: int, density: float, n: int
    ) -> dict[str, int] | None:
        """Payload bytes of this rank by kind; None if they do not follow from the counts."""
        count = counts[rank]
        padding = (item + 4) * (max(counts) - count)
        return {"sizes": 8, "values": item * count, "indices": 4 * count, "padding": padding}

    def report(self) -> dict[str, float]:
        """Scalars of the last step for the run's record."""
        return {}


class Uneven(Padded):
    """Gather counts first, then payloads of different lengths, without padding."""

    def gather(
        self, values_K: Tensor, at_K: Tensor, wire: Wire, density: float, n: int
    ) -> tuple[list[int], tuple[Tensor, ...]]:
        return wire.gather_ragged(values=values_K, indices=at_K)

    def payload(
        self, counts: list[int], rank: int, item: int, density: float, n: int
    ) -> dict[str, int] | None:
        return {"sizes": 8, "values": item * counts[rank], "indices": 4 * counts[rank]}


class Auto(Padded):
    """Alternate between `padded` and `uneven`, then use the faster one.

    That is the one whose fastest step on the slowest rank was shorter. Both give bitwise identical results,
    so a choice by measured time does not change them. The measurement is valid for this machine and these
    ranks only: it is not in the checkpoint, and a resumed run measures again.
    """

    def __init__(self) -> None:
        self._ways = Padded(), Uneven()
        self._seconds = [math.inf, math.inf]
        self._step = 0
        self.choice: int | None = None

    def gather(
        self, values_K: Tensor, at_K: Tensor, wire: Wire, density: float, n: int
    ) -> tuple[list[int], tuple[Tensor, ...]]:
        if self._step == 2 * TRIALS and self.choice is None:
            (seconds_W2,) = wire.gather(control=torch.tensor(self._seconds, dtype=torch.float64))
            self.choice = int(seconds_W2.amax(0).argmin())
        way = self._step % 2 if self.choice is None else self.choice
        before = wire.ledger.seconds
        gathered = self._ways[way].gather(values_K, at_K, wire, density, n)
        self._seconds[way] = min(self._seconds[way], wire.ledger.seconds - before)
        self._step += 1
        return gathered

    def payload(
        self, counts: list[int], rank: int, item: int, density: float, n: int
    ) -> dict[str, int] | None:
        return None

    def report(self) -> dict[str, float]:
        return {"exchange_uneven": math.nan if self.choice is None else float(self.choice)}


class Chunks(Padded):
    """Gather chunks of the target size plus 2 %; elements beyond this capacity stay in the residual."""

    def limit(self, selection: Selection) -> tuple[Tensor, Tensor]:
        signal_N, own_K, at_K = selection.signal_N, selection.own_K, selection.at_K
        most = capacity(selection.density, signal_N.numel())
        if at_K.numel() <= most:
            return own_K, at_K
        sent_K = torch.zeros_like(at_K, dtype=torch.bool)
        sent_K[ops.select_top(own_K, most)] = True
        if selection.keep:
            signal_N[at_K[~sent_K]] = own_K[~sent_K]
        return own_K[sent_K], at_K[sent_K]

    def gather(
        self, values_K: Tensor, at_K: Tensor, wire: Wire, density: float, n: int
    ) -> tuple[list[int], tuple[Tensor, ...]]:
        return wire.gather_within(capacity(density, n), values=values_K, indices=at_K)

    def payload(
        self, counts: list[int], rank: int, item: int, density: float, n: int
    ) -> dict[str, int] | None:
        return Padded().payload([*counts, capacity(density, n)], rank, item, density, n)


class Union(Padded):
    """Gather the indices, then all-reduce every rank's values at all of them (ExDyna)."""

    def reduce(self, selection: Selection, wire: Wire) -> tuple[Reduced, list[int]]:
        signal_N, keep = selection.signal_N, selection.keep
        counts, (at_M,) = wire.gather_ragged(indices=selection.at_K)
        if keep:
            signal_N[selection.at_K] = selection.own_K
        at_U = ops.union(at_M, signal_N.numel())
        return mean_at(signal_N, at_U, wire, dtype=selection.dtype, keep=keep, out_N=selection.out_N), counts

    def payload(
        self, counts: list[int], rank: int, item: int, density: float, n: int
    ) -> dict[str, int] | None:
        return None


class Exclusive(Union):
    """A union of disjoint selections: at step t rank r selects from part (t + r) mod W (MiCRO)."""

    def partition(self, n: int, step: int, wire: Wire) -> tuple[int, int]:
        part, size = (step + wire.rank) % wire.world_size, wire.world_size
        return part * n // size, (part + 1) * n // size


EXCHANGES: dict[str, type[Padded]] = {
    "padded": Padded,
    "uneven": Uneven,
    "auto": Auto,
    "chunks": Chunks,
    "union": Union,
    "exclusive": Exclusive,
}
"""The exchanges by their names in `--exchange`."""


def mean_at(
    signal_N: Tensor, at_U: Tensor, wire: Wire, *, dtype: torch.dtype, keep: bool, out_N: Tensor
) -> Reduced:
    """Mean over ranks at indices (U, ascending) that all ranks know, by an all-reduce of the values.

    Args:
        signal_N: This rank's signal; with `keep`, what was sent is removed from it.
        at_U: The indices.
        wire: The communicator.
        dtype: Precision in which values are sent.
        keep: Whether the signal is a residual.
        out_N: Output buffer for the mean.
    """
    with phase("select"):
        values_U = ops.take(signal_N, at_U, dtype=dtype, keep=keep)
    return mean_of(values_U, at_U, wire, out_N=out_N)


def mean_of(values_U: Tensor, at_U: Tensor, wire: Wire, *, out_N: Tensor) -> Reduced:
    """Mean over ranks of their values (U, overwritten) at indices that all ranks know, by an all-reduce."""
    # Dividing before the sum keeps fp16 from overflowing.
    mean_U = wire.sum(values_U.div_(wire.world_size))
    with phase("scatter"):
        mean_N = ops.scatter_mean(mean_U, at_U, [at_U.numel()], out_N=out_N)
    return Reduced(mean_N, at_U, at_U.numel() / max(1, out_N.numel()), at_U)


def capacity(density: float, n: int) -> int:
    """Number of elements that fit into a chunk.

    >>> capacity(0.01, 10_000), capacity(1.0, 10_000), capacity(0.001, 100)
    (102, 10000, 1)
    """
    return min(n, max(1, math.ceil((1 + SLACK) * density * n - 1e-9)))


def _share(counts: list[int], x_N: Tensor) -> float:
    return sum(counts) / (len(counts) * max(1, x_N.numel()))
