"""Plain-torch reference of `sage.ops.largest_of_chunks`; csrc/cpu/chunks.h has the same result."""
# N = elements of the vector, P = chunks, C = elements of the longest one, K = elements selected

import torch
from torch import Tensor

from sage.ops.reference import magnitude_bits

CHUNK_ROW = 64
"""Elements of a row of a chunk."""
AT_ONCE = 1 << 17
"""Elements of the chunks that are ranked at once, which bounds the temporary memory."""


def largest_of_chunks(x_N: Tensor, chunk_P4: Tensor, num: int, longest: int) -> tuple[Tensor, Tensor]:
    """Rank some chunks at a time: the k-th magnitude of each, and how many equal to it are taken."""
    starts = [*chunk_P4[:, 3].tolist(), num]
    lengths: list[int] = chunk_P4[:, 2].tolist()
    counts = [stop - start for start, stop in zip(starts, starts[1:], strict=False)]
    values = [x_N.new_empty(0)]
    positions = [torch.empty(0, dtype=torch.int32, device=x_N.device)]
    at_C = torch.arange(longest, dtype=torch.int32, device=x_N.device)
    row_C, column_C = at_C // CHUNK_ROW, at_C % CHUNK_ROW
    each = max(1, AT_ONCE // max(1, longest))
    for begin in range(0, len(counts), each):
        piece = slice(begin, begin + each)
        if not any(counts[piece]):
            continue
        first_P1, stride_P1, length_P1, _ = chunk_P4[piece].split(1, dim=1)
        index_PC = (row_C * stride_P1).add_(column_C).add_(first_P1)
        is_beyond_PC = at_C >= length_P1 if min(lengths[piece]) < longest else None
        if is_beyond_PC is not None:
            index_PC.masked_fill_(is_beyond_PC, 0)
        x_PC = x_N.index_select(0, index_PC.view(-1)).view(index_PC.shape)
        bits_PC = magnitude_bits(x_PC)
        if is_beyond_PC is not None:
            bits_PC.masked_fill_(is_beyond_PC, -1)  # less than every magnitude
        chosen_K = _chosen(bits_PC, counts[piece])
        values.append(x_PC.view(-1)[chosen_K])
        positions.append((chosen_K % longest).int())
    return torch.cat(values), torch.cat(positions)


def _chosen(bits_PC: Tensor, counts: list[int]) -> Tensor:
    """Indices in the flattened matrix (int64, ascending) of each row's largest, the first of equal ones."""
    count_P1 = torch.tensor(counts, device=bits_PC.device)[:, None]
    # `topk` does not define which of equal magnitudes it returns, so only the k-th magnitude is used.
    least_P1 = bits_PC.topk(max(counts), dim=1).values.gather(1, (count_P1 - 1).clamp_(min=0))
    chosen_K = (bits_PC >= least_P1).view(-1).nonzero().view(-1)
    if chosen_K.numel() == sum(counts):
        return chosen_K
    above_PC, tied_PC = bits_PC > least_P1, bits_PC == least_P1
    missing_P1 = count_P1 - above_PC.sum(1, keepdim=True)
    chosen_PC = above_PC | (tied_PC & (tied_PC.cumsum(1, dtype=torch.int32) <= missing_P1))
    return (chosen_PC & (count_P1 > 0)).view(-1).nonzero().view(-1)
