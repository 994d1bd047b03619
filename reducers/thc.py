"""thc: integers whose sum is the sum of the messages, after a Hadamard transform (Li et al., NSDI 2024)."""
# N = elements of the vector, S = of a share, P = parts that are transformed, W = ranks, B = bytes, L = levels

from collections.abc import Sequence
from functools import cache
from math import ceil, erf, exp, pi, sqrt
from statistics import NormalDist
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sage.reduction import Reduced, Reducer, Wire, ops, phase, seed_at


class Thc(Reducer):
    """Tensor homomorphic compression: ranks send level numbers, and only integers are added.

    Li et al., NSDI 2024 (arXiv 2302.08545); the formulas here were read in the authors' code
    (SophiaLi06/BytePS_THC@a6af970). The signal is transformed by a randomised Hadamard matrix with the same
    random signs on all ranks, in parts of `block` elements; the rest is cut into powers of two. In each part,
    of d elements, ranks agree on the largest of their Euclidean norms, n. The coordinates times √d/n are
    about normal; they are clipped to ±T and rounded at random, without bias, to one of `levels` values that
    are integers from 0 to `granularity` = g, on a grid from −T to T. A level's number is what is sent. The
    integers are added over ranks, and their sum is decoded once: (Σ/W − g/2)·2T/g·n/√d. The error of a rank's
    own values is fed back. T is the quantile beyond which a standard normal number lies with the probability
    `overflow`, and the levels have the least expected squared error for such numbers: from 0 to g, found by
    dynamic programming.

    The paper has one norm for up to 8·2²⁰ elements, padded to a power of two; here a part is at most 8,192
    elements and nothing is padded. In place of the paper's server every rank is the server of 1/W of the
    vector.

    Payload bytes per rank: 4 per part (`scales`), and by `exchange` (`values`):

    - `ps`: level numbers, ⌈log2 levels⌉ bits each, of ⌈N/W⌉ elements for each of W ranks, and one code of
      ⌈N/W⌉ sums of ⌈log2(W·g + 1)⌉ bits each, all in whole bytes.
    - `all-reduce`: the integers, 1 byte each, or 4 if W·g is 256 or more.

    Args:
        levels: Number of levels, from 2 to granularity + 1.
        granularity: The largest integer g, from 1 to 255.
        overflow: Probability that a normal number is clipped, above 0 and below 1.
        block: Number of elements that are transformed together: a power of two from 16 to 8192.
        exchange: How integers are added: by the ranks as servers (`ps`), or by an all-reduce.
        rounding_seed: Seed of the random rounding and of the transform's signs.

    Raises:
        ValueError: if an option is out of range.
    """

    memory = "residual"
    decides_by = "group"
    rounds = True
    precision = 2.0**-17
    step: Tensor

    def __init__(
        self,
        *,
        levels: int = 8,
        granularity: int = 16,
        overflow: float = 0.03125,
        block: int = 4096,
        exchange: Literal["ps", "all-reduce"] = "ps",
        rounding_seed: int = 0,
    ) -> None:
        super().__init__()
        if not 1 <= granularity <= 255:
            raise ValueError(f"granularity={granularity!r}: expected 1 to 255")
        if not 2 <= levels <= granularity + 1:
            raise ValueError(f"levels={levels!r}: expected 2 to {granularity + 1}, the granularity plus 1")
        if not 0 < overflow < 1:
            raise ValueError(f"overflow={overflow!r}: expected a probability above 0 and below 1")
        if block not in ops.HADAMARD_BLOCKS:
            raise ValueError(f"block={block!r}: expected a power of two from 16 to {ops.HADAMARD_BLOCKS[-1]}")
        if exchange not in ("ps", "all-reduce"):
            raise ValueError(f"exchange={exchange!r}: expected ps or all-reduce")
        self._block, self._exchange, self._seed, self._most = block, exchange, rounding_seed, granularity
        self._limit = NormalDist().inv_cdf(1 - overflow / 2)
        self._levels = best_levels(levels, granularity, self._limit)
        self._bits = (levels - 1).bit_length()
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        self.step += 1
        transform_key = seed_at(self._seed, int(self.step))
        key = seed_at(self._seed, int(self.step), wire.rank)
        with phase("select"):
            signal_N = ops.accumulate(grad_N, residual_N).float()
            ops.hadamard(signal_N, self._sizes, self._block, key=transform_key)
            lengths = part_lengths(self._sizes, self._block)
            norm_P = norms(signal_N, lengths)
        (norm_WP,) = wire.gather(scales=norm_P)
        with phase("select"):
            step_N = self._steps(norm_WP.amax(0), lengths)
            code_N = self._codes(signal_N, step_N, key)
            if residual_N is not None:
                residual_N.sub_(self._values(self._integers(code_N), 1, step_N)).nan_to_num_(0.0, 0.0, 0.0)
                ops.hadamard(residual_N, self._sizes, self._block, key=transform_key, inverse=True)
        sum_N = self._sum(code_N, wire)
        with phase("scatter"):
            mean_N = self._values(sum_N, wire.world_size, step_N)
            ops.hadamard(mean_N, self._sizes, self._block, key=transform_key, inverse=True)
            return Reduced(grad_N.copy_(mean_N))

    def _steps(self, norm_P: Tensor, lengths: Sequence[int]) -> Tensor:
        """The value of 1 in units of the integers, for each element: 2T/g·n/√d (float32, N)."""
        length_P = torch.tensor(lengths, dtype=torch.int64, device=norm_P.device)
        step_P = norm_P / length_P.sqrt() * (2 * self._limit / self._most)
        return step_P.float().repeat_interleave(length_P)

    def _codes(self, signal_N: Tensor, step_N: Tensor, key: int) -> Tensor:
        """The number of the level of each element (uint8, N); any, where a number is not finite."""
        level_L = torch.tensor(self._levels, dtype=torch.float32, device=signal_N.device)
        place_N = (signal_N / step_N).nan_to_num_(0.0).add_(self._most / 2).clamp_(0, self._most)
        low_N = torch.bucketize(place_N, level_L, right=True).sub_(1).clamp_(max=len(self._levels) - 2)
        share_N = (place_N - level_L[low_N]) / (level_L[1:] - level_L[:-1])[low_N]
        bits_N = ops.random_bits(
            signal_N.numel(), key, positions=self.layout.positions, device=signal_N.device
        )
        return low_N.add_(bits_N.float().add_(0.5).mul_(2.0**-16) < share_N).to(torch.uint8)

    def _integers(self, code_N: Tensor) -> Tensor:
        return torch.tensor(self._levels, dtype=torch.int32, device=code_N.device)[code_N.int()]

    def _values(self, sum_N: Tensor, num: int, step_N: Tensor) -> Tensor:
        """Decode sums of `num` integers to their mean (float32, N)."""
        return (2 * sum_N - num * self._most).float().div_(2 * num).mul_(step_N)

    def _sum(self, code_N: Tensor, wire: Wire) -> Tensor:
        """The sums over ranks of the integers (int32, N)."""
        if self._exchange == "all-reduce":
            integer_N = self._integers(code_N)
            return wire.sum(
                integer_N.to(torch.uint8) if wire.world_size * self._most < 256 else integer_N
            ).int()
        n, length = code_N.numel(), ceil(code_N.numel() / wire.world_size)
        shares_WS = F.pad(code_N, (0, length * wire.world_size - n)).view(wire.world_size, length)
        codes_WB = wire.all_to_all(torch.stack([ops.pack(code_S, self._bits) for code_S in shares_WS]))
        sum_S = torch.zeros(length, dtype=torch.int32, device=code_N.device)
        for code_B in codes_WB:
            sum_S += self._integers(ops.unpack(code_B, self._bits, length))
        bits = (wire.world_size * self._most).bit_length()
        (packed_WB,) = wire.gather(values=pack_wide(sum_S, bits))
        return torch.cat([unpack_wide(packed_B, bits, length) for packed_B in packed_WB])[:n]

    @property
    def _sizes(self) -> list[int]:
        return [stop - start for start, stop in self.layout.groups]

    def payload(self, counts: list[int], rank: int) -> dict[str, int]:
        n, world_size = counts[rank], len(counts)
        scales = 4 * len(part_lengths(self._sizes, self._block))
        if self._exchange == "all-reduce":
            return {"values": n * (1 if world_size * self._most < 256 else 4), "scales": scales}
        length, bits = ceil(n / world_size), (world_size * self._most).bit_length()
        codes = ceil(length * self._bits / 8)
        sums = sum(ceil(length * width / 8) for width in widths(bits))
        return {"values": world_size * codes + sums, "scales": scales}


