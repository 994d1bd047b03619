"""AdaComp: sends elements close to their bin's maximum, as a sign and a scale (Chen et al., AAAI 2018)."""
# N = elements of the flat vector, K = elements selected, L = layers, B = bins, E = entries, S = bytes

from typing import Literal

import torch
from torch import Tensor

from sage.reduction import Layout, Reduced, Span, Sparsifier, Wire, keep_error, ops, per_group, phase

WIDTHS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
"""Bytes per entry and the dtype of each; two bits of an entry do not belong to the position."""
GRADCOMP_WEIGHT, GRADCOMP_CLIP = 3.0, 60.0
"""GradComp's weight of the step's gradient, and adacomp2's clipping limit in standard deviations."""


class AdaComp(Sparsifier):
    """Send the elements close to the maximum of their bin, with extra weight on this step's gradient.

    `rule="paper"` (Chen et al., 2018): let a = residual + g and H = a + (s − 1)·g. An element is sent if |H|
    ≥ gmax, where gmax is the largest |a| in its bin. It is sent as sign(a) times a scale, the mean of gmax
    over the layer's bins, and the residual keeps the difference. Nothing is sent from a bin of zeros. Bins
    have `conv_bin` elements in tensors of three or more dimensions, and `dense_bin` elements in others. No
    bin crosses the border of a layer, whatever the grouping. With `sends="values"` the selected values of a
    are sent unchanged, which is in neither source.

    `rule="gradcomp"` is the code of the language-model study (maysarahammouda/GradComp), which has no bins.
    It compares H = a + 3·g with the largest |a| of the whole layer. (Its `comp_const` is 3; `bins=False,
    scale_factor=4` makes the same selection here.) The value sent is H itself, so the residual keeps a − H.
    `gradcomp2` is its variant adacomp2, which clips at 60σ: the H that is sent is limited to ±60σ, where σ is
    the standard deviation of the layer's a.

    Payload bytes per rank with `sends="scale"`: `values` holds one entry per element sent and one per bin
    from which nothing is sent; an entry takes 1 byte in bins of fewer than 64 elements, 2 bytes below 16,384,
    else 4. `scales` holds 4 bytes per layer, and 16 bytes hold the lengths of these two. An entry stores the
    position in the bin in all but two bits, then a bit that marks the last entry of the bin, then the sign.
    In a bin from which nothing is sent, all bits of the position are 1. Otherwise the payload bytes are those
    of a `Sparsifier` with uneven counts. In a hybrid, such as `adacomp+terngrad`, the quantiser encodes a, or
    H under GradComp's rules.

    Args:
        scale_factor: s of the paper's rule, at least 1; the paper reports that 1.5 to 3 work.
        bins: Whether the paper's rule divides layers into bins; if not, each layer is one bin.
        conv_bin: Elements per bin of a convolution's weight, from 1 to 2^30 − 1.
        dense_bin: Elements per bin of any other tensor, from 1 to 2^30 − 1.
        rule: Selection rule: the paper's, or adacomp or adacomp2 of GradComp's code, which have no bins and a
            fixed weight.
        sends: What the paper's rule sends: a sign and the layer's scale, or the fp32 values of a.

    Raises:
        ValueError: if an option is out of range, or an option of the paper's rule is combined with another
            rule.
    """

    rounds = True
    grouping = "layer"
    later = frozenset({"rule", "sends"})
    even = False
    start_B: Tensor
    layer_B: Tensor
    width_B: Tensor

    def __init__(
        self,
        *,
        scale_factor: float = 2.0,
        bins: bool = True,
        conv_bin: int = 50,
        dense_bin: int = 500,
        rule: Literal["paper", "gradcomp", "gradcomp2"] = "paper",
        sends: Literal["scale", "values"] = "scale",
    ) -> None:
        super().__init__()
        if rule not in ("paper", "gradcomp", "gradcomp2"):
            raise ValueError(f"rule={rule!r}: expected paper, gradcomp or gradcomp2")
        if sends not in ("scale", "values"):
            raise ValueError(f"sends={sends!r}: expected scale or values")
        if rule != "paper" and (sends, bins, scale_factor) != ("scale", True, 2.0):
            raise ValueError(
                f"rule={rule!r} with sends, bins or scale_factor: only rule='paper' takes these options"
            )
        if not 1 <= scale_factor < float("inf"):
            raise ValueError(f"scale_factor={scale_factor!r}: expected a finite number, at least 1")
        for name, length in (("conv_bin", conv_bin), ("dense_bin", dense_bin)):
            if not 1 <= length < 2**30:
                raise ValueError(f"{name}={length!r}: expected 1 to 2^30 − 1 elements")
        self._is_gradcomp = rule != "paper"
        self._clip = GRADCOMP_CLIP if rule == "gradcomp2" else None
        self._codes_signs = not self._is_gradcomp and sends == "scale"
        self._weight = GRADCOMP_WEIGHT if self._is_gradcomp else scale_factor - 1
        self._bins = bins and not self._is_gradcomp
        self._conv_bin, self._dense_bin = conv_bin, dense_bin

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        lengths = [self._bin(span) for span in layout.spans]
        self._num_bins = [
            -(-span.numel // length) for span, length in zip(layout.spans, lengths, strict=True)
        ]
        starts = [
            torch.arange(span.start, span.stop, length)
            for span, length in zip(layout.spans, lengths, strict=True)
        ]
        none = torch.empty(0, dtype=torch.int64)
        self.register_buffer("start_B", torch.cat([none, *starts]), persistent=False)
        layer_B = torch.arange(len(lengths)).repeat_interleave(torch.tensor(self._num_bins).long())
        self.register_buffer("layer_B", layer_B, persistent=False)
        width_B = torch.tensor([_width(length) for length in lengths]).long()[layer_B]
        self.register_buffer("width_B", width_B, persistent=False)

    def _bin(self, span: Span) -> int:
        if not self._bins:
            return max(1, span.numel)
        return self._conv_bin if len(span.shape) >= 3 else self._dense_bin

    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        signal_N, at_K, _ = self._near_largest(grad_N, residual_N)
        if not self._is_gradcomp:
            return ops.take(signal_N, at_K, dtype=self.dtype, keep=residual_N is not None), at_K.int()
        values_K = torch.add(signal_N[at_K], grad_N[at_K], alpha=self._weight)
        if self._clip is not None:
            deviation_L = per_group(signal_N, [span.numel for span in self.layout.spans], _deviation)
            limit_K = self._clip * deviation_L[self.layer_B[self._bin_of(at_K)]]
            values_K = torch.where(values_K.isfinite(), values_K.clamp(-limit_K, limit_K), values_K)
        if residual_N is not None:
            left_K = residual_N[at_K]
            keep_error(left_K, values_K)
            residual_N[at_K] = left_K
        return values_K, at_K.int()

    def _near_largest(self, grad_N: Tensor, residual_N: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The signal, the indices where |H| ≥ gmax, and gmax of every bin."""
        signal_N = ops.accumulate(grad_N, residual_N)
        heavy_N = torch.add(signal_N, grad_N, alpha=self._weight)
        length_B = self.start_B.diff(append=self.start_B.new_tensor([signal_N.numel()]))
        largest_B = torch.segment_reduce(signal_N.abs(), "max", lengths=length_B, unsafe=True)
        # A comparison with NaN selects the element, so that the NaN reaches every rank.
        near_N = ~(heavy_N.abs() < largest_B.repeat_interleave(length_B)) & (signal_N != 0)
        return signal_N, near_N.nonzero().view(-1), largest_B

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        if not self._codes_signs:
            return super().forward(grad_N, residual_N, wire)
        with phase("select"):
            signal_N, at_K, largest_B = self._near_largest(grad_N, residual_N)
            scale_L = per_group(largest_B, self._num_bins, torch.mean)
            negative_K = signal_N[at_K] < 0
            bytes_S = self.encode(at_K, negative_K)
            if residual_N is not None:
                left_K = residual_N[at_K]
                keep_error(left_K, self._values(at_K, negative_K, scale_L))
                residual_N[at_K] = left_K
        rows = wire.gather_streams(values=bytes_S, scales=scale_L)
        with phase("scatter"):
            sent = [(*self.decode(bytes_S), scale_L) for bytes_S, scale_L in rows]
            counts, at_M = [at.numel() for at, _, _ in sent], torch.cat([at for at, _, _ in sent])
            values_M = torch.cat([self._values(*row) for row in sent])
            mean_N = ops.scatter_mean(values_M, at_M.int(), counts, out_N=grad_N)
        return Reduced(mean_N, at_K, sum(counts) / (len(counts) * max(1, grad_N.numel())), at_M)

    def _values(self, at_K: Tensor, negative_K: Tensor, scale_L: Tensor) -> Tensor:
        scale_K = scale_L[self.layer_B[self._bin_of(at_K)]]
        return torch.where(negative_K, -scale_K, scale_K)

    def _bin_of(self, at_K: Tensor) -> Tensor:
        return torch.searchsorted(self.start_B, at_K, right=True) - 1

    def encode(self, at_K: Tensor, negative_K: Tensor) -> Tensor:
        """Encode these elements (ascending) as bytes; entries of narrow bins come before those of wide bins.

        Args:
            at_K: Indices of the elements sent.
            negative_K: Whether each of them is negative (bool).

        Returns:
            The entries (uint8, S).
        """
        bin_K = self._bin_of(at_K)
        empty = torch.bincount(bin_K, minlength=self.start_B.numel()) == 0
        bin_E, order = torch.cat((bin_K, empty.nonzero().view(-1))).sort(stable=True)
        nowhere = at_K.new_full((int(empty.sum()),), -1)
        place_E = torch.cat((at_K - self.start_B[bin_K], nowhere))[order]
        negative_E = torch.cat((negative_K, torch.zeros_like(nowhere, dtype=torch.bool)))[order]
        last_E = bin_E.diff(append=bin_E.new_full((1,), -1)) != 0
        entry_E = place_E << 2 | last_E.long() << 1 | negative_E.long()
        width_E = self.width_B[bin_E]
        return torch.cat([entry_E[width_E == width].to(d).view(torch.uint8) for width, d in WIDTHS.items()])

    def decode(self, bytes_S: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the elements (ascending), and whether each of them is negative (bool)."""
        places, signs = [], []
        for width, dtype in WIDTHS.items():
            bins = self.width_B.eq(width).nonzero().view(-1)
            whole = bytes_S.numel() // width * width
            entry_E = bytes_S[:whole].clone().view(dtype).long() & (1 << 8 * width) - 1
            last_E = entry_E >> 1 & 1
            bin_E = last_E.cumsum(0) - last_E
            mine_E = bin_E < bins.numel()  # entries after the end of the last bin have another width
            entry_E, bin_E = entry_E[mine_E], bins[bin_E[mine_E]]
            bytes_S = bytes_S[width * entry_E.numel() :]
            place_E = entry_E >> 2
            full_E = place_E < (1 << 8 * width - 2) - 1
            places.append((self.start_B[bin_E] + place_E)[full_E])
            signs.append((entry_E & 1).bool()[full_E])
        at_K, order = torch.cat(places).sort()
        return at_K, torch.cat(signs)[order]

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        if not self._codes_signs:
            return super().payload(counts, rank)
        return None  # the number of empty bins of each width does not follow from the counts


def _deviation(x: Tensor) -> Tensor:
    return x.std(correction=0)


def _width(length: int) -> int:
    """Bytes per entry in bins of this length."""
    return next(width for width in WIDTHS if length < 1 << 8 * width - 2)


REDUCER = AdaComp
