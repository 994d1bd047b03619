"""Plain-torch reference of the Elias streams; `sage.ops.elias` describes the format."""
# N = elements, K = nonzero elements, G = groups, F = fields of bits, B = bits, V = words of 32

from collections.abc import Sequence

import torch
from torch import Tensor

WORD = 32
"""Bits in a word."""
GREATEST = 2**31 - 1
"""Largest number that can be encoded, and most bits of all streams together."""
PREFIX = 9
"""Bits of the longest prefix, z zeros and len in z + 1 bits, at z = 4."""


def encode(x_K: Tensor) -> tuple[Tensor, Tensor]:
    """Elias delta codes of integers (int64, 1 to 2^31 − 1): the codes as integers, and the bits of each.

    >>> codes_K, widths_K = encode(torch.tensor([1, 2, 10]))
    >>> [f"{code:0{width}b}" for code, width in zip(codes_K.tolist(), widths_K.tolist())]
    ['1', '0100', '00100010']
    """
    len_K = _bit_length(x_K)
    codes_K = len_K << len_K - 1 | x_K - (1 << len_K - 1)
    return codes_K, 2 * (_bit_length(len_K) - 1) + len_K


def encode_levels(levels_N: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """As `sage.ops.elias.encode_levels`."""
    at_K = levels_N.nonzero().view(-1)
    levels_K = levels_N[at_K].long()
    greatest = max(int(levels_K.max()), -int(levels_K.min())) if levels_K.numel() else 0
    if greatest > GREATEST:
        raise RuntimeError(f"levels: a magnitude of {greatest:,}: expected at most {GREATEST:,}")
    stops_G = torch.tensor(list(sizes), dtype=torch.int64, device=at_K.device).cumsum(0)
    group_K = torch.searchsorted(stops_G, at_K, right=True)
    before_K = at_K.roll(1)
    first_K = group_K.diff(prepend=group_K.new_full((1,), -1)) > 0
    starts_G = stops_G.roll(1).index_fill_(0, stops_G.new_zeros(min(1, len(sizes))), 0)
    before_K = torch.where(first_K, starts_G[group_K] - 1, before_K)

    gaps_K, gap_widths_K = encode(at_K - before_K)
    magnitudes_K, magnitude_widths_K = encode(levels_K.abs())
    signed_K = (levels_K < 0).long() << magnitude_widths_K | magnitudes_K
    fields_K2 = torch.stack((gaps_K, signed_K), 1)
    widths_K2 = torch.stack((gap_widths_K, magnitude_widths_K + 1), 1)
    bits_G = starts_G.new_zeros(len(sizes)).index_add_(0, group_K, widths_K2.sum(1))
    if int(bits_G.sum()) > GREATEST:
        raise RuntimeError(
            f"Elias streams of {int(bits_G.sum())} bits in all; at most {GREATEST} are allowed: use "
            "coding=packed"
        )
    # The padding of the earlier groups' last words shifts the start of a field.
    padded_G = (-bits_G % WORD).cumsum(0) - -bits_G % WORD
    starts_K2 = widths_K2.view(-1).cumsum(0).view(-1, 2) - widths_K2 + padded_G[group_K, None]
    num = int((bits_G + -bits_G % WORD).sum()) // WORD
    return _write(fields_K2.view(-1), widths_K2.view(-1), starts_K2.view(-1), num), bits_G.int()


def decode_levels(
    words_V: Tensor, bits_G: Tensor, sizes: Sequence[int], dtype: torch.dtype = torch.int64
) -> Tensor:
    """As `sage.ops.elias.decode_levels`.

    For every bit the end of a triple (gap, sign, magnitude) that would begin there is computed. The actual
    starts are then found by pointer doubling, in as many rounds as the logarithm of the longest stream's
    number of levels.
    """
    n, device = sum(sizes), words_V.device
    levels_N = torch.zeros(n, dtype=dtype, device=device)
    bits_G = bits_G.long()
    wrong = RuntimeError(f"words: not the Elias streams of {len(sizes)} groups with {n} elements in all")
    words_G = (bits_G + WORD - 1) // WORD
    if bits_G.numel() != len(sizes) or bool((bits_G < 0).any()) or int(words_G.sum()) != words_V.numel():
        raise wrong
    starts_G = WORD * (words_G.cumsum(0) - words_G)
    # Padded, so that reads beyond the end give 0.
    bytes_S = torch.nn.functional.pad(_bytes(words_V), (0, 16))
    next_B = _next(bytes_S, WORD * words_V.numel())
    ends_G = starts_G + bits_G
    starts_K = _reached(next_B, starts_G[bits_G > 0], ends_G[bits_G > 0])
    group_K = torch.searchsorted(ends_G, starts_K, right=True)

    if not _all_codes(bytes_S, starts_K):
        raise wrong
    gaps_K, after_K = _read(bytes_S, starts_K)
    if not _all_codes(bytes_S, after_K + 1):
        raise wrong
    magnitudes_K, stops_K = _read(bytes_S, after_K + 1)
    # Each triple must end where the next one of its group begins, or the group's stream ends.
    follows_K = torch.cat((starts_K[1:], starts_K[:0].new_zeros(min(1, starts_K.numel()))))
    is_last_K = group_K.diff(append=group_K.new_full((1,), -1)) != 0
    expected_K = torch.where(is_last_K, ends_G[group_K.clamp(max=len(sizes) - 1)], follows_K)
    if not torch.equal(stops_K, expected_K):
        raise wrong
    negative_K = _window(bytes_S, after_K, 1)
    groups_G = torch.tensor(list(sizes), dtype=torch.int64, device=device)
    far_K = gaps_K.cumsum(0)
    num_G = torch.bincount(group_K, minlength=len(sizes))
    far_G = torch.nn.functional.pad(far_K, (1, 0))[num_G.cumsum(0) - num_G]
    at_K = (groups_G.cumsum(0) - groups_G - 1 - far_G)[group_K] + far_K
    levels_K = torch.where(negative_K > 0, -magnitudes_K, magnitudes_K)
    is_outside_K = at_K >= groups_G.cumsum(0)[group_K]
    if not dtype.is_floating_point:
        is_outside_K |= levels_K.to(dtype) != levels_K
    if bool(is_outside_K.any()):
        raise wrong
    return levels_N.index_copy_(0, at_K, levels_K.to(dtype))


def _write(fields_F: Tensor, widths_F: Tensor, starts_F: Tensor, num: int) -> Tensor:
    """Write fields of 1 to 40 bits, each starting at its own bit and within three words, into `num` words."""
    words_V = fields_F.new_zeros(num + 2)
    ends_F = starts_F % WORD + widths_F
    for i in range(3):
        left_F = WORD * (i + 1) - ends_F
        left_F, right_F = left_F.clamp(min=0, max=63), (-left_F).clamp_(min=0)
        here_F = (fields_F << left_F >> right_F) & (1 << WORD) - 1
        words_V.index_add_(0, starts_F // WORD + i, here_F)  # fields do not overlap: the sum is their union
    return words_V[:num].int()


def _next(bytes_S: Tensor, num: int) -> Tensor:
    """End of the triple that would begin at each bit, and at the position after the last one."""
    lengths_B = _lengths(bytes_S, num)
    place_B = torch.arange(num + 1, device=bytes_S.device)
    sign_B = (place_B[:-1] + lengths_B).clamp_(max=num)
    ends_B = sign_B + 1 + torch.nn.functional.pad(lengths_B, (0, 2))[sign_B + 1]
    return torch.cat((ends_B.clamp_(max=num), place_B[-1:]))


def _lengths(bytes_S: Tensor, num: int) -> Tensor:
    """Length of the code that would begin at each bit."""
    byte_S = bytes_S[: num // 8 + 1].int()
    here_S = byte_S[:-1] << 8 | byte_S[1:]
    shifts = torch.arange(16 - PREFIX, 16 - PREFIX - 8, -1, device=bytes_S.device)
    window_B = (here_S[:, None] >> shifts & (1 << PREFIX) - 1).view(-1)
    return _LENGTHS.to(bytes_S.device)[window_B]


def _reached(next_B: Tensor, starts_G: Tensor, ends_G: Tensor) -> Tensor:
    """Positions (ascending) reached from the starts by following `next_B`, before the ends."""
    last = next_B.numel() - 1
    is_end_B = torch.zeros(last + 1, dtype=torch.bool, device=next_B.device)
    is_end_B[ends_G] = True
    next_B = torch.where(is_end_B[next_B], last, next_B).int()
    reached = starts_G.int()
    while True:  # each round doubles the number of positions found
        more = next_B[reached]
        more = more[more < last]
        if more.numel() == 0:
            return reached.sort().values.long()
        reached, next_B = torch.cat((reached, more)), next_B[next_B]


def _all_codes(bytes_S: Tensor, at_K: Tensor) -> bool:
    """Whether a code can begin at each of these bits: it has at most 4 leading zeros."""
    return bool((_window(bytes_S, at_K, PREFIX) >> PREFIX - 5 > 0).all())


def _read(bytes_S: Tensor, at_K: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers whose codes begin at these bits, and the positions after the codes."""
    prefix_K = _window(bytes_S, at_K, PREFIX)
    widths_K = _LENGTHS.to(at_K.device)[prefix_K]
    zeros_K = PREFIX - _bit_length(prefix_K)
    len_K = widths_K - 2 * zeros_K
    low_K = _window(bytes_S, at_K + 2 * zeros_K + 1, len_K - 1)
    return (1 << len_K - 1) | low_K, at_K + widths_K


def _window(bytes_S: Tensor, at_K: Tensor, num: int | Tensor) -> Tensor:
    """The next `num` bits, at most 31, from each of these positions, as a number."""
    first_K = at_K >> 3
    bits_K = torch.zeros_like(at_K)
    for i in range(5):
        bits_K = bits_K << 8 | bytes_S[first_K + i].long()
    return bits_K >> 40 - (at_K & 7) - num & (1 << torch.as_tensor(num, device=at_K.device)) - 1


def _bytes(words_V: Tensor) -> Tensor:
    """Bytes of the words, in bit order."""
    return words_V.contiguous().view(torch.uint8).view(-1, 4).flip(1).reshape(-1)


def _bit_length(x_K: Tensor) -> Tensor:
    """1 + ⌊log2 x⌋; 0 for 0."""
    return ((x_K.double().view(torch.int64) >> 52) - 1022).clamp_(min=0)  # from the exponent's bits


def _code_lengths() -> Tensor:
    """Length of the code that begins with each 9-bit prefix; 9 if no code does."""
    prefix_P = torch.arange(1 << PREFIX)
    zeros_P = PREFIX - _bit_length(prefix_P)
    len_P = prefix_P >> (PREFIX - 1 - 2 * zeros_P).clamp_(min=0)
    return torch.where(zeros_P <= 4, 2 * zeros_P + len_P, PREFIX)


_LENGTHS = _code_lengths()
