"""Tests that the training loop gives the same as plain code for its configuration."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from small import Points, small_network
from torch import Tensor, nn
from torch.nn import functional

from sage import registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.config import Config
from sage.records.progress import Display
from sage.records.record import Record, read_metrics, recorder
from sage.tasks.classify import Classify
from sage.train.learning_rate import schedule
from sage.train.loop import Training
from sage.train.result import result
from sage.train.signum import Signum
from sage.train.stop import Stop

# N = samples, B = samples in a batch, F = features

STEPS_PER_EPOCH = 4
"""Of 32 samples in batches of 8, on one rank."""


class ByLoss(Classify):
    """The same task with the loss as its metric."""

    metric = "loss"


@dataclass
class Trained:
    """The outcome of a training: the weights of each rank, and the records and the result of rank 0."""

    ranks: list[Training]
    records: list[Record]
    result: dict[str, Any]

    @property
    def weights(self) -> list[Tensor]:
        return [p.detach() for p in self.ranks[0].model.parameters()]

    def each(self, field: str, kind: str = "step") -> list[Any]:
        return [record[field] for record in self.records if record["kind"] == kind]


Train = Callable[..., Trained]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    folders = (tmp_path / str(number) for number in itertools.count())

    def train(
        *, model: Callable[[], nn.Module] = small_network, task: type[Classify] = Classify, **options: Any
    ) -> Trained:
        folder = next(folders)
        common = {"reducer": "exact", "world_size": 1, "batch_size": 8, "decay_norms": True}
        given = {"workload": "points", "task": "classify", "model": "feedforward", "data": "digits"}
        config = Config(**{**given, **common, **options})
        results: list[dict[str, Any]] = []

        def work(wire: Wire) -> Training:
            record = stack.enter_context(closing(recorder(folder, wire.rank)))
            training = Training(
                config,
                wire,
                model=model(),
                data=Points(),
                task=task(Points.facts),
                reducer=registry.load("reducers", config.reducer)(**config.reducer_options),
                folder=folder,
                record=record,
                display=Display("", enabled=False),
                stop=Stop(),
            )
            assert training.run()
            results.append(result(training))
            return training

        with ExitStack() as stack:
            ranks = simulate(config.world_size, work)
        return Trained(ranks, read_metrics(folder), results[0])

    return train


def by_hand(
    optimizer: Callable[[Iterator[nn.Parameter]], Any], rates: list[float] | None = None
) -> list[Tensor]:
    """The weights after two epochs of a plain PyTorch loop."""
    model = small_network()
    stepper = optimizer(model.parameters())
    batches = itertools.chain.from_iterable(
        Points().train_batches(epoch=epoch, rank=0, world_size=1, batch_size=8, seed=0) for epoch in range(2)
    )
    for step, (x_BF, y_B) in enumerate(batches):
        stepper.zero_grad()
        functional.cross_entropy(model(x_BF), y_B).backward()
        if rates is not None:
            stepper.param_groups[0]["lr"] = rates[step]
        stepper.step()
    return [p.detach() for p in model.parameters()]


def evaluate(weights: list[Tensor]) -> dict[str, float]:
    """The metrics over the whole test set at once."""
    model, points = small_network(), Points()
    for parameter, value in zip(model.parameters(), weights, strict=True):
        parameter.data.copy_(value)
    logits_NK = model(points.x_NF[32:]).detach()
    return {
        "accuracy": float((logits_NK.argmax(1) == points.y_N[32:]).double().mean()),
        "loss": float(functional.cross_entropy(logits_NK, points.y_N[32:])),
    }


def assert_close(weights: list[Tensor], others: list[Tensor]) -> None:
    torch.testing.assert_close(weights, others, rtol=1e-4, atol=1e-6)


class MuonThenAdamW:
    """Two optimisers of torch: the first for the hidden matrix, the second for all else."""

    def __init__(self, hidden: Tensor, *others: Tensor) -> None:
        self.muon = torch.optim.Muon([hidden], lr=0.1, momentum=0.95, nesterov=True, weight_decay=0.1)
        self.adamw = torch.optim.AdamW(others, lr=0.1, weight_decay=0.1)

    def zero_grad(self) -> None:
        self.muon.zero_grad()
        self.adamw.zero_grad()

    def step(self) -> None:
        self.muon.step()
        self.adamw.step()


# The update.


@pytest.mark.parametrize(
    ("options", "optimizer"),
    [
        ({"momentum_kind": "none"}, lambda p: torch.optim.SGD(p, lr=0.1)),
        ({"momentum": 0.8}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8)),
        (
            {"momentum_kind": "nesterov", "weight_decay": 0.01},
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        ),
        (
            {"optimizer": "adam", "beta1": 0.8, "weight_decay": 0.01},
            lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.999), weight_decay=0.01),
        ),
    ],
    ids=["plain", "heavy-ball", "nesterov", "adam"],
)
def test_one_rank_trains_like_a_plain_pytorch_loop(
    train: Train,
    options: dict[str, Any],
    optimizer: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
) -> None:
    assert_close(train(epochs=2, **options).weights, by_hand(optimizer))


@pytest.mark.parametrize(
    ("options", "optimizer"),
    [
        (
            {"optimizer": "adamw", "beta2": 0.95, "adam_eps": 1e-6, "weight_decay": 0.1},
            lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.1),
        ),
        pytest.param(
            {"optimizer": "muon", "momentum": 0.95, "momentum_kind": "nesterov", "weight_decay": 0.1},
            lambda p: MuonThenAdamW(*p),
            marks=pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon"),
        ),
        (
            {"optimizer": "signum", "momentum": 0.8, "weight_decay": 0.1},
            lambda p: Signum(p, lr=0.1, momentum=0.8, weight_decay=0.1),
        ),
    ],
    ids=["adamw", "muon", "signum"],
)
def test_one_rank_trains_bitwise_like_a_plain_pytorch_loop(
    train: Train,
    options: dict[str, Any],
    optimizer: Callable[[Iterator[nn.Parameter]], Any],
) -> None:
    for mine, other in zip(train(epochs=2, **options).weights, by_hand(optimizer), strict=True):
        assert torch.equal(mine, other)


def test_accumulating_two_batches_equals_one_batch_of_twice_the_size(train: Train) -> None:
    assert_close(train(batch_size=4, accumulate=2).weights, train().weights)


def test_two_ranks_equal_one_rank_with_twice_the_batch(train: Train) -> None:
    one, two = train(epochs=2), train(epochs=2, world_size=2, batch_size=4)
    assert_close(one.weights, two.weights)
    assert one.each("loss") == pytest.approx(two.each("loss"), rel=1e-5)
    for mine, other in zip(two.ranks[0].model.parameters(), two.ranks[1].model.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("kind", ["heavy-ball", "nesterov", "none"])
def test_momentum_and_decay_give_the_same_before_and_after_an_exact_reduction(
    train: Train, kind: str
) -> None:
    common = {"epochs": 2, "world_size": 2, "batch_size": 4, "momentum_kind": kind, "weight_decay": 0.05}
    after = train(**common)
    before = train(**common, momentum_at="before", weight_decay_at="before")
    assert_close(before.weights, after.weights)


def test_for_one_rank_clipping_before_and_after_the_reduction_is_equal(train: Train) -> None:
    free, local, whole = train(), train(clip_local=0.3), train(clip_global=0.3)
    for mine, other in zip(local.weights, whole.weights, strict=True):
        assert torch.equal(mine, other)
    assert max(free.each("gradient_norm")) > 0.3
    assert local.each("gradient_norm") == pytest.approx([0.3] * STEPS_PER_EPOCH, rel=1e-4)
    # The norm before clipping.
    assert min(whole.each("gradient_norm")) > 0.3


def test_the_learning_rate_follows_its_schedule_in_the_record_and_in_the_weights(train: Train) -> None:
    course = {"epochs": 2, "lr": 0.05, "lr_scale": 3.0, "warmup_epochs": 0.5, "schedule": "cosine"}
    trained = train(**course, momentum_kind="none")
    wanted = [
        schedule(
            step,
            lr=0.05,
            peak_scale=3.0,
            warmup_steps=2,
            kind="cosine",
            steps_per_epoch=STEPS_PER_EPOCH,
            total_steps=8,
        )
        for step in range(8)
    ]
    assert trained.each("lr") == wanted
    assert len(set(wanted)) == 8
    assert_close(trained.weights, by_hand(lambda p: torch.optim.SGD(p, lr=1.0), wanted))


# The evaluation.


def test_the_sums_of_uneven_shares_give_the_metrics_of_the_whole_test_set(train: Train) -> None:
    for world_size, batch_size in ((1, 8), (3, 2)):
        trained = train(world_size=world_size, batch_size=batch_size)
        (metrics,) = trained.each("metrics", "epoch")
        assert metrics == pytest.approx(evaluate(trained.weights))
        assert trained.result["final"] == metrics


def test_the_average_of_the_epochs_from_the_second_on_is_also_evaluated(train: Train) -> None:
    second, third = train(epochs=2), train(epochs=3, average_from=2)
    mean = [(a + b) / 2 for a, b in zip(second.weights, third.weights, strict=True)]
    evaluations = [record for record in third.records if record["kind"] == "epoch"]
    assert ["average_metrics" in record for record in evaluations] == [False, True, True]
    assert evaluations[-1]["average_metrics"] == pytest.approx(evaluate(mean))


def test_all_ranks_evaluate_the_same_model_and_average_whatever_their_running_statistics(
    train: Train,
) -> None:
    trained = train(
        model=lambda: small_network(norm=True), world_size=2, batch_size=4, epochs=2, average_from=1
    )
    one, other = trained.ranks
    for mine, others in (
        (one.average.means, other.average.means),
        (one.model.state_dict(), other.model.state_dict()),
    ):
        assert all(torch.equal(mine[name], others[name]) for name in mine)


def test_the_training_loss_is_the_mean_since_the_last_evaluation(train: Train) -> None:
    trained = train(epochs=2)
    losses = trained.each("loss")
    assert trained.each("train_loss", "epoch") == pytest.approx([sum(losses[:4]) / 4, sum(losses[4:]) / 4])


# The end.


@pytest.mark.parametrize(("task", "target"), [(Classify, 0.6), (ByLoss, 0.8)])
def test_a_run_ends_when_it_reaches_its_target(train: Train, task: type[Classify], target: float) -> None:
    trained = train(task=task, epochs=50, target=target)
    values = [metrics[task.metric] for metrics in trained.each("metrics", "epoch")]
    better = [value >= target if task is Classify else value <= target for value in values]
    assert better == [False] * (len(values) - 1) + [True]
    assert trained.result["steps"] == trained.result["epochs"] * STEPS_PER_EPOCH < 50 * STEPS_PER_EPOCH
    assert trained.result["best"] == values[-1]


def test_epochs_and_their_evaluations_may_be_fractions(train: Train) -> None:
    trained = train(epochs=1.5, eval_every=0.5)
    assert trained.each("step", "epoch") == [2, 4, 6]
    assert trained.each("epoch", "epoch") == [0.5, 1.0, 1.5]
    assert trained.each("epoch") == [0, 0, 0, 0, 1, 1]


def test_a_limit_of_steps_ends_the_run_with_an_evaluation(train: Train) -> None:
    trained = train(epochs=9, steps=6)
    assert trained.each("step") == list(range(6))
    assert trained.each("step", "epoch") == [4, 6]
    assert trained.result["epochs"] == 1.5


def test_an_epoch_too_short_for_one_step_is_refused(train: Train) -> None:
    with pytest.raises(ValueError, match="an epoch has 4 batches .* lower --accumulate or --batch-size"):
        train(accumulate=5)


# The record.


def test_the_record_does_not_depend_on_when_checkpoints_are_written(train: Train) -> None:
    common = {
        "reducer": "topk",
        "reducer_options": {"density": 0.2},
        "min_compress": 0,
        "world_size": 2,
        "batch_size": 4,
    }
    rare, often = train(**common), train(**common, checkpoint_every=1)
    for name in ("loss", "residual_norm", "gradient_norm", "density_had", "bytes", "wire_sent"):
        assert rare.each(name) == often.each(name)
    residual_N = often.ranks[0].mount.flats[0].feedback.residual_N
    assert residual_N is not None
    assert often.each("residual_norm")[-1] == float(torch.linalg.vector_norm(residual_N))
    assert len(set(rare.each("residual_norm"))) == STEPS_PER_EPOCH


def test_only_every_nth_step_is_recorded(train: Train) -> None:
    trained = train(epochs=2, log_every=3)
    assert trained.each("step") == [0, 3, 6]
    assert trained.result["steps"] == 8


@pytest.mark.parametrize(("reducer", "asked"), [("exact", None), ("adacomp", None), ("topk", 0.01)])
def test_a_target_density_is_recorded_only_if_the_reducer_has_one(
    train: Train, reducer: str, asked: float | None
) -> None:
    trained = train(reducer=reducer, steps=3)
    assert trained.each("density_asked") == [asked] * 3
    result = trained.result["density_asked"]
    assert result is None if asked is None else result == pytest.approx(asked)
