"""Selects the largest coefficients of each tile, and exchanges those of all parameters in one message."""
# T = tiles of a parameter, E = elements of a tile, k = coefficients that are sent of each tile
# K = coefficients that one rank sends, N = coefficients of all tiles, W = ranks, B = bytes

from collections.abc import Sequence

import torch
from torch import Tensor

from sage import ops
from sage.comm.wire import Wire
from sage.optim.tiles import Tiling


def largest(c_TE: Tensor, k: int) -> Tensor:
    """Positions (int64, T × k, ascending) of the k largest |c| of each tile; of equal ones, the lower first.

    >>> largest(torch.tensor([[1.0, -3.0, 2.0, 3.0], [5.0, 5.0, 5.0, 5.0]]), 2).tolist()
    [[1, 3], [0, 1]]
    """
    num_tiles, size = c_TE.shape
    if k >= size:
        return torch.arange(size, device=c_TE.device).repeat(num_tiles, 1)
    tile_T = torch.arange(num_tiles, dtype=torch.int32, device=c_TE.device)
    row_T, size_T = torch.full_like(tile_T, ops.CHUNK_ROW), torch.full_like(tile_T, size)
    chunk_T4 = torch.stack((size * tile_T, row_T, size_T, k * tile_T), 1)
    _, at_K = ops.largest_of_chunks(c_TE.reshape(-1), chunk_T4, k * num_tiles, longest=size)
    return at_K.view(num_tiles, k).long()


