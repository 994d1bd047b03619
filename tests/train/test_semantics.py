"""Tests of steps that are skipped, scaled, clipped or in mixed precision.

Each line of the table in docs/explanation/semantics.md that concerns the whole-model mount has its test
here, or where that page says.
"""

from collections.abc import Callable
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
from sage.records.record import NullRecorder
from sage.tasks.classify import Classify
from sage.testing.harness import same_bits
from sage.train.divergence import Diverged
from sage.train.loop import Training
from sage.train.optim import LossScale
from sage.train.stop import Stop

GIVEN: dict[str, Any] = {"workload": "points", "task": "classify", "model": "feedforward", "data": "digits"}
SPIKED = 2
"""The step whose gradient is not finite on the last rank."""


class Spiked(Classify):
    """A loss whose gradient is not finite at one step on one rank."""

    calls = 0

    def __init__(self, facts: dict[str, int], spike: float, here: bool) -> None:
        super().__init__(facts)
        self.spike, self.here = spike, here

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self.calls += 1
        loss = super().loss(model, batch)
        return loss * self.spike if self.here and self.calls == SPIKED + 1 else loss


def step_by_step(
    tmp_path: Path, see: Callable[[Training], Any], *, spike: float = 1.0, world_size: int = 2, **options: Any
) -> list[list[Any]]:
    """`see(training)` before the first step and after each of four, on every rank."""
    common = {"min_compress": 0, "batch_size": 4, "reducer": "topk", "reducer_options": {"density": 0.1}}
    config = Config(**{**GIVEN, **common, "world_size": world_size, **options})

    def work(wire: Wire) -> list[Any]:
        training = Training(
            config,
            wire,
            model=small_network(),
            data=Points(),
            task=Spiked(Points.facts, spike, here=wire.rank == world_size - 1),
            reducer=registry.load("reducers", config.reducer)(**config.reducer_options),
            folder=tmp_path,
            record=NullRecorder(),
            display=Display("", enabled=False),
            stop=Stop(),
        )
        seen = [see(training)]
        for batches in list(training.rest_of_epoch())[:4]:
            training.take_step(batches)
            seen.append(see(training))
        training.settle()
        return seen

    return simulate(world_size, work)


# Steps whose gradient is not finite.


