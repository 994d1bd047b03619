"""Tests of `--local-steps`: the statements of docs/explanation/local-updates.md about a round."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from mounted_runs import Spiked, processes, step, training
from small import Points, small_network
from torch import Tensor, nn

from sage import registry
from sage.comm.ledger import KINDS
from sage.comm.replicas import ReplicasDiffer
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.data.dataset import Batch
from sage.records.record import read_metrics, recorder
from sage.tasks.classify import Classify
from sage.train.divergence import Diverged
from sage.train.evaluate import evaluate
from sage.train.learning_rate import schedule
from sage.train.loop import Training
from sage.train.mounted_local import MountedLocal
from sage.train.outer import Outer

PLAIN: dict[str, Any] = {"reducer": "exact", "momentum_kind": "none", "lr": 0.25}
"""Data-parallel SGD without momentum, and without compression."""

CONSERVING = [
    name
    for name in registry.names("reducers")
    if (made := registry.load("reducers", name)()).conserves and not made.needs_squares
]


class Quadratic(Classify):
    """Half the squared distance of the weight from the points, which are rounded to multiples of 1/8."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        rounded_BF = (8 * batch[0]).round() / 8
        return (model.get_parameter("weight") - rounded_BF).square().sum(1).mean() / 2


class Point(nn.Module):
    """A single point as the weight of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 0.0, 0.25, -0.75]))


def weights(run: Training) -> list[Tensor]:
    return [p.detach().clone() for p in run.model.parameters()]


def local(run: Training) -> MountedLocal:
    assert isinstance(run.mount, MountedLocal)
    return run.mount


def trained(wire: Wire, folder: Path, steps: int, **options: Any) -> list[Tensor]:
    return weights(step(training(wire, folder, **{**PLAIN, **options}), steps))


# A round of one step is a step of data-parallel SGD.


@pytest.mark.parametrize("world_size", [2, 4])
def test_rounds_of_one_step_are_data_parallel_sgd_to_the_bit_on_a_dyadic_grid(
    tmp_path: Path, world_size: int
) -> None:
    """Each step adds 2 bits for the learning rate, 1 for the batch, 1 or 2 for the ranks, so that 4 fit."""
    given: dict[str, Any] = {"task": Quadratic, "model": Point}

    def work(wire: Wire) -> list[list[Tensor]]:
        options: list[dict[str, Any]] = [{}, {"local_steps": 1}, {"local_steps": 1, "outer_optimizer": "sgd"}]
        return [trained(wire, tmp_path, 4, **given, **each) for each in options]

    for plain, *others in simulate(world_size, work):
        assert not torch.equal(plain[0], Point().weight)
        assert all(torch.equal(one[0], plain[0]) for one in others)


@pytest.mark.parametrize("world_size", [2, 3])
def test_rounds_of_one_step_are_data_parallel_sgd_within_4_ulp_of_the_largest_parameter(
    tmp_path: Path, world_size: int
) -> None:
    def work(wire: Wire) -> tuple[list[Tensor], list[Tensor]]:
        return trained(wire, tmp_path, 5), trained(wire, tmp_path, 5, local_steps=1)

    for plain, rounds in processes(world_size, work):
        largest = max(float(p.abs().max()) for p in plain)
        ulp = 2.0 ** (torch.tensor(largest).log2().floor().item() - 23)
        assert max(float((a - b).abs().max()) for a, b in zip(plain, rounds, strict=True)) <= 4 * ulp


@pytest.mark.parametrize(
    "options", [{}, {"outer_optimizer": "nesterov", "outer_momentum": 0.9, "outer_lr": 0.5}]
)
def test_all_ranks_have_the_same_weights_after_a_round_and_their_own_within_it(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    def work(wire: Wire) -> list[list[Tensor]]:
        run = training(wire, tmp_path, local_steps=3, momentum=0.9, **options)
        return [weights(step(run, 1)) for _ in range(6)]

    one, other = simulate(2, work)
    same = [all(map(torch.equal, a, b)) for a, b in zip(one, other, strict=True)]
    assert same == [False, False, True, False, False, True]


def test_a_rank_keeps_the_state_of_its_optimiser_over_rounds(tmp_path: Path) -> None:
    def work(wire: Wire) -> tuple[Tensor, list[int]]:
        run = step(training(wire, tmp_path, optimizer="adamw", local_steps=2), 4)
        states = list(run.optimizer.state.values())
        return states[0]["exp_avg"].clone(), [int(state["step"]) for state in states]

    (one, steps), (other, _) = simulate(2, work)
    assert not torch.equal(one, other)
    assert steps == [4] * len(steps)


# Conservation: what is not sent of the pseudo-gradients stays in the residuals.


@pytest.mark.parametrize("reducer", CONSERVING)
def test_the_pseudo_gradients_of_all_ranks_are_what_was_sent_and_what_is_left(
    tmp_path: Path, reducer: str
) -> None:
    """Over rounds, the changes of θ and of the residuals add up to the ranks' pseudo-gradients."""

    def work(wire: Wire) -> tuple[Tensor, Tensor, Tensor, float]:
        run = training(wire, tmp_path, reducer=reducer, memory="residual", local_steps=2)
        outer, feedback = local(run).outer, local(run).whole.feedback
        deltas: list[Tensor] = []

        def note(out_N: Tensor) -> None:
            Outer.pseudo_gradient(outer, out_N)
            deltas.append(out_N.double())

        setattr(outer, "pseudo_gradient", note)  # noqa: B010
        before_N = outer.anchor_N.double()
        step(run, 6)
        assert feedback.residual_N is not None
        assert len(deltas) == 3
        largest = max(float(delta_N.abs().max()) for delta_N in deltas)
        tolerance = 16 * largest * max(feedback.reducer.precision, 2.0**-20)
        return torch.stack(deltas).sum(0), before_N - outer.anchor_N, feedback.residual_N.double(), tolerance

    ranks = simulate(2, work)
    deltas_N, residuals_N = ranks[0][0] + ranks[1][0], ranks[0][2] + ranks[1][2]
    moved_N, tolerance = ranks[0][1], max(rank[3] for rank in ranks)
    assert float(moved_N.abs().max()) > 0
    assert float((deltas_N - 2 * moved_N - residuals_N).abs().max()) <= tolerance


