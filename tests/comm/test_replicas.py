"""Tests that ranks whose replicas of a model differ get an error that names them and the tensor."""

import pytest
import torch
from torch import Tensor

from sage.comm.replicas import Replicas, ReplicasDiffer
from sage.comm.threads import simulate
from sage.comm.wire import Wire


def tensors(wire: Wire, changed: dict[int, int]) -> dict[str, Tensor]:
    """Four tensors; on each changed rank one bit of one of them differs."""
    made = {
        "weight": torch.arange(6.0).view(2, 3).T,
        "empty": torch.empty(0, 3),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "count": torch.tensor(7),
    }
    if wire.rank in changed:
        tensor = list(made.values())[changed[wire.rank]]
        tensor.view(-1)[0:1].add_(1) if tensor.dim() != 2 else tensor[0, 1].mul_(-1)
    return made


def test_the_comparison_of_equal_replicas_costs_one_sum_of_an_integer_for_each_rank() -> None:
    def work(wire: Wire) -> dict[str, int]:
        Replicas(wire, tensors(wire, {}).items()).check()
        return dict(wire.ledger.payload)

    assert simulate(3, work) == [{"control": 24}] * 3


@pytest.mark.parametrize(
    ("world_size", "changed", "message"),
    [
        (3, {1: 0}, "step 5: the model of rank 1 differs from that of rank 0, first in weight"),
        (4, {0: 2}, "step 5: the model of rank 0 differs from that of rank 1, first in half"),
        (5, {2: 3, 3: 2}, "step 5: the model of ranks 2, 3 differs from that of rank 0, first in count"),
        (2, {1: 2}, "step 5: the model of rank 1 differs from that of rank 0, first in half"),
    ],
)
def test_the_ranks_that_differ_from_most_are_named_on_every_rank(
    world_size: int, changed: dict[int, int], message: str
) -> None:
    def work(wire: Wire) -> str:
        with pytest.raises(ReplicasDiffer) as error:
            Replicas(wire, tensors(wire, changed).items()).check("step 5")
        return str(error.value).partition(".")[0]

    assert simulate(world_size, work) == [message] * world_size


def test_other_names_or_another_number_of_tensors_are_a_difference() -> None:
    def work(wire: Wire) -> None:
        named = list(tensors(wire, {}).items())
        Replicas(wire, named[: 4 - wire.rank]).check()

    with pytest.raises(ReplicasDiffer, match="first in the set of tensors"):
        simulate(2, work)
