"""Codes of the shares of a vector: what a rank sends to each server, and what a server sends to all ranks.

The W shares have ⌈N/W⌉ elements each, the last ones fewer (`sage.comm.packing.divide`). A sparsifier selects
from the whole vector, and its selection is divided among the shares. A quantiser encodes each share as a
vector of its own, in which the groups that cross a border are divided.
"""
# N = elements of the vector, S = of a share, K = elements selected, W = ranks

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor

from sage import ops
from sage.comm.packing import divide
from sage.comm.wire import Wire
from sage.reduction.hybrid import Hybrid
from sage.reduction.quantise import Parts, Quantiser
from sage.reduction.reducer import Reducer, Sparsifier
from sage.reduction.two_way import cut


class ShareCodes(Protocol):
    """Encodes the shares of a vector by a reducer's rule, and decodes them."""

    alike: bool
    """Whether all parts of a share have the same number of elements."""

    def encode(
        self, grad_N: Tensor, residual_N: Tensor | None, num_shares: int, wire: Wire
    ) -> tuple[list[Parts], Tensor | None]:
        """Encode each share, and leave in the residual what the codes do not represent.

        Args:
            grad_N: The gradient; without a residual it is the signal.
            residual_N: As in `Reducer.forward`.
            num_shares: Number of shares.
            wire: For values that ranks must agree on first.

        Returns:
            The parts of each share by kind, and the indices of the elements that are in them (None: all).
        """
        ...

    def mean(self, rows: Sequence[Parts], sizes: Sequence[int], out_S: Tensor) -> Tensor:
        """Decode the codes of a share, one from each of several ranks; return their mean, added in order.

        Args:
            rows: The parts of each code by kind.
            sizes: Number of elements of each group in the share.
            out_S: Output; overwritten.
        """
        ...


def share_codes(reducer: Reducer) -> ShareCodes:
    """Return the codes of a sparsifier, a quantiser or a hybrid."""
    if isinstance(reducer, Sparsifier):
        return _OfSparsifier(reducer)
    if isinstance(reducer, Quantiser):
        return _OfQuantiser(reducer)
    assert isinstance(reducer, Hybrid)
    return _OfHybrid(reducer)


class _OfSparsifier:
    """Values and indices, within the share, of the elements selected."""

    def __init__(self, sparsifier: Sparsifier) -> None:
        self._sparsifier = sparsifier
        self.alike = not sparsifier.codes_indices

    def encode(
        self, grad_N: Tensor, residual_N: Tensor | None, num_shares: int, wire: Wire
    ) -> tuple[list[Parts], Tensor | None]:
        values_K, at_K = self._sparsifier.take(grad_N, residual_N, wire)
        codes = []
        for piece, first, length in _by_share(at_K, grad_N.numel(), num_shares):
            at = at_K[piece] - first
            indices = at if self.alike else ops.encode_indices(at, length)
            codes.append({"values": values_K[piece], "indices": indices})
        return codes, at_K

    def mean(self, rows: Sequence[Parts], sizes: Sequence[int], out_S: Tensor) -> Tensor:
        at = [row["indices"] for row in rows]
        if not self.alike:
            at = [ops.decode_indices(indices_B, out_S.numel()) for indices_B in at]
        values = torch.cat([row["values"] for row in rows])
        return ops.scatter_mean(values, torch.cat(at), [at_K.numel() for at_K in at], out_N=out_S)


class _OfQuantiser:
    """The quantiser's parts of each share."""

    alike = False

    def __init__(self, quantiser: Quantiser) -> None:
        self._quantiser = quantiser

    def encode(
        self, grad_N: Tensor, residual_N: Tensor | None, num_shares: int, wire: Wire
    ) -> tuple[list[Parts], Tensor | None]:
        lengths = divide(grad_N.numel(), num_shares)
        residuals: Sequence[Tensor | None] = (
            [None] * num_shares if residual_N is None else residual_N.split(lengths)
        )
        shares = cut(self._quantiser.sizes, num_shares)
        each = zip(grad_N.split(lengths), residuals, shares, strict=True)
        return [self._quantiser.compress(grad_S, left_S, sizes, wire) for grad_S, left_S, sizes in each], None

    def mean(self, rows: Sequence[Parts], sizes: Sequence[int], out_S: Tensor) -> Tensor:
        for number, row in enumerate(rows):
            divisor = len(rows) if number + 1 == len(rows) else 1
            one = {kind: part[None] for kind, part in row.items()}
            self._quantiser.average(out_S, one, sizes, divisor=divisor, added=number > 0)
        return out_S


class _OfHybrid:
    """The quantiser's parts of the elements selected in each share, and their encoded indices."""

    alike = False

    def __init__(self, hybrid: Hybrid) -> None:
        self._hybrid = hybrid

    def encode(
        self, grad_N: Tensor, residual_N: Tensor | None, num_shares: int, wire: Wire
    ) -> tuple[list[Parts], Tensor | None]:
        quantiser = self._hybrid.quantiser
        values_K, at_K = self._hybrid.sparsifier.take(grad_N, residual_N, wire)
        groups = [stop - start for start, stop in self._hybrid.layout.groups]
        codes = []
        shares = _by_share(at_K, grad_N.numel(), num_shares)
        for (piece, first, length), sizes in zip(shares, cut(groups, num_shares), strict=True):
            values, at = values_K[piece], at_K[piece] - first
            counts = _in_groups(at, sizes)
            parts = quantiser.encode(values, counts, wire)
            if residual_N is not None:
                left = values.clone()
                ops.keep_error(left, quantiser.decode(parts, counts))
                residual_N[at_K[piece]] += left
            codes.append({**parts, "indices": ops.encode_indices(at, length)})
        return codes, at_K

    def mean(self, rows: Sequence[Parts], sizes: Sequence[int], out_S: Tensor) -> Tensor:
        at, values = [], []
        for row in rows:
            at.append(ops.decode_indices(row["indices"], out_S.numel()))
            parts: Mapping[str, Tensor] = {kind: part for kind, part in row.items() if kind != "indices"}
            values.append(self._hybrid.quantiser.decode(parts, _in_groups(at[-1], sizes)))
        counts = [at_K.numel() for at_K in at]
        return ops.scatter_mean(torch.cat(values), torch.cat(at), counts, out_N=out_S)


def _by_share(at_K: Tensor, n: int, num_shares: int) -> list[tuple[slice, int, int]]:
    """For each share, which of the ascending indices are in it, its first element, and its length."""
    lengths = divide(n, num_shares)
    borders = [0, *accumulate(lengths)]
    places = torch.searchsorted(at_K, torch.tensor(borders, dtype=at_K.dtype, device=at_K.device)).tolist()
    return [
        (slice(a, b), first, length)
        for (a, b), first, length in zip(pairwise(places), borders, lengths, strict=False)
    ]


def _in_groups(at_K: Tensor, sizes: Sequence[int]) -> list[int]:
    """Number of the ascending indices in each of the groups with these sizes."""
    stops_G = torch.tensor(list(accumulate(sizes)), dtype=at_K.dtype, device=at_K.device)
    below_G = torch.searchsorted(at_K, stops_G)
    counts: list[int] = below_G.diff(prepend=below_G.new_zeros(1)).tolist()
    return counts
