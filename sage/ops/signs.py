"""Sign methods: one bit per element, and one number per group for each sign.

A bit is set if its element is not below 0, so NaN and both zeros count as positive.
"""
# N = elements of the flat vector, G = groups, B = bytes, V = words, W = payloads

from collections.abc import Sequence

import torch
from torch import Tensor

from sage.ops import native, reference_signs
from sage.ops.sums import bounds_of

_native = torch.ops.sage


WORD = 32
"""Signs of a word."""


def num_words(n: int) -> int:
    """Number of words that hold n signs."""
    return -(-n // WORD)


def _fake_words(bytes: Tensor, bounds: Sequence[int], by_column: bool) -> Tensor:
    sizes = [stop - start for start, stop in zip(bounds, bounds[1:], strict=False)]
    num = num_words(bounds[-1]) if by_column else sum(map(num_words, sizes))
    return native.vector(bytes, num, torch.int32)


native.register(
    "sign_bits_",
    lambda signal, bounds, low, high, keep: native.vector(signal, (signal.numel() + 7) // 8, torch.uint8),
)
native.register(
    "momentum_signs_",
    lambda momentum, signal, beta: (
        native.vector(signal, (signal.numel() + 7) // 8, torch.uint8),
        native.vector(signal, 1, torch.float32),
    ),
)
native.register("mean_signs_", lambda *_: None)
native.register("sign_words", _fake_words)
native.register(
    "sign_bytes",
    lambda words, bounds, by_column: words.new_empty((len(words), (bounds[-1] + 7) // 8), dtype=torch.uint8),
)


def sign_bits(signal_N: Tensor, sizes: Sequence[int], low_G: Tensor, high_G: Tensor, *, keep: bool) -> Tensor:
    """The signs of all elements (uint8, B = ⌈N/8⌉): element i is bit i % 8 of byte i // 8.

    Args:
        signal_N: The signal. With `keep` it becomes the error: the low number of its group is subtracted from
            each element below 0 and the high one from every other; what is not finite then becomes 0.
        sizes: Number of elements of each group; they sum to N.
        low_G: Decoded value of elements below 0 (float32).
        high_G: Decoded value of the others (float32).
        keep: Whether to leave the error in the signal, or to leave the signal as it is.
    """
    if native.takes("sign_bits_", signal_N, low_G, high_G):
        return _native.sign_bits_.default(signal_N, bounds_of(sizes), low_G, high_G, keep)
    return reference_signs.sign_bits(signal_N, sizes, low_G, high_G, keep=keep)


def momentum_signs(momentum_N: Tensor, signal_N: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The signs of the momentum m = β·m + (1 − β)·a, updated in place, and the largest |a| (1 element).

    Args:
        momentum_N: The momentum m.
        signal_N: The signal a; what is not finite counts as 0 in the momentum.
        beta: β.
    """
    if native.takes("momentum_signs_", momentum_N, signal_N):
        return _native.momentum_signs_.default(momentum_N, signal_N, beta)
    return reference_signs.momentum_signs(momentum_N, signal_N, beta)


def mean_signs(
    out_N: Tensor,
    bytes_WB: Tensor,
    sizes: Sequence[int],
    low_WG: Tensor,
    high_WG: Tensor,
    *,
    divisor: int,
    added: bool = False,
    votes: bool = False,
) -> Tensor:
    """Mean of the decoded signs of W payloads, added in the order of the payloads.

    Args:
        out_N: Output; overwritten, or with `added` the first summand.
        bytes_WB: Each payload's bits, as `sign_bits` returns them.
        sizes: Number of elements of each group.
        low_WG: Decoded value of a payload's elements below 0 (float32).
        high_WG: Decoded value of its other elements (float32).
        divisor: The sum is divided by it.
        added: Whether the sum begins with `out_N`, or with 0.
        votes: Whether the result is the sign of the sum, undivided: −1, 1, or 0 where it is 0.
    """
    if native.takes("mean_signs_", out_N, low_WG, high_WG) and bytes_WB.is_contiguous():
        _native.mean_signs_.default(out_N, bytes_WB, low_WG, high_WG, bounds_of(sizes), divisor, added, votes)
        return out_N
    return reference_signs.mean_signs(
        out_N, bytes_WB, sizes, low_WG, high_WG, divisor=divisor, added=added, votes=votes
    )


def sign_words(bytes_B: Tensor, sizes: Sequence[int], *, by_column: bool) -> Tensor:
    """Words of 32 signs (int32, V), first sign highest, 1 for a negative element, from `sign_bits`'s bytes.

    Either each group begins a new word, as in BytePS's onebit; or, `by_column`, element r·V + j is bit 31 − r
    of word j, which is the format of the utility study (Agarwal et al., MLSys 2022).
    """
    if native.takes("sign_words", bytes_B, dtype=torch.uint8):
        return _native.sign_words.default(bytes_B, bounds_of(sizes), by_column)
    return reference_signs.sign_words(bytes_B, sizes, by_column=by_column)


def sign_bytes(words_WV: Tensor, sizes: Sequence[int], *, by_column: bool) -> Tensor:
    """The inverse of `sign_words` for W payloads (uint8, W×B)."""
    if native.takes("sign_bytes", words_WV, dtype=torch.int32):
        return _native.sign_bytes.default(words_WV, bounds_of(sizes), by_column)
    return reference_signs.sign_bytes(words_WV, sizes, by_column=by_column)
