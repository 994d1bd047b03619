"""LQ-SGD: PowerSGD whose factors are sent in logarithmic codes of a few bits (Li et al., 2025)."""
# D = elements that go dense, F = elements of all factors together, B = bytes of codes, L = factors, W = ranks

import math

import torch
from torch import Tensor

from sage.reduction import Wire, ops, unflatten

from .powersgd import PowerSgd


class LqSgd(PowerSgd):
    """PowerSGD's step, with P and Q quantised on a logarithmic scale before they are sent.

    An element x of a factor whose largest magnitude is m, with y = |x|/m, is sent as

        q = sign(x)·log(1 + α·y) / log(1 + α),  rounded to the nearest of 2^b − 1 even steps from −1 to 1,

    and received as sign(q)·m·((1 + α)^|q| − 1)/α, so that small magnitudes are resolved more finely
    ("Trustworthy Efficient Communication for Distributed Learning using LQ-SGD Algorithm", arXiv 2506.17974).
    Each rank's residual is its M minus the common P·Qᵀ, as in `powersgd`, and so has the errors of the codes.

    Only the paper's abstract and a summary of its formulas (junaidaliop/zij, canon/math/lqsgd.md, commit
    00728ec) were available, and the rest is ours: the scale m, the number of bits, α, and the order of the
    steps with several ranks. The summary, in which there is one rank, quantises P after it was made
    orthonormal. As PowerSGD's P is orthonormal only after the mean over ranks, here M·Q and Mᵀ·P are what is
    quantised. Codes cannot be added, so they are gathered; the summary names an all-reduce.

    Payload bytes per rank: b/8 per element of P and of Q, each rounded up to whole bytes over all matrices
    (`values`), and 4 per factor and matrix (`scales`), in two all-gathers; 4 per element of the parameters
    that are sent dense, in one all-reduce. Before `start_step`, 4 per element.

    Args:
        rank: Rank r of the product P·Qᵀ, at most n or m; 1 or more.
        bits_p: Bits b of an element of P, from 2 to 8.
        bits_q: Bits b of an element of Q, from 2 to 8.
        alpha: Curvature α of the logarithm, above 0; near 0 the steps are linear.
        start_step: Number of initial steps that use an exact all-reduce, 0 or more.
        min_compression_rate: A matrix is sent dense unless r·(n + m) times this is less than n·m; 0 or more.
        eps: Added to a column's length before dividing by it, at least 0 and below 1.
        sample_seed: Seed of the initial Q, which also depends on the parameter's number in the model.

    Raises:
        ValueError: if an option is out of range.
    """

    later = frozenset()

    def __init__(
        self,
        *,
        rank: int = 1,
        bits_p: int = 8,
        bits_q: int = 8,
        alpha: float = 10.0,
        start_step: int = 0,
        min_compression_rate: float = 2.0,
        eps: float = 1e-8,
        sample_seed: int = 0,
    ) -> None:
        super().__init__(
            rank=rank,
            start_step=start_step,
            min_compression_rate=min_compression_rate,
            eps=eps,
            sample_seed=sample_seed,
        )
        for name, bits in (("bits_p", bits_p), ("bits_q", bits_q)):
            if not 2 <= bits <= 8:
                raise ValueError(f"{name}={bits!r}: expected 2 to 8 bits")
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha={alpha!r}: expected a finite number above 0")
        self._bits, self._alpha = (bits_p, bits_q), alpha

    def mean_of(
        self, dense_D: Tensor, factors: list[Tensor], wire: Wire, *, is_q: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """Means over ranks of a dense vector, exact, and of the decoded factors."""
        if dense_D.numel():
            wire.mean(dense_D)
        if not factors:
            return dense_D, factors
        bits = self._bits[is_q]
        codes_F, scale_L = zip(*(encode(x, bits, self._alpha) for x in factors), strict=True)
        codes_B = ops.pack(torch.cat(codes_F), bits)
        codes_WB, scale_WL = wire.gather(values=codes_B, scales=torch.stack(scale_L))
        shapes = [(x.shape[0], x.shape[1]) for x in factors]
        means = [torch.zeros_like(x) for x in factors]
        for row_B, row_L in zip(codes_WB, scale_WL, strict=True):
            levels = unflatten(ops.unpack(row_B, bits, sum(x.numel() for x in factors)), shapes)
            for mean, codes, scale in zip(means, levels, row_L, strict=True):
                mean += decode(codes, scale, bits, self._alpha)
        return dense_D, [mean.div_(wire.world_size) for mean in means]

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        if self._start_step:  # the bytes differ between steps
            return None
        ranks = list(zip(self.split.matrices, self.ranks(), strict=True))
        bits = [sum(r * x.rows for x, r in ranks) * self._bits[0]]
        bits += [sum(r * x.columns for x, r in ranks) * self._bits[1]]
        codes = sum(-(-b // 8) for b in bits)
        return {"values": 4 * self.split.num_dense + codes, "scales": 8 * len(ranks)}


def encode(x: Tensor, bits: int, alpha: float) -> tuple[Tensor, Tensor]:
    """Codes of a factor's elements (uint8, flat) and its scale, its largest magnitude.

    >>> codes, scale = encode(torch.tensor([[0.0, -8.0], [8.0, 0.1]]), 3, 10.0)
    >>> codes.tolist(), float(scale)
    ([3, 0, 6, 3], 8.0)
    """
    largest, top = x.abs().amax(), (1 << bits - 1) - 1
    unit = torch.where(largest > 0, x.abs() / largest, 0).nan_to_num(0.0, 0.0)  # the scale is then not finite
    level = (torch.log1p(alpha * unit) * (top / math.log1p(alpha))).round().copysign(x)
    return (level.nan_to_num(0.0) + top).to(torch.uint8).reshape(-1), largest


def decode(codes: Tensor, scale: Tensor, bits: int, alpha: float) -> Tensor:
    """Values of codes (uint8, n × r) by their factor's scale."""
    top = (1 << bits - 1) - 1
    level = codes.float() - top
    size = torch.expm1(level.abs() * (math.log1p(alpha) / top)) / alpha
    return size.copysign(level) * scale


REDUCER = LqSgd
