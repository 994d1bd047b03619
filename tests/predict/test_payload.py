"""The size of messages at other world sizes: how it depends on W, its bounds, and its basis."""

import math

import numpy
import pytest
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from sage.predict.calibration import Message, MethodTimes
from sage.predict.calibration_schema import Collective
from sage.predict.payload import Size, largest_of, size_at, traffic

NUMEL = 1_000_000


def method(messages: dict[int, tuple[Message, ...]], density: float | None = 0.01) -> MethodTimes:
    return MethodTimes("made-up", {}, (0.0,), {2: (0.0,)}, density, messages)


def at(
    ranks: int, by_W: dict[int, float], collective: Collective = "all_gather", *, is_sparse: bool = True
) -> Size:
    return size_at(collective, by_W, ranks, most=8 * NUMEL, is_sparse=is_sparse)


def test_a_measured_world_size_has_its_measured_size() -> None:
    assert at(4, {2: 100.0, 4: 170.0}) == Size(170, 170, 170, "measured")


def test_a_size_that_does_not_change_is_constant() -> None:
    assert at(64, {2: 1000.0, 4: 1001.0}) == Size(1000.5, 1000.5, 1000.5, "constant")
    assert at(64, {2: 1000.0}, "all_reduce", is_sparse=False).basis == "constant"


def test_one_world_size_of_a_sparse_method_has_the_bounds_of_overlap_and_disjoint_selections() -> None:
    found = at(8, {2: 1000.0})
    assert (found.bytes, found.low, found.high) == (1000, 1000, 4000)
    assert "assumed constant" in found.basis


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.9])
def test_a_union_lies_between_full_overlap_and_disjoint_selections(overlap: float) -> None:
    """Each rank selects a common part and a random one; the union of random parts is known."""
    k = 10_000

    def union(ranks: int) -> float:
        own = (1 - overlap) * k / NUMEL
        return 8 * (overlap * k + NUMEL * (1 - (1 - own) ** ranks))

    found = at(32, {w: union(w) for w in (2, 4, 8)}, "all_reduce")
    assert found.low <= union(32) <= found.high


def test_a_union_of_elements_that_are_selected_with_unequal_probabilities_grows_as_a_power() -> None:
    """Ranks select element i with probability p_i, from 1 down to 1e-5; the union is Σ 1 − (1 − p_i)^W."""
    p_N = numpy.geomspace(1, 1e-5, NUMEL)

    def union(ranks: int) -> float:
        return float(4 * (1 - (1 - p_N) ** ranks).sum())

    found = at(32, {w: union(w) for w in (2, 4, 8)}, "all_reduce")
    assert found.bytes == pytest.approx(union(32), rel=0.15)
    assert found.basis.startswith("grows by union, as W^0.")


def test_padding_to_the_largest_of_normal_sizes_is_extrapolated() -> None:
    """The largest of W sizes that are normally distributed, whose expectation is about mean + sd·m(W)."""
    draws = numpy.random.default_rng(0).normal(1000, 100, (20_000, 64))
    largest = {w: float(draws[:, :w].max(1).mean()) for w in (2, 4, 8, 64)}
    found = at(64, {w: largest[w] for w in (2, 4, 8)})
    assert found.bytes == pytest.approx(largest[64], rel=0.02)
    assert found.basis == "padded to the largest of W ranks"
    assert largest_of(8) == pytest.approx((largest[8] - 1000) / 100, rel=0.03)


def test_a_size_that_is_divided_among_ranks_falls_with_the_world_size() -> None:
    found = at(32, {2: 4000.0, 4: 2000.0, 8: 1000.0})
    assert found.bytes == pytest.approx(250)
    assert [found.low, found.high] == pytest.approx([250, 1000])
    assert found.basis == "divided among ranks, as W^-1.00"


SIZES = st.dictionaries(st.sampled_from([2, 3, 4, 8]), st.floats(8, 8e6), min_size=1)


@settings(max_examples=examples(300))
@given(by_W=SIZES, ranks=st.integers(2, 10_000), sparse=st.booleans())
@pytest.mark.parametrize("collective", ["all_gather", "all_reduce"])
def test_any_size_lies_within_its_bounds(
    collective: Collective, by_W: dict[int, float], ranks: int, sparse: bool
) -> None:
    found = at(ranks, by_W, collective, is_sparse=sparse)
    assert 0 <= found.low <= found.bytes <= found.high <= 8 * NUMEL
    draws = found.draw(numpy.random.default_rng(0), 10)
    assert draws[0] == found.bytes
    assert found.low <= draws.min()
    assert draws.max() <= found.high


def test_the_order_of_messages_is_kept_and_one_rank_sends_none() -> None:
    messages = (Message("all_gather", 8), Message("all_gather", 800), Message("broadcast", 16))
    found = traffic(method({2: messages, 4: messages}), 16, NUMEL)
    assert [(each.collective, each.count, each.size.bytes) for each in found] == [
        ("all_gather", 1, 8),
        ("all_gather", 1, 800),
        ("broadcast", 1, 16),
    ]
    assert traffic(method({2: messages}), 1, NUMEL) == ()


def test_a_growing_number_of_messages_is_extrapolated() -> None:
    """A method that halves the ranks in log₂ W rounds sends one message in each."""
    rounds = {w: (Message("broadcast", 800),) * int(math.log2(w)) for w in (2, 4, 8, 16)}
    (found,) = traffic(method(rounds), 32, NUMEL)
    assert found.count == pytest.approx(5, rel=0.4)
    assert found.size.bytes == 800
    (known,) = traffic(method({2: rounds[2], 4: rounds[4]}, None), 2, NUMEL)
    assert known.count == 1
