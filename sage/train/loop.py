"""The training loop of one rank, from scratch or from a checkpoint.

The loop takes steps (`sage.train.step`); between two steps it compares replicas, evaluates and saves
checkpoints. It stops at the last step, at the target metric or after a stop signal. A checkpoint holds all
state that later steps depend on. On CPU, a resumed run is bitwise identical to an uninterrupted one.
"""

import time
from collections.abc import Iterator
from functools import cached_property

from sage.comm.replicas import Replicas
from sage.data.dataset import Batch
from sage.train import checkpoint, resume, step
from sage.train.evaluate import average_buffers, evaluate, record
from sage.train.training import TrainingState


class Training(TrainingState):
    """Training on one rank: its state and the loop that updates it."""

    def run(self) -> bool:
        """Train until the last step, the target metric or a signal; return False after a signal."""
        started = time.perf_counter() - self.seconds
        while self.step < self.total_steps and not self.stopping and not self._reached():
            for batches in self.rest_of_epoch():
                self.take_step(batches)
                self.seconds = time.perf_counter() - started
                self._between_steps()
                if self.stopping or self._reached():
                    break
        return not self.stopping

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
            start = time.perf_counter()
            taken = [next(batches) for _ in range(config.accumulate)]
            self.loader_seconds = time.perf_counter() - start
            yield taken

    def endless_batches(self) -> Iterator[list[Batch]]:
        """Yield the micro-batches of one step after another, epoch after epoch, for measurements."""
        while True:
            yield from self.rest_of_epoch()

    def take_step(self, batches: list[Batch]) -> None:
        """Take one step on the micro-batches; its record is written by `settle`."""
        step.take(self, batches)

    def settle(self) -> None:
        """Wait until the last step's loss and stop flag are summed over the ranks, and record the step."""
        step.settle(self)

    def _between_steps(self) -> None:
        """Evaluate, then save a checkpoint, if due; in this order, as evaluation changes the saved state."""
        last = self.step == self.total_steps
        evaluates = last or self.step % max(1, round(self.config.eval_every * self.steps_per_epoch)) == 0
        epoch_ends = self.step % self.steps_per_epoch == 0
        period = self.config.checkpoint_every
        saves = last or (epoch_ends if period is None else self.step % period == 0)
        if evaluates or saves:
            self.settle()
        comparison = None
        if self._is_compared(evaluates or saves):
            comparison = self._replicas.begin(f"step {self.step}")
        first = self.config.average_from
        if epoch_ends and first is not None and self.step >= first * self.steps_per_epoch:
            average_buffers(self.model, self.wire)  # the average must be equal on all ranks: it is saved once
            with self.mount.common_model():
                self.average.update(self.model)
        evaluation = evaluate(self) if evaluates else None
        if comparison is not None:
            comparison.finish()  # copies that differ are neither recorded nor saved
        if evaluation is not None:
            record(self, evaluation)
        if saves or self.stopping or self._reached():
            self.settle()
            self.save()

    def _is_compared(self, by_default: bool) -> bool:
        period = self.config.check_replicas
        if period == 0 or self.wire.world_size == 1:
            return False
        return by_default or (period is not None and self.step % period == 0)

    @cached_property
    def _replicas(self) -> Replicas:
        return self.mount.replicas()

    def _reached(self) -> bool:
        """Whether the headline metric has reached the target."""
        if self.config.target is None or not self.metrics.evaluations:
            return False
        value = self.metrics.evaluations[-1][self.task.metric]
        return value >= self.config.target if self.better == "max" else value <= self.config.target

    # Checkpoints.

    def save(self) -> None:
        """Write a checkpoint of this step; a collective call that returns once it is complete."""
        shared = resume.shared_state(self)  # collective if the model is sharded
        checkpoint.save(
            self.checkpoints,
            self.step,
            shared=shared if self.wire.rank == 0 else None,
            own=resume.own_state(self),
            rank=self.wire.rank,
            world_size=self.wire.world_size,
            gather=self.wire.texts,
        )

    def resume(self) -> str:
        """Resume from the newest valid checkpoint and return a text that names it; "" if there is none."""
        source = "its own checkpoint" if resume.from_own(self) else resume.from_another(self)
        lacking = self.config.world_size - self.wire.world_size
        if lacking and self.config.quorum is not None:
            self.record.event("lost", step=self.step, ranks=lacking, world_size=self.wire.world_size)
        self.record.rewind(self.step)  # a run killed before its first checkpoint may have recorded steps
        return source
