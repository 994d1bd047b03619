"""What a model has learned: the metrics over the whole test set, of which every rank takes a share."""

import torch
from torch import nn

from sage.comm.wire import Wire
from sage.feed.data import Dataset, moved
from sage.task import Task


def metrics(model: nn.Module, task: Task, data: Dataset, wire: Wire, *, batch_size: int) -> dict[str, float]:
    """The task's metrics, from sums over every rank's share, added up over the ranks."""
    device = next(model.parameters()).device
    model.eval()
    task.begin_evaluation()
    sums = torch.zeros(len(task.sum_names), dtype=torch.float64, device=device)
    for batch in data.test_batches(rank=wire.rank, world_size=wire.world_size, batch_size=batch_size):
        sums += task.sums(model, moved(batch, device))
    return task.metrics(wire.sum(sums, kind="metrics"))


def average_buffers(model: nn.Module, wire: Wire) -> None:
    """Give all ranks the mean of their running statistics, so that they evaluate the same model."""
    buffers = [b for b in model.buffers() if b.is_floating_point()]
    if buffers:
        flat = wire.mean(torch.cat([b.reshape(-1) for b in buffers]), kind="buffers")
        for buffer, mean in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(mean.view_as(buffer))
