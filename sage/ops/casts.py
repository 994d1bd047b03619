"""Casts to 16 bits and back, fused with the other operations of a dense reduction in half precision.

Casts round to nearest, ties to even; a value that is too large becomes infinity, and NaN stays NaN (which of
the NaNs is not defined).
"""
# N = elements of the flat vector, S = elements of one rank's share of it, W = ranks

import torch
from torch import Tensor

from sage.ops import native, reference_casts

_native = torch.ops.sage
native.register("cast_share_", lambda share, grad, residual, world_size: None)
native.register("sum_casts_", lambda out, rows: None)
native.register("widen_", lambda out, x: None)

HALVES = (torch.float16, torch.bfloat16)


def cast_share(
    grad_N: Tensor,
    residual_N: Tensor | None,
    world_size: int,
    dtype: torch.dtype,
    *,
    out_N: Tensor | None = None,
) -> Tensor:
    """The rank's share of the mean, in one pass: s = cast(a/W), where a = residual + gradient.

    Args:
        grad_N: The gradient; without a residual it is the signal a. It is not modified.
        residual_N: Overwritten by the error of the cast, a − s·W; by 0 where that is not finite.
        world_size: Number of ranks, W.
        dtype: Dtype of the share.
        out_N: Output, if it has this dtype and length; allocating a new vector costs as much as the cast.

    Returns:
        s (N). The sum over the ranks of s is the mean of a.
    """
    share_N = out_N
    if share_N is None or (share_N.dtype, share_N.shape, share_N.device) != (
        dtype,
        grad_N.shape,
        grad_N.device,
    ):
        share_N = torch.empty(grad_N.shape, dtype=dtype, device=grad_N.device)
    if dtype in HALVES and native.takes("cast_share_", grad_N, residual_N):
        _native.cast_share_.default(share_N, grad_N, residual_N, world_size)
        return share_N
    return reference_casts.cast_share(share_N, grad_N, residual_N, world_size)


def sum_casts(rows_WS: Tensor, out_S: Tensor) -> Tensor:
    """Sum of the rows, added in float32 in their order, then rounded once to their dtype, in out_S.

    Args:
        rows_WS: One row or more, of float16 or bfloat16.
        out_S: Output of the same dtype; must not overlap the rows.
    """
    if rows_WS.dtype in HALVES and native.takes("sum_casts_", out_S, rows_WS, dtype=rows_WS.dtype):
        _native.sum_casts_.default(out_S, rows_WS.view(-1))
        return out_S
    return reference_casts.sum_casts(rows_WS, out_S)


def widen(x_N: Tensor, out_N: Tensor) -> Tensor:
    """Copy a vector of float16 or bfloat16 into out_N, past the caches if it is long."""
    is_ours = x_N.dtype in HALVES and out_N.dtype is torch.float32 and out_N.is_contiguous()
    if is_ours and out_N.device == x_N.device and native.takes("widen_", x_N, dtype=x_N.dtype):
        _native.widen_.default(out_N, x_N)
        return out_N
    return out_N.copy_(x_N)
