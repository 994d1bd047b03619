"""The ops that the section `ops` compares: each run takes two vectors and returns all results."""
# N = elements of a vector, K = elements selected, B = bytes, P = buckets, W = payloads

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.group_runs import BY_GROUP
from sage import ops
from sage.ops.gather import gather_

Run = Callable[[Tensor, Tensor], list[Tensor]]
"""Applies ops to a gradient and a residual, which they may overwrite; returns all results."""


def above(grad_N: Tensor, residual_N: Tensor, threshold: float) -> list[Tensor]:
    """Run `take_above`, `select_above`, `count_above` and the histogram."""
    selected = ops.select_above(grad_N, threshold)
    count = torch.tensor(ops.count_above(grad_N, threshold))
    bins = torch.zeros(ops.NUM_BINS, dtype=torch.int32, device=grad_N.device)
    selection = ops.take_above(grad_N, residual_N, threshold, bins=bins, every=2)
    return [selected, count, *selection, residual_N, grad_N, bins, ops.histogram(residual_N)]


def top(grad_N: Tensor, residual_N: Tensor, density: float) -> list[Tensor]:
    """Run `take_top` on three groups, and `select_top`."""
    n = grad_N.numel()
    bounds = [0, n // 7, n // 2, n]
    counts = [int(density * (b - a)) for a, b in zip(bounds, bounds[1:], strict=False)]
    selected = ops.select_top(grad_N, sum(counts))
    return [selected, *ops.take_top(grad_N, residual_N, bounds, counts), residual_N, grad_N]


def sparse_mean(grad_N: Tensor, residual_N: Tensor) -> list[Tensor]:
    """Run `scatter_mean` of two ranks, `clear`, and the codes of indices."""
    n = grad_N.numel()
    at_K = ops.select_above(grad_N, 0.5).int()
    mean_N = ops.scatter_mean(
        torch.cat([grad_N[at_K.long()], residual_N[at_K.long()]]),
        torch.cat([at_K, at_K]),
        [at_K.numel()] * 2,
        torch.empty_like(grad_N),
    )
    results = [mean_N.clone(), ops.clear(mean_N, at_K)]
    gaps_B, bits_B = ops.encode_gaps(at_K), ops.encode_bitmap(at_K, n)
    return [*results, gaps_B, ops.decode_gaps(gaps_B, at_K.numel()), bits_B, ops.decode_bitmap(bits_B)]


def packed(grad_N: Tensor, residual_N: Tensor) -> list[Tensor]:
    """Pack and unpack codes of 1 to 8 bits."""
    n = grad_N.numel()
    results: list[Tensor] = []
    for bits in (1, 2, 3, 4, 8):
        codes_N = (grad_N.view(torch.int32) & (1 << bits) - 1).to(torch.uint8)
        bytes_B = ops.pack(codes_N, bits)
        results += [bytes_B, ops.unpack(bytes_B, bits, n)]
    return results


def signs(grad_N: Tensor, residual_N: Tensor) -> list[Tensor]:
    """Run statistics of three groups, signs with the error, the mean of two payloads, and Philox's bits."""
    n = grad_N.numel()
    sizes = [n // 7, n // 2 - n // 7, n - n // 2]
    results = [
        row_G for kind in ops.Kind for row_G in ops.statistics(grad_N, residual_N.clone(), sizes, kind)
    ]
    low_G = torch.tensor([-1.0, -0.5, -0.3], device=grad_N.device)
    bytes_B = ops.sign_bits(residual_N, sizes, low_G, -low_G, keep=True)
    low_WG, bytes_WB = torch.stack([low_G, 3 * low_G]), torch.stack([bytes_B, bytes_B.flip(0)])
    mean_N = ops.mean_signs(torch.empty_like(grad_N), bytes_WB, sizes, low_WG, -low_WG, divisor=2)
    return [*results, residual_N, bytes_B, mean_N, ops.random_bits(n, 7, device=grad_N.device)]


def quantised(grad_N: Tensor, residual_N: Tensor) -> list[Tensor]:
    """Run `quantise`, `quantise_mean` of two payloads, and `average`, with buckets of 256 and of 4,096."""
    n = grad_N.numel()
    sizes = [n // 7, n // 2 - n // 7, n - n // 2]
    results: list[Tensor] = []
    codecs = ops.Codec.INT8, ops.Codec.E4M3, ops.Codec.E2M1, ops.Codec.TREE, ops.Codec.LINEAR
    for codec, bucket in itertools.product(codecs, (256, 4096)):
        coding = ops.Coding(codec, 7, bucket)
        left_N = residual_N.clone()
        codes_B, scale_P = ops.quantise(grad_N, left_N, sizes, coding, key=5)
        rows_WB, scale_WP = torch.stack([codes_B, codes_B.flip(0)]), torch.stack([scale_P, 3 * scale_P])
        results += [codes_B, scale_P, left_N.clone()]
        if codec is not ops.Codec.LINEAR:
            results += ops.quantise_mean(grad_N, left_N, rows_WB, scale_WP, sizes, coding, divisor=3)
        mean_N = ops.average(torch.empty_like(grad_N), rows_WB, scale_WP, sizes, coding, divisor=2)
        results += [left_N, mean_N]
    return results


def microscaled(grad_N: Tensor, residual_N: Tensor) -> list[Tensor]:
    """Find the largest magnitudes of blocks of 16, 32 and 100, and the scales of three tensors."""
    n, results = grad_N.numel(), [residual_N]
    sizes = [n // 7, n // 2 - n // 7, n - n // 2]
    for block in (16, 32, 100):
        results += [ops.largest_of_blocks(grad_N, own_N, sizes, block) for own_N in (None, residual_N)]
    bytes_B, scale_N = ops.encode_tensor_scales(ops.largest_of_blocks(grad_N, None, [n], 1), sizes)
    results += [bytes_B, scale_N, ops.decode_tensor_scales(bytes_B, sizes)]
    return results


def transformed(grad_N: Tensor, residual_N: Tensor) -> list[Tensor]:
    """Run `hadamard` and its inverse with buckets of 16 and of 4,096."""
    n = grad_N.numel()
    sizes = [n // 7, n // 2 - n // 7, n - n // 2]
    return [
        ops.hadamard(x_N.clone(), sizes, bucket, key=5, inverse=inverse)
        for x_N, bucket, inverse in itertools.product((grad_N, residual_N), (16, 4096), (False, True))
    ]


def integers(grad_N: Tensor, residual_N: Tensor) -> list[Tensor]:
    """Round to integers of two tables, add those of three rows, and decode the sums."""
    n, device = grad_N.numel(), grad_N.device
    bounds_P = torch.tensor([0, n // 7, n // 2, n], dtype=torch.int32, device=device)
    step_P, results = torch.tensor([0.1, 0.3, 0.7], device=device), list[Tensor]()
    for levels in ((0, 3, 5, 7, 9, 11, 13, 16), tuple(range(0, 256, 5))):
        left_N, most = residual_N.clone(), levels[-1]
        rows_WB = ops.quantise_integers(left_N, bounds_P, step_P, levels, key=5, shares=3, keep=True)
        sum_B = ops.sum_integers(rows_WB, levels, -(-n // 3))
        mean_N, bits = torch.empty_like(grad_N), (3 * most).bit_length()
        ops.average_integers(mean_N, sum_B.repeat(3, 1), bits, bounds_P, step_P, most=most, num=3)
        whole = ops.quantise_integers(grad_N, bounds_P, step_P, levels, key=6, packed=False, keep=False)
        results += [rows_WB.view(-1), left_N, sum_B, mean_N, whole.view(-1)]
    return results


def casts(grad_N: Tensor, residual_N: Tensor) -> list[Tensor]:
    """Run the casts to 16 bits for 2 and for 3 ranks, the sum of three rows, and the casts back."""
    results: list[Tensor] = []
    for dtype, world_size in itertools.product((torch.float16, torch.bfloat16), (2, 3)):
        left_N = residual_N.clone()
        share_N = ops.cast_share(grad_N, left_N, world_size, dtype)
        rows_WN = torch.stack([share_N, share_N.flip(0), share_N])
        sum_N = ops.sum_casts(rows_WN, torch.empty_like(share_N))
        results += [share_N.float(), left_N, sum_N.float(), ops.widen(share_N, torch.empty_like(grad_N))]
    return results


def gathered(grad_N: Tensor, residual_N: Tensor) -> list[Tensor]:
    """Draw elements, take them, unite them with others, and look them up."""
    n = grad_N.numel()
    bounds = [0, n // 7, n // 2, n]
    densities = (0.01, 0.1, 0.7) if n < 1_000_000 else (0.001, 0.01, 0.001)  # the reference takes its time
    counts = [int(d * (b - a)) for d, a, b in zip(densities, bounds, bounds[1:], strict=False)]
    at_K = ops.draw_indices(grad_N, bounds, counts, 5, distinct=True)
    other_K = ops.draw_indices(grad_N, bounds, counts, 6, distinct=False)
    values_K = gather_(residual_N, grad_N, torch.cat([at_K, at_K[:3]]), keep=True)
    return [
        *(at_K, other_K, values_K, residual_N),
        *ops.unite(torch.cat([other_K, at_K]), n),
        ops.is_among(at_K, other_K, n),
    ]


def chunked(grad_N: Tensor, residual_N: Tensor) -> list[Tensor]:
    """Take the largest of runs of 4,096 elements, and of tiles of 64 × 64 of a matrix with 64 rows."""
    n = grad_N.numel()
    runs = [(start, 64) for start in range(0, n, 4096)]
    tiles = [(64 * tile, n // 64) for tile in range(n // 4096)]
    results: list[Tensor] = []
    for places, density in itertools.product((runs, tiles), (1 / 64, 0.3)):
        lengths = [min(4096, n - first) for first, _ in places]
        counts = [max(1, int(density * length)) for length in lengths]
        table_P4 = ops.chunk_table(places, lengths, counts).to(grad_N.device)
        results += [*ops.largest_of_chunks(grad_N, table_P4, sum(counts))]
    return results


def errors(grad_N: Tensor, residual_N: Tensor) -> list[Tensor]:
    """Run `keep_error`, the signs of a momentum, and products with thin matrices, some of them on the CPU."""
    n = grad_N.numel()
    left_N, momentum_N = residual_N.clone(), residual_N.clone()
    ops.keep_error(left_N, grad_N)
    results = [left_N, momentum_N, *ops.momentum_signs(momentum_N, grad_N, 0.9)]
    rows = min(n // 4, 1000)
    columns = n // 4 // max(rows, 1)
    own, out = residual_N[: rows * columns].view(rows, columns).clone(), grad_N.new_empty(rows, columns)
    left, right = grad_N[: 3 * rows].view(rows, 3), grad_N[n - 3 * columns :].view(columns, 3).T
    ops.write_product(left, right, out, own)
    results += [out.view(-1), own.view(-1)]
    if rows * columns:  # on a GPU it is torch's product, whose order of sums is not defined
        matrix, bases = own.cpu(), ((right.T.cpu(), False), (left.cpu(), True))
        results += [ops.thin_product(matrix, basis, transposed=t).reshape(-1) for basis, t in bases]
    return results


RUNS: dict[str, Run] = {
    **{f"above {t:g}": partial(above, threshold=t) for t in (0.0, 0.5, 3.0)},
    **{f"top {d:g}": partial(top, density=d) for d in (0.001, 0.1, 1.0)},
    "sparse mean and indices": sparse_mean,
    "packing": packed,
    "statistics, signs and their mean": signs,
    "quantisers and their mean": quantised,
    "scales of blocks": microscaled,
    "Hadamard transforms": transformed,
    "integers of a table": integers,
    "casts and their mean": casts,
    "random and given elements": gathered,
    "the largest of chunks": chunked,
    "errors, momentum and products": errors,
    **BY_GROUP,
}


class Called(TorchDispatchMode):
    """Collects the names of SAGE's ops that run within it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "sage":
            self.names.add(func.__name__.partition(".")[0])
        return func(*args, **(kwargs or {}))


def uncalled(device: str) -> list[str]:
    """Names of the ops that no run calls on this device."""
    with Called() as called:
        for run in RUNS.values():
            run(torch.randn(1000, device=device), torch.randn(1000, device=device))
    return sorted(set(ops.native.OPS) - called.names)
