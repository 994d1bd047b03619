"""Plain-torch references of `sage.ops.casts`, which documents each function."""
# N = elements of the flat vector, S = elements of one rank's share of it, W = ranks

from torch import Tensor


def cast_share(share_N: Tensor, grad_N: Tensor, residual_N: Tensor | None, world_size: int) -> Tensor:
    """Accumulate, divide, cast and subtract, in separate passes."""
    signal_N = grad_N if residual_N is None else residual_N.add_(grad_N)
    share_N.copy_(signal_N / world_size)
    if residual_N is not None:
        residual_N -= share_N.to(residual_N.dtype) * world_size
        residual_N.nan_to_num_(0.0, 0.0, 0.0)  # the mean has NaN and infinity
    return share_N


def sum_casts(rows_WS: Tensor, out_S: Tensor) -> Tensor:
    """Add row by row, so that the order of the additions is fixed."""
    total_S = rows_WS[0].float()
    for row_S in rows_WS[1:]:
        total_S += row_S
    return out_S.copy_(total_S)