def part_lengths(sizes: Sequence[int], block: int) -> list[int]:
    """The lengths of the parts that `ops.hadamard` transforms.

    >>> part_lengths([37, 16], 16)
    [16, 16, 4, 1, 16]
    """
    lengths: list[int] = []
    for n in sizes:
        whole, rest = divmod(n, block)
        bits = range(rest.bit_length() - 1, -1, -1)
        lengths += [block] * whole + [1 << bit for bit in bits if rest >> bit & 1]
    return lengths


def norms(x_N: Tensor, lengths: Sequence[int]) -> Tensor:
    """The Euclidean norm of each part (float32, P)."""
    longest = max(lengths, default=1)
    found, first, start = [x_N.new_empty(0, dtype=torch.float64)], 0, 0
    while first < len(lengths):  # runs of whole blocks, and the other parts one by one
        last = first + 1
        while last < len(lengths) and lengths[first] == longest == lengths[last]:
            last += 1
        num = last - first
        stop = start + num * lengths[first]
        rows = x_N[start:stop].view(num, lengths[first])
        found.append(torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64))
        first, start = last, stop
    return torch.cat(found).float()


def pack_wide(sum_S: Tensor, bits: int) -> Tensor:
    """Pack numbers of any number of bits (uint8, B): the low 8 bits of all, then the next 8, and so on."""
    bytes_S = [(sum_S >> first & 0xFF).to(torch.uint8) for first in range(0, bits, 8)]
    return torch.cat([ops.pack(byte_S, width) for byte_S, width in zip(bytes_S, widths(bits), strict=True)])


