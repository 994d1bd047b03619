"""Plain-torch reference of `sage.ops.statistics`."""
# N = elements of the flat vector, G = groups, C = chunks

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

CHUNK, LANES = 1024, 32
"""Elements of a chunk, and the sums that are formed side by side in it; see csrc/cpu/sums.h."""


def statistics(signal_N: Tensor, added_N: Tensor | None, sizes: Sequence[int], kind: int) -> Tensor:
    """Accumulate in one pass, then sum, in others; four rows of float64: sum, other, largest, below."""
    if added_N is not None:
        signal_N.add_(added_N)
    signal_N = signal_N.float()
    rows = signal_N.new_zeros((4, len(sizes)), dtype=torch.float64)
    if kind == 0:
        rows[0] = sums(signal_N.abs(), sizes)
    elif kind == 1:
        is_below_N = signal_N < 0
        rows[0] = sums(torch.where(is_below_N, signal_N, 0), sizes)
        rows[1] = sums(torch.where(is_below_N, 0, signal_N), sizes)
        rows[3] = _of_groups(is_below_N, sizes, torch.count_nonzero)
    elif kind == 2:
        rows[0] = sums(signal_N.double().square(), sizes)
    if kind >= 2:
        rows[2] = _of_groups(signal_N.abs(), sizes, torch.max)
    return rows


def sums(x_N: Tensor, sizes: Sequence[int]) -> Tensor:
    """Σx of each group (float64, G), added in the order that `sage.ops.sums` states."""
    padded = [pad(x, (0, -x.numel() % CHUNK)) for x in x_N.split(list(sizes))]
    x_CRL = torch.cat([x_N.new_zeros(0), *padded]).double().view(-1, CHUNK // LANES, LANES)
    sum_CL = x_CRL.new_zeros(len(x_CRL), LANES)
    for row in range(CHUNK // LANES):
        sum_CL += x_CRL[:, row]
    while sum_CL.shape[1] > 1:
        half = sum_CL.shape[1] // 2
        sum_CL = sum_CL[:, :half] + sum_CL[:, half:]
    return _of_groups(sum_CL.view(-1), [x.numel() // CHUNK for x in padded], _pairwise)


def _pairwise(sum_C: Tensor) -> Tensor:
    """Σ of a group's chunks: adjacent chunks first, then adjacent pairs, and so on."""
    while sum_C.numel() > 1:
        even_C, odd_C = sum_C[::2].clone(), sum_C[1::2]
        even_C[: odd_C.numel()] += odd_C
        sum_C = even_C
    return sum_C[0]


def _of_groups(x_N: Tensor, sizes: Sequence[int], of: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of each group (G), 0 for an empty one."""
    results = [of(x) if x.numel() else x.new_zeros(()) for x in x_N.split(list(sizes))]
    return torch.stack(results).double() if results else x_N.new_zeros(0, dtype=torch.float64)
