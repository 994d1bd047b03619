"""Cuts parameters into tiles, and transforms the tiles by the discrete cosine transform (DCT).

The tiles and their transform are those of DeMo (Peng, Quesnelle, Kingma 2024,
https://arxiv.org/abs/2411.19870; https://github.com/bloc97/DeMo at 0e48145, `demo.py`). The transform is the
orthonormal DCT-II (Ahmed, Natarajan, Rao, "Discrete Cosine Transform", IEEE Transactions on Computers C-23,
1974), along rows and columns, as products with a matrix.
"""
# Y, X = rows and columns of a parameter, T = its tiles, E = elements of a tile
# h, w = rows and columns of a tile

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiling:
    """A parameter as a matrix of Y × X elements that is cut into equal tiles of h × w.

    >>> Tiling.of((96, 640), edge=64)
    Tiling(rows=96, columns=640, height=48, width=64)
    >>> Tiling.of((96, 3, 5, 5), edge=64)
    Tiling(rows=96, columns=75, height=48, width=25)
    >>> Tiling.of((100,), edge=64).size
    50
    """

    rows: int
    columns: int
    height: int
    width: int

    @staticmethod
    def of(shape: Sequence[int], edge: int) -> "Tiling":
        """Cut a parameter into tiles whose edges are the largest divisors of its own that are at most `edge`.

        A parameter with one dimension is one row. One with more than two is viewed as a matrix, its first
        dimension by all others, as low-rank methods do; the published code supports at most two.

        Args:
            shape: The shape of a parameter that has elements.
            edge: Largest edge of a tile.
        """
        rows, columns = (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))
        return Tiling(rows, columns, _largest_divisor(rows, edge), _largest_divisor(columns, edge))

    @property
    def size(self) -> int:
        """Number of elements of a tile."""
        return self.height * self.width

    @property
    def num_tiles(self) -> int:
        """Number of tiles."""
        return self.rows * self.columns // self.size

    def coefficients(self, x: Tensor) -> Tensor:
        """Transform a parameter-shaped tensor: the DCT coefficients of each tile (T × E)."""
        down, across = self.rows // self.height, self.columns // self.width
        tiles = x.reshape(down, self.height, across, self.width).transpose(1, 2)
        basis_hh, basis_ww = _basis(self.height, x.dtype, x.device), _basis(self.width, x.dtype, x.device)
        return (basis_hh @ tiles @ basis_ww.T).reshape(-1, self.size)

    def elements(self, c_TE: Tensor) -> Tensor:
        """Invert `coefficients`: the elements as a matrix (Y × X)."""
        down, across = self.rows // self.height, self.columns // self.width
        tiles = c_TE.reshape(down, across, self.height, self.width)
        basis_hh, basis_ww = (_basis(n, c_TE.dtype, c_TE.device) for n in (self.height, self.width))
        return (basis_hh.T @ tiles @ basis_ww).transpose(1, 2).reshape(self.rows, self.columns)


def _largest_divisor(n: int, limit: int) -> int:
    return next(edge for edge in range(min(n, limit), 0, -1) if n % edge == 0)


@lru_cache(maxsize=256)
def _basis(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthonormal DCT-II of n points: C[k, j] = s_k·cos(π(2j + 1)k/2n), s_0² = 1/n, else s_k² = 2/n."""
    k, j = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    basis = torch.cos(math.pi * (2 * j + 1) * k / (2 * n)) * math.sqrt(2 / n)
    basis[0] /= math.sqrt(2)
    return basis.to(device, dtype)
