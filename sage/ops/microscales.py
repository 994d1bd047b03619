"""The largest magnitude of each block of small floats, in the pass that accumulates the gradient."""
# N = elements of the flat vector, P = blocks

from collections.abc import Sequence

import torch
from torch import Tensor

from sage.ops import native, reference_microscales
from sage.ops.sums import bounds_of

_native = torch.ops.sage


def _fake_largest(signal: Tensor, grad: object, bounds: Sequence[int], block: int) -> Tensor:
    num = sum(-(-(stop - start) // block) for start, stop in zip(bounds, bounds[1:], strict=False))
    return native.vector(signal, num, torch.float32)


native.register("largest_of_blocks_", _fake_largest)


def largest_of_blocks(
    grad_N: Tensor | None, residual_N: Tensor | None, sizes: Sequence[int], block: int
) -> Tensor:
    """Accumulate, and find the largest magnitude of each block (float32, P): NaN if one is not finite.

    Args:
        grad_N: The gradient; without a residual it is the signal, and is not modified. None: the residual is
            the complete signal.
        residual_N: Accumulated into.
        sizes: Number of elements of each group; they sum to N.
        block: Number of elements of a block, 1 or more; each group begins a new one.

    >>> largest_of_blocks(torch.tensor([1.0, -2.0, 3.0, 4.0, float("inf")]), None, [3, 2], 2)
    tensor([2., 3., nan])
    """
    signal_N, added_N = (grad_N, None) if residual_N is None else (residual_N, grad_N)
    assert signal_N is not None
    if native.takes("largest_of_blocks_", signal_N, added_N):
        return _native.largest_of_blocks_.default(signal_N, added_N, bounds_of(sizes), block)
    return reference_microscales.largest_of_blocks(signal_N, added_N, sizes, block)
