"""Tests of sparseloco: a plain implementation, bytes, chunks, the four means, and both aggregations."""
# N = elements of the flat vector, K = elements sent, W = ranks

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from fuzz import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.reducers.sparseloco import SparseLoCo, clipped, encode, mean_of_senders
from sage.reduction import pack_positions, unpack_positions
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.testing import conformance
from sage.testing.harness import Case, Step, reduce_once, same_bits

SHAPES = (
    ("tiles", (128, 192)),
    ("rows", (130, 64)),
    ("vector", (5000,)),
    ("short", (9,)),
    ("empty", (0, 64)),
)
"""Six tiles; three runs of which one is short; two runs; one short run."""
N = 128 * 192 + 130 * 64 + 5000 + 9


def signals(num: int, seed: int = 0) -> list[Tensor]:
    """A vector with a heavy tail for each rank."""
    dice = torch.Generator().manual_seed(seed)
    return [torch.randn(N, generator=dice) ** 3 for _ in range(num)]


def reduced(given: list[Tensor], shapes: Any = SHAPES, *, memory: Any = "none", **options: Any) -> list[Step]:
    """What each rank sees in one reduction."""
    layout = Layout.of(shapes, "layer")

    def work(wire: Wire) -> Step:
        feedback = ErrorFeedback(SparseLoCo(**options), layout, memory=memory)
        return reduce_once(feedback, given[wire.rank], wire)

    return simulate(len(given), work)


# An independent implementation, tensor by tensor and chunk by chunk.


def chunks(shape: tuple[int, ...]) -> list[list[int]]:
    """The indices of each chunk's elements in a tensor."""
    numel = math.prod(shape)
    if len(shape) == 2 and shape[0] % 64 == shape[1] % 64 == 0:
        at = np.arange(numel).reshape(shape)
        return [
            at[i : i + 64, j : j + 64].ravel().tolist()
            for i in range(0, shape[0], 64)
            for j in range(0, shape[1], 64)
        ]
    return [list(range(i, min(numel, i + 4096))) for i in range(0, numel, 4096)]


