"""Runs of the section `ops` by groups or layers: bins, order statistics, Elias streams, words of signs."""
# N = elements of a vector, K = elements taken or in a list, S = bytes or sampled elements
# B = bins, L = layers, G = groups, V = words, W = payloads

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from sage import ops


def binned(grad_N: Tensor, residual_N: Tensor) -> list[Tensor]:
    """Take from AdaComp's bins in three layers, whose entries have 1, 2 and 4 bytes; encode and decode."""
    n = grad_N.numel()
    bins = ops.Bins((n // 7, n // 2, n), (50, 500, 20_000))
    scale_L = torch.tensor([0.5, 1.0, 2.0], device=grad_N.device)
    taken = ops.take_near(grad_N, residual_N, bins, 1.0)
    values_K, at_K, _, counts_B = taken
    left_N = residual_N.clone()
    bytes_S = ops.encode_bins(left_N, at_K, values_K, counts_B, scale_L, bins)
    return [*taken, residual_N, left_N, bytes_S, *ops.decode_bins(bytes_S, scale_L, bins)]


def order_statistics(grad_N: Tensor, residual_N: Tensor) -> list[Tensor]:
    """Run moments with three ranks, lists above limits and their excess, and samples, in three groups."""
    n = grad_N.numel()
    bounds = [0, n // 7, n // 2, n]
    sizes = [b - a for a, b in pairwise(bounds)]
    few = [size // 10 for size in sizes]
    draws_S = ops.random_bits(sum(few), 7, device=grad_N.device)
    sampled = ops.sampled(grad_N, residual_N, bounds, few, [(size + 1) // 2 for size in few], draws_S)
    ranks = [[1, 3, size // 100] for size in sizes]
    found = ops.moments(grad_N, residual_N.clone(), bounds, ranks)
    others, lists = ops.moments_above(grad_N, residual_N, bounds, [0.0, 0.5, 3.0])
    rows = [[*each[:-1], *each.ranked] for each in (*found, *others)]
    results = [torch.tensor(row, dtype=torch.float64) for row in (sampled, *rows)]
    for list_K in lists:
        left_K, *numbers = ops.excess(list_K.clone(), 1.0)
        results += [list_K, left_K, torch.tensor(numbers, dtype=torch.float64)]
    return [*results, residual_N]


def streams(grad_N: Tensor, residual_N: Tensor) -> list[Tensor]:
    """Encode up to 1e6 levels of three groups as Elias streams, and decode these."""
    n = min(grad_N.numel(), 1_000_000)
    sizes = [n // 7, n // 2 - n // 7, n - n // 2]
    results: list[Tensor] = []
    for x_N, dtype in ((grad_N, torch.int8), (residual_N, torch.int32)):
        levels_N = (2 * x_N[:n]).nan_to_num(0.0, 100.0, -100.0).clamp(-100, 100).to(dtype)
        words_V, bits_G = ops.elias.encode_levels(levels_N, sizes)
        results += [words_V, bits_G]
        results += [ops.elias.decode_levels(words_V, bits_G, sizes, d) for d in (torch.int8, torch.float32)]
    return results


def each_above(grad_N: Tensor, residual_N: Tensor) -> list[Tensor]:
    """Take above the thresholds of three groups, with and without a gradient to add."""
    n = grad_N.numel()
    bounds, thresholds = [0, n // 7, n // 2, n], [0.0, 0.5, 3.0]
    results: list[Tensor] = []
    for left_N in (residual_N, None):
        values_K, at_K, counts = ops.take_above_each(grad_N, left_N, bounds, thresholds)
        results += [values_K, at_K, torch.tensor(counts)]
    return [*results, residual_N]


def words(grad_N: Tensor, residual_N: Tensor) -> list[Tensor]:
    """Write the signs of three groups as words of other systems, and read those of two payloads."""
    n = grad_N.numel()
    sizes = [n // 7, n // 2 - n // 7, n - n // 2]
    zero_G = torch.zeros(3, device=grad_N.device)
    results: list[Tensor] = []
    for by_column in (False, True):
        rows = [
            ops.sign_words(ops.sign_bits(x_N, sizes, zero_G, zero_G, keep=False), sizes, by_column=by_column)
            for x_N in (grad_N, residual_N)
        ]
        words_WV = torch.stack(rows)
        results += [words_WV.view(-1), ops.sign_bytes(words_WV, sizes, by_column=by_column).view(-1)]
    return results


BY_GROUP: dict[str, Callable[[Tensor, Tensor], list[Tensor]]] = {
    "AdaComp's bins": binned,
    "moments, ranks, lists and samples": order_statistics,
    "Elias streams": streams,
    "thresholds of groups": each_above,
    "words of signs": words,
}
