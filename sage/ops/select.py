"""Selection: accumulate, compare with a threshold or take the largest, compact and zero in one pass."""
# N = elements of the flat vector, K = elements selected

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sage.ops import gather, native, reference

_native = torch.ops.sage


def _fake_top(
    signal: Tensor, grad: object, bounds: object, counts: Sequence[int], *_: float
) -> tuple[Tensor, ...]:
    return signal.new_empty(sum(counts)), signal.new_empty(sum(counts), dtype=torch.int32)


native.register("select_", lambda signal, *_: native.unknown(signal, torch.float32, torch.int32))
native.register(
    "select_groups_",
    lambda signal, grad, bounds, *_: (
        *native.unknown(signal, torch.float32, torch.int32),
        signal.new_empty((len(bounds) - 1,), dtype=torch.int64),
    ),
)
native.register("top_", _fake_top)
native.register("count_above", lambda x, threshold: x.new_empty((), dtype=torch.int64))


def accumulate(grad_N: Tensor, residual_N: Tensor | None) -> Tensor:
    """The signal a = residual + gradient, formed in place in the residual if there is one."""
    return grad_N if residual_N is None else residual_N.add_(grad_N)


def select_top(x_N: Tensor, k: int) -> Tensor:
    """Indices (int64, ascending) of the k largest |x|; of equal ones, the lower index first."""
    if (n := x_N.numel()) > k and native.takes("top_", x_N):
        return _native.top_.default(x_N, None, [0, n], [k], keep=False, clear=False)[1].long()
    return reference.select_top(x_N, k)


def select_above(x_N: Tensor, threshold: float) -> Tensor:
    """Indices (int64, ascending) where |x| ≥ threshold or x is NaN; the threshold is rounded to x's dtype."""
    if native.takes("select_", x_N):
        return _native.select_.default(x_N, None, threshold, False, False, None, 1)[1].long()
    return reference.is_above(x_N, threshold).nonzero().view(-1)


def count_above(x_N: Tensor, threshold: float) -> int:
    """Number of elements that `select_above` would select."""
    if native.takes("count_above", x_N):
        return int(_native.count_above.default(x_N, threshold))
    return int(reference.is_above(x_N, threshold).sum())


def magnitude(bits: int, dtype: torch.dtype) -> float:
    """The magnitude with these bits; the inverse of `magnitude_bits` for one number."""
    return float(torch.tensor(bits, dtype=reference.BITS[dtype]).view(dtype))


def threshold_in(threshold: float, dtype: torch.dtype) -> float:
    """A threshold as it is compared with elements of this dtype: rounded.

    >>> threshold_in(0.1, torch.float32), threshold_in(1e300, torch.float32)
    (0.10000000149011612, inf)
    """
    if dtype is torch.float32:  # many times as fast as with a tensor
        return ctypes.c_float(threshold).value
    return float(torch.tensor(threshold, dtype=dtype))


def least_magnitude(x_K: Tensor) -> float:
    """The smallest |x|; infinity if none is a number, 0 if there are no elements."""
    if x_K.numel() == 0:
        return 0.0
    least = float(x_K.abs().min())
    if math.isnan(least):  # of some, or of all
        least = float(x_K.abs().nan_to_num_(math.inf, math.inf).min())
    return least


def take(signal_N: Tensor, at_K: Tensor, *, dtype: torch.dtype, keep: bool) -> Tensor:
    """The signal's values at `at_K`, rounded to `dtype`; with `keep` they are removed from the signal.

    The signal then holds 0 where a value was sent exactly, and the rounding error where it was rounded.
    """
    own_K = gather.gather_(signal_N, None, at_K, keep=keep)
    return rounded(signal_N, own_K, at_K, dtype=dtype, keep=keep)


