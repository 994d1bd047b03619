"""The training loop of one rank, from scratch or from a checkpoint.

A step is forward, backward, reduce, update. A checkpoint holds all state that later steps depend on. On CPU,
a resumed run is bitwise identical to an uninterrupted one.
"""
# N = elements of the flat gradient

import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from sage.comm.replicas import check_replicas
from sage.data.dataset import Batch
from sage.reduction.reducer import Reduced
from sage.timing import phase
from sage.train import checkpoint, resume
from sage.train.divergence import diverged
from sage.train.evaluate import average_buffers, evaluate
from sage.train.optim import clip_, set_lr
from sage.train.schedules import learning_rate
from sage.train.training import TrainingState

HISTOGRAM_SAMPLE = 2**18
"""Number of evenly spaced gradient elements in a histogram."""


class Training(TrainingState):
    """Training on one rank: its state and the loop that updates it."""

    def run(self) -> bool:
        """Train until the last step, the target metric or a signal; return False after a signal."""
        started = time.perf_counter() - self.seconds
        while self.step < self.total_steps and not self._stopping and not self._reached():
            for batches in self.rest_of_epoch():
                self.take_step(batches)
                self.seconds = time.perf_counter() - started
                self._between_steps()
                if self._stopping or self._reached():
                    break
        return not self._stopping

    # Steps, and the work between two steps.

    def rest_of_epoch(self) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each remaining step of the epoch, or of the run if that ends first."""
        config, wire = self.config, self.wire
        epoch, done = divmod(self.step, self.steps_per_epoch)
        if done == 0:
            self.task.begin_epoch()
        batches = self.data.train_batches(
            epoch=epoch,
            rank=wire.rank,
            world_size=wire.world_size,
            batch_size=config.batch_size,
            seed=config.seed,
            start=done * config.accumulate,
        )
        for _ in range(min(self.steps_per_epoch - done, self.total_steps - self.step)):
            yield [next(batches) for _ in range(config.accumulate)]

    def take_step(self, batches: list[Batch]) -> None:
        """Take one step: forward and backward for each micro-batch, then reduce and update."""
        config, grad_N = self.config, self.mount.grad_N
        lr = self._learning_rate()
        before = self.wire.ledger.copy()
        start = time.perf_counter()
        self.model.train()
        epoch, done = divmod(self.step, self.steps_per_epoch)
        if done == 0:  # inside the step, so that its bytes are counted for this step
            self.mount.feedback.reducer.begin_epoch(epoch, lr, self.wire)
        histogram_due = self.step % config.histogram_every == 0
        with self.phases.running() if config.profile else nullcontext():
            loss = self.backward(batches)
            skipped = self._skips and self._overflowed()
            self.loss_scale.learn(overflowed=skipped)
            sample, reduced, gradient_norm = None, Reduced(grad_N, density=0.0), None
            if not skipped:  # a skipped gradient is seen by no residual, controller or momentum
                sample = self._prepare(histogram_due)
                reduced = self.mount(self.wire, lr)
                gradient_norm = self._update(lr, batches)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = time.perf_counter() - start
        if gradient_norm is None:
            self.record.event("skipped", step=self.step)
        if sample is not None:
            self.record.histogram("gradient/abs", sample, self.step)
        fields: dict[str, Any] = {
            "step": self.step,
            "epoch": epoch,
            "lr": lr,
            "density_asked": None,  # overridden by the report of a reducer that has a target density
            "density_had": reduced.density,
            "density_union": _share(reduced) if histogram_due else None,
            **self.mount.feedback.reducer.report(),
            "gradient_norm": None if gradient_norm is None else float(gradient_norm),
            "residual_norm": self._residual_norm() if self.step % config.log_every == 0 else None,
            "seconds": seconds,
        }
        if config.profile:
            fields["phases"] = self.phases.take()
        self.settle()
        # Asynchronous all-reduce of loss and stop flag; it overlaps with the next step, so no rank waits.
        told = torch.tensor([float(loss), float(self.stop.signal is not None)], dtype=torch.float64)
        self._pending = self.wire.begin_sum(told), fields
        booked = self.wire.ledger.since(before)
        fields |= {
            "bytes": dict(booked.payload),
            "wire_sent": booked.sent,
            "wire_received": booked.received,
        }
        self.tally.step(fields)
        self.step += 1

    @property
    def _skips(self) -> bool:
        return self.config.non_finite == "skip" or self.loss_scale.enabled

    def _overflowed(self) -> bool:
        """Whether the gradient of any rank is not finite; an all-reduce of 4 bytes (`control`)."""
        bad = (~self.mount.grad_N.isfinite().all()).float()
        return bool(self.wire.sum(bad, kind="control") > 0)

    def _prepare(self, histogram_due: bool) -> Tensor | None:
        """Apply decay, momentum and clipping before the reduction; return a histogram sample if due."""
        config, grad_N = self.config, self.mount.grad_N
        self.before(grad_N)
        if config.clip_local is not None:
            ranks = self.wire.world_size if config.clip_local_by_world else 1
            norm = clip_(grad_N, config.clip_local, world_size=ranks)
            if self.squares is not None:
                self.squares.rescale(torch.linalg.vector_norm(grad_N) / norm)
        if self.squares is not None:
            self.squares.tell()
        return grad_N[:: 1 + grad_N.numel() // HISTOGRAM_SAMPLE].abs() if histogram_due else None

    def _update(self, lr: float, batches: list[Batch]) -> Tensor:
        """Clip the mean gradient and take the optimiser step; return the norm before clipping.

        Raises:
            Diverged: The mean gradient is not finite; raised on every rank.
        """
        grad_N, limit = self.mount.grad_N, self.config.clip_global
        with phase("update"):
            norm = torch.linalg.vector_norm(grad_N) if limit is None else clip_(grad_N, limit)
            if not bool(norm.isfinite()):
                self.record.event("diverged", step=self.step)
                raise diverged(self, batches, lr)
            set_lr(self.optimizer, lr)
            self.optimizer.step()
        return norm

    def settle(self) -> None:
        """Wait for the all-reduce of the last step's loss and stop flag, and record the step."""
        if self._pending is None:
            return
        (pending, fields), self._pending = self._pending, None
        loss_sum, stopping = pending.wait().tolist()
        loss = loss_sum / self.wire.world_size
        self._stopping = self._stopping or stopping > 0
        self.tally.loss(loss)
        if fields["step"] % self.config.log_every == 0:
            self.record.step(loss=loss, **fields)
        shown = {"loss": loss, "density": fields["density_had"], "step/s": 1 / fields["seconds"]}
        self.display.step(fields["step"] + 1, shown)

    def _residual_norm(self) -> float | None:
        residual_N = self.mount.feedback.residual_N
        return None if residual_N is None else float(torch.linalg.vector_norm(residual_N))

    def _between_steps(self) -> None:
        """Evaluate, then save a checkpoint, if due; in this order, as evaluation changes the saved state."""
        last = self.step == self.total_steps
        evaluates = last or self.step % max(1, round(self.config.eval_every * self.steps_per_epoch)) == 0
        epoch_ends = self.step % self.steps_per_epoch == 0
        every = self.config.checkpoint_every
        saves = last or (epoch_ends if every is None else self.step % every == 0)
        if evaluates or saves:
            self.settle()
        if self._is_compared(evaluates or saves):
            self.check_replicas()
        first = self.config.average_from
        if epoch_ends and first is not None and self.step >= first * self.steps_per_epoch:
            average_buffers(self.model, self.wire)  # the average must be equal on all ranks: it is saved once
            self.average.update(self.model)
        if evaluates:
            evaluate(self)
        if saves or self._stopping or self._reached():
            self.settle()
            self.save()

    def _is_compared(self, by_default: bool) -> bool:
        every = self.config.check_replicas
        if every == 0 or self.wire.world_size == 1:
            return False
        return by_default or (every is not None and self.step % every == 0)

    def check_replicas(self) -> None:
        """Check that the parameters of all ranks are bitwise equal.

        Raises:
            ReplicasDiffer: The parameters differ; raised on every rank. The message names the ranks, the
                step and the first parameter that differs.
        """
        with torch.no_grad():
            check_replicas(self.wire, self.model.named_parameters(), when=f"step {self.step}")

    def _learning_rate(self) -> float:
        return learning_rate(
            self.config, self.step, steps_per_epoch=self.steps_per_epoch, total_steps=self.total_steps
        )

    def _reached(self) -> bool:
        """Whether the headline metric has reached the target."""
        if self.config.target is None or not self.tally.evaluations:
            return False
        value = self.tally.evaluations[-1][self.task.metric]
        return value >= self.config.target if self.better == "max" else value <= self.config.target

    # Checkpoints.

    def save(self) -> None:
        """Write a checkpoint of this step; a collective call that returns once it is complete."""
        checkpoint.save(
            self.checkpoints,
            self.step,
            shared=resume.shared_state(self) if self.wire.rank == 0 else None,
            own=resume.own_state(self),
            rank=self.wire.rank,
            world_size=self.wire.world_size,
            gather=self.wire.texts,
        )

    def resume(self) -> str:
        """Resume from the newest valid checkpoint and return a text that names it; "" if there is none."""
        told = "its own checkpoint" if resume.from_own(self) else resume.from_another(self)
        self.record.rewind(self.step)  # a run killed before its first checkpoint may have recorded steps
        return told


def _share(reduced: Reduced) -> float | None:
    """Return the share of elements sent by any rank, without those that sum to 0; None: all, or unknown."""
    if reduced.union_M is None:
        return None
    return int(reduced.mean_N.count_nonzero()) / max(1, reduced.mean_N.numel())
