"""Tests of runs whose optimiser communicates itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_resume import CONFIG, EXCHANGES, ZERO_ONE, with_ranks
from torch import Tensor

from sage.config import EXCHANGING
from sage.optim import BY_NAME, ZeroOneAdam
from sage.records.record import read_metrics
from sage.train.divergence import Diverged
from sage.train.evaluate import metrics
from sage.train.loop import Training
from sage.train.mounted_whole import whole_of

ONE_BIT: dict[str, Any] = {**EXCHANGES, "optimizer": "onebit-adam", "freeze_step": 3, "lr": 0.002}


def test_the_configuration_knows_every_optimiser() -> None:
    assert set(EXCHANGING) == BY_NAME.keys()
    assert all(name == optimizer.name for name, optimizer in BY_NAME.items())


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_run_records_the_bytes_of_the_optimiser_and_its_replicas_are_equal(
    tmp_path: Path, world_size: int
) -> None:
    config = replace(CONFIG, **ONE_BIT, world_size=world_size, steps=6, weight_decay=0.1, check_replicas=1)

    def train(training: Training) -> int:
        assert training.run()
        return training.mount.num_elements

    (numel, *_) = with_ranks(config, tmp_path, train)
    chunk = 8 * -(-numel // (8 * world_size))
    steps = [each for each in read_metrics(tmp_path) if each["kind"] == "step"]
    assert [each["bytes"]["values"] for each in steps[:3]] == [4 * numel] * 3
    for each in steps[3:]:
        assert each["bytes"]["values"] == (world_size + 1) * chunk // 8
        assert each["bytes"]["scales"] == 8
        assert each["density_had"] == 1
        assert each["gradient_norm"] > 0
    assert all(each["residual_norm"] is None for each in steps)


def test_before_the_freeze_it_is_the_adam_of_the_engine_with_the_mean_of_exact(tmp_path: Path) -> None:
    """With bias correction and the mean of two ranks, whose sum has one rounding in either order."""
    exact: dict[str, Any] = {"reducer": "exact", "reducer_options": {}, "world_size": 2, "weight_decay": 0.1}
    adamw = replace(CONFIG, **exact, optimizer="adamw", lr=0.01)
    frozen: dict[str, Any] = {"freeze_step": 99, "bias_correction": True}
    onebit = replace(CONFIG, **exact, optimizer="onebit-adam", lr=0.01, **frozen)

    def train(training: Training) -> list[Tensor]:
        assert training.run()
        return [p.detach() for p in training.model.parameters()]

    theirs = with_ranks(adamw, tmp_path / "adamw", train)
    for ours in with_ranks(onebit, tmp_path / "onebit", train):
        assert all(map(torch.equal, ours, theirs[0]))


def test_between_two_synchronisations_the_common_model_is_evaluated_and_compared(tmp_path: Path) -> None:
    settings: dict[str, Any] = {**EXCHANGES, **ZERO_ONE, "freeze_step": 4, "local_step_scaler": 1}
    config = replace(CONFIG, **settings, world_size=2, steps=13, check_replicas=1)

    def train(training: Training) -> tuple[list[Tensor], list[Tensor], list[dict[str, float]]]:
        assert training.run()
        own = [p.detach().clone() for p in training.model.parameters()]
        assert isinstance(training.exchanging, ZeroOneAdam)
        with training.exchanging.common_parameters():
            common = [p.detach().clone() for p in training.model.parameters()]
            measured = metrics(
                training.model, training.task, training.data, training.wire, batch_size=config.batch_size
            )
        return own, common, [training.metrics.evaluations[-1], measured]

    (first, common, evaluations), (second, other, _) = with_ranks(config, tmp_path, train)
    assert not all(map(torch.equal, first, second))
    assert all(map(torch.equal, common, other))
    assert evaluations[0] == evaluations[1]
    steps = [each for each in read_metrics(tmp_path) if each["kind"] == "step"]
    assert [each["density_had"] for each in steps] == [1, 1, 1, 1, 1, 1, 0, 1, 0, 0, 0, 0, 0]


def test_a_gradient_that_is_not_finite_on_one_rank_ends_all_or_is_skipped_by_all(tmp_path: Path) -> None:
    def tampered(training: Training) -> list[float]:
        if training.wire.rank == 1:
            hook = lambda grad: grad * (float("nan") if training.step == 4 else 1.0)  # noqa: E731
            next(training.model.parameters()).register_hook(hook)
        assert training.run()
        assert training.exchanging is not None
        return [float(training.exchanging.num_steps)]

    config = replace(CONFIG, **ONE_BIT, world_size=2, steps=6)
    with pytest.raises(Diverged, match="step 4: .* the local gradient of rank 1 is not finite"):
        with_ranks(config, tmp_path / "fail", tampered)
    skipping = replace(config, non_finite="skip")
    assert with_ranks(skipping, tmp_path / "skip", tampered) == [[5.0], [5.0]]


def test_a_measurement_of_reduced_gradients_refuses_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'onebit-adam', which communicates itself; this measurement"):
        with_ranks(replace(CONFIG, **ONE_BIT), tmp_path, lambda training: whole_of(training.mount))


def test_each_rank_clips_its_own_gradient(tmp_path: Path) -> None:
    def train(training: Training) -> float:
        assert training.run()
        return float(training.mount.norm())

    config = replace(CONFIG, **ONE_BIT, world_size=2, steps=5, clip_local=0.01)
    for norm in with_ranks(config, tmp_path, train):
        assert norm == pytest.approx(0.01, rel=1e-3)
