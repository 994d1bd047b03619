"""Evaluates the model on the test set, where each rank processes one shard, and records the metrics."""

import time
from dataclasses import dataclass

import torch
from torch import nn

from sage.comm.wire import Wire
from sage.data.dataset import Dataset, moved
from sage.tasks import Task
from sage.train.training import TrainingState

EVAL_BATCH = 512
"""Largest evaluation batch: a training batch of 2^19 pairs would mean 101 times as many items to rank."""


@dataclass(frozen=True)
class Evaluation:
    """The metrics of the model at one step, and of its running average if there is one."""

    metrics: dict[str, float]
    average_metrics: dict[str, float] | None
    seconds: float


def evaluate(training: TrainingState) -> Evaluation:
    """Evaluate the model, and its running average if there is one; a collective call."""
    start = time.perf_counter()
    average = None
    with training.mount.common_model():
        average_buffers(training.model, training.wire)
        measured = _measured(training)
        if training.average.num_averaged:
            with training.average.swapped(training.model):
                average = _measured(training)
    return Evaluation(measured, average, time.perf_counter() - start)


def record(training: TrainingState, evaluation: Evaluation) -> None:
    """Record an evaluation, and show it."""
    train_loss = training.metrics.take_mean_loss()
    training.metrics.evaluations.append(evaluation.metrics)
    epoch = training.step / training.steps_per_epoch
    average = evaluation.average_metrics
    training.record.epoch(
        epoch=epoch,
        step=training.step,
        train_loss=train_loss,
        metrics=evaluation.metrics,
        seconds=evaluation.seconds,
        **({"average_metrics": average} if average else {}),
    )
    measured = "  ".join(f"{name} {_shown(value)}" for name, value in evaluation.metrics.items())
    training.display.print(f"epoch {epoch:.4g}  train loss {train_loss:.4f}  {measured}")


def _shown(value: float) -> str:
    """Four decimals, or four digits of a smaller number."""
    return f"{value:.3e}" if 0 < abs(value) < 0.001 else f"{value:.4f}"


def _measured(training: TrainingState) -> dict[str, float]:
    batch_size = min(EVAL_BATCH, training.config.batch_size)
    with training.mount.evaluating():
        return metrics(training.model, training.task, training.data, training.wire, batch_size=batch_size)


def metrics(model: nn.Module, task: Task, data: Dataset, wire: Wire, *, batch_size: int) -> dict[str, float]:
    """Compute the task's metrics from sums over the test set, which are all-reduced over the ranks."""
    device = next(model.parameters()).device
    model.eval()
    task.begin_evaluation()
    sums = torch.zeros(len(task.sum_names), dtype=torch.float64, device=device)
    for batch in data.test_batches(rank=wire.rank, world_size=wire.world_size, batch_size=batch_size):
        sums += task.sums(model, moved(batch, device))
    return task.metrics(wire.sum(sums, kind="metrics"))


def average_buffers(model: nn.Module, wire: Wire) -> None:
    """Average the floating-point buffers over the ranks, so that all ranks evaluate the same model."""
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    if buffers:
        flat = wire.mean(torch.cat([b.reshape(-1) for b in buffers]), kind="buffers")
        for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))
