"""Plain-torch reference of the ops on AdaComp's bins; the native kernels match it to the bit."""
# N = elements of the flat vector, K = elements taken, L = layers, B = bins, E = entries, S = bytes

from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

WIDTHS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
"""Bytes per entry and the dtype of each; two bits of an entry do not belong to the position."""


@dataclass(frozen=True)
class Bins:
    """The bins of a vector: every layer is cut into bins of one length; the last bin may be shorter."""

    stops: tuple[int, ...]
    """Index behind the last element of each layer (L); the first layer begins at 0."""
    lengths: tuple[int, ...]
    """Elements per bin of each layer (L), from 1 to 2^30 − 1."""

    @cached_property
    def counts(self) -> list[int]:
        """Number of bins of each layer (L)."""
        starts = (0, *self.stops)
        return [
            -(-(stop - start) // length)
            for start, stop, length in zip(starts, self.stops, self.lengths, strict=False)
        ]

    @property
    def lists(self) -> tuple[list[int], list[int]]:
        """Stops and lengths, as the native ops take them."""
        return list(self.stops), list(self.lengths)


@dataclass(frozen=True)
class _Table:
    """A row per bin, on one device."""

    start_B: Tensor
    length_B: Tensor
    layer_B: Tensor
    width_B: Tensor

    def bin_of(self, at_K: Tensor) -> Tensor:
        return torch.searchsorted(self.start_B, at_K, right=True) - 1


@cache
def _table(bins: Bins, device: torch.device) -> _Table:
    starts = (0, *bins.stops)[: len(bins.stops)]
    none = torch.empty(0, dtype=torch.int64)
    start_B = torch.cat([none, *map(torch.arange, starts, bins.stops, bins.lengths)])
    num = torch.tensor(bins.counts, dtype=torch.int64)
    layer_B = torch.arange(len(starts)).repeat_interleave(num)
    length_B = start_B.diff(append=start_B.new_tensor([bins.stops[-1] if bins.stops else 0]))
    width_B = torch.tensor([width_of(length) for length in bins.lengths], dtype=torch.int64)[layer_B]
    return _Table(*(x.to(device) for x in (start_B, length_B, layer_B, width_B)))


def width_of(length: int) -> int:
    """Bytes per entry in bins of this length.

    >>> width_of(63), width_of(64), width_of(2**14)
    (1, 2, 4)
    """
    return next(width for width in WIDTHS if length < 1 << 8 * width - 2)


def layer_of(at_K: Tensor, bins: Bins) -> Tensor:
    """The layer of each index (int64, K)."""
    stops_L = torch.tensor(bins.stops, dtype=torch.int64, device=at_K.device)
    return torch.searchsorted(stops_L, at_K.long(), right=True)


def take_near(
    signal_N: Tensor, added_N: Tensor | None, bins: Bins, weight: float, *, keep: bool, heavy: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Accumulate, find each bin's largest, compare, compact and zero, in separate passes."""
    table = _table(bins, signal_N.device)
    if added_N is not None:
        signal_N.add_(added_N)
    grad_N = signal_N if added_N is None else added_N
    heavy_N = grad_N.mul(weight).add_(signal_N)  # not torch.add with alpha, which rounds once
    if table.start_B.numel():
        largest_B = torch.segment_reduce(signal_N.abs(), "max", lengths=table.length_B, unsafe=True)
    else:
        largest_B = signal_N.new_empty(0)
    near_N = ~(heavy_N.abs() < largest_B.repeat_interleave(table.length_B)) & (signal_N != 0)
    at_K = near_N.nonzero().view(-1)
    values_K = (heavy_N if heavy else signal_N)[at_K]
    if keep:
        signal_N[at_K] = (signal_N[at_K] - values_K).nan_to_num_(0.0, 0.0, 0.0)
    counts_B = torch.bincount(table.bin_of(at_K), minlength=table.start_B.numel())
    return values_K, at_K.int(), largest_B, counts_B.int()


def encode_bins(
    residual_N: Tensor | None, at_K: Tensor, values_K: Tensor, counts_B: Tensor, scale_L: Tensor, bins: Bins
) -> Tensor:
    """Build all entries in the order of the bins, then sort them by width."""
    table, at_K, negative_K = _table(bins, at_K.device), at_K.long(), values_K < 0
    bin_K = table.bin_of(at_K)
    if not torch.equal(torch.bincount(bin_K, minlength=counts_B.numel()), counts_B.long()):
        raise RuntimeError("indices: expected as many in each bin as counts says")
    if residual_N is not None:
        scale_K = scale_L[table.layer_B[bin_K]]
        left_K = values_K - torch.where(negative_K, -scale_K, scale_K)
        residual_N[at_K] = left_K.nan_to_num_(0.0, 0.0, 0.0)
    empty = counts_B == 0
    bin_E, order = torch.cat((bin_K, empty.nonzero().view(-1))).sort(stable=True)
    nowhere = at_K.new_full((int(empty.sum()),), -1)
    place_E = torch.cat((at_K - table.start_B[bin_K], nowhere))[order]
    negative_E = torch.cat((negative_K, torch.zeros_like(nowhere, dtype=torch.bool)))[order]
    last_E = bin_E.diff(append=bin_E.new_full((1,), -1)) != 0
    entry_E = place_E << 2 | last_E.long() << 1 | negative_E.long()
    width_E = table.width_B[bin_E]
    return torch.cat([entry_E[width_E == width].to(d).view(torch.uint8) for width, d in WIDTHS.items()])


def decode_bins(bytes_S: Tensor, scale_L: Tensor, bins: Bins) -> tuple[Tensor, Tensor]:
    """Decode the entries of one width after another, then sort the elements."""
    table, fault = _table(bins, bytes_S.device), RuntimeError(f"bytes: not those of {sum(bins.counts)} bins")
    places, signs = [], []
    for width, dtype in WIDTHS.items():
        positions = table.width_B.eq(width).nonzero().view(-1)
        whole = bytes_S.numel() // width * width
        entry_E = bytes_S[:whole].clone().view(dtype).long() & (1 << 8 * width) - 1
        last_E = entry_E >> 1 & 1
        bin_E = last_E.cumsum(0) - last_E
        mine_E = bin_E < positions.numel()  # entries after the end of the last bin have another width
        if int(last_E[mine_E].sum()) != positions.numel():
            raise fault
        entry_E, bin_E = entry_E[mine_E], positions[bin_E[mine_E]]
        bytes_S = bytes_S[width * entry_E.numel() :]
        place_E = entry_E >> 2
        full_E = place_E < (1 << 8 * width - 2) - 1
        if bool((place_E >= table.length_B[bin_E])[full_E].any()):
            raise fault
        places.append((table.start_B[bin_E] + place_E)[full_E])
        signs.append((entry_E & 1).bool()[full_E])
    if bytes_S.numel():
        raise fault
    at_K, order = torch.cat(places).sort()
    scale_K = scale_L[layer_of(at_K, bins)]
    return torch.where(torch.cat(signs)[order], -scale_K, scale_K), at_K.int()
