"""Tests of runs that continue another's checkpoint, also with other numbers of ranks: no residual is lost."""

from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small import Points, small_network
from states import states
from torch import Tensor, nn

from sage import registry
from sage.comm.threads import simulate
from sage.comm.wire import Wire
from sage.config import Config
from sage.data.dataset import Batch
from sage.records.progress import Display
from sage.records.record import read_metrics, recorder
from sage.storage import write_json
from sage.tasks.classify import Classify
from sage.testing.harness import same_bits
from sage.train.loop import Training
from sage.train.stop import Stop

CONFIG = Config(
    workload="points",
    task="classify",
    model="feedforward",
    data="digits",
    reducer="topk",
    reducer_options={"density": 0.1},
    min_compress=0,
    batch_size=2,
    lr=0.05,
    momentum=0.0,
    epochs=2.0,
)
"""32 points: 16 steps per epoch on one rank, 8 on two, 5 on three, 4 on four."""


EXCHANGES: dict[str, Any] = {"reducer": "exact", "reducer_options": {}, "adam_eps": 1e-3}
"""Of optimisers that communicate themselves."""
ZERO_ONE: dict[str, Any] = {"optimizer": "zeroone-adam", "var_update_scaler": 2, "lr": 0.002, "amp": "bf16"}


class Counts(Classify):
    """Counts its batches."""

    calls = 0

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self.calls += 1
        return super().loss(model, batch)

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]


def with_ranks(config: Config, folder: Path, do: Any) -> list[Any]:
    """`do(training)` on every rank of a run in this folder."""

    def work(wire: Wire) -> Any:
        record = stack.enter_context(closing(recorder(folder, wire.rank)))
        training = Training(
            config,
            wire,
            model=small_network(norm=True),
            data=Points(),
            task=Counts(Points.facts),
            reducer=registry.load("reducers", config.reducer)(**config.reducer_options),
            folder=folder,
            record=record,
            display=Display("", enabled=False),
            stop=Stop(),
        )
        return do(training)

    with ExitStack() as stack:
        return simulate(config.world_size, work)


