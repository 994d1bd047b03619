"""Random numbers of the low-rank methods: a matrix has the same, whatever vector it is in."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sage import registry
from sage.bench.loopback_wire import LoopbackWire
from sage.reduction import Layout
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Origin

SHAPES = [("first", (30, 20)), ("bias", (30,)), ("second", (25, 40)), ("third", (40, 25))]
ORIGINS = {"first": Origin(0, 0), "bias": Origin(600, 1), "second": Origin(630, 2), "third": Origin(1630, 3)}


def means(name: str, options: dict[str, Any], names: list[str]) -> dict[str, Tensor]:
    """The means of three steps of a vector of these parameters, by parameter."""
    shapes = [(each, shape) for each, shape in SHAPES if each in names]
    reducer = registry.load("reducers", name)(rank=2, **options)
    layout = Layout.of(shapes, reducer.grouping, origins=ORIGINS)
    feedback, wire = ErrorFeedback(reducer, layout), LoopbackWire(torch.device("cpu"), 2)
    steps: dict[str, list[Tensor]] = {each: [] for each in names}
    for step in range(3):
        given = {
            each: torch.randn(
                shape, generator=torch.Generator().manual_seed(10 * step + ORIGINS[each].number)
            )
            for each, shape in SHAPES
        }
        mean_N = feedback(torch.cat([given[each].view(-1) for each in names]), wire).mean_N
        for span in layout.spans:
            steps[span.name].append(mean_N[span.start : span.stop].clone())
    return {each: torch.cat(found) for each, found in steps.items()}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("powersgd", {}),
        ("powersgd", {"half": True}),
        ("acp", {}),
        ("atomo", {}),
        ("svd", {"decomposition": "randomised", "oversampling": 1, "power_iterations": 0}),
        ("atomo", {"decomposition": "randomised", "oversampling": 1, "power_iterations": 0}),
    ],
    ids=["powersgd", "powersgd-half", "acp", "atomo", "svd-randomised", "atomo-randomised"],
)
def test_the_random_numbers_of_a_matrix_do_not_depend_on_the_vector_that_it_is_in(
    name: str, options: dict[str, Any]
) -> None:
    whole = means(name, options, [each for each, _ in SHAPES])
    for part in (["first", "bias"], ["second"], ["third"], ["bias", "third"]):
        for each, found in means(name, options, part).items():
            # One product of several matrices may be rounded in another way than that of one.
            torch.testing.assert_close(found, whole[each], rtol=1e-3, atol=1e-4)
