"""u8bit: 8-bit numbers of a dynamic tree, with few bits for small values (Dettmers, ICLR 2016)."""
# N = elements of the flat vector, G = groups, T = magnitudes of the tree

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sage.reduction import Parts, Quantiser, Wire, per_group

POWERS = 7
"""Powers of ten of the tree, from 10⁻⁶ to 1."""


class U8Bit(Quantiser):
    """Each element becomes ±s·t, where s is its group's largest magnitude and t the nearest of 128 numbers.

    They are 0 and, for i = 0 to 6, the middles of 2^i equal parts of [0.1, 1], times 10^(i − 6): of 8 bits
    the first is the sign, the zeros that follow are the power of ten, and the bits behind the next one divide
    the interval. So values from 0.1·s on are off by at most 0.7 % of s, and values down to about 3·10⁻⁷·s
    differ from 0. The largest element becomes 0.993·s.

    Dettmers, 8-Bit Approximations for Parallelism in Deep Learning, arXiv 1511.04561 ("dynamic tree"). Its
    text was not at hand: unverified. The table in GRACE's class (sands-lab/grace, commit 0bd31c5,
    tensorflow/compressor/u8bit.py) has the same powers and counts, but divides [0.1, 0.45] and [0.45, 1] into
    equally many parts, and rounds down.

    Payload bytes per rank: 1 per element (`values`), and 4 per group (`scales`).
    """

    tree_T: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("tree_T", tree(), persistent=False)

    def encode(self, x_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        x_N = x_N.float()
        scale_G = per_group(x_N, sizes, lambda x: x.abs().amax())
        divisor_G = torch.where(scale_G > 0, scale_G, 1.0)
        borders_T = (self.tree_T[1:] + self.tree_T[:-1]) / 2
        place_N = torch.bucketize(x_N.abs() / spread(divisor_G, sizes), borders_T, out_int32=True)
        return {"values": (place_N + 128 * x_N.signbit()).to(torch.uint8), "scales": scale_G}

    def decode(self, parts: Mapping[str, Tensor], sizes: Sequence[int]) -> Tensor:
        codes_N = parts["values"].int()
        x_N = self.tree_T[codes_N & 127] * spread(parts["scales"], sizes)
        return torch.where(codes_N > 127, -x_N, x_N)

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        return {"values": sum(sizes), "scales": 4 * len(sizes)}


def tree() -> Tensor:
    """The 128 magnitudes, ascending (float32, T).

    >>> tree()[:4].tolist() == torch.tensor([0, 0.55e-6, 3.25e-6, 7.75e-6]).tolist(), tree().numel()
    (True, 128)
    """
    found = [torch.zeros(1, dtype=torch.float64)]
    for i in range(POWERS):
        borders = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float64)
        found.append((borders[1:] + borders[:-1]) / 2 * 10.0 ** (i - POWERS + 1))
    return torch.cat(found).float()


def spread(each_G: Tensor, sizes: Sequence[int]) -> Tensor:
    """A number of each group for each of its elements (N)."""
    return each_G.repeat_interleave(
        torch.tensor(list(sizes), dtype=torch.int64, device=each_G.device), output_size=sum(sizes)
    )


REDUCER = U8Bit