def plain(x_N: np.ndarray[Any, Any], shapes: Any) -> list[dict[int, float]]:
    """The values sent of each tensor, by index in the vector."""
    found, start = [], 0
    for _, shape in shapes:
        own = x_N[start : start + math.prod(shape)].astype(np.float64)
        at = [
            i
            for chunk in chunks(shape)
            for i in sorted(chunk, key=lambda i: -abs(own[i]))[: max(1, len(chunk) // 64)]
        ]
        values = own[at]
        if len(at) > 1 and values.std(ddof=1) > 0:
            cuts = values.mean() + values.std(ddof=1) * np.array([-2.25, -0.75, 0.75])
            codes = np.searchsorted(cuts, values)
        else:
            codes = np.full(len(at), 2)
        found.append({start + i: values[codes == b].mean() for i, b in zip(at, codes, strict=True)})
        start += math.prod(shape)
    return found


def plain_mean(given: list[Tensor], shapes: Any, mean: Literal["ranks", "senders"]) -> np.ndarray[Any, Any]:
    ranks = [plain(x_N.numpy(), shapes) for x_N in given]
    sums, num = np.zeros(len(given[0])), np.zeros(len(given[0]))
    for tensor in range(len(shapes)):
        norms = [math.sqrt(sum(v * v for v in rank[tensor].values())) for rank in ranks]
        limit = sorted(norms)[(len(norms) - 1) // 2]
        for rank, norm in zip(ranks, norms, strict=True):
            factor = min(1.0, limit / norm) if mean == "senders" and norm else 1.0
            for i, value in rank[tensor].items():
                sums[i] += factor * value
                num[i] += 1
    return sums / (np.maximum(num, 1) if mean == "senders" else len(given))


@pytest.mark.parametrize("mean", ["ranks", "senders"])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_mean_is_that_of_a_plain_implementation(
    world_size: int, mean: Literal["ranks", "senders"]
) -> None:
    given = [x_N * 3.0**rank for rank, x_N in enumerate(signals(world_size))]
    expected_N = torch.from_numpy(plain_mean(given, SHAPES, mean)).float()
    for step in reduced(given, mean=mean):
        torch.testing.assert_close(step.mean_N, expected_N, rtol=1e-5, atol=1e-5)
        assert (step.mean_N != 0).equal(expected_N != 0)


# Bytes.


def test_4096_elements_take_112_bytes_and_a_tensor_16_more() -> None:
    shapes = (("matrix", (64, 320)), ("run", (2, 4096)))
    (alone, _) = reduced([torch.randn(7 * 4096)] * 2, shapes)
    assert alone.payload == {"values": 7 * 16, "indices": 7 * 96, "scales": 2 * 16}
    assert sum(alone.payload.values()) - 2 * 16 == 7 * 112
    assert alone.reduced.density == 1 / 64


def test_a_short_chunk_sends_its_share_and_one_element_or_more() -> None:
    (step,) = reduced(signals(1))
    at = step.reduced.sent
    assert at is not None
    counts = torch.bincount(torch.bucketize(at, torch.tensor([24576, 32896, 37896]), right=True))
    # Six tiles; 4,096 twice and 128; 4,096 and 904; 9.
    assert counts.tolist() == [6 * 64, 64 + 64 + 2, 64 + 14, 1]


@settings(max_examples=examples(30))
@given(st.lists(st.integers(0, 4095), max_size=20))
def test_positions_survive_their_12_bits(positions: list[int]) -> None:
    at_K = torch.tensor(positions, dtype=torch.int32)
    packed_B = pack_positions(at_K)
    assert packed_B.numel() == -(-12 * len(positions) // 8)
    assert unpack_positions(packed_B, len(positions)).tolist() == positions


# Chunks.


def test_every_tile_of_a_matrix_sends_its_own_largest() -> None:
    x = torch.zeros(128, 128)
    corners = [(0, 63), (1, 64), (64, 0), (65, 127)]  # two and two would be in one run
    for rank, (i, j) in enumerate(corners):
        x[i, j] = -(10.0**rank)
    (step,) = reduced([x.view(-1)], (("matrix", (128, 128)),), density=1 / 4096)
    assert step.reduced.sent is not None
    assert sorted(step.reduced.sent.tolist()) == sorted(i * 128 + j for i, j in corners)


def test_of_equal_magnitudes_the_lower_positions_are_sent() -> None:
    signal_N = torch.tensor([1.0, -1.0]).repeat(3000)
    (step,) = reduced([signal_N], (("w", (6000,)),))
    assert step.reduced.sent is not None
    assert step.reduced.sent.tolist() == [*range(64), *range(4096, 4096 + 29)]


@pytest.mark.parametrize("density", [1 / 4096, 0.3, 1.0])
@pytest.mark.parametrize("value", [0.0, 2.0])
def test_of_a_short_chunk_nothing_beyond_its_end_is_sent(value: float, density: float) -> None:
    (step,) = reduced([torch.full((N,), value)], density=density)
    at = step.reduced.sent
    assert at is not None
    assert 0 <= int(at.min()) <= int(at.max()) < N
    assert len(at.unique()) == len(at)
    assert (density == 1.0) == (len(at) == N)


# The four means.


def test_codes_are_cut_at_multiples_of_the_standard_deviation() -> None:
    """Of these values μ = 0 and σ = 1, so that the cuts are −2.25, −0.75 and 0.75."""
    x_K = torch.tensor([-2.26, -2.24, -0.76, -0.74, 0.74, 0.76, 2.26, 2.24])
    x_K = torch.cat((x_K, torch.zeros(1000)))
    x_K[8:] = math.sqrt((1007 - float(x_K.square().sum())) / 1000) * torch.tensor([1.0, -1.0]).repeat(500)
    assert float(x_K.double().std()) == pytest.approx(1.0, abs=1e-6)
    codes_K, means_G4 = encode(x_K, torch.zeros(1008, dtype=torch.int64), [1008])
    assert codes_K[:8].tolist() == [0, 1, 1, 2, 2, 3, 3, 3]
    for code in range(4):
        assert float(means_G4[0, code]) == pytest.approx(float(x_K[codes_K == code].mean()), rel=1e-6)


def test_each_group_has_its_own_means_and_equal_values_are_sent_exactly() -> None:
    x_K = torch.tensor([5.0, 5.0, 5.0, -1e-41, -1e-41, 7.0])
    codes_K, means_G4 = encode(x_K, torch.tensor([0, 0, 0, 2, 2, 3]), [3, 0, 2, 1])
    assert codes_K.tolist() == [2] * 6
    expected = torch.tensor([5.0, 0.0, -1e-41, 7.0])
    assert means_G4[:, 2].tolist() == expected.tolist()
    assert not means_G4[:, [0, 1, 3]].any()


@pytest.mark.parametrize("fault", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_affects_only_its_own_tensor(fault: float) -> None:
    given = signals(2)
    given[1][24576 + 5] = fault
    for step in reduced(given, memory="residual"):
        assert bool(step.mean_N[:24576].isfinite().all())
        assert not bool(step.mean_N[24576:32896].isfinite().all())
        assert step.left_N is not None
        assert bool(step.left_N.isfinite().all())


# Aggregation.


def test_the_mean_over_senders_does_not_count_the_others() -> None:
    values = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), torch.tensor([5.0, 6.0])]
    at_M = torch.tensor([0, 2, 2, 3, 0, 2], dtype=torch.int32)
    mean_N = mean_of_senders(values, at_M, torch.full((5,), 9.0))
    assert mean_N.tolist() == [3.0, 0.0, pytest.approx((2 + 3 + 6) / 3), 4.0, 0.0]
    assert mean_of_senders([torch.empty(0)], at_M[:0], torch.ones(3)).tolist() == [0.0, 0.0, 0.0]


def test_a_rank_is_scaled_down_to_the_median_norm_of_each_tensor() -> None:
    values = [torch.tensor([3.0, 4.0, 1.0]), torch.tensor([30.0, 40.0, 0.0]), torch.tensor([0.0, 10.0, 2.0])]
    group_K = torch.tensor([0, 0, 1])
    assert torch.stack(clipped(values, group_K, [2, 1])).tolist() == [
        [3.0, 4.0, 1.0],
        pytest.approx([6.0, 8.0, 0.0]),
        pytest.approx([0.0, 10.0, 1.0]),
    ]
    lower = clipped(values[:2], group_K, [2, 1])  # of two norms, the median is the lower one
    assert torch.stack(lower).tolist() == [[3.0, 4.0, 0.0], pytest.approx([3.0, 4.0, 0.0])]


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_of_very_different_scale_have_the_same_mean_over_senders(world_size: int) -> None:
    given = [x_N * 10.0 ** (3 * rank) for rank, x_N in enumerate(signals(world_size, seed=1))]
    first, *others = reduced(given, mean="senders")
    assert all(same_bits(first.mean_N, other.mean_N) for other in others)


def test_the_mean_over_senders_keeps_every_invariant_but_that_of_the_mean() -> None:
    case = Case(SparseLoCo, {"mean": "senders"}, 3, memory="residual")
    for invariant in conformance.INVARIANTS:
        invariant(case)
    assert any("conserves = False" in reason for reason in case.unchecked)


def test_what_a_rank_keeps_under_the_mean_over_senders_is_what_it_did_not_send() -> None:
    given = signals(2, seed=2)
    kept = {
        mean: [step.left_N for step in reduced(given, memory="residual", mean=mean)]
        for mean in ("ranks", "senders")
    }
    for a_N, b_N in zip(kept["ranks"], kept["senders"], strict=True):
        assert a_N is not None
        assert b_N is not None
        assert same_bits(a_N, b_N)


def test_the_residual_decays_by_the_memory_s_beta() -> None:
    """e ← βe + Δ − Q(TopK(βe + Δ)): after a step without a gradient, what is left and sent add to βe."""

    def work(wire: Wire) -> tuple[Tensor, Tensor, Tensor]:
        feedback = ErrorFeedback(SparseLoCo(), Layout.of(SHAPES, "layer"), beta=0.5)
        feedback(signals(1)[0], wire)
        assert feedback.residual_N is not None
        before_N = feedback.residual_N.clone()
        return before_N, feedback(torch.zeros(N), wire).mean_N, feedback.residual_N

    ((before_N, sent_N, after_N),) = simulate(1, work)
    torch.testing.assert_close(sent_N + after_N, before_N / 2)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"density": 0.0}, r"density=0\.0: expected a share of the elements, above 0 and at most 1"),
        ({"mean": "peers"}, r"mean='peers': expected ranks or senders"),
    ],
)
def test_an_option_out_of_range_is_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        SparseLoCo(**options)
