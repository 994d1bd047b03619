"""Tests of the tiles of parameters and of their discrete cosine transform."""

import math

import pytest
import torch
from scipy.fft import dctn

from sage.optim.tiles import Tiling

SHAPES = [(), (1,), (97,), (100,), (1, 1), (96, 640), (130, 6), (8, 3, 5, 5)]


@pytest.mark.parametrize("shape", SHAPES)
def test_tiles_are_the_largest_that_cut_a_parameter_without_a_rest(shape: tuple[int, ...]) -> None:
    tiling = Tiling.of(shape, edge=64)
    assert tiling.num_tiles * tiling.size == math.prod(shape)
    for length, edge in ((tiling.rows, tiling.height), (tiling.columns, tiling.width)):
        assert length % edge == 0
        assert edge <= 64
        assert not any(length % longer == 0 for longer in range(edge + 1, 65))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_transform_of_each_tile_is_the_orthonormal_dct_of_scipy(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, tiling = torch.randn(shape, dtype=torch.float64), Tiling.of(shape, edge=64)
    found_TE = tiling.coefficients(x)
    matrix, h, w = x.reshape(tiling.rows, tiling.columns), tiling.height, tiling.width
    corners = [(y, z) for y in range(0, tiling.rows, h) for z in range(0, tiling.columns, w)]
    for (y, z), c_E in zip(corners, found_TE, strict=True):
        wanted = dctn(matrix[y : y + h, z : z + w].numpy(), type=2, norm="ortho")
        torch.testing.assert_close(c_E.view(h, w), torch.from_numpy(wanted), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_transform_keeps_the_energy_and_its_inverse_restores_the_elements(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x, tiling = torch.randn(shape, dtype=dtype), Tiling.of(shape, edge=64)
    c_TE = tiling.coefficients(x)
    assert c_TE.shape == (tiling.num_tiles, tiling.size)
    torch.testing.assert_close(c_TE.square().sum(), x.square().sum(), rtol=2e-6, atol=0)
    torch.testing.assert_close(tiling.elements(c_TE).view(shape), x, rtol=1e-5, atol=2e-6)
