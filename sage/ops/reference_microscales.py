"""Plain-torch reference of `sage.ops.microscales`, which documents each function."""
# N = elements of the flat vector

from collections.abc import Sequence

import torch
from torch import Tensor


def largest_of_blocks(signal_N: Tensor, added_N: Tensor | None, sizes: Sequence[int], block: int) -> Tensor:
    """Accumulate, then reduce the rows of whole blocks, and what is left of each group."""
    if added_N is not None:
        signal_N.add_(added_N)
    if all(n % block == 0 for n in sizes[:-1]):
        sizes = [signal_N.numel()]
    found = [signal_N.new_empty(0)]
    for x in signal_N.split(list(sizes)):
        whole = x.numel() // block * block
        found.append(x[:whole].view(-1, block).abs().amax(1))
        if whole < x.numel():
            found.append(x[whole:].abs().amax(0, keepdim=True))
    largest_P = torch.cat(found).float()
    return torch.where(largest_P.isfinite(), largest_P, torch.nan)
