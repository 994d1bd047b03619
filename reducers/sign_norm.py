"""Sign and norm: sends signs and the L1 norm of each layer (Agarwal et al., MLSys 2022)."""
# N = elements of the vector, G = groups

from collections.abc import Mapping, Sequence

from torch import Tensor

from sage.reduction import Buckets, Parts, Quantiser, Wire, bitpacking, per_group


class SignNorm(Quantiser):
    """Mean over ranks of (‖g‖₁/n)·sign(g), for each group g of n elements.

    This is the mean of `efsignsgd` in the format of the utility study's SignAndNorm: zero counts as positive,
    and a bit is 1 for a negative element.

    Payload bytes per rank: 1 bit per element, over the whole vector in 4-byte words (`values`;
    `sage.reduction.coding.bitpacking.pack_signs_in_columns`), and 4 bytes per group for ‖g‖₁ (`scales`).
    """

    def encode(self, x_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        norm_G = per_group(x_N.float(), sizes, lambda x: x.abs().sum())
        return {"values": bitpacking.pack_signs_in_columns(x_N), "scales": norm_G}

    def decode(self, parts: Mapping[str, Tensor], sizes: Sequence[int]) -> Tensor:
        norm_G = parts["scales"]
        num_G = norm_G.new_tensor(sizes).clamp_(min=1)
        signs_N = bitpacking.unpack_signs_in_columns(parts["values"], sum(sizes))
        return Buckets(sizes).scale_(signs_N, norm_G / num_G)

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        return {"values": 4 * bitpacking.num_words(sum(sizes)), "scales": 4 * len(sizes)}


REDUCER = SignNorm
