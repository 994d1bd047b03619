"""TernGrad: rounds each element at random to −s, 0 or s, two bits per element (Wen et al., NeurIPS 2017)."""
# N = elements of the vector, G = groups

from collections.abc import Mapping, Sequence
from typing import Unpack

import torch
from torch import Tensor

from sage.reduction import Buckets, Parts, RandomQuantiser, RoundingOptions, Wire, ops, round_linear


class TernGrad(RandomQuantiser):
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

    def encode(self, x_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        x_N = x_N.float()
        groups = Buckets(sizes)
        if self._clip is not None:
            num_G = torch.tensor(list(sizes), device=x_N.device).clamp_(min=1)
            x_N = groups.clipped(x_N, self._clip * groups.norms(x_N, "l2") / num_G.sqrt())
        scale_G = groups.norms(x_N, "max")
        if self._share:
            (scale_WG,) = wire.gather(scales=scale_G)
            scale_G = scale_WG.amax(0)
        level_N = round_linear(groups.ratios(x_N, scale_G), 1, self.uniform(x_N, wire))
        return {"values": ops.pack(level_N.add_(1).view(torch.uint8), 2), "scales": scale_G}

    def decode(self, parts: Mapping[str, Tensor], sizes: Sequence[int]) -> Tensor:
        ternary_N = ops.unpack(parts["values"], 2, sum(sizes)).float().sub_(1)
        return Buckets(sizes).scale_(ternary_N, parts["scales"])

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        scales = 4 * len(sizes) * (2 if self._share else 1)
        return {"values": -(-sum(sizes) // 4), "scales": scales}


REDUCER = TernGrad
