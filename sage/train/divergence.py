"""The error for a mean gradient that is not finite; it names the ranks whose gradient is not finite."""

import torch

from sage.comm.agreement import told_ranks
from sage.data.dataset import Batch
from sage.train.training import TrainingState


class Diverged(RuntimeError):
    """Raised when the mean gradient is not finite."""


def diverged(training: TrainingState, batches: list[Batch], lr: float) -> Diverged:
    """Build the error for a step whose mean gradient is not finite; a collective call.

    Args:
        training: Its parameters must not have been updated by the step.
        batches: The micro-batches of the step.
        lr: The learning rate of the step.
    """
    whose = _whose(training, batches)
    return Diverged(
        f"step {training.step}: the mean gradient is not finite; {whose}. Nothing after the last checkpoint "
        f"is kept. Lower lr (here {lr:g}), clip (--clip-global), compress less, or, where it is a single "
        "rank's gradient now and then, --non-finite skip"
    )


def _whose(training: TrainingState, batches: list[Batch]) -> str:
    """Say which ranks' local gradients are not finite.

    The reduction has overwritten the local gradients, so they are computed again.
    """
    training.backward(batches)
    bad = ~training.mount.grad_N.isfinite().all()
    (bad_W,) = training.wire.gather(control=bad.to(torch.uint8))
    ranks = bad_W.nonzero().flatten().tolist()
    if not ranks:
        return "each rank's own gradient is, so the sum or the reducer is at fault"
    if len(ranks) == training.wire.world_size:
        return "nor is the own gradient of any rank"
    return f"the own gradient of {told_ranks(ranks)} is not either, that of the others is"
