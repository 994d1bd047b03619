"""The magnitudes of the codec `TREE`, numbers of a dynamic tree; csrc/dynamic_tree.h has the same."""
# T = magnitudes of the tree

from functools import cache

import torch
from torch import Tensor

POWERS = 7
"""Powers of ten of the tree, from 10⁻⁶ to 1."""


@cache
def tree(device: torch.device | None = None) -> Tensor:
    """The 128 magnitudes, ascending (float32, T): 0, and the middles of 2^i equal parts of [0.1, 1]·10^(i−6).

    >>> tree()[:4].tolist() == torch.tensor([0, 0.55e-6, 3.25e-6, 7.75e-6]).tolist(), tree().numel()
    (True, 128)
    """
    found = [torch.zeros(1, dtype=torch.float64)]
    for i in range(POWERS):
        borders = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float64)
        found.append((borders[1:] + borders[:-1]) / 2 * 10.0 ** (i - POWERS + 1))
    return torch.cat(found).float().to(device)


def nearest(size_N: Tensor) -> Tensor:
    """Which of the magnitudes is nearest (int32); of two, the lower, and the last one of what is NaN."""
    tree_T = tree(size_N.device)
    borders_T = (tree_T[1:] + tree_T[:-1]) / 2
    return torch.bucketize(size_N, borders_T, out_int32=True)