# The outer optimiser.


@pytest.mark.parametrize(("optimizer", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("nesterov", 0.9)])
def test_the_outer_optimiser_is_torchs_sgd_of_the_mean(optimizer: Any, momentum: float) -> None:
    torch.manual_seed(0)
    model, reference = nn.Linear(5, 3), nn.Linear(5, 3)
    reference.load_state_dict(model.state_dict())
    outer = Outer(dict(model.named_parameters()), optimizer=optimizer, lr=0.7, momentum=momentum)
    sgd = torch.optim.SGD(reference.parameters(), 0.7, momentum=momentum, nesterov=optimizer == "nesterov")
    for _ in range(3):
        mean_N = torch.randn(18)
        for p, part in zip(reference.parameters(), outer.of_each(mean_N).values(), strict=True):
            p.grad = part.clone()
        sgd.step()
        outer.step(mean_N)
        outer.reset()
        assert all(map(torch.equal, model.parameters(), reference.parameters()))


def test_one_rank_is_lookahead(tmp_path: Path) -> None:
    """Zhang et al. 2019, algorithm 1: the slow weights move by α of the way of k fast steps."""

    def work(wire: Wire) -> list[Tensor]:
        return trained(
            wire, tmp_path, 6, local_steps=3, outer_optimizer="sgd", outer_lr=0.5, momentum_kind="heavy-ball"
        )

    (found,) = simulate(1, work)
    torch.manual_seed(1)
    model = small_network()
    fast = torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.9)
    slow = [p.detach().clone() for p in model.parameters()]
    batches = Points().train_batches(epoch=0, rank=0, world_size=1, batch_size=2, seed=0)
    for number in range(6):
        x_BF, y_B = next(batches)
        fast.zero_grad()
        nn.functional.cross_entropy(model(x_BF), y_B).backward()
        fast.step()
        if number % 3 == 2:
            with torch.no_grad():
                for p, q in zip(model.parameters(), slow, strict=True):
                    q.add_(p - q, alpha=0.5)
                    p.copy_(q)
    for mine, others in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(mine, others.detach(), rtol=1e-6, atol=1e-7)


