"""Two-way compressed all-reduce: an encoded reduce-scatter, then an encoded all-gather.

Every rank is the server of one share of the vector. All ranks send it their codes of that share; it computes
the mean and sends a code of the mean to all. Each link carries two encoded vectors, whatever the number of
ranks; with an all-gather of codes it carries W.
"""
# N = elements of the vector, S = of a share, W = ranks

from collections.abc import Mapping, Sequence
from itertools import accumulate

from torch import Tensor

from sage import ops
from sage.comm.wire import Wire
from sage.reduction.quantise import Parts, Quantiser
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
      error of the share's second code, times W, becomes this rank's residual of the share; it is then part of
      the next step's mean, unencoded.
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
    shares, this_rank = cut(sizes, wire.world_size), wire.rank
    lengths = [sum(share) for share in shares]
    grads = grad_N.split(lengths)
    residuals = [None] * len(shares) if residual_N is None else list(residual_N.split(lengths))
    grad_S, residual_S, share = grads[this_rank], residuals[this_rank], shares[this_rank]
    with phase("select"):
        parts = quantiser.encode(grad_N[:0].float(), [0], wire)
        counts = [_counts(quantiser, share, parts) for share in shares]
        longest = {kind: max(count[kind] for count in counts) for kind in parts}
        memory = _memory(counts, parts, this_rank, wire)
        codes = [parts] * wire.world_size
        for rank, share_r in enumerate(shares):
            if rank != this_rank:
                rows = {kind: part.new_empty((0, counts[rank][kind])) for kind, part in parts.items()}
                codes[rank] = quantiser.compress_mean(
                    grads[rank], residuals[rank], rows, share_r, wire, out=memory[rank]
                )
            elif server_N is not None:  # otherwise its own part stays as it is
                codes[rank] = quantiser.compress(grads[rank], residuals[rank], share_r, wire)
    received = {
        kind: wire.all_to_all_others([code[kind] for code in codes], [count[kind] for count in counts], kind)
        for kind in parts
    }
    with phase("scatter"):
        if server_N is None:
            server_S = None
            out = {
                kind: wire.row_to_gather(kind, longest[kind], part)[: counts[this_rank][kind]]
                for kind, part in parts.items()
            }
            served = quantiser.compress_mean(grad_S, residual_S, received, share, wire, out=out)
        else:
            before = {kind: row_W[:this_rank] for kind, row_W in received.items()}
            after = {kind: row_W[this_rank:] for kind, row_W in received.items()}
            own_row = {kind: part[None] for kind, part in codes[this_rank].items()}
            mean_S = _add(quantiser, grad_S.float().zero_(), (before, own_row, after), share, divisor=1)
            server_S = None if residual_S is None else server_N.split(lengths)[this_rank]
            if server_S is None:
                mean_S.div_(wire.world_size)
            else:
                server_S.add_(mean_S, alpha=1 / wire.world_size)
            served = quantiser.encode(mean_S if server_S is None else server_S, share, wire)
    gathered = wire.gather_rows(longest, **served)
    with phase("scatter"):
        for rank, mean_S in enumerate(grads):
            row = {
                kind: all_W[rank : rank + 1, : counts[rank][kind]]
                for kind, all_W in zip(served, gathered, strict=True)
            }
            quantiser.average(mean_S, row, shares[rank], divisor=1)
        if server_S is not None:
            ops.keep_error(server_S, grad_S)
    return Reduced(grad_N)


def _memory(counts: Sequence[Mapping[str, int]], parts: Parts, this_rank: int, wire: Wire) -> list[Parts]:
    """Memory for the code of each share but this rank's own: the parts of one kind are adjacent."""
    lengths = {
        kind: [0 if rank == this_rank else count[kind] for rank, count in enumerate(counts)] for kind in parts
    }
    pieces = {
        kind: wire.scratch.take(f"two_way {kind}", (sum(lengths[kind]),), part).split(lengths[kind])
        for kind, part in parts.items()
    }
    return [{kind: pieces[kind][rank] for kind in parts} for rank in range(len(counts))]


def _add(
    quantiser: Quantiser,
    out_S: Tensor,
    runs: Sequence[Mapping[str, Tensor]],
    share: Sequence[int],
    *,
    divisor: int,
) -> Tensor:
    """Add codes of a share to `out_S` in their order, and divide if there are any.

    Args:
        quantiser: Decodes.
        out_S: The first summand; becomes the result.
        runs: Codes by kind, one row for each of several ranks; any may have no row.
        share: Number of elements of each group in the share.
        divisor: The sum is divided by it.
    """
    some = [rows for rows in runs if len(next(iter(rows.values())))]
    for rows in some:
        last = divisor if rows is some[-1] else 1
        quantiser.average(out_S, rows, share, divisor=last, added=True)
    return out_S


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


def _counts(quantiser: Quantiser, share: Sequence[int], parts: Mapping[str, Tensor]) -> dict[str, int]:
    """Number of elements of each part of the code of a share."""
    known = quantiser.bytes_of(share)
    assert known is not None
    return {kind: known[kind] // part.element_size() for kind, part in parts.items()}
