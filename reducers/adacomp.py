"""AdaComp: sends elements close to their bin's maximum, as a sign and a scale (Chen et al., AAAI 2018)."""
# N = elements of the flat vector, K = elements selected, L = layers, B = bins, S = bytes

from typing import Literal

import torch
from torch import Tensor

from sage.reduction import Layout, Reduced, Span, Sparsifier, Wire, keep_error, ops, per_group, phase

GRADCOMP_WEIGHT, GRADCOMP_CLIP = 3.0, 60.0
"""GradComp's weight of the step's gradient, and adacomp2's clipping limit in standard deviations."""


class AdaComp(Sparsifier):
    """Send the elements close to the maximum of their bin, with extra weight on this step's gradient.

    `rule="paper"` (Chen et al., 2018): let a = residual + g and H = a + (s − 1)·g. An element is sent if |H|
    ≥ gmax, where gmax is the largest |a| in its bin. It is sent as sign(a) times a scale, the mean of gmax
    over the layer's bins, and the residual keeps the difference. Nothing is sent from a bin of zeros. Bins
    have `conv_bin` elements in tensors of three or more dimensions, and `dense_bin` elements in others. No
    bin crosses the border of a layer, under any grouping. With `sends="values"` the selected values of a
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

    decides_by = "group"
    rounds = True
    grouping = "layer"
    later = frozenset({"rule", "sends"})
    serves = False  # it compares the residual with the newest gradient
    even = False

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
        self._clips = rule == "gradcomp2"
        self._codes_signs = not self._is_gradcomp and sends == "scale"
        self._weight = GRADCOMP_WEIGHT if self._is_gradcomp else scale_factor - 1
        self._bins = bins and not self._is_gradcomp
        self._conv_bin, self._dense_bin = conv_bin, dense_bin

    def bind(self, layout: Layout) -> None:
        super().bind(layout)
        stops, lengths = (span.stop for span in layout.spans), map(self._bin, layout.spans)
        self.bins = ops.Bins(tuple(stops), tuple(lengths))

    def _bin(self, span: Span) -> int:
        if not self._bins:
            return max(1, span.numel)
        return self._conv_bin if len(span.shape) >= 3 else self._dense_bin

    def take(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> tuple[Tensor, Tensor]:
        values_K, at_K, _, _ = ops.take_near(
            grad_N, residual_N, self.bins, self._weight, keep=not self._clips, heavy=self._is_gradcomp
        )
        if not self._clips:
            return values_K, at_K
        signal_N = grad_N if residual_N is None else residual_N
        deviation_L = per_group(signal_N, [span.numel for span in self.layout.spans], _deviation)
        limit_K = GRADCOMP_CLIP * deviation_L[ops.layer_of(at_K, self.bins)]
        values_K = torch.where(values_K.isfinite(), values_K.clamp(-limit_K, limit_K), values_K)
        if residual_N is not None:
            left_K = residual_N[at_K]
            keep_error(left_K, values_K)
            residual_N[at_K] = left_K
        return values_K, at_K

    def forward(self, grad_N: Tensor, residual_N: Tensor | None, wire: Wire) -> Reduced:
        if not self._codes_signs:
            return super().forward(grad_N, residual_N, wire)
        with phase("select"):
            values_K, at_K, largest_B, counts_B = ops.take_near(
                grad_N, residual_N, self.bins, self._weight, keep=False
            )
            scale_L = per_group(largest_B, self.bins.counts, torch.mean)
            bytes_S = ops.encode_bins(residual_N, at_K, values_K, counts_B, scale_L, self.bins)
        rows = wire.gather_streams(values=bytes_S, scales=scale_L)
        with phase("scatter"):
            sent = [ops.decode_bins(bytes_S, scale_L, self.bins) for bytes_S, scale_L in rows]
            counts, at_M = [at_K.numel() for _, at_K in sent], torch.cat([at_K for _, at_K in sent])
            values_M = torch.cat([values_K for values_K, _ in sent])
            mean_N = ops.scatter_mean(values_M, at_M, counts, out_N=grad_N)
        return Reduced(mean_N, at_K, sum(counts) / (len(counts) * max(1, grad_N.numel())), at_M)

    def payload(self, counts: list[int], rank: int) -> dict[str, int] | None:
        if not self._codes_signs:
            return super().payload(counts, rank)
        return None  # the number of empty bins of each width does not follow from the counts


def _deviation(x: Tensor) -> Tensor:
    return x.std(correction=0)


REDUCER = AdaComp