def test_slowmo_divides_by_the_learning_rate_of_the_round(tmp_path: Path) -> None:
    """Wang et al. 2019, algorithm 1: u <- β u + (x_0 − x_τ)/γ, x_0 <- x_0 − α γ u; γ is that of the round."""
    rates = [
        schedule(i, lr=0.25, peak_scale=1, warmup_steps=0, kind="cosine", steps_per_epoch=8, total_steps=32)
        for i in range(6)
    ]
    moves: list[list[Tensor]] = [[], []]

    def work(wire: Wire) -> Tensor:
        run = training(
            wire,
            tmp_path,
            **{**PLAIN, "schedule": "cosine"},
            local_steps=3,
            outer_optimizer="sgd",
            outer_momentum=0.5,
            outer_by_lr=True,
        )
        outer = local(run).outer

        def note(out_N: Tensor) -> None:
            Outer.pseudo_gradient(outer, out_N)
            moves[wire.rank].append(out_N.double())

        setattr(outer, "pseudo_gradient", note)  # noqa: B010
        start_N = outer.anchor_N.double()
        step(run, 6)
        return start_N - outer.anchor_N

    moved_N = simulate(2, work)[0]
    u_N, total_N = torch.zeros(()), torch.zeros(())
    for number, deltas in enumerate(zip(*moves, strict=True)):
        lr = rates[3 * number]
        u_N = 0.5 * u_N + torch.stack(deltas).mean(0) / lr
        total_N = total_N + lr * u_N
    torch.testing.assert_close(moved_N, total_N, rtol=1e-4, atol=1e-7)


def test_the_residual_does_not_follow_the_inner_learning_rate(tmp_path: Path) -> None:
    """The mean is multiplied by γ, which is constant: `--memory-lr-ratio` changes nothing."""

    def work(wire: Wire) -> list[list[Tensor]]:
        given: dict[str, Any] = {"reducer": "topk", "reducer_options": {"density": 0.1}, "schedule": "cosine"}
        return [
            trained(wire, tmp_path, 6, **given, local_steps=2, memory_lr_ratio=ratio)
            for ratio in (False, True)
        ]

    for plain, scaled in simulate(2, work):
        assert all(map(torch.equal, plain, scaled))


# Bytes and records.


@pytest.mark.parametrize("reducer", ["exact", "topk", "int8", "powersgd"])
def test_the_payload_of_whole_rounds_is_that_of_every_step_over_h(tmp_path: Path, reducer: str) -> None:
    def payload(wire: Wire, **options: Any) -> dict[str, int]:
        before = wire.ledger.copy()
        step(training(wire, tmp_path, reducer=reducer, **options), 8)
        sent = wire.ledger.since(before).payload
        return {kind: sent[kind] for kind in KINDS if sent[kind]}

    def work(wire: Wire) -> tuple[dict[str, int], dict[str, int]]:
        return payload(wire), payload(wire, local_steps=4)

    for dense, rounds in simulate(2, work):
        assert dense
        assert dense == {kind: 4 * size for kind, size in rounds.items()}


def recorded(folder: Path, **options: Any) -> list[dict[str, Any]]:
    """The records of a run of 6 steps, with evaluations after the third and the last."""

    def work(wire: Wire) -> None:
        with closing(recorder(folder, wire.rank)) as record:
            given = {"batch_size": 4, "epochs": 1.5, "eval_every": 0.75, "record": record}
            run = training(wire, folder, **{**given, **options})
            assert run.run()

    simulate(2, work)
    return read_metrics(folder)


def test_a_record_says_whether_the_step_communicated_and_its_bytes(tmp_path: Path) -> None:
    steps = [record for record in recorded(tmp_path, local_steps=4) if record["kind"] == "step"]
    # The last step ends its round.
    assert [record["communicated"] for record in steps] == [False, False, False, True, False, True]
    for record in steps:
        assert ("values" in record["bytes"]) == record["communicated"]
        assert record["bytes"]["control"] == 24
        assert ("encode_seconds" in record) == record["communicated"]
        assert (record["density_had"] > 0) == (record["density_asked"] > 0) == record["communicated"]


