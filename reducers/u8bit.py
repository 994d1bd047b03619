"""u8bit: 8-bit numbers of a dynamic tree, with few bits for small values (Dettmers, ICLR 2016)."""
# N = elements of the flat vector, G = groups

from collections.abc import Sequence

from torch import Tensor

from sage.reduction import LevelQuantiser, Parts, Wire, ops


class U8Bit(LevelQuantiser):
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

    coding = ops.Coding(ops.Codec.TREE)

    def compress(self, grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int], wire: Wire) -> Parts:
        codes_N, scale_G = ops.quantise(grad_N, residual_N, sizes, self.coding)
        return {"values": codes_N, "scales": scale_G}

    def compress_signal(self, signal_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        codes_N, scale_G = ops.quantise(None, signal_N, sizes, self.coding)
        return {"values": codes_N, "scales": scale_G}

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        return {"values": sum(sizes), "scales": 4 * len(sizes)}


REDUCER = U8Bit
