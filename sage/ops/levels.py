"""Quantisers: each element becomes a code of 1 to 8 bits, a multiple of the scale of its bucket.

A bucket is a group or a part of one. Its scale is its largest magnitude or its Euclidean norm. A bucket whose
scale is not finite becomes NaN, and leaves no error.
"""
# N = elements of the flat vector, G = groups, P = buckets, B = bytes, W = payloads

from collections.abc import Sequence

import torch
from torch import Tensor

from sage.ops import native, reference_levels
from sage.ops.codecs import Codec, Coding
from sage.ops.philox import INDICES, Positions
from sage.ops.sums import Kind, bounds_of

_native = torch.ops.sage


def _fake_quantise(
    signal: Tensor, grad: object, bounds: Sequence[int], bucket: int, codec: int, levels: int, *_: object
) -> tuple[Tensor, Tensor]:
    coding = Coding(Codec(codec), levels, bucket or None)
    sizes = [stop - start for start, stop in zip(bounds, bounds[1:], strict=False)]
    return (
        native.vector(signal, coding.num_bytes(signal.numel()), torch.uint8),
        native.vector(signal, coding.num_buckets(sizes), torch.float32),
    )


native.register("quantise_", _fake_quantise)
native.register("quantise_mean_", lambda *_: None)
native.register("average_", lambda *_: None)

BLOCK = 16384
"""Largest bucket of `quantise_mean_`."""


def quantise(
    grad_N: Tensor | None,
    residual_N: Tensor | None,
    sizes: Sequence[int],
    coding: Coding,
    *,
    norm: Kind = Kind.LARGEST,
    key: int = 0,
    positions: Positions = INDICES,
) -> tuple[Tensor, Tensor]:
    """Accumulate, and encode the signal: codes (uint8, B) and the scale of each bucket (float32, P).

    Args:
        grad_N: The gradient; without a residual it is the signal, and is not modified. None: the residual is
            the complete signal.
        residual_N: Accumulated into; becomes the error: the signal minus the decoded values, and 0 where
            that is not finite.
        sizes: Number of elements of each group; they sum to N.
        coding: The codec, levels and buckets.
        norm: The scale: `Kind.LARGEST`, the largest magnitude, or `Kind.SQUARES`, the Euclidean norm.
        key: Key of the random bits (`sage.ops.random_bits`).
        positions: Positions of the elements, for their random bits.
    """
    signal_N, added_N = (grad_N, None) if residual_N is None else (residual_N, grad_N)
    assert signal_N is not None
    keep, runs = residual_N is not None, (positions.starts, positions.firsts)
    if native.takes("quantise_", signal_N, added_N):
        return _native.quantise_.default(
            signal_N, added_N, *_numbers(sizes, coding), int(norm), None, None, key, *runs, keep
        )
    return reference_levels.quantise(signal_N, added_N, sizes, coding, norm, key, *runs, keep=keep)


def quantise_to(
    signal_N: Tensor,
    sizes: Sequence[int],
    coding: Coding,
    scale_P: Tensor,
    *,
    limit_P: Tensor | None = None,
    key: int = 0,
    positions: Positions = INDICES,
    keep: bool,
) -> Tensor:
    """Encode a signal by given scales: codes (uint8, B).

    Args:
        signal_N: The signal; with `keep` it becomes the error, as in `quantise`.
        sizes: Number of elements of each group; they sum to N.
        coding: The codec, levels and buckets.
        scale_P: The scale of each bucket (float32); no element may have a larger magnitude.
        limit_P: Larger magnitudes are first reduced to it (float32); None: no limit.
        key: Key of the random bits.
        positions: Positions of the elements, for their random bits.
        keep: Whether to leave the error in the signal, or to leave the signal as it is.
    """
    runs = positions.starts, positions.firsts
    if native.takes("quantise_", signal_N, scale_P, limit_P):
        numbers = _numbers(sizes, coding)
        return _native.quantise_.default(
            signal_N, None, *numbers, int(Kind.LARGEST), scale_P, limit_P, key, *runs, keep
        )[0]
    return reference_levels.quantise_to(signal_N, sizes, coding, scale_P, limit_P, key, *runs, keep=keep)


def quantise_mean(
    grad_N: Tensor | None,
    residual_N: Tensor,
    bytes_WB: Tensor,
    scale_WP: Tensor,
    sizes: Sequence[int],
    coding: Coding,
    *,
    divisor: int,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Accumulate, add the values of W payloads, divide, and encode the mean as `quantise`.

    Args:
        grad_N: The gradient; None: the residual is the complete signal.
        residual_N: Accumulated into; becomes the error times `divisor`.
        bytes_WB: Each payload's codes (uint8); there may be no payload.
        scale_WP: Each payload's scales (float32).
        sizes: Number of elements of each group; they sum to N.
        coding: The codec, levels and buckets.
        divisor: The sum is divided by it, if there is a payload.
        out: Memory for the codes (uint8, B) and the scales (float32, P).
    """
    is_by_blocks = coding.codec <= Codec.E5M2 and 0 < (coding.bucket or 0) <= BLOCK
    if is_by_blocks and native.takes("quantise_mean_", residual_N, grad_N, scale_WP, bytes_WB):
        if out is None:
            like = residual_N
            out = (
                like.new_empty(coding.num_bytes(like.numel()), dtype=torch.uint8),
                like.new_empty(coding.num_buckets(sizes)),
            )
        numbers = _numbers(sizes, coding)
        _native.quantise_mean_.default(residual_N, grad_N, bytes_WB, scale_WP, *numbers, divisor, *out)
        return out
    if grad_N is not None:
        residual_N.add_(grad_N)
    if len(bytes_WB):
        average(residual_N, bytes_WB, scale_WP, sizes, coding, divisor=divisor, added=True)
    parts = quantise(None, residual_N, sizes, coding)
    if divisor > 1:
        residual_N.mul_(divisor)
    if out is None:
        return parts
    for memory, part in zip(out, parts, strict=True):
        memory.copy_(part)
    return out


def average(
    out_N: Tensor,
    bytes_WB: Tensor,
    scale_WP: Tensor,
    sizes: Sequence[int],
    coding: Coding,
    *,
    divisor: int,
    added: bool = False,
) -> Tensor:
    """Mean of the decoded values of W payloads, added in the order of the payloads.

    Args:
        out_N: Output; overwritten, or with `added` the first summand.
        bytes_WB: Each payload's codes, as `quantise` returns them.
        scale_WP: Each payload's scales (float32).
        sizes: Number of elements of each group.
        coding: The codec, levels and buckets.
        divisor: The sum is divided by it.
        added: Whether the sum begins with `out_N`, or with 0.
    """
    if native.takes("average_", out_N, scale_WP) and bytes_WB.is_contiguous():
        _native.average_.default(out_N, bytes_WB, scale_WP, *_numbers(sizes, coding), divisor, added)
        return out_N
    return reference_levels.average(out_N, bytes_WB, scale_WP, sizes, coding, divisor=divisor, added=added)


def _numbers(sizes: Sequence[int], coding: Coding) -> tuple[list[int], int, int, int]:
    """The groups and the coding as arguments of the native ops."""
    return bounds_of(sizes), coding.bucket or 0, int(coding.codec), coding.levels
