"""Tests that the faults found in the systems that SAGE replaces are absent."""
# N = elements of the flat vector, K = elements sent

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sage import ops, registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.mount import WholeModel
from sage.reducers.exact import Exact
from sage.reducers.gtopk import GTopK
from sage.reducers.sage import Sage
from sage.reducers.threshold import Threshold
from sage.reducers.topk import TopK
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.testing.conformance import negative_values_are_sent, resumed_equals_uninterrupted
from sage.testing.harness import Case, Step, reduce_once
from sage.timing import Phases

NAMES = registry.names("reducers")
SPARSE = [name for name in NAMES if "values" in registry.options(registry.load("reducers", name))]


def play(make: Any, gradients: list[list[list[float]]], memory: Any = "residual") -> list[list[Step]]:
    """Reductions of `gradients[rank][step]`: the recorded steps of each rank."""
    n = len(gradients[0][0])

    def work(wire: Wire) -> list[Step]:
        feedback = ErrorFeedback(make(), Layout.of([("w", (n,))]), memory=memory)
        feedback.reducer.begin_epoch(0, 0.1, wire)
        return [reduce_once(feedback, torch.tensor(grad), wire) for grad in gradients[wire.rank]]

    return simulate(len(gradients), work)


def left(step: Step) -> list[float]:
    assert step.left_N is not None
    found: list[float] = step.left_N.tolist()
    return found


# Gathered payloads.


def test_uneven_counts_are_never_split_evenly() -> None:
    # 1, 4 and 0 elements are above the threshold; an even split would cut five into ones and drop two.
    gradients = [[[3.0, 0.5, 0.5, 0.5, 0.5]], [[6.0, 9.0, 12.0, -15.0, 0.0]], [[0.0, 0.5, 0.0, 0.0, 0.75]]]
    for rank, (step,) in enumerate(play(lambda: Threshold(threshold=1.0), gradients)):
        assert step.mean_N.tolist() == [3.0, 3.0, 4.0, -5.0, 0.0]
        assert left(step) == [x if abs(x) < 1 else 0.0 for x in gradients[rank][0]]
        assert step.reduced.density == pytest.approx((1 + 4 + 0) / 3 / 5)


def test_the_values_of_one_index_from_several_ranks_are_added() -> None:
    for (step,) in play(lambda: GTopK(density=0.4), [[[1.0, 7.0, 0.0, 0.0, 3.0]]] * 4):
        assert step.mean_N.tolist() == [0.0, 7.0, 0.0, 0.0, 3.0]


def test_the_values_of_one_index_twice_from_one_rank_are_added() -> None:
    at_M = torch.tensor([1, 1, 0], dtype=torch.int32)
    mean_N = ops.scatter_mean(torch.tensor([1.0, 2.0, 4.0]), at_M, [2, 1], torch.empty(3))
    assert mean_N.tolist() == [2.0, 1.5, 0.0]