def take_at(
    grad_N: Tensor, residual_N: Tensor | None, at_K: Tensor, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Accumulate and take the values at these indices, in one pass if the indices ascend.

    Args:
        grad_N: The gradient; without a residual it is the signal, and is not modified.
        residual_N: Accumulated into; keeps what is not taken, as in `take`.
        at_K: The indices.
        dtype: Dtype of the values.
    """
    keep = residual_N is not None
    signal_N, added_N = (grad_N, None) if residual_N is None else (residual_N, grad_N)
    own_K = gather.gather_(signal_N, added_N, at_K, keep=keep)
    return rounded(signal_N, own_K, at_K, dtype=dtype, keep=keep)


def take_above(
    grad_N: Tensor,
    residual_N: Tensor | None,
    threshold: float,
    *,
    dtype: torch.dtype = torch.float32,
    clear: bool = False,
    bins: Tensor | None = None,
    every: int = 32,
) -> tuple[Tensor, Tensor]:
    """Accumulate and take what `select_above` selects, in one pass: values and indices (int32, ascending).

    Args:
        grad_N: The gradient; without a residual it is the signal, and is not modified.
        residual_N: Accumulated into; keeps what is not taken, as in `take`.
        threshold: Smallest magnitude to take.
        dtype: Dtype of the values.
        clear: Whether to set the gradient to 0 after it is added to the residual.
        bins: int32, NUM_BINS: the signal's magnitudes are counted in it, for `threshold_from_histogram`.
        every: Count only one in `every` groups of 64 elements.
    """
    keep = residual_N is not None
    signal_N, added_N = (grad_N, None) if residual_N is None else (residual_N, grad_N)
    if native.takes("select_", signal_N, added_N, bins):
        own_K, at_K = _native.select_.default(signal_N, added_N, threshold, keep, clear, bins, every)
    else:
        own_K, at_K = reference.take_above(signal_N, added_N, threshold, clear=clear, bins=bins, every=every)
    return rounded(signal_N, own_K, at_K, dtype=dtype, keep=keep), at_K


def take_above_each(
    grad_N: Tensor,
    residual_N: Tensor | None,
    bounds: Sequence[int],
    thresholds: Sequence[float],
    *,
    keep: bool | None = None,
) -> tuple[Tensor, Tensor, list[int]]:
    """Accumulate and take what `select_above` selects in each group, all in one pass.

    Args:
        grad_N: The gradient; without a residual it is the signal.
        residual_N: Accumulated into; keeps what is not taken, and 0 in the place of the rest.
        bounds: Group g is elements `[bounds[g], bounds[g + 1])`; together the groups are the whole vector.
        thresholds: Smallest magnitude to take from each group.
        keep: Whether 0 is left in the signal where an element is taken; by default if there is a residual.

    Returns:
        Values, indices (int32, ascending), and the number taken from each group.
    """
    signal_N, added_N = (grad_N, None) if residual_N is None else (residual_N, grad_N)
    keeps = residual_N is not None if keep is None else keep
    op = _native.select_groups_.default if native.takes("select_groups_", signal_N, added_N) else None
    own_K, at_K, counts_G = (op or reference.take_above_each)(signal_N, added_N, bounds, thresholds, keeps)
    return own_K, at_K, counts_G.tolist()


def take_top(
    grad_N: Tensor,
    residual_N: Tensor | None,
    bounds: Sequence[int],
    counts: Sequence[int],
    *,
    dtype: torch.dtype = torch.float32,
    clear: bool = False,
    near: tuple[float, float] = (0.0, 0.0),
) -> tuple[Tensor, Tensor]:
    """Accumulate and take what `select_top` selects in each group: values and indices (int32, ascending).

    Args:
        grad_N: The gradient; without a residual it is the signal, and is not modified.
        residual_N: Accumulated into; keeps what is not taken, as in `take`.
        bounds: Group g is elements `[bounds[g], bounds[g + 1])`; together the groups are the whole vector.
        counts: Number of elements to take from each group, at most all.
        dtype: Dtype of the values.
        clear: Whether to set the gradient to 0 after it is added to the residual.
        near: Hint: magnitudes between which the smallest one taken should be. It does not change the result:
            the native op then needs no sample, and is slower if the hint is wrong.
    """
    keep = residual_N is not None
    signal_N, added_N = (grad_N, None) if residual_N is None else (residual_N, grad_N)
    if native.takes("top_", signal_N, added_N):
        own_K, at_K = _native.top_.default(signal_N, added_N, bounds, counts, keep, clear, *near)
    else:
        own_K, at_K = reference.take_top(signal_N, added_N, bounds, counts, clear=clear)
    return rounded(signal_N, own_K, at_K, dtype=dtype, keep=keep), at_K


def rounded(signal_N: Tensor, own_K: Tensor, at_K: Tensor, *, dtype: torch.dtype, keep: bool) -> Tensor:
    """Values cast to `dtype`; with `keep`, the rounding error is written back to the signal."""
    if own_K.dtype is dtype:
        return own_K
    if torch.promote_types(own_K.dtype, dtype) is dtype:
        return own_K.to(dtype)
    values_K, left_K = reference.round_to(own_K, dtype)
    if keep:
        signal_N[at_K] = left_K
    return values_K
