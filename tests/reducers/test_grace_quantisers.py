"""Tests of GRACE's quantisers u8bit, inceptionn and sketch: their codes, by hand and against their bounds."""
# N = elements of the vector

from typing import Any

import pytest
import torch
from torch import Tensor
from vectors import draw, seeded

from sage import registry
from sage.comm.alone import Alone
from sage.ops.reference_tree import tree
from sage.reducers import _chunked
from sage.reduction import Quantiser

X_N = torch.randn(4000, generator=torch.Generator().manual_seed(0)).pow(3) * 0.2
"""Values from 10⁻¹² to above 1."""


def coded(name: str, x_N: Tensor, sizes: list[int] | None = None, **options: Any) -> tuple[Tensor, int]:
    """The values that a vector becomes, and the bytes of its code."""
    quantiser: Any = registry.load("reducers", name)(**options)
    assert isinstance(quantiser, Quantiser)
    sizes = sizes or [x_N.numel()]
    parts = quantiser.encode(x_N, sizes, Alone())
    known = quantiser.bytes_of(sizes)
    assert known is None or known == {kind: part.nbytes for kind, part in parts.items()}
    return quantiser.decode(parts, sizes), sum(part.nbytes for part in parts.values())


def test_the_tree_has_the_powers_and_numbers_of_graces_table() -> None:
    # 1, 2, 4, …, 64 numbers of each power of ten; GRACE's table has the same intervals.
    for i in range(7):
        low, high = 10.0 ** (i - 7), 10.0 ** (i - 6)
        assert int(((tree() > low) & (tree() < high)).sum()) == 2**i
    assert bool((tree().diff() > 0).all())


def test_u8bit_takes_the_nearest_number_of_the_tree() -> None:
    sizes = [3000, 1000]
    found_N, size = coded("u8bit", X_N, sizes)
    assert size == 4000 + 4 * 2
    for x, found in zip(X_N.split(sizes), found_N.split(sizes), strict=True):
        candidates = torch.cat([-tree(), tree()]) * x.abs().max()
        nearest = (x[:, None] - candidates).abs().min(1).values
        assert torch.allclose((x - found).abs(), nearest, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("exponent", [1, 7, 10, 15])
def test_inceptionns_error_is_below_its_bound(exponent: int) -> None:
    found_N, size = coded("inceptionn", X_N, bound_exponent=exponent)
    is_small_N = X_N.abs() < 1
    assert torch.equal(found_N[~is_small_N], X_N[~is_small_N])
    assert float((X_N - found_N).abs().max()) < 2.0**-exponent
    assert bool((found_N.abs() <= X_N.abs()).all())
    count_N = (X_N[is_small_N].abs().double() * 2**exponent).floor()
    taken = int((count_N > 0).sum()) + int((count_N >= 128).sum()) + 4 * int((~is_small_N).sum())
    assert size == 1000 + taken  # two bits of each of 4,000, and 0, 1, 2 or 4 bytes


def test_a_sketch_has_the_means_of_equal_numbers_of_elements() -> None:
    x_N = torch.tensor([5.0, -1.0, 2.0, 100.0, -3.0, 3.0] + [7.0])
    found_N, size = coded("sketch", x_N, [6, 1], quantiles=3)
    # In order: -3, -1 | 2, 3 | 5, 100. The second group has a single part.
    assert found_N.tolist() == [52.5, -2.0, 2.5, 52.5, -2.0, 2.5, 7.0]
    assert size == 7 + 4 * (3 + 1)


def test_a_sketch_of_no_more_elements_than_quantiles_is_exact() -> None:
    x_N = X_N[:200]
    assert torch.equal(coded("sketch", x_N)[0], x_N)


def test_a_sketch_has_the_parts_of_a_stable_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_chunked, "CACHED", 1000)
    for case in (1, 3, 5, 15, 25, 6, 16, 9, 19, 29):
        x_N = draw(seeded(case))[:70_000]
        n, num = x_N.numel(), min(100, x_N.numel())
        ordered_N, order_N = x_N.sort(stable=True)
        part_N = torch.arange(n) * num // n
        codes_N = torch.empty(n, dtype=torch.uint8).index_put_((order_N,), part_N.to(torch.uint8))
        sum_Q = torch.zeros(num, dtype=torch.float64).index_add_(0, part_N, ordered_N.double())
        parts = registry.load("reducers", "sketch")(quantiles=100).encode(x_N, [n], Alone())
        assert torch.equal(parts["values"], codes_N)
        means, expected = parts["scales"], (sum_Q / part_N.bincount()).float()
        assert torch.allclose(means, expected, rtol=1e-6, atol=1e-9, equal_nan=True)


def test_an_inceptionn_code_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    inceptionn: Any = registry.load("reducers", "inceptionn")()
    whole_B = inceptionn.encode(X_N, [4000], Alone())["values"]
    monkeypatch.setattr(_chunked, "CACHED", 64)
    assert torch.equal(inceptionn.encode(X_N, [4000], Alone())["values"], whole_B)
    small_N = X_N.abs() < 1
    left_N = X_N - inceptionn.decode({"values": whole_B}, [4000])
    assert float(left_N.abs().max()) < 2.0**-10
    assert bool((left_N[~small_N] == 0).all())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("inceptionn", {"bound_exponent": 0}),
        ("inceptionn", {"bound_exponent": 16}),
        ("sketch", {"quantiles": 257}),
    ],
)
def test_an_option_out_of_range_is_refused(name: str, options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"=\d+: expected 1 to (15|256)"):
        registry.load("reducers", name)(**options)
