"""INCEPTIONN: truncates each element to 0, 8, 16 or 32 bits within an error bound (Li et al., MICRO 2018)."""
# N = elements of the flat vector, B = bytes

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sage.reduction import Parts, Quantiser, Wire

SMALL = 128
"""Multiples of the bound from which a value takes 16 bits."""


class Inceptionn(Quantiser):
    """Elements below 1 in magnitude become a multiple of the bound b = 2^−e, rounded towards 0.

    A tag of 2 bits says how many bits follow: none if |x| < b, 8 (a sign and 7 bits) if |x| < 128·b, else 16.
    Elements of 1 and above, NaN and infinity are sent as they are, in 32 bits. So the error is below b.

    Li et al., A Network-Centric Hardware/Algorithm Co-Design to Accelerate Distributed Training of Deep
    Neural Networks, MICRO 2018, which does this in the network card. Its text was not at hand: unverified.
    The tags and the fixed-point numbers are those of GRACE's class (sands-lab/grace, commit 0bd31c5,
    tensorflow/compressor/inceptionn.py); the limit between 8 and 16 bits is ours, as that class cuts 8-bit
    values at 2⁻⁶, whatever the bound.

    Payload bytes per rank: 1/4 per element for the tags, and 0, 1, 2 or 4 per element (`values`); 8 for their
    number.

    Args:
        bound_exponent: e, from 1 to 15.

    Raises:
        ValueError: if it is out of range.
    """

    decides_by = "element"
    even = False

    def __init__(self, *, bound_exponent: int = 10) -> None:
        super().__init__()
        if not 1 <= bound_exponent <= 15:
            raise ValueError(f"bound_exponent={bound_exponent!r}: expected 1 to 15")
        self._multiple = 2.0**bound_exponent

    def encode(self, x_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        x_N = x_N.float()
        is_whole_N = ~(x_N.abs() < 1)
        count_N = (torch.where(is_whole_N, 0.0, x_N).abs() * self._multiple).int()  # in multiples of b
        tag_N = (count_N > 0).int() + (count_N >= SMALL).int() + 3 * is_whole_N.int()
        low_8, low_16 = tag_N == 1, tag_N == 2
        signed_8 = count_N[low_8] + 128 * x_N[low_8].signbit()
        signed_16 = count_N[low_16] - 32768 * x_N[low_16].signbit()
        pieces = (x_N[is_whole_N], signed_16.to(torch.int16), signed_8.to(torch.uint8))
        return {"values": torch.cat([packed(tag_N), *(piece.view(torch.uint8) for piece in pieces)])}

    def decode(self, parts: Mapping[str, Tensor], sizes: Sequence[int]) -> Tensor:
        bytes_B, n = parts["values"], sum(sizes)
        tag_N = unpacked(bytes_B, n)
        num_8, num_16, num_32 = (int((tag_N == tag).sum()) for tag in (1, 2, 3))
        lengths = [-(-n // 4), 4 * num_32, 2 * num_16, num_8]
        # The copies are aligned, as views of other types must be.
        _, whole_B, words_B, small = (piece.clone() for piece in bytes_B.split(lengths))
        words, small = words_B.view(torch.int16).int(), small.int()
        x_N = torch.zeros(n, device=bytes_B.device)
        x_N[tag_N == 3] = whole_B.view(torch.float32)
        x_N[tag_N == 2] = torch.where(words < 0, -1.0, 1.0) * (words & 32767) / self._multiple
        x_N[tag_N == 1] = torch.where(small > 127, -1.0, 1.0) * (small & 127) / self._multiple
        return x_N


def packed(tag_N: Tensor) -> Tensor:
    """Tags of 2 bits, four in a byte, the first in the low bits (uint8).

    >>> packed(torch.tensor([1, 2, 3, 0, 1])).tolist()
    [57, 1]
    """
    places = torch.tensor([1, 4, 16, 64], device=tag_N.device)
    padded = torch.nn.functional.pad(tag_N, (0, -tag_N.numel() % 4))
    return (padded.view(-1, 4) * places).sum(1).to(torch.uint8)


def unpacked(bytes_B: Tensor, n: int) -> Tensor:
    """The first n tags of `packed`."""
    shifts = torch.tensor([0, 2, 4, 6], device=bytes_B.device)
    return ((bytes_B[: -(-n // 4), None].int() >> shifts) & 3).view(-1)[:n]


REDUCER = Inceptionn
