"""One training step on one rank: forward, backward, reduction, clipping and the optimiser's update."""
# N = elements of the flat gradient

import time
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from sage.data.dataset import Batch
from sage.mount.reduction_seconds import fields_of_sum
from sage.reduction.reducer import Reduced
from sage.timing import phase
from sage.train.divergence import diverged
from sage.train.optim import clip_, set_lr
from sage.train.schedules import learning_rate
from sage.train.training import TrainingState

HISTOGRAM_SAMPLE = 2**18
"""Number of evenly spaced gradient elements in a histogram."""


def take(training: TrainingState, batches: list[Batch]) -> None:
    """Take one step: forward and backward for each micro-batch, then reduce and update.

    Raises:
        Diverged: The mean gradient is not finite; raised on every rank.
    """
    config, wire, mount = training.config, training.wire, training.mount
    grad_N = mount.grad_N
    lr = learning_rate(
        config,
        training.step,
        steps_per_epoch=training.steps_per_epoch,
        total_steps=training.total_steps,
    )
    before = wire.ledger.copy()
    start = time.perf_counter()
    training.model.train()
    epoch, done = divmod(training.step, training.steps_per_epoch)
    if done == 0:  # inside the step, so that its bytes are counted for this step
        mount.feedback.reducer.begin_epoch(epoch, lr, wire)
    histogram_due = training.step % config.histogram_every == 0
    with training.phases.running() if config.profile else nullcontext():
        loss = training.backward(batches)
        skipped = _may_skip(training) and _overflowed(training)
        training.loss_scale.learn(overflowed=skipped)
        sample, reduced, gradient_norm = None, Reduced(grad_N, density=0.0), None
        if not skipped:  # no residual, controller or momentum uses a skipped gradient
            sample = _prepare(training, histogram_due)
            reduced = mount(wire, lr)
            gradient_norm = _update(training, lr, batches)
    if training.device.type == "cuda":
        torch.cuda.synchronize(training.device)
    seconds = time.perf_counter() - start
    if gradient_norm is None:
        training.record.event("skipped", step=training.step)
    if sample is not None:
        training.record.histogram("gradient/abs", sample, training.step)
    fields: dict[str, Any] = {
        "step": training.step,
        "epoch": epoch,
        "lr": lr,
        "density_asked": None,  # overridden by the report of a reducer that has a target density
        "density_had": reduced.density,
        "density_union": _share(reduced) if histogram_due else None,
        **mount.feedback.reducer.report(),
        "gradient_norm": None if gradient_norm is None else float(gradient_norm),
        "residual_norm": _residual_norm(training) if training.step % config.log_every == 0 else None,
        "seconds": seconds,
        **fields_of_sum([mount.seconds] if gradient_norm is not None else []),
    }
    if config.profile:
        fields["phases"] = training.phases.take()
    settle(training)
    # Asynchronous all-reduce of loss and stop flag; it overlaps with the next step, so no rank waits.
    own = torch.tensor([float(loss), float(training.stop.signal is not None)], dtype=torch.float64)
    training.pending = wire.begin_sum(own), fields
    ledger = wire.ledger.since(before)
    fields |= {
        "bytes": dict(ledger.payload),
        "wire_sent": ledger.sent,
        "wire_received": ledger.received,
    }
    training.metrics.add_step(fields)
    training.step += 1


def settle(training: TrainingState) -> None:
    """Wait for the all-reduce of the last step's loss and stop flag, and record the step."""
    if training.pending is None:
        return
    (pending, fields), training.pending = training.pending, None
    loss_sum, stopping = pending.wait().tolist()
    loss = loss_sum / training.wire.world_size
    training.stopping = training.stopping or stopping > 0
    training.metrics.add_loss(loss)
    if fields["step"] % training.config.log_every == 0:
        training.record.step(loss=loss, **fields)
    shown = {"loss": loss, "density": fields["density_had"], "step/s": 1 / fields["seconds"]}
    training.display.step(fields["step"] + 1, shown)


def _may_skip(training: TrainingState) -> bool:
    return training.config.non_finite == "skip" or training.loss_scale.enabled


def _overflowed(training: TrainingState) -> bool:
    """Whether the gradient of any rank is not finite; an all-reduce of 4 bytes (`control`)."""
    bad = (~training.mount.grad_N.isfinite().all()).float()
    return bool(training.wire.sum(bad, kind="control") > 0)


def _prepare(training: TrainingState, histogram_due: bool) -> Tensor | None:
    """Apply decay, momentum and clipping before the reduction; return a histogram sample if due."""
    config, grad_N, squares = training.config, training.mount.grad_N, training.squares
    training.before(grad_N)
    if config.clip_local is not None:
        ranks = training.wire.world_size if config.clip_local_by_world else 1
        norm = clip_(grad_N, config.clip_local, world_size=ranks)
        if squares is not None:
            squares.rescale(torch.linalg.vector_norm(grad_N) / norm)
    if squares is not None:
        squares.pass_to_reducer()
    return grad_N[:: 1 + grad_N.numel() // HISTOGRAM_SAMPLE].abs() if histogram_due else None


def _update(training: TrainingState, lr: float, batches: list[Batch]) -> Tensor:
    """Clip the mean gradient and take the optimiser step; return the norm before clipping.

    Raises:
        Diverged: The mean gradient is not finite; raised on every rank.
    """
    grad_N, limit = training.mount.grad_N, training.config.clip_global
    with phase("update"):
        norm = torch.linalg.vector_norm(grad_N) if limit is None else clip_(grad_N, limit)
        if not bool(norm.isfinite()):
            training.record.event("diverged", step=training.step)
            raise diverged(training, batches, lr)
        set_lr(training.optimizer, lr)
        training.optimizer.step()
    return norm


def _residual_norm(training: TrainingState) -> float | None:
    residual_N = training.mount.feedback.residual_N
    return None if residual_N is None else float(torch.linalg.vector_norm(residual_N))


def _share(reduced: Reduced) -> float | None:
    """Return the share of elements sent by any rank, without those that sum to 0; None: all, or unknown."""
    if reduced.union_M is None:
        return None
    return int(reduced.mean_N.count_nonzero()) / max(1, reduced.mean_N.numel())
