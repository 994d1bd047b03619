"""thc: integers whose sum is the sum of the messages, after a Hadamard transform (Li et al., NSDI 2024)."""
# N = elements of the vector, P = parts that are transformed, W = ranks, B = bytes

from collections.abc import Sequence
from functools import cache
from math import ceil, erf, exp, pi, sqrt
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from sage.reduction import Layout, Reduced, Reducer, Wire, ops, phase, seed_at


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
    bounds_P: Tensor
    """First element of each part, and the number of all elements (int32)."""

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
        self.bind(self.layout)

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        self._lengths = part_lengths(self._sizes, self._block)
        bounds_P = torch.tensor(ops.bounds_of(self._lengths), dtype=torch.int32)
        self.register_buffer("bounds_P", bounds_P, persistent=False)

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        self.step += 1
        transform_key = seed_at(self._seed, int(self.step))
        key = seed_at(self._seed, int(self.step), wire.rank)
        bounds_P = self.bounds_P.to(grad_N.device)
        with phase("select"):
            signal_N = ops.accumulate(grad_N, residual_N).float()
            ops.hadamard(signal_N, self._sizes, self._block, key=transform_key)
            norm_P = norms(signal_N, self._lengths)
        (norm_WP,) = wire.gather(scales=norm_P)
        with phase("select"):
            step_P = self._steps(norm_WP.amax(0), bounds_P)
            is_served = self._exchange == "ps"
            bytes_WB = ops.quantise_integers(
                signal_N,
                bounds_P,
                step_P,
                self._levels,
                key=key,
                positions=self.layout.positions,
                shares=wire.world_size if is_served else 1,
                packed=is_served,
                keep=residual_N is not None,
            )
            if residual_N is not None:  # it is the signal, which is now the error
                ops.hadamard(signal_N, self._sizes, self._block, key=transform_key, inverse=True)
        sum_WB, bits = self._sums(bytes_WB, grad_N.numel(), wire)
        with phase("scatter"):
            mean_N = grad_N if grad_N.dtype == torch.float32 else torch.empty_like(signal_N)
            ops.average_integers(mean_N, sum_WB, bits, bounds_P, step_P, most=self._most, num=wire.world_size)
            ops.hadamard(mean_N, self._sizes, self._block, key=transform_key, inverse=True)
            return Reduced(grad_N.copy_(mean_N))

    def _steps(self, norm_P: Tensor, bounds_P: Tensor) -> Tensor:
        """The value of 1 in units of the integers, in each part: 2T/g·n/√d (float32, P)."""
        return norm_P / bounds_P.diff().sqrt() * (2 * self._limit / self._most)

    def _sums(self, bytes_WB: Tensor, n: int, wire: Wire) -> tuple[Tensor, int]:
        """The sums over ranks of the integers, packed (uint8, shares × B), and the bits of each."""
        bits = (wire.world_size * self._most).bit_length()
        if self._exchange == "all-reduce":
            (integer_N,) = bytes_WB
            if wire.world_size * self._most < 256:
                return wire.sum(integer_N)[None], 8
            return ops.pack_sums(wire.sum(integer_N.int()), bits)[None], bits
        codes_WB = wire.all_to_all(bytes_WB)
        (sum_WB,) = wire.gather(values=ops.sum_integers(codes_WB, self._levels, ceil(n / wire.world_size)))
        return sum_WB, bits

    @property
    def _sizes(self) -> list[int]:
        return [stop - start for start, stop in self.layout.groups]

    def payload(self, counts: list[int], rank: int) -> dict[str, int]:
        n, world_size = counts[rank], len(counts)
        scales = 4 * len(self._lengths)
        if self._exchange == "all-reduce":
            return {"values": n * (1 if world_size * self._most < 256 else 4), "scales": scales}
        length, bits = ceil(n / world_size), (world_size * self._most).bit_length()
        codes = ceil(length * self._bits / 8)
        return {"values": world_size * codes + ops.bytes_of_sums(length, bits), "scales": scales}


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
    return ops.statistics(x_N, None, lengths, ops.Kind.SQUARES).sum_G.sqrt().float()


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
