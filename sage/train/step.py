"""One training step on one rank: forward, backward, reduction, clipping and the optimiser's update.

The mount performs the first three (`sage.train.choose_mount`). With local updates it reduces nothing before
the update, and after the last update of a round the change of the weights (`sage.train.mounted_local`).
"""

import time
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from sage.data.dataset import Batch
from sage.timing import phase
from sage.train.divergence import diverged, diverged_here, diverged_round
from sage.train.learning_rate import set_lr
from sage.train.optim import clip_
from sage.train.schedules import learning_rate
from sage.train.training import TrainingState


def take(training: TrainingState, batches: list[Batch]) -> None:
    """Take one step: forward and backward for each micro-batch, then reduce and update.

    Raises:
        Diverged: The mean gradient is not finite; raised on every rank. With local updates, the gradient of
            this rank is not finite, or the mean pseudo-gradient.
    """
    config, wire, mount = training.config, training.wire, training.mount
    lr = learning_rate(
        config,
        training.step,
        steps_per_epoch=training.steps_per_epoch,
        total_steps=training.total_steps,
    )
    before = wire.ledger.copy()
    start = time.perf_counter()
    if not training.model.training:  # visits every module
        training.model.train()
    epoch, done = divmod(training.step, training.steps_per_epoch)
    if done == 0:  # inside the step, so that its bytes are counted for this step
        mount.begin_epoch(epoch, lr)
    mount.begin_step(training.step)
    mount.error.begin_step(training.step)
    histogram_due = training.step % config.histogram_every == 0
    phases = training.phases.running() if config.profile else nullcontext()
    with training.trace.step(training.step), phases:
        gradient = mount.compute(batches, lr, sampled=histogram_due)
        training.loss_scale.learn(overflowed=gradient.skipped)
        gradient_norm = None if gradient.skipped else _update(training, lr, batches)
        if not mount.end_step(lr, is_last=training.step + 1 == training.total_steps):
            training.record.event("diverged", step=training.step)
            raise diverged_round(training, lr)
    if training.device.type == "cuda":
        torch.cuda.synchronize(training.device)
    seconds = time.perf_counter() - start - mount.error.seconds
    if gradient_norm is None and not mount.is_local:
        training.record.event("skipped", step=training.step)
    if gradient.sample is not None:
        training.record.histogram("gradient/abs", gradient.sample, training.step)
    exchanging = training.exchanging
    fields: dict[str, Any] = {
        "step": training.step,
        "epoch": epoch,
        "lr": lr,
        "density_asked": None,  # overridden by the report of a reducer that has a target density
        "density_had": mount.density() if exchanging is None else exchanging.density,
        "density_union": mount.union() if histogram_due else None,
        **mount.report(),
        "gradient_norm": None if gradient_norm is None else float(gradient_norm),
        "residual_norm": mount.residual_norm() if training.step % config.log_every == 0 else None,
        "seconds": seconds,
        "loader_seconds": training.loader_seconds,
        **mount.seconds(),
        **mount.fields(),
        **mount.error.fields(),
    }
    if config.profile:
        fields["phases"] = {**training.phases.take(), **mount.take_phases()}
    settle(training)
    # Asynchronous all-reduce of loss and stop flag; it overlaps with the next step, so no rank waits.
    flags = [float(gradient.loss), float(training.stop.signal is not None)]
    if mount.is_local:  # only some ranks may have skipped the step
        flags.append(float(gradient.skipped))
    sums = torch.tensor(flags, dtype=torch.float64)
    training.pending = wire.begin_sum(sums), fields
    ledger = wire.ledger.since(before)
    fields |= {
        "bytes": dict(ledger.payload),
        "wire_sent": ledger.sent,
        "wire_received": ledger.received,
    }
    if config.hierarchy != "flat":
        fields |= {
            "wire_sent_in_node": ledger.sent_in_node,
            "wire_received_in_node": ledger.received_in_node,
        }
    training.metrics.add_step(fields)
    training.step += 1


def settle(training: TrainingState) -> None:
    """Wait for the all-reduce of the last step's loss and stop flag, and record the step."""
    if training.pending is None:
        return
    (pending, fields), training.pending = training.pending, None
    loss_sum, stopping, *skipping = pending.wait().tolist()
    if any(skipping):
        training.record.event("skipped", step=fields["step"], ranks=int(skipping[0]))
    loss = loss_sum / training.wire.world_size
    training.stopping = training.stopping or stopping > 0
    training.metrics.add_loss(loss)
    if fields["step"] % training.config.log_every == 0:
        training.record.step(loss=loss, **fields)
    shown = {"loss": loss, "density": fields["density_had"], "step/s": 1 / fields["seconds"]}
    training.display.step(fields["step"] + 1, shown)


def _update(training: TrainingState, lr: float, batches: list[Batch]) -> Tensor:
    """Clip the gradient and take the optimiser step; return the norm before clipping.

    Raises:
        Diverged: The gradient is not finite; raised on every rank if it is the mean.
    """
    mount, limit = training.mount, training.config.clip_global
    with phase("update"):
        norm = mount.norm()
        if limit is not None:
            clip_(mount.gradient, limit, norm=norm)
        if not bool(norm.isfinite()):
            training.record.event("diverged", step=training.step)
            raise diverged_here(training, lr) if mount.is_alone else diverged(training, batches, lr)
        set_lr(training.optimizer, lr)
        training.optimizer.step()
    return norm
