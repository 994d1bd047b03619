"""Tests of two-way compression: servers encode the mean of their share again, with their own residual."""
# N = elements of the flat vector, S = of a share, W = ranks

from typing import Any

import pytest
import torch
from torch import Tensor

from sage import registry
from sage.comm.packing import divide
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.mount.other_ranks import added
from sage.reduction.error_feedback import ErrorFeedback
from sage.reduction.layout import Layout
from sage.reduction.served import Served
from sage.registry.outline import composed_with_server, outline
from sage.testing import conformance
from sage.testing.harness import SHAPES, Case, same_bits

SERVED: list[tuple[str, dict[str, Any]]] = [
    ("topk+server", {"density": 0.1}),
    ("gtopk+server", {"density": 0.1, "indices": "coded"}),
    ("sage+server", {"density": 0.1, "values": "fp16"}),
    ("dgc+server", {"density": 0.1}),
    ("cltk+server", {"density": 0.1}),
    ("micro+server", {"density": 0.1}),
    ("randomk+server", {"density": 0.1}),
    ("onebit+server", {}),
    ("dithering+server", {"norm": "max"}),
    ("terngrad+server", {}),
    ("topk+terngrad+server", {"density": 0.1}),
]
SMALL = {"onebit+server", "topk+server", "topk+terngrad+server"}


def case(name: str, options: dict[str, Any], world_size: int, memory: Any = "residual") -> Case:
    return Case(registry.load("reducers", name), options, world_size, memory=memory)


@pytest.mark.parametrize(("name", "options"), SERVED[1:])  # the first is in test_conformance.py
def test_what_goes_through_servers_keeps_the_invariants(name: str, options: dict[str, Any]) -> None:
    checks = [conformance.ranks_agree, conformance.resumed_equals_uninterrupted]
    checks += [conformance.density_is_the_share_sent]
    if not name.startswith("randomk"):  # its server, too, draws regardless of magnitude
        checks += [conformance.nan_reaches_every_mean]
    if name in SMALL:
        checks += [conformance.edge_cases_are_handled, conformance.every_grouping_keeps_the_invariants]
        checks += [conformance.far_elements_keep_their_indices, conformance.global_random_state_is_unchanged]
    for check in checks:
        check(case(name, options, 3))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["topk", "gtopk", "sage"])
