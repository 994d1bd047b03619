"""AdaComp's bins: the elements near the largest of their bin, and their codes."""
# N = elements of the flat vector, K = elements taken, L = layers, B = bins, S = bytes

import torch
from torch import Tensor

from sage.ops import native, reference_bins
from sage.ops.reference_bins import Bins

_native = torch.ops.sage


def _fake_take(
    signal: Tensor, grad: object, stops: list[int], lengths: list[int], *_: object
) -> tuple[Tensor, ...]:
    num = sum(Bins(tuple(stops), tuple(lengths)).counts)
    largest, counts = signal.new_empty(num), signal.new_empty(num, dtype=torch.int32)
    return (*native.unknown(signal, torch.float32, torch.int32), largest, counts)


native.register("take_near_", _fake_take)
native.register("encode_bins_", lambda residual, indices, *_: native.unknown(indices, torch.uint8)[0])
native.register("decode_bins", lambda bytes, *_: native.unknown(bytes, torch.float32, torch.int32))


def take_near(
    grad_N: Tensor,
    residual_N: Tensor | None,
    bins: Bins,
    weight: float,
    *,
    keep: bool = True,
    heavy: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Accumulate a = residual + g, and take the elements with |a + weight·g| ≥ the largest |a| of their bin.

    Elements that are 0 are never taken. If the largest |a| or the sum is NaN, the element is taken.

    Args:
        grad_N: The gradient g; without a residual it is also a, and is not modified.
        residual_N: Accumulated into.
        bins: The bins.
        weight: Weight of the gradient.
        keep: Whether each element becomes a minus its value in the residual, and 0 if that is not finite.
        heavy: Whether the values are a + weight·g, and not a.

    Returns:
        Values (K), indices (int32, K, ascending), the largest |a| of each bin (B) and the number of elements
        taken from it (int32, B).
    """
    signal_N, added_N = (grad_N, None) if residual_N is None else (residual_N, grad_N)
    keep = keep and residual_N is not None
    if native.takes("take_near_", signal_N, added_N):
        return _native.take_near_.default(signal_N, added_N, *bins.lists, weight, keep, heavy)
    return reference_bins.take_near(signal_N, added_N, bins, weight, keep=keep, heavy=heavy)


def encode_bins(
    residual_N: Tensor | None, at_K: Tensor, values_K: Tensor, counts_B: Tensor, scale_L: Tensor, bins: Bins
) -> Tensor:
    """Encode the elements taken as bytes: the position in the bin, and the sign of the scale.

    An entry has 1, 2 or 4 bytes, as few as the layer's bins need: the position in all but two bits, then a
    bit that marks the last entry of the bin, then the sign. A bin from which nothing is taken has one entry,
    in which all bits of the position are 1. Entries of narrow bins come before those of wide bins.

    Args:
        residual_N: If given, the elements become their values minus the decoded values, and 0 if that is not
            finite.
        at_K: Indices of the elements (int32, ascending).
        values_K: Their values.
        counts_B: How many of them are in each bin (int32).
        scale_L: The scale of each layer.
        bins: The bins.

    Returns:
        The entries (uint8, S).
    """
    if native.takes("encode_bins_", values_K, at_K, counts_B, scale_L, residual_N):
        return _native.encode_bins_.default(residual_N, at_K, values_K, counts_B, scale_L, *bins.lists)
    return reference_bins.encode_bins(residual_N, at_K, values_K, counts_B, scale_L, bins)


def decode_bins(bytes_S: Tensor, scale_L: Tensor, bins: Bins) -> tuple[Tensor, Tensor]:
    """Decode `encode_bins`'s bytes.

    Returns:
        Values, each ± its layer's scale (K), and indices (int32, K, ascending).

    Raises:
        RuntimeError: if the bytes are not those of these bins.
    """
    if native.takes("decode_bins", scale_L) and native.takes("decode_bins", bytes_S, dtype=torch.uint8):
        return _native.decode_bins.default(bytes_S, scale_L, *bins.lists)
    return reference_bins.decode_bins(bytes_S, scale_L, bins)
