"""Two-way compressed all-reduce: an encoded reduce-scatter, then an encoded all-gather.

Every rank is the server of one share of the vector. All ranks send it their codes of that share; it computes
the mean and sends a code of the mean to all. Each link carries two encoded vectors, whatever the number of
ranks; with an all-gather of codes it carries W.
"""
# N = elements of the vector, S = of a share, W = ranks

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from sage import ops
from sage.comm.wire import Wire
from sage.reduction.quantise import Quantiser, keep_error
from sage.reduction.reducer import Reduced
from sage.timing import phase


def reduce_two_way(
    quantiser: Quantiser,
    grad_N: Tensor,
    residual_N: Tensor | None,
    sizes: Sequence[int],
    wire: Wire,
    *,
    server_N: Tensor | None = None,
) -> Reduced:
    """Compute the mean over ranks, encoded on the way to the share's server and again on the way back.

    With a residual, the errors of both codes are fed back in one of two ways:

    - Without `server_N` (ours): a rank's own part of its share is not sent and therefore not encoded. The
      error of the share's second code, times W, is added to this rank's residual; it is then part of the next
      step's mean, unencoded.
    - With `server_N`, as in dist-EF-SGD (Zheng et al., 2019, Algorithm 2) and BytePS: a rank encodes its own
      part like the others. The server keeps the error of the second code separately, in `server_N`, and adds
      it to the next mean. (The paper scales both errors by η_{t−1}/η_t; `server_N` is not scaled.)

    Args:
        quantiser: Encodes and decodes; the lengths of its parts must follow from the sizes (`even`).
        grad_N: This rank's gradient; overwritten by the mean.
        residual_N: As in `Reducer.forward`.
        sizes: Number of elements of each group; groups are split at the borders of shares.
        wire: The communicator.
        server_N: The server's error; only this rank's share of it is used and updated.
    """
    shares = cut(sizes, wire.world_size)
    own = shares[wire.rank]
    lengths = [sum(share) for share in shares]
    grads = grad_N.split(lengths)
    residuals = [None] * len(shares) if residual_N is None else list(residual_N.split(lengths))
    serves_itself = server_N is None and residual_N is not None  # its own part stays as it is
    with phase("select"):
        coded = [
            quantiser.compress(
                grad_S, None if serves_itself and rank == wire.rank else residual_S, share, wire
            )
            for rank, (grad_S, residual_S, share) in enumerate(zip(grads, residuals, shares, strict=True))
        ]
    received = {kind: wire.all_to_all(_stacked(coded, kind), kind) for kind in coded[0]}
    with phase("scatter"):
        rows = {
            kind: received[kind][:, : part.numel()].contiguous() for kind, part in coded[wire.rank].items()
        }
        total_S = torch.zeros(lengths[wire.rank], device=grad_N.device)
        if server_N is not None:
            quantiser.average(total_S, rows, own, divisor=1)
        else:
            total_S.copy_(ops.accumulate(grads[wire.rank], residuals[wire.rank]))
            others = [rank for rank in range(wire.world_size) if rank != wire.rank]
            if others:
                rows = {kind: row_W[others] for kind, row_W in rows.items()}
                quantiser.average(total_S, rows, own, divisor=1, added=True)
        server_S = None
        if server_N is not None and residual_N is not None:
            server_S = server_N.split(lengths)[wire.rank]
            server_S.add_(total_S, alpha=1 / wire.world_size)
        served = quantiser.encode(total_S / wire.world_size if server_S is None else server_S, own, wire)
    longest = {kind: max(parts[kind].numel() for parts in coded) for kind in served}
    gathered = wire.gather(**{kind: _padded(part, longest[kind]) for kind, part in served.items()})
    with phase("scatter"):
        for rank, (share, mean_S) in enumerate(zip(shares, grads, strict=True)):
            row = {
                kind: all_W[rank : rank + 1, : coded[rank][kind].numel()].contiguous()
                for kind, all_W in zip(served, gathered, strict=True)
            }
            quantiser.average(mean_S, row, share, divisor=1)
            if rank == wire.rank and server_S is not None:
                keep_error(server_S, mean_S)
            if rank == wire.rank and serves_itself and (residual_S := residuals[rank]) is not None:
                residual_S.copy_(total_S.sub_(mean_S, alpha=wire.world_size)).nan_to_num_(0.0, 0.0, 0.0)
    return Reduced(grad_N)


def payload_two_way(quantiser: Quantiser, sizes: Sequence[int], world_size: int) -> dict[str, int]:
    """Payload bytes per rank by kind: W codes as long as the longest share's, and one more."""
    shares = [quantiser.bytes_of(share) for share in cut(sizes, world_size)]
    assert all(share is not None for share in shares)
    known = [share for share in shares if share is not None]
    return {kind: (world_size + 1) * max(share[kind] for share in known) for kind in known[0]}


def cut(sizes: Sequence[int], world_size: int) -> list[list[int]]:
    """Split the groups into W shares of ⌈N/W⌉ elements (the last ones shorter); returns the sizes per share.

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
    """One part of each share's codes, as rows padded to equal length."""
    longest = max(parts[kind].numel() for parts in coded)
    return torch.stack([_padded(parts[kind], longest) for parts in coded])


def _padded(part: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(part, (0, length - part.numel()))
