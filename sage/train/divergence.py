"""The error for a mean gradient that is not finite; it names the ranks whose gradient is not finite."""

import torch

from sage.comm.agreement import format_ranks
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
        f"step {training.step}: the mean gradient is not finite; {whose}. The steps after the last "
        f"checkpoint are lost: lower --lr (here {lr:g}), clip (--clip-global), compress less, or, if the "
        "gradient of a single rank is occasionally not finite, use --non-finite skip"
    )


def _whose(training: TrainingState, batches: list[Batch]) -> str:
    """Describe which ranks' local gradients are not finite.

    The reduction has overwritten the local gradients, so they are computed again.
    """
    is_bad = not training.mount.is_finite_here(batches)
    bad = torch.tensor(is_bad, dtype=torch.uint8, device=training.device)
    (bad_W,) = training.wire.gather(control=bad)
    ranks = bad_W.nonzero().flatten().tolist()
    if not ranks:
        return "the local gradients of all ranks are finite, so the sum or the reducer is the cause"
    if len(ranks) == training.wire.world_size:
        return "no rank's local gradient is finite"
    return f"the local gradient of {format_ranks(ranks)} is not finite, those of the other ranks are"
