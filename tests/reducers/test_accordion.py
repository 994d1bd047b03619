"""Tests of Accordion: when a layer is critical, and that all ranks use rank 0's decision."""

from collections.abc import Callable

import pytest
import torch

from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.reducers.accordion import Accordion
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.testing.harness import SHAPES

LAYERS = (("a", (100,)), ("b", (100,)))


def densities(scales: Callable[[int], tuple[float, float]], lrs: list[float]) -> list[list[float]]:
    """The layers' densities in each epoch of two steps; `scales(epoch)` are their norms."""

    def work(wire: Wire) -> list[list[float]]:
        reducer = Accordion(density=0.01, density_high=0.5, switch_every=2)
        feedback = ErrorFeedback(reducer, Layout.of(LAYERS, "layer"), memory="none")
        result = []
        for epoch, lr in enumerate(lrs):
            reducer.begin_epoch(epoch, lr, wire)
            result.append(reducer.density_G.tolist())
            for _ in range(2):
                grad_N = torch.zeros(200)
                grad_N[0], grad_N[100] = scales(epoch)
                feedback(grad_N, wire)
        return result

    return simulate(1, work)[0]


def test_accordion_starts_with_the_high_setting_and_uses_the_low_one_for_steady_gradients() -> None:
    result = densities(lambda epoch: (1.0, 5.0), [0.1] * 7)
    # Epoch 0 is critical. At epoch 2 there is no earlier norm to compare with; at epoch 4 none has changed.
    assert result == [[0.5, 0.5]] * 4 + [[0.01, 0.01]] * 3


def test_accordion_uses_the_high_setting_for_a_layer_that_changes() -> None:
    result = densities(lambda epoch: (1.0, 1.0 if epoch < 5 else 3.0), [0.1] * 9)
    assert result[4:] == [[0.01, 0.01]] * 2 + [[0.01, 0.5]] * 2 + [[0.01, 0.01]]


@pytest.mark.parametrize(("change", "expected"), [(1.45, 0.01), (1.55, 0.5), (0.55, 0.01), (0.45, 0.5)])
def test_accordion_treats_a_layer_as_critical_only_beyond_eta(change: float, expected: float) -> None:
    result = densities(lambda epoch: (1.0, change if epoch == 3 else 1.0), [0.1] * 5)
    assert result[4] == [0.01, expected]


def test_accordion_uses_the_high_setting_when_the_learning_rate_falls_and_not_when_it_rises() -> None:
    result = densities(lambda epoch: (1.0, 1.0), [0.1] * 5 + [0.01, 0.01, 0.01, 0.02])
    assert result[4:] == [[0.01, 0.01], [0.5, 0.5], [0.01, 0.01], [0.01, 0.01], [0.01, 0.01]]


def test_accordion_uses_rank_0s_decision_even_if_the_ranks_differ() -> None:
    def work(wire: Wire) -> list[list[float]]:
        reducer = Accordion(density=0.01, density_high=0.5, switch_every=1)
        reducer.bind(Layout.of(LAYERS, "layer"))
        result = []
        for epoch in range(4):
            reducer.begin_epoch(epoch, 0.1, wire)
            result.append(reducer.density_G.tolist())
            reducer.sum_N.fill_(1.0 if wire.rank == 0 else 10.0**epoch)
        return result

    first, *others = simulate(3, work)
    assert first == [[0.5, 0.5]] * 2 + [[0.01, 0.01]] * 2
    assert others == [first, first]


def test_accordion_has_by_default_ten_times_the_density_in_critical_regimes() -> None:
    for density, high in ((0.01, 0.1), (0.2, 1.0)):
        reducer = Accordion(density=density)
        reducer.bind(Layout.of(LAYERS, "layer"))
        assert reducer.report() == {"density_asked": pytest.approx(high)}


def test_accordions_decision_costs_rank_0_eight_bytes_per_layer() -> None:
    def work(wire: Wire) -> dict[str, int]:
        reducer = Accordion()
        reducer.bind(Layout.of(SHAPES, "layer"))
        reducer.begin_epoch(0, 0.1, wire)
        return dict(wire.ledger.payload)

    assert simulate(2, work) == [{"scales": 24}, {"scales": 0}]
