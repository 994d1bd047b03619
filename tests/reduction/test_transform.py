"""A Hadamard transform before a quantiser: the mean, the residual, outliers, unbiasedness, options."""
# N = elements of the vector, D = draws

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sage import registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.testing.conformance import INVARIANTS
from sage.testing.harness import Case

N = 700
QUANTISERS = ["int8", "onebit", "qsgd", "fp4", "mxfp4"]


def reduced(spec: str, grads: list[Tensor], memory: Any, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """The mean of one step, and the residual of each rank."""

    def work(wire: Wire) -> tuple[Tensor, Tensor]:
        layout = Layout.of([("w", grads[0].shape)])
        feedback = ErrorFeedback(registry.load("reducers", spec)(**options), layout, memory=memory)
        mean_N = feedback(grads[wire.rank].clone(), wire).mean_N
        return mean_N, mean_N if feedback.residual_N is None else feedback.residual_N

    ranks = simulate(len(grads), work)
    return ranks[0][0], [left_N for _, left_N in ranks]


@pytest.mark.parametrize("name", ["int8", "onebit"])
def test_it_keeps_every_invariant_of_a_reducer(name: str) -> None:
    case = Case(registry.load("reducers", f"hadamard+{name}"), {"hadamard_block": 64}, 3, memory="residual")
    for invariant in INVARIANTS:
        invariant(case)


@pytest.mark.parametrize("name", QUANTISERS)
def test_the_payload_is_that_of_the_quantiser(name: str) -> None:
    def payload(spec: str) -> dict[str, int]:
        def work(wire: Wire) -> dict[str, int]:
            feedback = ErrorFeedback(registry.load("reducers", spec)(), Layout.of([("w", (N,))]))
            feedback(torch.ones(N), wire)
            return dict(wire.ledger.payload)

        return simulate(2, work)[0]

    assert payload(f"hadamard+{name}") == payload(name)


@pytest.mark.parametrize("name", ["int8", "onebit"])
def test_the_error_of_a_vector_with_an_outlier_is_smaller(name: str) -> None:
    x_N = torch.randn(N, generator=torch.Generator().manual_seed(0))
    x_N[::100] = 50.0
    off = [float((reduced(spec, [x_N] * 2, "none")[0] - x_N).norm()) for spec in (name, f"hadamard+{name}")]
    assert off[1] < 0.8 * off[0]


def test_an_unbiased_quantiser_remains_unbiased() -> None:
    x_N = torch.tensor([3.0, -1.0, 0.5, 0.0]).repeat(8)

    def work(wire: Wire) -> Tensor:
        reducer = registry.load("reducers", "hadamard+qsgd")(levels=1, hadamard_block=16)
        feedback = ErrorFeedback(reducer, Layout.of([("w", x_N.shape)]), memory="none")
        return torch.stack([feedback(x_N.clone(), wire).mean_N for _ in range(1500)])

    drawn_DN = simulate(1, work)[0].double()
    assert float(drawn_DN.std(0).min()) > 0.1
    error = float(drawn_DN.std(0).max()) / math.sqrt(len(drawn_DN))
    assert bool(((drawn_DN.mean(0) - x_N).abs() <= 5 * error).all())


def test_the_residual_is_that_of_the_vector_before_the_transform() -> None:
    x_N = torch.randn(N, generator=torch.Generator().manual_seed(1))
    mean_N, (left_N,) = reduced("hadamard+onebit", [x_N], "residual")
    torch.testing.assert_close(mean_N + left_N, x_N, rtol=0, atol=1e-5)


def test_options_of_both_parts_are_those_of_the_whole() -> None:
    options = registry.options_of("reducers", "hadamard+qsgd")
    assert {"hadamard_block", "hadamard_seed", "levels", "bucket"} <= options.keys()
    assert registry.options_of("reducers", "hadamard+qsgd", from_source=True) == options
    with pytest.raises(ValueError, match="hadamard_block=48: expected a power of two from 16 to 8192"):
        registry.load("reducers", "hadamard+int8")(hadamard_block=48)
    with pytest.raises(TypeError, match="takes no option 'density'"):
        registry.load("reducers", "hadamard+int8")(density=1)
    with pytest.raises(ValueError, match="such as topk, or hadamard, and then one that encodes them"):
        registry.load("reducers", "hadamard+topk")
