"""What a reducer's decisions depend on is what its `decides_by` says, so that buckets cannot change them."""
# N = elements of the flat vector, S = steps

from typing import Any

import pytest
import torch
from torch import Tensor

from sage import registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.mount.flat import Flat
from sage.reduction.reducer import Reducer

SHAPES = (("first", (30, 7)), ("second", (12,)), ("third", (40, 3)))
FIRST, OTHERS = slice(0, 210), slice(210, 342)
FIRST_TWO, LAST = slice(0, 222), slice(222, 342)
ROWS, REST = slice(0, 105), slice(105, 342)

OPTIONS: dict[str, dict[str, Any]] = {
    "threshold": {"threshold": 0.01},
    "acp": {"rank": 1},
    "accordion_powersgd": {"rank_high": 1},  # so that these small matrices are factored at all
}


def make(name: str) -> Reducer:
    reducer: Reducer = registry.load("reducers", name)(**OPTIONS.get(name, {}))
    return reducer


def means(name: str, grouping: str, changed: slice, factor: float) -> Tensor:
    """The means (S, N) of four reductions, after a part of each gradient was reversed and multiplied."""

    def work(wire: Wire) -> Tensor:
        flat = Flat(SHAPES, make(name), dtype=torch.float32, device=torch.device("cpu"), grouping=grouping)
        seen = []
        for step in range(4):
            if step == 2:
                flat.feedback.reducer.begin_epoch(1, 0.1, wire)
            generator = torch.Generator().manual_seed(10 * step + wire.rank)
            grad_N = torch.randn(flat.layout.numel, generator=generator)
            grad_N[changed] = grad_N[changed].flip(0) * factor
            flat.feedback.reducer.observe(grad_N.square() / 4)
            flat.grad_N.copy_(grad_N)
            flat(wire)
            seen.append(flat.grad_N.clone())
        return torch.stack(seen)

    return simulate(2, work)[0]


def depends(name: str, grouping: str, part: slice, others: slice) -> bool:
    """Whether the mean of a part depends on the gradient of the others."""
    large, small = (means(name, grouping, others, factor)[:, part] for factor in (10.0, 0.1))
    return not torch.allclose(large, small, rtol=1e-5, atol=1e-6)


def observed(name: str) -> str:
    """What decisions of this reducer depend on."""
    if depends(name, "layer", FIRST, OTHERS) or depends(name, "layer", LAST, FIRST_TWO):
        return "vector"
    if depends(name, "model", ROWS, REST) or depends(name, "model", REST, ROWS):
        return "group"
    return "element"


SEEN = {"mxfp8": "element"}
"""The block decides about numbers above the largest or below the smallest of the format, not met here."""


@pytest.mark.parametrize("name", registry.names("reducers"))
def test_decisions_depend_on_what_the_reducer_declares(name: str) -> None:
    assert observed(name) == SEEN.get(name, make(name).decides_by)


@pytest.mark.parametrize(
    ("name", "declared"),
    [("topk+terngrad", "group"), ("sage+onebit", "vector"), ("adacomp+efsign", "group")],
)
def test_a_hybrid_decides_over_the_vector_if_a_part_does(name: str, declared: str) -> None:
    assert make(name).decides_by == declared
    assert observed(name) == declared


def test_a_threshold_that_follows_from_the_gradient_is_that_of_the_whole_vector() -> None:
    threshold = registry.load("reducers", "threshold")
    assert (threshold(threshold=0.1).decides_by, threshold().decides_by) == ("element", "vector")