@pytest.mark.parametrize("spike", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("reducer", "options"),
    [("topk", {"density": 0.1}), ("sage", {"density": 0.1}), ("efsignsgd", {}), ("exact", {})],
)
def test_all_ranks_skip_a_step_that_is_not_finite_on_one(
    tmp_path: Path, reducer: str, options: dict[str, Any], spike: float
) -> None:
    seen = step_by_step(
        tmp_path,
        states,
        spike=spike,
        reducer=reducer,
        reducer_options=options,
        non_finite="skip",
        momentum_at="before",
        memory_lr_ratio=True,
        schedule="cosine",  # else the ratio of learning rates is 1 and has no effect
    )
    for rank in seen:
        before, after = rank[SPIKED], rank[SPIKED + 1]
        changed = [name for name in before if not same_bits(before[name], after[name])]
        assert changed == []
        # The steps before and after it changed the state, and all values are finite.
        assert any(not same_bits(rank[1][name], rank[2][name]) for name in before)
        assert any(not same_bits(rank[3][name], rank[4][name]) for name in before)
        assert all(bool(x.isfinite().all()) for x in rank[4].values())
    weights = [{k: v for k, v in rank[4].items() if k.startswith("model.")} for rank in seen]
    assert all(same_bits(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("memory", ["ef21", "ef21-sgdm", "econtrol", "diana"])
def test_a_skipped_step_leaves_the_estimates_as_they_were(tmp_path: Path, memory: str) -> None:
    seen = step_by_step(tmp_path, states, spike=float("nan"), non_finite="skip", memory=memory, momentum=0.0)
    for rank in seen:
        assert all(same_bits(x, rank[SPIKED + 1][name]) for name, x in rank[SPIKED].items())
        own = "feedback.estimator.own_N"
        assert not same_bits(rank[SPIKED][own], rank[4][own])
        assert all(bool(x.isfinite().all()) for x in rank[4].values())
        assert same_bits(rank[4]["feedback.estimator.common_N"], seen[0][4]["feedback.estimator.common_N"])


def test_by_default_a_run_ends_at_a_step_that_is_not_finite(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=rf"step {SPIKED}: the mean gradient is not finite.*--non-finite skip"):
        step_by_step(tmp_path, lambda training: None, spike=float("nan"))


def test_skipping_costs_one_small_message_per_step(tmp_path: Path) -> None:
    def control(training: Training) -> int:
        return training.wire.ledger.payload["control"]

    plain, skipping = (step_by_step(tmp_path, control, non_finite=policy) for policy in ("fail", "skip"))
    assert skipping[0][4] - plain[0][4] == 4 * 4


# The memory's learning rate.


def test_error_feedback_gets_the_learning_rate_of_each_step(tmp_path: Path) -> None:
    def last_lr_of(training: Training) -> float:
        return float(training.mount.flats[0].feedback.last_lr)

    for rank in step_by_step(
        tmp_path, last_lr_of, lr=0.1, lr_scale=4.0, warmup_epochs=1.0, memory_lr_ratio=True
    ):
        # From 0.1 to 2·4 times that, within the four steps of the epoch.
        assert rank == pytest.approx([0.0, *(0.1 * (1 + 7 * step / 4) for step in range(4))])


# Mixed precision.


def test_the_loss_scale_moves_as_torchs_grad_scaler_does() -> None:
    ours, theirs = LossScale(enabled=True), torch.amp.GradScaler("cpu")
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.0)
    for step in range(2 * LossScale.INTERVAL + 3):
        overflowed = step in (5, 6, 2300)
        theirs.scale(torch.zeros(1))
        weight.grad = torch.tensor([float("inf") if overflowed else 0.0])
        theirs.step(optimizer)
        theirs.update()
        ours.learn(overflowed=overflowed)
        assert float(ours.scale) == theirs.get_scale()


def test_a_loss_scale_that_is_off_stays_one() -> None:
    scale = LossScale(enabled=False)
    scale.learn(overflowed=True)
    assert float(scale.scale) == 1.0


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_trains_in_full_precision_weights(tmp_path: Path, amp: str) -> None:
    plain = step_by_step(tmp_path, states, reducer="exact", reducer_options={})
    mixed = step_by_step(tmp_path, states, reducer="exact", reducer_options={}, amp=amp)
    for name, x in plain[0][4].items():
        assert mixed[0][4][name].dtype == x.dtype
    weights = [name for name in plain[0][4] if name.startswith("model.")]
    assert any(not same_bits(plain[0][4][name], mixed[0][4][name]) for name in weights)
    for name in weights:
        torch.testing.assert_close(mixed[0][4][name], plain[0][4][name], atol=0.02, rtol=0.1)


def test_an_overflow_under_fp16_is_skipped_and_halves_the_scale_on_every_rank(tmp_path: Path) -> None:
    seen = step_by_step(tmp_path, lambda t: (states(t), float(t.loss_scale.scale)), spike=1e30, amp="fp16")
    for rank in seen:
        scales = [scale for _, scale in rank]
        assert scales == [2.0**16] * 3 + [2.0**15] * 2
        before, after = rank[SPIKED][0], rank[SPIKED + 1][0]
        assert all(same_bits(before[name], after[name]) for name in before)


# Clipping.


@pytest.mark.parametrize(("by_world", "ranks"), [(False, 1), (True, 4)])
def test_a_rank_clips_its_own_gradient_before_the_reduction(
    tmp_path: Path, by_world: bool, ranks: int
) -> None:
    norms: list[float] = []

    def add_hook(training: Training) -> None:
        def record_norm(_: Any, handed: tuple[Tensor, Wire]) -> None:
            norms.append(float(handed[0].norm()))

        training.mount.flats[0].feedback.register_forward_pre_hook(record_norm)

    step_by_step(
        tmp_path, add_hook, world_size=4, batch_size=2, clip_local=0.01, clip_local_by_world=by_world
    )
    assert norms
    assert all(norm == pytest.approx(0.01 / ranks**0.5, rel=1e-2) for norm in norms)


def test_the_mean_is_clipped_after_the_reduction(tmp_path: Path) -> None:
    def norm(training: Training) -> float:
        return float(training.mount.flats[0].grad_N.norm())

    seen = step_by_step(tmp_path, norm, reducer="exact", reducer_options={}, clip_global=0.01)
    assert all(after == pytest.approx(0.01, rel=1e-2) for after in seen[0][1:])
