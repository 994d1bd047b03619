"""Checks the result of a reducer against the contract in docs/tutorials/reducer.md."""
# N = elements of the flat vector, K = indices of one rank or of all ranks

import torch
from torch import Tensor

from sage.ops import union
from sage.reduction.reducer import Reduced

INDICES = (torch.int16, torch.int32, torch.int64)


def fault_of(reduced: object, grad_N: Tensor, *, check_indices: bool) -> str:
    """Describe the first error in the result of a reducer, and what is expected; "" if there is none.

    Args:
        reduced: The result of the reducer.
        grad_N: The gradient passed to the reducer, for size, dtype and device.
        check_indices: Whether to check the values of indices too, which synchronises with the GPU.
    """
    if not isinstance(reduced, Reduced):
        return f"{type(reduced).__name__}, not a Reduced"
    mean_N: object = reduced.mean_N
    n = grad_N.numel()
    if not isinstance(mean_N, Tensor) or mean_N.shape != (n,):
        shown = list(mean_N.shape) if isinstance(mean_N, Tensor) else type(mean_N).__name__
        return f"a mean of {shown}, not of [{n}]"
    if (mean_N.dtype, mean_N.device) != (grad_N.dtype, grad_N.device):
        given, expected = (f"{x.dtype} on {x.device}" for x in (mean_N, grad_N))
        return f"a mean of {given}, not of {expected} as the gradient is"
    if not isinstance(reduced.density, int | float) or not 0 <= reduced.density <= 1:
        return f"density={reduced.density!r}, not a share from 0 to 1"
    sent, union_M = (_fault_of_indices(x, n, check_indices) for x in (reduced.sent, reduced.union_M))
    if sent or union_M:
        return f"sent with {sent}" if sent else f"union_M with {union_M}"
    if check_indices and reduced.sent is not None and len(union(reduced.sent.int(), n)) < len(reduced.sent):
        return "sent with an index that occurs twice, where each is expected once"
    return ""


def _fault_of_indices(at_K: object, n: int, look: bool) -> str:
    if at_K is None:
        return ""
    if not isinstance(at_K, Tensor):
        return f"{type(at_K).__name__}, not with a tensor of indices"
    if at_K.dim() != 1 or at_K.dtype not in INDICES:
        return f"{list(at_K.shape)} elements of {at_K.dtype}, not with one dimension of int32 or int64"
    if look and at_K.numel():
        low, high = (int(x) for x in at_K.aminmax())
        if low < 0 or high >= n:
            return f"the index {low if low < 0 else high}, not with indices from 0 to {n - 1}"
    return ""