@pytest.mark.parametrize(
    "options",
    [
        # The loss scale has been halved by then.
        {"momentum": 0.9, "momentum_at": "before", "amp": "fp16", "average_from": 1},
        {"optimizer": "adam", "memory": "momentum"},
        # The first part ends in the warm-up, which does not depend on the number of steps.
        {"optimizer": "adamw", "schedule": "cosine", "warmup_steps": 14, "warmup_from": 0, "min_lr": 0.01},
        {"optimizer": "muon", "momentum": 0.95, "adamw_lr": 0.01, "clip_global": 0.1},
        {"optimizer": "signum", "momentum": 0.9, "lr": 0.01, "schedule": "linear", "warmup_steps": 13},
        # It is resumed after the freeze.
        {**EXCHANGES, "optimizer": "onebit-adam", "freeze_step": 10, "lr": 0.002, "amp": "fp16"},
        {**EXCHANGES, "optimizer": "onebit-lamb", "freeze_step": 10, "lr": 0.01, "non_finite": "skip"},
        # It is resumed between two synchronisations.
        {**EXCHANGES, **ZERO_ONE, "freeze_step": 4, "local_step_scaler": 2},
        {**EXCHANGES, "optimizer": "demo", "demo_k": 2, "demo_edge": 8, "lr": 0.01},
        {**EXCHANGES, "optimizer": "dion", "rank_fraction": 0.25, "momentum": 0.9, "lr": 0.01},
        # The rate falls at the step that it is resumed at.
        {"momentum": 0.9, "memory_lr_ratio": True, "schedule": "step", "milestones": (1.5,)},
        {"reducer": "sage", "reducer_options": {"density": 0.1, "controller": "feedback"}},
        {"reducer": "powersgd", "reducer_options": {}},
        {"reducer": "topk", "reducer_options": {"allocation": "lgreco", "allocation_every": 6}},
        {"reducer": "topk+terngrad+server", "reducer_options": {"density": 0.1}},
        {"memory": "ef21-sgdm", "memory_a": 0.3},
        {"memory": "econtrol", "memory_eta": 0.1},
        {"memory": "diana", "reducer": "qsgd", "reducer_options": {}},
        {"memory": "loco", "memory_reset_every": 7},
    ],
    ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()),
)
def test_everything_with_a_state_resumes_from_its_checkpoint_bitwise_identically(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    config = replace(CONFIG, world_size=2, **options)

    def train(training: Training) -> dict[str, Tensor]:
        training.resume()
        assert training.run()
        found = states(training)
        found |= {f"scale.{name}": x for name, x in training.loss_scale.state_dict().items()}
        found |= {f"task.{name}": torch.tensor(x) for name, x in training.task.state_dict().items()}
        found |= {f"average.{name}": x for name, x in training.average.means.items()}
        return {name: x for name, x in found.items() if "running" not in name}  # which evaluating changes

    whole = with_ranks(config, tmp_path / "whole", train)
    with_ranks(replace(config, steps=12), tmp_path / "parts", train)
    resumed = with_ranks(config, tmp_path / "parts", train)
    for never_stopped, went_on in zip(whole, resumed, strict=True):
        assert never_stopped.keys() == went_on.keys()
        assert [name for name, x in went_on.items() if not same_bits(x, never_stopped[name])] == []


def unsent(training: Training) -> dict[str, Tensor]:
    """The residuals of this rank."""
    feedback = training.mount.flats[0].feedback
    kept = {"residual": feedback.residual_N, "velocity": feedback.velocity_N}
    return {name: x.clone() for name, x in kept.items() if x is not None}


def trained(folder: Path, config: Config) -> list[dict[str, Tensor]]:
    """Train an epoch and save; return the residuals of each rank."""

    def do(training: Training) -> dict[str, Tensor]:
        assert training.run()
        return unsent(training)

    folder.mkdir()
    write_json(folder / "config.json", config.to_dict())
    return with_ranks(config, folder, do)


def total(kept: list[dict[str, Tensor]], name: str) -> Tensor:
    """The sum over ranks."""
    return torch.stack([each[name].double() for each in kept]).sum(0)


@pytest.mark.parametrize(("before", "now"), [(3, 2), (2, 3), (4, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("memory", ["residual", "momentum"])
def test_the_sum_of_the_residuals_over_ranks_is_kept(
    tmp_path: Path, memory: Any, before: int, now: int
) -> None:
    config = replace(CONFIG, memory=memory, world_size=before, epochs=1.0)
    left = trained(tmp_path / "before", config)
    others = replace(CONFIG, memory=memory, world_size=now, continue_from=tmp_path / "before")

    def do(training: Training) -> tuple[dict[str, Tensor], str, int, list[Tensor]]:
        source = training.resume()
        return unsent(training), source, training.step, [p.detach() for p in training.model.parameters()]

    ranks = with_ranks(others, tmp_path / "now", do)
    for name in left[0]:
        assert bool(total(left, name).any())
        torch.testing.assert_close(total([kept for kept, *_ in ranks], name), total(left, name))
    for _, source, step, weights in ranks:
        assert step == Points().num_steps(batch_size=2, world_size=now)  # an epoch by its own count
        assert f"of {before} rank" in source
        assert ("the sum of their residuals" in source) == (before != now)
        assert all(torch.equal(a, b) for a, b in zip(weights, ranks[0][3], strict=True))


@pytest.mark.parametrize(("before", "now"), [(3, 2), (2, 3), (2, 2)])
@pytest.mark.parametrize("memory", ["ef21-sgdm", "econtrol"])
def test_with_another_number_of_ranks_each_starts_from_the_mean_of_the_estimates(
    tmp_path: Path, memory: Any, before: int, now: int
) -> None:
    def kept(training: Training) -> dict[str, Tensor]:
        assert training.mount.flats[0].feedback.estimator is not None
        return {name: x.clone() for name, x in training.mount.flats[0].feedback.estimator.named_buffers()}

    def train(training: Training) -> dict[str, Tensor]:
        assert training.run()
        return kept(training)

    def resume(training: Training) -> tuple[str, dict[str, Tensor]]:
        return training.resume(), kept(training)

    config = replace(CONFIG, memory=memory, world_size=before, epochs=1.0)
    (tmp_path / "before").mkdir()
    write_json(tmp_path / "before" / "config.json", config.to_dict())
    theirs = with_ranks(config, tmp_path / "before", train)
    others = replace(CONFIG, memory=memory, world_size=now, continue_from=tmp_path / "before")
    ranks = with_ranks(others, tmp_path / "now", resume)
    common_N = theirs[0]["common_N"]
    (name,) = theirs[0].keys() - {"own_N", "common_N"}
    mean_N = torch.stack([each[name].double() for each in theirs]).mean(0).float()
    assert bool(common_N.any())
    assert bool(mean_N.any())
    for rank, (source, ours) in enumerate(ranks):
        assert same_bits(ours["common_N"], common_N)
        assert ("each rank starts from the mean of their estimates" in source) == (before != now)
        if before == now:
            assert all(same_bits(ours[each], theirs[rank][each]) for each in ours)
        else:
            assert same_bits(ours["own_N"], common_N)
            torch.testing.assert_close(ours[name], mean_N)


@pytest.mark.parametrize(("before", "now"), [(3, 2), (2, 2)])
def test_an_optimiser_that_communicates_keeps_its_moments_and_the_errors_of_the_same_ranks(
    tmp_path: Path, before: int, now: int
) -> None:
    settings: dict[str, Any] = {**EXCHANGES, "optimizer": "onebit-adam", "freeze_step": 2, "lr": 0.002}
    left: list[dict[str, Tensor]] = []

    def train(training: Training) -> dict[str, Tensor]:
        assert training.run()
        return states(training)

    config = replace(CONFIG, **settings, world_size=before, epochs=1.0)
    (tmp_path / "before").mkdir()
    write_json(tmp_path / "before" / "config.json", config.to_dict())
    left = with_ranks(config, tmp_path / "before", train)
    others = replace(CONFIG, **settings, world_size=now, continue_from=tmp_path / "before")
    ranks = with_ranks(others, tmp_path / "now", lambda training: (training.resume(), states(training)))
    for rank, (source, found) in enumerate(ranks):
        assert ("keeps for each rank begins anew" in source) == (before != now)
        for name, x in found.items():
            if name.startswith("own."):
                assert bool(left[rank][name].any())
                assert torch.equal(x, left[rank][name]) if before == now else not bool(x.any())
            elif name.startswith("optimizer."):
                assert torch.equal(x, left[0][name])


def test_a_run_that_continues_another_resumes_later_from_its_own_checkpoint(tmp_path: Path) -> None:
    trained(tmp_path / "before", replace(CONFIG, world_size=2, epochs=1.0))
    config = replace(CONFIG, world_size=4, continue_from=tmp_path / "before", checkpoint_every=1)

    def part(training: Training) -> list[Tensor]:
        assert training.resume()
        batches = training.rest_of_epoch()
        training.take_step(next(batches))
        training.settle()
        training.save()
        return [p.detach().clone() for p in training.model.parameters()]

    (weights, *_) = with_ranks(config, tmp_path / "now", part)

    def again(training: Training) -> tuple[str, int, list[Tensor]]:
        return training.resume(), training.step, [p.detach() for p in training.model.parameters()]

    for source, step, resumed in with_ranks(config, tmp_path / "now", again):
        assert source == "its own checkpoint"
        assert step == 5
        assert all(torch.equal(a, b) for a, b in zip(resumed, weights, strict=True))
    steps = [record["step"] for record in read_metrics(tmp_path / "now") if record["kind"] == "step"]
    assert steps == [4]


def test_with_the_same_ranks_and_configuration_training_continues_as_if_uninterrupted(tmp_path: Path) -> None:
    # Unlike a resumed run, it does not take over random states, but none is used here.
    trained(tmp_path / "half", replace(CONFIG, epochs=1.0))

    def whole(training: Training) -> list[Tensor]:
        training.resume()
        assert training.run()
        return [p.detach() for p in training.model.parameters()]

    (never_stopped,) = with_ranks(replace(CONFIG, world_size=1), tmp_path / "whole", whole)
    trained(tmp_path / "one", replace(CONFIG, world_size=1, epochs=1.0))
    goes_on = replace(CONFIG, world_size=1, continue_from=tmp_path / "one")
    (continued,) = with_ranks(goes_on, tmp_path / "two", whole)
    assert all(torch.equal(a, b) for a, b in zip(never_stopped, continued, strict=True))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"continue_from": Path("nowhere")}, r"nowhere, which is not a run folder"),
        ({"reducer": "gtopk"}, r"whose reducer is 'topk'; this run's is 'gtopk'"),
        ({"epochs": 1.0}, r"raise --epochs or --steps"),
    ],
)
def test_a_run_that_cannot_be_continued_is_an_error_with_the_reason(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    trained(tmp_path / "before", replace(CONFIG, world_size=1, epochs=1.0))
    config = replace(CONFIG, **{"world_size": 1, "continue_from": tmp_path / "before", **changes})
    with pytest.raises(ValueError, match=complaint):
        with_ranks(config, tmp_path / "now", lambda training: training.resume())


def test_options_that_change_the_state_are_named(tmp_path: Path) -> None:
    config = replace(CONFIG, reducer="sage", world_size=1, epochs=1.0)
    trained(tmp_path / "before", config)
    options: dict[str, Any] = {"controller": "feedback"}
    config = replace(config, epochs=2.0, reducer_options=options, continue_from=tmp_path / "before")
    with pytest.raises(ValueError, match=r"does not fit the options or the data of this run: (?s:.*)contr"):
        with_ranks(config, tmp_path / "now", lambda training: training.resume())


def test_a_folder_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    write_json(tmp_path / "before" / "config.json", CONFIG.to_dict())
    config = replace(CONFIG, continue_from=tmp_path / "before")
    with pytest.raises(ValueError, match="has no complete checkpoint"):
        with_ranks(config, tmp_path / "now", lambda training: training.resume())
