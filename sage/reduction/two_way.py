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
    shares, own = cut(sizes, wire.world_size), wire.rank
    lengths = [sum(share) for share in shares]
    grads = grad_N.split(lengths)
    residuals = [None] * len(shares) if residual_N is None else list(residual_N.split(lengths))
    grad_S, residual_S, share = grads[own], residuals[own], shares[own]
    with phase("select"):
        parts = quantiser.encode(grad_N[:0].float(), [0], wire)
        counts = [_counts(quantiser, share, parts) for share in shares]
        longest = {kind: max(count[kind] for count in counts) for kind in parts}
        sent = {kind: part.new_zeros((wire.world_size, longest[kind])) for kind, part in parts.items()}
        for rank, share_r in enumerate(shares):
            if server_N is None and rank == own:  # its own part stays as it is
                continue
            for kind, part in quantiser.compress(grads[rank], residuals[rank], share_r, wire).items():
                sent[kind][rank, : part.numel()] = part
    received = {kind: wire.all_to_all(rows_W, kind) for kind, rows_W in sent.items()}
    with phase("scatter"):
        rows = {kind: row_W[:, : counts[own][kind]].contiguous() for kind, row_W in received.items()}
        if server_N is None:
            server_S = None
            served = _serve(quantiser, grad_S, residual_S, rows, share, wire)
        else:
            mean_S = quantiser.average(grad_S.float(), rows, share, divisor=1)
            server_S = None if residual_S is None else server_N.split(lengths)[own]
            if server_S is None:
                mean_S.div_(wire.world_size)
            else:
                server_S.add_(mean_S, alpha=1 / wire.world_size)
            served = quantiser.encode(mean_S if server_S is None else server_S, share, wire)
    gathered = wire.gather(**{kind: _padded(part, longest[kind]) for kind, part in served.items()})
    with phase("scatter"):
        for rank, mean_S in enumerate(grads):
            row = {
                kind: all_W[rank : rank + 1, : counts[rank][kind]].contiguous()
                for kind, all_W in zip(served, gathered, strict=True)
            }
            quantiser.average(mean_S, row, shares[rank], divisor=1)
        if server_S is not None:
            ops.keep_error(server_S, grad_S)
    return Reduced(grad_N)


def _serve(
    quantiser: Quantiser,
    grad_S: Tensor,
    residual_S: Tensor | None,
    rows: Mapping[str, Tensor],
    share: Sequence[int],
    wire: Wire,
) -> Parts:
    """Encode the mean of a share from this rank's own part and the others' codes; keep the error, times W.

    Args:
        quantiser: As for `reduce_two_way`.
        grad_S: This rank's gradient in the share; overwritten if it is float32.
        residual_S: This rank's residual in the share.
        rows: All ranks' codes of the share by kind, one row for each rank; its own row is not used.
        share: Number of elements of each group in the share.
        wire: The communicator.
    """
    mean_S = grad_S.float()
    if residual_S is not None:
        mean_S.add_(residual_S)
        residual_S.zero_()
    ranges = (slice(0, wire.rank), slice(wire.rank + 1, wire.world_size))
    others = [each for each in ranges if each.start < each.stop]
    for each in others:
        picked = {kind: row_W[each] for kind, row_W in rows.items()}
        divisor = wire.world_size if each is others[-1] else 1
        quantiser.average(mean_S, picked, share, divisor=divisor, added=True)
    served = quantiser.compress(mean_S, residual_S, share, wire)
    if residual_S is not None and wire.world_size > 1:
        residual_S.mul_(wire.world_size)
    return served


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


def _padded(part: Tensor, length: int) -> Tensor:
    short = length - part.numel()
    return torch.nn.functional.pad(part, (0, short)) if short else part
