"""Codes that scale as all-reduce does: each rank serves a share of the vector (reduce-scatter, all-gather).

Every rank sends its codes of each share to the rank that serves it, which takes the mean and sends a code of
that to all. So each link carries two vectors of codes, however many ranks there are; a gather's carries W.
"""
# N = elements of the vector, S = of a share, W = ranks

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from sage import ops
from sage.clock import phase
from sage.coding.quantise import Quantiser, keep_error
from sage.comm.wire import Wire
from sage.reduce import Reduced


def reduce_served(
    quantiser: Quantiser, grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int], wire: Wire
) -> Reduced:
    """The mean over ranks, coded on its way to the ranks that serve it and once more on its way from them.

    Both codes' errors are fed back where there is a residual. A rank's own part of its share crosses no link
    and is not coded; so its residual has room for W times what the code of the share's mean has lost, which
    then is part of that mean at the next step, uncoded. (BytePS codes that part too, and has its servers keep
    their errors apart, as Zheng et al., 2019.)

    Args:
        quantiser: What codes; the lengths of its parts follow from sizes (`even`).
        grad_N: Overwritten by the mean.
        residual_N: As in `Reducer.forward`.
        sizes: Of the groups, each of which is cut where shares meet.
    """
    shares = cut(sizes, wire.world_size)
    own = shares[wire.rank]
    with phase("select"):
        signals = ops.accumulate(grad_N, residual_N).split([sum(share) for share in shares])
        coded = [quantiser.encode(x_S, share, wire) for x_S, share in zip(signals, shares, strict=True)]
    received = {kind: wire.all_to_all(_stacked(coded, kind), kind) for kind in coded[0]}
    with phase("scatter"):
        total_S = signals[wire.rank].to(torch.float32, copy=True)
        for rank in range(wire.world_size):
            if rank != wire.rank:
                row = {k: received[k][rank, : part.numel()] for k, part in coded[wire.rank].items()}
                total_S += quantiser.decode(row, own)
        served = quantiser.encode(total_S / wire.world_size, own, wire)
    longest = {kind: max(parts[kind].numel() for parts in coded) for kind in served}
    gathered = wire.gather(**{kind: _padded(part, longest[kind]) for kind, part in served.items()})
    with phase("scatter"):
        means = grad_N.split([sum(share) for share in shares])
        for rank, (share, mean_S) in enumerate(zip(shares, means, strict=True)):
            row = {
                k: all_W[rank, : coded[rank][k].numel()] for k, all_W in zip(served, gathered, strict=True)
            }
            mean_S.copy_(quantiser.decode(row, share))
            if residual_N is not None and rank == wire.rank:
                signals[rank].copy_(total_S.sub_(mean_S, alpha=wire.world_size)).nan_to_num_(0.0, 0.0, 0.0)
            elif residual_N is not None:
                keep_error(signals[rank], quantiser.decode(coded[rank], share))
    return Reduced(grad_N)


def payload_served(quantiser: Quantiser, sizes: Sequence[int], world_size: int) -> dict[str, int]:
    """The bytes each rank hands over, by kind: W codes as long as the longest, and then one more."""
    shares = [quantiser.bytes_of(share) for share in cut(sizes, world_size)]
    assert all(share is not None for share in shares)
    known = [share for share in shares if share is not None]
    return {kind: (world_size + 1) * max(share[kind] for share in known) for kind in known[0]}


def cut(sizes: Sequence[int], world_size: int) -> list[list[int]]:
    """W shares of groups: each ⌈N/W⌉ elements, the last ones what is left, as the sizes of its groups' parts.

    >>> cut([3, 2, 5], 3)
    [[3, 1], [1, 3], [2]]
    """
    length = -(-sum(sizes) // world_size)
    ends = accumulate(sizes)
    stops = sorted({*ends, *(min(sum(sizes), rank * length) for rank in range(1, world_size + 1))} - {0})
    shares: list[list[int]] = [[] for _ in range(world_size)]
    for start, stop in zip([0, *stops], stops, strict=False):
        shares[start // length].append(stop - start)
    return shares


def _stacked(coded: Sequence[Mapping[str, Tensor]], kind: str) -> Tensor:
    """One part of each share's codes, as rows of equal length."""
    longest = max(parts[kind].numel() for parts in coded)
    return torch.stack([_padded(parts[kind], longest) for parts in coded])


def _padded(part: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(part, (0, length - part.numel()))
