"""Tests of hybrids: a sparsifier's selection in a quantiser's codes, by name on the command line."""
# N = elements of the flat vector

from typing import Any

import pytest
import torch

from sage import ops, registry
from sage.comm.threads import simulate
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.testing.harness import Case, reduce_once, steps

SHAPES = (("a", (8,)), ("b", (8,)))


def test_the_selected_elements_of_each_group_are_coded_separately() -> None:
    # Two of each group, by hand: 4 and -2 become ±3, 6 and 1 become 3.5 each; the rest stays.
    signal_N = torch.tensor([0, 4, 0, 0, -2, 0, 0.5, 0] + [6, 0, 0, 0, 0, 0.25, 0, 1])
    make: Any = registry.load("reducers", "topk+efsign")
    feedback = ErrorFeedback(make(density=0.25), Layout.of(SHAPES, make.grouping))
    (step,) = simulate(1, lambda wire: reduce_once(feedback, signal_N, wire))
    expected_N = torch.tensor([0, 3, 0, 0, -3, 0, 0, 0] + [3.5, 0, 0, 0, 0, 0, 0, 3.5])
    assert step.mean_N.tolist() == expected_N.tolist()
    assert step.left_N is not None
    assert step.left_N.tolist() == (signal_N - expected_N).tolist()
    assert step.reduced.sent is not None
    assert step.reduced.sent.tolist() == [1, 4, 8, 15]


def test_the_bytes_are_the_codes_the_scales_the_coded_indices_and_their_lengths() -> None:
    case = Case(registry.load("reducers", "gtopk+efsign"), {"density": 0.01}, 2, grouping="model")
    for rank in steps(case, case.gradient, count=2):
        for step in rank:
            assert step.reduced.sent is not None
            indices = ops.encode_indices(step.reduced.sent.int(), step.mean_N.numel()).numel()
            # Ten of 1,023: ten bits of signs in two bytes, one scale, three lengths.
            assert step.payload == {"values": 2, "scales": 4, "indices": indices, "sizes": 24}
            assert indices < 4 * 10


def test_options_are_those_of_both_parts() -> None:
    options = registry.options(registry.load("reducers", "threshold+efsign"))
    assert set(options) == {"threshold", "density", "start"}
    built = registry.load("reducers", "threshold+efsign")(threshold=0.5)
    built.bind(Layout.of(SHAPES))
    assert built.report()["threshold"] == 0.5
    with pytest.raises(TypeError, match="no option 'values'"):
        registry.load("reducers", "threshold+efsign")(values="fp16")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        (
            "efsign+topk",
            "expected a method that selects elements, such as topk, or hadamard, and then one",
        ),
        ("topk+exact", "expected a method that selects elements"),
        ("topk+efsign+efsign", "expected two parts, as in topk"),
        ("topk+nothing", "no reducer is called 'nothing'"),
        ("topk+", "no reducer is called ''"),
    ],
)
def test_a_pair_that_is_not_a_hybrid_is_an_error_with_the_reason(name: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        registry.load("reducers", name)


def test_a_hybrid_has_its_own_name_and_summary() -> None:
    make = registry.load("reducers", "topk+efsign")
    assert make is registry.load("reducers", "topk+efsignsgd")
    assert make.__name__ == "TopKEfSignSgd"
    assert registry.summary("reducers", "topk+efsign").startswith("Top-k: ")
