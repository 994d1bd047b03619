"""Sketch: sends the quantile that each element is in, and the quantiles' means (SketchML, SIGMOD 2018)."""
# N = elements of the flat vector, n = of one group, Q = quantiles of a group

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sage.reduction import FusedQuantiser, Parts, Wire, ops

from ._chunked import chunks

MAGNITUDE = 0x7FFFFFFF
"""All bits of a float but its sign; as a key, that of NaN."""
CELLS = 65_536
"""Values of the upper 16 bits of a key."""


class Sketch(FusedQuantiser):
    """Elements become means: a group, in order of size, is divided into parts of equally many elements.

    This is the quantile-bucket quantification of SketchML (Jiang et al., SIGMOD 2018) as in GRACE's class
    (sands-lab/grace, commit 0bd31c5, tensorflow/compressor/sketch.py). Here the parts are exact: element j of
    n in ascending order is in part ⌊j·Q/n⌋. That class divides at interpolated quantiles; SketchML estimates
    them by a quantile sketch, and its MinMaxSketch and its keys are for sparse gradients: they are not here.
    The paper's text was not at hand: unverified. A mean is a sum in float64 (`sage.ops.sums`), rounded once.

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

    def compress(self, grad_N: Tensor, residual_N: Tensor | None, sizes: Sequence[int], wire: Wire) -> Parts:
        return self._parts(ops.accumulate(grad_N, residual_N), sizes, keep=residual_N is not None)

    def compress_signal(self, signal_N: Tensor, sizes: Sequence[int], wire: Wire) -> Parts:
        return self._parts(signal_N, sizes, keep=True)

    def _parts(self, signal_N: Tensor, sizes: Sequence[int], *, keep: bool) -> Parts:
        """Encode a complete signal; `keep` leaves the error in it."""
        codes_N = torch.zeros(signal_N.numel(), dtype=torch.uint8, device=signal_N.device)
        means = [signal_N.new_zeros(0, dtype=torch.float32)]
        for x_n, codes_n in zip(signal_N.split(list(sizes)), codes_N.split(list(sizes)), strict=True):
            if x_n.numel() == 0:
                continue
            means.append(code(x_n, min(self._quantiles, x_n.numel()), codes_n))
            if keep:
                for x, codes in chunks(x_n, codes_n):
                    ops.keep_error(x, means[-1].index_select(0, codes.int()))
        return {"values": codes_N, "scales": torch.cat(means)}

    def average(
        self,
        out_N: Tensor,
        rows: Mapping[str, Tensor],
        sizes: Sequence[int],
        *,
        divisor: int,
        added: bool = False,
    ) -> Tensor:
        nums = [min(self._quantiles, n) for n in sizes]
        if not added:
            out_N.zero_()
        for codes_N, means in zip(rows["values"], rows["scales"], strict=True):
            groups = zip(out_N.split(list(sizes)), codes_N.split(list(sizes)), means.split(nums), strict=True)
            for out_n, codes_n, means_Q in groups:
                for out, codes in chunks(out_n, codes_n):
                    out += means_Q.index_select(0, codes.int())
        return out_N if divisor == 1 else out_N.div_(divisor)

    def bytes_of(self, sizes: Sequence[int]) -> dict[str, int]:
        return {"values": sum(sizes), "scales": 4 * sum(min(self._quantiles, n) for n in sizes)}


def code(x_n: Tensor, num: int, codes_n: Tensor) -> Tensor:
    """Write the part of each element, ⌊j·Q/n⌋ at place j in ascending order; return the parts' means (Q).

    What is sorted are the elements alone: their places follow from comparisons with the first element of each
    part. Of equal elements, the first in the group is the lowest; NaN is above all numbers.

    Args:
        x_n: A group of at least one element.
        num: Q, the number of parts, from 1 to 256 and at most n.
        codes_n: Output (uint8).
    """
    ordered_n = torch.empty(x_n.numel(), dtype=torch.int32, device=x_n.device)
    for x, key in chunks(x_n, ordered_n):
        key.copy_(keys(x))
    if x_n.is_cpu:
        ordered_n.numpy().sort()  # in place, and without the indices that torch's sort returns too
    else:
        ordered_n = ordered_n.sort().values
    starts = [-(-part * x_n.numel() // num) for part in range(num + 1)]
    _write_parts(x_n, ordered_n, starts, codes_n)
    for (key,) in chunks(ordered_n):
        key ^= key >> 31 & MAGNITUDE
    sizes = [stop - start for start, stop in zip(starts, starts[1:], strict=False)]
    below_Q, above_Q, *_ = ops.statistics(ordered_n.view(torch.float32), None, sizes, ops.Kind.SIDES)
    return ((below_Q + above_Q) / torch.tensor(sizes, device=x_n.device)).float()


def _write_parts(x_n: Tensor, ordered_n: Tensor, starts: Sequence[int], codes_n: Tensor) -> None:
    """Write the part of each element, given the sorted keys, where each part starts in them, and the end."""
    n, num, device = x_n.numel(), len(starts) - 1, x_n.device
    # E = different keys with which a part behind the first begins
    first_keys = ordered_n[torch.tensor(starts[1:-1], dtype=torch.int64, device=device)]
    edges_E, repeats_E = first_keys.unique_consecutive(return_counts=True)
    if edges_E.numel() == 0:
        codes_n.zero_()
        return
    search = _Search(edges_E, by_cell=n > CELLS)
    parts = torch.cat([repeats_E.new_zeros(1), repeats_E.cumsum(0)]).to(torch.uint8)
    last_edge = torch.cat([edges_E, edges_E[-1:]])
    places_E = torch.searchsorted(ordered_n, edges_E)  # of the next element that equals an edge
    for x, codes in chunks(x_n, codes_n):
        key = keys(x)
        below = search.num_below(key)
        torch.index_select(parts, 0, below, out=codes)
        equal = _places(last_edge.index_select(0, below) == key)
        if equal.numel() == 0:
            continue
        edge, order = below[equal].sort(stable=True)
        place = torch.arange(edge.numel(), device=device) - torch.searchsorted(edge, edge)
        codes[equal[order]] = ((places_E[edge] + place) * num // n).to(torch.uint8)
        places_E += edge.bincount(minlength=edges_E.numel())


class _Search:
    """How many of some numbers, which ascend, are below each of many keys.

    The search begins with the number of them whose upper 16 bits are below the key's, and halves what is left
    for all keys at a time, without the branches of `torch.bucketize`.

    Args:
        edges_E: The numbers (int32), all different.
        by_cell: Whether to begin with the upper bits, which needs a table.
    """

    def __init__(self, edges_E: Tensor, *, by_cell: bool) -> None:
        num, self._first = edges_E.numel(), None
        most = num
        if by_cell:
            counts = ((edges_E >> 16) + CELLS // 2).bincount(minlength=CELLS)
            self._first, most = (counts.cumsum(0) - counts).int(), int(counts.max())
        self._steps = [1 << power for power in reversed(range(most.bit_length()))]
        self._edges = torch.nn.functional.pad(edges_E, (0, 2 * num), value=MAGNITUDE)

    def num_below(self, key_n: Tensor) -> Tensor:
        """The number of edges below each key (int32)."""
        if self._first is None:
            found = torch.zeros_like(key_n)
        else:
            found = self._first.index_select(0, (key_n >> 16).add_(CELLS // 2))
        for step in self._steps:
            is_above = self._edges.index_select(0, found + (step - 1)) < key_n
            found.add_(is_above.int(), alpha=step)
        return found


def _places(is_set: Tensor) -> Tensor:
    """Indices of the few elements that are true (int64, ascending), found eight at a time."""
    if is_set.numel() % 8:
        return is_set.nonzero().view(-1)
    eights = is_set.view(torch.int64).nonzero()
    all_of_them = (8 * eights + torch.arange(8, device=is_set.device)).view(-1)
    return all_of_them[is_set[all_of_them]]


def keys(x: Tensor) -> Tensor:
    """Numbers in the order of the elements (int32): equal for −0 and 0, and for all NaN, which are highest.

    >>> keys(torch.tensor([-1.0, -0.0, 0.0, 1.0, torch.nan])).diff().sign().tolist()
    [1, 0, 1, 1]
    """
    bits = (x.float() + 0.0).view(torch.int32)
    return (bits ^ (bits >> 31 & MAGNITUDE)).masked_fill_(x != x, MAGNITUDE)


REDUCER = Sketch