def test_if_everything_is_sent_the_mean_is_that_of_exact_to_the_bit(name: str, world_size: int) -> None:
    through = case(f"{name}+server", {"density": 1.0}, world_size)
    dense = case("exact", {}, world_size)
    for ours, theirs in zip(through.usual_steps, dense.usual_steps, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert same_bits(a.mean_N, b.mean_N)
            assert a.left_N is not None
            assert not a.left_N.any()


def play(name: str, options: dict[str, Any], world_size: int, memory: Any, count: int = 4) -> list[list[Any]]:
    """For each rank and step: gradient, mean, residual, the server's residual, and the payload."""

    def work(wire: Wire) -> list[Any]:
        feedback = case(name, options, world_size, memory).fresh()
        served, seen = feedback.reducer, []
        assert isinstance(served, Served)
        for step in range(count):
            grad_N = case(name, options, world_size).gradient(wire.rank, step)
            before = wire.ledger.copy()
            mean_N = feedback(grad_N.clone(), wire).mean_N.clone()
            left_N = None if feedback.residual_N is None else feedback.residual_N.clone()
            payload = dict(wire.ledger.since(before).payload)
            seen.append((grad_N, mean_N, left_N, served.served_N.clone(), payload))
        return seen

    return simulate(world_size, work)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize(("name", "options"), SERVED)
def test_what_was_sent_and_the_residuals_are_the_sum_of_the_means(
    name: str, options: dict[str, Any], world_size: int
) -> None:
    if world_size != 3 and name not in SMALL:
        return
    total_N = served_N = torch.zeros(Layout.of(SHAPES).numel)
    for step in zip(*play(name, options, world_size, "residual"), strict=True):
        total_N = total_N + torch.stack([grad_N for grad_N, *_ in step]).mean(0) - step[0][1]
        left_N = torch.stack([left_N for _, _, left_N, _, _ in step]).mean(0)
        served_N = torch.stack([served_N for *_, served_N, _ in step]).sum(0)  # each has its own share
        assert torch.allclose(total_N, left_N + served_N, atol=1e-5)
    assert bool(served_N.any()) == (world_size > 1)  # one rank's server codes what is coded already


def test_without_error_feedback_the_servers_keep_nothing() -> None:
    for rank in play("topk+server", {"density": 0.1}, 3, "none"):
        assert all(left_N is None and not served_N.any() for _, _, left_N, served_N, _ in rank)


def test_the_servers_code_the_mean_by_hand() -> None:
    # Two ranks, shares of two; the larger mean of each share is sent back: 1.5 and 4.
    gradients = [[3.0, 1.0, 0.0, 6.0], [-1.0, 2.0, 5.0, 2.0]]

    def work(wire: Wire) -> tuple[list[float], list[float]]:
        reducer: Any = registry.load("reducers", "topk+server")(density=1.0)
        reducer.server.density = 0.5  # only the way back is compressed
        feedback = ErrorFeedback(reducer, Layout.of([("w", (4,))]), memory="residual")
        mean_N = feedback(torch.tensor(gradients[wire.rank]), wire).mean_N
        return mean_N.tolist(), reducer.served_N.tolist()

    (first, left_of_0), (second, left_of_1) = simulate(2, work)
    assert first == second
    assert first == [0.0, 1.5, 0.0, 4.0]
    assert left_of_0 == [1.0, 0.0, 0.0, 0.0]
    assert left_of_1 == [0.0, 0.0, 2.5, 0.0]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_the_bytes_are_the_codes_both_ways_and_their_lengths(world_size: int) -> None:
    n = Layout.of(SHAPES).numel
    for rank, seen in enumerate(play("gtopk+server", {"density": 0.1}, world_size, "residual")):
        share = divide(n, world_size)[rank]
        there, back = n // 10, share // 10
        for *_, payload in seen:
            assert payload == {
                "values": 4 * (there + back),
                "indices": 4 * (there + back),
                # The lengths for each share, of values and indices back, and the number selected.
                "sizes": 8 * world_size + 16 + 8,
            }


def test_the_bytes_of_a_quantiser_are_those_of_its_code_of_each_share() -> None:
    seen = play("onebit+server", {}, 2, "residual")[0]
    quantiser = registry.load("reducers", "onebit")()
    # Layers of 216, 800 and 7, in shares of 512 and 511: groups of 216 + 296, and 504 + 7.
    there = [quantiser.bytes_of(sizes) for sizes in ([216, 296], [504, 7])]
    expected = {kind: there[0][kind] * 2 + there[1][kind] for kind in ("values", "scales")}
    assert seen[0][-1] == {**expected, "sizes": 2 * (8 * 2) + 2 * 8}


def test_a_server_has_random_numbers_of_its_own() -> None:
    def work(wire: Wire) -> tuple[int, int]:
        feedback = case("qsgd+server", {}, 2).fresh()
        feedback(torch.ones(Layout.of(SHAPES).numel), wire)
        assert isinstance(feedback.reducer, Served)
        return wire.stream, feedback.reducer._alone.stream

    assert len({stream for streams in simulate(2, work) for stream in streams}) == 4


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("exact+server", "Exact \\+ server: a server encodes the mean by the same rule"),
        ("exdyna+server", "ExDyna \\+ server"),
        ("adacomp+efsign+server", "AdaComp \\+ server"),
        ("server", "no reducer is called 'server'"),
        ("topk+server+server", "no reducer is called 'server'"),
        ("server+topk", "no reducer is called 'server'"),
        ("topk+efsign+efsign+server", "expected two parts, as in topk"),
    ],
)
def test_what_no_server_can_encode_is_an_error_with_the_reason(name: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        registry.load("reducers", name)


def test_a_state_as_long_as_the_vector_is_an_error_when_it_is_bound() -> None:
    made = registry.load("reducers", "sage+server")(density_schedule="accordion")
    with pytest.raises(ValueError, match="is as long as the vector"):
        made.bind(Layout.of(SHAPES))


@pytest.mark.parametrize("memory", ["ef21", "diana"])
def test_estimates_do_not_go_with_servers(memory: Any) -> None:
    with pytest.raises(ValueError, match="is not the mean of what the ranks sent"):
        case("topk+server", {}, 2, memory).fresh()


@pytest.mark.parametrize("name", ["topk", "gtopk", "sage", "onebit", "deft"])
def test_the_options_are_those_of_the_reducer_without_its_exchange(name: str) -> None:
    own = registry.load("reducers", name)
    part = registry.load("reducers", f"{name}+server")
    without = {"exchange", "merge", "mask", "mask_beta", *registry.ALLOCATION_OPTIONS}
    expected = [each for each in registry.options(own) if each not in without]
    assert list(registry.options(part)) == expected
    read = composed_with_server(outline(f"sage.reducers.{name}", "REDUCER"))
    assert dict(registry.options(read)) == dict(registry.options(part))
    assert read.__dict__["later"] == part.later  # type: ignore[attr-defined]
    assert registry.summary("reducers", f"{name}+server").endswith("; the mean encoded again by servers")


def test_with_another_number_of_ranks_the_servers_residuals_move_to_the_new_shares() -> None:
    n = Layout.of(SHAPES).numel

    def first(wire: Wire) -> dict[str, Tensor]:
        feedback = case("topk+server", {}, 3).fresh()
        feedback(case("topk+server", {}, 3).gradient(wire.rank, 0), wire)
        return feedback.state_dict()

    states = simulate(3, first)
    total_N = torch.stack([state["reducer.served_N"] for state in states]).sum(0)

    def second(wire: Wire) -> Tensor:
        feedback = case("topk+server", {}, 2).fresh()
        feedback.load_state_dict(added(states[wire.rank], states[wire.rank :: 2]))
        assert isinstance(feedback.reducer, Served)
        feedback.reducer._fit(wire, n, torch.device("cpu"))
        return feedback.reducer.served_N

    assert bool(total_N.any())
    new = simulate(2, second)
    own = [new_N.split(divide(n, 2))[rank] for rank, new_N in enumerate(new)]
    assert torch.equal(torch.cat(own), total_N)


def test_a_part_of_a_layout_has_the_same_tensors_and_groups() -> None:
    layout = Layout.of(SHAPES, "layer")
    parts = [layout.within(0, 300), layout.within(300, 1020), layout.within(1020, 1023)]
    assert [part.numel for part in parts] == [300, 720, 3]
    for part in parts:
        assert [span.name for span in part.spans] == [span.name for span in layout.spans]
        assert len(part.groups) == len(layout.groups)
        assert part.groups[-1][1] == part.numel
    lengths = [[b - a for a, b in part.groups] for part in parts]
    assert [sum(each) for each in zip(*lengths, strict=True)] == [b - a for a, b in layout.groups]
