"""The scales of blocks of small floats: the largest magnitude of each block, and the scales of NVFP4."""
# N = elements of the flat vector, G = groups, P = blocks, B = bytes

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
native.register(
    "encode_tensor_scales",
    lambda largest, bounds: (
        native.vector(largest, 4 * (len(bounds) - 1) + bounds[-1], torch.uint8),
        native.vector(largest, bounds[-1], torch.float32),
    ),
)
native.register("decode_tensor_scales", lambda bytes, bounds: native.vector(bytes, bounds[-1], torch.float32))


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


def encode_tensor_scales(largest_P: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Encode NVFP4's scales s·t: a float32 t of each group, and an 8-bit float s (E4M3) of each block.

    t = M/(6·448), where M is the largest number of the group that is finite, and s is nearest to m/(6·t), at
    most 448, where m is the block's; s is 0 where that is 0/0, and NaN where m is. The formulas are those of
    torchao's `nvfp4_quantize`, except that it keeps s at 2⁻⁶ or more.

    Args:
        largest_P: m of each block (float32), as `largest_of_blocks` returns them.
        counts: Number of blocks of each group; they sum to P.

    Returns:
        The bytes (uint8, B = 4·G + P): t of each group, then s of each block. And 4·s·t of each block
        (float32, P), which is what `Codec.E2M1` has as the scale.

    >>> bytes_B, scale_P = encode_tensor_scales(torch.tensor([2688.0, 6.0, 0.0]), [2, 1])
    >>> scale_P, bytes_B[:4].view(torch.float32), bytes_B[8:10].view(torch.float8_e4m3fn).float()
    (tensor([1792.,    4.,    0.]), tensor([1.]), tensor([448.,   1.]))
    """
    if native.takes("encode_tensor_scales", largest_P):
        return _native.encode_tensor_scales.default(largest_P, bounds_of(counts))
    return reference_microscales.encode_tensor_scales(largest_P, counts)


def decode_tensor_scales(bytes_B: Tensor, counts: Sequence[int]) -> Tensor:
    """Decode 4·s·t of each block (float32, P) from the bytes of `encode_tensor_scales` (uint8, B)."""
    if native.takes("decode_tensor_scales", bytes_B, dtype=torch.uint8):
        return _native.decode_tensor_scales.default(bytes_B, bounds_of(counts))
    return reference_microscales.decode_tensor_scales(bytes_B, counts)