def test_until_the_first_local_step_gradients_are_averaged_densely(tmp_path: Path) -> None:
    options = {"local_steps": 2, "local_from": 3}
    steps = [record for record in recorded(tmp_path, **options) if record["kind"] == "step"]
    assert [record["communicated"] for record in steps] == [True, True, True, False, True, True]
    assert [record["density_had"] for record in steps[:3]] == [1.0] * 3
    assert {record["bytes"]["values"] for record in steps[:3]} == {
        4 * sum(p.numel() for p in small_network().parameters())
    }

    def work(wire: Wire) -> tuple[list[Tensor], list[Tensor]]:
        return trained(wire, tmp_path, 3), trained(wire, tmp_path, 3, **options, reducer="topk")

    for dense, first in simulate(2, work):
        assert all(map(torch.equal, dense, first))


# Evaluation.


def test_an_evaluation_within_a_round_is_of_the_common_weights_and_changes_no_later_step(
    tmp_path: Path,
) -> None:
    def work(wire: Wire) -> tuple[Any, Any, list[Tensor], list[Tensor]]:
        run = step(training(wire, tmp_path, local_steps=3), 3)
        at_start = evaluate(run).metrics
        step(run, 2)
        before = weights(run)
        run.mount.replicas().check("within a round")
        within = evaluate(run).metrics
        assert all(map(torch.equal, before, weights(run)))
        step(run, 4)
        undisturbed = step(training(wire, tmp_path, local_steps=3), 9)
        return at_start, within, weights(run), weights(undisturbed)

    for at_start, within, evaluated, undisturbed in simulate(2, work):
        assert within == at_start
        assert all(map(torch.equal, evaluated, undisturbed))


def test_weights_that_differ_within_a_round_are_no_fault(tmp_path: Path) -> None:
    def work(wire: Wire) -> bool:
        return training(wire, tmp_path, local_steps=3, check_replicas=1, steps=7).run()

    assert simulate(2, work) == [True, True]


def test_common_weights_that_differ_are_a_fault(tmp_path: Path) -> None:
    def work(wire: Wire) -> None:
        run = step(training(wire, tmp_path, local_steps=3), 4)
        local(run).outer.anchor_N[0] += wire.rank
        run.mount.replicas().check("step 4")

    with pytest.raises(ReplicasDiffer, match="step 4: the model of rank 1 differs from that of rank 0"):
        simulate(2, work)


def test_the_running_average_is_that_of_the_common_weights(tmp_path: Path) -> None:
    """It is taken after steps 4 and 8; with rounds of 3 steps, θ is then that of step 3 and the last one."""

    def work(wire: Wire) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
        given: dict[str, Any] = {"local_steps": 3, "batch_size": 4, "epochs": 2}
        run = training(wire, tmp_path, **given, average_from=1, check_replicas=1)
        third = weights(step(training(wire, tmp_path, **given), 3))
        assert run.run()
        return run.average.means, third, weights(run)

    for means, third, last in simulate(2, work):
        for mean, a, b in zip(means.values(), third, last, strict=True):
            torch.testing.assert_close(mean, (a + b) / 2)


def test_statistics_of_batch_norm_are_each_ranks_own_until_an_evaluation(tmp_path: Path) -> None:
    def work(wire: Wire) -> tuple[Tensor, Tensor, list[Tensor]]:
        run = training(wire, tmp_path, model=lambda: small_network(norm=True), local_steps=2)
        step(run, 4)
        mean_F: Tensor = run.model.get_buffer("1.running_mean")
        own = mean_F.clone()
        evaluate(run)
        return own, mean_F.clone(), weights(run)

    (own, mean, ours), (others_own, others_mean, theirs) = simulate(2, work)
    assert not torch.equal(own, others_own)
    assert torch.equal(mean, others_mean)
    assert all(map(torch.equal, ours, theirs))


# Other settings.


def test_a_round_ends_on_two_levels(tmp_path: Path) -> None:
    """The mean over nodes of means within nodes is the mean over ranks, up to rounding."""
    nodes: dict[str, Any] = {"hierarchy": "node", "ranks_per_node": 2}

    def work(wire: Wire) -> tuple[list[Tensor], list[Tensor]]:
        given = {"local_steps": 2, "outer_optimizer": "nesterov", "outer_momentum": 0.9}
        return trained(wire, tmp_path, 4, **given), trained(wire, tmp_path, 4, **given, **nodes)

    ranks = simulate(4, work)
    for flat, levels in ranks:
        torch.testing.assert_close(levels, flat, rtol=1e-5, atol=1e-7)
        assert all(map(torch.equal, levels, ranks[0][1]))


