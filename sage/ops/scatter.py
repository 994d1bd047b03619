"""The mean over ranks of sparse vectors."""
# N = elements of the flat vector, K = elements selected, M = elements of all ranks together

from collections.abc import Sequence

import torch
from torch import Tensor

from sage.ops import native, reference

_native = torch.ops.sage
native.register("scatter_mean_", lambda out, values, indices, counts, zeroed: None)
native.register("clear_", lambda out, indices: None)


def scatter_mean(
    values_M: Tensor, at_M: Tensor, counts: Sequence[int], out_N: Tensor, *, zeroed: bool = False
) -> Tensor:
    """Mean over ranks of sparse vectors: out = Σ_w scatter(values_w, at_w) / W, written into out_N.

    Args:
        values_M: Values of all ranks, concatenated by rank.
        at_M: Their indices, ascending within each rank. Values with the same index are added.
        counts: Number of values of each of the W ranks.
        out_N: Output; overwritten.
        zeroed: Whether out_N is already 0 everywhere, as after `clear`.
    """
    if values_M.dtype is not out_N.dtype:
        values_M = values_M.to(out_N.dtype)
    if native.takes("scatter_mean_", out_N, values_M, at_M) and at_M.dtype == torch.int32:
        _native.scatter_mean_.default(out_N, values_M, at_M, counts, zeroed)
        return out_N
    return reference.scatter_mean(values_M, at_M, counts, out_N, zeroed=zeroed)


def clear(out_N: Tensor, at_K: Tensor) -> Tensor:
    """Set these elements to zero: faster than zeroing the whole vector if they are few."""
    if native.takes("clear_", out_N, at_K) and at_K.dtype == torch.int32:
        _native.clear_.default(out_N, at_K)
        return out_N
    return out_N.index_fill_(0, at_K.long(), 0)