def extract_(c_TE: Tensor, k: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Take the k largest coefficients of each tile out of `c_TE`: values (of `dtype`) and positions, T × k.

    What is rounded off stays in `c_TE`, so that its sum with the values is what it was.
    """
    at_Tk = largest(c_TE, k)
    values_Tk, left_Tk = ops.reference.round_to(c_TE.gather(1, at_Tk), dtype)
    c_TE.scatter_(1, at_Tk, left_Tk)
    return values_Tk, at_Tk


def num_bits(size: int, k: int) -> int:
    """Bits of a position in a tile of `size` elements; none if all of them are sent.

    >>> num_bits(4096, 32), num_bits(64, 32), num_bits(64, 64)
    (12, 6, 0)
    """
    return 0 if k >= size else (size - 1).bit_length()


def pack_positions(at_K: Tensor, bits: int) -> Tensor:
    """Pack positions of at most 16 bits: all their low 8 bits as bytes, then their other bits without gaps.

    >>> pack_positions(torch.tensor([1, 4095, 256, 0]), 12).tolist()
    [1, 255, 0, 0, 240, 1]
    """
    if bits <= 8:
        return ops.pack(at_K.to(torch.uint8), bits) if bits else at_K.new_empty(0, dtype=torch.uint8)
    high_B = ops.pack((at_K >> 8).to(torch.uint8), bits - 8)
    return torch.cat([(at_K & 255).to(torch.uint8), high_B])


def unpack_positions(packed_B: Tensor, bits: int, num: int) -> Tensor:
    """Unpack `num` positions (int64) from the bytes of `pack_positions`."""
    if bits <= 8:
        return ops.unpack(packed_B, bits, num).long()
    high_K = ops.unpack(packed_B[num:].contiguous(), bits - 8, num)
    return packed_B[:num].long() + (high_K.long() << 8)


def num_packed(bits: int, num: int) -> int:
    """Number of bytes of `pack_positions`."""
    return (bits * num + 7) // 8 if bits <= 8 else num + ((bits - 8) * num + 7) // 8


class Exchange:
    """Exchanges the extracted coefficients of all parameters in one all-gather, and takes their mean.

    The mean of a coefficient is over the ranks that sent it: the others do not count as zeros (DeMo's
    published code, https://github.com/bloc97/DeMo at 0e48145, `demo.py`). Published is a scatter whose order
    of additions is not defined on GPUs, so that ranks can drift apart. Here values are added in rank order,
    and every rank gets the same bits.

    Args:
        tilings: The tiles of each parameter.
        k: Coefficients that are sent of each tile; of a smaller tile, all.
        dtype: Dtype of the values that are sent.
        device: Device of the coefficients.
    """

    def __init__(self, tilings: Sequence[Tiling], k: int, dtype: torch.dtype, device: torch.device) -> None:
        self.tilings, self.dtype = tuple(tilings), dtype
        self.kept = [min(k, tiling.size) for tiling in tilings]
        bits = [num_bits(tiling.size, kept) for tiling, kept in zip(tilings, self.kept, strict=True)]
        counts = [tiling.num_tiles * kept for tiling, kept in zip(tilings, self.kept, strict=True)]
        self._order = sorted(range(len(bits)), key=lambda number: bits[number])
        """The numbers of the parameters in the order in which they are sent: by the bits of a position."""
        self._groups = [
            (each, [number for number in self._order if bits[number] == each]) for each in sorted(set(bits))
        ]
        self.num_sent = sum(counts)
        """Number of coefficients that a rank sends in a step."""
        self._counts = {each: sum(counts[number] for number in group) for each, group in self._groups}
        self._numel = [tiling.num_tiles * tiling.size for tiling in tilings]
        starts, start = [], 0
        for number in self._order:
            tiling, kept = self.tilings[number], self.kept[number]
            first_T = start + tiling.size * torch.arange(tiling.num_tiles, device=device)
            starts.append(first_T.repeat_interleave(kept))
            start += self._numel[number]
        self._starts_K = torch.cat(starts)
        """Where the tile of each coefficient that a rank sends begins among the coefficients of all tiles."""

    def payload(self) -> dict[str, int]:
        """Bytes that a rank sends in a step, by kind.

        >>> tilings = [Tiling.of((128, 128), edge=64), Tiling.of((128,), edge=64)]
        >>> Exchange(tilings, 32, torch.bfloat16, torch.device("cpu")).payload()
        {'values': 384, 'indices': 240}
        """
        indices = sum(num_packed(bits, num) for bits, num in self._counts.items())
        return {"values": self.num_sent * self.dtype.itemsize, "indices": indices}

    def extract_(self, coefficients: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Take what is sent out of the coefficients (T × E of each parameter): values (K) and bytes (B)."""
        taken = [extract_(c_TE, kept, self.dtype) for c_TE, kept in zip(coefficients, self.kept, strict=True)]
        values_K = torch.cat([taken[number][0].view(-1) for number in self._order])
        packed = [
            pack_positions(torch.cat([taken[number][1].view(-1) for number in group]), bits)
            for bits, group in self._groups
        ]
        return values_K, torch.cat(packed)

    def mean(self, values_K: Tensor, packed_B: Tensor, wire: Wire) -> list[Tensor]:
        """Gather what every rank sends; return the mean over senders (float32, T × E of each parameter).

        A coefficient that no rank has sent is 0. The call is collective.
        """
        if packed_B.numel():
            values_WK, packed_WB = wire.gather(values=values_K, indices=packed_B)
        else:
            (values_WK,) = wire.gather(values=values_K)
            packed_WB = packed_B.expand(len(values_WK), 0)
        sum_N = torch.zeros(sum(self._numel), device=values_K.device)
        senders_N = torch.zeros_like(sum_N)
        one_K = sum_N.new_ones(()).expand(values_K.shape)
        for own_K, own_B in zip(values_WK, packed_WB, strict=True):
            at_K = self._unpacked(own_B)  # no index occurs twice, so that the order of additions is defined
            sum_N.index_add_(0, at_K, own_K.float())
            senders_N.index_add_(0, at_K, one_K)
        mean_N = sum_N.div_(senders_N.clamp_(min=1))
        pieces = mean_N.split([self._numel[number] for number in self._order])
        found = dict(zip(self._order, pieces, strict=True))
        return [found[number].view(-1, tiling.size) for number, tiling in enumerate(self.tilings)]

    def _unpacked(self, packed_B: Tensor) -> Tensor:
        """The indices of one rank's coefficients among those of all tiles."""
        at_K, start, first = self._starts_K.clone(), 0, 0
        for bits, group in self._groups:
            num = self._counts[bits]
            stop = start + num_packed(bits, num)
            if bits:
                at_K[first : first + num] += unpack_positions(packed_B[start:stop].contiguous(), bits, num)
            else:  # all coefficients of these tiles, in their order
                sizes = [(self.tilings[number].num_tiles, self.tilings[number].size) for number in group]
                every = [torch.arange(size, device=at_K.device).repeat(tiles) for tiles, size in sizes]
                at_K[first : first + num] += torch.cat(every)
            start, first = stop, first + num
        return at_K