def test_accumulating_two_batches_is_one_batch_of_twice_the_size(tmp_path: Path) -> None:
    def work(wire: Wire) -> tuple[list[Tensor], list[Tensor]]:
        given = {"local_steps": 2, "outer_optimizer": "sgd", "outer_lr": 0.5, **PLAIN}
        both = [
            training(wire, tmp_path, **given, batch_size=4),
            training(wire, tmp_path, **given, accumulate=2),
        ]
        one, two = (weights(step(run, 4)) for run in both)
        return one, two

    ((one, two),) = simulate(1, work)  # several ranks would get other points
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["clip_local", "clip_global"])
def test_each_rank_clips_its_own_gradient(tmp_path: Path, name: str) -> None:
    def work(wire: Wire) -> float:
        options: dict[str, Any] = {**PLAIN, name: 0.01}
        run = training(wire, tmp_path, **options, local_steps=2)
        before = weights(run)
        moved = [a - b for a, b in zip(weights(step(run, 1)), before, strict=True)]
        return float(torch.cat([x.flatten() for x in moved]).norm())

    assert simulate(2, work) == pytest.approx([0.25 * 0.01] * 2, rel=1e-3)


class Huge(Classify):
    """A gradient on one rank that is finite, and makes the weights infinite."""

    here = False

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().loss(model, batch) * (1e15 if self.here else 1)


def spoilt(wire: Wire, folder: Path, task: type[Classify], **options: Any) -> Training:
    """A training whose task spoils its gradients on rank 1."""
    run = training(wire, folder, task=task, **{**PLAIN, **options})
    setattr(run.task, "here", wire.rank == 1)  # noqa: B010
    return run


def test_a_rank_whose_local_gradient_is_not_finite_is_named(tmp_path: Path) -> None:
    says = "step 2: the gradient of rank 1 is not finite, in a local step without communication"
    with pytest.raises(Diverged, match=says):
        simulate(2, lambda wire: step(spoilt(wire, tmp_path, Spiked, local_steps=8), 6))


def test_a_rank_whose_pseudo_gradient_is_not_finite_is_named(tmp_path: Path) -> None:
    says = "step 0: the mean pseudo-gradient is not finite; the pseudo-gradient of rank 1 is not finite"
    with pytest.raises(Diverged, match=says):
        simulate(2, lambda wire: step(spoilt(wire, tmp_path, Huge, local_steps=1, lr=1e30), 1))


@pytest.mark.parametrize("options", [{"non_finite": "skip"}, {"amp": "fp16"}], ids=["skip", "fp16"])
def test_a_rank_skips_its_own_steps_that_are_not_finite_and_the_record_counts_them(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    def work(wire: Wire) -> tuple[list[list[Tensor]], float]:
        with closing(recorder(tmp_path, wire.rank)) as record:
            run = spoilt(wire, tmp_path, Spiked, local_steps=4, record=record, **options)
            return [weights(step(run, 1)) for _ in range(4)], float(run.loss_scale.scale)

    (ours, our_scale), (theirs, their_scale) = simulate(2, work)
    assert not all(map(torch.equal, ours[1], ours[2]))
    assert all(map(torch.equal, theirs[1], theirs[2]))  # the third step is skipped there
    assert all(map(torch.equal, ours[3], theirs[3]))
    assert their_scale == (our_scale / 2 if "amp" in options else our_scale)
    events = [record for record in read_metrics(tmp_path) if record["kind"] == "event"]
    assert [(event["event"], event["step"], event["ranks"]) for event in events] == [("skipped", 2, 1)]


def test_a_reducer_that_needs_squared_gradients_is_refused(tmp_path: Path) -> None:
    says = "the reducer 'variance' needs the squares .* but local_steps is 2"
    with pytest.raises(ValueError, match=says.replace("'", "")):
        simulate(1, lambda wire: training(wire, tmp_path, reducer="variance", local_steps=2))
