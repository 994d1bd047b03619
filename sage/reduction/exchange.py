"""How ranks that have selected different elements, and different numbers of them, come to the mean.

| exchange | bytes a rank hands over beside 4 (or 2) a value and 4 an index | what is sent |
|---|---|---|
| `padded` | 8 for the count, and up to the longest payload | what was selected |
| `uneven` | 8 for the count | the same, to the bit |
| `auto` | as the faster of these two in the first steps; 16 once to agree on it | the same, to the bit |
| `chunks` | 8 for the count, and what fills it up to a fixed capacity | at most the capacity: the largest |
| `union` | 8 for the count; values of what any rank selected | all of the union |
| `exclusive` | as `union` | the union; each rank selects in a part of its own |

`padded` and `chunks` gather; `uneven` is a broadcast from each rank; `union` and `exclusive` gather the
indices as `uneven` does, and all-reduce the values, so that the mean costs the same however many ranks there
are.
"""
# N = elements of the vector, K = elements this rank selects, M = of all ranks, U = of the union

import math
from typing import Literal

import torch
from torch import Tensor

from sage import ops
from sage.comm.wire import Wire
from sage.reduction.reducer import Reduced
from sage.timing import phase

Name = Literal["padded", "uneven", "auto", "chunks", "union", "exclusive"]
SLACK = 0.02
"""Room of a chunk beyond the elements that the density asks for."""
TRIALS = 3
"""Steps for which `auto` tries each of its two ways."""


class Padded:
    """Sizes first, then one gather, in which the shorter payloads are padded to the longest."""

    def partition(self, n: int, step: int, wire: Wire) -> tuple[int, int]:
        """Where in the vector this rank selects."""
        return 0, n

    def reduce(
        self,
        signal_N: Tensor,
        own_K: Tensor,
        at_K: Tensor,
        wire: Wire,
        *,
        density: float,
        dtype: torch.dtype,
        keep: bool,
        out_N: Tensor,
    ) -> tuple[Reduced, list[int]]:
        """Send the selection; the mean, what was sent, and how many elements each rank had selected.

        Args:
            signal_N: What the selection was taken from; with `keep`, what is not sent goes back there.
            own_K: The selection's values.
            at_K: Its indices, int32 and ascending.
            density: That was asked for.
            dtype: In which values travel.
            keep: Whether the signal is a residual.
            out_N: Where the mean goes.
        """
        with phase("select"):
            own_K, at_K = self.limit(signal_N, own_K, at_K, density, keep)
            values_K = ops.rounded(signal_N, own_K, at_K, dtype=dtype, keep=keep)
        counts, (values_M, at_M) = self.gather(values_K, at_K, wire, density, signal_N.numel())
        with phase("scatter"):
            mean_N = ops.scatter_mean(values_M, at_M, counts, out_N=out_N)
        return Reduced(mean_N, at_K, _share(counts, out_N), at_M), counts

    def limit(
        self, signal_N: Tensor, own_K: Tensor, at_K: Tensor, density: float, keep: bool
    ) -> tuple[Tensor, Tensor]:
        """What may be sent of the selection."""
        return own_K, at_K

    def gather(
        self, values_K: Tensor, at_K: Tensor, wire: Wire, density: float, n: int
    ) -> tuple[list[int], tuple[Tensor, ...]]:
        """All ranks' counts, values and indices."""
        return wire.gather_uneven(values=values_K, indices=at_K)

    def payload(
        self, counts: list[int], rank: int, item: int, density: float, n: int
    ) -> dict[str, int] | None:
        """The bytes this rank hands over, by kind, where they follow from the counts that were sent."""
        own = counts[rank]
        padding = (item + 4) * (max(counts) - own)
        return {"sizes": 8, "values": item * own, "indices": 4 * own, "padding": padding}

    def report(self) -> dict[str, float]:
        """What is worth recording of the last step."""
        return {}


class Uneven(Padded):
    """Sizes first, then a broadcast from each rank, all at once: nothing is padded."""

    def gather(
        self, values_K: Tensor, at_K: Tensor, wire: Wire, density: float, n: int
    ) -> tuple[list[int], tuple[Tensor, ...]]:
        return wire.gather_ragged(values=values_K, indices=at_K)

    def payload(
        self, counts: list[int], rank: int, item: int, density: float, n: int
    ) -> dict[str, int] | None:
        return {"sizes": 8, "values": item * counts[rank], "indices": 4 * counts[rank]}


class Auto(Padded):
    """`padded` and `uneven` in turn, and then the one whose fastest step was the faster on the slowest rank.

    Both give the same to the bit, so that a choice by the clock changes no result. What was measured
    holds for this machine and these ranks: no checkpoint keeps it, and a run that goes on measures again.
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
    """One gather of chunks as long as the density asks for and 2 % more; what is beyond stays behind."""

    def limit(
        self, signal_N: Tensor, own_K: Tensor, at_K: Tensor, density: float, keep: bool
    ) -> tuple[Tensor, Tensor]:
        room = capacity(density, signal_N.numel())
        if at_K.numel() <= room:
            return own_K, at_K
        sent_K = torch.zeros_like(at_K, dtype=torch.bool)
        sent_K[ops.select_top(own_K, room)] = True
        if keep:
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
    """Indices are gathered; then every rank sends its values at all of them, by an all-reduce (ExDyna)."""

    def reduce(
        self,
        signal_N: Tensor,
        own_K: Tensor,
        at_K: Tensor,
        wire: Wire,
        *,
        density: float,
        dtype: torch.dtype,
        keep: bool,
        out_N: Tensor,
    ) -> tuple[Reduced, list[int]]:
        counts, (at_M,) = wire.gather_ragged(indices=at_K)
        if keep:
            signal_N[at_K] = own_K
        return mean_at(signal_N, at_M.unique(), wire, dtype=dtype, keep=keep, out_N=out_N), counts

    def payload(
        self, counts: list[int], rank: int, item: int, density: float, n: int
    ) -> dict[str, int] | None:
        return None


class Exclusive(Union):
    """A union whose parts never overlap: rank r selects in part (t + r) mod W of the vector (MiCRO)."""

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
"""The exchanges by the names that `--exchange` gives them."""


def mean_at(
    signal_N: Tensor, at_U: Tensor, wire: Wire, *, dtype: torch.dtype, keep: bool, out_N: Tensor
) -> Reduced:
    """The mean over ranks at places (ascending) that all of them know, by an all-reduce of values."""
    with phase("select"):
        values_U = ops.take(signal_N, at_U, dtype=dtype, keep=keep)
    # Divided first, the sum of halves does not overflow.
    mean_U = wire.sum(values_U.div_(wire.world_size))
    with phase("scatter"):
        mean_N = ops.scatter_mean(mean_U, at_U, [at_U.numel()], out_N=out_N)
    return Reduced(mean_N, at_U, at_U.numel() / max(1, signal_N.numel()), at_U)


def capacity(density: float, n: int) -> int:
    """Elements that a chunk has room for.

    >>> capacity(0.01, 10_000), capacity(1.0, 10_000), capacity(0.001, 100)
    (102, 10000, 1)
    """
    return min(n, max(1, math.ceil((1 + SLACK) * density * n - 1e-9)))


def _share(counts: list[int], x_N: Tensor) -> float:
    return sum(counts) / (len(counts) * max(1, x_N.numel()))