def test_padding_is_never_added_to_the_mean() -> None:
    # Rank 1 sends nothing, so its payload is only padding: zeros for index 0, which no rank sent.
    gradients = [[[0.0, 5.0, 6.0], [0.0, 5.0, 6.0]], [[0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]]
    for rank, (first, second) in enumerate(play(lambda: Threshold(threshold=1.0), gradients)):
        assert first.mean_N.tolist() == second.mean_N.tolist() == [0.0, 2.5, 3.0]
        assert first.reduced.union_M is not None
        assert first.reduced.union_M.tolist() == [1, 2]
        assert first.reduced.density == pytest.approx((2 + 0) / 2 / 3)
        assert first.payload.get("padding", 0) == (16 if rank == 1 else 0)
        assert left(second) == ([0.0, 0.0, 0.0] if rank == 0 else [0.5, 0.0, 0.0])


@pytest.mark.parametrize("values", ["fp32", "fp16"])
def test_indices_beyond_16_bits_survive_and_never_pass_through_a_half(values: Any) -> None:
    # None but the first fits 15 bits, the last two not 16; in fp16 every one would be rounded or infinite.
    far = [20_481, 40_961, 65_537, 69_999]
    gradient = torch.zeros(70_000)
    gradient[far] = torch.tensor([1.0, -2.0, 3.0, -4.0])
    for make in (
        lambda: GTopK(density=4 / 70_000, values=values),
        lambda: Threshold(threshold=0.5, values=values),
    ):
        for (step,) in play(make, [[gradient.tolist()]] * 2):
            assert step.mean_N.nonzero().view(-1).tolist() == far
            assert step.mean_N[far].tolist() == [1.0, -2.0, 3.0, -4.0]
            assert step.payload["indices"] == 16


def test_more_elements_than_int32_can_index_are_an_error_and_not_an_overflow() -> None:
    assert Layout.of([("w", (2**31 - 1,))]).numel == 2**31 - 1
    with pytest.raises(ValueError, match=r"2,147,483,648 elements in one vector; at most 2,147,483,647"):
        Layout.of([("w", (2**30, 2))])


# Residuals.


def test_the_residual_is_what_was_not_sent_and_not_the_sum() -> None:
    ((first, second, third),) = play(
        lambda: GTopK(density=0.3), [[[4.0, 3.0, 1.0], [0.0, 0.0, 1.0], [0.0] * 3]]
    )
    assert (first.mean_N.tolist(), left(first)) == ([4.0, 0.0, 0.0], [0.0, 3.0, 1.0])
    assert (second.mean_N.tolist(), left(second)) == ([0.0, 3.0, 0.0], [0.0, 0.0, 2.0])
    assert (third.mean_N.tolist(), left(third)) == ([0.0, 0.0, 2.0], [0.0, 0.0, 0.0])


@pytest.mark.parametrize("name", NAMES)
def test_no_sentinel_leaks_from_one_step_into_the_next(name: str) -> None:
    gradients = [[[100.0, -3.0, 2.0, 0.0]] + [[0.0] * 4] * 12 for _ in range(2)]
    for seen in play(registry.load("reducers", name), gradients):
        sent_N = torch.stack([step.mean_N for step in seen]).sum(0) + torch.tensor(left(seen[-1]))
        assert sent_N.tolist() == pytest.approx([100.0, -3.0, 2.0, 0.0], abs=1e-6 * 100)  # of the largest


def test_a_reducer_does_not_keep_the_given_gradient() -> None:
    """The engine reuses its buffer: what a reducer keeps of a gradient must be a copy."""

    def means(name: str, *, reuse: bool) -> list[Tensor]:
        def work(wire: Wire) -> list[Tensor]:
            feedback = ErrorFeedback(registry.load("reducers", name)(), Layout.of([("w", (50,))]))
            feedback.reducer.begin_epoch(0, 0.1, wire)
            buffer_N, seen = torch.empty(50), []
            for step in range(4):
                grad_N = torch.randn(50, generator=torch.Generator().manual_seed(step))
                seen.append(feedback(buffer_N.copy_(grad_N) if reuse else grad_N, wire).mean_N.clone())
                buffer_N.fill_(1e9)
            return seen

        return simulate(1, work)[0]

    for name in NAMES:
        assert torch.equal(torch.stack(means(name, reuse=True)), torch.stack(means(name, reuse=False)))


# Selection.


@pytest.mark.parametrize("name", NAMES)
def test_layers_that_are_negative_everywhere_are_sent(name: str) -> None:
    negative_values_are_sent(Case(registry.load("reducers", name), {}, 2))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("constant", [0.0, 1.0, -1.0, 1e-41, 1e30])
def test_constant_input_terminates(name: str, constant: float) -> None:
    for seen in play(registry.load("reducers", name), [[[constant] * 200] * 5] * 2):
        assert len(seen) == 5


# The controller's divisions.


@pytest.mark.parametrize(
    "options",
    [{"controller": "sage", "threshold": 2.3}, {"controller": "feedback"}, {"controller": "quantile"}],
)
def test_sage_recovers_from_steps_of_zeros(options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    signals = [torch.randn(5000, generator=generator).tolist() for _ in range(80)]
    around_silence = [signals[:3] + [[0.0] * 5000] * 5 + signals[3:]]
    (seen,) = play(lambda: Sage(density=0.02, **options), around_silence, "none")
    densities = [step.reduced.density for step in seen]
    assert densities[3:8] == [0.0] * 5
    assert all(0.002 < had < 0.2 for had in densities[8:])


@pytest.mark.parametrize("controller", ["sage", "feedback", "quantile"])
def test_sages_threshold_does_not_stay_at_zero_after_initial_zero_gradients(controller: Any) -> None:
    reducer = Sage(density=0.1, controller=controller)
    play(lambda: reducer, [[[0.0] * 100] * 3])
    silent = reducer.report()["threshold"]
    play(lambda: reducer, [[[1.0] * 100] * 40])
    assert 0 < silent < reducer.report()["threshold"]


# Agreement of the ranks.


@pytest.mark.parametrize("name", NAMES)
def test_the_ranks_make_the_same_calls_whatever_their_data(name: str) -> None:
    data = [[0.0] * 60, [1.0] * 60, [math.nan] * 60, [10.0**i for i in range(-30, 30)]]

    def work(wire: Wire) -> list[dict[str, int]]:
        feedback = ErrorFeedback(registry.load("reducers", name)(), Layout.of([("w", (60,))]))
        calls = []
        for step in range(6):
            if step % 2 == 0:
                feedback.reducer.begin_epoch(10 * step, 0.1, wire)
            before = wire.ledger.copy()
            feedback(torch.tensor(data[(wire.rank + step) % 4]), wire)
            calls.append(dict(wire.ledger.since(before).calls))
        return calls

    first, *others = simulate(4, work, guard=True)
    assert all(calls == first for calls in others)


def test_a_rank_whose_small_tensors_have_no_gradient_joins_their_reduction() -> None:
    def work(wire: Wire) -> list[float]:
        model = nn.Linear(4, 2)
        whole = WholeModel(model, TopK(), min_compress=5)
        if wire.rank == 1:
            model(torch.ones(1, 4)).sum().backward()
        whole(wire)
        found: list[float] = whole.dense.tolist()
        return found

    assert simulate(2, work) == [[0.5, 0.5]] * 2


def test_the_order_of_parameters_is_the_models_own_on_every_rank() -> None:
    def names(wire: Wire) -> list[str]:
        torch.manual_seed(wire.rank)
        model = nn.ModuleDict({name: nn.Linear(3, 4) for name in ("z", "a", "m")})
        whole = WholeModel(model, TopK(), min_compress=5)
        return [span.name for span in whole.layout.spans]

    expected = ["z.weight", "a.weight", "m.weight", "z.bias", "a.bias", "m.bias"]
    assert simulate(3, names) == [expected] * 3


@pytest.mark.parametrize("name", NAMES)
def test_reducing_does_not_change_the_global_random_state(name: str) -> None:
    def drawn(wire: Wire, *, reduces: bool) -> list[float]:
        feedback = ErrorFeedback(registry.load("reducers", name)(), Layout.of([("w", (3,))]))
        torch.manual_seed(5)  # the rank's own generators, which only this rank can observe
        numbers = []
        for _ in range(6):
            numbers.append(float(torch.rand(())))
            if reduces:
                feedback.reducer.begin_epoch(0, 0.1, wire)
                feedback(torch.tensor([1.0, -2.0, 3.0]), wire)
        return numbers

    assert simulate(2, partial(drawn, reduces=True)) == simulate(2, partial(drawn, reduces=False))


@pytest.mark.parametrize("name", NAMES)
def test_everything_that_a_later_step_depends_on_is_in_the_state(name: str) -> None:
    resumed_equals_uninterrupted(Case(registry.load("reducers", name), {}, 2, memory="residual"))


# The ledger.


def test_bytes_include_indices_sizes_and_padding() -> None:
    gradients = [[[2.0, 2.0, 2.0, 0.0]], [[2.0, 0.0, 0.0, 0.0]]]
    (most,), (least,) = play(lambda: Threshold(threshold=1.0), gradients)
    assert most.payload == {"values": 12, "indices": 12, "sizes": 8}
    assert least.payload == {"values": 4, "indices": 4, "sizes": 8, "padding": 16}


def test_the_mean_is_divided_by_the_number_of_ranks() -> None:
    for name in NAMES:
        make = registry.load("reducers", name)
        if make().rounds:  # tests/reducers/test_quantisers.py covers the means of these
            continue
        options = {"density": 1.0} if name in SPARSE else {}
        for (step,) in play(lambda m=make, o=options: m(**o), [[[3.0, -6.0]]] * 3):
            assert step.mean_N.tolist() == [3.0, -6.0]


# Timing.


def test_timing_synchronises_the_device_only_in_a_profiling_run(monkeypatch: pytest.MonkeyPatch) -> None:
    synchronised: list[object] = []
    monkeypatch.setattr("torch.cuda.synchronize", synchronised.append)

    def work(wire: Wire) -> None:
        for make in (Exact, TopK, Sage):
            ErrorFeedback(make(), Layout.of([("w", (9,))]))(torch.ones(9), wire)

    def profiled(wire: Wire) -> None:
        with Phases(torch.device("cuda")).running():
            work(wire)

    simulate(1, work)
    assert synchronised == []
    simulate(1, profiled)
    assert synchronised != []
