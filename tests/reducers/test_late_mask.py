"""Tests of masks from an average of gradients, one step late, over the parts of deft, micro and exdyna."""
# N = elements of the flat vector, W = ranks

from typing import Any

import pytest
import torch

from sage import registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.testing import conformance
from sage.testing.harness import Case, reduce_once, same_bits

NAMES = ("deft", "micro", "exdyna")
LATE = {"density": 0.05, "mask": "momentum"}


def case(name: str, world_size: int, **options: Any) -> Case:
    make = registry.load("reducers", name)
    return Case(make, {**LATE, **options}, world_size, memory="residual")


def sent(name: str, changed: int, **options: Any) -> list[tuple[list[int], dict[str, int]]]:
    """What rank 0 of two sends in each of five steps, and its payload; one step's gradient is another."""
    given = case(name, 2, **options)

    def work(wire: Wire) -> Any:
        feedback, seen = given.fresh(), []
        for step in range(5):
            grad_N = given.gradient(wire.rank, step)
            grad_N = grad_N.flip(0) * 1000 if step == changed else grad_N
            found = reduce_once(feedback, grad_N, wire)
            assert found.reduced.sent is not None
            seen.append((found.reduced.sent.tolist(), found.payload))
        return seen

    seen: list[Any] = simulate(2, work)[0]
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_the_mask_of_a_step_is_that_of_the_step_before(name: str) -> None:
    usual, other = sent(name, -1), sent(name, 2)
    assert [at for at, _ in usual[:3]] == [at for at, _ in other[:3]]  # also in the step that is another
    assert usual[3][0] != other[3][0]
    usual, other = sent(name, -1, mask="signal"), sent(name, 2, mask="signal")
    assert usual[2][0] != other[2][0]


@pytest.mark.parametrize("name", NAMES)
def test_all_ranks_send_the_elements_of_the_mask_and_clear_them(name: str) -> None:
    given = case(name, 3)
    for step in zip(*given.usual_steps, strict=True):
        at = step[0].reduced.sent
        assert at is not None
        expected_N = torch.zeros_like(step[0].mean_N)
        expected_N[at] = torch.stack([each.signal_N for each in step]).mean(0)[at]
        assert torch.allclose(step[0].mean_N, expected_N, atol=1e-6)
        for each in step:
            left_N = each.signal_N.clone()
            left_N[at] = 0
            assert each.left_N is not None
            assert same_bits(each.left_N, left_N)


@pytest.mark.parametrize("name", ["micro", "exdyna"])
def test_the_bytes_are_the_values_of_this_mask_and_the_indices_of_the_next(name: str) -> None:
    def work(wire: Wire) -> Any:
        feedback, seen, chosen = given.fresh(), [], []
        reducer: Any = feedback.reducer
        take = reducer.take

        def seen_to_take(*args: Any) -> Any:
            chosen.append(found := take(*args))
            return found

        reducer.take = seen_to_take
        for step in range(4):
            found = reduce_once(feedback, given.gradient(wire.rank, step), wire)
            assert found.reduced.sent is not None
            seen.append((len(found.reduced.sent), chosen[-1][1].numel(), found.payload))
        return seen

    given = case(name, 2)
    for rank in simulate(2, work):
        for num, chosen, payload in rank[1:]:  # the first step gathers two masks, and a first threshold
            assert payload == {"values": 4 * num, "indices": 4 * chosen, "sizes": 8}


@pytest.mark.parametrize("name", NAMES)
def test_late_masks_keep_the_invariants(name: str) -> None:
    for check in (
        conformance.ranks_agree,
        conformance.nothing_is_lost,
        conformance.density_is_the_share_sent,
        conformance.edge_cases_are_handled,
        conformance.nan_reaches_every_mean,
        conformance.resumed_equals_uninterrupted,
    ):
        check(case(name, 3))


def test_a_wrong_mask_is_refused_and_a_hybrid_has_none() -> None:
    for options in ({"mask": "late"}, {"mask_beta": 1.0}):
        with pytest.raises(ValueError, match=r"mask.*: expected"):
            registry.load("reducers", "deft")(**options)
    assert "mask" not in registry.options(registry.load("reducers", "deft+efsign"))
