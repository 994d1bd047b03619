"""fp4: 4-bit floats, a sign and a power of two, with a scale per block (format: Streaming DiLoCo, 2025)."""

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor

from sage.reduction import LevelQuantiser, Parts, RandomQuantiser, RoundingOptions, Wire, ops

POWERS = 7
"""Powers of two that 3 exponent bits can hold beside 0."""


class Fp4(RandomQuantiser, LevelQuantiser):
    """Each element becomes 0 or ± one of the seven powers of two s/64, …, s/2, s, at random and unbiased.

    s is the largest magnitude in the element's block. These are the values of a float with a sign, 3 exponent
    bits and no mantissa (E3M0), whose lowest exponent stands for 0. Streaming DiLoCo (Douillard et al., 2025,
    arXiv 2501.18512) sends its outer gradients in this format and adds them in fp32. Of |x| between two of
    the values, the higher has the probability that makes the expectation |x|. Every rank gathers the codes of
    all ranks and adds their values in fp32, so that a value is rounded once. The rounding, the blocks and the
    exchange are ours: a secondary source of the paper names the format and the sums only.

    Payload bytes per rank: 4 bits per element, in whole bytes (`values`), and 4 bytes per block (`scales`);
    each group begins a new block.

    Args:
        block: Number of elements that share a scale, 1 or more.

    Raises:
        ValueError: if `block` is below 1.
    """

    grouping = "model"

    def __init__(self, *, block: int = 256, **rounding: Unpack[RoundingOptions]) -> None:
        super().__init__(**rounding)
        if block < 1:
            raise ValueError(f"block={block!r}: expected 1 element or more")
        self.coding = ops.Coding(ops.Codec.NATURAL, POWERS, block)

    def compress(self, grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int], wire: Wire) -> Parts:
        key, positions = self.next_key(wire), self.positions(grad_N)
        codes_B, scale_P = ops.quantise(grad_N, residual_N, sizes, self.coding, key=key, positions=positions)
        return {"values": codes_B, "scales": scale_P}

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        return {
            "values": self.coding.num_bytes(sum(sizes)),
            "scales": 4 * self.coding.num_buckets(sizes),
        }


REDUCER = Fp4
