"""INCEPTIONN: truncates each element to 0, 8, 16 or 32 bits within an error bound (Li et al., MICRO 2018)."""
# N = elements of the flat vector, B = bytes; `pieces` are what tags 3, 2 and 1 announce

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from sage.reduction import FusedQuantiser, Parts, Wire, ops

from ._chunked import chunks

SMALL = 128
"""Multiples of the bound from which a value takes 16 bits."""
DTYPES = torch.float32, torch.int16, torch.uint8
"""What follows the tags: elements as they are, and multiples of the bound in 16 and in 8 bits."""
SIGNS = 32_768, 128
"""The highest bits of the latter two, for the sign."""


class Inceptionn(FusedQuantiser):
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
        self._limits = 1.0, min(SMALL / self._multiple, 1.0), 1 / self._multiple
        """The smallest magnitude of what has tag 3, 2 and 1."""
        self._bits = [int(ops.magnitude_bits(torch.tensor(limit))) for limit in self._limits]

    def compress(self, grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int], wire: Wire) -> Parts:
        return self._parts(ops.accumulate(grad_N, residual_N), keep=residual_N is not None)

    def compress_signal(self, signal_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        return self._parts(signal_N, keep=True)

    def _parts(self, signal_N: Tensor, *, keep: bool) -> Parts:
        """Encode a complete signal, first the tags; `keep` leaves the error in it."""
        tags = []
        above_3 = torch.zeros(3, dtype=torch.int64, device=signal_N.device)  # elements from each limit on
        for (x,) in chunks(signal_N):
            bits = ops.magnitude_bits(x.float())  # NaN is above all numbers
            tag = torch.zeros_like(bits, dtype=torch.uint8)
            for i, least in enumerate(self._bits):
                is_above = bits >= least
                tag += is_above.view(torch.uint8)
                above_3[i] += is_above.count_nonzero()
            tags.append(ops.pack(tag, 2))
        num_tags = sum(map(len, tags))
        nums = above_3.diff(prepend=above_3.new_zeros(1)).tolist()
        sizes = [num * dtype.itemsize for num, dtype in zip(nums, DTYPES, strict=True)]
        bytes_B = tags[0].new_empty(num_tags + sum(sizes))
        torch.cat(tags, out=bytes_B[:num_tags])
        pieces = list(bytes_B[num_tags:].split(sizes))
        for (own,) in chunks(signal_N):
            x = own.float()
            rest = x.clone()
            pieces[0] = _written(pieces[0], self._taken(rest, 0))
            if keep:
                count = (rest * self._multiple).int()  # in multiples of b, towards 0
                ops.keep_error(own, (x - rest).add_(count / self._multiple))
            for i, (bit, dtype) in enumerate(zip(SIGNS, DTYPES[1:], strict=True), 1):
                count = self._taken(rest, i).mul_(self._multiple).int()
                pieces[i] = _written(pieces[i], torch.where(count < 0, bit - count, count).to(dtype))
        return {"values": bytes_B}

    def _taken(self, rest: Tensor, i: int) -> Tensor:
        """The elements from a limit on, in whose place 0 is left."""
        return ops.take_above_each(rest, None, [0, rest.numel()], self._limits[i : i + 1], keep=True)[0]

    def average(
        self,
        out_N: Tensor,
        rows: Mapping[str, Tensor],
        sizes: Sequence[int],
        *,
        divisor: int,
        added: bool = False,
    ) -> Tensor:
        for bytes_B in rows["values"]:
            self._add(out_N, bytes_B, added=added)
            added = True
        if not added:
            out_N.zero_()
        return out_N if divisor == 1 else out_N.div_(divisor)

    def _add(self, out_N: Tensor, bytes_B: Tensor, *, added: bool) -> None:
        """Write the values of one payload to the output, or add them to what it holds."""
        tag_B, rest_B = bytes_B.tensor_split([-(-out_N.numel() // 4)])
        nums = [0, 0, 0]
        for _, tag in _tags(out_N, tag_B):
            for i in range(3):
                nums[i] += int((tag == 3 - i).count_nonzero())
        rest = list(rest_B.split([num * dtype.itemsize for num, dtype in zip(nums, DTYPES, strict=True)]))
        for out, tag in _tags(out_N, tag_B):
            size, value = tag.float(), torch.zeros(tag.numel(), device=tag.device)
            for i, dtype in enumerate(DTYPES):
                _, at, (num,) = ops.take_above_each(size, None, [0, size.numel()], [2.5 - i], keep=True)
                piece, rest[i] = rest[i].tensor_split([dtype.itemsize * num])
                piece = piece.clone().view(dtype)  # the copy is aligned, as a view of another type must be
                if i > 0:
                    bit = SIGNS[i - 1]
                    count = piece.int() & 2 * bit - 1
                    piece = torch.where(count < bit, count, bit - count) / self._multiple
                # No element is in two pieces: where this one is, the value is still 0.
                ops.scatter_mean(piece, at, [num], value, zeroed=True)
            if added:
                out += value
            else:
                out.copy_(value)


def _tags(out_N: Tensor, tag_B: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of a vector, and the tags of their elements."""
    at = 0
    for (out,) in chunks(out_N):
        num_bytes = -(-out.numel() // 4)
        yield out, ops.unpack(tag_B[at : at + num_bytes], 2, out.numel())
        at += num_bytes


def _written(bytes_B: Tensor, values: Tensor) -> Tensor:
    """Write values to the beginning of some bytes; return the bytes behind them."""
    head, rest = bytes_B.tensor_split([values.nbytes])
    head.copy_(values.view(torch.uint8))
    return rest


REDUCER = Inceptionn
