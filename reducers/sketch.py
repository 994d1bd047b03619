"""Sketch: sends the quantile that each element is in, and the quantiles' means (SketchML, SIGMOD 2018)."""
# N = elements of the flat vector, n = of one group, Q = quantiles of a group

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sage.reduction import Parts, Quantiser, Wire


class Sketch(Quantiser):
    """Elements become means: a group, in order of size, is divided into parts of equally many elements.

    This is the quantile-bucket quantification of SketchML (Jiang et al., SIGMOD 2018) as in GRACE's class
    (sands-lab/grace, commit 0bd31c5, tensorflow/compressor/sketch.py). Here the parts are exact: element j of
    n in ascending order is in part ⌊j·Q/n⌋. That class divides at interpolated quantiles; SketchML estimates
    them by a quantile sketch, and its MinMaxSketch and its keys are for sparse gradients: they are not here.
    The paper's text was not at hand: unverified.

    Payload bytes per rank: 1 per element (`values`), and 4 for each part of a group (`scales`), of which
    there are no more than elements.

    Args:
        quantiles: Q, the number of parts of a group, from 1 to 256.

    Raises:
        ValueError: if it is out of range.
    """

    def __init__(self, *, quantiles: int = 256) -> None:
        super().__init__()
        if not 1 <= quantiles <= 256:
            raise ValueError(f"quantiles={quantiles!r}: expected 1 to 256")
        self._quantiles = quantiles

    def encode(self, x_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        codes_N = torch.zeros(x_N.numel(), dtype=torch.uint8, device=x_N.device)
        means = [x_N.new_zeros(0, dtype=torch.float32)]
        for x, codes in zip(x_N.float().split(list(sizes)), codes_N.split(list(sizes)), strict=True):
            num = min(self._quantiles, x.numel())
            ordered, order = x.sort(stable=True)
            part = torch.arange(x.numel(), device=x.device) * num // max(1, x.numel())
            codes[order] = part.to(torch.uint8)
            sums = x.new_zeros(num).index_add_(0, part, ordered)
            means.append(sums / part.bincount(minlength=num)[:num])
        return {"values": codes_N, "scales": torch.cat(means)}

    def decode(self, parts: Mapping[str, Tensor], sizes: Sequence[int]) -> Tensor:
        nums = [min(self._quantiles, n) for n in sizes]
        each = zip(parts["values"].split(list(sizes)), parts["scales"].split(nums), strict=True)
        return torch.cat([parts["scales"][:0], *(means[codes.long()] for codes, means in each)])

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        return {"values": sum(sizes), "scales": 4 * sum(min(self._quantiles, n) for n in sizes)}


REDUCER = Sketch
