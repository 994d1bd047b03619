"""Packs the tensors of one collective into a single byte buffer, and describes collectives in messages."""
# W = world size, N = elements of a vector, S = bytes of a packed buffer

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sage import ops

UNEVEN = ("gather_uneven", "gather_ragged", "gather_streams", "all_to_all_ragged")
"""Collectives whose lengths may differ between ranks."""


def pack(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate the bytes of the tensors; a view, if they lie one behind the other in memory."""
    # A slice of at most one element counts as contiguous for any stride, but cannot be viewed as bytes.
    flat = [part.detach().contiguous().as_strided((part.numel(),), (1,)).view(torch.uint8) for part in parts]
    if len(flat) == 1:
        return flat[0]
    if all(_is_behind(x, y) for x, y in itertools.pairwise(flat)):
        return flat[0].as_strided((sum(x.numel() for x in flat),), (1,))
    return torch.cat(flat)


def _is_behind(first_S: Tensor, second_S: Tensor) -> bool:
    """Whether the second vector of bytes begins where the first one ends, in the same memory."""
    return (
        first_S.untyped_storage().data_ptr() == second_S.untyped_storage().data_ptr()
        and first_S.data_ptr() + first_S.numel() == second_S.data_ptr()
    )


def unpack(packed_WS: Tensor, likes: Sequence[tuple[torch.dtype, torch.Size]]) -> tuple[Tensor, ...]:
    """Invert `pack` for the W rows of a gathered buffer: one tensor of shape (W, *shape) per part."""
    parts, start = [], 0
    for dtype, shape in likes:
        stop = start + shape.numel() * dtype.itemsize
        # The copy also aligns the data: a slice of bytes may start at any address.
        piece = packed_WS[:, start:stop].clone(memory_format=torch.contiguous_format).view(-1)
        parts.append(piece.view(dtype).view(packed_WS.shape[0], *shape))
        start = stop
    return tuple(parts)


def add(all_WN: Sequence[Tensor] | Tensor) -> Tensor:
    """Sum over ranks in rank order, so that the result is bitwise identical on every rank."""
    total_N = all_WN[0].clone()
    for x_N in all_WN[1:]:
        total_N += x_N
    return total_N


def add_halves(all_WN: Sequence[Tensor] | Tensor) -> Tensor:
    """Sum over ranks of 16-bit numbers, added in float32 in rank order and rounded once."""
    rows_WN = all_WN if isinstance(all_WN, Tensor) else torch.stack(list(all_WN))
    return ops.sum_casts(rows_WN, torch.empty_like(rows_WN[0]))


def add_into_first(rows_WN: Tensor) -> Tensor:
    """Sum over ranks in rank order, into the first row; 16-bit numbers are added in float32."""
    if rows_WN.dtype in (torch.float16, torch.bfloat16):
        return rows_WN[0].copy_(add([row_N.float() for row_N in rows_WN]))
    for row_N in rows_WN[1:]:
        rows_WN[0] += row_N
    return rows_WN[0]


def divide(n: int, world_size: int) -> list[int]:
    """Number of elements of each rank's piece of n: ⌈n/W⌉, the last ones shorter.

    >>> divide(5, 4)
    [2, 2, 1, 0]
    """
    length = -(-n // world_size)
    return [max(0, min(length, n - rank * length)) for rank in range(world_size)]


def describe(op: str, **parts: Tensor) -> str:
    """Describe a call for errors and the schedule guard: `gather(values float32[10], indices int32[10])`."""
    shapes = []
    for kind, x in parts.items():
        shape = "*" if op in UNEVEN else ", ".join(map(str, x.shape))
        shapes.append(f"{kind} {str(x.dtype).removeprefix('torch.')}[{shape}]")
    return f"{op}({', '.join(shapes)})"


def num_bytes(x: Tensor) -> int:
    """Return the size of a tensor's elements in bytes."""
    return x.numel() * x.element_size()


def count_each(parts: Mapping[str, Tensor]) -> int:
    """Return the number of elements of each part; all parts must have the same number."""
    vectors = list(parts.values())
    assert all(v.dim() == 1 and v.numel() == vectors[0].numel() for v in vectors)
    return vectors[0].numel()


def pad_to(parts: Mapping[str, Tensor], length: int) -> tuple[list[Tensor], dict[str, int]]:
    """Pad the parts to `length`; also return the bytes by kind, with the padding as a kind of its own."""
    missing = length - count_each(parts)
    payload = {kind: num_bytes(part) for kind, part in parts.items()}
    payload["padding"] = sum(v.element_size() * missing for v in parts.values())
    return [torch.cat((v, v.new_zeros(missing))) if missing else v for v in parts.values()], payload


def cut(stacked: Sequence[Tensor], counts: Sequence[int]) -> tuple[Tensor, ...]:
    """Remove the padding from the rows of each part, and concatenate the rows."""
    rows_of = [[row[:n] for row, n in zip(part, counts, strict=True)] for part in stacked]
    return tuple(torch.cat(rows) for rows in rows_of)