def unpack_wide(packed_B: Tensor, bits: int, n: int) -> Tensor:
    """Unpack n numbers of `pack_wide` (int32, n)."""
    parts = packed_B.split([ceil(n * width / 8) for width in widths(bits)])
    number_N = torch.zeros(n, dtype=torch.int32, device=packed_B.device)
    for place, (part_B, width) in enumerate(zip(parts, widths(bits), strict=True)):
        number_N += ops.unpack(part_B.contiguous(), width, n).int() << 8 * place
    return number_N


def widths(bits: int) -> list[int]:
    """Bits of each code of up to 8 that a number is cut into.

    >>> widths(8), widths(11)
    ([8], [8, 3])
    """
    return [min(8, bits - first) for first in range(0, bits, 8)]


@cache
def best_levels(num: int, most: int, limit: float) -> tuple[int, ...]:
    """The integers from 0 to `most`, `num` of them, with the least error for normal numbers.

    A number between two neighbours a and b becomes one of them at random, without bias. Its expected squared
    error is (z − a)·(b − z); the integral of that over all z, weighted by the normal density, is minimised.

    >>> best_levels(3, 2, 2.0), best_levels(4, 6, 2.0)
    ((0, 1, 2), (0, 2, 4, 6))
    """
    point = [2 * limit * level / most - limit for level in range(most + 1)]
    best: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, (0,))}
    for _ in range(num - 1):
        best = {
            b: min(
                (cost + _error(point[a], point[b]), (*levels, b))
                for a, (cost, levels) in best.items()
                if a < b
            )
            for b in range(min(best) + 1, most + 1)
        }
    return best[most][1]


def _error(a: float, b: float) -> float:
    """The integral from a to b of (z − a)·(b − z) times the normal density."""
    density_a, density_b = (exp(-z * z / 2) / sqrt(2 * pi) for z in (a, b))
    mass = (erf(b / sqrt(2)) - erf(a / sqrt(2))) / 2
    square = mass + a * density_a - b * density_b
    return (a + b) * (density_a - density_b) - square - a * b * mass


REDUCER = Thc
