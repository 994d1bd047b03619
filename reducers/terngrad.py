"""TernGrad: rounds each element at random to −s, 0 or s, two bits per element (Wen et al., NeurIPS 2017)."""
# N = elements of the vector, G = groups

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor

from sage.reduction import LevelQuantiser, Parts, RandomQuantiser, RoundingOptions, Wire, counts_of, ops


class TernGrad(RandomQuantiser, LevelQuantiser):
    """Each element x becomes s·sign(x) with probability |x|/s, else 0, where s = max|x| of its group.

    This is the paper's TernGrad with its layer-wise scales, its clipping to c·σ (c = 2.5; the excess is lost)
    and its scaler sharing. It differs in σ, which is the square root of the mean of x²: with a deviation from
    the mean of x, a group of equal elements would have σ = 0 and be clipped to 0. The language-model study's
    TernGrad (maysarahammouda/GradComp) has `clip=17.1` and does not share scales.

    Payload bytes per rank: 2 bits per element (0, 1, 2 for −s, 0, s) in whole bytes, and 4 bytes per group
    (`scales`). With `share`, 4 more bytes per group to agree on the largest s of all ranks, so that every sum
    over ranks is a multiple of s.

    Args:
        clip: Clipping limit c in standard deviations, above 0; none: no clipping, and the result is unbiased.
        share: Whether all ranks scale by the largest of their s.

    Raises:
        ValueError: if `clip` is out of range.
    """

    def __init__(
        self, *, clip: float | None = 2.5, share: bool = True, **rounding: Unpack[RoundingOptions]
    ) -> None:
        super().__init__(**rounding)
        if clip is not None and not clip > 0:
            raise ValueError(f"clip={clip!r}: expected a number of standard deviations above 0, or none")
        self._clip, self._share = clip, share
        self.coding = ops.Coding(ops.Codec.LINEAR, 1)

    def compress(self, grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int], wire: Wire) -> Parts:
        statistics = ops.statistics(grad_N, residual_N, sizes, ops.Kind.SQUARES)
        scale_G, limit_G = statistics.largest_G.float(), None
        if self._clip is not None:
            limit_G = (self._clip * (statistics.sum_G / counts_of(sizes, statistics.sum_G)).sqrt()).float()
            scale_G = torch.minimum(scale_G, limit_G)
        if self._share:
            (scale_WG,) = wire.gather(scales=scale_G)
            scale_G = scale_WG.amax(0)
        signal_N, keep = (grad_N, False) if residual_N is None else (residual_N, True)
        codes_B = ops.quantise_to(
            signal_N,
            sizes,
            self.coding,
            scale_G,
            limit_P=limit_G,
            key=self.next_key(wire),
            positions=self.positions(grad_N),
            keep=keep,
        )
        return {"values": codes_B, "scales": scale_G}

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        scales = 4 * len(sizes) * (2 if self._share else 1)
        return {"values": -(-sum(sizes) // 4), "scales": scales}


REDUCER = TernGrad
