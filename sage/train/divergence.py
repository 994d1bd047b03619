"""The errors for a gradient that is not finite; they name the ranks whose gradient is not finite."""

import torch

from sage.comm.agreement import format_ranks
from sage.data.dataset import Batch
from sage.train.training import TrainingState


class Diverged(RuntimeError):
    """Raised when the mean gradient, or with local updates a rank's own, is not finite."""


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


def diverged_here(training: TrainingState, lr: float) -> Diverged:
    """Build the error for a local step whose gradient is not finite; the other ranks do not know it."""
    return Diverged(
        f"step {training.step}: the gradient of rank {training.wire.rank} is not finite, in a local step "
        f"without communication. The steps after the last checkpoint are lost: lower --lr (here {lr:g}), "
        "clip (--clip-local), or, if a gradient is occasionally not finite, use --non-finite skip"
    )


def diverged_round(training: TrainingState, lr: float) -> Diverged:
    """Build the error for a round whose mean pseudo-gradient is not finite; a collective call."""
    whose = _named(training, training.mount.is_finite, "pseudo-gradient")
    return Diverged(
        f"step {training.step}: the mean pseudo-gradient is not finite; {whose}. The steps after the last "
        f"checkpoint are lost: lower --lr (here {lr:g}), clip (--clip-local), or compress less"
    )


def _whose(training: TrainingState, batches: list[Batch]) -> str:
    """Describe which ranks' local gradients are not finite.

    The reduction has overwritten the local gradients, so they are computed again.
    """
    return _named(training, training.mount.is_finite_here(batches), "local gradient")


def _named(training: TrainingState, is_finite: bool, what: str) -> str:
    """Describe on which ranks something is not finite; a collective call."""
    is_bad = not is_finite
    bad = torch.tensor(is_bad, dtype=torch.uint8, device=training.device)
    (bad_W,) = training.wire.gather(control=bad)
    ranks = bad_W.nonzero().flatten().tolist()
    if not ranks:
        return f"the {what}s of all ranks are finite, so the sum or the reducer is the cause"
    if len(ranks) == training.wire.world_size:
        return f"no rank's {what} is finite"
    return f"the {what} of {format_ranks(ranks)} is not finite, those of the other ranks are"
