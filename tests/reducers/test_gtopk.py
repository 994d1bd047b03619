"""Tests of gTop-k as published: a tree of pairs, computed again in numpy, and what it drops."""
# N = elements of the flat vector, K = elements selected, W = ranks

from typing import Any

import numpy as np
import pytest
import torch

from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.reducers.gtopk import GTopK
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.testing import conformance
from sage.testing.harness import Case, reduce_once, same_bits

N = 60


def published(gradients: torch.Tensor, density: float) -> list[Any]:
    """Each rank's step, and the bytes that it sent and received."""

    def work(wire: Wire) -> Any:
        reducer = GTopK(density=density, merge="published")
        feedback = ErrorFeedback(reducer, Layout.of([("w", (gradients.shape[1],))]), memory="residual")
        step = reduce_once(feedback, gradients[wire.rank], wire)
        return step, wire.ledger.sent, wire.ledger.received

    return simulate(len(gradients), work)


def largest(sums: dict[int, np.float32], k: int) -> dict[int, np.float32]:
    """The k entries of largest magnitude; of equal ones, those of lower index."""
    order = sorted(sums, key=lambda at: (-abs(float(sums[at])), at))
    return {at: sums[at] for at in sorted(order[:k])}


def by_hand(gradients: Any, k: int) -> tuple[Any, Any]:
    """The mean and the residuals: what is not in the result goes back, to the rank that knows it last."""
    nodes = [largest(dict(enumerate(row)), k) for row in gradients]
    own, lost = list(nodes), {}
    distance = 1
    while distance < len(nodes):
        for left in range(0, len(nodes) - distance, 2 * distance):
            both = {**nodes[left]}
            for at, x in nodes[left + distance].items():
                both[at] = np.float32(both[at] + x) if at in both else x
            nodes[left] = largest(both, k)
            lost.update({(left, at, distance): x for at, x in both.items() if at not in nodes[left]})
        distance *= 2
    result = nodes[0]
    mean, residuals = np.zeros(gradients.shape[1], np.float32), gradients.copy()
    for at, x in result.items():
        mean[at] = x / np.float32(len(gradients))
    for rank, selected in enumerate(own):
        for at in selected:
            if at in result:
                residuals[rank, at] = 0
    for (rank, at, _), x in lost.items():
        if at in result:
            residuals[rank, at] += x
    return mean, residuals


@pytest.mark.parametrize("world_size", range(1, 9))
def test_the_tree_is_the_one_computed_in_numpy(world_size: int) -> None:
    for seed in range(3):
        generator = torch.Generator().manual_seed(10 * world_size + seed)
        # Small integers, so that sums are exact and magnitudes are often equal.
        gradients = torch.randint(-4, 5, (world_size, N), generator=generator).float()
        mean, residuals = by_hand(gradients.numpy(), 6)
        for rank, (step, _, _) in enumerate(published(gradients, 0.1)):
            assert step.mean_N.numpy().tolist() == mean.tolist()
            assert step.left_N.numpy().tolist() == residuals[rank].tolist()


@pytest.mark.parametrize("world_size", [2, 3, 5, 8])
def test_nothing_is_lost_and_the_mean_is_that_of_the_tree_that_all_ranks_compute(world_size: int) -> None:
    gradients = torch.randn(world_size, N, generator=torch.Generator().manual_seed(world_size))
    seen = [step for step, _, _ in published(gradients, 0.2)]
    left = torch.stack([step.left_N for step in seen])
    torch.testing.assert_close(seen[0].mean_N, (gradients - left).sum(0) / world_size)

    def tree(wire: Wire) -> Any:
        feedback = ErrorFeedback(GTopK(density=0.2, merge="tree"), Layout.of([("w", (N,))]))
        return feedback(gradients[wire.rank].clone(), wire).mean_N.clone()

    for step, mean_N in zip(seen, simulate(world_size, tree), strict=True):
        assert same_bits(step.mean_N, mean_N)


def test_a_sum_whose_index_another_branch_brings_stays_with_the_rank_that_dropped_it() -> None:
    # Ranks 0 and 1 keep element 0 and drop rank 1's element 1; ranks 2 and 3 bring element 1 to 8.
    gradients = torch.tensor([[4.0, 0], [0, 3.0], [0, 5.0], [0, 3.0]])
    steps = [step for step, _, _ in published(gradients, 0.5)]
    assert [step.mean_N.tolist() for step in steps] == [[0.0, 2.0]] * 4
    assert [step.left_N.tolist() for step in steps] == [[4.0, 3.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("world_size", [1, 2, 5, 8])
def test_the_bytes_are_k_pairs_up_the_tree_and_k_down(world_size: int) -> None:
    gradients = torch.randn(world_size, N, generator=torch.Generator().manual_seed(1))
    rounds, pairs = (world_size - 1).bit_length(), 8 * 6
    for rank, (step, sent, received) in enumerate(published(gradients, 0.1)):
        assert step.payload == {"values": 24, "indices": 24, "sizes": 8}
        number = 8 * (world_size - 1)  # of the elements that remained, in a ring
        if rank == 0:
            assert sent - number == received - number == rounds * pairs


# With more than two ranks, a rank may keep a sum of others: a residual where it has sent nothing.
OF_SUMS = (
    conformance.ranks_agree,
    conformance.ledger_equals_bytes_by_hand,
    conformance.density_is_the_share_sent,
    conformance.density_one_is_all_reduce,
    conformance.nan_reaches_every_mean,
    conformance.resumed_equals_uninterrupted,
)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_gtopk_as_published_keeps_the_invariants(world_size: int) -> None:
    case = Case(GTopK, {"density": 0.05, "merge": "published"}, world_size, memory="residual")
    for invariant in conformance.INVARIANTS if world_size < 3 else OF_SUMS:
        invariant(case)


def test_sums_are_sent_as_they_are() -> None:
    complaint = "sends sums as fp32 values with int32 indices"
    with pytest.raises(ValueError, match=complaint):
        GTopK(merge="published", values="fp16")
    with pytest.raises(ValueError, match=complaint):
        GTopK(merge="published", indices="coded")
    with pytest.raises(ValueError, match="expected gather, tree or published"):
        GTopK(merge="pairs")  # type: ignore[arg-type]
