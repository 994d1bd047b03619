"""Tests of the native ops for given and random elements against their references, bitwise."""
# N = elements of the vector, K = elements taken

import random
from types import ModuleType

import pytest
import torch
from torch import Tensor
from vectors import assert_same, draw, seeded

from sage import ops
from sage.ops import gather, native, reference_gather

needs_native = pytest.mark.skipif(native.MISSING is not None, reason=f"no extension: {native.MISSING}")


@needs_native
@pytest.mark.parametrize("case", range(30))
@pytest.mark.parametrize("threads", [1, 2])
def test_taking_given_elements_equals_the_reference(case: int, threads: int) -> None:
    n = seeded(case)
    signal_N, grad_N = draw(n), draw(n) if case % 3 else None
    at_K = torch.randint(max(1, n), (random.choice([0, 1, n // 100, n]) if n else 0,))
    at_K = at_K.unique() if case % 4 else at_K  # else in any order, and some of them twice
    at_K = at_K.int() if case % 2 else at_K
    torch.set_num_threads(threads)
    seen: list[list[Tensor]] = []
    for of in (gather, reference_gather):
        left_N = signal_N.clone()
        seen.append([of.gather_(left_N, grad_N, at_K, keep=case % 5 > 0), left_N])
    torch.set_num_threads(1)
    for ours, theirs in zip(*seen, strict=True):
        assert_same(ours, theirs)


@needs_native
@pytest.mark.parametrize("distinct", [True, False])
@pytest.mark.parametrize("case", range(20))
def test_the_elements_drawn_equal_the_reference(case: int, distinct: bool) -> None:
    n = seeded(case)
    bounds = [0, *sorted(random.choices(range(n + 1), k=random.choice([0, 3]))), n]
    share = random.choice([0.0, 0.01, 0.5, 0.51, 0.9, 1.0])
    counts = [round(share * (b - a)) for a, b in zip(bounds, bounds[1:], strict=False)]
    key = random.choice([0, 1, 2**40 + 5, 2**63 - 1])
    numbers = [random.choice([0, 3, 2**31 - 1]) for _ in counts]
    ours, theirs = (
        of.draw_indices(torch.empty(1), bounds, counts, key, distinct=distinct, numbers=numbers)
        for of in (gather, reference_gather)
    )
    assert_same(ours, theirs)
    assert torch.equal(ours, ours.unique())
    if distinct:
        assert torch.bucketize(ours, torch.tensor(bounds[1:]), right=True).bincount(
            minlength=len(counts) + 1
        ).tolist() == [*counts, 0]


def test_draws_with_replacement_have_the_expected_number_of_distinct_elements() -> None:
    at_K = ops.draw_indices(torch.empty(1), [0, 100_000], [100_000], 3, distinct=False)
    # 1 − 1/e of them, with a standard deviation of 98.
    assert abs(at_K.numel() - 63_212) < 500


@pytest.mark.parametrize("of", [ops, reference_gather])
def test_an_element_drawn_depends_on_the_key_and_the_group(of: ModuleType) -> None:
    def drawn(key: int, bounds: list[int], start: int = 0) -> list[list[int]]:
        counts = [10] * (len(bounds) - 1)
        numbers = range(start, start + len(counts))
        at_K: Tensor = of.draw_indices(
            torch.empty(1), bounds, counts, key, distinct=True, numbers=list(numbers)
        )
        return (at_K.view(-1, 10) - torch.tensor(bounds[:-1])[:, None]).tolist()

    first, second = drawn(1, [0, 1000, 2000])
    assert drawn(1, [0, 1000]) == [first]
    assert drawn(1, [0, 1000], start=1) == [second]
    assert first != second
    assert drawn(2, [0, 1000]) != [first]


@pytest.mark.parametrize("of", [ops, reference_gather])
def test_a_key_always_draws_the_same_elements(of: ModuleType) -> None:
    few = of.draw_indices(torch.empty(1), [0, 100, 200], [4, 97], 7, distinct=True, numbers=[0, 1])
    assert few.tolist()[:6] == [0, 39, 40, 95, 100, 101]
    six = of.draw_indices(torch.empty(1), [0, 10], [6], 1, distinct=False, numbers=[0])
    assert six.tolist() == [1, 2, 6, 7, 8]
    # Nine of the words would favour some of these elements, and are skipped.
    many = of.draw_indices(torch.empty(1), [0, 999_999], [30_000], 1, distinct=True, numbers=[0])
    assert int(many.sum()) == 15_014_902_920


@pytest.mark.parametrize("case", range(12))
def test_the_union_has_every_index_once(case: int) -> None:
    n = seeded(case)
    at_M = torch.randint(max(1, n), (min(n, 3000),), dtype=torch.int32)
    at_K = torch.randint(max(1, n), (min(n, 500),), dtype=torch.int32)
    at_U, place_M = ops.unite(at_M, n)
    assert_same(at_U, at_M.unique())
    assert_same(at_U[place_M], at_M)
    assert_same(place_M, at_M.unique(return_inverse=True)[1].int())
    assert torch.equal(ops.is_among(at_K, at_M, n), torch.isin(at_K, at_M))
