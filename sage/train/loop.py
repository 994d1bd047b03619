"""The training loop: one rank's part of a run, from its start or from where a checkpoint left off.

A step is forward, backward, reduce, update. All that a later step depends on is in the checkpoint, so a run
that is killed and resumed goes through the same numbers, on CPUs to the bit.
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
"""Elements of the gradient, evenly spread, that a histogram is made of."""


class Training(TrainingState):
    """One rank's training: its state and the loop that changes it."""

    def run(self) -> bool:
        """Train until the end, the target or a signal; False where it was a signal."""
        started = time.perf_counter() - self.seconds
        while self.step < self.total_steps and not self._stopping and not self._reached():
            for batches in self.rest_of_epoch():
                self.take_step(batches)
                self.seconds = time.perf_counter() - started
                self._between_steps()
                if self._stopping or self._reached():
                    break
        return not self._stopping

    # A step, and what stands between two.

    def rest_of_epoch(self) -> Iterator[list[Batch]]:
        """The micro-batches of each step from here to the end of the epoch, or of the run."""
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
        """Forward, backward, reduce, update, on one micro-batch after another."""
        config, grad_N = self.config, self.mount.grad_N
        lr = self._learning_rate()
        before = self.wire.ledger.copy()
        start = time.perf_counter()
        self.model.train()
        epoch, done = divmod(self.step, self.steps_per_epoch)
        if done == 0:  # here, so that what it sends is in this step's bytes
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
            "density_asked": None,  # unless the reducer has a target, which its report then states
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
        # What the ranks have to tell each other of this step travels during the next, so nobody waits for it.
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
        """Whether any rank's gradient is not finite; the ranks agree on it (`control`, 4 bytes)."""
        bad = (~self.mount.grad_N.isfinite().all()).float()
        return bool(self.wire.sum(bad, kind="control") > 0)

    def _prepare(self, histogram_due: bool) -> Tensor | None:
        """What is done to this rank's gradient before the reduction; a sample of it for the histogram."""
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
        """Clip the mean gradient and take the optimiser's step; the norm that it had.

        Raises:
            Diverged: on every rank, where the mean is not finite.
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
        """Hear what the ranks told of the last step, its loss and whether to stop, and record it."""
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
        """Evaluate and save where it is time to, in this order: evaluating changes what is saved."""
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
            average_buffers(self.model, self.wire)  # all ranks have the same average, as a checkpoint has one
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
        """Compare the ranks' parameters, bit by bit.

        Raises:
            ReplicasDiffer: on every rank, where they differ; names ranks, step and the first parameter.
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

    # What a checkpoint holds.

    def save(self) -> None:
        """Write a checkpoint of this step; no rank returns before it is complete."""
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
        """Go on from the newest whole checkpoint, and say where from; "" where there is none."""
        told = "its own checkpoint" if resume.from_own(self) else resume.from_another(self)
        self.record.rewind(self.step)  # killed before its first checkpoint, it may have recorded steps
        return told


def _share(reduced: Reduced) -> float | None:
    """The share of elements that any rank has sent, less those whose sum is 0; None: all, or not known."""
    if reduced.union_M is None:
        return None
    return int(reduced.mean_N.count_nonzero()) / max(1, reduced.mean_N.numel())
