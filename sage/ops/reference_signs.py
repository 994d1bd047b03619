"""Plain-torch reference of every op in `sage.ops.signs`."""
# N = elements of the flat vector, G = groups, B = bytes, V = words, W = payloads

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from sage.ops import reference

WORD = 32
"""Bits of a word."""


def sign_bits(signal_N: Tensor, sizes: Sequence[int], low_G: Tensor, high_G: Tensor, *, keep: bool) -> Tensor:
    """Bits, then the error."""
    is_high_N = ~(signal_N < 0)
    if keep:
        sent_N = torch.where(is_high_N, _spread(high_G, sizes), _spread(low_G, sizes))
        signal_N.sub_(sent_N).nan_to_num_(0.0, 0.0, 0.0)
    return reference.pack(is_high_N.to(torch.uint8), 1)


def momentum_signs(momentum_N: Tensor, signal_N: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Momentum, then its bits."""
    momentum_N.mul_(beta).add_(signal_N.nan_to_num(0.0, 0.0, 0.0), alpha=1 - beta)
    largest_1 = signal_N.abs().amax(0, keepdim=True) if signal_N.numel() else signal_N.new_zeros(1)
    return reference.pack((~(momentum_N < 0)).to(torch.uint8), 1), largest_1


def mean_signs(
    out_N: Tensor,
    bytes_WB: Tensor,
    sizes: Sequence[int],
    low_WG: Tensor,
    high_WG: Tensor,
    *,
    divisor: int,
    added: bool,
    votes: bool,
) -> Tensor:
    """Zero, add payload by payload, divide."""
    if not added:
        out_N.zero_()
    for bytes_B, low_G, high_G in zip(bytes_WB, low_WG, high_WG, strict=True):
        is_high_N = reference.unpack(bytes_B, 1, out_N.numel()).bool()
        out_N += torch.where(is_high_N, _spread(high_G, sizes), _spread(low_G, sizes))
    if not votes:
        return out_N.div_(out_N.new_full((), divisor))
    return out_N.copy_(torch.where(out_N > 0, 1.0, torch.where(out_N < 0, -1.0, out_N)))


def sign_words(bytes_B: Tensor, sizes: Sequence[int], *, by_column: bool) -> Tensor:
    """Words from bits, one bit at a time."""
    negative_N = 1 - reference.unpack(bytes_B, 1, sum(sizes))
    if by_column:
        bits_VW = pad(negative_N, (0, -negative_N.numel() % WORD)).view(WORD, -1).t()
    else:
        groups = [pad(bits, (0, -bits.numel() % WORD)) for bits in negative_N.split(list(sizes))]
        bits_VW = torch.cat([negative_N[:0], *groups]).view(-1, WORD)
    weights = 1 << torch.arange(WORD - 1, -1, -1, device=bytes_B.device)
    return (bits_VW.long() * weights).sum(1).to(torch.int32)


def sign_bytes(words_WV: Tensor, sizes: Sequence[int], *, by_column: bool) -> Tensor:
    """Bits from words."""
    places = torch.arange(WORD - 1, -1, -1, device=words_WV.device)
    rows = []
    for words_V in words_WV:
        bits_VW = (words_V.long()[:, None] >> places & 1).to(torch.uint8)
        if by_column:
            negative_N = bits_VW.t().reshape(-1)[: sum(sizes)]
        else:
            padded = bits_VW.reshape(-1).split([-(-n // WORD) * WORD for n in sizes])
            groups = [x[:n] for x, n in zip(padded, sizes, strict=True)]
            negative_N = torch.cat([bits_VW.new_zeros(0), *groups])
        rows.append(reference.pack(1 - negative_N, 1))
    empty = torch.empty(0, -(-sum(sizes) // 8), dtype=torch.uint8, device=words_WV.device)
    return torch.stack(rows) if rows else empty


def _spread(numbers_G: Tensor, sizes: Sequence[int]) -> Tensor:
    """The number of each element's group (N)."""
    return numbers_G.repeat_interleave(torch.tensor(list(sizes), dtype=torch.int64, device=numbers_G.device))
